"""SMAC3's multi-fidelity facade (random forest and Hyperband), driven by `ask` and `tell`."""

# pyright: reportMissingImports=false
# The library is only in the environment that this file runs in.

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from smac import MultiFidelityFacade, Scenario
from smac.runhistory.dataclasses import TrialInfo, TrialValue

from benchmarks.search.peers.protocol import FidelityPeer, Task, serve
from benchmarks.search.peers.space import config_space


class Smac(FidelityPeer):
    """The facade at its defaults, with budgets from one epoch to all."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        scenario = Scenario(
            config_space(task),
            deterministic=True,
            n_trials=100_000,  # the replay ends the search
            min_budget=1,
            max_budget=task.epochs,
            seed=task.seed,
            output_directory=Path(tempfile.mkdtemp()),
        )
        self._facade = MultiFidelityFacade(scenario, _unused, overwrite=True, logging_level=50)
        self._task = task

    def ask(self) -> tuple[Any, dict[str, Any], int, TrialInfo]:
        """Ask the facade."""
        info = self._facade.ask()
        return info.config, self._task.read(info.config), round(info.budget or self._task.epochs), info

    def tell(self, job: TrialInfo, value: float) -> None:
        """Tell the facade, which minimises."""
        self._facade.tell(job, TrialValue(cost=-value))


def _unused(config: Any, seed: int = 0, budget: float = 0.0) -> float:
    """Stand in for training, which the replay does."""
    raise NotImplementedError


if __name__ == "__main__":
    serve(Smac)
