"""The page as people use it: pictures through its own input, in Chromium, compared with `predict`."""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import shutil
import struct
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import deep_png, exif_block, picture
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from test_card import HOSTILE, bundle, full
from test_classify_page import make_network

from commands.predictions import answer
from model.evidence import evidence
from model.export.bundle import load, save
from model.network import ModelConfig, MushroomCNN
from model.page.write import page
from model.predict import Classifier
from model.preprocessing import normalise
from model.strangers import find_limit, fit
from tests.stress.chromium import CHROMIUM, DESK, DRIVER, PHONE, chromium, emulate, resize
from tests.stress.classify import differences, give, table

pytestmark = pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="chromium and chromedriver are not on PATH")

LOSSLESS, LOSSY = 1e-5, 0.02
"""Largest difference of a probability from that of `predict`, of formats that every decoder decodes alike, and of JPEG,
AVIF and lossy WebP, whose decoders round differently."""
ORIENTATION = 0x0112
PHOTOS = os.environ.get("STUDY_PHOTOS")
SPREAD = 1.25
"""Standard deviation of a class's logits over pictures."""
REDUCED = ((267, 401), (1003, 701), (1700, 1301))
"""Sizes that Pillow's decoder reduces to a half, a quarter and an eighth."""
BROKEN = ("torn.jpg", "words.png", "stack.tif", "huge.png")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A bundle with its page."""

    folder: Path

    @property
    def address(self) -> str:
        return (self.folder / "classify.html").as_uri()


def sharpen(network: MushroomCNN, side: int) -> None:
    """Change the head so that the answers to pictures differ as those of a well-trained network do.

    The network then takes these pictures for those that it was trained on.
    """
    squares = np.stack([np.asarray(picture(seed, label=seed, width=side, height=side)) for seed in range(40)])
    with torch.no_grad():
        logits = network(normalise(torch.from_numpy(squares)))
        scale = SPREAD / logits.std(dim=0)
        network.head.weight *= scale[:, None]
        network.head.bias.copy_((network.head.bias - logits.mean(dim=0)) * scale)
        features, logits = network.features_and_logits(normalise(torch.from_numpy(squares)))
    classes = network.head.out_features
    labels = torch.arange(len(squares)) % classes
    limit = find_limit(fit(features, labels, classes).measure(features, logits)[None])
    network.familiar = fit(features, labels, classes, limit.usual)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("best")
    one = replace(bundle(results=full(len(HOSTILE))), strangest=1e6)
    network = make_network(one.model, seed=3)
    sharpen(network, one.image_size)
    save(folder, one, network.state_dict())
    (folder / "classify.html").write_text(page(one, network), encoding="utf-8")
    return Exported(folder=folder)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return pictures of every kind that a browser decodes, and real photographs where there are some."""
    folder = tmp_path_factory.mktemp("kinds")
    base, tall = picture(3).resize((641, 427)), picture(4).resize((427, 641))
    grey, seen = base.convert("L"), base.convert("RGBA")
    seen.putalpha(grey)

    def turned(number: int) -> Image.Exif:
        exif = Image.Exif()
        exif[ORIENTATION] = number
        return exif

    base.save(folder / "rgb.png")
    grey.save(folder / "grey.png")
    base.convert("1").save(folder / "bits.png")
    base.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png", transparency=3)
    seen.save(folder / "alpha.png")
    seen.convert("LA").save(folder / "grey alpha.png")
    seen.save(folder / "alpha.webp", lossless=True)
    base.save(folder / "lossy.webp", quality=80)
    base.save(folder / "one.gif")
    base.save(folder / "animated.gif", save_all=True, append_images=[tall])
    base.save(folder / "plain.bmp")
    base.save(folder / "turned.avif", quality=90, exif=turned(6))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    base.save(folder / "profile.png", icc_profile=srgb)
    for number in range(1, 9):
        base.save(folder / f"turned {number}.jpg", quality=92, exif=turned(number))
        tall.save(folder / f"turned {number}.png", exif=turned(number))
        base.save(folder / f"turned {number}.webp", lossless=True, exif=turned(number))
    for width, height in ((61, 900), (17, 20), (64, 64), (900, 65), (64, 300)):
        base.resize((width, height)).save(folder / f"{width} x {height}.png")
    base.convert("CMYK").save(folder / "cmyk.jpg", quality=90)
    base.convert("CMYK").resize(REDUCED[0]).save(folder / "cmyk large.jpg", quality=90)
    grey.save(folder / "grey.jpg")
    base.save(folder / "progressive.jpg", progressive=True)
    base.save(folder / "whole chroma.jpg", subsampling=0)
    for (width, height), sampling, quality in itertools.product(REDUCED, range(3), (60, 90)):
        base.resize((width, height)).save(
            folder / f"reduced {width} x {height}, {sampling}, {quality}.jpg", subsampling=sampling, quality=quality
        )
    grey.resize(REDUCED[1]).save(folder / "grey reduced.jpg", quality=85)
    described = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    base.save(folder / "described.jpg", xmp=described.encode())
    base.save(folder / "described.webp", lossless=True, xmp=described.encode())
    for name, key, text in (
        ("described", "XML:com.adobe.xmp", described),
        ("magick", "Raw profile type exif", f"\nexif\n{len(turned(8).tobytes())}\n{turned(8).tobytes().hex()}\n"),
    ):
        info = PngInfo()
        if name == "magick":
            info.add_text(key, text, zip=True)
        else:
            info.add_itxt(key, text)
        tall.save(folder / f"{name}.png", pnginfo=info)
    base.resize(REDUCED[1]).save(folder / "rgb reduced.jpg", quality=85, keep_rgb=True)
    base.save(folder / "damaged.jpg", exif=b"Exif\0\0" + exif_block([(0x010F, 2, 40, 50_000), (ORIENTATION, 3, 1, 6)]))
    deep, deep_grey = np.asarray(base).astype(np.uint16) * 257, np.asarray(grey).astype(np.uint16) * 257
    (folder / "deep.png").write_bytes(deep_png(deep))
    (folder / "deep grey.png").write_bytes(deep_png(deep_grey))
    (folder / "deep alpha.png").write_bytes(deep_png(np.dstack([deep, deep_grey])))
    if PHOTOS:
        found = sorted(Path(PHOTOS).rglob("*.jpg"))
        for number, path in enumerate(random.Random(0).sample(found, 30)):
            shutil.copy(path, folder / f"photo {number}.jpg")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a Chromium that reaches nothing but files, and saves them in its folder `downloads`."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    downloads = tmp_path_factory.mktemp("downloads")
    with chromium(downloads) as driver:
        driver.downloads = downloads
        yield driver


def errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def test_every_kind_of_picture_has_the_probabilities_of_predict(
    browser: Any, exported: Exported, kinds: list[Path]
) -> None:
    browser.get(exported.address)
    assert give(browser, kinds) == f"{len(kinds)} pictures"
    found = differences(exported.folder, kinds, table(browser))
    lossy = {name for name in found if name.endswith((".jpg", ".avif")) or name == "lossy.webp"}
    assert {name: value for name, value in found.items() if value > (LOSSY if name in lossy else LOSSLESS)} == {}
    assert len(found) == len(kinds) and errors(browser) == []


MADE_SMALLER = """
const [text, by, done] = arguments, bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
(async () => {
  const { parts, stored } = readJpeg(bytes), bitmap = await createImageBitmap(new Blob(parts), AS_STORED);
  const [width, height] = [bitmap.width, bitmap.height].map(length => Math.ceil(length / by));
  return Array.from(readReduced(bitmap, 0, 0, width, height, by, stored));
})().then(done, error => done(String(error)));
"""


def test_a_jpeg_is_made_smaller_as_pillow_makes_it(browser: Any, exported: Exported, kinds: list[Path]) -> None:
    """Nearly all values are the same; where a step of the file is small, some are a level or two off."""
    browser.get(exported.address)
    compared = Counter[int]()
    for path in kinds:
        if "reduced" not in path.name:
            continue
        with Image.open(path) as image:
            by = next(factor for factor in (8, 4, 2) if min(image.size) >= 128 * factor)
            image.draft(None, (image.width // by, image.height // by))
            ours = np.asarray(image.convert("RGB")).astype(int)
        theirs = browser.execute_async_script(MADE_SMALLER, base64.b64encode(path.read_bytes()).decode(), by)
        off = np.abs(np.reshape(theirs, ours.shape) - ours)
        assert off.max() <= 4 and (off > 0).mean() < 0.15, path.name
        compared[by] += 1
    assert compared[2] and compared[4] and compared[8]


def test_nothing_is_requested_but_the_page_and_its_worker(browser: Any, exported: Exported, kinds: list[Path]) -> None:
    browser.get_log("performance")
    browser.get(exported.address)
    give(browser, kinds[:2])
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("blob:", "data:"))] == [exported.address]


