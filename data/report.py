"""The report on a data set, data_report.csv: one row per file with its verdict, and what has changed since then."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from data import explained
from data.catalog import Catalog
from data.split import Split
from model.files import csv_cell, printable, replacing

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

NAMED = 3
"""Largest number of examples for each kind of change."""


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
        path = catalog.file(picture)
        shown = path.relative_to(catalog.source.root) if path.is_relative_to(catalog.source.root) else path
        row = (
            csv_cell(shown),
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
