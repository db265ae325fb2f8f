"""The interactive pages: one script for all of them, the report's numbers, and names that are text."""

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
from optuna.trial import FrozenTrial, TrialState

from reporting import analysis, plots
from reporting.importance import importances
from tests.stress.made_up_studies import made_up_study, made_up_trials

HOSTILE = '</script><script>alert("1")</script><b>bold</b>'
KEYS = ["cost", "curves", "history", "importances", "parallel", "slices"]


@pytest.fixture(scope="module")
def trials() -> list[FrozenTrial]:
    found = made_up_trials(60)
    for trial in found:
        trial.params["pooling"] = HOSTILE
        trial.distributions = trial.distributions | {
            "pooling": optuna.distributions.CategoricalDistribution([HOSTILE, "x"])
        }
        if "known_good" in trial.user_attrs:
            trial.user_attrs = trial.user_attrs | {"known_good": HOSTILE}
    return made_up_study(found).get_trials()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, trials: list[FrozenTrial]) -> Path:
    folder = tmp_path_factory.mktemp("plots") / "plots"
    plots.write(trials, folder, name=HOSTILE, important=importances(trials, resamples=20))
    return folder


def numbers(values: Any) -> list[Any]:
    """A trace's values as plotly.js gets them: a list, or packed."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"]).tolist()
    return list(values)


def traces(figure: go.Figure | None) -> list[dict[str, Any]]:
    assert figure is not None
    return json.loads(figure.to_json() or "")["data"]


def test_all_pages_share_one_script(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {*(f"{key}.html" for key in KEYS), "plotly.min.js"}
    assert (folder / "plotly.min.js").stat().st_size > 1_000_000
    for key in KEYS:
        text = (folder / f"{key}.html").read_text(encoding="utf-8")
        assert re.findall(r'<script[^>]* src="([^"]*)"', text) == ["plotly.min.js"]
        assert len(text) < 1_000_000
        assert not re.search(r'(?:src|href)="(?:https?:)?//', text)


def test_pages_lead_to_each_other_and_back(folder: Path) -> None:
    links = re.findall(r'<a href="([^"]+)"', (folder / "cost.html").read_text(encoding="utf-8"))
    assert links[0] == "../report.html"
    assert sorted(links[1:]) == [f"{key}.html" for key in KEYS]


def test_hostile_names_end_no_script_and_are_no_markup(folder: Path) -> None:
    for key in KEYS:
        text = (folder / f"{key}.html").read_text(encoding="utf-8")
        assert "<b>bold" not in text
        assert "</script><script>alert" not in text
        # plotly's own two, and the shared one.
        assert text.count("<script") == text.count("</script>") <= 4


def test_the_script_is_written_once(folder: Path, trials: list[FrozenTrial]) -> None:
    before = (folder / "plotly.min.js").stat().st_mtime_ns
    plots.write(trials, folder, name="again", important=None)
    assert (folder / "plotly.min.js").stat().st_mtime_ns == before
    assert not (folder / "importances.html").exists()


def test_a_script_that_was_cut_off_is_replaced(tmp_path: Path, trials: list[FrozenTrial]) -> None:
    (tmp_path / "plotly.min.js").write_text("half of it")
    plots.write(trials[:3], tmp_path, name="x", important=None)
    assert (tmp_path / "plotly.min.js").stat().st_size > 1_000_000


def test_no_trial_gives_no_page(tmp_path: Path) -> None:
    assert plots.write([], tmp_path, name="x", important=None) == []
    assert list(tmp_path.iterdir()) == []


class TestTheSameNumbers:
    def test_history(self, trials: list[FrozenTrial]) -> None:
        ended = analysis.ranked(trials)
        found = {
            number: value
            for trace in traces(plots.history(ended, trials))
            if trace["mode"] == "markers"
            for number, value in zip(numbers(trace["x"]), numbers(trace["y"]), strict=True)
        }
        assert found == {trial.number: analysis.reached(trial) for trial in ended}
        line = next(t for t in traces(plots.history(ended, trials)) if t["mode"] == "lines")
        assert (numbers(line["x"]), numbers(line["y"])) == tuple(map(list, analysis.best_so_far(trials)))

    def test_curves(self, trials: list[FrozenTrial]) -> None:
        ended = analysis.ranked(trials)
        lit = {t["name"]: t for t in traces(plots.curves(ended)) if t["name"] != "others"}
        assert sorted(lit) == sorted(f"trial {trial.number}" for trial in ended[:5])
        best = lit[f"trial {ended[0].number}"]
        assert (numbers(best["x"]), numbers(best["y"])) == analysis.curve(ended[0])
        others = next(t for t in traces(plots.curves(ended)) if t["name"] == "others")
        assert len(others["x"]) == len(others["y"]) == sum(len(t.intermediate_values) + 1 for t in ended[5:])

    def test_importances(self, trials: list[FrozenTrial]) -> None:
        found = importances(trials, resamples=20)
        assert found is not None
        bars, marks = traces(plots.importances(found))
        assert numbers(bars["x"]) == [row.share for row in found.rows[::-1]]
        assert numbers(marks["customdata"]) == [row.chance for row in found.rows[::-1]]

    def test_cost(self, trials: list[FrozenTrial]) -> None:
        line = next(t for t in traces(plots.cost(trials)) if t["mode"] == "lines")
        assert numbers(line["y"]) == [trial.value for trial in analysis.front(trials)]

    def test_parallel(self, trials: list[FrozenTrial]) -> None:
        ended = analysis.ranked(trials)
        (trace,) = traces(plots.parallel(ended))
        space, _ = analysis.coordinates(ended)
        assert [dimension["label"] for dimension in trace["dimensions"]] == [*space, "top-1"]
        assert numbers(trace["dimensions"][-1]["values"]) == [analysis.reached(trial) for trial in ended]

    def test_slices(self, trials: list[FrozenTrial]) -> None:
        ended = analysis.ranked(trials)
        found = traces(plots.slices(ended))
        assert sum(len(numbers(trace["y"])) for trace in found) == sum(
            name in trial.params for trial in ended for name in analysis.parameters(ended)
        )


def test_names_are_escaped_once_more_for_plotly(trials: Sequence[FrozenTrial]) -> None:
    """plotly.js reads markup in every text, whatever the page around it escapes."""
    ended = analysis.ranked(trials)
    known = next(trial for trial in ended if "known_good" in trial.user_attrs)
    text = next(
        text
        for trace in traces(plots.history(ended, trials))
        for number, text in zip(trace.get("customdata", ()), trace.get("text", ()), strict=False)
        if number == known.number
    )
    assert "&lt;/script&gt;" in text
    assert "<b>" not in text


@pytest.mark.parametrize("count", [1, 2])
def test_one_and_two_trials_give_what_they_can(tmp_path: Path, count: int, trials: list[FrozenTrial]) -> None:
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE][:count]
    pages = plots.write(complete, tmp_path, name="few", important=None)
    assert [page.stem for page in pages] == ["history", "curves", *(["parallel"] * (count == 2)), "slices", "cost"]
