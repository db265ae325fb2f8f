"""Schedulers: promotion, Optuna's pruners, and the coordinator's promise to one that pauses and resumes trials."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from studies import HERE, TINY, ThreadWorkers, Tiny, outcomes, prepare, until

from search_space import GUESS, HAND_TUNED, ORIGINAL, baselines
from tests.stress.sameness import essence
from tuning import scheduling
from tuning.coordinator import Coordinator
from tuning.devices import Slot
from tuning.events import Ending, StudyEvent, TrialEnded, TrialPaused, TrialStarted
from tuning.folder import sqlite_url
from tuning.scheduling import (
    SCHEDULERS,
    Decision,
    PromotionScheduler,
    PrunerScheduler,
    Resume,
    first_pruning,
    kept_share,
    rungs,
    trained_share,
    warmup_epochs,
)
from tuning.trials import Outcome, Trial, count_trials, read_history, read_trial, read_trials

RUNGS = (1, 2)
"""Epochs after which `promotion` pauses a trial; from the last one it is trained to its end, a third epoch."""
ETA = 2
"""One of this many trials is promoted."""
TRIALS = 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


def promotion(study: optuna.Study) -> PromotionScheduler:
    """Return the scheduler of a study with two rungs, of which half of the trials are promoted."""
    return PromotionScheduler(RUNGS, 1 / ETA)


class PausesOnce(PrunerScheduler):
    """Pauses each trial after its first epoch and resumes the oldest one once `waiting` of them wait."""

    waiting = 1

    def after_epoch(self, trial: Trial) -> Decision:
        return Decision.PAUSE if trial.epochs == 1 else Decision.CONTINUE

    def for_free_slot(self, trials: Sequence[Trial], *, new_wanted: bool) -> Resume | None:
        paused = [trial for trial in trials if trial.is_paused]
        return Resume(paused[0].number) if len(paused) >= self.waiting else None


class PausesAll(PausesOnce):
    """Pauses each trial after its first epoch and never resumes one."""

    waiting = TRIALS + 1


def read(study: Tiny) -> list[Trial]:
    return [Trial(frozen) for frozen in study.trials()]


def assert_finished(study: Tiny, coordinator: Coordinator, trials: int = TRIALS) -> None:
    """Check that the study ended by itself with this many counted trials, none of them unfinished."""
    assert coordinator.ending is Ending.TRIALS
    assert count_trials(read(study)) == trials
    assert all(trial.is_finished and not trial.is_paused for trial in read(study))


def assert_retired(study: Tiny, trial: Trial) -> None:
    """Check that a trial was pruned where it was paused, with all that is known of it."""
    assert (trial.state, trial.outcome, trial.value) == (TrialState.PRUNED, Outcome.PRUNED, None)
    assert trial.epochs in RUNGS and f"after epoch {trial.epochs}" in (trial.reason or "")
    history = read_history(study.study_folder, trial.number)
    assert {metrics.epoch: metrics.top1 for metrics in history} == trial.curve
    assert trial.result and trial.result.top1 == max(trial.curve.values())
    assert trial.result.seconds == pytest.approx(sum(metrics.seconds for metrics in history), abs=0.01)
    assert {path.name for path in study.directory(trial.number).iterdir()} == {"history.json"}


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A finished study with promotion and one slot."""
    study = tiny.at(tmp_path_factory.mktemp("undisturbed"))
    coordinator = study.coordinator(TRIALS, make_scheduler=promotion)
    list(coordinator.run())
    assert_finished(study, coordinator)
    return study


# -- the promise to a scheduler that promotes


def test_a_study_with_promotion_ends_and_retires_what_was_not_promoted(undisturbed: Tiny) -> None:
    trials = read(undisturbed)
    assert len(trials) == TRIALS
    promoted = [[trial for trial in trials if trial.epochs > rung] for rung in RUNGS]
    # At least half of a rung; more if a promoted trial was overtaken later.
    assert TRIALS // ETA <= len(promoted[0]) < TRIALS
    assert len(promoted[0]) // ETA <= len(promoted[1]) < len(promoted[0])
    assert {trial.outcome for trial in promoted[1]} == {Outcome.COMPLETE}
    for trial in trials:
        if trial not in promoted[1]:
            assert_retired(undisturbed, trial)
    best = max(trials, key=lambda trial: trial.curve[0])
    assert best in promoted[0]


