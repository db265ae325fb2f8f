"""The report: one HTML file that opens offline, and beside it, in `plots/`, the interactive pages.

study, folder -> `read` -> Facts -> `SECTIONS` -> `render` -> report.html. Nothing is fetched from anywhere, no script
runs in the page, and a name can be as hostile as it likes: the template escapes all that is not a figure, and a figure
is a parsed and rewritten SVG.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import optuna
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import FrozenTrial, TrialState

from reporting import analysis, plots
from reporting.importance import importances
from reporting.sections import SECTIONS
from reporting.sections.parts import Facts, duration, listed, percent, plural, whole_percent
from reporting.trial_note import GALLERY
from selection import pruner_audit as audit
from selection.retraining import Winner
from tuning.folder import replace_file, trial_directory
from tuning.storage import IDENTITY, counts, top

HERE = Path(__file__).resolve().parent


def write(study: optuna.Study, folder: Path, *, study_options: str | None = None, argv: Sequence[str] | None = None) -> Path:
    """Writes folder/report.html and folder/plots/, each file whole or not at all; returns the report's path.

    `places`: the options by which commands find the study, by default its name; `words`: what was typed after
    `study.py` when it was run last, where that is known.
    Whatever `folder` lacks - histories, the data report, finalists, a test result - is left out of the page.
    Raises StudyError where the folder cannot be written, or has a retrained.json that is none.
    """
    facts = read(study, folder, study_options=study_options, argv=argv)
    plots.write(facts.trials, folder / "plots", name=facts.name, important=facts.importances)
    report = folder / "report.html"
    text = render(facts, now=datetime.now())
    replace_file(report, lambda path: path.write_text(text, encoding="utf-8"))
    return report


def read(study: optuna.Study, folder: Path, *, study_options: str | None = None, argv: Sequence[str] | None = None) -> Facts:
    """Everything that the report needs, from the study and the files beside it; the rest as `write` has it."""
    trials = study.get_trials(deepcopy=False)
    data = _lines(folder / "data_report.csv")
    best = next(iter(top(trials, 1)), None)
    history = _json(trial_directory(folder, best.number) / "history.json") if best is not None else None
    history = history if isinstance(history, list) else []
    labels = {row["class"] for row in data if row["class"] and row["verdict"] != "not_a_picture"}
    confusion = _confusion(best, history)
    fits = confusion is None or len(confusion) == len(labels)
    return Facts(
        name=study.study_name,
        trials=trials,
        settings={key[len(IDENTITY) :]: value for key, value in study.user_attrs.items() if key.startswith(IDENTITY)},
        classes=tuple(sorted(labels)) if labels and fits else None,
        data=data,
        history=history,
        confusion=confusion,
        finalists=_lines(folder / "finalists.csv"),
        retrained=Winner.load(folder),
        importances=importances(trials),
        gallery=_gallery(study, best, folder / "artifacts") if best is not None else None,
        audit=audit.read(study, study._storage),  # pyright: ignore[reportPrivateUsage]
        study_options=study_options,
        argv=argv,
    )


def _gallery(study: optuna.Study, best: FrozenTrial, artifacts: Path) -> bytes | None:
    """The picture of the best trial's mistakes that the dashboard shows, too."""
    storage = study._storage  # pyright: ignore[reportPrivateUsage]
    for meta in get_all_artifact_meta(best, storage=storage):
        if meta.filename == GALLERY:
            try:
                return (artifacts / meta.artifact_id).read_bytes()
            except OSError:
                return None
    return None


def _confusion(best: FrozenTrial | None, history: list[dict[str, Any]]) -> list[list[int]] | None:
    """From the trial's attributes, or, where it was too large for them, from its history."""
    if best is None:
        return None
    stored = best.user_attrs.get("confusion")
    if stored is None and history:
        stored = history[best.user_attrs["best_epoch"]]["confusion"]
    return [list(row) for row in stored] if stored else None


def _lines(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def render(facts: Facts, *, now: datetime) -> str:
    """The page's text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
    )
    environment.filters["figure"] = markupsafe.Markup
    sections = [section for make in SECTIONS if (section := make(facts)) is not None]
    return environment.get_template("report.html.j2").render(
        name=facts.name,
        style=markupsafe.Markup((HERE / "report.css").read_text(encoding="utf-8")),
        subtitle=_subtitle(facts),
        headline=_headline(facts),
        tiles=_tiles(facts),
        sections=sections,
        now=f"{now:%Y-%m-%d %H:%M}",
    )


def _shown(value: object) -> object:
    """Text without control characters, which no page may hold; a figure and the style sheet as they are."""
    if isinstance(value, str) and not isinstance(value, markupsafe.Markup):
        return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", value)
    return value


def _subtitle(facts: Facts) -> str:
    """What it is a study of, in one line."""
    trained = sum(map(counts, facts.trials))
    words = [plural(trained, "trial")]
    used = sum(bool(row["split"]) for row in facts.data)
    if used and facts.classes:
        words.append(f"{plural(used, 'picture')} of {plural(len(facts.classes), 'class', 'classes')}")
    moments = [trial.datetime_complete for trial in facts.trials if trial.datetime_complete is not None]
    if moments:
        words.append(f"last trial {max(moments):%Y-%m-%d %H:%M}")
    running = sum(trial.state is TrialState.RUNNING for trial in facts.trials)
    if running:
        words.append(f"{running} half-way")
    return " · ".join(words)


def _headline(facts: Facts) -> dict[str, str] | None:
    """The one figure: on the test part where there is one, else the best trial's on the validation part."""
    if facts.test:
        low, high = facts.test["top1_interval"]
        return {
            "value": f"{100 * facts.test['top1']:.1f}",
            "what": "top-1 on the test part",
            "range": f"95 % interval {100 * low:.1f} to {percent(high)}",
        }
    if facts.best is None:
        return None
    value = facts.best.value or 0.0
    interval = ""
    if facts.pictures:
        low, high = analysis.wilson(value, facts.pictures)
        interval = f"95 % interval {100 * low:.1f} to {percent(high)}"
    return {
        "value": f"{100 * value:.1f}",
        "what": f"validation top-1 of trial {facts.best.number}, the best",
        "range": interval,
    }


def _tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """Figure, what it is, and more: the study at a glance."""
    tally = analysis.tally(facts.trials)
    tiles: list[tuple[str, str, str]] = []
    if facts.trials:
        ends = [f"{count:,} {name}" for name, count in tally.items()]
        tiles.append((f"{sum(map(counts, facts.trials)):,}", "trials that count", listed(ends)))
    line = analysis.timeline(facts.trials)
    if line is not None:
        tiles.append(
            (duration(line.seconds), "of training", f"{plural(line.slots, 'worker')}, busy {whole_percent(line.busy)}")
        )
    saved = analysis.savings(facts.trials)
    if saved.spared:
        tiles.append(
            (
                whole_percent(saved.share),
                "spared by pruning",
                f"{saved.spared:,} of {saved.epochs + saved.spared:,} epochs",
            )
        )
    if facts.chosen is not None and "flops" in facts.chosen.user_attrs:
        attributes = facts.chosen.user_attrs
        size = (attributes.get("config") or {}).get("image_size")
        more = f"{attributes.get('parameters', 0) / 1e3:,.0f} thousand weights" + (f", {size} px" if size else "")
        tiles.append((f"{attributes['flops'] / 1e6:,.0f} MFLOP", f"a picture, trial {facts.chosen.number}", more))
    return tiles
