"""The figures: plain numbers in, a matplotlib `Figure` out, wide or narrow.

Every figure is a function of its numbers alone and knows no trial; `drawing` writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from reporting.drawing import (
    BLUE,
    FAINT,
    GREEN,
    GRID,
    INK,
    MUTED,
    NARROW,
    ORANGE,
    PAPER,
    PURPLE,
    RED,
    SKY,
    WIDE,
    number,
    short,
    styled,
)
from reporting.importance import Importance
from tuning.storage import Outcome

BEHIND = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
"""A patch of paper behind text that stands on lines."""
MOST_LABELS = 8
"""Choices of one parameter that have a label."""
LIT = (RED, BLUE, GREEN, ORANGE, PURPLE)
"""Of the best few trials, from the best on."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """How the trials of one outcome are drawn."""

    colour: str
    marker: str
    size: float
    filled: bool = True


MARKS = {
    Outcome.COMPLETE: Mark(colour=BLUE, marker="o", size=6.5),
    Outcome.PRUNED: Mark(colour=FAINT, marker="o", size=4.5),
    Outcome.DIVERGED: Mark(colour=PURPLE, marker="X", size=5.5),
    Outcome.INFEASIBLE: Mark(colour=ORANGE, marker="s", size=4.0, filled=False),
    Outcome.DUPLICATE: Mark(colour=SKY, marker="D", size=4.0, filled=False),
    Outcome.FAILED: Mark(colour=RED, marker="v", size=5.5),
}


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A trial as a point."""

    x: float
    y: float
    outcome: Outcome
    name: str = ""
    """Written beside it: a known-good configuration's."""


# ---------------------------------------------------------------------------------------------------------------------
# Parts of figures


def _figure(wide: bool, height: float, narrow_height: float | None = None) -> Figure:
    width, tall = (WIDE, height) if wide else (NARROW, narrow_height or height)
    return Figure(figsize=(width / 72, tall / 72), layout="constrained")


def _percent_axis(axis: Any, values: Sequence[float]) -> None:
    """Whole percents, but for a span under four points."""
    decimals = 0 if not len(values) or max(values) - min(values) >= 0.04 else 1
    axis.set_major_formatter(PercentFormatter(1.0, decimals=decimals, symbol=" %"))
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """At most about `most` places between two bounds above 0: 1, 2 and 5 of each decade, or fewer of them."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    places: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        places = [step * 10.0**decade for decade in decades for step in steps]
        places = [place for place in places if low * 0.999 <= place <= high * 1.001]
        if len(places) <= most:
            break
    return places[:: -(-len(places) // most)] if places else [float(np.sqrt(low * high))]


def _log_axis(axis: Any, low: float, high: float, *, ticks: int = 6) -> None:
    """Ticks as plain numbers."""
    axis.set_major_locator(FixedLocator(log_ticks(low, high, ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _legend(figure: Figure, columns: int, axes: Axes | None = None) -> None:
    """Above the figure, from its left edge on, in rows of `columns`, read like text."""
    handles, labels = (axes or figure.axes[0]).get_legend_handles_labels()
    if not handles:
        return
    # matplotlib fills column by column.
    columns = min(columns, len(handles))
    rows = -(-len(handles) // columns)
    order = [row * columns + column for column in range(columns) for row in range(rows)]
    order = [place for place in order if place < len(handles)]
    figure.legend(
        [handles[place] for place in order],
        [labels[place] for place in order],
        loc="outside upper left",
        ncols=columns,
        columnspacing=1.2,
        handlelength=1.2,
    )


def _legend_above(axes: Axes, columns: int) -> None:
    """Above one of several panels."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, columnspacing=1.2, handlelength=1.2)


def _scatter(axes: Axes, dots: Sequence[Dot], *, labelled: bool = False) -> None:
    """The trials' points, an outcome after the other, those that matter on top."""
    for place, end in enumerate(Outcome):
        chosen = [dot for dot in dots if dot.outcome is end]
        if chosen:
            mark = MARKS[end]
            axes.plot(
                [dot.x for dot in chosen],
                [dot.y for dot in chosen],
                linestyle="none",
                marker=mark.marker,
                markersize=mark.size,
                markerfacecolor=mark.colour if mark.filled else "none",
                markeredgecolor=mark.colour,
                markeredgewidth=0.0 if mark.filled else 1.2,
                label=str(end) if labelled else None,
                zorder=10 - place,
            )


