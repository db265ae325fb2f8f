"""The exported formats: each computes what the network computes, and only a proven bundle takes its place."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import class_folders, deep_png, exif_block, picture
from PIL import Image

from model.export import formats
from model.export.bundle import CONFIG, FORMAT, WEIGHTS, Bundle, BundleError, load, save, verify
from model.export.formats import (
    CARD,
    EARLIER,
    ONNX,
    PAGE,
    PREPROCESSING,
    SOME,
    TOLERANCE,
    TORCH,
    Deployed,
    Published,
    compare,
    publish,
)
from model.network import ModelConfig, MushroomCNN
from model.predict import Classifier, pictures_in, square_of
from model.preprocessing import normalise

ROOT = Path(__file__).parents[1]
MODEL = ModelConfig(classes=3, width=0.25, stride_pattern="early", dilation_pattern="progressive", pooling="avg+max")
BUNDLE = Bundle(
    model=MODEL,
    classes=("Agaricus", '"Über" | <b>', "キノコ\n2"),
    image_size=32,
    temperature=1.7,
    ranges={"integers": [0, 4095]},
    provenance={"study": "tiny", "trial": 3},
    results=None,
)


@dataclass
class Exported:
    """One published bundle for all tests of this file: an export takes seconds."""

    published: Published
    network: MushroomCNN
    check: np.ndarray
    home: Path

    @property
    def folder(self) -> Path:
        return self.published.folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    home = tmp_path_factory.mktemp("study")
    paths = list(pictures_in([class_folders(home / "pictures", each=8, size=48)]))
    check = np.stack([square_of(path, BUNDLE.image_size, BUNDLE.ranges)[0] for path in paths])
    network = trained(check, torch.arange(3).repeat_interleave(8))
    published = publish(home / "best", BUNDLE, network.state_dict(), check)
    return Exported(published=published, network=network.eval(), check=check, home=home)


def trained(pictures: np.ndarray, labels: torch.Tensor) -> MushroomCNN:
    """Return a network whose logits are far apart, as after a finished training."""
    torch.manual_seed(0)
    network = MushroomCNN(MODEL).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(network(normalise(torch.from_numpy(pictures))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def failing(target: Path) -> str:
    """Return the error of publishing weights that cannot be exported; quick, as no exporter runs."""
    weights = MushroomCNN(MODEL).state_dict()
    weights["head.bias"][0] = float("nan")
    with pytest.raises(BundleError) as raised:
        publish(target, BUNDLE, weights, np.zeros((1, 32, 32, 3), dtype=np.uint8))
    assert str(raised.value).isprintable()
    return str(raised.value)


# What is published


def test_the_folder_is_whole(exported: Exported) -> None:
    assert (
        {path.name for path in exported.folder.iterdir()}
        == formats.NAMES
        == {CONFIG, WEIGHTS, TORCH, ONNX, PAGE, CARD, PREPROCESSING}
    )
    verify(exported.folder)
    assert load(exported.folder)[0] == BUNDLE
    assert exported.published.sizes == {path.name: path.stat().st_size for path in exported.folder.iterdir()}


def test_nothing_is_left_beside_it(exported: Exported) -> None:
    assert {path.name for path in exported.home.iterdir()} == {"best", "pictures"}


def test_every_format_was_compared_at_three_batch_sizes(exported: Exported) -> None:
    assert exported.published.parity.keys() == {WEIGHTS, TORCH, ONNX, PAGE}
    for parity in exported.published.parity.values():
        assert (parity.pictures, parity.batch_sizes) == (24, (1, SOME, 24))
        assert 0 <= parity.probability <= parity.log_probability <= TOLERANCE
        assert parity.disagreements == 0


def test_the_latency_is_measured_and_is_in_the_card(exported: Exported) -> None:
    latency = exported.published.latency
    assert 0 < latency.low <= latency.median <= latency.high < 10_000
    assert f"{latency.median:.2f} ms per picture" in (exported.folder / CARD).read_text(encoding="utf-8")


def test_the_formats_agree_with_the_network_here_too(exported: Exported) -> None:
    graph = torch.export.load(exported.folder / TORCH).module()
    session = onnxruntime.InferenceSession(exported.folder / ONNX, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 24):
        pictures = torch.from_numpy(exported.check[:batch])
        with torch.inference_mode():
            eager = torch.softmax(exported.network(normalise(pictures)) / BUNDLE.temperature, dim=1).numpy()
            np.testing.assert_allclose(graph(pictures).numpy(), eager, atol=1e-5)
        answers = session.run(["probabilities"], {"pictures": pictures.numpy()})[0]
        np.testing.assert_allclose(answers, eager, atol=1e-5)
        assert answers.dtype == np.float32
    assert eager.max() > 0.9  # the network is sure of something


def test_deployed_is_the_network_between_normalisation_and_temperature(exported: Exported) -> None:
    pictures = torch.from_numpy(exported.check)
    with torch.inference_mode():
        probabilities = Deployed(exported.network, 1.7)(pictures)
        assert torch.equal(probabilities, torch.softmax(exported.network(normalise(pictures)) / 1.7, dim=1))
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(24))


def test_the_onnx_file_says_what_it_is(exported: Exported) -> None:
    model = onnx.load(exported.folder / ONNX)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18}
    (taken,), (given,) = model.graph.input, model.graph.output
    assert (taken.name, given.name) == ("pictures", "probabilities")
    assert "central square" in taken.doc_string
    shape = [dim.dim_param or dim.dim_value for dim in taken.type.tensor_type.shape.dim]
    assert shape == ["n", 32, 32, 3]
    noted = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(noted["classes"]) == list(BUNDLE.classes)
    assert json.loads(noted["ranges"]) == BUNDLE.ranges
    assert (noted["format"], noted["image_size"]) == (FORMAT, "32")


def test_no_file_tells_where_it_was_made(exported: Exported) -> None:
    for path in exported.folder.iterdir():
        content = path.read_bytes()
        for place in (ROOT, exported.home, Path(torch.__file__).parent):
            assert os.fsencode(place) not in content, path.name


def odd_pictures(folder: Path) -> list[Path]:
    """Write pictures that differ in every way that the data path accepts."""
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn = picture(5, label=1, width=120, height=90)
    grey = np.asarray(drawn.convert("L")).astype(np.uint16)
    mask = Image.fromarray(np.tile(np.arange(120, dtype=np.uint8) * 2, (90, 1)))
    see_through = drawn.copy()
    see_through.putalpha(mask)
    picture(5, label=1, width=640, height=427).save(folder / "large, on its side.jpg", exif=exif)
    damaged = b"Exif\0\0" + exif_block([(0x010F, 2, 40, 50_000), (0x0112, 3, 1, 6)])
    drawn.save(folder / "on its side, damaged metadata.jpg", exif=damaged)
    drawn.convert("L").save(folder / "grey.png")
    drawn.convert("CMYK").save(folder / "cmyk.jpg")
    drawn.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png", transparency=0)
    see_through.save(folder / "transparent.webp", lossless=True)
    drawn.save(folder / "animated.gif", save_all=True, append_images=[drawn.rotate(180)])
    Image.fromarray(grey * 16).save(folder / "12 of 16 bits.tif")
    (folder / "12 of 16 bits, colour.png").write_bytes(deep_png(np.asarray(drawn).astype(np.uint16) * 16))
    Image.fromarray((grey / 300).astype(np.float32)).save(folder / "floats.tif")
    return sorted(folder.iterdir())


EACH = """
import shutil, sys
for name in ("torch", "model", "safetensors", "onnx"):
    sys.modules[name] = None
