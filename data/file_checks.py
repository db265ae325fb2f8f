"""What one file is worth: walk a class folder, open each file once, and remember what was seen.

`walk` lists the files; `examine` opens them in threads (Pillow's decoders let go of the interpreter's lock) and gives
one `Look` per file; the looks lie in cache_dir/scans, so that a file whose size and time are unchanged is not opened
again. What a file is worth beside other files - duplicates, conflicts - is the catalog's business.
"""

import hashlib
import io
import json
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from data import DataError, Track, no_track
from model import preprocessing
from model.files import is_hidden, open_regular, printable
from model.preprocessing import FORMATS, MAX_BYTES, MAX_PIXELS, MIN_SIDE, PictureError, open_picture

THUMBNAIL = (16, 18)
"""Rows and columns of the grey thumbnail that near-duplicates are found by."""

SUFFIXES = preprocessing.SUFFIXES | {".tga", ".psd", ".svg", ".raw", ".dng", ".cr2", ".nef"}
"""A broken file with such a name was meant to be a picture: unreadable; any other is no picture."""

MEMORY_VERSION = 1
"""Raised when looks change their meaning: older memories are then not believed."""

NO_THUMBNAIL = b""


class Verdict(StrEnum):
    """What becomes of a file; all but the first are left out."""

    KEPT = "kept"
    UNREADABLE = "unreadable"
    """Named like a picture, but truncated, broken, empty, or of an unknown format."""
    TOO_SMALL = "too_small"
    """Its shorter side has fewer than MIN_SIDE pixels."""
    DUPLICATE = "duplicate"
    """The same bytes as a kept picture of its class; or a (near-)copy of a picture of an official test part."""
    CONFLICT = "conflict"
    """The same bytes in two classes: at least one label is wrong, and nobody knows which."""
    REFUSED = "refused"
    """Not safe or not sensible to open: a link out of the data set, a decompression bomb, a pipe, a stray file."""
    NOT_A_PICTURE = "not_a_picture"
    """A text, a spreadsheet, a video."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A name found by `walk`; `reason` says why it must not be opened, if so."""

    path: str
    """Relative to the part's folder, with forward slashes."""
    label: str
    """The class folder it lies in; "" for files beside the class folders."""
    size_bytes: int = 0
    mtime_ns: int = 0
    verdict: Verdict | None = None
    """Decided from the name alone; None: to be opened."""
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What opening a file showed."""

    verdict: Verdict
    reason: str = ""
    width: int = 0
    height: int = 0
    """As stored in the file, before EXIF turns it; 0 where the header cannot be read."""
    mode: str = ""
    """Pillow's name of the pixel format in the file: RGB, L, CMYK, …"""
    content_hash: str = ""
    """BLAKE2b of the file's bytes, 32 hex digits; "" unless kept."""
    thumbnail: bytes = NO_THUMBNAIL
    """THUMBNAIL grey values, row by row; empty unless kept."""
    lasting: bool = True
    """Whether the next scan may believe it: a permission can change without the file's time changing."""


def walk(folder: Path, classes: dict[str, Path], *, within: Sequence[Path]) -> Iterator[Entry]:
    """Every file under `folder` that is not hidden: first those beside the class folders, then class by class.

    A class's nested folders belong to it. Links are followed to files whose real place is under one of `within`; links
    to folders are not (a loop would never end), nor is a folder whose name ends like a picture's.
    Raises DataError when a folder cannot be listed.
    """
    for entry in _scandir(folder):
        if not entry.is_dir() and not is_hidden(entry.name):
            reason = "lies in no class folder"
            verdict = Verdict.REFUSED if _named_like_a_picture(entry.name) else Verdict.NOT_A_PICTURE
            yield Entry(path=entry.name, label="", verdict=verdict, reason=reason)
    for label, top in classes.items():
        folders = [(top, label)]
        while folders:
            inside, prefix = folders.pop()
            for entry in _scandir(inside):
                if is_hidden(entry.name):
                    continue
                path = f"{prefix}/{entry.name}"
                if not entry.is_dir(follow_symlinks=False):
                    yield _file(entry, path, label, within)
                elif _named_like_a_picture(entry.name):
                    yield Entry(path=path, label=label, verdict=Verdict.REFUSED, reason="a folder named like a picture")
                else:
                    folders.append((Path(entry.path), path))


