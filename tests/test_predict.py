"""Prediction: the pixels are the validation path's, the probabilities the network's, and no picture stops another."""

import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import FLAWED, NAMES, class_folders, flawed_folder
from PIL import Image
from studies import run_here

from data import cache, catalog, sources
from data.batches import EvaluationBatches
from data.split import split
from model.export.bundle import Bundle, load, save
from model.network import ModelConfig, MushroomCNN
from model.predict import Classifier, PredictError, Prediction, pictures_in, square_of
from model.preprocessing import normalise
from model.strangers import fit

ROOT = Path(__file__).parents[1]
BUNDLE = Bundle(
    model=ModelConfig(classes=3, width=0.25, stride_pattern="early"),
    classes=NAMES[:3],
    image_size=24,
    temperature=0.6,
    provenance={},
    results=None,
)


def saved(folder: Path, change: Callable[[torch.Tensor], object] = lambda head: head.mul_(5)) -> Path:
    """Save a bundle with statistics that are not the initial ones, and a head with large weights."""
    torch.manual_seed(0)
    network = MushroomCNN(BUNDLE.model)
    network(torch.randn(8, 3, 24, 24))
    weights = network.state_dict()
    change(weights["head.weight"])
    folder.mkdir()
    save(folder, BUNDLE, weights)
    return folder


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("bundle") / "best")


@pytest.fixture(scope="module")
def classifier(best: Path) -> Classifier:
    return Classifier.load(best)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("pictures"), each=12, size=48)


# Pixels and probabilities


def test_predict_sees_what_validation_saw(classifier: Classifier, best: Path, folder: Path, tmp_path: Path) -> None:
    """The file as `predict` loads it, the cache's row and the evaluation batches are equal bit for bit."""
    found = catalog.scan(sources.resolve(str(folder), cache_dir=tmp_path, pictures=None), cache_dir=tmp_path)
    handle = cache.build(found, split(found), [24], cache_dir=tmp_path)
    part = cache.open_part(handle, 24, "validation")
    paths = [found.file(found.kept[index]) for index in part.indices]
    assert len(paths) >= 3
    assert np.array_equal(np.stack([square_of(path, 24, {})[0] for path in paths]), part.images[part.indices])

    ((images, _),) = EvaluationBatches(part, batch_size=64, device=torch.device("cpu")).epoch(0)
    _, network = load(best)
    with torch.inference_mode():
        probabilities = torch.softmax(network(images) / BUNDLE.temperature, dim=1)
    assert torch.equal(classifier.probabilities(part.images[part.indices]), probabilities)
    for prediction, row in zip(classifier.predict(paths, batch_size=64), probabilities.tolist(), strict=True):
        assert prediction.error is None
        assert dict(prediction.classes) == dict(zip(NAMES, row, strict=False))


def test_the_best_come_first_and_add_up_to_one(classifier: Classifier, folder: Path) -> None:
    for prediction in classifier.predict(pictures_in([folder])):
        values = [probability for _, probability in prediction.classes]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("top", "given"), [(1, 1), (2, 2), (3, 3), (50, 3)])
def test_as_many_classes_as_asked_for_and_there_are(classifier: Classifier, folder: Path, top: int, given: int) -> None:
    whole = next(classifier.predict(pictures_in([folder]), top=3))
    assert next(classifier.predict(pictures_in([folder]), top=top)).classes == whole.classes[:given]


def test_the_temperature_is_used(best: Path, folder: Path) -> None:
    bundle, network = load(best)
    hot = Classifier(replace(bundle, temperature=1000), network, torch.device("cpu"))
    for _, probability in next(hot.predict(pictures_in([folder]))).classes:
        assert probability == pytest.approx(1 / 3, abs=0.02)


