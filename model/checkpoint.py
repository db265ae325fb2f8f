"""Checkpoints: all that a trial needs to go on exactly where it stood, in one file that is whole or not there.

    save: Checkpoint -> plain dict -> temporary name -> fsync -> rename        load: file -> checked dict -> Checkpoint

The file holds tensors and plain values only and is read with `weights_only`, so that opening one runs no code. There is
no random generator's state in it: `model.training.fit` reseeds from (seed, epoch) at every epoch's start.
"""

import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, cast

import torch
from torch import Tensor

from model.files import open_regular, printable
from model.plain_json import fill
from model.training import EpochMetrics

FORMAT = "mushroom-study checkpoint 2"
"""First entry of every file; the number rises when an older file could no longer be read."""


MAX_BYTES = 2**31
"""Of a file: the space's largest network with AdamW's state has 0.2 GB."""


class CheckpointError(Exception):
    """A file that is no whole checkpoint; one line with its path and the reason."""


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "attempt": int,
    "job_digest": str,
    "history": list,
    "model": dict,
    "optimizer": (dict, NoneType),
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trial after an epoch."""

    attempt: int
    """Which attempt of the trial wrote it."""
    job_digest: str
    """Of what was trained, with which seed, on which pictures: nobody may go on from the weights of another."""
    history: tuple[EpochMetrics, ...]
    """Every epoch so far."""
    model: dict[str, Tensor]
    """The network's `state_dict()`."""
    optimizer: dict[str, Any] | None
    """The optimizer's `state_dict()`; None where nobody will train on."""


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path`; whatever was there stays until the new file is safe on the disk.

    A process killed in between leaves `<name>.<pid>.tmp` beside it. Raises `OSError` or torch's `RuntimeError`, as for
    a full disk, leaving nothing new.
    """
    contents = {
        "format": FORMAT,
        "attempt": checkpoint.attempt,
        "job_digest": checkpoint.job_digest,
        "history": [metrics.to_dict() for metrics in checkpoint.history],
        "model": dict(checkpoint.model),
        "optimizer": checkpoint.optimizer,
    }
    # The process id keeps an orphan of an earlier attempt from writing into the same temporary file
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load(path: Path) -> Checkpoint:
    """Read what `save` wrote, its tensors on the CPU. Raises `CheckpointError` for anything else, or nothing at all."""
    try:
        with open_regular(path, MAX_BYTES) as opened:
            file = io.BytesIO(opened.read())
    except OSError as error:
        raise CheckpointError(f"a checkpoint must be readable, but {path} is not: {error.strerror}") from error
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(one.compress_type != zipfile.ZIP_STORED for one in members) or (
                sum(one.file_size for one in members) > file.getbuffer().nbytes
            ):
                raise zipfile.BadZipFile("packed, which torch does not do: a bomb, perhaps")
            damaged = archive.testzip()  # torch writes checksums but does not compare them when it loads
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        file.seek(0)
        contents: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn or foreign file breaks the zip reader and the unpickler in ways beyond listing
        reason = f"it is torn, or holds more than tensors and plain values ({type(error).__name__}); remove it"
        raise CheckpointError(f"a checkpoint must be as it was saved, but {path} is not: {reason}") from error
    fields = cast(dict[str, Any], contents) if isinstance(contents, dict) else {}
    if fields.get("format") != FORMAT:
        raise CheckpointError(
            f"a checkpoint must say {FORMAT!r}, but {path} does not; it is of something else: remove it"
        )
    for name, kind in _FIELDS.items():
        if name not in fields or not isinstance(fields[name], kind):
            found = f"no {name!r}" if name not in fields else f"{name!r} of type {type(fields[name]).__name__}"
            raise CheckpointError(f"a checkpoint must have all its fields, but {path} has {found}; remove it")
    try:
        history = tuple(fill(EpochMetrics, vars(EpochMetrics.from_dict(record))) for record in fields["history"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"a checkpoint's history must hold one record per epoch, but {path} has others "
            f"({printable(str(error))[:160]}); remove it"
        ) from error
    return Checkpoint(
        attempt=fields["attempt"],
        job_digest=fields["job_digest"],
        history=history,
        model=fields["model"],
        optimizer=fields["optimizer"],
    )
