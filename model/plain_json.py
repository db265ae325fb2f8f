"""JSON that a stranger may have written: read strictly, so that what comes out is what a person sees in the file.

bytes -> `parse`: UTF-8, no name twice, no NaN, no infinity, not too deep -> `fill`: a dataclass, each field of its type
Python's own reader takes what `parse` refuses, and answers a hundred thousand brackets with a RecursionError.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from model.files import open_regular

MAX_BYTES = 4 * 2**20
"""Of a file; what this program writes has some thousands."""
MAX_DEPTH = 32
"""Levels; what this program writes has five."""

Filled = TypeVar("Filled")


def read(path: Path) -> Any:
    """What a file says. Raises OSError where it cannot be read, and ValueError as `parse` does."""
    with open_regular(path, MAX_BYTES) as file:
        return parse(file.read())


def parse(content: bytes) -> Any:
    """What bytes say. Raises ValueError with the reason where they are no such JSON."""
    try:
        value: Any = json.loads(
            content.decode("utf-8"), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite
        )
    except RecursionError:
        raise ValueError(f"more than {MAX_DEPTH} levels") from None
    if _deeper(value, MAX_DEPTH):
        raise ValueError(f"more than {MAX_DEPTH} levels")
    return value


def fill(kind: type[Filled], values: Any) -> Filled:
    """A dataclass from a JSON object with its fields' names, each value of its field's type; True is no number.

    Raises ValueError with the reason, and what the dataclass itself raises.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__} is an object, but got {short(cast(object, values))}")
    given, hints = cast(dict[str, Any], values), get_type_hints(kind)
    known = fields(cast(Any, kind))
    needed = {field.name for field in known if field.default is MISSING and field.default_factory is MISSING}
    if wrong := (needed - given.keys()) | (given.keys() - hints.keys()):
        name = min(wrong)
        raise ValueError(f"{kind.__name__} {'needs' if name in needed else 'has no'} {short(name)}")
    for name, value in given.items():
        if not fits(value, hints[name]):
            raise ValueError(f"{kind.__name__} has {short(value)} as {short(name)}")
    return kind(**given)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as annotated: plain types, unions, literals, lists, tuples of one kind, objects."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in args)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin in (list, tuple):
        return type(value) is origin and all(fits(item, args[0]) for item in value)
    if origin is dict:
        return type(value) is dict and all(fits(item, args[1]) for item in cast(dict[Any, Any], value).values())
    return type(value) in (int, float) if hint is float else type(value) is hint


def short(value: object) -> str:
    """A value from a stranger's file: in one line, and not longer than it helps."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:56]} ..."


def twice(names: Iterable[str]) -> str | None:
    """A name that is there more than once, if any."""
    counts = Counter(names).most_common(1)
    return counts[0][0] if counts and counts[0][1] > 1 else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if (name := twice(name for name, _ in pairs)) is not None:
        raise ValueError(f"{short(name)} is there twice")
    return dict(pairs)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{short(text)} is not a finite number")
    return number


def _deeper(value: object, depth: int) -> bool:
    """Whether lists and objects nest more than `depth` levels; level by level, as recursion is what must not happen."""
    level: list[Any] = [value]
    for _ in range(depth + 1):
        level = [item for item in level if isinstance(item, (dict, list))]
        if not level:
            return False
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return True
