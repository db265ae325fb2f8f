"""The policies of a replay: this program's schedulers and samplers, and the simple rules that they must beat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Protocol

from benchmarks.search.machine import Machine
from benchmarks.search.portfolio import greedy
from benchmarks.search.studies import (
    BASELINES,
    ScreeningScheduler,
    SimulatedStudy,
    promotion_scheduler,
)
from benchmarks.search.tables import Table
from search_space import GUESS
from tuning import scheduling
from tuning.scheduling import RUNGS, SCHEDULERS, kept_share, promoted_share


class PolicyFailed(Exception):  # noqa: N818 - a result to print, and no error of this program
    """A policy that is another program has failed."""


class Policy(Protocol):
    """A way to spend a budget."""

    @property
    def anytime(self) -> bool:
        """Whether a smaller budget only ends a run earlier; otherwise every budget needs a run of its own."""
        ...

    def __call__(self, machine: Machine, seed: int, /) -> None:
        """Train rows on a machine until nothing is left to train. Raises BudgetSpent or PolicyFailed."""
        ...


REFERENCE = "TPE + Median"
"""The policy that the others are to catch up with."""
PORTFOLIO = 8
"""Number of rows in a learned portfolio, as in the one of `search_space.py`."""
SCREENING = RUNGS[0]
"""Share of the horizon after which a short screening decides: the first rung of this program's promotion."""


def policies(table: Table, others: Sequence[Table]) -> dict[str, Policy]:
    """Return the policies by name. A portfolio is learned on the `others`, and missing if there are none."""
    names = [row.name for row in table.rows if not row.is_random]
    found: dict[str, Policy] = {
        "random, all to the end": _study("random", "none"),
        "random + promotion": _study("random", "promote"),
        "one epoch for all, then the best to the end": _screening(1 / table.points, expected=2 / table.points),
        "short screening, the better half to the end": _screening(SCREENING, expected=(1 + SCREENING) / 2),
        REFERENCE: _study("tpe", "median"),
        "TPE + ASHA": _study("tpe", "asha"),
        "TPE + promotion": _study("tpe", "promote"),
        "TPE + promotion, new trials to the last": _study("tpe", "promote", endless=True),
    }
    if GUESS in names:
        found["best single guess"] = _study("random", "none", first=[GUESS], trials=1)
    if len(names) > len(BASELINES):
        found["this program: its baselines and portfolio, then TPE + promotion"] = _study("tpe", "promote", first=names)
    if others:
        learned = greedy(others, PORTFOLIO, among=table)
        found["learned portfolio, then TPE + promotion"] = _study("tpe", "promote", first=learned)
        found["learned portfolio, then random + promotion"] = _study("random", "promote", first=learned)
    return found


def _study(
    sampler: str, scheduler: str, *, first: Sequence[str] = (), trials: int | None = None, endless: bool = False
) -> SimulatedStudy:
    """Return a study; one with promotions plans its number of trials, unless it is `endless`."""
    planned = scheduler == "promote" and not endless
    return SimulatedStudy(
        sampler=sampler,
        scheduler=SCHEDULERS[scheduler],
        share=planned_share if planned else None,
        first=first,
        trials=trials,
    )


def planned_share(epochs: int) -> float:
    """Return the share of all epochs that the default rungs let through, by which the number of trials is planned."""
    return promoted_share([rung / epochs for rung in scheduling.rungs(epochs)], kept_share(epochs))


def _screening(share: float, expected: float) -> SimulatedStudy:
    """Return a policy that trains all trials for a share of the horizon, then the best to the end.

    The budget pays for as many trials as if each trained the `expected` share: with twice the first share, half of the
    budget is left for the best; with (1 + share) / 2, half of the trials can be trained to the end.
    """
    return SimulatedStudy(
        sampler="random",
        scheduler=lambda study, epochs: ScreeningScheduler(max(1, round(share * epochs))),
        share=lambda epochs: expected,
    )


def promotion_sweep(table: Table, shares: Sequence[float], keeps: Sequence[float]) -> Iterator[tuple[str, Policy]]:
    """Yield this program with one or two rungs at these shares of the horizon, for every share to keep."""
    names = [row.name for row in table.rows if not row.is_random]
    for rungs in (*combinations(sorted(shares), 1), *combinations(sorted(shares), 2)):
        epochs = tuple(max(1, round(share * table.points)) for share in rungs)
        for keep in keeps:
            yield (
                f"rungs {', '.join(f'{share:g}' for share in rungs)}, keep {keep:g}",
                SimulatedStudy(
                    sampler="tpe",
                    scheduler=promotion_scheduler(epochs, keep),
                    share=lambda epochs, rungs=rungs, keep=keep: promoted_share(rungs, keep),
                    first=names,
                ),
            )
