"""The search space as data: lists its distributions, draws points within the budgets, and refuses a changed space."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from model.network import Cost
from search_space import Config, Profile, lighter
from tuning import StudyError


class SpacePoint:
    """A stand-in for a trial that samples at random, except for forced values, and records what it sampled."""

    def __init__(self, rng: np.random.Generator, forced: Mapping[str, Any] | None = None) -> None:
        self._rng = rng
        self._forced = forced or {}
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of the choices, each equally likely."""
        distribution = CategoricalDistribution(list(choices))
        return self._record(name, distribution, choices[int(self._rng.integers(len(choices)))])

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Return an integer from low to high."""
        distribution = IntDistribution(low, high, log=log, step=step)
        return self._record(name, distribution, low + step * int(self._rng.integers((high - low) // step + 1)))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Return a number from low to high: on a grid with `step`, log-uniform with `log`."""
        if step is not None:
            drawn = low + step * int(self._rng.integers(round((high - low) / step) + 1))
        elif log:
            drawn = float(np.exp(self._rng.uniform(np.log(low), np.log(high))))
        else:
            drawn = float(self._rng.uniform(low, high))
        return self._record(name, FloatDistribution(low, high, log=log, step=step), drawn)

    def _record(self, name: str, distribution: BaseDistribution, drawn: Any) -> Any:
        self.distributions[name] = distribution
        self.params[name] = self._forced.get(name, drawn)
        return self.params[name]


@dataclass(frozen=True)
class FeasibleSpace:
    """A search space without the networks that exceed the study's budgets."""

    suggest: Callable[[Any], Config]
    """Function that samples a configuration with the methods of an Optuna trial."""
    feasible: Callable[[Cost], bool]
    """Function that returns whether a network is within the budgets."""

    def point(self, seed: int, params: Mapping[str, Any] | None = None, *, attempts: int = 1000) -> SpacePoint | None:
        """Return a random point with these parameters; None if `attempts` draws in a row are infeasible.

        Equal arguments return equal points.
        """
        rng = np.random.default_rng(seed)
        for _ in range(attempts):
            point = SpacePoint(rng, params)
            if self.feasible(self.suggest(point).cost):
                return point
        return None

    def affordable(self, params: dict[str, Any], profile: Profile) -> dict[str, Any] | None:
        """Return the point with all of these parameters, or the first of its `lighter` ones that is feasible."""
        return next((point for point in lighter(params, profile) if self.point(0, point, attempts=1)), None)


def random_points(suggest: Callable[[Any], Any], count: int, seed: int = 0) -> Iterator[Any]:
    """Yield `count` random points of the space that `suggest` samples."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield suggest(SpacePoint(rng))


def describe_space(suggest: Callable[[Any], Any]) -> dict[str, list[str]]:
    """Return every distribution that `suggest` can use, found by forcing each categorical choice and 16 random draws.

    The result maps "space <parameter>" to its distributions in Optuna's JSON, sorted.
    """
    rng = np.random.default_rng(0)
    found: dict[str, set[str]] = {}
    tried: set[tuple[str, str]] = set()
    queue: list[dict[str, Any]] = [{} for _ in range(16)]
    while queue:
        point = SpacePoint(rng, queue.pop())
        suggest(point)
        for name, distribution in point.distributions.items():
            found.setdefault(name, set()).add(distribution_to_json(distribution))
            if isinstance(distribution, CategoricalDistribution):
                for choice in distribution.choices:
                    if (name, repr(choice)) not in tried:
                        tried.add((name, repr(choice)))
                        queue.append({name: choice})
    return {f"space {name}": sorted(texts) for name, texts in found.items()}


def refuse_changes(stored: dict[str, Any], now: dict[str, Any], study: str) -> None:
    """Raise StudyError if `now` differs from `stored`, with the name and both values of each difference."""
    differences = [
        f"{name}: {_text(stored.get(name))} -> {_text(now.get(name))}"
        for name in sorted(stored.keys() | now.keys())
        if stored.get(name) != now.get(name)
    ]
    if differences:
        raise StudyError(
            f"study '{study}' was started with other settings ({'; '.join(differences)}): use the old ones, or start "
            "another study with --study NAME"
        )


def _text(value: Any) -> str:
    """Return a value as text; for a distribution's JSON, only its bounds."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:,.10g}"
    if isinstance(value, list) and value and all(isinstance(item, str) and item.startswith("{") for item in value):  # pyright: ignore[reportUnknownVariableType]
        return " or ".join(_bounds(json.loads(item)["attributes"]) for item in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return str(value)


def _bounds(attributes: dict[str, Any]) -> str:
    if "choices" in attributes:
        return "{" + ", ".join(map(str, attributes["choices"])) + "}"
    text = f"[{attributes['low']:g}, {attributes['high']:g}]"
    if attributes.get("step") not in (None, 1):
        text += f" step {attributes['step']:g}"
    return text + " log" * bool(attributes.get("log"))
