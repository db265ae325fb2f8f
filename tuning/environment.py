"""Facts of the machine that must be equal for a repeated training run to give the same numbers, bit for bit."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from tuning.devices import Slot

PACKAGES = ("numpy", "pillow")
"""Packages besides torch that affect the numbers."""


def environment(slot: Slot) -> dict[str, str]:
    """Return the facts of this machine by name, as they are stored with each trial."""
    where = {"device": _device_name(slot.device), "threads": str(slot.threads), "precision": slot.precision}
    return where | versions()


def sums_in_order(facts: dict[str, str]) -> bool:
    """Return whether training repeats bit for bit: several threads, or a GPU, add numbers in varying order."""
    return facts.get("threads") == "1" and facts.get("device", "").startswith("cpu: ")


def versions() -> dict[str, str]:
    """Return the versions of the program and packages that affect the numbers."""
    # torch.__version__ names its build, such as +cpu or +cu130; the package's version may not.
    packages = {package: version(package) for package in PACKAGES}
    return {
        "program": _program(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    } | packages


def differences(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return a text for each fact that differs."""
    names = sorted(then.keys() | now.keys())
    return [
        f"{name} {then.get(name, 'unknown')} -> {now.get(name, 'unknown')}"
        for name in names
        if then.get(name) != now.get(name)
    ]


@cache
def _device_name(device: str) -> str:
    """Return the device's name; for a CPU, also the instruction sets by which torch and oneDNN choose their kernels."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if device != "cpu":
        return f"{device} of {platform.platform(terse=True)}"
    sets = torch.cpu.get_capabilities().items()
    bfloat16 = sorted(name for name, there in sets if there is True and "bf16" in name)  # virtual CPUs share a name
    return f"cpu: {processor()} ({', '.join([torch.backends.cpu.get_cpu_capability(), *bfloat16])})"


def processor() -> str:
    """Return the CPU's name, from /proc on Linux and from Python elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def commit(folder: Path) -> str | None:
    """Return the git commit of the program in `folder`, with "+" if files differ from it; None outside a repository."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def _program() -> str:
    """Return this program's commit, as it was at the first call."""
    return commit(Path(__file__).resolve().parent.parent) or "unknown"
