"""`python study.py check-data`: checks every picture of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from commands.options import DATA, PLACE, CacheOption, NearDuplicatesOption, TestOption


def check_data(
    *,
    data: Annotated[str, Parameter(group=DATA, metavar="PATH|NAME")] = "field-guide",
    test_data: TestOption = None,
    near_duplicates: NearDuplicatesOption = "group",
    report: Annotated[Path | None, Parameter(group=PLACE, metavar="FILE")] = None,
    cache: CacheOption = None,
) -> None:
    """Check every picture and list those that a study would leave out, with the reasons. Nothing is changed.

    Parameters
    ----------
    data
        A folder with one folder of pictures per class; or "field-guide", or "kaggle".
    report
        Write the verdict on every file to this file, as CSV.
    cache
    """
    from commands import console as screen
    from data.prepare import find_pictures
    from data.report import write_report

    console = screen.make_console()
    found = find_pictures(
        data, test_data=test_data, near_duplicates=near_duplicates, cache_dir=cache, track=screen.track(console)
    )
    screen.print_pictures(console, found)
    screen.print_look_alikes(console, found)
    screen.ask_about_flips(console, found)
    screen.print_prospects(console, found)
    if report is not None:
        write_report(found.catalog, report, found.split)
    screen.print_left_out(console, found.catalog, report)
