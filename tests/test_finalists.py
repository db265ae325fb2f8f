"""Who is trained again, with which seeds, who wins; the runs as waiting trials; and the set-up they are compared by."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState
from studies import config, recorded

from search_space import Config
from selection import finalists, fixed_runs
from selection.finalists import BASELINE, Candidate, Standing, ranked
from selection.fixed_runs import FixedRun
from tuning import StudyError
from tuning.devices import Slot
from tuning.environment import commit, differences, environment, versions
from tuning.folder import sqlite_url
from tuning.jobs import Assignment
from tuning.storage import IDENTITY, Outcome


def searched(*trials: FrozenTrial, seed: int = 0) -> optuna.Study:
    """A study that has these trials."""
    study = optuna.create_study(study_name="mushrooms", direction="maximize")
    study.set_user_attr(IDENTITY + "seed", seed)
    study.add_trials(trials)
    return study


def candidate(number: int, *, baseline: bool = False, point: Config | None = None) -> Candidate:
    return Candidate(
        name=f"trial {number}",
        trial=number,
        config=point or config(),
        recorded=0.9,
        epoch_seconds=2.0,
        baseline=baseline,
    )


def standing(number: int, *top1: float, diverged: int = 0, baseline: bool = False) -> Standing:
    runs = [recorded([value]) for value in top1] + [recorded([0.1], outcome=Outcome.DIVERGED)] * diverged
    return Standing(candidate=candidate(number, baseline=baseline), runs=tuple(runs))


# -- candidates


def test_the_candidates_are_the_best_complete_trials_and_of_equals_the_earlier() -> None:
    study = searched(
        recorded([0.5, 0.4]),
        recorded([0.7]),
        recorded([0.95], outcome=Outcome.PRUNED),
        recorded([0.6, 0.8]),
        recorded([0.7]),
        recorded([0.99], outcome=Outcome.DIVERGED),
    )
    best = finalists.candidates(study, 3)
    assert [(one.trial, one.recorded, one.name) for one in best] == [
        (3, 0.8, "trial 3"),
        (1, 0.7, "trial 1"),
        (4, 0.7, "trial 4"),
    ]
    assert [one.trial for one in finalists.candidates(study, 99)] == [3, 1, 4, 0]
    assert best[0].config == config()
    assert best[0].epoch_seconds == 2.0
    assert not any(one.baseline for one in best)


def test_a_trial_that_was_told_from_outside_is_no_candidate() -> None:
    """It has a value and no configuration: taking it ended in a KeyError."""
    study = searched(recorded([0.5]))
    study.tell(study.ask(), 0.9)
    assert [one.trial for one in finalists.candidates(study, 3)] == [0]


def test_a_study_without_complete_trials_has_no_candidates() -> None:
    study = searched(recorded([0.9], outcome=Outcome.PRUNED))
    with pytest.raises(StudyError, match=r"complete trials, but 'mushrooms' has none; go on .* --trial N$"):
        finalists.candidates(study, 3)


def test_ones_own_choice_may_have_been_pruned() -> None:
    study = searched(recorded([0.5]), recorded([0.2, 0.3], outcome=Outcome.PRUNED))
    chosen = finalists.candidate(study, 1)
    assert (chosen.trial, chosen.name, chosen.recorded, chosen.epoch_seconds) == (1, "trial 1", 0.3, 2.0)


def test_a_trial_that_is_not_there_or_was_not_trained_is_refused_by_name() -> None:
    reason = "parameters 20% over budget"
    study = searched(recorded([0.5]), recorded([], outcome=Outcome.INFEASIBLE, reason=reason))
    study.ask()
    for number, rule in {
        9: "--trial names a trial of the study, but 'mushrooms' has 0 to 2 and no 9; choose one of them",
        1: f"--trial names a trial that has been trained, but trial 1 has not ({reason}); choose another one",
        2: "--trial names a trial that has been trained, but trial 2 has not (running); choose another one",
    }.items():
        with pytest.raises(StudyError, match=f"^{re.escape(rule)}$"):
            finalists.candidate(study, number)


def test_the_baselines_are_the_known_recipes_and_the_better_one_without_its_warm_up() -> None:
    recipe = config(warmup_epochs=1)
    study = searched(
        recorded([0.9], known_good="original recipe"),
        recorded([0.6], known_good=BASELINE, config=recipe.to_dict()),
    )
    original, warm, cold = finalists.baselines(study)
    names = ("original recipe", "improved by hand", "improved by hand, no warm-up")
    assert (original.name, warm.name, cold.name) == names
    assert (original.config, original.trial, original.baseline) == (config(), 0, True)
    assert warm.config == recipe
    assert cold.config == replace(recipe, training=replace(recipe.training, warmup_epochs=0))
    assert warm.baseline and cold.baseline
    assert {warm.trial, cold.trial} == {1}


@pytest.mark.parametrize("trials", [[recorded([0.5])], [recorded([], outcome=Outcome.INFEASIBLE, known_good=BASELINE)]])
def test_a_study_that_has_not_trained_the_recipe_has_no_baselines(trials: list[FrozenTrial]) -> None:
    with pytest.raises(StudyError, match=r"^--baseline compares .* but 'mushrooms' has not trained it to its end"):
        finalists.baselines(searched(*trials))


# -- seeds


def test_the_seeds_are_the_studys_own_and_fewer_are_the_first_of_more() -> None:
    five = finalists.seeds(searched(seed=7), 5)
    assert len(set(five)) == 5
    assert finalists.seeds(searched(seed=7), 3) == five[:3]
    assert not set(five) & set(finalists.seeds(searched(seed=8), 5))


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_no_finalist_has_a_trials_seed(seed: int) -> None:
    """With the same seed a finalist's run would only repeat the trial that was lucky with it."""
    trials = {int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) for number in range(2000)}
    assert not trials & set(finalists.seeds(searched(seed=seed), 10))


