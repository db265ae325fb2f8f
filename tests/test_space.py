"""The space as data: found whole, the same in every process, and refused if it has changed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search_space import PROFILES, suggest
from tuning import StudyError
from tuning.space import SpacePoint, describe_space, random_points, refuse_changes

ROOT = Path(__file__).parents[1]
QUICK = PROFILES["quick"].fitted(64, 1063)

KNOBS = {
    *("image_size", "width", "stride_pattern", "dilation_pattern", "pooling", "dropout"),
    *("augmentation", "augmentation_strength", "colour_jitter", "label_smoothing", "class_balance"),
    *("optimizer", "sgd_lr", "adam_lr", "adamw_lr", "muon_lr", "weight_decay", "adamw_weight_decay"),
    *("lr_decay", "step_factor", "step_period", "warmup_epochs"),
}


def branching(trial: Any) -> None:
    """Sample a space in which one knob depends on two choices."""
    if trial.suggest_categorical("a", ["x", "y"]) == "y":
        trial.suggest_float("under y", 0.0, 1.0)
        if trial.suggest_categorical("b", list("pqrs")) == "s":
            trial.suggest_int("under y and s", 1, 3)


def test_every_knob_of_every_branch_is_found() -> None:
    described = describe_space(partial(suggest, profile=QUICK, classes=9))
    assert set(described) == {f"space {knob}" for knob in KNOBS}
    assert set(describe_space(branching)) == {"space a", "space b", "space under y", "space under y and s"}


def test_a_knob_whose_bounds_depend_on_a_choice_is_described_with_all_of_them() -> None:
    def space(trial: Any) -> None:
        high = {"x": 1.0, "y": 2.0}[trial.suggest_categorical("a", ["x", "y"])]
        trial.suggest_float("lr", 0.0, high)

    assert [json.loads(text)["attributes"]["high"] for text in describe_space(space)["space lr"]] == [1.0, 2.0]


def test_two_processes_describe_the_space_alike() -> None:
    """Even with different hash seeds: the order of a set must not reach the study."""
    code = (
        "import json; from functools import partial; from search_space import PROFILES, suggest; "
        "from tuning.space import describe_space; "
        "print(json.dumps(describe_space(partial(suggest, profile=PROFILES['quick'].fitted(64, 1063), classes=9))))"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | {"PYTHONHASHSEED": seed}
        )
        for seed in ("1", "2")
    ]
    printed = [process.communicate(timeout=120)[0] for process in running]
    assert printed[0] == printed[1]
    assert json.loads(printed[0]) == describe_space(partial(suggest, profile=QUICK, classes=9))


def test_the_number_of_classes_does_not_change_the_description_and_json_keeps_it() -> None:
    described = describe_space(partial(suggest, profile=QUICK, classes=9))
    assert describe_space(partial(suggest, profile=QUICK, classes=2)) == described
    assert json.loads(json.dumps(described)) == described


def original(trial: Any) -> None:
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    trial.suggest_int("depth", 1, 9, step=2)
    trial.suggest_categorical("pool", ["avg", "max"])


def changed(kind: str, trial: Any) -> None:
    trial.suggest_float("lr", 1e-4, 1.0 if kind == "bound" else 1e-1, log=kind != "log")
    trial.suggest_int("depth", 1, 9, step=4 if kind == "step" else 2)
    trial.suggest_categorical("pool", ["avg", "max", "both"] if kind == "choice" else ["avg", "max"])
    if kind == "knob":
        trial.suggest_float("dropout", 0.0, 0.5, step=0.1)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("bound", "space lr: [0.0001, 0.1] log -> [0.0001, 1] log"),
        ("log", "space lr: [0.0001, 0.1] log -> [0.0001, 0.1]"),
        ("step", "space depth: [1, 9] step 2 -> [1, 9] step 4"),
        ("choice", "space pool: {avg, max} -> {avg, max, both}"),
        ("knob", "space dropout: none -> [0, 0.5] step 0.1"),
    ],
)
def test_each_kind_of_change_is_refused_in_readable_terms(kind: str, text: str) -> None:
    with pytest.raises(StudyError) as caught:
        refuse_changes(describe_space(original), describe_space(partial(changed, kind)), "mushrooms")
    assert f"({text})" in str(caught.value)


def test_the_refusal_is_one_line_with_every_change_and_no_other_fact() -> None:
    stored = {"data": "1500 pictures, fingerprint ab, split cd", "seed": 0, "max flops": 1e8, "scheduler": "median"}
    now = stored | {"data": "1499 pictures, fingerprint ef, split cd", "seed": 7, "max flops": None}
    with pytest.raises(StudyError) as caught:
        refuse_changes(stored, now, "field-guide")
    text = str(caught.value)
    assert (
        "(data: 1500 pictures, fingerprint ab, split cd -> 1499 pictures, fingerprint ef, split cd; "
        "max flops: 100,000,000 -> none; seed: 0 -> 7)"
    ) in text
    assert text.startswith("study 'field-guide'") and "--study NAME" in text and "\n" not in text


def test_an_unchanged_space_is_accepted() -> None:
    described = describe_space(partial(suggest, profile=replace(PROFILES["gpu"], epochs=15), classes=9))
    refuse_changes(described, json.loads(json.dumps(described)), "any")


def test_random_points_are_within_their_bounds_and_on_their_grids() -> None:
    trial = SpacePoint(np.random.default_rng(0))
    for _ in range(200):
        assert trial.suggest_int("i", 3, 9, step=3) in (3, 6, 9)
        assert np.isclose(trial.suggest_float("g", 0.1, 0.5, step=0.2), [0.1, 0.3, 0.5]).any()
        assert 1e-4 <= trial.suggest_float("l", 1e-4, 1e-1, log=True) <= 1e-1
        assert 2.0 <= trial.suggest_float("f", 2.0, 3.0) <= 3.0
        assert trial.suggest_categorical("c", ["a"]) == "a"


def test_random_points_repeat_for_a_seed() -> None:
    draw = partial(suggest, profile=replace(PROFILES["laptop"], epochs=15), classes=9)
    assert list(random_points(draw, 5, seed=1)) == list(random_points(draw, 5, seed=1))
    assert list(random_points(draw, 5, seed=1)) != list(random_points(draw, 5, seed=2))
