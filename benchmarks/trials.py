"""Wall clock of whole studies, side by side with the plain Optuna script on the same configurations.

    python benchmarks/trials.py                                  # hours on two cores, nearly all of them the script's
    python benchmarks/trials.py --plain-epochs 1                 # 20 minutes: the script's seconds from one epoch each
    python benchmarks/trials.py --trials 8 --epochs 3 --block 4  # a smaller study, the same ratios

A study as `study.py` runs it, with its pruner, chooses the configurations. The same ones are then trained by this
project without pruning, and by the script without pruning and with Optuna's MedianPruner. Ours is the real coordinator
with its workers, database, notes and plots, its workers' start included; the script is `peers.py`, in a process that is
there already. They take turns, `--block` trials each: meanwhile our workers are suspended and our clock stands still,
so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
from measuring import drawn_pictures, machine, spread

from search_space import PROFILES, Profile, known_good, suggest


class Ours:
    """A study in this process, and its workers, which trains so many trials more whenever it is asked."""

    def __init__(self, folder: Path, profile: Profile, trials: int, *, pruner: str, searches: bool) -> None:
        """`searches`: whether it chooses its configurations; else they are enqueued, in time."""
        from commands.console import Screen, make_console
        from reporting.study_note import StudyNote
        from reporting.trial_note import TrialNotes
        from tuning import sampling, scheduling, storage
        from tuning.coordinator import Coordinator, Plan, search
        from tuning.devices import slots
        from tuning.folder import sqlite_url
        from tuning.workers import LocalWorkers

        catalog, split, data = drawn_pictures(profile.sizes)
        begun = time.perf_counter()
        folder.mkdir()
        self.study = storage.open_study(
            sqlite_url(folder),
            "benchmark",
            sampler=sampling.SAMPLERS["tpe"](0),
            pruner=scheduling.PRUNERS[pruner](profile.epochs),
            identity={},
            first_trials=known_good(profile) if searches else {},
        )
        places = slots("cpu", None)
        self._workers = LocalWorkers(places)
        coordinator = Coordinator(
            self.study,
            workers=self._workers,
            scheduler=scheduling.PrunerScheduler(),
            assign=search(partial(suggest, profile=profile, classes=len(data.classes)), 0),
            plan=Plan(trials=trials, max_flops=profile.max_flops),
            data=data,
            folder=folder,
            describe=TrialNotes(folder, data),
        )
        self._note = StudyNote(self.study, folder, catalog=catalog, split=split, profile=profile, trials=trials)
        console = make_console()
        console.quiet = True
        self._screen = Screen(console, self.study, trials=trials, slots=len(places), expected=10.0)
        self._run = coordinator.run()
        self.seconds = time.perf_counter() - begun
        self.epochs = 0
        self.outcomes: Counter[str] = Counter()

    def train(self, count: int) -> Iterator[dict[str, Any]]:
        """Trains until so many more have been counted, or the study's end; yields their parameters."""
        from model.training import EpochMetrics
        from tuning.coordinator import TrialAdvanced, TrialEnded

        for process in self._processes():
            process.resume()
        begun, ended = time.perf_counter(), list[int]()
        for happening in self._run:
            self._screen.show(happening)
            self._note.receive(happening)
            if isinstance(happening, TrialAdvanced) and isinstance(happening.progress, EpochMetrics):
                self.epochs += 1
            if isinstance(happening, TrialEnded):
                self.outcomes[happening.outcome or "from outside"] += 1
                if happening.outcome in ("complete", "pruned", "diverged"):
                    ended.append(happening.number)
                    if len(ended) == count:
                        break
        for process in self._processes():
            process.suspend()
        self.seconds += time.perf_counter() - begun
        trials = self.study.get_trials(deepcopy=False)
        yield from (trials[number].params for number in ended)

    def _processes(self) -> list[psutil.Process]:
        """Its workers."""
        running = self._workers._processes.values()  # pyright: ignore[reportPrivateUsage]
        return [psutil.Process(one._process.pid) for one in running]  # pyright: ignore[reportPrivateUsage]

    def finish(self) -> None:
        """Ends what is left of the workers."""
        begun = time.perf_counter()
        for process in self._processes():
            process.resume()
        for happening in self._run:
            self._screen.show(happening)
        self._note.update()
        self.seconds += time.perf_counter() - begun


