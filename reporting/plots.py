"""The interactive pages: plotly figures under `plots/`, which share one copy of plotly's script (4.8 MB).

trials -> a figure each for history, curves, importances, parallel, slices and cost -> an HTML page each, which opens
offline beside `plotly.min.js`. plotly reads `<b>` and `&amp;` in every label as markup, so all names are escaped twice:
once for plotly, once for the page.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import cache
from math import log10
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import plotly.graph_objects as go
import plotly.io
import plotly.offline
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial
from plotly.subplots import make_subplots

from reporting import analysis
from reporting.charts import LIT, MARKS, log_ticks
from reporting.drawing import FAINT, RED, number, short
from reporting.importance import Importances
from tuning.folder import make_folder, remove_file, replace_file
from tuning.storage import Outcome

HERE = Path(__file__).resolve().parent
SCRIPT = "plotly.min.js"
MOST_CURVES, MOST_LINES, MOST_POINTS = 500, 1000, 1500
"""Trials of a page at most: a browser follows no more, and their figures tell no more."""
SYMBOLS = {
    Outcome.COMPLETE: "circle",
    Outcome.PRUNED: "circle",
    Outcome.DIVERGED: "x",
    Outcome.INFEASIBLE: "square-open",
    Outcome.DUPLICATE: "diamond-open",
    Outcome.FAILED: "triangle-down",
}


def write(trials: Sequence[FrozenTrial], folder: Path, *, name: str, important: Importances | None) -> list[Path]:
    """Writes the pages that the trials give, and the script, each whole or not at all. Removes pages of an earlier time
    that they no longer give. Returns the pages.

    `important`: as the report shows them, so that both tell the same numbers.
    """
    make_folder(folder)
    ended = analysis.ranked(trials)
    figures = {
        "history": ("What each trial reached", history(ended, trials), len(ended)),
        "curves": ("Learning curves", curves(analysis.sampled(trials, MOST_CURVES)), MOST_CURVES),
        "importances": ("Importances", importances(important), len(ended)),
        "parallel": ("Whole configurations", parallel(analysis.sampled(trials, MOST_LINES)), MOST_LINES),
        "slices": (
            "Each parameter against what was reached",
            slices(analysis.sampled(trials, MOST_POINTS)),
            MOST_POINTS,
        ),
        "cost": ("Accuracy against FLOPs", cost(trials), MOST_POINTS),
    }
    there = {key: (title, figure, most) for key, (title, figure, most) in figures.items() if figure is not None}
    for key in figures.keys() - there.keys():
        remove_file(folder / f"{key}.html")
    if not there:
        return []
    script = folder / SCRIPT
    text = plotly.offline.get_plotlyjs()
    if not script.exists() or script.stat().st_size != len(text.encode()):
        replace_file(script, lambda path: path.write_text(text, encoding="utf-8"))
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    ).get_template("plot.html.j2")
    pages: list[Path] = []
    for key, (title, figure, most) in there.items():
        page = template.render(
            name=name,
            title=title,
            others=[(other, words) for other, (words, *_) in there.items()],
            here=key,
            script=SCRIPT,
            note=f"{most:,} of {len(ended):,} trials: the best, and others by lot." if most < len(ended) else "",
            figure=markupsafe.Markup(_element(figure)),
        )
        pages.append(folder / f"{key}.html")
        replace_file(pages[-1], lambda path, page=page: path.write_text(page, encoding="utf-8"))
    return pages


def _element(figure: go.Figure) -> str:
    """The figure's element and the script that fills it."""
    figure.update_layout(
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "size": 13},
        margin_t=60,
        modebar={"orientation": "v"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"align": "left"},
    )
    return plotly.io.to_html(
        figure,
        include_plotlyjs=False,
        full_html=False,
        div_id="figure",
        default_height="calc(100vh - 8rem)",
        config={"displaylogo": False, "responsive": True},
    )


@cache
def _text(value: object, length: int = 60) -> str:
    """A name as plotly shows it: as it is written."""
    return html.escape(short(str(value), length), quote=False)


def _hover(trial: FrozenTrial) -> str:
    """What a point says when it is pointed at."""
    known = trial.user_attrs.get("known_good")
    lines = [
        f"trial {trial.number}" + (f": {_text(known)}" if known else ""),
        f"{100 * (analysis.reached(trial) or 0.0):.2f} %, {analysis.outcome(trial)}",
    ]
    for name, value in sorted(trial.params.items()):
        lines.append(f"{_text(name, 30)} = {number(value) if isinstance(value, int | float) else _text(value, 40)}")
    return "<br>".join(lines)


