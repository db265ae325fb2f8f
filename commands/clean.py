"""`python study.py clean`: lists and removes studies and caches."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from commands.options import CacheOption, ResultsOption
from tuning.folder import RESULTS


def clean(
    *names: Annotated[str, Parameter(metavar="NAME")],
    results: ResultsOption = RESULTS,
    cache: CacheOption = None,
) -> None:
    """List studies and caches with their sizes, or remove the named ones.

    Parameters
    ----------
    names
        Studies and caches to remove, by the names that this command lists, without a confirmation prompt. A study's
        exported bundle is removed with it. Without names, nothing is removed.
    """
    from commands import console as screen
    from data.prepare import default_cache
    from tuning import cleaning
    from tuning.settings import found

    console = screen.make_console()
    items = cleaning.find(results, cache or default_cache())
    chosen = cleaning.choose(items, names)
    if not chosen:
        screen.print_sizes(console, items)
    for item in chosen:
        kept = found(item.path)
        cleaning.remove(item)
        screen.print_removed(console, item, kept.storage if kept else None)
