"""The study's note in the dashboard, which explains it, and the plots on its first page.

Both can be written at any time, so they are kept up to date while the study runs.
"""

from __future__ import annotations

import csv
import html
import shlex
import time
from pathlib import Path

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna_dashboard import save_note, save_plotly_graph_object

from data.catalog import Catalog
from data.split import Split
from reporting import analysis, plots
from reporting.importance import importances
from reporting.svg import BLUE, RED
from reporting.trial_note import as_text
from reporting.words import how_far, percent, stopped_baselines
from search_space import Profile
from tuning.database import IDENTITY
from tuning.events import StudyEvent, TrialEnded, TrialPaused
from tuning.trials import Outcome, Trial, count_trials, live_trial, read_trial, read_trials, top

EVERY, SHARE = 10, 20
"""Number of trials that finish or pause between two updates: ten, or a twentieth of all if that is more. An update
reads every trial, and the importances of 1,000 take seconds."""
LARGEST_SHARE = 0.05
"""Largest share of the time that updates may take."""
SHOWN_CLASSES = 50


class StudyNote:
    """Keeps the note and the plots of a study up to date."""

    def __init__(
        self, study: optuna.Study, folder: Path, *, catalog: Catalog, split: Split, profile: Profile, trials: int
    ) -> None:
        """Describe a study in `folder` that is to have `trials` trials."""
        self._study = study
        self._folder = folder
        prefix = f"{IDENTITY}space "
        space = sorted(key.removeprefix(prefix) for key in study.user_attrs if key.startswith(prefix))
        self._about = _about(catalog, split, profile, space)
        self._wanted = trials
        self._ended = 0
        """Number of trials that have finished or paused since the last update."""
        self._due = 0.0
        """Time, on the clock of `time.monotonic`, before which there is no other update."""

    def receive(self, event: StudyEvent) -> None:
        """Count a finished or paused trial, and update the note and the plots if an update is due.

        A paused trial gets a note of its own; the one that it gets at its end replaces it.
        """
        if isinstance(event, TrialPaused):
            paused = live_trial(self._study, event.number)
            save_note(paused, _paused(read_trial(paused)))
        if isinstance(event, TrialEnded | TrialPaused):
            self._ended += 1
            every = max(EVERY, len(self._study.get_trials(deepcopy=False)) // SHARE)
            if self._ended >= every and time.monotonic() >= self._due:
                self.update()

    def write_note(self) -> None:
        """Write only the note, as at the start of a run, because the plots of a long study take seconds."""
        save_note(self._study, self._note())

    def update(self) -> None:
        """Write the note and the plots."""
        begin = time.monotonic()
        self._ended = 0
        self.write_note()
        trials = read_trials(self._study)
        _show(self._study, "Accuracy against FLOPs", plots.cost(trials))
        _show(self._study, "Importances", plots.importances(importances(trials)))
        show_finalists(self._study, self._folder)
        end = time.monotonic()
        self._due = end + (end - begin) / LARGEST_SHARE

    def _note(self) -> str:
        trials = read_trials(self._study)
        counts = analysis.tally([trial for trial in trials if trial.is_finished or trial.is_paused])
        outcomes = ", ".join(f"{count} {name}" for name, count in counts.items())
        lines = [f"# {as_text(self._study.study_name)}", "", *self._about, "", "## Progress", ""]
        done = f"**{count_trials(trials)} of {self._wanted} trials** ({outcomes})."
        lines.append(done if counts else "No trial has finished yet.")
        if far := how_far(trials):
            lines += ["", f"Trained: {far}."]
        for best in top(trials, 1):
            lines += ["", f"Best so far: **{percent(best.value)}** validation top-1 in trial {best.number}."]
            known = [trial for trial in trials if trial.baseline and trial.value is not None]
            if known:
                baselines = [f"{as_text(trial.baseline or '')} {percent(trial.value)}" for trial in known]
                lines += ["", f"Baselines: {', '.join(baselines)}."]
        if stopped := stopped_baselines(trials):
            lines += ["", f"Baselines stopped earlier: {as_text(stopped)}."]
        name = shlex.quote(self._study.study_name)
        lines += [
            "",
            "## What to do next",
            "",
            "- *Trials*: each has a note with its learning curves, confusion matrix and most confident mistakes.",
            "- *History*, below the dashboard's own plots: accuracy against FLOPs, importances and finalists.",
            "- The best value of many single runs is too optimistic. These commands train the best few trials again "
            "with several seeds, test the winner and export it:",
            "",
            f"      python study.py retrain --study {name}",
            f"      python study.py export --study {name}",
            "",
            "This note is rewritten every few trials; your changes to it will be lost.",
        ]
        return "\n".join(lines) + "\n"


def _paused(trial: Trial) -> str:
    """Return the note of a paused trial."""
    horizon = f" of {trial.config.training.epochs}" if trial.config else ""
    return (
        f"# Trial {trial.number}: paused\n\nPaused after epoch {trial.epochs}{horizon}, with "
        f"{percent(trial.reached)} top-1 on the validation set so far. It is resumed if it is among the best of those "
        "trained this far; otherwise it is pruned when the study ends.\n"
    )


def _about(catalog: Catalog, split: Split, profile: Profile, space: list[str]) -> list[str]:
    """Return a description of the study: pictures, trials, space, and a table of the classes."""
    parts = split.named()
    pictures = ", ".join(f"{len(places):,} {part}" for part, places in parts)
    sizes = ", ".join(map(str, profile.sizes))
    lines = [
        f"A search for the best small CNN for {len(catalog.kept):,} pictures of {len(catalog.classes)} classes "
        f"({pictures}). Each trial trains one configuration from scratch, for {profile.horizon} epochs unless it is "
        "pruned. Its value is the top-1 accuracy of its best epoch on the validation set; the test set is not used.",
        "",
        f"Image sizes are {sizes} px, network widths {profile.widths[0]:g} to {profile.widths[1]:g}, where 1 is 32 to "
        f"256 channels. The space has {len(space)} parameters: {', '.join(map(as_text, space))}.",
    ]
    if len(catalog.classes) <= SHOWN_CLASSES:
        counts = [np.bincount(catalog.labels[places], minlength=len(catalog.classes)) for _, places in parts]
        # The dashboard draws tables without space between their columns.
        lines += ["", "| class | " + " | ".join(f"&emsp;{part}" for part, _ in parts) + " |"]
        lines += ["|---" + "|--:" * len(parts) + "|"]
        for name, *row in zip(catalog.classes, *counts, strict=True):
            lines.append(f"| {as_text(name)} | " + " | ".join(f"{count:,}" for count in row) + " |")
    return lines


def show_finalists(study: optuna.Study, folder: Path) -> None:
    """Show the finalists' runs in the dashboard, if `retrain` has trained them."""
    _show(study, "Finalists", _finalists(folder / "finalists.csv"))


def _show(study: optuna.Study, title: str, figure: go.Figure | None) -> None:
    """Put a figure into the dashboard, which gives it half the width of the page and no title."""
    if figure is not None:
        figure.update_layout(
            title={"text": title, "x": 0.02, "y": 0.98, "yanchor": "top"},
            template="plotly_white",
            margin={"l": 60, "r": 20, "t": 80, "b": 50},
            legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        )
        save_plotly_graph_object(study, figure, graph_object_id=title.lower().replace(" ", "-"))


def _finalists(path: Path) -> go.Figure | None:
    """Return a figure of each finalist's runs, and their mean if there are several; None if there are none yet."""
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
        name="one seed",
    )
    several = {name: values for name, values in runs.items() if len(values) > 1}
    figure.add_scatter(
        x=list(several),
        y=[sum(values) / len(values) for values in several.values()],
        mode="markers",
        marker={"symbol": "line-ew", "size": 40, "line": {"width": 2.5, "color": RED}},
        name="mean",
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(title="validation top-1", tickformat=".0%")
    return figure if runs else None
