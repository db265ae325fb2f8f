"""Hostile input: pictures, names, folders and stored files are used safely, or refused with a one-line reason."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import struct
import subprocess
import sys
import threading
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import class_folders, picture, png_claiming
from PIL import Image
from studies import HERE, Tiny, config, prepare, run_here, steady_threads

from data import DataError, cache, file_checks
from data.cache import CacheHandle, open_part
from data.catalog import Catalog, scan
from data.report import write_report
from data.sources import LONGEST, resolve
from data.split import split
from model import checkpoint, preprocessing
from model.files import csv_cell
from model.predict import pictures_in, square_of
from model.preprocessing import MAX_BYTES, PictureError, load_square, read_picture
from search_space import Config
from selection.retraining import FORMAT, Winner
from tuning import StudyError
from tuning.settings import FILE, recall

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows any byte in a name")
SECRET = "s3cr3t"


def scanned(root: Path, cache_dir: Path) -> Catalog:
    return scan(resolve(str(root), cache_dir=cache_dir, pictures=None), cache_dir=cache_dir)


# --- pictures


def encoded(image: Image.Image, name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """Return a black RGB picture with these chunks before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1 + 3 * width) * height))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def gif_of(width: int, height: int) -> bytes:
    content = bytearray(encoded(picture(0).convert("P"), "GIF"))
    content[6:10] = struct.pack("<HH", width, height)
    return bytes(content)


