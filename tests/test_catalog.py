"""The verdict on every file, what the scan remembers, near-duplicate groups, the split, subsets and the report."""

import csv
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import FLAWED, NAMES, class_folders, flawed_folder, picture
from PIL import Image, ImageEnhance

from data import DataError, near_duplicates
from data import file_checks as verdicts
from data.catalog import MIN_KEPT, Catalog, Picture, Verdict, scan
from data.sources import Source, resolve
from data.split import PART_SHARES, split

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")


def scanned(root: Path, cache_dir: Path, test_data: Path | None = None) -> Catalog:
    return scan(resolve(str(root), cache_dir=cache_dir, pictures=None, test_data=test_data), cache_dir=cache_dir)


def by_path(catalog: Catalog) -> dict[str, Picture]:
    return {picture.path: picture for picture in catalog.pictures}


@pytest.fixture(scope="module")
def flawed(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("flawed")
    return scanned(flawed_folder(folder / "set"), folder / "cache")


# --- verdicts ---


@pytest.mark.parametrize("path", FLAWED)
def test_each_flaw_gets_its_verdict_and_a_reason(flawed: Catalog, path: str):
    if "link" in path and path not in by_path(flawed):
        pytest.skip("links cannot be made here")
    judged = by_path(flawed)[path]
    assert judged.verdict == FLAWED[path]
    assert bool(judged.reason) == (judged.verdict is not Verdict.KEPT)


def test_every_file_is_listed_once_and_hidden_ones_never(flawed: Catalog):
    good = {f"{name}/{seed:04d}.jpg" for name in NAMES[:3] for seed in range(12)}
    listed = [picture.path for picture in flawed.pictures]
    assert len(listed) == len(set(listed))
    assert set(listed) == good | {path for path in FLAWED if path in listed}


def test_the_counts_add_up_and_show_the_empty_class(flawed: Catalog):
    assert flawed.classes == NAMES[:3] and flawed.empty == ("Empty",)
    counts = flawed.counts()
    assert sum(sum(row.values()) for row in counts.values()) == len(flawed.pictures)
    assert not any(counts["Empty"].values()) and counts["Agaricus"][Verdict.CONFLICT] == 1


def test_reasons_name_the_other_file(flawed: Catalog):
    files = by_path(flawed)
    assert files["Agaricus/again.jpg"].reason == "same bytes as Agaricus/0000.jpg"
    assert files["Agaricus/in-two-classes.jpg"].reason.endswith("Amanita/in-two-classes-too.jpg")
    assert files["Boletus/small.png"].reason == "15 x 40 pixels, the shorter side needs 16"


def test_a_kept_picture_shows_the_files_own_size_and_mode(flawed: Catalog):
    files = by_path(flawed)
    rotated = files["Boletus/rotated.jpg"]
    assert (rotated.width, rotated.height, rotated.mode) == (64, 48, "RGB")
    assert files["Agaricus/cmyk.jpg"].mode == "CMYK" and files["Amanita/sixteen-bit.png"].mode.startswith("I")
    assert flawed.median_short_side == 48
    assert flawed.file(rotated).is_file()


def test_stray_files_beside_the_classes_are_reported(tmp_path: Path):
    root = class_folders(tmp_path / "set")
    picture(99).save(root / "stray.jpg")
    (root / "README.md").write_text("hello", encoding="utf-8")
    counts = scanned(root, tmp_path / "cache").counts()
    assert (counts[""][Verdict.REFUSED], counts[""][Verdict.NOT_A_PICTURE]) == (1, 1)


@posix_only
def test_a_pipe_is_refused_without_waiting_on_it(tmp_path: Path):
    root = class_folders(tmp_path / "set")
    os.mkfifo(root / "Amanita" / "pipe.jpg")
    judged = by_path(scanned(root, tmp_path / "cache"))["Amanita/pipe.jpg"]
    assert (judged.verdict, judged.reason) == (Verdict.REFUSED, "not a regular file")


@posix_only
def test_links_inside_are_read_and_links_to_folders_never_followed(tmp_path: Path):
    root = class_folders(tmp_path / "set")
    (root / "Amanita" / "link.jpg").symlink_to(root / "Amanita" / "0003.jpg")
    (root / "Amanita" / "loop").symlink_to(root / "Amanita")
    (root / "Amanita" / "itself.jpg").symlink_to(root / "Amanita" / "itself.jpg")
    files = by_path(scanned(root, tmp_path / "cache"))
    assert files["Amanita/link.jpg"].verdict is Verdict.DUPLICATE
    assert files["Amanita/loop"].reason == "a link to a folder"
    assert files["Amanita/itself.jpg"].reason == "a broken link"


def test_three_copies_in_two_classes_are_all_left_out(tmp_path: Path):
    root = class_folders(tmp_path / "set")
    content = (root / "Agaricus" / "0000.jpg").read_bytes()
    for path in ("Agaricus/b.jpg", "Boletus/c.jpg"):
        (root / path).write_bytes(content)
    files = by_path(scanned(root, tmp_path / "cache"))
    assert {files[p].verdict for p in ("Agaricus/0000.jpg", "Agaricus/b.jpg", "Boletus/c.jpg")} == {Verdict.CONFLICT}


# --- errors ---


def test_a_class_with_too_few_kept_pictures_is_an_error_with_all_counts(tmp_path: Path):
    root = class_folders(tmp_path / "set")
    for seed in range(8):
        (root / "Amanita" / f"{seed:04d}.jpg").write_bytes(b"torn")
    with pytest.raises(DataError) as caught:
        scanned(root, tmp_path / "cache")
    assert str(caught.value) == (
        f"a class needs at least 10 kept pictures, but 'Amanita' has 4 in {root} (its files: 4 kept, 8 unreadable; "
        "kept in all: Agaricus 12, Amanita 4, Boletus 12); add pictures or remove the folder"
    )


def test_one_class_with_pictures_is_an_error(tmp_path: Path):
    root = class_folders(tmp_path / "set", classes=1)
    (root / "Empty").mkdir()
    with pytest.raises(DataError, match=r"pictures of at least 2 classes, but .*set has them only in 'Agaricus'"):
        scanned(root, tmp_path / "cache")


def test_an_official_part_without_a_class_is_an_error(tmp_path: Path):
    root, test = class_folders(tmp_path / "set"), class_folders(tmp_path / "official", classes=2, each=3)
    (test / "Boletus").mkdir()
    with pytest.raises(
        DataError, match=r"each part needs pictures of every class, but .*official has none of 'Boletus'"
    ):
        scanned(root, tmp_path / "cache", test)


def test_a_class_of_copies_cannot_be_split_and_says_so(tmp_path: Path):
    root = class_folders(tmp_path / "set")
    for seed in range(12):
        ImageEnhance.Brightness(picture(0, label=1)).enhance(1 + seed / 50).save(root / "Amanita" / f"{seed:04d}.jpg")
    with pytest.raises(
        DataError, match=r"'Amanita' of .*set: it has only 1 distinct picture .*train, validation, test"
    ):
        split(scanned(root, tmp_path / "cache"))


def test_a_cache_folder_that_cannot_be_written_is_an_error(tmp_path: Path):
    root = class_folders(tmp_path / "set")
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    with pytest.raises(DataError, match="must be a folder that can be written to"):
        scanned(root, tmp_path / "cache")


# --- the scan's memory ---


def count_opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Collects the files that are really opened; the real code still opens them."""
    opened: list[Path] = []
    look = verdicts._look

    def counted(path: Path) -> verdicts.Look:
        opened.append(path)
        return look(path)

    monkeypatch.setattr(verdicts, "_look", counted)
    return opened


def test_a_second_scan_opens_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = flawed_folder(tmp_path / "set")
    first = scanned(root, tmp_path / "cache")
    opened = count_opened(monkeypatch)
    assert scanned(root, tmp_path / "cache") == first
    assert opened == []
    picture(500, label=1).save(root / "Amanita" / "0003.jpg")
    changed = scanned(root, tmp_path / "cache")
    assert opened == [root / "Amanita" / "0003.jpg"]
    assert changed.fingerprint != first.fingerprint


def test_a_corrupt_memory_is_scanned_again(tmp_path: Path):
    root = class_folders(tmp_path / "set")
    first = scanned(root, tmp_path / "cache")
    (memory,) = (tmp_path / "cache" / "scans").iterdir()
    whole = memory.read_bytes()
    for torn in (b"", b"PK\3\4 rubbish", whole[: len(whole) // 2], whole[:200] + b"\0" * 50 + whole[250:]):
        memory.write_bytes(torn)
        assert scanned(root, tmp_path / "cache") == first
    assert memory.read_bytes() == whole


def test_an_interrupted_scan_remembers_what_it_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = class_folders(tmp_path / "set")
    source = resolve(str(root), cache_dir=tmp_path, pictures=None)

    def interrupted(iterable, description, total):
        for number, item in enumerate(iterable):
            if number == 20:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        scan(source, cache_dir=tmp_path, track=interrupted)
    opened = count_opened(monkeypatch)
    scan(source, cache_dir=tmp_path)
    assert len(opened) == 16


# --- near-duplicates ---


def altered(image: Image.Image) -> list[Image.Image]:
    return [
        image.resize((image.width * 2 // 3, image.height * 2 // 3)),
        image.convert("L"),
        ImageEnhance.Brightness(image).enhance(0.9),
    ]


def test_altered_copies_share_a_group_and_a_part(tmp_path: Path):
    root = class_folders(tmp_path / "set", size=96)
    for number, copy in enumerate(altered(Image.open(root / "Boletus" / "0005.jpg"))):
        copy.save(root / ("Boletus", "Agaricus")[number % 2] / f"copy-{number}.jpg", quality=60)
    catalog = scanned(root, tmp_path / "cache")
    sizes = Counter(picture.group for picture in catalog.kept)
    assert sorted(sizes.values())[-2:] == [1, 4]
    group = {
        picture.group for picture in catalog.pictures if "copy" in picture.path or picture.path == "Boletus/0005.jpg"
    }
    assert group == {min(picture.content_hash for picture in catalog.kept if picture.group in group)}
    sides = [{catalog.kept[position].group for position in positions} for _, positions in split(catalog).named()]
    assert sum(group <= side for side in sides) == 1


def test_grouping_equals_comparing_all_pairs():
    rng = np.random.default_rng(3)
    base = rng.integers(0, 256, (40, 16, 18))
    noisy = np.clip(np.repeat(base, 5, axis=0) + rng.normal(0, 12, (200, 16, 18)), 0, 255).astype(np.uint8)
    noisy = noisy[rng.permutation(200)]
    hashes = near_duplicates.difference_hash(noisy)
    flat = noisy.reshape(200, -1).astype(float)
    alike = (np.corrcoef(flat) >= near_duplicates.MIN_CORRELATION) & (
        np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= near_duplicates.MAX_BITS
    )
    slow = np.arange(200)
    for _ in range(200):  # each takes the smallest name among its neighbours until nothing changes
        slow = np.array([slow[alike[row]].min() for row in range(200)])
    assert np.array_equal(near_duplicates.groups(noisy), slow)
    assert 20 < len(set(slow.tolist())) < 150


def test_flat_pictures_do_not_chain():
    levels = np.arange(0, 200, dtype=np.uint8)
    flat = np.broadcast_to(levels[:, None, None], (200, 16, 18)) + np.random.default_rng(0).integers(
        0, 3, (200, 16, 18)
    )
    assert np.array_equal(near_duplicates.groups(flat.astype(np.uint8)), np.arange(200))


def test_thousands_of_copies_are_one_group_and_none_is_no_error():
    one = np.random.default_rng(1).integers(0, 256, (1, 16, 18), dtype=np.uint8)
    assert not near_duplicates.groups(np.repeat(one, 5000, axis=0)).any()
    assert len(near_duplicates.groups(np.zeros((0, 16, 18), np.uint8))) == 0


# --- official parts ---


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
        "Boletus/near.jpg": (Verdict.DUPLICATE, "near-duplicate of test: Boletus/t2.jpg"),
    }
    parts = split(catalog)
    assert {catalog.kept[p].part for p in parts.test} == {"test"} and len(parts.test) == 9
    assert {catalog.kept[p].part for p in [*parts.train, *parts.validation]} == {"train"}
    assert {catalog.kept[p].label for p in parts.validation} == set(NAMES[:3])


def test_with_an_official_validation_part_only_the_test_part_is_carved(tmp_path: Path):
    class_folders(tmp_path / "set" / "train", each=20)
    for label, name in enumerate(NAMES[:3]):
        (tmp_path / "set" / "val" / name).mkdir(parents=True)
        picture(800, label=label).save(tmp_path / "set" / "val" / name / "v.jpg")
    catalog = scanned(tmp_path / "set", tmp_path / "cache")
    parts = split(catalog)
    assert {catalog.kept[p].part for p in parts.validation} == {"validation"} and len(parts.validation) == 3
    assert {catalog.kept[p].label for p in parts.test} == set(NAMES[:3])


# --- the split ---

hashes = st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}")


@st.composite
def catalogs(draw: st.DrawFn, least: int = MIN_KEPT) -> Catalog:
    """Two to four classes of 10 to 60 pictures, up to a fifth of them in groups with another, of their class or not."""
    contents = draw(st.lists(hashes, min_size=4 * least, max_size=120, unique=True))
    classes = NAMES[: draw(st.integers(2, 4))]
    group_of = dict(zip(contents, contents, strict=True))
    for _ in range(draw(st.integers(0, len(contents) // 5))):
        a, b = draw(st.sampled_from(contents)), draw(st.sampled_from(contents))
        joined = min(group_of[a], group_of[b])
        old = {group_of[a], group_of[b]}
        group_of = {content: joined if group in old else group for content, group in group_of.items()}
    pictures = [
        one(content, classes[place % len(classes)], group_of[content]) for place, content in enumerate(contents)
    ]
    source = Source(name="made", root=Path("made"), parts={"all": Path("made")}, available=None, citation="")
    return Catalog(source=source, classes=classes, pictures=tuple(pictures))


def one(content: str, label: str, group: str) -> Picture:
    return Picture(
        path=f"{label}/{content}.jpg",
        part="all",
        label=label,
        verdict=Verdict.KEPT,
        reason="",
        size_bytes=1,
        width=32,
        height=32,
        mode="RGB",
        content_hash=content,
        group=group,
    )


def sides(catalog: Catalog) -> dict[str, str] | None:
    """Content hash -> part; None where groups are so large that a class cannot be in all parts."""
    try:
        parts = split(catalog)
    except DataError:
        assert min(len({p.group for p in catalog.kept if p.label == name}) for name in catalog.classes) < 12
        return None
    return {catalog.kept[p].content_hash: name for name, positions in parts.named() for p in positions}


@settings(max_examples=40, deadline=None)
@given(catalogs(), st.randoms(use_true_random=False))
def test_the_split_is_disjoint_complete_whole_and_without_order(catalog: Catalog, random):
    where = sides(catalog)
    if where is None:
        return
    parts = split(catalog)
    every = np.concatenate([positions for _, positions in parts.named()])
    assert sorted(every.tolist()) == list(range(len(catalog.kept)))
    assert all((np.diff(positions) > 0).all() for _, positions in parts.named())
    for name in catalog.classes:
        assert {where[p.content_hash] for p in catalog.kept if p.label == name} == set(PART_SHARES)
    for group in {p.group for p in catalog.kept}:
        assert len({where[p.content_hash] for p in catalog.kept if p.group == group}) == 1
    shuffled = list(catalog.pictures)
    random.shuffle(shuffled)
    again = replace(catalog, pictures=tuple(shuffled))
    assert sides(again) == where and again.fingerprint == catalog.fingerprint


@settings(max_examples=40, deadline=None)
@given(catalogs(), st.lists(hashes, max_size=30, unique=True))
def test_added_pictures_move_no_old_one_but_those_of_the_guarantee(catalog: Catalog, added: list[str]):
    new = [content for content in added if all(content != p.content_hash for p in catalog.pictures)]
    larger = replace(catalog, pictures=catalog.pictures + tuple(one(c, catalog.classes[0], c) for c in new))
    before, after = sides(catalog), sides(larger)
    if before is None or after is None:
        return
    moved = {p.group for p in catalog.kept if before[p.content_hash] != after[p.content_hash]}
    # The guarantee moves at most one group into each of two lacking parts per class, and any move may come or go.
    assert len(moved) <= 2 * 2 * len(catalog.classes)


def many(count: int) -> Catalog:
    rng = np.random.default_rng(0)
    contents = [rng.bytes(16).hex() for _ in range(count)]
    source = Source(name="made", root=Path("made"), parts={"all": Path("made")}, available=None, citation="")
    pictures = tuple(one(content, NAMES[place % 3], content) for place, content in enumerate(contents))
    return Catalog(source=source, classes=NAMES[:3], pictures=pictures)


def test_large_classes_are_split_70_15_15_and_never_moved():
    catalog = many(6000)
    where = sides(catalog)
    assert where is not None
    for name in catalog.classes:
        found = Counter(where[p.content_hash] for p in catalog.kept if p.label == name)
        for part, share in PART_SHARES.items():
            assert abs(found[part] / 2000 - share) < 4 * (share * (1 - share) / 2000) ** 0.5
    fewer = sides(replace(catalog, pictures=catalog.pictures[:3000]))
    assert fewer is not None and fewer.items() <= where.items()


def test_renaming_files_changes_neither_order_nor_fingerprint(tmp_path: Path):
    root = class_folders(tmp_path / "set")
    before = scanned(root, tmp_path / "cache")
    (root / "Amanita" / "0000.jpg").rename(root / "Amanita" / "zzz.JPEG")
    after = scanned(root, tmp_path / "cache")
    assert before.fingerprint == after.fingerprint
    assert [p.content_hash for p in before.kept] == [p.content_hash for p in after.kept]
    assert before.labels.dtype == np.int64 and np.array_equal(before.labels, np.repeat([0, 1, 2], 12))


# --- subsets ---


def test_subsets_nest_keep_proportions_and_sides():
    catalog = many(1000)
    rare = [p for p in catalog.pictures if p.label == NAMES[2]][:30]
    catalog = replace(catalog, pictures=tuple(p for p in catalog.pictures if p.label != NAMES[2]) + tuple(rare))
    everything = sides(catalog)
    assert everything is not None
    previous: set[str] = set()
    for number in (40, 41, 100, 333, 500):
        subset = catalog.limited(number)
        chosen = {p.content_hash for p in subset.kept}
        counts = Counter(p.label for p in subset.kept)
        assert len(chosen) == number and previous <= chosen and min(counts.values()) >= MIN_KEPT
        previous = chosen
        where = sides(subset)
        assert where is not None and sum(where[content] != everything[content] for content in chosen) <= 6
    assert counts[NAMES[0]] == pytest.approx(500 * 334 / 697, abs=2)
    assert catalog.limited(None) is catalog and catalog.limited(10_000) is catalog


def test_a_subset_too_small_for_its_classes_is_an_error():
    with pytest.raises(
        DataError, match=r"at least 10 pictures of each of 3 classes in each part, 30 in all, but got 29"
    ):
        many(100).limited(29)


def test_a_subset_takes_different_pictures_before_copies():
    catalog = many(90)
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
    flawed.write_report(tmp_path / "deep" / "data_report.csv", split(flawed))
    rows = rows_of(tmp_path / "deep" / "data_report.csv")
    assert [row["path"] for row in rows] == [p.path for p in flawed.pictures]
    assert Counter(row["split"] for row in rows if row["verdict"] == "kept").keys() == set(PART_SHARES)
    assert all(not row["split"] for row in rows if row["verdict"] != "kept")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["data_report.csv"]


def test_the_report_of_a_subset_lists_the_unused_without_a_part(flawed: Catalog, tmp_path: Path):
    subset = flawed.limited(40)
    subset.write_report(tmp_path / "report.csv", split(subset))
    rows = rows_of(tmp_path / "report.csv")
    assert len(rows) == len(flawed.pictures) and sum(bool(row["split"]) for row in rows) == 40
    with pytest.raises(ValueError, match="the split must be of this catalog"):
        flawed.write_report(tmp_path / "report.csv", split(subset))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows any byte in a name")
def test_names_with_line_ends_escapes_and_broken_bytes_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = class_folders(tmp_path / "set")
    odd = [b"line\nend.jpg", b"\x1b[31mred.jpg", b"broken\xff.jpg", b'quote",comma.jpg']
    for number, name in enumerate(odd):
        picture(900 + number).save(root / "tmp.png")
        os.rename(root / "tmp.png", os.path.join(os.fsencode(root / "Amanita"), name))  # noqa: PTH104, PTH118
    first = scanned(root, tmp_path / "cache")
    assert len(first.kept) == 40
    opened = count_opened(monkeypatch)
    assert scanned(root, tmp_path / "cache") == first and opened == []
    first.write_report(tmp_path / "report.csv", split(first))
    text = (tmp_path / "report.csv").read_bytes().decode("utf-8")
    assert "\x1b" not in text and text.count("\n") == 41
    shown = {row["path"] for row in rows_of(tmp_path / "report.csv")}
    assert {"Amanita/line\\nend.jpg", "Amanita/\\x1b[31mred.jpg", "Amanita/broken\\udcff.jpg"} <= shown
