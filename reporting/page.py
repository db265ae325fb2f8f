"""The report: one HTML file that opens offline, and beside it, in `plots/`, the interactive plots.

study, folder -> `read` -> Facts -> `SECTIONS` -> `render` -> report.html

The page loads nothing and runs no script. Names can contain anything: the template escapes all text, and charts escape
their own.
"""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import jinja2
import markupsafe
import optuna
from optuna.artifacts import get_all_artifact_meta

from model.training import EpochMetrics
from reporting import analysis, plots, spotlights, svg
from reporting.importance import importances
from reporting.sections import SECTIONS
from reporting.sections.parts import Facts, interval
from reporting.trial_note import GALLERY
from reporting.words import duration, listed, percent, plural
from selection import doubts
from selection.pruner_audit import read_audit
from selection.retraining import Winner
from tuning import StudyError
from tuning.database import IDENTITY
from tuning.folder import replace_file
from tuning.trials import Trial, count_trials, read_history, read_trials, top

HERE = Path(__file__).resolve().parent


def write(
    study: optuna.Study, folder: Path, *, study_options: str | None = None, argv: Sequence[str] | None = None
) -> Path:
    """Write report.html and plots/ into the study's folder and return the report's path.

    Whatever the folder lacks (histories, data report, finalists, test result) is left out of the page.

    Args:
        study_options: Options with which other commands find the study; by default its name.
        argv: Arguments with which `study.py` was last run, if they are known.

    Raises StudyError if the folder cannot be written, or holds a retrained.json that cannot be read.
    """
    facts = read(study, folder, study_options=study_options, argv=argv)
    plots.write(facts.plots, folder / "plots", name=facts.name, trials=len(analysis.trained(facts.trials)))
    text = render(facts, now=datetime.now())
    replace_file(folder / "report.html", lambda path: path.write_text(text, encoding="utf-8"))
    return folder / "report.html"


def read(
    study: optuna.Study, folder: Path, *, study_options: str | None = None, argv: Sequence[str] | None = None
) -> Facts:
    """Return all that the report needs, from the study and the files beside it; arguments as in `write`."""
    trials, data = read_trials(study), _rows(folder / "data_report.csv")
    best = next(iter(top(trials, 1)), None)
    history = _history(folder, best)
    confusion = best.result.confusion if best is not None and best.result else None
    if confusion is None and history and best is not None and best.result:  # too long for the database
        confusion = history[best.result.epoch].confusion
    labels = {row["class"] for row in data if row["class"] and row["verdict"] != "not_a_picture"}
    fits = confusion is None or len(confusion) == len(labels)
    found = importances(trials)
    return Facts(
        name=study.study_name,
        trials=trials,
        settings={key[len(IDENTITY) :]: value for key, value in study.user_attrs.items() if key.startswith(IDENTITY)},
        classes=tuple(sorted(labels)) if labels and fits else None,
        data=data,
        history=history,
        confusion=confusion,
        finalists=_rows(folder / "finalists.csv"),
        retrained=Winner.load(folder),
        importances=found,
        gallery=_gallery(study, best, folder / "artifacts") if best is not None else None,
        doubts=_rows(folder / doubts.FILE),
        doubted=_bytes(folder / doubts.GALLERY),
        evidence=_bytes(folder / spotlights.FILE),
        audit=read_audit(study),
        plots=plots.figures(trials, found),
        study_options=study_options or shlex.join(["--study", study.study_name]),
        argv=argv,
    )


def _history(folder: Path, best: Trial | None) -> list[EpochMetrics]:
    """Return the best trial's epochs; none if their file is damaged."""
    try:
        return read_history(folder, best.number) if best is not None else []
    except StudyError:
        return []


