"""Where a trial is trained: what must be equal for a second training to give the same numbers, bit for bit."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from tuning.devices import Slot

PACKAGES = ("numpy", "pillow")
"""That decide the numbers, beside torch."""


def environment(slot: Slot) -> dict[str, str]:
    """Facts by name, as they stand with each trial."""
    where = {"device": _device_name(slot.device), "threads": str(slot.threads), "precision": slot.precision}
    return where | versions()


def sums_in_order(facts: dict[str, str]) -> bool:
    """Whether a training repeats bit for bit: several threads, and a GPU, add in any order."""
    return facts.get("threads") == "1" and facts.get("device", "").startswith("cpu: ")


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    # torch tells its own build, such as +cpu or +cu130, which the package's version may leave out.
    packages = {package: version(package) for package in PACKAGES}
    return {
        "program": _program(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    } | packages


def differences(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """What differs, one text each."""
    names = sorted(then.keys() | now.keys())
    return [
        f"{name} {then.get(name, 'unknown')} -> {now.get(name, 'unknown')}"
        for name in names
        if then.get(name) != now.get(name)
    ]


@cache
def _device_name(device: str) -> str:
    """A GPU by its name; of a CPU also the instructions that torch chooses its kernels by."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if device != "cpu":
        return f"{device} of {platform.platform(terse=True)}"
    return f"cpu: {processor()} ({torch.backends.cpu.get_cpu_capability()})"


def processor() -> str:
    """The CPU's name: Linux keeps it in /proc, other systems tell Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def commit(folder: Path) -> str | None:
    """The git commit of the program in `folder`, with "+" where files differ from it; None where there is none."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def _program() -> str:
    """This program's commit, as it was when the process first asked."""
    return commit(Path(__file__).resolve().parent.parent) or "unknown"
