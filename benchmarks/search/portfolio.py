"""A portfolio: a few configurations of which one is good on every recorded data set, chosen greedily.

    python -m benchmarks.search.portfolio

auto-sklearn 2.0 (Feurer et al. 2022, arXiv:2007.04074) starts its searches from such a portfolio. It is judged only on
a data set that it was not learned from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.search.tables import FOLDER, Table, read_tables
from search_space import HAND_TUNED, ORIGINAL
from tests.stress.script import header, row, run

RANDOM_PORTFOLIOS = 1000
"""Number of random portfolios over which the regret is averaged."""


def main(*, tables: Path = FOLDER, size: int = 8) -> None:
    """Judge portfolios on each table, learned ones without it, and print the portfolio learned from all tables.

    Parameters
    ----------
    tables
        Folder of the recorded tables.
    size
        Number of rows in a portfolio.
    """
    read = read_tables(tables)
    rng = np.random.default_rng(0)
    print("Validation regret in points of the best of a portfolio's first rows\n")
    header("judged on", "portfolio", *map(str, range(1, size + 1)))
    for table in read:
        by_hand = [it.worth for it in table.rows if not it.is_random and it.name not in (ORIGINAL, HAND_TUNED)]
        drawn = [it.worth for it in table.rows if it.is_random]
        mixed = [regrets(table, rng.permutation(drawn)[:size]) for _ in range(RANDOM_PORTFOLIOS)]
        others = [other for other in read if other is not table]
        if others:
            learned = [table.row(name).worth for name in greedy(others, size, among=table)]
            row(table.data, "learned from the other tables", *_cells(regrets(table, learned)))
        row(table.data, "the guess and the variations of search_space.py", *_cells(regrets(table, by_hand[:size])))
        row(table.data, "random, mean", *_cells(np.mean(mixed, axis=0)))
    print("\nThe portfolio of all tables, as recorded on the first:\n")
    for name in greedy(read, size, among=read[0]):
        print(f"{name}: {json.dumps(read[0].row(name).params)}")


def regrets(table: Table, worths: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the regret of the best of the first row, the first two rows and so on."""
    return max(row.worth for row in table.rows) - np.maximum.accumulate(worths)


def _cells(values: NDArray[np.float64]) -> list[str]:
    return [f"{100 * value:.1f}" for value in values]


def greedy(tables: Sequence[Table], size: int, among: Table) -> list[str]:
    """Return the names of `size` rows, each the one that most reduces the mean regret of the best chosen row so far.

    The mean is over the tables, the regret in validation top-1. The rows are among those of `among`, of which only the
    names are used, and in all tables.
    """
    worths = [{row.name: row.worth for row in table.rows} for table in tables]
    names = [row.name for row in among.rows if all(row.name in worth for worth in worths)]
    values = np.array([[worth[name] for name in names] for worth in worths])
    regrets = values.max(axis=1, keepdims=True) - values
    best = np.full(len(tables), np.inf)
    chosen: list[int] = []
    for _ in range(min(size, len(names))):
        # Of rows that reduce it equally, as once every table has its best row, the one that is better by itself.
        means = np.stack([regrets.mean(axis=0), np.minimum(regrets, best[:, None]).mean(axis=0)])
        means[:, chosen] = np.inf
        chosen.append(int(np.lexsort(means)[0]))
        best = np.minimum(best, regrets[:, chosen[-1]])
    return [names[number] for number in chosen]


if __name__ == "__main__":
    run(main)
