"""Checks of single files: find them, open each one once, and remember the results.

`walk` lists the files of the class folders. `check_files` opens them in threads (Pillow's decoders release the GIL) and
returns a `FileCheck` for each. The results are stored in cache_dir/scans, so that a file whose size and modification
time are unchanged is not opened again. What depends on other files, such as duplicates, is left to the catalog.
"""

import hashlib
import io
import json
import os
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from data import CACHE_FIX, Track, explained, no_track
from model import preprocessing
from model.files import is_hidden, open_regular, printable, replacing
from model.limits import cpus
from model.preprocessing import (
    MAX_BYTES,
    MAX_PIXELS,
    MIN_SIDE,
    ORDINARY,
    MissingReaderError,
    PictureError,
    Traits,
    Values,
    picture_formats,
    read_picture,
)

THUMBNAIL = (16, 18)
"""Rows and columns of the grey thumbnails in which near-duplicates are found."""

SUFFIXES = preprocessing.SUFFIXES | {".tga", ".psd", ".svg", ".raw", ".dng", ".cr2", ".nef"}
"""Suffixes of files meant to be pictures: those that cannot be decoded are "unreadable", others "not a picture"."""

SCAN_VERSION = 2
"""Version of the stored results. Raise it when a file would now get a different result; older ones are then ignored."""


class Verdict(StrEnum):
    """Whether a file is used, or why it is left out."""

    KEPT = "kept"
    UNREADABLE = "unreadable"
    """File named like a picture, but truncated, broken, empty or of an unknown format."""
    TOO_SMALL = "too_small"
    """Picture whose shorter side is below MIN_SIDE pixels."""
    DUPLICATE = "duplicate"
    """Copy of a kept picture of the same class, in the same official part or in one that has priority."""
    CONFLICT = "conflict"
    """Copy of a picture in another class: at least one of the labels is wrong, and it is unknown which."""
    REFUSED = "refused"
    """Not opened because unsafe or useless: a link out of the data set, a decompression bomb, a pipe, a stray file."""
    NOT_A_PICTURE = "not_a_picture"
    """Not a picture: text, spreadsheet, video and the like."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """File found by `walk`, not opened yet."""

    path: str
    """Path relative to the part's folder, with forward slashes."""
    label: str
    """Name of the class folder; "" for files beside the class folders."""
    size_bytes: int = 0
    mtime_ns: int = 0
    verdict: Verdict | None = None
    """Verdict if name, type or size decide it; None if the file has to be opened."""
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileCheck:
    """Result of opening one file."""

    verdict: Verdict
    reason: str = ""
    width: int = 0
    height: int = 0
    """Pixels as stored, before EXIF rotation; 0 when the header cannot be read."""
    mode: str = ""
    """Pillow's name for the file's pixel format: RGB, L, CMYK, ..."""
    content_hash: str = ""
    """BLAKE2b of the file's bytes, 32 hex digits; "" unless kept."""
    thumbnail: bytes = b""
    """THUMBNAIL grey values, row by row; empty unless kept. More than 8 bits are scaled by the picture's own range."""
    traits: Traits = ORDINARY
    reusable: bool = True
    """Whether the next scan may reuse this result; not if it depended on permissions, free memory or an
    optional package, not the file."""


def stray(folder: Path, beside: Path) -> Iterator[Entry]:
    """Yield the files directly in `beside`, a folder of class folders under `folder`; hidden ones are skipped.

    Raises DataError when the folder cannot be listed.
    """
    for entry in _scandir(beside):
        if not _is_folder(entry, follow_links=True) and not is_hidden(entry.name):
            verdict = Verdict.REFUSED if named_like_a_picture(entry.name) else Verdict.NOT_A_PICTURE
            path = (beside / entry.name).relative_to(folder).as_posix()
            yield Entry(path=path, label="", verdict=verdict, reason="not in a class folder")


def walk(
    folder: Path, classes: Mapping[str, Sequence[Path]], *, within: Sequence[Path], follow_links: bool = False
) -> Iterator[Entry]:
    """Yield every file of each class's folders under `folder`, class by class; hidden ones are skipped.

    Nested folders belong to their class; folders named like a picture are not entered. Links to files are followed when
    the file is under one of `within`, links to folders are not. With `follow_links`, both are followed wherever they
    lead, except that a folder is read only once per class, and never from inside itself.
    Raises DataError when a folder cannot be listed.
    """
    for label, tops in classes.items():
        folders = [(top, top.relative_to(folder).as_posix()) for top in reversed(tops)]
        read = {os.path.realpath(top) for top in tops}
        while folders:
            inside, prefix = folders.pop()
            for entry in _scandir(inside):
                if is_hidden(entry.name):
                    continue
                path = f"{prefix}/{entry.name}"
                if not _is_folder(entry, follow_links=follow_links):
                    yield _entry(entry, path, label, None if follow_links else within)
                elif named_like_a_picture(entry.name):
                    yield Entry(path=path, label=label, verdict=Verdict.REFUSED, reason="a folder named like a picture")
                elif follow_links and (reason := _why_not_entered(entry, (inside, *tops), read)):
                    yield Entry(path=path, label=label, verdict=Verdict.REFUSED, reason=reason)
                else:
                    folders.append((Path(entry.path), path))


