"""Schedulers: what happens to a trial after an epoch, and what a free slot does next.

The coordinator asks and obeys. Optuna's pruners are one answer; a scheduler that pauses trials and resumes the
promising ones is another. A scheduler keeps no state of its own: it decides from the trials as they stand in the
database, so that a killed study makes the decisions that it would have made undisturbed.
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
    """What happens to a trial after an epoch."""

    CONTINUE = auto()
    PAUSE = auto()
    PRUNE = auto()


@dataclass(frozen=True)
class Resume:
    """A free slot continues a paused trial."""

    number: int


@dataclass(frozen=True)
class Retire:
    """A paused trial is pruned; it counts, and the slot is still free."""

    number: int


class Scheduler(Protocol):
    """Decides after each epoch and for each free slot."""

    def after_epoch(self, trial: Trial, trials: Sequence[Trial]) -> Decision:
        """Decide about a trial whose last epoch has just been reported; `trials` are all of the study."""
        ...

    def for_free_slot(self, trials: Sequence[Trial], *, new_wanted: bool) -> Resume | Retire | None:
        """Choose a paused trial to resume or retire; None starts a new trial, or leaves the slot idle.

        `new_wanted`: whether the study still wants new trials. Paused trials are retired when no slot has anything left
        to do; when the target is reached or patience has run out, that is without asking the scheduler again.
        """
        ...


class PrunerScheduler:
    """Optuna's pruners: a trial continues or is pruned, and none is ever paused."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    def after_epoch(self, trial: Trial, trials: Sequence[Trial]) -> Decision:
        """Ask the study's own pruner."""
        return Decision.PRUNE if self._study.pruner.prune(self._study, trial.frozen) else Decision.CONTINUE

    def for_free_slot(self, trials: Sequence[Trial], *, new_wanted: bool) -> Resume | Retire | None:
        """Resume the first paused trial, so that a study started with another scheduler still ends."""
        return next((Resume(trial.number) for trial in trials if trial.is_paused), None)


def warmup_epochs(epochs: int) -> int:
    """Return the number of epochs during which no trial is pruned: 30 % of the horizon, and at least two.

    The one-cycle schedule raises the learning rate for that long, and a curve says little before the rate peaks.
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
"""The values of `--pruner`, each a function of the number of epochs."""
