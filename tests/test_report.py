"""The report on a data set: what is odd about its files, and what has changed since then, named by path."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import class_folders, deep_folder, exif_block, picture, scanned
from PIL import Image

from data.catalog import Catalog
from data.report import describe_changes, remarks, write_report
from data.split import Split, split


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "pictures", classes=2, each=12)


def read(folder: Path) -> tuple[Catalog, Split]:
    catalog = scanned(folder, folder.parent / "cache")
    return catalog, split(catalog)


@pytest.fixture
def report(folder: Path, tmp_path: Path) -> Path:
    found, parts = read(folder)
    write_report(found, tmp_path / "report.csv", parts)
    return tmp_path / "report.csv"


def test_the_same_pictures_elsewhere_are_no_change(folder: Path, report: Path, tmp_path: Path) -> None:
    assert describe_changes(report, *read(folder)) == ""
    shutil.move(folder, tmp_path / "moved")
    assert describe_changes(report, *read(tmp_path / "moved")) == ""


def test_a_picture_that_is_gone_new_or_changed_is_named(folder: Path, report: Path) -> None:
    (folder / "Agaricus" / "0003.jpg").unlink()
    assert describe_changes(report, *read(folder)) == "1 gone (Agaricus/0003.jpg)"
    picture(500, label=0).save(folder / "Agaricus" / "new.jpg")
    assert describe_changes(report, *read(folder)) == "1 gone (Agaricus/0003.jpg), 1 new (Agaricus/new.jpg)"
    picture(501, label=1).save(folder / "Amanita" / "0007.jpg", quality=40)
    said = describe_changes(report, *read(folder))
    assert said.startswith("1 gone (Agaricus/0003.jpg), 1 new (Agaricus/new.jpg), 1 changed (Amanita/0007.jpg)")


def test_a_moved_picture_is_gone_and_new(folder: Path, report: Path) -> None:
    (folder / "Agaricus" / "0003.jpg").rename(folder / "Amanita" / "moved.jpg")
    assert "1 gone (Agaricus/0003.jpg), 1 new (Amanita/moved.jpg)" in describe_changes(report, *read(folder))


def test_three_of_many_are_named(folder: Path, report: Path) -> None:
    for number in range(5):
        picture(600 + number, label=0).save(folder / "Agaricus" / f"new-{number}.jpg")
    assert describe_changes(report, *read(folder)).startswith(
        "5 new (Agaricus/new-0.jpg, Agaricus/new-1.jpg, Agaricus/new-2.jpg, ...)"
    )


def test_a_picture_that_moved_to_another_part_is_named(folder: Path, report: Path) -> None:
    found, parts = read(folder)
    swapped = Split(train=parts.validation, validation=parts.train, test=parts.test)
    said = describe_changes(report, found, swapped)
    assert said.startswith(f"{len(parts.train) + len(parts.validation)} in another part (")


def test_a_picture_that_is_now_left_out_is_gone(folder: Path, report: Path) -> None:
    (folder / "Amanita" / "0001.jpg").write_bytes(b"no picture")
    assert describe_changes(report, *read(folder)).startswith("1 gone (Amanita/0001.jpg)")


@pytest.mark.parametrize("text", [None, b"", b"\xff\xfe", b"a,b\n1,2\n", b"path,verdict,bytes\nx,kept,3\n"])
def test_a_missing_or_damaged_report_gives_no_changes(text: bytes | None, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.csv"
    if text is not None:
        path.write_bytes(text)
    assert describe_changes(path, *read(folder)) == ""


# --- what is odd


def test_ordinary_pictures_need_no_remark(folder: Path) -> None:
    assert remarks(read(folder)[0]) == []


def test_every_oddity_is_remarked_with_its_count_and_examples(folder: Path, tmp_path: Path) -> None:
    place = folder / "Agaricus"
    for seed in range(4):
        Image.new("RGB", (32, 32), (seed, 90, 9)).save(place / f"flat-{seed}.png")
    images = [picture(700 + number) for number in range(3)]
    images[0].save(place / "pages.tif", save_all=True, append_images=images[1:])
    images[2].save(place / "cut.jpg", exif=b"Exif\0\0" + exif_block([], count=60))
    sideways = exif_block([(0x010F, 2, 40, 50_000), (0x0112, 3, 1, 6)])
    picture(800).save(place / "sideways.jpg", exif=b"Exif\0\0" + sideways)
    ramp = np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)
    ramp[3, 3] = np.inf
    Image.fromarray(ramp).save(place / "infinite.tif")
    Image.fromarray(np.full((32, 32), np.nan, np.float32)).save(place / "nothing.tif")
    found, parts = read(folder)
    said = remarks(found)
    assert said[0].startswith("1 of 33 pictures have more than 8 bits (floats): values from 0 to 1 ")
    for count, word, names in (
        (1, "several pictures", "pages.tif"),
        (5, "a single colour", "flat-0.png, Agaricus/flat-1.png, Agaricus/flat-2.png, ..."),
        (2, "not finite", "infinite.tif, Agaricus/nothing.tif"),
        (1, "damaged metadata (", "cut.jpg"),
        (1, "turned upright", "sideways.jpg"),
    ):
        (line,) = (line for line in said if word in line)
        assert line.startswith(f"{count} of 33: ") and line.endswith(f"(Agaricus/{names})"), line
    assert len(said) == 6
    write_report(found, tmp_path / "report.csv", parts)
    with (tmp_path / "report.csv").open(newline="", encoding="utf-8") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert (rows["pages.tif"]["pages"], rows["infinite.tif"]["values"]) == ("3", "0 to 1")
    assert "single colour" in rows["flat-3.png"]["notes"] and "not finite" in rows["nothing.tif"]["notes"]
    assert (rows["0003.jpg"]["pages"], rows["0003.jpg"]["values"], rows["0003.jpg"]["notes"]) == ("1", "", "")


def test_the_range_is_said_and_what_it_does_to_odd_pictures(tmp_path: Path) -> None:
    """An odd picture in a hundred is clipped; one that is dark in the range of all others has no contrast."""
    root = deep_folder(tmp_path / "deep")
    for number in range(90):
        values = np.asarray(picture(1000 + number).convert("L")).astype(np.uint16) * 16
        Image.fromarray(values).save(root / "Amanita" / f"more-{number}.tif")
    Image.fromarray(values * 16).save(root / "Amanita" / "bright.tif")
    Image.fromarray(values // 512).save(root / "Amanita" / "dark.tif")
    said = remarks(read(root)[0])
    assert said[0].startswith("116 of 118 pictures have more than 8 bits (integers): values from 0 to 4,095 ")
    assert [line.partition(": ")[2] for line in said[1:]] == [
        "a single colour (Amanita/bright.tif, Amanita/dark.tif)",
        "values beyond the range, which are clipped (Amanita/bright.tif)",
    ]
