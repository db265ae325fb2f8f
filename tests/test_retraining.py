"""Final runs and the evaluation on the test set, checked against plain loops; the winner as it is stored."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState
from studies import Tiny, config, one_core, prepare, recorded

from commands.console import make_console
from commands.results import print_replay
from data.batches import EvaluationBatches, TrainingBatches
from data.cache import Part, open_part
from data.split import PartName
from model import checkpoint, metrics
from model.network import MushroomCNN
from model.preprocessing import normalise
from model.strangers import Limit
from model.training import EpochMetrics, fit, lr_at
from search_space import Config
from selection import finalists, fixed_runs, retraining
from selection.finalists import Candidate, Standing, stretched, train_finalists
from selection.fixed_runs import FixedRun, weights
from selection.retraining import Evaluator, FinalRuns, Winner
from tuning import StudyError
from tuning.database import load_sibling
from tuning.events import TrialPaused
from tuning.scheduling import PromotionScheduler
from tuning.trials import Outcome, Trial, read_history, read_trials

POINT = config(epochs=5, warmup_epochs=1)
SEEDS = [11, 12]
CPU = torch.device("cpu")
CHOSEN = Candidate(name="trial 3", trial=3, config=POINT, recorded=0.9, epoch_seconds=0.1)


@pytest.fixture(scope="module", autouse=True)
def steady() -> Iterator[None]:
    """Sums in one order: one thread on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with one_core():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


def evaluator(tiny: Tiny) -> Evaluator:
    return Evaluator(data=tiny.data, device="cpu")


def train(tiny: Tiny, kind: str, runs: list[FixedRun]) -> list[Trial]:
    return fixed_runs.train(tiny.session(), kind, "top-1", runs)


@pytest.fixture(scope="module")
def standing(tiny: Tiny) -> Standing:
    """Real finalist runs of CHOSEN."""
    return Standing(candidate=CHOSEN, runs=tuple(train(tiny, retraining.FINALISTS, CHOSEN.runs(SEEDS))))


@pytest.fixture(scope="module")
def finals(tiny: Tiny) -> FinalRuns:
    """Real final runs of CHOSEN."""
    runs = train(tiny, retraining.FINAL_RUNS, retraining.final_runs(CHOSEN, SEEDS))
    return FinalRuns(candidate=CHOSEN, runs=tuple(runs), folder=tiny.study_folder / retraining.FINAL_RUNS)


def part(tiny: Tiny, *names: PartName) -> Part:
    return open_part(tiny.data, POINT.image_size, *names)


def trained_by_hand(tiny: Tiny, seed: int, epochs: int, *names: PartName) -> tuple[MushroomCNN, list[EpochMetrics]]:
    """Do the trainer's work in a few lines: `epochs` epochs of the whole schedule on these parts, averaged."""
    batches = TrainingBatches(
        part(tiny, *names),
        batch_size=POINT.training.batch_size,
        views=POINT.views,
        augment=POINT.augment,
        oversample=False,
        seed=seed,
        device=CPU,
    )
    torch.manual_seed(seed)
    network = MushroomCNN(POINT.model)
    average = copy.deepcopy(network)
    validation = EvaluationBatches(part(tiny, "validation"), device=CPU)
    training = fit(network, batches, validation, POINT.training, seed=seed, averaged=average)
    return average, list(islice(training, epochs))


def same_weights(path: Path, network: MushroomCNN) -> bool:
    stored, made = checkpoint.load(path).model, network.state_dict()
    return stored.keys() == made.keys() and all(torch.equal(stored[name], made[name]) for name in made)


def essence(epochs: list[EpochMetrics]) -> list[EpochMetrics]:
    return [replace(metrics, seconds=0.0, peak_memory=0) for metrics in epochs]


# -- training


