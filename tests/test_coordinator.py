"""The coordinator, in this process, with workers that are threads and train for real."""

from __future__ import annotations

import contextlib
import itertools
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.pruners import MedianPruner, NopPruner
from optuna.trial import TrialState
from studies import TINY, ThreadWorkers, Tiny, advanced, one_core, outcomes, prepare

from model.training import EpochMetrics
from search_space import GUESS, HAND_TUNED, ORIGINAL, Config, baselines, suggest
from tests.stress.sameness import essence
from tuning import StudyError
from tuning.coordinator import UNCOUNTED_IN_A_ROW
from tuning.devices import Slot
from tuning.events import Ending, TrialAdvanced, TrialRequeued, TrialStarted
from tuning.folder import sqlite_url
from tuning.jobs import FailureKind, Progress, TrialFailure, TrialJob, WorkerMessage, WorkerReady
from tuning.scheduling import PromotionScheduler
from tuning.space import random_points
from tuning.trials import Outcome, Trial


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


def read(study: Tiny) -> list[Trial]:
    return [Trial(frozen) for frozen in study.trials()]


@pytest.mark.long
def test_interrupted_after_every_epoch_it_equals_an_undisturbed_study(tiny: Tiny, tmp_path: Path) -> None:
    """Each run is left after its first new epoch, by turns before the decision about it and within the next epoch.

    The next run has new objects for everything, as a new process has. Once the pruner was asked about a resumed trial
    after the first of its repeated epochs, and a trial pruned there lost the later ones from its record.
    """
    pruner = MedianPruner(n_startup_trials=1, n_warmup_steps=1, n_min_trials=1)
    whole, broken = tiny.at(tmp_path / "whole"), tiny.at(tmp_path / "broken")
    ended = outcomes(list(whole.coordinator(4, study=whole.open(pruner=pruner)).run()))
    assert {outcome for _, outcome in ended} == {Outcome.COMPLETE, Outcome.PRUNED}

    interruptions, ending = 0, None
    while ending is None:
        coordinator = broken.coordinator(4, study=broken.open(pruner=pruner))
        known = sum(count for _, count in broken.epochs().values())
        with contextlib.closing(coordinator.run()) as run:
            for event in run:
                new = sum(count for _, count in broken.epochs().values()) > known
                if new and isinstance(event, TrialAdvanced) and isinstance(event.progress, EpochMetrics):
                    interruptions += 1
                    list(itertools.islice(run, 0 if event.progress.epoch == 1 else 2))
                    break
        ending = coordinator.ending
    assert interruptions >= 6
    assert essence(broken.trials()) == essence(whole.trials())


class Faulty(ThreadWorkers):
    """Workers whose first `faults` jobs fail: out of memory during training, or dead before the first epoch."""

    def __init__(self, kind: FailureKind, faults: int) -> None:
        super().__init__()
        self._kind, self._faults = kind, faults
        self.jobs: list[TrialJob] = []

    def start(self, slot: int, job: TrialJob) -> None:
        super().start(slot, job)
        self.jobs.append(job)
        if len(self.jobs) <= self._faults:
            link, send = self._links[slot], self._links[slot].send

            def faulty(message: WorkerMessage) -> None:
                if not isinstance(message, WorkerReady | TrialFailure):
                    if self._kind is FailureKind.OUT_OF_MEMORY:
                        torch.empty(2**48)
                    message = TrialFailure(kind=self._kind, reason="a fault")
                send(message)

            link.send = faulty


def test_the_environment_stored_with_a_trial_is_its_workers(tiny: Tiny, tmp_path: Path) -> None:
    """A worker may run on another machine than the coordinator; a resumed trial has that of its last worker."""

    class Elsewhere(ThreadWorkers):
        def __init__(self, device: str) -> None:
            super().__init__()
            self._environment = {"device": device, "torch": "0.0"}

        def wait(self, timeout: float) -> list[tuple[int, WorkerMessage]]:
            return [
                (slot, WorkerReady(environment=self._environment) if isinstance(message, WorkerReady) else message)
                for slot, message in super().wait(timeout)
            ]

    study = tiny.at(tmp_path)
    with contextlib.closing(study.coordinator(2, workers=Elsewhere("a far machine")).run()) as run:
        assert any(advanced(event, 1, EpochMetrics) for event in run)
    assert [trial.environment for trial in read(study)] == [{"device": "a far machine", "torch": "0.0"}] * 2
    list(study.coordinator(2, workers=Elsewhere("another one")).run())
    assert [trial.environment["device"] for trial in read(study)] == ["a far machine", "another one"]


