"""Slots: where a machine can train trials, one slot per trial at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.limits import cpus
from tuning import StudyError

if TYPE_CHECKING:
    from model.training import Precision


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A slot, which trains one trial at a time: a device and how it is used."""

    device: str = "cpu"
    """Torch's name for the device: cpu, cuda:0, mps."""
    threads: int = 1
    """Number of CPU threads that train the trial."""
    precision: Precision = "float32"


def slots(device: str, workers: int | None) -> list[Slot]:
    """Return the slots that the options request, in float32; "auto" is the fastest device available.

    One single-threaded worker per core trains 1.25 times as much as one worker with two threads (2 Zen 3 cores).
    Raises StudyError for a device that this machine does not have.
    """
    import torch

    cores = cpus()
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(kind for kind, there in found.items() if there) if device == "auto" else device
    if not found[kind]:
        raise StudyError(
            f"--device {kind} is not available (torch {torch.__version__} finds none): use --device "
            f"{' or '.join(kind for kind, there in found.items() if there)}"
        )
    if kind == "cuda":
        count = torch.cuda.device_count()
        devices = [f"cuda:{slot % count}" for slot in range(workers or count)]
    else:
        devices = [kind] * (workers or (cores if kind == "cpu" else 1))
    threads = max(1, cores // len(devices))
    return [Slot(device=name, threads=threads) for name in devices]
