"""The numbers behind the report, each checked against a slower computation or a published value."""

import itertools
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from studies import config

from model import metrics
from reporting import analysis
from tuning.trials import Trial

START = datetime(2026, 3, 14, 9, 0)


def trial(
    number: int,
    value: float | None = None,
    *,
    curve: tuple[float, ...] = (),
    state: TrialState = TrialState.COMPLETE,
    params: dict[str, tuple[Any, BaseDistribution]] | None = None,
    span: tuple[float, float] | None = None,
    epochs: int = 10,
    **attributes: Any,
) -> Trial:
    """Return a finished trial; `span` is when it began and ended, in seconds from START."""
    values = params or {}
    made = optuna.trial.create_trial(
        state=state,
        value=value,
        params={name: value for name, (value, _) in values.items()},
        distributions={name: distribution for name, (_, distribution) in values.items()},
        intermediate_values=dict(enumerate(curve)),
        user_attrs={"config": config(epochs=epochs).to_dict()} | attributes,
    )
    made.number = number
    if span is not None:
        made.datetime_start = START + timedelta(seconds=span[0])
        made.datetime_complete = START + timedelta(seconds=span[1])
    return Trial(made)


class TestTrials:
    def test_complete_trials_rank_above_pruned_ones(self) -> None:
        trials = [
            trial(0, 0.3),
            trial(1, curve=(0.9,), state=TrialState.PRUNED),
            trial(2, 0.5),
            trial(3, state=TrialState.FAIL),
            trial(4, 0.5),
        ]
        assert [one.number for one in analysis.ranked(trials)] == [2, 4, 0, 1]

    def test_paused_trials_count_as_trained_and_running_ones_do_not(self) -> None:
        trials = [
            trial(0, curve=(0.3,), state=TrialState.RUNNING, paused=True),
            trial(1, curve=(0.9,), state=TrialState.RUNNING),
            trial(2, curve=(0.4,), state=TrialState.PRUNED),
        ]
        assert [one.number for one in analysis.ranked(trials)] == [2, 0]
        assert analysis.tally(trials) == {"pruned": 1, "paused": 1, "running": 1}

    def test_the_best_so_far_counts_complete_trials_alone(self) -> None:
        trials = [
            trial(0, curve=(0.9,), state=TrialState.PRUNED),
            trial(1, 0.3),
            trial(2, 0.2),
            trial(3, 0.4),
            trial(4, state=TrialState.FAIL),
        ]
        assert analysis.best_so_far(trials) == [(1, 0.3), (3, 0.4), (4, 0.4)]
        assert analysis.best_so_far(trials[:1]) == []
        waiting = [trial(n, state=TrialState.WAITING) for n in range(5, 13)]  # as the portfolio of a new study
        assert analysis.best_so_far([*trials, *waiting]) == analysis.best_so_far(trials)

    def test_a_sample_keeps_the_best_and_the_baselines(self) -> None:
        trials = [trial(n, n / 100, **({"baseline": "a recipe"} if n == 3 else {})) for n in range(100)]
        chosen = [one.number for one in analysis.sampled(trials, 40)]
        assert len(chosen) == len(set(chosen)) == 40
        assert chosen[:6] == [99, 98, 97, 96, 95, 3]
        assert [one.number for one in analysis.sampled(trials, 100)] == list(reversed(range(100)))


