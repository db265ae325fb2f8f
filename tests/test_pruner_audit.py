"""The pruner audit: a fair sample of the pruned trials, trained as they would have been, and counted correctly."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import torch
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from studies import EPOCHS, Finished, Tiny, one_core, prepare, recorded, threads_for_processes

from selection import pruner_audit
from selection.pruner_audit import PrunerAudit, audit_runs, read_audit
from tests.stress.sameness import essence
from tuning import StudyError, scheduling
from tuning.database import IDENTITY
from tuning.folder import sqlite_url
from tuning.session import OpenStudy
from tuning.settings import Settings
from tuning.trials import METRIC, Outcome, Trial, read_trials

COMMAND = ("--workers", "1", "--trials", "5")
PRUNED = [3, 4]
"""Numbers of the pruned trials; the three before are baselines, which no pruner prunes."""


class PrunesThose(BasePruner):
    """Prunes the trials in PRUNED after epoch 2; with six validation pictures most real pruners see equal values."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return trial.number in PRUNED and trial.last_step == 1


@pytest.fixture(scope="module", autouse=True)
def steady() -> Iterator[None]:
    threads = torch.get_num_threads()
    with one_core(), threads_for_processes(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            scheduling.SCHEDULERS, "median", lambda study, epochs: scheduling.PrunerScheduler(study, PrunesThose())
        )
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unpruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Finished]:
    """A study without pruned trials, and how a command ended that was to audit it."""
    study = prepare(tmp_path_factory.mktemp("unpruned"))
    return study, study.command("--workers", "1", "--trials", "2", "--audit-pruner", "3")


