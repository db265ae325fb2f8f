"""The report's charts: drawn from anything, in the page's own colours and letters."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from reporting import charts, svg
from reporting.charts import Bar, Curve, Dot
from reporting.importance import Importance
from tuning.trials import Outcome

SVG = "{http://www.w3.org/2000/svg}"
ODD = ["$x_1$ & <b>", "き の こ 🍄", "x" * 300, "", "\x1b[31m\n", "Ωμέγα", "quote \" ' `", "\\frac{1}{2}", "עברית"]
ENDS = [*Outcome, None]

CHARTS: dict[str, Callable[[], str]] = {
    "accuracies": lambda: charts.accuracies(
        [Bar(name=name, value=0.1 * n, low=0.05, high=0.9, best=n == 0) for n, name in enumerate(ODD)], 0.2
    ),
    "history": lambda: charts.history(
        [Dot(x=n, y=0.1 * n, outcome=ENDS[n % 6], name=name) for n, name in enumerate(ODD)], [(0, 0.2), (3, 0.2)]
    ),
    "history of one": lambda: charts.history([Dot(x=0, y=0.5, outcome=Outcome.PRUNED)], []),
    "curves": lambda: charts.curves(
        [Curve(points=[(1, 0.1), (2, 0.2)], outcome=Outcome.COMPLETE, name=name) for name in ODD[:5]],
        [Curve(points=[(1, 0.1)], outcome=Outcome.PRUNED)],
        (1, 2),
    ),
    "curves of one epoch": lambda: charts.curves([Curve(points=[(1, 0.1)], outcome=None, name="x")], [], (1, 4)),
    "progress": lambda: charts.progress([Dot(x=n, y=n + 1, outcome=ENDS[n % 7]) for n in range(9)], 10, (2, 4)),
    "progress of one": lambda: charts.progress([Dot(x=0, y=1, outcome=None)], 1, ()),
    "importances": lambda: charts.importances(
        [Importance(name=name, share=0.1, low=0.0, high=0.3, chance=0.05 * n) for n, name in enumerate(ODD)]
    ),
    "cost": lambda: charts.cost(
        [Dot(x=3.0 + n, y=0.1 * n, outcome=ENDS[n % 6], name=ODD[n]) for n in range(9)], [(3, 0.2), (8, 0.8)], 9
    ),
    "cost of one": lambda: charts.cost([Dot(x=3, y=0.1, outcome=Outcome.PRUNED)], [], None),
}


@pytest.mark.parametrize("name", CHARTS)
def test_text_is_text_and_stays_within_the_chart(name: str) -> None:
    drawn = ET.fromstring(CHARTS[name]())
    width, height = map(float, drawn.attrib["viewBox"].split()[2:])
    assert width == svg.WIDTH
    labels = [label for label in drawn.iter(f"{SVG}text") if label.text]
    assert labels
    for label in labels:
        assert len(label.text or "") <= 45
        assert -2 <= float(label.attrib["x"]) <= width + 2
        assert -2 <= float(label.attrib["y"]) <= height + 2


@pytest.mark.parametrize("name", CHARTS)
def test_marks_stay_within_the_chart(name: str) -> None:
    drawn = ET.fromstring(CHARTS[name]())
    width, height = map(float, drawn.attrib["viewBox"].split()[2:])
    points = [pair for line in drawn.iter(f"{SVG}polyline") for pair in line.attrib["points"].split()]
    points += [f"{one.attrib['cx']},{one.attrib['cy']}" for one in drawn.iter(f"{SVG}circle")]
    assert points
    for x, y in (map(float, pair.split(",")) for pair in points):
        assert -1 <= x <= width + 1
        assert -1 <= y <= height + 1


def test_names_are_neither_formulas_nor_markup() -> None:
    shown = [label.text for label in ET.fromstring(CHARTS["accuracies"]()).iter(f"{SVG}text")]
    assert set(ODD) - {ODD[2], ODD[4]} <= set(map(str, shown)) | {""}
    assert "[31m" in shown


@pytest.mark.parametrize("name", CHARTS)
def test_colours_are_the_pages_variables(name: str) -> None:
    shown = svg.inline(CHARTS[name]())
    assert set(re.findall(r"var\(--(\w+)\)", shown)) <= set(svg.VARIABLES.values())
    assert not re.findall(r'"#[0-9a-f]{6}"', shown)


def test_a_parameter_that_does_not_stand_out_is_grey() -> None:
    bars = [
        bar.attrib["fill"] for bar in ET.fromstring(CHARTS["importances"]()).iter(f"{SVG}rect") if "x" in bar.attrib
    ]
    assert bars == [svg.BLUE] * 2 + [svg.FAINT] * 7


def columns(name: str) -> list[tuple[float, str]]:
    """Return height and colour of each column of a chart."""
    drawn = ET.fromstring(CHARTS[name]()).iter(f"{SVG}rect")
    return [(float(one.attrib["height"]), one.attrib["fill"]) for one in drawn if "x" in one.attrib]


def test_a_trials_column_is_as_high_as_its_epochs_and_has_the_colour_of_its_outcome() -> None:
    found = columns("progress")
    unit = found[0][0]
    assert [height for height, _ in found] == pytest.approx([unit * (n + 1) for n in range(9)], abs=0.3)
    assert [colour for _, colour in found] == [charts.COLOURS[ENDS[n % 7]] for n in range(9)]
    assert 10 * unit < svg.WIDTH and len(columns("progress of one")) == 1


def test_labels_of_close_points_do_not_cover_each_other() -> None:
    """The three baselines were all pruned at the first rung, with nearly the same value."""
    drawn = charts.history(
        [Dot(x=n, y=0.2 + n / 1000, outcome=Outcome.PRUNED, name=f"recipe {n}") for n in range(3)], []
    )
    names = [one for one in ET.fromstring(drawn).iter(f"{SVG}text") if (one.text or "").startswith("recipe")]
    rows = sorted(float(one.attrib["y"]) for one in names)
    assert len(rows) == 3 and min(rows[1] - rows[0], rows[2] - rows[1]) >= svg.FONT


def test_the_same_numbers_give_the_same_chart() -> None:
    assert CHARTS["history"]() == CHARTS["history"]()
