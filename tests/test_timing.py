"""Timed steps: which precision a study trains in, that it keeps to it, and what is said about it."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from studies import TINY, Tiny, prepare

from commands.console import print_plan
from model.training import Precision
from search_space import PROFILES, Config, suggest
from tuning import timing
from tuning.coordinator import Plan
from tuning.devices import Slot
from tuning.session import find_study, open_session
from tuning.timing import Comparison, settle_precision, time_steps, typical

SMALL = replace(PROFILES["quick"].within(16), widths=(0.25, 0.25, 0.125), epochs=2, batch_size=4)
BOTH: tuple[Precision, ...] = ("float32", "bfloat16")
ENOUGH = 10**8
"""Number of pictures with which the trials of SMALL are long enough for timing to pay."""
POINTS = typical(partial(suggest, profile=SMALL, classes=3), lambda cost: True)[:1]

Steps = Callable[..., None]


@pytest.fixture
def steps_take(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """A function that gives a step of each precision a duration: real ones depend on who else is computing."""

    def durations(**seconds: float) -> None:
        now = 0.0

        @contextlib.contextmanager
        def step(device: torch.device, precision: Precision) -> Generator[None]:
            nonlocal now
            now += seconds[precision]
            yield

        monkeypatch.setattr(timing, "autocast", step)
        monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))

    return durations


def settle(study: optuna.Study, *slots: Slot, pictures: int = ENOUGH) -> tuple[Precision, Comparison | None]:
    settled, timed = settle_precision(study, slots or [Slot()], "auto", POINTS, pictures)
    return settled[0].precision, timed and timed.comparison


# -- the choice


fast, slower = st.floats(1.1, 5.0), st.floats(0.2, 0.9)


@given(st.lists(fast, min_size=4, max_size=4), st.floats(0.01, 100.0), st.integers(0, 4))
def test_one_disturbed_round_of_five_does_not_change_the_choice(gains: list[float], odd: float, place: int) -> None:
    for rounds, faster in ((gains, "bfloat16"), ([1 / gain for gain in gains], "float32")):
        comparison = Comparison(gains=(*rounds[:place], odd, *rounds[place:]))
        assert comparison.faster == faster
        assert "times as fast as" in str(comparison)
        assert str(comparison).count({"bfloat16": "float32", "float32": "bfloat16"}[faster]) == 1


@given(st.lists(slower, min_size=2), st.lists(fast, min_size=2))
def test_where_the_rounds_disagree_float32_is_taken_and_called_about_as_fast(
    low: list[float], high: list[float]
) -> None:
    few = min(len(low), len(high))
    comparison = Comparison(gains=(*low[:few], *high[:few]))
    assert comparison.faster == "float32"
    assert "times" not in str(comparison)


@given(st.lists(st.floats(0.99, 1.04), min_size=1))
def test_a_gain_that_is_hardly_one_is_none(gains: list[float]) -> None:
    assert Comparison(gains=tuple(gains)).faster == "float32"


@pytest.mark.parametrize(("bfloat16", "faster"), [(0.5, "bfloat16"), (0.97, "float32"), (1.25, "float32")])
def test_the_faster_one_is_chosen_whatever_the_cpu_claims_to_have(
    bfloat16: float, faster: Precision, steps_take: Steps
) -> None:
    steps_take(float32=1.0, bfloat16=bfloat16)
    found = time_steps(POINTS, pictures=1, slots=[Slot()], precisions=BOTH)
    assert found.comparison
    assert found.comparison.faster == faster
    assert found.comparison.gains == pytest.approx([1 / bfloat16] * timing.ROUNDS)
    assert found.seconds["bfloat16"] == pytest.approx(bfloat16 * found.seconds["float32"])


def test_an_emulated_precision_is_timed_no_longer_than_it_takes_to_see_that(steps_take: Steps) -> None:
    steps_take(float32=1.0, bfloat16=6.0)
    found = time_steps(POINTS, pictures=1, slots=[Slot()], precisions=BOTH)
    assert found.comparison and found.comparison.faster == "float32"
    assert found.comparison.gains == pytest.approx([1 / 6])
    assert set(found.seconds) == {"float32"}


# -- the steps


def test_all_slots_are_timed_at_once_and_in_the_same_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    active, seen, lock = Counter[Precision](), set[tuple[Precision, ...]](), threading.Lock()

    @contextlib.contextmanager
    def watched(device: torch.device, precision: Precision) -> Generator[None]:
        with lock:
            active[precision] += 1
        time.sleep(0.005)
        yield
        with lock:
            seen.add(tuple(sorted(active.elements())))
            active[precision] -= 1

    monkeypatch.setattr(timing, "autocast", watched)
    time_steps(POINTS, pictures=1, slots=[Slot()] * 3, precisions=BOTH)
    assert {len(set(precisions)) for precisions in seen} == {1}
    assert max(map(len, seen)) == 3


def test_an_error_in_one_slot_is_raised_and_the_others_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter(range(10))

    @contextlib.contextmanager
    def failing(device: torch.device, precision: Precision) -> Generator[None]:
        if next(steps) == 4:
            raise MemoryError("of one slot")
        yield

    monkeypatch.setattr(timing, "autocast", failing)
    with pytest.raises(MemoryError, match="of one slot"):
        time_steps(POINTS, pictures=1, slots=[Slot()] * 3, precisions=BOTH)


def test_this_machine_is_timed_and_its_number_of_threads_restored() -> None:
    before = torch.get_num_threads()
    found = time_steps(POINTS, pictures=100, slots=[Slot(threads=2)] * 2, precisions=["float32"])
    assert found.comparison is None
    assert 1e-4 < found.seconds["float32"] < 600
    assert torch.get_num_threads() == before


def test_where_a_gpu_is_short_of_memory_fewer_pictures_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def timed(config: Config, slot: Slot, batch: int, *_: object) -> dict[Precision, timing.Floats]:
        asked.append(batch)
        if batch > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"float32": np.array([1e-12])}

    monkeypatch.setattr(timing, "_timed", timed)
    config = replace(POINTS[0], training=replace(POINTS[0].training, batch_size=32))
    found = timing._timed_on_gpu(config, Slot(device="cuda:0"), ["float32"], 1)  # pyright: ignore[reportPrivateUsage]
    assert found == {"float32": [1e-12]}
    assert asked == [32, 16, 8]


# -- a study keeps to its choice


def test_a_study_keeps_to_its_choice_and_another_machine_makes_its_own(steps_take: Steps) -> None:
    study = optuna.create_study()
    steps_take(float32=1.0, bfloat16=1.4)
    first = settle(study)
    assert first[0] == "float32"
    steps_take(float32=1.5, bfloat16=1.0)
    assert settle(study) == first
    elsewhere = settle(study, Slot(threads=2))
    assert elsewhere[0] == "bfloat16"
    steps_take(float32=1.0, bfloat16=1.4)
    assert settle(study, Slot(threads=2)) == elsewhere
    assert settle(study) == first


def test_nothing_is_timed_for_short_trials_or_a_given_precision() -> None:
    study, slots = optuna.create_study(), [Slot(threads=3), Slot()]
    assert settle(study, pictures=40) == ("float32", None)
    for given_one in BOTH:
        expected = [replace(slot, precision=given_one) for slot in slots]
        assert settle_precision(study, slots, given_one, POINTS, ENOUGH) == (expected, None)
    assert study.user_attrs == {}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


def test_a_resumed_study_and_its_retraining_use_the_precision_that_it_began_with(
    tiny: Tiny, tmp_path: Path, steps_take: Steps
) -> None:
    cache = tiny.folder.parent / "cache"
    start = partial(
        open_session,
        tiny.pictures,
        plan=Plan(trials=1),
        profile=replace(TINY, epochs=10_000, widths=(0.25, 0.25, 0.125), batch_size=2),
        slots=[Slot()],
        results=tmp_path,
        cache_dir=cache,
    )
    steps_take(float32=1.5, bfloat16=1.0)
    with start(precision="auto") as session:
        begun = session.timing and session.timing.comparison
        assert [slot.precision for slot in session.slots] == ["bfloat16"]
    steps_take(float32=1.0, bfloat16=1.5)
    with start(precision="auto") as session:
        assert session.timing and session.timing.comparison == begun
        assert session.expected_seconds() > 0
        console = Console(file=io.StringIO(), width=1000, record=True)
        print_plan(console, session, wanted=1, rungs=(), first_pruning=None, left=1.0)
        assert "in bfloat16, 1.5 times as fast as float32 here" in console.export_text()
    again = find_study(tmp_path).reopen(slots=[Slot()], precision="auto", cache_dir=cache)
    assert again.timing and again.timing.comparison == begun
    assert [slot.precision for slot in again.slots] == ["bfloat16"]
    with start() as session:  # the slots say which
        assert (session.slots, session.timing) == ([Slot()], None)
