"""The forecast: the expected duration is proportional to the work, or that of trials so far."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from studies import recorded

from model.network import Cost
from search_space import PROFILES, Config, Profile, suggest
from tuning import forecast, timing
from tuning.devices import Slot
from tuning.environment import environment
from tuning.space import random_points
from tuning.timing import Timing, typical
from tuning.trials import Outcome, Trial

SMALL = replace(PROFILES["quick"].within(16), widths=(0.25, 0.25, 0.125), epochs=2)


def seconds(profile: Profile = SMALL, **changes: Any) -> float:
    points = typical(partial(suggest, profile=profile, classes=3), changes.pop("feasible", lambda cost: True))
    named: dict[str, Any] = {"pictures": 100, "trained_share": 1.0, "timing": None} | changes
    return forecast.seconds_per_trial(points, slots=[Slot()], **named)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A machine of known speed: the time of a real step depends on who else is computing."""

    def at(flops_per_second: float) -> None:
        def steps(config: Config, slots: Any, precisions: Any, rounds: int) -> dict[str, Any]:
            return {precision: np.full(rounds, 1 / flops_per_second) for precision in precisions}

        monkeypatch.setattr(timing, "_seconds_per_flop", steps)

    return at


@pytest.mark.parametrize("epochs", [2, 10])
def test_a_trial_takes_three_forward_passes_of_every_picture_in_every_epoch(
    epochs: int, steady: Callable[[float], None]
) -> None:
    steady(1e9)
    profile = replace(SMALL, epochs=epochs)
    points = list(random_points(partial(suggest, profile=profile, classes=3), timing.POINTS))
    mean = sum(config.cost.flops for config in points) / len(points)
    assert seconds(profile) == pytest.approx(3 * mean * 100 * epochs / 1e9 / forecast.STEPS_SHARE)


def test_it_grows_with_pictures_and_views_and_shrinks_with_pruning_and_speed(steady: Callable[[float], None]) -> None:
    steady(1e9)
    once = seconds()
    assert seconds(pictures=300) == pytest.approx(3 * once)
    assert seconds(replace(SMALL, views=3)) == pytest.approx(3 * once)
    assert seconds(trained_share=0.25) == pytest.approx(0.25 * once)
    steady(2e9)
    assert seconds() == pytest.approx(once / 2)


def test_points_over_the_budget_are_not_counted(steady: Callable[[float], None]) -> None:
    """Infeasible points are never trained; counting them, the forecast was once many times too long."""
    steady(1e9)
    points = list(random_points(partial(suggest, profile=SMALL, classes=3), timing.POINTS))
    flops = sorted(config.cost.flops for config in points)
    budget = flops[len(flops) // 4]

    def feasible(cost: Cost) -> bool:
        return cost.flops <= budget

    within = [value for value in flops if value <= budget]
    assert seconds(feasible=feasible) == pytest.approx(3 * sum(within) / len(within) * 200 / 1e9 / forecast.STEPS_SHARE)


def test_without_a_feasible_point_the_cheapest_one_stands_for_all(steady: Callable[[float], None]) -> None:
    steady(1e9)
    assert 0 < seconds(feasible=lambda cost: False) < seconds()


def test_steps_that_have_been_timed_to_choose_the_precision_are_not_timed_again(
    steady: Callable[[float], None],
) -> None:
    steady(1e9)
    timed = Timing(seconds={"float32": 84.0, "bfloat16": 42.0}, comparison=None)
    assert seconds(timing=timed) == pytest.approx(84.0 / forecast.STEPS_SHARE)
    assert seconds(timing=replace(timed, seconds={"bfloat16": 42.0})) == seconds()


def test_a_study_with_enough_trials_is_forecast_from_their_mean() -> None:
    """Only trials of an equal slot count: those of another machine, number of threads or precision say nothing."""
    here = environment(Slot())
    ones = [Trial(recorded([0.5], seconds=float(took), environment=here | {"program": "old"})) for took in range(6)]
    elsewhere = Trial(recorded([0.5], seconds=100.0, environment=environment(Slot(threads=4))))
    infeasible = Trial(recorded([], outcome=Outcome.INFEASIBLE))
    assert forecast.seconds_so_far([*ones, elsewhere, infeasible], Slot()) == 2.5
    assert forecast.seconds_so_far([*ones[1:], elsewhere], Slot()) is None
    assert forecast.seconds_so_far(ones, Slot(precision="bfloat16")) is None


def test_while_trials_are_paused_the_mean_of_the_promoted_ones_is_no_forecast() -> None:
    ones = [Trial(recorded([0.5], seconds=2.0, environment=environment(Slot()))) for _ in range(6)]
    waiting = recorded([0.5], paused=True)
    waiting.state, waiting.values = TrialState.RUNNING, None
    assert forecast.seconds_so_far(ones, Slot()) == 2.0
    assert forecast.seconds_so_far([*ones, Trial(waiting)], Slot()) is None
