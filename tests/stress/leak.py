"""Whether memory grows over a long study: resident bytes of coordinator and workers over many short trials.

    python tests/stress/leak.py
    python tests/stress/leak.py --trials 230 --workers 2 -- --scheduler none

A real study of a few small built-in pictures, two epochs a trial, in a temporary folder. Every process is sampled twice
a second. For each process, and for the workers together, the median of the first quarter of the trials after a warm-up
is compared with the median of the last quarter. The warm-up is there because a worker keeps the memory of the largest
network that it has trained, so that it grows in steps at first. A study without a leak stays within 5 %.
"""

import contextlib
import json
import math
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.stress.monkey import worker_processes
from tests.stress.script import STUDY, header, machine, row, run

INTERVAL = 0.5
"""Seconds between two samples."""
ENDED = "SELECT count(*) FROM trials WHERE state NOT IN ('RUNNING', 'WAITING')"


Samples = list[tuple[int, float]]
"""(number of trials that had ended, resident MB of a process) of each sample."""


def main(
    *options: str, trials: int = 230, warm_up: int = 30, workers: int = 2, pictures: int = 180, keep: Path | None = None
) -> None:
    """Run the study and print a table.

    Parameters
    ----------
    options
        Further options of study.py, after --.
    warm_up
        Trials before the first quarter.
    keep
        Write every sample into this file, as JSON.
    """
    with tempfile.TemporaryDirectory() as results:
        command = [*STUDY, "--study", "leak", "--results", results, "--trials", str(trials), "--workers", str(workers)]
        command += ["--pictures", str(pictures), "--profile", "quick", "--epochs", "2", *options]
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        samples = watch(process, Path(results, "leak", "study.db"), workers)
    if process.returncode:
        raise SystemExit(process.returncode)
    if keep is not None:
        keep.write_text(json.dumps(samples))
    print(machine())
    print(f"{trials} counted trials of 2 epochs in {(time.monotonic() - began) / 60:.1f} minutes\n")
    header("process", "first quarter MB", "last quarter MB", "growth %", "samples")
    ended = max(ended for ended, _ in samples["coordinator"])  # includes trials that do not count
    quarter = (ended - warm_up) / 4
    for name, found in samples.items():
        before, after = median(found, warm_up, warm_up + quarter), median(found, ended - quarter, ended)
        row(name, f"{before:.0f}", f"{after:.0f}", f"{100 * (after / before - 1):+.1f}", len(found))


def median(samples: Samples, begin: float, end: float) -> float:
    """Return the median MB while begin <= ended trials < end; nan for a process that did not run then."""
    return statistics.median([size for ended, size in samples if begin <= ended < end] or [math.nan])


def watch(process: subprocess.Popen[bytes], database: Path, workers: int) -> dict[str, Samples]:
    """Sample a study until it ends; return the samples of the coordinator, of each worker and of all workers."""
    total, names, samples = Samples(), dict[int, str](), dict[str, Samples]()
    while process.poll() is None:
        time.sleep(INTERVAL)
        with contextlib.suppress(psutil.NoSuchProcess, sqlite3.OperationalError):
            with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as connection:
                (ended,) = connection.execute(ENDED).fetchone()
            found = [psutil.Process(process.pid), *worker_processes(process.pid)]
            sizes = {one.pid: one.memory_info().rss / 2**20 for one in found}
            for pid, size in sizes.items():
                name = names.setdefault(pid, f"worker {len(names)}" if names else "coordinator")
                samples.setdefault(name, []).append((ended, size))
            if len(sizes) == 1 + workers:
                total.append((ended, sum(sizes.values()) - sizes[process.pid]))
    return samples | {"workers together": total}


if __name__ == "__main__":
    run(main)