program, taken, *names = sys.argv[1:]
for name in names:
    shutil.copy(name, taken)
    exec(program)
"""


@pytest.mark.parametrize(("page", "taken"), [("README.md", "mushroom.jpg"), (CARD, "picture.jpg")])
def test_the_printed_programs_for_onnxruntime_say_what_predict_says(
    page: str, taken: str, exported: Exported, tmp_path: Path
) -> None:
    """Runs the code of README and card as it is printed, without torch, on pictures of every kind."""
    text = ((exported.folder if taken == "picture.jpg" else ROOT) / page).read_text(encoding="utf-8")
    (program,) = (code for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "onnx" in code)
    assert len([line for line in program.splitlines() if line]) <= 10
    place = tmp_path / "elsewhere"
    shutil.copytree(exported.folder, place)
    pictures = odd_pictures(tmp_path / "odd")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EACH, program, taken, *map(str, pictures)],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    answers = set()
    for line, expected in zip(lines, Classifier.load(exported.folder).predict(pictures), strict=True):
        name, probability = expected.classes[0]
        assert repr(name) in line, expected.path
        assert float(re.findall(r"\d\.\d+(?:e-\d+)?", line)[0]) == pytest.approx(probability, abs=1e-5), expected.path
        answers.add(round(probability, 4))
    assert len(answers) > 5  # pictures that look different


MODES = {"1": "png", "L": "png", "LA": "png", "P": "gif", "RGB": "bmp", "RGBA": "webp", "CMYK": "tif", "YCbCr": "jpg",
         "I;16": "png", "I": "tif", "F": "tif"}  # fmt: skip
"""Modes of pictures, each with a format that stores it."""


@settings(max_examples=60)
@given(
    mode=st.sampled_from(list(MODES)),
    sides=st.tuples(st.integers(16, 300), st.integers(16, 300)),
    values=st.floats(0.0, 5000.0),
    turned=st.integers(1, 8),
)
def test_the_bundles_own_preprocessing_sees_any_picture_as_predict_does(
    exported: Exported, mode: str, sides: tuple[int, int], values: float, turned: int
) -> None:
    rows = np.random.default_rng(sides).random((sides[1], sides[0]))
    if mode in ("I;16", "I", "F"):
        drawn = Image.fromarray((rows * values).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    else:
        drawn = Image.fromarray((rows * 255).astype(np.uint8)).convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = turned
    path = exported.home / f"generated.{MODES[mode]}"
    drawn.save(path, **({} if path.suffix in (".gif", ".bmp") else {"exif": exif}))
    spec = importlib.util.spec_from_file_location("bundled", exported.folder / "preprocessing.py")
    assert spec is not None and spec.loader is not None
    bundled = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bundled)
    with path.open("rb") as file:
        square = bundled.load_square(file, BUNDLE.image_size, BUNDLE.ranges)
    assert np.array_equal(square, square_of(path, BUNDLE.image_size, BUNDLE.ranges)[0])


# What is refused


@pytest.mark.parametrize("wrong", [np.nan, 0.3])
def test_one_wrong_number_is_enough(exported: Exported, wrong: float) -> None:
    with torch.inference_mode():
        eager = Deployed(exported.network, BUNDLE.temperature)(torch.from_numpy(exported.check[:4])).numpy()
    answers = np.stack([eager, eager])
    assert formats._parity(Path("x"), eager, answers, (1, 4)).log_probability == 0
    answers[1, 3, 0] = wrong
    with pytest.raises(BundleError, match=r"export x .*differs .*more than 0\.0001"):
        formats._parity(Path("x"), eager, answers, (1, 4))


def test_a_reader_that_fails_is_quoted(tmp_path: Path) -> None:
    (tmp_path / ONNX).write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"cannot export .*model\.onnx .*InvalidProtobuf"):
        formats._python(formats._READERS[ONNX], tmp_path / ONNX, tmp_path, tmp_path, 1)


def test_a_fresh_process_finds_the_program_where_it_is_not_installed(tmp_path: Path) -> None:
    report = "import sys, model; open(sys.argv[1], 'w').write(f'{sys.path[1]}|{model.__file__}')"
    formats._python(report, tmp_path / "found")
    assert (tmp_path / "found").read_text() == f"{ROOT}|{ROOT / 'model' / '__init__.py'}"


WRONG = [np.zeros((2, 31, 32, 3), np.uint8), np.zeros((2, 32, 32, 3)), np.zeros((0, 32, 32, 3), np.uint8)]


@pytest.mark.parametrize("check", WRONG)
def test_check_pictures_of_the_wrong_kind(check: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape("`check` must be uint8 (n >= 1, (32, 32, 3)), but is")):
        compare(tmp_path, BUNDLE, MushroomCNN(MODEL), check)


# The place


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """Make an earlier bundle at `best`; two files are enough to test what publishing does around the exporters."""
    target = tmp_path / "best"
    target.mkdir()
    save(target, replace(BUNDLE, temperature=1.0), MushroomCNN(MODEL).state_dict())
    return target


def test_a_failure_leaves_the_earlier_bundle_and_nothing_else(earlier: Path) -> None:
    before = {path.name: path.read_bytes() for path in earlier.iterdir()}
    assert "head.bias has NaN" in failing(earlier)
    assert {path.name: path.read_bytes() for path in earlier.iterdir()} == before
    assert [path.name for path in earlier.parent.iterdir()] == ["best"]


def test_a_failure_leaves_nothing_where_there_was_nothing(tmp_path: Path) -> None:
    failing(tmp_path / "study" / "best")
    assert list((tmp_path / "study").iterdir()) == []


def test_the_new_bundle_replaces_the_earlier_one(earlier: Path) -> None:
    new = earlier.with_name(".best.1")
    new.mkdir()
    save(new, BUNDLE, MushroomCNN(MODEL).state_dict())
    formats._swap(new, earlier)
    assert load(earlier)[0] == BUNDLE
    assert [path.name for path in earlier.parent.iterdir()] == ["best"]


def test_a_swap_that_fails_half_way_is_undone(earlier: Path) -> None:
    with pytest.raises(FileNotFoundError):
        formats._swap(earlier.with_name(".best.1"), earlier)
    assert load(earlier)[0].temperature == 1.0
    assert [path.name for path in earlier.parent.iterdir()] == ["best"]


def test_killed_between_the_two_renames_the_earlier_one_comes_back(earlier: Path) -> None:
    earlier.rename(earlier.with_name(".best.old"))
    failing(earlier)
    assert load(earlier)[0].temperature == 1.0
    assert [path.name for path in earlier.parent.iterdir()] == ["best"]


def test_killed_before_the_earlier_one_was_removed_the_new_one_stays(earlier: Path) -> None:
    shutil.copytree(earlier, earlier.with_name(".best.old"))
    save(earlier, BUNDLE, MushroomCNN(MODEL).state_dict())
    failing(earlier)
    assert load(earlier)[0] == BUNDLE
    assert [path.name for path in earlier.parent.iterdir()] == ["best"]


def test_what_killed_processes_left_is_removed_after_an_hour(earlier: Path) -> None:
    left, young, not_ours = (earlier.with_name(name) for name in (".best.123", ".best.124", ".best.notes"))
    for place in (left, young, not_ours):
        place.mkdir()
    long_ago = time.time() - formats.ABANDONED - 60
    for place in (left, not_ours):
        os.utime(place, (long_ago, long_ago))
    failing(earlier)
    assert {path.name for path in earlier.parent.iterdir()} == {"best", ".best.124", ".best.notes"}


def test_a_folder_of_something_else_is_never_replaced(earlier: Path) -> None:
    (earlier / "diary.txt").write_text("found under birches")
    message = failing(earlier)
    assert f"cannot replace {earlier} (it holds 'diary.txt'" in message
    assert (earlier / "diary.txt").exists()
    (earlier.parent / "file").touch()
    assert f"cannot replace {earlier.parent / 'file'} (it is a file)" in failing(earlier.parent / "file")


def test_a_bundle_of_an_earlier_version_may_be_replaced(earlier: Path) -> None:
    for name in EARLIER:
        (earlier / name).touch()
    assert "head.bias has NaN" in failing(earlier)  # refused for its weights, not for its place


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = failing(tmp_path / "file" / "best")
    assert f"cannot write {tmp_path / 'file' / 'best'}" in message
    assert f"allow writing to {tmp_path / 'file'}" in message


def test_a_process_that_never_answers_is_terminated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "STRANGER_SECONDS", 0.5)
    with pytest.raises(BundleError, match=r"model\.onnx .*more than 0\.5 s"):
        formats._python("import time; time.sleep(600)", Path("model.onnx"))
