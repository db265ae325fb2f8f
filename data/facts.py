"""Facts about a data set, for programs: what `check-data` prints, as data."""

from collections import Counter
from typing import Any

import numpy as np

from data.catalog import Catalog
from data.file_checks import Verdict
from data.findings import look_alikes, odd_shares
from data.report import describe_layout, describe_subfolders, remarks
from data.split import Split


def facts(catalog: Catalog, split: Split | None = None) -> dict[str, Any]:
    """Return the facts as a dictionary that can be stored as JSON; without a split, those of an unusable data set.

    `classes` counts each class's pictures by part and its other files by verdict; `sizes` are pixels as stored; `leaks`
    pairs pictures of an official part with their near-duplicates in a part that judges it; the `class` of an odd share
    is None for all classes together. Names are as in the file system, not escaped as in the report.
    """
    kept, counts = catalog.kept, catalog.counts()
    parts = {} if split is None else {part: catalog.labels[positions] for part, positions in split.named()}
    return {
        "root": str(catalog.source.root),
        "citation": catalog.source.citation,
        "official_parts": sorted(catalog.source.parts.keys() - {"all"}),
        "pictures": len(kept),
        "classes": [
            {"name": label, "pictures": counts[label][Verdict.KEPT]}
            | {part: int(np.count_nonzero(labels == number)) for part, labels in parts.items()}
            | {"left_out": _left_out(counts[label])}
            for number, label in enumerate(catalog.classes)
        ],
        "empty_folders": list(catalog.empty),
        "left_out": _left_out(Counter(picture.verdict for picture in catalog.pictures)),
        "sizes": _sizes(catalog),
        "modes": dict(Counter(picture.mode for picture in kept).most_common()),
        "ranges": catalog.ranges,
        **_look_alikes(catalog),
        "odd_shares": [] if split is None else _odd_shares(catalog, split),
        "remarks": [*describe_layout(catalog), *describe_subfolders(catalog), *remarks(catalog)],
    }


def describe_sizes(catalog: Catalog) -> str:
    """Return the range of sizes and the modes of the pictures in use in one line; "" if there are none."""
    if not catalog.kept:
        return ""
    sizes = _sizes(catalog)
    sides = f"short side {_spread(sizes['short_side'])}, long side {_spread(sizes['long_side'])}"
    modes = Counter(picture.mode for picture in catalog.kept).most_common()
    shown = ", ".join(mode if len(modes) == 1 else f"{mode} {count:,}" for mode, count in modes)
    return f"Pixels: {sides}. Colour mode{'s' * (len(modes) > 1)}: {shown}."


def _spread(side: dict[str, int]) -> str:
    if side["least"] == side["most"]:
        return f"{side['least']:,}"
    return f"{side['least']:,} to {side['most']:,}, median {side['median']:,}"


def _sizes(catalog: Catalog) -> dict[str, dict[str, int]]:
    sides = np.sort(np.array([(picture.width, picture.height) for picture in catalog.kept]).reshape(-1, 2))
    return {
        name: {"least": int(side.min()), "median": int(np.median(side)), "most": int(side.max())}
        for name, side in zip(("short_side", "long_side"), sides.T, strict=True)
        if len(side)
    }


def _look_alikes(catalog: Catalog) -> dict[str, Any]:
    found = look_alikes(catalog)
    return {
        kind: {
            "groups": len(groups),
            "pictures": sum(map(len, groups)),
            "largest": max(map(len, groups), default=0),
            "examples": [[picture.path for picture in group[:2]] for group in groups[:3]],
        }
        for kind, groups in (("near_duplicates", found.groups), ("scenes", found.scenes))
    } | {"leaks": [[picture.path, judge.path] for picture, judge in found.leaks]}


def _odd_shares(catalog: Catalog, split: Split) -> list[dict[str, Any]]:
    return [
        {"class": odd.label, "part": odd.part, "pictures": odd.found, "of": odd.total, "share": round(odd.share, 4)}
        | {"near_duplicates": len(odd.cause)}
        for odd in odd_shares(catalog, split)
    ]


def _left_out(counts: dict[Verdict, int]) -> dict[str, int]:
    return {verdict.value: n for verdict, n in counts.items() if n and verdict is not Verdict.KEPT}
