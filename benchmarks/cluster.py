"""What Ray costs: the same study with local workers, and on a Ray cluster of this machine alone.

    pip install -e ".[cluster]"
    python benchmarks/cluster.py                        # about 20 minutes
    python benchmarks/cluster.py --trials 2 --turns 1   # does it run at all?

Both train the first trials of the laptop profile for the same few epochs, in turns. "Training" is the time from the
first trial's start to the last one's end; the rest is the start and the end of the command.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import optuna

from benchmarks.measuring import spread
from tests.stress.script import header, machine, row, run
from tuning.folder import sqlite_url

ROOT = Path(__file__).resolve().parents[1]
LOCAL, ON_RAY = "local workers", "Ray"
NAME = "cluster"


def main(*, data: str = "field-guide", trials: int = 4, epochs: int = 3, workers: int = 2, turns: int = 5) -> None:
    """Print the table.

    Parameters
    ----------
    data
        A folder of pictures, or field-guide.
    trials
        Number of trials of each study.
    epochs
        Epochs of each trial.
    workers
        Number of slots.
    turns
        Number of studies of each kind.
    """
    from ray.cluster_utils import Cluster

    print(f"{machine()}\n")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": workers, "include_dashboard": False})
    kinds: dict[str, list[str]] = {LOCAL: [], ON_RAY: ["--ray", str(cluster.address)]}
    options = ["--data", data, "--study", NAME, "--profile", "laptop", "--scheduler", "none", "--precision", "float32"]
    options += ["--trials", str(trials), "--epochs", str(epochs), "--workers", str(workers)]
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    try:
        for _ in range(turns):
            for kind, more in kinds.items():
                with tempfile.TemporaryDirectory() as results:
                    seconds[kind].append(measure([*options, *more, "--results", results], Path(results)))
    finally:
        cluster.shutdown()
    header("workers", "training, s", "whole command, s", "training / local", "whole command / local")
    for kind, found in seconds.items():
        columns = list(zip(*found, strict=True))
        ratios = [
            [one / local for one, local in zip(column, other, strict=True)]
            for column, other in zip(columns, zip(*seconds[LOCAL], strict=True), strict=True)
        ]
        row(kind, *(spread(column, 1) for column in columns), *(spread(one, 3) for one in ratios))


def measure(options: list[str], results: Path) -> tuple[float, float]:
    """Run a study; return the seconds of its training and of the whole command."""
    began = time.perf_counter()
    command = [sys.executable, str(ROOT / "study.py"), *options]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - began
    trials = optuna.load_study(study_name=NAME, storage=sqlite_url(results / NAME)).trials_dataframe()
    return (trials.datetime_complete.max() - trials.datetime_start.min()).total_seconds(), whole


if __name__ == "__main__":
    run(main)
