"""The coordinator, in this process, over workers that are threads and train for real."""

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
from studies import TINY, ThreadWorkers, Tiny, advanced, outcomes, prepare
from tuning.identity import random_points
from tuning.storage import Outcome

from model.training import EpochMetrics
from search_space import Config, known_good, suggest
from tests.stress.sameness import essence
from tuning import StudyError
from tuning.coordinator import UNCOUNTED_IN_A_ROW, Ending, TrialAdvanced, TrialStarted
from tuning.devices import Slot
from tuning.folder import sqlite_url
from tuning.jobs import FailureKind, Progress, TrialFailure, TrialJob


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


def test_interrupted_after_every_single_epoch_it_equals_an_undisturbed_study(tiny: Tiny, tmp_path: Path) -> None:
    """Each run leaves with its first new epoch, before the decision on it and in mid-epoch by turns.

    The next has new objects for everything, as a new process has. Once a trial whose decision was still out was asked
    about again with the first of its repeated epochs, and lost the later ones from its record when it was pruned.
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
            for happening in run:
                new = sum(count for _, count in broken.epochs().values()) > known
                if new and isinstance(happening, TrialAdvanced) and isinstance(happening.progress, EpochMetrics):
                    interruptions += 1
                    list(itertools.islice(run, 0 if happening.progress.epoch == 1 else 2))
                    break
        ending = coordinator.ending
    assert interruptions >= 6
    assert essence(broken.trials()) == essence(whole.trials())


class Faulty(ThreadWorkers):
    """Workers whose first `faults` jobs meet a fault: no memory within a training, or death before its first epoch."""

    def __init__(self, kind: FailureKind, faults: int) -> None:
        super().__init__()
        self._kind, self._faults = kind, faults
        self.jobs: list[TrialJob] = []

    def start(self, slot: int, job: TrialJob) -> None:
        super().start(slot, job)
        self.jobs.append(job)
        if len(self.jobs) <= self._faults:
            line, send = self._lines[slot], self._lines[slot].send

            def faulty(event: Any) -> None:
                if not isinstance(event, TrialFailure):
                    if self._kind is FailureKind.OUT_OF_MEMORY:
                        torch.empty(2**48)
                    event = TrialFailure(kind=self._kind, reason="a fault")
                send(event)

            line.send = faulty


def test_out_of_memory_is_tried_again_with_half_the_pictures_and_half_of_those(tiny: Tiny, tmp_path: Path) -> None:
    """It was tried once more only, with memory for a quarter of the batch left."""
    study, workers = tiny.at(tmp_path), Faulty(FailureKind.OUT_OF_MEMORY, 2)
    draw = partial(suggest, profile=replace(TINY, batch_size=28), classes=3)
    assert outcomes(list(study.coordinator(1, workers=workers, draw=draw).run())) == [(0, Outcome.COMPLETE)]
    assert [(job.attempt, job.micro_batch) for job in workers.jobs] == [(1, 28), (2, 14), (3, 8)]
    attributes = study.trials()[0].user_attrs
    assert attributes["micro_batch"] == 8
    assert attributes["reason"] == "trained to its last epoch (8 pictures at a time, as memory was short)"


def test_out_of_memory_with_the_fewest_pictures_fails_the_trial_with_its_reason(tiny: Tiny, tmp_path: Path) -> None:
    study, workers = tiny.at(tmp_path), Faulty(FailureKind.OUT_OF_MEMORY, 2)
    ended = outcomes(list(study.coordinator(1, workers=workers).run()))
    assert ended == [(0, Outcome.FAILED), (1, Outcome.COMPLETE)]
    failed = study.trials()[0]
    assert failed.state is TrialState.FAIL
    assert failed.user_attrs["reason"].startswith("out of memory: ")
    assert "allocate" in failed.user_attrs["reason"]


def test_three_deaths_without_an_epoch_between_fail_a_trial_and_three_such_trials_stop_the_study(
    tiny: Tiny, tmp_path: Path
) -> None:
    study, workers = tiny.at(tmp_path), Faulty(FailureKind.DIED, 9)
    with pytest.raises(StudyError, match=r"the last 3 did not \(3 failed; the last: worker died: a fault\)"):
        list(study.coordinator(4, workers=workers).run())
    assert [trial.state for trial in study.trials()] == [TrialState.FAIL] * 3
    assert [trial.user_attrs["attempts"] for trial in study.trials()] == [3, 3, 3]


def test_a_bug_ends_the_study_with_the_workers_traceback_and_its_trial_is_gone_on_with(
    tiny: Tiny, tmp_path: Path
) -> None:
    study = tiny.at(tmp_path)

    def broken(trial: Any) -> Config:
        config = tiny.draw(trial)
        return replace(config, model=replace(config.model, classes=2))

    with pytest.raises(RuntimeError, match=r"(?s)trial 0 met a bug; its worker says:.Traceback.*out of bounds"):
        list(study.coordinator(1, draw=broken).run())
    assert study.trials()[0].state is TrialState.RUNNING
    assert outcomes(list(study.coordinator(1).run())) == [(0, Outcome.COMPLETE)]


def test_a_cache_that_has_gone_ends_the_study_in_one_line_and_its_trial_is_gone_on_with(
    tiny: Tiny, tmp_path: Path
) -> None:
    study = tiny.at(tmp_path)
    lost = replace(study, data=replace(tiny.data, directory=tmp_path / "nowhere"))
    with pytest.raises(StudyError, match=r"trial 0 .*nowhere.*the same command goes on"):
        list(lost.coordinator(1).run())
    assert outcomes(list(study.coordinator(1).run())) == [(0, Outcome.COMPLETE)]


def test_a_diverged_trial_is_pruned_counted_and_invents_nothing(tiny: Tiny, tmp_path: Path) -> None:
    def wild(trial: Any) -> Config:
        config = tiny.draw(trial)
        return replace(config, training=replace(config.training, optimizer="sgd", lr=1e30, warmup_epochs=0))

    study = tiny.at(tmp_path)
    coordinator = study.coordinator(1, draw=wild)
    assert outcomes(list(coordinator.run())) == [(0, Outcome.DIVERGED)]
    assert coordinator.ending is Ending.TRIALS
    (trial,) = study.trials()
    assert trial.state is TrialState.PRUNED
    assert trial.constraints == {"diverged": 1.0}
    assert (trial.value, trial.intermediate_values) == (None, {})
    assert "must stay finite" in trial.user_attrs["reason"]


def test_infeasible_points_are_told_before_training_and_twenty_in_a_row_stop_the_study(
    tiny: Tiny, tmp_path: Path
) -> None:
    study = tiny.at(tmp_path)
    with pytest.raises(StudyError, match=rf"the last {UNCOUNTED_IN_A_ROW} did not \({UNCOUNTED_IN_A_ROW} infeasible"):
        list(study.coordinator(1, max_parameters=10.0).run())
    trials = study.trials()
    assert {trial.state for trial in trials} == {TrialState.PRUNED}
    assert {trial.user_attrs["outcome"] for trial in trials} == {"infeasible"}
    assert all(trial.constraints["parameters"] > 0 for trial in trials)
    assert list((study.study_folder / "trials").iterdir()) == []


def test_a_duplicate_is_failed_uncounted_and_names_its_twin(tiny: Tiny, tmp_path: Path) -> None:
    def same(trial: optuna.Trial) -> Config:
        config = next(points)
        trial.suggest_float("unused", 0.0, 1.0)
        return config

    one, other = random_points(tiny.draw, 2)
    points = iter([one, one, other])
    study = tiny.at(tmp_path)
    ended = outcomes(list(study.coordinator(2, draw=same).run()))
    assert ended == [(0, Outcome.COMPLETE), (1, Outcome.DUPLICATE), (2, Outcome.COMPLETE)]
    assert study.trials()[1].state is TrialState.FAIL
    assert study.trials()[1].user_attrs["reason"] == "duplicate of trial 0"


def test_a_trial_told_from_outside_is_let_go_and_the_study_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    """Trial 0 is failed after its first epoch, by a study object as another process has it."""
    study = tiny.at(tmp_path)
    happenings = []
    for happening in study.coordinator(2).run():
        happenings.append(happening)
        if advanced(happening, 0, EpochMetrics):
            stranger = optuna.load_study(study_name="tiny", storage=sqlite_url(study.study_folder))
            with contextlib.suppress(Exception):
                stranger.tell(0, state=TrialState.FAIL)
    assert outcomes(happenings) == [(0, None), (1, Outcome.COMPLETE), (2, Outcome.COMPLETE)]
    assert study.trials()[0].state is TrialState.FAIL
    assert list(study.directory(0).iterdir()) == []


def test_a_trial_told_from_outside_before_its_turn_is_let_go(tiny: Tiny, tmp_path: Path) -> None:
    study = tiny.at(tmp_path)
    first, second = (study.open().ask() for _ in range(2))
    coordinator = study.coordinator(2)
    run = coordinator.run()
    assert isinstance(next(run), TrialStarted)
    study.open().tell(second.number, state=TrialState.FAIL)
    ended = outcomes(list(run))
    assert ended == [(first.number, Outcome.COMPLETE), (second.number, None), (2, Outcome.COMPLETE)]


def test_a_deleted_study_ends_in_one_line(tiny: Tiny, tmp_path: Path) -> None:
    study = tiny.at(tmp_path)
    run = study.coordinator(2).run()
    with pytest.raises(StudyError, match=r"'tiny' was deleted from its database"):
        for happening in run:
            if advanced(happening, 0, EpochMetrics):
                optuna.delete_study(study_name="tiny", storage=sqlite_url(study.study_folder))


def test_known_good_ones_are_never_pruned_poor_ones_early_and_only_the_best_are_kept(
    tiny: Tiny, tmp_path: Path
) -> None:
    """Every other trial is pruned by a median that nobody reaches."""

    class Merciless(NopPruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return trial.number >= 5

    study = tiny.at(tmp_path)
    stored = study.open(pruner=Merciless(), first_trials=known_good(TINY))
    list(study.coordinator(6, study=stored).run())
    trials = study.trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 5 + ["PRUNED"]
    assert [trial.user_attrs.get("known_good") for trial in trials[:3]] == ["original recipe", "improved by hand", None]
    assert list(trials[5].intermediate_values) == [0]
    assert trials[5].user_attrs["reason"] == "pruned after epoch 1"
    for trial in trials:
        history = json.loads((study.directory(trial.number) / "history.json").read_text())
        assert {record["epoch"]: record["top1"] for record in history} == trial.intermediate_values
        assert trial.user_attrs["best_top1"] == max(trial.intermediate_values.values())
        if trial.state is TrialState.COMPLETE:
            assert trial.value == trial.user_attrs["best_top1"]
    best = sorted(trials[:5], key=lambda trial: (-(trial.value or 0.0), trial.number))[:3]
    kept = {path.parent.name for path in study.study_folder.glob("trials/*/best.pt")}
    assert kept == {f"{trial.number:04d}" for trial in best}
    assert {path.name for path in study.study_folder.glob("trials/*/*")} == {"best.pt", "history.json"}


def test_no_time_left_leaves_in_mid_trial_and_more_trials_go_on_as_if_asked_at_once(tiny: Tiny, tmp_path: Path) -> None:
    whole, broken = tiny.at(tmp_path / "whole"), tiny.at(tmp_path / "broken")
    list(whole.coordinator(3).run())

    run = broken.coordinator(1).run()
    assert any(advanced(happening, 0, EpochMetrics) for happening in run)
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


def test_a_target_ends_the_study_once_a_trial_has_reached_it(tiny: Tiny, tmp_path: Path) -> None:
    study = tiny.at(tmp_path)
    coordinator = study.coordinator(50, target=0.01)
    list(coordinator.run())
    assert coordinator.ending is Ending.TARGET
    assert outcomes(list(study.coordinator(50, target=0.01).run())) == []
    (trial,) = study.trials()
    assert (trial.value or 0.0) >= 0.01


def test_a_stop_lets_the_running_epoch_end_and_a_second_one_does_not(tiny: Tiny, tmp_path: Path) -> None:
    for stops in (1, 2):
        study = tiny.at(tmp_path / str(stops))
        coordinator = study.coordinator(2)
        run = coordinator.run()
        assert any(advanced(happening, 0, Progress) for happening in run)
        for _ in range(stops):
            coordinator.stop()
        list(run)
        assert coordinator.ending is Ending.STOPPED
        (trial,) = study.trials()
        assert trial.state is TrialState.RUNNING
        assert len(trial.intermediate_values) == (1 if stops == 1 else 0)


def test_the_last_trials_are_asked_for_together_and_the_longest_begins_first(tiny: Tiny, tmp_path: Path) -> None:
    """With as many slots as trials are left; before that, and in one slot, they begin in their order."""
    lengths = (4, 5, 1, 2, 3)  # epochs, of the same network

    def draw(trial: optuna.Trial) -> Config:
        config = tiny.draw(trial)
        return replace(
            config,
            views=1,
            image_size=32,
            model=replace(config.model, width=0.25, stride_pattern="every"),
            training=replace(config.training, epochs=lengths[trial.number], lr=0.001 * (trial.number + 1)),
        )

    def started(slots: int) -> list[int]:
        study = tiny.at(tmp_path / str(slots))
        run = study.coordinator(5, workers=ThreadWorkers([Slot()] * slots), draw=draw).run()
        order = [happening.number for happening in run if isinstance(happening, TrialStarted)]
        assert [trial.user_attrs["outcome"] for trial in study.trials()] == [Outcome.COMPLETE] * 5
        return order

    assert started(1) == [0, 1, 2, 3, 4]
    assert started(2) == [0, 1, 2, 4, 3]
    assert started(8) == [1, 0, 4, 3, 2]
