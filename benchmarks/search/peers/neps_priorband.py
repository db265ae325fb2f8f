"""NePS's PriorBand (Mallik et al. 2023, arXiv:2306.12370): Hyperband that samples around an expert's guess."""

# pyright: reportMissingImports=false
# The library is only in the environment that this file runs in.

from __future__ import annotations

import random
from typing import Any

import neps
import numpy as np
import torch

from benchmarks.search.peers.protocol import FidelityPeer, Knob, Task, serve


class PriorBand(FidelityPeer):
    """PriorBand at its defaults, with the best single guess as its prior."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(task.seed)
        space = {knob.name: parameter(knob, task.guess.get(knob.name)) for knob in task.space}
        space["epochs"] = neps.HPOInteger(lower=1, upper=task.epochs, is_fidelity=True)
        self._algorithm = neps.AskAndTell(neps.algorithms.priorband(neps.SearchSpace(space)))
        self._task = task

    def ask(self) -> tuple[str, dict[str, Any], int, Any]:
        """Ask the algorithm, which names a promoted configuration by its number and its rung."""
        trial = self._algorithm.ask()
        name = trial.metadata.id.split("_rung_")[0]
        return name, self._task.read(trial.config), int(trial.config["epochs"]), trial

    def tell(self, job: Any, value: float) -> None:
        """Tell the algorithm, which minimises."""
        self._algorithm.tell(job, {"objective_to_minimize": 1 - value, "cost": 1.0})


def parameter(knob: Knob, prior: Any) -> Any:
    """Return a knob with its prior; one that the guess lacks has its middle, or its first choice."""
    if knob.choices is not None:
        return neps.HPOCategorical(knob.choices, prior=prior or knob.choices[0])
    middle = (knob.low * knob.high) ** 0.5 if knob.log else (knob.low + knob.high) / 2
    value = middle if prior is None else prior
    if knob.integer:
        kind, value = neps.HPOInteger, round(value)
    else:
        kind, value = neps.HPOFloat, float(value)
    return kind(lower=knob.low, upper=knob.high, log=knob.log, prior=value)


if __name__ == "__main__":
    serve(PriorBand)
