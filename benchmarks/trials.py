"""Wall clock of whole studies, side by side with the plain Optuna script on the same configurations.

    python benchmarks/trials.py                                  # about 75 minutes on two cores: both questions, whole
    python benchmarks/trials.py --plain-epochs 1                 # about 25: the script's seconds from one epoch each
    python benchmarks/trials.py --trials 8 --epochs 3 --block 4  # a smaller study, the same ratios

Two questions. **Without pruning**: the same configurations, every one trained to its end by both. **With pruning**: a
study as `study.py` runs it, against the script that trains the configurations which that study chose, without pruning
and with Optuna's MedianPruner. Ours is the real coordinator with its workers, database, cards and plots, its workers'
start included; the script is `peers.py`, in a process that is there already. They take turns, `--block` trials each:
meanwhile our workers are suspended and our clock stands still, so that a busy machine slows both.
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

QUESTIONS = {"without": ("none", ("none",)), "with": ("median", ("none", "median"))}
"""Our pruner, and the scripts' pruners."""


class Ours:
    """A study in this process, and its workers, which trains so many trials more whenever it is asked."""

    def __init__(self, folder: Path, profile: Profile, trials: int, pruner: str) -> None:
        from reporting.console import Screen, make_console
        from reporting.study_card import StudyCard
        from reporting.trial_card import TrialCards
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
            first_trials=known_good(profile),
        )
        places = slots("cpu", None)
        coordinator = Coordinator(
            self.study,
            workers=LocalWorkers(places.devices),
            scheduler=scheduling.PrunerScheduler(),
            assign=search(partial(suggest, profile=profile, classes=len(data.classes)), 0),
            plan=Plan(trials=trials, max_flops=profile.max_flops, precision=places.precision),
            data=data,
            folder=folder,
            describe=TrialCards(folder, data),
        )
        self._card = StudyCard(self.study, folder, catalog=catalog, split=split, profile=profile, trials=trials)
        console = make_console()
        console.quiet = True
        self._screen = Screen(console, self.study, trials=trials, slots=len(places), expected=10.0)
        self._run = coordinator.run()
        self._others = {child.pid for child in psutil.Process().children(recursive=True)}
        self.seconds = time.perf_counter() - begun
        self.epochs = 0
        self.outcomes: Counter[str] = Counter()

    def train(self, count: int) -> Iterator[dict[str, Any]]:
        """Trains until so many more have been counted, or the study's end; yields their parameters."""
        from model.training import EpochMetrics
        from tuning.coordinator import TrialAdvanced, TrialEnded

        mine = [child for child in psutil.Process().children(recursive=True) if child.pid not in self._others]
        for process in mine:
            process.resume()
        begun, ended = time.perf_counter(), list[int]()
        for happening in self._run:
            self._screen.show(happening)
            self._card.hear(happening)
            if isinstance(happening, TrialAdvanced) and isinstance(happening.progress, EpochMetrics):
                self.epochs += 1
            if isinstance(happening, TrialEnded):
                self.outcomes[happening.outcome or "from outside"] += 1
                if happening.outcome in ("complete", "pruned", "diverged"):
                    ended.append(happening.number)
                    if len(ended) == count:
                        break
        for process in psutil.Process().children(recursive=True):
            if process.pid not in self._others:
                process.suspend()
        self.seconds += time.perf_counter() - begun
        trials = self.study.get_trials(deepcopy=False)
        yield from (trials[number].params for number in ended)

    def finish(self) -> None:
        """Ends what is left of the workers."""
        begun = time.perf_counter()
        for process in psutil.Process().children(recursive=True):
            if process.pid not in self._others:
                process.resume()
        for happening in self._run:
            self._screen.show(happening)
        self._card.update()
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


def compare(question: str, profile: Profile, trials: int, block: int, plain_epochs: int | None) -> None:
    """Prints the rows of one question."""
    our_pruner, pruners = QUESTIONS[question]
    if plain_epochs:
        pruners = pruners[:1]  # how a pruner ends trials cannot be told from their first epochs
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
        ours = Ours(Path(scratch) / "ours", profile, trials, our_pruner)
        blocks: list[list[float]] = []
        states: list[Counter[str]] = [Counter() for _ in scripts]
        before = 0.0
        while params := list(ours.train(block)):
            blocks.append([ours.seconds - before])
            before = ours.seconds
            for index, (_, line) in enumerate(scripts):
                spent = 0.0
                for one in params:
                    line.send(one)
                    state, seconds = line.recv()
                    states[index][state] += 1
                    spent += seconds * scale
                blocks[-1].append(spent)
            print(f"{question} pruning: {[f'{value:.1f} s' for value in blocks[-1]]}", file=sys.stderr, flush=True)
        ours.finish()
        blocks[-1][0] += ours.seconds - before
        for process, line in scripts:
            line.send(None)
            process.join()
    totals = [sum(column) for column in zip(*blocks, strict=True)]
    told = ", ".join(f"{count} {outcome}" for outcome, count in ours.outcomes.items())
    kind = {"none": "no pruner", "median": "MedianPruner"}
    print(f"| ours, {kind[our_pruner]} | {totals[0]:.0f} | {told}; {ours.epochs} epochs | | |")
    for index, pruner in enumerate(pruners):
        told = ", ".join(f"{count} {outcome}" for outcome, count in states[index].items())
        told += f"; from {plain_epochs} of {profile.epochs} epochs" if plain_epochs else ""
        ratios = spread([one[index + 1] / one[0] for one in blocks], 1)
        ratio = totals[index + 1] / totals[0]
        print(f"| the plain script, {kind[pruner]} | {totals[index + 1]:.0f} | {told} | {ratio:.1f} | {ratios} |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, help="of a trial; by default the quick profile's 10")
    parser.add_argument("--plain-epochs", type=int, help="the script trains so many, and its seconds are scaled up")
    parser.add_argument("--block", type=int, default=8, help="trials between two changes of turn")
    parser.add_argument("--pruning", choices=["without", "with", "both"], default="both")
    chosen = parser.parse_args()
    profile = PROFILES["quick"]
    profile = replace(profile, epochs=chosen.epochs or profile.epochs)
    print(machine())
    print(f"{chosen.trials} trials of {profile.epochs} epochs, in turns of {chosen.block}\n")
    for question in QUESTIONS:
        if chosen.pruning in (question, "both"):
            print("| way | s | trials | times ours | by turn |\n|---|---|---|---|---|")
            compare(question, profile, chosen.trials, chosen.block, chosen.plain_epochs)


if __name__ == "__main__":
    main()
