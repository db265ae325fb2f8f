"""Which parameters decide who is among the best: PED-ANOVA with its uncertainty, in a fraction of a second.

trials -> each parameter's values on a grid of at most 50 -> densities of the best and of all -> their Pearson
divergence -> shares; then the same over bootstrap resamples, for intervals, and over shuffled values, for what chance
alone gives. The divergence is that of Optuna's `PedAnovaImportanceEvaluator`, conditional parameters included, which
takes seconds for 200 resamples; here a resample costs a few bincounts. A test holds the two equal.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from model.metrics import Z95
from reporting.analysis import parameters, reached, trained

FEWEST = 10
"""Trained trials below which no importance is told, of a study or of one of its parameters."""
FEWEST_BEST = 5
"""Trials above the quantile that PED-ANOVA needs at least, by the documentation of Optuna's evaluator."""
QUANTILE = 0.1
"""Optuna's own; it leaves fewer than FEWEST_BEST of fewer than 50 trials."""
GRID = 50
RESAMPLES = 200

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_STEPS = np.linspace(-9.0, 9.0, 18001)
_CDF = np.array([0.5 * math.erfc(-step / math.sqrt(2.0)) for step in _STEPS])
"""The normal distribution function in steps of 0.001: between them a straight line is off by 3e-8 at most."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """One parameter's part in reaching the best trials."""

    name: str
    share: float
    """Of the sum over all parameters."""
    low: float
    high: float
    """The share's 95 % interval: 1.96 standard deviations over bootstrap resamples of the trials."""
    chance: float
    """What 95 % of studies with shuffled values stay below, in the same measure as `share`."""
    used: int
    """Trials that have the parameter."""

    @property
    def tells(self) -> bool:
        """Whether the parameter can be told from chance."""
        return self.share > self.chance


@dataclass(frozen=True, kw_only=True)
class Importances:
    """All parameters' importances: those that are told from chance come first, and the largest of each."""

    rows: tuple[Importance, ...]
    trials: int
    """Trials that they are computed from."""
    best: int
    """Trials above the quantile: what a parameter is important for is to be among them."""
    pruned: int
    """Trials that count with what they had reached when they were pruned."""
    rare: dict[str, int]
    """Parameters that too few trials have, with how many do."""


def importances(trials: Sequence[FrozenTrial], *, resamples: int = RESAMPLES, seed: int = 0) -> Importances | None:
    """How much each parameter decides who is among the best tenth, or the best five of fewer than fifty trials.

    Pruned trials count with what they reached: without them the bad half of the space would be missing.
    Returns None where there are too few trained trials, or no parameter that enough of them have.
    """
    chosen = trained(trials)
    space = parameters(chosen)
    used = Counter(name for trial in chosen for name in trial.distributions)
    names = [name for name in space if used[name] >= FEWEST]
    if len(chosen) < FEWEST or not names:
        return None
    values = np.array([reached(trial) for trial in chosen], dtype=np.float64)
    grids = [_grids(name, chosen) for name in names]
    ones = np.ones(len(chosen), dtype=np.int64)
    rng = np.random.default_rng(seed)
    point = _divergences(grids, values, ones)
    again = np.array([_divergences(grids, values, _resample(rng, len(ones))) for _ in range(resamples)])
    shuffled = np.array([_divergences(grids, rng.permutation(values), ones) for _ in range(resamples)])
    spread = Z95 * _shares(again).std(axis=0, ddof=1)
    chance = np.quantile(shuffled, 0.95, axis=0) / point.sum() if point.sum() > 0 else np.ones(len(names))
    rows = [
        Importance(
            name=name,
            share=float(share),
            low=max(0.0, float(share - half)),
            high=min(1.0, float(share + half)),
            chance=float(level),
            used=used[name],
        )
        for name, share, half, level in zip(names, _shares(point), spread, chance, strict=True)
    ]
    return Importances(
        rows=tuple(sorted(rows, key=lambda row: (not row.tells, -row.share))),
        trials=len(chosen),
        best=int(_best(values, ones).sum()),
        pruned=sum(trial.state is not TrialState.COMPLETE for trial in chosen),
        rare={name: used[name] for name in space if used[name] < FEWEST},
    )


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """One parameter under one distribution: a regime of condPED-ANOVA (https://arxiv.org/abs/2601.20800)."""

    places: Ints
    """Of the trials that have the parameter so."""
    cells: Ints
    """Theirs, in the same order."""
    size: int
    ordered: bool
    """Whether cells are places on a scale, or choices."""


def _grids(name: str, trials: Sequence[FrozenTrial]) -> list[_Grid]:
    """The regimes of a parameter, but for that of not having it."""
    regimes: dict[BaseDistribution, list[int]] = {}
    for place, trial in enumerate(trials):
        if name in trial.distributions:
            regimes.setdefault(trial.distributions[name], []).append(place)
    found: list[_Grid] = []
    for distribution, places in regimes.items():
        if distribution.single():
            continue
        cells, size = _cells(distribution, [trials[place].params[name] for place in places])
        ordered = not isinstance(distribution, CategoricalDistribution)
        found.append(_Grid(places=np.array(places), cells=cells, size=size, ordered=ordered))
    return found


