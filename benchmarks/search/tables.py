"""Recorded tables: learning curves of many configurations on one data set, and how a proposal becomes a row of them.

A table is a file `tables/<data set>.jsonl`, written by `record.py`, with one trained network per line.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from search_space import PROFILES, Config, Profile, suggest

FOLDER = Path(__file__).resolve().parent / "tables"
"""Default folder of the tables."""
MOST_POINTS = 60
"""Largest number of points of a curve in a replay; a longer one is thinned."""
CLASSES = 2
"""Number of classes of the configurations; it only changes the size of the head, on which no decision depends."""
GAINED = {"colour_jitter": 0.0}
"""Knobs that the search space has gained since tables were recorded, each with the value that those trained with."""
RANDOM = "random "
"""How the names of random configurations begin; all other rows are baselines or points of a portfolio."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One configuration with all of its recorded trainings."""

    name: str
    params: dict[str, Any]
    """Parameters as Optuna samples them, without the conditional ones that this configuration does not have."""
    distributions: dict[str, BaseDistribution]
    config: Config
    flops: float
    """Forward FLOPs per picture."""
    curves: NDArray[np.float64]
    """Best validation top-1, 0 to 1, within each point of the horizon, by seed (rows) and point (columns)."""
    worth: float
    """Validation top-1 of the best epoch, 0 to 1, averaged over seeds; 0 for a seed that diverged."""
    test: float
    """Test top-1, 0 to 1, averaged over seeds."""

    @property
    def is_random(self) -> bool:
        """Whether the configuration was drawn at random from the space."""
        return self.name.startswith(RANDOM)

    @property
    def schedule(self) -> str:
        """The learning rate's schedule."""
        return self.config.training.schedule


@dataclass(frozen=True, kw_only=True)
class Table:
    """All rows of one data set."""

    data: str
    """Name of the data set."""
    epochs: int
    """The horizon: epochs of every row."""
    rows: Sequence[Row]
    profile: Profile
    """The profile whose space the rows are points of."""

    @property
    def points(self) -> int:
        """Number of points of each curve, in which resources are counted."""
        return self.rows[0].curves.shape[1]

    def space(self, trial: Any) -> Config:
        """Sample a configuration, with the methods of an Optuna trial."""
        return suggest(trial, self.profile, classes=CLASSES)

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Every parameter of the space, conditional ones included."""
        return {name: it for row in self.rows for name, it in row.distributions.items()}

    @cached_property
    def positions(self) -> NDArray[np.float64]:
        """Position of every row in the unit cube."""
        return np.array([self.position(row.params) for row in self.rows])

    def position(self, params: dict[str, Any]) -> NDArray[np.float64]:
        """Return a point's position in the unit cube: two different choices are 1 apart, absent knobs in the middle."""
        coordinates: list[float] = []
        for name, distribution in self.distributions.items():
            value = params.get(name)
            match distribution:
                case CategoricalDistribution(choices=choices):
                    coordinates += [math.sqrt(0.5) * (choice == value) for choice in choices]
                case FloatDistribution(low=low, high=high, log=log) | IntDistribution(low=low, high=high, log=log):
                    scale = math.log if log else float
                    width = scale(high) - scale(low)
                    coordinates.append(0.5 if value is None or not width else (scale(value) - scale(low)) / width)
                case _:
                    raise TypeError(f"unknown distribution of {name}: {distribution}")
        return np.array(coordinates)

    def row(self, name: str) -> Row:
        """Return the row with this name."""
        return next(row for row in self.rows if row.name == name)


def read_tables(folder: Path = FOLDER, points: int = MOST_POINTS) -> list[Table]:
    """Return all tables of a folder, by name. Raises SystemExit if there is none or if one cannot be used."""
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise SystemExit(f"no tables in {folder}: record them with python -m benchmarks.search.record")
    return [read_table(path, points) for path in paths]


