"""Wall-clock time of whole studies, side by side with a plain Optuna script over the same configurations.

    python benchmarks/trials.py                                  # hours on two cores, nearly all of them the script's
    python benchmarks/trials.py --plain-epochs 1                 # 20 minutes: the script's seconds from one epoch each
    python benchmarks/trials.py --trials 8 --epochs 3 --block 4  # a smaller study, the same ratios

A study as `study.py --scheduler median` runs it chooses the configurations. This program then trains the same ones
without pruning, and the script (`peers.py`) without pruning and with Optuna's MedianPruner. This program's time is that
of the real coordinator with workers, database, notes and plots, including the start of its workers; the script's
process has already started. All take turns of `--block` trials. Between its turns a study's workers are suspended and
its clock stops, so that a busy machine slows all variants alike.
"""

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import QUICK, Subprocess, quiet_study, spread
from data.prepare import find_pictures
from search_space import Profile
from tests.stress.monkey import worker_processes
from tests.stress.script import header, machine, row, run

Parameters = dict[str, Any]


@dataclass(kw_only=True)
class Turn:
    """Results of one variant in a turn."""

    seconds: float
    trained: list[Parameters] = field(default_factory=list[Parameters])
    """Parameters of the trials that ended after training."""
    outcomes: Counter[str] = field(default_factory=Counter[str])
    epochs: int = 0


class ThisProgram:
    """A study that trains some trials whenever it is called, and whose workers are suspended in between."""

    def __init__(self, results: Path, profile: Profile, trials: int, scheduler: str) -> None:
        """Open the study."""
        pictures = find_pictures()
        began = time.perf_counter()
        self._opened = quiet_study(pictures, results, trials=trials, profile=profile, scheduler=scheduler)
        self._session, self._events = self._opened.__enter__()
        self._opening = time.perf_counter() - began

    def __call__(self, enqueued: list[Parameters], count: int | None) -> Turn:
        """Enqueue configurations, then train `count` trials, or all that are left.

        When no enqueued configurations are left, the study chooses its own.
        """
        from model.training import EpochMetrics
        from tuning.events import TrialAdvanced, TrialEnded
        from tuning.trials import Outcome, read_trials

        for parameters in enqueued:
            self._session.study.enqueue_trial(parameters, skip_if_exists=True)
        for process in worker_processes(os.getpid()):
            process.resume()
        turn, ended, began = Turn(seconds=self._opening), list[int](), time.perf_counter()
        self._opening = 0.0
        for event in self._events:
            if isinstance(event, TrialAdvanced) and isinstance(event.progress, EpochMetrics):
                turn.epochs += 1
            if isinstance(event, TrialEnded):
                turn.outcomes[event.outcome or "ended by another program"] += 1
                if event.outcome in (Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED):
                    ended.append(event.number)
                    if len(ended) == count:
                        break
        for process in worker_processes(os.getpid()):
            process.suspend()
        turn.seconds += time.perf_counter() - began
        trials = read_trials(self._session.study)
        turn.trained = [trials[number].params for number in ended]
        return turn


def plain_script(folder: Path, profile: Profile, pruner: str, epochs: int | None) -> Callable[[list[Parameters]], Turn]:
    """Create the plain script's study; return a function that trains configurations one after the other."""
    from optuna.pruners import MedianPruner, NopPruner

    from benchmarks.peers import Files, PlainScript
    from tuning.scheduling import warmup_epochs

    pictures = find_pictures()
    train, validation = (
        Files.of(pictures.catalog, part.tolist()) for part in (pictures.split.train, pictures.split.validation)
    )
    folder.mkdir()
    median = MedianPruner(n_startup_trials=5, n_warmup_steps=warmup_epochs(profile.horizon), n_min_trials=3)
    chosen = median if pruner == "median" else NopPruner()
    script = PlainScript(folder, profile, train, validation, pruner=chosen, epochs=epochs)

    def train_all(configurations: list[Parameters]) -> Turn:
        ended = [script.train(parameters) for parameters in configurations]
        return Turn(seconds=sum(seconds for _, seconds in ended), outcomes=Counter(state for state, _ in ended))

    return train_all


