"""Finalists: which trials are trained again, with which seeds, and which one wins."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from studies import config, recorded

from data.augment import AugmentConfig
from model.training import lr_at
from search_space import GUESS, HAND_TUNED, ORIGINAL, Config
from selection import finalists
from selection.finalists import Candidate, Standing, ranked
from tuning import StudyError
from tuning.database import IDENTITY
from tuning.jobs import Assignment
from tuning.session import OpenStudy
from tuning.settings import Settings
from tuning.trials import Outcome, Trial, read_trials


def searched(*trials: FrozenTrial, seed: int = 0) -> optuna.Study:
    """Return a study of these trials."""
    study = optuna.create_study(study_name="mushrooms", direction="maximize")
    study.set_user_attr(IDENTITY + "seed", seed)
    study.add_trials(trials)
    return study


def seeds(count: int, *, seed: int) -> list[int]:
    """Return the finalists' seeds of a study with this seed."""
    settings = Settings(data="field-guide", test_data=None, pictures=None, storage=None)
    study = OpenStudy(study=searched(seed=seed), folder=Path("mushrooms"), url="", settings=settings)
    return finalists.final_seeds(study, count)


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
    return Standing(candidate=candidate(number, baseline=baseline), runs=tuple(map(Trial, runs)))


# -- candidates


def test_candidates_are_the_best_complete_trials_and_the_earlier_of_equals() -> None:
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
    assert [one.trial for one in finalists.candidates(study, 99)] == [3, 1, 4, 0, 2]
    assert best[0].config == config()
    assert best[0].epoch_seconds == 2.0
    assert not any(one.baseline for one in best)


def test_a_trial_that_another_program_reported_is_not_a_candidate() -> None:
    """It has a value but no configuration: choosing it ended in a KeyError."""
    study = searched(recorded([0.5]))
    study.tell(study.ask(), 0.9)
    assert [one.trial for one in finalists.candidates(study, 3)] == [0]


def test_a_study_without_trained_trials_has_no_candidates() -> None:
    study = searched(recorded([], outcome=Outcome.INFEASIBLE))
    study.ask()
    with pytest.raises(StudyError, match=r"^'mushrooms' has no trained trial"):
        finalists.candidates(study, 3)


def waiting(*curve: float, **attributes: Any) -> FrozenTrial:
    """Return a trial that has not ended, as a study that was stopped leaves it."""
    trial = recorded(list(curve), **attributes)
    trial.state, trial.values, trial.datetime_complete = TrialState.RUNNING, None, None
    for name in ("outcome", "best_top1", "best_top3", "best_epoch", "seconds"):
        del trial.user_attrs[name]
    trial.user_attrs |= {"paused": True, "spans": [[100.0, 108.0]]}
    return trial


def test_where_too_few_trials_are_complete_those_trained_furthest_are_candidates_too() -> None:
    """Of a study that was stopped early, or has few trials, promotion may have trained none or one to its end."""
    study = searched(waiting(0.9), recorded([0.3, 0.5, 0.4], outcome=Outcome.PRUNED), waiting(0.2, 0.6))
    best = finalists.candidates(study, 2)
    assert [(one.trial, one.recorded, one.epoch_seconds, one.complete) for one in best] == [
        (1, 0.5, 2.0, False),
        (2, 0.6, 4.0, False),
    ]
    study.add_trial(recorded([0.1]))
    assert [(one.trial, one.complete) for one in finalists.candidates(study, 2)] == [(3, True), (1, False)]
    assert finalists.candidate(study, 0).recorded == 0.9


def test_a_waiting_baseline_can_be_compared_with() -> None:
    study = searched(waiting(0.3, baseline=HAND_TUNED))
    assert [one.recorded for one in finalists.baseline_candidates(study)] == [0.3, 0.3]


def test_a_pruned_trial_can_be_chosen_by_its_number() -> None:
    study = searched(recorded([0.5]), recorded([0.2, 0.3], outcome=Outcome.PRUNED))
    chosen = finalists.candidate(study, 1)
    assert (chosen.trial, chosen.name, chosen.recorded, chosen.epoch_seconds) == (1, "trial 1", 0.3, 2.0)


