"""The settings of a study: read back by later commands, from earlier versions too, and refused if damaged."""

import json
import os
import re
from pathlib import Path

import pytest

from tuning import StudyError
from tuning.folder import sqlite_url
from tuning.settings import FILE, Settings, command_line, recall, url

SETTINGS = Settings(data="/pictures/Röhrlinge", test_data=None, pictures=1500, storage=None)


def run_at(when: int, results: Path, name: str) -> Path:
    """Create the folder of a study that was last run at this time."""
    folder = results / name
    folder.mkdir(parents=True)
    SETTINGS.save(folder)
    os.utime(folder / FILE, (when, when))
    return folder


def test_settings_are_read_as_they_were_saved(tmp_path: Path) -> None:
    folder = run_at(1, tmp_path, "mushrooms")
    assert recall(tmp_path, "mushrooms") == (folder, SETTINGS)
    assert [path.name for path in folder.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("argv", "longer"),
    [
        ([], "python study.py --trials 80"),
        (["--trials", "40", "--data", "my birds"], "python study.py --data 'my birds' --trials 80"),
        (["--seed", "1", "--trials=40"], "python study.py --seed 1 --trials 80"),
    ],
)
def test_a_command_can_be_shown_with_another_number_of_trials(argv: list[str], longer: str) -> None:
    assert command_line(argv, 80) == longer


def test_a_command_is_shown_as_it_was_typed() -> None:
    assert command_line(["--data", "my birds", "--trials", "40"]) == "python study.py --data 'my birds' --trials 40"


@pytest.mark.parametrize("words", [[], ["--trials", "40"]])
def test_settings_of_an_earlier_version_are_read(words: list[str], tmp_path: Path) -> None:
    """Its name for `argv` was "words"."""
    folder = run_at(1, tmp_path, "mushrooms")
    earlier = {"data": "kaggle", "test_data": "/tests", "pictures": None, "storage": None, "words": words}
    (folder / FILE).write_text(json.dumps(earlier), encoding="utf-8")
    kept = Settings(data="kaggle", test_data="/tests", pictures=None, storage=None, argv=words)
    assert recall(tmp_path, "mushrooms") == (folder, kept)


def test_the_default_is_the_study_that_was_run_last(tmp_path: Path) -> None:
    for name, when in (("a", 30), ("b", 20), ("c", 10)):
        run_at(when, tmp_path, name)
    assert recall(tmp_path, None)[0].name == "a"
    SETTINGS.save(tmp_path / "c")
    assert recall(tmp_path, None)[0].name == "c"
    assert recall(tmp_path, "b")[0].name == "b"


def test_without_a_study_the_error_says_how_to_run_one(tmp_path: Path) -> None:
    for results in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StudyError) as caught:
            recall(results, None)
        assert f"{results}/*/{FILE}" in str(caught.value) and "python study.py" in str(caught.value)


def test_an_unknown_study_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    run_at(1, tmp_path, "mushrooms")
    run_at(2, tmp_path, "birds")
    with pytest.raises(StudyError, match=rf"{tmp_path}/mushroms/{FILE} .*birds, mushrooms.*--study NAME"):
        recall(tmp_path, "mushroms")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"data"',
        "{}",
        json.dumps({"data": "x"}),
        json.dumps({"data": "x", "test_data": None, "pictures": None, "storage": None, "colour": "red"}),
        json.dumps({"data": "x", "test_data": None, "pictures": None, "storage": None, "words": "--trials 40"}),
    ],
)
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    path = run_at(1, tmp_path, "mushrooms") / FILE
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match=rf"{re.escape(str(path))} \(.*run .* again"):
        recall(tmp_path, None)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = run_at(1, tmp_path, "mushrooms") / FILE
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(StudyError, match=re.escape(str(path))):
        recall(tmp_path, None)
    path.unlink()
    path.mkdir()
    with pytest.raises(StudyError, match=re.escape(str(path))):
        recall(tmp_path, "mushrooms")


def test_the_database_is_the_given_one_else_the_stored_one_else_the_folders_own(tmp_path: Path) -> None:
    kept = Settings(data="x", test_data=None, pictures=None, storage="postgresql://me@host/name")
    assert url(kept, tmp_path, "sqlite:///other.db") == "sqlite:///other.db"
    assert url(kept, tmp_path, None) == "postgresql://me@host/name"
    assert url(SETTINGS, tmp_path, None) == sqlite_url(tmp_path)


def test_a_password_that_is_not_stored_is_asked_for(tmp_path: Path) -> None:
    kept = Settings(data="x", test_data=None, pictures=None, storage="postgresql://me:***@host/name")
    with pytest.raises(StudyError, match=r"postgresql://me:\*\*\*@host/name .*--storage URL"):
        url(kept, tmp_path, None)
    assert url(kept, tmp_path, "postgresql://me:s3cret@host/name") == "postgresql://me:s3cret@host/name"
