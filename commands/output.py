"""Standard output and error that can fail: a reader that leaves ends the printing, never the work.

A pipe is closed (`python study.py | head`), the disk behind a log is full, a terminal goes away, a descriptor was
closed from the start (`>&-`): `lasting_output` drops what cannot be written, for every print of a command.
`essential_output` is for the few commands whose printing is their work.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from tuning import StudyError

READER_LEFT = 128 + 13
"""Exit code of a command that ended because its reader closed the pipe: the one that a shell gives for SIGPIPE."""


class _Lasting(io.RawIOBase):
    """Writes to a file descriptor, and drops what cannot be written."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self.essential = False
        """Whether a write that fails raises SystemExit, if the reader has left, or StudyError."""
        self.reported = False
        """Whether such a write has ended the command, so that nothing more needs to be said."""
        self.error: OSError | None = None
        """Last reason why something was dropped."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()

    def write(self, content: Any, /) -> int:
        try:
            # None from a full pipe that another program has made non-blocking
            while (written := self._raw.write(content)) is None:
                select.select([], [self._raw], [])
            return written
        except OSError as error:
            self.error = error
            if not self.essential:
                return len(content)
            self.reported = True
            if error.errno == errno.EPIPE:
                raise SystemExit(READER_LEFT) from None
            raise StudyError(
                f"cannot write to standard output ({error.strerror}): free some space, or write to another place"
            ) from error


@contextmanager
def lasting_output() -> Generator[None]:
    """Have prints to the process's own standard output and error never fail in the body.

    A character that the encoding of the terminal or log lacks is printed as an escape. At the end, a line on standard
    error says if output was lost for another reason than a closed pipe.
    """
    _open_standard_descriptors()
    before = sys.stdout, sys.stderr
    out, err = (_Lasting(_raw(stream, number)) for number, stream in ((1, sys.__stdout__), (2, sys.__stderr__)))
    # A stream that somebody has put in place of the process's own is left alone
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(out, like=sys.__stdout__)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(err, like=sys.__stderr__)
    try:
        yield
    finally:
        sys.stdout.flush()
        if out.error is not None and out.error.errno != errno.EPIPE and not out.reported:
            print(
                f"Warning: some of the output was lost, as it could not be written ({out.error.strerror}).",
                file=sys.stderr,
            )
        sys.stdout, sys.stderr = before


@contextmanager
def essential_output() -> Generator[None]:
    """End the command in the body as soon as standard output cannot be written.

    Raises SystemExit with READER_LEFT if the reader has closed the pipe, and StudyError for any other reason.
    """
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(raw, _Lasting):
        yield
        return
    raw.essential = True
    try:
        yield
        sys.stdout.flush()
    finally:
        raw.essential = False


def _open_standard_descriptors() -> None:
    """Open the null device in place of standard descriptors that are closed.

    Otherwise the next files to be opened would get their numbers, and a message of a library in C would be written into
    one of them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number


def _raw(stream: Any, number: int) -> io.RawIOBase:
    """Return the unbuffered file of a standard stream."""
    if stream is None:
        return io.FileIO(number, "w", closefd=False)
    return getattr(stream.buffer, "raw", stream.buffer)  # the buffer itself with PYTHONUNBUFFERED


def _text(raw: _Lasting, like: io.TextIOWrapper | None) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=like and like.encoding,
        errors="backslashreplace",
        line_buffering=like is not None and (like.line_buffering or like.write_through),
    )
