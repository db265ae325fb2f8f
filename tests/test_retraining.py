"""The final runs and the one look at the test part, held to plain loops; the winner as it is written down."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial
from studies import ThreadWorkers, Tiny, config, one_core, prepare, recorded

from commands.console import make_console
from commands.results import print_replay
from data.batches import EvaluationBatches, TrainingBatches
from data.cache import Part, open_part
from data.split import PartName
from model import checkpoint, metrics
from model.network import MushroomCNN
from model.preprocessing import normalise
from model.training import EpochMetrics, fit, lr_at
from search_space import Config
from selection import finalists, fixed_runs, retraining
from selection.finalists import Candidate, Standing
from selection.fixed_runs import FixedRun, weights
from selection.retraining import Bench, Finals, Winner
from tuning import StudyError
from tuning.coordinator import Coordinator, Plan
from tuning.database import IDENTITY
from tuning.scheduling import PrunerScheduler
from tuning.trials import Outcome

POINT = config(epochs=5, warmup_epochs=1)
SEEDS = [11, 12]
CPU = torch.device("cpu")
CHOSEN = Candidate(name="trial 3", trial=3, config=POINT, recorded=0.9, epoch_seconds=0.1)


@pytest.fixture(scope="module", autouse=True)
def steady() -> Iterator[None]:
    """Sums are added up in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with one_core():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


def bench(tiny: Tiny) -> Bench:
    return Bench(data=tiny.data, folder=tiny.study_folder, device="cpu")


def train(tiny: Tiny, runs: list[FixedRun], folder: Path) -> list[FrozenTrial]:
    """As `retrain` does, with threads for processes."""
    folder.mkdir(parents=True, exist_ok=True)
    pool = optuna.create_study(study_name=folder.name, direction="maximize")
    fixed_runs.add(pool, runs, folder)
    coordinator = Coordinator(
        pool,
        workers=ThreadWorkers(),
        scheduler=PrunerScheduler(),
        assign=fixed_runs.assign,
        plan=Plan(trials=None),
        data=tiny.data,
        folder=folder,
        keep=len(runs),
    )
    assert list(coordinator.run())
    return fixed_runs.finished(pool, runs)


@pytest.fixture(scope="module")
def standing(tiny: Tiny) -> Standing:
    """The finalist runs of CHOSEN, for real."""
    runs = train(tiny, CHOSEN.runs(SEEDS), tiny.study_folder / retraining.FINALISTS)
    return Standing(candidate=CHOSEN, runs=tuple(runs))


@pytest.fixture(scope="module")
def finals(tiny: Tiny) -> Finals:
    """Its final runs, of three of the five epochs."""
    runs = [recorded([0.1, 0.2, 0.9])] * 2
    wanted = retraining.final_runs(Standing(candidate=CHOSEN, runs=tuple(runs)), SEEDS)
    return Finals(candidate=CHOSEN, runs=tuple(train(tiny, wanted, tiny.study_folder / retraining.FINAL_RUNS)))


def part(tiny: Tiny, *names: PartName) -> Part:
    return open_part(tiny.data, POINT.image_size, *names)


def trained_by_hand(tiny: Tiny, seed: int, epochs: int, *names: PartName) -> tuple[MushroomCNN, list[EpochMetrics]]:
    """The trainer's work in a few lines: these parts, so many epochs of the whole schedule."""
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
    validation = EvaluationBatches(part(tiny, "validation"), device=CPU)
    return network, list(islice(fit(network, batches, validation, POINT.training, seed=seed), epochs))


def same_weights(path: Path, network: MushroomCNN) -> bool:
    stored, made = checkpoint.load(path).model, network.state_dict()
    return stored.keys() == made.keys() and all(torch.equal(stored[name], made[name]) for name in made)


def history(tiny: Tiny, kind: str, run: FrozenTrial) -> list[EpochMetrics]:
    path = weights(tiny.study_folder / kind, run).with_name("history.json")
    return [EpochMetrics.from_dict(record) for record in json.loads(path.read_text(encoding="utf-8"))]


def essence(epochs: list[EpochMetrics]) -> list[EpochMetrics]:
    return [replace(metrics, seconds=0.0, peak_memory=0) for metrics in epochs]


# -- how it is trained


