"""Doubted labels: found by networks that were not trained on them, and shown in the report, CSV and on the screen.

The same study shows where its winner looked on the test set.
"""

from __future__ import annotations

import base64
import csv
import io
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import NAMES, class_folders
from PIL import Image
from studies import TINY, Tiny, run_here, steady_threads

from data.cache import open_part
from data.prepare import find_pictures
from model.preprocessing import normalise
from reporting import spotlights
from reporting.gallery import CAPTION, GAP
from search_space import Config
from selection import doubts
from selection.retraining import Winner, load_network

EACH, PLANTED = 80, 0.12
"""Pictures of each class, and the share of them that get a wrong label."""
FINALISTS, SEEDS = 1, 3


@given(st.integers(1, 3), st.integers(1, 20), st.integers(2, 5), st.integers(0, 2**31))
@settings(max_examples=40)
def test_the_least_probable_label_comes_first(networks: int, pictures: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(networks, pictures, classes, generator=generator).softmax(dim=2)
    labels = torch.randint(classes, (pictures,), generator=generator)
    places = doubts.order(probabilities, labels)
    shares = [float(probabilities[:, place, labels[place]].mean()) for place in places]
    assert sorted(places) == list(range(pictures))
    assert shares == pytest.approx(sorted(shares))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, set[str]]:
    """Return a study that was retrained, and the paths of the pictures whose label is wrong."""
    folder = tmp_path_factory.mktemp("planted")
    root = class_folders(folder / "tiny", classes=3, each=EACH, size=32)
    chance, wrong = random.Random(0), set[str]()
    for path in sorted(root.rglob("*.jpg")):
        if chance.random() < PLANTED:
            others = [name for name in NAMES[:3] if name != path.parent.name]
            moved = root / chance.choice(others) / f"{path.parent.name} {path.name}"
            path.rename(moved)
            wrong.add(moved.relative_to(root).as_posix())
    pictures = find_pictures(str(root), cache_dir=folder / "cache")
    data = pictures.decode(TINY.sizes, cache_dir=folder / "cache")
    study = Tiny(folder=root, pictures=pictures, data=data, results=folder / "results")
    runs = ("--finalists", str(FINALISTS), "--seeds", str(SEEDS), "--longer", "1")
    said: list[str] = []
    with steady_threads():
        for argv in (
            study.arguments("--trials", "3", "--workers", "1", "--epochs", "5"),
            study.after("retrain", "--workers", "1", *runs),
            ["report", "--results", str(study.results)],
        ):
            finished = run_here(*argv)
            assert finished.code == 0, finished.err
            said.append(finished.out)
    against = sum(row["likeliest"] != row["label"] for row in rows(study))
    assert f"listed in {study.study_folder / doubts.FILE}" in said[1]
    assert f"for {against} of {len(rows(study))} validation pictures" in said[1]
    return study, wrong


def rows(study: Tiny) -> list[dict[str, str]]:
    with (study.study_folder / doubts.FILE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_half_of_the_planted_labels_are_in_the_first_tenth(planted: tuple[Tiny, set[str]]) -> None:
    study, wrong = planted
    catalog, split = study.pictures.catalog, study.pictures.split
    validation = {catalog.file(catalog.kept[place]).relative_to(study.folder).as_posix() for place in split.validation}
    listed = [row["path"] for row in rows(study)]
    assert set(listed) == validation and len(listed) == len(validation)
    bad = wrong & validation
    assert len(bad) >= 3
    assert len(bad & set(listed[: len(listed) // 10])) >= min(len(bad), len(listed) // 10) / 2


def test_a_row_says_what_the_networks_think_together(planted: tuple[Tiny, set[str]]) -> None:
    study, _ = planted
    found = rows(study)
    shares = [float(row["label_probability"]) for row in found]
    assert shares == sorted(shares) and all(0 <= share <= 1 for share in shares)
    for row in found:
        assert row["label"] == row["path"].partition("/")[0]
        assert int(row["networks"]) == FINALISTS * SEEDS >= int(row["networks_against"])
        assert (row["likeliest"] == row["label"]) == (row["likeliest_probability"] == row["label_probability"])


def test_the_report_shows_the_doubted_labels_with_thumbnails(planted: tuple[Tiny, set[str]]) -> None:
    study, _ = planted
    page = (study.study_folder / "report.html").read_text(encoding="utf-8")
    doubted = [row for row in rows(study) if row["likeliest"] != row["label"]]
    assert doubted and doubted[0]["path"] in page
    with Image.open(study.study_folder / doubts.GALLERY) as sheet:
        assert sheet.format == "JPEG" and sheet.width > sheet.height / 2
    assert base64.b64encode((study.study_folder / doubts.GALLERY).read_bytes()).decode() in page


def test_the_report_shows_where_the_tested_network_looked(planted: tuple[Tiny, set[str]]) -> None:
    """The pictures of the sheet are found again, and a slow loop says which of them the network gets wrong."""
    study, _ = planted
    winner = Winner.load(study.study_folder)
    assert winner is not None and winner.results is not None
    network = load_network(Config.from_dict(winner.config), study.study_folder / winner.weights).eval()
    part = open_part(study.data, 32, "test")
    with torch.inference_mode():
        answers = [int(network(normalise(torch.from_numpy(part.images[[one]]))).argmax()) for one in part.indices]
    is_wrong = [answer != label for answer, label in zip(answers, part.labels, strict=True)]
    counts = [min(sum(is_wrong), spotlights.SHOWN), min(len(is_wrong) - sum(is_wrong), spotlights.SHOWN)]
    sheet_bytes = (study.study_folder / spotlights.FILE).read_bytes()
    with Image.open(io.BytesIO(sheet_bytes)) as sheet:
        drawn = np.asarray(sheet, dtype=float)
    side, columns = spotlights.SIDE, spotlights.COLUMNS
    squares = [
        np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC), dtype=float)
        for one in part.images[part.indices]
    ]
    top = GAP
    for wrong, count in zip((True, False), counts, strict=True):
        found: set[int] = set()
        for tile in range(count):
            row, left = (
                top + tile // columns * (side + CAPTION + GAP) + CAPTION,
                GAP + tile % columns * (2 * side + GAP),
            )
            seen, lit = (drawn[row : row + side, start : start + side] for start in (left, left + side))
            place = int(np.argmin([np.abs(seen - square).mean() for square in squares]))
            assert is_wrong[place] == wrong
            assert lit.mean() < seen.mean()
            found.add(place)
        assert len(found) == count > 0
        top += -(-count // columns) * (side + CAPTION + GAP)
    assert drawn.shape == (top, columns * (2 * side + GAP) + GAP, 3)
    page = (study.study_folder / "report.html").read_text(encoding="utf-8")
    assert base64.b64encode(sheet_bytes).decode() in page
