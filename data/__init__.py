"""The data path: source -> catalog -> split -> cache -> batches.

This package's face is light (no numpy, no torch), so that the command line can name its error without loading the rest.
"""

from collections.abc import Callable, Iterable
from typing import Any

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Wraps an iterable of known length to show how far it is: `track(iterable, description, total)`."""


class DataError(Exception):
    """Something about the user's pictures that only the user can mend; its text is one line with the way out."""


def no_track(iterable: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """The silent `Track`: hands the iterable on."""
    return iterable
