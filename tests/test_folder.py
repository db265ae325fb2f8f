"""A study's own files: where they cannot be made or removed, one clear line says so."""

from pathlib import Path

import pytest

from tuning import StudyError
from tuning.folder import make_folder, remove_file


def test_a_folder_that_cannot_be_made_is_told_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("a file")
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    for place in (tmp_path / "plots", tmp_path / "plots" / "deeper"):
        with pytest.raises(StudyError, match=rf"but {place} cannot be made \("):
            make_folder(place)
    assert (tmp_path / "plots").read_text() == "a file"


def test_a_file_that_cannot_be_removed_is_told_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "old.html"
    file.touch()
    remove_file(file)
    remove_file(file)
    assert not file.exists()
    (tmp_path / "kept").mkdir()
    with pytest.raises(StudyError, match=rf"but {tmp_path / 'kept'} stays \("):
        remove_file(tmp_path / "kept")
