"""What the scripts that measure speed share: pictures, networks to measure with, the machine's line, medians.

pictures(cache) -> handle and catalog        typical(profile) -> the configuration in the middle of the profile's costs
"""

from __future__ import annotations

import functools
import os
import platform
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import platformdirs
from optuna.trial import FixedTrial
from tuning.identity import SpacePoint

from data import cache, catalog, sources
from data.augment import AugmentConfig
from data.cache import CacheHandle, Part
from data.catalog import Catalog
from data.split import Split, split
from model.network import ModelConfig
from model.training import TrainingConfig
from search_space import PROFILES, Config, Profile, known_good, suggest
from tuning.environment import processor

CACHE = platformdirs.user_cache_path("mushroom-study", appauthor=False)
"""Where `study.py` keeps its pictures, so that nothing is drawn twice."""

FORAGERS_NETWORK = Config(
    image_size=128,
    views=3,
    model=ModelConfig(classes=9),
    augment=AugmentConfig(strength=1.0, reuse_originals=True, fresh=True),
    training=TrainingConfig(
        optimizer="sgd", lr=0.1, schedule="step", step_factor=0.1, step_period=5, epochs=15, batch_size=32
    ),
)
"""The recipe improved by hand, width and all, at half of its 256 pixels."""


def drawn_pictures(
    sizes: Sequence[int], *, count: int | None = None, folder: Path = CACHE
) -> tuple[Catalog, Split, CacheHandle]:
    """The built-in pictures, `count` of them (the quick profile's number by default), decoded at these sizes."""
    limit = count or PROFILES["quick"].pictures
    source = sources.resolve("field-guide", cache_dir=folder, pictures=limit)
    found = catalog.scan(source, cache_dir=folder).limited(limit)
    parts = split(found)
    return found, parts, cache.build(found, parts, sizes, cache_dir=folder)


def some(part: Part, count: int) -> Part:
    """`count` pictures of a part, spread over its classes, which lie one after the other; all where it has fewer."""
    rows = np.linspace(0, len(part.labels) - 1, min(count, len(part.labels))).astype(np.int64)
    return replace(part, indices=part.indices[rows], labels=part.labels[rows])


class Point(SpacePoint):
    """A random point that takes forced numbers as well as choices, and remembers what it drew, to be enqueued."""

    def __init__(self, rng: np.random.Generator, forced: dict[str, Any] | None = None) -> None:
        super().__init__(rng, forced)
        self.params: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._noted(name, super().suggest_categorical(name, choices))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return self._noted(name, super().suggest_int(name, low, high, step=step, log=log))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self._noted(name, super().suggest_float(name, low, high, step=step, log=log))

    def _noted(self, name: str, drawn: Any) -> Any:
        self.params[name] = self._forced.get(name, drawn)
        return self.params[name]


def points(profile: Profile, count: int, *, classes: int = 9, seed: int = 0) -> list[dict[str, Any]]:
    """Parameters of `count` points within the profile's budget: the known-good ones, then random ones."""
    rng = np.random.default_rng(seed)
    drawn = list(known_good(profile).values())
    while len(drawn) < count:
        point = Point(rng)
        if suggest(cast("Any", point), profile, classes).cost.flops <= (profile.max_flops or float("inf")):
            drawn.append(point.params)
    return drawn[:count]


def config_of(params: dict[str, Any], profile: Profile, classes: int = 9) -> Config:
    """The configuration that these parameters make."""
    return suggest(cast("Any", FixedTrial(params)), profile, classes)


def typical(profile: Profile, *, drawn: int = 200) -> Config:
    """Of random points within the profile's budget, the one with the median FLOPs (of equals, the median by digest)."""
    sampled = [config_of(params, profile) for params in points(profile, drawn)[len(known_good(profile)) :]]
    return sorted(sampled, key=lambda config: (config.cost.flops, config.digest))[len(sampled) // 2]


def named(config: Config) -> str:
    """A configuration in a few words."""
    model, training = config.model, config.training
    return (
        f"{config.image_size} px, width {model.width:g}, strides {model.stride_pattern}, dilation "
        f"{model.dilation_pattern}, dropout {model.dropout:g}, {training.optimizer}, augmentation strength "
        f"{config.augment.strength:g}, {config.cost.flops / 1e6:,.1f} MFLOP a picture"
    )


def machine() -> str:
    """Processor, cores and versions, on one line."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "optuna", "numpy", "pillow"))
    busy = f"; load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}{busy}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and the quartiles around it; of fewer than four values the least and the greatest."""
    middle = statistics.median(values)
    if len(values) < 4:
        low, high = min(values), max(values)
    else:
        low, _, high = statistics.quantiles(values, n=4)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


class Clock:
    """Seconds by section, each its own: a section that begins inside another stops the other's clock meanwhile."""

    def __init__(self, base: str, *, whole: Sequence[str] = ()) -> None:
        """`base` is what runs where no section does; what begins within a `whole` section still belongs to it."""
        self.wall: defaultdict[str, float] = defaultdict(float)
        self.cpu: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._whole = set(whole)
        self._stack = [base]
        self._since = (time.perf_counter(), time.process_time())

    def enter(self, name: str) -> None:
        """Begins a section."""
        self._charge()
        self.calls[name] += 1
        self._stack.append(self._stack[-1] if self._stack[-1] in self._whole else name)

    def leave(self) -> None:
        """Ends the section that began last."""
        self._charge()
        self._stack.pop()

    def _charge(self) -> None:
        now = (time.perf_counter(), time.process_time())
        self.wall[self._stack[-1]] += now[0] - self._since[0]
        self.cpu[self._stack[-1]] += now[1] - self._since[1]
        self._since = now

    def time(self, owner: Any, name: str, section: str) -> None:
        """Has every call of `owner`'s function of this name be a section."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            self.enter(section)
            try:
                return function(*args, **options)
            finally:
                self.leave()

        setattr(owner, name, timed)
