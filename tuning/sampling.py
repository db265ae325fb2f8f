"""Samplers: Optuna's own, reseeded for every trial and parameter.

With a single random state, a study that is killed between two suggestions would sample different parameters in all
later trials. Here each draw depends only on (seed, trial number, parameter names) and on the other trials, so that an
interrupted study samples the same parameters as an undisturbed one.
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
"""Number of trials before the sampler begins to learn, including the baselines: Optuna's default for TPE."""


def one_seed(*numbers: int) -> int:
    """Return a seed, 0 <= seed < 2**32, derived from these numbers; the first one is the study's seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def draw_seed(seed: int, number: int, names: Iterable[str]) -> int:
    """Return the seed of one draw, derived from the study's seed, the trial's number and the parameters' names."""
    return one_seed(seed, number, zlib.crc32("/".join(names).encode()))


class SeededTPESampler(TPESampler):
    """Multivariate TPE (Bergstra et al. 2011; Falkner et al. 2018) that divides a conditional space into groups."""

    def __init__(self, seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # about `group`, which conditional knobs need
            super().__init__(multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS)
        self._seed = seed

    def _sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        # Called once per group. The order of groups depends on which trials this process has seen; the draw must not.
        self._rng.rng.seed(draw_seed(self._seed, trial.number, sorted(search_space)))
        return super()._sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter that is not in a group yet, or any parameter during the start-up trials."""
        seed = draw_seed(self._seed, trial.number, [param_name])
        self._rng.rng.seed(seed)
        self._random_sampler._rng.rng.seed(seed)  # pyright: ignore[reportPrivateUsage]
        return super().sample_independent(study, trial, param_name, param_distribution)


class SeededRandomSampler(RandomSampler):
    """Random search: independent uniform draws, which every other sampler must beat."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample one parameter."""
        self._rng.rng.seed(draw_seed(self._seed, trial.number, [param_name]))
        return super().sample_independent(study, trial, param_name, param_distribution)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {"tpe": SeededTPESampler, "random": SeededRandomSampler}
"""Samplers by their name in `--sampler`, each made from the seed."""
