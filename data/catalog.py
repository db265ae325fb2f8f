"""The catalog of a source: a verdict on every file.

source -> `scan` (checks each file, finds duplicates and groups near-duplicates) -> `Catalog`.

No file is deleted, and none is left out without a reason in the report. Everything after the scan depends only on the
pictures' bytes and classes, never on file names, directory order or time, so renaming files changes nothing.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data import DataError, NearDuplicates, Track, no_track
from data.file_checks import THUMBNAIL, Entry, FileCheck, Verdict, check_files, stray, walk
from data.near_duplicates import groups
from data.sources import Source
from model.files import printable
from model.preprocessing import ORDINARY, Traits, settle_ranges
from model.preprocessing import VERSION as PREPROCESSING_VERSION

MIN_KEPT = 10
"""Smallest number of kept pictures per class. With fewer, its validation accuracy would rest on a single picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One file and its verdict."""

    path: str
    """Path relative to the folder of its part, with forward slashes; `Catalog.file` gives the whole path."""
    part: str
    """Official part that the file lies in ("train", "validation" or "test"), or "all" if the source has no parts."""
    label: str
    """Name of the class, which is its folder's; "" for files beside the class folders."""
    verdict: Verdict
    reason: str
    """Why the file is left out; "" if it is kept."""
    size_bytes: int
    width: int
    height: int
    """Pixels as stored, before EXIF rotation."""
    mode: str
    """Pillow's name for the file's pixel format."""
    content_hash: str
    """BLAKE2b of the bytes, 32 hex digits; "" if the file was not read."""
    group: str
    """Smallest content hash of the picture and its near-duplicates; "" if the file was not read."""
    traits: Traits = ORDINARY
    scene: str = ""
    """Smallest content hash of its scene: many pictures that look alike without being near-duplicates; "" if none."""


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Every file of a source, with its verdict."""

    source: Source
    classes: tuple[str, ...]
    """Class names, sorted; a label is a position in this tuple."""
    pictures: tuple[Picture, ...]
    """All files, sorted by part and path."""
    empty: tuple[str, ...] = ()
    """Names of folders without any picture, which are not classes."""
    unused: frozenset[tuple[str, str]] = frozenset()
    """(part, path) of the usable pictures left out by `limited`."""

    @cached_property
    def kept(self) -> tuple[Picture, ...]:
        """Pictures in use, sorted by class, content hash and part: equal fingerprints mean equal order."""
        kept = [picture for picture in self.pictures if picture.verdict is Verdict.KEPT]
        return tuple(sorted((p for p in kept if (p.part, p.path) not in self.unused), key=_identity))

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class numbers of `kept`, int64 (n,)."""
        number = {name: position for position, name in enumerate(self.classes)}
        return np.array([number[picture.label] for picture in self.kept], dtype=np.int64)

    @cached_property
    def ranges(self) -> dict[str, list[float]]:
        """`model.preprocessing.Ranges` of all usable pictures, so that they do not change with `limited`."""
        usable = (picture.traits.values for picture in self.pictures if picture.verdict is Verdict.KEPT)
        return settle_ranges(values for values in usable if values is not None)

    @cached_property
    def fingerprint(self) -> str:
        """Hash, 32 hex digits, of the classes, the kept pictures (class, bytes, part, group) and the preprocessing."""
        digest = hashlib.blake2b(f"{PREPROCESSING_VERSION}".encode(), digest_size=16)
        # What was read otherwise before it was in the fingerprint; of any other data set the fingerprint stays the same
        if self.ranges:
            digest.update(repr(sorted(self.ranges.items())).encode())
        for picture in self.kept:
            if picture.mode == "CMYK":
                digest.update(f"{picture.content_hash} decoded whole".encode())
            if picture.traits.recovered > 1:
                digest.update(f"{picture.content_hash} {picture.traits.recovered}".encode())
        for row in (self.classes, *map(_identity, self.kept)):
            digest.update("\0".join(row).encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()

    @cached_property
    def median_short_side(self) -> int:
        """Median length, in pixels, of the kept pictures' shorter sides. Larger image sizes would mostly upscale."""
        return int(np.median([min(picture.width, picture.height) for picture in self.kept]))

    def file(self, picture: Picture) -> Path:
        """Return the whole path of one of this catalog's pictures."""
        return self.source.parts[picture.part] / picture.path

    def counts(self) -> dict[str, dict[Verdict, int]]:
        """Count the files by class and verdict, including unused pictures and zero counts.

        The classes come first, then empty class folders, then, under "", the files beside the class folders.
        """
        found = Counter((picture.label, picture.verdict) for picture in self.pictures)
        labels = [*self.classes, *self.empty, *([""] if any(label == "" for label, _ in found) else [])]
        return {label: {verdict: found[label, verdict] for verdict in Verdict} for label in labels}

    def limited(self, pictures: int | None) -> "Catalog":
        """Return the catalog with `pictures` of the kept ones; unchanged if None or if there are no more than that.

        Classes keep their proportions, except that each keeps at least MIN_KEPT pictures in each part, or all it has.
        The pictures for a smaller number are a subset of those for a larger one. Within a class, one picture of each
        near-duplicate group is taken before the rest, so that a subset is as varied as possible.
        Raises DataError if `pictures` is too small for MIN_KEPT of every class.
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
                f"{pictures} pictures of {printable(self.source.root)} are too few ({len(self.classes)} classes need "
                f"at least {MIN_KEPT} in each part, {least} in all): ask for more with --pictures N"
            )
        ranked.sort(key=lambda row: row[:4])
        unused = self.unused.union((picture.part, picture.path) for *_, picture in ranked[pictures:])
        return replace(self, unused=unused)


class UnusableDataError(DataError):
    """A data set whose files have all been checked, but of which no study can be made."""

    def __init__(self, message: str, catalog: Catalog) -> None:
        super().__init__(message)
        self.catalog = catalog
        """The verdict on each file."""


@contextmanager
def concerning(catalog: Catalog) -> Generator[None]:
    """Turn a DataError raised in the body into an UnusableDataError with this catalog."""
    try:
        yield
    except DataError as error:
        raise UnusableDataError(str(error), catalog) from error


def scan(
    source: Source, *, near_duplicates: NearDuplicates = "group", cache_dir: Path, track: Track = no_track
) -> Catalog:
    """Check every file of `source` and return the catalog; a second scan opens only files that changed.

    Of files with equal bytes in one class, the first by path is kept; if they are in two classes, all are left out. Of
    copies in two official parts, those in validation are kept over those in train, and those in test over both: the
    official test set stays complete, and none of it is trained on. Near-duplicates are all kept, in groups unless
    `near_duplicates` is "keep".
    Raises UnusableDataError for fewer than two classes, a class with fewer than MIN_KEPT kept pictures, or an official
    part that lacks a class; and DataError for a folder that cannot be read, or a cache folder that cannot be written.
    """
    pictures: list[Picture] = []
    thumbnails: list[bytes] = []
    for folder, entries in _entries(source).items():
        checks = check_files(folder, [entry for _, entry in entries], cache_dir=cache_dir, track=track)
        for (part, entry), check in zip(entries, checks, strict=True):
            pictures.append(_picture(part, entry, check))
            thumbnails.append(check.thumbnail)
    pictures = _without_copies(pictures)
    if near_duplicates == "group":
        pictures = _grouped(pictures, thumbnails)
    catalog = _with_classes(source, pictures)
    with concerning(catalog):
        _check(catalog)
    return catalog


def _entries(source: Source) -> dict[Path, list[tuple[str, Entry]]]:
    """Return (part, file) of each file, sorted by path, by the folder of its part, which several parts may share."""
    found: defaultdict[Path, list[tuple[str, Entry]]] = defaultdict(list)
    listed: set[Path] = set()
    for part, folder in source.parts.items():
        levels = source.levels(part)
        # In <class>/train, each class folder is a level of every part, and the root is none.
        beside = {*levels, *([folder] if folder == source.root else [])} - listed
        listed |= beside
        found[folder] += ((part, entry) for level in sorted(beside) for entry in stray(folder, level))
        within = (source.root, *levels)
        walked = walk(folder, source.classes[part], within=within, follow_links=source.follow_links)
        found[folder] += ((part, entry) for entry in walked)
    return {folder: sorted(entries, key=lambda row: row[1].path) for folder, entries in found.items()}


def _identity(picture: Picture) -> tuple[str, str, str, str]:
    return picture.label, picture.content_hash, picture.part, picture.group


def _picture(part: str, entry: Entry, check: FileCheck) -> Picture:
    return Picture(
        path=entry.path,
        part=part,
        label=entry.label,
        verdict=check.verdict,
        reason=check.reason,
        size_bytes=entry.size_bytes,
        width=check.width,
        height=check.height,
        mode=check.mode,
        content_hash=check.content_hash,
        group=check.content_hash,
        traits=check.traits,
    )


PRIORITY = {"all": 0, "test": 0, "validation": 1, "train": 2}
"""Priority of the parts, 0 for the highest: of copies in two parts, the one in the higher-priority part is kept."""


def _without_copies(pictures: Sequence[Picture]) -> list[Picture]:
    """Leave out all but the first of equal files, copies in lower-priority parts, and copies in different classes."""
    same_bytes: defaultdict[str, list[int]] = defaultdict(list)
    for position, picture in enumerate(pictures):
        if picture.verdict is Verdict.KEPT:
            same_bytes[picture.content_hash].append(position)
    judged = list(pictures)
    for positions in same_bytes.values():
        best = min(PRIORITY[pictures[position].part] for position in positions)
        candidates = [position for position in positions if PRIORITY[pictures[position].part] == best]
        first = candidates[0]
        contrary = next((p for p in candidates if pictures[p].label != pictures[first].label), None)
        for position in positions:
            picture, original = pictures[position], first
            if position in candidates and contrary is not None and picture.label == pictures[first].label:
                original = contrary
            if picture.label != pictures[original].label:
                verdict, reason = Verdict.CONFLICT, f"same bytes in another class: {shown(pictures[original])}"
            elif position != original:
                verdict, reason = Verdict.DUPLICATE, f"same bytes as {shown(pictures[original])}"
            else:
                continue
            judged[position] = replace(picture, verdict=verdict, reason=reason)
    return judged


def _grouped(pictures: Sequence[Picture], thumbnails: Sequence[bytes]) -> list[Picture]:
    """Set each picture's near-duplicate group and scene."""
    kept = sorted(
        (picture.content_hash, (picture.label, picture.part), thumbnail)
        for picture, thumbnail in zip(pictures, thumbnails, strict=True)
        if picture.verdict is Verdict.KEPT
    )
    hashes = [content_hash for content_hash, *_ in kept]
    number = {stratum: position for position, stratum in enumerate(sorted({stratum for _, stratum, _ in kept}))}
    strata = np.array([number[stratum] for _, stratum, _ in kept], dtype=np.int64)
    stacked = np.frombuffer(b"".join(thumbnail for *_, thumbnail in kept), dtype=np.uint8)
    group, scene = groups(stacked.reshape(-1, *THUMBNAIL), strata)
    # The smallest position has the smallest hash, as the pictures are sorted by it.
    group_of = {hashes[position]: hashes[first] for position, first in enumerate(group.tolist())}
    crowded = np.bincount(scene, minlength=len(hashes))[scene] > 1
    scene_of = {hashes[position]: hashes[scene[position]] for position in np.flatnonzero(crowded).tolist()}
    # A duplicate that is left out has the group of the kept one; of a conflict none is kept, so each is its own group.
    return [
        replace(picture, group=group_of.get(content, content), scene=scene_of.get(content, ""))
        if group_of.get(content, content) != content or content in scene_of
        else picture
        for picture in pictures
        for content in [picture.content_hash]
    ]


def shown(picture: Picture) -> str:
    """Return a picture's path, after the name of its official part if it has one, safe to print."""
    return printable(picture.path if picture.part == "all" else f"{picture.part}: {picture.path}")


def _with_classes(source: Source, pictures: Sequence[Picture]) -> Catalog:
    """Build the catalog. A class is a folder in which at least one file is, or was meant to be, a picture."""
    named = {name for classes in source.classes.values() for name in classes}
    ordered = tuple(sorted(pictures, key=lambda picture: (picture.part, picture.path)))
    filled = {picture.label for picture in ordered if picture.verdict is not Verdict.NOT_A_PICTURE and picture.label}
    return Catalog(source=source, classes=tuple(sorted(filled)), pictures=ordered, empty=tuple(sorted(named - filled)))


def why_left_out(pictures: Sequence[Picture]) -> str:
    """Return how many files have each verdict but kept, and the reasons for the refused and unreadable ones.

    Reasons count as one if they differ only in what follows a comma, colon or parenthesis. "" if no file is left out.
    """
    shown: list[str] = []
    for verdict in Verdict:
        reasons = Counter(picture.reason for picture in pictures if picture.verdict is verdict is not Verdict.KEPT)
        kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for reason, count in reasons.items():
            kinds[re.split(r"[,:(]", reason, maxsplit=1)[0].strip()][reason] = count
        counted = Counter({kind if len(found) > 1 else min(found): found.total() for kind, found in kinds.items()})
        named = [f"{n:,} {kind}" if len(counted) > 1 else kind for kind, n in counted.most_common()]
        # The other verdicts say it all: their reasons name files or sizes.
        why = f" ({', '.join(named)})" if verdict in (Verdict.REFUSED, Verdict.UNREADABLE) else ""
        if reasons:
            shown.append(f"{reasons.total():,} {verdict.replace('_', ' ')}{why}")
    return ", ".join(shown)


def remedy(pictures: Sequence[Picture]) -> str:
    """Return what to do about files that are left out, if an option helps; else ""."""
    links = any(picture.reason.startswith(("a link out", "a link to a folder")) for picture in pictures)
    return "add --follow-links to read what the links lead to" if links else ""


def _fixes(pictures: Sequence[Picture], other: str) -> str:
    return ", ".join(filter(None, (remedy(pictures), other)))


def _check(catalog: Catalog) -> None:
    """Raise DataError if no study can use the catalog."""
    root = printable(catalog.source.root)
    if len(catalog.classes) < 2:
        found = f"only in '{printable(catalog.classes[0])}'" if catalog.classes else "in none of its folders"
        files = why_left_out(catalog.pictures)
        raise DataError(
            f"{root} has pictures {found}, but at least 2 classes are needed{f'; left out: {files}' if files else ''}: "
            f"{_fixes(catalog.pictures, 'add a folder of pictures')}"
        )
    kept = Counter((picture.label, picture.part) for picture in catalog.kept)
    for part, folder in catalog.source.parts.items():
        missing = [label for label in catalog.classes if not kept[label, part]]
        if missing and part != "all":
            lost = [picture for picture in catalog.pictures if (picture.label, picture.part) == (missing[0], part)]
            files = why_left_out(lost)
            raise DataError(
                f"{printable(folder)} has no usable picture of '{printable(missing[0])}' for {part}, but each part "
                f"needs all classes{f'; left out: {files}' if files else ''}: "
                f"{_fixes(lost, 'add some, or remove the class from every part')}"
            )
    counts = catalog.counts()
    poor = [label for label in catalog.classes if counts[label][Verdict.KEPT] < MIN_KEPT]
    if poor:
        found = counts[poor[0]][Verdict.KEPT]
        lost = [picture for picture in catalog.pictures if picture.label == poor[0]]
        files = ", ".join(filter(None, (f"{found} kept" if found else "", why_left_out(lost))))
        usable = ", ".join(f"{printable(label)} {counts[label][Verdict.KEPT]}" for label in catalog.classes)
        raise DataError(
            f"class '{printable(poor[0])}' of {root} has too few usable pictures ({found}, but needs at least "
            f"{MIN_KEPT}; its files: {files}; usable in each class: {usable}): "
            f"{_fixes(lost, 'add pictures or remove the folder')}"
        )