def _gallery(study: optuna.Study, best: Trial, artifacts: Path) -> bytes | None:
    """Return the picture of the best trial's mistakes, the one that the dashboard also shows."""
    storage = study._storage  # pyright: ignore[reportPrivateUsage]
    for meta in get_all_artifact_meta(best.frozen, storage=storage):
        if meta.filename == GALLERY:
            try:
                return (artifacts / meta.artifact_id).read_bytes()
            except OSError:
                return None
    return None


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []


def render(facts: Facts, *, now: datetime) -> str:
    """Return the page's text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
    )
    environment.filters["inline"] = _inline
    sections = [section for make in SECTIONS if (section := make(facts)) is not None]
    return environment.get_template("report.html.j2").render(
        name=facts.name,
        style=markupsafe.Markup((HERE / "report.css").read_text(encoding="utf-8")),
        subtitle=_subtitle(facts),
        headline=_headline(facts),
        tiles=_tiles(facts),
        sections=sections,
        plots={key: plots.TITLES[key] for key in facts.plots},
        now=f"{now:%Y-%m-%d %H:%M}",
    )


def _inline(drawn: str) -> markupsafe.Markup:
    return markupsafe.Markup(svg.inline(drawn))


def _shown(value: object) -> object:
    """Replace control characters, which HTML forbids, and keep numbers and their units on one line."""
    if not isinstance(value, str) or isinstance(value, markupsafe.Markup):
        return value
    value = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", value)
    return re.sub(r"(?<=\d) (?=(%|s|min|h|px|k|points)\b|%)", "\N{NO-BREAK SPACE}", value)


def _subtitle(facts: Facts) -> str:
    """Return one line: trials, pictures and classes, and when the last trial ended."""
    texts = [plural(count_trials(facts.trials), "trial")]
    used = sum(bool(row["split"]) for row in facts.data)
    if used and facts.classes:
        texts.append(f"{plural(used, 'picture')} of {plural(len(facts.classes), 'class', 'classes')}")
    moments = [trial.ended for trial in facts.trials if trial.ended is not None]
    if moments:
        texts.append(f"last trial {max(moments):%Y-%m-%d %H:%M}")
    running = sum(trial.is_running for trial in facts.trials)
    if running:
        texts.append(f"{running} unfinished")
    return " · ".join(texts)


def _headline(facts: Facts) -> dict[str, str] | None:
    """Return the headline number: the test result if there is one, otherwise the best trial's validation accuracy."""
    if facts.test:
        value, what, bounds = facts.test["top1"], "top-1 on the test set", facts.test["top1_interval"]
    elif facts.best is not None:
        value, what = facts.best.value or 0.0, f"validation top-1 of trial {facts.best.number}, the best"
        bounds = analysis.wilson(value, facts.pictures) if facts.pictures else None
    else:
        return None
    return {
        "value": f"{100 * value:.1f}",
        "what": what,
        "range": f"95 % interval {interval(*bounds)}" if bounds else "",
    }


def _tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """Return the study's key figures, each with a label and a detail."""
    tiles: list[tuple[str, str, str]] = []
    if facts.trials:
        ends = [f"{count:,} {name}" for name, count in analysis.tally(facts.trials).items()]
        tiles.append((f"{count_trials(facts.trials):,}", "trials", listed(ends)))
    if time := analysis.run_time(facts.trials):
        more = f"{plural(time.workers, 'worker')}, busy {percent(time.busy, 0)}"
        tiles.append((duration(time.seconds), "training", more))
    saved = analysis.savings(facts.trials)
    if saved.spared:
        more = f"{saved.spared:,} of {saved.epochs + saved.spared:,} epochs"
        tiles.append((percent(saved.share, 0), "saved by pruning", more))
    if facts.chosen is not None and facts.chosen.flops is not None:
        size = [f"{facts.chosen.config.image_size} px images"] if facts.chosen.config else []
        more = ", ".join([f"{(facts.chosen.parameters or 0) / 1e3:,.0f} k parameters", *size])
        tiles.append((f"{facts.chosen.flops / 1e6:,.0f} MFLOPs", f"per picture, trial {facts.chosen.number}", more))
    return tiles