def test_final_runs_train_the_winner_with_every_seed_to_the_end_of_its_schedule() -> None:
    runs = retraining.final_runs(CHOSEN, SEEDS)
    assert [run.assignment.seed for run in runs] == SEEDS
    assert [run.seed_index for run in runs] == [0, 1]
    for run in runs:
        assert (run.assignment.epochs, run.assignment.final, run.assignment.config) == (5, True, POINT)
        assert (run.trial, run.seconds) == (3, 0.5)
    assert not {run.key for run in runs} & {run.key for run in CHOSEN.runs(SEEDS)}


def test_a_final_run_is_the_whole_schedule_on_train_and_validation(tiny: Tiny, finals: FinalRuns) -> None:
    """Its weights are the last epoch's, bit for bit, whatever its accuracy on the validation pictures it trained on."""
    for run, seed in zip(finals.runs, SEEDS, strict=True):
        network, epochs = trained_by_hand(tiny, seed, 5, "train", "validation")
        assert same_weights(weights(finals.folder, run), network)
        assert essence(read_history(finals.folder, run.number)) == essence(epochs)
        assert run.result is not None
        assert (run.result.epoch, run.value) == (4, epochs[-1].top1)
        steps = -(-(len(part(tiny, "train").labels) + len(part(tiny, "validation").labels)) // 16)
        ends = [lr_at(steps * (epoch + 1) - 1, steps, POINT.training) for epoch in range(5)]
        assert [metrics.lr for metrics in epochs] == ends
    seen = part(tiny, "train", "validation")
    assert not set(seen.indices) & set(part(tiny, "test").indices)


def test_a_finalist_run_trains_on_the_training_part_and_keeps_its_last_epoch(tiny: Tiny, standing: Standing) -> None:
    assert any(run.curve[epoch] == max(run.curve.values()) for run in standing.runs for epoch in range(4))
    for run, seed in zip(standing.runs, SEEDS, strict=True):
        assert run.result is not None
        assert (run.result.epoch, run.value) == (4, run.curve[4])
        network, _ = trained_by_hand(tiny, seed, 5, "train")
        assert same_weights(weights(tiny.study_folder / retraining.FINALISTS, run), network)


def test_baselines_are_trained_for_as_much_longer_as_the_winner(tiny: Tiny, tmp_path: Path) -> None:
    other = replace(POINT, training=replace(POINT.training, lr=POINT.training.lr / 2))
    recipe = replace(CHOSEN, name="recipe", config=other, baseline=True)
    session = tiny.at(tmp_path).session()
    standings = train_finalists(session, [CHOSEN], 1, longer=2, alternatives=False, baselines=[recipe])
    epochs = {one.candidate.baseline: one.candidate.config.training.epochs for one in (standings[0], standings[-1])}
    assert epochs[False] == epochs[True] in (5, 10)
    lengths = [one.candidate.config.training.epochs for one in standings]
    assert sorted(lengths) == sorted([5, 10, epochs[True]])
    assert standings[0].mean == max(one.mean for one in standings[:2])


def test_runs_of_an_interrupted_command_that_are_not_asked_for_wait(tiny: Tiny, tmp_path: Path) -> None:
    """retrain --longer 2 trained what --longer 8 had left unfinished."""
    session = tiny.at(tmp_path).session()
    train_finalists(session, [CHOSEN], 1, longer=1)
    study, folder = load_sibling(session.study, finalists.KIND), session.folder / finalists.KIND
    assert study is not None
    fixed_runs.enqueue(study, stretched(CHOSEN, 4).runs([7]), folder)
    train_finalists(session, [CHOSEN], 1, longer=1)
    assert [trial.state for trial in study.get_trials(deepcopy=False)] == [TrialState.COMPLETE, TrialState.WAITING]


@pytest.mark.parametrize(("worth", "lengths"), [(-1.0, {5, 10, 15}), (1.0, {5, 10})])
def test_a_winner_is_doubled_up_to_the_limit_while_it_gains_enough(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worth: float, lengths: set[int]
) -> None:
    monkeypatch.setattr(finalists, "WORTH_DOUBLING", worth)
    monkeypatch.setattr(finalists, "WORTH_OF_LOSS", 1.0)  # no loss falls to 0
    standings = train_finalists(tiny.at(tmp_path).session(), [CHOSEN], 1, longer=3)
    assert {one.candidate.config.training.epochs for one in standings} == lengths
    assert standings[0].mean == max(one.mean for one in standings)


def test_a_longer_training_is_also_tried_with_stronger_augmentation_or_half_the_learning_rate_and_the_best_goes_on(
    tiny: Tiny, tmp_path: Path
) -> None:
    standings = train_finalists(tiny.at(tmp_path).session(), [CHOSEN], 2, longer=2)
    (short,) = (one for one in standings if one.candidate == CHOSEN)
    longer, *tried = (one for one in standings if one is not short)
    own = POINT.training.lr
    tries = {(one.candidate.config.augment.strength, one.candidate.config.training.lr) for one in (longer, *tried)}
    assert tries == {(0.5, own), (0.8, own), (0.5, own / 2)}
    assert [one.candidate.config.training.epochs for one in (short, longer, *tried)] == [5, 10, 10, 10]
    assert [len(one.runs) for one in (short, longer, *tried)] == [2, 2, 1, 1]
    assert longer.top1[0] >= max(one.mean for one in tried)
    assert standings[0] in (short, longer) and standings[-2:] == tried


def test_finalists_that_all_diverge_are_an_error(tiny: Tiny, tmp_path: Path) -> None:
    wild = replace(POINT, training=replace(POINT.training, optimizer="sgd", lr=1e30))
    with pytest.raises(StudyError, match=r"^trial 3 diverged with every seed.*--trial N$"):
        train_finalists(tiny.at(tmp_path).session(), [replace(CHOSEN, config=wild)], 1)


# -- evaluation


def slow_hits(tiny: Tiny, path: Path, name: PartName) -> int:
    """Count the pictures whose class is the first guess, picture by picture."""
    network = MushroomCNN(POINT.model).eval()
    network.load_state_dict(checkpoint.load(path).model)
    pictures = part(tiny, name)
    first = 0
    for place, truth in zip(pictures.indices, pictures.labels, strict=True):
        with torch.inference_mode():
            scores = network(normalise(torch.from_numpy(pictures.images[place : place + 1].copy())))[0].tolist()
        order = sorted(range(len(scores)), key=lambda label: -scores[label])
        first += order[0] == truth
    return first


def test_test_results_equal_those_of_a_slow_loop_over_the_test_part(tiny: Tiny, finals: FinalRuns) -> None:
    pictures = len(part(tiny, "test").labels)
    hits = [slow_hits(tiny, path, "test") for path in finals.weights]
    results = retraining.evaluate_on_test([finals, replace(finals, runs=finals.runs[1:])], 2.0, evaluator(tiny))
    assert results["pictures"] == pictures
    assert (results["top1"], results["top3"]) == (hits[0] / pictures, None)  # of three classes there is no top-3
    assert results["top1_interval"] == metrics.wilson(hits[0], pictures)
    assert [(one["seed"], one["top1"], one["top3"]) for one in results["seeds"]] == [
        (seed, first / pictures, None) for seed, first in zip(SEEDS, hits, strict=True)
    ]
    top1 = [first / pictures for first in hits]
    assert (results["top1_mean"], results["top1_sd"]) == (statistics.fmean(top1), statistics.stdev(top1))
    assert results["baselines"] == [
        {
            "name": "trial 3",
            "top1": top1[1:],
            "top1_interval": metrics.wilson(hits[1], pictures),
            "top3": None,
            "top1_mean": top1[1],
            "top1_sd": None,
            "diverged": 0,
        }
    ]
    assert json.loads(json.dumps(results))["confusion"] == [list(row) for row in results["confusion"]]


def test_a_gpu_with_too_little_memory_to_evaluate_on_is_an_error_that_names_the_fix(
    tiny: Tiny, standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a traceback at the end of all the training, and again when the command was repeated."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.00 GiB.")

    monkeypatch.setattr(metrics, "outputs", full)
    path = weights(tiny.study_folder / retraining.FINALISTS, standing.runs[0])
    with pytest.raises(StudyError, match=r"^cpu has too little free memory .*--device cpu"):
        evaluator(tiny).logits(POINT, path, "validation")


def test_the_temperature_is_fitted_to_the_finalists_validation_logits(tiny: Tiny, standing: Standing) -> None:
    paths = [weights(tiny.study_folder / retraining.FINALISTS, run) for run in standing.runs]
    scores: list[torch.Tensor] = []
    for path in paths:
        network = retraining.load_network(POINT, path)
        scores.append(metrics.logits(network, EvaluationBatches(part(tiny, "validation"), device=CPU))[0])
    labels = torch.from_numpy(part(tiny, "validation").labels)
    assert retraining.calibrate(POINT, paths, evaluator(tiny)) == metrics.calibrate(torch.stack(scores), labels)


def test_the_winner_before_the_test_part_is_used(tiny: Tiny, standing: Standing, finals: FinalRuns) -> None:
    """The first seed's network is exported, whichever of them is best."""
    session = tiny.session()
    session.study.add_trials(
        [recorded([0.5]), recorded([0.5], outcome=Outcome.PRUNED), recorded([], outcome=Outcome.INFEASIBLE)]
    )
    known = retraining.conclude(session, standing, finals, evaluator(tiny))
    paths = [weights(tiny.study_folder / retraining.FINALISTS, run) for run in standing.runs]
    assert (known.seed, known.seed_index) == (SEEDS[0], 0)
    assert (known.pictures, known.trials) == (session.data_identity, 2)
    assert known.environment == finals.runs[0].environment != {}
    assert tiny.study_folder / known.weights == weights(finals.folder, finals.runs[0])
    assert known.results is None
    fitted = retraining.calibrate(POINT, paths, evaluator(tiny))
    assert (known.temperature, known.calibration) == (fitted.temperature, fitted.text)
    assert known.strangers == retraining.find_strangers(POINT, paths, evaluator(tiny))
    assert known.trained_on == ["train", "validation"]
    assert (known.name, known.trial, known.epochs) == ("trial 3", 3, 5)
    assert Config.from_dict(known.config) == POINT
    assert known.validation == {
        "recorded": 0.9,
        "finalists_mean": standing.mean,
        "finalists_sd": standing.spread,
    }
    fewer = retraining.conclude(session, standing, replace(finals, runs=finals.runs[:1]), evaluator(tiny))
    assert fewer.networks != known.networks


def test_final_runs_that_diverged_are_left_out(tiny: Tiny, standing: Standing, finals: FinalRuns) -> None:
    """The first seed that did not diverge is exported; a baseline that diverged with every seed has no result."""
    session, wild = tiny.session(), Trial(recorded([0.1], outcome=Outcome.DIVERGED, run="another"))
    half = replace(finals, runs=(wild, finals.runs[1]))
    assert half.complete == [finals.runs[1]]
    known = retraining.conclude(session, standing, half, evaluator(tiny))
    assert (known.seed, known.seed_index) == (SEEDS[1], 1)
    results = retraining.evaluate_on_test([half, replace(finals, runs=(wild,))], 1.0, evaluator(tiny))
    assert [one["seed"] for one in results["seeds"]] == [SEEDS[1]]
    assert (results["baselines"], results["diverged"]) == ([], 1)
    with pytest.raises(StudyError, match=r"^trial 3 diverged with every seed on train \+ validation.*--trial N"):
        retraining.conclude(session, standing, replace(finals, runs=(wild, wild)), evaluator(tiny))


def test_weights_are_known_to_be_of_their_run(standing: Standing, finals: FinalRuns) -> None:
    for folder, runs in ((finals.folder.with_name(retraining.FINALISTS), standing.runs), (finals.folder, finals.runs)):
        for run in runs:
            assert not fixed_runs.is_of_another_run(weights(folder, run), run)
    assert fixed_runs.is_of_another_run(weights(finals.folder, finals.runs[0]), standing.runs[0])


def spoiled(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def of_another_network(path: Path) -> None:
    stored = checkpoint.load(path)
    other = MushroomCNN(replace(POINT.model, width=0.5)).state_dict()
    checkpoint.save(path, replace(stored, model=other))


@pytest.mark.parametrize("spoil", [Path.unlink, spoiled, of_another_network])
def test_weights_that_are_missing_or_damaged_are_an_error_of_one_line(
    spoil: Callable[[Path], None], finals: FinalRuns, tmp_path: Path
) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(finals.weights[0].read_bytes())
    spoil(path)
    with pytest.raises(StudyError) as refused:
        retraining.load_network(POINT, path)
    assert str(refused.value).startswith("cannot load the weights ")
    assert f"remove {path} and run python study.py retrain" in str(refused.value)
    assert "\n" not in str(refused.value)


# -- retrained.json

WINNER = Winner(
    name="trial 3",
    trial=3,
    config=POINT.to_dict(),
    pictures="these",
    trials=40,
    seed_index=0,
    environment={"device": "cpu: x", "threads": "1"},
    seed=11,
    epochs=3,
    trained_on=["train", "validation"],
    weights="retrained/trials/0000/best.pt",
    temperature=1.5,
    calibration="temperature 1.50, fitted on 99 validation pictures",
    networks="a b",
    validation={"recorded": 0.9, "finalists_mean": 0.8, "finalists_sd": None},
    results={"top1": 0.8, "evaluations": 1},
)


def test_a_stored_winner_is_read_back_unchanged(tmp_path: Path) -> None:
    assert Winner.load(tmp_path) is None
    WINNER.save(tmp_path)
    assert Winner.load(tmp_path) == WINNER
    limit = Limit(usual=[4.0, 2.0, 3.5, 0.5], strangest=12.5, text="beyond 95 %")
    untested = replace(WINNER, results=None, temperature=None, sure=0.9, sure_text="of 90 %", strangers=limit)
    untested.save(tmp_path)
    assert Winner.load(tmp_path) == untested
    assert [path.name for path in tmp_path.iterdir()] == ["retrained.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "{}", '{"format": 1}', '{"format": 2}', "\xff"])
def test_a_file_that_is_not_a_winner_is_an_error_naming_it(text: str, tmp_path: Path) -> None:
    path = tmp_path / "retrained.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(StudyError, match=f"^cannot read {re.escape(str(path))} .*python study.py retrain"):
        Winner.load(tmp_path)


def test_a_winner_of_an_earlier_version_is_an_error_that_says_so(tmp_path: Path) -> None:
    WINNER.save(tmp_path)
    path = tmp_path / "retrained.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace(f'"format": {retraining.FORMAT}', '"format": 2'), encoding="utf-8"
    )
    with pytest.raises(StudyError, match=f"^cannot read {re.escape(str(path))} .*another version.*study.py retrain"):
        Winner.load(tmp_path)


def test_weights_outside_of_the_study_are_refused(tmp_path: Path) -> None:
    replace(WINNER, weights="../best.pt").save(tmp_path)
    with pytest.raises(StudyError, match=r"retrained\.json \(.*'\.\./best\.pt'"):
        Winner.load(tmp_path)


def test_the_best_trial_is_the_winner_of_a_study_that_has_not_been_retrained(tiny: Tiny, tmp_path: Path) -> None:
    study = tiny.at(tmp_path).session()
    study.study.add_trials([recorded([0.5]), recorded([0.2, 0.9, 0.8], seed=77, environment={})])
    best = retraining.best_so_far(study)
    assert (best.pictures, best.trials) == (study.data_identity, 2)
    assert (best.name, best.trial, best.seed, best.epochs) == ("trial 1", 1, 77, 2)
    assert best.weights == "trials/0001/best.pt"
    assert best.trained_on == ["train"]
    assert (best.temperature, best.results, best.validation) == (None, None, {"recorded": 0.9})


def test_where_no_trial_is_complete_the_furthest_paused_one_is_the_winner_so_far(tiny: Tiny, tmp_path: Path) -> None:
    """When time is up in a study that promotes trials, all may be waiting; `export` and `retrain` then take these."""
    study = tiny.at(tmp_path)
    coordinator = study.coordinator(9, make_scheduler=lambda study: PromotionScheduler([1, 2], 0.5))
    with contextlib.closing(coordinator.run()) as run:
        assert any(
            isinstance(event, TrialPaused) and read_trials(study.open())[event.number].epochs == 2 for event in run
        )
    session = study.session()
    best = retraining.best_so_far(session)
    trial = read_trials(study.open())[best.trial]
    assert (trial.is_paused, trial.epochs, trial.value) == (True, 2, None)
    assert best.validation == {"recorded": trial.reached}
    evaluator = retraining.Evaluator(data=session.data, device="cpu")
    logits, labels = evaluator.logits(trial.config or config(), study.study_folder / best.weights, "validation")
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(trial.reached)
    replayed = finalists.replay(finalists.candidate(study.open(), best.trial), trial)
    assert replayed.assignment.epochs == 2 and replayed.seconds > 0


# -- the replay


def printed(trial: Trial, again: Trial, capsys: pytest.CaptureFixture[str]) -> str:
    print_replay(make_console(), trial, again)
    return capsys.readouterr().out


def test_a_replay_equals_its_trial_bit_for_bit(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tiny.at(tmp_path)
    list(study.coordinator(2).run())
    trial = read_trials(study.open())[1]
    wanted = finalists.replay(finalists.candidate(study.open(), 1), trial)
    (again,) = train(study, retraining.FINALISTS, [wanted])
    assert again.curve == trial.curve
    assert again.result is not None and trial.result is not None
    assert again.result.confusion == trial.result.confusion
    assert retraining.compare_curves(trial, again) == (0.0, None)
    assert "the same in each of its 3 epochs." in printed(trial, again, capsys)

    # The same trial, recorded elsewhere with another second epoch
    elsewhere = trial.environment | {"torch": "2.11.0"}
    altered = recorded(list((trial.curve | {1: 0.123}).values()), best_top1=0.0, environment=elsewhere)
    altered.number, altered.value = 1, 0.0
    assert retraining.compare_curves(Trial(altered), again) == (trial.value, 1)
    assert re.search(
        r"^Replay of trial 1: recorded 0\.00 %, now .* %, \+.* points; the curves differ from epoch 2: "
        r"the set-up differs \(torch 2\.11\.0 -> .*\)\.$",
        printed(Trial(altered), again, capsys),
    )


def test_curves_that_differ_in_the_same_set_up_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(Trial(recorded([0.5, 0.6])), Trial(recorded([0.4, 0.6])), capsys)
    assert "+0.00 points; the curves differ from epoch 1: several threads, or a GPU, " in text
    one_thread = {"device": "cpu: x", "threads": "1"}
    runs = [Trial(recorded([top1, 0.6], environment=one_thread)) for top1 in (0.5, 0.4)]
    assert "the curves differ from epoch 1: nothing recorded differs" in printed(runs[0], runs[1], capsys)


def test_a_replay_that_diverged_at_once_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """It has no value: computing how far it is from the recorded one ended in a KeyError."""
    trial, again = Trial(recorded([0.5, 0.6])), Trial(recorded([], outcome=Outcome.DIVERGED))
    assert retraining.compare_curves(trial, again) == (None, 0)
    assert "recorded 60.00 %, now diverged, the curves differ from epoch 1: " in printed(trial, again, capsys)
