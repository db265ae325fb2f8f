"""The interactive plots: pages under `plots/` that open offline and share one copy of plotly's script (4.8 MB).

trials -> `as_shown`, in the form that Optuna's own plots accept -> a plotly figure per page

plotly reads `<b>` and `&amp;` in every label as markup, so names are escaped twice: once for plotly, once for the page.
"""

from __future__ import annotations

import copy
import html
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

import jinja2
import markupsafe
import optuna.visualization as by_optuna
import plotly.graph_objects as go
import plotly.io
import plotly.offline
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from reporting import analysis
from reporting.charts import COLOURS
from reporting.importance import Importances, StudyOf
from reporting.svg import BLUE, FAINT, GREEN, ORANGE, PURPLE, RED, SKY, log_ticks
from reporting.words import number, short, trial_name
from tuning.folder import make_folder, remove_file, replace_file
from tuning.trials import Outcome, Trial

HERE = Path(__file__).resolve().parent
SCRIPT = "plotly.min.js"
MOST_LINES, MOST_POINTS = 300, 1000
"""Largest number of trials drawn as lines, and as points: more would slow down a browser and show nothing new."""
AXES, PAIRS = 12, 3
"""Number of parameters in the parallel coordinates, and in the pairs: the most important ones."""
TOP1 = "validation top-1"
TITLES = {
    "history": "Validation top-1 of each trial",
    "curves": "Learning curves",
    "importances": "Importances",
    "slices": "Each parameter",
    "parallel": "Parallel coordinates",
    "rank": "Pairs of parameters",
    "cost": "Accuracy against FLOPs",
    "timeline": "Timeline",
}
"""Titles of the pages, by page name."""
NAMES = {
    "Best Value": "best so far",
    **dict.fromkeys((TOP1, "Feasible", "COMPLETE"), "complete"),
    **dict.fromkeys(("Infeasible Trial", "Infeasible", "INFEASIBLE"), "stopped earlier"),
}
"""Optuna's names of traces, and what they show here."""