def test_two_slots_train_each_trial_once_and_end_alike(tiny: Tiny, tmp_path: Path) -> None:
    study = tiny.at(tmp_path)
    workers = ThreadWorkers([Slot(), Slot()])
    coordinator = study.coordinator(TRIALS, workers=workers, make_scheduler=promotion)
    busy: dict[int, int] = {}
    for event in coordinator.run():
        if isinstance(event, TrialStarted):
            assert event.slot not in busy and event.number not in busy.values()
            busy[event.slot] = event.number
        elif isinstance(event, TrialPaused | TrialEnded) and event.slot is not None:
            assert busy.pop(event.slot) == event.number
    assert_finished(study, coordinator)
    for trial in read(study):
        if trial.outcome is Outcome.PRUNED:
            assert_retired(study, trial)


def test_baselines_are_paused_and_retired_like_others(tiny: Tiny, tmp_path: Path) -> None:
    study = tiny.at(tmp_path)
    stored = study.open(first_trials=baselines(TINY))
    events = list(study.coordinator(4, study=stored, make_scheduler=PausesAll).run())
    assert [event.number for event in events if isinstance(event, TrialPaused)] == [0, 1, 2, 3]
    trials = read(study)
    assert [trial.baseline for trial in trials] == [ORIGINAL, HAND_TUNED, GUESS, None]
    for trial in trials:
        assert_retired(study, trial)


def progress(study: Tiny) -> tuple[int, int]:
    """Return how many epochs were reported and how many trials have finished."""
    states = study.epochs().values()
    return sum(epochs for _, epochs in states), sum(state not in ("RUNNING", "WAITING") for state, _ in states)


@pytest.mark.long
def test_interrupted_after_every_step_it_equals_the_undisturbed_study(
    tiny: Tiny, undisturbed: Tiny, tmp_path: Path
) -> None:
    """Each run is left after its first new epoch or finished trial: at once, or one, two or three events later.

    That is before and after the decision, within an epoch, when a trial has just been resumed, and while the last ones
    are retired. The next run has new objects for everything, as a new process has.
    """
    study = tiny.at(tmp_path)
    interruptions = 0
    while True:
        coordinator = study.coordinator(TRIALS, make_scheduler=promotion)
        before = progress(study)
        with contextlib.closing(coordinator.run()) as run:
            for _ in run:
                if progress(study) != before:
                    list(itertools.islice(run, interruptions % 4))
                    interruptions += 1
                    break
        if coordinator.ending is not None:
            break
    assert interruptions == 2 * TRIALS
    assert_finished(study, coordinator)
    assert essence(study.trials()) == essence(undisturbed.trials())


KILLED = """
import pickle, sys
from studies import Tiny
from test_scheduling import TRIALS, promotion

if __name__ == "__main__":
    study: Tiny = pickle.load(sys.stdin.buffer)
    for _ in study.coordinator(TRIALS, make_scheduler=promotion).run():
        pass
"""


@pytest.mark.long
def test_killed_again_and_again_it_equals_the_undisturbed_study(tiny: Tiny, undisturbed: Tiny, tmp_path: Path) -> None:
    """Processes are killed after the first, second or third new epoch, each 20 ms later, until one ends by itself."""
    study = tiny.at(tmp_path / "results")
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    path = os.pathsep.join([str(HERE), str(HERE / "tests")])
    for kills in itertools.count():
        epochs = progress(study)[0] + 1 + kills % 3
        with subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
        ) as process:
            assert process.stdin is not None
            process.stdin.write(pickle.dumps(study))
            process.stdin.close()
            until(
                lambda epochs=epochs, process=process: progress(study)[0] >= epochs or process.poll() is not None,
                "a new epoch or the end of the study",
            )
            time.sleep(0.02 * kills)
            process.kill()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    assert kills >= 3
    assert count_trials(read(study)) == TRIALS and all(trial.is_finished for trial in read(study))
    assert essence(study.trials()) == essence(undisturbed.trials())