@pytest.fixture(scope="module")
def searched(unpruned: tuple[Tiny, Finished], tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A copy of it with three more trials, two of them pruned."""
    study = copied(unpruned[0], tmp_path_factory.mktemp("audit"))
    finished = study.command(*COMMAND)
    assert (finished.code, finished.err) == (0, "")
    assert [trial.number for trial in map(Trial, study.trials()) if trial.outcome is Outcome.PRUNED] == PRUNED
    return study


@pytest.fixture(scope="module")
def audited(searched: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Finished]:
    """A copy of the searched study with two audited trials, and how the command ended."""
    study = copied(searched, tmp_path_factory.mktemp("audited"))
    finished = study.command(*COMMAND, "--audit-pruner", "2")
    assert (finished.code, finished.err) == (0, "")
    return study, finished


def copied(study: Tiny, place: Path) -> Tiny:
    shutil.copytree(study.results, place / "results")
    return study.at(place / "results")


def made_up(*curves: tuple[list[float], Outcome], seed: int = 3) -> OpenStudy:
    """Return a study of these trials."""
    study = optuna.create_study(direction="maximize", study_name="made-up")
    study.set_user_attr(IDENTITY + "seed", seed)
    for curve, outcome in curves:
        study.add_trial(recorded(curve, outcome=outcome))
    settings = Settings(data="field-guide", test_data=None, pictures=None, storage=None)
    return OpenStudy(study=study, folder=Path("made-up"), url="", settings=settings)


def read(study: OpenStudy) -> PrunerAudit | None:
    return read_audit(study.study)


def audit_of(study: OpenStudy, *runs: tuple[int, float | None]) -> PrunerAudit:
    """Return the stored audit of these trials: number, and top-1 after the last epoch; None diverged at once."""
    sibling = optuna.create_study(study_name=f"made-up-{pruner_audit.KIND}", storage=study.study._storage)
    for number, top1 in runs:
        run = recorded([] if top1 is None else [top1], outcome=Outcome.DIVERGED if top1 is None else Outcome.COMPLETE)
        run.distributions = {"trial": optuna.distributions.IntDistribution(0, 2**31 - 1)}
        run.params = {"trial": number}
        sibling.add_trial(run)
    audit = read(study)
    assert audit is not None
    return audit


# -- the command


@pytest.mark.long
def test_trials_retired_by_promotion_are_audited_as_pruned_ones(
    unpruned: tuple[Tiny, Finished], tmp_path: Path
) -> None:
    study = unpruned[0].at(tmp_path)
    finished = study.command("--workers", "1", "--trials", "4", "--scheduler", "promote", "--audit-pruner", "9")
    assert (finished.code, finished.err) == (0, "")
    trials = [Trial(frozen) for frozen in study.trials()]
    (complete,) = [trial for trial in trials if trial.outcome is Outcome.COMPLETE]
    retired = [trial.number for trial in trials if trial.outcome is Outcome.PRUNED]
    assert len(retired) == 3
    runs = [Trial(frozen) for frozen in study.trials("tiny-audit")]
    assert sorted(run.params["trial"] for run in runs) == retired
    for run in runs:
        pruned = trials[run.params["trial"]]
        assert run.epochs == EPOCHS > pruned.epochs == 1
        assert run.curve[0] == pruned.curve[0]
    won = sum((run.value or 0.0) > (complete.value or 0.0) for run in runs)
    assert f"{won} of 3 pruned trials would have beaten the study's best" in finished.out


def test_only_the_audit_is_trained_on_a_finished_study(searched: Tiny, audited: tuple[Tiny, Finished]) -> None:
    study, finished = audited
    assert essence(study.trials()) == essence(searched.trials())
    assert len(study.trials("tiny-audit")) == 2
    assert "Pruner audit: 2 runs left" in finished.out


def test_an_audited_trial_repeats_the_curve_of_the_pruned_one_bit_for_bit(audited: tuple[Tiny, Finished]) -> None:
    study, _ = audited
    trials = [Trial(frozen) for frozen in study.trials()]
    for run in map(Trial, study.trials("tiny-audit")):
        pruned = trials[run.params["trial"]]
        assert pruned.outcome is Outcome.PRUNED
        assert run.epochs == EPOCHS > pruned.epochs
        assert {epoch: run.curve[epoch] for epoch in pruned.curve} == pruned.curve
        assert (run.config, run.seed, run.parameters) == (pruned.config, pruned.seed, pruned.parameters)
        assert run.flops == pruned.flops is not None


def test_the_audit_is_a_plain_study_beside_the_searched_one(audited: tuple[Tiny, Finished]) -> None:
    study, _ = audited
    url = sqlite_url(study.study_folder)
    assert sorted(optuna.get_all_study_names(url)) == ["tiny", "tiny-audit"]
    plain = optuna.load_study(study_name="tiny-audit", storage=url)
    assert [trial.state for trial in plain.trials] == [TrialState.COMPLETE] * 2
    assert (plain.direction, plain.metric_names) == (StudyDirection.MAXIMIZE, [METRIC])
    assert plain.best_value == max(trial.value or 0.0 for trial in read_trials(plain))


def test_the_command_prints_what_is_stored(audited: tuple[Tiny, Finished]) -> None:
    study, finished = audited
    opened = optuna.load_study(study_name="tiny", storage=sqlite_url(study.study_folder))
    audit = read_audit(opened)
    assert audit is not None
    assert audit.best == opened.best_value
    assert [number for number, _, _ in audit.pruned] == sorted(
        trial.params["trial"] for trial in study.trials("tiny-audit")
    )
    won = len(audit.winners)
    assert f"{won} of 2 pruned trials would have beaten the study's best ({100 * audit.best:.2f} %)" in finished.out


def test_a_second_audit_trains_nothing_and_prints_the_same(audited: tuple[Tiny, Finished], tmp_path: Path) -> None:
    first = audited[1].out
    study = copied(audited[0], tmp_path)
    before = essence(study.trials("tiny-audit"))
    again = study.command(*COMMAND, "--audit-pruner", "2")
    assert (again.code, again.err) == (0, "")
    assert "Pruner audit" not in again.out
    assert again.out.partition("when pruned")[1:] == first.partition("when pruned")[1:]
    assert essence(study.trials("tiny-audit")) == before


def test_a_smaller_audit_shows_only_its_own_trials(audited: tuple[Tiny, Finished], tmp_path: Path) -> None:
    study = copied(audited[0], tmp_path)
    fewer = study.command(*COMMAND, "--audit-pruner", "1")
    assert "Pruner audit" not in fewer.out
    assert " of 1 pruned trial " in fewer.out


def test_an_audit_without_pruned_trials_is_an_error_of_one_line(unpruned: tuple[Tiny, Finished]) -> None:
    study, ended = unpruned
    assert ended.code == 2
    assert ended.err.startswith("error: 'tiny' has no pruned trials ")
    assert "--audit-pruner" in ended.err
    assert ended.err.count("\n") == 1
    trained = [trial.state for trial in study.trials() if trial.state is not TrialState.WAITING]
    assert trained == [TrialState.COMPLETE] * 2
    assert (study.study_folder / "trials.csv").is_file(), "the study itself is whole"


# -- which trials


MIXED = (
    ([0.5, 0.6, 0.7], Outcome.COMPLETE),
    ([0.1, 0.2], Outcome.PRUNED),
    ([0.3], Outcome.DIVERGED),
    ([], Outcome.INFEASIBLE),
    ([0.2, 0.1], Outcome.PRUNED),
    ([], Outcome.DUPLICATE),
    *[([0.1 + 0.01 * n, 0.2], Outcome.PRUNED) for n in range(8)],
)
ALL = {1, 4, *range(6, 14)}


def numbers(study: OpenStudy, count: int) -> list[int]:
    return [run.trial for run in audit_runs(study, count)]


def test_a_smaller_sample_is_the_beginning_of_a_larger_one() -> None:
    study = made_up(*MIXED)
    sample = numbers(study, 10)
    assert set(sample) == ALL
    assert all(numbers(study, count) == sample[:count] for count in range(1, 10))


def test_an_audit_of_more_trials_than_were_pruned_has_all_of_them() -> None:
    assert set(numbers(made_up(*MIXED), 99)) == ALL


def test_the_sample_depends_only_on_the_studys_seed() -> None:
    samples = [numbers(made_up(*MIXED, seed=seed), 10) for seed in (3, 3, 4)]
    assert samples[0] == samples[1] != samples[2]


def test_later_trials_do_not_change_the_order_of_earlier_ones() -> None:
    study = made_up(*MIXED)
    before = numbers(study, 99)
    for _ in range(4):
        study.study.add_trial(recorded([0.1], outcome=Outcome.PRUNED))
    assert [number for number in numbers(study, 99) if number in ALL] == before


def test_pruned_trials_are_sampled_equally_often() -> None:
    """One of ten, 400 times: 40 each, within four standard deviations of a binomial."""
    drawn = [numbers(made_up(*MIXED, seed=seed), 1)[0] for seed in range(400)]
    assert all(abs(drawn.count(number) - 40) < 4 * (400 * 0.1 * 0.9) ** 0.5 for number in ALL)


def test_a_run_has_the_configuration_and_seed_of_its_trial_and_all_epochs() -> None:
    study = made_up(*MIXED)
    run = next(run for run in audit_runs(study, 99) if run.trial == 4)
    trial = read_trials(study.study)[4]
    assert run.assignment.config == trial.config
    assert run.assignment.seed == trial.seed
    assert run.assignment.epochs == EPOCHS
    assert run.seconds == pytest.approx(trial.seconds / 2 * EPOCHS)
    assert not run.assignment.final


def test_a_study_without_a_pruned_trial_is_refused() -> None:
    study = made_up(*(row for row in MIXED if row[1] is not Outcome.PRUNED))
    with pytest.raises(StudyError, match=r"^'made-up' has no pruned trials .*--audit-pruner"):
        audit_runs(study, 3)


# -- the comparison


def test_a_winner_is_better_than_the_studys_best() -> None:
    audit = audit_of(made_up(*MIXED), (7, 0.8), (1, 0.7), (4, 0.69))
    assert audit.best == 0.7
    assert audit.pruned == ((1, 0.2, 0.7), (4, 0.2, 0.69), (7, 0.2, 0.8))
    assert audit.winners == [7], "equal to the best is no winner"


def test_every_audited_trial_wins_where_none_is_complete() -> None:
    study = made_up(([0.1, 0.2], Outcome.PRUNED), ([0.3], Outcome.PRUNED))
    assert audit_of(study, (0, 0.4), (1, 0.5)).winners == [0, 1]


def test_an_audited_trial_that_diverged_at_once_has_reached_nothing() -> None:
    """It happens on a GPU, where no training repeats another bit for bit."""
    assert audit_of(made_up(*MIXED), (1, None), (4, 0.3)).pruned == ((1, 0.2, 0.0), (4, 0.2, 0.3))


def test_there_is_no_audit_before_a_run_has_ended() -> None:
    study = made_up(*MIXED)
    assert read(study) is None
    optuna.create_study(study_name=f"made-up-{pruner_audit.KIND}", storage=study.study._storage)
    assert read(study) is None
