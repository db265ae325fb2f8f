"""How long a study will take on this machine, said before it begins: FLOPs of random points, and a few timed steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from model.network import Cost, MushroomCNN, cost
from model.training import autocast, make_optimizer
from search_space import Config
from tuning.devices import Slots
from tuning.identity import random_points

POINTS = 24
"""Random points whose mean cost stands for a trial's."""
TIMED = 3
"""Of them, how many have their steps timed."""
STEP_FLOPS = 2e10
"""About how much a timed step may cost on a CPU: half a second on one core."""
TRAINED_SHARE = 0.65
"""The share of all epochs that a study trains when its pruner is at work: 253 of 400 in one `quick` study."""


def seconds_per_trial(
    suggest: Callable[[Any], Config],
    *,
    feasible: Callable[[Cost], bool],
    pictures: int,
    pruned: bool,
    slots: Slots,
) -> float:
    """Expected seconds of one trial in one slot.

    Args: `feasible`: whether a network is within the budgets; `pictures`: in the training part; `pruned`: whether a
    pruner will end some trials early.
    """
    drawn = sorted(random_points(suggest, POINTS), key=_flops)
    points = [config for config in drawn if feasible(cost(config.model, config.image_size))] or drawn[:1]
    timed = [points[len(points) * (2 * index + 1) // (2 * TIMED)] for index in range(TIMED)]
    rate = float(np.mean([_flops_per_second(config, slots) for config in timed]))
    # A backward pass costs twice a forward one (Kaplan et al. 2020, section 2.1).
    trained = [3 * _flops(config) * pictures * config.views * config.training.epochs for config in points]
    return float(np.mean(trained)) / rate * (TRAINED_SHARE if pruned else 1.0)


def _flops(config: Config) -> int:
    return cost(config.model, config.image_size).flops


def _flops_per_second(config: Config, slots: Slots) -> float:
    """Of training steps on random pictures."""
    device = torch.device(slots.devices[0])
    batch = config.training.batch_size
    if device.type == "cpu":
        batch = max(2, min(batch, int(STEP_FLOPS / (3 * _flops(config)))))
    before = torch.get_num_threads()
    torch.set_num_threads(slots.threads)
    try:
        model = MushroomCNN(config.model).to(device)
        optimizer = make_optimizer(model, config.training)
        pictures = torch.randn(batch, 3, config.image_size, config.image_size, device=device)
        pictures = pictures.to(memory_format=torch.channels_last)
        labels = torch.zeros(batch, dtype=torch.int64, device=device)
        seconds: list[float] = []
        for _ in range(4):
            began = time.perf_counter()
            with autocast(device, slots.precision):
                loss = functional.cross_entropy(model(pictures), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
        # The first step also loads kernels and memory.
        return 3 * _flops(config) * batch / float(np.median(seconds[1:]))
    finally:
        torch.set_num_threads(before)