def jpeg_of(width: int, height: int) -> bytes:
    content = bytearray(encoded(picture(0), "JPEG"))
    place = content.index(b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def jpeg_2000_of(side: int) -> bytes:
    content = bytearray(encoded(picture(0), "JPEG2000"))
    box, tile = content.index(b"ihdr"), content.index(b"\xff\x51")
    content[box + 4 : box + 12] = content[tile + 6 : tile + 14] = struct.pack(">II", side, side)
    return bytes(content)


def tiff(*, width: int | None = None, endless: bool = False) -> bytes:
    """Return a TIFF that claims another width, or whose directory names itself as the next one."""
    content = bytearray(encoded(picture(0), "TIFF"))
    (start,) = struct.unpack("<I", content[4:8])
    (count,) = struct.unpack("<H", content[start : start + 2])
    for place in range(start + 2, start + 2 + 12 * count, 12):
        if width is not None and struct.unpack("<H", content[place : place + 2]) == (256,):
            content[place + 2 : place + 12] = struct.pack("<HII", 4, 1, width)
    if endless:
        content[start + 2 + 12 * count : start + 6 + 12 * count] = struct.pack("<I", start)
    return bytes(content)


def webp_of(side: int) -> bytes:
    content = bytearray(encoded(picture(0), "WEBP", lossless=True))
    place = content.index(b"VP8L") + 9
    (bits,) = struct.unpack("<I", content[place : place + 4])
    content[place : place + 4] = struct.pack("<I", bits >> 28 << 28 | (side - 1) << 14 | (side - 1))
    return bytes(content)


def moving(name: str) -> bytes:
    frames = [picture(seed) for seed in range(3)]
    return encoded(frames[0], name, save_all=True, append_images=frames[1:] * 100)


def with_archive() -> bytes:
    file = io.BytesIO(encoded(picture(0), "JPEG"))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("run.sh", "exit")
    return file.getvalue()


UNPACKS = zlib.compress(bytes(20_000_000), 1)
HOSTILE: dict[str, tuple[bytes, str, str]] = {
    "claims-400-megapixels.png": (png_claiming(20_000, 20_000), "refused", "400 megapixels"),
    "text-of-20-MB.png": (png(32, 32, chunk(b"zTXt", b"k\0\0" + UNPACKS)), "unreadable", "1 MB of text or profile"),
    "note-of-20-MB.png": (png(32, 32, chunk(b"iTXt", b"k\0\1\0\0\0" + UNPACKS)), "unreadable", "1 MB of text or"),
    "profile-of-20-MB.png": (
        png(32, 32, chunk(b"iCCP", b"k\0\0" + UNPACKS)),
        "unreadable",
        "1 MB of text or profile",
    ),
    "canvas.gif": (gif_of(65_535, 65_535), "refused", "4295 megapixels"),
    "many-frames.gif": (moving("GIF"), "kept", ""),
    "many-frames.png": (moving("PNG"), "kept", ""),
    "many-frames.webp": (moving("WEBP"), "kept", ""),
    "canvas.webp": (webp_of(16_383), "refused", "268 megapixels"),
    "claims.jpg": (jpeg_of(65_535, 65_535), "refused", "4295 megapixels"),
    "claims.jp2": (jpeg_2000_of(200_000), "refused", "40000 megapixels"),
    "claims.tif": (tiff(width=2**31 - 1), "refused", "68719 megapixels"),
    "endless.tif": (tiff(endless=True), "kept", ""),
    "65535-x-16.png": (png(65_535, 16), "kept", ""),
    "65535-x-1.png": (png(65_535, 1), "too_small", "65535 x 1 pixels"),
    "1-x-1.gif": (encoded(Image.new("L", (1, 1)), "GIF"), "too_small", "1 x 1 pixels"),
    "postscript.jpg": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "unreadable",
        "not a picture",
    ),
    "document.jpg": (b"%PDF-1.7\n", "unreadable", "not a picture"),
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unreadable", "not a picture"),
    "and-an-archive.jpg": (with_archive(), "kept", ""),
    "and-a-page.png": (png(32, 33, chunk(b"tEXt", b"k\0<script>alert(1)</script>")), "kept", ""),
    "and-a-script.gif": (encoded(picture(5).convert("P"), "GIF") + b"*/=1;alert(1)", "kept", ""),
}
"""By name: bytes, verdict, and a part of the reason."""


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, file_checks.FileCheck]:
    """Check the hostile pictures where a Ghostscript could be called."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "bin").mkdir()
    (folder / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {folder}/called\n")
    (folder / "bin" / "gs").chmod(0o755)
    (folder / "set" / "a").mkdir(parents=True)
    for name, (content, _, _) in HOSTILE.items():
        (folder / "set" / "a" / name).write_bytes(content)
    inside = folder / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        entries = list(file_checks.walk(inside, {"a": [inside / "a"]}, within=(inside,)))
        checks = file_checks.check_files(inside, entries, cache_dir=folder / "cache")
    assert not (folder / "called").exists()
    return {entry.path.removeprefix("a/"): check for entry, check in zip(entries, checks, strict=True)}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_malicious_picture_gets_its_verdict(name: str, judged: dict[str, file_checks.FileCheck]) -> None:
    _, verdict, reason = HOSTILE[name]
    assert (judged[name].verdict, reason in judged[name].reason) == (verdict, True), judged[name]


def test_only_formats_that_pillow_decodes_itself_are_opened() -> None:
    assert not {"EPS", "PDF", "WMF", "FITS", "TGA", "ICO", "PSD"} & set(preprocessing.FORMATS)


def test_a_picture_of_one_pixel_is_not_classified() -> None:
    with pytest.raises(PictureError, match=r"^1 x 1 pixels, the shorter side must be at least 16$"):
        load_square(io.BytesIO(png(1, 1)), 32)


@posix_only
def test_pipes_and_devices_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", Path("/dev/zero")):
        with pytest.raises(PictureError, match=r"^cannot be opened \(not a regular file\)$"):
            square_of(path, 32, {})
        with pytest.raises(checkpoint.CheckpointError, match="not a regular file"):
            checkpoint.load(path)


@posix_only
def test_a_sparse_file_of_a_terabyte_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    picture(0).save(tmp_path / "a" / "hole.jpg")
    with (tmp_path / "a" / "hole.jpg").open("r+b") as file:
        try:
            file.truncate(10**12)
        except OSError:
            pytest.skip("this file system has no such files")
    (entry,) = file_checks.walk(tmp_path, {"a": [tmp_path / "a"]}, within=(tmp_path,))
    assert (entry.verdict, entry.reason) == ("refused", f"1,000.0 GB, more than the {MAX_BYTES / 1e9:.1f} allowed")
    with pytest.raises(PictureError, match=r"1,000.0 GB, more than"):
        square_of(tmp_path / "a" / "hole.jpg", 32, {})
    with pytest.raises(checkpoint.CheckpointError, match=r"1,000.0 GB, more than"):
        checkpoint.load(tmp_path / "a" / "hole.jpg")


def test_large_pictures_are_decoded_one_at_a_time() -> None:
    """On a machine with 32 cores, 32 pictures of 0.4 MB took 1.5 GB each at the same time."""
    large = io.BytesIO(encoded(Image.new("1", (5000, 3300)), "PNG"))
    done = threading.Event()
    thread = threading.Thread(target=lambda: (read_picture(large), done.set()))
    with preprocessing._one_at_a_time:
        thread.start()
        for seed in range(20):  # small ones are decoded meanwhile
            read_picture(io.BytesIO(encoded(picture(seed), "PNG")))
        assert not done.is_set()
    thread.join(60)
    assert done.is_set()


@posix_only
def test_a_picture_too_large_for_memory_is_refused_and_checked_again(tmp_path: Path) -> None:
    """The picture needs 380 MB and 200 MB of address space are left; the next scan may have more."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "large.png").write_bytes(png_claiming(10_000, 9_500))
    code = """
import resource, sys
from pathlib import Path
import psutil
from data import file_checks
here = Path(sys.argv[1])
entries = list(file_checks.walk(here, {"a": [here / "a"]}, within=(here,)))
room = psutil.Process().memory_info().vms + 200_000_000
resource.setrlimit(resource.RLIMIT_AS, (room, room))
check = file_checks._check_file(here / entries[0].path)
print(check.verdict, check.reason, check.reusable)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=HERE, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "refused too large for the free memory False\n", done.stderr


# --- names and folders


@pytest.mark.parametrize(
    "pair",
    [
        ("Rose", "rose"),
        ("Straße", "STRASSE"),
        (unicodedata.normalize("NFC", "Fée"), unicodedata.normalize("NFD", "fée")),
        ("Rose", "Rose "),
        ("Rose", " Rose"),
        ("Rose", "Rose."),
    ],
)
def test_class_names_that_look_or_act_the_same_are_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    for name in pair:
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
    if len(list((tmp_path / "set").iterdir())) < 2:
        pytest.skip("this file system takes them for one")
    with pytest.raises(DataError, match="two classes with nearly the same name"):
        resolve(str(tmp_path / "set"), cache_dir=tmp_path, pictures=None)


@linux_only
def test_odd_class_names_are_allowed_and_no_file_is_named_after_them(tmp_path: Path) -> None:
    """Reserved on Windows, as long as possible, like a part, an option or a formula; in a folder with a long name."""
    names = ["CON", "NUL", "aux.txt", "é" * 127, "train", "--help", "=1+1", "\u202egnp.jpg", " ends in dots.."]
    root = tmp_path / ("İ" * 120)
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for seed in range(10):
            picture(seed, label=label, width=32 + label).save(root / name / f"{seed}.png")
    catalog = scanned(root, tmp_path / "cache")
    assert catalog.classes == tuple(sorted(names))
    assert len(catalog.source.name) <= LONGEST
    assert not [path for path in (tmp_path / "cache").rglob("*") if any(name in path.name for name in names)]


@linux_only
def test_the_data_report_holds_no_formula_and_no_terminal_escape(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", classes=2)
    names = ["=1+1", "@SUM(1)", "+cmd", "-2"]
    for label, name in enumerate(names, 2):
        (root / name).mkdir()
        for seed in range(10):
            picture(seed, label=label).save(root / name / f"\u202e\x1b]0;{seed}\a.png")
    catalog = scanned(root, tmp_path / "cache")
    write_report(catalog, tmp_path / "report.csv", split(catalog))
    text = (tmp_path / "report.csv").read_text(encoding="utf-8")
    assert all(character.isprintable() or character in "\r\n" for character in text)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["class"] for row in rows} == {"Agaricus", "Amanita", "'=1+1", "'@SUM(1)", "'+cmd", "-2"}
    assert {row["path"].partition("/")[0] for row in rows} == {"Agaricus", "Amanita", "."}
    assert all(value[:1] not in "=+-@" for row in rows for value in (row["path"], row["reason"]) if value)
    cells = [csv_cell(text) for text in ("-1.5", "-inf", "a=b", Path("-x/y"))]
    assert cells == ["-1.5", "'-inf", "a=b", "./-x/y"]


@posix_only
def test_a_folder_tree_deeper_than_the_recursion_limit_is_walked(tmp_path: Path) -> None:
    folders = [tmp_path / "set"]
    folders[0].mkdir()
    while len(folders) < sys.getrecursionlimit() + 50:
        folders.append(folders[-1] / "d")
        folders[-1].mkdir()
    picture(0).save(folders[-1] / "p.png")
    try:
        assert [path.name for path in pictures_in([tmp_path / "set"])] == ["p.png"]
        found = list(file_checks.walk(tmp_path, {"set": [tmp_path / "set"]}, within=(tmp_path,)))
        assert [entry.verdict for entry in found] == [None]
        (check,) = file_checks.check_files(tmp_path, found, cache_dir=tmp_path / "cache")
        assert check.verdict == "kept"
    finally:  # pytest removes temporary folders recursively
        (folders[-1] / "p.png").unlink()
        for folder in reversed(folders):
            folder.rmdir()
    assert len(folders) > sys.getrecursionlimit()


@pytest.mark.long
def test_a_hundred_thousand_empty_files_are_counted(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", classes=2)
    for number in range(100_000):
        (root / "Agaricus" / f"empty-{number}.jpg").touch()
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    catalog = scanned(root, tmp_path / "cache")
    seconds, grown = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{seconds:.1f} s, {grown / 1024:.0f} MiB")
    assert catalog.counts()["Agaricus"]["unreadable"] == 100_000
    assert seconds < 300 and grown < 500 * 1024


# --- stored files

BOMBS = {
    "deep": b"[" * 100_000,
    "deep-and-closed": b'{"data": ' + b"[" * 500 + b"]" * 500 + b"}",
    "twice": b'{"data": "x", "data": "y"}',
    "huge-number": b'{"pictures": ' + b"9" * 5000 + b"}",
    "infinite": b'{"pictures": 1e400}',
    "nan": b'{"pictures": NaN}',
    "no-text": b"\xff\xfe\x00",
    "long": b'{"data": "' + b"x" * 5_000_000 + b'"}',
    "escape": b'{"\\u001b[31m": 1}',
    "surrogate": b'{"\\udc80": "\\ud800"}',
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_hostile_study_files_are_refused_in_one_line(bomb: str, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    for name in (FILE, "retrained.json"):
        (tmp_path / "study" / name).write_bytes(BOMBS[bomb])
    for read in (lambda: recall(tmp_path, "study"), lambda: Winner.load(tmp_path / "study")):
        with pytest.raises(StudyError, match=r"cannot read .*\.json") as caught:
            read()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "values",
    [{"data": 3}, {"data": "x", "pictures": True}, {"data": "x", "test_data": ["y"]}, {"data": "x", "storage": 1}],
)
def test_settings_of_wrong_types_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    whole = {"data": "x", "test_data": None, "pictures": None, "storage": None} | values
    (tmp_path / "study" / FILE).write_text(json.dumps(whole))
    with pytest.raises(StudyError, match=r"settings\.json \('\w+' is "):
        recall(tmp_path, "study")


def winner(**changes: Any) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": "trial 0",
        "trial": 0,
        "config": config().to_dict(),
        "pictures": "42",
        "trials": 1,
        "seed": 1,
        "seed_index": 0,
        "environment": {},
        "epochs": 1,
        "trained_on": ["train"],
        "weights": "trials/0000/best.pt",
        "temperature": None,
        "calibration": None,
        "networks": "",
        "validation": {"recorded": 0.5},
        "results": None,
    } | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": "../../elsewhere.pt"},
        {"weights": "/etc/hostname"},
        {"config": {}},
        {"config": config().to_dict() | {"image_size": -5}},
        {"temperature": "hot"},
        {"trained_on": ["everything"]},
        {"results": []},
    ],
)
def test_an_impossible_winner_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "retrained.json").write_text(json.dumps(winner()))
    assert Winner.load(tmp_path) is not None
    (tmp_path / "retrained.json").write_text(json.dumps(winner(**changes)))
    with pytest.raises(StudyError, match=r"cannot read .*retrained\.json \("):
        Winner.load(tmp_path)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200)
@given(st.data())
def test_a_configuration_with_any_value_is_valid_or_a_value_error(data: st.DataObject) -> None:
    values = config().to_dict()
    place = values
    name = data.draw(st.sampled_from(sorted(values)))
    if isinstance(values[name], dict) and data.draw(st.booleans()):
        place = values[name]
        name = data.draw(st.sampled_from(sorted(place)))
    place[name] = data.draw(plain)
    try:
        made = Config.from_dict(values)
    except ValueError:
        return
    assert made.to_dict() == values | {k: made.to_dict()[k] for k in ("model", "augment", "training")}


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """torch does not compress checkpoints, so a megabyte that unpacks to a gigabyte is not one of ours."""
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100_000_000))
    with pytest.raises(checkpoint.CheckpointError, match="BadZipFile"):
        checkpoint.load(tmp_path / "bomb.pt")


def test_a_history_of_wrong_types_is_refused(tmp_path: Path) -> None:
    record = {
        **dict.fromkeys(("train_loss", "train_top1", "validation_loss", "top1", "top3", "lr", "seconds"), 0.5),
        **{"epoch": 0, "confusion": [[1]], "peak_memory": 1, "mistakes": []},
    }
    fields = {
        "format": checkpoint.FORMAT,
        "attempt": 1,
        "job_digest": "x",
        "model": {},
        "averaged": None,
        "optimizer": None,
    }
    torch.save(fields | {"history": [record]}, tmp_path / "good.pt")
    assert checkpoint.load(tmp_path / "good.pt").history[0].top1 == 0.5
    for change in ({"top1": "0.5"}, {"confusion": [["x"]]}, {"epoch": None}, {"validat\0\x1b[31mn_loss": 1.0}):
        torch.save(fields | {"history": [record | change]}, tmp_path / "bad.pt")
        with pytest.raises(checkpoint.CheckpointError, match="one record per epoch") as caught:
            checkpoint.load(tmp_path / "bad.pt")
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("damage", [b"\x93NUMPY\x01\x00\x02\x00{(", b"\x93NUMPY\x01\x00\x05\x00'''\n\n", b""])
def test_a_damaged_cache_header_is_reported(damage: bytes, tmp_path: Path) -> None:
    """On an open bracket in it, Python's tokenizer raised its own error, with a traceback."""
    parts = {part: np.array([0, 1]) for part in ("train", "validation", "test")}
    digest = cache._digest(np.array([0, 1]), parts)
    handle = CacheHandle(directory=tmp_path, fingerprint="f", split=digest, classes=("a", "b"))
    np.savez(tmp_path / f"split-{digest}.npz", labels=np.array([0, 1]), **parts)
    (tmp_path / "8.npy").write_bytes(damage)
    with pytest.raises(DataError, match=r"8\.npy .*run the same command again"):
        open_part(handle, 8, "train")


