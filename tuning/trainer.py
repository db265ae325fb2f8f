"""The training of one job, in the worker's process.

A job passes through: data, network, optimizer -> last checkpoint -> epoch -> checkpoint kept -> metrics sent -> asked
for the next epoch or not. The study is never touched from here; only the trial's own directory is written.
"""

from __future__ import annotations

import copy
import errno
import gc
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from data import DataError
from data.batches import EvaluationBatches, TrainingBatches, evaluated_at_once
from data.cache import open_part
from data.split import PartName
from model import checkpoint
from model.network import MushroomCNN
from model.training import Batches, Diverged, EpochMetrics, fit, make_optimizer
from tuning.environment import environment
from tuning.jobs import FailureKind, Progress, TrialFailure, TrialJob, WorkerMessage, WorkerReady, first_line

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

Answer = Literal["proceed", "stop"]

NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "unable to find an engine",
)
"""Phrases by which a RuntimeError means out of memory, as it has no type of its own: from the CPU allocator (Linux,
Windows), CUDA outside torch's allocator, C++, cuBLAS, cuDNN, and cuDNN when no workspace fits."""
DEVICE_ERRORS = ("CUDA", "cuDNN", "CUBLAS")
"""Words in a RuntimeError's message after which the process may be unusable."""
BEAT_SECONDS = 0.5
"""Shortest time in seconds between two Progress messages, which are sent between batches."""


class Link(Protocol):
    """The worker's connection to the coordinator."""

    def send(self, message: WorkerMessage) -> None:
        """Send a message."""
        ...

    def answer(self) -> Answer:
        """Wait for the answer to the epoch that was sent last."""
        ...

    def stop_asked(self) -> bool:
        """Return at once whether a stop has been requested within the epoch."""
        ...


class Checkpoints(Protocol):
    """Where a trial's checkpoints are kept."""

    def last(self) -> checkpoint.Checkpoint | None:
        """Return the checkpoint of the last epoch; None if there is no intact one."""
        ...

    def keep(self, last: checkpoint.Checkpoint, best: checkpoint.Checkpoint | None) -> None:
        """Keep the checkpoint of the last epoch and, if that is the best one so far, that for the export.

        Raises Stopped if a later attempt has taken over the trial.
        """
        ...


class Stopped(Exception):  # noqa: N818 - not an error
    """The coordinator has stopped this trial."""


class CheckpointFolder:
    """The checkpoints of a job on the coordinator's own machine: files in the trial's directory."""

    def __init__(self, job: TrialJob) -> None:
        self._directory, self._attempt = job.directory, job.attempt

    def last(self) -> checkpoint.Checkpoint | None:
        """Return what last.pt holds; None if there is no intact one."""
        try:
            return checkpoint.load(self._directory / "last.pt")
        except checkpoint.CheckpointError:
            return None

    def keep(self, last: checkpoint.Checkpoint, best: checkpoint.Checkpoint | None) -> None:
        """Write last.pt, and best.pt if there is a new best. Raises Stopped, or OSError and torch's RuntimeError."""
        owner = read_attempt(self._directory)
        if owner > self._attempt:
            raise Stopped
        if owner != self._attempt:  # this may also end a replaced worker, and then nobody receives the error
            raise FileNotFoundError(f"{self._directory / 'attempt'} is missing or damaged")
        # best.pt first: after a kill between the two, the epoch is trained again and writes the same file again.
        if best is not None:
            checkpoint.save(self._directory / "best.pt", best)
        checkpoint.save(self._directory / "last.pt", last)


def run(job: TrialJob, link: Link, checkpoints: Checkpoints) -> bool:
    """Train until the last epoch, a stop or a failure, and send messages about it.

    Returns whether this process can train another trial; after a CUDA error it cannot.
    """
    try:
        link.send(WorkerReady(environment=environment(job.slot)))
        _train(job, link, checkpoints)
    except Stopped:
        return True
    except Diverged as error:
        _fail(link, FailureKind.DIVERGED, str(error))
    except (torch.OutOfMemoryError, MemoryError) as error:
        _fail(link, FailureKind.OUT_OF_MEMORY, first_line(error))
    except RuntimeError as error:
        text = str(error)
        if any(words in text for words in NO_MEMORY):
            _fail(link, FailureKind.OUT_OF_MEMORY, first_line(error))
        elif isinstance(error, torch.AcceleratorError) or any(name in text for name in DEVICE_ERRORS):
            _fail(link, FailureKind.DIED, first_line(error))
            return False
        elif isinstance(error.__context__, OSError):
            # torch.save on a full disk: its zip writer fails again while closing, and that error arrives here.
            _fail(link, FailureKind.DISK, str(error.__context__))
        else:
            _fail(link, FailureKind.BUG, traceback.format_exc())
    except (OSError, DataError) as error:
        # A full or missing disk or cache, a coordinator that is gone (then nobody receives this), or no memory left to
        # map a file.
        no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
        _fail(link, FailureKind.OUT_OF_MEMORY if no_memory else FailureKind.DISK, str(error))
    except Exception:
        _fail(link, FailureKind.BUG, traceback.format_exc())
    return True


