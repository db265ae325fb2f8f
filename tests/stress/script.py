"""Options, the machine's line and Markdown tables for the scripts under `benchmarks/` and `tests/stress/`."""

import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from cyclopts import App, Parameter

from tuning.environment import processor

ROOT = Path(__file__).resolve().parents[2]
STUDY = [sys.executable, str(ROOT / "study.py")]
"""The program's own command line; arguments are appended."""


def run(main: Callable[..., object]) -> None:
    """Run a script: call `main` with the options on the command line, one per parameter; `--help` prints docstrings."""
    options = Parameter(negative="", consume_multiple=True)
    text = sys.modules[main.__module__].__doc__
    App(default_command=main, help=text, help_format="plaintext", version_flags=[], default_parameter=options)()


def machine() -> str:
    """Return processor, cores, versions and the load average, on one line."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "optuna", "numpy", "pillow"))
    busy = f"; load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}{busy}"


def header(*columns: str) -> None:
    """Print the head of a Markdown table."""
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")


def row(*cells: object) -> None:
    """Print one row of a Markdown table at once, even into a pipe."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