def _cells(distribution: Any, values: list[Any]) -> tuple[Ints, int]:
    """Where values fall on the grid that Optuna lays over a distribution, and its size."""
    if isinstance(distribution, CategoricalDistribution):
        indices = [int(distribution.to_internal_repr(value)) for value in values]
        return np.array(indices, dtype=np.int64), len(distribution.choices)
    low, high, size = float(distribution.low), float(distribution.high), GRID
    if isinstance(distribution, IntDistribution) and distribution.log:
        size = min(math.ceil(math.log2(high - low + 1)) + 1, GRID)
    elif distribution.step is not None:
        size = min(round((high - low) / distribution.step) + 1, GRID)
    numbers = np.array(values, dtype=np.float64)
    if distribution.log:
        low, high, numbers = math.log(low), math.log(high), np.log(numbers)
    cells = np.ceil((numbers - low) / ((high - low) / (size - 1)) - 0.5).astype(np.int64)
    return np.clip(cells, 0, size - 1), size


def _best(values: Floats, counts: Ints) -> npt.NDArray[np.bool_]:
    """The trials at or above the quantile, of trials that each come `counts` times."""
    whole = int(counts.sum())
    wanted = math.ceil(max(QUANTILE, FEWEST_BEST / whole) * whole)
    order = np.argsort(-values, kind="stable")
    last = int(np.searchsorted(np.cumsum(counts[order]), wanted))
    return (values >= values[order[last]]) & (counts > 0)


def _resample(rng: np.random.Generator, trials: int) -> Ints:
    """How often each trial is drawn when as many are drawn with replacement."""
    return np.bincount(rng.integers(trials, size=trials), minlength=trials)


def _divergences(grids: list[list[_Grid]], values: Floats, counts: Ints) -> Floats:
    """Each parameter's importance, of trials that each come `counts` times; PED-ANOVA's but for a common factor."""
    best = _best(values, counts) * counts
    return np.array([sum(_divergence(grid, best, counts) for grid in regimes) for regimes in grids])


def _shares(divergences: Floats) -> Floats:
    """Of the sum along the last axis; equal ones where that is 0, as when all trials are equally good."""
    whole = divergences.sum(axis=-1, keepdims=True)
    equal = np.full_like(divergences, 1 / divergences.shape[-1])
    return np.divide(divergences, whole, out=equal, where=whole > 0)


def _divergence(grid: _Grid, best: Ints, counts: Ints) -> float:
    """Pearson's divergence of the best trials' density from all trials', weighed by how many are in this regime."""
    of_all = np.bincount(grid.cells, weights=counts[grid.places], minlength=grid.size).astype(np.float64)
    of_best = np.bincount(grid.cells, weights=best[grid.places], minlength=grid.size).astype(np.float64)
    if of_all.sum() < 2 or not of_best.sum():
        return 0.0
    density = _ordered if grid.ordered else _unordered
    top, region = density(of_best) + 1e-12, density(of_all) + 1e-12
    among_best, among_all = of_best.sum() / best.sum(), of_all.sum() / counts.sum()
    return float(among_best**2 / among_all * (region @ (top / region - 1) ** 2))


def _unordered(counts: Floats) -> Floats:
    """The density of choices: a kernel at each that occurs, and a flat one for none in particular."""
    kernels = np.count_nonzero(counts) + 1
    smoothing = 1 / kernels
    at_home, elsewhere = np.array([1 + smoothing, smoothing]) / (1 + smoothing * len(counts))
    mixed = counts * at_home + (counts.sum() - counts) * elsewhere + 1 / len(counts)
    return mixed / (counts.sum() + 1)


def _ordered(counts: Floats) -> Floats:
    """The density on a scale: normal kernels of Scott's width (1992), cut at the ends, and a wide one over all."""
    size = len(counts)
    centres = np.flatnonzero(counts).astype(np.float64)
    weights = counts[counts > 0]
    whole, running = weights.sum(), np.cumsum(weights)
    mean = centres @ weights / whole
    deviation = math.sqrt((centres - mean) ** 2 @ weights / max(1.0, whole - 1))
    first = int(np.searchsorted(running, whole // 4, side="left"))
    third = min(len(centres) - 1, int(np.searchsorted(running, whole * 3 // 4, side="right")))
    width = 1.059 * min((centres[third] - centres[first]) / 1.34, deviation) * whole**-0.2
    # 90 % of the narrowest kernel is in its own cell.
    widths = np.append(np.full(len(centres), max(width, 0.5 / 1.64)), float(size))
    centres = np.append(centres, (size - 1) / 2)
    edges = np.arange(size + 1) - 0.5
    below = np.interp((edges[:, None] - centres) / widths, _STEPS, _CDF)
    mass = np.diff(below, axis=0) / (below[-1] - below[0])
    return mass @ np.append(weights, 1.0) / (whole + 1)
