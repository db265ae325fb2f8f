"""What happens next to a trial: the pruners by name, and schedulers that pause."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from studies import Tiny, outcomes, prepare

from model.training import EpochMetrics
from tests.stress.sameness import essence
from tuning.coordinator import TrialPaused
from tuning.scheduling import PRUNERS, Decision, PrunerScheduler, warmup_epochs
from tuning.storage import Outcome


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


class PausesOnce:
    """Pauses each trial after its first epoch, and goes on with the oldest when `waiting` of them wait."""

    def __init__(self, waiting: int) -> None:
        self._waiting = waiting

    def after_epoch(self, trial: optuna.Trial, metrics: EpochMetrics) -> Decision:
        return Decision.PAUSE if metrics.epoch == 0 else Decision.GO_ON

    def resume(self, paused: Sequence[int]) -> int | None:
        return paused[0] if len(paused) >= self._waiting else None


def test_paused_trials_go_on_and_end_with_the_values_of_unpaused_ones(tiny: Tiny, tmp_path: Path) -> None:
    """The coordinator is replaced while three wait; the next one's scheduler resumes them one by one."""
    plain, pausing = tiny.at(tmp_path / "plain"), tiny.at(tmp_path / "pausing")
    list(plain.coordinator(3).run())
    run = pausing.coordinator(3, scheduler=PausesOnce(4)).run()
    assert [event.number for event in run if isinstance(event, TrialPaused)] == [0, 1, 2]
    assert [trial.state for trial in pausing.trials()] == [TrialState.RUNNING] * 3
    assert all(trial.user_attrs["paused"] is True for trial in pausing.trials())

    ended = outcomes(list(pausing.coordinator(3, scheduler=PausesOnce(1)).run()))
    assert ended == [(number, Outcome.COMPLETE) for number in range(3)]
    assert [trial.user_attrs["paused"] for trial in pausing.trials()] == [False] * 3
    assert essence(pausing.trials()) == essence(plain.trials())


def test_the_pruner_scheduler_goes_on_with_what_another_has_paused() -> None:
    assert PrunerScheduler().resume([4, 2]) == 4
    assert PrunerScheduler().resume([]) is None


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 2), (5, 2), (10, 3), (15, 4), (100, 30)])
def test_warm_up_is_thirty_per_cent_and_never_under_two(epochs: int, warmup: int) -> None:
    assert warmup_epochs(epochs) == warmup


@pytest.mark.parametrize("name", PRUNERS)
def test_no_pruner_ends_a_trial_in_its_warm_up(name: str) -> None:
    epochs = 10
    study = optuna.create_study(direction="maximize", pruner=PRUNERS[name](epochs))
    for _ in range(8):
        good = study.ask()
        for epoch in range(epochs):
            good.report(0.9, epoch)
            good.should_prune()  # successive halving notes a trial's rungs when it is asked
        study.tell(good, 0.9)
    poor, pruned = study.ask(), []
    for epoch in range(epochs):
        poor.report(0.1, epoch)
        pruned.append(poor.should_prune())
    assert not any(pruned[: warmup_epochs(epochs)])
    assert any(pruned) == (name != "none")
