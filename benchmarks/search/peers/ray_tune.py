"""Ray Tune's OptunaSearch and asynchronous halving, called as its controller calls them, without starting Ray."""

# pyright: reportMissingImports=false, reportArgumentType=false, reportPrivateUsage=false
# The library is only in the environment that this file runs in.

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import optuna
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.search.peers.optuna5 import distribution, replace_params
from benchmarks.search.peers.protocol import Decision, Peer, Task, serve


class RayTune(Peer):
    """A searcher and a scheduler at their defaults, except that the first rung is one epoch."""

    def __init__(self, task: Task) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        names = {"metric": "top1", "mode": "max"}
        space = {knob.name: distribution(knob) for knob in task.space}
        self._search = OptunaSearch(space=space, seed=task.seed, **names)
        self._scheduler = AsyncHyperBandScheduler(time_attr="training_iteration", max_t=task.epochs, **names)
        self._epochs = task.epochs
        self._begun = 0

    def propose(self) -> dict[str, Any] | None:
        """Ask the searcher."""
        return self._search.suggest(str(self._begun))

    def began(self, trial: int, params: dict[str, Any]) -> None:
        """Give the trial its row's parameters, so that the searcher learns from those."""
        replace_params(self._search._ot_trials[str(trial)], params)
        self._scheduler.on_trial_add(None, SimpleNamespace(trial_id=str(trial)))
        self._begun += 1

    def epoch(self, trial: int, epoch: int, best: float) -> Decision:
        """Report to both; stop what the scheduler stops."""
        name = str(trial)
        result = {"top1": best, "training_iteration": epoch, "trial_id": name}
        decision = self._scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), result)
        self._search.on_trial_result(name, result)
        if decision == self._scheduler.CONTINUE and epoch < self._epochs:
            return "continue"
        self._scheduler.on_trial_complete(None, SimpleNamespace(trial_id=name), result)
        self._search.on_trial_complete(name, result)
        return "stop"


if __name__ == "__main__":
    serve(RayTune)
