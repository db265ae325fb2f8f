"""The charts of one trial: they show their numbers, whatever those are, and names as text."""

import base64
import io
import itertools
import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.training import EpochMetrics
from reporting import svg
from reporting.svg import BLUE, GREEN, RED
from reporting.words import short

SVG = "{http://www.w3.org/2000/svg}"
ODD = ["$x_1$ & <b>", "き の こ 🍄", "x" * 300, "", "\x1b[31m\n", "quote \" ' `", "</text><script>alert(1)</script>"]


def history(**columns: list[float]) -> list[EpochMetrics]:
    """Return epochs whose other columns are smooth."""
    rows: list[EpochMetrics] = []
    for epoch in range(len(next(iter(columns.values())))):
        smooth = {"train_loss": 2.0, "validation_loss": 2.2, "train_top1": 0.3, "top1": 0.25, "lr": 0.01}
        values: dict[str, Any] = {name: value * (1 + 0.1 * epoch) for name, value in smooth.items()}
        values |= {name: column[epoch] for name, column in columns.items()}
        rows.append(EpochMetrics(epoch=epoch, top3=1.0, confusion=((1,),), seconds=1.0, peak_memory=1, **values))
    return rows


def curves(drawn: str, panel: int, colour: str) -> list[tuple[float, float]]:
    """Return the points of a panel's curve, which is drawn after the line in its legend."""
    panels = ET.fromstring(drawn).findall(f"{SVG}g")
    lines = [line for line in panels[panel].iter(f"{SVG}polyline") if line.attrib["stroke"] == colour]
    x_y = [pair.split(",") for pair in lines[-1].attrib["points"].split()]
    return [(float(x), float(y)) for x, y in x_y]


def texts(drawn: str, panel: int | None = None) -> list[str]:
    root = ET.fromstring(drawn)
    part = root if panel is None else root.findall(f"{SVG}g")[panel]
    return [element.text or "" for element in part.iter(f"{SVG}text")]


@pytest.mark.parametrize(("panel", "key", "colour"), [
    (0, "train_loss", BLUE), (0, "validation_loss", RED), (1, "train_top1", BLUE), (1, "top1", RED), (2, "lr", GREEN),
])  # fmt: skip
def test_a_curve_goes_through_its_values_in_proportion(panel: int, key: str, colour: str) -> None:
    values = [0.1, 0.4, 0.2, 0.35, 0.15]
    points = curves(svg.learning_curves(history(**{key: values}), 2), panel, colour)
    x, y = np.array(points).T
    assert np.allclose(np.diff(x), x[1] - x[0], atol=0.11)
    scale = (y[1] - y[0]) / (values[1] - values[0])
    assert scale < 0, "more is higher"
    assert np.allclose(y, y[0] + scale * (np.array(values) - values[0]), atol=0.2)


def test_a_steep_learning_rate_is_on_a_logarithmic_axis() -> None:
    drawn = svg.learning_curves(history(lr=[0.1, 0.01, 0.001, 0.0]), 1)
    y = [point[1] for point in curves(drawn, 2, GREEN)]
    assert len(y) == 3, "zero has no place there"
    assert y[1] - y[0] == pytest.approx(y[2] - y[1], abs=0.2)
    assert {"0.1", "0.01", "0.001"} <= set(texts(drawn, 2))


@pytest.mark.parametrize("values", [[0.5], [0.0], [1.0], [0.5, 0.5, 0.5], [0.0, 1.0], [1e-9, 1e9]])
def test_any_values_are_drawn_within_their_panel(values: list[float]) -> None:
    shares = [min(1.0, value) for value in values]
    rows = history(train_loss=values, validation_loss=values, train_top1=shares, top1=shares, lr=values)
    drawn = svg.learning_curves(rows, 1)
    for panel, colour in itertools.product(range(3), (BLUE, GREEN)):
        if (panel == 2) == (colour == GREEN):
            for x, y in curves(drawn, panel, colour):
                assert 0 <= x <= svg.PANEL
                assert 0 <= y <= svg.PANEL_HEIGHT
    assert len(ET.fromstring(drawn).findall(f".//{SVG}circle")) == (5 if len(values) == 1 else 0)


