"""What a machine has to train on: a slot per trial that runs at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from tuning import StudyError

if TYPE_CHECKING:
    from model.training import Precision


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where a trial is trained, and how."""

    device: str = "cpu"
    """As torch names it: cpu, cuda:0, mps."""
    threads: int = 1
    """CPU threads of the training."""
    precision: Precision = "float32"


def slots(device: str, workers: int | None, precision: str = "auto") -> list[Slot]:
    """Those that the options ask for; "auto" is the fastest that is there. Raises StudyError for no such device.

    One single-threaded worker per core trains 1.25 times as much as one worker with two threads (2 Zen 3 cores).
    """
    import torch

    from model.training import fastest_precision

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(kind for kind, there in found.items() if there) if device == "auto" else device
    if not found[kind]:
        raise StudyError(
            f"--device names what this machine has, but torch {torch.__version__} finds no {kind} here; "
            f"use --device {' or '.join(kind for kind, there in found.items() if there)}"
        )
    if kind == "cuda":
        count = torch.cuda.device_count()
        devices = [f"cuda:{slot % count}" for slot in range(workers or count)]
    else:
        devices = [kind] * (workers or (cores if kind == "cpu" else 1))
    threads = max(1, cores // len(devices))
    chosen = cast("Precision", precision)
    if precision == "auto":  # of GPUs of several kinds what all of them can
        fastest = {fastest_precision(torch.device(name)) for name in devices}
        chosen = "bfloat16" if fastest == {"bfloat16"} else "float32"
    return [Slot(device=name, threads=threads, precision=chosen) for name in devices]