def test_every_candidate_meets_the_same_seeds() -> None:
    other = config(lr=2e-3)
    runs = [candidate(number, point=point).runs([11, 12]) for number, point in ((3, config()), (5, other))]
    assert [[run.assignment.seed for run in one] for one in runs] == [[11, 12], [11, 12]]
    assert len({run.key for one in runs for run in one}) == 4
    first = runs[1][0]
    assert (first.trial, first.seed_index, first.seconds) == (5, 0, 2.0 * other.training.epochs)
    assert first.assignment == Assignment(
        config=other, seed=11, epochs=other.training.epochs, name="trial 5, seed 1 of 2"
    )


def test_more_seeds_add_runs_and_repeat_none() -> None:
    few, many = candidate(1).runs([11, 12]), candidate(1).runs([11, 12, 13])
    assert [run.key for run in many[:2]] == [run.key for run in few]


def test_a_replay_has_the_trials_own_seed_and_as_many_epochs() -> None:
    trial = recorded([0.2, 0.3], outcome=Outcome.PRUNED, seed=99)
    study = searched(trial)
    run = finalists.replay(finalists.candidate(study, 0), study.get_trials()[0])
    assert run.assignment == Assignment(config=config(), seed=99, epochs=2, name="replay of trial 0")
    assert run.key not in {one.key for one in candidate(0).runs([99])}


# -- standings


def test_the_best_mean_wins_and_not_the_best_run() -> None:
    lucky, steady = standing(1, 0.99, 0.5, 0.5), standing(2, 0.7, 0.7, 0.7)
    assert ranked([lucky, steady])[0] is steady


def test_of_equal_means_the_earlier_trial_wins() -> None:
    first, second = standing(4, 0.5, 0.7), standing(2, 0.6, 0.6)
    assert first.mean == second.mean
    assert ranked([first, second])[0] is second


def test_a_candidate_that_diverged_loses_to_one_that_did_not() -> None:
    wild, tame = standing(1, 0.9, 0.9, diverged=1), standing(2, 0.3, 0.3, 0.3)
    assert (wild.mean, wild.diverged) == (0.9, 1)
    assert ranked([wild, tame])[0] is tame
    assert ranked([standing(3, diverged=3), wild])[0] is wild


def test_a_baseline_cannot_win() -> None:
    own = standing(1, 0.4)
    assert ranked([standing(0, 0.9, baseline=True), own])[0] is own


def test_mean_and_spread_over_the_seeds() -> None:
    three = standing(1, 0.5, 0.6, 0.7, diverged=1)
    assert (three.mean, three.spread) == (pytest.approx(0.6), pytest.approx(0.1))
    assert standing(1, 0.5).spread is None
    none_left = standing(1, diverged=2)
    assert (none_left.mean, none_left.spread, none_left.complete) == (0.0, None, [])


@pytest.mark.parametrize(
    ("best_epochs", "epochs"),
    [([0], 1), ([4, 0, 2], 3), ([1, 2], 3), ([1, 3], 3), ([0, 1, 2, 9], 3), ([5, 5, 0], 6)],
)
def test_a_final_run_trains_for_the_median_best_epoch(best_epochs: list[int], epochs: int) -> None:
    """Epochs are counted from 0 and trained for from 1; halves are rounded up. Runs that diverged do not count."""
    runs = [recorded([0.0] * best + [0.5]) for best in best_epochs] + [recorded([0.9], outcome=Outcome.DIVERGED)]
    assert Standing(candidate=candidate(1), runs=tuple(runs)).epochs == epochs