def _plain(connection: Connection, profile: Profile, pruner: str, epochs: int | None, folder: str) -> None:
    """A process that runs the plain script on the parameters that it is sent; answers with state and seconds."""
    from peers import Files, plain_script

    from tuning.scheduling import PRUNERS

    catalog, split, _ = drawn_pictures([])
    train, validation = (Files.of(catalog, cast("Sequence[int]", part)) for part in (split.train, split.validation))
    connection.send("ready")
    runs = plain_script(
        iter(connection.recv, None),
        profile,
        train,
        validation,
        Path(folder),
        epochs=epochs,
        pruner=PRUNERS[pruner](profile.epochs),
    )
    for _, state, seconds in runs:
        connection.send((state, seconds))


def compare(profile: Profile, trials: int, block: int, plain_epochs: int | None) -> None:
    """Prints the table."""
    pruners = ("none",) if plain_epochs else ("none", "median")  # of its first epochs no pruner can tell
    scale = profile.epochs / plain_epochs if plain_epochs else 1.0
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        scripts: list[tuple[Any, Any]] = []
        for pruner in pruners:
            here, there = context.Pipe()
            folder = Path(scratch) / pruner
            folder.mkdir()
            process = context.Process(target=_plain, args=(there, profile, pruner, plain_epochs, str(folder)))
            process.start()
            here.recv()
            scripts.append((process, here))
        study = Ours(Path(scratch) / "study", profile, trials, pruner="median", searches=True)
        whole = Ours(Path(scratch) / "whole", profile, trials, pruner="none", searches=False)
        blocks: list[list[float]] = []
        states: list[Counter[str]] = [Counter() for _ in scripts]
        waiting: list[list[dict[str, Any]]] = []
        last = [0.0, 0.0]
        while True:
            # A block ahead: a slot of `whole` that becomes free must find the next trial waiting.
            while len(waiting) < 2 and (params := list(study.train(block))):
                waiting.append(params)
                for one in params:
                    whole.study.enqueue_trial(one)
            if not waiting:
                break
            params = waiting.pop(0)
            list(whole.train(len(params)))
            spent = [0.0] * len(scripts)
            for index, (_, line) in enumerate(scripts):
                for one in params:
                    line.send(one)
                    state, seconds = line.recv()
                    states[index][state] += 1
                    spent[index] += seconds * scale
            blocks.append([study.seconds - last[0], whole.seconds - last[1], *spent])
            last = [study.seconds, whole.seconds]
            print([f"{value:.1f} s" for value in blocks[-1]], file=sys.stderr, flush=True)
        for ours in (study, whole):
            ours.finish()
        for process, line in scripts:
            line.send(None)
            process.join()
    totals = [
        study.seconds,
        whole.seconds,
        *(sum(block[2 + index] for block in blocks) for index in range(len(scripts))),
    ]
    names = ["ours, MedianPruner", "ours, no pruner"]
    names += [f"the script, {'MedianPruner' if pruner == 'median' else 'no pruner'}" for pruner in pruners]
    told = [
        ", ".join(f"{count} {outcome}" for outcome, count in ended.items())
        for ended in (study.outcomes, whole.outcomes, *states)
    ]
    told[0] += f"; {study.epochs} epochs"
    told[1] += f"; {whole.epochs} epochs"
    print("| way | s | trials | times ours with MedianPruner | times ours without | the same, by turn |")
    print("|---|---|---|---|---|---|")
    for index, (name, total, ends) in enumerate(zip(names, totals, told, strict=True)):
        turns = spread([block[index] / block[1] for block in blocks], 1)
        print(f"| {name} | {total:,.0f} | {ends} | {total / totals[0]:.1f} | {total / totals[1]:.1f} | {turns} |")
    if plain_epochs:
        print(f"\nThe script's seconds are those of {plain_epochs} of {profile.epochs} epochs, scaled up.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, help="of a trial; by default the quick profile's 10")
    parser.add_argument("--plain-epochs", type=int, help="the script trains so many, and its seconds are scaled up")
    parser.add_argument("--block", type=int, default=8, help="trials between two changes of turn")
    chosen = parser.parse_args()
    profile = PROFILES["quick"]
    profile = replace(profile, epochs=chosen.epochs or profile.epochs)
    print(machine())
    print(f"{chosen.trials} trials of {profile.epochs} epochs, in turns of {chosen.block}\n")
    compare(profile, chosen.trials, chosen.block, chosen.plain_epochs)


if __name__ == "__main__":
    main()