def test_a_trial_that_does_not_exist_or_was_not_trained_is_refused() -> None:
    reason = "parameters 20% over budget"
    study = searched(recorded([0.5]), recorded([], outcome=Outcome.INFEASIBLE, reason=reason))
    study.ask()
    for number, fact in {9: "0 to 2", 1: f"({reason})", 2: "(running)"}.items():
        with pytest.raises(StudyError, match=rf"^--trial {number} .*{re.escape(fact)}"):
            finalists.candidate(study, number)


def test_a_configuration_of_another_search_space_is_refused_by_its_trial() -> None:
    study = searched(recorded([0.5], config={"image_size": 32}))
    for choose in (lambda: finalists.candidate(study, 0), lambda: finalists.candidates(study, 1)):
        with pytest.raises(
            StudyError, match=r"^cannot read the configuration of trial 0 .*search_space\.py.*--trial N"
        ):
            choose()


def test_the_baselines_are_both_recipes_and_the_hand_tuned_one_without_its_warm_up() -> None:
    recipe = config(warmup_epochs=1)
    study = searched(
        recorded([0.9], baseline="original recipe"),
        recorded([0.6], baseline=HAND_TUNED, config=recipe.to_dict()),
    )
    original, warm, cold = finalists.baseline_candidates(study)
    names = ("original recipe", "hand-tuned recipe", "hand-tuned recipe, no warm-up")
    assert (original.name, warm.name, cold.name) == names
    assert (original.config, original.trial, original.baseline) == (config(), 0, True)
    assert warm.config == recipe
    assert cold.config == replace(recipe, training=replace(recipe.training, warmup_epochs=0))
    assert warm.baseline and cold.baseline
    assert {warm.trial, cold.trial} == {1}


UNTRAINED = recorded([], outcome=Outcome.INFEASIBLE, baseline=HAND_TUNED)


@pytest.mark.parametrize("trials", [[recorded([0.5])], [UNTRAINED]])
def test_a_study_that_has_not_trained_any_baseline_has_none(trials: list[FrozenTrial]) -> None:
    with pytest.raises(StudyError, match=r"^'mushrooms' has not trained any baseline.*--baseline"):
        finalists.baseline_candidates(searched(*trials))


def test_a_baseline_over_the_budget_leaves_the_others_to_compare_with() -> None:
    found = finalists.baseline_candidates(searched(UNTRAINED, recorded([0.5], baseline=ORIGINAL)))
    assert [(one.name, one.trial, one.baseline) for one in found] == [(ORIGINAL, 1, True)]


# -- seeds


def test_seeds_depend_on_the_studys_seed_and_fewer_are_the_first_of_more() -> None:
    five = seeds(5, seed=7)
    assert len(set(five)) == 5
    assert seeds(3, seed=7) == five[:3]
    assert not set(five) & set(seeds(5, seed=8))


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_no_finalist_has_the_seed_of_a_trial(seed: int) -> None:
    """With that seed its run would only repeat the trial that was lucky with it."""
    trials = {int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) for number in range(2000)}
    assert not trials & set(seeds(10, seed=seed))


def test_every_candidate_is_trained_with_the_same_seeds() -> None:
    other = config(lr=2e-3)
    runs = [candidate(number, point=point).runs([11, 12]) for number, point in ((3, config()), (5, other))]
    assert [[run.assignment.seed for run in one] for one in runs] == [[11, 12], [11, 12]]
    assert len({run.key for one in runs for run in one}) == 4
    first = runs[1][0]
    assert (first.trial, first.seed_index, first.seconds) == (5, 0, 2.0 * other.training.epochs)
    assert first.assignment == Assignment(
        config=other, seed=11, epochs=other.training.epochs, last=True, name="trial 5, seed 1 of 2"
    )


