"""The search space: any point can be built and trained, every knob matters, and the baselines are points of it."""

import json
from dataclasses import asdict, replace
from typing import Any, cast, get_args

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from model.network import MushroomCNN
from model.training import OptimizerName
from search_space import (
    GUESS,
    HAND_TUNED,
    LEAST_EPOCHS,
    MOST_EPOCHS,
    ORIGINAL,
    PROFILES,
    Config,
    Profile,
    baselines,
    guess,
    lighter,
    portfolio,
    suggest,
)
from tuning.space import random_points

CLASSES = 4
FITTED = {name: profile.fitted(profile.sizes[-1], 1063) for name, profile in PROFILES.items()}
"""Every profile with the epochs of the built-in pictures."""

CONDITIONS = {
    "sgd_lr": ("optimizer", {"sgd"}),
    "adam_lr": ("optimizer", {"adam"}),
    "adamw_lr": ("optimizer", {"adamw"}),
    "muon_lr": ("optimizer", {"muon"}),
    "weight_decay": ("optimizer", {"sgd", "adam"}),
    "adamw_weight_decay": ("optimizer", {"adamw"}),
    "step_factor": ("lr_decay", {"step"}),
    "step_period": ("lr_decay", {"step"}),
    "warmup_epochs": ("lr_decay", {"step", "cosine"}),
}
"""Knob -> the choice that it depends on, and the values with which it is sampled. All other knobs always are."""

profiles = st.builds(
    lambda name, epochs, short_side, pictures: replace(PROFILES[name], epochs=epochs).fitted(short_side, pictures),
    st.sampled_from(sorted(PROFILES)),
    st.none() | st.integers(1, 30),
    st.integers(16, 300),
    st.integers(1, 100_000),
)
"""Every profile, as `--epochs` and the data set change it."""


class Fixed:
    """A stand-in for a trial with the given values, else the lowest or first; records what it was asked for."""

    def __init__(self, **values: Any) -> None:
        self.values = values
        self.asked: dict[str, tuple[Any, ...]] = {}

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        self.asked[name] = tuple(choices)
        return self.values.get(name, choices[0])

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        self.asked[name] = (low, high)
        return self.values.get(name, low)

    def suggest_float(self, name: str, low: float, high: float, **_: Any) -> float:
        self.asked[name] = (low, high)
        return self.values.get(name, low)


def chosen(profile: Profile, classes: int = CLASSES, **values: Any) -> Config:
    """Return the point with these values, and the lowest or first if none is given."""
    return suggest(cast(optuna.Trial, Fixed(**values)), profile, classes)


def point(seed: int, profile: Profile) -> Config:
    return next(random_points(lambda trial: suggest(trial, profile, CLASSES), 1, seed))


@settings(max_examples=100)
@given(profile=profiles, seed=st.integers(0, 2**32 - 1))
def test_any_point_is_a_valid_config_that_survives_json_with_its_digest(profile: Profile, seed: int) -> None:
    config = point(seed, profile)
    again = Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.digest == config.digest
    assert config.image_size in profile.sizes
    assert config.training.epochs == profile.epochs


@settings(max_examples=8)
@given(name=st.sampled_from(sorted(PROFILES)), short_side=st.sampled_from([16, 24]), seed=st.integers(0, 2**32 - 1))
def test_any_point_builds_a_network_that_runs_forward_and_backward(name: str, short_side: int, seed: int) -> None:
    profile = FITTED[name].within(short_side)
    config = point(seed, profile)
    torch.manual_seed(0)
    network = MushroomCNN(config.model)
    logits = network(torch.randn(2, 3, config.image_size, config.image_size))
    functional.cross_entropy(logits, torch.tensor([0, CLASSES - 1])).backward()
    assert logits.shape == (2, CLASSES)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_the_digest_is_the_same_as_when_earlier_studies_were_started() -> None:
    """It finds duplicates and old checkpoints: if it changed, a resumed study would train points twice."""
    profile = Profile(
        name="quick",
        image_sizes=(32, 64, 16),
        widths=(0.25, 0.5, 0.125),
        shown=48_000,
        epochs=10,
        views=1,
        batch_size=32,
        max_flops=100e6,
    )
    assert chosen(profile, 9).digest == "24e49f4b1c77bbab"


