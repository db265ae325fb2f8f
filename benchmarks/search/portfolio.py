"""A portfolio: a few configurations of which one is good on every recorded data set, chosen greedily.

auto-sklearn 2.0 (Feurer et al. 2022, arXiv:2007.04074) starts its searches from such a portfolio. It is judged only on
a data set that it was not learned from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.search.tables import Table


def greedy(tables: Sequence[Table], size: int) -> list[str]:
    """Return the names of `size` rows, each the one that most reduces the mean regret of the best chosen row so far.

    The mean is over the tables, the regret in validation top-1. Only rows that all tables have are considered.
    """
    worths = [{row.name: row.worth for row in table.rows} for table in tables]
    names = [name for name in worths[0] if all(name in worth for worth in worths)]
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