def examine(folder: Path, entries: Sequence[Entry], *, cache_dir: Path, track: Track = no_track) -> list[Look]:
    """One look per entry, in order. Files whose path, size and time are in the memory of `folder` are not opened.

    What was seen is remembered even when the scan is interrupted.
    Raises DataError when the memory cannot be written.
    """
    memory = _Memory.load(cache_dir, folder)
    looks: list[Look | None] = [
        Look(verdict=entry.verdict, reason=entry.reason) if entry.verdict else memory.recall(entry) for entry in entries
    ]
    unseen = [position for position, look in enumerate(looks) if look is None]
    if unseen:
        pool = ThreadPoolExecutor(max_workers=min(32, os.cpu_count() or 1))
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata; a verdict says what matters
                seen = pool.map(_look, [folder / entries[position].path for position in unseen])
                for position, look in zip(unseen, track(seen, "Looking at the pictures", len(unseen)), strict=True):
                    looks[position] = look
        finally:
            pool.shutdown(cancel_futures=True)
            memory.save(entries, looks)
    return [look for look in looks if look is not None]


def _scandir(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"every class folder must be readable, but {printable(folder)} is not ({error.strerror}); mend its rights"
        ) from error


def _file(entry: os.DirEntry[str], path: str, label: str, within: Sequence[Path]) -> Entry:
    """The entry of one name that is no folder, refused when it is no regular file under one of `within`."""
    try:
        status = entry.stat()  # follows links
        real = Path(entry.path).resolve(strict=True) if entry.is_symlink() else None
    except (OSError, RuntimeError):  # RuntimeError: a link to itself, before Python 3.13
        return Entry(path=path, label=label, verdict=Verdict.REFUSED, reason="a broken link")
    reason = ""
    if real is not None and not any(real.is_relative_to(folder) for folder in within):
        reason = f"a link out of the data set, to {printable(real)}"
    elif stat.S_ISDIR(status.st_mode):
        reason = "a link to a folder"
    elif not stat.S_ISREG(status.st_mode):
        reason = "not a regular file"
    elif status.st_size > MAX_BYTES and _named_like_a_picture(entry.name):
        reason = f"{status.st_size / 1e9:,.1f} GB, more than the {MAX_BYTES / 1e9:.1f} allowed"
    verdict = Verdict.REFUSED if reason else None
    if not reason and status.st_size == 0:
        verdict = Verdict.UNREADABLE if _named_like_a_picture(entry.name) else Verdict.NOT_A_PICTURE
        reason = "an empty file"
    size, mtime = status.st_size, status.st_mtime_ns
    return Entry(path=path, label=label, size_bytes=size, mtime_ns=mtime, verdict=verdict, reason=reason)


def _named_like_a_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - of a bare name, 20 times faster than Path


def _look(path: Path) -> Look:
    try:
        with open_regular(path, MAX_BYTES) as file:
            return _look_into(file, _named_like_a_picture(path.name))
    except OSError as error:
        return Look(verdict=Verdict.UNREADABLE, reason=f"cannot be opened ({error.strerror})", lasting=False)
    except MemoryError:
        return Look(verdict=Verdict.REFUSED, reason="too large for the memory that is free", lasting=False)


def _look_into(file: io.BufferedReader, named_like_a_picture: bool) -> Look:
    header = _header(file)
    file.seek(0)
    try:
        # Keeps 2 x 32 pixels of the short side: enough for the thumbnail, and a JPEG decodes up to 4 times faster.
        image = open_picture(file, at_least=32)
    except PictureError as error:
        if header.width * header.height > MAX_PIXELS or header.verdict is Verdict.REFUSED:
            return replace(header, verdict=Verdict.REFUSED, reason=str(error))
        known = named_like_a_picture or header.width > 0
        return replace(header, verdict=Verdict.UNREADABLE if known else Verdict.NOT_A_PICTURE, reason=str(error))
    if min(header.width, header.height) < MIN_SIDE:
        reason = f"{header.width} x {header.height} pixels, the shorter side needs {MIN_SIDE}"
        return replace(header, verdict=Verdict.TOO_SMALL, reason=reason)
    rows, columns = THUMBNAIL
    thumbnail = image.convert("L").resize((columns, rows), Image.Resampling.BOX).tobytes()
    file.seek(0)
    content_hash = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return replace(header, content_hash=content_hash, thumbnail=thumbnail)


