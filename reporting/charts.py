"""The report's charts: plain numbers in, an SVG document out. No function here knows a trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reporting.importance import Importance
from reporting.svg import (
    BLUE,
    FAINT,
    FONT,
    GREEN,
    GRID,
    INK,
    LETTER,
    MUTED,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    WIDTH,
    Entry,
    Plot,
    Point,
    Scale,
    columns,
    document,
    dot,
    element,
    legend,
    line,
    padded,
    text,
)
from reporting.words import percent, short
from tuning.trials import Outcome

HIGHLIGHTS = (RED, BLUE, GREEN, ORANGE, PURPLE)
"""Colours of the best few trials, from the best on."""
COLOURS = {
    Outcome.COMPLETE: BLUE,
    Outcome.PRUNED: FAINT,
    Outcome.DIVERGED: PURPLE,
    Outcome.INFEASIBLE: ORANGE,
    Outcome.DUPLICATE: SKY,
    Outcome.FAILED: RED,
}


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A trial as a point."""

    x: float
    y: float
    outcome: Outcome
    name: str = ""
    """The name of a baseline, written beside it."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """An accuracy with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float
    best: bool = False


def accuracies(bars: Sequence[Bar], floor: float) -> str:
    """Draw accuracies with their intervals below each other; `floor` is the accuracy of always naming one class."""
    rows = Rows([bar.name for bar in bars], end=1.0, height=38)
    for place, bar in enumerate(bars):
        y, colour = rows.middle(place) + 6, RED if bar.best else BLUE
        rows.elements += [
            line([(rows.across(bar.low), y), (rows.across(bar.high), y)], colour, 5, stroke_opacity="0.35"),
            dot((rows.across(bar.value), y), colour, 5),
            text(percent(bar.value, 1), rows.across(bar.value), y - 9, anchor="middle", colour=colour),
        ]
    x = rows.across(floor)
    rows.elements.append(line([(x, rows.top), (x, rows.bottom)], MUTED, 1.2, stroke_dasharray="4 3"))
    rows.elements.append(text("commonest class", x - 14, rows.top - 6))
    return document(WIDTH, rows.bottom + 2 * FONT, rows.elements)


def importances(shares: Sequence[Importance]) -> str:
    """Draw bars with intervals and what chance reaches; in colour where a parameter stands out from chance."""
    # What chance reaches can be beyond all bars where trials are few: an arrow at the edge says so.
    end = 1.05 * max(max(row.high, row.share) for row in shares)
    rows = Rows([row.name for row in shares], end=end, height=26)
    for place, row in enumerate(shares):
        y, width = rows.middle(place), rows.across(row.share) - rows.across(0)
        rows.elements += [
            element("rect", x=rows.across(0), y=y - 8, width=width, height=16, fill=BLUE if row.tells else FAINT),
            line([(rows.across(row.low), y), (rows.across(row.high), y)], INK, 1.2),
            line([(rows.across(row.chance), y - 11), (rows.across(row.chance), y + 11)], RED, 2)
            if row.chance < end
            else text("▸", rows.across.end + 2, y + FONT / 3, colour=RED),
        ]
    entries = [Entry("95 % interval", INK), Entry("what chance reaches", RED)]
    return document(WIDTH, rows.bottom + 2 * FONT, [*legend(entries, WIDTH)[0], *rows.elements])


class Rows:
    """Names below each other, with a scale across that begins at 0, to which each row's marks are added."""

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
        """Return the pixel of a row's middle."""
        return self.top + (place + 0.5) * self._height


def history(dots: Sequence[Dot], best: Sequence[Point]) -> str:
    """Draw what each trial reached, and the best complete value so far."""
    last = max(x for x, _ in [*((one.x, one.y) for one in dots), *best])
    plot = Plot(
        x=(-0.5 - 0.02 * last, last + 0.5 + 0.02 * last),
        y=padded([one.y for one in dots], share=True),
        whole_x=True,
        percent_y=True,
        x_title="trial",
        entries=[*_outcomes(dots), *[Entry("best so far", RED)] * bool(best)],
    )
    plot.steps(best, RED)
    _scatter(plot, dots)
    return document(plot.width, plot.height, plot.elements)


def cost(dots: Sequence[Dot], front: Sequence[Point], budget: float | None) -> str:
    """Draw what was reached against the FLOPs of a forward pass, in millions, and the front that nothing beats."""
    flops = [one.x for one in dots] + ([budget] if budget else [])
    plot = Plot(
        x=(min(flops) / 1.12, max(flops) * 1.12),
        y=padded([one.y for one in dots], share=True),
        log_x=True,
        percent_y=True,
        x_title="MFLOPs per image",
        entries=[
            *_outcomes(dots),
            *[Entry("Pareto front", RED)] * bool(front),
            *[Entry("budget", FAINT)] * bool(budget),
        ],
    )
    if budget:
        plot.mark(budget)
    plot.steps(front, RED)
    _scatter(plot, dots)
    plot.dots(front, RED, 4)
    return document(plot.width, plot.height, plot.elements)


def _outcomes(dots: Sequence[Dot]) -> list[Entry]:
    there = {one.outcome for one in dots}
    return [Entry(str(end), COLOURS[end], dot=True) for end in Outcome if end in there]


def _scatter(plot: Plot, dots: Sequence[Dot]) -> None:
    """Draw the trials, one outcome after the other, complete ones on top; baselines with their names."""
    for end in reversed(Outcome):
        plot.dots(
            [(one.x, one.y) for one in dots if one.outcome is end], COLOURS[end], 4 if end is Outcome.COMPLETE else 3
        )
    named = sorted((one for one in dots if one.name), key=lambda one: -one.y)
    for place, one in enumerate(named):
        plot.label(one.name, (one.x, one.y), GREEN, below=place > 0)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A trial's validation top-1 by epoch."""

    points: Sequence[Point]
    outcome: Outcome
    name: str = ""
    """Name of a highlighted curve, for the legend."""


def curves(highlighted: Sequence[Curve], others: Sequence[Curve]) -> str:
    """Draw learning curves: the best few in colour, all others dimmed, those that ended early with a dot."""
    every = [*highlighted, *others]
    early = [curve.points[-1] for curve in others if curve.outcome is not Outcome.COMPLETE]
    last = max(x for curve in every for x, _ in curve.points)
    plot = Plot(
        height=330,
        x=(1, last) if last > 1 else (0.5, 1.5),
        y=padded([y for curve in every for _, y in curve.points], share=True),
        whole_x=True,
        percent_y=True,
        x_title="epoch",
        entries=[
            *(Entry(curve.name, colour) for colour, curve in zip(HIGHLIGHTS, highlighted, strict=False)),
            *[Entry("pruned or diverged", FAINT, dot=True)] * bool(early),
        ],
    )
    for curve in others:
        plot.line(curve.points, FAINT, 1, stroke_opacity="0.55")
    plot.dots(early, FAINT, 2.5)
    for colour, curve in reversed(list(zip(HIGHLIGHTS, highlighted, strict=False))):
        plot.line(curve.points, colour, 2.5)
    return document(plot.width, plot.height, plot.elements)
