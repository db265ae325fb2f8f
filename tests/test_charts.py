"""The figures: drawn from anything, in the page's own colours and letters, and small."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import cache

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from reporting import charts, drawing
from reporting.charts import Axis, Contender, Curve, Dot, Line, Slice
from reporting.drawing import number, short, svg
from reporting.importance import Importance
from tuning.storage import Outcome

ODD = ["$x_1$ & <b>", "き の こ 🍄", "x" * 300, "", "\x1b[31m\n", "Ωμέγα", "quote \" ' `", "\\frac{1}{2}", "עברית"]
LR = Axis(name=ODD[0], low=1e-4, high=1e-1, log=True)
CHOICE = Axis(name=ODD[2], choices=tuple(ODD[:3]))
ENDS = list(Outcome)

FIGURES: dict[str, Callable[[bool], Figure]] = {
    "contenders": lambda wide: charts.contenders(
        [Contender(name=name, value=0.1 * n, low=0.05, high=0.9, best=n == 0) for n, name in enumerate(ODD)],
        0.2,
        "commonest class",
        wide,
    ),
    "history": lambda wide: charts.history(
        [Dot(x=n, y=0.1 * n, outcome=ENDS[n % 6], name=name) for n, name in enumerate(ODD)], ([0, 3], [0.2, 0.2]), wide
    ),
    "history of one": lambda wide: charts.history([Dot(x=0, y=0.5, outcome=Outcome.PRUNED)], ([], []), wide),
    "curves": lambda wide: charts.curves(
        [Curve(epochs=[1, 2], values=[0.1, 0.2], outcome=Outcome.COMPLETE, name=name) for name in ODD[:5]],
        [Curve(epochs=[1], values=[0.1], outcome=Outcome.PRUNED)],
        wide,
    ),
    "training": lambda wide: charts.training(
        [
            {"epoch": n, "train_loss": 2.0, "validation_loss": 1.0, "train_top1": 0.5, "top1": 0.4, "lr": 10.0**-n}
            for n in range(4)
        ],
        2,
        wide,
    ),
    "training of one epoch": lambda wide: charts.training(
        [{"epoch": 0, "train_loss": 2.0, "validation_loss": 1.0, "train_top1": 0.5, "top1": 0.4, "lr": 0.0}], 1, wide
    ),
    "tally": lambda wide: charts.tally({"complete": 3, "pruned": 2, "running": 1}, wide),
    "importances": lambda wide: charts.importances(
        [Importance(name=name, share=0.1, low=0.0, high=0.3, chance=0.05 * n, used=9) for n, name in enumerate(ODD)],
        wide,
    ),
    "parallel": lambda wide: charts.parallel(
        [LR, CHOICE],
        [
            Line(values={LR.name: 1e-3, CHOICE.name: ODD[1]}, value=0.5, lit=0),
            Line(values={LR.name: 0.1, CHOICE.name: ODD[2]}, value=0.5),
        ],
        ODD[:1],
        wide,
    ),
    "slices": lambda wide: charts.slices(
        [
            Slice(axis=LR, dots=[(1e-3, 0.5, Outcome.COMPLETE), (0.1, 0.4, Outcome.PRUNED)], best=(1e-3, 0.5)),
            Slice(axis=CHOICE, dots=[(ODD[1], 0.5, Outcome.COMPLETE)], best=None),
            Slice(axis=Axis(name="many", choices=tuple(map(str, range(30)))), dots=[], best=None),
            Slice(axis=Axis(name="steps", low=16, high=64, step=16), dots=[(16, 0.1, Outcome.FAILED)], best=None),
            Slice(axis=Axis(name="fine", low=0, high=0.5, step=0.05), dots=[], best=None),
        ],
        wide,
    ),
    "price": lambda wide: charts.price(
        [Dot(x=3.0 + n, y=0.1 * n, outcome=ENDS[n % 6], name=ODD[n]) for n in range(9)], ([3, 8], [0.2, 0.8]), 9, wide
    ),
    "price of one": lambda wide: charts.price([Dot(x=3, y=0.1, outcome=Outcome.PRUNED)], ([], []), None, wide),
    "confusion": lambda wide: charts.confusion(np.eye(9, dtype=int).tolist(), ODD, wide),
    "confusion of 30": lambda wide: charts.confusion(np.ones((30, 30), int).tolist(), ODD[:3] * 10, wide),
    "confusion of 200": lambda wide: charts.confusion(np.eye(200, dtype=int).tolist(), ["x"] * 200, wide),
    "per class": lambda wide: charts.per_class(ODD, [0.5] * 9, [(0.4, 0.6)] * 9, wide),
    "finalists": lambda wide: charts.finalists([(name, [0.5, 0.6], 0.7) for name in ODD] + [("none", [], None)], wide),
    "workers": lambda wide: charts.workers(
        [(n % 3, 10.0 * n, 10.0 * n + 9, end) for n, end in enumerate([*Outcome, None])], 3, 70.0, [20.0], wide
    ),
}


@cache
def element_of(name: str, wide: bool) -> ET.Element:
    """The figure as it stands in the page."""
    return ET.fromstring(svg(FIGURES[name](wide), alt='what "it" <shows>', prefix="w" if wide else "n"))


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_both_ways_from_odd_numbers_and_names(name: str) -> None:
    """Warnings are errors here: a letter that the measuring font lacks must not warn."""
    for wide, prefix in ((True, "w"), (False, "n")):
        element = element_of(name, wide)
        assert element.tag == "svg"
        assert element.attrib["aria-label"] == 'what "it" <shows>'
        width = float(element.attrib["viewBox"].split()[2])
        assert width <= (drawing.WIDE if wide else drawing.NARROW)
        assert not [node for node in element.iter() if node.tag in ("script", "style", "metadata")]
        assert all(node.attrib["id"].startswith(prefix) for node in element.iter() if "id" in node.attrib)


@pytest.mark.parametrize("name", FIGURES)
def test_text_is_text_and_stays_within_the_figure(name: str) -> None:
    for wide in (True, False):
        element = element_of(name, wide)
        width, height = map(float, element.attrib["viewBox"].split()[2:])
        labels = [node for node in element.iter("text") if node.text]
        assert labels
        for label in labels:
            assert len(label.text or "") <= 45
            if "x" in label.attrib:
                assert -2 <= float(label.attrib["x"]) <= width + 2
                assert -2 <= float(label.attrib["y"]) <= height + 2


def test_names_are_neither_formulas_nor_markup() -> None:
    shown = [node.text for node in element_of("per class", True).iter("text")]
    assert "$x_1$ & <b>" in shown
    assert "き の こ 🍄" in shown
    assert "\\frac{1}{2}" in shown
    assert "[31m" in shown


def test_colours_are_the_pages_variables() -> None:
    text = svg(FIGURES["history"](True), alt="", prefix="x")
    assert set(re.findall(r"var\(--(\w+)\)", text)) <= set(drawing.VARIABLES.values())
    assert not re.findall("|".join(drawing.VARIABLES), text)


def test_the_same_figure_is_the_same_text() -> None:
    first, second = (svg(FIGURES["slices"](True), alt="", prefix="x") for _ in range(2))
    assert first == second


def test_drawing_leaves_the_processs_own_style_alone() -> None:
    before = dict(mpl.rcParams)
    FIGURES["history"](True)
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.000106, "0.000106"),
        (1e-6, "1e-6"),
        (3.2e-7, "3.2e-7"),
        (0.25, "0.25"),
        (64, "64"),
        (1234.5, "1,234"),
        (1e8, "100,000,000"),
        (-0.05, "-0.05"),
        (2.5e13, "2.5e+13"),
    ],
)
def test_numbers_are_written_as_people_do(value: float, text: str) -> None:
    assert number(value) == text


def test_long_names_are_cut_by_their_width() -> None:
    assert short("Suillus", 7) == "Suillus"
    assert short("Cortinarius", 7) == "Cortin…"
    assert short("きのこきのこ", 7) == "きのこ…"
    assert short("two\nlines\x00", 20) == "two lines"


def test_axes_place_values_on_their_own_scale() -> None:
    assert LR.place(1e-4) == 0
    assert LR.place(1e-1) == 1
    assert LR.place(10**-2.5) == pytest.approx(0.5)
    assert CHOICE.place(ODD[1]) == 0.5
    assert Axis(name="x", low=32, high=64, step=16).ticks == [32, 48, 64]
    assert Axis(name="x", low=0, high=0.5, step=0.05).ticks == [0, pytest.approx(0.25), 0.5]
