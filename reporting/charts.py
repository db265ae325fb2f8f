"""The report's charts: drawn from plain numbers, not from trials, as SVG documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reporting import svg
from reporting.importance import Importance
from reporting.svg import Entry, Plot, Point, Rows
from reporting.words import percent
from tuning.trials import Outcome

HIGHLIGHTS = (svg.RED, svg.BLUE, svg.GREEN, svg.ORANGE, svg.PURPLE)
"""Colours of the best few trials, beginning with the best."""
COLOURS: dict[Outcome | None, str] = {
    Outcome.COMPLETE: svg.BLUE,
    None: svg.SKY,
    Outcome.PRUNED: svg.FAINT,
    Outcome.DIVERGED: svg.PURPLE,
    Outcome.INFEASIBLE: svg.ORANGE,
    Outcome.DUPLICATE: svg.ORANGE,
    Outcome.FAILED: svg.RED,
}
"""Colours of trials by outcome; None is a paused trial. Infeasible trials and duplicates are never drawn."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A trial as a point of a chart."""

    x: float
    y: float
    outcome: Outcome | None
    """How the trial ended; None while it is paused."""
    name: str = ""
    """Name of a baseline, written beside the point."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """An accuracy with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float
    best: bool = False


def accuracies(bars: Sequence[Bar], floor: float) -> str:
    """Draw accuracies with their intervals in rows; `floor` is the accuracy of always predicting the same class."""
    rows = Rows([bar.name for bar in bars], end=1.0, height=38)
    for place, bar in enumerate(bars):
        y, colour = rows.middle(place) + 6, svg.RED if bar.best else svg.BLUE
        rows.elements += [
            svg.line([(rows.across(bar.low), y), (rows.across(bar.high), y)], colour, 5, stroke_opacity="0.35"),
            svg.dot((rows.across(bar.value), y), colour, 5),
            svg.text(percent(bar.value, 1), rows.across(bar.value), y - 9, anchor="middle", colour=colour),
        ]
    x = rows.across(floor)
    rows.elements.append(svg.line([(x, rows.top), (x, rows.bottom)], svg.MUTED, 1.2, stroke_dasharray="4 3"))
    rows.elements.append(svg.text("most common class", x - 14, rows.top - 6))
    return svg.document(svg.WIDTH, rows.bottom + 2 * svg.FONT, rows.elements)


def importances(shares: Sequence[Importance]) -> str:
    """Draw importances as bars with intervals and chance levels; those that stand out from chance are coloured."""
    # With few trials, the chance level can be beyond all bars: an arrow at the edge says so.
    end = 1.05 * max(max(row.high, row.share) for row in shares)
    rows = Rows([row.name for row in shares], end=end, height=26)
    for place, row in enumerate(shares):
        y, width = rows.middle(place), rows.across(row.share) - rows.across(0)
        colour = svg.BLUE if row.tells else svg.FAINT
        rows.elements += [
            svg.element("rect", x=rows.across(0), y=y - 8, width=width, height=16, fill=colour),
            svg.line([(rows.across(row.low), y), (rows.across(row.high), y)], svg.INK, 1.2),
            svg.line([(rows.across(row.chance), y - 11), (rows.across(row.chance), y + 11)], svg.RED, 2)
            if row.chance < end
            else svg.text("▸", rows.across.end + 2, y + svg.FONT / 3, colour=svg.RED),
        ]
    entries = [Entry("95 % interval", svg.INK), Entry("chance level", svg.RED)]
    return svg.document(svg.WIDTH, rows.bottom + 2 * svg.FONT, [*svg.legend(entries, svg.WIDTH)[0], *rows.elements])


def history(dots: Sequence[Dot], best: Sequence[Point]) -> str:
    """Draw the value of each trial, and the best complete value so far."""
    last = max(x for x, _ in [*((one.x, one.y) for one in dots), *best])
    plot = Plot(
        x=(-0.5 - 0.02 * last, last + 0.5 + 0.02 * last),
        y=svg.padded([one.y for one in dots], share=True),
        whole_x=True,
        percent_y=True,
        x_title="trial",
        entries=[*_outcomes(dots), *[Entry("best so far", svg.RED)] * bool(best)],
    )
    plot.steps(best, svg.RED)
    _scatter(plot, dots)
    return plot.document()


