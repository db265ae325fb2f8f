"""The interactive pages: one script for all of them, the trials' own numbers, and names that are text."""

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
import pytest

from reporting import analysis, plots
from reporting.importance import importances
from tests.stress.made_up_studies import made_up_study, made_up_trials
from tuning.trials import Trial, read_trials

HOSTILE = '</script><script>alert("1")</script><b>bold</b>'


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    found = made_up_trials(60)
    for trial in found:
        trial.params["pooling"] = HOSTILE
        trial.distributions = trial.distributions | {
            "pooling": optuna.distributions.CategoricalDistribution([HOSTILE, "x"])
        }
        if "baseline" in trial.user_attrs:
            trial.user_attrs = trial.user_attrs | {"baseline": HOSTILE}
    return read_trials(made_up_study(found))


@pytest.fixture(scope="module")
def figures(trials: list[Trial]) -> dict[str, go.Figure]:
    return plots.figures(trials, importances(trials, resamples=20))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, figures: dict[str, go.Figure]) -> Path:
    folder = tmp_path_factory.mktemp("plots") / "plots"
    plots.write(figures, folder, name=HOSTILE, trials=60)
    return folder


def numbers(values: Any) -> list[Any]:
    """Return a trace's values as plotly.js gets them: a list, or packed."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"]).tolist()
    return list(values)


def traces(figure: go.Figure | None) -> list[dict[str, Any]]:
    assert figure is not None
    return json.loads(figure.to_json() or "")["data"]


def test_all_pages_share_one_script(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {*(f"{key}.html" for key in plots.TITLES), "plotly.min.js"}
    assert (folder / "plotly.min.js").stat().st_size > 1_000_000
    for key in plots.TITLES:
        text = (folder / f"{key}.html").read_text(encoding="utf-8")
        assert re.findall(r'<script[^>]* src="([^"]*)"', text) == ["plotly.min.js"]
        assert len(text) < 1_000_000
        assert not re.search(r'(?:src|href)="(?:https?:)?//', text)


def test_pages_link_to_each_other_and_back(folder: Path) -> None:
    links = re.findall(r'<a href="([^"]+)"', (folder / "cost.html").read_text(encoding="utf-8"))
    assert links == ["../report.html", *(f"{key}.html" for key in plots.TITLES)]


def test_hostile_names_end_no_script_and_are_no_markup(folder: Path) -> None:
    for key in plots.TITLES:
        text = (folder / f"{key}.html").read_text(encoding="utf-8")
        assert "<b>bold" not in text
        assert "</script><script>alert" not in text
        # plotly's own two, and the shared one.
        assert text.count("<script") == text.count("</script>") <= 4


def test_the_script_is_written_once_and_pages_without_a_figure_are_removed(
    folder: Path, figures: dict[str, go.Figure]
) -> None:
    before = (folder / "plotly.min.js").stat().st_mtime_ns
    plots.write({"cost": figures["cost"]}, folder, name="again", trials=60)
    assert (folder / "plotly.min.js").stat().st_mtime_ns == before
    assert sorted(path.name for path in folder.iterdir()) == ["cost.html", "plotly.min.js"]
    plots.write(figures, folder, name=HOSTILE, trials=60)


def test_a_script_that_was_cut_off_is_replaced(tmp_path: Path, figures: dict[str, go.Figure]) -> None:
    (tmp_path / "plotly.min.js").write_text("half of it")
    plots.write(figures, tmp_path, name="x", trials=60)
    assert (tmp_path / "plotly.min.js").stat().st_size > 1_000_000


def test_without_a_trial_there_is_no_page(tmp_path: Path) -> None:
    assert plots.figures([], None) == {}
    assert plots.write({}, tmp_path, name="x", trials=0) == []
    assert list(tmp_path.iterdir()) == []


class TestTheSameNumbers:
    def test_history(self, trials: list[Trial], figures: dict[str, go.Figure]) -> None:
        found = {
            number: value
            for trace in traces(figures["history"])
            if trace["mode"] == "markers"
            for number, value in zip(numbers(trace["x"]), numbers(trace["y"]), strict=True)
        }
        assert found == {trial.number: trial.reached for trial in analysis.trained(trials)}
        (line,) = [trace for trace in traces(figures["history"]) if trace["mode"] == "lines"]
        best = dict(zip(numbers(line["x"]), numbers(line["y"]), strict=True))
        assert [(number, best[number]) for number, _ in analysis.best_so_far(trials)[:-1]] == analysis.best_so_far(
            trials
        )[:-1]

    def test_complete_and_pruned_trials_are_told_apart(
        self, trials: list[Trial], figures: dict[str, go.Figure]
    ) -> None:
        shown = {trace["name"]: numbers(trace["x"]) for trace in traces(figures["history"])}
        assert set(shown) == {"complete", "stopped earlier", "best so far"}
        assert shown["complete"] == [trial.number for trial in trials if trial.value is not None]

    def test_curves(self, trials: list[Trial], figures: dict[str, go.Figure]) -> None:
        lines = {trace["name"]: trace for trace in traces(figures["curves"])}
        assert len(lines) == len(analysis.trained(trials))
        for trial in analysis.trained(trials):
            line = lines[f"Trial{trial.number}"]
            assert list(zip(numbers(line["x"]), numbers(line["y"]), strict=True)) == analysis.curve(trial)

    def test_importances(self, trials: list[Trial]) -> None:
        found = importances(trials, resamples=20)
        assert found is not None
        bars, marks = traces(plots.importances(found))
        assert numbers(bars["x"]) == [row.share for row in found.rows[::-1]]
        assert numbers(marks["customdata"]) == [row.chance for row in found.rows[::-1]]

    def test_cost(self, trials: list[Trial], figures: dict[str, go.Figure]) -> None:
        line = next(trace for trace in traces(figures["cost"]) if trace["mode"] == "lines")
        assert numbers(line["y"]) == [trial.value for trial in analysis.front(trials)]
        dots = [trace for trace in traces(figures["cost"]) if trace["mode"] == "markers"]
        assert sum(len(trace["x"]) for trace in dots) == len(analysis.trained(trials))

    def test_parallel(self, trials: list[Trial], figures: dict[str, go.Figure]) -> None:
        lines = [trace for trace in traces(figures["parallel"]) if "customdata" in trace]
        assert len(lines) == len(analysis.trained(trials))
        assert {len(trace["x"]) for trace in lines} == {plots.AXES + 1}

    def test_slices(self, trials: list[Trial], figures: dict[str, go.Figure]) -> None:
        ended = analysis.trained(trials)
        assert sum(len(numbers(trace["y"])) for trace in traces(figures["slices"])) == sum(
            name in trial.params for trial in ended for name in analysis.parameters(ended)
        )

    def test_timeline(self, trials: list[Trial], figures: dict[str, go.Figure]) -> None:
        bars = [number for trace in traces(figures["timeline"]) for number in numbers(trace["y"])]
        assert sorted(bars) == [trial.number for trial in analysis.trained(trials)]


def test_names_are_escaped_once_more_for_plotly(trials: Sequence[Trial]) -> None:
    """plotly.js reads markup in every text, whatever the page around it escapes."""
    known = [trial for trial in trials if trial.baseline]
    shown = plots.as_shown(known)
    assert known
    for trial in shown:
        said = json.dumps([trial.params, list(trial.distributions["pooling"].choices), trial.user_attrs])
        assert said.count("alert(") == 3
        assert "<" not in said


@pytest.mark.parametrize("count", [1, 2])
def test_one_and_two_trials_give_what_they_can(count: int, trials: list[Trial]) -> None:
    complete = [trial for trial in trials if trial.value is not None][:count]
    assert set(plots.figures(complete, None)) == set(plots.TITLES) - {"importances"}


@pytest.mark.long
def test_pages_of_a_thousand_trials_stay_small(tmp_path: Path) -> None:
    trials = read_trials(made_up_study(made_up_trials(1000)))
    pages = plots.write(plots.figures(trials, None), tmp_path, name="many", trials=1000)
    assert max(page.stat().st_size for page in pages) < 1_000_000
    assert f"{plots.MOST_LINES} of 1,000 trials" in (tmp_path / "curves.html").read_text(encoding="utf-8")