def test_a_conditional_knob_is_sampled_only_with_its_choice() -> None:
    unconditional = set()
    for optimizer in get_args(OptimizerName):
        for lr_decay in ("step", "cosine", "one-cycle"):
            trial = Fixed(optimizer=optimizer, lr_decay=lr_decay)
            suggest(cast(optuna.Trial, trial), FITTED["quick"], CLASSES)
            chosen_values = {"optimizer": optimizer, "lr_decay": lr_decay}
            for knob, (choice, values) in CONDITIONS.items():
                assert (knob in trial.asked) == (chosen_values[choice] in values), (knob, chosen_values)
            unconditional |= trial.asked.keys() - CONDITIONS.keys()
    assert unconditional == {
        *("image_size", "width", "stride_pattern", "dilation_pattern", "pooling", "dropout"),
        *("augmentation", "augmentation_strength", "colour_jitter"),
        *("optimizer", "lr_decay", "label_smoothing", "class_balance"),
    }


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_value_of_every_knob_makes_a_different_point(name: str) -> None:
    base: dict[str, Any] = {"augmentation_strength": 1.0}
    places: list[dict[str, Any]] = [
        {"optimizer": o, "lr_decay": s} for o in get_args(OptimizerName) for s in ("step", "one-cycle")
    ]
    seen: set[str] = set()
    for place in places:
        trial = Fixed(**base, **place)
        suggest(cast(optuna.Trial, trial), FITTED[name], CLASSES)
        for knob, values in trial.asked.items():
            if knob in place:
                continue
            digests = {chosen(FITTED[name], **{**base, **place, knob: v}).digest for v in values}
            assert len(digests) == len(values), knob
        digest = chosen(FITTED[name], **base, **place).digest
        assert digest not in seen
        seen.add(digest)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_knob_that_a_choice_leaves_unused_has_one_fixed_value(seed: int) -> None:
    """Otherwise two equal trainings would count as different trials."""
    config = point(seed, FITTED["laptop"])
    if config.training.schedule != "step":
        assert (config.training.step_factor, config.training.step_period) == (1.0, FITTED["laptop"].epochs)
    if config.training.schedule == "one-cycle":
        assert config.training.warmup_epochs == 0
    assert config.training.momentum == 0.9


def test_without_augmentation_all_kinds_of_it_are_one_point() -> None:
    """Every view is then the plain picture; once the same network was trained under three names."""
    kinds = ("fresh", "originals+fresh", "originals+fixed")
    for strength, jitter, different in [(0.0, 0.0, 1), (0.1, 0.0, 3), (0.0, 0.2, 3)]:
        values = {"augmentation_strength": strength, "colour_jitter": jitter}
        digests = {chosen(FITTED["quick"], augmentation=kind, **values).digest for kind in kinds}
        assert len(digests) == different


@settings(max_examples=80)
@given(profile=profiles)
def test_baselines_and_portfolio_are_in_the_space_and_have_a_value_for_each_of_their_knobs(profile: Profile) -> None:
    """Optuna samples what an enqueued trial leaves out, and only warns of a value outside; here a warning fails."""
    points = baselines(profile)
    assert list(points) == ["original recipe", "hand-tuned recipe", "best single guess"]
    for parameters in [*points.values(), *portfolio(profile)]:
        trial = optuna.trial.FixedTrial(parameters)
        config = suggest(trial, profile, CLASSES)  # type: ignore[arg-type]
        assert trial.params == parameters
        for name, distribution in trial.distributions.items():
            assert distribution._contains(distribution.to_internal_repr(parameters[name])), name
        assert config.training.epochs == profile.epochs


@settings(max_examples=30)
@given(profile=profiles)
def test_a_study_begins_with_eleven_different_points(profile: Profile) -> None:
    """A duplicate would fail, and its place in the study would be lost."""
    points = [*baselines(profile).values(), *portfolio(profile)]
    assert len({chosen(profile, **point).digest for point in points}) == len(points) == 11
    assert baselines(profile)[GUESS] == guess(profile)


def test_a_study_begins_with_one_point_both_with_and_without_colour_jitter() -> None:
    """It costs where the colour tells classes apart, and gains elsewhere; one of the two is left behind."""
    points = portfolio(FITTED["quick"])
    jittered = [point for point in points if point["colour_jitter"] > 0]
    assert any(point | {"colour_jitter": 0.0} in points for point in jittered)
    assert 3 <= len(jittered) <= len(points) - 3


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_the_baselines_are_within_the_budget(name: str) -> None:
    limit = FITTED[name].max_flops or np.inf
    assert all(chosen(FITTED[name], 9, **point).cost.flops <= limit for point in baselines(FITTED[name]).values())


