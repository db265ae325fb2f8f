"""Samplers: Optuna's own, reseeded for every trial and parameter.

With a single random state, a study that is killed between two suggestions would sample different parameters in all
later trials. Here each draw depends only on (seed, trial number, parameter names) and on the other trials, so that an
interrupted study samples the same parameters as an undisturbed one.
"""

from __future__ import annotations

import copy
import warnings
import zlib
from collections.abc import Callable, Container, Iterable
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tuning.trials import Trial

STARTUP_TRIALS = 10
"""Number of trials before the sampler begins to learn, including the baselines: Optuna's default for TPE."""


def one_seed(*numbers: int) -> int:
    """Return a seed, 0 <= seed < 2**32, derived from these numbers; the first one is the study's seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def draw_seed(seed: int, number: int, names: Iterable[str]) -> int:
    """Return the seed of one draw, derived from the study's seed, the trial's number and the parameters' names."""
    return one_seed(seed, number, zlib.crc32("/".join(names).encode()))


class SeededTPESampler(TPESampler):
    """Multivariate TPE (Bergstra et al. 2011; Falkner et al. 2018) that divides a conditional space into groups.

    Paused trials count as pruned where they are: Optuna would take them for running ones and only avoid them.
    """

    def __init__(self, seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # about `group`, which conditional knobs need
            super().__init__(multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS)
        self._seed = seed

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that finished and paused trials have in common, by group."""
        return super().infer_relative_search_space(_paused_as_pruned(study), trial)

    def _sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        # Called once per group. The order of groups depends on which trials this process has seen; the draw must not.
        self._rng.rng.seed(draw_seed(self._seed, trial.number, sorted(search_space)))
        return super()._sample_relative(_paused_as_pruned(study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter that is not in a group yet, or any parameter during the start-up trials."""
        seed = draw_seed(self._seed, trial.number, [param_name])
        self._rng.rng.seed(seed)
        self._random_sampler._rng.rng.seed(seed)  # pyright: ignore[reportPrivateUsage]
        return super().sample_independent(_paused_as_pruned(study), trial, param_name, param_distribution)


def _paused_as_pruned(study: Study) -> Study:
    """Return a view of a study in which paused trials are pruned."""
    view = copy.copy(study)
    get_trials = study._get_trials  # pyright: ignore[reportPrivateUsage]

    def seen(
        deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        found: list[FrozenTrial] = []
        for trial in get_trials(deepcopy=deepcopy, use_cache=use_cache):
            if Trial(trial).is_paused:
                trial = copy.copy(trial)
                trial.state = TrialState.PRUNED
            if states is None or trial.state in states:
                found.append(trial)
        return found

    view._get_trials = seen  # pyright: ignore[reportPrivateUsage]
    return view


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
