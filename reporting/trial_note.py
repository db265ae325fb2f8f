"""What the dashboard shows of one trial: pictures as artifacts, and a note in Markdown around them.

TrialRecord -> learning curves, confusion matrix, the most confident mistakes, the configuration -> artifacts -> note.
Everything is made before the trial is told, because afterwards it takes no artifact.
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
from PIL import Image, ImageDraw, ImageFont

from commands.console import duration, percent
from data.cache import CacheHandle, open_part
from model.files import printable
from model.training import EpochMetrics
from reporting import svg as sketches
from reporting.drawing import short
from tuning.coordinator import TrialRecord

GALLERY = "mistakes.jpg"
COLUMNS, SIDE, CAPTION, GAP = 4, 180, 36, 10
"""Of the gallery, in pixels but for the first. Pillow draws it in a tenth of matplotlib's time."""


class TrialNotes:
    """Describes trials; what `Coordinator` calls before it tells one."""

    def __init__(self, folder: Path, data: CacheHandle) -> None:
        """Artifacts go to `folder`/artifacts, where the dashboard looks for them."""
        self._data = data
        place = folder / "artifacts"
        place.mkdir(exist_ok=True)
        self._store = FileSystemArtifactStore(str(place))

    def __call__(self, trial: optuna.Trial, record: TrialRecord) -> None:
        """Adds artifacts and the note, or writes anew what an earlier, interrupted telling has added.

        Anew, because a trial that was to be pruned then may have been trained on: others have ended in between.
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
        save_note(trial, note(trial.number, record, pictures))

    def _contents(self, record: TrialRecord, chosen: EpochMetrics) -> dict[str, bytes]:
        """What each file holds, by name."""
        config = record.assignment.config
        rows = [metrics.to_dict() for metrics in record.history]
        contents = {
            "curves.svg": sketches.training(rows, chosen.epoch + 1).encode(),
            "confusion.svg": sketches.confusion(chosen.confusion, self._data.classes).encode(),
            "configuration.json": json.dumps(config.to_dict(), indent=1).encode(),
        }
        if chosen.mistakes and not record.assignment.final:
            contents[GALLERY] = self._gallery(config.image_size, chosen)
        return contents

    def _gallery(self, image_size: int, chosen: EpochMetrics) -> bytes:
        """The most confident mistakes as a JPEG: what the network saw, what it is, what it was taken for."""
        part = open_part(self._data, image_size, "validation")
        lines = -(-len(chosen.mistakes) // COLUMNS)
        sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, lines * (SIDE + CAPTION + GAP) + GAP), "white")
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
        for place, mistake in enumerate(chosen.mistakes):
            left = GAP + place % COLUMNS * (SIDE + GAP)
            top = GAP + place // COLUMNS * (SIDE + CAPTION + GAP)
            truth, taken = (
                short(self._data.classes[label], 22) for label in (part.labels[mistake.place], mistake.predicted)
            )
            pen.text(
                (left, top), f"{truth}\ntaken for {taken}, {100 * mistake.probability:.0f} %", fill="black", font=font
            )
            picture = Image.fromarray(part.images[part.indices[mistake.place]])
            sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, top + CAPTION))
        target = io.BytesIO()
        sheet.save(target, "JPEG", quality=88)
        return target.getvalue()

    def _upload(self, trial: optuna.Trial, name: str, content: bytes) -> str:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, name)
            path.write_bytes(content)
            return upload_artifact(artifact_store=self._store, file_path=str(path), study_or_trial=trial)


def _artifacts(trial: optuna.Trial) -> dict[str, str]:
    """Name -> identity."""
    try:
        return {meta.filename: meta.artifact_id for meta in get_all_artifact_meta(trial)}
    except TypeError:  # somebody has removed one in the dashboard: Optuna cannot read what it leaves
        return {}


def note(number: int, record: TrialRecord, pictures: dict[str, str]) -> str:
    """Markdown: the outcome, the configuration in words, what it cost, and the pictures by their address."""
    config, chosen = record.assignment.config, record.chosen
    model, training, augment = config.model, config.training, config.augment
    lines = [f"# Trial {number}: {record.outcome}", "", as_text(record.reason[:1].upper() + record.reason[1:]) + "."]
    if chosen is not None and record.assignment.final:
        lines += [
            "",
            f"Trained on train + validation for {len(record.history)} epochs: what it makes of those is no test.",
        ]
    elif chosen is not None:
        lines += [
            "",
            f"**{percent(chosen.top1)} top-1**, {percent(chosen.top3)} top-3 on the validation part, in epoch "
            f"{chosen.epoch + 1} of {len(record.history)}.",
        ]
    rate = {
        "step": f"times {training.step_factor:g} every {training.step_period:g} epochs",
        "cosine": "cosine down to 0",
        "one-cycle": "one cycle",
    }[training.schedule]
    warm = f", warm-up over {training.warmup_epochs:g} of {training.epochs} epochs" if training.warmup_epochs else ""
    views = ["fresh in every epoch" if augment.fresh else "the same in every epoch"]
    views += ["a third of the pictures plain"] * augment.reuse_originals
    rows = {
        "pictures": f"{config.image_size} x {config.image_size} pixels, each shown {_times(config.views)} an epoch",
        "network": f"width {model.width:g}, strides {model.stride_pattern}, dilation {model.dilation_pattern}, "
        f"{model.pooling} pooling, dropout {model.dropout:g}",
        "optimizer": f"{training.optimizer}, lr {training.lr:.3g}, weight decay {training.weight_decay:.2g}",
        "lr": f"{rate}{warm}",
        "augmentation": f"strength {augment.strength:g}, {', '.join(views)}" if augment.strength else "none",
        "loss": f"label smoothing {training.label_smoothing:g}, class balance: {training.class_balance}",
        "cost": f"{record.cost.flops / 1e6:,.1f} MFLOP a picture, {record.cost.parameters:,} parameters",
    }
    if record.history:
        seconds = sum(metrics.seconds for metrics in record.history)
        peak = max(metrics.peak_memory for metrics in record.history)
        rows["training"] = f"{duration(seconds)}, {peak / 2**20:,.0f} MB at most"
    lines += ["", "| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]
    titles = {
        "curves.svg": "Learning curves",
        "confusion.svg": f"Confusion matrix of epoch {chosen.epoch + 1}" if chosen else "",
        GALLERY: "The most confident mistakes",
    }
    for name, title in titles.items():
        if name in pictures:
            lines += ["", f"## {title}", "", f"![{title}]({pictures[name]})"]
    return "\n".join(lines) + "\n"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def as_text(text: str) -> str:
    """As Markdown shows it unchanged, on one line: all of ASCII's punctuation may have a backslash before it.

    What cannot be printed, or stored, is there as its escape.
    """
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", printable(" ".join(text.split())))
