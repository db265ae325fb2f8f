"""The simulated machine on which every policy and every peer trains rows of a table: slots, one clock, one budget."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from benchmarks.search.tables import Pool, Row


class BudgetSpent(Exception):  # noqa: N818 - it ends every run, and is no error
    """The next epoch would end after the budget."""


@dataclass(frozen=True)
class Chosen:
    """The row that a policy would deliver from a moment on."""

    clock: float
    """When it became the best, in horizons of all slots together."""
    row: Row
    finished: bool
    """Whether it has been trained to its end."""


@dataclass(frozen=True, kw_only=True)
class Charges:
    """What training costs."""

    by_flops: bool = False
    """Whether an epoch costs what its network's FLOPs do, relative to the mean; otherwise all epochs cost the same."""
    resume: float = 0.0033
    """Share of the horizon that resuming a paused trial costs: setting up a trial took 0.2 of 60 epochs."""


class Machine:
    """Slots that train rows of a pool, one point of the horizon at a time, until the budget is spent.

    The clock counts all slots together, so that an idle slot spends its share of the budget.
    """

    def __init__(self, pool: Pool, *, slots: int, budget: float, charges: Charges) -> None:
        """Start with idle slots; `budget` is counted in horizons, for all slots together."""
        self.pool = pool
        self.slots = slots
        self.budget = budget
        self.points = pool.table.points
        self.trained: dict[Row, int] = {}
        self.choices: list[Chosen] = []
        self._charges = charges
        self._mean_flops = sum(row.flops for row in pool.drawn) / len(pool.drawn)
        self._now = 0.0  # of one slot, in points
        self._end = budget * self.points / slots
        self._queue: list[tuple[float, int]] = []
        self._running: dict[int, Row] = {}
        self._busy = 0.0

    @property
    def unspent(self) -> float:
        """Share of the budget that no slot has used."""
        late = sum(max(0.0, end - self._end) for end, _ in self._queue)
        return 1 - (self._busy - late) / (self._end * self.slots)

    def value(self, row: Row, epoch: int) -> float:
        """Return the validation top-1 of a row after one of its points, from 0."""
        return float(self.pool.curves[row.name][epoch])

    def best(self, row: Row) -> float:
        """Return the best validation top-1 that a row has reached so far."""
        return float(self.pool.curves[row.name][: self.trained[row]].max())

    def start(self, slot: int, row: Row) -> None:
        """Begin a row in an idle slot, or resume it there."""
        resumed = self.trained.setdefault(row, 0) > 0
        self._running[slot] = row
        self._train(slot, self._charges.resume * self.points if resumed else 0.0)

    def proceed(self, slot: int) -> None:
        """Train the next point of the slot's row."""
        self._train(slot, 0.0)

    def _train(self, slot: int, extra: float) -> None:
        cost = self._running[slot].flops / self._mean_flops if self._charges.by_flops else 1.0
        self._busy += cost + extra
        heapq.heappush(self._queue, (self._now + cost + extra, slot))

    def wait(self) -> tuple[int, Row, int]:
        """Advance the clock; return the slot that finishes a point next, its row, and the point's number from 0.

        Raises BudgetSpent.
        """
        if self._queue[0][0] > self._end + 1e-9:
            raise BudgetSpent
        self._now, slot = heapq.heappop(self._queue)
        row = self._running[slot]
        self.trained[row] += 1
        self._choose(row)
        return slot, row, self.trained[row] - 1

    def _choose(self, row: Row) -> None:
        """Note a row that is now the best: a finished one, or the best unfinished one before any has finished."""
        finished = self.trained[row] == self.points
        best = self.choices[-1] if self.choices else None
        if best is None or (finished, self.best(row)) > (best.finished, self.best(best.row)):
            self.choices.append(Chosen(self._now * self.slots / self.points, row, finished))

    def finish_best(self) -> None:
        """Train the best unfinished rows to their ends.

        The rule for everyone once the pool has run dry and nothing is running. Raises BudgetSpent.
        """
        waiting = sorted((row for row, at in self.trained.items() if at < self.points), key=self.best)
        free = list(range(self.slots))
        while True:
            while free and waiting:
                self.start(free.pop(), waiting.pop())
            if not self._queue:
                return
            slot, row, _ = self.wait()
            if self.trained[row] < self.points:
                self.proceed(slot)
            else:
                free.append(slot)
