"""The catalog: duplicates and conflicts, official parts, data sets that cannot be used, subsets and the report."""

import csv
import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from pictures import (
    NAMES,
    altered,
    by_path,
    class_folders,
    deep_folder,
    exif_block,
    flawed_folder,
    large_catalog,
    picture,
    scanned,
)
from PIL import Image

from data import DataError, NearDuplicates
from data.catalog import Catalog, scan
from data.file_checks import Verdict
from data.findings import look_alikes
from data.report import write_report
from data.sources import resolve
from data.split import PART_SHARES, split


@pytest.fixture(scope="module")
def flawed(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("flawed")
    return scanned(flawed_folder(folder / "set"), folder / "cache")


def test_the_counts_add_up_and_show_the_empty_class(flawed: Catalog):
    assert flawed.classes == NAMES[:3] and flawed.empty == ("Empty",)
    counts = flawed.counts()
    assert sum(sum(row.values()) for row in counts.values()) == len(flawed.pictures)
    assert not any(counts["Empty"].values()) and counts["Agaricus"][Verdict.CONFLICT] == 1


def test_reasons_name_the_other_file(flawed: Catalog):
    files = by_path(flawed)
    assert files["Agaricus/again.jpg"].reason == "same bytes as Agaricus/0000.jpg"
    assert files["Agaricus/in-two-classes.jpg"].reason.endswith("Amanita/in-two-classes-too.jpg")
    assert files["Boletus/small.png"].reason == "15 x 40 pixels, the shorter side must be at least 16"


def test_three_copies_in_two_classes_are_all_left_out(tmp_path: Path):
    root = class_folders(tmp_path / "set")
    content = (root / "Agaricus" / "0000.jpg").read_bytes()
    for path in ("Agaricus/b.jpg", "Boletus/c.jpg"):
        (root / path).write_bytes(content)
    files = by_path(scanned(root, tmp_path / "cache"))
    assert {files[p].verdict for p in ("Agaricus/0000.jpg", "Agaricus/b.jpg", "Boletus/c.jpg")} == {Verdict.CONFLICT}


def test_renaming_files_changes_neither_order_nor_fingerprint(tmp_path: Path):
    root = class_folders(tmp_path / "set")
    before = scanned(root, tmp_path / "cache")
    (root / "Amanita" / "0000.jpg").rename(root / "Amanita" / "zzz.JPEG")
    after = scanned(root, tmp_path / "cache")
    assert before.fingerprint == after.fingerprint
    assert [p.content_hash for p in before.kept] == [p.content_hash for p in after.kept]
    assert before.labels.dtype == np.int64 and np.array_equal(before.labels, np.repeat([0, 1, 2], 12))


def plain_fingerprint(catalog: Catalog) -> str:
    """Return the fingerprint as it was before files were read in new ways."""
    digest = hashlib.blake2b(b"1", digest_size=16)
    rows = [(p.label, p.content_hash, p.part, p.group) for p in catalog.kept]
    for row in (catalog.classes, *rows):
        digest.update("\0".join(row).encode() + b"\n")
    return digest.hexdigest()


def test_only_what_is_read_in_a_new_way_has_a_new_fingerprint(tmp_path: Path):
    root = class_folders(tmp_path / "set")
    before = scanned(root, tmp_path / "cache")
    assert before.fingerprint == plain_fingerprint(before) and before.ranges == {}
    exif = exif_block([(0x010F, 2, 40, 50_000), (0x0112, 3, 1, 6)])
    picture(500).save(root / "Amanita" / "sideways.jpg", exif=b"Exif\0\0" + exif)
    turned = scanned(root, tmp_path / "cache")
    assert turned.fingerprint != plain_fingerprint(turned)
    (root / "Amanita" / "sideways.jpg").unlink()
    picture(500).convert("CMYK").save(root / "Amanita" / "print.jpg")
    whole = scanned(root, tmp_path / "cache")
    assert whole.fingerprint != plain_fingerprint(whole)
    deep = scanned(deep_folder(tmp_path / "deep"), tmp_path / "cache")
    assert deep.ranges == {"integers": [0, 4095]} and deep.fingerprint != plain_fingerprint(deep)


def test_a_subset_has_the_range_of_the_whole(tmp_path: Path):
    root = deep_folder(tmp_path / "deep")
    for number in range(3):
        Image.fromarray(np.asarray(picture(number).convert("L")).astype(np.uint16) * 200).save(
            root / "Amanita" / f"bright-{number}.tif"
        )
    whole = scanned(root, tmp_path / "cache")
    parts = [whole.limited(number) for number in (20, 21, 22, 23)]
    assert whole.ranges == {"integers": [0, 65535]} == parts[0].ranges
    assert any(not {p.path for p in part.kept} >= {"Amanita/bright-0.tif", "Amanita/bright-1.tif"} for part in parts)


def test_near_duplicates_are_kept_and_grouped_unless_the_user_says_otherwise(tmp_path: Path):
    root = class_folders(tmp_path / "set", size=96)
    plain = {way: found_in(root, tmp_path, way) for way in get_args(NearDuplicates)}
    assert plain["group"].fingerprint == plain["keep"].fingerprint  # nothing looks alike yet
    altered(Image.open(root / "Boletus" / "0002.jpg"))[0].save(root / "Boletus" / "near.jpg")
    both = {way: found_in(root, tmp_path, way) for way in get_args(NearDuplicates)}
    assert {way: len({p.group for p in found.kept}) for way, found in both.items()} == {"group": 36, "keep": 37}
    assert both["group"].fingerprint != both["keep"].fingerprint
    assert all(p.group == p.content_hash for p in both["keep"].kept)


def found_in(root: Path, tmp_path: Path, near_duplicates: NearDuplicates) -> Catalog:
    source = resolve(str(root), cache_dir=tmp_path, pictures=None)
    return scan(source, near_duplicates=near_duplicates, cache_dir=tmp_path)


def test_copies_in_official_parts_leave_the_test_part_whole(tmp_path: Path):
    train, test = tmp_path / "set" / "train", tmp_path / "set" / "test"
    class_folders(train, each=20, size=96)
    for label, name in enumerate(NAMES[:3]):
        (test / name).mkdir(parents=True)
        for seed in range(3):
            picture(700 + seed, label=label, width=96, height=96).save(test / name / f"t{seed}.jpg")
    exact = (test / "Amanita" / "t0.jpg").read_bytes()
    (train / "Amanita" / "exact.jpg").write_bytes(exact)
    (train / "Boletus" / "mislabelled.jpg").write_bytes((test / "Agaricus" / "t1.jpg").read_bytes())
    altered(Image.open(test / "Boletus" / "t2.jpg"))[0].save(train / "Boletus" / "near.jpg")
    catalog = scanned(tmp_path / "set", tmp_path / "cache")
    out = {p.path: (p.verdict, p.reason) for p in catalog.pictures if p.verdict is not Verdict.KEPT}
    assert out == {
        "Amanita/exact.jpg": (Verdict.DUPLICATE, "same bytes as test: Amanita/t0.jpg"),
        "Boletus/mislabelled.jpg": (Verdict.CONFLICT, "same bytes in another class: test: Agaricus/t1.jpg"),
    }
    (leak,) = look_alikes(catalog).leaks
    assert [(p.part, p.path) for p in leak] == [("train", "Boletus/near.jpg"), ("test", "Boletus/t2.jpg")]
    parts = split(catalog)
    assert {catalog.kept[p].part for p in parts.test} == {"test"} and len(parts.test) == 9
    assert {catalog.kept[p].part for p in [*parts.train, *parts.validation]} == {"train"}
    assert {catalog.kept[p].label for p in parts.validation} == set(NAMES[:3])


# --- data sets that cannot be used ---


def test_a_class_with_too_few_kept_pictures_is_an_error_with_all_counts(tmp_path: Path):
    root = class_folders(tmp_path / "set")
    for seed in range(8):
        (root / "Amanita" / f"{seed:04d}.jpg").write_bytes(b"torn")
    with pytest.raises(DataError) as caught:
        scanned(root, tmp_path / "cache")
    text = str(caught.value)
    assert "'Amanita'" in text and str(root) in text and "(4, but needs at least 10;" in text
    assert "4 kept, 8 unreadable" in text and "Agaricus 12, Amanita 4, Boletus 12" in text


def test_one_class_with_pictures_is_an_error(tmp_path: Path):
    root = class_folders(tmp_path / "set", classes=1)
    (root / "Empty").mkdir()
    with pytest.raises(DataError, match=r"set has pictures only in 'Agaricus'.* 2 classes"):
        scanned(root, tmp_path / "cache")


def test_an_official_part_without_a_class_is_an_error(tmp_path: Path):
    root, test = class_folders(tmp_path / "set"), class_folders(tmp_path / "official", classes=2, each=3)
    (test / "Boletus").mkdir()
    with pytest.raises(DataError, match=r"official has no .* of 'Boletus'"):
        scanned(root, tmp_path / "cache", test)


# --- subsets ---


def test_a_subset_too_small_for_its_classes_is_an_error():
    with pytest.raises(DataError, match=r"^29 pictures .*3 classes .* 10 .* 30 in all.*--pictures"):
        large_catalog(100).limited(29)


def test_a_subset_takes_different_pictures_before_copies():
    catalog = large_catalog(90)
    first = min(p.content_hash for p in catalog.pictures if p.label == NAMES[0])
    copied = tuple(
        replace(p, group=first) if p.label == NAMES[0] and p.content_hash < "8" else p for p in catalog.pictures
    )
    chosen = [p for p in replace(catalog, pictures=copied).limited(30).kept if p.label == NAMES[0]]
    assert len({p.group for p in chosen}) == 10


# --- the report ---


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_has_a_line_per_file_and_its_part_of_the_split(flawed: Catalog, tmp_path: Path):
    write_report(flawed, tmp_path / "deep" / "data_report.csv", split(flawed))
    rows = rows_of(tmp_path / "deep" / "data_report.csv")
    assert [row["path"] for row in rows] == [p.path for p in flawed.pictures]
    assert Counter(row["split"] for row in rows if row["verdict"] == "kept").keys() == set(PART_SHARES)
    assert all(not row["split"] for row in rows if row["verdict"] != "kept")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["data_report.csv"]


def test_the_report_of_a_subset_lists_the_unused_without_a_part(flawed: Catalog, tmp_path: Path):
    subset = flawed.limited(40)
    write_report(subset, tmp_path / "report.csv", split(subset))
    rows = rows_of(tmp_path / "report.csv")
    assert len(rows) == len(flawed.pictures) and sum(bool(row["split"]) for row in rows) == 40
    with pytest.raises(ValueError, match="40 pictures, not 50"):
        write_report(flawed, tmp_path / "report.csv", split(subset))
