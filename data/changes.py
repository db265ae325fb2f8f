"""Changes in a data set since a study wrote its `data_report.csv`."""

import csv
from pathlib import Path

from data.catalog import Catalog
from data.split import Split

NAMED = 3
"""Largest number of examples for each kind of change."""


def describe(report: Path, catalog: Catalog, split: Split) -> str:
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
    now = {row["path"]: (row["bytes"], row["split"]) for row in catalog.report_rows(split) if row["split"]}
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
