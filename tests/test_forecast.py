"""The forecast: what a study will take is in proportion to its work, and the known figures come out."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState
from studies import recorded
from tuning.identity import random_points
from tuning.storage import Outcome

from model.network import Cost
from search_space import PROFILES, Config, Profile, suggest
from tuning import forecast
from tuning.devices import Slot
from tuning.environment import environment

SMALL = replace(PROFILES["quick"].within(16), widths=(0.25, 0.25, 0.125), epochs=2)


def seconds(profile: Profile = SMALL, **changes: Any) -> float:
    named: dict[str, Any] = {"feasible": lambda price: True, "pictures": 100, "pruned": False} | changes
    return forecast.seconds_per_trial(partial(suggest, profile=profile, classes=3), slots=[Slot()], **named)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A machine of a known speed: what a timed step says depends on who else is computing."""

    def at(flops_per_second: float) -> None:
        monkeypatch.setattr(forecast, "_flops_per_second", lambda *_: flops_per_second)

    return at


@pytest.mark.parametrize("epochs", [2, 10])
def test_it_is_three_forward_passes_of_every_picture_in_every_epoch(
    epochs: int, steady: Callable[[float], None]
) -> None:
    steady(1e9)
    profile = replace(SMALL, epochs=epochs)
    points = list(random_points(partial(suggest, profile=profile, classes=3), forecast.POINTS))
    mean = sum(config.cost.flops for config in points) / len(points)
    assert seconds(profile) == pytest.approx(3 * mean * 100 * epochs / 1e9 / forecast.STEPS_SHARE)


def test_it_grows_with_pictures_and_views_and_shrinks_with_pruning(steady: Callable[[float], None]) -> None:
    steady(1e9)
    once = seconds()
    assert seconds(pictures=300) == pytest.approx(3 * once)
    assert seconds(replace(SMALL, views=3)) == pytest.approx(3 * once)
    assert seconds(pruned=True) == pytest.approx(forecast.TRAINED_SHARE * once)
    steady(2e9)
    assert seconds() == pytest.approx(once / 2)


def test_what_is_over_the_budget_is_not_counted(steady: Callable[[float], None]) -> None:
    """Infeasible points are never trained; with them a tight budget was forecast at many times its time."""
    steady(1e9)
    points = list(random_points(partial(suggest, profile=SMALL, classes=3), forecast.POINTS))
    flops = sorted(config.cost.flops for config in points)
    budget = flops[len(flops) // 4]

    def feasible(price: Cost) -> bool:
        return price.flops <= budget

    within = [value for value in flops if value <= budget]
    assert seconds(feasible=feasible) == pytest.approx(3 * sum(within) / len(within) * 200 / 1e9 / forecast.STEPS_SHARE)


def test_where_nothing_is_feasible_the_cheapest_stands_for_all(steady: Callable[[float], None]) -> None:
    steady(1e9)
    assert 0 < seconds(feasible=lambda price: False) < seconds()


def test_a_study_that_has_trials_goes_by_them() -> None:
    """Those of such a slot: after a change of machine, threads or precision they tell nothing."""
    here = environment(Slot())
    ones = [recorded([0.5], seconds=float(took), environment=here | {"program": "before"}) for took in range(6)]
    elsewhere = recorded([0.5], seconds=100.0, environment=environment(Slot(threads=4)))
    infeasible = optuna.trial.create_trial(state=TrialState.PRUNED, user_attrs={"outcome": Outcome.INFEASIBLE})
    assert forecast.seconds_so_far([*ones, elsewhere, infeasible], Slot()) == 2.5
    assert forecast.seconds_so_far([*ones[1:], elsewhere], Slot()) is None
    assert forecast.seconds_so_far(ones, Slot(precision="bfloat16")) is None


def test_this_machine_is_timed_and_its_threads_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    took = seconds()
    assert 0.001 < took < 600
    assert torch.get_num_threads() == before


def test_where_a_gpus_memory_is_short_fewer_pictures_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def timed(config: Config, slot: Slot, batch: int) -> float:
        asked.append(batch)
        if batch > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1e12

    monkeypatch.setattr(forecast, "_timed_steps", timed)
    config = next(random_points(partial(suggest, profile=replace(SMALL, batch_size=32), classes=3), 1))
    assert forecast._flops_per_second(config, [Slot(device="cuda:0")]) == 1e12
    assert asked == [32, 16, 8]


def test_the_rate_is_one_that_a_processor_can_have() -> None:
    config: Config = next(random_points(partial(suggest, profile=SMALL, classes=3), 1))
    rate = forecast._flops_per_second(config, [Slot(), Slot()])
    assert 1e7 < rate < 1e13
