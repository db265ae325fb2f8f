"""The study's own page in the dashboard: a note that explains it, and plots on its first page.

Both can be written at any time, so they are kept up to date while the study runs.
"""

from __future__ import annotations

import csv
import html
import shlex
from collections import Counter
from pathlib import Path

import optuna
import plotly.graph_objects as go
from optuna_dashboard import save_note, save_plotly_graph_object

from commands.console import percent
from data.catalog import Catalog
from data.split import Split
from reporting import analysis, plots
from reporting.drawing import BLUE, RED
from reporting.importance import importances
from reporting.trial_note import as_text
from search_space import Profile
from tuning.coordinator import Happening, TrialEnded
from tuning.storage import IDENTITY, Outcome, counts, top

EVERY, SHARE = 10, 20
"""Ended trials between two updates: ten, or a twentieth of all where that is more. An update reads every trial, and the
importances of 1,000 take seconds."""
SHOWN_CLASSES = 50


class StudyNote:
    """Keeps the note and the plots of a study up to date."""

    def __init__(
        self, study: optuna.Study, folder: Path, *, catalog: Catalog, split: Split, profile: Profile, trials: int
    ) -> None:
        """`trials`: how many are wanted."""
        self._study = study
        self._folder = folder
        prefix = f"{IDENTITY}space "
        space = sorted(key.removeprefix(prefix) for key in study.user_attrs if key.startswith(prefix))
        self._about = _about(catalog, split, profile, space)
        self._wanted = trials
        self._ended = 0
        """Since the last update."""

    def receive(self, event: StudyEvent) -> None:
        """Takes one thing that has happened in the run."""
        if isinstance(event, TrialEnded):
            self._ended += 1
            if self._ended >= max(EVERY, len(self._study.get_trials(deepcopy=False)) // SHARE):
                self.update()

    def write_note(self) -> None:
        """Writes the note anew: what a run begins with, as plots of a long study take seconds."""
        save_note(self._study, self._note())

    def update(self) -> None:
        """Writes both anew."""
        self._ended = 0
        self.write_note()
        trials = self._study.get_trials(deepcopy=False)
        _show(self._study, "Accuracy against FLOPs", plots.cost(analysis.ranked(trials)))
        _show(self._study, "Importances", plots.importances(importances(trials)))
        show_finalists(self._study, self._folder)

    def _note(self) -> str:
        trials = self._study.get_trials(deepcopy=False)
        counted = sum(map(counts, trials))
        outcomes = Counter(trial.user_attrs["outcome"] for trial in trials if "outcome" in trial.user_attrs)
        named = ", ".join(f"{outcomes[kind]} {kind}" for kind in Outcome if outcomes[kind])
        best = top(trials, 1)
        lines = [f"# {as_text(self._study.study_name)}", "", *self._about, "", "## How far it is", ""]
        lines += [f"**{counted} of {self._wanted} trials** ({named})." if named else "No trial has ended yet."]
        if best:
            known = {
                trial.user_attrs["known_good"]: trial.value for trial in trials if trial.user_attrs.get("known_good")
            }
            lines += ["", f"Best so far: **{percent(best[0].value)}** top-1 in trial {best[0].number}."]
            against = [f"{as_text(name)}: {percent(value)}" for name, value in known.items() if value is not None]
            if against:
                lines += ["", f"Known-good starting points: {'; '.join(against)}."]
        name = shlex.quote(self._study.study_name)
        lines += [
            "",
            "## What to do next",
            "",
            "- *Trials*: each has a note with its learning curves, its confusion matrix and its mistakes.",
            "- *History*, below its own plots: accuracy against FLOPs, importances with their intervals, finalists.",
            "- The best trial flatters itself. These commands train the best few again, test the winner and export it:",
            "",
            f"      python study.py retrain --study {name}",
            f"      python study.py export --study {name}",
            "",
            "This note is written anew every few trials, without what is added to it here.",
        ]
        return "\n".join(lines) + "\n"


def _about(catalog: Catalog, split: Split, profile: Profile, space: list[str]) -> list[str]:
    """Data, classes, sizes and space."""
    parts = split.named()
    pictures = ", ".join(f"{len(places):,} {part}" for part, places in parts)
    sizes = ", ".join(map(str, profile.sizes))
    lines = [
        f"A search for the best small CNN for {len(catalog.kept):,} pictures of {len(catalog.classes)} classes "
        f"({pictures}). Each trial trains one configuration from scratch, {profile.epochs} epochs unless it is pruned; "
        "its value is the top-1 accuracy of its best epoch on the validation part. The test part is not looked at.",
        "",
        f"Images have {sizes} pixels a side, networks {profile.widths[0]:g} to {profile.widths[1]:g} times the "
        f"original's width. The space has {len(space)} parameters: {', '.join(map(as_text, space))}.",
    ]
    if len(catalog.classes) <= SHOWN_CLASSES:
        rows = {name: [0] * len(parts) for name in catalog.classes}
        for column, (_, places) in enumerate(parts):
            for label in catalog.labels[places]:
                rows[catalog.classes[label]][column] += 1
        # The dashboard draws tables without space between their columns.
        lines += ["", "| class | " + " | ".join(f"&emsp;{part}" for part, _ in parts) + " |"]
        lines += ["|---" + "|--:" * len(parts) + "|"]
        lines += [
            f"| {as_text(name)} | " + " | ".join(f"{count:,}" for count in row) + " |" for name, row in rows.items()
        ]
    return lines


def show_finalists(study: optuna.Study, folder: Path) -> None:
    """Shows what `retrain` has found, where it has."""
    _show(study, "Finalists", _finalists(folder / "finalists.csv"))


def _show(study: optuna.Study, title: str, figure: go.Figure | None) -> None:
    """Puts a figure into the dashboard, which gives it half a page and no title."""
    if figure is not None:
        figure.update_layout(
            title={"text": title, "x": 0.02, "y": 0.98, "yanchor": "top"},
            template="plotly_white",
            margin={"l": 60, "r": 20, "t": 80, "b": 50},
            legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        )
        save_plotly_graph_object(study, figure, graph_object_id=title.lower().replace(" ", "-"))


def _finalists(path: Path) -> go.Figure | None:
    """Each finalist's runs and their mean; None before there are any."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["outcome"] == Outcome.COMPLETE]
    except OSError:
        return None
    runs: dict[str, list[float]] = {}
    for row in rows:
        # plotly reads markup in a name.
        runs.setdefault(html.escape(row["name"], quote=False), []).append(float(row["top1"]))
    points = [(name, value) for name, values in runs.items() for value in values]
    figure = go.Figure()
    figure.add_scatter(
        x=[name for name, _ in points],
        y=[value for _, value in points],
        mode="markers",
        marker={"size": 8, "color": BLUE},
        name="a run",
    )
    figure.add_scatter(
        x=list(runs),
        y=[sum(values) / len(values) for values in runs.values()],
        mode="markers",
        marker={"symbol": "line-ew", "size": 40, "line": {"width": 2.5, "color": RED}},
        name="their mean",
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(title="validation top-1", tickformat=".0%")
    return figure if runs else None
