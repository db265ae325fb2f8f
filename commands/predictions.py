"""Predictions as a table, JSON or CSV; each picture is written as soon as it is classified."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TextIO

from model.files import csv_cell, printable
from model.predict import Prediction

WIDEST = 28
"""Characters to which the table cuts class names; JSON and CSV have them in full."""


SURE = {True: "sure", False: "not sure", None: ""}


def answer(prediction: Prediction) -> str:
    """Return "sure", "not sure" or "stranger"; "" if the bundle has no rules for them, or the picture an error."""
    return "stranger" if prediction.stranger else SURE[prediction.sure]


def write_table(
    predictions: Iterable[Prediction], classes: Iterable[str], top: int, out: TextIO, *, answers: bool
) -> None:
    """Write one line per picture: with `answers` whether it is sure, the most probable classes, and the path."""
    width = min(WIDEST, max(len(printable(name)) for name in classes))
    headings = ["answer  "] * answers + [f"{f'top-{place + 1}':<{width + 9}}" for place in range(top)]
    out.write("  ".join([*headings, "picture"]) + "\n")
    for one in predictions:
        cells = [f"{_cut(printable(name), width):<{width}} {100 * share:6.2f} %" for name, share in one.classes]
        if one.error is not None:
            cells = [f"error: {one.error}"]
        if answers:
            cells.insert(0, f"{answer(one):<8}")
        line = "  ".join(cells).ljust((width + 9) * top + 2 * (top - 1) + 10 * answers)
        out.write(f"{line}  {printable(one.path)}\n")


def write_json(predictions: Iterable[Prediction], out: TextIO) -> None:
    """Write a JSON array with an object per picture: path, classes (each with its probability), whether the answer is
    sure and the picture a stranger, its strangeness, error."""
    before = chain(["[\n"], _forever(",\n"))
    for one in predictions:
        classes = [{"class": name, "probability": share} for name, share in one.classes]
        judged = {"sure": one.sure, "stranger": one.stranger, "strangeness": one.strangeness}
        values = {"path": str(one.path), "classes": classes, **judged, "error": one.error}
        out.write(next(before) + json.dumps(values))
    out.write("\n]\n" if next(before) != "[\n" else "[]\n")


def write_csv(predictions: Iterable[Prediction], top: int, out: TextIO) -> None:
    """Write a header and one row per picture: path, error, answer, then class_1, probability_1 and so on, best first.

    Names are made safe for terminals and spreadsheets by `model.files.csv_cell`; `write_json` keeps every byte of them.
    """
    table = csv.writer(out, lineterminator="\n")
    numbers = range(1, top + 1)
    table.writerow(["path", "error", "answer", *(f"{name}_{n}" for n in numbers for name in ("class", "probability"))])
    for one in predictions:
        best = ((csv_cell(name), share) for name, share in one.classes)
        table.writerow([csv_cell(one.path), one.error or "", answer(one), *chain.from_iterable(best)])


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _forever(text: str) -> Iterator[str]:
    while True:
        yield text
