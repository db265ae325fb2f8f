"""A trial's note in the dashboard: Markdown around pictures, which are artifacts.

TrialRecord -> learning curves, confusion matrix, the most confident mistakes, the configuration -> artifacts -> note

All of it is written before the trial is reported as finished: afterwards Optuna rejects artifacts.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
from pathlib import Path

import optuna
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna_dashboard import save_note
from optuna_dashboard.artifact import get_artifact_path

from data.cache import CacheHandle, open_part
from model.files import printable
from model.training import EpochMetrics, Mistake
from reporting import svg
from reporting.gallery import gallery
from reporting.words import configuration, duration, percent, plural, short
from tuning.events import TrialRecord
from tuning.trials import read_trial

GALLERY = "mistakes.jpg"
IN_A_ROW = 6
"""Number of settings in a row of the note's table, because the dashboard does not wrap long rows."""


class TrialNotes:
    """Describes trials: the coordinator calls it before it reports one as finished."""

    def __init__(self, folder: Path, data: CacheHandle) -> None:
        """Store artifacts in `folder`/artifacts, where the dashboard finds them."""
        self._data = data
        place = folder / "artifacts"
        place.mkdir(exist_ok=True)
        self._store = FileSystemArtifactStore(str(place))

    def __call__(self, trial: optuna.Trial, record: TrialRecord) -> None:
        """Write the trial's artifacts and note, replacing those that an interrupted run may have left.

        Those can be outdated: a trial that was to be pruned may have been resumed because others ended in between.
        """
        there = _artifacts(trial)
        chosen = record.chosen
        if chosen is not None:
            for name, content in self._contents(record, chosen).items():
                if name in there:
                    self._store.write(there[name], io.BytesIO(content))
                else:
                    there[name] = self._upload(trial, name, content)
        pictures = {
            name: get_artifact_path(trial, identity) for name, identity in there.items() if not name.endswith(".json")
        }
        save_note(trial, note(trial.number, record, pictures, read_trial(trial).host))

    def _contents(self, record: TrialRecord, chosen: EpochMetrics) -> dict[str, bytes]:
        """Return the content of each artifact by its file name."""
        config = record.assignment.config
        contents = {
            "curves.svg": svg.learning_curves(record.history, chosen.epoch + 1).encode(),
            "confusion.svg": svg.confusion(chosen.confusion, self._data.classes).encode(),
            "configuration.json": json.dumps(config.to_dict(), indent=1).encode(),
        }
        if chosen.mistakes and not record.assignment.final:
            contents[GALLERY] = self._gallery(config.image_size, chosen)
        return contents

    def _gallery(self, image_size: int, chosen: EpochMetrics) -> bytes:
        """Return the most confident mistakes as a JPEG: what the network saw, the true class and the predicted one."""
        part, classes = open_part(self._data, image_size, "validation"), self._data.classes

        def caption(mistake: Mistake) -> str:
            truth, taken = (short(classes[label], 22) for label in (part.labels[mistake.place], mistake.predicted))
            return f"{truth}\ntaken for {taken}, {100 * mistake.probability:.0f} %"

        return gallery((part.images[part.indices[one.place]], caption(one)) for one in chosen.mistakes)

    def _upload(self, trial: optuna.Trial, name: str, content: bytes) -> str:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, name)
            path.write_bytes(content)
            return upload_artifact(artifact_store=self._store, file_path=str(path), study_or_trial=trial)


def _artifacts(trial: optuna.Trial) -> dict[str, str]:
    """Return the artifacts' IDs by name."""
    try:
        return {meta.filename: meta.artifact_id for meta in get_all_artifact_meta(trial)}
    except TypeError:  # Optuna cannot read what the dashboard leaves of an artifact that was removed there
        return {}


def note(number: int, record: TrialRecord, pictures: dict[str, str], host: str | None = None) -> str:
    """Return the note in Markdown; `pictures` are the URLs of the artifacts by name, `host` names the machine."""
    chosen, epochs = record.chosen, len(record.history)
    reason = record.reason[:1].upper() + record.reason[1:]
    planned = record.assignment.epochs
    far = f" It was trained for {epochs:,} of {plural(planned, 'epoch')}." if 0 < epochs < planned else ""
    lines = [f"# Trial {number}: {record.outcome}", "", f"{as_text(reason)}.{far}"]
    if chosen is not None and record.assignment.final:
        text = "accuracy on the validation pictures says nothing about new ones."
        lines += ["", f"Trained on train + validation for {plural(epochs, 'epoch')}: {text}"]
    elif chosen is not None:
        top3 = "" if chosen.top3 is None else f", {percent(chosen.top3)} top-3"
        lines += [
            "",
            f"**{percent(chosen.top1)} top-1**{top3} on the validation set, in epoch {chosen.epoch + 1} of {epochs}.",
        ]
    rows: list[tuple[str, str]] = []
    for group, settings in configuration(record.assignment.config).items():
        said = [f"{name} {as_text(value)}" for name, value in settings.items()]
        rows += [("" if at else group, ", ".join(said[at : at + IN_A_ROW])) for at in range(0, len(said), IN_A_ROW)]
    rows.append(("cost", f"{record.cost.flops / 1e6:,.1f} MFLOPs per picture, {record.cost.parameters:,} parameters"))
    if record.history:
        seconds = sum(metrics.seconds for metrics in record.history)
        peak = max(metrics.peak_memory for metrics in record.history)
        where = f", on {as_text(host)}" if host else ""
        rows.append(("run", f"{duration(seconds)} of training, {peak / 2**20:,.0f} MB peak memory{where}"))
    lines += ["", "| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)]
    titles = {
        "curves.svg": "Learning curves",
        "confusion.svg": f"Confusion matrix of epoch {chosen.epoch + 1}" if chosen else "",
        GALLERY: "Most confident mistakes",
    }
    for name, title in titles.items():
        if name in pictures:
            lines += ["", f"## {title}", "", f"![{title}]({pictures[name]})"]
    return "\n".join(lines) + "\n"


def as_text(text: str) -> str:
    """Escape text so that Markdown shows it unchanged on one line; unprintable characters become escape sequences.

    In Markdown, any ASCII punctuation may be escaped with a backslash.
    """
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", printable(" ".join(text.split())))
