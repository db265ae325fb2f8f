"""Looks at a test part: each is on the disk before it is taken, and no disturbance hides one."""

import re
from pathlib import Path

import pytest

from selection.test_set_uses import FILE, by_others, count, have_looked, looks
from tuning import StudyError


def test_a_look_is_counted_once_per_set_of_networks(tmp_path: Path) -> None:
    assert looks(tmp_path, "data") == []
    for networks in ("first", "first", "second", "first"):
        count(tmp_path, "data", networks, "my study")
    assert [(one.networks, one.study) for one in looks(tmp_path, "data")] == [
        ("first", "my study"),
        ("second", "my study"),
    ]
    assert (tmp_path / FILE).read_text(encoding="utf-8").count("\n") == 2
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", one.when) for one in looks(tmp_path, "data"))


def test_looks_at_other_pictures_do_not_count(tmp_path: Path) -> None:
    count(tmp_path, "mushrooms", "first", "a")
    count(tmp_path, "birds", "first", "b")
    assert [one.study for one in looks(tmp_path, "birds")] == ["b"]
    assert by_others(tmp_path, "birds", "other") == looks(tmp_path, "birds")


def test_the_looks_before_ones_own(tmp_path: Path) -> None:
    """Networks that have looked see what they saw: later looks of others change nothing about theirs."""
    for networks in ("first", "second", "third"):
        count(tmp_path, "data", networks, "a")
    assert [one.networks for one in by_others(tmp_path, "data", "first")] == []
    assert [one.networks for one in by_others(tmp_path, "data", "third")] == ["first", "second"]
    assert [one.networks for one in by_others(tmp_path, "data", "fourth")] == ["first", "second", "third"]
    assert have_looked(tmp_path, "data", "third")
    assert not have_looked(tmp_path, "data", "fourth")


@pytest.mark.parametrize("torn", ["data", "data\tnetworks", "data\tnetworks\tstudy\t2026-01-01T00:00:00", "\n\n", "\0"])
def test_a_torn_last_line_hides_no_later_look(torn: str, tmp_path: Path) -> None:
    """The next look was written onto the torn line, and so neither of the two was counted."""
    count(tmp_path, "data", "first", "a")
    with (tmp_path / FILE).open("a", encoding="utf-8") as file:
        file.write(torn)
    count(tmp_path, "data", "second", "b")
    known = [one.networks for one in looks(tmp_path, "data")]
    assert known == ["first", *(["networks"] if torn.count("\t") == 3 else []), "second"]


def test_names_of_any_script_are_kept(tmp_path: Path) -> None:
    count(tmp_path, "data", "first", "Röhrlinge und きのこ")
    assert looks(tmp_path, "data")[0].study == "Röhrlinge und きのこ"


def test_a_count_that_cannot_be_kept_is_told_before_the_look(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(StudyError, match=rf"are counted in {re.escape(str(tmp_path / FILE))}, but it cannot be read"):
        count(tmp_path, "data", "first", "a")
    with pytest.raises(StudyError, match=r"counted before it is taken, but .*gone/test-looks\.tsv cannot be written"):
        count(tmp_path / "gone", "data", "first", "a")


def test_a_count_that_is_no_text_is_told_by_its_path(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xff\xfe\xff")
    with pytest.raises(StudyError, match=r"test-looks\.tsv, but it cannot be read \(.*\); mend it$"):
        looks(tmp_path, "data")