def test_where_no_worker_and_no_webassembly_is_allowed_the_answers_are_the_same(
    browser: Any, exported: Exported, kinds: list[Path]
) -> None:
    few = [path for path in kinds if path.suffix == ".png"][:6]
    script = {"source": "delete window.Worker; delete window.WebAssembly"}
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    try:
        browser.get(exported.address)
        assert browser.execute_script("return [typeof Worker, typeof WebAssembly]") == ["undefined"] * 2
        give(browser, few)
        assert max(differences(exported.folder, few, table(browser)).values()) <= LOSSLESS
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_a_file_that_is_no_picture_is_a_line_and_the_others_go_on(
    browser: Any, exported: Exported, kinds: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "torn.jpg").write_bytes(picture(1).tobytes()[:200])
    (tmp_path / "words.png").write_text("a text")
    picture(2).save(tmp_path / "stack.tif")
    header = deep_png(np.zeros((1, 1), dtype=np.uint16))[:16] + struct.pack(">II", 20_000, 10_000)
    (tmp_path / "huge.png").write_bytes(header + bytes([8, 2, 0, 0, 0, 0, 0, 0, 0]))
    browser.get(exported.address)
    assert give(browser, [*(tmp_path / name for name in BROKEN), kinds[0]]) == "1 picture, 4 not read"
    rows = table(browser)
    assert [name for name in BROKEN if rows[name]["error"] and "\n" not in rows[name]["error"]] == list(BROKEN)
    assert "TIFF" in rows["stack.tif"]["error"] and "200 megapixels" in rows["huge.png"]["error"]
    assert rows[kinds[0].name]["error"] == ""


def test_pictures_can_be_removed_and_all_be_started_again(browser: Any, exported: Exported, kinds: list[Path]) -> None:
    browser.get(exported.address)
    give(browser, kinds[:3])
    browser.find_element("css selector", "#cards .remove").click()
    assert browser.find_element("id", "status").text == "2 pictures"
    browser.find_element("id", "again").click()
    assert browser.find_elements("css selector", "#cards li") == []


@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_lies_outside_the_window_and_targets_are_large(
    browser: Any, exported: Exported, kinds: list[Path], width: int, dark: bool
) -> None:
    resize(browser, width)
    emulate(browser, dark=dark)
    browser.get(exported.address)
    give(browser, kinds[:3])
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    small = browser.execute_script(
        "return [...document.querySelectorAll('button, label.button')].filter(e => e.checkVisibility())"
        ".map(e => [e.textContent.trim(), e.getBoundingClientRect()])"
        ".filter(([, r]) => Math.min(r.width, r.height) < 24).map(([text]) => text)"
    )
    assert small == []
    camera = browser.find_element("css selector", "label[for=camera]").is_displayed()
    assert camera == (width == PHONE)


@pytest.mark.parametrize("classes", [2, 1000])
def test_two_classes_and_a_thousand(browser: Any, tmp_path: Path, kinds: list[Path], classes: int) -> None:
    names = tuple(f"class {number}" for number in range(classes))
    one = bundle(names)
    network = make_network(ModelConfig(classes=classes, width=0.25))
    (tmp_path / "classify.html").write_text(page(one, network), encoding="utf-8")
    browser.get((tmp_path / "classify.html").as_uri())
    give(browser, kinds[:1])
    assert len(browser.find_elements("css selector", "#cards .guess")) == min(3, classes)


