"""What the report says, section by section.

`Facts` -> a function per section -> its sentences, figures and tables, or None where the study has nothing to say
there. Every sentence is computed from this study's own numbers. A new section is a function in `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable

from reporting.sections.background import data, go_on, settings
from reporting.sections.causes import cost, mattered
from reporting.sections.outcome import finalists, mistakes, result
from reporting.sections.parts import Facts, Section
from reporting.sections.progress import endings, search, workers

SECTIONS: tuple[Callable[[Facts], Section | None], ...] = (
    result,
    search,
    mattered,
    cost,
    finalists,
    mistakes,
    endings,
    workers,
    data,
    settings,
    go_on,
)
"""In the page's order."""
