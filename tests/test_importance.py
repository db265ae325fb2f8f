"""Importances: Optuna's own numbers, with an uncertainty that separates what matters from chance."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator

from reporting.analysis import trained
from reporting.importance import FEWEST, importances
from tests.stress.made_up_studies import made_up_study, made_up_trials
from tuning.trials import Trial, read_trials

SPACE = {
    "matters": FloatDistribution(1e-4, 1e-1, log=True),
    "noise": FloatDistribution(0.0, 1.0),
    "steps": FloatDistribution(0.0, 0.5, step=0.05),
    "whole": IntDistribution(1, 64, log=True),
    "choice": CategoricalDistribution(["a", "b", "c"]),
    "one": IntDistribution(3, 3),
}


def study_of(count: int, value: Callable[[dict[str, Any]], float], seed: int = 0) -> list[Trial]:
    """Return random points of SPACE with their values; those with the first choice also have `conditional`."""
    rng = np.random.default_rng(seed)
    study = optuna.create_study(direction="maximize")
    for _ in range(count):
        params: dict[str, Any] = {
            "matters": float(10 ** rng.uniform(-4, -1)),
            "noise": float(rng.random()),
            "steps": 0.05 * int(rng.integers(11)),
            "whole": int(2 ** rng.uniform(0, 6)),
            "choice": "abc"[int(rng.integers(3))],
            "one": 3,
        }
        space: dict[str, Any] = dict(SPACE)
        if params["choice"] == "a":
            params["conditional"] = float(rng.uniform(-1, 1))
            space["conditional"] = FloatDistribution(-1.0, 1.0)
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=value(params)))
    return read_trials(study)


def by_optuna(trials: list[Trial]) -> dict[str, float]:
    """Return what Optuna's evaluator gives for trials that are complete with what they reached."""
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        study.add_trial(
            optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=trial.reached)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PedAnovaImportanceEvaluator(target_quantile=max(0.1, 5 / len(trials))).evaluate(study)


@pytest.mark.parametrize("count", [20, 43, 200])
def test_shares_are_those_of_optunas_evaluator(count: int) -> None:
    trials = study_of(count, lambda params: round(-abs(np.log10(params["matters"]) + 2.5), 1))
    found = importances(trials, resamples=2)
    assert found is not None
    expected = by_optuna(trials)
    whole = sum(expected[row.name] for row in found.rows)
    assert {row.name: row.share for row in found.rows} == {
        row.name: pytest.approx(expected[row.name] / whole, abs=1e-9) for row in found.rows
    }


def test_pruned_trials_count_with_what_they_reached() -> None:
    trials = trained(read_trials(made_up_study(made_up_trials(60))))
    found = importances(trials, resamples=2)
    assert found is not None
    assert found.pruned == sum(trial.value is None for trial in trials) > 0
    expected = by_optuna(trials)
    whole = sum(expected[row.name] for row in found.rows)
    assert all(row.share == pytest.approx(expected[row.name] / whole, abs=1e-9) for row in found.rows)


def test_what_matters_stands_out_from_chance_and_comes_first() -> None:
    found = importances(study_of(120, lambda params: -abs(np.log10(params["matters"]) + 2.5)))
    assert found is not None
    first, *others = found.rows
    assert first.name == "matters"
    assert first.tells
    assert first.low > first.chance
    assert sum(row.tells for row in others) <= 2


def test_parameters_without_effect_rarely_stand_out() -> None:
    """One row in twenty stands out by luck: about four in 12 studies of six parameters."""
    told = 0
    for seed in range(12):
        rng = np.random.default_rng([seed, 1])
        found = importances(study_of(60, lambda params, rng=rng: float(rng.random()), seed), resamples=30)
        assert found is not None
        told += sum(row.tells for row in found.rows)
    assert told <= 10


def test_intervals_hold_the_share_and_stay_within_the_whole() -> None:
    found = importances(study_of(40, lambda params: params["noise"]))
    assert found is not None
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    assert all(0 <= row.low <= row.share <= row.high <= 1 for row in found.rows)


def test_few_trials_give_no_importances_and_rare_parameters_are_named() -> None:
    assert importances(study_of(FEWEST - 1, lambda params: params["noise"])) is None
    assert importances([]) is None
    found = importances(study_of(15, lambda params: params["noise"], seed=3))
    assert found is not None
    assert list(found.rare) == ["conditional"]
    assert "conditional" not in {row.name for row in found.rows}
    assert "one" not in {row.name for row in found.rows}
    assert found.best == 5


def test_equal_values_give_equal_shares() -> None:
    found = importances(study_of(30, lambda params: 0.5))
    assert found is not None
    assert {row.share for row in found.rows} == {1 / len(found.rows)}
    assert not any(row.tells for row in found.rows)


def test_the_same_trials_give_the_same_importances() -> None:
    trials = study_of(40, lambda params: params["noise"])
    assert importances(trials, resamples=10) == importances(trials, resamples=10)