def test_ticks_are_of_epochs_and_shares_that_there_are() -> None:
    one, many = svg.learning_curves(history(top1=[1.0]), 1), svg.learning_curves(history(top1=[0.5] * 200), 7)
    assert [text for text in texts(one, 0) if text.isdigit() and int(text) < 2] == ["1"]
    assert "105 %" not in texts(one, 1)
    assert "100 %" in texts(one, 1)
    assert sum(text.isdigit() for text in texts(many, 1)) <= 7


def test_a_cell_has_its_count_and_its_share_of_the_true_class() -> None:
    drawn = svg.confusion([[3, 1], [0, 0]], ["yes", "no"])
    cells = [cell for cell in ET.fromstring(drawn).iter(f"{SVG}rect") if "fill-opacity" in cell.attrib]
    assert [(cell.attrib["fill"], cell.attrib["fill-opacity"]) for cell in cells] == [(BLUE, "0.78"), (RED, "0.34")]
    assert float(cells[1].attrib["x"]) > float(cells[0].attrib["x"])
    assert cells[1].attrib["y"] == cells[0].attrib["y"]
    assert [text for text in texts(drawn) if text.isdigit()] == ["3", "1"]


def test_names_are_text_whatever_they_hold() -> None:
    drawn = svg.confusion(np.eye(len(ODD), dtype=int).tolist(), ODD)
    assert sorted(texts(drawn)) == sorted(
        [*(short(name, 18) for name in ODD), *(short(name, 18) for name in ODD), "predicted", "true", *["1"] * len(ODD)]
    )
    assert not ET.fromstring(drawn).findall(f".//{SVG}script")


def test_a_hundred_classes_are_pixels() -> None:
    matrix = 3 * np.eye(100, dtype=int)
    matrix[7, 60] = 3
    drawn = svg.confusion(matrix.tolist(), [f"class {number}" for number in range(100)])
    assert texts(drawn) == ["predicted", "true"]
    (image,) = ET.fromstring(drawn).iter(f"{SVG}image")
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(image.attrib["href"].partition(",")[2]))))
    assert picture.shape == (100, 100, 4)
    assert picture[3, 3].tolist() == [0x00, 0x72, 0xB2, 255]
    assert picture[0, 1, 3] == 0
    assert picture[7, 60].tolist() == [0xD5, 0x5E, 0x00, round(255 * 0.575)]
    assert len(drawn) < 10_000


def test_in_the_report_a_chart_has_the_pages_colours_and_no_paper() -> None:
    drawn = svg.confusion([[3, 1], [0, 2]], ['"#0072b2"', "no"])
    shown = svg.inline(drawn)
    assert set(re.findall(r"var\(--(\w+)\)", shown)) == {"blue", "red", "ink", "muted"}
    assert BLUE in shown, "in a name, a colour is text"
    assert ET.fromstring(shown).find("rect") is None
    assert [element.text for element in ET.fromstring(shown).iter("text")] == texts(drawn)


def test_a_logarithmic_scale_has_few_round_ticks() -> None:
    assert svg.log_ticks(1e-4, 1e-1, 6) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert svg.log_ticks(10, 100, 5) == [10, 20, 50, 100]
    assert len(svg.log_ticks(1.1, 1.2, 5)) == 1


@pytest.mark.parametrize(("low", "high"), [(0.31, 0.72), (0, 1), (0.500, 0.501), (-3, 2e9), (1e-9, 2e-9)])
def test_ticks_are_within_the_range_and_few(low: float, high: float) -> None:
    ticks = svg.Scale(low=low, high=high, start=0, end=100).ticks(5)
    assert 2 <= len(ticks) <= 6
    assert low - 1e-9 <= ticks[0] < ticks[-1] <= high + 1e-9
