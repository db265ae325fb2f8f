"""Whether memory grows over a long study: resident bytes of coordinator and workers over many short trials.

    python tests/stress/leak.py
    python tests/stress/leak.py --trials 230 --workers 2 -- --pruner none

A real study of few small built-in pictures, two epochs a trial, in a temporary folder. Every process is looked at twice
a second. The first quarter of the trials after a warm-up is compared with the last one, by medians: a row per process,
and one for the workers together. The warm-up, because a worker keeps the memory of the largest network that it has
trained: it grows in steps until it has met large ones. A study that leaks nothing stays within 5 %.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import psutil

STUDY = Path(__file__).resolve().parent.parent / "study.py"
EVERY = 0.5
"""Seconds between two looks."""
ENDED = "SELECT count(*) FROM trials WHERE state NOT IN ('RUNNING', 'WAITING')"


@dataclass(kw_only=True)
class Samples:
    """Resident MB of one process, each with how many trials had ended."""

    name: str
    rss: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])

    def median(self, begin: float, end: float) -> float | None:
        """Over the looks while so many trials had ended; None where the process was not there."""
        found = [size for ended, size in self.rss if begin <= ended < end]
        return statistics.median(found) if found else None

    def row(self, warm_up: int, trials: int) -> str:
        """First and last quarter, and how much has grown."""
        quarter = (trials - warm_up) / 4
        before, after = self.median(warm_up, warm_up + quarter), self.median(trials - quarter, trials)
        if before is None or after is None:
            return f"| {self.name} | - | - | - | {len(self.rss)} |"
        return f"| {self.name} | {before:.0f} | {after:.0f} | {100 * (after / before - 1):+.1f} | {len(self.rss)} |"


def main() -> None:
    """Runs the study and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=230)
    parser.add_argument("--warm-up", type=int, default=30, help="trials before the first quarter")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=180)
    parser.add_argument("--keep", type=Path, help="write every sample there, as JSON")
    parser.add_argument("options", nargs="*", help="further options of study.py, after --")
    chosen = parser.parse_args()

    with tempfile.TemporaryDirectory() as results:
        command = [sys.executable, str(STUDY), "--study", "leak", "--results", results]
        command += ["--trials", str(chosen.trials), "--workers", str(chosen.workers)]
        command += ["--pictures", str(chosen.pictures), "--profile", "quick", "--epochs", "2", *chosen.options]
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        samples = watch(process, Path(results, "leak", "study.db"), chosen.workers)
    if process.returncode:
        raise SystemExit(process.returncode)
    if chosen.keep is not None:
        chosen.keep.write_text(json.dumps({one.name: one.rss for one in samples}))
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, ",
        end="",
    )
    print(", ".join(f"{package} {version(package)}" for package in ("torch", "optuna", "matplotlib")))
    print(f"{chosen.trials} counted trials of 2 epochs in {(time.monotonic() - began) / 60:.1f} minutes\n")
    print("| process | first quarter MB | last quarter MB | growth % | samples |\n|---|---|---|---|---|")
    ended = max(ended for ended, _ in samples[0].rss)  # those that are not counted are among them
    for one in samples:
        print(one.row(chosen.warm_up, ended))


def watch(process: subprocess.Popen[bytes], database: Path, workers: int) -> list[Samples]:
    """Looks at a study until it ends: the coordinator first, then each worker, then the workers' sum."""
    coordinator = psutil.Process(process.pid)
    total = Samples(name="workers together")
    known: dict[int, Samples] = {process.pid: Samples(name="coordinator")}
    while process.poll() is None:
        time.sleep(EVERY)
        with contextlib.suppress(psutil.NoSuchProcess, sqlite3.OperationalError):
            with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as connection:
                (ended,) = connection.execute(ENDED).fetchone()
            sizes = {process.pid: coordinator.memory_info().rss}
            for child in coordinator.children():
                if any("spawn_main" in word for word in child.cmdline()):
                    sizes[child.pid] = child.memory_info().rss
            for pid, size in sizes.items():
                samples = known.setdefault(pid, Samples(name=f"worker {len(known)}"))
                samples.rss.append((ended, size / 2**20))
            if len(sizes) == 1 + workers:
                total.rss.append((ended, (sum(sizes.values()) - sizes[process.pid]) / 2**20))
    return [*known.values(), total]


if __name__ == "__main__":
    main()
