"""What happens next: to a trial after an epoch, and to a slot that is free.

The coordinator asks and obeys. Optuna's pruners are one answer; a scheduler that pauses trials and resumes the
promising ones is another, and the coordinator's loop is the same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Protocol

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

from model.training import EpochMetrics


class Decision(Enum):
    """The fate of a trial after an epoch."""

    GO_ON = auto()
    PAUSE = auto()
    PRUNE = auto()


class Scheduler(Protocol):
    """Decides after each epoch and for each free slot."""

    def after_epoch(self, trial: optuna.Trial, metrics: EpochMetrics) -> Decision:
        """What to do with a trial whose last epoch has just been reported to the study."""
        ...

    def resume(self, paused: Sequence[int]) -> int | None:
        """Which of the paused trials, by number, a free slot should go on with; None: ask for a new one."""
        ...


class PrunerScheduler:
    """Optuna's pruners: a trial goes on or is pruned, and none is ever paused."""

    def after_epoch(self, trial: optuna.Trial, metrics: EpochMetrics) -> Decision:
        """Asks the study's own pruner, which reads what was reported."""
        return Decision.PRUNE if trial.should_prune() else Decision.GO_ON

    def resume(self, paused: Sequence[int]) -> int | None:
        """Goes on with the first of them, so that a study begun with another scheduler still ends."""
        return paused[0] if paused else None


def warmup_epochs(epochs: int) -> int:
    """Epochs after which no trial is pruned: 30 % of the horizon, and never fewer than two.

    One-cycle's lr rises for so long, and a curve says little before its peak.
    """
    return max(2, round(0.3 * epochs))


def first_pruning(pruner: str, epochs: int) -> int | None:
    """After which epoch, counted from 1, a trial can be pruned first; None: none ever is."""
    first = warmup_epochs(epochs) + 1
    return first if pruner != "none" and first < epochs else None


PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    "median": lambda epochs: MedianPruner(n_startup_trials=5, n_warmup_steps=warmup_epochs(epochs), n_min_trials=3),
    "asha": lambda epochs: SuccessiveHalvingPruner(min_resource=warmup_epochs(epochs), reduction_factor=3),
    "none": lambda epochs: NopPruner(),
}
"""What `--pruner` may name, each made for a number of epochs."""