def test_a_split_file_with_another_splits_content_is_refused(tmp_path: Path) -> None:
    handle = CacheHandle(directory=tmp_path, fingerprint="f", split="0011223344556677", classes=("a", "b"))
    np.savez(tmp_path / "split-0011223344556677.npz", labels=[0, 1], train=[9], validation=[1], test=[1])
    np.save(tmp_path / "8.npy", np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"split-0011223344556677\.npz .*run the same command again"):
        open_part(handle, 8, "train")


# --- passwords


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    with steady_threads():
        yield prepare(tmp_path_factory.mktemp("hostile"))


@pytest.mark.long
def test_a_database_password_is_in_no_file_and_no_output(tiny: Tiny, tmp_path: Path) -> None:
    """SQLite ignores unknown parameters in a file's URI, so that a study with a password can run here."""
    study = tiny.at(tmp_path / "results")
    url = f"sqlite:///file:{tmp_path}/elsewhere.db?uri=true&password={SECRET}"
    ended = study.command("--workers", "1", "--trials", "1", "--storage", url)
    assert ended.code == 0, ended.err
    assert "PGPASSFILE" in ended.out
    assert (tmp_path / "elsewhere.db").exists()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    after = run_here(*study.after("report")[:5])
    assert after.code == 2
    assert "password" in after.err and "--storage URL" in after.err
    for finished in (ended, after):
        assert SECRET not in finished.out + finished.err
