"""Schedulers: what happens to a trial after an epoch, and what a free slot does next.

The coordinator asks and obeys. Optuna's pruners are one kind; a scheduler that pauses trials and resumes the promising
ones is another. A scheduler keeps no state of its own: it decides from the trials stored in the database, so that a
killed study makes the same decisions as an undisturbed one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import pairwise
from typing import Protocol

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

from tuning.trials import Trial


class Decision(Enum):
    """Decision about a trial after an epoch."""

    CONTINUE = auto()
    PAUSE = auto()
    PRUNE = auto()


@dataclass(frozen=True)
class Resume:
    """Decision that a free slot resumes a paused trial."""

    number: int


class Scheduler(Protocol):
    """Decides what happens to a trial after each epoch, and what a free slot does next."""

    def after_epoch(self, trial: Trial) -> Decision:
        """Decide about a trial whose last epoch has just been reported."""
        ...

    def for_free_slot(self, trials: Sequence[Trial], *, new_wanted: bool) -> Resume | None:
        """Choose a paused trial to resume; None starts a new trial, or leaves the slot idle.

        `new_wanted` says whether the study still needs new trials. Paused trials are pruned when no slot has anything
        left to do; once the target is reached, the scheduler is no longer asked.
        """
        ...


class PrunerScheduler:
    """Scheduler that asks one of Optuna's pruners: a trial continues or is pruned, but is never paused.

    Baselines are not pruned.
    """

    def __init__(self, study: optuna.Study, pruner: BasePruner | None = None) -> None:
        """Use `pruner`, or the study's own."""
        self._study = study
        self._pruner = pruner or study.pruner

    def after_epoch(self, trial: Trial) -> Decision:
        """Ask the pruner."""
        pruned = trial.baseline is None and self._pruner.prune(self._study, trial.frozen)
        return Decision.PRUNE if pruned else Decision.CONTINUE

    def for_free_slot(self, trials: Sequence[Trial], *, new_wanted: bool) -> Resume | None:
        """Resume the first paused trial, so that a study started with another scheduler still ends."""
        return next((Resume(trial.number) for trial in trials if trial.is_paused), None)


class PromotionScheduler:
    """Asynchronous successive halving with promotion (Li et al. 2020, arXiv:1810.05934).

    Every trial pauses at each rung, and the best share of those that reached it is promoted to the next one. A trial
    that fell behind early can still be promoted later, which pruning for good rules out. Trials are ranked by their
    place among those with the same lr schedule: while one-cycle still warms up, others lead that are worse in the end.
    """

    def __init__(self, rungs: Sequence[int], keep: float) -> None:
        """Pause after each of the `rungs`, numbers of epochs in rising order."""
        self._rungs = tuple(rungs)
        self._keep = keep

    def after_epoch(self, trial: Trial) -> Decision:
        """Pause at a rung."""
        return Decision.PAUSE if trial.epochs in self._rungs else Decision.CONTINUE

    def for_free_slot(self, trials: Sequence[Trial], *, new_wanted: bool) -> Resume | None:
        """Resume the best paused trial of the highest rung that has one among its best share.

        Once no new trials are wanted, a rung's best trial is promoted however few have reached it, so that even a small
        study trains one to its end.
        """
        for rung in reversed(self._rungs):
            reached = _ranked([trial for trial in trials if trial.epochs >= rung], rung)
            promoted = max(int(self._keep * len(reached)), 0 if new_wanted else 1)
            for trial in reached[:promoted]:
                if trial.is_paused and trial.epochs == rung:
                    return Resume(trial.number)
        return None


def _ranked(trials: list[Trial], rung: int) -> list[Trial]:
    """Return the trials by their place among those with the same lr schedule, as a share of these, best first.

    The place is that of the best top-1 up to the rung, an epoch. The only trial of its schedule is in the middle. Of
    equal places, the higher top-1 is the better one, and of equal ones the earlier trial.
    """
    best = sorted(trials, key=lambda trial: (-max(list(trial.curve.values())[:rung]), trial.number))
    peers = defaultdict[str | None, list[Trial]](list)
    for trial in best:
        peers[trial.frozen.params.get("lr_decay")].append(trial)
    places = {trial.number: (place + 0.5) / len(group) for group in peers.values() for place, trial in enumerate(group)}
    return sorted(best, key=lambda trial: places[trial.number])


RUNGS = (0.05, 0.125)
"""Shares of the horizon at which the promotion scheduler pauses a trial."""
FINISHING = 0.25
"""Share of the trials that it trains to the end; each rung keeps the same share of those that reach it."""
OVERTAKEN = 1.12
"""How many more than its share a rung promotes: a trial that is among the best so far may be overtaken later (40 trials
in random order; 11.7 of them are trained to the end with one rung and 12.6 with two, instead of 10)."""


def rungs(epochs: int) -> tuple[int, ...]:
    """Return the rungs of a horizon: numbers of epochs between 1 and `epochs`, without the last one."""
    found = sorted({max(1, round(share * epochs)) for share in RUNGS})
    return tuple(rung for rung in found if rung < epochs)


def kept_share(epochs: int) -> float:
    """Return the share of the trials that is promoted from each rung of a horizon."""
    return FINISHING ** (1 / max(1, len(rungs(epochs))))


def pauses(scheduler: str, epochs: int) -> tuple[int, ...]:
    """Return the epochs, counted from 1, after which each trial pauses; none unless the scheduler promotes trials."""
    return rungs(epochs) if scheduler == "promote" else ()


def warmup_epochs(epochs: int) -> int:
    """Return the number of epochs during which no trial is pruned: 30 % of all epochs, and at least two.

    The one-cycle schedule raises the learning rate for that long, and a learning curve says little before the peak.
    """
    return max(2, round(0.3 * epochs))


def first_pruning(scheduler: str, epochs: int) -> int | None:
    """Return the first epoch, counted from 1, after which a trial can be pruned or paused; None if none ever is."""
    if scheduler == "promote":
        return next(iter(rungs(epochs)), None)
    first = warmup_epochs(epochs) + 1
    return first if scheduler != "none" and first < epochs else None


def trained_share(scheduler: str, epochs: int) -> float:
    """Return the expected share of all trials' epochs that a study trains."""
    if scheduler != "promote":
        # Median: 253, 280, 298 of 400 in `quick` studies.
        return 1.0 if first_pruning(scheduler, epochs) is None else 0.7
    return promoted_share([rung / epochs for rung in rungs(epochs)], min(1.0, OVERTAKEN * kept_share(epochs)))


def promoted_share(ends: Sequence[float], keep: float) -> float:
    """Return the share of all trials' epochs that promotion trains, with rungs at these shares of the horizon."""
    edges = (0.0, *ends, 1.0)
    return sum(keep**level * (end - start) for level, (start, end) in enumerate(pairwise(edges)))


MakeScheduler = Callable[[optuna.Study, int], Scheduler]

SCHEDULERS: dict[str, MakeScheduler] = {
    "promote": lambda study, epochs: PromotionScheduler(rungs(epochs), kept_share(epochs)),
    "median": lambda study, epochs: PrunerScheduler(
        study, MedianPruner(n_startup_trials=5, n_warmup_steps=warmup_epochs(epochs), n_min_trials=3)
    ),
    "asha": lambda study, epochs: PrunerScheduler(
        study, SuccessiveHalvingPruner(min_resource=warmup_epochs(epochs), reduction_factor=3)
    ),
    "none": lambda study, epochs: PrunerScheduler(study, NopPruner()),
}
"""Schedulers by their name in `--scheduler`, each made from the study and the number of epochs."""