class TestShares:
    def test_wilsons_interval_is_the_published_one(self) -> None:
        """Newcombe 1998, table I: 81 of 263 and 0 of 20."""
        assert analysis.wilson(81 / 263, 263) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
        assert analysis.wilson(0, 20) == (0, pytest.approx(0.1611, abs=5e-5))
        with pytest.raises(ValueError, match=r"^`pictures > 0` must hold, but got 0$"):
            analysis.wilson(0.5, 0)

    def test_the_difference_is_the_published_one(self) -> None:
        """Newcombe 1998, "Interval estimation for the difference", table II, method 10: those of equally many."""
        published = {
            (9, 3, 10): (0.1705, 0.8090),
            (6, 2, 7): (0.0582, 0.8062),
            (0, 0, 10): (-0.2775, 0.2775),
            (10, 0, 10): (0.6075, 1.0),
        }
        for (first, second, of), (low, high) in published.items():
            found = metrics.difference(first / of, second / of, of)
            assert found == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))

    @settings(max_examples=30)
    @given(st.integers(5, 200), st.floats(0.05, 0.95))
    def test_the_interval_holds_the_truth_as_often_as_it_says(self, pictures: int, truth: float) -> None:
        right = np.random.default_rng(pictures).binomial(pictures, truth, 400)
        bounds = {count: analysis.wilson(count / pictures, pictures) for count in set(right.tolist())}
        held = np.mean([bounds[count][0] <= truth <= bounds[count][1] for count in right.tolist()])
        assert held > 0.85

    def test_mistakes_come_by_how_many_pictures_they_hold(self) -> None:
        confusion = [[5, 2, 0], [0, 9, 3], [2, 0, 2]]
        found = [(one.truth, one.prediction, one.pictures, one.of) for one in analysis.mistakes(confusion, 2)]
        assert found == [(1, 2, 3, 12), (2, 0, 2, 4)]
        assert analysis.commonest_class(confusion) == 12 / 23
        assert analysis.mistakes([[3, 0], [0, 2]], 5) == []


class TestBounds:
    LR = FloatDistribution(1e-3, 1e-1, log=True)

    def hints(
        self, values: list[float], distribution: BaseDistribution, others: int = 3
    ) -> list[tuple[bool, float, int, int]]:
        trials = [trial(n, 0.9 - n / 100, params={"x": (value, distribution)}) for n, value in enumerate(values)]
        trials += [trial(100 + n, 0.1) for n in range(others)]
        return [(hint.upper, hint.bound, hint.at_bound, hint.among) for hint in analysis.bound_hints(trials)]

    def test_a_best_value_at_a_bound_with_its_peers_is_a_hint(self) -> None:
        assert self.hints([0.099, 0.1, 0.02, 0.001], self.LR) == [(True, 0.1, 2, 3)]
        assert self.hints([0.001, 0.00105, 0.001], self.LR) == [(False, 0.001, 3, 3)]
        assert self.hints([64, 64, 32], IntDistribution(32, 64, step=16)) == [(True, 64, 2, 3)]

    def test_alone_or_in_the_middle_it_is_none(self) -> None:
        assert self.hints([0.1, 0.01, 0.01], self.LR) == []
        assert self.hints([0.03, 0.1, 0.1], self.LR) == []
        assert self.hints([0.1, 0.1], self.LR) == []
        assert self.hints([0.1, 0.1, 0.1], self.LR, others=2) == []  # the best three of five
        assert analysis.bound_hints([]) == []

    def test_zero_is_the_nature_of_a_share(self) -> None:
        assert self.hints([0.0, 0.0, 0.0], FloatDistribution(0, 0.5)) == []
        assert self.hints([0.5, 0.5, 0.5], FloatDistribution(0, 0.5)) == [(True, 0.5, 3, 3)]

    def test_choices_and_fixed_values_have_no_bound(self) -> None:
        assert self.hints([1, 1, 1], IntDistribution(1, 1)) == []
        trials = [trial(n, 0.5, params={"x": ("a", CategoricalDistribution(["a", "b"]))}) for n in range(3)]
        assert analysis.bound_hints(trials) == []


def test_leanings_find_what_the_best_have_in_common() -> None:
    choice, unit = CategoricalDistribution(["a", "b"]), FloatDistribution(0, 1)
    rng = np.random.default_rng(0)
    trials = [
        trial(
            n,
            1 - n / 100,
            params={
                "c": ("a" if n < 12 else "ab"[n % 2], choice),
                "x": (float(rng.random()), unit),
                "y": (n / 100, unit),
            },
        )
        for n in range(60)
    ]
    first, second = analysis.leanings(trials, 12)  # x, which is random, has none
    assert (first.name, first.strength, first.best) == ("y", 1.0, 0.055)
    assert first.everywhere == pytest.approx(0.295)
    assert (second.name, second.best, second.share_best) == ("c", "a", 1.0)
    assert second.share_all == pytest.approx(36 / 60)


