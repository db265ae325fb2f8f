"""Checks of single files: the verdict on each, and which results a later scan reuses."""

import csv
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pictures import FLAWED, NAMES, by_path, class_folders, deep_folder, flawed_folder, picture, scanned
from PIL import Image

from data import DataError, file_checks
from data.catalog import Catalog, scan
from data.file_checks import Verdict
from data.report import write_report
from data.sources import resolve
from data.split import split
from model import preprocessing
from model.preprocessing import ORDINARY

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")


@pytest.fixture(scope="module")
def flawed(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("flawed")
    return scanned(flawed_folder(folder / "set"), folder / "cache")


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


def linked_folder(tmp_path: Path) -> Path:
    """Write class folders of links to pictures elsewhere, as DVC and download caches make them, and return them."""
    store = class_folders(tmp_path / "store")
    for file in store.rglob("*.jpg"):
        link = tmp_path / "set" / file.relative_to(store)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    return tmp_path / "set"


@posix_only
def test_links_out_are_counted_in_the_error_with_the_option_that_reads_them(tmp_path: Path):
    root = linked_folder(tmp_path)
    with pytest.raises(DataError, match=r"12 refused \(a link out of the data set\).*: add --follow-links"):
        scanned(root, tmp_path / "cache")
    followed = scanned(root, tmp_path / "cache", follow_links=True)
    stored = scanned(tmp_path / "store", tmp_path / "cache")
    assert followed.fingerprint == stored.fingerprint and len(followed.kept) == 36


@posix_only
def test_followed_links_never_lead_in_circles_and_read_a_folder_once(tmp_path: Path):
    root, other = linked_folder(tmp_path), class_folders(tmp_path / "other", classes=1, each=1)
    picture(500, label=1).save(other / "new.jpg")
    amanita = root / "Amanita"
    (amanita / "loop").symlink_to(amanita)
    (amanita / "up").symlink_to(root)
    (amanita / "itself.jpg").symlink_to(amanita / "itself.jpg")
    (amanita / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    (amanita / "a").symlink_to(other)
    (amanita / "b").symlink_to(other)
    (other / "back").symlink_to(root)
    (amanita / "again.jpg").symlink_to(tmp_path / "store" / "Amanita" / "0000.jpg")
    os.link(tmp_path / "store" / "Boletus" / "0001.jpg", root / "Boletus" / "hard.jpg")
    (root / "self.jpg").symlink_to(root / "self.jpg")
    files = by_path(scanned(root, tmp_path / "cache", follow_links=True))
    assert {path: file.reason.partition(",")[0] for path, file in files.items() if file.verdict is Verdict.REFUSED} == {
        "Amanita/loop": "a folder that is read already",
        "Amanita/up": "a link back to a folder that contains it",
        "Amanita/itself.jpg": "a broken link",
        "Amanita/gone.jpg": "a broken link",
        "Amanita/b": "a folder that is read already",
        "Amanita/a/back": "a link back to a folder that contains it",
        "self.jpg": "not in a class folder",
    }
    assert files["Amanita/a/new.jpg"].verdict is Verdict.KEPT
    assert files["Amanita/again.jpg"].verdict is files["Boletus/hard.jpg"].verdict is Verdict.DUPLICATE


# --- the scan cache ---


def count_opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Collect the files that are opened from now on; the real code still opens them."""
    opened: list[Path] = []
    check = file_checks._check_file

    def counted(path: Path) -> file_checks.FileCheck:
        opened.append(path)
        return check(path)

    monkeypatch.setattr(file_checks, "_check_file", counted)
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


def test_traits_are_stored_with_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = deep_folder(tmp_path / "set")
    first = scanned(root, tmp_path / "cache")
    opened = count_opened(monkeypatch)
    again = scanned(root, tmp_path / "cache")
    assert again == first and opened == []
    traits = [p.traits for p in again.kept]
    assert sum(one is ORDINARY for one in traits) == 2
    assert all(one is ORDINARY or one.values.kind == "integers" for one in traits)


def test_near_duplicates_with_more_than_8_bits_are_found_whatever_their_exposure(tmp_path: Path):
    root = deep_folder(tmp_path / "set")
    values = np.asarray(picture(3, label=0).convert("L")).astype(np.uint16)
    Image.fromarray(values * 3 + 9).save(root / "Agaricus" / "dark.tif")
    files = by_path(scanned(root, tmp_path / "cache"))
    assert files["Agaricus/dark.tif"].group == files["Agaricus/0003.tif"].group
    assert files["Agaricus/dark.tif"].group != files["Agaricus/0004.tif"].group


def test_heic_is_checked_again_once_it_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = class_folders(tmp_path / "set")
    (root / "Amanita" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    monkeypatch.setattr(preprocessing, "_register_heif", lambda: False)
    judged = by_path(scanned(root, tmp_path / "cache"))["Amanita/phone.heic"]
    assert judged.verdict is Verdict.UNREADABLE and '"heic"' in judged.reason
    opened = count_opened(monkeypatch)
    scanned(root, tmp_path / "cache")
    assert opened == [root / "Amanita" / "phone.heic"]


def test_a_corrupt_scan_cache_is_rebuilt(tmp_path: Path):
    root = class_folders(tmp_path / "set")
    first = scanned(root, tmp_path / "cache")
    (stored,) = (tmp_path / "cache" / "scans").iterdir()
    whole = stored.read_bytes()
    for torn in (b"", b"PK\3\4 rubbish", whole[: len(whole) // 2], whole[:200] + b"\0" * 50 + whole[250:]):
        stored.write_bytes(torn)
        assert scanned(root, tmp_path / "cache") == first
    assert stored.read_bytes() == whole


def test_parts_that_share_a_folder_share_its_stored_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Parts inside the class folders, as in <class>/train, all have paths relative to the same folder."""
    for number, part in enumerate(("train", "test")):
        for label, name in enumerate(NAMES[:2]):
            (tmp_path / "set" / name / part).mkdir(parents=True)
            for seed in range(12):
                path = tmp_path / "set" / name / part / f"{seed}.jpg"
                picture(100 * number + seed, label=label).save(path)
    for stray in ("stray.jpg", "Agaricus/stray.jpg"):
        (tmp_path / "set" / stray).touch()
    first = scanned(tmp_path / "set", tmp_path / "cache")
    assert Counter(p.part for p in first.kept) == {"train": 24, "test": 24}
    assert [p.path for p in first.pictures if p.label == ""] == ["Agaricus/stray.jpg", "stray.jpg"]
    assert first.file(first.kept[0]).read_bytes()
    opened = count_opened(monkeypatch)
    assert scanned(tmp_path / "set", tmp_path / "cache") == first and opened == []


def test_an_interrupted_scan_keeps_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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


def test_a_cache_folder_that_cannot_be_written_is_an_error(tmp_path: Path):
    root = class_folders(tmp_path / "set")
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot write .*cache/scans \(.+\): .*--cache"):
        scanned(root, tmp_path / "cache")


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
    write_report(first, tmp_path / "report.csv", split(first))
    text = (tmp_path / "report.csv").read_bytes().decode("utf-8")
    assert "\x1b" not in text and text.count("\n") == 41
    shown = {row["path"] for row in csv.DictReader(text.splitlines())}
    assert {"Amanita/line\\nend.jpg", "Amanita/\\x1b[31mred.jpg", "Amanita/broken\\udcff.jpg"} <= shown
