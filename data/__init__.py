"""The data path: source -> catalog -> split -> cache -> batches.

Importing the package itself loads neither numpy nor torch: the command line catches `DataError` without that wait.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from model.files import printable

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Function that wraps an iterable of known length to show progress: `track(iterable, description, total)`."""

NearDuplicates = Literal["group", "keep"]
"""Whether near-duplicates are grouped, so that the split keeps them together, or treated like different pictures."""

CACHE_FIX = "free some space, change its permissions, or choose another folder with --cache DIR"
"""Fix to suggest if a file of the cache cannot be written."""


class DataError(Exception):
    """Problem with the user's pictures or folders that only the user can fix; its message is one line and says how."""


@contextmanager
def explained(problem: str, fix: str) -> Generator[None]:
    """Turn an OSError raised in the body into a DataError that reads "`problem` (reason): `fix`"."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{problem} ({printable(str(error.strerror or error))}): {fix}") from error


def no_track(iterable: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """Return the iterable unchanged: the `Track` that shows nothing."""
    return iterable


def expanded(path: Path) -> Path:
    """Return the path with a leading ~ replaced by the home folder; unchanged if there is none, as a shell does."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path
