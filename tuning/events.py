"""Events that a running study reports: trials that start, advance, pause and end, and how the run itself ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from model.network import Cost
from model.training import EpochMetrics
from tuning.jobs import Assignment, Progress
from tuning.trials import Outcome


class Ending(StrEnum):
    """Why a run ended."""

    TRIALS = "all trials are done"
    TARGET = "the target is reached"
    PATIENCE = "patience has run out"
    TIMEOUT = "time is up"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class TrialStarted:
    """A slot has begun to train a trial, from its first epoch or from its last checkpoint."""

    slot: int
    number: int
    attempt: int
    """Number of the attempt: 1 for the first start, higher after an interruption or a pause."""
    assignment: Assignment
    micro_batch: int | None = None
    """Pictures per forward pass if memory was short; None for whole batches."""
    host: str | None = None
    """Name of the slot's machine; None if it is not known."""


@dataclass(frozen=True, kw_only=True)
class TrialAdvanced:
    """A trial has advanced within an epoch, or to the end of one."""

    slot: int
    number: int
    progress: Progress | EpochMetrics


@dataclass(frozen=True, kw_only=True)
class TrialPaused:
    """A trial has left its slot and waits for the scheduler to resume it."""

    slot: int
    number: int


@dataclass(frozen=True, kw_only=True)
class TrialRequeued:
    """A trial has lost its slot together with the node, and waits for another slot."""

    slot: int
    number: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class TrialEnded:
    """A trial has finished."""

    number: int
    outcome: Outcome | None
    """How the trial ended; None if another program ended it."""
    reason: str
    value: float | None
    """Best validation top-1, 0 to 1; None if no epoch was trained."""
    slot: int | None
    """Slot that trained the trial; None if it was not in one."""


StudyEvent = TrialStarted | TrialAdvanced | TrialPaused | TrialRequeued | TrialEnded | None
"""Event that `Coordinator.run` yields; None comes at least once a second, so that clocks on a screen advance."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """Everything known about a trial when it is reported as finished."""

    assignment: Assignment
    cost: Cost
    history: list[EpochMetrics]
    """Metrics of every trained epoch; empty if it was not trained."""
    outcome: Outcome
    reason: str

    @property
    def chosen(self) -> EpochMetrics | None:
        """Epoch that represents the trial: the best one, or the last one of a final run."""
        return self.assignment.chosen_epoch(self.history) if self.history else None
