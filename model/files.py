"""Safe reading, writing and naming of files.

Untrusted files are opened only if they are regular, and their names are escaped before they are shown. Every file is
written under a temporary name and renamed, so that a file that exists is complete.
"""

import errno
import math
import os
import stat
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from io import BufferedReader, BufferedWriter
from pathlib import Path

UNFINISHED = ".part"
"""Suffix of a file that is still being written, or was left behind by a killed process."""


def open_regular(path: Path, limit: int, *, follow_links: bool = True) -> BufferedReader:
    """Open a file of up to `limit` bytes for reading, without waiting for a pipe or touching a device.

    Raises OSError, with the reason as its `strerror`.
    """
    flags = getattr(os, "O_NONBLOCK", 0) | (0 if follow_links else getattr(os, "O_NOFOLLOW", 0))
    _check(path.stat(), limit)
    file = open(path, "rb", opener=lambda name, given: os.open(name, given | flags))  # noqa: SIM115 - returned open
    try:
        _check(os.fstat(file.fileno()), limit)  # it may have been replaced in between
    except OSError:
        file.close()
        raise
    return file


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` at the end.

    If the body raises, `path` is unchanged and nothing is left behind. Raises OSError.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}{UNFINISHED}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def replacing_on_disk(path: Path) -> Generator[BufferedWriter]:
    """Yield a binary file that is renamed to `path` once its bytes are on the disk, as `replacing` does.

    Even after a power failure, `path` is either the old file or the complete new one. Raises OSError.
    """
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def printable(text: str | Path) -> str:
    """Return text with line breaks, terminal escapes and bytes that are not UTF-8 shown as `\\n`, `\\x1b` and so on."""
    shown = str(text)
    return shown if shown.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)


def csv_cell(text: str | Path) -> str:
    """Return a name or path as a CSV cell: printable, and never mistaken for a formula by a spreadsheet.

    A downloaded data set may have a folder called `=HYPERLINK(...)`. A path gets `./` in front, which does not change
    it; a name gets an apostrophe, the spreadsheets' own mark for text (OWASP, "CSV Injection"). Numbers are left alone.
    """
    shown = printable(text.as_posix() if isinstance(text, Path) else text)
    if not shown.startswith(("=", "+", "-", "@")):
        return shown
    if isinstance(text, Path):
        return f"./{shown}"
    try:
        return shown if math.isfinite(float(shown)) else f"'{shown}"
    except ValueError:
        return f"'{shown}"


def is_hidden(name: str) -> bool:
    """Return whether a file or folder belongs to the operating system and is silently skipped."""
    return name.startswith(".") or name == "__MACOSX"


def why(error: OSError | ValueError) -> str:
    """Return why a file could not be read, in one line of up to 160 characters."""
    return printable(str(error.strerror if isinstance(error, OSError) else error))[:160]


def _check(status: os.stat_result, limit: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_size > limit:
        unit, name = (1e9, "GB") if limit >= 1e9 else (1e6, "MB")
        raise OSError(errno.EFBIG, f"{status.st_size / unit:,.1f} {name}, more than the {limit / unit:.1f} allowed")
