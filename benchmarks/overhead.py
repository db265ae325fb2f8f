"""What the coordinator costs: seconds per trial outside training, and the start, on studies that are already long.

    python benchmarks/overhead.py                            # about 10 minutes: 1,000 and 5,000 finished trials
    python benchmarks/overhead.py --finished 1000 --trials 10 --starts 3
    python benchmarks/overhead.py --profile 40               # and the 40 functions that the coordinator spends most in

A made-up study of so many finished trials (`made_up.py`) lies in SQLite. The real coordinator goes on with it, with its
sampler, pruner, database, notes, plots and screen, but with workers that train nothing: each epoch's metrics come at
once. So all the time that passes is the coordinator's, and is divided by the trials that ended. The start is timed in
processes of its own, from the opening of the study to its first job, in turns with Optuna's own load of all trials;
what `study.py` does before, reading the pictures and forecasting the study's time, does not depend on its length.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import optuna
from measuring import Clock, drawn_pictures, machine, spread

import search_space
from commands.console import Screen, make_console
from data.cache import CacheHandle
from data.catalog import Catalog
from data.split import Split
from model.training import EpochMetrics, Mistake
from reporting.study_note import StudyNote
from reporting.trial_note import TrialNotes
from search_space import PROFILES, known_good, suggest
from tuning import sampling, scheduling, storage
from tuning.coordinator import Coordinator, Plan, TrialEnded, TrialStarted, search
from tuning.devices import Slot
from tuning.folder import sqlite_url
from tuning.jobs import Event, TrialJob

PROFILE = PROFILES["quick"]
CLASSES = 9
NAME = "made-up"
SECTIONS = {
    "trial note": "the trial's note: curves, confusion matrix, mistakes",
    "study note": "the study's note and plots, every ten trials",
    "ask": "ask: the trial's row, and values that were enqueued",
    "sample": "sampling",
    "assign": "the rest of making the configuration",
    "flops": "FLOPs",
    "report": "reporting the epochs",
    "prune": "the pruner",
    "attributes": "the trial's attributes and constraints",
    "tell": "tell",
    "fulfilled": "whether more trials are wanted",
    "checkpoints": "old checkpoints",
    "rest": "the rest",
}


class InstantWorkers:
    """Slots whose trials are trained by drawing random numbers."""

    def __init__(self, slots: int) -> None:
        self.slots = [Slot()] * slots
        self._jobs: dict[int, tuple[TrialJob, int]] = {}
        self._asked: deque[int] = deque()

    def start(self, slot: int, job: TrialJob) -> None:
        self._jobs[slot] = (job, 0)
        self._asked.append(slot)

    def proceed(self, slot: int) -> None:
        self._asked.append(slot)

    def stop(self, slot: int) -> None:
        self._jobs.pop(slot, None)

    def wait(self, timeout: float) -> list[tuple[int, Event]]:
        while self._asked:
            slot = self._asked.popleft()
            if slot in self._jobs:
                job, epoch = self._jobs[slot]
                self._jobs[slot] = (job, epoch + 1)
                (job.directory / "last.pt").write_bytes(b"weights")
                (job.directory / "best.pt").write_bytes(b"weights")
                return [(slot, _metrics(job, epoch))]
        return []

    def close(self) -> None:
        pass


def _metrics(job: TrialJob, epoch: int) -> EpochMetrics:
    pull = (job.number * 7919 + epoch * 104729) % 97 / 97
    right = int(8 + 12 * pull)
    rows = tuple(tuple(right if row == column else (23 - right) // 8 for column in range(9)) for row in range(9))
    top1 = sum(row[place] for place, row in enumerate(rows)) / sum(map(sum, rows))
    return EpochMetrics(
        epoch=epoch, train_loss=1.5, train_top1=top1, validation_loss=1.4, top1=top1, top3=min(1.0, top1 + 0.2),
        confusion=rows, lr=0.01, seconds=1.0, peak_memory=900_000_000,
        mistakes=tuple(Mistake(place, (place + epoch) % 9, 0.9) for place in range(12)),
    )  # fmt: skip


def open_made_up(folder: Path) -> optuna.Study:
    """As `study.py` opens its own, with the identity that the made-up study has."""
    written = {
        key.removeprefix(storage.IDENTITY): value
        for key, value in optuna.load_study(study_name=NAME, storage=sqlite_url(folder)).user_attrs.items()
        if key.startswith(storage.IDENTITY)
    }
    return storage.open_study(
        sqlite_url(folder),
        NAME,
        sampler=sampling.SAMPLERS["tpe"](0),
        pruner=scheduling.PRUNERS["median"](PROFILE.epochs),
        identity=written,
        first_trials=known_good(PROFILE),
    )


Pictures = tuple[Catalog, Split, CacheHandle]


def make(study: optuna.Study, folder: Path, pictures: Pictures, more: int) -> tuple[Coordinator, StudyNote, Screen]:
    """What `study.py` makes of an open study, for so many trials more."""
    catalog, split, data = pictures
    wanted = more + sum(map(storage.counts, study.get_trials(deepcopy=False)))
    made = Coordinator(
        study,
        workers=InstantWorkers(2),
        scheduler=scheduling.PrunerScheduler(),
        assign=search(partial(suggest, profile=PROFILE, classes=CLASSES), 0),
        plan=Plan(trials=wanted, max_flops=PROFILE.max_flops),
        data=data,
        folder=folder,
        describe=TrialNotes(folder, data),
    )
    note = StudyNote(study, folder, catalog=catalog, split=split, profile=PROFILE, trials=wanted)
    console = make_console()
    console.quiet = True
    return made, note, Screen(console, study, trials=wanted, slots=2, expected=10.0)


def put_clock() -> Clock:
    """A clock around what the coordinator calls."""
    clock = Clock("rest", whole=("trial note", "study note", "checkpoints", "sample"))
    for owner, name, section in (
        (TrialNotes, "__call__", "trial note"),
        (StudyNote, "update", "study note"),
        (optuna.Study, "ask", "ask"),
        (optuna.Study, "tell", "tell"),
        (optuna.Trial, "report", "report"),
        (optuna.Trial, "should_prune", "prune"),
        (optuna.Trial, "set_user_attr", "attributes"),
        (optuna.Trial, "set_constraint", "attributes"),
        (sampling.SeededTPESampler, "infer_relative_search_space", "sample"),
        (sampling.SeededTPESampler, "sample_relative", "sample"),
        (sampling.SeededTPESampler, "sample_independent", "sample"),
        (search_space, "cost", "flops"),
        (Coordinator, "_fulfilled", "fulfilled"),
        (Coordinator, "_remove_checkpoints", "checkpoints"),
    ):
        clock.time(owner, name, section)
    return clock


def per_trial(source: Path, trials: int, slowest: int) -> tuple[list[float], list[float], Clock]:
    """Wall clock and CPU seconds of each trial that ended, but for the first, and where they went."""
    pictures = drawn_pictures(PROFILE.sizes)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "study"
        shutil.copytree(source, folder)
        made, note, screen = make(open_made_up(folder), folder, pictures, trials)
        clock: Clock | None = None
        profile = cProfile.Profile()
        assign = made._assign  # pyright: ignore[reportPrivateUsage]

        def timed_assign(trial: optuna.Trial) -> Any:
            if clock is None:
                return assign(trial)
            clock.enter("assign")
            try:
                return assign(trial)
            finally:
                clock.leave()

        made._assign = timed_assign  # pyright: ignore[reportPrivateUsage]
        wall: list[float] = []
        cpu: list[float] = []
        since = (time.perf_counter(), time.process_time())
        for happening in made.run():
            screen.show(happening)
            note.receive(happening)
            if isinstance(happening, TrialEnded):
                now = (time.perf_counter(), time.process_time())
                if clock is None:  # the first trial has loaded everything
                    clock = put_clock()
                    if slowest:
                        profile.enable()
                else:
                    wall.append(now[0] - since[0])
                    cpu.append(now[1] - since[1])
                since = now
        if slowest:
            profile.disable()
            pstats.Stats(profile).sort_stats("cumulative").print_stats(slowest)
    assert clock is not None
    return wall, cpu, clock


def start(folder: Path, which: str) -> None:
    """In a process of its own: prints the seconds, and the CPU's, of one start."""
    pictures = drawn_pictures(PROFILE.sizes)
    begun, busy = time.perf_counter(), time.process_time()
    if which == "optuna":
        optuna.load_study(study_name=NAME, storage=sqlite_url(folder)).get_trials(deepcopy=False)
    else:
        made, note, _ = make(open_made_up(folder), folder, pictures, 10)
        assert made.wanted
        note.write_note()
        next(happening for happening in made.run() if isinstance(happening, TrialStarted))
    print(json.dumps([time.perf_counter() - begun, time.process_time() - busy]))


