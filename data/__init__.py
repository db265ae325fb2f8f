"""The data path: source -> catalog -> split -> cache -> batches.

Importing this package alone loads neither numpy nor torch, so that the command line can name `DataError` cheaply.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

from model.files import printable

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Function that wraps an iterable of known length to show progress: `track(iterable, description, total)`."""

CACHE_FIX = "free some space, change its permissions, or choose another folder with --cache DIR"
"""What to do when a file of the cache cannot be written."""


class DataError(Exception):
    """Problem with the user's pictures or folders that only the user can fix. The text is one line and says how."""


@contextmanager
def explained(problem: str, fix: str) -> Generator[None]:
    """Raise a DataError that reads "`problem` (reason): `fix`" where the body raises an OSError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{problem} ({printable(str(error.strerror or error))}): {fix}") from error


def no_track(iterable: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """Return the iterable unchanged: the `Track` that shows nothing."""
    return iterable
