"""Opening a file whose place or kind a stranger may have chosen: ordinary files only, of a size that can be right."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


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


def _check(status: os.stat_result, limit: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_size > limit:
        raise OSError(errno.EFBIG, f"{status.st_size / 1e9:,.1f} GB, more than the {limit / 1e9:.1f} allowed")


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