def starts(source: Path, turns: int) -> dict[str, list[list[float]]]:
    """Seconds and CPU seconds of each, in turns; each start on a copy, as ours adds a trial."""
    found: dict[str, list[list[float]]] = {"optuna": [], "ours": []}
    for _ in range(turns):
        for which, seconds in found.items():
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "study"
                shutil.copytree(source, folder)
                command = [sys.executable, __file__, "--start", which, str(folder)]
                answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                seconds.append(json.loads(answer.splitlines()[-1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finished", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--trials", type=int, default=30, help="more, by which the cost is measured")
    parser.add_argument("--starts", type=int, default=5, help="turns of starts; 0 leaves them out")
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="print the N slowest functions")
    parser.add_argument("--keep", type=Path, help="where the made-up studies are left, and found again")
    parser.add_argument("--start", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.start:
        start(Path(chosen.start[1]), chosen.start[0])
        return
    from tests.stress.made_up_studies import fill

    print(machine())
    tables: dict[int, Clock] = {}
    columns = ["finished trials", "s per trial", "CPU s per trial", "start s", "Optuna's load s"]
    columns += ["start minus load s", "the same, CPU s"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    with tempfile.TemporaryDirectory() as scratch:
        for finished in chosen.finished:
            folder = (chosen.keep or Path(scratch)) / f"made-up-{finished}"
            if not (folder / "study.db").exists():
                folder.mkdir(parents=True, exist_ok=True)
                fill(folder, finished)
            wall, cpu, tables[finished] = per_trial(folder, chosen.trials, chosen.profile)
            cells = [f"{finished:,}", spread(wall), spread(cpu)]
            if chosen.starts:
                times = starts(folder, chosen.starts)
                ours, theirs = ([one[0] for one in times[which]] for which in ("ours", "optuna"))
                pairs = list(zip(times["ours"], times["optuna"], strict=True))
                above, busy = ([one[kind] - other[kind] for one, other in pairs] for kind in (0, 1))
                cells += [spread(ours), spread(theirs), spread(above), spread(busy)]
            else:
                cells += ["-"] * 4
            print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\nMedian and quartiles of {chosen.trials} trials and {chosen.starts} interleaved starts.")
    print("\nCPU seconds per trial, the mean:\n")
    print("| " + " | ".join(["part", *(f"{finished:,} finished" for finished in tables)]) + " |")
    print("|---" * (1 + len(tables)) + "|")
    for key, name in SECTIONS.items():
        cells = [f"{clock.cpu[key] / chosen.trials:.3f}" for clock in tables.values()]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
