"""Keras Tuner's Hyperband oracle, called as its tuner calls it."""

# pyright: reportMissingImports=false
# The library is only in the environment that this file runs in.

from __future__ import annotations

import tempfile
from typing import Any

import keras_tuner
from keras_tuner.src.tuners.hyperband import HyperbandOracle

from benchmarks.search.peers.protocol import FidelityPeer, Task, serve


class KerasTuner(FidelityPeer):
    """The oracle at its defaults, repeated for as long as the replay goes on."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        space = keras_tuner.HyperParameters()
        for knob in task.space:
            if knob.choices is not None:
                space.Choice(knob.name, knob.choices)
            elif knob.integer:
                space.Int(knob.name, int(knob.low), int(knob.high), sampling="log" if knob.log else "linear")
            else:
                space.Float(knob.name, knob.low, knob.high, sampling="log" if knob.log else "linear")
        self._oracle = HyperbandOracle(
            objective=keras_tuner.Objective("top1", "max"),
            max_epochs=task.epochs,
            hyperband_iterations=None,
            hyperparameters=space,
            seed=task.seed,
        )
        self._oracle._set_project_dir(tempfile.mkdtemp(), "replay")
        self._task = task
        self._asked = 0
        self._origin: dict[str, str] = {}

    def ask(self) -> tuple[str, dict[str, Any], int, Any] | None:
        """Ask the oracle, which continues a trial of the round before under a new name."""
        self._asked += 1
        trial = self._oracle.create_trial(f"worker {self._asked}")
        if trial.status != "RUNNING":
            return None
        values = trial.hyperparameters.values
        before = values.get("tuner/trial_id")
        origin = self._origin[trial.trial_id] = self._origin[before] if before else trial.trial_id
        return origin, self._task.read(values), int(values["tuner/epochs"]), trial

    def tell(self, job: Any, value: float) -> None:
        """Report to the oracle."""
        self._oracle.update_trial(job.trial_id, {"top1": value})
        job.status = "COMPLETED"
        self._oracle.end_trial(job)


if __name__ == "__main__":
    serve(KerasTuner)