def test_more_seeds_add_runs_and_change_none() -> None:
    few, many = candidate(1).runs([11, 12]), candidate(1).runs([11, 12, 13])
    assert [run.key for run in many[:2]] == [run.key for run in few]


def test_a_replay_has_the_seed_and_the_number_of_epochs_of_its_trial() -> None:
    study = searched(recorded([0.2, 0.3], outcome=Outcome.PRUNED, seed=99))
    run = finalists.replay(finalists.candidate(study, 0), read_trials(study)[0])
    assert run.assignment == Assignment(config=config(), seed=99, epochs=2, name="replay of trial 0")
    assert run.key not in {one.key for one in candidate(0).runs([99])}


@pytest.mark.parametrize("factor", [2, 3])
def test_a_stretched_candidate_has_the_schedule_of_its_own_drawn_out_in_time(factor: int) -> None:
    own = candidate(4, point=config(schedule="step", epochs=6, step_period=2, step_factor=0.5, warmup_epochs=1))
    longer = finalists.stretched(own, factor)
    before, after = own.config.training, longer.config.training
    assert (after.epochs, after.step_period, after.warmup_epochs) == (6 * factor, 2 * factor, factor)
    steps = 5
    for step in range(steps, 6 * steps):  # after the warm-up, which rises by the step
        assert lr_at(step * factor, steps, after) == lr_at(step, steps, before)
    assert replace(after, epochs=6, step_period=2, warmup_epochs=1) == before
    assert replace(longer.config, training=before) == own.config
    assert (longer.trial, longer.baseline, longer.complete) == (4, False, False)
    assert longer.name == f"trial 4 ({factor}x)"
    assert {run.key for run in own.runs([1, 2])}.isdisjoint(run.key for run in longer.runs([1, 2]))
    assert [run.seconds for run in longer.runs([1])] == [factor * run.seconds for run in own.runs([1])]


@pytest.mark.parametrize(("own", "longer", "winner"), [(0.5, 0.6, 1), (0.6, 0.5, 0), (0.6, 0.6, 1)])
def test_training_longer_wins_unless_it_is_worse(own: float, longer: float, winner: int) -> None:
    both = [standing(4, own), replace(standing(4, longer), candidate=finalists.stretched(candidate(4), 2))]
    assert ranked(both)[0] is both[winner]


# -- standings


def test_the_best_mean_wins_not_the_best_run() -> None:
    lucky, steady = standing(1, 0.99, 0.5, 0.5), standing(2, 0.7, 0.7, 0.7)
    assert ranked([lucky, steady])[0] is steady


def test_of_equal_means_the_earlier_trial_wins() -> None:
    first, second = standing(4, 0.5, 0.7), standing(2, 0.6, 0.6)
    assert first.mean == second.mean
    assert ranked([first, second])[0] is second


def test_of_equal_means_the_lower_loss_wins() -> None:
    """Six of 21 pictures right, with seeds that differ: the means differ in the last bit alone."""

    def made(number: int, top1: Sequence[float], loss: float | None) -> Standing:
        runs = tuple(Trial(recorded([one], best_loss=loss)) for one in top1)
        return Standing(candidate=candidate(number), runs=runs)

    ones = [made(1, [5 / 7, 0, 1 / 7], None), made(2, [2 / 7, 4 / 7, 0], 0.9), made(3, [5 / 7, 0, 1 / 7], 0.8)]
    assert ones[1].mean != ones[2].mean == pytest.approx(ones[1].mean)
    assert [one.candidate.trial for one in ranked(ones)] == [3, 2, 1]
    assert ranked([made(1, [0.5], 0.9), made(2, [0.4], 0.1)])[0].candidate.trial == 1


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
    ("top1", "loss", "worth"),
    [(0.5, 1.0, False), (0.506, 1.1, True), (0.499, 0.98, True), (0.499, 0.995, False), (0.6, None, True)],
)
def test_twice_the_length_is_worth_it_for_its_top1_or_its_loss(top1: float, loss: float | None, worth: bool) -> None:
    def standing_of(top1: float, loss: float | None) -> Standing:
        return Standing(candidate=candidate(1), runs=(Trial(recorded([top1], best_loss=loss)),))

    assert standing_of(top1, loss).is_worth_doubling(standing_of(0.5, 1.0)) == worth
    assert not standing(1, diverged=1).is_worth_doubling(standing_of(0.5, 1.0))