def test_out_of_memory_is_retried_with_half_the_pictures_and_then_half_of_those(tiny: Tiny, tmp_path: Path) -> None:
    """Once it was retried only once, although there was memory for a quarter of the batch."""
    study, workers = tiny.at(tmp_path), Faulty(FailureKind.OUT_OF_MEMORY, 2)
    draw = partial(suggest, profile=replace(TINY, batch_size=28), classes=3)
    assert outcomes(list(study.coordinator(1, workers=workers, draw=draw).run())) == [(0, Outcome.COMPLETE)]
    assert [(job.attempt, job.micro_batch) for job in workers.jobs] == [(1, 28), (2, 14), (3, 8)]
    (trial,) = read(study)
    assert trial.micro_batch == 8
    assert trial.reason and trial.reason.startswith("trained to its last epoch (8 pictures")


def test_out_of_memory_with_the_fewest_pictures_fails_the_trial_with_the_reason(tiny: Tiny, tmp_path: Path) -> None:
    study, workers = tiny.at(tmp_path), Faulty(FailureKind.OUT_OF_MEMORY, 2)
    ended = outcomes(list(study.coordinator(1, workers=workers).run()))
    assert ended == [(0, Outcome.FAILED), (1, Outcome.COMPLETE)]
    failed = read(study)[0]
    assert failed.state is TrialState.FAIL
    assert failed.reason and failed.reason.startswith("out of memory: ") and "allocate" in failed.reason


def test_three_deaths_without_an_epoch_fail_a_trial_and_three_such_trials_stop_the_study(
    tiny: Tiny, tmp_path: Path
) -> None:
    study, workers = tiny.at(tmp_path), Faulty(FailureKind.DIED, 9)
    with pytest.raises(StudyError, match=r"last 3 trials .*3 failed.*worker died: a fault"):
        list(study.coordinator(4, workers=workers).run())
    assert [(trial.state, trial.attempts) for trial in read(study)] == [(TrialState.FAIL, 3)] * 3


def test_a_trial_that_fails_as_its_slot_is_lost_continues_in_another_slot(tiny: Tiny, tmp_path: Path) -> None:
    class Shrinking(Faulty):
        """Workers that lose the slot of the first failure in the same call that returns it."""

        def wait(self, timeout: float) -> list[tuple[int, WorkerMessage]]:
            found = super().wait(timeout)
            for slot, message in found:
                if isinstance(message, TrialFailure):
                    del self.slots[slot]
            return found

    study, workers = tiny.at(tmp_path), Shrinking(FailureKind.DIED, 1)
    workers.slots[1] = Slot()
    events = list(study.coordinator(2, workers=workers).run())
    assert sorted(outcomes(events)) == [(0, Outcome.COMPLETE), (1, Outcome.COMPLETE)]
    assert [event.number for event in events if isinstance(event, TrialRequeued)] == [workers.jobs[0].number]
    assert list(workers.slots) == [1]


def test_a_bug_stops_the_study_with_the_workers_traceback_and_its_trial_can_be_resumed(
    tiny: Tiny, tmp_path: Path
) -> None:
    study = tiny.at(tmp_path)

    def broken(trial: Any) -> Config:
        config = tiny.draw(trial)
        return replace(config, model=replace(config.model, classes=2))

    with pytest.raises(RuntimeError, match=r"(?s)trial 0.*Traceback.*out of bounds"):
        list(study.coordinator(1, draw=broken).run())
    assert study.trials()[0].state is TrialState.RUNNING
    assert outcomes(list(study.coordinator(1).run())) == [(0, Outcome.COMPLETE)]


def test_a_missing_cache_stops_the_study_in_one_line_and_its_trial_can_be_resumed(tiny: Tiny, tmp_path: Path) -> None:
    study = tiny.at(tmp_path)
    lost = replace(study, data=replace(tiny.data, directory=tmp_path / "nowhere"))
    with pytest.raises(StudyError, match=r"^trial 0 .*nowhere.*same command"):
        list(lost.coordinator(1).run())
    assert outcomes(list(study.coordinator(1).run())) == [(0, Outcome.COMPLETE)]


def test_a_diverged_trial_is_pruned_and_counted_and_no_value_is_invented(tiny: Tiny, tmp_path: Path) -> None:
    def wild(trial: Any) -> Config:
        config = tiny.draw(trial)
        return replace(config, training=replace(config.training, optimizer="sgd", lr=1e30, warmup_epochs=0))

    study = tiny.at(tmp_path)
    coordinator = study.coordinator(1, draw=wild)
    assert outcomes(list(coordinator.run())) == [(0, Outcome.DIVERGED)]
    assert coordinator.ending is Ending.TRIALS
    (trial,) = read(study)
    assert trial.state is TrialState.PRUNED
    assert trial.frozen.constraints == {"diverged": 1.0}
    assert (trial.frozen.value, trial.curve, trial.result) == (None, {}, None)
    assert trial.reason and "lr 1e+30" in trial.reason and "epoch 0" in trial.reason


