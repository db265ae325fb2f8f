"""What is said about a data set: data_report.csv, a row per file with its verdict; how its folders were understood;
and what has changed since a report was written.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data import explained
from data.catalog import Catalog, Picture
from data.file_checks import Verdict
from data.split import PARTS, Split
from model.files import csv_cell, printable, replacing
from model.preprocessing import KINDS, is_flat

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
    "pages",
    "values",
    "notes",
)

NAMED = 3
"""Largest number of examples for each kind of change or remark."""


def report_rows(catalog: Catalog, split: Split | None = None) -> Iterator[dict[str, str]]:
    """Yield one row per file, keyed by REPORT_COLUMNS; with `split`, the part that uses the picture is filled in.

    Paths are relative to the source's root. Names are escaped so that a row is one line, harmless in a terminal,
    and never mistaken for a formula (see `model.files.csv_cell`). Raises ValueError for another catalog's split.
    """
    used: dict[tuple[str, str], str] = {}
    if split is not None:
        positions = [(position, name) for name, part in split.named() for position in part.tolist()]
        if len(positions) != len(catalog.kept):
            raise ValueError(f"the split is another catalog's: {len(positions)} pictures, not {len(catalog.kept)}")
        used = {(catalog.kept[position].part, catalog.kept[position].path): name for position, name in positions}
    for picture in catalog.pictures:
        values = picture.traits.values
        row = (
            csv_cell(report_path(catalog, picture)),
            csv_cell(picture.label),
            picture.part,
            picture.verdict,
            printable(picture.reason),
            str(picture.width),
            str(picture.height),
            picture.mode,
            str(picture.size_bytes),
            picture.group,
            used.get((picture.part, picture.path), ""),
            str(picture.traits.pages),
            "" if values is None else f"{values.lowest:g} to {values.highest:g}",
            "; ".join(kind for kind, found in _remarkable(catalog, [picture]).items() if found),
        )
        yield dict(zip(REPORT_COLUMNS, row, strict=True))


def write_report(catalog: Catalog, path: Path, split: Split | None = None) -> None:
    """Write the rows of `report_rows` to a CSV file. Raises DataError when it cannot be written."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, REPORT_COLUMNS)
    writer.writeheader()
    writer.writerows(report_rows(catalog, split))
    with explained(f"cannot write {printable(path)}", "free some space, or choose another place for the report"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            unfinished.write_bytes(table.getvalue().encode())


def remarks(catalog: Catalog) -> list[str]:
    """Return a sentence on each thing about the usable pictures that a user should know, with counts and examples."""
    usable = [picture for picture in catalog.pictures if picture.verdict is Verdict.KEPT]
    lines: list[str] = []
    for kind in KINDS:
        deep = [one for one in usable if one.traits.values is not None and one.traits.values.kind == kind]
        if deep:
            low, high = catalog.ranges[kind]
            lines.append(
                f"{len(deep):,} of {len(usable):,} pictures have more than 8 bits ({kind}): values from {low:,g} to "
                f"{high:,g} are shown as 0 to 255"
            )
    for kind, found in _remarkable(catalog, usable).items():
        if found:
            examples = ", ".join(printable(report_path(catalog, picture)) for picture in found[:NAMED])
            lines.append(f"{len(found):,} of {len(usable):,}: {kind} ({examples}{', ...' * (len(found) > NAMED)})")
    return lines


def _remarkable(catalog: Catalog, pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Return the pictures of each kind that is worth a remark."""

    def clipped(picture: Picture) -> bool:
        values = picture.traits.values
        if values is None:
            return False
        low, high = catalog.ranges.get(values.kind, (values.low, values.high))
        return values.low < low or values.high > high

    kinds: dict[str, Callable[[Picture], bool]] = {
        "several pictures in one file, of which the first is used": lambda picture: picture.traits.pages > 1,
        "a single colour": lambda picture: is_flat(picture.traits, catalog.ranges),
        "values beyond the range, which are clipped": clipped,
        "values that are missing or not finite": lambda picture: bool(picture.traits.missing),
        "damaged metadata": lambda picture: picture.traits.damaged and picture.traits.recovered == 1,
        "damaged metadata, turned upright nevertheless": lambda picture: picture.traits.recovered > 1,
    }
    return {kind: [picture for picture in pictures if applies(picture)] for kind, applies in kinds.items()}


def report_path(catalog: Catalog, picture: Picture) -> Path:
    """Return a picture's path as data_report.csv has it."""
    return _relative(catalog, catalog.file(picture))


def _relative(catalog: Catalog, path: Path) -> Path:
    """Return a path relative to the source's root, or the whole path if it is elsewhere."""
    return path.relative_to(catalog.source.root) if path.is_relative_to(catalog.source.root) else path


def describe_layout(catalog: Catalog) -> list[str]:
    """Return how the folders were understood, a line each: the official parts, and folders that are not used.

    Returns [] for a data set without parts. The numbers are those of the pictures in use.
    """
    source, lines = catalog.source, list[str]()
    used = Counter(picture.part for picture in catalog.kept)
    if set(source.parts) != {"all"}:
        parts = [f"{part} from {_places(catalog, part)} ({used[part]:,} pictures)" for part in source.parts]
        missing = [name for name in PARTS if name not in source.parts]
        taken = f"; {' and '.join(missing)} taken from train" if missing else ""
        lines.append(f"Official parts: {', '.join(parts)}{taken}.")
    elif len(source.levels("all")) > 1:
        lines.append(f"Taken together: the classes in {_places(catalog, 'all')}.")
    for folder, pictures in source.ignored:
        lines.append(f"Not used: {_place(catalog, folder)}, with {pictures:,} pictures, because it is no part.")
    return lines


def describe_subfolders(catalog: Catalog) -> list[str]:
    """Return which classes have most of their pictures in several subfolders, a line each for the first NAMED."""
    inside: defaultdict[str, Counter[str]] = defaultdict(Counter)
    total = Counter(picture.label for picture in catalog.kept)
    for part, folder in catalog.source.parts.items():
        tops = {
            label: [f"{top.relative_to(folder).as_posix()}/" for top in folders]
            for label, folders in catalog.source.classes[part].items()
        }
        for picture in catalog.kept:
            if picture.part == part:
                top = next(top for top in tops[picture.label] if picture.path.startswith(top))
                name, slash, _ = picture.path.removeprefix(top).partition("/")
                if slash:
                    inside[picture.label][name] += 1
    found = {
        label: folders for label, folders in inside.items() if len(folders) > 1 and 2 * folders.total() > total[label]
    }
    lines: list[str] = []
    for label in sorted(found)[:NAMED]:
        folders = [f"'{printable(name)}' {n:,}" for name, n in sorted(found[label].items())]
        more = f" and {len(folders) - NAMED:,} more" if len(folders) > NAMED else ""
        lines.append(f"Class '{printable(label)}' has its pictures in subfolders: {', '.join(folders[:NAMED])}{more}.")
    if len(found) > NAMED:
        lines.append(f"So have {len(found) - NAMED:,} other classes.")
    return lines


def _places(catalog: Catalog, part: str) -> str:
    levels = catalog.source.levels(part)
    if list(catalog.source.parts.values()).count(catalog.source.parts[part]) > 1:  # each class has a folder of the part
        names = {folder.name for folders in catalog.source.classes[part].values() for folder in folders}
        return ", ".join(f"<class>/{printable(name)}" for name in sorted(names))
    return ", ".join(_place(catalog, level) for level in levels)


def _place(catalog: Catalog, folder: Path) -> str:
    return printable(_relative(catalog, folder).as_posix())


def describe_changes(report: Path, catalog: Catalog, split: Split) -> str:
    """Describe which used pictures are gone, new, of another size in bytes or in another part, with example paths.

    Returns "" if the report cannot be read, or shows no difference because files changed without changing their size.
    """
    try:
        with report.open(newline="", encoding="utf-8") as file:
            then = {row["path"]: (row["bytes"], row["split"]) for row in csv.DictReader(file) if row["split"]}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError):
        return ""
    if not then:  # a truncated file: every study uses some pictures
        return ""
    now = {row["path"]: (row["bytes"], row["split"]) for row in report_rows(catalog, split) if row["split"]}
    kinds = {
        "gone": then.keys() - now.keys(),
        "new": now.keys() - then.keys(),
        "changed": {path for path in then.keys() & now.keys() if then[path][0] != now[path][0]},
        "in another part": {path for path in then.keys() & now.keys() if then[path][1] != now[path][1]},
    }
    return ", ".join(
        f"{len(paths):,} {kind} ({', '.join(sorted(paths)[:NAMED])}{', ...' * (len(paths) > NAMED)})"
        for kind, paths in kinds.items()
        if paths
    )
