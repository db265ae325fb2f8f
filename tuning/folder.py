"""A study's folder: what lies where, and how a file is written so that one that is there is whole."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from model.files import replacing
from tuning import StudyError


def study_folder(results: Path, name: str) -> Path:
    """Makes the folder of a study. Raises StudyError where that, or writing in it, is impossible."""
    if not name.strip(" .") or not name.isprintable() or any(character in name for character in '/\\:*?"<>|'):
        raise StudyError(
            f"a study's name is also its folder's, so it holds none of / \\ : * ? \" < > |, but got {name!r}"
        )
    folder = results / name
    try:
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StudyError(
            f"a study writes into its folder, but {folder} cannot be written ({error.strerror}); "
            "free or mend it, or choose another place with --results DIR"
        ) from error
    return folder


def make_folder(folder: Path) -> None:
    """Makes a folder inside a study's. Raises StudyError where it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(
            f"a study writes into its folder, but {folder} cannot be made ({error.strerror}); free or mend the disk"
        ) from error


def sqlite_url(folder: Path) -> str:
    """The default storage of a study with this folder."""
    return f"sqlite:///{(folder / 'study.db').resolve().as_posix()}"


def trial_directory(folder: Path, number: int) -> Path:
    """Where a trial of the study in `folder` keeps its files."""
    return folder / "trials" / f"{number:04d}"


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path` and renames it into place. Raises StudyError where it cannot."""
    try:
        with replacing(path) as unfinished:
            write(unfinished)
    except OSError as error:
        raise StudyError(
            f"cannot write {path} ({error.strerror or error}): free or repair the disk, then run the same command "
            "again to resume"
        ) from error


def remove_file(path: Path) -> None:
    """Removes a file, if it is there. Raises StudyError where it cannot."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StudyError(
            f"a study removes files of its own that have had their time, but {path} stays ({error.strerror}); mend its "
            "folder's rights, and the same command goes on"
        ) from error