def _points(trials: Sequence[FrozenTrial], x: Sequence[Any], *, panel: bool = False) -> list[go.Scatter]:
    """A trace per outcome, the frequent ones below. A panel's points tell less when they are pointed at."""
    places: dict[Outcome | None, list[int]] = {}
    for place, trial in enumerate(trials):
        places.setdefault(analysis.outcome(trial), []).append(place)
    return [
        go.Scatter(
            x=[x[place] for place in places[end]],
            y=[analysis.reached(trials[place]) for place in places[end]],
            text=None if panel else [_hover(trials[place]) for place in places[end]],
            customdata=[trials[place].number for place in places[end]],
            hovertemplate="trial %{customdata}: %{y:.1%}<extra></extra>" if panel else "%{text}<extra></extra>",
            mode="markers",
            marker={"color": MARKS[end].colour, "symbol": SYMBOLS[end], "size": 1.5 * MARKS[end].size},
            name=str(end),
            legendgroup=str(end),
            showlegend=not panel,
        )
        for end in reversed(Outcome)
        if end in places
    ]


def _log_axis(low: float, high: float, most: int) -> dict[str, Any]:
    ticks = log_ticks(low, high, most)
    return {"type": "log", "tickvals": ticks, "ticktext": [number(tick) for tick in ticks]}


def history(ended: Sequence[FrozenTrial], trials: Sequence[FrozenTrial]) -> go.Figure | None:
    """What each trial reached, and the best complete value so far."""
    if not ended:
        return None
    numbers, values = analysis.best_so_far(trials)
    figure = go.Figure(_points(ended, [trial.number for trial in ended]))
    figure.add_scatter(
        x=numbers, y=values, mode="lines", line={"color": RED, "shape": "hv"}, name="best so far", hoverinfo="skip"
    )
    figure.update_xaxes(title="trial")
    figure.update_yaxes(title="validation top-1", tickformat=".0%")
    return figure


def curves(ended: Sequence[FrozenTrial]) -> go.Figure | None:
    """Every trial's validation top-1 by epoch, the best few lit."""
    drawn = [trial for trial in ended if trial.intermediate_values]
    if not drawn:
        return None
    figure = go.Figure()
    gray: dict[str, list[Any]] = {"x": [], "y": [], "customdata": []}
    for trial in drawn[len(LIT) :]:
        epochs, values = analysis.curve(trial)
        gray["x"] += [*epochs, None]
        gray["y"] += [*values, None]
        gray["customdata"] += [f"trial {trial.number}, {analysis.outcome(trial)}"] * (len(epochs) + 1)
    hover = "%{customdata}<br>epoch %{x}: %{y:.1%}<extra></extra>"
    if gray["x"]:
        figure.add_scatter(
            **gray, mode="lines", line={"color": FAINT, "width": 1}, opacity=0.6, hovertemplate=hover, name="others"
        )
    for colour, trial in reversed(list(zip(LIT, drawn, strict=False))):
        epochs, values = analysis.curve(trial)
        figure.add_scatter(
            x=epochs,
            y=values,
            customdata=[f"trial {trial.number}, {analysis.outcome(trial)}"] * len(epochs),
            mode="lines+markers",
            line={"color": colour, "width": 2.5},
            name=f"trial {trial.number}",
            hovertemplate=hover,
        )
    figure.update_xaxes(title="epoch")
    figure.update_yaxes(title="validation top-1", tickformat=".0%")
    return figure


def importances(found: Importances | None) -> go.Figure | None:
    """Shares with their intervals, and what chance reaches."""
    if found is None:
        return None
    rows = found.rows[::-1]
    names = [_text(row.name) for row in rows]
    end = 1.05 * max(row.high for row in rows)
    figure = go.Figure()
    figure.add_bar(
        y=names,
        x=[row.share for row in rows],
        orientation="h",
        marker={"color": [MARKS[Outcome.COMPLETE].colour if row.tells else FAINT for row in rows]},
        error_x={
            "type": "data",
            "array": [row.high - row.share for row in rows],
            "arrayminus": [row.share - row.low for row in rows],
            "thickness": 1.2,
        },
        customdata=[row.used for row in rows],
        hovertemplate="%{y}: %{x:.1%} of the importance, in %{customdata} trials<extra></extra>",
        name="share, with its 95 % interval",
    )
    figure.add_scatter(
        y=names,
        x=[min(row.chance, end) for row in rows],
        customdata=[row.chance for row in rows],
        mode="markers",
        marker={
            "symbol": ["line-ns" if row.chance < end else "triangle-right" for row in rows],
            "size": [18 if row.chance < end else 9 for row in rows],
            "color": RED,
            "line": {"width": 2.5, "color": RED},
        },
        hovertemplate="chance reaches %{customdata:.1%}<extra></extra>",
        name="what chance reaches",
    )
    figure.update_xaxes(title="share of the importance", tickformat=".0%", range=[0, 1.02 * end])
    figure.update_yaxes(automargin=True)
    return figure


