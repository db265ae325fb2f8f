"""Strict reading of untrusted JSON: the result is what a person sees in the file.

bytes -> `parse`: UTF-8, no duplicate key, no NaN or infinity, not nested too deeply -> `fill`: a dataclass, with the
type of each field checked. Python's own reader accepts what `parse` refuses, and raises RecursionError for a hundred
thousand brackets.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from model.files import open_regular

MAX_BYTES = 4 * 2**20
"""Size in bytes of the largest file that is read; a bundle with the confusion matrix of a thousand classes fits."""
MAX_DEPTH = 32
"""Deepest nesting that is read, in levels; this program's own files have five."""

Filled = TypeVar("Filled")


def read(path: Path) -> Any:
    """Return the contents of a JSON file. Raises OSError if it cannot be read, and ValueError as `parse` does."""
    with open_regular(path, MAX_BYTES) as file:
        return parse(file.read())


def parse(content: bytes) -> Any:
    """Parse JSON text. Raises ValueError with the reason if it is not strict JSON."""
    try:
        value: Any = json.loads(
            content.decode("utf-8"), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite
        )
    except RecursionError:
        raise ValueError(f"more than {MAX_DEPTH} levels") from None
    if _deeper(value, MAX_DEPTH):
        raise ValueError(f"more than {MAX_DEPTH} levels")
    return value


def fill(kind: type[Filled], values: Any, prefix: str = "") -> Filled:
    """Return a dataclass filled from a JSON object whose keys are its fields; nested dataclasses are filled likewise.

    A field with a default may be missing, so that a file written before the field existed still opens. `prefix` is put
    before the names in errors. Raises ValueError if a field is missing, unknown or of the wrong type (True is not a
    number), and whatever the dataclass itself raises.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{short(cast(object, values))} is not an object")
    given, hints, made = cast(dict[str, Any], values), get_type_hints(kind), dict[str, Any]()
    known = fields(cast(Any, kind))
    required = {field.name for field in known if field.default is MISSING and field.default_factory is MISSING}
    for problem, names in (("missing", required - given.keys()), ("unknown", given.keys() - hints.keys())):
        if names:
            raise ValueError(f"{problem} fields: {few(prefix + name for name in names)}")
    for name, value in given.items():
        hint = hints[name]
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        nested = next((kind for kind in kinds if is_dataclass(kind)), None)
        if nested is not None and isinstance(value, dict):
            made[name] = fill(cast(type[Any], nested), value, f"{prefix}{name}.")
        elif _fits(value, hint):
            made[name] = value
        else:
            raise ValueError(f"{short(prefix + name)} is {short(value)}, not {_described(hint)}")
    return kind(**made)


def short(value: object) -> str:
    """Return the repr of a value from an untrusted file, cut to 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:56]} ..."


def few(names: Iterable[str]) -> str:
    """Return the first three of the names in sorted order, and how many more there are."""
    listed = [short(name) for name in sorted(names)]
    return ", ".join(listed[:3]) + f" and {len(listed) - 3} more" * (len(listed) > 3)


def duplicate(names: Iterable[str]) -> str | None:
    """Return a name that occurs more than once, or None."""
    counts = Counter(names).most_common(1)
    return counts[0][0] if counts and counts[0][1] > 1 else None


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value has the annotated type: plain, union, literal, list, homogeneous tuple or mapping."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in args)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin in (list, tuple):
        return type(value) is origin and all(_fits(item, args[0]) for item in value)
    if origin is dict:
        return type(value) is dict and all(_fits(item, args[1]) for item in cast(dict[Any, Any], value).values())
    return type(value) in (int, float) if hint is float else type(value) is hint


def _described(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if (name := duplicate(name for name, _ in pairs)) is not None:
        raise ValueError(f"duplicate key {short(name)}")
    return dict(pairs)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{short(text)} is not a finite number")
    return number


def _deeper(value: object, depth: int) -> bool:
    """Return whether lists and objects nest deeper than `depth` levels, without recursion, which could overflow."""
    level: list[Any] = [value]
    for _ in range(depth + 1):
        level = [item for item in level if isinstance(item, (dict, list))]
        if not level:
            return False
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return True
