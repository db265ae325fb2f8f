"""DEHB: differential evolution and Hyperband, driven by `ask` and `tell`."""

# pyright: reportMissingImports=false
# The library is only in the environment that this file runs in.

from __future__ import annotations

import tempfile
from typing import Any

import loguru
from dehb import DEHB

from benchmarks.search.peers.protocol import FidelityPeer, Task, serve
from benchmarks.search.peers.space import config_space


class Dehb(FidelityPeer):
    """DEHB at its defaults, with fidelities from one epoch to all."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        loguru.logger.remove()
        self._dehb = DEHB(
            cs=config_space(task),
            f=None,
            min_fidelity=1,
            max_fidelity=task.epochs,
            n_workers=1,
            seed=task.seed,
            output_path=tempfile.mkdtemp(),
            save_freq=None,
        )
        self._task = task

    def ask(self) -> tuple[int, dict[str, Any], int, dict[str, Any]]:
        """Ask DEHB."""
        job = self._dehb.ask()
        return job["config_id"], self._task.read(job["config"]), round(job["fidelity"]), job

    def tell(self, job: dict[str, Any], value: float) -> None:
        """Tell DEHB, which minimises."""
        self._dehb.tell(job, {"fitness": -value, "cost": 1.0})


if __name__ == "__main__":
    serve(Dehb)
