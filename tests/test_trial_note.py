"""The note and the pictures of each trial: complete, correct, small, and text alone whatever the classes are called."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from markdown_it import MarkdownIt
from optuna.artifacts import get_all_artifact_meta
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import get_note
from PIL import Image
from studies import ThreadWorkers, Tiny, config, prepare
from torch import Tensor, nn

from data.cache import CacheHandle, open_part
from model import checkpoint
from model.files import printable
from model.network import ModelConfig, MushroomCNN
from model.preprocessing import normalise
from model.training import MISTAKES, EpochMetrics, Mistake, evaluate
from reporting import svg
from reporting.gallery import COLUMNS, GAP, SIDE
from reporting.trial_note import TrialNotes, as_text, note
from search_space import Config
from tuning.coordinator import Coordinator, Plan, search
from tuning.events import TrialRecord
from tuning.jobs import Assignment
from tuning.scheduling import PrunerScheduler
from tuning.trials import Outcome

PICTURES = ("confusion.svg", "curves.svg", "mistakes.jpg")
KILOBYTES = 150
HOSTILE = (
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "![x](javascript:alert(1)) [y](http://x)",
    "| **bold** | `code` | # 1. - + ~~s~~",
    "$\\frac{1}{0}$ & $x_1$ ^ %s \\n",
    "き の こ 🍄 гриб",
    "line\nbreak\ttab\u200e\u202e",
    "&lt;b&gt; &amp; 'single' \"double\"",
    "x" * 300,
)

GROWTH = 25.0
"""Factor by which weight decay alone multiplies the weights in a step of lr 1: finite for one epoch, not for two."""


class PrunesThese(BasePruner):
    """Prunes the trials of these numbers after their second epoch."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return trial.number in self.numbers and trial.last_step == 1


CONFIGS = (
    config(),
    config(lr=3e-4),
    config(optimizer="sgd", schedule="step", step_period=100.0, lr=1.0, weight_decay=GROWTH),
    replace(config(), model=replace(config().model, width=4.0)),
    config(),
    config(optimizer="adamw", weight_decay=0.1, label_smoothing=0.1),
)
ENDS = (
    Outcome.COMPLETE,
    Outcome.PRUNED,
    Outcome.DIVERGED,
    Outcome.INFEASIBLE,
    Outcome.DUPLICATE,
    Outcome.COMPLETE,
)
TRAINED = (0, 1, 2, 5)


def coordinator(
    tiny: Tiny, describe: Callable[[optuna.Trial, TrialRecord], None], *, pruner: BasePruner, trials: int
) -> Coordinator:
    study = tiny.open(pruner=pruner)
    return Coordinator(
        study,
        workers=ThreadWorkers(),
        scheduler=PrunerScheduler(study),
        assign=search(lambda trial: CONFIGS[trial.number], seed=0),
        plan=Plan(trials=trials, max_parameters=2e6),
        data=tiny.data,
        folder=tiny.study_folder,
        describe=describe,
    )


def notes(tiny: Tiny, data: CacheHandle | None = None) -> TrialNotes:
    tiny.study_folder.mkdir(parents=True, exist_ok=True)
    return TrialNotes(tiny.study_folder, data or tiny.data)


@pytest.fixture(scope="module", autouse=True)
def steady() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Return a study with a trial of every outcome, each with its note."""
    tiny = prepare(tmp_path_factory.mktemp("notes"))
    list(coordinator(tiny, notes(tiny), pruner=PrunesThese(1), trials=4).run())
    assert [trial.user_attrs["outcome"] for trial in tiny.trials()] == list(ENDS)
    return tiny


def artifacts(tiny: Tiny, number: int) -> dict[str, list[bytes]]:
    """Return the contents of a trial's artifacts by name."""
    study = tiny.open()
    found: dict[str, list[bytes]] = {}
    for meta in get_all_artifact_meta(study.get_trials()[number], storage=study._storage):
        found.setdefault(meta.filename, []).append((tiny.study_folder / "artifacts" / meta.artifact_id).read_bytes())
    return found


