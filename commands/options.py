"""Options that several commands share, with their help texts and validators."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import CoercionError, Group, Parameter, Token
from cyclopts.validators import Number

from data import NearDuplicates, expanded
from tuning.folder import RESULTS

if TYPE_CHECKING:
    from rich.console import Console

    from tuning.devices import RunThere, Slot
    from tuning.session import MakeWorkers, OpenStudy

DATA = Group("Data and study", sort_key=1)
EXTENT = Group("Length of the run", sort_key=2)
RETRAINING = Group("Retraining", sort_key=2)
SHOWN = Group("Output", sort_key=2)
SEARCH = Group("Search", sort_key=3)
PLACE = Group("Hardware and folders", sort_key=4)


def choice(group: Group) -> Parameter:
    """Return an option whose value is one of a few names; its help text explains them."""
    return Parameter(group=group, metavar="NAME", show_choices=False)


def several(group: Group) -> Parameter:
    """Return an option that takes any number of a few names, or none."""
    return Parameter(group=group, metavar="[NAME ...]", show_choices=False, consume_multiple=True, negative="")


def count(group: Group, least: int = 1) -> Parameter:
    """Return an option whose value is an integer, at least `least`."""
    return Parameter(group=group, metavar="N", converter=_whole_number, validator=Number(gte=least, lt=2**32))


def amount(group: Group, metavar: str = "N") -> Parameter:
    """Return an option whose value is a positive number."""
    return Parameter(group=group, metavar=metavar, validator=(Number(gt=0), Number(lt=math.inf)))


def percentage(group: Group) -> Parameter:
    """Return an option whose value is a percentage of at least 1: a smaller one was surely meant as a share of 1."""
    return Parameter(group=group, metavar="PERCENT", validator=(Number(gt=0, lte=100), _not_a_share))


def flag(group: Group, name: str | None = None) -> Parameter:
    """Return an option that takes no value."""
    return Parameter(name=name, group=group, negative="", show_default=False)


def _not_a_share(_: object, value: float | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"must be a percentage of at least 1 (did you mean {100 * value:g}?)")


def _whole_number(_: object, tokens: Sequence[Token]) -> int:
    """Read an integer; cyclopts itself would round 1.5 to 2."""
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
        help="An official test set: a folder with the same class folders. The search never uses it.",
    ),
]
PartsOption = Annotated[
    str | None,
    Parameter(
        name="--parts",
        group=DATA,
        metavar="PART=DIR,...",
        help=(
            "For folders whose roles are unclear: which of them hold the class folders of each official part, as in "
            "train=DIR,test=DIR, with validation=DIR if there is one; or all=DIR. Paths are relative to --data."
        ),
    ),
]
LinksOption = Annotated[
    bool,
    Parameter(
        name="--follow-links",
        group=DATA,
        negative="",
        show_default=False,
        help="Follow symbolic links, even those that lead out of the folder.",
    ),
]
NearDuplicatesOption = Annotated[
    NearDuplicates,
    choice(DATA),
    Parameter(
        name="--near-duplicates",
        help='Pictures that are nearly identical: "group" puts them into the same part of the split, "keep" splits '
        "them like different pictures. Of exact copies, one is used in either case.",
    ),
]
CacheOption = Annotated[
    Path | None,
    Parameter(
        name="--cache",
        group=PLACE,
        metavar="DIR",
        help="Folder of drawn and decoded pictures. By default the user's cache folder.",
    ),
]
ResultsOption = Annotated[
    Path,
    Parameter(
        name="--results",
        group=PLACE,
        metavar="DIR",
        show_default=False,
        help="Folder of all studies. By default results/ beside study.py.",
    ),
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    choice(PLACE),
    Parameter(help='Device to run networks on: "cpu", "cuda", "mps", or "auto", the fastest one available.'),
]
WorkersOption = Annotated[
    int | None,
    count(PLACE),
    Parameter(
        help="Number of trials to train at once. By default one per usable CPU or GPU; with more, they share the GPUs."
    ),
]
PrecisionOption = Annotated[
    Literal["auto", "float32", "bfloat16"],
    choice(PLACE),
    Parameter(help='Precision of training: "float32", "bfloat16", or "auto", the faster one, timed at the start.'),
]
RayOption = Annotated[
    str | None,
    Parameter(
        name="--ray",
        group=PLACE,
        metavar="ADDRESS",
        help='Train on every node of the Ray cluster whose head is at HOST:PORT; "auto" is the cluster that this '
        "machine belongs to. By default this machine trains alone.",
    ),
]
# Options of the commands that use an existing study
StudyOption = Annotated[
    str | None,
    Parameter(name="--study", group=DATA, metavar="NAME", help="Name of the study. By default the one run last."),
]
MovedDataOption = Annotated[
    str | None,
    Parameter(
        name="--data",
        group=DATA,
        metavar="PATH|NAME",
        help="Where the study's pictures are now, if they have moved.",
    ),
]
MovedTestOption = Annotated[
    Path | None,
    Parameter(
        name="--test-data",
        group=DATA,
        metavar="PATH",
        help="Where the study's official test set is now, if it has moved.",
    ),
]
MovedPartsOption = Annotated[
    str | None,
    Parameter(
        name="--parts",
        group=DATA,
        metavar="PART=DIR,...",
        help="Where the study's official parts are now, if it was started with --parts and they have moved.",
    ),
]
StorageOption = Annotated[
    str | None,
    Parameter(
        name="--storage",
        group=PLACE,
        metavar="URL",
        help="URL of the study's database; needed only if the URL holds a password.",
    ),
]
Injected = Annotated[Any, Parameter(parse=False)]
"""Type of a command's parameter that is not an option: only a caller of `study.main` can set it."""


def hardware(
    console: Console, ray: str | None, device: str, workers: int | None, cache: Path | None
) -> tuple[Sequence[Slot], MakeWorkers, RunThere]:
    """Return the slots that the options ask for, on this machine or a cluster, and what trains and times in them."""
    from tuning import devices
    from tuning.workers import LocalWorkers

    if ray is None:
        return devices.slots(device, workers), LocalWorkers, devices.run_here

    from tuning.ray_workers import connect

    def say(line: str) -> None:
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)

    everywhere = expanded(cache).absolute() if cache else None
    cluster = connect(ray, device=device, workers=workers, cache_dir=everywhere, say=say)
    return cluster.slots, cluster.make_workers, cluster.run_there


def argv() -> list[str]:
    """Return the command-line arguments after `study.py`, with passwords masked."""
    from tuning.database import without_password

    return list(map(without_password, sys.argv[1:]))


def study_options(study: str, results: Path) -> str:
    """Return the options with which other commands find a study."""
    elsewhere = [] if results == RESULTS else ["--results", str(results)]
    return shlex.join(["--study", study, *elsewhere])


def find_study(console: Console, results: Path, name: str | None, storage: str | None) -> OpenStudy:
    """Open the named study, or the one that was run last, and print which one it is."""
    from tuning import session

    found = session.find_study(results, name, storage)
    console.print(f"Study '{found.name}' in {found.folder}", style="bold", markup=False, soft_wrap=True)
    return found
