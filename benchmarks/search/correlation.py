"""How early a recorded network shows what it will be worth: rank correlation with the end, at shares of the horizon.

    python -m benchmarks.search.correlation

Networks are ranked by the best top-1 so far, as schedulers rank them. Only random configurations count, each with each
of its seeds. Intervals come from resampling the configurations.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.search.measures import RESAMPLES, ranks
from benchmarks.search.tables import FOLDER, read_tables
from tests.stress.script import header, row, run

FEWEST = 5
"""Smallest number of networks whose correlation is printed."""


def main(
    *, tables: Path = FOLDER, shares: tuple[float, ...] = (0.02, 0.05, 0.1, 0.125, 0.2, 0.3, 0.4, 0.5, 0.67, 0.8)
) -> None:
    """Print the correlations of every recorded table.

    Parameters
    ----------
    tables
        Folder of the recorded tables.
    shares
        Shares of the horizon.
    """
    for table in read_tables(tables):
        drawn = [row for row in table.rows if row.is_random]
        # The best value so far of every network (rows) after every point (columns).
        best = np.maximum.accumulate(np.concatenate([row.curves for row in drawn]), axis=1)
        schedules = np.array([row.schedule for row in drawn for _ in row.curves])
        groups = {"all": best, "better half": best[best[:, -1] >= np.median(best[:, -1])]}
        groups |= {str(name): best[schedules == name] for name in np.unique(schedules)}
        at = [max(1, round(share * table.points)) - 1 for share in shares]
        print(f"\n{table.data}: {len(best)} trainings of {len(drawn)} random configurations, {table.epochs} epochs\n")
        header("networks", *(f"{share:.0%}" for share in shares))
        for name, members in groups.items():
            if len(members) >= FEWEST:
                row(f"{name} ({len(members)})", *(correlation(members[:, point], members[:, -1]) for point in at))
        row("place of the network that finally wins", *(place_of_winner(best[:, point], best[:, -1]) for point in at))


def correlation(early: NDArray[np.float64], final: NDArray[np.float64]) -> str:
    """Return Spearman's rank correlation of two lists with its 95 % interval, from resampled networks."""
    rng = np.random.default_rng(0)
    resampled: list[float] = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(len(final), size=len(final))
        resampled.append(spearman(early[drawn], final[drawn]))
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return f"{spearman(early, final):.2f} ({low:.2f} to {high:.2f})"


def spearman(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Return the rank correlation of two lists; nan if all values of one are equal."""
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return float("nan")
    return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


def place_of_winner(early: NDArray[np.float64], final: NDArray[np.float64]) -> str:
    """Return the place, from 1, of the network with the best final value; a mean place if others are equal."""
    return f"{ranks(early)[final.argmax()]:g}"


if __name__ == "__main__":
    run(main)
