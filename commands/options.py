"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import CoercionError, Group, Parameter, Token
from cyclopts.validators import Number

from tuning.folder import RESULTS

if TYPE_CHECKING:
    from rich.console import Console

    from tuning.session import OpenStudy

DATA = Group("What is studied", sort_key=1)
EXTENT = Group("How far it goes", sort_key=2)
RETRAINING = Group("What is trained again", sort_key=2)
SHOWN = Group("What is shown", sort_key=2)
SEARCH = Group("How it searches", sort_key=3)
PLACE = Group("Where it runs and writes", sort_key=4)


def choice(group: Group) -> Parameter:
    """Return an option that names one of a few values, which its help text explains."""
    return Parameter(group=group, metavar="NAME", show_choices=False)


def count(group: Group, least: int = 1) -> Parameter:
    """Return an option with a whole number of at least `least`."""
    return Parameter(group=group, metavar="N", converter=_whole_number, validator=Number(gte=least, lt=2**32))


def amount(group: Group, metavar: str = "N") -> Parameter:
    """Return an option with a positive number."""
    return Parameter(group=group, metavar=metavar, validator=Number(gt=0))


def flag(group: Group, name: str | None = None) -> Parameter:
    """Return an option without a value."""
    return Parameter(name=name, group=group, negative="", show_default=False)


def _whole_number(_: object, tokens: Sequence[Token]) -> int:
    """Read a whole number; cyclopts itself would take 1.5 for 2."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise CoercionError(token=tokens[0], target_type=int) from None


TestOption = Annotated[
    Path | None,
    Parameter(
        name="--test-data",
        group=DATA,
        metavar="PATH",
        help="An official test set: a folder with the same class folders. The search does not use it.",
    ),
]
CacheOption = Annotated[
    Path | None,
    Parameter(
        name="--cache",
        group=PLACE,
        metavar="DIR",
        help="Where drawn and decoded pictures are kept. By default the user's cache folder.",
    ),
]
ResultsOption = Annotated[
    Path,
    Parameter(
        name="--results",
        group=PLACE,
        metavar="DIR",
        show_default=False,
        help="Where studies have their folders. By default results/ beside study.py.",
    ),
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    choice(PLACE),
    Parameter(help='Where networks run: "cpu", "cuda", "mps", or "auto", the fastest one available.'),
]
WorkersOption = Annotated[
    int | None,
    count(PLACE),
    Parameter(help="How many trials run at once. By default one per CPU core or GPU; more share the GPUs."),
]
PrecisionOption = Annotated[
    Literal["auto", "float32", "bfloat16"],
    choice(PLACE),
    Parameter(help='Precision of the training: "auto" is bfloat16 where the hardware multiplies it, else float32.'),
]
# Options of the commands that come after a study.
StudyOption = Annotated[
    str | None,
    Parameter(name="--study", group=DATA, metavar="NAME", help="Which study. By default the one that was run last."),
]
MovedDataOption = Annotated[
    str | None,
    Parameter(
        name="--data",
        group=DATA,
        metavar="PATH|NAME",
        help="Where its pictures are now. By default where they were.",
    ),
]
MovedTestOption = Annotated[
    Path | None,
    Parameter(
        name="--test-data",
        group=DATA,
        metavar="PATH",
        help="Where its official test set is now. By default where it was.",
    ),
]
StorageOption = Annotated[
    str | None,
    Parameter(
        name="--storage",
        group=PLACE,
        metavar="URL",
        help="The study's database; needed only if it was run with one that has a password.",
    ),
]
Injected = Annotated[Any, Parameter(parse=False)]
"""A parameter of a command that `study.main` passes on; it is no option."""


def argv() -> list[str]:
    """Return the arguments after `study.py`, without passwords."""
    from tuning.database import without_password

    return list(map(without_password, sys.argv[1:]))


def study_options(study: str, results: Path) -> str:
    """Return the options with which another command finds a study."""
    elsewhere = [] if results == RESULTS else ["--results", str(results)]
    return shlex.join(["--study", study, *elsewhere])


def find_study(console: Console, results: Path, name: str | None, storage: str | None) -> OpenStudy:
    """Open the named study, or else the one that was run last, and print which one it is."""
    from tuning import session

    found = session.find_study(results, name, storage)
    console.print(f"Study '{found.name}' in {found.folder}", style="bold", markup=False, soft_wrap=True)
    return found
