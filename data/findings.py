"""What a user should know of a data set before training: look-alikes, and parts of an unexpected size.

`look_alikes` says which pictures are held together and which only show one scene, `odd_shares` whether the split is far
from the intended shares and why. Both return facts; the commands word them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

from data.catalog import PRIORITY, Catalog, Picture
from data.split import PartName, Split, carved_shares

ODD_SHARE = 0.05
"""Largest deviation of a part's share that is not worth a word, however unlikely it is."""
ODD_DEVIATIONS = 5.0
"""Largest deviation of a part's share that is put down to chance, in standard deviations of that share when pictures
are assigned one by one. Of a million made-up splits, up to 121 deviate by more (10 to 1,000 pictures, worst at 12)."""

Pictures = tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True)
class LookAlikes:
    """Pictures in use that look alike."""

    groups: tuple[Pictures, ...]
    """Near-duplicates, two or more in each group, which are never spread over parts that the program splits."""
    scenes: tuple[Pictures, ...]
    """Pictures that look alike but are too many, or too different, to be copies: they are split like any others."""
    leaks: tuple[tuple[Picture, Picture], ...]
    """Pictures of an official part, each with a near-duplicate in a part that judges it: validation or test."""


@dataclass(frozen=True, kw_only=True)
class OddShare:
    """A part whose share of the pictures is far from the intended one."""

    label: str | None
    """The class, or None for all classes together."""
    part: PartName
    found: int
    """Number of pictures in the part."""
    total: int
    """Number of pictures that were split, without those of official parts."""
    share: float
    """The intended share."""
    cause: Pictures
    """Pictures held together with near-duplicates, group by group: of this part if it is too large, otherwise of all
    parts. Empty if there are too few to explain the deviation."""


def look_alikes(catalog: Catalog) -> LookAlikes:
    """Return the pictures in use that look alike, largest groups first; nothing if they were not grouped."""
    groups = _gathered((picture.group, picture) for picture in catalog.kept)
    scenes = _gathered((picture.scene, picture) for picture in catalog.kept if picture.scene)
    leaks: list[tuple[Picture, Picture]] = []
    for members in groups:
        judge = min(members, key=lambda picture: PRIORITY[picture.part])
        leaks += [(picture, judge) for picture in members if PRIORITY[picture.part] > PRIORITY[judge.part]]
    return LookAlikes(groups=groups, scenes=scenes, leaks=tuple(leaks))


def odd_shares(catalog: Catalog, split: Split) -> list[OddShare]:
    """Return the classes of which a part has far more or less than its share, and the whole set if it has, too.

    Of each only the part is returned that is farthest off. Official parts have the size that they have.
    """
    shares = carved_shares(catalog.source)
    part_of: dict[int, PartName] = {
        position: part for part, positions in split.named() for position in positions.tolist()
    }
    members: defaultdict[str | None, list[tuple[PartName, Picture]]] = defaultdict(list)
    for position, picture in enumerate(catalog.kept):
        if picture.part in ("all", "train"):
            for label in (None, picture.label):
                members[label].append((part_of[position], picture))
    odd: list[OddShare] = []
    for label, those in members.items():
        counts = Counter(part for part, _ in those)
        off = {part: counts[part] / len(those) - share for part, share in shares.items()}
        part = max(shares, key=lambda name: abs(off[name]))
        if abs(off[part]) <= max(ODD_SHARE, ODD_DEVIATIONS * sqrt(shares[part] * (1 - shares[part]) / len(those))):
            continue
        groups = _gathered((picture.group, picture) for where, picture in those if where == part or off[part] < 0)
        alike = tuple(picture for group in groups for picture in group)
        enough = len(alike) >= abs(off[part]) * len(those)
        odd.append(
            OddShare(
                label=label,
                part=part,
                found=counts[part],
                total=len(those),
                share=shares[part],
                cause=alike if enough else (),
            )
        )
    return odd


def _gathered(pairs: Iterable[tuple[str, Picture]]) -> tuple[Pictures, ...]:
    """Gather the pictures by key; keys of a single picture are left out."""
    found: defaultdict[str, list[Picture]] = defaultdict(list)
    for key, picture in pairs:
        found[key].append(picture)
    return tuple(sorted((tuple(those) for those in found.values() if len(those) > 1), key=len, reverse=True))
