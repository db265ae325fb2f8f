"""Slots: where a machine can train trials, one slot per trial at a time; and how a function runs on that machine."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.limits import cpus
from tuning import StudyError

if TYPE_CHECKING:
    from model.training import Precision

RunThere = Callable[..., Any]
"""Function that calls a function on the machine of the first slot, with the arguments that follow it."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A slot, which trains one trial at a time: a device and how it is used."""

    device: str = "cpu"
    """Torch's name for the device: cpu, cuda:0, mps."""
    threads: int = 1
    """Number of CPU threads that train the trial."""
    precision: Precision = "float32"
    host: str | None = None
    """Name of the machine; None if it is not known."""


def run_here(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function on this machine: the `RunThere` of local slots."""
    return function(*args, **options)


def slots(device: str, workers: int | None) -> list[Slot]:
    """Return the slots that the options request, in float32; "auto" is the fastest device available.

    One single-threaded worker per core trains 1.25 times as much as one worker with two threads (2 Zen 3 cores).
    Raises StudyError for a device that this machine does not have.
    """
    import torch

    cores, found = cpus(), available()
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
    return [Slot(device=name, threads=threads, host=platform.node()) for name in devices]


def available() -> dict[str, bool]:
    """Return whether this machine has each kind of device, fastest first."""
    import torch

    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}


def or_cpu(device: str) -> str:
    """Return a device if this machine has its kind, which another machine's may not be; else the CPU."""
    return device if available()[device.partition(":")[0]] else "cpu"
