"""What two studies must have in common where one of them was disturbed and the other one was not."""

from __future__ import annotations

from typing import Any

from optuna.trial import FrozenTrial

CHANCE = {"seconds", "peak_memory", "attempts", "slot", "paused", "environment"}
"""Attributes of a trial that a disturbance may change."""


def essence(trials: list[FrozenTrial]) -> list[tuple[Any, ...]]:
    """All of the trials that must be the same, bit for bit, however often they were disturbed."""
    return [
        (
            trial.number,
            trial.state.name,
            trial.params,
            trial.values,
            trial.intermediate_values,
            trial.constraints,
            {name: value for name, value in trial.user_attrs.items() if name not in CHANCE},
        )
        for trial in trials
    ]