def note_of(tiny: Tiny, number: int) -> str:
    study = tiny.open()
    return get_note(optuna.Trial(study, study.get_trials()[number]._trial_id))


def history(tiny: Tiny, number: int) -> list[EpochMetrics]:
    rows = json.loads((tiny.directory(number) / "history.json").read_text(encoding="utf-8"))
    return [EpochMetrics.from_dict(row) for row in rows]


def chosen(tiny: Tiny, number: int) -> EpochMetrics:
    return max(history(tiny, number), key=lambda metrics: (metrics.top1, -metrics.epoch))


def size_of(picture: bytes) -> tuple[float, float]:
    """Return width and height in pixels."""
    if picture.startswith(b"<svg"):
        root = ET.fromstring(picture)
        return float(root.attrib["width"]), float(root.attrib["height"])
    with Image.open(io.BytesIO(picture)) as opened:
        opened.load()
        return opened.size


def record(classes: int = 3, **changes: Any) -> TrialRecord:
    """Return the record of a trial of one epoch that takes one picture of each class for the next class."""
    confusion = tuple(
        tuple(3 if truth == other else int(other == (truth + 1) % classes) for other in range(classes))
        for truth in range(classes)
    )
    metrics = EpochMetrics(
        epoch=0, train_loss=1.0, train_top1=0.5, validation_loss=1.2, top1=0.75, top3=0.9, confusion=confusion,
        lr=0.01, seconds=2.0, peak_memory=2**29, mistakes=tuple(Mistake(p, p % classes, 0.9) for p in range(6)),
    )  # fmt: skip
    chosen_config = replace(config(), model=replace(config().model, classes=classes))
    known: dict[str, Any] = {
        "assignment": Assignment(config=chosen_config, seed=1, epochs=3),
        "cost": chosen_config.cost,
        "history": [metrics],
        "outcome": Outcome.COMPLETE,
        "reason": "trained to its last epoch",
    }
    return TrialRecord(**known | changes)


# -- what is shown


@pytest.mark.parametrize("number", TRAINED)
def test_a_trained_trial_has_pictures_that_open_and_its_configuration(described: Tiny, number: int) -> None:
    found = artifacts(described, number)
    assert sorted(found) == ["configuration.json", *PICTURES]
    for name, contents in found.items():
        assert len(contents) == 1
        assert len(contents[0]) < KILOBYTES * 1000, name
        if name in PICTURES:
            assert min(size_of(contents[0])) > 200
    assert Config.from_dict(json.loads(found["configuration.json"][0])) == CONFIGS[number]


@pytest.mark.parametrize("number", range(len(ENDS)))
def test_a_note_shows_the_pictures_by_the_address_that_the_dashboard_serves(described: Tiny, number: int) -> None:
    study = described.open()
    trial = study.get_trials()[number]
    metas = get_all_artifact_meta(trial, storage=study._storage)
    served = {
        f"/artifacts/{study._study_id}/{trial._trial_id}/{m.artifact_id}" for m in metas if m.filename in PICTURES
    }
    assert len(served) == (len(PICTURES) if number in TRAINED else 0)
    assert set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", note_of(described, number))) == served


@pytest.mark.parametrize("number", range(len(ENDS)))
def test_a_note_states_outcome_reason_value_configuration_and_cost(described: Tiny, number: int) -> None:
    text, trial = text_of(note_of(described, number)), described.trials()[number]
    drawn, attributes = CONFIGS[number], described.trials()[number].user_attrs
    assert f"Trial {number}: {ENDS[number]}" in text
    assert attributes["reason"][1:] in text
    assert f"{attributes['flops'] / 1e6:,.1f} MFLOPs per picture, {attributes['parameters']:,} parameters" in text
    assert f"optimizer {drawn.training.optimizer}, lr {drawn.training.lr:.3g}" in text
    assert f"width {drawn.model.width:g}, stride pattern {drawn.model.stride_pattern}" in text
    assert f"image size {drawn.image_size}" in text
    if number in TRAINED:
        reached = chosen(described, number)
        assert f"{100 * reached.top1:.2f} % top-1" in text.replace("\u00a0", " ")
        assert f"in epoch {reached.epoch + 1} of {len(trial.intermediate_values)}" in text
        assert "MB peak memory" in text
    else:
        assert "top-1" not in text


