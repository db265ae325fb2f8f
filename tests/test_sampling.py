"""The sampler: what it draws depends on (seed, trial number) and the finished trials, and on no process's life."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler
from studies import TINY

from search_space import suggest
from tuning import storage
from tuning.folder import sqlite_url
from tuning.sampling import SAMPLERS, STARTUP_TRIALS, draw_seed

draw = partial(suggest, profile=TINY, classes=3)
LATER = 3
"""Trials after the start-up ones, where TPE has learned."""


class Killed(Exception):  # noqa: N818 - stands for a SIGKILL
    pass


class Dying:
    """A trial whose process ends after so many suggestions."""

    def __init__(self, trial: optuna.Trial, suggestions: int) -> None:
        self._trial, self._left = trial, suggestions

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._trial, name)
        if not name.startswith("suggest_"):
            return method

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._left == 0:
                raise Killed
            self._left -= 1
            return method(*args, **kwargs)

        return counted


def opened(folder: Path, sampler: BaseSampler) -> optuna.Study:
    """As a new process opens it."""
    study = storage.open_study(
        sqlite_url(folder), "s", sampler=sampler, pruner=NopPruner(), identity={}, first_trials={}
    )
    study.get_trials()
    return study


def value(number: int) -> float:
    return (number * 37 % 11) / 11


def tell(study: optuna.Study, trial: optuna.Trial) -> None:
    """Made-up values; each third trial is pruned, each seventh infeasible."""
    number = trial.number
    if number % 7 == 6:
        trial.set_constraint("flops", 0.5)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    elif number % 3 == 2:
        trial.report(value(number), 0)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    else:
        study.tell(trial, value(number))


def undisturbed(sampler: BaseSampler, trials: int) -> list[dict[str, Any]]:
    """The parameters of a study that one process runs, in its memory."""
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for _ in range(trials):
        trial = study.ask()
        draw(trial)
        tell(study, trial)
    return [trial.params for trial in study.get_trials()]


@pytest.mark.parametrize("name", SAMPLERS)
def test_killed_between_any_two_suggestions_it_draws_the_same(tmp_path: Path, name: str) -> None:
    """Every trial is begun, killed after some suggestions and gone on with by new objects for everything."""
    make: Callable[[], BaseSampler] = partial(SAMPLERS[name], 3)
    trials = STARTUP_TRIALS + LATER
    whole = undisturbed(make(), trials)

    for number in range(trials):
        trial = opened(tmp_path, make()).ask()
        with pytest.raises(Killed):
            draw(Dying(trial, 5 * number % 14))  # 5 and 14 have no common divisor: every place from 0 to 12
        study = opened(tmp_path, make())
        trial = optuna.Trial(study, trial._trial_id)
        draw(trial)
        tell(study, trial)
    assert [trial.params for trial in opened(tmp_path, make()).get_trials()] == whole


@pytest.mark.parametrize("name", SAMPLERS)
def test_another_seed_draws_others_and_the_same_seed_the_same(name: str) -> None:
    trials = STARTUP_TRIALS + LATER
    one, again, other = (undisturbed(SAMPLERS[name](seed), trials) for seed in (5, 5, 6))
    assert one == again
    assert all(mine != theirs for mine, theirs in zip(one, other, strict=True))
    assert len({str(parameters) for parameters in one}) == trials


def test_the_seed_of_a_draw_is_of_study_trial_and_names() -> None:
    base = draw_seed(0, 1, ["lr"])
    assert base == draw_seed(0, 1, ["lr"])
    assert 0 <= base < 2**32
    assert len({base, draw_seed(1, 1, ["lr"]), draw_seed(0, 2, ["lr"]), draw_seed(0, 1, ["lr", "width"])}) == 4