@pytest.mark.parametrize(
    ("strength", "jitter", "reuse", "fresh", "after", "then"),
    [
        (0.0, 0.0, False, True, (0.3, 0.2), (0.6, 0.4)),
        (0.7, 0.4, True, True, (1.0, 0.6), (1.0, 0.8)),
        (0.9, 0.7, False, False, (1.0, 0.8), None),
        (1.0, 0.8, True, True, (1.0, 0.8), None),
        (1.5, 1.0, True, True, (1.5, 1.0), None),
    ],
)
def test_a_stronger_augmentation_is_of_every_view(
    strength: float,
    jitter: float,
    reuse: bool,
    fresh: bool,
    after: tuple[float, float],
    then: tuple[float, float] | None,
) -> None:
    augment = AugmentConfig(strength=strength, reuse_originals=reuse, fresh=fresh, flips=False, colour_jitter=jitter)
    (made,) = finalists.stronger(candidate(3, point=replace(config(), augment=augment)))
    assert (made.config.augment.strength, made.config.augment.colour_jitter) == after
    assert not made.config.augment.reuse_originals and made.config.augment.fresh and not made.config.augment.flips
    assert (made.trial, made.name) == (3, f"trial 3, augmentation {after[0]:g}, colour jitter {after[1]:g}")
    again = finalists.stronger(made)
    augments = [one.config.augment for one in again]
    assert [(one.strength, one.colour_jitter) for one in augments] == ([then] if then else [])


def test_half_the_learning_rate_is_named_beside_other_changes() -> None:
    own = candidate(3, point=config(lr=0.05))
    half = finalists.slower(own)
    assert half.config == replace(own.config, training=replace(own.config.training, lr=0.025))
    assert (half.trial, half.name) == (3, "trial 3, lr 0.025")
    (strong,) = finalists.stronger(half)
    quarter = finalists.slower(strong)
    assert (quarter.name, quarter.config.training.lr) == (
        "trial 3, lr 0.0125, augmentation 0.8, colour jitter 0.2",
        0.0125,
    )
    assert finalists.stretched(quarter, 2).name == f"{quarter.name} (2x)"


def test_the_best_single_guess_is_a_candidate_if_the_study_has_trained_it() -> None:
    assert (
        finalists.best_guess(searched(recorded([0.5]), recorded([], outcome=Outcome.INFEASIBLE, baseline=GUESS))) == []
    )
    (found,) = finalists.best_guess(searched(recorded([0.5]), recorded([0.4], baseline=GUESS)))
    assert (found.name, found.trial, found.baseline) == (GUESS, 1, False)


def test_a_candidate_with_fewer_seeds_comes_after_those_with_all() -> None:
    lucky, steady = standing(1, 0.9), standing(2, 0.6, 0.7)
    assert ranked([lucky, steady]) == [steady, lucky]


def test_finalists_csv_has_one_line_per_run(tmp_path: Path) -> None:
    runs = (Trial(recorded([0.2, 0.5], seed=7)), Trial(recorded([], outcome=Outcome.DIVERGED, seed=8)))
    wild = Standing(candidate=candidate(2), runs=runs)
    finalists.write_csv([wild, standing(0, 0.4, baseline=True)], tmp_path / "finalists.csv", "5eed")
    with (tmp_path / "finalists.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "trial", "epochs", "seed", "outcome", "top1", "study_id"]
    assert [list(row.values()) for row in rows] == [
        ["trial 2", "2", "3", "7", "complete", "0.5", "5eed"],
        ["trial 2", "2", "3", "8", "diverged", "", "5eed"],
        ["trial 0", "0", "3", "1", "complete", "0.4", "5eed"],
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["finalists.csv"]