def test_paused_trials_are_resumed_and_end_like_trials_that_never_paused(tiny: Tiny, tmp_path: Path) -> None:
    """Three wait when time is up; the next run, with another scheduler, resumes them one by one."""
    plain, pausing = tiny.at(tmp_path / "plain"), tiny.at(tmp_path / "pausing")
    list(plain.coordinator(3).run())
    coordinator = pausing.coordinator(9, make_scheduler=PausesAll)
    with contextlib.closing(coordinator.run()) as run:
        paused = (event.number for event in run if isinstance(event, TrialPaused))
        assert list(itertools.islice(paused, 3)) == [0, 1, 2]
    assert all(trial.is_paused and trial.is_running for trial in read(pausing))

    ended = outcomes(list(pausing.coordinator(3, make_scheduler=PausesOnce).run()))
    assert ended == [(number, Outcome.COMPLETE) for number in range(3)]
    assert [(trial.is_paused, trial.resumed_after) for trial in read(pausing)] == [(False, 1)] * 3
    assert essence(pausing.trials()) == essence(plain.trials())


@pytest.mark.long
def test_when_time_is_up_paused_trials_stay_paused_and_the_next_run_resumes_them(
    tiny: Tiny, undisturbed: Tiny, tmp_path: Path
) -> None:
    study = tiny.at(tmp_path)
    hasty = study.coordinator(TRIALS, make_scheduler=promotion)
    run = hasty.run()
    assert any(isinstance(event, TrialPaused) and event.number == 1 for event in run)
    run.close()
    waiting = [trial.number for trial in read(study) if trial.is_paused]
    hasty = study.coordinator(TRIALS, make_scheduler=promotion, timeout=1e-9)
    assert list(hasty.run()) == [] and hasty.ending is Ending.TIMEOUT
    assert [trial.number for trial in read(study) if trial.is_paused] == waiting == [0, 1]

    stopped = study.coordinator(TRIALS, make_scheduler=promotion)
    stopped.stop()
    assert list(stopped.run()) == [] and stopped.ending is Ending.STOPPED
    assert [trial.number for trial in read(study) if trial.is_paused] == waiting

    coordinator = study.coordinator(TRIALS, make_scheduler=promotion)
    list(coordinator.run())
    assert_finished(study, coordinator)
    assert essence(study.trials()) == essence(undisturbed.trials())


def test_a_trial_with_too_little_memory_says_so_when_it_is_retired(tiny: Tiny, tmp_path: Path) -> None:
    study = tiny.at(tmp_path)
    with contextlib.closing(study.coordinator(1, make_scheduler=PausesAll).run()) as run:
        assert any(isinstance(event, TrialPaused) for event in run)
    (paused,) = read_trials(study.open())
    study.open()._storage.set_trial_user_attr(paused.frozen._trial_id, "micro_batch", 8)
    list(study.coordinator(1, make_scheduler=PausesAll).run())
    assert "8 pictures at a time" in (read(study)[0].reason or "")


def test_a_reached_target_ends_the_study_and_retires_what_is_paused(tiny: Tiny, tmp_path: Path) -> None:
    """Even if no new trial is wanted any more; the scheduler is not asked to resume one."""

    class PausesTheFirst(PausesAll):
        def after_epoch(self, trial: Trial) -> Decision:
            return super().after_epoch(trial) if trial.number == 0 else Decision.CONTINUE

    for trials in (2, 9):
        study = tiny.at(tmp_path / str(trials))
        coordinator = study.coordinator(trials, make_scheduler=PausesTheFirst, target=0.01)
        ended = outcomes(list(coordinator.run()))
        assert ended == [(1, Outcome.COMPLETE), (0, Outcome.PRUNED)]
        assert coordinator.ending is (Ending.TRIALS if trials == 2 else Ending.TARGET)
        assert_retired(study, read(study)[0])