def test_of_studies_in_which_nothing_matters_few_have_a_leaning() -> None:
    """The three strongest differences were said to be what the best trials prefer, of five against five trials, too."""
    rng, unit = np.random.default_rng(0), FloatDistribution(0, 1)
    studies = [
        [
            trial(n, float(rng.random()), params={name: (float(rng.random()), unit) for name in "abcdef"})
            for n in range(12)
        ]
        for _ in range(20)
    ]
    assert sum(bool(analysis.leanings(one, 5)) for one in studies) <= 4


def test_the_front_is_what_no_other_beats() -> None:
    rng = np.random.default_rng(0)
    trials = [trial(n, float(rng.integers(20)) / 20, flops=int(rng.integers(1, 30))) for n in range(60)]
    trials += [trial(60, 0.5), trial(61, curve=(0.99,), state=TrialState.PRUNED, flops=1)]

    def beaten(one: Trial) -> bool:
        return any(
            other.value >= one.value
            and other.flops <= one.flops
            and (other.value > one.value or other.flops < one.flops)
            for other in trials[:60]
        )

    found = analysis.front(trials)
    assert {(one.flops, one.value) for one in found} == {
        (one.flops, one.value) for one in trials[:60] if not beaten(one)
    }
    assert all(a.flops < b.flops for a, b in itertools.pairwise(found))


def test_savings_count_what_was_not_trained() -> None:
    trials = [
        trial(0, 0.5, curve=(0.1,) * 10, seconds=20.0, key="a"),
        trial(1, curve=(0.1,) * 4, state=TrialState.PRUNED, outcome="pruned", seconds=8.0),
        trial(2, curve=(0.1,) * 2, state=TrialState.PRUNED, outcome="diverged", seconds=4.0),
        trial(3, state=TrialState.FAIL, outcome="duplicate", key="a"),
        trial(4, state=TrialState.PRUNED, outcome="infeasible"),
    ]
    saved = analysis.savings(trials)
    assert (saved.epochs, saved.spared, saved.spared_seconds) == (16, 6, 12.0)
    assert (saved.duplicate_epochs, saved.duplicate_seconds) == (10, 20.0)
    assert saved.share == 6 / 22


def test_the_rank_correlation_is_spearmans() -> None:
    early, final = [0.1, 0.2, 0.2, 0.4, 0.3], [0.5, 0.7, 0.6, 0.8, 0.9]
    trials = [trial(n, b, curve=(a, b)) for n, (a, b) in enumerate(zip(early, final, strict=True))]
    found = analysis.agreement(trials, 1)
    assert found is not None
    ranks = [1, 2.5, 2.5, 5, 4], [1, 3, 2, 4, 5]
    assert (found.correlation, found.trials) == (pytest.approx(np.corrcoef(*ranks)[0, 1]), 5)
    assert analysis.agreement(trials[:3], 1) is None
    assert analysis.agreement(trials, 2) is None


@pytest.mark.parametrize("count", [6, 15, 40])
def test_the_interval_of_the_rank_correlation_holds_the_true_one(count: int) -> None:
    """Of normal values with a correlation of 0.7, whose ranks have 6 / pi asin(0.7 / 2) = 0.68."""
    rng, held = np.random.default_rng(count), 0
    for _ in range(60):
        pairs = rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], size=count)
        found = analysis.agreement(
            [trial(n, float(b), curve=(float(a), float(b) - 9)) for n, (a, b) in enumerate(pairs)], 1
        )
        assert found is not None and -1 <= found.low <= found.correlation <= found.high + 1e-9 <= 1 + 1e-9
        held += found.low <= 0.683 <= found.high
    assert held >= 51


def test_five_trials_in_the_same_order_do_not_make_a_correlation_certain() -> None:
    found = analysis.agreement([trial(n, n / 10, curve=(n / 20, n / 10)) for n in range(5)], 1)
    assert found is not None and found.correlation == pytest.approx(1)
    assert found.low < 0.5


