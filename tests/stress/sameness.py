"""What two studies must have in common if one of them was disturbed and the other was not."""

from typing import Any

from optuna.trial import FrozenTrial

VARYING = {"seconds", "peak_memory", "attempts", "slot", "spans", "paused", "resumed_after", "environment", "host"}
"""Attributes of a trial that a disturbance may change."""


def essence(trials: list[FrozenTrial]) -> list[tuple[Any, ...]]:
    """Return everything of the trials that must be equal, bit for bit, however often they were disturbed."""
    return [
        (
            trial.number,
            trial.state.name,
            trial.params,
            trial.values,
            trial.intermediate_values,
            trial.constraints,
            {name: value for name, value in trial.user_attrs.items() if name not in VARYING},
        )
        for trial in trials
    ]