def test_at_the_target_no_paused_trial_is_resumed(tiny: Tiny, tmp_path: Path) -> None:
    """All of the study's trials have begun, and the first one to be resumed reaches the target."""
    study = tiny.at(tmp_path)

    class ResumesLate(PausesAll):
        def for_free_slot(self, trials: Sequence[Trial], *, new_wanted: bool) -> Resume | None:
            paused = [trial for trial in trials if trial.is_paused]
            return Resume(paused[0].number) if paused and not new_wanted else None

    coordinator = study.coordinator(3, make_scheduler=ResumesLate, target=0.01)
    ended = outcomes(list(coordinator.run()))
    assert ended == [(0, Outcome.COMPLETE), (1, Outcome.PRUNED), (2, Outcome.PRUNED)]


def test_a_paused_trial_that_another_program_fails_is_replaced_by_a_new_one(tiny: Tiny, tmp_path: Path) -> None:
    """While the paused trials are retired, of which it would have been the last one."""
    study = tiny.at(tmp_path)
    coordinator = study.coordinator(2, make_scheduler=PausesAll)
    events: list[StudyEvent] = []
    for event in coordinator.run():
        events.append(event)
        if isinstance(event, TrialEnded) and event.number == 0:
            stranger = optuna.load_study(study_name="tiny", storage=sqlite_url(study.study_folder))
            stranger.tell(1, state=TrialState.FAIL)
    assert outcomes(events) == [(0, Outcome.PRUNED), (1, None), (2, Outcome.PRUNED)]
    assert coordinator.ending is Ending.TRIALS
    assert [trial.counts for trial in read(study)] == [True, False, True]


def test_a_decision_to_resume_survives_the_end_of_the_process(tiny: Tiny, tmp_path: Path) -> None:
    """The trial was once asked about again after its last reported epoch, and paused or pruned there."""
    study = tiny.at(tmp_path)
    with contextlib.closing(study.coordinator(1, make_scheduler=PausesOnce).run()) as run:
        starts = (event.attempt for event in run if isinstance(event, TrialStarted))
        assert list(itertools.islice(starts, 2)) == [1, 2]
    events = list(study.coordinator(1, make_scheduler=PausesAll).run())
    assert outcomes(events) == [(0, Outcome.COMPLETE)]
    assert not any(isinstance(event, TrialPaused) for event in events)


# -- Optuna's pruners


def test_the_pruner_scheduler_asks_the_studys_pruner_and_resumes_what_another_scheduler_has_paused() -> None:
    class PrunesPoor(optuna.pruners.NopPruner):
        def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
            return trial.intermediate_values[0] < 0.5

    study = optuna.create_study(direction="maximize", pruner=PrunesPoor())
    for value in (0.25, 0.75, 0.75):
        study.ask().report(value, 0)
    for number in (1, 2):
        study._storage.set_trial_user_attr(study.get_trials()[number]._trial_id, "paused", True)
    poor, good, other = read_trials(study)
    scheduler = PrunerScheduler(study)
    assert scheduler.after_epoch(poor) is Decision.PRUNE
    assert scheduler.after_epoch(good) is Decision.CONTINUE
    assert scheduler.for_free_slot([poor, good, other], new_wanted=True) == Resume(1)
    assert scheduler.for_free_slot([poor], new_wanted=True) is None


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 2), (5, 2), (10, 3), (15, 4), (100, 30)])
def test_warm_up_is_thirty_per_cent_and_at_least_two_epochs(epochs: int, warmup: int) -> None:
    assert warmup_epochs(epochs) == warmup