class TestHowItRan:
    def test_reasons_that_differ_in_numbers_are_one(self) -> None:
        trials = [
            trial(n, state=TrialState.FAIL, outcome="duplicate", reason=f"duplicate of trial {n}") for n in range(7)
        ]
        trials += [
            trial(7, curve=(0.1,), state=TrialState.PRUNED, outcome="pruned", reason="pruned after epoch 4"),
            trial(8, curve=(0.1,), state=TrialState.PRUNED, outcome="pruned", reason="pruned after epoch 5"),
            trial(9, state=TrialState.FAIL, outcome="failed", reason="worker died:\n  signal 9"),
            trial(10, state=TrialState.FAIL),
        ]
        found = [(one.text, one.count, one.numbers) for one in analysis.reasons(trials, shown=2)]
        assert found == [
            ("pruned after epoch 4", 1, (7,)),
            ("pruned after epoch 5", 1, (8,)),
            ("duplicate of trial …", 7, (0, 1)),
            ("worker died: signal 9", 1, (9,)),
            ("no reason was stored", 1, (10,)),
        ]
        assert analysis.tally(trials) == {"pruned": 2, "duplicate": 7, "failed": 2}

    def test_the_run_time_leaves_out_the_night(self) -> None:
        trials = [
            trial(0, 0.5, slot=0, span=(0, 100)),
            trial(1, 0.5, slot=1, span=(0, 50)),
            trial(2, 0.5, slot=0, span=(30_000, 30_100)),
            trial(3, state=TrialState.FAIL),
        ]
        time = analysis.run_time(trials)
        assert time is not None
        assert time.pauses == (29_900,)
        assert (time.workers, time.seconds, time.busy) == (2, 200, 250 / 400)
        assert (time.began, time.ended) == (START, START + timedelta(seconds=30_100))

    def test_a_resumed_trial_counts_with_its_own_seconds(self) -> None:
        trials = [
            trial(0, 0.5, slot=0, span=(0, 100)),
            trial(1, 0.5, slot=0, span=(100, 30_050), attempts=2, seconds=40.0),
        ]
        time = analysis.run_time(trials)
        assert time is not None
        assert time.seconds == pytest.approx(100 + 44)
        assert time.pauses == (pytest.approx(30_050 - 44 - 100),)

    def test_a_paused_trial_does_not_occupy_its_slot_until_it_is_retired(self) -> None:
        """With promotion nearly all trials end together; each seemed to have run all the time."""

        def spans(*times: tuple[float, float | None]) -> list[list[float | None]]:
            at = START.timestamp()
            return [[at + begin, None if end is None else at + end] for begin, end in times]

        trials = [
            trial(0, state=TrialState.PRUNED, curve=(0.1,), slot=0, span=(0, 200), spans=spans((0, 50))),
            trial(1, 0.5, slot=0, span=(50, 200), attempts=2, spans=spans((50, 60), (110, 200))),
            trial(2, state=TrialState.RUNNING, curve=(0.1,), slot=0, spans=spans((60, 110)), paused=True),
        ]
        trials[2].frozen.datetime_start = START + timedelta(seconds=60)
        time = analysis.run_time(trials)
        assert time is not None
        assert (time.seconds, time.busy, time.pauses) == (200, 1.0, ())
        assert [len(spans) for spans in analysis.in_slots(trials).values()] == [1, 2, 1]

    def test_of_a_killed_process_the_training_time_is_known(self) -> None:
        at = START.timestamp()
        trials = [
            trial(
                0,
                0.5,
                slot=0,
                span=(0, 30_020),
                attempts=2,
                seconds=100.0,
                spans=[[at, None], [at + 30_000, at + 30_020]],
            )
        ]
        time = analysis.run_time(trials)
        assert time is not None
        assert time.seconds == pytest.approx(110)
        assert time.pauses == (pytest.approx(30_000 - 90),)

    def test_without_a_slot_there_is_none(self) -> None:
        assert analysis.run_time([trial(0, 0.5)]) is None
        assert analysis.run_time([]) is None