def test_an_answer_is_sure_from_the_bundles_probability_on(best: Path, folder: Path) -> None:
    bundle, network = load(best)
    paths = list(pictures_in([folder]))

    def said(sure: float | None) -> list[bool | None]:
        return [one.sure for one in Classifier(replace(bundle, sure=sure), network, torch.device("cpu")).predict(paths)]

    highest = sorted(one.classes[0][1] for one in Classifier(bundle, network, torch.device("cpu")).predict(paths))
    assert said(None) == [None] * len(paths)
    assert said(highest[len(paths) // 2]).count(True) == sum(one >= highest[len(paths) // 2] for one in highest)


def test_a_picture_farther_than_the_bundles_limit_is_a_stranger_and_never_sure(best: Path, folder: Path) -> None:
    bundle, network = load(best)
    paths = list(pictures_in([folder]))
    squares = np.stack([square_of(path, bundle.image_size, {})[0] for path in paths])
    with torch.inference_mode():
        features, logits = network.features_and_logits(normalise(torch.from_numpy(squares)))
    network.familiar = fit(features[:9], torch.arange(9) % 3, 3)
    expected = network.familiar(features, logits)
    limited = replace(bundle, strangest=float(expected.median()), sure=0.0)
    found = list(Classifier(limited, network, torch.device("cpu")).predict(paths))
    torch.testing.assert_close(torch.tensor([one.strangeness for one in found]), expected, rtol=1e-4, atol=1e-4)
    assert [one.stranger for one in found] == (expected > limited.strangest).tolist()
    assert [one.sure for one in found] == [not one.stranger for one in found]
    assert {one.stranger for one in found} == {True, False}


@pytest.mark.parametrize("batch_size", [1, 5, 36, 100])
def test_batches_change_neither_order_nor_answers(classifier: Classifier, folder: Path, batch_size: int) -> None:
    paths = list(pictures_in([folder]))
    alone = [next(classifier.predict([path])) for path in paths]
    together = list(classifier.predict(paths, batch_size=batch_size))
    assert [prediction.path for prediction in together] == paths
    for one, other in zip(alone, together, strict=True):
        assert dict(one.classes) == pytest.approx(dict(other.classes), abs=1e-5)


def test_values_beyond_the_range_and_further_pages_are_counted(best: Path, tmp_path: Path) -> None:
    bundle, network = load(best)
    classifier = Classifier(replace(bundle, ranges={"integers": [0, 4095]}), network, torch.device("cpu"))
    values = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    pages = [Image.fromarray(values), Image.fromarray(values)]
    pages[0].save(tmp_path / "two.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(values * 8).save(tmp_path / "bright.tif")
    bright, two = classifier.predict(pictures_in([tmp_path]))
    assert (bright.traits.pages, two.traits.pages) == (1, 2)
    assert (bright.traits.clipped, two.traits.clipped) == (0.5, 0)
    said = run_here("predict", str(tmp_path), "--model", str(best), "--json")
    assert (
        "several pictures" in said.err
        and "in 1 of 2 files" in said.err
        and "two.tif" in said.err
        and "outside" not in said.err
    )
    assert len(json.loads(said.out)) == 2
    save(best, replace(bundle, ranges={"integers": [0, 4095]}), network.state_dict())
    try:
        assert re.search(
            r"outside the range.* 1 of 2 files.*bright\.tif",
            run_here("predict", str(tmp_path), "--model", str(best)).err,
        )
    finally:
        save(best, bundle, network.state_dict())


# Streaming


def test_pictures_are_drawn_as_they_are_needed(classifier: Classifier, folder: Path) -> None:
    """An endless stream of paths takes two batches of memory, and its threads end when its reader stops."""
    drawn = 0

    def endless() -> Iterator[Path]:
        nonlocal drawn
        for path in itertools.cycle(pictures_in([folder])):
            drawn += 1
            yield path

    threads = threading.active_count()
    predictions = classifier.predict(endless(), batch_size=4)
    assert drawn == 0
    for count, _ in enumerate(itertools.islice(predictions, 50), start=1):
        assert drawn <= count + 8
    predictions.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads


def test_no_pictures_no_predictions(classifier: Classifier) -> None:
    assert list(classifier.predict([])) == []


# Broken pictures


def test_broken_pictures_give_their_reason_and_stop_no_other(classifier: Classifier, tmp_path: Path) -> None:
    folder = flawed_folder(tmp_path / "flawed")
    paths = [*pictures_in([folder]), folder / "Agaricus" / "notes.txt", folder / "nothing.jpg", folder]
    predictions = {str(p.path.relative_to(folder)): p for p in classifier.predict(paths, batch_size=8)}
    assert len(predictions) == len(paths)
    for prediction in predictions.values():
        assert bool(prediction.classes) is (prediction.error is None)
    errors = {Path(name).as_posix(): prediction.error for name, prediction in predictions.items() if prediction.error}
    assert errors == {
        "Agaricus/truncated.jpg": "truncated",
        "Agaricus/notes.txt": "not a picture",
        "Boletus/really-text.jpg": "not a picture",
        "Boletus/nothing.jpg": "not a picture",
        "Boletus/bomb.png": "400 megapixels, more than the 100 allowed",
        "Boletus/small.png": "15 x 40 pixels, the shorter side must be at least 16",
        "nothing.jpg": f"cannot be opened ({os.strerror(2)})",
        ".": f"cannot be opened ({os.strerror(21)})",
    }
    kept = {name for name, verdict in FLAWED.items() if verdict == "kept" and Path(name).suffix}
    assert kept <= {Path(name).as_posix() for name, prediction in predictions.items() if prediction.classes}


def test_only_broken_pictures(classifier: Classifier, tmp_path: Path) -> None:
    assert [p.error is None for p in classifier.predict([tmp_path / "a", tmp_path / "b"])] == [False, False]


def test_an_overflow_in_the_network_is_an_error_not_a_prediction(tmp_path: Path, folder: Path) -> None:
    """A stranger's bundle may have finite weights that give infinite logits, which softmax turns into NaN."""
    classifier = Classifier.load(saved(tmp_path / "huge", lambda head: head.sign_().mul_(3e38)))
    prediction = next(classifier.predict(pictures_in([folder])))
    assert prediction == Prediction(path=prediction.path, classes=(), error="the network's numbers overflow")


# Paths


def test_files_as_given_and_folders_in_sorted_order(tmp_path: Path) -> None:
    names = ["b/2.jpg", "b/10.JPG", "b/a/deep.png", "b/z.txt", "b/.hidden.jpg", "b/.hidden/x.jpg", "b/__MACOSX/x.jpg",
             "b/picture.heic", "c/no-suffix", "c/x.webp"]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = pictures_in([tmp_path / "c" / "no-suffix", tmp_path / "b", str(tmp_path / "c" / "x.webp"), tmp_path / "c"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "c/no-suffix",
        *("b/10.JPG", "b/2.jpg", "b/picture.heic", "b/a/deep.png"),
        *("c/x.webp", "c/x.webp"),
    ]


@pytest.mark.skipif(os.name == "nt", reason="links and pipes need what Windows does not give everybody")
def test_links_in_a_circle_and_pipes_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").touch()
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    assert list(pictures_in([tmp_path])) == [tmp_path / "a" / "x.jpg"]


def test_a_path_that_does_not_exist_is_refused_before_the_first_picture(folder: Path) -> None:
    missing = folder / "new\nline.jpg"
    with pytest.raises(PredictError) as raised:
        pictures_in([folder, missing])
    assert f"{folder}{os.sep}new\\nline.jpg" in str(raised.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is readable here")
def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(PredictError, match=r"cannot read .*closed .*Permission denied"):
        list(pictures_in([tmp_path]))


# Requests


@pytest.mark.parametrize("request_", [{"top": 0}, {"batch_size": 0}])
def test_a_request_for_nothing(classifier: Classifier, request_: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"`top` and `batch_size` 1 or more.* 0\b"):
        classifier.predict(["a.jpg"], **request_)


def test_one_path_is_not_several(classifier: Classifier) -> None:
    with pytest.raises(ValueError, match=r"list of paths.*'a\.jpg'"):
        classifier.predict("a.jpg")


@pytest.mark.parametrize("device", ["nonsense", "cuda:77"])
def test_a_device_that_is_not_there(best: Path, device: str) -> None:
    with pytest.raises(PredictError, match=f"device '{device}' .*use 'cpu'"):
        Classifier.load(best, device)


# Alone

BLOCKER = """
import sys
for name in ('optuna', 'pandas', 'plotly', 'matplotlib', 'torchvision', 'onnx', 'onnxscript', 'onnxruntime', 'rich',
             'cyclopts', 'sqlalchemy', 'psutil', 'filelock', 'platformdirs', 'data', 'tuning', 'reporting'):
    sys.modules[name] = None  # importing it raises ImportError
"""


def test_three_lines_of_python_need_torch_pillow_and_safetensors_alone(best: Path, folder: Path) -> None:
    picture = next(pictures_in([folder]))
    lines = f"""
from model.predict import Classifier
classifier = Classifier.load({str(best)!r})
print(next(classifier.predict([{str(picture)!r}])))
"""
    code = BLOCKER + lines + "assert 'torch._dynamo' not in sys.modules"  # importing it takes two seconds
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("Prediction(path=")
    assert all(name in done.stdout for name in NAMES[:3])


# Where it looked


def test_each_picture_is_explained_beside_what_the_network_sees(best: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.jpg").write_bytes(b"torn")
    given = [folder / NAMES[0] / "0001.jpg", tmp_path / "torn.jpg", folder / NAMES[1] / "0001.jpg"]
    ended = run_here("predict", *map(str, given), "--model", str(best), "--explain", str(tmp_path / "new" / "looked"))
    assert ended.code == 0
    assert str(tmp_path / "new" / "looked") in ended.err
    drawn = sorted((tmp_path / "new" / "looked").iterdir())
    assert [path.name for path in drawn] == ["0001 0001.png", "0002 0001.png"]  # of the two that could be read
    for path, source in zip(drawn, given[::2], strict=True):
        square = Image.fromarray(square_of(source, 24, {})[0])
        with Image.open(path) as both:
            assert both.size == (512, 256)
            seen = np.asarray(both.crop((0, 0, 256, 256)))
            looked = np.asarray(both.crop((256, 0, 512, 256)))
        assert np.array_equal(seen, np.asarray(square.resize((256, 256), Image.Resampling.BICUBIC)))
        assert (looked <= seen).all() and looked.mean() < seen.mean()


def test_explanations_are_not_written_among_the_pictures_that_are_classified(best: Path, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    ended = run_here("predict", str(folder), "--model", str(best), "--explain", str(folder / "looked"))
    assert (ended.code, ended.out) == (2, "")
    assert "--explain" in ended.err and str(folder) in ended.err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(("option", "value"), [("--study", "mushrooms"), ("--results", "elsewhere")])
def test_a_study_beside_a_model_is_refused(best: Path, tmp_path: Path, option: str, value: str) -> None:
    ended = run_here("predict", str(tmp_path), "--model", str(best), option, value)
    assert ended.code == 2
    assert f"{option} {value} has no effect with --model" in ended.err