def test_a_candidate_that_diverged_with_every_seed_cannot_be_trained_on_more() -> None:
    with pytest.raises(StudyError, match=r"but trial 3 diverged with every seed; choose another one with --trial N$"):
        _ = standing(3, diverged=2).epochs


def test_the_table_has_a_line_per_run(tmp_path: Path) -> None:
    wild = Standing(
        candidate=candidate(2), runs=(recorded([0.2, 0.5], seed=7), recorded([], outcome=Outcome.DIVERGED, seed=8))
    )
    finalists.write_csv([wild, standing(0, 0.4, baseline=True)], tmp_path / "finalists.csv")
    with (tmp_path / "finalists.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"name": "trial 2", "trial": "2", "seed": "7", "outcome": "complete", "top1": "0.5", "best_epoch": "1"},
        {"name": "trial 2", "trial": "2", "seed": "8", "outcome": "diverged", "top1": "", "best_epoch": ""},
        {"name": "trial 0", "trial": "0", "seed": "1", "outcome": "complete", "top1": "0.4", "best_epoch": "0"},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["finalists.csv"]


# -- fixed runs


@pytest.fixture
def runs() -> list[FixedRun]:
    return candidate(3).runs([11, 12])


@pytest.fixture
def pool() -> optuna.Study:
    return optuna.create_study(study_name="mushrooms-finalists", direction="maximize")


def states(pool: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in pool.get_trials()]


def end(pool: optuna.Study, folder: Path, outcome: Outcome, **attributes: str) -> None:
    """Ends the next run as the coordinator does, with the weights of a complete one."""
    trial = pool.ask()
    assert fixed_runs.assign(trial) is not None
    for name, value in attributes.items():
        trial.set_user_attr(name, value)
    trial.set_user_attr("outcome", outcome)
    if outcome is Outcome.COMPLETE:
        path = fixed_runs.weights(folder, pool.get_trials()[trial.number])
        path.parent.mkdir(parents=True)
        path.touch()
        pool.tell(trial, 0.5)
    else:
        pool.tell(trial, None, TrialState.FAIL if outcome is Outcome.FAILED else TrialState.PRUNED)


def test_a_run_waits_once_however_often_it_is_asked_for(
    pool: optuna.Study, runs: list[FixedRun], tmp_path: Path
) -> None:
    for _ in range(3):
        fixed_runs.add(pool, [*runs, *runs], tmp_path)
    assert states(pool) == [TrialState.WAITING] * 2
    end(pool, tmp_path, Outcome.COMPLETE)
    pool.ask()  # an interrupted one, which will be taken over
    fixed_runs.add(pool, runs, tmp_path)
    assert states(pool) == [TrialState.COMPLETE, TrialState.RUNNING]


def test_a_run_that_diverged_has_ended(pool: optuna.Study, runs: list[FixedRun], tmp_path: Path) -> None:
    fixed_runs.add(pool, runs, tmp_path)
    end(pool, tmp_path, Outcome.DIVERGED)
    end(pool, tmp_path, Outcome.COMPLETE)
    fixed_runs.add(pool, runs, tmp_path)
    assert states(pool) == [TrialState.PRUNED, TrialState.COMPLETE]
    assert [trial.number for trial in fixed_runs.finished(pool, runs[::-1])] == [1, 0]


def test_a_run_that_failed_is_named_and_waits_anew(pool: optuna.Study, runs: list[FixedRun], tmp_path: Path) -> None:
    fixed_runs.add(pool, runs, tmp_path)
    end(pool, tmp_path, Outcome.FAILED, reason="out of memory: no room")
    end(pool, tmp_path, Outcome.COMPLETE)
    rule = (
        "every run must come to its end, but trial 3, seed 1 of 2 did not (out of memory: no room); the same command "
    )
    with pytest.raises(StudyError, match=re.escape(rule)):
        fixed_runs.finished(pool, runs)
    fixed_runs.add(pool, runs, tmp_path)
    assert states(pool) == [TrialState.FAIL, TrialState.COMPLETE, TrialState.WAITING]
    end(pool, tmp_path, Outcome.COMPLETE)
    assert [trial.number for trial in fixed_runs.finished(pool, runs)] == [2, 1]


def test_a_run_that_lost_its_weights_waits_anew(pool: optuna.Study, runs: list[FixedRun], tmp_path: Path) -> None:
    fixed_runs.add(pool, runs, tmp_path)
    end(pool, tmp_path, Outcome.COMPLETE)
    end(pool, tmp_path, Outcome.COMPLETE)
    fixed_runs.weights(tmp_path, pool.get_trials()[0]).unlink()
    fixed_runs.add(pool, runs, tmp_path)
    assert states(pool) == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.WAITING]
    end(pool, tmp_path, Outcome.COMPLETE)
    assert [trial.number for trial in fixed_runs.finished(pool, runs)] == [2, 1]
    fixed_runs.add(pool, runs, tmp_path)
    assert len(states(pool)) == 3


