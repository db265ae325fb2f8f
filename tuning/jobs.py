"""Messages between the coordinator and its workers, small and picklable."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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
    """What a trial trains, and with which seed."""

    config: Config
    seed: int
    """Seed of the weights, the order of pictures, augmentation and dropout."""
    epochs: int
    """Number of epochs to train unless pruned; the length of the lr schedule is part of the configuration."""
    final: bool = False
    """Whether to train on the validation pictures too. They cannot choose an epoch then."""
    last: bool = False
    """Whether the last epoch represents the trial, as it does a final run: what is measured is what would be used."""
    key: str | None = None
    """Key that is equal for trials of which only the first needs training; None to always train the trial."""
    name: str | None = None
    """Name that is shown beside the trial's number."""

    def chosen_epoch(self, history: Sequence[EpochMetrics]) -> EpochMetrics:
        """Return the epoch that represents the trial: its last one, or else the first with the best top-1."""
        if self.last or self.final:
            return history[-1]
        return max(history, key=lambda metrics: (metrics.top1, -metrics.epoch))


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """A trial, or the rest of one, for a worker to train."""

    number: int
    """The trial's number in the study."""
    attempt: int
    """Number of this start of the trial, from 1; a worker of an earlier one must not replace files of a later one."""
    assignment: Assignment
    data: CacheHandle
    slot: Slot
    micro_batch: int
    """Pictures per forward pass; fewer than the batch size if memory was short."""
    directory: Path
    """Directory of the trial's checkpoints."""

    @property
    def digest(self) -> str:
        """Hash of everything that determines the weights: a checkpoint with an equal digest can be resumed."""
        work = self.assignment
        facts = (work.config.digest, work.seed, work.final, self.data.fingerprint, self.data.split)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


class FailureKind(StrEnum):
    """Why training failed."""

    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out of memory"
    DIED = "worker died"
    HUNG = "worker hung"
    LOST = "node lost"
    DISK = "disk"
    BUG = "bug"


@dataclass(frozen=True, kw_only=True)
class WorkerReady:
    """Message that a worker is about to train the trial."""

    environment: dict[str, str]
    """Facts of the worker's machine, as `tuning.environment` returns them."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


@dataclass(frozen=True, kw_only=True)
class TrialFailure:
    """Message that training ended early, and why."""

    kind: FailureKind
    reason: str
    """Reason in one line, or the whole traceback of a bug."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Message within an epoch that shows that the worker is alive."""

    share: float
    """Share of the epoch's batches that are done, 0 to 1."""


WorkerMessage = WorkerReady | EpochMetrics | TrialFailure | Progress


class Workers(Protocol):
    """Workers that train trials one epoch at a time; to prune, pause or stop one, do not request the next epoch.

    The metrics of an epoch are sent once its checkpoint is on disk. A resumed trial first sends the epochs that its
    checkpoint holds, and waits after each as after a new one.
    """

    @property
    def slots(self) -> Mapping[int, Slot]:
        """The slots by number, one per trial that can run at once; only `wait` adds and removes slots."""
        ...

    def start(self, slot: int, job: TrialJob) -> None:
        """Start a trial, or resume it from its checkpoint, and train it to the end of one epoch."""
        ...

    def proceed(self, slot: int) -> None:
        """Request the next epoch of the slot's trial."""
        ...

    def stop(self, slot: int) -> None:
        """Stop the slot's trial, even within an epoch; it sends no more messages, and the slot is free."""
        ...

    def wait(self, timeout: float) -> list[tuple[int, WorkerMessage]]:
        """Return the messages received, each with its slot; an empty list after `timeout` seconds without any."""
        ...

    def close(self) -> None:
        """Stop every worker at once."""
        ...
