"""The log of test-set evaluations: each one is on the disk before it is made, and no damage to the file hides one."""

import hashlib
import re
from pathlib import Path

import pytest

from selection.test_set_uses import (
    EARLIER_FILE,
    FILE,
    SAMPLE,
    TestSet,
    all_uses,
    log_allowed_use,
    log_locked,
    log_use,
    uses_by_others,
)
from tuning import StudyError

DATA = TestSet(fingerprint="data", sample=("0a", "1b"))


def test_each_set_of_networks_is_logged_once(tmp_path: Path) -> None:
    assert all_uses(tmp_path, DATA) == []
    for networks in ("first", "first", "second", "first"):
        log_use(tmp_path, DATA, networks, "my study")
    logged = all_uses(tmp_path, DATA)
    assert [(use.networks, use.study) for use in logged] == [("first", "my study"), ("second", "my study")]
    assert (tmp_path / FILE).read_text(encoding="utf-8").count("\n") == 2
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", use.when) for use in logged)


def test_evaluations_on_other_pictures_do_not_count(tmp_path: Path) -> None:
    mushrooms, birds = (TestSet(fingerprint=name, sample=(name,)) for name in ("mushrooms", "birds"))
    log_use(tmp_path, mushrooms, "first", "a")
    log_use(tmp_path, birds, "first", "b")
    assert [use.study for use in all_uses(tmp_path, birds)] == ["b"]
    assert uses_by_others(tmp_path, birds, "other") == all_uses(tmp_path, birds)


def with_pictures(hashes: list[str]) -> TestSet:
    return TestSet(fingerprint=f"{len(hashes)} pictures", sample=tuple(sorted(hashes)[:SAMPLE]))


@pytest.mark.parametrize("share", [1.0, 0.9, 0.25])
def test_evaluations_on_some_of_the_same_pictures_count(tmp_path: Path, share: float) -> None:
    """A corrected label, an added picture or another --pictures N made the same test pictures new ones."""
    hashes = [hashlib.sha256(bytes([number % 256, number // 256])).hexdigest() for number in range(1000)]
    log_use(tmp_path, with_pictures(hashes[: int(1000 * share)]), "first", "a")
    again = TestSet(fingerprint="corrected", sample=with_pictures(hashes).sample)
    assert log_allowed_use(tmp_path, again, "second", "b", retest=False) is None
    assert [use.networks for use in all_uses(tmp_path, again)] == ["first"]


def test_networks_that_were_tested_may_be_tested_again_and_all_others_are_counted(tmp_path: Path) -> None:
    for networks in ("first", "second", "third"):
        log_use(tmp_path, DATA, networks, "a")
    others = log_allowed_use(tmp_path, DATA, "second", "a", retest=False)
    assert others is not None and [use.networks for use in others] == ["first", "third"]
    assert len(all_uses(tmp_path, DATA)) == 3


def test_the_same_networks_with_more_or_fewer_seeds_are_no_others(tmp_path: Path) -> None:
    for networks in ("x seed 1 x seed 2", "x seed 1 x seed 2 x seed 3", "x seed 1"):
        assert log_allowed_use(tmp_path, DATA, networks, "a", retest=False) == []
    assert len(all_uses(tmp_path, DATA)) == 1
    assert log_allowed_use(tmp_path, DATA, "x seed 12", "a", retest=False) is None


def test_a_use_is_refused_after_others_except_by_retest_or_beside_what_it_is_compared_with(tmp_path: Path) -> None:
    def log(networks: str, beside: str = "", *, retest: bool = False) -> list[str] | None:
        earlier = log_allowed_use(tmp_path, DATA, networks, "a", retest=retest, beside=beside)
        return None if earlier is None else [use.networks for use in earlier]

    assert log("first") == []
    assert log("second") is None
    assert log("second", beside="first") == []
    assert log("first") == []  # it is no other network that it was only compared with
    assert log("third", beside="first") is None
    assert log("third", retest=True) == ["first", "second"]
    assert log("third") == ["first", "second"]  # it has been tested
    assert [use.networks for use in all_uses(tmp_path, DATA)] == ["first", "second", "third"]


@pytest.mark.parametrize(
    "torn",
    ["data", "data\tnetworks", "data\tnetworks\tstudy\t2026-01-01T00:00:00", "data\tnetworks\ta\tb\t0", "\n\n", "\0"],
)
def test_a_torn_last_line_hides_no_later_evaluation(torn: str, tmp_path: Path) -> None:
    """The next line was appended to the torn one, and so neither of the two was counted."""
    log_use(tmp_path, DATA, "first", "a")
    with (tmp_path / FILE).open("a", encoding="utf-8") as file:
        file.write(torn)
    log_use(tmp_path, DATA, "second", "b")
    logged = [use.networks for use in all_uses(tmp_path, DATA)]
    assert logged == ["first", *(["networks"] if torn.count("\t") >= 3 else []), "second"]


def test_study_names_in_any_script_are_kept(tmp_path: Path) -> None:
    log_use(tmp_path, DATA, "first", "Röhrlinge und きのこ")
    assert all_uses(tmp_path, DATA)[0].study == "Röhrlinge und きのこ"


def test_a_log_under_its_earlier_name_is_renamed_and_still_counts(tmp_path: Path) -> None:
    line = "data\tfirst\ta\t2026-01-01T00:00:00\n"
    (tmp_path / EARLIER_FILE).write_text(line, encoding="utf-8")
    with log_locked(tmp_path):
        assert [use.networks for use in uses_by_others(tmp_path, DATA, "second")] == ["first"]
        log_use(tmp_path, DATA, "second", "b")
    assert not (tmp_path / EARLIER_FILE).exists()
    assert (tmp_path / FILE).read_text(encoding="utf-8").startswith(line)
    with log_locked(tmp_path):
        assert [use.networks for use in all_uses(tmp_path, DATA)] == ["first", "second"]


def test_a_log_that_cannot_be_used_is_an_error_naming_its_path(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(StudyError, match=rf"^cannot read {re.escape(str(tmp_path / FILE))}.*directory"):
        log_use(tmp_path, DATA, "first", "a")
    with pytest.raises(StudyError, match=rf"^cannot write .*gone/{re.escape(FILE)}.*No such file"):
        log_use(tmp_path / "gone", DATA, "first", "a")


def test_a_log_that_is_no_text_is_an_error_naming_its_path(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xff\xfe\xff")
    with pytest.raises(StudyError, match=rf"^cannot read .*{re.escape(FILE)}.*\(.*utf-8"):
        all_uses(tmp_path, DATA)
