"""Checkpoints: everything that a trial needs to resume exactly where it stopped, in one file, complete or absent.

    save: Checkpoint -> plain dict -> temporary file -> fsync -> rename        load: file -> checked dict -> Checkpoint

The file holds only tensors and plain values and is read with `weights_only`, so opening one runs no code. It has no
random generator state: `model.training.fit` reseeds from (seed, epoch) at the start of every epoch.
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import torch
from torch import Tensor

from model.files import open_regular, printable, replacing_on_disk, why
from model.plain_json import fill, short
from model.training import EpochMetrics

FORMAT = "mushroom-study checkpoint 3"
"""Format version, the first entry of every file; raise it when older files can no longer be read."""

MAX_BYTES = 2**31
"""Size in bytes of the largest file that is read; the search space's largest network with AdamW's state has 0.2 GB."""


class CheckpointError(Exception):
    """A checkpoint file is missing or damaged; the message is one line with its path, the reason and the fix."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State of a trial after an epoch."""

    attempt: int
    """Number of the trial's attempt that wrote this checkpoint."""
    job_digest: str
    """Digest of the configuration, seed and pictures; only a job with the same digest may resume from these weights."""
    history: tuple[EpochMetrics, ...]
    """Metrics of every epoch so far."""
    model: dict[str, Tensor]
    """The network's `state_dict()`."""
    averaged: dict[str, Tensor] | None
    """The `state_dict()` of the running average of the weights; None if `model` is that average."""
    optimizer: dict[str, Any] | None
    """The optimizer's `state_dict()`; None in a checkpoint that is not for resuming."""


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path`, replacing an earlier file only once the new one is safe on the disk.

    A process killed in between leaves an unfinished file with a random name beside it. On an error such as a full disk
    it raises OSError, or torch's RuntimeError, and leaves nothing.
    """
    with replacing_on_disk(path) as file:
        write(file, checkpoint)


def write(file: IO[bytes], checkpoint: Checkpoint) -> None:
    """Write `checkpoint` into an open file. Raises OSError, or torch's RuntimeError."""
    records = [metrics.to_dict() for metrics in checkpoint.history]
    weights = {"model": dict(checkpoint.model), "averaged": checkpoint.averaged and dict(checkpoint.averaged)}
    torch.save({"format": FORMAT, **vars(checkpoint), **weights, "history": records}, file)


def load(path: Path) -> Checkpoint:
    """Return what `save` wrote, tensors on the CPU. Raises CheckpointError for any other file, or a missing one."""
    try:
        with open_regular(path, MAX_BYTES) as opened:
            file = io.BytesIO(opened.read())
    except OSError as error:
        raise CheckpointError(f"cannot load checkpoint {path} ({why(error)})") from error
    return read(file, path)


def read(file: io.BytesIO, path: Path) -> Checkpoint:
    """Return the checkpoint in the bytes of a file, as `load` does; errors name its `path`."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(one.compress_type != zipfile.ZIP_STORED for one in members) or (
                sum(one.file_size for one in members) > file.getbuffer().nbytes
            ):
                raise zipfile.BadZipFile("compressed, which torch's files never are: perhaps a bomb")
            damaged = archive.testzip()  # torch writes checksums but does not compare them when it loads
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        file.seek(0)
        contents: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn or foreign file breaks the zip reader and the unpickler in ways beyond listing
        _refuse(path, f"damaged, or not only tensors and plain values: {type(error).__name__}", error)
    fields = cast(dict[str, Any], contents) if isinstance(contents, dict) else {}
    if (found := fields.pop("format", None)) != FORMAT:
        _refuse(path, f"not a checkpoint: its format is {short(found)}, not {FORMAT!r}")
    try:
        records = [EpochMetrics.from_dict(record) for record in fields["history"]]
        fields |= {"history": tuple(fill(EpochMetrics, vars(record)) for record in records)}
    except (KeyError, TypeError, ValueError) as error:
        _refuse(path, f"its history is not one record per epoch: {printable(str(error))[:160]}", error)
    try:
        return fill(Checkpoint, fields)
    except ValueError as error:
        _refuse(path, why(error), error)


def _refuse(path: Path, problem: str, cause: Exception | None = None) -> NoReturn:
    raise CheckpointError(f"cannot load checkpoint {path} ({problem}): remove it") from cause