def cost(dots: Sequence[Dot], front: Sequence[Point], budget: float | None) -> str:
    """Draw accuracy against forward FLOPs in millions, with the Pareto front."""
    flops = [one.x for one in dots] + ([budget] if budget else [])
    plot = Plot(
        x=(min(flops) / 1.12, max(flops) * 1.12),
        y=svg.padded([one.y for one in dots], share=True),
        log_x=True,
        percent_y=True,
        x_title="MFLOPs per picture",
        entries=[
            *_outcomes(dots),
            *[Entry("Pareto front", svg.RED)] * bool(front),
            *[Entry("budget", svg.FAINT)] * bool(budget),
        ],
    )
    if budget:
        plot.mark(budget)
    plot.steps(front, svg.RED)
    _scatter(plot, dots)
    plot.dots(front, svg.RED, 4)
    return plot.document()


def progress(dots: Sequence[Dot], horizon: int, rungs: Sequence[int]) -> str:
    """Draw the number of epochs of each trial as a column, and the rungs, at which trials pause, as dashed lines."""
    last = max(one.x for one in dots)
    plot = Plot(
        height=240,
        x=(-0.6, last + 0.6),
        y=(0, 1.04 * max(horizon, *(one.y for one in dots))),
        whole_x=True,
        whole_y=True,
        x_title="trial",
        entries=[*_outcomes(dots), *[Entry("rung", svg.MUTED)] * bool(rungs)],
    )
    width = min(14.0, max(0.6, 0.7 * (plot.across(1) - plot.across(0))))
    for one in dots:
        (x, y), (_, floor) = plot.places([(one.x, one.y), (one.x, 0)])
        plot.elements.append(
            svg.element("rect", x=x - width / 2, y=y, width=width, height=floor - y, fill=COLOURS[one.outcome])
        )
    for rung in rungs:
        ends = plot.places([(-0.6, rung), (last + 0.6, rung)])
        plot.elements.append(svg.line(ends, svg.MUTED, 1, stroke_dasharray="4 3"))
    return plot.document()


def _outcomes(dots: Sequence[Dot]) -> list[Entry]:
    there = {one.outcome for one in dots}
    return [Entry(str(end or "paused"), colour, dot=True) for end, colour in COLOURS.items() if end in there]


def _scatter(plot: Plot, dots: Sequence[Dot]) -> None:
    """Draw the trials by outcome, complete ones on top, and name the baselines."""
    for end in reversed(COLOURS):
        plot.dots(
            [(one.x, one.y) for one in dots if one.outcome is end], COLOURS[end], 4 if end is Outcome.COMPLETE else 3
        )
    under = None
    for one in sorted((one for one in dots if one.name), key=lambda one: -one.y):
        under = plot.label(one.name, (one.x, one.y), svg.GREEN, under=under)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A trial's validation top-1 by epoch."""

    points: Sequence[Point]
    outcome: Outcome | None
    """How the trial ended; None while it is paused."""
    name: str = ""
    """Name of a highlighted curve, for the legend."""


def curves(highlighted: Sequence[Curve], others: Sequence[Curve], rungs: Sequence[int] = ()) -> str:
    """Draw learning curves: the best few in colour, all others dimmed; a dot marks those that ended early.

    Dashed lines mark the rungs, the epochs after which each trial pauses.
    """
    every = [*highlighted, *others]
    early = [curve.points[-1] for curve in others if curve.outcome is not Outcome.COMPLETE]
    last = max(x for curve in every for x, _ in curve.points)
    plot = Plot(
        height=330,
        x=(1, last) if last > 1 else (0.5, 1.5),
        y=svg.padded([y for curve in every for _, y in curve.points], share=True),
        whole_x=True,
        percent_y=True,
        x_title="epoch",
        entries=[
            *(Entry(curve.name, colour) for colour, curve in zip(HIGHLIGHTS, highlighted, strict=False)),
            *[Entry("stopped earlier", svg.FAINT, dot=True)] * bool(early),
        ],
    )
    for rung in rungs:
        if rung <= last:
            plot.mark(rung)
    for curve in others:
        plot.line(curve.points, svg.FAINT, 1, stroke_opacity="0.55")
    plot.dots(early, svg.FAINT, 2.5)
    for colour, curve in reversed(list(zip(HIGHLIGHTS, highlighted, strict=False))):
        plot.line(curve.points, colour, 2.5)
    return plot.document()