# -- using it

HAND_OVER = """
const [kind, text, name] = arguments, bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
const transfer = new DataTransfer(), options = { bubbles: true, cancelable: true };
transfer.items.add(new File([bytes], name, { type: "image/png" }));
dispatchEvent(kind === "drop" ? new DragEvent("drop", { ...options, dataTransfer: transfer })
  : new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
"""
HEIGHT = "return document.querySelector('#cards li').getBoundingClientRect().height;"


def hand_over(browser: Any, kind: str, path: Path) -> float:
    """Drop or paste a file; return the height of its card while it waits."""
    return browser.execute_script(HAND_OVER + HEIGHT, kind, base64.b64encode(path.read_bytes()).decode(), path.name)


def wait(browser: Any, said: str) -> None:
    deadline = time.monotonic() + 20
    while browser.find_element("id", "status").text != said:
        assert time.monotonic() < deadline, browser.find_element("id", "status").text
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted_and_its_card_keeps_its_height(
    browser: Any, tmp_path: Path, kinds: list[Path], kind: str
) -> None:
    one = bundle(("Amanita", "Boletus", "Russula"))
    (tmp_path / "classify.html").write_text(page(one, make_network(one.model)), encoding="utf-8")
    browser.get((tmp_path / "classify.html").as_uri())
    waiting = hand_over(browser, kind, kinds[0])
    wait(browser, "1 picture")
    assert list(table(browser)) == [kinds[0].name]
    assert abs(browser.execute_script(HEIGHT) - waiting) <= 1


def test_the_likeliest_class_is_shown_with_its_whole_name(browser: Any, tmp_path: Path, kinds: list[Path]) -> None:
    one = bundle(tuple(f"Hygrocybe acutoconica variety number {number}" for number in range(3)))
    (tmp_path / "classify.html").write_text(page(one, make_network(one.model)), encoding="utf-8")
    browser.get((tmp_path / "classify.html").as_uri())
    give(browser, kinds[:1])
    name = "const name = document.querySelector('#cards .class');"
    fits = f"{name} return name.scrollWidth <= name.clientWidth && name.scrollHeight <= name.clientHeight"
    assert browser.execute_script(fits)


def test_everything_can_be_done_with_the_keyboard(browser: Any, exported: Exported, kinds: list[Path]) -> None:
    browser.get(exported.address)
    give(browser, kinds[:3])
    names = [row.text for row in browser.find_elements("css selector", "#cards h2")]
    guess = browser.find_elements("css selector", "#cards li:first-child .guess")[1]
    guess.send_keys("\n")
    assert guess.get_attribute("aria-pressed") == "true"
    for left in (names[1:], names[2:]):
        browser.find_element("css selector", "#cards .remove").send_keys("\n")
        assert browser.switch_to.active_element.accessible_name == f"Remove {left[0]}"
        assert [row.text for row in browser.find_elements("css selector", "#cards h2")] == left
    browser.switch_to.active_element.send_keys("\n")
    assert browser.switch_to.active_element.get_attribute("id") == "choose"
    assert browser.find_element("id", "spoken").get_attribute("textContent") == "No pictures"


def test_only_the_answers_are_printed(browser: Any, exported: Exported, kinds: list[Path]) -> None:
    browser.get(exported.address)
    give(browser, kinds[:2])
    emulate(browser, media="print")
    try:
        visible = "return [...document.querySelectorAll(arguments[0])].map(e => e.checkVisibility())"
        assert browser.execute_script(visible, "#cards .card, .warning") == [True] * 3
        assert not any(browser.execute_script(visible, "button:not(.guess), .button, details"))
    finally:
        emulate(browser)