def compare(profile: Profile, trials: int, block: int, plain_epochs: int | None) -> None:
    """Print the table."""
    pruners = ["none"] if plain_epochs else ["none", "median"]  # the first epochs do not show what would be pruned
    scale = profile.horizon / plain_epochs if plain_epochs else 1.0
    names = [
        "this program, MedianPruner",
        "this program, no pruner",
        "the script, no pruner",
        "the script, MedianPruner",
    ]
    names = names[: 2 + len(pruners)]
    turns: list[list[Turn]] = [[] for _ in names]
    seconds: list[list[float]] = [[] for _ in names]
    with tempfile.TemporaryDirectory() as scratch:
        search = Subprocess(ThisProgram, Path(scratch) / "search", profile, trials, "median")
        whole = Subprocess(ThisProgram, Path(scratch) / "whole", profile, trials, "none")
        scripts = [Subprocess(plain_script, Path(scratch) / one, profile, one, plain_epochs) for one in pruners]

        def take(index: int, process: Subprocess, *arguments: Any) -> Turn:
            turns[index].append(process(*arguments))
            return turns[index][-1]

        waiting: list[list[Parameters]] = []
        while True:
            spent = [turn_seconds(turns[0]), turn_seconds(turns[1])]
            # One block ahead: when one of its slots becomes free, `whole` must find the next trial waiting.
            ahead: list[Parameters] = []
            while len(waiting) < 2 and (found := take(0, search, [], block).trained):
                waiting.append(found)
                ahead += found
            if not waiting:
                break
            chosen = waiting.pop(0)
            take(1, whole, ahead, len(chosen))
            now = [take(2 + place, script, chosen).seconds * scale for place, script in enumerate(scripts)]
            now = [turn_seconds(turns[0]) - spent[0], turn_seconds(turns[1]) - spent[1], *now]
            for column, value in zip(seconds, now, strict=True):
                column.append(value)
            print([f"{value:.1f} s" for value in now], file=sys.stderr, flush=True)
        take(0, search, [], None)
        take(1, whole, [], None)
        for process in (search, whole, *scripts):
            process.close()
    totals = [turn_seconds(done) * (scale if index > 1 else 1.0) for index, done in enumerate(turns)]
    header("variant", "s", "trials", "s / s of this program, MedianPruner", "s / s of this program, no pruner",
           "the last column by turn")  # fmt: skip
    for name, total, done, column in zip(names, totals, turns, seconds, strict=True):
        outcomes = sum((turn.outcomes for turn in done), Counter[str]())
        ends = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
        if epochs := sum(turn.epochs for turn in done):
            ends += f"; {epochs} epochs"
        by_turn = spread([value / other for value, other in zip(column, seconds[1], strict=True)], 1)
        row(name, f"{total:,.0f}", ends, f"{total / totals[0]:.1f}", f"{total / totals[1]:.1f}", by_turn)
    if plain_epochs:
        print(f"\nThe script's seconds are extrapolated from {plain_epochs} of {profile.horizon} epochs.")


def turn_seconds(turns: list[Turn]) -> float:
    """Return the seconds of all turns together."""
    return sum(turn.seconds for turn in turns)


def main(*, trials: int = 40, epochs: int = 10, plain_epochs: int | None = None, block: int = 8) -> None:
    """Print the table.

    Parameters
    ----------
    epochs
        Epochs of a trial; a study of the built-in pictures trains for more by default.
    plain_epochs
        Train only this many epochs with the script, and extrapolate its seconds.
    block
        Trials per turn.
    """
    profile = replace(QUICK, epochs=epochs)
    print(machine())
    print(f"{trials} trials of {profile.horizon} epochs, in turns of {block}\n")
    compare(profile, trials, block, plain_epochs)


if __name__ == "__main__":
    run(main)
