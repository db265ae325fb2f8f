"""The log of test-set evaluations: each one is on the disk before it is made, and no damage to the file hides one."""

import re
from pathlib import Path

import pytest

from selection.test_set_uses import (
    EARLIER_FILE,
    FILE,
    all_uses,
    already_tested,
    log_allowed_use,
    log_locked,
    log_use,
    uses_by_others,
)
from tuning import StudyError


def test_each_set_of_networks_is_logged_once(tmp_path: Path) -> None:
    assert all_uses(tmp_path, "data") == []
    for networks in ("first", "first", "second", "first"):
        log_use(tmp_path, "data", networks, "my study")
    logged = all_uses(tmp_path, "data")
    assert [(use.networks, use.study) for use in logged] == [("first", "my study"), ("second", "my study")]
    assert (tmp_path / FILE).read_text(encoding="utf-8").count("\n") == 2
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", use.when) for use in logged)


def test_evaluations_on_other_pictures_do_not_count(tmp_path: Path) -> None:
    log_use(tmp_path, "mushrooms", "first", "a")
    log_use(tmp_path, "birds", "first", "b")
    assert [use.study for use in all_uses(tmp_path, "birds")] == ["b"]
    assert uses_by_others(tmp_path, "birds", "other") == all_uses(tmp_path, "birds")


def test_only_evaluations_before_the_networks_own_count_against_them(tmp_path: Path) -> None:
    """Networks that have been tested keep their result: later evaluations of others change nothing about it."""
    for networks in ("first", "second", "third"):
        log_use(tmp_path, "data", networks, "a")
    assert [use.networks for use in uses_by_others(tmp_path, "data", "first")] == []
    assert [use.networks for use in uses_by_others(tmp_path, "data", "third")] == ["first", "second"]
    assert [use.networks for use in uses_by_others(tmp_path, "data", "fourth")] == ["first", "second", "third"]
    assert already_tested(tmp_path, "data", "third")
    assert not already_tested(tmp_path, "data", "fourth")


def test_a_use_is_refused_after_others_except_by_retest_or_beside_what_it_is_compared_with(tmp_path: Path) -> None:
    def log(networks: str, beside: str | None = None, *, retest: bool = False) -> list[str] | None:
        earlier = log_allowed_use(tmp_path, "data", networks, "a", retest=retest, beside=beside)
        return None if earlier is None else [use.networks for use in earlier]

    assert log("first") == []
    assert log("second") is None
    assert log("second", beside="first") == []
    assert log("third", beside="first") is None
    assert log("third", retest=True) == ["first", "second"]
    assert log("third") == ["first", "second"]  # it has been tested
    assert [use.networks for use in all_uses(tmp_path, "data")] == ["first", "second", "third"]


@pytest.mark.parametrize("torn", ["data", "data\tnetworks", "data\tnetworks\tstudy\t2026-01-01T00:00:00", "\n\n", "\0"])
def test_a_torn_last_line_hides_no_later_evaluation(torn: str, tmp_path: Path) -> None:
    """The next line was appended to the torn one, and so neither of the two was counted."""
    log_use(tmp_path, "data", "first", "a")
    with (tmp_path / FILE).open("a", encoding="utf-8") as file:
        file.write(torn)
    log_use(tmp_path, "data", "second", "b")
    logged = [use.networks for use in all_uses(tmp_path, "data")]
    assert logged == ["first", *(["networks"] if torn.count("\t") == 3 else []), "second"]


def test_study_names_in_any_script_are_kept(tmp_path: Path) -> None:
    log_use(tmp_path, "data", "first", "Röhrlinge und きのこ")
    assert all_uses(tmp_path, "data")[0].study == "Röhrlinge und きのこ"


def test_a_log_under_its_earlier_name_is_renamed_and_still_counts(tmp_path: Path) -> None:
    line = "data\tfirst\ta\t2026-01-01T00:00:00\n"
    (tmp_path / EARLIER_FILE).write_text(line, encoding="utf-8")
    with log_locked(tmp_path):
        assert [use.networks for use in uses_by_others(tmp_path, "data", "second")] == ["first"]
        log_use(tmp_path, "data", "second", "b")
    assert not (tmp_path / EARLIER_FILE).exists()
    assert (tmp_path / FILE).read_text(encoding="utf-8").startswith(line)
    with log_locked(tmp_path):
        assert [use.networks for use in all_uses(tmp_path, "data")] == ["first", "second"]


def test_a_log_that_cannot_be_used_is_an_error_naming_its_path(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(StudyError, match=rf"^cannot read {re.escape(str(tmp_path / FILE))}.*directory"):
        log_use(tmp_path, "data", "first", "a")
    with pytest.raises(StudyError, match=rf"^cannot write .*gone/{re.escape(FILE)}.*No such file"):
        log_use(tmp_path / "gone", "data", "first", "a")


def test_a_log_that_is_no_text_is_an_error_naming_its_path(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xff\xfe\xff")
    with pytest.raises(StudyError, match=rf"^cannot read .*{re.escape(FILE)}.*\(.*utf-8"):
        all_uses(tmp_path, "data")