def test_a_note_says_how_far_a_trial_was_trained_and_why_it_stopped_there() -> None:
    reason = "pruned after epoch 1: paused there and not resumed"
    text = text_of(note(0, record(outcome=Outcome.PRUNED, reason=reason), {}))
    assert reason[1:] in text and "1 of 3 epochs" in text
    whole = record(history=[replace(record().history[0], epoch=epoch) for epoch in range(3)])
    assert "3 of 3 epochs" not in text_of(note(0, whole, {}))


def test_a_new_setting_of_the_network_is_in_the_note_without_further_change() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Deeper(ModelConfig):
        extra_blocks: int

    deeper = replace(config(), model=Deeper(**dataclasses.asdict(config().model), extra_blocks=3))
    known = record()
    known = replace(known, assignment=replace(known.assignment, config=deeper))
    assert "extra blocks 3" in text_of(note(0, known, {}))


# -- whether it is correct


@pytest.mark.parametrize("number", [0, 5])
def test_the_mistakes_are_the_most_confident_wrong_answers_of_the_best_epoch(described: Tiny, number: int) -> None:
    """They are compared with a slow loop over the checkpoint, one picture at a time."""
    network = MushroomCNN(CONFIGS[number].model).eval()
    network.load_state_dict(checkpoint.load(described.directory(number) / "best.pt").model)
    part = open_part(described.data, 32, "validation")
    wrong: list[tuple[float, int, int]] = []
    with torch.inference_mode():
        for place, (index, label) in enumerate(zip(part.indices, part.labels, strict=True)):
            shares = network(normalise(torch.from_numpy(part.images[[index]]))).softmax(dim=1)[0]
            if (answer := int(shares.argmax())) != label:
                wrong.append((float(shares[answer]), place, answer))
    wrong.sort(reverse=True)
    kept = chosen(described, number).mistakes
    assert wrong
    assert {mistake.place: mistake.predicted for mistake in kept} == {p: a for _, p, a in wrong[:MISTAKES]}
    assert [mistake.probability for mistake in kept] == pytest.approx([p for p, *_ in wrong[:MISTAKES]], rel=1e-4)