def write(found: Mapping[str, go.Figure], folder: Path, *, name: str, trials: int) -> list[Path]:
    """Write a page for each of the `figures`, and the script; remove earlier pages that no longer have a figure.

    `trials` is the number of trained trials. Returns the pages. Raises StudyError if they cannot be written.
    """
    make_folder(folder)
    for key in TITLES.keys() - found.keys():
        remove_file(folder / f"{key}.html")
    if not found:
        return []
    script, text = folder / SCRIPT, plotly.offline.get_plotlyjs()
    if not script.exists() or script.stat().st_size != len(text.encode()):
        replace_file(script, lambda path: path.write_text(text, encoding="utf-8"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    pages: list[Path] = []
    for key, figure in found.items():
        most = trials if key == "importances" else MOST_LINES if key in ("curves", "parallel") else MOST_POINTS
        page = environment.get_template("plot.html.j2").render(
            name=name,
            others=[(other, TITLES[other]) for other in found],
            here=key,
            title=TITLES[key],
            script=SCRIPT,
            note=f"{most:,} of {trials:,} trials: the best and a random sample of the others." if most < trials else "",
            figure=markupsafe.Markup(_element(figure)),
        )
        pages.append(folder / f"{key}.html")
        replace_file(pages[-1], lambda path, page=page: path.write_text(page, encoding="utf-8"))
    return pages


def figures(trials: Sequence[Trial], important: Importances | None) -> dict[str, go.Figure]:
    """Return the figures that can be drawn from these trials, by the name of their page."""
    many = analysis.sampled(trials, MOST_POINTS)
    if not many:
        return {}
    points, lines = (StudyOf(as_shown(some)) for some in (many, analysis.sampled(trials, MOST_LINES)))
    # Optuna 5.0 loses grey points of categorical parameters in its slice plot.
    plain = StudyOf(as_shown(many, grey=False))
    ranked = [row.name for row in important.rows] if important else []
    varied = [_text(name) for name in dict.fromkeys([*ranked, *analysis.parameters(many)])]
    found: dict[str, go.Figure | None] = {
        "history": by_optuna.plot_optimization_history(numbered(points), target_name=TOP1),
        "curves": by_optuna.plot_intermediate_values(lines) if any(trial.epochs for trial in many) else None,
        "importances": importances(important),
        "slices": in_rows(by_optuna.plot_slice(plain, varied, target_name=TOP1), len(varied)) if varied else None,
        "parallel": by_optuna.plot_parallel_coordinate(lines, varied[:AXES], target_name=TOP1) if varied else None,
        "rank": by_optuna.plot_rank(points, varied[:PAIRS], target_name=TOP1) if len(varied) > 1 else None,
        "cost": cost(trials),
        "timeline": by_optuna.plot_timeline(StudyOf(_in_slots(many))),
    }
    there = {key: figure for key, figure in found.items() if figure is not None}
    for key, figure in there.items():
        figure.update_layout(title=None)
        for trace in cast("tuple[Any, ...]", figure.data):
            trace.name = NAMES.get(trace.name, trace.name)
            if key == "history":
                trace.update(showlegend=True, line_shape="hv")
            if key == "rank" and trace.hovertext:  # each point would name every parameter, in each of nine panels
                ends = [(said.partition("<br>")[0], said.rpartition("<br>")[2]) for said in trace.hovertext]
                trace.hovertext = ["<br>".join(both) for both in ends]
        if key in ("history", "curves", "slices"):
            figure.update_yaxes(tickformat=".0%")
    if "curves" in there:
        there["curves"].update_xaxes(title="epoch").update_yaxes(title=TOP1)
    return there


def in_rows(figure: go.Figure, panels: int) -> go.Figure:
    """Return Optuna's slice plot with its panels in rows of four instead of one long row."""
    columns = min(4, panels)
    rows = -(-panels // columns)
    for place in range(panels):
        (row, column), axis = divmod(place, columns), "" if place == 0 else place + 1
        figure.layout[f"xaxis{axis}"].domain = [(column + 0.05) / columns, (column + 0.95) / columns]
        figure.layout[f"yaxis{axis}"].domain = [1 - (row + 0.58) / rows, 1 - row / rows]
        figure.layout[f"yaxis{axis}"].showticklabels = column == 0
    return figure.update_layout(width=None, height=280 * rows)


def as_shown(trials: Sequence[Trial], *, grey: bool = True) -> list[FrozenTrial]:
    """Return trained trials in the form that Optuna's plots accept: complete, with a value, and with escaped names.

    With `grey`, those that ended early violate a constraint, which makes Optuna draw them in grey.
    """
    made: list[FrozenTrial] = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        shown = create_trial(
            value=trial.reached,
            params={_text(name): _choice(value) for name, value in trial.params.items()},
            distributions={
                _text(name): CategoricalDistribution(list(map(_choice, distribution.choices)))
                if isinstance(distribution, CategoricalDistribution)
                else distribution
                for name, distribution in trial.distributions.items()
            },
            intermediate_values={epoch + 1: value for epoch, value in trial.curve.items()},
            user_attrs={"outcome": str(trial.outcome), "baseline": trial.baseline and _text(trial.baseline)},
            constraints={"trained to its end": float(trial.value is None)} if grey else None,
        )
        shown.number = trial.number
        shown.datetime_start, shown.datetime_complete = trial.started, trial.ended
        made.append(shown)
    return made


def _in_slots(trials: Sequence[Trial]) -> list[FrozenTrial]:
    """Return each trial as often as it was in a slot, with the times of its beginning and end there."""
    spans, made = analysis.in_slots(trials), list[FrozenTrial]()
    for shown in as_shown(trials):
        for begin, end in spans.get(shown.number, []):
            part = copy.copy(shown)
            part.datetime_start, part.datetime_complete = map(datetime.fromtimestamp, (begin, end))
            made.append(part)
    return made


def numbered(study: StudyOf) -> StudyOf:
    """Return the study with a failed trial for each missing number, because Optuna's history plot accepts no gaps."""
    there = {trial.number: trial for trial in study.get_trials()}
    return StudyOf([there.get(number) or _failed(number) for number in range(max(there) + 1)])


def _failed(number: int) -> FrozenTrial:
    trial = create_trial(state=TrialState.FAIL)
    trial.number = number
    return trial


def importances(found: Importances | None) -> go.Figure | None:
    """Return a figure of the importances with their intervals and chance levels; None if there are none."""
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
        marker={"color": [BLUE if row.tells else FAINT for row in rows]},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [row.high - row.share for row in rows],
            "arrayminus": [row.share - row.low for row in rows],
        },
        hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        name="share",
    )
    figure.add_scatter(
        y=names,
        x=[min(row.chance, end) for row in rows],
        customdata=[row.chance for row in rows],
        mode="markers",
        marker={"symbol": "line-ns", "size": 16, "line": {"color": RED, "width": 2.5}},
        hovertemplate="chance level %{customdata:.1%}<extra></extra>",
        name="chance level",
    )
    figure.update_xaxes(title="share of the importance", tickformat=".0%", range=[0, 1.02 * end])
    figure.update_yaxes(type="category", automargin=True)
    return figure


def cost(trials: Sequence[Trial]) -> go.Figure | None:
    """Return a figure of accuracy against forward FLOPs, with the Pareto front."""
    priced = [trial for trial in analysis.sampled(trials, MOST_POINTS) if trial.flops]
    if not priced:
        return None
    figure = go.Figure()
    for end in reversed(COLOURS):
        found = [trial for trial in priced if trial.outcome is end]
        figure.add_scatter(
            x=[(trial.flops or 0) / 1e6 for trial in found],
            y=[trial.reached for trial in found],
            text=[_text(trial_name(trial)) for trial in found],
            hovertemplate="%{text}: %{y:.1%}, %{x:.3g} MFLOPs<extra></extra>",
            mode="markers",
            marker={"color": COLOURS[end], "size": 9 if end is Outcome.COMPLETE else 7},
            name=str(end or "paused"),
            visible=bool(found),
        )
    front = analysis.front(trials)
    figure.add_scatter(
        x=[(trial.flops or 0) / 1e6 for trial in front],
        y=[trial.value for trial in front],
        mode="lines",
        line={"color": RED, "shape": "hv"},
        name="Pareto front",
        hoverinfo="skip",
    )
    flops = [(trial.flops or 0) / 1e6 for trial in priced]
    ticks = log_ticks(min(flops), max(flops), 12)
    figure.update_xaxes(
        title="MFLOPs per picture", type="log", tickvals=ticks, ticktext=[number(tick) for tick in ticks]
    )
    figure.update_yaxes(title=TOP1, tickformat=".0%")
    return figure


@cache
def _text(value: object) -> str:
    """Escape a name so that plotly shows it unchanged."""
    return html.escape(short(str(value), 40), quote=False)


def _choice(value: Any) -> Any:
    """Return a parameter's value, escaped if it is text."""
    return _text(value) if isinstance(value, str) else value


def _element(figure: go.Figure) -> str:
    """Return the figure's HTML element and the script that fills it."""
    figure.update_layout(
        template="plotly_white",
        colorway=[BLUE, RED, GREEN, ORANGE, PURPLE, SKY],
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