def test_infeasible_points_are_never_trained_and_twenty_in_a_row_stop_the_study(tiny: Tiny, tmp_path: Path) -> None:
    study = tiny.at(tmp_path)
    with pytest.raises(StudyError, match=rf"last {UNCOUNTED_IN_A_ROW} trials .*{UNCOUNTED_IN_A_ROW} infeasible"):
        list(study.coordinator(1, max_parameters=10.0).run())
    trials = read(study)
    assert len(trials) == UNCOUNTED_IN_A_ROW
    assert {(trial.state, trial.outcome) for trial in trials} == {(TrialState.PRUNED, Outcome.INFEASIBLE)}
    assert all(trial.frozen.constraints["parameters"] > 0 for trial in trials)
    assert list((study.study_folder / "trials").iterdir()) == []


def test_a_duplicate_fails_without_being_counted_and_names_the_original(tiny: Tiny, tmp_path: Path) -> None:
    def same(trial: optuna.Trial) -> Config:
        config = next(points)
        trial.suggest_float("unused", 0.0, 1.0)
        return config

    one, other = random_points(tiny.draw, 2)
    points = iter([one, one, other])
    study = tiny.at(tmp_path)
    ended = outcomes(list(study.coordinator(2, draw=same).run()))
    assert ended == [(0, Outcome.COMPLETE), (1, Outcome.DUPLICATE), (2, Outcome.COMPLETE)]
    duplicate = read(study)[1]
    assert (duplicate.state, duplicate.is_duplicate) == (TrialState.FAIL, True)
    assert duplicate.reason and duplicate.reason.endswith("trial 0")


def test_a_trial_finished_by_another_program_is_released_and_the_study_continues(tiny: Tiny, tmp_path: Path) -> None:
    """Trial 0 is failed after its first epoch, through a study object like that of another process."""
    study = tiny.at(tmp_path)
    events = []
    for event in study.coordinator(2).run():
        events.append(event)
        if advanced(event, 0, EpochMetrics):
            stranger = optuna.load_study(study_name="tiny", storage=sqlite_url(study.study_folder))
            with contextlib.suppress(Exception):
                stranger.tell(0, state=TrialState.FAIL)
    assert outcomes(events) == [(0, None), (1, Outcome.COMPLETE), (2, Outcome.COMPLETE)]
    assert study.trials()[0].state is TrialState.FAIL
    assert list(study.directory(0).iterdir()) == []


def test_a_trial_finished_by_another_program_before_it_is_resumed_is_released(tiny: Tiny, tmp_path: Path) -> None:
    study = tiny.at(tmp_path)
    first, second = (study.open().ask() for _ in range(2))
    coordinator = study.coordinator(2)
    run = coordinator.run()
    assert isinstance(next(run), TrialStarted)
    study.open().tell(second.number, state=TrialState.FAIL)
    ended = outcomes(list(run))
    assert ended == [(first.number, Outcome.COMPLETE), (second.number, None), (2, Outcome.COMPLETE)]


def test_a_study_that_is_deleted_while_it_runs_is_an_error_in_one_line(tiny: Tiny, tmp_path: Path) -> None:
    """The files that a command writes at its end replaced the line by a traceback."""
    study = tiny.at(tmp_path)
    with one_core(), study.start("--trials", "30", "--workers", "1") as running:
        running.until(lambda: study.running(1), "the second trial")
        optuna.delete_study(study_name="tiny", storage=sqlite_url(study.study_folder))
        assert running.end() == 2
    assert "'tiny' was deleted" in running.text.splitlines()[-1]
    assert "Traceback" not in running.text


