"""Charts as SVG: a small plotting library, and the learning curves and confusion matrix of a trial.

numbers -> `Plot` (axes, grid, legend) -> `document`, a file, or `inline`, part of an HTML page

A study draws two charts for each of its trials. matplotlib takes a third of a second for these, sixty times as long,
and gives a browser a bitmap in one font; here text stays text, in the reader's own fonts.
"""

from __future__ import annotations

import base64
import io
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from PIL import Image

from model.training import EpochMetrics
from reporting.words import columns, number, percent, short

INK, MUTED, GRID, FAINT, WHITE = "#1b1f24", "#59636e", "#dfe3e8", "#a9b1ba", "#ffffff"
BLUE, RED, GREEN, ORANGE, SKY, PURPLE = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7"
"""Colour from the palette of Okabe and Ito (2008), distinct for every kind of colour vision; RED is their vermilion."""
VARIABLES: dict[str, str] = dict(
    zip(
        (INK, MUTED, GRID, FAINT, BLUE, RED, GREEN, ORANGE, SKY, PURPLE),
        ["ink", "muted", "grid", "faint", "blue", "red", "green", "orange", "sky", "purple"],
        strict=True,
    )
)
"""CSS variables of the colours in the page's style sheet, which has other values for dark mode."""
FONT = 14
"""Font size in pixels, the unit of all lengths here."""
LETTER = 0.55 * FONT
"""Approximate width of a letter in pixels."""
WIDTH = 560
"""Width of a figure in the report, in pixels; scaled down to a phone's 358 px, its text is still 9 px tall."""
PANEL, PANEL_HEIGHT = 290, 260
"""Width and height in pixels of each of the three panels of a trial's learning curves."""
NAMED, NUMBERED = 40, 15
"""Largest number of classes for which a confusion matrix shows names, and for which it shows counts in its cells."""
STEEP = 30
"""Ratio of the largest to the smallest learning rate above which their axis is logarithmic."""

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An axis: a range of values and the pixels that it is mapped to."""

    low: float
    high: float
    start: float
    """Pixel coordinate of `low`."""
    end: float
    """Pixel coordinate of `high`."""
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel coordinate of a value."""
        low, high, value = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, most: int, *, whole: bool = False) -> list[float]:
        """Return up to about `most` round values within the range; with `whole`, only integers."""
        if self.log:
            return log_ticks(self.low, self.high, most)
        span = self.high - self.low
        magnitude = 10.0 ** math.floor(math.log10(span / most))
        sizes = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
        step = next(size * magnitude for size in sizes if size * magnitude * most >= span * 0.999)
        step = max(1.0, step) if whole else step
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        return [place * step for place in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Return up to `most` round values between two bounds above 0, such as 1, 2 and 5 times powers of ten."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    places: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        places = [step * 10.0**decade for decade in decades for step in steps]
        places = [place for place in places if low * 0.999 <= place <= high * 1.001]
        if len(places) <= most:
            break
    return places[:: -(-len(places) // most)] if places else [math.sqrt(low * high)]


def padded(values: Sequence[float], *, share: bool = False) -> tuple[float, float]:
    """Return the range of an axis that shows these values with a margin; with `share`, within 0 to 1."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or abs(high) / 10 or 0.1
    return (max(0.0, low - room), min(1.0, high + room)) if share else (low - room, high + room)


class Entry(NamedTuple):
    """An entry in a legend: a name, with a line or a dot in its colour."""

    name: str
    colour: str
    dot: bool = False


@dataclass(kw_only=True)
class Plot:
    """A chart with two axes, to which lines, dots and labels are added."""

    width: float = WIDTH
    height: float = 300
    left: float = 52
    x: tuple[float, float]
    y: tuple[float, float]
    log_x: bool = False
    log_y: bool = False
    whole_x: bool = False
    """Whether the ticks of the horizontal axis are integers."""
    whole_y: bool = False
    percent_y: bool = False
    x_title: str
    entries: Sequence[Entry] = ()
    """Entries of the legend."""
    elements: list[str] = field(default_factory=list[str])
    """SVG elements drawn so far."""

    def __post_init__(self) -> None:
        names, top = legend(self.entries, self.width)
        bottom, right = self.height - 3 * FONT, self.width - FONT
        self.across = Scale(low=self.x[0], high=self.x[1], start=self.left, end=right, log=self.log_x)
        self.down = Scale(low=self.y[0], high=self.y[1], start=bottom, end=top, log=self.log_y)
        ticks = self.down.ticks(5, whole=self.whole_y)
        digits = 0 if all(abs(100 * tick - round(100 * tick)) < 1e-6 for tick in ticks) else 1
        for tick in ticks:
            said = percent(tick, digits) if self.percent_y else number(tick)
            self.elements += [
                line([(self.left, self.down(tick)), (right, self.down(tick))], GRID, 0.8),
                text(said, self.left - 6, self.down(tick) + FONT / 3, anchor="end"),
            ]
        for tick in self.across.ticks(round(self.width / 60), whole=self.whole_x):
            self.elements.append(text(number(tick), self.across(tick), bottom + 1.3 * FONT, anchor="middle"))
        self.elements += [
            text(self.x_title, (self.left + right) / 2, self.height - 6, anchor="middle"),
            line([(self.left, top), (self.left, bottom), (right, bottom)], FAINT, 0.8),
            *names,
        ]

    def places(self, points: Sequence[Point]) -> list[Point]:
        """Return the pixel coordinates of points, without those that a logarithmic axis cannot show."""
        return [
            (self.across(x), self.down(y)) for x, y in points if (x > 0 or not self.log_x) and (y > 0 or not self.log_y)
        ]

    def line(self, points: Sequence[Point], colour: str, width: float = 2, **more: str) -> None:
        """Add a line through points; a single point becomes a dot."""
        places = self.places(points)
        self.elements.append(line(places, colour, width, **more))
        if len(points) == 1:
            self.elements += [dot(place, colour) for place in places]

    def steps(self, points: Sequence[Point], colour: str) -> None:
        """Add a line that keeps each value until the next point."""
        corners = [corner for (_, y), (x, v) in itertools.pairwise(points) for corner in ((x, y), (x, v))]
        self.line([*points[:1], *corners], colour)

    def dots(self, points: Sequence[Point], colour: str, radius: float) -> None:
        """Add a dot for each point."""
        self.elements += [dot(place, colour, radius) for place in self.places(points)]

    def mark(self, x: float) -> None:
        """Add a dashed line from top to bottom."""
        self.elements.append(
            line([(self.across(x), self.down.end), (self.across(x), self.down.start)], FAINT, 1, stroke_dasharray="4 3")
        )

    def label(self, name: str, point: Point, colour: str, *, under: float | None = None) -> float:
        """Add a label beside a point, on the side with more room, and return its vertical pixel coordinate.

        It is above the point, or with `under` below it, and below the label at that coordinate.
        """
        (x, y), middle = self.places([point])[0], (self.across.start + self.across.end) / 2
        side, anchor = (-8, "end") if x > middle else (8, "start")
        at = y - 5 if under is None else max(y, under) + FONT
        self.elements += [
            element("circle", cx=x, cy=y, r=6, fill="none", stroke=colour, stroke_width=1.2),
            text(short(name, 24), x + side, at, anchor=anchor, colour=colour),
        ]
        return at

    def document(self) -> str:
        """Return the chart as an SVG document."""
        return document(self.width, self.height, self.elements)


class Rows:
    """A chart with named rows and a horizontal scale from 0, to which each row's marks are added."""

    def __init__(self, names: Sequence[str], *, end: float, height: float) -> None:
        shown = [short(name, 28) for name in names]
        left = 12 + LETTER * max(map(columns, shown))
        self._height = height
        self.top = 2.0 * FONT
        self.bottom = self.top + height * len(names)
        self.across = Scale(low=0, high=end, start=left, end=WIDTH - 2 * FONT)
        self.elements: list[str] = []
        for tick in self.across.ticks(5):
            x = self.across(tick)
            self.elements.append(line([(x, self.top), (x, self.bottom)], GRID, 0.8))
            self.elements.append(text(percent(tick, 0), x, self.bottom + 1.3 * FONT, anchor="middle"))
        for place, name in enumerate(shown):
            self.elements.append(text(name, left - 10, self.middle(place) + FONT / 3, anchor="end", colour=INK))

    def middle(self, place: int) -> float:
        """Return the vertical pixel coordinate of a row's middle."""
        return self.top + (place + 0.5) * self._height


def legend(entries: Sequence[Entry], width: float) -> tuple[list[str], float]:
    """Lay out legend entries in rows from the top left; also return the pixel coordinate below the last row."""
    drawn: list[str] = []
    x, y = 0.0, float(FONT)
    for entry in entries:
        name = short(entry.name, 34)
        needed = 18 + LETTER * columns(name)
        if x and x + needed > width:
            x, y = 0.0, y + 1.5 * FONT
        mark = (x + 7, y - 0.35 * FONT)
        drawn += [
            dot(mark, entry.colour, 3.5) if entry.dot else line([(x, mark[1]), (x + 14, mark[1])], entry.colour, 2.5),
            text(name, x + 18, y),
        ]
        x += needed + 14
    return drawn, y + FONT if entries else 0.6 * FONT


# ---------------------------------------------------------------------------------------------------------------------
# The charts of one trial, in its note and in the report


def curve_panels(history: Sequence[EpochMetrics], best_epoch: int) -> list[str]:
    """Return three charts: losses, accuracies and learning rate by epoch; a dashed line marks `best_epoch` (from 1)."""
    epochs = [metrics.epoch + 1 for metrics in history]
    panels = (
        (("train loss", BLUE, "train_loss"), ("validation loss", RED, "validation_loss")),
        (("train top-1", BLUE, "train_top1"), ("validation top-1", RED, "top1")),
        (("learning rate", GREEN, "lr"),),
    )
    drawn: list[str] = []
    for place, lines in enumerate(panels):
        curves = [(name, colour, [float(getattr(one, key)) for one in history]) for name, colour, key in lines]
        values = [value for *_, column in curves for value in column]
        positive = [value for value in values if value > 0]
        steep = place == 2 and bool(positive) and max(positive) / min(positive) > STEEP
        plot = Plot(
            width=PANEL,
            height=PANEL_HEIGHT,
            left=62 if steep else 52,  # room for 0.00001
            x=(epochs[0], epochs[-1]) if len(epochs) > 1 else (epochs[0] - 0.5, epochs[0] + 0.5),
            y=(min(positive), max(positive)) if steep else padded(values, share=place == 1),
            log_y=steep,
            whole_x=True,
            percent_y=place == 1,
            x_title="epoch",
            entries=[Entry(name, colour) for name, colour, _ in curves],
        )
        plot.mark(best_epoch)
        for _, colour, column in curves:
            plot.line(list(zip(epochs, column, strict=True)), colour)
        drawn.append(plot.document())
    return drawn


def learning_curves(history: Sequence[EpochMetrics], best_epoch: int) -> str:
    """Return the three panels of `curve_panels` side by side, as one document."""
    panels = curve_panels(history, best_epoch)
    side_by_side = [
        element("g", panel, transform=f"translate({place * PANEL} 0)") for place, panel in enumerate(panels)
    ]
    return document(len(panels) * PANEL, PANEL_HEIGHT, side_by_side)


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Return a confusion matrix as a document: true classes in rows, predicted ones in columns.

    Blue is right and vermilion wrong, darker for a larger share of the true class. Up to NUMBERED classes, cells show
    their counts, and up to NAMED, classes their names; with more classes, each cell is a pixel.
    """
    count = len(matrix)
    cell = max(40, 200 / count) if count <= NUMBERED else 18 if count <= NAMED else 480 / count
    labels = [short(name, 18) for name in names] if count <= NAMED else []
    left = 30 + LETTER * max((columns(label) for label in labels), default=0)
    side = cell * count
    shares = np.asarray(matrix, dtype=float) / np.maximum(1, np.sum(matrix, axis=1))[:, None]
    inside = [_cells(matrix, shares, cell, left) if count <= NAMED else _pixels(shares, side, left)]
    for place, label in enumerate(labels):
        middle = (place + 0.5) * cell
        turned = f"translate({left + middle:.1f} {side + 12:.1f}) rotate(-45)"
        inside += [
            text(label, left - 8, middle + FONT / 3, anchor="end", colour=INK),
            text(label, 0, 0, anchor="end", colour=INK, transform=turned),
        ]
    height = side + 0.75 * (left - 30) + 40
    inside += [
        text("predicted", left + side / 2, height - 8, anchor="middle"),
        text("true", 0, 0, anchor="middle", transform=f"translate(14 {side / 2:.1f}) rotate(-90)"),
    ]
    return document(left + side + 10, height, inside)


def _cells(matrix: Sequence[Sequence[int]], shares: np.ndarray, cell: float, left: float) -> str:
    """Draw a square for each cell that is not empty."""
    inside: list[str] = []
    for truth, prediction in zip(*np.nonzero(shares), strict=True):
        share, x, y = float(shares[truth, prediction]), left + cell * prediction, cell * truth
        colour = BLUE if truth == prediction else RED
        opacity = f"{0.12 + 0.88 * share:.2f}"
        inside.append(element("rect", x=x, y=y, width=cell, height=cell, fill=colour, fill_opacity=opacity))
        if len(matrix) <= NUMBERED:
            said, ink = f"{matrix[truth][prediction]:,}", WHITE if share > 0.5 else INK
            inside.append(text(said, x + cell / 2, y + cell / 2 + FONT / 3, anchor="middle", colour=ink))
    return element("g", *inside)


def _pixels(shares: np.ndarray, side: float, left: float) -> str:
    """Draw a pixel for each cell, more transparent the smaller its share."""
    colours = np.full((*shares.shape, 4), [*bytes.fromhex(RED[1:]), 0], dtype=np.uint8)
    diagonal = np.arange(len(shares))
    colours[diagonal, diagonal] = [*bytes.fromhex(BLUE[1:]), 0]
    colours[..., 3] = np.where(shares > 0, 255 * (0.15 + 0.85 * shares), 0).round()
    target = io.BytesIO()
    Image.fromarray(colours).save(target, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(target.getvalue()).decode()}"
    picture = element("image", x=left, y=0, width=side, height=side, href=address, style="image-rendering: pixelated")
    frame = element("rect", x=left, y=0, width=side, height=side, fill="none", stroke=FAINT)
    return picture + frame


# ---------------------------------------------------------------------------------------------------------------------
# Elements


def document(width: float, height: float, inside: Sequence[str]) -> str:
    """Return an SVG document on a white background."""
    return element(
        "svg",
        element("rect", width="100%", height="100%", fill=WHITE),
        *inside,
        xmlns="http://www.w3.org/2000/svg",
        width=width,
        height=height,
        viewBox=f"0 0 {width:.1f} {height:.1f}",
        font_family="system-ui, sans-serif",
        font_size=FONT,
    )


def inline(drawn: str) -> str:
    """Return a document as an element of the report: without a background, in the page's font and colours.

    It scales with the page; below the width at which its text would be 8.6 px tall it scrolls instead.
    """
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)[0]
    inside = drawn[drawn.index("/>") + 2 :]
    inside = re.sub(r'"(#[0-9a-f]{6})"', lambda m: f'"var(--{VARIABLES[m[1]]})"' if m[1] in VARIABLES else m[0], inside)
    style = f"max-width:{1.1 * float(width):.0f}px;min-width:{8.6 / FONT * float(width):.0f}px"
    return f'<svg viewBox="0 0 {width} {height}" font-size="{FONT}" style="{style}">{inside}'


def line(points: Sequence[Point], colour: str, width: float, **more: str) -> str:
    """Return an SVG line through points given in pixels."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return element("polyline", points=path, fill="none", stroke=colour, stroke_width=width, **more)


def dot(place: Point, colour: str, radius: float = 3) -> str:
    """Return an SVG circle, filled."""
    return element("circle", cx=place[0], cy=place[1], r=radius, fill=colour)


def text(said: str, x: float, y: float, *, anchor: str = "start", colour: str = MUTED, **more: str) -> str:
    """Return SVG text that starts, is centred or ends at a point given in pixels."""
    return element("text", escape(said, {'"': "&quot;"}), x=x, y=y, text_anchor=anchor, fill=colour, **more)


def element(tag: str, *inside: str, **attributes: float | str) -> str:
    """Return an SVG element; `inside` is markup, underscores in names become hyphens, numbers are rounded to tenths."""
    written = "".join(
        f" {name.replace('_', '-')}={quoteattr(value if isinstance(value, str) else f'{value:.1f}')}"
        for name, value in attributes.items()
    )
    return f"<{tag}{written}>{''.join(inside)}</{tag}>" if inside else f"<{tag}{written}/>"
