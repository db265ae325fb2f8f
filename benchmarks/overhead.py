"""The coordinator's overhead: seconds per trial outside training, and per start, in studies with many finished trials.

    python benchmarks/overhead.py                            # about 10 minutes: 1,000 and 5,000 finished trials
    python benchmarks/overhead.py --finished 1000 --trials 10 --starts 3
    python benchmarks/overhead.py --slowest 40               # also the 40 functions that take most of the time

A made-up study with that many finished trials is stored in SQLite. The real coordinator resumes it with its sampler,
pruner, database, notes, plots and screen, but with workers that train nothing and send each epoch's metrics at once, so
that all the time is the coordinator's; it is divided by the number of trials that ended. A start is timed in a fresh
process, from opening the study to its first job, taking turns with Optuna's own loading of all trials. What `study.py`
does before that, reading the pictures and forecasting the study's time, does not depend on the study's length.
"""

import cProfile
import pstats
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import optuna

from benchmarks.measuring import QUICK, Subprocess, quiet_study, spread
from data.prepare import Pictures, default_cache, find_pictures, identity
from model.training import EpochMetrics, Mistake
from tests.stress.made_up_studies import PROFILE, fill, made_up_metrics
from tests.stress.script import header, machine, row, run
from tuning.database import IDENTITY
from tuning.devices import Slot
from tuning.events import TrialEnded, TrialStarted
from tuning.folder import sqlite_url
from tuning.jobs import TrialJob, WorkerMessage
from tuning.trials import count_trials, read_trials

NAME = "made-up"


class InstantWorkers:
    """Workers that train nothing and send random metrics at once."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = dict(enumerate(slots))
        self._jobs: dict[int, tuple[TrialJob, int]] = {}
        self._asked: deque[int] = deque()

    def start(self, slot: int, job: TrialJob) -> None:
        self._jobs[slot] = (job, 0)
        self._asked.append(slot)

    def proceed(self, slot: int) -> None:
        self._asked.append(slot)

    def stop(self, slot: int) -> None:
        self._jobs.pop(slot, None)

    def wait(self, timeout: float) -> list[tuple[int, WorkerMessage]]:
        while self._asked:
            slot = self._asked.popleft()
            if slot in self._jobs:
                job, epoch = self._jobs[slot]
                self._jobs[slot] = (job, epoch + 1)
                (job.directory / "last.pt").write_bytes(b"weights")
                (job.directory / "best.pt").write_bytes(b"weights")
                return [(slot, metrics(job, epoch))]
        return []

    def close(self) -> None:
        pass


def metrics(job: TrialJob, epoch: int) -> EpochMetrics:
    right = 8 + 12 * ((job.number * 7919 + epoch * 104729) % 97) // 97
    rows = [[right if line == column else (23 - right) // 8 for column in range(9)] for line in range(9)]
    mistakes = tuple(Mistake(place, (place + epoch) % 9, 0.9) for place in range(12))
    return replace(made_up_metrics(epoch, 9 * right / sum(map(sum, rows)), rows, 1.0), mistakes=mistakes)


def load(results: Path) -> optuna.Study:
    """Load the made-up study as any Optuna program would."""
    return optuna.load_study(study_name=NAME, storage=sqlite_url(results / NAME))


def make_up(results: Path, finished: int, pictures: Pictures) -> None:
    """Write a made-up study of these pictures, so that it can be resumed with them."""
    (results / NAME).mkdir(parents=True)
    fill(results / NAME, finished)
    handle = pictures.decode(QUICK.sizes, cache_dir=default_cache())
    load(results).set_user_attr(f"{IDENTITY}data", identity(pictures, handle))


resumed = partial(quiet_study, name=NAME, profile=PROFILE, scheduler="median", make_workers=InstantWorkers)
"""Resumes the made-up study, with the settings that it has."""


def per_trial(results: Path, trials: int, pictures: Pictures, slowest: int) -> tuple[list[float], list[float]]:
    """Run `trials` more trials in a copy of the study; return wall and CPU seconds of each one after the first."""
    profile, seconds = cProfile.Profile(), list[tuple[float, float]]()
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(results, Path(scratch) / "copy"))
        wanted = count_trials(read_trials(load(copy))) + trials + 1  # the first one loads everything
        with resumed(pictures, copy, trials=wanted) as (_, events):
            since: tuple[float, float] | None = None
            for event in events:
                if isinstance(event, TrialEnded):
                    now = time.perf_counter(), time.process_time()
                    if since:
                        seconds.append((now[0] - since[0], now[1] - since[1]))
                    elif slowest:
                        profile.enable()
                    since = now
                if len(seconds) == trials:
                    break
            profile.disable()
    if slowest:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(slowest)
    return [wall for wall, _ in seconds], [cpu for _, cpu in seconds]


def start(which: str, results: Path) -> Callable[[], tuple[float, float]]:
    """Return a function that starts the study once and returns the wall-clock and CPU seconds that this took."""
    pictures = find_pictures()

    def timed() -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        if which == "optuna":
            load(results).get_trials(deepcopy=False)
            return time.perf_counter() - wall, time.process_time() - cpu
        with resumed(pictures, results, trials=10**6) as (_, events):
            next(event for event in events if isinstance(event, TrialStarted))
            return time.perf_counter() - wall, time.process_time() - cpu

    return timed


def time_starts(results: Path, turns: int) -> list[dict[str, tuple[float, float]]]:
    """Return the seconds of both kinds of start for each turn, each timed on a copy, because ours adds a trial."""
    found: list[dict[str, tuple[float, float]]] = []
    for _ in range(turns):
        found.append({})
        for which in ("optuna", "ours"):
            with tempfile.TemporaryDirectory() as scratch:
                process = Subprocess(start, which, Path(shutil.copytree(results, Path(scratch) / "copy")))
                found[-1][which] = process()
                process.close()
    return found


def main(*, finished: tuple[int, ...] = (1000, 5000), trials: int = 30, starts: int = 5, slowest: int = 0) -> None:
    """Print the table.

    Parameters
    ----------
    finished
        Finished trials of each made-up study.
    trials
        Number of additional trials on which the overhead is measured.
    starts
        Number of timed starts; 0 skips them.
    slowest
        Print the N slowest functions.
    """
    pictures = find_pictures()
    print(machine())
    header("finished trials", "s per trial", "CPU s per trial", "start s", "Optuna's load s", "start minus load s",
           "the same, CPU s")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        for count in finished:
            results = Path(scratch) / str(count)
            make_up(results, count, pictures)
            cells = [spread(column) for column in per_trial(results, trials, pictures, slowest)]
            if starts:
                turns = time_starts(results, starts)
                cells += [spread([turn[which][0] for turn in turns]) for which in ("ours", "optuna")]
                cells += [spread([turn["ours"][kind] - turn["optuna"][kind] for turn in turns]) for kind in (0, 1)]
            row(f"{count:,}", *cells)
    print(f"\nMedian and quartiles of {trials} trials and {starts} interleaved starts.")


if __name__ == "__main__":
    run(main)
