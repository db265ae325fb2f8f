"""Sections of the report, one function each.

`Facts` -> a function per section -> its paragraphs, charts and tables; None if the study has nothing to show there.
Every sentence is computed from the study's own numbers. A new section is a function in `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable

from reporting.sections.background import data, next_steps, settings
from reporting.sections.causes import cost, mattered
from reporting.sections.outcome import finalists, mistakes, result
from reporting.sections.parts import Facts, Section
from reporting.sections.progress import endings, search

SECTIONS: tuple[Callable[[Facts], Section | None], ...] = (
    result,
    finalists,
    mistakes,
    search,
    mattered,
    cost,
    endings,
    data,
    settings,
    next_steps,
)
"""Functions that make the sections, in the page's order."""