def test_a_worker_that_fails_late_is_replaced_by_the_page_itself(
    browser: Any, exported: Exported, kinds: list[Path]
) -> None:
    few = [path for path in kinds if path.suffix == ".png"][:4]
    source = """
      let asked = 0;
      window.Worker = class extends Worker {
        postMessage(message) {
          if (!message.file || ++asked < 3) return super.postMessage(message);
          this.terminate();
          this.onerror(new ErrorEvent("error"));
        }
      };"""
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
    try:
        browser.get(exported.address)
        assert give(browser, few) == "4 pictures"
        assert max(differences(exported.folder, few, table(browser)).values()) <= LOSSLESS
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_the_evidence_of_each_place_is_that_of_the_program(browser: Any, exported: Exported) -> None:
    one, network = load(exported.folder)
    square = np.array(picture(7, width=one.image_size, height=one.image_size))
    browser.get(exported.address)
    theirs = browser.execute_script(
        "const model = JSON.parse(document.getElementById('model').textContent);"
        "const run = makeNetwork(model, new Float32Array(bytesOf(model.numbers).buffer), bytesOf(model.kernel));"
        "const { evidence } = run(Uint8Array.from(arguments[0]));"
        "return model.classes.map((_, label) => [...evidence(label)])",
        square.ravel().tolist(),
    )
    labels = torch.arange(len(one.classes))
    ours = evidence(network, normalise(torch.from_numpy(square)[None]).expand(len(labels), -1, -1, -1), labels)
    np.testing.assert_allclose(theirs, ours.flatten(1), atol=1e-4 * float(ours.abs().max()))


def test_the_strangeness_is_that_of_the_program(browser: Any, exported: Exported) -> None:
    one, network = load(exported.folder)
    side = one.image_size
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    squares = [np.array(picture(seed, width=side, height=side)) for seed in (7, 8)] + [noise, np.zeros_like(noise)]
    browser.get(exported.address)
    theirs = browser.execute_script(
        "const model = JSON.parse(document.getElementById('model').textContent);"
        "const run = makeNetwork(model, new Float32Array(bytesOf(model.numbers).buffer), bytesOf(model.kernel));"
        "return arguments[0].map(square => run(Uint8Array.from(square)).strangeness)",
        [square.ravel().tolist() for square in squares],
    )
    assert network.familiar is not None
    with torch.inference_mode():
        ours = network.familiar(*network.features_and_logits(normalise(torch.from_numpy(np.stack(squares)))))
    torch.testing.assert_close(torch.tensor(theirs), ours, rtol=1e-4, atol=1e-4)


def test_answers_that_are_not_sure_and_strangers_are_marked(
    browser: Any, exported: Exported, kinds: list[Path]
) -> None:
    one, network = load(exported.folder)
    few = [path for path in kinds if path.suffix == ".png"]
    found = list(Classifier.load(exported.folder).predict(few))
    strange, shares = sorted(each.strangeness or 0 for each in found), sorted(each.classes[0][1] for each in found)
    half, most = len(few) // 2, 3 * len(few) // 4
    ruled = replace(one, sure=(shares[half - 1] + shares[half]) / 2, strangest=(strange[most - 1] + strange[most]) / 2)
    address = exported.folder.parent / "ruled.html"
    address.write_text(page(ruled, network), encoding="utf-8")
    browser.get(address.as_uri())
    give(browser, few)
    said = {name: row["answer"] for name, row in table(browser).items()}
    assert said == {
        each.path.name: answer(each) for each in Classifier(ruled, network, torch.device("cpu")).predict(few)
    }
    assert set(said.values()) == {"sure", "not sure", "stranger"}
    lines = browser.execute_script(
        "return [...document.querySelectorAll('.card')].map(e => [e.querySelector('h2').textContent,"
        " e.querySelector('.verdict').textContent.trim()])"
    )
    shown = {"sure": "", "not sure": "Not sure: a guess at best", "stranger": "Unlike anything it has learned"}
    assert dict(lines) == {name: shown[verdict] for name, verdict in said.items()}
    address.write_text(page(replace(one, strangest=None), network), encoding="utf-8")
    browser.get(address.as_uri())
    give(browser, few[:1])
    assert browser.find_elements("class name", "verdict") == []
