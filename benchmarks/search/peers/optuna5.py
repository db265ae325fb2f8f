"""Optuna's own samplers and pruners, driven by `ask` and `tell`."""

from __future__ import annotations

import sys
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from benchmarks.search.peers.protocol import Decision, Knob, Peer, Task, serve


def distribution(knob: Knob) -> BaseDistribution:
    """Return a knob as a distribution."""
    if knob.choices is not None:
        return CategoricalDistribution(knob.choices)
    if knob.integer:
        return IntDistribution(int(knob.low), int(knob.high), log=knob.log)
    return FloatDistribution(knob.low, knob.high, log=knob.log)


def replace_params(trial: optuna.Trial, params: dict[str, Any]) -> None:
    """Replace the parameters that a running trial has sampled."""
    for name, there in trial.distributions.items():
        trial.storage.set_trial_param(trial._trial_id, name, there.to_internal_repr(params[name]), there)  # pyright: ignore[reportPrivateUsage]


class Optuna(Peer):
    """A study with one of Optuna's pairs of sampler and pruner, at their defaults."""

    def __init__(self, task: Task, kind: str) -> None:
        samplers, pruners = optuna.samplers, optuna.pruners
        random = kind == "random"
        pruner = {
            "random": pruners.NopPruner,
            "median": pruners.MedianPruner,
            "hyperband": lambda: pruners.HyperbandPruner(max_resource=task.epochs),
        }[kind]()
        sampler = samplers.RandomSampler(seed=task.seed) if random else samplers.TPESampler(seed=task.seed)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(
            direction="maximize", sampler=sampler, pruner=pruner, study_name=f"seed {task.seed}"
        )
        self._space = {knob.name: distribution(knob) for knob in task.space}
        self._epochs = task.epochs
        self._asked: optuna.Trial | None = None
        self._trials: dict[int, optuna.Trial] = {}

    def propose(self) -> dict[str, Any]:
        """Sample a trial."""
        self._asked = self._study.ask(self._space)
        return self._asked.params

    def began(self, trial: int, params: dict[str, Any]) -> None:
        """Give the trial its row's parameters, so that the sampler learns from those."""
        assert self._asked is not None
        replace_params(self._asked, params)
        self._trials[trial] = self._asked

    def epoch(self, trial: int, epoch: int, best: float) -> Decision:
        """Report, and stop what the pruner prunes."""
        asked = self._trials[trial]
        asked.report(best, epoch)
        if epoch == self._epochs:
            self._study.tell(asked, best)
        elif asked.should_prune():
            self._study.tell(asked, state=TrialState.PRUNED)
        else:
            return "continue"
        return "stop"


if __name__ == "__main__":
    serve(lambda task: Optuna(task, sys.argv[1]))
