"""`python study.py check-data`: checks every picture of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from commands.options import DATA, PLACE, CacheOption, LinksOption, PartsOption, TestOption


def check_data(
    *,
    data: Annotated[str, Parameter(group=DATA, metavar="PATH|NAME")] = "field-guide",
    test_data: TestOption = None,
    parts: PartsOption = None,
    follow_links: LinksOption = False,
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
    from data.catalog import UnusableDataError
    from data.prepare import find_pictures
    from data.report import describe_subfolders, remarks, write_report

    console = screen.make_console()
    try:
        found = find_pictures(
            data,
            test_data=test_data,
            parts=parts,
            follow_links=follow_links,
            cache_dir=cache,
            track=screen.track(console),
        )
    except UnusableDataError as unusable:
        if report is not None:
            write_report(unusable.catalog, report)
        screen.print_unusable(console, unusable.catalog)
        screen.print_left_out(console, unusable.catalog, report)
        raise
    # Before anything is printed, because the reader of a pipe may close it after a line.
    if report is not None:
        write_report(found.catalog, report, found.split)
    screen.print_pictures(console, found)
    for line in describe_subfolders(found.catalog):
        console.print(line, highlight=False, markup=False)
    for line in remarks(found.catalog):
        console.print(line, soft_wrap=True, markup=False)
    screen.ask_about_flips(console, found)
    screen.print_left_out(console, found.catalog, report)
