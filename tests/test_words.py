"""Numbers, times, names and configurations as text."""

import pytest
from studies import recorded

from reporting import words
from tuning.trials import Outcome, Trial


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1 s"),
        (0.4, "1 s"),
        (59.6, "60 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (3600, "60 min"),
        (5400, "1.5 h"),
        (1e5, "27.8 h"),
        (1e6, "11.6 days"),
    ],
)
def test_a_time_has_the_unit_that_a_person_would_use(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(("share", "text"), [(0.6385, "63.85 %"), (1.0, "100.00 %"), (0.0, "0.00 %"), (None, "-")])
def test_a_share_is_a_percentage_with_two_digits(share: float | None, text: str) -> None:
    assert words.percent(share) == text


def test_a_share_may_have_fewer_digits() -> None:
    assert [words.percent(0.644, digits) for digits in (0, 1)] == ["64 %", "64.4 %"]


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(2, 3, "67 % (21 to 94)"), (1, 1, "100 % (21 to 100)"), (0, 0, "-")]
)
def test_a_share_of_few_has_its_interval_and_one_of_nothing_is_none(part: int, whole: int, text: str) -> None:
    assert words.share_of(part, whole) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.000106, "0.000106"),
        (1e-6, "1e-6"),
        (3.2e-7, "3.2e-7"),
        (0.25, "0.25"),
        (64, "64"),
        (1234.5, "1,234"),
        (1e8, "100,000,000"),
        (-0.05, "-0.05"),
        (2.5e13, "2.5e+13"),
    ],
)
def test_numbers_are_written_as_people_do(value: float, text: str) -> None:
    assert words.number(value) == text


def test_long_names_are_cut_by_their_width() -> None:
    assert words.short("Suillus", 7) == "Suillus"
    assert words.short("Cortinarius", 7) == "Cortin…"
    assert words.short("きのこきのこ", 7) == "きのこ…"
    assert words.short("two\nlines\x00", 20) == "two lines"


def test_counts_and_lists_read_as_english() -> None:
    assert [words.plural(count, "class", "classes") for count in (1, 2)] == ["1 class", "2 classes"]
    assert [words.listed(list("abc")[:count]) for count in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert words.points(-0.133) == "13.3 points"
    assert [words.times(count) for count in (1, 2)] == ["once", "2 times"]
    assert [words.value_text(value) for value in (True, None, 1e-6, "late")] == ["yes", "none", "1e-6", "late"]


def test_how_far_trials_were_trained_is_told_by_epoch_or_as_a_range() -> None:
    def trials(*epochs: int) -> list[Trial]:
        return [Trial(recorded([0.5] * count, outcome=Outcome.PRUNED)) for count in epochs]

    complete = Trial(recorded([0.1, 0.2, 0.3]))
    assert words.how_far([complete, *trials(1, 2, 1, 0)]) == "1 to the last epoch, 1 to epoch 2 and 2 to epoch 1"
    assert words.how_far([complete, *trials(4, 5, 6, 9)]) == "1 to the last epoch and 4 to epochs 4 to 9"
    assert words.how_far(trials(0)) == ""
    recipe = Trial(recorded([0.25, 0.5], outcome=Outcome.PRUNED, baseline="original recipe"))
    assert words.stopped_baselines([complete, recipe, *trials(1)]) == "original recipe 50.0 % after epoch 2"
    assert [words.numbered_epochs(rungs) for rungs in ([8], [8, 24])] == ["epoch 8", "epochs 8 and 24"]
