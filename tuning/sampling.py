"""Samplers: Optuna's own, reseeded for every trial, that propose only what the budgets allow.

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

from tuning.space import FeasibleSpace, SpacePoint
from tuning.trials import Trial, top

LEARNED_FROM = (TrialState.COMPLETE, TrialState.PRUNED)
"""States of the trials from which a sampler learns."""
STARTUP_TRIALS = 10
"""Number of trials before the sampler begins to learn, including the baselines: Optuna's default for TPE."""


def one_seed(*numbers: int) -> int:
    """Return a seed, 0 <= seed < 2**32, derived from these numbers; the first one is the study's seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


BEST, LATEST = 25, 500
"""TPE learns from the best trials, of which it takes at most 25 for good, and from the latest others, ended and running
ones apart. It would give older ones the least weight, and take a second for a proposal when there are thousands."""
PROPOSALS = 50
"""Number of infeasible proposals of TPE in a row after which a trial gets a random point."""


def draw_seed(seed: int, number: int, names: Iterable[str], attempt: int = 0) -> int:
    """Return the seed of one draw, from the study's seed, the trial's number, the parameters' names and the attempt."""
    return one_seed(seed, number, zlib.crc32("/".join(names).encode()), attempt)


class FeasibleRandomSampler(RandomSampler):
    """Random search, which every other sampler must beat: whole points of the space, drawn until one is feasible."""

    def __init__(self, seed: int, space: FeasibleSpace) -> None:
        super().__init__()
        self._seed = seed
        self._space = space

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters of the trial's point."""
        point = _random_point(self._space, self._seed, trial)
        return point.distributions if point else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the trial's point."""
        point = _random_point(self._space, self._seed, trial)
        return point.params if point else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter of a trial for which no feasible point was found."""
        self._rng.rng.seed(draw_seed(self._seed, trial.number, [param_name]))
        return super().sample_independent(study, trial, param_name, param_distribution)


class FeasibleTPESampler(TPESampler):
    """Multivariate TPE (Bergstra et al. 2011; Falkner et al. 2018) that divides a conditional space into groups.

    Infeasible proposals are drawn again. Paused trials count as pruned where they are: Optuna would take them for
    running ones and only avoid them.
    """

    def __init__(self, seed: int, space: FeasibleSpace) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # about `group`, which conditional knobs need
            super().__init__(multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS)
        self._seed = seed
        self._space = space
        self._attempt = 0
        self._seen: tuple[Study, int, Study] | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that finished and paused trials have in common, by group, or those of a random point.

        As long as there are fewer than STARTUP_TRIALS such trials, points are random.
        """
        trials = _as_now(study)
        self._seen = (study, trial.number, _view(study, _telling(trials)))
        ended = [one for one in trials if one.state in LEARNED_FROM]
        if len(ended) >= STARTUP_TRIALS:
            # Groups follow from which parameters occur together: of thousands of trials, one of each kind tells it.
            kinds = {tuple(one.distributions): one for one in ended}
            return super().infer_relative_search_space(_view(study, kinds.values()), trial)
        point = _random_point(self._space, self._seed, trial)
        return point.distributions if point else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return TPE's first feasible proposal of PROPOSALS, or else a random point."""
        seen = self._view_for(study, trial)
        learned = len(seen.get_trials(deepcopy=False, states=LEARNED_FROM)) >= STARTUP_TRIALS
        for self._attempt in range(PROPOSALS if learned else 0):
            proposed = super().sample_relative(seen, trial, search_space)
            # Parameters that no group has yet, such as those of an optimizer that was never chosen, are random.
            seed = draw_seed(self._seed, trial.number, [], self._attempt)
            if self._space.point(seed, proposed | _fixed(trial), attempts=1):
                return proposed
        point = _random_point(self._space, self._seed, trial)
        return {name: value for name, value in point.params.items() if name in search_space} if point else {}

    def _view_for(self, study: Study, trial: FrozenTrial) -> Study:
        """Return the view of the study that a trial's parameters follow from, as it was when its sampling began."""
        if self._seen is None or self._seen[:2] != (study, trial.number):
            self._seen = (study, trial.number, _view(study, _telling(_as_now(study))))
        return self._seen[2]

    def _sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        # Called once per group. The order of groups depends on which trials this process has seen; the draw must not.
        self._rng.rng.seed(draw_seed(self._seed, trial.number, sorted(search_space), self._attempt))
        return super()._sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter that is not in a group yet."""
        seed = draw_seed(self._seed, trial.number, [param_name])
        self._rng.rng.seed(seed)
        self._random_sampler._rng.rng.seed(seed)  # pyright: ignore[reportPrivateUsage]
        seen = self._view_for(study, trial)
        return super().sample_independent(seen, trial, param_name, param_distribution)


def _random_point(space: FeasibleSpace, seed: int, trial: FrozenTrial) -> SpacePoint | None:
    """Return a trial's random point, which has the parameters with which it was enqueued; None if none is feasible."""
    return space.point(draw_seed(seed, trial.number, []), _fixed(trial))


def _fixed(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters with which a trial was enqueued."""
    return trial.system_attrs.get("fixed_params", {})


def _as_now(study: Study) -> list[FrozenTrial]:
    """Return the trials of a study as they are now, the paused ones as pruned."""
    trials: list[FrozenTrial] = []
    for trial in study._get_trials(deepcopy=False):  # pyright: ignore[reportPrivateUsage]
        if trial.state is TrialState.RUNNING:
            is_paused, trial = Trial(trial).is_paused, copy.copy(trial)
            if is_paused:
                trial.state = TrialState.PRUNED
            elif trial.params:  # TPE would read from its attributes, again and again, what was proposed for it
                trial.system_attrs = {}
        trials.append(trial)
    return trials


def _telling(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the BEST trials, and the LATEST others of the ended and of the running ones."""
    running, ended = ([trial for trial in trials if trial.state.is_finished() is over] for over in (False, True))
    best = [one.number for one in top(map(Trial, ended), BEST)]
    chosen = {*best, *(trial.number for trial in running[-LATEST:] + ended[-LATEST:])}
    return [trial for trial in trials if trial.number in chosen]


def _view(study: Study, trials: Iterable[FrozenTrial]) -> Study:
    """Return a view of a study that has these trials."""
    trials = list(trials)

    def get_trials(
        deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in trials if states is None or trial.state in states]

    view = copy.copy(study)
    view._get_trials = get_trials  # pyright: ignore[reportPrivateUsage]
    return view


SAMPLERS: dict[str, Callable[[int, FeasibleSpace], BaseSampler]] = {
    "tpe": FeasibleTPESampler,
    "random": FeasibleRandomSampler,
}
"""Samplers by their name in `--sampler`, each made from the seed and the space."""
