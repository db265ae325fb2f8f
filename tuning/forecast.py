"""How long a study will take on this machine, said before it begins.

By its own trials, where enough were trained in such a slot; else by the FLOPs of random points and a few timed steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from optuna.trial import FrozenTrial
from torch.nn import functional

from model.network import Cost, MushroomCNN
from model.training import autocast, make_optimizer
from search_space import Config
from tuning.devices import Slot
from tuning.environment import environment
from tuning.identity import random_points

POINTS = 24
"""Random points whose mean cost stands for a trial's."""
TIMED = 3
"""Of them, how many have their steps timed."""
STEP_FLOPS = 2e10
"""About how much a timed step may cost on a CPU: half a second on one core."""
STEPS_SHARE = 0.84
"""The share of a trial's seconds that its steps take, beside evaluation, augmentation and set-up (benchmarks/README.md,
"Where a trial's time goes")."""
TRAINED_SHARE = 0.7
"""The share of all epochs that a study trains when its pruner is at work: 253, 280, 298 of 400 in `quick` studies."""

ENOUGH = 6
"""Trials whose mean stands for those to come: the two known-good ones, which are not typical, and four more."""


def seconds_so_far(trials: Iterable[FrozenTrial], slot: Slot) -> float | None:
    """Mean seconds of the trials that were trained in a slot like this one; None where there are too few of them."""
    here = environment(slot)
    took = [
        trial.user_attrs["seconds"]
        for trial in trials
        if "seconds" in trial.user_attrs
        and all(trial.user_attrs["environment"].get(fact) == here[fact] for fact in ("device", "threads", "precision"))
    ]
    return float(np.mean(took)) if len(took) >= ENOUGH else None


def seconds_per_trial(
    suggest: Callable[[Any], Config],
    *,
    feasible: Callable[[Cost], bool],
    pictures: int,
    pruned: bool,
    slots: Sequence[Slot],
) -> float:
    """Expected seconds of one trial in one slot, all of which are at work.

    Args: `feasible`: whether a network is within the budgets; `pictures`: in the training part; `pruned`: whether a
    pruner will end some trials early.
    """
    drawn = sorted(random_points(suggest, POINTS), key=lambda config: config.cost.flops)
    points = [config for config in drawn if feasible(config.cost)] or drawn[:1]
    # A backward pass costs twice a forward one (Kaplan et al. 2020, section 2.1).
    work = np.array([3 * one.cost.flops * pictures * one.views * one.training.epochs for one in points])
    whole = 0.0
    for some in np.array_split(np.arange(len(points)), min(TIMED, len(points))):
        # Small networks reach fewer FLOPs a second: each point goes by one of its own size.
        whole += work[some].sum() / _flops_per_second(points[some[len(some) // 2]], slots)
    return whole / len(points) / STEPS_SHARE * (TRAINED_SHARE if pruned else 1.0)


def _flops_per_second(config: Config, slots: Sequence[Slot]) -> float:
    """Of training steps on random pictures in one slot.

    On a CPU in as many threads at once as there are slots, which slow each other; on a GPU that others use, of as many
    pictures as it has memory for.
    """
    slot, batch = slots[0], config.training.batch_size
    if slot.device == "cpu":
        batch = max(2, min(batch, int(STEP_FLOPS / (3 * config.cost.flops))))
        before = torch.get_num_threads()
        torch.set_num_threads(slot.threads)
        try:
            with ThreadPoolExecutor(len(slots)) as pool:
                return float(np.mean(list(pool.map(lambda each: _timed_steps(config, each, batch), slots))))
        finally:
            torch.set_num_threads(before)
    while True:
        try:
            return _timed_steps(config, slot, batch)
        except torch.OutOfMemoryError:
            if batch == 2:
                raise
        finally:
            torch.cuda.empty_cache()  # of this process; the workers have their own
        batch = max(2, batch // 2)


def _timed_steps(config: Config, slot: Slot, batch: int) -> float:
    device = torch.device(slot.device)
    model = MushroomCNN(config.model).to(device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, config.training)
    pictures = torch.randn(batch, 3, config.image_size, config.image_size, device=device)
    pictures = pictures.to(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    seconds: list[float] = []
    for _ in range(4):
        began = time.perf_counter()
        with autocast(device, slot.precision):
            loss = functional.cross_entropy(model(pictures), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    # The first step also loads kernels and memory.
    return 3 * config.cost.flops * batch / float(np.median(seconds[1:]))
