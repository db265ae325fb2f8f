"""Files that a stranger may have made or named: opened only where they are ordinary, shown without effect."""

import errno
import os
import stat
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

UNFINISHED = ".part"
"""Suffix of a file that is still being written; one that stays behind was left by a killed process."""


def open_regular(path: Path, limit: int) -> BufferedReader:
    """A file of at most `limit` bytes, for reading. A pipe is not waited for, a device is not touched.

    Raises OSError, with the reason as its `strerror`.
    """
    _check(path.stat(), limit)
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - it is handed on
    try:
        _check(os.fstat(file.fileno()), limit)  # it may have been replaced in between
    except OSError:
        file.close()
        raise
    return file


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary path beside `path` and rename it to `path` at the end: a file that is there is whole.

    Nothing is left behind, and `path` is unchanged, when the body raises. Raises OSError.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}{UNFINISHED}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def printable(text: str | Path) -> str:
    """A name as it can be shown: line ends, terminal escapes and bytes that are no UTF-8 as `\\n`, `\\x1b`, …."""
    shown = str(text)
    return shown if shown.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is an operating system's own and is passed over in silence."""
    return name.startswith(".") or name == "__MACOSX"


def why(error: OSError | ValueError) -> str:
    """What stood against reading a file, as part of a line."""
    return printable(str(error.strerror if isinstance(error, OSError) else error))[:160]


def _check(status: os.stat_result, limit: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_size > limit:
        raise OSError(errno.EFBIG, f"{status.st_size / 1e9:,.1f} GB, more than the {limit / 1e9:.1f} allowed")


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
