"""Syne Tune's asynchronous halving (the stopping kind) and BOHB, called as its tuner calls them."""

# pyright: reportMissingImports=false
# The library is only in the environment that this file runs in.

from __future__ import annotations

import logging
import random
import sys
from datetime import datetime
from typing import Any

import numpy as np
from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import choice, lograndint, loguniform, randint, uniform
from syne_tune.optimizer import baselines

from benchmarks.search.peers.protocol import Decision, Knob, Peer, Task, serve


def domain(knob: Knob) -> Any:
    """Return a knob as a domain."""
    if knob.choices is not None:
        return choice(knob.choices)
    if knob.integer:
        return (lograndint if knob.log else randint)(int(knob.low), int(knob.high))
    return (loguniform if knob.log else uniform)(knob.low, knob.high)


class SyneTune(Peer):
    """One of the baselines, which stop trials and resume none."""

    def __init__(self, task: Task, kind: str) -> None:
        logging.disable(logging.CRITICAL)
        random.seed(task.seed)
        np.random.seed(task.seed)
        self._scheduler = getattr(baselines, kind)(
            {knob.name: domain(knob) for knob in task.space},
            metric="top1",
            do_minimize=False,
            random_seed=task.seed,
            time_attr="epoch",
            max_t=task.epochs,
        )
        self._task = task
        self._trials: dict[int, Trial] = {}

    def propose(self) -> dict[str, Any]:
        """Ask the scheduler."""
        return self._task.read(self._scheduler.suggest().config)

    def began(self, trial: int, params: dict[str, Any]) -> None:
        """Add the trial with its row's parameters, so that the scheduler learns from those."""
        self._trials[trial] = Trial(trial, params, datetime.now())
        self._scheduler.on_trial_add(self._trials[trial])

    def epoch(self, trial: int, epoch: int, best: float) -> Decision:
        """Report, and stop what the scheduler stops."""
        result = {"top1": best, "epoch": epoch}
        decision = self._scheduler.on_trial_result(self._trials[trial], result)
        if epoch == self._task.epochs:
            self._scheduler.on_trial_complete(self._trials[trial], result)
        return "continue" if decision == "CONTINUE" else "stop"


if __name__ == "__main__":
    serve(lambda task: SyneTune(task, sys.argv[1]))
