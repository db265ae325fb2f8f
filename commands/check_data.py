"""`python study.py check-data`: checks every picture of a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from commands.options import (
    DATA,
    SHOWN,
    CacheOption,
    LinksOption,
    NearDuplicatesOption,
    PartsOption,
    TestOption,
    flag,
)
from commands.output import essential_output

if TYPE_CHECKING:
    from data.prepare import Pictures


def check_data(
    *,
    data: Annotated[str, Parameter(group=DATA, metavar="PATH|NAME")] = "field-guide",
    test_data: TestOption = None,
    parts: PartsOption = None,
    follow_links: LinksOption = False,
    near_duplicates: NearDuplicatesOption = "group",
    report: Annotated[Path | None, Parameter(group=SHOWN, metavar="FILE")] = None,
    sheet: Annotated[Path | None, Parameter(group=SHOWN, metavar="FILE")] = None,
    as_json: Annotated[bool, flag(SHOWN, "--json")] = False,
    cache: CacheOption = None,
) -> None:
    """Check every picture and list those that a study would leave out, with the reasons. Nothing is changed.

    Parameters
    ----------
    data
        A folder with one folder of pictures per class; or "field-guide", or "kaggle".
    report
        Write the verdict on every file to this file, as CSV.
    sheet
        Draw some pictures of each class as the network will see them, the strangest first, into this PNG file.
    as_json
        Print the facts as one JSON object instead of a table.
    cache
    """
    from commands import console as screen
    from data import no_track
    from data.catalog import UnusableDataError
    from data.facts import facts
    from data.prepare import find_pictures
    from data.report import write_report
    from model.files import printable

    console = screen.make_console()
    track = no_track if as_json else screen.track(console)
    try:
        found = find_pictures(
            data,
            test_data=test_data,
            parts=parts,
            follow_links=follow_links,
            near_duplicates=near_duplicates,
            cache_dir=cache,
            track=track,
        )
    except UnusableDataError as unusable:
        if report is not None:
            write_report(unusable.catalog, report)
        if as_json:
            print(json.dumps(facts(unusable.catalog) | {"error": str(unusable)}, indent=2))
        else:
            screen.print_unusable(console, unusable.catalog)
            screen.print_left_out(console, unusable.catalog, report)
        raise
    if report is not None:
        write_report(found.catalog, report, found.split)
    if sheet is not None:
        _write_sheet(found, sheet, cache)
    studies = _studies(found)
    if as_json:
        with essential_output():
            print(json.dumps(facts(found.catalog, found.split) | {"studies": studies}, indent=2))
        return
    screen.print_pictures(console, found)
    screen.print_facts(console, found, studies)
    screen.print_look_alikes(console, found)
    screen.ask_about_flips(console, found)
    screen.print_left_out(console, found.catalog, report)
    if sheet is not None:
        console.print(f"Some pictures of each class are on {printable(sheet)}.", markup=False, soft_wrap=True)


def _studies(found: Pictures) -> dict[str, Any]:
    """Return what a study of these pictures would do by default, by profile."""
    from search_space import PROFILES

    fitted = {
        name: profile.fitted(found.catalog.median_short_side, len(found.split.train))
        for name, profile in PROFILES.items()
    }
    return {name: {"epochs": one.horizon, "image_sizes": list(one.sizes)} for name, one in fitted.items()}


def _write_sheet(found: Pictures, path: Path, cache: Path | None) -> None:
    """Draw the sheet at the largest image size of the quick profile. Raises DataError if it cannot be written."""
    from data import explained
    from data.prepare import default_cache
    from data.sheet import draw
    from model.files import printable, replacing
    from search_space import PROFILES

    size = PROFILES["quick"].within(found.catalog.median_short_side).sizes[-1]
    handle = found.decode([size], cache_dir=cache or default_cache())
    drawn = draw(found.catalog, handle, size)
    with explained(f"cannot write {printable(path)}", "free some space, or choose another place for the sheet"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            drawn.save(unfinished, format="PNG")
