"""Tests of the picture sheet."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import sheet
from data.prepare import find_pictures

SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 40 noisy pictures, bluish and reddish; in each, one is flat and one belongs into the other."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    tints = {"blue": (40, 60, 160), "red": (160, 60, 40)}
    for name, other in (("blue", "red"), ("red", "blue")):
        (root / name).mkdir()
        for number in range(40):
            tint = tints[other if number == 20 else name]
            pixels = np.clip(rng.normal(tint, 25, (SIZE + 8, SIZE + 8, 3)), 0, 255)
            if number == 10:
                pixels[:] = tints[name]
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{name}-{number:02}.png")
    return root


def test_pictures_without_contrast_and_of_another_class_are_the_strangest(folder: Path, tmp_path: Path) -> None:
    found = find_pictures(str(folder), cache_dir=tmp_path)
    handle = found.decode([SIZE], cache_dir=tmp_path)
    part = sheet.open_part(handle, SIZE, "train", "validation", "test")
    labels = found.catalog.labels
    strange = sheet.strangeness(part.images, labels)
    for label, name in enumerate(found.catalog.classes):
        positions = np.flatnonzero(labels == label)
        first = positions[np.argsort(-strange[positions])][:2]
        assert {Path(found.catalog.kept[p].path).name for p in first} == {f"{name}-10.png", f"{name}-20.png"}


def test_a_sheet_has_the_pixels_that_the_network_gets(folder: Path, tmp_path: Path) -> None:
    """Every tile is a decoded picture, enlarged threefold without being smoothed, and none is shown twice."""
    found = find_pictures(str(folder), cache_dir=tmp_path)
    handle = found.decode([SIZE], cache_dir=tmp_path)
    drawn = np.asarray(sheet.draw(found.catalog, handle, SIZE))
    images = {picture.tobytes() for picture in sheet.open_part(handle, SIZE, "train", "validation", "test").images}
    side, seen = SIZE * 3, list[bytes]()
    for row in range(2):
        top = row * (sheet.TITLE + side + sheet.LINE + sheet.GAP) + sheet.GAP + sheet.TITLE
        for place in range(sheet.STRANGEST + sheet.ORDINARY):
            left = sheet.GAP + place * (side + sheet.GAP) + 2 * sheet.GAP * (place >= sheet.STRANGEST)
            seen.append(drawn[top : top + side : 3, left : left + side : 3].tobytes())
    assert len(set(seen)) == len(seen)
    assert set(seen) <= images


def test_many_classes_have_fewer_pictures_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "MOST_TILES", 8)
    for label in range(3):
        (tmp_path / "set" / f"class {label}").mkdir(parents=True)
        for number in range(10):
            pixels = np.random.default_rng((label, number)).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / f"class {label}" / f"{number}.png")
    found = find_pictures(str(tmp_path / "set"), cache_dir=tmp_path)
    drawn = sheet.draw(found.catalog, found.decode([SIZE], cache_dir=tmp_path), SIZE)
    assert drawn.width < 3 * (SIZE * 3 + sheet.GAP) * 2  # columns of classes, two pictures each


@pytest.mark.parametrize("text", ["short", "a name that is much too long for its place.png", "", "x" * 300])
def test_a_long_name_keeps_its_beginning_and_end(text: str) -> None:
    font = sheet.ImageFont.load_default(10)
    fitting = sheet._fitting(text, font, 96)  # pyright: ignore[reportPrivateUsage]
    assert font.getlength(fitting) <= 96
    assert fitting == text or (fitting.startswith(text[:3]) and fitting.endswith(text[-3:]))