def test_what_waits_is_what_is_trained(pool: optuna.Study, tmp_path: Path) -> None:
    """With the trial and the seed as parameters, which is what the dashboard shows."""
    work = Assignment(config=config(lr=3e-3), seed=12, epochs=2, final=True, name="trial 3, seed 2 of 2")
    wanted = FixedRun(key="a", assignment=work, trial=3, seed_index=1, seconds=5.0)
    fixed_runs.add(pool, [wanted], tmp_path)
    assert fixed_runs.seconds(pool) == 5.0
    trial = pool.ask()
    assert fixed_runs.assign(trial) == work
    assert trial.params == {"trial": 3, "seed": 1}
    assert fixed_runs.seconds(pool) == 5.0
    pool.tell(trial, 0.5)
    assert fixed_runs.seconds(pool) == 0.0


def test_what_an_interrupted_command_left_is_not_trained_by_one_that_does_not_want_it(
    runs: list[FixedRun], tmp_path: Path
) -> None:
    pool = optuna.create_study()
    fixed_runs.add(pool, runs, tmp_path)
    fixed_runs.add(pool, runs[1:], tmp_path)
    assert [trial.state for trial in pool.get_trials()] == [TrialState.FAIL, TrialState.WAITING]
    fixed_runs.add(pool, runs, tmp_path)
    assert [trial.state for trial in pool.get_trials()] == [TrialState.FAIL, TrialState.WAITING, TrialState.WAITING]


def test_asking_for_what_has_ended_leaves_the_rest_waiting(runs: list[FixedRun], tmp_path: Path) -> None:
    """A replay that is there already threw away the half-trained runs after it."""
    pool = optuna.create_study()
    fixed_runs.add(pool, runs, tmp_path)
    done = pool.ask()
    pool.tell(done, 0.5)
    path = fixed_runs.weights(tmp_path, pool.get_trials()[0])
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    fixed_runs.add(pool, runs[:1], tmp_path)
    assert pool.get_trials()[1].state is TrialState.WAITING


def test_the_sibling_study_is_optunas_own_and_can_be_gone_on_with(runs: list[FixedRun], tmp_path: Path) -> None:
    url = sqlite_url(tmp_path)
    for _ in range(2):
        fixed_runs.open_pool(url, "mushrooms-finalists", "validation top-1", runs, tmp_path / "finalists", "these")
    plain = optuna.load_study(study_name="mushrooms-finalists", storage=url)
    assert plain.metric_names == ["validation top-1"]
    assert [trial.state for trial in plain.get_trials()] == [TrialState.WAITING] * 2
    trial = plain.ask()
    assert fixed_runs.assign(trial) == runs[0].assignment
    plain.tell(trial, 0.5)
    assert plain.best_trial.params == {"trial": 3, "seed": 0}
    with pytest.raises(StudyError, match="finalists -> retrained"):
        fixed_runs.open_pool(url, "mushrooms-finalists", "top-1", runs, tmp_path / "retrained", "these")
    with pytest.raises(StudyError, match="data: these -> others"):
        fixed_runs.open_pool(url, "mushrooms-finalists", "top-1", runs, tmp_path / "finalists", "others")


# -- environment


def test_the_environment_names_what_decides_the_numbers() -> None:
    slot = Slot(threads=3, precision="bfloat16")
    facts = environment(slot)
    assert facts.items() >= versions().items()
    assert set(facts) == {"device", "threads", "precision", "program", "python", "torch", "numpy", "pillow"}
    assert (facts["threads"], facts["precision"]) == ("3", "bfloat16")
    assert torch.__version__.startswith(facts["torch"])
    assert torch.backends.cpu.get_cpu_capability() in facts["device"]
    assert differences(facts, environment(slot)) == []


def test_what_differs_is_named_with_both_values() -> None:
    then = {"device": "Zen 3", "threads": "1", "torch": "2.15.0"}
    now = {"device": "H100", "threads": "1", "numpy": "2.4"}
    assert differences(then, now) == ["device Zen 3 -> H100", "numpy unknown -> 2.4", "torch 2.15.0 -> unknown"]


def test_the_commit_of_a_program_and_whether_it_was_changed(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    assert commit(tmp_path) is None

    def git(*words: str) -> str:
        me = ["-c", "user.name=me", "-c", "user.email=me@here", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *me, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    git("init")
    (tmp_path / "study.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    head = git("rev-parse", "HEAD").strip()
    assert commit(tmp_path) == head
    git("tag", "v1")
    (tmp_path / "study.py").write_text("2")
    assert commit(tmp_path) == head + "+"
