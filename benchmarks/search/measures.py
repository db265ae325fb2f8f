"""What a replay measures: epochs to a target, regret at a budget, ranks, each with a bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.search.machine import Chosen, Machine
from benchmarks.search.tables import Pool, Row

TOP = 0.05
"""Share of the drawn rows that are the target."""
RESAMPLES = 1000
"""Number of bootstrap samples behind an interval."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of one policy: which row it would have delivered when."""

    pool: Pool
    choices: Sequence[Chosen]
    budget: float
    unspent: float
    ran_dry: bool

    @classmethod
    def of(cls, machine: Machine) -> Run:
        """Return what a machine has recorded."""
        return cls(
            pool=machine.pool,
            choices=machine.choices,
            budget=machine.budget,
            unspent=machine.unspent,
            ran_dry=machine.pool.is_dry,
        )

    def chosen(self, budget: float) -> Row:
        """Return the row that would be delivered after a budget, in horizons."""
        return [it for it in self.choices if it.clock <= budget + 1e-9][-1].row

    def reached(self, worth: float) -> float | None:
        """Return the horizons until a fully trained row of this worth or more was delivered; None if there was none."""
        return next((it.clock for it in self.choices if it.finished and it.row.worth >= worth), None)

    def regret(self, budget: float) -> float:
        """Return how much better the best row is than the delivered one, in validation top-1."""
        return max(row.worth for row in self.pool.choice) - self.chosen(budget).worth

    def test_regret(self, budget: float) -> float:
        """Return how much better the best row is than the delivered one, in test top-1."""
        return max(row.test for row in self.pool.choice) - self.chosen(budget).test


def target(pool: Pool) -> float:
    """Return the worth that the best share of the drawn rows reach."""
    worths = sorted((row.worth for row in pool.drawn), reverse=True)
    return worths[max(1, round(TOP * len(worths))) - 1]


def ranks(worths: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the place of each value, 1 for the largest; equal values share the mean of their places."""
    values = np.array(worths)
    better = (values[None, :] > values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1)
    return better + (equal + 1) / 2


def mean_interval(groups: Sequence[Sequence[float] | NDArray[np.float64]]) -> tuple[float, float, float]:
    """Return the mean over groups of values and its 95 % interval, by resampling the groups and the values in each."""
    rng = np.random.default_rng(0)
    arrays = [np.array(group) for group in groups]
    total = np.zeros(RESAMPLES)
    for _ in arrays:
        resampled = np.stack([rng.choice(values, (RESAMPLES, len(values))).mean(axis=1) for values in arrays])
        total += resampled[rng.integers(len(arrays), size=RESAMPLES), np.arange(RESAMPLES)]
    low, high = np.percentile(total / len(arrays), [2.5, 97.5])
    return float(np.mean([array.mean() for array in arrays])), float(low), float(high)


def shown(groups: Sequence[Sequence[float] | NDArray[np.float64]], digits: int = 2) -> str:
    """Return a mean and its interval as text."""
    mean, low, high = mean_interval(groups)
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
