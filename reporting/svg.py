"""A trial's charts for the dashboard: plain numbers in, an SVG document out.

A study draws them for each of its trials. For the two, matplotlib takes a third of a second, sixty times as long, and
what it then gives a browser is a bitmap in one font; here text stays text, in the reader's own fonts.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

from reporting.charts import log_ticks
from reporting.drawing import BLUE, FAINT, GREEN, GRID, INK, MUTED, RED, columns, number, short

FONT = 12
"""Pixels, as all that follows."""
LETTER = 6.6
"""About the width of a letter."""
PANEL, HEIGHT = 290, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 30, 42
"""Around the plot of a panel."""
NAMED, NUMBERED = 40, 15
"""Classes up to which a confusion matrix has names, and numbers in its cells."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve of a panel, a value per epoch."""

    name: str
    colour: str
    values: Sequence[float]


def training(history: Sequence[dict[str, Any]], best_epoch: int) -> str:
    """Losses, accuracies and learning rate by epoch (from 1); `history`: EpochMetrics as dictionaries."""
    epochs = [row["epoch"] + 1 for row in history]
    panels = (
        [("train loss", BLUE, "train_loss"), ("validation loss", RED, "validation_loss")],
        [("train top-1", BLUE, "train_top1"), ("validation top-1", RED, "top1")],
        [("learning rate", GREEN, "lr")],
    )
    drawn: list[str] = []
    for place, lines in enumerate(panels):
        found = [Line(name=name, colour=colour, values=[row[key] for row in history]) for name, colour, key in lines]
        inside = _panel(epochs, found, best_epoch, percent=place == 1, steep=place == 2)
        drawn.append(_element("g", *inside, transform=f"translate({place * PANEL} 0)"))
    return _document(len(panels) * PANEL, HEIGHT, drawn)


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Truth down, prediction across; blue is right, vermilion wrong, the deeper the larger the share of the true class.

    Cells have their counts up to NUMBERED classes and names up to NAMED.
    """
    count = len(matrix)
    cell = max(40, 200 / count) if count <= NUMBERED else 16 if count <= NAMED else 560 / count
    labels = [short(name, 18) for name in names] if count <= NAMED else []
    left = 30 + LETTER * max((columns(label) for label in labels), default=0)
    side = cell * count
    shares = np.asarray(matrix, dtype=float) / np.maximum(1, np.sum(matrix, axis=1))[:, None]
    inside = [_cells(matrix, shares, cell, left) if count <= NAMED else _picture(shares, side, left)]
    for place, label in enumerate(labels):
        middle = (place + 0.5) * cell
        turned = f"translate({left + middle:.1f} {side + 12:.1f}) rotate(-45)"
        inside += [
            _text(label, left - 8, middle + FONT / 3, anchor="end", colour=INK),
            _text(label, 0, 0, anchor="end", colour=INK, transform=turned),
        ]
    deep = side + 0.75 * (left - 30) + 40
    inside += [
        _text("predicted", left + side / 2, deep - 8, anchor="middle"),
        _text("true", 0, 0, anchor="middle", transform=f"translate(14 {side / 2:.1f}) rotate(-90)"),
    ]
    return _document(left + side + 10, deep, inside)


def _panel(epochs: Sequence[int], lines: Sequence[Line], best_epoch: int, *, percent: bool, steep: bool) -> list[str]:
    """`steep`: on a logarithmic axis, where the values need one."""
    values = [value for line in lines for value in line.values]
    positive = [value for value in values if value > 0]
    logarithmic = steep and bool(positive) and max(positive) / min(positive) > 30
    shown = positive if logarithmic else values
    low, high = min(shown), max(shown)
    if logarithmic:
        ticks = log_ticks(low, high, 6)
    else:
        room = 0.05 * (high - low) or abs(high) / 10 or 0.1
        low, high = (max(0.0, low - room), min(1.0, high + room)) if percent else (low - room, high + room)
        ticks = [float(tick) for tick in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    first, last = (epochs[0], epochs[-1]) if len(epochs) > 1 else (epochs[0] - 1, epochs[0] + 1)
    width, height = PANEL - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def across(epoch: float) -> float:
        return LEFT + width * (epoch - first) / (last - first)

    def down(value: float) -> float:
        ends = (np.log(low), np.log(high)) if logarithmic else (low, high)
        at = np.log(value) if logarithmic else value
        return float(TOP + height * (ends[1] - at) / (ends[1] - ends[0]))

    inside: list[str] = []
    for tick in (tick for tick in ticks if low <= tick <= high):
        said = f"{100 * tick:.4g} %" if percent else number(tick)
        inside += [
            _stroke([(LEFT, down(tick)), (LEFT + width, down(tick))], GRID, 0.8),
            _text(said, LEFT - 6, down(tick) + FONT / 3, anchor="end"),
        ]
    for tick in MaxNLocator(5, integer=True).tick_values(first, last):
        if epochs[0] <= tick <= epochs[-1]:
            inside.append(_text(f"{tick:.0f}", across(tick), TOP + height + 16, anchor="middle"))
    inside += [
        _text("epoch", LEFT + width / 2, HEIGHT - 8, anchor="middle"),
        _stroke([(LEFT, TOP), (LEFT, TOP + height), (LEFT + width, TOP + height)], FAINT, 0.8),
        _stroke([(across(best_epoch), TOP), (across(best_epoch), TOP + height)], FAINT, 1, dashes="4 3"),
    ]
    begin = float(LEFT)
    for line in lines:
        points = [
            (across(epoch), down(value))
            for epoch, value in zip(epochs, line.values, strict=True)
            if value > 0 or not logarithmic
        ]
        inside += [_stroke(points, line.colour, 2)]
        inside += [_dot(*point, line.colour) for point in points if len(epochs) == 1]
        inside += [_stroke([(begin, 14), (begin + 14, 14)], line.colour, 2), _text(line.name, begin + 18, 18)]
        begin += 34 + LETTER * len(line.name)
    return inside


def _cells(matrix: Sequence[Sequence[int]], shares: np.ndarray, cell: float, left: float) -> str:
    """A square per cell that is not empty."""
    inside: list[str] = []
    for truth, prediction in zip(*np.nonzero(shares), strict=True):
        share, x, y = float(shares[truth, prediction]), left + cell * prediction, cell * truth
        colour = BLUE if truth == prediction else RED
        opacity = f"{0.12 + 0.88 * share:.2f}"
        inside.append(_element("rect", x=x, y=y, width=cell, height=cell, fill=colour, fill_opacity=opacity))
        if len(matrix) <= NUMBERED:
            ink = "#ffffff" if share > 0.5 else INK
            said = f"{matrix[truth][prediction]:,}"
            inside.append(_text(said, x + cell / 2, y + cell / 2 + FONT / 3, anchor="middle", colour=ink))
    return _element("g", *inside)


def _picture(shares: np.ndarray, side: float, left: float) -> str:
    """A pixel per cell."""
    colours = np.full((*shares.shape, 3), [int(RED[at : at + 2], 16) for at in (1, 3, 5)], dtype=float)
    diagonal = np.arange(len(shares))
    colours[diagonal, diagonal] = [int(BLUE[at : at + 2], 16) for at in (1, 3, 5)]
    depth = np.where(shares > 0, 0.15 + 0.85 * shares, 0.0)[..., None]
    target = io.BytesIO()
    Image.fromarray((colours * depth + 255 * (1 - depth)).round().astype(np.uint8)).save(target, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(target.getvalue()).decode()}"
    picture = _element("image", x=left, y=0, width=side, height=side, href=address, style="image-rendering: pixelated")
    frame = _element("rect", x=left, y=0, width=side, height=side, fill="none", stroke=FAINT)
    return picture + frame


def _document(width: float, height: float, inside: Sequence[str]) -> str:
    paper = _element("rect", width="100%", height="100%", fill="#ffffff")
    return _element(
        "svg",
        paper,
        *inside,
        xmlns="http://www.w3.org/2000/svg",
        width=width,
        height=height,
        viewBox=f"0 0 {width:.1f} {height:.1f}",
        font_family="system-ui, sans-serif",
        font_size=FONT,
    )


def _stroke(points: Sequence[tuple[float, float]], colour: str, width: float, dashes: str = "none") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return _element("polyline", points=path, fill="none", stroke=colour, stroke_width=width, stroke_dasharray=dashes)


def _dot(x: float, y: float, colour: str) -> str:
    return _element("circle", cx=x, cy=y, r=3, fill=colour)


def _text(said: str, x: float, y: float, *, anchor: str = "start", colour: str = MUTED, **more: str) -> str:
    return _element("text", escape(said), x=x, y=y, text_anchor=anchor, fill=colour, **more)


def _element(tag: str, *inside: str, **attributes: float | str) -> str:
    """`inside` is markup; attributes are written as they are, their underscores as hyphens, numbers to a tenth."""
    written = "".join(
        f" {name.replace('_', '-')}={quoteattr(value if isinstance(value, str) else f'{value:.1f}')}"
        for name, value in attributes.items()
    )
    return f"<{tag}{written}>{''.join(inside)}</{tag}>"