def test_baselines_are_never_pruned_and_only_the_best_trials_keep_their_checkpoints(tiny: Tiny, tmp_path: Path) -> None:
    """The pruner would prune two of the baselines; it prunes the last trial after its first epoch."""

    class Merciless(NopPruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return trial.number in (0, 1, 5)

    study = tiny.at(tmp_path)
    stored = study.open(pruner=Merciless(), first_trials=baselines(TINY))
    list(study.coordinator(6, study=stored).run())
    trials = read(study)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 5 + ["PRUNED"]
    assert [trial.baseline for trial in trials[:3]] == [ORIGINAL, HAND_TUNED, GUESS]
    assert list(trials[5].curve) == [0]
    assert trials[5].reason == "pruned after epoch 1"
    for trial in trials:
        history = json.loads((study.directory(trial.number) / "history.json").read_text())
        assert {record["epoch"]: record["top1"] for record in history} == trial.curve
        assert trial.result and trial.result.top1 == max(trial.curve.values())
        if trial.state is TrialState.COMPLETE:
            assert trial.value == trial.result.top1
    best = sorted(trials[:5], key=lambda trial: (-(trial.value or 0.0), trial.number))[:3]
    kept = {path.parent.name for path in study.study_folder.glob("trials/*/best.pt")}
    assert kept == {f"{trial.number:04d}" for trial in best}
    assert {path.name for path in study.study_folder.glob("trials/*/*")} == {"best.pt", "history.json"}


def test_a_run_that_times_out_and_then_one_with_more_trials_equal_a_single_run(tiny: Tiny, tmp_path: Path) -> None:
    whole, broken = tiny.at(tmp_path / "whole"), tiny.at(tmp_path / "broken")
    list(whole.coordinator(3).run())

    run = broken.coordinator(1).run()
    assert any(advanced(event, 0, EpochMetrics) for event in run)
    run.close()
    hasty = broken.coordinator(1, timeout=1e-9)
    assert list(hasty.run()) == [] and hasty.ending is Ending.TIMEOUT
    assert broken.trials()[0].state is TrialState.RUNNING

    assert outcomes(list(broken.coordinator(1).run())) == [(0, Outcome.COMPLETE)]
    assert outcomes(list(broken.coordinator(3).run())) == [(1, Outcome.COMPLETE), (2, Outcome.COMPLETE)]
    assert essence(broken.trials()) == essence(whole.trials())


def test_patience_counts_the_trials_since_the_best(tiny: Tiny, tmp_path: Path) -> None:
    study = tiny.at(tmp_path)
    coordinator = study.coordinator(50, patience=1)
    list(coordinator.run())
    assert coordinator.ending is Ending.PATIENCE
    values = [trial.value or 0.0 for trial in study.trials()]
    assert values[-1] <= max(values[:-1])
    assert all(later > earlier for earlier, later in itertools.pairwise(values[:-1]))


def test_patience_starts_no_new_trials_but_promotes_those_that_wait(tiny: Tiny, tmp_path: Path) -> None:
    """It once counted ended trials alone, of which there are none until the end, and would then have retired all."""
    study = tiny.at(tmp_path)
    coordinator = study.coordinator(50, patience=3, make_scheduler=lambda study: PromotionScheduler([1], 0.1))
    list(coordinator.run())
    assert coordinator.ending is Ending.PATIENCE
    trials = read(study)
    assert 4 <= len(trials) < 50
    assert all(trial.is_finished for trial in trials)
    assert any(trial.value is not None for trial in trials)


def test_a_target_ends_the_study_once_a_trial_has_reached_it(tiny: Tiny, tmp_path: Path) -> None:
    study = tiny.at(tmp_path)
    coordinator = study.coordinator(50, target=0.01)
    list(coordinator.run())
    assert coordinator.ending is Ending.TARGET
    assert outcomes(list(study.coordinator(50, target=0.01).run())) == []
    (trial,) = study.trials()
    assert (trial.value or 0.0) >= 0.01


def test_a_stop_lets_the_running_epoch_end_and_a_second_stop_does_not(tiny: Tiny, tmp_path: Path) -> None:
    for stops in (1, 2):
        study = tiny.at(tmp_path / str(stops))
        coordinator = study.coordinator(2)
        run = coordinator.run()
        assert any(advanced(event, 0, Progress) for event in run)
        for _ in range(stops):
            coordinator.stop()
        list(run)
        assert coordinator.ending is Ending.STOPPED
        (trial,) = study.trials()
        assert trial.state is TrialState.RUNNING
        assert len(trial.intermediate_values) == (1 if stops == 1 else 0)


@pytest.mark.long
def test_the_last_trials_are_asked_for_together_and_the_longest_starts_first(tiny: Tiny, tmp_path: Path) -> None:
    """When there is a slot for each of them; before that, and with one slot, trials start in their order."""
    lengths = (4, 5, 1, 2, 3)  # epochs, of the same network

    def draw(trial: optuna.Trial) -> Config:
        config = tiny.draw(trial)
        return replace(
            config,
            views=1,
            image_size=32,
            model=replace(config.model, width=0.25, stride_pattern="every"),
            training=replace(
                config.training, epochs=lengths[trial.number], lr=0.001 * (trial.number + 1), warmup_epochs=0
            ),
        )

    def started(slots: int) -> list[int]:
        study = tiny.at(tmp_path / str(slots))
        run = study.coordinator(5, workers=ThreadWorkers([Slot()] * slots), draw=draw).run()
        order = [event.number for event in run if isinstance(event, TrialStarted)]
        assert [trial.outcome for trial in read(study)] == [Outcome.COMPLETE] * 5
        return order

    assert started(1) == [0, 1, 2, 3, 4]
    assert started(2) == [0, 1, 2, 4, 3]
    assert started(8) == [1, 0, 4, 3, 2]