def check_files(folder: Path, entries: Sequence[Entry], *, cache_dir: Path, track: Track = no_track) -> list[FileCheck]:
    """Return the check of each entry, in order; a file that was checked before and has not changed is not opened.

    Results are stored even if the scan is interrupted. Raises DataError if they cannot be stored.
    """
    cache = ScanCache.load(cache_dir, folder)
    checks: list[FileCheck | None] = [
        FileCheck(verdict=entry.verdict, reason=entry.reason) if entry.verdict else cache.find(entry)
        for entry in entries
    ]
    missing = [position for position, check in enumerate(checks) if check is None]
    if missing:
        pool = ThreadPoolExecutor(max_workers=min(32, cpus()))
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"PIL\.")  # about odd metadata, which do not matter here
                found = pool.map(_check_file, [folder / entries[position].path for position in missing])
                for position, check in zip(missing, track(found, "Checking pictures", len(missing)), strict=True):
                    checks[position] = check
        finally:
            pool.shutdown(cancel_futures=True)
            cache.save(entries, checks)
    return [check for check in checks if check is not None]


def _scandir(folder: Path) -> list[os.DirEntry[str]]:
    with explained(f"cannot read {printable(folder)}", "change its permissions"), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str], *, follow_links: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow_links)
    except OSError:  # a link to itself
        return False


def _why_not_entered(entry: os.DirEntry[str], inside: Sequence[Path], read: set[str]) -> str:
    """Return why a folder, which may be a link, is not entered; "" if it is, and then add its real path to `read`.

    A link is not followed to a folder that contains one of `inside`.
    """
    target = os.path.realpath(entry.path)
    if target in read:
        return f"a folder that is read already, {printable(target)}"
    if entry.is_symlink():
        above = target.rstrip(os.sep) + os.sep
        if any(os.path.realpath(folder).startswith(above) for folder in inside):
            return f"a link back to a folder that contains it, {printable(target)}"
    read.add(target)
    return ""


def _entry(entry: os.DirEntry[str], path: str, label: str, within: Sequence[Path] | None) -> Entry:
    """Return the entry for anything but a folder, with a verdict if it is not to be opened.

    That is everything but regular files, and links to files that are not under one of `within`, unless it is None.
    """
    try:
        status = entry.stat()  # follows links
        target = Path(entry.path).resolve(strict=True) if entry.is_symlink() else None
    except (OSError, RuntimeError):  # RuntimeError: a link to itself, before Python 3.13
        return Entry(path=path, label=label, verdict=Verdict.REFUSED, reason="a broken link")
    reason = ""
    if target is not None and within is not None and not any(target.is_relative_to(folder) for folder in within):
        reason = f"a link out of the data set, to {printable(target)}"
    elif stat.S_ISDIR(status.st_mode):
        reason = "a link to a folder"
    elif not stat.S_ISREG(status.st_mode):
        reason = "not a regular file"
    elif status.st_size > MAX_BYTES and named_like_a_picture(entry.name):
        reason = f"{status.st_size / 1e9:,.1f} GB, more than the {MAX_BYTES / 1e9:.1f} allowed"
    verdict = Verdict.REFUSED if reason else None
    if not reason and status.st_size == 0:
        verdict = Verdict.UNREADABLE if named_like_a_picture(entry.name) else Verdict.NOT_A_PICTURE
        reason = "an empty file"
    size, mtime = status.st_size, status.st_mtime_ns
    return Entry(path=path, label=label, size_bytes=size, mtime_ns=mtime, verdict=verdict, reason=reason)


