"""Building blocks of the report: the facts that sections read and the parts that they return."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from model.training import EpochMetrics
from reporting import analysis, charts
from reporting.importance import Importances
from reporting.words import duration, number, percent, trial_name
from selection.pruner_audit import PrunerAudit
from selection.retraining import Winner
from tuning.scheduling import pauses
from tuning.trials import Trial, top


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All facts that a report is made from."""

    name: str
    """Name of the study."""
    trials: list[Trial]
    settings: dict[str, Any]
    """Settings that must not change within a study, by name, and the parameters' distributions in Optuna's JSON."""
    classes: tuple[str, ...] | None
    """Class names in the order of the confusion matrices; None without a data report."""
    data: list[dict[str, str]]
    """Rows of the data report."""
    history: list[EpochMetrics]
    """Metrics of the best trial's epochs; empty if they were not kept."""
    confusion: Sequence[Sequence[int]] | None
    """Confusion matrix of the best trial's best epoch on the validation set."""
    finalists: list[dict[str, str]]
    """Rows of finalists.csv."""
    retrained: Winner | None
    importances: Importances | None
    gallery: bytes | None
    """JPEG of the best trial's most confident mistakes; None if it was not kept."""
    doubts: list[dict[str, str]]
    """Rows of doubts.csv."""
    doubted: bytes | None
    """JPEG of the pictures whose labels are doubted most; None if there is none."""
    evidence: bytes | None
    """JPEG of test pictures with the places where the exported network looked; None if it was not tested."""
    audit: PrunerAudit | None
    """What pruned trials would have reached; None if that was not measured."""
    plots: dict[str, go.Figure]
    """Interactive plots, by the name of their page."""
    study_options: str
    """Options with which other commands find the study."""
    argv: Sequence[str] | None
    """Arguments with which `study.py` was last run; None if they are not known."""

    @property
    def best(self) -> Trial | None:
        """The best complete trial."""
        return next(iter(top(self.trials, 1)), None)

    @property
    def chosen(self) -> Trial | None:
        """The trial whose configuration the study exports: the one that was retrained, or the best."""
        chosen = self.retrained and self.retrained.trial
        return next((trial for trial in self.trials if trial.number == chosen), self.best)

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs, from 1, after which each trial pauses; empty unless the scheduler promotes trials."""
        epochs = self.settings.get("epochs")
        return pauses(self.settings.get("scheduler", ""), epochs) if epochs else ()

    @property
    def pictures(self) -> int:
        """Number of validation pictures that the best trial was evaluated on; 0 if that is not known."""
        return analysis.pictures_of(self.confusion) if self.confusion else 0

    @property
    def test(self) -> dict[str, Any] | None:
        """Test result of the retrained network."""
        return self.retrained.results if self.retrained else None

    def class_name(self, label: int) -> str:
        """Return the name of a class by its position in the confusion matrix."""
        return self.classes[label] if self.classes else f"class {label}"


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """A paragraph of text; `tone` is plain, hint (what to try) or warning (what not to trust)."""

    text: str
    tone: str = "plain"
    plots: tuple[str, ...] = ()
    """Pages of interactive plots to link to."""
    kind: str = "paragraph"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Charts or a photograph, with sentences that say what they show."""

    title: str
    says: str
    drawings: Sequence[str] = ()
    """SVG documents, side by side if there is room."""
    jpeg: bytes | None = None
    plots: tuple[str, ...] = ()
    kind: str = "figure"

    @property
    def address(self) -> str | None:
        """Photograph as a data URL, so that the page needs no other file."""
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode() if self.jpeg else None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: rows of text under a header."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numeric: frozenset[int] = frozenset()
    """Columns that are aligned to the right."""
    note: str = ""
    folded: bool = False
    """Whether the table is collapsed until the reader opens it."""
    kind: str = "table"


@dataclass(frozen=True, kw_only=True)
class Commands:
    """Lines for a terminal or an editor, each with what it does."""

    title: str
    lines: list[tuple[str, str]]
    kind: str = "commands"


Part = Paragraph | Figure | Table | Commands


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page: a heading and its parts."""

    anchor: str
    title: str
    parts: list[Part] = field(default_factory=list[Part])


BEST_FEW = len(charts.HIGHLIGHTS)
"""Number of best trials that are highlighted in charts and listed in tables."""


def interval(low: float, high: float) -> str:
    """Return the 95 % interval of a share as text."""
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def drawn_of(shown: int, whole: int) -> str:
    """Return a sentence that says that a chart leaves out trials; empty if it shows all."""
    return (
        f" Shown: {shown:,} of {whole:,} trials, the best and a random sample of the others." if shown < whole else ""
    )


def trial_table(title: str, trials: Sequence[Trial]) -> Table:
    """Return a table with a row per trial: its accuracy and its cost."""
    has_top3 = any(trial.result and trial.result.top3 is not None for trial in trials)
    rows = [
        (
            trial_name(trial),
            percent(trial.value, 1),
            *[percent(trial.result.top3, 1) if trial.result else "-"] * has_top3,
            f"{trial.result.epoch + 1}" if trial.result else "-",
            f"{trial.config.image_size} px" if trial.config else "-",
            number(trial.flops / 1e6) if trial.flops else "-",
            f"{trial.parameters / 1e3:,.0f} k" if trial.parameters else "-",
            duration(trial.seconds),
        )
        for trial in trials
    ]
    costs = ("best epoch", "image size", "MFLOPs per picture", "parameters", "training time")
    head = ("trial", "top-1", *["top-3"] * has_top3, *costs)
    return Table(title=title, head=head, rows=rows, numeric=frozenset(range(1, len(head))))


def as_dot(trial: Trial, x: float) -> charts.Dot:
    """Return a trial as a point of a chart."""
    return charts.Dot(x=x, y=trial.reached or 0.0, outcome=trial.outcome, name=trial.baseline or "")
