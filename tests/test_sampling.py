"""Samplers: a draw depends on the seed, the trial's number and the other trials, never on when a process was killed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
from studies import TINY

from search_space import suggest
from tuning import sampling
from tuning.database import connect, open_study
from tuning.folder import sqlite_url
from tuning.sampling import PROPOSALS, SAMPLERS, STARTUP_TRIALS, draw_seed
from tuning.space import FeasibleSpace, random_points
from tuning.trials import live_trial, read_trials, write_paused, write_resumed

draw = partial(suggest, profile=TINY, classes=3)
SPACE = FeasibleSpace(draw, lambda cost: True)
LATER = 3
"""Trials after the start-up ones, when TPE has learned."""


class Killed(Exception):  # noqa: N818 - stands for a SIGKILL
    pass


class Dying:
    """A trial whose process is killed after `suggestions` parameters."""

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
    """Open the study with new objects, as a new process does."""
    study = open_study(connect(sqlite_url(folder)), "s", sampler=sampler, identity={}, first_trials={})
    study.get_trials()
    return study


def value(number: int) -> float:
    return (number * 37 % 11) / 11


def tell(study: optuna.Study, trial: optuna.Trial) -> None:
    """Finish a trial with a made-up value; every third one is pruned, every seventh infeasible."""
    number = trial.number
    if number % 7 == 6:
        trial.set_constraint("flops", 0.5)
        study.tell(trial, state=TrialState.PRUNED)
    elif number % 3 == 2:
        trial.report(value(number), 0)
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, value(number))


def undisturbed(sampler: BaseSampler, trials: int) -> list[dict[str, Any]]:
    """Return the parameters of a study that one process runs in memory."""
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for _ in range(trials):
        trial = study.ask()
        draw(trial)
        tell(study, trial)
    return [trial.params for trial in study.get_trials()]


@pytest.mark.parametrize("name", ["tpe", pytest.param("random", marks=pytest.mark.long)])
def test_killed_between_any_two_suggestions_a_study_samples_the_same(tmp_path: Path, name: str) -> None:
    """Every trial is killed after some suggestions and resumed with new objects for everything."""
    make: Callable[[], BaseSampler] = partial(SAMPLERS[name], 3, SPACE)
    trials = STARTUP_TRIALS + LATER
    whole = undisturbed(make(), trials)

    for number in range(trials):
        trial = opened(tmp_path, make()).ask()
        with pytest.raises(Killed):
            draw(Dying(trial, 5 * number % 14))  # 5 and 14 have no common divisor, so it is after every number
        study = opened(tmp_path, make())
        trial = optuna.Trial(study, trial._trial_id)
        draw(trial)
        tell(study, trial)
    assert [trial.params for trial in opened(tmp_path, make()).get_trials()] == whole


@pytest.mark.parametrize("name", SAMPLERS)
def test_equal_seeds_sample_the_same_and_others_do_not(name: str) -> None:
    trials = STARTUP_TRIALS + LATER
    one, again, other = (undisturbed(SAMPLERS[name](seed, SPACE), trials) for seed in (5, 5, 6))
    assert one == again
    assert all(mine != theirs for mine, theirs in zip(one, other, strict=True))
    assert len({str(parameters) for parameters in one}) == trials


def paused_or_pruned(sampler: BaseSampler, *, paused: bool) -> optuna.Study:
    """Return a study whose start-up trials have all reached a rung; two of three were not promoted from there."""
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for number in range(STARTUP_TRIALS + 2):
        trial = study.ask()
        draw(trial)
        trial.report(value(number), 0)
        if number % 3 == 0:
            study.tell(trial, value(number))
        elif paused:
            write_paused(trial)
        else:
            study.tell(trial, state=TrialState.PRUNED)
    return study


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_paused_trial_teaches_the_sampler_what_a_pruned_one_does(name: str) -> None:
    """Optuna takes it for a running trial: TPE would not learn from it and, with fewer than ten finished, not begin."""
    one, other = (paused_or_pruned(SAMPLERS[name](3, SPACE), paused=paused) for paused in (True, False))
    assert sum(trial.is_paused for trial in read_trials(one)) == 8
    for _ in range(LATER):
        asked = [study.ask() for study in (one, other)]
        for trial in asked:
            draw(trial)
        assert asked[0].params == asked[1].params
    states = [trial.state for trial in one.get_trials()]
    assert states.count(TrialState.RUNNING) == 8 + LATER, "what the sampler sees is not what the study stores"


def test_a_running_trial_is_not_taken_for_a_pruned_one() -> None:
    running, pruned = (paused_or_pruned(SAMPLERS["tpe"](3, SPACE), paused=paused) for paused in (True, False))
    for trial in read_trials(running):
        if trial.is_paused:
            write_resumed(live_trial(running, trial.number), 1)
    asked = [study.ask() for study in (running, pruned)]
    for trial in asked:
        draw(trial)
    assert asked[0].params != asked[1].params


@pytest.mark.parametrize(
    ("changed", "matters"),
    [(range(5), True), (range(30, 50), False), (range(50, 60), True)],
    ids=["best", "old", "new"],
)
def test_of_many_trials_the_best_and_the_latest_teach_the_sampler(
    changed: range, matters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "LATEST", 10)
    drawn = optuna.create_study(sampler=SAMPLERS["random"](0, SPACE))
    for _ in range(120):
        draw(drawn.ask())
    asked: list[dict[str, Any]] = []
    for differs in (False, True):
        study = optuna.create_study(sampler=SAMPLERS["tpe"](3, SPACE), direction="maximize")
        for number in range(60):
            one = drawn.trials[60 + number if differs and number in changed else number]
            study.add_trial(
                optuna.create_trial(params=one.params, distributions=one.distributions, value=1 / (1 + number))
            )
        trial = study.ask()
        draw(trial)
        asked.append(trial.params)
    assert (asked[0] != asked[1]) is matters


@pytest.mark.parametrize("name", SAMPLERS)
def test_infeasible_points_are_never_proposed(name: str) -> None:
    """A sixth of this space is feasible, and its best trials are those closest to the budget."""
    costs = sorted(config.cost.flops for config in random_points(draw, 300))
    budget = costs[len(costs) // 6]
    study = optuna.create_study(sampler=SAMPLERS[name](3, FeasibleSpace(draw, lambda cost: cost.flops <= budget)))
    study.enqueue_trial({"width": 0.25})
    for number in range(STARTUP_TRIALS + PROPOSALS):
        trial = study.ask()
        cost = draw(trial).cost
        assert cost.flops <= budget, f"trial {number}"
        study.tell(trial, -cost.flops)
    assert study.trials[0].params["width"] == 0.25


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_space_without_a_feasible_point_is_sampled_all_the_same(name: str) -> None:
    """Its trials then say by how much they exceed the budget."""
    study = optuna.create_study(sampler=SAMPLERS[name](3, FeasibleSpace(draw, lambda cost: False)))
    points = [draw(study.ask()) for _ in range(2)]
    assert points[0] != points[1]


def test_the_seed_of_a_draw_depends_on_study_trial_and_names() -> None:
    base = draw_seed(0, 1, ["lr"])
    assert base == draw_seed(0, 1, ["lr"])
    assert 0 <= base < 2**32
    assert len({base, draw_seed(1, 1, ["lr"]), draw_seed(0, 2, ["lr"]), draw_seed(0, 1, ["lr", "width"])}) == 4
