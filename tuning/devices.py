"""What a machine has to train on: a slot per trial that runs at once."""

from __future__ import annotations

import os

from tuning import StudyError


def slots(device: str, workers: int | None) -> tuple[list[str], int]:
    """The device of each slot, and the CPU threads of each.

    One single-threaded worker per core trains 1.25 times as much as one worker with two threads (2 Zen 3 cores).
    """
    import torch

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
    return devices, max(1, cores // len(devices))
