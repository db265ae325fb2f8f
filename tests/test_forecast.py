"""The forecast: the expected duration is proportional to the work, or that of trials so far."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import TrialState
from pictures import picture
from studies import recorded

from data.prepare import find_pictures
from model.network import Cost
from search_space import PROFILES, Config, Profile, suggest
from tuning import forecast
from tuning.devices import Slot
from tuning.environment import environment
from tuning.space import random_points
from tuning.trials import Outcome, Trial

SMALL = replace(PROFILES["quick"].within(16), widths=(0.25, 0.25, 0.125), epochs=2)


def seconds(profile: Profile = SMALL, **changes: Any) -> float:
    named: dict[str, Any] = {"feasible": lambda cost: True, "pictures": 100, "trained_share": 1.0} | changes
    return forecast.seconds_per_trial(partial(suggest, profile=profile, classes=3), slots=[Slot()], **named)


def test_a_study_has_prospects_with_each_profile_however_many_classes_there_are(tmp_path: Path) -> None:
    """Of 210 classes a profile once allowed fewer pictures than they needed, which nobody had asked for."""
    for label in range(210):
        (tmp_path / "set" / f"{label:03}").mkdir(parents=True)
        for seed in range(10):
            picture(seed, label=label).save(tmp_path / "set" / f"{label:03}" / f"{seed}.png", compress_level=0)
    pictures = find_pictures(str(tmp_path / "set"), cache_dir=tmp_path)
    found = {one.profile: one for one in forecast.prospects(pictures)}
    train = len(pictures.split.train)
    assert found.keys() == PROFILES.keys() and {one.train for one in found.values()} == {train}
    assert len(pictures.catalog.kept) == 2100 and found["quick"].epochs == round(48_000 / train)
    assert {name: one.sizes for name, one in found.items()} == {"quick": (32,), "laptop": (32,), "gpu": (32,)}


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A machine of known speed: the time of a real step depends on who else is computing."""

    def at(flops_per_second: float) -> None:
        monkeypatch.setattr(forecast, "_flops_per_second", lambda *_: flops_per_second)

    return at


@pytest.mark.parametrize("epochs", [2, 10])
def test_a_trial_takes_three_forward_passes_of_every_picture_in_every_epoch(
    epochs: int, steady: Callable[[float], None]
) -> None:
    steady(1e9)
    profile = replace(SMALL, epochs=epochs)
    points = list(random_points(partial(suggest, profile=profile, classes=3), forecast.POINTS))
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
    points = list(random_points(partial(suggest, profile=SMALL, classes=3), forecast.POINTS))
    flops = sorted(config.cost.flops for config in points)
    budget = flops[len(flops) // 4]

    def feasible(cost: Cost) -> bool:
        return cost.flops <= budget

    within = [value for value in flops if value <= budget]
    assert seconds(feasible=feasible) == pytest.approx(3 * sum(within) / len(within) * 200 / 1e9 / forecast.STEPS_SHARE)


def test_without_a_feasible_point_the_cheapest_one_stands_for_all(steady: Callable[[float], None]) -> None:
    steady(1e9)
    assert 0 < seconds(feasible=lambda cost: False) < seconds()


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


def test_this_machine_is_timed_and_its_number_of_threads_restored() -> None:
    before = torch.get_num_threads()
    took = seconds()
    assert 0.001 < took < 600
    assert torch.get_num_threads() == before


def test_where_a_gpu_is_short_of_memory_fewer_pictures_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_measured_speed_is_one_that_a_processor_can_have() -> None:
    config: Config = next(random_points(partial(suggest, profile=SMALL, classes=3), 1))
    rate = forecast._flops_per_second(config, [Slot(), Slot()])
    assert 1e7 < rate < 1e13
