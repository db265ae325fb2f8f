"""The comparison with a pretrained network: weights that fit or are refused, features, and one logged test.

The weights are random, so nothing is downloaded: a random network's features tell these tinted pictures apart, too.
"""

from __future__ import annotations

import json
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from studies import Tiny, config, one_core, prepare
from torch import Tensor, nn
from torchvision import models

from data.cache import open_part, squares
from model import logistic
from selection import test_set_uses
from selection.pretrained import DEFAULT, Pretrained, fit_head, load
from selection.retraining import Winner, compare
from selection.test_set_uses import TestSet
from tuning import StudyError
from tuning.session import Session

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def steady() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with one_core():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def mobilenet() -> nn.Module:
    torch.manual_seed(0)
    return models.get_model(DEFAULT, weights=None).eval()


@pytest.fixture(scope="module")
def file(mobilenet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network's random weights, saved as torchvision's are."""
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(mobilenet.state_dict(), path)
    return path


def small(seed: int = 0) -> Pretrained:
    """Return a network of one random layer: the mechanics need no real one."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 12, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Pretrained(name="small", weights="random", network=layers.eval(), size=32, mean=(0.5,) * 3, std=(0.25,) * 3)


# -- the network and its features


def test_features_are_what_the_last_layer_of_torchvisions_network_is_given(
    mobilenet: nn.Module, file: Path, tiny: Tiny
) -> None:
    given: list[Tensor] = []
    last: Any = mobilenet.get_submodule("classifier.3")
    hook = last.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    pretrained, weights = load(file=file), models.MobileNet_V3_Small_Weights.DEFAULT
    pictures = [*squares(tiny.pictures.catalog, [3, 0], 224)]
    transforms: Any = weights.transforms(resize_size=224)
    with torch.no_grad():
        for picture in pictures:
            mobilenet(transforms(torch.from_numpy(picture).permute(2, 0, 1))[None])
    hook.remove()
    assert torch.allclose(pretrained.features(pictures, CPU), torch.cat(given), atol=1e-4)
    assert (pretrained.name, pretrained.weights, pretrained.size) == (DEFAULT, "random.pth", 224)
    head = sum(parameter.numel() for parameter in last.parameters())
    assert pretrained.parameters == weights.meta["num_params"] - head
    published = 2e9 * weights.meta["_ops"]  # multiply-adds in billions, with the last layer
    assert pretrained.flops() + 2 * last.weight.numel() == pytest.approx(published, rel=0.01)


def test_pictures_are_decoded_as_for_training(tiny: Tiny) -> None:
    test = open_part(tiny.data, 32, "test")
    found = np.stack([*squares(tiny.pictures.catalog, test.indices.tolist(), 32)])
    assert np.array_equal(found, test.images[test.indices])


def test_weights_that_were_downloaded_before_are_taken(
    mobilenet: nn.Module, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    recommended = models.MobileNet_V3_Small_Weights.DEFAULT
    (folder / recommended.url.rpartition("/")[2]).write_bytes(file.read_bytes())
    pretrained = load()
    assert pretrained.weights == recommended.name
    assert pretrained.key == load(file=file).key  # by the weights, wherever they come from
    assert pretrained.key != small().key


def test_without_a_network_the_error_says_what_to_download_and_where_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(StudyError) as refused:
        load()
    line = str(refused.value)
    assert line.startswith(f"cannot download the weights of {DEFAULT} (") and "\n" not in line
    assert models.MobileNet_V3_Small_Weights.DEFAULT.url in line and "--weights FILE" in line


@pytest.mark.parametrize(
    ("name", "facts"),
    [("mobilenet_v3_smal", "mobilenet_v3_small"), ("\x1b[31m", "resnet18"), ("squeezenet1_1", DEFAULT)],
)
def test_a_network_that_cannot_be_compared_with_is_refused_with_another(name: str, facts: str, file: Path) -> None:
    with pytest.raises(StudyError) as refused:
        load(name, file)
    assert str(refused.value).startswith("--pretrained ") and str(refused.value).isprintable()
    assert facts in str(refused.value)


class Trap:
    """An object whose unpickling would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def changed(state: dict[str, Tensor], change: str, place: Path) -> object:
    """Return what a wrong file holds."""
    first = next(iter(state))
    match change:
        case "missing":
            return {name: tensor for name, tensor in state.items() if name != first}
        case "unknown":
            return state | {"more": state[first]}
        case "shape":
            return state | {first: state[first][:, :1]}
        case "no tensor":
            return state | {first: 5}
        case "no weights":
            return [1, 2]
        case _:
            return Trap(place / "trapped")


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "no tensor", "no weights", "code"])
def test_a_file_that_does_not_fit_is_refused_in_one_line_and_no_code_in_it_runs(
    change: str, mobilenet: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.pth"
    contents = changed(mobilenet.state_dict(), change, tmp_path)
    if change == "code":
        path.write_bytes(pickle.dumps(contents, protocol=2))
    else:
        torch.save(contents, path)
    with pytest.raises(StudyError) as refused:
        load(file=path)
    line = str(refused.value)
    assert str(path) in line and DEFAULT in line and line.isprintable() and len(line) < 600
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, lambda path: path.write_text("weights")])
def test_what_is_no_file_of_weights_is_refused(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "w.pth")
    with pytest.raises(StudyError, match=r"^cannot read --weights .*w\.pth \("):
        load(file=tmp_path / "w.pth")


def test_the_last_layer_of_the_file_may_have_any_number_of_classes(mobilenet: nn.Module, tmp_path: Path) -> None:
    state = mobilenet.state_dict()
    torch.save({name: tensor for name, tensor in state.items() if not name.startswith("classifier.3.")}, tmp_path / "w")
    assert load(file=tmp_path / "w").parameters > 0


# -- the head


def test_the_head_is_fitted_to_train_and_validation_with_the_penalty_that_validation_prefers(tiny: Tiny) -> None:
    """By hand, part by part, with the training's own cache."""
    network = small()
    shown: list[tuple[str, int]] = []

    def track(iterable: Iterable[Any], description: str, total: int) -> Iterable[Any]:
        shown.append((description, total))
        return iterable

    fitted = fit_head(network, tiny.pictures.catalog, tiny.pictures.split, CPU, track)
    parts = [open_part(tiny.data, 32, name) for name in ("train", "validation", "test")]
    train, validation, test = (network.features(part.images[part.indices], CPU) for part in parts)
    known, truth, labels = (torch.from_numpy(part.labels) for part in parts)
    penalty, top1 = logistic.choose_penalty(train, known, validation, truth, 3)
    assert (fitted.penalty, fitted.validation) == (penalty, top1)
    head = logistic.fit(torch.cat([train, validation]), torch.cat([known, truth]), 3, penalty)
    assert torch.allclose(fitted.logits, head(test), atol=1e-4)
    assert torch.equal(fitted.labels, labels)
    assert (fitted.logits.argmax(dim=1) == labels).double().mean() > 0.8  # the classes have different tints
    assert fitted.parameters == (3 * 8 * 8 + 1) * 12 + (12 + 1) * 3
    assert fitted.flops == 2 * (3 * 8 * 8 * 12 * 4 * 4 + 12 * 3)
    assert [total for _, total in shown] == [len(tiny.pictures.catalog.kept)]


# -- beside the winner


WINNER = Winner(
    name="trial 3",
    trial=3,
    config=config().to_dict(),
    pictures="these",
    trials=40,
    seed_index=0,
    environment={},
    seed=1,
    epochs=3,
    trained_on=["train", "validation"],
    weights="retrained/trials/0000/best.pt",
    temperature=None,
    calibration=None,
    networks="the winner's",
    validation={},
    results={"top1": 0.5, "top1_interval": [0.2, 0.8]},
)


def logged(session: Session) -> list[str]:
    return [use.networks for use in test_set_uses.all_uses(session.folder.parent, TestSet.of(session.pictures))]


@pytest.fixture(scope="module")
def opened(tiny: Tiny) -> Session:
    return tiny.session()


@pytest.fixture
def session(opened: Session, tmp_path: Path) -> Session:
    """A study in a folder of its own, whose winner alone has been evaluated on the test set."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    test_set_uses.log_use(tmp_path, TestSet.of(opened.pictures), WINNER.networks, folder.name)
    return replace(opened, folder=folder)


def without_seconds(one: Winner) -> Winner:
    assert one.pretrained is not None and one.pretrained.pretrained.seconds is not None
    return replace(one, pretrained=replace(one.pretrained, pretrained=replace(one.pretrained.pretrained, seconds=0.0)))


def test_the_comparison_is_stored_and_logged_once(session: Session) -> None:
    pretrained = small()
    compared = compare(session, WINNER, pretrained)
    stored = Winner.load(session.folder)
    assert stored == compared
    assert stored.pretrained is not None
    fitted = fit_head(pretrained, session.pictures.catalog, session.pictures.split, CPU)
    top1 = float((fitted.logits.argmax(dim=1) == fitted.labels).double().mean())
    ours, theirs = stored.pretrained.winner, stored.pretrained.pretrained
    assert (ours.name, ours.top1, ours.top1_interval, ours.seconds) == ("trial 3", 0.5, [0.2, 0.8], None)
    assert (ours.parameters, ours.flops) == (config().cost.parameters, config().cost.flops)
    assert (theirs.name, theirs.top1) == ("small", top1)
    assert (theirs.parameters, theirs.flops) == (fitted.parameters, fitted.flops)
    assert stored.pretrained.pictures == len(fitted.labels)
    assert logged(session) == [WINNER.networks, pretrained.key]
    assert without_seconds(compare(session, WINNER, pretrained)) == without_seconds(compared)
    assert logged(session) == [WINNER.networks, pretrained.key]


def test_beside_an_untested_winner_nothing_is_tested(session: Session) -> None:
    untested = replace(WINNER, results=None)
    assert compare(session, untested, small(), retest=True) is untested
    assert logged(session) == [WINNER.networks]


def test_a_second_pretrained_network_is_tested_only_with_retest(session: Session) -> None:
    """The best of many that were tried on the test set would be luck."""
    other = small(seed=1)
    compare(session, WINNER, small())
    assert compare(session, WINNER, other) is WINNER
    assert len(logged(session)) == 2
    assert compare(session, WINNER, other, retest=True).pretrained is not None
    assert logged(session)[2:] == [other.key]
    assert compare(session, WINNER, other).pretrained is not None  # it has been tested


def test_interrupted_while_features_are_computed_it_is_resumed(session: Session) -> None:
    def interrupting(iterable: Iterable[Any], description: str, total: int) -> Iterator[Any]:
        for place, item in enumerate(iterable):
            if place == total // 2:
                signal.raise_signal(signal.SIGINT)
            yield item

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            compare(session, WINNER, small(), track=interrupting)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (session.folder / "retrained.json").exists()
    assert compare(session, WINNER, small()).pretrained is not None
    assert len(logged(session)) == 2


def test_a_damaged_comparison_is_refused(session: Session) -> None:
    compare(session, WINNER, small())
    path = session.folder / "retrained.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    for damage in ({"pictures": "many"}, {"winner": {}}, {"pretrained": 3}, {"more": 1}):
        path.write_text(json.dumps(whole | {"pretrained": whole["pretrained"] | damage}), encoding="utf-8")
        with pytest.raises(StudyError, match=r"^cannot read .*retrained\.json \(.*pretrained\."):
            Winner.load(session.folder)


def test_a_gpu_with_too_little_memory_is_an_error_that_names_the_fix() -> None:
    class Full(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, pictures: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.00 GiB.")

    with pytest.raises(StudyError, match=r"^cpu has too little free memory for small: .*--device cpu"):
        replace(small(), network=Full()).features([np.zeros((32, 32, 3), np.uint8)], CPU)