def read_table(path: Path, points: int = MOST_POINTS) -> Table:
    """Return the table in a file, its curves thinned to `points`. Raises SystemExit if it cannot be used.

    Rows that were recorded before the search space was narrowed are left out.
    """
    text = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines = [json.loads(line) for line in text if line.endswith("\n")]  # the last one may be being written
    if not lines:
        raise SystemExit(f"{path} is empty: record it with python -m benchmarks.search.record")
    epochs = max(len(line["curve"]) for line in lines)
    largest = max(line["params"]["image_size"] for line in lines)
    profile = replace(PROFILES["quick"], epochs=epochs).within(largest)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_name.setdefault(line["row"], []).append(line)
    rows: list[Row] = []
    refused: list[str] = []
    for name, recorded in by_name.items():
        try:
            rows.append(_row(name, recorded, profile, points))
        except (ValueError, UserWarning) as error:
            refused.append(f"{name} ({error})")
    if refused:
        print(f"{path}: {len(refused)} of {len(by_name)} rows are not in today's search space, first {refused[0]}")
    if not any(row.is_random for row in rows):
        raise SystemExit(f"{path} has no random row to replay: record it again with python -m benchmarks.search.record")
    return Table(data=path.stem, epochs=epochs, rows=rows, profile=profile)


def _row(name: str, recorded: list[dict[str, Any]], profile: Profile, points: int) -> Row:
    """Return a row. Raises ValueError or UserWarning if the space of the profile does not contain it."""
    params = GAINED | recorded[0]["params"]
    trial: Any = FixedTrial(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna only warns of a value outside its distribution
        config = suggest(trial, profile, classes=CLASSES)
    return Row(
        name=name,
        params=trial.params,
        distributions=trial.distributions,
        config=config,
        flops=recorded[0]["flops"],
        curves=np.array([thin(line["curve"], profile.horizon, points) for line in recorded]),
        worth=float(
            np.mean([max(line["curve"]) if len(line["curve"]) == profile.horizon else 0.0 for line in recorded])
        ),
        test=float(np.mean([line["test"] or 0.0 for line in recorded])),
    )


def thin(curve: Iterable[float], epochs: int, points: int) -> NDArray[np.float64]:
    """Return the best value within each of up to `points` equal parts of the horizon.

    The curve of a network that diverged is shorter than the horizon and continues at 0.
    """
    values = np.zeros(epochs)
    known = np.array(list(curve))
    values[: len(known)] = known
    ends = np.linspace(0, epochs, min(points, epochs) + 1).round().astype(int)
    return np.array([values[start:end].max() for start, end in pairwise(ends)])


class Pool:
    """What one repetition of a replay can train: a bootstrap sample of a table's random rows, and rows begun by name.

    Of a row that was trained with several seeds, the policies see one, drawn for each repetition. A proposal becomes
    the nearest drawn row that has not begun. Every row begins once.
    """

    def __init__(self, table: Table, seed: int) -> None:
        self.table = table
        rng = np.random.default_rng(seed)
        self.curves = {row.name: row.curves[rng.integers(len(row.curves))] for row in table.rows}
        numbers = [number for number, row in enumerate(table.rows) if row.is_random]
        self._unseen = np.unique(rng.choice(numbers, len(numbers)))
        self.drawn = [table.rows[number] for number in self._unseen]

    @property
    def is_dry(self) -> bool:
        """Whether all drawn rows have begun."""
        return not len(self._unseen)

    @property
    def choice(self) -> list[Row]:
        """The drawn rows, the baselines and the points of portfolios."""
        return [*self.drawn, *(row for row in self.table.rows if not row.is_random)]

    def snap(self, params: dict[str, Any]) -> Row | None:
        """Take the drawn row nearest to a point; None if all have begun."""
        if self.is_dry:
            return None
        distances = ((self.table.positions[self._unseen] - self.table.position(params)) ** 2).sum(axis=1)
        row = self.table.rows[self._unseen[int(distances.argmin())]]
        self.take(row)
        return row

    def take(self, row: Row) -> None:
        """Note that a row has begun."""
        self._unseen = self._unseen[self._unseen != self.table.rows.index(row)]
