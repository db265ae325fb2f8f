"""What a command after the study knows of it: where its pictures and its trials are."""

import json
import os
import re
from pathlib import Path

import pytest

from tuning import StudyError
from tuning.folder import sqlite_url
from tuning.settings import FILE, Settings, recall, typed, url

SETTINGS = Settings(data="/pictures/Röhrlinge", test_data=None, pictures=1500, storage=None)


def begun(results: Path, name: str, when: int) -> Path:
    """A study that was run last at this time."""
    folder = results / name
    folder.mkdir(parents=True)
    SETTINGS.save(folder)
    os.utime(folder / FILE, (when, when))
    return folder


def test_settings_come_back_as_they_were(tmp_path: Path) -> None:
    folder = begun(tmp_path, "mushrooms", 1)
    assert recall(tmp_path, "mushrooms") == (folder, SETTINGS)
    assert [path.name for path in folder.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("words", "longer"),
    [
        ([], "python study.py --trials 80"),
        (["--trials", "40", "--data", "my birds"], "python study.py --data 'my birds' --trials 80"),
        (["--seed", "1", "--trials=40"], "python study.py --seed 1 --trials 80"),
    ],
)
def test_the_command_with_another_total_is_the_one_that_was_typed(words: list[str], longer: str) -> None:
    assert typed(words, 80) == longer


def test_by_default_the_study_run_last_is_meant(tmp_path: Path) -> None:
    for name, when in (("a", 30), ("b", 20), ("c", 10)):
        begun(tmp_path, name, when)
    assert recall(tmp_path, None)[0].name == "a"
    SETTINGS.save(tmp_path / "c")
    assert recall(tmp_path, None)[0].name == "c"
    assert recall(tmp_path, "b")[0].name == "b"


def test_where_no_study_is_the_way_to_one_is_told(tmp_path: Path) -> None:
    for results in (tmp_path, tmp_path / "nowhere"):
        rule = (
            f"this command goes on from a study, but there is no {results}/*/{FILE}; run one with python study.py, or "
        )
        with pytest.raises(StudyError, match="^" + re.escape(rule)):
            recall(results, None)


def test_an_unknown_study_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    begun(tmp_path, "mushrooms", 1)
    begun(tmp_path, "birds", 2)
    with pytest.raises(StudyError, match=rf"no .*/mushroms/{FILE}; there are: birds, mushrooms; run one with"):
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
    ],
)
def test_a_file_that_is_not_whole_is_told_by_its_path(text: str, tmp_path: Path) -> None:
    path = begun(tmp_path, "mushrooms", 1) / FILE
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match=rf"^{FILE} is what a run .* but {re.escape(str(path))} is not \(.*again,"):
        recall(tmp_path, None)


def test_a_file_that_cannot_be_read_is_told_by_its_path(tmp_path: Path) -> None:
    path = begun(tmp_path, "mushrooms", 1) / FILE
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(StudyError, match=re.escape(str(path))):
        recall(tmp_path, None)
    path.unlink()
    path.mkdir()
    with pytest.raises(StudyError, match=re.escape(str(path))):
        recall(tmp_path, "mushrooms")


def test_the_database_is_the_one_named_now_then_the_one_it_began_with_then_its_own(tmp_path: Path) -> None:
    kept = Settings(data="x", test_data=None, pictures=None, storage="postgresql://me@host/name")
    assert url(kept, tmp_path, "sqlite:///other.db") == "sqlite:///other.db"
    assert url(kept, tmp_path, None) == "postgresql://me@host/name"
    assert url(SETTINGS, tmp_path, None) == sqlite_url(tmp_path)


def test_a_password_that_was_not_kept_is_asked_for(tmp_path: Path) -> None:
    kept = Settings(data="x", test_data=None, pictures=None, storage="postgresql://me:***@host/name")
    with pytest.raises(StudyError, match=r"needs --storage URL again; it was postgresql://me:\*\*\*@host/name$"):
        url(kept, tmp_path, None)
    assert url(kept, tmp_path, "postgresql://me:s3cret@host/name") == "postgresql://me:s3cret@host/name"