def _header(file: io.BufferedReader) -> Look:
    """Size and mode as the file has them, which the decoded picture no longer shows."""
    try:
        with Image.open(file, formats=FORMATS) as header:
            return Look(verdict=Verdict.KEPT, width=header.width, height=header.height, mode=header.mode)
    except Image.DecompressionBombError:
        return Look(verdict=Verdict.REFUSED)
    except Exception:  # decoders raise nearly anything on broken bytes; `open_picture` then gives the reason
        return Look(verdict=Verdict.UNREADABLE)


class _Memory:
    """The looks at the files of one folder: cache_dir/scans/<hash of its path>.npz, whole or not there.

    The file holds JSON (as bytes, so that nothing is pickled) and the thumbnails beside it. Other versions of Pillow or
    of the preprocessing may judge otherwise: their memories are not believed.
    """

    def __init__(self, path: Path, looks: dict[tuple[str, int, int], Look]) -> None:
        self.path = path
        self.looks = looks

    @classmethod
    def load(cls, cache_dir: Path, folder: Path) -> "_Memory":
        """Of a memory that is missing, of another version or corrupt nothing is remembered."""
        name = hashlib.blake2b(os.fsencode(folder), digest_size=12).hexdigest()
        path = cache_dir / "scans" / f"{name}.npz"
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                document = json.loads(stored["document"].tobytes())
                thumbnails: npt.NDArray[np.uint8] = stored["thumbnails"]
            if document["versions"] != _versions():
                return cls(path, {})
            looks: dict[tuple[str, int, int], Look] = {}
            for (file, size, mtime, verdict, reason, width, height, mode, content_hash), thumbnail in zip(
                document["looks"], thumbnails, strict=True
            ):
                looks[file, size, mtime] = Look(
                    verdict=Verdict(verdict),
                    reason=reason,
                    width=width,
                    height=height,
                    mode=mode,
                    content_hash=content_hash,
                    thumbnail=thumbnail.tobytes() if verdict == Verdict.KEPT else NO_THUMBNAIL,
                )
            return cls(path, looks)
        except Exception:  # a torn zip raises a dozen kinds of error, and the cure of each is to look again
            return cls(path, {})

    def recall(self, entry: Entry) -> Look | None:
        return self.looks.get((entry.path, entry.size_bytes, entry.mtime_ns))

    def save(self, entries: Sequence[Entry], looks: Sequence[Look | None]) -> None:
        rows = [
            (entry, look)
            for entry, look in zip(entries, looks, strict=True)
            if look is not None and look.lasting and entry.verdict is None
        ]
        if not rows:
            return
        document = {
            "versions": _versions(),
            "looks": [
                (
                    entry.path,
                    entry.size_bytes,
                    entry.mtime_ns,
                    look.verdict,
                    look.reason,
                    look.width,
                    look.height,
                    look.mode,
                    look.content_hash,
                )
                for entry, look in rows
            ],
        }
        blank = bytes(THUMBNAIL[0] * THUMBNAIL[1])
        thumbnails = np.frombuffer(b"".join(look.thumbnail or blank for _, look in rows), dtype=np.uint8)
        packed = io.BytesIO()
        np.savez(
            packed,
            document=np.frombuffer(json.dumps(document).encode("ascii"), dtype=np.uint8),
            thumbnails=thumbnails.reshape(len(rows), -1),
        )
        write_whole(self.path, packed.getvalue())


def _versions() -> list[str | int]:
    return [MEMORY_VERSION, preprocessing.VERSION, PIL.__version__]


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is whole as soon as it is there, and its folder. Raises DataError where it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            unfinished.write_bytes(content)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DataError(
            f"{printable(path.parent)} must be a folder that can be written to, but it cannot ({error.strerror}); "
            "make room, mend its rights, or name another"
        ) from error
