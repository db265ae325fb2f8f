"""What passes between the coordinator and its workers: small and picklable."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from data.cache import CacheHandle
from model.training import EpochMetrics
from search_space import Config
from tuning.devices import Slot


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a trial trains."""

    config: Config
    seed: int
    """Seeds weights, order, augmentation and dropout."""
    epochs: int
    """How many it trains when it is not pruned; the lr schedule's horizon is the configuration's own."""
    final: bool = False
    """Trains on the validation pictures too. No epoch can be chosen by them then, so the last one is kept."""
    key: str | None = None
    """Equal for trials of which only the first is worth training; None for one that always is."""
    name: str | None = None
    """What it is called beside its number."""


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """One trial, or the rest of one, for a worker to train."""

    number: int
    """The trial's number in the study."""
    attempt: int
    """Counts the starts of this trial; a worker of an earlier attempt may replace no file of a later one."""
    assignment: Assignment
    data: CacheHandle
    slot: Slot
    micro_batch: int
    """Pictures per forward pass; fewer than the batch size where memory was short."""
    directory: Path
    """The trial's own folder, for its checkpoints."""

    @property
    def digest(self) -> str:
        """Equal for jobs of which one can go on from another's checkpoint: all that decides the weights of an epoch."""
        work = self.assignment
        facts = (work.config.digest, work.seed, work.final, self.data.fingerprint, self.data.split)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


class FailureKind(StrEnum):
    """Why a trial's training ended before its time."""

    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out of memory"
    DIED = "worker died"
    HUNG = "worker hung"
    DISK = "disk"
    BUG = "bug"


@dataclass(frozen=True, kw_only=True)
class TrialFailure:
    """A training that ended before its time."""

    kind: FailureKind
    reason: str
    """One line; of a bug the whole traceback."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A sign of life in mid-epoch."""

    share: float
    """How much of the pass over the pictures is done, from 0 to 1."""


Event = EpochMetrics | TrialFailure | Progress


class Workers(Protocol):
    """Where trials run: slots that are asked for each epoch; pruning, pausing and stopping are one thing: not asking.

    An epoch's metrics come once its checkpoint is on disk. A resumed trial first answers with the epochs that its
    checkpoint holds, each to be asked on from like a new one.
    """

    @property
    def slots(self) -> Sequence[Slot]:
        """One per trial that can run at once; below each goes by its place here."""
        ...

    def start(self, slot: int, job: TrialJob) -> None:
        """Begins a trial, or goes on with it from its checkpoint, up to the end of one epoch."""
        ...

    def proceed(self, slot: int) -> None:
        """Asks for the next epoch of the slot's trial."""
        ...

    def stop(self, slot: int) -> None:
        """Ends the slot's trial here, in mid-epoch too; nothing more is heard of it, and the slot is free."""
        ...

    def wait(self, timeout: float) -> list[tuple[int, Event]]:
        """What was heard, with its slot; an empty list after `timeout` seconds of silence."""
        ...

    def close(self) -> None:
        """Ends every worker, now."""
        ...
