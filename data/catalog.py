"""The catalog of a source: a verdict on every file.

source -> `scan` (checks each file, finds duplicates and groups of near-duplicates) -> `Catalog`.

No file is deleted, and none is left out without a reason in the report. Everything after the scan depends only on the
pictures' bytes and classes, never on file names, directory order or time, so renaming files changes nothing.
"""

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data import DataError, Track, near_duplicates, no_track
from data.file_checks import THUMBNAIL, Entry, Look, Verdict, examine, walk, write_whole
from data.sources import Source, cell, class_folders
from model.files import printable
from model.preprocessing import VERSION as PREPROCESSING_VERSION

if TYPE_CHECKING:
    from data.split import Split

MIN_KEPT = 10
"""Kept pictures a class needs: with fewer its validation accuracy is a coin's."""

REPORT_COLUMNS: tuple[str, ...] = (
    "path",
    "class",
    "part",
    "verdict",
    "reason",
    "width",
    "height",
    "mode",
    "bytes",
    "group",
    "split",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One file and its verdict."""

    path: str
    """Relative to the folder of its part, with forward slashes: `Catalog.file` gives the whole path."""
    part: str
    """"all", or the official part it lies in: train, validation or test."""
    label: str
    """The class: its folder's name. "" for files beside the class folders."""
    verdict: Verdict
    reason: str
    """Why it is left out, or ""."""
    size_bytes: int
    width: int
    height: int
    """Pixels as stored in the file, before EXIF turns it."""
    mode: str
    """Pillow's name of the file's pixel format."""
    content_hash: str
    """BLAKE2b of the bytes, 32 hex digits; "" where the file was not read."""
    group: str
    """The smallest content hash among its near-duplicates, itself included; "" where the file was not read."""


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """What a source holds."""

    source: Source
    classes: tuple[str, ...]
    """Sorted; a label's number is its place here."""
    pictures: tuple[Picture, ...]
    """Every file with its verdict, sorted by part and path."""
    empty: tuple[str, ...] = ()
    """Class folders in which nothing is a picture: left out of the classes."""
    unused: frozenset[tuple[str, str]] = frozenset()
    """Part and path of the good pictures that `limited` puts aside."""

    @cached_property
    def kept(self) -> tuple[Picture, ...]:
        """The pictures to be used, sorted by class, content and part - not by name: equal fingerprint, equal order."""
        kept = [picture for picture in self.pictures if picture.verdict is Verdict.KEPT]
        return tuple(sorted((p for p in kept if (p.part, p.path) not in self.unused), key=_identity))

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class numbers of `kept`, int64 (n,)."""
        number = {name: place for place, name in enumerate(self.classes)}
        return np.array([number[picture.label] for picture in self.kept], dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over the classes, the kept pictures (class, bytes, part, group) and the preprocessing."""
        digest = hashlib.blake2b(f"{PREPROCESSING_VERSION}".encode(), digest_size=16)
        for row in (self.classes, *map(_identity, self.kept)):
            digest.update("\0".join(row).encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()

    @cached_property
    def median_short_side(self) -> int:
        """Pixels: half of the kept pictures have no longer shorter side. Larger image sizes only blow pictures up."""
        return int(np.median([min(picture.width, picture.height) for picture in self.kept]))

    def file(self, picture: Picture) -> Path:
        """Where a picture of this catalog lies."""
        return self.source.parts[picture.part] / picture.path

    def counts(self) -> dict[str, dict[Verdict, int]]:
        """Class -> verdict -> files, unused ones and zeros included.

        The classes come first, then empty folders, then files beside the folders, under "".
        """
        found = Counter((picture.label, picture.verdict) for picture in self.pictures)
        labels = [*self.classes, *self.empty, *([""] if any(label == "" for label, _ in found) else [])]
        return {label: {verdict: found[label, verdict] for verdict in Verdict} for label in labels}

    def limited(self, pictures: int | None) -> "Catalog":
        """The catalog with `pictures` of the kept ones, in the classes' proportions; all of them if None or not fewer.

        A smaller number gives a subset of a larger one's. Each class keeps at least MIN_KEPT in each part, or all it
        has; of near-duplicates the first comes before the others of any, so that a subset shows as much as it can.
        Raises DataError when `pictures` is too small for that.
        """
        if pictures is None or pictures >= len(self.kept):
            return self
        strata: defaultdict[tuple[str, str], list[Picture]] = defaultdict(list)
        for picture in self.kept:
            strata[picture.label, picture.part].append(picture)
        ranked: list[tuple[bool, float, str, str, Picture]] = []
        for (label, part), members in sorted(strata.items()):
            seen: set[str] = set()
            repeats = [picture.group in seen or seen.add(picture.group) is not None for picture in members]
            order = sorted(zip(repeats, members, strict=True), key=lambda pair: (pair[0], pair[1].content_hash))
            for rank, (_, picture) in enumerate(order):
                # Dealing by (rank + 1/2) / size is Sainte-Lague's method: proportional, and more never takes one away.
                ranked.append((rank >= MIN_KEPT, (rank + 0.5) / len(members), label, part, picture))
        least = sum(not late for late, *_ in ranked)
        if pictures < least:
            raise DataError(
                f"a subset keeps at least {MIN_KEPT} pictures of each of {len(self.classes)} classes in each part, "
                f"{least} in all, but got {pictures}; ask for more pictures of {printable(self.source.root)}"
            )
        ranked.sort(key=lambda row: row[:4])
        unused = self.unused.union((picture.part, picture.path) for *_, picture in ranked[pictures:])
        return replace(self, unused=unused)

    def report_rows(self, parts: "Split | None" = None) -> Iterator[dict[str, str]]:
        """A row per file by REPORT_COLUMNS, with the part of the split it is used in if `parts` is given.

        Paths are relative to the source's root. Control characters in names are written as escapes, so that a line is
        a line and no terminal obeys it; and no name is taken for a formula (see `data.sources.cell`).
        """
        if parts and sum(len(positions) for _, positions in parts.named()) != len(self.kept):
            raise ValueError("the split must be of this catalog, not of one with more or fewer pictures")
        used: dict[tuple[str, str], str] = {}
        for name, positions in parts.named() if parts else ():
            for position in map(int, positions):
                used[self.kept[position].part, self.kept[position].path] = name
        for picture in self.pictures:
            where = self.file(picture)
            shown = where.relative_to(self.source.root) if where.is_relative_to(self.source.root) else where
            row = (
                cell(shown),
                cell(picture.label),
                picture.part,
                picture.verdict,
                printable(picture.reason),
                str(picture.width),
                str(picture.height),
                picture.mode,
                str(picture.size_bytes),
                picture.group,
                used.get((picture.part, picture.path), ""),
            )
            yield dict(zip(REPORT_COLUMNS, row, strict=True))

    def write_report(self, path: Path, parts: "Split | None" = None) -> None:
        """data_report.csv: what `report_rows` gives. Raises DataError when the file cannot be written."""
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, REPORT_COLUMNS)
        writer.writeheader()
        writer.writerows(self.report_rows(parts))
        write_whole(path, table.getvalue().encode())


def scan(source: Source, *, cache_dir: Path, track: Track = no_track) -> Catalog:
    """Opens every file of `source` once - a second scan opens only what changed - and judges it.

    Within a class the first of equal files (by part and path) is kept; equal files in two classes are all left out.
    Between official parts the copy in the smaller-worth part goes - train before validation before test - and so do
    train's near-duplicates of a test picture: the official test stays whole, and nothing of it is learnt.
    Raises DataError: a class with 1 to 9 kept pictures, fewer than two classes, an official part without a class, a
    folder that cannot be read, or a cache folder that cannot be written.
    """
    pictures: list[Picture] = []
    thumbnails: list[bytes] = []
    for part, folder in source.parts.items():
        entries = sorted(
            walk(folder, class_folders(folder), within=(source.root, folder)), key=lambda entry: entry.path
        )
        for entry, look in zip(entries, examine(folder, entries, cache_dir=cache_dir, track=track), strict=True):
            pictures.append(_picture(part, entry, look))
            thumbnails.append(look.thumbnail)
    pictures = _without_copies(pictures)
    pictures = _grouped(pictures, thumbnails)
    pictures = _without_leaks(pictures)
    catalog = _with_classes(source, pictures)
    _check(catalog)
    return catalog


def _identity(picture: Picture) -> tuple[str, str, str, str]:
    return picture.label, picture.content_hash, picture.part, picture.group


def _picture(part: str, entry: Entry, look: Look) -> Picture:
    return Picture(
        path=entry.path,
        part=part,
        label=entry.label,
        verdict=look.verdict,
        reason=look.reason,
        size_bytes=entry.size_bytes,
        width=look.width,
        height=look.height,
        mode=look.mode,
        content_hash=look.content_hash,
        group="",
    )


_WORTH = {"all": 0, "test": 0, "validation": 1, "train": 2}
"""Of copies in two parts the one in the part with the smallest number stays."""


def _without_copies(pictures: Sequence[Picture]) -> list[Picture]:
    """Of equal bytes the first stays, or none where classes disagree; in parts of less worth none does."""
    alike: defaultdict[str, list[int]] = defaultdict(list)
    for position, picture in enumerate(pictures):
        if picture.verdict is Verdict.KEPT:
            alike[picture.content_hash].append(position)
    judged = list(pictures)
    for positions in alike.values():
        best = min(_WORTH[pictures[position].part] for position in positions)
        firsts = [position for position in positions if _WORTH[pictures[position].part] == best]
        other = next((p for p in firsts if pictures[p].label != pictures[firsts[0]].label), None)
        for position in positions:
            picture = pictures[position]
            twin = firsts[0]
            if position in firsts and other is not None and picture.label == pictures[firsts[0]].label:
                twin = other
            if picture.label != pictures[twin].label:
                verdict, reason = Verdict.CONFLICT, f"same bytes in another class: {_where(pictures[twin])}"
            elif position != twin:
                verdict, reason = Verdict.DUPLICATE, f"same bytes as {_where(pictures[twin])}"
            else:
                continue
            judged[position] = replace(picture, verdict=verdict, reason=reason)
    return judged


def _grouped(pictures: Sequence[Picture], thumbnails: Sequence[bytes]) -> list[Picture]:
    kept = [position for position, picture in enumerate(pictures) if picture.verdict is Verdict.KEPT]
    stacked = np.frombuffer(b"".join(thumbnails[position] for position in kept), dtype=np.uint8)
    members = near_duplicates.groups(stacked.reshape(-1, *THUMBNAIL))
    smallest: dict[int, str] = {}
    for position, member in zip(kept, members.tolist(), strict=True):
        content_hash = pictures[position].content_hash
        smallest[member] = min(content_hash, smallest.get(member, content_hash))
    group_of = {
        pictures[position].content_hash: smallest[member]
        for position, member in zip(kept, members.tolist(), strict=True)
    }
    # A left-out duplicate shows its twin's group; a conflict, of which none is kept, stands alone.
    return [replace(picture, group=group_of.get(picture.content_hash, picture.content_hash)) for picture in pictures]


def _without_leaks(pictures: Sequence[Picture]) -> list[Picture]:
    """Near-duplicates in two official parts: those in the part of less worth go."""
    best: dict[str, Picture] = {}
    for picture in pictures:
        if picture.verdict is Verdict.KEPT:
            rival = best.setdefault(picture.group, picture)
            if _WORTH[picture.part] < _WORTH[rival.part]:
                best[picture.group] = picture
    judged: list[Picture] = []
    for picture in pictures:
        rival = best.get(picture.group)
        if picture.verdict is Verdict.KEPT and rival is not None and _WORTH[rival.part] < _WORTH[picture.part]:
            reason = f"near-duplicate of {_where(rival)}"
            picture = replace(picture, verdict=Verdict.DUPLICATE, reason=reason)
        judged.append(picture)
    return judged


def _where(picture: Picture) -> str:
    return printable(picture.path if picture.part == "all" else f"{picture.part}: {picture.path}")


def _with_classes(source: Source, pictures: Iterable[Picture]) -> Catalog:
    """A class is a folder in which anything is, or should have been, a picture."""
    named = {name for folder in source.parts.values() for name in class_folders(folder)}
    ordered = tuple(sorted(pictures, key=lambda picture: (picture.part, picture.path)))
    filled = {picture.label for picture in ordered if picture.verdict is not Verdict.NOT_A_PICTURE and picture.label}
    return Catalog(source=source, classes=tuple(sorted(filled)), pictures=ordered, empty=tuple(sorted(named - filled)))


def _check(catalog: Catalog) -> None:
    root = printable(catalog.source.root)
    if len(catalog.classes) < 2:
        found = f"only in '{printable(catalog.classes[0])}'" if catalog.classes else "nowhere"
        raise DataError(
            f"a data set needs pictures of at least 2 classes, but {root} has them {found}; add a folder of pictures"
        )
    kept = Counter((picture.label, picture.part) for picture in catalog.kept)
    for part, folder in catalog.source.parts.items():
        missing = [label for label in catalog.classes if not kept[label, part]]
        if missing and part != "all":
            raise DataError(
                f"each part needs pictures of every class, but {printable(folder)} has none of "
                f"'{printable(missing[0])}' that can be kept; add some, or remove the class everywhere"
            )
    counts = catalog.counts()
    poor = [label for label in catalog.classes if counts[label][Verdict.KEPT] < MIN_KEPT]
    if poor:
        name = printable(poor[0])
        others = ", ".join(f"{printable(label)} {counts[label][Verdict.KEPT]}" for label in catalog.classes)
        out = ", ".join(f"{n} {verdict.replace('_', ' ')}" for verdict, n in counts[poor[0]].items() if n)
        raise DataError(
            f"a class needs at least {MIN_KEPT} kept pictures, but '{name}' has {counts[poor[0]][Verdict.KEPT]} in "
            f"{root} (its files: {out}; kept in all: {others}); add pictures or remove the folder"
        )