def test_baselines_are_the_original_projects_recipes_at_the_gpu_profile() -> None:
    configs = {name: chosen(FITTED["gpu"], 9, **p) for name, p in baselines(FITTED["gpu"]).items()}
    original, tuned = configs[ORIGINAL], configs[HAND_TUNED]
    assert (original.image_size, tuned.image_size) == (128, 256)  # the original's was 150; 128 is nearest
    assert (original.training.optimizer, original.training.lr) == ("adam", 1e-3)
    assert (tuned.training.optimizer, tuned.training.lr) == ("sgd", 0.1)
    assert original.training.step_factor == tuned.training.step_factor == 0.1
    assert (original.augment.fresh, tuned.augment.fresh) == (False, True)
    assert (original.model.dilation_pattern, tuned.model.dilation_pattern) == ("consecutive", "late")


@pytest.mark.parametrize(("short_side", "width", "mflop"), [(32, 0.5, 50), (48, 0.25, 28), (64, 0.25, 51)])
def test_the_best_single_guess_uses_about_half_of_the_budget(short_side: int, width: float, mflop: int) -> None:
    profile = PROFILES["quick"].fitted(short_side, 1063)
    config = chosen(profile, 9, **guess(profile))
    assert (config.image_size, config.model.width) == (short_side, width)
    assert round(config.cost.flops / 1e6) == mflop


def test_lighter_points_are_narrower_first_and_then_smaller() -> None:
    profile = PROFILES["quick"].fitted(48, 1063)
    found = [(p["image_size"], p["width"]) for p in lighter({"image_size": 48, "width": 0.5}, profile)]
    assert found == [(48, 0.5), (48, 0.375), (48, 0.25), (32, 0.5), (32, 0.375), (32, 0.25)]


@given(short_side=st.integers(16, 400), name=st.sampled_from(sorted(PROFILES)))
def test_a_profile_enlarges_no_picture_and_has_at_least_one_size(short_side: int, name: str) -> None:
    fitted = PROFILES[name].within(short_side)
    assert fitted.sizes
    assert max(fitted.sizes) <= short_side
    assert {size for size in PROFILES[name].sizes if size <= short_side} <= set(fitted.sizes)
    assert replace(fitted, image_sizes=PROFILES[name].image_sizes) == PROFILES[name]


@pytest.mark.parametrize(
    ("name", "pictures", "epochs"),
    [
        ("quick", 350, 103),
        ("quick", 1063, 34),
        ("quick", 50_000, 8),
        ("quick", 14, 300),
        ("laptop", 350, 286),
        ("laptop", 1063, 94),
        ("laptop", 50_000, 8),
        ("gpu", 350, 286),
        ("gpu", 1063, 94),
        ("gpu", 10_000, 10),
        ("gpu", 50_000, 8),
    ],
)
def test_a_trial_is_shown_as_many_pictures_of_a_small_set_as_of_a_large_one(
    name: str, pictures: int, epochs: int
) -> None:
    """Views count as shown, and no set is shown fewer than 8 or more than 300 times."""
    profile = PROFILES[name]
    fitted = profile.fitted(300, pictures)
    assert fitted.horizon == fitted.epochs == epochs
    if LEAST_EPOCHS < epochs < MOST_EPOCHS:
        assert epochs * pictures * profile.views == pytest.approx(profile.shown, abs=pictures * profile.views / 2)
    assert (LEAST_EPOCHS, MOST_EPOCHS) == (8, 300)
    assert replace(fitted, epochs=None) == profile
    assert fitted.fitted(300, 7) == fitted, "once fitted, the horizon stays"


def test_explicit_epochs_win_over_the_number_of_pictures_and_small_pictures_still_shorten_the_sizes() -> None:
    fitted = replace(PROFILES["quick"], epochs=2).fitted(50, 50_000)
    assert (fitted.horizon, fitted.sizes) == (2, (32, 48))


def test_a_profile_has_no_horizon_before_it_is_fitted() -> None:
    for wanted in (lambda profile: profile.horizon, baselines, chosen):
        with pytest.raises(ValueError, match="fitted"):
            wanted(PROFILES["quick"])


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_sizes_and_widths_are_whole_numbers_of_steps(name: str) -> None:
    """Otherwise Optuna would shorten the range, with a warning per trial."""
    low, high, step = PROFILES[name].image_sizes
    assert (high - low) % step == 0
    low, high, step = PROFILES[name].widths
    assert np.isclose((high - low) / step, round((high - low) / step))


def test_random_points_cover_the_space_well_enough_for_a_forecast() -> None:
    points = list(random_points(lambda trial: suggest(trial, FITTED["quick"], CLASSES), 200))
    for choices in ("stride_pattern", "dilation_pattern", "pooling"):
        assert len({asdict(config.model)[choices] for config in points}) in (3, 4, 5)
    assert {config.image_size for config in points} == set(PROFILES["quick"].sizes)
    assert {config.model.width for config in points} == {0.25, 0.375, 0.5, 0.625, 0.75}
    assert len({config.digest for config in points}) == 200