@pytest.mark.parametrize("name", ["median", "asha", "none"])
def test_no_pruner_prunes_during_warm_up_or_a_baseline(name: str) -> None:
    epochs = 10
    study = optuna.create_study(direction="maximize")
    scheduler = SCHEDULERS[name](study, epochs)

    def decisions(value: float, **attributes: str) -> list[Decision]:
        """Train a trial that reaches the same value after each epoch."""
        study.enqueue_trial({}, user_attrs=attributes)
        trial, decided = study.ask(), list[Decision]()
        for epoch in range(epochs):
            trial.report(value, epoch)
            decided.append(scheduler.after_epoch(read_trial(trial)))
        study.tell(trial, value)
        return decided

    for _ in range(8):
        assert set(decisions(0.9)) == {Decision.CONTINUE}
    assert set(decisions(0.1, baseline=ORIGINAL)) == {Decision.CONTINUE}
    poor = decisions(0.1)
    assert Decision.PRUNE not in poor[: warmup_epochs(epochs)]
    assert (Decision.PRUNE in poor) == (name != "none")
    assert (first_pruning(name, epochs) is None) == (name == "none")


# -- promotion, without training


def at(number: int, *curve: float, paused: bool = False, lr_decay: str = "one-cycle") -> Trial:
    """Return a running trial with this curve and lr schedule."""
    made = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params={"lr_decay": lr_decay},
        distributions={"lr_decay": optuna.distributions.CategoricalDistribution(["step", "one-cycle"])},
        intermediate_values=dict(enumerate(curve)),
        user_attrs={"paused": paused},
    )
    made.number = number
    return Trial(made)


def test_the_best_share_of_a_rung_is_promoted_and_the_highest_rung_first() -> None:
    scheduler = PromotionScheduler([1, 3], keep=0.5)
    trials = [at(0, 0.3, paused=True), at(1, 0.5, paused=True)]
    assert scheduler.for_free_slot(trials[:1], new_wanted=True) is None
    assert scheduler.for_free_slot(trials, new_wanted=True) == Resume(1)
    trials = [at(0, 0.3, paused=True), at(1, 0.5, 0.5, 0.6, paused=True), at(2, 0.4, 0.5, 0.5, paused=True)]
    assert scheduler.for_free_slot(trials, new_wanted=True) == Resume(1)
    trials[1] = at(1, 0.5, 0.5, 0.6, 0.7)
    assert scheduler.for_free_slot(trials, new_wanted=True) is None, "its place is taken, and half of three is one"


def test_a_trial_is_judged_by_what_it_had_reached_at_the_rung_and_the_earlier_of_equals_is_promoted() -> None:
    scheduler = PromotionScheduler([2], keep=0.4)
    trials = [at(0, 0.4, 0.2, 0.9), at(1, 0.1, 0.5, paused=True), at(2, 0.5, 0.1, paused=True)]
    assert scheduler.for_free_slot(trials, new_wanted=True) == Resume(1)


def test_a_trial_that_fell_behind_is_promoted_once_enough_worse_ones_have_come() -> None:
    scheduler = PromotionScheduler([1], keep=0.5)
    trials = [at(0, 0.5, 0.6), at(1, 0.4, paused=True), at(2, 0.3, paused=True)]
    assert scheduler.for_free_slot(trials, new_wanted=False) is None
    assert scheduler.for_free_slot([*trials, at(3, 0.1, paused=True)], new_wanted=False) == Resume(1)


def test_trials_are_compared_only_with_those_of_the_same_lr_schedule() -> None:
    """A study of the field guide left nearly all one-cycle trials behind before their learning rate had peaked."""
    scheduler = PromotionScheduler([1], keep=0.5)
    steps = [at(number, 0.6, 0.7, lr_decay="step") for number in range(2)]
    steps += [at(number, 0.5, paused=True, lr_decay="step") for number in range(2, 4)]
    slow = [at(4, 0.2, paused=True), at(5, 0.3, paused=True)]
    assert scheduler.for_free_slot([*steps, *slow], new_wanted=True) == Resume(5)
    assert scheduler.for_free_slot([*steps, slow[0], at(5, 0.3, 0.4)], new_wanted=True) is None