def test_final_runs_are_the_winner_with_every_seed_for_the_median_best_epoch() -> None:
    standing = Standing(candidate=CHOSEN, runs=(recorded([0.1, 0.9]), recorded([0.9]), recorded([0.1, 0.2, 0.9])))
    runs = retraining.final_runs(standing, SEEDS)
    assert [run.assignment.seed for run in runs] == SEEDS
    assert [run.seed_index for run in runs] == [0, 1]
    for run in runs:
        assert (run.assignment.epochs, run.assignment.final, run.assignment.config) == (2, True, POINT)
        assert (run.trial, run.seconds) == (3, 0.2)
    longer = retraining.final_runs(Standing(candidate=CHOSEN, runs=(recorded([0.1, 0.2, 0.9]),)), SEEDS)
    assert not {run.key for run in runs} & {run.key for run in longer}
    assert not {run.key for run in runs} & {run.key for run in CHOSEN.runs(SEEDS)}


def test_a_final_run_is_the_whole_schedule_cut_short_on_train_and_validation(tiny: Tiny, finals: Finals) -> None:
    """Weight for weight, and the last epoch's, whatever the validation pictures that it has seen say."""
    for run, seed in zip(finals.runs, SEEDS, strict=True):
        network, epochs = trained_by_hand(tiny, seed, 3, "train", "validation")
        assert same_weights(weights(tiny.study_folder / retraining.FINAL_RUNS, run), network)
        assert essence(history(tiny, retraining.FINAL_RUNS, run)) == essence(epochs)
        assert (run.user_attrs["best_epoch"], run.value) == (2, epochs[-1].top1)
        steps = -(-(len(part(tiny, "train").labels) + len(part(tiny, "validation").labels)) // 16)
        ends = [lr_at(steps * (epoch + 1) - 1, steps, POINT.training) for epoch in range(3)]
        assert [metrics.lr for metrics in epochs] == ends
        assert POINT.training.epochs == 5
    seen = part(tiny, "train", "validation")
    assert not set(seen.indices) & set(part(tiny, "test").indices)


def test_a_finalist_run_trains_on_the_training_part_and_keeps_its_best_epoch(tiny: Tiny, standing: Standing) -> None:
    for run, seed in zip(standing.runs, SEEDS, strict=True):
        best = run.user_attrs["best_epoch"]
        assert run.intermediate_values[best] == run.value == max(run.intermediate_values.values())
        network, _ = trained_by_hand(tiny, seed, best + 1, "train")
        assert same_weights(weights(tiny.study_folder / retraining.FINALISTS, run), network)


# -- how it is measured


def slow_hits(tiny: Tiny, path: Path, name: PartName) -> tuple[int, int]:
    """Right at first, and among three, picture by picture."""
    network = MushroomCNN(POINT.model).eval()
    network.load_state_dict(checkpoint.load(path).model)
    pictures = part(tiny, name)
    first, among = 0, 0
    for place, truth in zip(pictures.indices, pictures.labels, strict=True):
        with torch.inference_mode():
            scores = network(normalise(torch.from_numpy(pictures.images[place : place + 1].copy())))[0].tolist()
        order = sorted(range(len(scores)), key=lambda label: -scores[label])
        first += order[0] == truth
        among += truth in order[:3]
    return first, among


def test_the_look_is_a_slow_loop_over_the_test_part(tiny: Tiny, finals: Finals) -> None:
    pictures = len(part(tiny, "test").labels)
    folder = tiny.study_folder / retraining.FINAL_RUNS
    hits = [slow_hits(tiny, weights(folder, run), "test") for run in finals.runs]
    seen = retraining.look([finals, replace(finals, runs=finals.runs[1:])], 2.0, bench(tiny))
    assert seen["pictures"] == pictures
    assert (seen["top1"], seen["top3"]) == (hits[0][0] / pictures, hits[0][1] / pictures)
    assert seen["top1_interval"] == metrics.wilson(hits[0][0], pictures)
    assert [(one["seed"], one["top1"], one["top3"]) for one in seen["seeds"]] == [
        (seed, first / pictures, among / pictures) for seed, (first, among) in zip(SEEDS, hits, strict=True)
    ]
    top1 = [first / pictures for first, _ in hits]
    assert (seen["top1_mean"], seen["top1_sd"]) == (statistics.fmean(top1), statistics.stdev(top1))
    assert seen["baselines"] == [
        {
            "name": "trial 3",
            "top1": top1[1:],
            "top1_interval": metrics.wilson(hits[1][0], pictures),
            "top3": hits[1][1] / pictures,
            "top1_mean": top1[1],
            "top1_sd": None,
            "diverged": 0,
        }
    ]
    assert json.loads(json.dumps(seen))["confusion"] == [list(row) for row in seen["confusion"]]


def test_a_gpu_that_is_too_small_to_measure_on_is_told_with_the_way_out(
    tiny: Tiny, standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After all that training it ended in a traceback, and so did the same command again."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.00 GiB.")

    monkeypatch.setattr(metrics, "logits", full)
    path = weights(tiny.study_folder / retraining.FINALISTS, standing.runs[0])
    with pytest.raises(StudyError, match=r"its memory has run out; .* add --device cpu to the same command"):
        bench(tiny).logits(POINT, path, "validation")


def test_the_temperature_is_fitted_on_what_the_finalists_make_of_validation(tiny: Tiny, standing: Standing) -> None:
    paths = [weights(tiny.study_folder / retraining.FINALISTS, run) for run in standing.runs]
    scores: list[torch.Tensor] = []
    for path in paths:
        network = retraining.load_network(POINT, path)
        scores.append(metrics.logits(network, EvaluationBatches(part(tiny, "validation"), device=CPU))[0])
    labels = torch.from_numpy(part(tiny, "validation").labels).repeat(2)
    fitted = retraining.fit_temperature(POINT, paths, bench(tiny))
    assert fitted == metrics.temperature(torch.cat(scores), labels)


def test_what_is_known_before_the_look(tiny: Tiny, standing: Standing, finals: Finals) -> None:
    """The first seed's network is exported, whichever of them does best."""
    known = retraining.conclude(standing, finals, bench(tiny), pictures="these", trials=40)
    paths = [weights(tiny.study_folder / retraining.FINALISTS, run) for run in standing.runs]
    assert (known.seed, known.seed_index) == (SEEDS[0], 0)
    assert (known.pictures, known.trials) == ("these", 40)
    assert known.environment == finals.runs[0].user_attrs["environment"]
    assert tiny.study_folder / known.weights == weights(tiny.study_folder / retraining.FINAL_RUNS, finals.runs[0])
    assert known.results is None
    assert known.temperature == retraining.fit_temperature(POINT, paths, bench(tiny))
    assert known.trained_on == ["train", "validation"]
    assert (known.name, known.trial, known.epochs) == ("trial 3", 3, standing.epochs)
    assert Config.from_dict(known.config) == POINT
    assert known.validation == {
        "recorded": 0.9,
        "finalists_mean": standing.mean,
        "finalists_sd": standing.spread,
    }
    fewer = retraining.conclude(
        standing,
        replace(finals, runs=finals.runs[:1]),
        bench(tiny),
        pictures="these",
        trials=40,
    )
    assert fewer.networks != known.networks


def test_of_final_runs_that_diverged_the_others_are_left(tiny: Tiny, standing: Standing, finals: Finals) -> None:
    """The exported network is the first seed's that was trained; a baseline of which nothing is left is left out."""
    wild = recorded([0.1], outcome=Outcome.DIVERGED, run="another")
    half = replace(finals, runs=(wild, finals.runs[1]))
    assert half.trained == [finals.runs[1]]
    known = retraining.conclude(standing, half, bench(tiny), pictures="these", trials=40)
    assert (known.seed, known.seed_index) == (SEEDS[1], 1)
    seen = retraining.look([half, replace(finals, runs=(wild,))], 1.0, bench(tiny))
    assert [one["seed"] for one in seen["seeds"]] == [SEEDS[1]]
    assert (seen["baselines"], seen["diverged"]) == ([], 1)
    with pytest.raises(
        StudyError, match=r"^a winner is exported, but trial 3 diverged with every seed on train \+ val"
    ):
        retraining.conclude(
            standing,
            replace(finals, runs=(wild, wild)),
            bench(tiny),
            pictures="these",
            trials=40,
        )


def spoiled(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def of_another_network(path: Path) -> None:
    stored = checkpoint.load(path)
    other = MushroomCNN(replace(POINT.model, width=0.5)).state_dict()
    checkpoint.save(path, replace(stored, model=other))


@pytest.mark.parametrize("spoil", [Path.unlink, spoiled, of_another_network])
def test_weights_that_are_gone_or_torn_are_told_in_one_line(
    spoil: object, tiny: Tiny, finals: Finals, tmp_path: Path
) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(weights(tiny.study_folder / retraining.FINAL_RUNS, finals.runs[0]).read_bytes())
    assert callable(spoil)
    spoil(path)
    with pytest.raises(StudyError) as refused:
        retraining.load_network(POINT, path)
    assert str(refused.value).startswith("the weights of a finished run must stay until it is exported, but ")
    assert str(refused.value).endswith(f"remove {path}; python study.py retrain trains anew what it needs")
    assert "\n" not in str(refused.value)


# -- the winner on the disk

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
    networks="a b",
    validation={"recorded": 0.9, "finalists_mean": 0.8, "finalists_sd": None},
    results={"top1": 0.8, "looks": 1},
)


def test_a_winner_comes_back_as_it_was(tmp_path: Path) -> None:
    assert Winner.load(tmp_path) is None
    WINNER.save(tmp_path)
    assert Winner.load(tmp_path) == WINNER
    untested = replace(WINNER, results=None, temperature=None)
    untested.save(tmp_path)
    assert Winner.load(tmp_path) == untested
    assert [path.name for path in tmp_path.iterdir()] == ["retrained.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "{}", '{"format": 1}', '{"format": 2}', "\xff"])
def test_a_winner_that_is_not_whole_is_told_by_its_path(text: str, tmp_path: Path) -> None:
    path = tmp_path / "retrained.json"
    path.write_bytes(text.encode("latin-1"))
    rule = f"retrained.json is what `retrain` has written, but {path} is not ("
    with pytest.raises(StudyError, match=f"^{re.escape(rule)}.*; remove it and retrain again: its runs are kept$"):
        Winner.load(tmp_path)


def test_before_it_is_retrained_a_studys_best_trial_stands_for_it() -> None:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr(IDENTITY + "seed", 0)
    study.add_trials([recorded([0.5]), recorded([0.2, 0.9, 0.8], seed=77, environment={})])
    best = retraining.best_so_far(study, "these")
    assert (best.name, best.trial, best.seed, best.epochs) == ("trial 1", 1, 77, 2)
    assert best.weights == "trials/0001/best.pt"
    assert best.trained_on == ["train"]
    assert (best.temperature, best.results, best.validation) == (None, None, {"recorded": 0.9})


# -- the replay


def said_of(trial: FrozenTrial, again: FrozenTrial, capsys: pytest.CaptureFixture[str]) -> str:
    print_replay(make_console(), trial, again)
    return capsys.readouterr().out


def test_a_replay_is_the_trial_bit_for_bit(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tiny.at(tmp_path)
    study.study_folder.mkdir()
    list(study.coordinator(2).run())
    trial = study.trials()[1]
    wanted = finalists.replay(finalists.candidate(study.open(), 1), trial)
    (again,) = train(tiny, [wanted], study.study_folder / retraining.FINALISTS)
    assert again.intermediate_values == trial.intermediate_values
    assert json.loads(json.dumps(again.user_attrs["confusion"])) == trial.user_attrs["confusion"]
    assert retraining.same_curve(trial, again) == (0.0, None)
    assert "the same in each of its 3 epochs." in said_of(trial, again, capsys)

    # The same trial, recorded elsewhere with another second epoch
    doctored = dict(trial.intermediate_values) | {1: 0.123}
    elsewhere = dict(trial.user_attrs["environment"]) | {"torch": "2.11.0"}
    altered = optuna.trial.create_trial(
        value=trial.value,
        intermediate_values=doctored,
        user_attrs=dict(trial.user_attrs) | {"best_top1": 0.0, "environment": elsewhere},
    )
    altered.number = 1
    assert retraining.same_curve(altered, again) == (trial.value, 1)
    assert re.search(
        r"^Replay of trial 1: recorded 0\.00 %, now .* %, \+.* points; the curves part at epoch 2: "
        r"the set-up differs \(torch 2\.11\.0 -> .*\)\.$",
        said_of(altered, again, capsys),
    )


def test_curves_that_part_in_the_same_set_up_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    said = said_of(recorded([0.5, 0.6]), recorded([0.4, 0.6]), capsys)
    assert "+0.00 points; the curves part at epoch 1: several threads, or a GPU, add in any order." in said


def test_a_replay_that_diverged_at_once_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """It has no value: telling how far it is from the recorded one ended in a KeyError."""
    trial, again = recorded([0.5, 0.6]), recorded([], outcome=Outcome.DIVERGED)
    assert retraining.same_curve(trial, again) == (None, 0)
    assert "recorded 60.00 %, now diverged, the curves part at epoch 1: " in said_of(trial, again, capsys)