def named_like_a_picture(name: str) -> bool:
    """Return whether a file's name says that it is meant to be a picture."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - for a bare name 20 times faster than Path


def _check_file(path: Path) -> FileCheck:
    try:
        with open_regular(path, MAX_BYTES) as file:
            return _check_open_file(file, named_like_a_picture(path.name))
    except OSError as error:
        return FileCheck(verdict=Verdict.UNREADABLE, reason=f"cannot be opened ({error.strerror})", reusable=False)
    except MemoryError:
        return FileCheck(verdict=Verdict.REFUSED, reason="too large for the free memory", reusable=False)


def _check_open_file(file: io.BufferedReader, named_like_a_picture: bool) -> FileCheck:
    header = _check_header(file)
    file.seek(0)
    try:
        # The short side keeps at least 2 x 32 pixels: enough for the thumbnail, and JPEGs decode up to 4 times faster.
        image, traits = read_picture(file, at_least=32, ranges=None)
    except PictureError as error:
        if header.width * header.height > MAX_PIXELS or header.verdict is Verdict.REFUSED:
            return replace(header, verdict=Verdict.REFUSED, reason=str(error))
        meant = named_like_a_picture or header.width > 0
        verdict = Verdict.UNREADABLE if meant else Verdict.NOT_A_PICTURE
        reusable = not isinstance(error, MissingReaderError)
        return replace(header, verdict=verdict, reason=str(error), reusable=reusable)
    if min(header.width, header.height) < MIN_SIDE:
        reason = f"{header.width} x {header.height} pixels, the shorter side must be at least {MIN_SIDE}"
        return replace(header, verdict=Verdict.TOO_SMALL, reason=reason)
    rows, columns = THUMBNAIL
    thumbnail = image.convert("L").resize((columns, rows), Image.Resampling.BOX).tobytes()
    if thumbnail.count(thumbnail[:1]) == len(thumbnail):  # worth a closer look
        traits = traits._replace(
            flat=all(low == high for low, high in cast("tuple[tuple[int, int], ...]", image.getextrema()))
        )
    file.seek(0)
    content_hash = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return replace(
        header, content_hash=content_hash, thumbnail=thumbnail, traits=ORDINARY if traits == ORDINARY else traits
    )


def _check_header(file: io.BufferedReader) -> FileCheck:
    """Return the size and mode as stored in the file, which a decoded picture no longer has."""
    try:
        with Image.open(file, formats=picture_formats(file)) as header:
            return FileCheck(verdict=Verdict.KEPT, width=header.width, height=header.height, mode=header.mode)
    except Image.DecompressionBombError:
        return FileCheck(verdict=Verdict.REFUSED)
    except Exception:  # decoders raise almost anything on broken bytes; `open_picture` then gives the reason
        return FileCheck(verdict=Verdict.UNREADABLE)


@dataclass(frozen=True, kw_only=True)
class ScanCache:
    """Stored checks of one folder's files: cache_dir/scans/<hash of the folder's path>.npz.

    The file holds a JSON document, as bytes so that nothing is pickled, and the thumbnails. It is ignored if another
    version of Pillow or of the preprocessing wrote it, because its verdicts might differ.
    """

    path: Path
    checks: dict[tuple[str, int, int], FileCheck]
    """Checks by path, size and modification time."""

    @classmethod
    def load(cls, cache_dir: Path, folder: Path) -> "ScanCache":
        """Return the stored checks; none if the file is missing, corrupt or of another version."""
        name = hashlib.blake2b(os.fsencode(folder), digest_size=12).hexdigest()
        path = cache_dir / "scans" / f"{name}.npz"
        checks: dict[tuple[str, int, int], FileCheck] = {}
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                document = json.loads(stored["document"].tobytes())
                thumbnails: npt.NDArray[np.uint8] = stored["thumbnails"]
            if document["versions"] != _versions():
                return cls(path=path, checks={})
            for (file, size, mtime, verdict, reason, width, height, mode, content_hash, traits), thumbnail in zip(
                document["looks"], thumbnails, strict=True
            ):
                checks[file, size, mtime] = FileCheck(
                    verdict=Verdict(verdict),
                    reason=reason,
                    width=width,
                    height=height,
                    mode=mode,
                    content_hash=content_hash,
                    thumbnail=thumbnail.tobytes() if verdict == Verdict.KEPT else b"",
                    traits=_traits(traits) if traits else ORDINARY,
                )
        except Exception:  # a torn zip raises a dozen kinds of error, and the cure for each is to check the files again
            checks = {}
        return cls(path=path, checks=checks)

    def find(self, entry: Entry) -> FileCheck | None:
        """Return the stored check of this file, if it has not changed since."""
        return self.checks.get((entry.path, entry.size_bytes, entry.mtime_ns))

    def save(self, entries: Sequence[Entry], checks: Sequence[FileCheck | None]) -> None:
        """Store every check made so far. Raises DataError when the file cannot be written."""
        rows = [
            (entry, check)
            for entry, check in zip(entries, checks, strict=True)
            if check is not None and check.reusable and entry.verdict is None
        ]
        if not rows:
            return
        document = {
            "versions": _versions(),
            "looks": [  # an old name for checks, kept so that stored files stay readable
                (
                    entry.path,
                    entry.size_bytes,
                    entry.mtime_ns,
                    check.verdict,
                    check.reason,
                    check.width,
                    check.height,
                    check.mode,
                    check.content_hash,
                    None if check.traits is ORDINARY else check.traits,
                )
                for entry, check in rows
            ],
        }
        blank = bytes(THUMBNAIL[0] * THUMBNAIL[1])
        thumbnails = np.frombuffer(b"".join(check.thumbnail or blank for _, check in rows), dtype=np.uint8)
        packed = io.BytesIO()
        np.savez(
            packed,
            document=np.frombuffer(json.dumps(document).encode("ascii"), dtype=np.uint8),
            thumbnails=thumbnails.reshape(len(rows), -1),
        )
        with explained(f"cannot write {printable(self.path.parent)}", CACHE_FIX):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as unfinished:
                unfinished.write_bytes(packed.getbuffer())


def _traits(stored: list[Any]) -> Traits:
    traits = Traits(*stored)
    return traits._replace(values=Values(*traits.values) if traits.values else None)


def _versions() -> list[str | int]:
    return [SCAN_VERSION, preprocessing.VERSION, PIL.__version__]
