"""Parameter importances: Optuna's PED-ANOVA, with intervals and the level that chance alone would reach.

trials -> `PedAnovaImportanceEvaluator` -> shares; repeated over bootstrap resamples of the trials for the intervals,
and over shuffled values for the chance level
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from model.metrics import Z95
from reporting.analysis import parameters, trained
from tuning.trials import Trial

FEWEST = 10
"""Smallest number of trained trials to judge importances at all, and to judge the importance of one parameter."""
FEWEST_BEST = 5
"""Smallest number of trials above the quantile that PED-ANOVA needs, according to the documentation of Optuna."""
QUANTILE = 0.1
"""Share of the trials that count as the best: Optuna's default, above FEWEST_BEST from 50 trials on."""
RESAMPLES = 50
"""Number of bootstrap resamples, and of shuffles. One of 1,000 trials takes a tenth of a second."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Importance of one parameter for being among the best trials."""

    name: str
    share: float
    """Importance as a share of the sum over all parameters, 0 to 1."""
    low: float
    high: float
    """95 % interval of the share: 1.96 standard deviations over bootstrap resamples of the trials."""
    chance: float
    """Chance level: 95 % of studies with shuffled values stay below it; in the same unit as `share`."""

    @property
    def tells(self) -> bool:
        """Whether the parameter stands out from chance."""
        return self.share > self.chance


@dataclass(frozen=True, kw_only=True)
class Importances:
    """Importances of all parameters: first those that stand out from chance, then the others, largest first."""

    rows: tuple[Importance, ...]
    trials: int
    """Number of trained trials that the importances are computed from."""
    best: int
    """Number of trials above the quantile, which count as the best."""
    pruned: int
    """Number of trials that were not trained to their last epoch and count with the best value they had reached."""
    rare: dict[str, int]
    """Parameters that fewer than FEWEST trials have, with their number of trials."""


class StudyOf(optuna.Study):
    """An in-memory study with the given trials, for Optuna's evaluators and plots."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        storage = InMemoryStorage()
        storage.create_new_study([StudyDirection.MAXIMIZE], "given")
        super().__init__("given", storage)
        self._trials = list(trials)

    def get_trials(self, deepcopy: bool = True, states: Sequence[TrialState] | None = None) -> list[FrozenTrial]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the given trials, or those of some states."""
        return [trial for trial in self._trials if states is None or trial.state in states]


def importances(trials: Sequence[Trial], *, resamples: int = RESAMPLES, seed: int = 0) -> Importances | None:
    """Return how much each parameter matters for being in the best tenth, or the best five of fewer than 50 trials.

    Pruned trials count with what they reached: without them, the bad half of the space would be missing. Returns None
    if there are too few trained trials, or if no parameter varies in enough of them.
    """
    chosen = trained(trials)
    space = parameters(chosen)
    used = Counter(name for trial in chosen for name in trial.distributions)
    names = [name for name in space if used[name] >= FEWEST]
    if len(chosen) < FEWEST or not names:
        return None
    values = np.array([trial.reached for trial in chosen], dtype=np.float64)
    quantile = max(QUANTILE, FEWEST_BEST / len(chosen))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)

    # Equal distributions become one object: the evaluator compares them a million times, and identity is quick.
    kinds: dict[BaseDistribution, BaseDistribution] = {}
    complete = [_complete(place, trial, kinds) for place, trial in enumerate(chosen)]

    def divergences(places: npt.NDArray[np.int64], reached: Floats) -> Floats:
        """Return each parameter's importance in the trials at `places`, where trial n has reached `reached[n]`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # regimes of one trial, equal values, and that targets are minimised
            study = StudyOf([complete[place] for place in places])
            found = evaluator.evaluate(study, target=lambda trial: -float(reached[trial.number]))
        return np.array([found.get(name, 0.0) for name in names])

    rng, everyone = np.random.default_rng(seed), np.arange(len(chosen))
    point = divergences(everyone, values)
    draws = [rng.integers(len(chosen), size=len(chosen)) for _ in range(resamples)]
    again = np.array([_shares(divergences(places, values)) for places in draws])
    shuffled = np.array([divergences(everyone, rng.permutation(values)) for _ in range(resamples)])
    spread = Z95 * again.std(axis=0, ddof=1)
    chance = np.quantile(shuffled, 0.95, axis=0) / point.sum() if point.sum() > 0 else np.ones(len(names))
    rows = [
        Importance(
            name=name,
            share=float(share),
            low=max(0.0, float(share - half)),
            high=min(1.0, float(share + half)),
            chance=float(level),
        )
        for name, share, half, level in zip(names, _shares(point), spread, chance, strict=True)
    ]
    cutoff = np.sort(values)[-int(np.ceil(quantile * len(values)))]
    return Importances(
        rows=tuple(sorted(rows, key=lambda row: (not row.tells, -row.share))),
        trials=len(chosen),
        best=int((values >= cutoff).sum()),
        pruned=sum(trial.value is None for trial in chosen),
        rare={name: used[name] for name in space if used[name] < FEWEST},
    )


def _complete(number: int, trial: Trial, kinds: dict[BaseDistribution, BaseDistribution]) -> FrozenTrial:
    """Return the trial as a complete one, because the evaluator accepts no others."""
    distributions = {name: kinds.setdefault(kind, kind) for name, kind in trial.distributions.items()}
    made = create_trial(params=trial.params, distributions=distributions, value=trial.reached)
    made.number = made._trial_id = number  # pyright: ignore[reportPrivateUsage]
    return made


def _shares(divergences: Floats) -> Floats:
    """Return shares of the sum, equal ones if the sum is 0, as it is if all trials are equally good."""
    whole = divergences.sum()
    return divergences / whole if whole > 0 else np.full(len(divergences), 1 / len(divergences))
