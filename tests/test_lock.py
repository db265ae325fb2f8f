"""The lock of a study: one coordinator at a time, and a second one learns who the first is."""

import os
from pathlib import Path

import pytest

from tuning import StudyError
from tuning.lock import sole_coordinator


def test_a_second_coordinator_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    with sole_coordinator(tmp_path), pytest.raises(StudyError) as caught, sole_coordinator(tmp_path):
        pass
    text = str(caught.value)
    assert text.startswith(f"{tmp_path} is in use by process {os.getpid()} on ") and "--study NAME" in text
    with sole_coordinator(tmp_path):
        assert (tmp_path / "study.owner").exists()
    assert not (tmp_path / "study.owner").exists()


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.lock").mkdir()
    with pytest.raises(StudyError, match=f"cannot write {tmp_path / 'study.lock'}"), sole_coordinator(tmp_path):
        pass


def test_an_owner_file_that_cannot_be_written_is_named_and_the_lock_released(tmp_path: Path) -> None:
    (tmp_path / "study.owner").mkdir()
    with pytest.raises(StudyError, match=f"cannot write {tmp_path / 'study.owner'}"), sole_coordinator(tmp_path):
        pass
    (tmp_path / "study.owner").rmdir()
    with sole_coordinator(tmp_path):
        pass
