"""The split of a catalog's pictures into train, validation and test.

catalog -> `split` -> a `Split`: positions in `Catalog.kept`, part by part. Like everything after the scan, the split
depends only on the pictures' bytes and classes, never on file names or their order.
"""

import hashlib
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from data import DataError
from data.catalog import Catalog
from data.sources import Source
from model.files import printable

PartName = Literal["train", "validation", "test"]
PARTS: tuple[PartName, ...] = get_args(PartName)
"""Names of the parts, in the order of their intervals on [0, 1)."""

PART_SHARES: dict[PartName, float] = {"train": 0.70, "validation": 0.15, "test": 0.15}
"""Share of the pictures in each part. If a data set has an official part, the other parts keep their proportions."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Positions in `Catalog.kept` of each part's pictures, sorted, int64; every kept picture is in exactly one part."""

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]

    def named(self) -> tuple[tuple[PartName, npt.NDArray[np.int64]], ...]:
        """Return (name, positions) of each part."""
        return tuple((name, getattr(self, name)) for name in PARTS)


def split(catalog: Catalog) -> Split:
    """Split the kept pictures 70 / 15 / 15, or use the data set's official parts and take the missing ones from train.

    Each part has an interval of [0, 1), and each group of near-duplicates a point: the hash of its smallest content
    hash. Proportions are therefore approximate, and a new picture does not move old ones, with two exceptions:
    it may take its near-duplicates with it, and a part that has no picture of some class is given that class's group
    closest to the part's interval, unless that would leave another part without one.
    Raises DataError if a class has too few pictures, or too few groups, to be in every part.
    """
    shares = carved_shares(catalog.source)
    carved = list(shares)
    ends = accumulate(shares.values())
    intervals: dict[PartName, tuple[float, float]] = dict(zip(carved, pairwise((0.0, *ends)), strict=True))

    classes_of: defaultdict[str, set[str]] = defaultdict(set)
    for picture in catalog.kept:
        if picture.part in ("all", "train"):
            classes_of[picture.group].add(picture.label)
    points = {group: _point(group) for group in classes_of}
    inner = [end for _, end in intervals.values()][:-1]
    part_of: dict[str, PartName] = {group: carved[bisect_right(inner, point)] for group, point in points.items()}
    _fill_empty_parts(catalog, part_of, points, classes_of, intervals)

    positions: dict[str, list[int]] = {name: [] for name in PARTS}
    for position, picture in enumerate(catalog.kept):
        part = part_of[picture.group] if picture.part in ("all", "train") else picture.part
        positions[part].append(position)
    return Split(**{name: np.array(found, dtype=np.int64) for name, found in positions.items()})


def carved_shares(source: Source) -> dict[PartName, float]:
    """Return the intended share of each part that is split off a source's pictures; official parts have none."""
    carved: list[PartName] = [name for name in PARTS if name == "train" or name not in source.parts]
    total = sum(PART_SHARES[name] for name in carved)
    return {name: PART_SHARES[name] / total for name in carved}


def _point(group: str) -> float:
    """Map a group to [0, 1), uniformly.

    The group's name is hashed again because it is not uniform: a group's name is its smallest hash, which is smaller in
    larger groups, and `Catalog.limited` prefers pictures with small hashes.
    """
    digest = hashlib.blake2b(group.encode(), digest_size=8, person=b"split").digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _fill_empty_parts(
    catalog: Catalog,
    part_of: dict[str, PartName],
    points: dict[str, float],
    classes_of: dict[str, set[str]],
    intervals: dict[PartName, tuple[float, float]],
) -> None:
    """Change `part_of` so that each part in `intervals` has a group of each class, without emptying another part."""
    groups_of: defaultdict[str, list[str]] = defaultdict(list)
    filled: Counter[tuple[str, str]] = Counter()
    for group in sorted(classes_of):
        for label in classes_of[group]:
            groups_of[label].append(group)
            filled[label, part_of[group]] += 1
    for label in catalog.classes:
        for part, (start, end) in intervals.items():
            if filled[label, part]:
                continue
            movable = [
                group
                for group in groups_of[label]
                if all(filled[name, part_of[group]] > 1 for name in classes_of[group])
            ]
            if not movable:
                raise DataError(_too_few(catalog, label, len(groups_of[label]), list(intervals)))
            nearest = min(movable, key=lambda group: (max(start - points[group], points[group] - end), group))
            for name in classes_of[nearest]:
                filled[name, part_of[nearest]] -= 1
                filled[name, part] += 1
            part_of[nearest] = part


def _too_few(catalog: Catalog, label: str, groups: int, parts: list[PartName]) -> str:
    """Describe a class that cannot be in every part: near-duplicates are only blamed if it has enough pictures."""
    pictures = sum(picture.label == label and picture.part in ("all", "train") for picture in catalog.kept)
    grouped = pictures > groups and pictures >= len(parts)
    found = f"{pictures} picture{'s' * (pictures != 1)}" + f" in {groups} groups of near-duplicates" * grouped
    fix = "pass --near-duplicates keep" if grouped else "remove the folder"
    return (
        f"cannot split class '{printable(label)}' of {printable(catalog.source.root)} ({found}, but "
        f"{', '.join(parts)} need one each): add pictures or {fix}"
    )
