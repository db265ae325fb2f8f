"""Schedulers: what happens to a trial after an epoch, and what a free slot does next.

The coordinator asks and obeys. Optuna's pruners are one kind; a scheduler that pauses trials and resumes the promising
ones is another. A scheduler keeps no state of its own: it decides from the trials stored in the database, so that a
killed study makes the same decisions as an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
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


@dataclass(frozen=True)
class Retire:
    """Decision to prune a paused trial; it counts, and the slot stays free."""

    number: int


class Scheduler(Protocol):
    """Decides what happens to a trial after each epoch, and what a free slot does next."""

    def after_epoch(self, trial: Trial, trials: Sequence[Trial]) -> Decision:
        """Decide about a trial whose last epoch has just been reported; `trials` are all of the study's trials."""
        ...

    def for_free_slot(self, trials: Sequence[Trial], *, new_wanted: bool) -> Resume | Retire | None:
        """Choose a paused trial to resume or retire; None starts a new trial, or leaves the slot idle.

        `new_wanted` says whether the study still needs new trials. Paused trials are retired when no slot has anything
        left to do; once the target is reached or patience has run out, the scheduler is no longer asked.
        """
        ...


class PrunerScheduler:
    """Scheduler that asks one of Optuna's pruners: a trial continues or is pruned, but is never paused."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    def after_epoch(self, trial: Trial, trials: Sequence[Trial]) -> Decision:
        """Ask the study's own pruner."""
        return Decision.PRUNE if self._study.pruner.prune(self._study, trial.frozen) else Decision.CONTINUE

    def for_free_slot(self, trials: Sequence[Trial], *, new_wanted: bool) -> Resume | Retire | None:
        """Resume the first paused trial, so that a study started with another scheduler still ends."""
        return next((Resume(trial.number) for trial in trials if trial.is_paused), None)


def warmup_epochs(epochs: int) -> int:
    """Return the number of epochs during which no trial is pruned: 30 % of all epochs, and at least two.

    The one-cycle schedule raises the learning rate for that long, and a learning curve says little before the peak.
    """
    return max(2, round(0.3 * epochs))


def first_pruning(pruner: str, epochs: int) -> int | None:
    """Return the first epoch, counted from 1, after which a trial can be pruned; None if none ever is."""
    first = warmup_epochs(epochs) + 1
    return first if pruner != "none" and first < epochs else None


PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    "median": lambda epochs: MedianPruner(n_startup_trials=5, n_warmup_steps=warmup_epochs(epochs), n_min_trials=3),
    "asha": lambda epochs: SuccessiveHalvingPruner(min_resource=warmup_epochs(epochs), reduction_factor=3),
    "none": lambda epochs: NopPruner(),
}
"""Pruners by their name in `--pruner`, each made from the number of epochs."""
