"""The audit of the pruner: the right trials, trained just as they would have been, and counted right."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from studies import EPOCHS, Finished, Tiny, one_core, prepare, recorded, threads_for_processes

from selection import pruner_audit as audit
from tests.stress.sameness import essence
from tuning import StudyError, scheduling
from tuning.folder import sqlite_url
from tuning.storage import IDENTITY, METRIC, Outcome

COMMAND = ("--workers", "1", "--trials", "4")
PRUNED = [2, 3]
"""The two before are known to be good, and never pruned."""


class PrunesThose(BasePruner):
    """Ends those trials after their second epoch: with six validation pictures most real pruners see equal values."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return trial.number in PRUNED and trial.last_step == 1


@pytest.fixture(scope="module", autouse=True)
def steady() -> Iterator[None]:
    threads = torch.get_num_threads()
    with one_core(), threads_for_processes(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(scheduling.PRUNERS, "median", lambda epochs: PrunesThose())
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Finished]:
    """A study in which nothing was pruned, and what a command said that was to audit it."""
    study = prepare(tmp_path_factory.mktemp("refused"))
    return study, study.command("--workers", "1", "--trials", "2", "--audit-pruner", "3")


@pytest.fixture(scope="module")
def searched(refused: tuple[Tiny, Finished], tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A finished study in which some trials were pruned: it, gone on with."""
    study = copied(refused[0], tmp_path_factory.mktemp("audit"))
    finished = study.command(*COMMAND)
    assert (finished.code, finished.err) == (0, "")
    ends = [trial.user_attrs["outcome"] for trial in study.trials()]
    assert [number for number, end in enumerate(ends) if end == Outcome.PRUNED] == PRUNED
    return study


@pytest.fixture(scope="module")
def audited(searched: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Finished]:
    """A copy of it of which two trials were audited; what the command said."""
    study = copied(searched, tmp_path_factory.mktemp("audited"))
    finished = study.command(*COMMAND, "--audit-pruner", "2")
    assert (finished.code, finished.err) == (0, "")
    return study, finished


def copied(study: Tiny, place: Path) -> Tiny:
    shutil.copytree(study.results, place / "results")
    return study.at(place / "results")


def made_up(*curves: tuple[list[float], Outcome], seed: int = 3) -> optuna.Study:
    """A study that has had these trials."""
    study = optuna.create_study(direction="maximize", study_name="made-up")
    study.set_user_attr(IDENTITY + "seed", seed)
    for curve, outcome in curves:
        study.add_trial(recorded(curve, outcome=outcome))
    return study


def judged(study: optuna.Study, *ends: tuple[int, dict[str, Any]]) -> audit.Verdict:
    """The verdict over audited trials: number, and attributes of the trial that was trained to its end."""
    pool = optuna.create_study(study_name=f"{study.study_name}-{audit.KIND}", storage=study._storage)
    for number, attributes in ends:
        distribution = optuna.distributions.IntDistribution(0, 2**31 - 1)
        pool.add_trial(
            optuna.trial.create_trial(
                value=0.0, params={"trial": number}, distributions={"trial": distribution}, user_attrs=attributes
            )
        )
    return audit.verdict(study, pool.get_trials())


# -- as a command


def test_on_a_finished_study_only_the_audit_is_trained(searched: Tiny, audited: tuple[Tiny, Finished]) -> None:
    study, finished = audited
    assert essence(study.trials()) == essence(searched.trials())
    assert len(study.trials("tiny-audit")) == 2
    assert "audit: 2 runs to go" in finished.out


def test_an_audited_trial_begins_with_the_curve_of_the_pruned_one_bit_for_bit(audited: tuple[Tiny, Finished]) -> None:
    study, _ = audited
    trials = study.trials()
    for trial in study.trials("tiny-audit"):
        earlier = trials[trial.params["trial"]]
        assert earlier.user_attrs["outcome"] == Outcome.PRUNED
        assert len(trial.intermediate_values) == EPOCHS > len(earlier.intermediate_values)
        begun = {epoch: trial.intermediate_values[epoch] for epoch in earlier.intermediate_values}
        assert begun == earlier.intermediate_values
        for name in ("config", "seed", "parameters", "flops"):
            assert trial.user_attrs[name] == earlier.user_attrs[name]


def test_the_audit_is_a_plain_study_beside_the_searched_one(audited: tuple[Tiny, Finished]) -> None:
    study, _ = audited
    url = sqlite_url(study.study_folder)
    assert sorted(optuna.get_all_study_names(url)) == ["tiny", "tiny-audit"]
    plain = optuna.load_study(study_name="tiny-audit", storage=url)
    assert [trial.state for trial in plain.trials] == [TrialState.COMPLETE] * 2
    assert (plain.direction, plain.metric_names) == (StudyDirection.MAXIMIZE, [METRIC])
    assert plain.best_value == max(trial.user_attrs["best_top1"] for trial in plain.trials)


def test_the_command_says_what_the_verdict_is(audited: tuple[Tiny, Finished]) -> None:
    study, finished = audited
    opened = optuna.load_study(study_name="tiny", storage=sqlite_url(study.study_folder))
    found = audit.read(opened, opened._storage)
    assert found is not None
    assert found.best == opened.best_value
    assert [number for number, _, _ in found.pruned] == sorted(
        trial.params["trial"] for trial in study.trials("tiny-audit")
    )
    won = len(found.winners)
    assert f"{won} of 2 pruned trials would have beaten the study's best ({100 * found.best:.2f} %)" in finished.out


def test_a_second_audit_trains_nothing_and_says_the_same(audited: tuple[Tiny, Finished], tmp_path: Path) -> None:
    first = audited[1].out
    study = copied(audited[0], tmp_path)
    before = essence(study.trials("tiny-audit"))
    again = study.command(*COMMAND, "--audit-pruner", "2")
    assert (again.code, again.err) == (0, "")
    assert "to go" not in again.out
    assert again.out.partition("when pruned")[1:] == first.partition("when pruned")[1:]
    assert essence(study.trials("tiny-audit")) == before


def test_a_smaller_audit_shows_its_own_trials_alone(audited: tuple[Tiny, Finished], tmp_path: Path) -> None:
    study = copied(audited[0], tmp_path)
    fewer = study.command(*COMMAND, "--audit-pruner", "1")
    assert "to go" not in fewer.out
    assert " of 1 pruned trials" in fewer.out


def test_nothing_pruned_is_one_line(refused: tuple[Tiny, Finished]) -> None:
    study, ended = refused
    assert ended.code == 2
    assert ended.err == (
        "error: --audit-pruner trains pruned trials to their end, but 'tiny' has none; leave it away\n"
    )
    assert [trial.state for trial in study.trials()] == [TrialState.COMPLETE] * 2
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


def numbers(study: optuna.Study, count: int) -> list[int]:
    return [run.trial for run in audit.runs(study, count)]


def test_a_smaller_draw_is_the_beginning_of_a_larger_one() -> None:
    study = made_up(*MIXED)
    whole = numbers(study, 10)
    assert set(whole) == ALL
    assert all(numbers(study, count) == whole[:count] for count in range(1, 10))


def test_more_than_there_are_is_all_that_were_pruned_and_nothing_else() -> None:
    assert set(numbers(made_up(*MIXED), 99)) == ALL


def test_the_lot_depends_on_the_studys_seed_alone() -> None:
    draws = [numbers(made_up(*MIXED, seed=seed), 10) for seed in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]


def test_trials_that_come_later_do_not_change_the_order_of_the_earlier_ones() -> None:
    study = made_up(*MIXED)
    before = numbers(study, 99)
    for _ in range(4):
        study.add_trial(recorded([0.1], outcome=Outcome.PRUNED))
    assert [number for number in numbers(study, 99) if number in ALL] == before


def test_every_pruned_trial_is_drawn_about_as_often() -> None:
    """One of ten, 400 times: 40 each, within four standard deviations of a binomial."""
    drawn = [numbers(made_up(*MIXED, seed=seed), 1)[0] for seed in range(400)]
    assert all(abs(drawn.count(number) - 40) < 4 * (400 * 0.1 * 0.9) ** 0.5 for number in ALL)


def test_a_run_is_the_trials_own_configuration_and_seed_over_all_of_its_epochs() -> None:
    study = made_up(*MIXED)
    run = next(run for run in audit.runs(study, 99) if run.trial == 4)
    attributes = study.get_trials()[4].user_attrs
    assert run.assignment.config.to_dict() == attributes["config"]
    assert run.assignment.seed == attributes["seed"]
    assert run.assignment.epochs == EPOCHS
    assert run.seconds == pytest.approx(attributes["seconds"] / 2 * EPOCHS)
    assert not run.assignment.final


def test_a_study_without_a_pruned_trial_is_refused() -> None:
    study = made_up(*(row for row in MIXED if row[1] is not Outcome.PRUNED))
    with pytest.raises(StudyError, match="trains pruned trials to their end, but 'made-up' has none; leave it away"):
        audit.runs(study, 3)


# -- the verdict


def test_a_winner_is_better_than_the_studys_best() -> None:
    study = made_up(*MIXED)
    found = judged(study, (7, {"best_top1": 0.8}), (1, {"best_top1": 0.7}), (4, {"best_top1": 0.69}))
    assert found.best == 0.7
    assert found.pruned == ((1, 0.2, 0.7), (4, 0.2, 0.69), (7, 0.2, 0.8))
    assert found.winners == [7], "as good as the best is no winner"


def test_where_every_trial_was_pruned_each_would_have_won() -> None:
    study = made_up(([0.1, 0.2], Outcome.PRUNED), ([0.3], Outcome.PRUNED))
    assert judged(study, (0, {"best_top1": 0.4}), (1, {"best_top1": 0.5})).winners == [0, 1]


def test_an_audited_trial_that_diverged_at_once_has_reached_nothing() -> None:
    """As on a GPU, where no training repeats another bit for bit."""
    found = judged(made_up(*MIXED), (1, {}), (4, {"best_top1": 0.3}))
    assert found.pruned == ((1, 0.2, 0.0), (4, 0.2, 0.3))


def test_before_an_audit_there_is_no_verdict() -> None:
    study = made_up(*MIXED)
    assert audit.read(study, study._storage) is None
    optuna.create_study(study_name=f"made-up-{audit.KIND}", storage=study._storage)
    assert audit.read(study, study._storage) is None


def test_what_is_read_is_what_was_judged() -> None:
    study = made_up(*MIXED)
    assert judged(study, (1, {"best_top1": 0.9})) == audit.read(study, study._storage)
