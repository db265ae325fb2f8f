"""A study's folder: paths of its files, and how they are written and removed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import sqlalchemy

from model.files import is_hidden, replacing
from model.plain_json import few
from tuning import StudyError

RESULTS = Path(__file__).resolve().parent.parent / "results"
"""Default folder of all studies."""
OUTPUTS = (
    "settings.json",
    "trials",
    "trials.csv",
    "data_report.csv",
    "report.html",
    "plots",
    "artifacts",
    "finalists.csv",
    "finalists",
    "doubts.csv",
    "doubts.jpg",
    "evidence.jpg",
    "retrained.json",
    "retrained",
    "audit",
    "best",
)
"""Names of what a study writes into its folder, without its database and its lock."""


def study_folder(results: Path, name: str) -> Path:
    """Create the folder of a study. Raises StudyError if it cannot be written, or if it is a folder of other things."""
    if not name.strip(" .") or not name.isprintable() or any(character in name for character in '/\\:*?"<>|'):
        raise StudyError(
            f"{name!r} is not a valid name for a study and its folder: choose one without "
            '/ \\ : * ? " < > | with --study NAME'
        )
    folder = results / name
    try:
        if folder.is_dir() and not any((folder / part).exists() for part in (*OUTPUTS, "study.db")):
            others = [path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name)]
            if others:
                raise StudyError(
                    f"{folder} is not a study's folder, as it holds other folders ({few(others)}): choose another name "
                    "with --study NAME, or another place with --results DIR"
                )
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StudyError(
            f"cannot write to {folder} ({error.strerror}): free or repair the disk, or choose another folder with "
            "--results DIR"
        ) from error
    return folder


def make_folder(folder: Path) -> None:
    """Create a folder and its parents. Raises StudyError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"cannot create {folder} ({error.strerror}): free or repair the disk") from error


def sqlite_url(folder: Path) -> str:
    """Return the URL of the SQLite database in a study's folder, with the characters quoted that a URL gives a meaning.

    Unquoted, the path `My%20Project` would be that of the folder `My Project`.
    """
    return sqlalchemy.URL.create("sqlite", database=(folder / "study.db").resolve().as_posix()).render_as_string()


def trial_directory(folder: Path, number: int) -> Path:
    """Return the directory of a trial's files in the study's `folder`."""
    return folder / "trials" / f"{number:04d}"


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file and rename it to `path`. Raises StudyError if that fails."""
    try:
        with replacing(path) as unfinished:
            write(unfinished)
    except OSError as error:
        raise StudyError(
            f"cannot write {path} ({error.strerror or error}): free or repair the disk, then run the same command "
            "again to resume"
        ) from error


def remove_file(path: Path) -> None:
    """Remove a file if it is there. Raises StudyError if that fails."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StudyError(
            f"cannot delete the obsolete file {path} ({error.strerror}): make its folder writable, then run the same "
            "command again to resume"
        ) from error
