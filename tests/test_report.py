"""Changes in a data set since its report: named by path, kind by kind."""

import shutil
from pathlib import Path

import pytest
from pictures import class_folders, picture, scanned

from data.catalog import Catalog
from data.report import describe_changes, write_report
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
