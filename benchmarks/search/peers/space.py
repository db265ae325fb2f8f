"""The space of a task for the libraries that use ConfigSpace: SMAC3 and DEHB."""

# pyright: reportMissingImports=false
# The library is only in the environment that this file runs in.

from __future__ import annotations

from ConfigSpace import (
    CategoricalHyperparameter,
    ConfigurationSpace,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)

from benchmarks.search.peers.protocol import Task


def config_space(task: Task) -> ConfigurationSpace:
    """Return the task's knobs, flat."""
    space = ConfigurationSpace(seed=task.seed)
    for knob in task.space:
        if knob.choices is not None:
            space.add(CategoricalHyperparameter(knob.name, knob.choices))
        elif knob.integer:
            space.add(UniformIntegerHyperparameter(knob.name, int(knob.low), int(knob.high), log=knob.log))
        else:
            space.add(UniformFloatHyperparameter(knob.name, knob.low, knob.high, log=knob.log))
    return space