def parallel(ended: Sequence[FrozenTrial]) -> go.Figure | None:
    """Each trial a line over the parameters that all of them have, and its accuracy."""
    space, rows = analysis.coordinates(ended)
    if len(ended) < 2 or not space:
        return None
    values = [analysis.reached(trial) or 0.0 for trial in ended]
    dimensions: list[dict[str, Any]] = []
    for name, distribution in space.items():
        column = [row[name] for row in rows]
        dimension: dict[str, Any] = {"label": _text(name, 24)}
        if isinstance(distribution, CategoricalDistribution):
            choices = list(map(str, distribution.choices))
            dimension |= {
                "values": [choices.index(str(value)) for value in column],
                "tickvals": list(range(len(choices))),
                "ticktext": [_text(choice, 16) for choice in choices],
                "range": [0, len(choices) - 1],
            }
        elif distribution.log:
            logs = [log10(value) for value in column]
            ticks = [distribution.low, (distribution.low * distribution.high) ** 0.5, distribution.high]
            dimension |= {
                "values": logs,
                "tickvals": list(map(log10, ticks)),
                "ticktext": [number(tick) for tick in ticks],
                "range": [log10(distribution.low), log10(distribution.high)],
            }
        else:
            dimension |= {"values": column, "range": [distribution.low, distribution.high]}
        dimensions.append(dimension)
    dimensions.append({"label": "top-1", "values": values, "tickformat": ".0%"})
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            line={"color": values, "colorscale": "Cividis", "showscale": False},
            labelangle=-25,
            labelside="bottom",
        )
    )
    # Parallel coordinates write beyond their axes, which plotly does not count.
    figure.update_layout(margin={"l": 120, "r": 110, "b": 120})
    return figure


def slices(ended: Sequence[FrozenTrial]) -> go.Figure | None:
    """A panel per parameter: its values, and what the trials with them reached."""
    space = analysis.parameters(ended)
    if not space:
        return None
    columns = min(4, len(space))
    rows = -(-len(space) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_yaxes=True,
        subplot_titles=[_text(name, 30) for name in space],
        horizontal_spacing=0.03,
        vertical_spacing=min(0.12, 0.5 / rows),
    )
    for place, (name, distribution) in enumerate(space.items()):
        chosen = [trial for trial in ended if name in trial.params]
        choices = isinstance(distribution, CategoricalDistribution)
        x = [_text(trial.params[name], 20) if choices else trial.params[name] for trial in chosen]
        row, column = place // columns + 1, place % columns + 1
        for trace in _points(chosen, x, panel=True):
            figure.add_trace(trace, row=row, col=column)
        if choices:
            order = [_text(choice, 20) for choice in distribution.choices]
            figure.update_xaxes(type="category", categoryorder="array", categoryarray=order, row=row, col=column)
        elif distribution.log:
            figure.update_xaxes(**_log_axis(distribution.low, distribution.high, 4), row=row, col=column)
    figure.update_yaxes(tickformat=".0%")
    figure.update_layout(height=240 * rows)
    return figure


def cost(trials: Sequence[FrozenTrial]) -> go.Figure | None:
    """What was reached against the FLOPs of one picture, with the front that nothing beats."""
    priced = [trial for trial in analysis.sampled(trials, MOST_POINTS) if trial.user_attrs.get("flops")]
    if not priced:
        return None
    front = analysis.front(trials)
    figure = go.Figure(_points(priced, [trial.user_attrs["flops"] / 1e6 for trial in priced]))
    figure.add_scatter(
        x=[trial.user_attrs["flops"] / 1e6 for trial in front],
        y=[trial.value for trial in front],
        mode="lines",
        line={"color": RED, "shape": "hv"},
        name="Pareto front",
        hoverinfo="skip",
    )
    flops = [trial.user_attrs["flops"] / 1e6 for trial in priced]
    figure.update_xaxes(title="million FLOPs for one picture", **_log_axis(min(flops), max(flops), 12))
    figure.update_yaxes(title="validation top-1", tickformat=".0%")
    return figure
