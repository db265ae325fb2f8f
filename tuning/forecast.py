"""The forecast of a study, before it starts: how it would use the pictures, and its duration on this machine.

The duration is based on the study's own trials if enough of them were trained in an equivalent slot; otherwise on the
FLOPs of random points and a few timed training steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from data.prepare import Pictures
from model.network import Cost, MushroomCNN
from model.training import autocast, make_optimizer
from search_space import PROFILES, Config
from tuning.devices import Slot
from tuning.environment import environment
from tuning.space import random_points
from tuning.trials import Trial

POINTS = 24
"""Number of random points whose mean cost represents that of a trial."""
TIMED = 3
"""Number of points whose training steps are timed."""
STEP_FLOPS = 2e10
"""Largest number of FLOPs in a timed step on a CPU: about half a second on one core."""
STEPS_SHARE = 0.84
"""Share of a trial's time that its training steps take; the rest is evaluation, augmentation and set-up
(benchmarks/README.md, "Where a trial's time goes")."""


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """How a study with a profile would use a data set."""

    profile: str
    """Name of the profile."""
    train: int
    """Number of training pictures."""
    epochs: int
    """Epochs of a trial that is not pruned."""
    sizes: tuple[int, ...]
    """Image sizes in pixels."""


ENOUGH = 6
"""Number of trials whose mean duration predicts the others: more than the three baselines, which are not typical."""


def prospects(pictures: Pictures) -> list[Prospect]:
    """Return how a study with each profile, and no other option, would use a data set."""
    short_side, train = pictures.catalog.median_short_side, len(pictures.split.train)
    fitted = [profile.fitted(short_side, train) for profile in PROFILES.values()]
    return [Prospect(profile=one.name, train=train, epochs=one.horizon, sizes=one.sizes) for one in fitted]


def seconds_so_far(trials: Sequence[Trial], slot: Slot) -> float | None:
    """Return the mean seconds of the trials that were trained in an equivalent slot; None if there are too few.

    While trials are paused it is None, because only the promoted ones have ended, which took much longer than others.
    """
    if any(trial.is_paused for trial in trials):
        return None
    here = environment(slot)
    took = [
        trial.result.seconds
        for trial in trials
        if trial.result
        and all(trial.environment.get(fact) == here[fact] for fact in ("device", "threads", "precision"))
    ]
    return float(np.mean(took)) if len(took) >= ENOUGH else None


def seconds_per_trial(
    suggest: Callable[[Any], Config],
    *,
    feasible: Callable[[Cost], bool],
    pictures: int,
    trained_share: float,
    slots: Sequence[Slot],
) -> float:
    """Return the expected seconds of one trial in one slot while all slots are busy.

    Args: `feasible`: whether a network is within the budgets; `pictures`: number of training pictures; `trained_share`:
    expected share of a trial's epochs that is trained.
    """
    drawn = sorted(random_points(suggest, POINTS), key=lambda config: config.cost.flops)
    points = [config for config in drawn if feasible(config.cost)] or drawn[:1]
    # A backward pass costs twice a forward one (Kaplan et al. 2020, section 2.1).
    work = np.array([3 * one.cost.flops * pictures * one.views * one.training.epochs for one in points])
    whole = 0.0
    for some in np.array_split(np.arange(len(points)), min(TIMED, len(points))):
        # Small networks reach fewer FLOPs per second, so each point is timed by one of its own size.
        whole += work[some].sum() / _flops_per_second(points[some[len(some) // 2]], slots)
    return whole / len(points) / STEPS_SHARE * trained_share


def _flops_per_second(config: Config, slots: Sequence[Slot]) -> float:
    """Return the FLOPs per second of training steps on random pictures in one slot.

    On a CPU all slots are timed at once, because they slow each other down. On a GPU the batch is halved until it fits
    into the memory that other programs leave free.
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
            torch.cuda.empty_cache()  # the workers have their own caches
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
