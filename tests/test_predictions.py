"""Predictions as a person and a program read them; no name, however odd, breaks the table, JSON or CSV."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from commands.predictions import WIDEST, write_csv, write_json, write_table
from model.predict import Prediction

CLASSES = ("Agaricus", "Boletus", "Röhrling")
GOOD = Prediction(path=Path("a/good.jpg"), classes=(("Boletus", 0.75), ("Agaricus", 0.25)))
BAD = Prediction(path=Path('a/bad, or "worse".jpg'), classes=(), error="it is truncated")
NAMES = ["plain.jpg", "two words.jpg", 'comma, "quotes".jpg', "line\nend.jpg", "きのこ.jpg", "\udc80bytes.jpg"]


def table(
    predictions: list[Prediction], classes: tuple[str, ...] = CLASSES, top: int = 2, *, answers: bool = False
) -> list[str]:
    out = io.StringIO()
    write_table(predictions, classes, top, out, answers=answers)
    return out.getvalue().splitlines()


def test_the_table_has_one_aligned_line_per_picture() -> None:
    assert table([GOOD, BAD]) == [
        "top-1              top-2              picture",
        "Boletus   75.00 %  Agaricus  25.00 %  a/good.jpg",
        'error: it is truncated                a/bad, or "worse".jpg',
    ]


def test_every_form_says_whether_an_answer_is_sure_and_a_picture_a_stranger() -> None:
    found = [
        replace(GOOD, sure=True, stranger=False, strangeness=1.5),
        replace(GOOD, sure=False, stranger=False, strangeness=2.5),
        replace(GOOD, sure=False, stranger=True, strangeness=3.5),
        BAD,
    ]
    assert table(found, answers=True) == [
        "answer    top-1              top-2              picture",
        "sure      Boletus   75.00 %  Agaricus  25.00 %  a/good.jpg",
        "not sure  Boletus   75.00 %  Agaricus  25.00 %  a/good.jpg",
        "stranger  Boletus   75.00 %  Agaricus  25.00 %  a/good.jpg",
        '          error: it is truncated                a/bad, or "worse".jpg',
    ]
    listed, rows = io.StringIO(), io.StringIO()
    write_json(found, listed)
    assert [(one["sure"], one["stranger"], one["strangeness"]) for one in json.loads(listed.getvalue())] == [
        (True, False, 1.5),
        (False, False, 2.5),
        (False, True, 3.5),
        (None, None, None),
    ]
    write_csv(found, 2, rows)
    answers = [row["answer"] for row in csv.DictReader(io.StringIO(rows.getvalue()))]
    assert answers == ["sure", "not sure", "stranger", ""]


def test_a_probability_of_100_percent_stays_in_its_column() -> None:
    sure = Prediction(path=Path("x.jpg"), classes=(("Röhrling", 1.0), ("Boletus", 0.0)))
    lines = table([sure, GOOD])
    assert lines[1] == "Röhrling 100.00 %  Boletus    0.00 %  x.jpg"
    assert {line.index(path) for line, path in zip(lines[1:], ("x.jpg", "a/good"), strict=True)} == {38}


def test_a_long_name_is_cut_in_the_table_only() -> None:
    name = "a very long name that no column of a table could ever hold"
    long = Prediction(path=Path("x.jpg"), classes=((name, 0.5), ("b", 0.5)))
    line = table([long], classes=(name, "b"))[1]
    assert line.startswith(name[: WIDEST - 1] + "…  50.00 %")
    out = io.StringIO()
    write_json([long], out)
    assert json.loads(out.getvalue())[0]["classes"][0]["class"] == name


def test_no_name_breaks_a_line_or_reaches_the_terminal_as_a_command() -> None:
    odd = Prediction(path=Path("\x1b[2Jline\nend.jpg"), classes=(("bell\a", 0.9), ("b", 0.1)))
    lines = table([odd], classes=("bell\a", "b"))
    assert len(lines) == 2
    assert lines[1].isprintable()
    assert lines[1].endswith("\\x1b[2Jline\\nend.jpg")


def test_json_is_one_array_for_names_of_any_kind() -> None:
    found = [Prediction(path=Path(name), classes=GOOD.classes) for name in NAMES]
    out = io.StringIO()
    write_json([*found, BAD], out)
    rows = json.loads(out.getvalue())
    assert [row["path"] for row in rows] == [*NAMES, str(BAD.path)]
    assert rows[0] == {
        "path": "plain.jpg",
        "classes": [{"class": "Boletus", "probability": 0.75}, {"class": "Agaricus", "probability": 0.25}],
        "sure": None,
        "stranger": None,
        "strangeness": None,
        "error": None,
    }
    assert rows[-1]["classes"] == []
    assert rows[-1]["error"] == "it is truncated"
    assert out.getvalue().isascii()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_json_of_any_number_of_pictures_is_valid(count: int) -> None:
    out = io.StringIO()
    write_json([GOOD] * count, out)
    assert len(json.loads(out.getvalue())) == count


def test_csv_is_read_back_row_by_row_for_names_of_any_kind() -> None:
    found = [Prediction(path=Path(name), classes=GOOD.classes) for name in NAMES]
    out = io.StringIO(newline="")
    write_csv([*found, BAD], 2, out)
    assert all(character.isprintable() or character == "\n" for character in out.getvalue())
    out.seek(0)
    rows = list(csv.DictReader(out))
    shown = ["plain.jpg", "two words.jpg", 'comma, "quotes".jpg', "line\\nend.jpg", "きのこ.jpg", "\\udc80bytes.jpg"]
    assert [row["path"] for row in rows] == [*shown, BAD.path.as_posix()]
    assert rows[0] == {
        "path": "plain.jpg",
        "error": "",
        "answer": "",
        "class_1": "Boletus",
        "probability_1": "0.75",
        "class_2": "Agaricus",
        "probability_2": "0.25",
    }
    assert rows[-1]["error"] == "it is truncated"
    assert rows[-1]["class_1"] is None


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_a_prediction_is_written_as_soon_as_it_is_made(form: str) -> None:
    """Predictions of a large folder can be read while the others are still made."""
    out = io.StringIO()

    def coming() -> Iterator[Prediction]:
        yield GOOD
        assert "good.jpg" in out.getvalue()
        yield BAD

    if form == "table":
        write_table(coming(), CLASSES, 2, out, answers=False)
    elif form == "json":
        write_json(coming(), out)
    else:
        write_csv(coming(), 2, out)
    assert "bad" in out.getvalue()
