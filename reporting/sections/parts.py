"""What sections are made of: the facts they read, the parts they consist of, and the words they share."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from reporting import analysis, charts
from reporting.charts import Axis, Dot
from reporting.drawing import number
from reporting.importance import Importances
from selection.pruner_audit import Verdict
from selection.retraining import Winner
from tuning.storage import Outcome, top


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a report is made of."""

    name: str
    """The study's."""
    trials: list[FrozenTrial]
    settings: dict[str, Any]
    """What must not change in a study, by name; of the space the distributions as Optuna writes them."""
    classes: tuple[str, ...] | None
    """In the order of the confusion matrices; None where the data report is not there."""
    data: list[dict[str, str]]
    """The data report's lines."""
    history: list[dict[str, Any]]
    """The best trial's epochs; empty where they are not there."""
    confusion: list[list[int]] | None
    """Of the best trial's best epoch, on the validation part."""
    finalists: list[dict[str, str]]
    """The lines of finalists.csv."""
    retrained: Winner | None
    importances: Importances | None
    gallery: bytes | None
    """The best trial's most confident mistakes, a JPEG; None where its picture is not there."""
    audit: Verdict | None
    """What pruned trials would have reached; None where that was not tried."""
    places: str | None = None
    """The options by which commands find the study; None: its name."""
    words: Sequence[str] | None = None
    """What was typed after `study.py` when it was run last; None: not known."""

    @property
    def best(self) -> FrozenTrial | None:
        """The best complete trial."""
        return next(iter(top(self.trials, 1)), None)

    @property
    def chosen(self) -> FrozenTrial | None:
        """The trial whose network comes out of the study: the one that was retrained, else the best."""
        chosen = self.retrained and self.retrained.trial
        return next((trial for trial in self.trials if trial.number == chosen), self.best)

    @property
    def pictures(self) -> int | None:
        """Validation pictures that the best trial was measured on."""
        return analysis.pictures_of(self.confusion) if self.confusion else None

    @property
    def test(self) -> dict[str, Any] | None:
        """What the retrained network reached on the test part."""
        return self.retrained.results if self.retrained else None

    def class_name(self, label: int) -> str:
        """A class by its place in the confusion matrix."""
        return self.classes[label] if self.classes else f"class {label}"


@dataclass(frozen=True, kw_only=True)
class Says:
    """A paragraph. `tone`: plain, a hint of what to do, or a warning of what not to believe."""

    text: str
    tone: str = "plain"
    kind: str = "says"


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure in both its widths, with the sentence that says what it shows."""

    title: str
    says: str
    wide: str
    narrow: str
    plot: str | None = None
    """The interactive page of the same, relative to the report."""
    kind: str = "drawing"


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A picture of pixels, with the sentence that says what it shows."""

    title: str
    says: str
    jpeg: bytes
    kind: str = "photograph"

    @property
    def address(self) -> str:
        """The picture itself, so that the page needs no other file."""
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode()


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a head."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    numeric: frozenset[int] = frozenset()
    """Columns that are set flush right."""
    note: str = ""
    folded: bool = False
    """Closed until it is asked for."""
    kind: str = "table"


@dataclass(frozen=True, kw_only=True)
class Commands:
    """Lines for a terminal or an editor, each with what it does."""

    title: str
    lines: list[tuple[str, str]]
    kind: str = "commands"


LIT = len(charts.LIT)
"""Trials that are lit in the figures."""

Part = Says | Drawing | Photograph | Table | Commands


@dataclass(frozen=True, kw_only=True)
class Section:
    """A chapter of the page."""

    anchor: str
    title: str
    parts: list[Part] = field(default_factory=list[Part])


# ---------------------------------------------------------------------------------------------------------------------
# Words


def percent(share: float | None) -> str:
    """0.6385 -> 63.9 %, never broken at the end of a line."""
    return "-" if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def whole_percent(share: float) -> str:
    """0.6385 -> 64 %."""
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def points(difference: float) -> str:
    """0.133 -> 13.3 points."""
    return f"{100 * abs(difference):.1f} points"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """2, "trial" -> 2 trials."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def duration(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def value_text(value: Any) -> str:
    """A parameter's value."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return number(value) if isinstance(value, int | float) else str(value)


def trial_name(trial: FrozenTrial) -> str:
    """Its number, and what it is known as."""
    known = trial.user_attrs.get("known_good")
    return f"trial {trial.number} ({known})" if known else f"trial {trial.number}"


def axis(name: str, distribution: BaseDistribution) -> Axis:
    if isinstance(distribution, CategoricalDistribution):
        return Axis(name=name, choices=tuple(map(str, distribution.choices)))
    bounds: Any = distribution
    step = None if bounds.step is None or bounds.log else float(bounds.step)
    return Axis(name=name, low=float(bounds.low), high=float(bounds.high), log=bool(bounds.log), step=step)


def drawn_of(shown: int, whole: int, what: str) -> str:
    return f" Drawn are {shown:,} of {whole:,} {what}: the best, and others by lot." if shown < whole else ""


def dot(trial: FrozenTrial, x: float) -> Dot:
    return Dot(
        x=x,
        y=analysis.reached(trial) or 0.0,
        outcome=analysis.outcome(trial) or Outcome.COMPLETE,
        name=str(trial.user_attrs.get("known_good", "")),
    )
