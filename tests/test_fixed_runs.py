"""Fixed runs: each waits once in the sibling study, is trained once, and is trained again only if it failed."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from studies import config, prepare

from selection import fixed_runs
from selection.fixed_runs import FixedRun
from tuning import StudyError
from tuning.coordinator import Coordinator
from tuning.database import IDENTITY
from tuning.jobs import Assignment
from tuning.trials import Outcome, Trial, read_trials, write_result


@pytest.fixture
def runs() -> list[FixedRun]:
    """Two runs of trial 3, with seeds 11 and 12."""
    return [
        FixedRun(
            key=f"trial 3 seed {seed}",
            trial=3,
            seed_index=index,
            seconds=6.0,
            assignment=Assignment(config=config(), seed=seed, epochs=3, name=f"trial 3, seed {index + 1} of 2"),
        )
        for index, seed in enumerate((11, 12))
    ]


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(study_name="mushrooms-finalists", direction="maximize")


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in read_trials(study)]


def weights(study: optuna.Study, number: int, folder: Path) -> Path:
    return fixed_runs.weights(folder, read_trials(study)[number])


def end(study: optuna.Study, folder: Path, outcome: Outcome, reason: str = "trained to its last epoch") -> None:
    """End the next run as the coordinator does, with the weights of a complete one."""
    trial = study.ask()
    assert fixed_runs.assign(trial) is not None
    write_result(trial, outcome, reason, None, [])
    if outcome is Outcome.COMPLETE:
        path = weights(study, trial.number, folder)
        path.parent.mkdir(parents=True)
        path.touch()
        study.tell(trial, 0.5)
    else:
        study.tell(trial, None, TrialState.FAIL if outcome is Outcome.FAILED else TrialState.PRUNED)


def test_a_run_waits_once_however_often_it_is_requested(
    study: optuna.Study, runs: list[FixedRun], tmp_path: Path
) -> None:
    for _ in range(3):
        fixed_runs.enqueue(study, [*runs, *runs], tmp_path)
    assert states(study) == [TrialState.WAITING] * 2
    end(study, tmp_path, Outcome.COMPLETE)
    study.ask()  # as an interrupted command leaves it
    fixed_runs.enqueue(study, runs, tmp_path)
    assert states(study) == [TrialState.COMPLETE, TrialState.RUNNING]


def test_a_run_that_diverged_is_not_trained_again(study: optuna.Study, runs: list[FixedRun], tmp_path: Path) -> None:
    fixed_runs.enqueue(study, runs, tmp_path)
    end(study, tmp_path, Outcome.DIVERGED)
    end(study, tmp_path, Outcome.COMPLETE)
    fixed_runs.enqueue(study, runs, tmp_path)
    assert states(study) == [TrialState.PRUNED, TrialState.COMPLETE]
    assert [trial.number for trial in fixed_runs.finished(study, runs[::-1])] == [1, 0]


def test_a_run_that_failed_is_named_and_enqueued_again(
    study: optuna.Study, runs: list[FixedRun], tmp_path: Path
) -> None:
    fixed_runs.enqueue(study, runs, tmp_path)
    end(study, tmp_path, Outcome.FAILED, reason="out of memory: no room")
    end(study, tmp_path, Outcome.COMPLETE)
    with pytest.raises(StudyError, match=re.escape("trial 3, seed 1 of 2 failed (out of memory: no room)")):
        fixed_runs.finished(study, runs)
    fixed_runs.enqueue(study, runs, tmp_path)
    assert states(study) == [TrialState.FAIL, TrialState.COMPLETE, TrialState.WAITING]
    end(study, tmp_path, Outcome.COMPLETE)
    assert [trial.number for trial in fixed_runs.finished(study, runs)] == [2, 1]


def test_a_run_that_lost_its_weights_is_enqueued_again(
    study: optuna.Study, runs: list[FixedRun], tmp_path: Path
) -> None:
    fixed_runs.enqueue(study, runs, tmp_path)
    end(study, tmp_path, Outcome.COMPLETE)
    end(study, tmp_path, Outcome.COMPLETE)
    weights(study, 0, tmp_path).unlink()
    fixed_runs.enqueue(study, runs, tmp_path)
    assert states(study) == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.WAITING]
    end(study, tmp_path, Outcome.COMPLETE)
    assert [trial.number for trial in fixed_runs.finished(study, runs)] == [2, 1]
    fixed_runs.enqueue(study, runs, tmp_path)
    assert len(states(study)) == 3


def test_an_enqueued_run_is_assigned_as_it_was_requested(study: optuna.Study, tmp_path: Path) -> None:
    """The trial and the seed are its parameters, which the dashboard shows."""
    work = Assignment(config=config(lr=3e-3), seed=12, epochs=2, final=True, name="trial 3, seed 2 of 2")
    fixed_runs.enqueue(study, [FixedRun(key="a", assignment=work, trial=3, seed_index=1, seconds=5.0)], tmp_path)
    assert fixed_runs.expected_seconds(study) == 5.0
    trial = study.ask()
    assert fixed_runs.assign(trial) == work
    assert trial.params == {"trial": 3, "seed": 1}
    assert fixed_runs.expected_seconds(study) == 5.0
    study.tell(trial, 0.5)
    assert fixed_runs.expected_seconds(study) == 0.0


def test_unfinished_runs_that_are_no_longer_wanted_are_not_trained(
    study: optuna.Study, runs: list[FixedRun], tmp_path: Path
) -> None:
    fixed_runs.enqueue(study, runs, tmp_path)
    fixed_runs.enqueue(study, runs[1:], tmp_path)
    assert states(study) == [TrialState.FAIL, TrialState.WAITING]
    fixed_runs.enqueue(study, runs, tmp_path)
    assert states(study) == [TrialState.FAIL, TrialState.WAITING, TrialState.WAITING]


def test_requesting_finished_runs_leaves_the_others_waiting(
    study: optuna.Study, runs: list[FixedRun], tmp_path: Path
) -> None:
    """A replay that had been trained before threw away the half-trained runs after it."""
    assert fixed_runs.enqueue(study, runs, tmp_path)
    end(study, tmp_path, Outcome.COMPLETE)
    assert not fixed_runs.enqueue(study, runs[:1], tmp_path)
    assert states(study) == [TrialState.COMPLETE, TrialState.WAITING]


def test_a_configuration_of_another_search_space_is_an_error_naming_the_run(
    study: optuna.Study, runs: list[FixedRun], tmp_path: Path
) -> None:
    fixed_runs.enqueue(study, runs[:1], tmp_path)
    trial = study.ask()
    trial.set_user_attr("config", {"image_size": 32})
    with pytest.raises(StudyError, match=r"trial 3, seed 1 of 2 .*search_space\.py"):
        fixed_runs.assign(trial)


def test_the_sibling_study_is_a_plain_optuna_study_of_the_same_pictures(runs: list[FixedRun], tmp_path: Path) -> None:
    tiny = prepare(tmp_path)
    session = tiny.session()
    seen: list[list[TrialState]] = []

    def follow(kind: str, study: optuna.Study, coordinator: Coordinator) -> None:
        plain = optuna.load_study(study_name="tiny-finalists", storage=session.url)
        assert (kind, plain.metric_names) == ("finalists", ["top-1"])
        seen.append(states(plain))
        end(plain, session.folder / "finalists", Outcome.COMPLETE)
        session.storage.read_again()
        if coordinator.wanted:
            raise KeyboardInterrupt

    def train() -> list[Trial]:
        return fixed_runs.train(session, "finalists", "top-1", runs, follow)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert [trial.params for trial in train()] == [{"trial": 3, "seed": 0}, {"trial": 3, "seed": 1}]
    assert seen == [[TrialState.WAITING] * 2, [TrialState.COMPLETE, TrialState.WAITING]]
    assert [trial.number for trial in train()] == [0, 1]
    assert len(seen) == 2, "nothing is left to train"

    session.study.set_user_attr(IDENTITY + "data", "others")
    with pytest.raises(StudyError, match=r"data: 42 pictures.* -> others"):
        train()