# ---------------------------------------------------------------------------------------------------------------------
# The result


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A row of the headline's figure."""

    name: str
    value: float
    low: float
    high: float
    best: bool = False


@styled
def contenders(rows: Sequence[Contender], floor: float | None, floor_name: str, wide: bool) -> Figure:
    """Accuracies with their intervals, one below the other, and what saying always the same reaches."""
    figure = _figure(wide, 46 + 34 * len(rows), 46 + 46 * len(rows))
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        colour = RED if row.best else BLUE
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=3, alpha=0.35, solid_capstyle="round")
        axes.plot([row.value], [place], "o", color=colour, markersize=9, markeredgewidth=0)
        at = (row.value, place) if wide else (1, place)
        axes.annotate(
            f"{100 * row.value:.1f} %",
            at,
            (0, 9),
            xycoords="data",
            textcoords="offset points",
            ha="center" if wide else "right",
            color=colour,
            weight="bold",
        )
        if not wide:
            axes.annotate(short(row.name, 38), (0, place), (0, 9), textcoords="offset points", color=INK)
    if floor is not None:
        axes.axvline(floor, color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            floor_name,
            (floor, 0),
            (4, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=MUTED,
            fontsize=10.5,
        )
    axes.set_ylim(-0.75, len(rows) - 0.25)
    axes.set_xlim(0, 1)
    axes.set_yticks(range(len(rows)), [short(row.name, 40) if wide else "" for row in reversed(rows)])
    axes.tick_params(axis="y", labelcolor=INK, labelsize=12)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# The search


@styled
def history(dots: Sequence[Dot], steps: tuple[Sequence[int], Sequence[float]], wide: bool) -> Figure:
    """What each trial reached, and the best complete value so far."""
    figure = _figure(wide, 330, 300)
    axes = figure.subplots()
    _scatter(axes, dots, labelled=True)
    numbers, values = steps
    if numbers:
        axes.plot(numbers, values, drawstyle="steps-post", color=RED, linewidth=1.8, label="best so far", zorder=2.5)
    last = max((dot.x for dot in dots), default=0)
    _name_dots(axes, [dot for dot in dots if dot.name], last / 2)
    axes.set_xlabel("trial")
    axes.set_ylabel("validation top-1")
    axes.set_xlim(-0.5 - 0.02 * last, last + 0.5 + 0.02 * last)
    axes.xaxis.set_major_locator(MaxNLocator(8 if wide else 5, integer=True, min_n_ticks=1))
    _percent_axis(axes.yaxis, [dot.y for dot in dots])
    _legend(figure, 6 if wide else 2)
    return figure


def _name_dots(axes: Axes, dots: Sequence[Dot], middle: float) -> None:
    """Rings and names for the few points that have one; to the left of those right of `middle`."""
    for place, dot in enumerate(sorted(dots, key=lambda dot: -dot.y)):
        axes.plot([dot.x], [dot.y], "o", markersize=12, markerfacecolor="none", markeredgecolor=GREEN, zorder=12)
        left = dot.x > middle
        axes.annotate(
            short(dot.name, 20),
            (dot.x, dot.y),
            (-9 if left else 9, 5 if place == 0 else -14),
            textcoords="offset points",
            ha="right" if left else "left",
            color=GREEN,
            fontsize=11,
            zorder=12,
            bbox=BEHIND,
        )


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A trial's validation top-1 by epoch."""

    epochs: Sequence[int]
    values: Sequence[float]
    outcome: Outcome
    name: str = ""
    """Of a lit one, for the legend."""


@styled
def curves(lit: Sequence[Curve], others: Sequence[Curve], wide: bool) -> Figure:
    """Learning curves: the best few in colour, all others faint, those that were pruned dotted at their end."""
    figure = _figure(wide, 360, 330)
    axes = figure.subplots()
    for colour, curve in zip(LIT, lit, strict=False):
        axes.plot(curve.epochs, curve.values, color=colour, linewidth=2.2, zorder=5, label=short(curve.name, 30))
        axes.plot(curve.epochs[-1:], curve.values[-1:], "o", color=colour, markersize=5, zorder=5)
    lines = [list(zip(curve.epochs, curve.values, strict=True)) for curve in others]
    axes.add_collection(LineCollection(lines, colors=FAINT, linewidths=0.9, alpha=0.55, zorder=2))
    ends = [(curve.epochs[-1], curve.values[-1]) for curve in others if curve.outcome is not Outcome.COMPLETE]
    if ends:
        x, y = zip(*ends, strict=True)
        label = "pruned or diverged here"
        axes.plot(x, y, "o", color=FAINT, markersize=3.6, markeredgewidth=0, zorder=2.2, label=label)
    axes.autoscale_view()
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation top-1")
    axes.xaxis.set_major_locator(MaxNLocator(10 if wide else 6, integer=True))
    _percent_axis(axes.yaxis, [value for curve in [*lit, *others] for value in curve.values])
    _legend(figure, 6 if wide else 2)
    return figure


@styled
def training(history: Sequence[dict[str, Any]], best_epoch: int, wide: bool) -> Figure:
    """One trial's losses, accuracies and learning rate by epoch (from 1); `history`: EpochMetrics as dictionaries."""
    figure = _figure(wide, 260, 620)
    panels: Sequence[Axes] = figure.subplots(1, 3) if wide else figure.subplots(3, 1)
    epochs = [row["epoch"] + 1 for row in history]
    for axes, lines in zip(
        panels,
        (
            {"train loss": ("train_loss", BLUE), "validation loss": ("validation_loss", RED)},
            {"train top-1": ("train_top1", BLUE), "validation top-1": ("top1", RED)},
            {"learning rate": ("lr", GREEN)},
        ),
        strict=True,
    ):
        for name, (key, colour) in lines.items():
            dot = "o" if len(history) == 1 else None
            axes.plot(epochs, [row[key] for row in history], color=colour, label=name, marker=dot, markersize=4)
        axes.axvline(best_epoch, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _legend_above(axes, 2)
    _percent_axis(panels[1].yaxis, [row[key] for row in history for key in ("train_top1", "top1")])
    rates = [row["lr"] for row in history if row["lr"] > 0]
    panels[2].yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    if rates and max(rates) / min(rates) > 30:
        panels[2].set_yscale("log")
        _log_axis(panels[2].yaxis, min(rates), max(rates))
    return figure


@styled
def tally(counts: dict[str, int], wide: bool) -> Figure:
    """One bar, cut by how the trials ended."""
    figure = _figure(wide, 62, 86)
    axes = figure.subplots()
    left, whole = 0, sum(counts.values())
    for name, count in counts.items():
        colour = MARKS[Outcome(name)].colour if name in set(Outcome) else GRID
        axes.barh([0], [count], left=[left], color=colour, height=0.8, label=f"{name} {count:,}")
        left += count
    axes.set_xlim(0, max(1, whole))
    axes.set_ylim(-0.4, 0.4)
    axes.axis("off")
    axes.legend(
        loc="upper left", bbox_to_anchor=(-0.01, -0.05), ncols=len(counts) if wide else 3, columnspacing=1.4,
        handlelength=0.8, handleheight=0.8,
    )  # fmt: skip
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# What mattered


@styled
def importances(bars: Sequence[Importance], wide: bool) -> Figure:
    """Bars with intervals and what chance alone gives; filled in colour where a parameter is told from it."""
    figure = _figure(wide, 66 + 25 * len(bars), 78 + 25 * len(bars))
    axes = figure.subplots()
    places = list(range(len(bars)))[::-1]
    # What chance reaches can be beyond all bars where trials are few: an arrow at the edge says so.
    end = 1.05 * max(max(bar.high, bar.share) for bar in bars)
    for place, bar in zip(places, bars, strict=True):
        colour, alpha = (BLUE, 1.0) if bar.tells else (FAINT, 0.6)
        axes.barh([place], [bar.share], color=colour, height=0.62, alpha=alpha)
        axes.plot([bar.low, bar.high], [place, place], color=INK, linewidth=1.1)
        if bar.chance < end:
            axes.plot([bar.chance] * 2, [place - 0.42, place + 0.42], color=RED, linewidth=1.8)
        else:
            axes.plot([end], [place], ">", color=RED, markersize=6, markeredgewidth=0, clip_on=False, zorder=5)
    axes.plot([], [], color=INK, linewidth=1.1, label="95 % interval")
    axes.plot([], [], color=RED, linewidth=1.8, label="what chance reaches")
    axes.set_yticks(places, [short(bar.name, 40 if wide else 22) for bar in bars])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(-0.6, len(bars) - 0.4)
    axes.set_xlim(0, end)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("share of the importance")
    _percent_axis(axes.xaxis, [0.0, *(bar.high for bar in bars)])
    _legend(figure, 2)
    return figure


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One parameter's scale: numbers between two bounds, or choices."""

    name: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    step: float | None = None

    @property
    def named(self) -> tuple[str, ...]:
        """The choices that have a label: all of a few, some of many."""
        return self.choices[:: -(-len(self.choices) // MOST_LABELS) or 1]

    @property
    def ticks(self) -> list[float]:
        """Both ends and the middle of a linear scale, or every value of a short grid."""
        if self.step and (self.high - self.low) / self.step <= 4:
            return list(np.arange(self.low, self.high + self.step / 2, self.step))
        middle = (self.low + self.high) / 2
        if self.step:
            middle = self.low + self.step * round((middle - self.low) / self.step)
        return [self.low, middle, self.high]

    def place(self, value: Any) -> float:
        """Where a value stands, 0 to 1."""
        if self.choices:
            return (self.choices.index(str(value)) + 0.5) / len(self.choices)
        low, high, at = self.low, self.high, float(value)
        if self.log:
            low, high, at = np.log(low), np.log(high), np.log(at)
        return float((at - low) / (high - low))


@dataclass(frozen=True, kw_only=True)
class Line:
    """A trial's way across the parallel axes."""

    values: dict[str, Any]
    """By axis; others are not looked at."""
    value: float
    lit: int | None = None
    """Its place among the best few, from 0."""


@styled
def parallel(axes: Sequence[Axis], lines: Sequence[Line], lit_names: Sequence[str], wide: bool) -> Figure:
    """Each trial a line over all parameters and its accuracy: from left to right, on a phone from top to bottom."""
    count = len(axes) + 1
    figure = _figure(wide, 420, 60 + 46 * count)
    panel = figure.subplots()
    values = [line.value for line in lines]
    scale = Axis(name="top-1", low=min(values), high=max(values) if max(values) > min(values) else min(values) + 0.01)
    ways: dict[int | None, list[list[tuple[float, float]]]] = {}
    for line in lines:
        heights = [*(axis.place(line.values[axis.name]) for axis in axes), scale.place(line.value)]
        way = [(float(place), height) if wide else (height, -float(place)) for place, height in enumerate(heights)]
        ways.setdefault(line.lit, []).append(way)
    for lit, found in ways.items():
        colour = FAINT if lit is None else LIT[lit]
        look = {"linewidths": 0.8, "alpha": 0.4, "zorder": 2} if lit is None else {"linewidths": 2.2, "zorder": 6 - lit}
        panel.add_collection(LineCollection(found, colors=colour, **look))
    for lit, name in enumerate(lit_names):
        panel.plot([], [], color=LIT[lit], linewidth=2.2, label=short(name, 28))
    for place, axis in enumerate([*axes, scale]):
        panel.plot(
            *((place, place), (0, 1)) if wide else ((0, 1), (-place, -place)), color=FAINT, linewidth=1, zorder=3
        )
        ends = [(choice, axis.place(choice)) for choice in axis.named] or [
            (_tick(axis, axis.low), 0.0),
            (_tick(axis, axis.high), 1.0),
        ]
        _parallel_names(panel, axis, place, ends, wide)
    if wide:
        panel.set_xlim(-0.5, count - 0.4)
        panel.set_ylim(-0.06, 1.06)
    else:
        panel.set_xlim(-0.02, 1.02)
        panel.set_ylim(-count + 0.62, 0.55)
    panel.axis("off")
    _legend(figure, 5 if wide else 2)
    return figure


def _tick(axis: Axis, value: float) -> str:
    return f"{100 * value:.1f} %" if axis.name == "top-1" else number(value)


def _parallel_names(panel: Axes, axis: Axis, place: int, ends: Sequence[tuple[str, float]], wide: bool) -> None:
    """A parameter's name and its choices or bounds, beside its axis."""
    if wide:
        panel.text(place, -0.07, short(axis.name, 24), rotation=32, ha="right", va="top", fontsize=11, color=INK)
        for text, at in ends:
            end = "bottom" if at == 0 else "top" if at == 1 else "center"
            panel.text(place + 0.08, at, short(text, 15), fontsize=9.5, color=MUTED, va=end, zorder=9, bbox=BEHIND)
    else:
        panel.text(0, -place + 0.16, short(axis.name, 30), fontsize=11, color=INK, zorder=9, bbox=BEHIND)
        for text, at in ends:
            side = "left" if at == 0 else "right" if at == 1 else "center"
            fits = max(6, 46 // len(ends))
            panel.text(
                at,
                -place - 0.12,
                short(text, fits),
                fontsize=9.5,
                color=MUTED,
                ha=side,
                va="top",
                zorder=9,
                bbox=BEHIND,
            )


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A parameter against what was reached."""

    axis: Axis
    dots: Sequence[tuple[Any, float, Outcome]]
    best: tuple[Any, float] | None
    """Of the best trial."""


@styled
def slices(panels: Sequence[Slice], wide: bool) -> Figure:
    """A small panel per parameter: its values, and what the trials with them reached."""
    columns = 4 if wide else 2
    rows = -(-len(panels) // columns)
    figure = _figure(wide, 30 + 190 * rows, 20 + 170 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    rng = np.random.default_rng(0)
    values = [value for panel in panels for _, value, _ in panel.dots]
    for place, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
        axis = panel.axis

        def at(value: Any, axis: Axis = axis, jitter: float = 0.0) -> float:
            return axis.choices.index(str(value)) + jitter if axis.choices else float(value)

        spread = rng.uniform(-0.22, 0.22, len(panel.dots)) * bool(axis.choices)
        dots = [
            Dot(x=at(value, jitter=float(jitter)), y=y, outcome=end)
            for (value, y, end), jitter in zip(panel.dots, spread, strict=True)
        ]
        _scatter(axes, dots)
        if panel.best:
            axes.plot([at(panel.best[0])], [panel.best[1]], "o", color=RED, markersize=8, markeredgewidth=0, zorder=20)
        axes.set_title(short(axis.name, 26 if wide else 22), color=INK, fontsize=11.5)
        if axis.choices:
            crowded = sum(len(short(choice, 16)) for choice in axis.named) > (24 if wide else 20)
            axes.set_xticks([at(choice) for choice in axis.named], [short(choice, 16) for choice in axis.named])
            axes.tick_params(axis="x", labelsize=9, labelrotation=35 if crowded else 0)
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right" if crowded else "center")
                label.set_rotation_mode("anchor" if crowded else "default")
            axes.set_xlim(-0.5, len(axis.choices) - 0.5)
        else:
            if axis.log:
                axes.set_xscale("log")
                axes.set_xlim(axis.low / 1.15, axis.high * 1.15)
                _log_axis(axes.xaxis, axis.low, axis.high, ticks=4)
            else:
                margin = 0.05 * (axis.high - axis.low)
                axes.set_xlim(axis.low - margin, axis.high + margin)
                axes.set_xticks(axis.ticks, list(map(number, axis.ticks)))
            axes.tick_params(axis="x", labelsize=9.5)
        _percent_axis(axes.yaxis, values)
        axes.tick_params(axis="y", labelleft=place % columns == 0)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    return figure


@styled
def price(
    dots: Sequence[Dot], best: tuple[Sequence[float], Sequence[float]], budget: float | None, wide: bool
) -> Figure:
    """What was reached against the FLOPs of one picture, in millions, and the front that nothing beats."""
    figure = _figure(wide, 350, 310)
    axes = figure.subplots()
    _scatter(axes, dots, labelled=True)
    flops = [dot.x for dot in dots] + ([budget] if budget else [])
    if best[0]:
        axes.plot(*best, drawstyle="steps-post", color=RED, linewidth=1.6, zorder=2.5, label="Pareto front")
        axes.plot(*best, "o", color=RED, markersize=6.5, markeredgewidth=0, zorder=11)
    if budget:
        axes.axvline(budget, color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            "budget", (budget, 1), (0, 2), xycoords=("data", "axes fraction"), textcoords="offset points", ha="center",
            color=MUTED, fontsize=11,
        )  # fmt: skip
    low, high = min(flops) / 1.12, max(flops) * 1.12
    _name_dots(axes, [dot for dot in dots if dot.name], float(np.sqrt(low * high)))
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    _log_axis(axes.xaxis, low, high, ticks=8 if wide else 5)
    axes.set_xlabel("million FLOPs for one picture")
    axes.set_ylabel("validation top-1")
    _percent_axis(axes.yaxis, [dot.y for dot in dots])
    _legend(figure, 6 if wide else 2)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes, finalists, workers


@styled
def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str], wide: bool) -> Figure:
    """Truth down, prediction across; blue is right, vermilion wrong, the deeper the larger the share of the true class.

    Cells have their counts up to 15 classes and names up to 40.
    """
    count = len(matrix)
    numbered, named = count <= 15, count <= 40
    side = (min(560, 150 + 38 * count) if numbered else 560) if wide else NARROW
    figure = Figure(figsize=(side / 72, (side if wide else NARROW + 20) / 72), layout="constrained")
    axes = figure.subplots()
    totals = np.maximum(1, np.sum(matrix, axis=1, dtype=float))
    size = (11 if count <= 10 else 9) if wide else (9 if count <= 9 else 6.5)
    if named:
        for truth, row in enumerate(matrix):
            for prediction, cell in enumerate(row):
                if cell:
                    share = float(cell / totals[truth])
                    colour = BLUE if truth == prediction else RED
                    axes.add_patch(
                        Rectangle(
                            (prediction - 0.5, truth - 0.5),
                            1,
                            1,
                            facecolor=colour,
                            alpha=0.12 + 0.88 * share,
                            linewidth=0,
                        )
                    )
                    if numbered:
                        dark = share > 0.5
                        axes.text(
                            prediction, truth, str(cell), ha="center", va="center", fontsize=size,
                            color="#ffffff" if dark else INK,
                        )  # fmt: skip
    else:
        shades = np.zeros((count, count, 4))
        shades[..., :3] = [0xD5 / 255, 0x5E / 255, 0.0]
        shades[np.arange(count), np.arange(count), :3] = [0.0, 0x72 / 255, 0xB2 / 255]
        shares = np.asarray(matrix, dtype=float) / totals[:, None]
        shades[..., 3] = np.where(shares > 0, 0.15 + 0.85 * shares, 0.0)
        axes.imshow(shades, interpolation="nearest")
    length = (18 if count <= 20 else 12) if wide else 11
    ticks = [short(name, length) for name in names] if named else []
    size = (11 if count <= 20 else 7.5) if wide else (9.5 if count <= 12 else 5)
    axes.set_xticks(range(len(ticks)), ticks, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(len(ticks)), ticks, fontsize=size)
    axes.tick_params(labelcolor=INK)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(GRID)
    return figure


@styled
def per_class(
    names: Sequence[str], shares: Sequence[float], intervals: Sequence[tuple[float, float]], wide: bool
) -> Figure:
    """How many of each class are right, with intervals."""
    figure = _figure(wide, 50 + 24 * len(names))
    axes = figure.subplots()
    places = list(range(len(names)))[::-1]
    for place, share, (low, high) in zip(places, shares, intervals, strict=True):
        axes.plot([low, high], [place, place], color=BLUE, linewidth=3, alpha=0.35, solid_capstyle="round")
        axes.plot([share], [place], "o", color=BLUE, markersize=6.5, markeredgewidth=0)
    axes.set_yticks(places, [short(name, 40 if wide else 18) for name in names])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    return figure


@styled
def finalists(rows: Sequence[tuple[str, Sequence[float], float | None]], wide: bool) -> Figure:
    """Each finalist's runs, their mean, and what the study had recorded; rows of name, top-1 of each run, recorded."""
    figure = _figure(wide, 76 + 32 * len(rows), 90 + 46 * len(rows))
    axes = figure.subplots()
    places = list(range(len(rows)))[::-1]
    for place, (name, values, recorded) in zip(places, rows, strict=True):
        first = place == places[0]
        if values:
            axes.plot(values, [place] * len(values), "o", color=BLUE, markersize=6, alpha=0.7, markeredgewidth=0)
            mean = sum(values) / len(values)
            axes.plot([mean] * 2, [place - 0.3, place + 0.3], color=RED if first else INK, linewidth=2.4)
        if recorded is not None:
            axes.plot([recorded], [place], "D", markerfacecolor="none", markeredgecolor=MUTED, markersize=6)
        if not wide:
            axes.annotate(
                short(name, 40), (0, place), (0, 13), xycoords=("axes fraction", "data"), textcoords="offset points",
                color=INK, fontsize=11,
            )  # fmt: skip
    axes.plot([], [], "o", color=BLUE, markersize=6, markeredgewidth=0, label="one seed")
    axes.plot([], [], color=INK, linewidth=2.4, label="mean")
    axes.plot([], [], "D", markerfacecolor="none", markeredgecolor=MUTED, markersize=6, label="in the study")
    axes.set_yticks(places, [short(name, 40) if wide else "" for name, *_ in rows])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(-0.6, len(rows) - (0.4 if wide else 0.2))
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    shown = [value for _, values, recorded in rows for value in [*values, *([recorded] if recorded else [])]]
    _percent_axis(axes.xaxis, shown)
    axes.set_xlabel("validation top-1")
    _legend(figure, 3)
    return figure


@styled
def workers(
    bars: Sequence[tuple[int, float, float, Outcome | None]],
    slots: int,
    seconds: float,
    pauses: Sequence[float],
    wide: bool,
) -> Figure:
    """Who trained when: (slot, begin, end, outcome) in seconds, a row per slot, and where pauses were cut out."""
    figure = _figure(wide, 92 + 26 * slots, 104 + 26 * slots)
    axes = figure.subplots()
    unit, name = (3600.0, "hours") if seconds > 7200 else (60.0, "minutes") if seconds > 180 else (1.0, "seconds")
    gap = seconds / unit / (900 if wide else 380)
    for end in [*Outcome, None]:
        found = [bar for bar in bars if bar[3] is end]
        colour = GRID if end is None else MARKS[end].colour
        for slot in sorted({bar[0] for bar in found}):
            spans = [(a / unit, max((b - a) / unit - gap, gap / 2)) for at, a, b, _ in found if at == slot]
            axes.broken_barh(spans, (slots - 1 - slot - 0.36, 0.72), facecolor=colour, linewidth=0)
        if found:
            axes.plot([], [], "s", color=colour, markersize=8, label="running" if end is None else str(end))
    for pause in pauses:
        axes.axvline(pause / unit, color=INK, linewidth=1.2, linestyle=(0, (2, 2)))
    axes.set_yticks(range(slots), [f"worker {slot}" for slot in reversed(range(slots))])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(-0.6, slots - 0.4)
    axes.set_xlim(0, max(seconds / unit, 1e-6))
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(name)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    _legend(figure, 6 if wide else 3)
    return figure