def test_in_a_small_study_the_best_trial_is_promoted_once_no_new_ones_are_wanted() -> None:
    """With a share of 30 % and two rungs, a study of fewer than 14 trials would have trained none to its end."""
    scheduler = PromotionScheduler([1, 2], keep=0.3)
    trials = [at(0, 0.3, paused=True), at(1, 0.5, paused=True), at(2, 0.4, paused=True)]
    assert scheduler.for_free_slot(trials, new_wanted=True) is None
    assert scheduler.for_free_slot(trials, new_wanted=False) == Resume(1)
    trials[1] = at(1, 0.5, 0.5)
    assert scheduler.for_free_slot(trials, new_wanted=False) is None, "the best one is running"
    trials[1] = at(1, 0.5, 0.5, paused=True)
    assert scheduler.for_free_slot(trials, new_wanted=False) == Resume(1)
    trials[1] = at(1, 0.5, 0.5, 0.6)
    assert scheduler.for_free_slot(trials, new_wanted=False) is None


@pytest.mark.parametrize("trials", [1, 3])
def test_a_study_of_few_trials_with_the_default_scheduler_trains_one_to_its_end(
    tiny: Tiny, tmp_path: Path, trials: int
) -> None:
    study = tiny.at(tmp_path)
    coordinator = study.coordinator(trials, make_scheduler=lambda study: PromotionScheduler(RUNGS, 0.5))
    list(coordinator.run())
    assert_finished(study, coordinator, trials)
    ended = [trial.outcome for trial in read(study)]
    assert Outcome.COMPLETE in ended and set(ended) <= {Outcome.COMPLETE, Outcome.PRUNED}


@pytest.mark.parametrize("epochs", [*range(1, 12), 60, 94, 300])
def test_the_default_rungs_are_whole_epochs_at_their_shares_of_the_horizon(epochs: int) -> None:
    found = rungs(epochs)
    assert found == tuple(sorted(set(found))) and all(1 <= rung < epochs for rung in found)
    assert set(found) == {max(1, round(share * epochs)) for share in scheduling.RUNGS} - {epochs}
    assert kept_share(epochs) ** max(1, len(found)) == pytest.approx(scheduling.FINISHING)
    assert first_pruning("promote", epochs) == (found[0] if found else None)
    scheduler = SCHEDULERS["promote"](optuna.create_study(), epochs)
    paused = [n for n in range(1, epochs) if scheduler.after_epoch(at(0, *[0.5] * n)) is Decision.PAUSE]
    assert tuple(paused) == found


@pytest.mark.parametrize(
    ("scheduler", "epochs", "first"), [("median", 10, 4), ("asha", 60, 19), ("median", 3, None), ("none", 60, None)]
)
def test_pruners_end_no_trial_before_warm_up_is_over_nor_in_the_last_epoch(
    scheduler: str, epochs: int, first: int | None
) -> None:
    assert first_pruning(scheduler, epochs) == first
    assert trained_share(scheduler, epochs) == (1.0 if first is None else 0.7)


@pytest.mark.parametrize("epochs", [1, 3, 8, 60])
def test_the_expected_share_of_epochs_is_that_of_a_study_with_one_slot(epochs: int) -> None:
    """It is more than the rungs' shares: a trial that is promoted early may be overtaken later."""
    scheduler, random = SCHEDULERS["promote"](optuna.create_study(), epochs), Random(0)
    trials: dict[int, Trial] = {}
    while True:
        action = scheduler.for_free_slot(list(trials.values()), new_wanted=len(trials) < 40)
        if action is None and len(trials) == 40:
            break
        number = action.number if isinstance(action, Resume) else len(trials)
        value = trials[number].curve[0] if number in trials else random.random()
        for n in range(trials[number].epochs + 1 if number in trials else 1, epochs + 1):
            trials[number] = at(number, *[value] * n)
            if scheduler.after_epoch(trials[number]) is Decision.PAUSE:
                trials[number] = at(number, *[value] * n, paused=True)
                break
    trained = sum(trial.epochs for trial in trials.values()) / (40 * epochs)
    assert trained == pytest.approx(trained_share("promote", epochs), abs=0.07)
    finished = [trial for trial in trials.values() if trial.epochs == epochs]
    if epochs > 1:
        assert len(finished) >= int(scheduling.FINISHING * 40) - len(rungs(epochs))
        assert max(trials.values(), key=lambda trial: trial.curve[0]) in finished
