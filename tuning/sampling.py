"""The sampler: Optuna's own, seeded anew for every trial and parameter.

A sampler with one running random state gives every later trial other parameters once a study was killed between two
suggestions. Here each draw depends on (seed, trial number, parameter names) and on the finished trials alone, so that
an interrupted study asks for what an uninterrupted one would have asked for.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

STARTUP_TRIALS = 10
"""Trials before the sampler learns: Optuna's default for TPE, the known-good configurations among them."""


def one_seed(*numbers: int) -> int:
    """A seed, 0 <= seed < 2**32, for what these numbers stand for, the study's own first."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def draw_seed(seed: int, number: int, names: Iterable[str]) -> int:
    """The seed of one draw, from the study's seed, the trial's number and what is drawn."""
    return one_seed(seed, number, zlib.crc32("/".join(names).encode()))


class SeededTPESampler(TPESampler):
    """Multivariate TPE (Bergstra et al. 2011; Falkner et al. 2018) that decomposes a conditional space into groups."""

    def __init__(self, seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # of `group`, which conditional knobs need
            super().__init__(multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS)
        self._seed = seed

    def _sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        # Called once per group; the order of the groups depends on what this process has seen, the draw must not.
        self._rng.rng.seed(draw_seed(self._seed, trial.number, sorted(search_space)))
        return super()._sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draws one parameter that no group knows yet, or any during the start-up trials."""
        seed = draw_seed(self._seed, trial.number, [param_name])
        self._rng.rng.seed(seed)
        self._random_sampler._rng.rng.seed(seed)  # pyright: ignore[reportPrivateUsage]
        return super().sample_independent(study, trial, param_name, param_distribution)


class SeededRandomSampler(RandomSampler):
    """Independent uniform draws: the baseline that every other sampler must beat."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draws one parameter."""
        self._rng.rng.seed(draw_seed(self._seed, trial.number, [param_name]))
        return super().sample_independent(study, trial, param_name, param_distribution)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {"tpe": SeededTPESampler, "random": SeededRandomSampler}
"""What `--sampler` may name."""