@pytest.mark.parametrize("number", TRAINED)
def test_the_gallery_shows_the_pictures_of_the_mistakes_in_their_order(described: Tiny, number: int) -> None:
    part = open_part(described.data, 32, "validation")
    with Image.open(io.BytesIO(artifacts(described, number)["mistakes.jpg"][0])) as opened:
        sheet = np.asarray(opened.convert("RGB"), dtype=float)
    mistakes = chosen(described, number).mistakes
    rows = -(-len(mistakes) // COLUMNS)
    tile_height = (sheet.shape[0] - GAP) // rows
    for place, mistake in enumerate(mistakes):
        left = GAP + place % COLUMNS * (SIDE + GAP)
        bottom = (place // COLUMNS + 1) * tile_height
        shown = sheet[bottom - SIDE : bottom, left : left + SIDE]
        distances = [
            float(np.abs(shown - np.asarray(Image.fromarray(picture).resize((SIDE, SIDE)), dtype=float)).mean())
            for picture in part.images[part.indices]
        ]
        assert int(np.argmin(distances)) == mistake.place


def test_the_confusion_matrix_is_that_of_the_same_epoch(described: Tiny) -> None:
    drawn = svg.confusion(chosen(described, 0).confusion, described.data.classes)
    assert artifacts(described, 0)["confusion.svg"] == [drawn.encode()]


@pytest.mark.parametrize("pictures", [5, 40])
def test_the_mistakes_of_an_evaluation_equal_a_slow_loops(pictures: int) -> None:
    """Evaluations of fewer and of more pictures than mistakes are kept of, in batches of seven."""
    rng = torch.Generator().manual_seed(pictures)
    images = torch.rand(pictures, 3, 8, 8, generator=rng)
    labels = torch.randint(4, (pictures,), generator=rng)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    slow: list[Mistake] = []
    for place in range(pictures):
        shares = network(images[place : place + 1]).softmax(dim=1)[0].tolist()
        answer = shares.index(max(shares))
        if answer != labels[place]:
            slow.append(Mistake(place, answer, shares[answer]))
    slow.sort(key=lambda mistake: -mistake.probability)
    fast = evaluate(network, Sliced(images, labels)).mistakes
    assert len(slow) > (MISTAKES if pictures > MISTAKES else 1)
    assert [mistake[:2] for mistake in fast] == [mistake[:2] for mistake in slow[:MISTAKES]]
    assert [mistake.probability for mistake in fast] == pytest.approx([m.probability for m in slow[:MISTAKES]])


def test_a_network_that_is_always_right_has_no_mistakes_and_its_trial_no_gallery(
    described: Tiny, tmp_path: Path
) -> None:
    images, labels = torch.eye(3).reshape(3, 3, 1, 1), torch.arange(3)
    certain = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    certain.load_state_dict({"1.weight": 9 * torch.eye(3), "1.bias": torch.zeros(3)})
    assert evaluate(certain, Sliced(images, labels)).mistakes == ()
    tiny = described.at(tmp_path)
    flawless = record()
    flawless = replace(flawless, history=[replace(flawless.history[0], mistakes=())])
    trial = tiny.open().ask()
    notes(tiny)(trial, flawless)
    assert sorted(artifacts(tiny, 0)) == ["configuration.json", "confusion.svg", "curves.svg"]
    assert "mistakes" not in note_of(tiny, 0)


@dataclass
class Sliced:
    """Pictures in batches of seven."""

    images: Tensor
    labels: Tensor

    @property
    def class_counts(self) -> tuple[int, ...]:
        return tuple(torch.bincount(self.labels).tolist())

    def __len__(self) -> int:
        return -(-len(self.labels) // 7)

    def epoch(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.images.split(7), self.labels.split(7), strict=True)


# -- interrupted


class Killed(BaseException):
    """Stands for a killed process: nothing catches it."""


@pytest.mark.parametrize("after", ["the first artifact", "the note"])
def test_a_trial_killed_before_it_is_reported_gets_no_second_set(described: Tiny, tmp_path: Path, after: str) -> None:
    tiny = described.at(tmp_path)
    whole = notes(tiny)

    def killed(trial: optuna.Trial, known: TrialRecord) -> None:
        whole(trial, known)
        raise Killed

    if after == "the first artifact":
        upload = whole._upload

        def dies(*arguments: Any) -> str:
            upload(*arguments)
            raise Killed

        whole._upload = dies  # type: ignore[method-assign]
    with suppress(Killed):
        list(coordinator(tiny, killed, pruner=PrunesThese(), trials=1).run())
    assert [trial.state for trial in tiny.trials()] == [TrialState.RUNNING]
    assert len(artifacts(tiny, 0)) == (1 if after == "the first artifact" else 4)

    list(coordinator(tiny, notes(tiny), pruner=PrunesThese(), trials=1).run())
    assert [trial.state for trial in tiny.trials()] == [TrialState.COMPLETE]
    found = artifacts(tiny, 0)
    assert {name: len(contents) for name, contents in found.items()} == dict.fromkeys(
        ("configuration.json", *PICTURES), 1
    )
    # Its epochs took other times, but the pictures do not show them.
    assert found == artifacts(described, 0)


def test_a_resumed_trial_has_pictures_of_all_its_epochs(described: Tiny, tmp_path: Path) -> None:
    """It was killed after its note, when it was to be pruned; in the next run the pruner lets it continue."""
    tiny = described.at(tmp_path)
    whole = notes(tiny)

    def killed(trial: optuna.Trial, known: TrialRecord) -> None:
        whole(trial, known)
        assert known.outcome is Outcome.PRUNED
        raise Killed

    with suppress(Killed):
        list(coordinator(tiny, killed, pruner=PrunesThese(0), trials=1).run())
    early = artifacts(tiny, 0)["curves.svg"]
    list(coordinator(tiny, notes(tiny), pruner=PrunesThese(), trials=1).run())
    assert tiny.trials()[0].state is TrialState.COMPLETE
    assert artifacts(tiny, 0)["curves.svg"] != early
    assert artifacts(tiny, 0) == artifacts(described, 0)
    assert "of 3" in note_of(tiny, 0)


def test_an_artifact_that_somebody_removed_in_the_dashboard_stops_no_study(described: Tiny, tmp_path: Path) -> None:
    tiny = described.at(tmp_path)
    study = tiny.open()
    trial = study.ask()
    # What optuna-dashboard leaves of a file that was added to a running trial and removed again.
    study._storage.set_trial_system_attr(trial._trial_id, "artifacts:0b6d1f6e", json.dumps(None))
    notes(tiny)(trial, record())
    assert len(list((tiny.study_folder / "artifacts").iterdir())) == 4
    assert note_of(tiny, 0).count("![") == 3


# -- strange names


def text_of(markdown: str) -> str:
    """Return what readers of the dashboard see of a note: its Markdown rendered, without elements."""
    rendered = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)
    return html.unescape(re.sub(r"<[^>]*>", "", rendered))


@pytest.mark.parametrize("name", [*HOSTILE, "1. one", "- two", "    code", "# three", "a  b", "not \udcff UTF-8"])
@pytest.mark.parametrize("around", ["{}", "# {}", "| {} | 1 |\n|---|---|\n| {} | 2 |"])
def test_a_name_in_a_note_is_shown_as_it_is_written(name: str, around: str) -> None:
    """White space, which Markdown does not keep, and invisible characters are excepted."""
    seen = text_of(around.replace("{}", as_text(name)))
    assert seen.count(printable(" ".join(name.split()))) == around.count("{}")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_reason_makes_no_element(name: str) -> None:
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(note(0, record(reason=name), {}))
    elements = set(re.findall(r"<(\w+)", rendered))
    assert elements <= {"h1", "h2", "p", "strong", "table", "thead", "tbody", "tr", "td", "th"}


def test_classes_of_any_name_are_drawn_without_a_warning(described: Tiny, tmp_path: Path) -> None:
    """Pictures of three classes are shown as if there were nine; a warning would fail."""
    tiny = described.at(tmp_path)
    trial = tiny.open().ask()
    odd = replace(described.data, classes=HOSTILE)
    notes(tiny, odd)(trial, record(classes=len(HOSTILE)))
    found = artifacts(tiny, 0)
    assert sorted(found) == ["configuration.json", *PICTURES]
    assert all(len(content) < KILOBYTES * 1000 for (content,) in found.values())
    assert max(size_of(found["confusion.svg"][0])) < 700, "a long name makes no large picture"


def test_a_hundred_classes_have_a_small_picture_too(described: Tiny, tmp_path: Path) -> None:
    tiny = described.at(tmp_path)
    many = replace(described.data, classes=tuple(f"class {number}" for number in range(100)))
    notes(tiny, many)(tiny.open().ask(), record(classes=100))
    assert all(len(content) < KILOBYTES * 1000 for (content,) in artifacts(tiny, 0).values())