def release() -> None:
    """Free the GPU memory that a finished trial still holds, because other processes may need it."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def _train(job: TrialJob, link: Link, checkpoints: Checkpoints) -> None:
    work, device = job.assignment, torch.device(job.slot.device)
    config = work.config
    torch.set_num_threads(job.slot.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    parts: tuple[PartName, ...] = ("train", "validation") if work.final else ("train",)
    train = TrainingBatches(
        open_part(job.data, config.image_size, *parts),
        batch_size=config.training.batch_size,
        views=config.views,
        augment=config.augment,
        oversample=config.training.class_balance == "oversampling",
        seed=work.seed,
        device=device,
    )
    validation = EvaluationBatches(
        open_part(job.data, config.image_size, "validation"),
        # With fewer pictures at a time if training needs that: evaluation may be what ran out of memory.
        batch_size=max(1, evaluated_at_once(config.image_size) * job.micro_batch // config.training.batch_size),
        device=device,
    )
    torch.manual_seed(work.seed)
    model = MushroomCNN(config.model).to(device)
    averaged = copy.deepcopy(model)
    optimizer = make_optimizer(model, config.training)

    history: list[EpochMetrics] = []
    saved = checkpoints.last()
    if saved is not None and saved.job_digest == job.digest:
        history += saved.history
        model.load_state_dict(saved.model)
        averaged.load_state_dict(saved.averaged or saved.model)
        if saved.optimizer is not None:
            optimizer.load_state_dict(_of_this_device(saved.optimizer, optimizer))
        for metrics in saved.history:
            _send_epoch(link, metrics, work.epochs)
    epochs = fit(
        model,
        _WithHeartbeat(train, link),
        _WithHeartbeat(validation, link),
        config.training,
        seed=work.seed,
        averaged=averaged,
        optimizer=optimizer,
        start_epoch=len(history),
        micro_batch=job.micro_batch,
        precision=job.slot.precision,
    )
    for metrics in islice(epochs, max(0, work.epochs - len(history))):
        history.append(metrics)
        state = checkpoint.Checkpoint(
            attempt=job.attempt,
            job_digest=job.digest,
            history=tuple(history),
            model=model.state_dict(),
            averaged=averaged.state_dict(),
            optimizer=optimizer.state_dict(),
        )
        best = replace(state, model=averaged.state_dict(), averaged=None, optimizer=None)
        checkpoints.keep(state, best if metrics.epoch == work.chosen_epoch(history).epoch else None)
        _send_epoch(link, metrics, work.epochs)


def read_attempt(directory: Path) -> int:
    """Return the attempt that owns a trial's directory; 0 if none does."""
    try:
        return int((directory / "attempt").read_text())
    except (OSError, ValueError):
        return 0


def _of_this_device(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Return a saved state adapted to this optimizer, which may be fused while the saved one was not, or vice versa."""
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
    return state | {"param_groups": [saved | {"fused": own["fused"]} for saved, own in pairs]}


def _send_epoch(link: Link, metrics: EpochMetrics, epochs: int) -> None:
    link.send(metrics)
    if metrics.epoch + 1 < epochs and link.answer() == "stop":
        raise Stopped


def _fail(link: Link, kind: FailureKind, reason: str) -> None:
    link.send(TrialFailure(kind=kind, reason=reason))


class _WithHeartbeat:
    """Batches that send Progress to the coordinator, and raise Stopped when it has stopped the trial."""

    def __init__(self, batches: Batches, link: Link) -> None:
        self._batches = batches
        self._link = link
        self._last_beat = 0.0

    @property
    def class_counts(self) -> tuple[int, ...]:
        return self._batches.class_counts

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        for index, batch in enumerate(self._batches.epoch(n)):
            now = time.monotonic()
            if now - self._last_beat > BEAT_SECONDS:
                self._last_beat = now
                if self._link.stop_asked():
                    raise Stopped
                self._link.send(Progress(share=index / len(self._batches)))
            yield batch
