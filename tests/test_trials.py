"""The typed record of a trial: what the coordinator wrote is read back, as is what earlier versions wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pandas
import pytest
from optuna.pruners import NopPruner
from optuna.trial import FrozenTrial, TrialState
from studies import EPOCHS, TINY, Tiny, config, prepare, recorded

from model.training import EpochMetrics, Mistake
from search_space import HAND_TUNED, ORIGINAL, Config, baselines
from tuning import StudyError
from tuning.devices import Slot
from tuning.environment import environment
from tuning.trials import (
    LONGEST_ATTRIBUTE,
    Outcome,
    Result,
    Trial,
    count_trials,
    furthest,
    live_trial,
    read_history,
    read_trial,
    read_trials,
    top,
    trials_since_best,
    write_attempt,
    write_history,
    write_paused,
    write_result,
    write_trials_csv,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


class PrunesFrom2(NopPruner):
    """Prunes every trial but the first two after two epochs."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return trial.number >= 2 and trial.last_step == 1


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Two baselines, a pruned trial, one that another program enqueued and one that it finished."""
    study = tiny.at(tmp_path_factory.mktemp("trained"))
    recipes = {name: baselines(TINY)[name] for name in (ORIGINAL, HAND_TUNED)}
    stored = study.open(pruner=PrunesFrom2(), first_trials=recipes)
    list(study.coordinator(3, study=stored).run())
    stranger = study.open()
    stranger.add_trial(optuna.trial.create_trial(value=0.5, user_attrs={"environment": "a laptop", "config": [1]}))
    stranger.enqueue_trial({"width": 0.25})
    return study


def trial(number: int, state: TrialState, value: float | None = None, *, minute: int = 0, **attrs: Any) -> Trial:
    made = optuna.trial.create_trial(state=state, value=value, user_attrs=attrs)
    made.number = number
    made.datetime_complete = datetime(2026, 1, 1) + timedelta(minutes=minute or number) if state.is_finished() else None
    return Trial(made)


# -- a trial


def test_a_complete_trial_is_read_as_the_coordinator_wrote_it(trained: Tiny) -> None:
    first, second, _, _, _ = read_trials(trained.open())
    history = read_history(trained.study_folder, 0)
    best = max(history, key=lambda metrics: (metrics.top1, -metrics.epoch))
    assert (first.number, first.state, first.outcome) == (0, TrialState.COMPLETE, Outcome.COMPLETE)
    assert first.value == first.reached == best.top1
    assert first.curve == {metrics.epoch: metrics.top1 for metrics in history}
    assert first.epochs == len(history) == EPOCHS
    assert first.result == Result(
        epoch=best.epoch,
        top1=best.top1,
        top3=best.top3,
        loss=best.validation_loss,
        seconds=first.seconds,
        peak_memory=max(metrics.peak_memory for metrics in history),
        per_class=list(best.per_class),
        confusion=[list(row) for row in best.confusion],
    )
    assert best.top3 is None and "best_top3" not in first.frozen.user_attrs  # of three classes; no column of trials.csv
    assert first.seconds == pytest.approx(sum(metrics.seconds for metrics in history), abs=0.01)
    assert first.reason == "trained to its last epoch"
    assert [first.baseline, second.baseline] == [first.name, second.name] == [ORIGINAL, HAND_TUNED]
    assert (first.is_finished, first.counts) == (True, True)
    assert (first.is_running, first.is_waiting, first.is_paused, first.is_duplicate) == (False, False, False, False)
    assert (first.attempts, first.slot, first.micro_batch) == (1, 0, None)
    assert first.environment == environment(Slot())
    assert first.started and first.ended and first.started < first.ended
    assert (first.run, first.is_final, first.expected_seconds) == (None, False, 0.0)


def test_a_trial_has_the_configuration_that_was_trained(trained: Tiny, tiny: Tiny) -> None:
    first = read_trials(trained.open())[0]
    assert first.params == baselines(TINY)[ORIGINAL]
    assert first.distributions.keys() == first.params.keys()
    sampled = tiny.draw(optuna.trial.FixedTrial(first.params))
    assert first.config == sampled
    assert first.key == sampled.digest
    assert (first.parameters, first.flops) == (sampled.cost.parameters, sampled.cost.flops)
    assert isinstance(first.seed, int)


def test_a_pruned_trial_has_a_curve_and_a_result_but_no_value(trained: Tiny) -> None:
    pruned = read_trials(trained.open())[2]
    assert (pruned.state, pruned.outcome, pruned.counts) == (TrialState.PRUNED, Outcome.PRUNED, True)
    assert (pruned.value, pruned.epochs, list(pruned.curve)) == (None, 2, [0, 1])
    assert pruned.result and pruned.result.top1 == pruned.reached == max(pruned.curve.values())
    assert (pruned.baseline, pruned.name) == (None, None)


def test_a_trial_finished_by_another_program_has_optunas_facts_alone(trained: Tiny) -> None:
    foreign = read_trials(trained.open())[3]
    assert (foreign.outcome, foreign.counts, foreign.value, foreign.reached) == (Outcome.COMPLETE, True, 0.5, 0.5)
    assert (foreign.result, foreign.config, foreign.key, foreign.seed) == (None, None, None, None)
    assert (foreign.reason, foreign.parameters, foreign.flops, foreign.baseline) == (None, None, None, None)
    assert (foreign.curve, foreign.epochs, foreign.attempts, foreign.slot) == ({}, 0, 0, None)
    assert foreign.environment == {}
    failed = trial(0, TrialState.FAIL)
    assert (failed.outcome, failed.counts, failed.result) == (Outcome.FAILED, False, None)


def test_an_enqueued_trial_is_waiting(trained: Tiny) -> None:
    waiting = read_trials(trained.open())[4]
    assert (waiting.is_waiting, waiting.is_running, waiting.is_finished) == (True, False, False)
    assert (waiting.outcome, waiting.started, waiting.ended, waiting.reached) == (None, None, None, None)
    assert (waiting.counts, waiting.seconds, waiting.result) == (False, 0.0, None)


def test_a_running_trial_has_its_curve_and_no_outcome(tiny: Tiny, tmp_path: Path) -> None:
    study = tiny.at(tmp_path)
    run = study.coordinator(1).run()
    for _ in run:
        if study.running(0):
            break
    run.close()
    (left,) = read_trials(study.open())
    assert (left.is_running, left.is_paused, left.is_finished, left.outcome) == (True, False, False, None)
    assert (left.epochs, left.reached, left.result, left.reason) == (1, left.curve[0], None, None)
    assert left.config and left.seed is not None


def test_seconds_without_a_stored_figure_are_those_between_start_and_end() -> None:
    made = trial(0, TrialState.COMPLETE, 0.5)
    made.frozen.datetime_start, made.frozen.datetime_complete = datetime(2026, 1, 1), datetime(2026, 1, 1, 0, 1)
    assert made.seconds == 60.0
    assert Trial(recorded([0.1, 0.2])).seconds == 4.0


def test_the_attributes_of_a_fixed_run_are_read() -> None:
    attributes = {"run": "key", "name": "trial 7, seed 1 of 3", "epochs": 9, "final": True, "expected_seconds": 2.5}
    run = trial(0, TrialState.WAITING, **attributes)
    assert (run.run, run.name, run.planned_epochs) == ("key", "trial 7, seed 1 of 3", 9)
    assert (run.is_final, run.expected_seconds) == (True, 2.5)


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"baseline": "hand-tuned recipe"}, HAND_TUNED),
        ({"known_good": "improved by hand"}, HAND_TUNED),
        ({"known_good": "original recipe"}, ORIGINAL),
        ({"known_good": "a recipe of an edited space"}, "a recipe of an edited space"),
        ({"baseline": 3}, None),
        ({}, None),
    ],
)
def test_a_baseline_of_an_earlier_version_has_its_present_name(attributes: dict[str, Any], name: str | None) -> None:
    assert trial(0, TrialState.COMPLETE, 0.5, **attributes).baseline == name


@pytest.mark.parametrize(
    "stored",
    [
        None,
        [],
        {},
        config().to_dict() | {"a knob of another version": 1},
        config().to_dict() | {"image_size": "32"},
        config().to_dict() | {"image_size": 0},
        config().to_dict() | {"model": None},
        config().to_dict() | {"model": {"classes": 3, "pooling": "median"}},
    ],
)
def test_a_configuration_that_this_version_cannot_read_is_none(stored: Any) -> None:
    assert trial(0, TrialState.COMPLETE, 0.5, config=stored).config is None
    assert trial(0, TrialState.COMPLETE, 0.5, config=config().to_dict()).config == config()


def test_a_result_without_the_lists_that_were_too_long_is_read() -> None:
    made = Trial(recorded([0.5, 0.25]))
    assert made.result == Result(
        epoch=0, top1=0.5, top3=0.5, loss=None, seconds=4.0, peak_memory=None, per_class=None, confusion=None
    )


def test_a_result_of_which_only_a_part_is_stored_is_none(trained: Tiny) -> None:
    """As a coordinator leaves it that dies, or finds the disk full, while it writes the result."""
    stored = read_trials(trained.open())[0].frozen.user_attrs
    last = list(stored).index("outcome")
    for written in range(last):
        part = dict(list(stored.items())[:written])
        assert trial(0, TrialState.RUNNING, **part).result is None


def test_a_value_that_is_not_finite_is_never_what_a_trial_reached() -> None:
    assert Trial(recorded([0.5, float("nan"), 0.75], outcome=Outcome.PRUNED)).reached == 0.75
    assert Trial(recorded([float("nan")], outcome=Outcome.PRUNED)).reached is None


def test_a_live_trial_is_read_as_it_stands_in_the_database_now(tiny: Tiny, tmp_path: Path) -> None:
    live = tiny.at(tmp_path).open().ask()
    assert read_trial(live).epochs == 0
    live.report(0.5, 0)
    assert read_trial(live).curve == {0: 0.5}


# -- many trials


@pytest.mark.parametrize(
    ("state", "outcome", "counted"),
    [
        (TrialState.COMPLETE, Outcome.COMPLETE, True),
        (TrialState.PRUNED, Outcome.PRUNED, True),
        (TrialState.PRUNED, Outcome.DIVERGED, True),
        (TrialState.PRUNED, Outcome.INFEASIBLE, False),
        (TrialState.FAIL, Outcome.DUPLICATE, False),
        (TrialState.FAIL, Outcome.FAILED, False),
        (TrialState.FAIL, None, False),
        (TrialState.RUNNING, None, False),
        (TrialState.WAITING, None, False),
    ],
)
def test_a_trial_counts_once_it_has_been_trained_and_has_finished(
    state: TrialState, outcome: Outcome | None, counted: bool
) -> None:
    value = 0.5 if state is TrialState.COMPLETE else None
    attrs: dict[str, Any] = {"outcome": str(outcome)} if outcome else {}
    made = trial(0, state, value, **attrs)
    assert made.counts == counted
    assert count_trials([made, made]) == 2 * counted


def test_a_trial_interrupted_while_it_is_reported_as_a_duplicate_is_one() -> None:
    assert trial(0, TrialState.RUNNING, outcome="duplicate").is_duplicate
    assert not trial(0, TrialState.RUNNING).is_duplicate


class Row(NamedTuple):
    value: float | None
    since: int
    """Trials since the best one, after this one."""


def test_patience_counts_the_trials_that_ended_since_the_best() -> None:
    rows = [Row(None, 1), Row(0.5, 0), Row(0.4, 1), Row(None, 2), Row(0.5, 3), Row(0.6, 0), Row(0.1, 1)]
    trials: list[Trial] = []
    for number, row in enumerate(rows):
        state = TrialState.PRUNED if row.value is None else TrialState.COMPLETE
        trials.append(trial(number, state, row.value))
        assert trials_since_best(trials) == row.since


def test_patience_goes_by_the_time_of_the_end_and_not_by_number() -> None:
    late = trial(0, TrialState.COMPLETE, 0.9, minute=30)
    early = trial(1, TrialState.COMPLETE, 0.5, minute=10)
    assert trials_since_best([late, early]) == 0


def test_patience_runs_out_where_the_clock_was_set_back() -> None:
    """The best trial ended in what was the future from then on, and so stayed the last one."""
    best = trial(0, TrialState.COMPLETE, 0.9)
    best.frozen.datetime_complete = datetime.now() + timedelta(days=1000)
    later = [trial(number, TrialState.COMPLETE, 0.1, minute=number) for number in (1, 2, 3)]
    assert trials_since_best([best, *later]) == 3


def partly(number: int, *curve: float, minute: int = 0, state: TrialState = TrialState.RUNNING, **attrs: Any) -> Trial:
    """Return a trial that was trained for these epochs and then left its slot at this minute."""
    left = datetime(2026, 1, 1) + timedelta(minutes=minute)
    spans = [[left.timestamp() - 30, left.timestamp()]]
    made = optuna.trial.create_trial(
        state=state, intermediate_values=dict(enumerate(curve)), user_attrs={"spans": spans, **attrs}
    )
    made.number = number
    made.datetime_complete = datetime(2026, 1, 2) if state.is_finished() else None
    return Trial(made)


@pytest.mark.parametrize("ended", [False, True])
def test_patience_counts_paused_trials_by_the_time_at_which_they_left_their_slots(ended: bool) -> None:
    """In a study that promotes trials, nearly all of them end only at its end, in the order of their numbers."""
    state, paused = (TrialState.PRUNED, False) if ended else (TrialState.RUNNING, True)
    waiting = [
        partly(0, 0.3, minute=1, state=state, paused=paused),
        partly(1, 0.2, 0.5, minute=9, state=state, paused=paused),
        partly(2, 0.2, minute=3, state=state, paused=paused),
        partly(3, 0.4, minute=11, state=state, paused=paused),
    ]
    assert [trials_since_best(waiting[:count]) for count in range(5)] == [0, 0, 0, 0, 1]
    assert trials_since_best([*waiting, partly(4, 0.9, minute=12)]) == 1, "it is still being trained"
    assert trials_since_best([*waiting, partly(4, 0.9, minute=12, state=TrialState.PRUNED, outcome="diverged")]) == 2


def test_patience_ignores_trials_that_do_not_count() -> None:
    trials = [trial(0, TrialState.COMPLETE, 0.5), trial(1, TrialState.FAIL), trial(2, TrialState.RUNNING)]
    trials.append(trial(3, TrialState.PRUNED, outcome=str(Outcome.INFEASIBLE)))
    assert trials_since_best(trials) == 0
    assert trials_since_best([]) == 0


def test_the_best_trials_come_best_first_and_of_equals_the_earlier_one() -> None:
    values = [0.5, 0.7, None, 0.7, 0.0]
    states = [TrialState.PRUNED if value is None else TrialState.COMPLETE for value in values]
    trials = [trial(number, state, value) for number, (state, value) in enumerate(zip(states, values, strict=True))]
    assert [best.number for best in top(trials, 3)] == [1, 3, 0]
    assert [best.number for best in top(trials, 99)] == [1, 3, 0, 4]


def test_the_furthest_trials_are_the_complete_ones_then_those_with_the_most_epochs() -> None:
    pruned = TrialState.PRUNED
    trials = [
        partly(0, 0.9, paused=True),
        partly(1, 0.1, 0.2, state=pruned),
        partly(2, 0.1, 0.3, paused=True),
        trial(3, TrialState.COMPLETE, 0.15),
        partly(4, 0.3, 0.1),
        partly(5, 0.9, 0.9, 0.9, state=pruned, outcome="diverged"),
        partly(6),
    ]
    assert [one.number for one in furthest(trials, 9)] == [3, 2, 4, 1, 0]
    assert [one.number for one in furthest(trials, 2)] == [3, 2]


def test_a_trial_knows_when_it_was_in_a_slot() -> None:
    """Of a killed process it only knows the beginning."""
    study = optuna.create_study()
    study.ask()
    before = datetime.now().timestamp()
    write_attempt(live_trial(study, 0), 1, 0)
    write_attempt(live_trial(study, 0), 2, 0)
    killed, running = read_trials(study)[0].spans
    assert killed[1] is None and running[1] is None
    assert read_trials(study)[0].left_slot is None
    write_paused(live_trial(study, 0))
    killed, (begin, end) = read_trials(study)[0].spans
    assert killed[1] is None and end is not None and before - 0.1 <= begin <= end <= datetime.now().timestamp() + 0.1
    paused = read_trials(study)[0]
    assert paused.left_slot == datetime.fromtimestamp(end)
    assert paused.seconds == end - begin
    write_result(live_trial(study, 0), Outcome.PRUNED, "not resumed", None, [])
    assert read_trials(study)[0].spans == paused.spans
    for attempt in range(200):
        write_attempt(live_trial(study, 0), attempt, 0)
    assert len(json.dumps(read_trials(study)[0].spans)) < LONGEST_ATTRIBUTE


# -- beside the database


def metrics(epoch: int) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch,
        train_loss=1.5,
        train_top1=0.25,
        validation_loss=1.25,
        top1=0.5,
        top3=1.0,
        confusion=((1, 1, 0), (0, 2, 0), (1, 1, 0)),
        lr=1e-3,
        seconds=0.5,
        peak_memory=2**20,
        mistakes=(Mistake(3, 1, 0.75),),
    )


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "trials" / "0007").mkdir(parents=True)
    history = [metrics(0), metrics(1)]
    write_history(tmp_path, 7, history)
    assert read_history(tmp_path, 7) == history
    assert read_history(tmp_path, 8) == []


@pytest.mark.parametrize("text", ["", "{", "3", "null", "[3]", "[{}]", '{"epoch": 0}', json.dumps([{"epoch": 0}])])
def test_a_history_that_this_program_did_not_write_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "trials" / "0000" / "history.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(StudyError) as caught:
        read_history(tmp_path, 0)
    assert str(caught.value).startswith(f"cannot read {path} (") and "remove it" in str(caught.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(StudyError, match=f"cannot read {path}"):
        read_history(tmp_path, 0)


@pytest.fixture
def in_memory() -> Iterator[optuna.Study]:
    yield optuna.create_study(direction="maximize")


def test_pandas_reads_the_table_of_trials(in_memory: optuna.Study, tmp_path: Path) -> None:
    in_memory.enqueue_trial({"x": 0.25})
    in_memory.enqueue_trial({"x": 0.75})
    for value in (0.25, 0.5):
        asked = in_memory.ask()
        asked.suggest_float("x", 0.0, 1.0)
        asked.set_user_attr("reason", 'käse, "quoted"\nsecond line')
        in_memory.tell(asked, value)
    write_trials_csv(in_memory, tmp_path / "trials.csv")
    table = pandas.read_csv(tmp_path / "trials.csv")
    assert table["value"].tolist() == [0.25, 0.5]
    assert table["params_x"].tolist() == [0.25, 0.75]
    assert table["state"].tolist() == ["COMPLETE", "COMPLETE"]
    assert table["user_attrs_reason"].tolist()[0] == 'käse, "quoted"\nsecond line'
    assert [path.name for path in tmp_path.iterdir()] == ["trials.csv"]


def test_the_value_has_one_column_name_whatever_the_dashboard_calls_it(trained: Tiny, tmp_path: Path) -> None:
    write_trials_csv(trained.open(), tmp_path / "trials.csv")
    table = pandas.read_csv(tmp_path / "trials.csv")
    assert table["value"].tolist()[:2] == [read.value for read in read_trials(trained.open())[:2]]
    assert table["user_attrs_baseline"].tolist()[:2] == [ORIGINAL, HAND_TUNED]


def test_the_table_of_a_study_without_trials_is_a_file(in_memory: optuna.Study, tmp_path: Path) -> None:
    write_trials_csv(in_memory, tmp_path / "trials.csv")
    assert (tmp_path / "trials.csv").is_file()


def test_a_table_that_cannot_be_written_is_named(in_memory: optuna.Study, tmp_path: Path) -> None:
    """On a full disk a traceback once hid the line that said so."""
    path = tmp_path / "gone" / "trials.csv"
    with pytest.raises(StudyError, match=f"cannot write {path}"):
        write_trials_csv(in_memory, path)


def test_a_configuration_survives_the_database(trained: Tiny) -> None:
    stored = read_trials(trained.open())[2]
    assert stored.config is not None
    assert Config.from_dict(json.loads(json.dumps(asdict(stored.config)))) == stored.config
