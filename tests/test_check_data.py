"""Tests of `check-data` as a user calls it; the facts about each file are tested in test_report.py."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from pictures import altered, class_folders, flawed_folder
from PIL import Image
from studies import run_here


@pytest.fixture
def flawed(tmp_path: Path) -> Path:
    return flawed_folder(tmp_path / "flawed")


def test_the_facts_for_programs_are_those_of_the_report(flawed: Path, tmp_path: Path) -> None:
    words = ["check-data", "--data", str(flawed), "--cache", str(tmp_path / "cache"), "--json"]
    ended = run_here(*words, "--report", str(tmp_path / "report.csv"))
    assert (ended.code, ended.err) == (0, "")
    facts = json.loads(ended.out)
    with (tmp_path / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if row["verdict"] == "kept"]
    assert facts["pictures"] == len(kept)
    assert facts["modes"] == Counter(row["mode"] for row in kept)
    assert facts["left_out"] == Counter(row["verdict"] for row in rows if row["verdict"] != "kept")
    assert facts["sizes"]["long_side"]["most"] == max(max(int(row["width"]), int(row["height"])) for row in kept)
    for one in facts["classes"]:
        split = Counter(row["split"] for row in kept if row["class"] == one["name"])
        assert {part: one[part] for part in ("train", "validation", "test")} == split
    assert any("Boletus/stereo.mpo" in line for line in facts["remarks"])
    assert facts["ranges"] == {"integers": [0, 65535]}  # Amanita/sixteen-bit.png
    assert facts["studies"]["quick"]["image_sizes"][-1] == 48


def test_look_alikes_are_facts_with_examples(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", size=96)
    altered(Image.open(root / "Boletus" / "0002.jpg"))[0].save(root / "Boletus" / "near.jpg")
    words = ["check-data", "--data", str(root), "--cache", str(tmp_path / "cache"), "--json"]
    group, keep = (json.loads(run_here(*words, "--near-duplicates", way).out) for way in ("group", "keep"))
    assert group["near_duplicates"]["groups"] == 1
    assert group["near_duplicates"]["pictures"] == 2
    assert {*group["near_duplicates"]["examples"][0]} == {"Boletus/0002.jpg", "Boletus/near.jpg"}
    assert keep["near_duplicates"]["groups"] == 0
    assert group["pictures"] == keep["pictures"] == 37


def test_the_facts_of_data_that_are_refused_have_the_error(flawed: Path, tmp_path: Path) -> None:
    for file in (flawed / "Agaricus").glob("*.jpg"):
        file.write_bytes(b"torn")
    ended = run_here("check-data", "--data", str(flawed), "--cache", str(tmp_path / "cache"), "--json")
    facts = json.loads(ended.out)
    assert ended.code == 2
    assert ended.err == f"error: {facts['error']}\n"
    assert "Agaricus" in facts["error"]
    assert {one["name"]: one["pictures"] for one in facts["classes"]}["Boletus"] == 15


def test_a_sheet_is_a_picture_of_the_classes(flawed: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "new" / "sheet.png"
    words = ["check-data", "--data", str(flawed), "--cache", str(tmp_path / "cache"), "--sheet", str(sheet)]
    ended = run_here(*words)
    assert (ended.code, ended.err) == (0, "")
    assert str(sheet) in ended.out
    with Image.open(sheet) as drawn:
        assert drawn.format == "PNG"
        assert drawn.height > 3 * 96  # a row for each of the three classes


def test_a_sheet_that_cannot_be_written_is_an_error_in_one_line(flawed: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sheet = tmp_path / "file" / "sheet.png"
    words = ["check-data", "--data", str(flawed), "--cache", str(tmp_path / "cache"), "--sheet", str(sheet)]
    ended = run_here(*words)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert str(sheet) in ended.err
