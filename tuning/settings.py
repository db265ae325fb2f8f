"""Settings of a study for later commands, in `results/<study>/settings.json`.

Every run rewrites the file, so that its modification time tells which study was run last.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data import NearDuplicates
from model import plain_json
from model.files import printable, why
from tuning import StudyError
from tuning.folder import replace_file, sqlite_url

FILE = "settings.json"
STUDY_ID = "study id"
"""Name of a study's random id in its database, also in the studies of its finalists, final runs and audit, and in the
bundle that was exported from it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where a study's pictures and trials are, and how it was run."""

    data: str
    """A value of `--data`: a name, or the absolute path of a folder."""
    test_data: str | None
    pictures: int | None
    """Largest number of pictures in use; None for all."""
    storage: str | None
    """The database's URL without its password; None for the SQLite file in the study's folder."""
    near_duplicates: NearDuplicates = "group"
    """Whether near-duplicates stay in one part of the split."""
    argv: list[str] = field(default_factory=list[str])
    """Command-line arguments after `study.py`, without passwords."""
    parts: str | None = None
    """A value of `--parts`; None if the folders themselves tell."""
    follow_links: bool = False
    study_id: str | None = None
    """Random id of the study to which the folder belongs; None in earlier versions."""
    session: str | None = None
    """Random id of the last run in this folder; None in earlier versions."""

    def save(self, folder: Path) -> None:
        """Write settings.json. Raises StudyError if that fails."""
        replace_file(folder / FILE, lambda path: path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8"))


def command_line(argv: Sequence[str], trials: int | None = None) -> str:
    """Return these arguments as a command to type; `trials` replaces the value of --trials."""
    kept = list(argv)
    if trials is not None:
        if "--trials" in kept:
            at = kept.index("--trials")
            del kept[at : at + 2]
        kept = [*(argument for argument in kept if not argument.startswith("--trials=")), "--trials", str(trials)]
    return shlex.join(["python", "study.py", *kept])


def recall(results: Path, study: str | None) -> tuple[Path, Settings]:
    """Return the folder and settings of a study; without a name, of the one that was run last. Raises StudyError."""
    names = [study] if study is not None else _by_time(results)
    path = results / names[0] / FILE if names else results / "*" / FILE
    try:
        return path.parent, _read(path)
    except FileNotFoundError:
        there = f" (there are: {', '.join(map(printable, _by_time(results)))})" if names and _by_time(results) else ""
        raise StudyError(
            f"no study found at {printable(path)}{there}: run one with python study.py, or say which one with --study "
            "NAME and --results DIR"
        ) from None
    except (OSError, ValueError) as error:
        raise StudyError(
            f"cannot read {printable(path)} ({why(error)}): run the study again with its original command, which "
            "rewrites it"
        ) from error


def found(folder: Path) -> Settings | None:
    """Return the settings in a study's folder; None if there are none, or if they cannot be read."""
    try:
        return _read(folder / FILE)
    except (OSError, ValueError):
        return None


def url(settings: Settings, folder: Path, given: str | None) -> str:
    """Return the URL of a study's database: the given one, or else the one that the study was started with.

    Raises StudyError if a password is needed, because the URL was stored without it.
    """
    if given is not None:
        return given
    if settings.storage is not None and "***" in settings.storage:
        raise StudyError(
            f"the password of {settings.storage} is not stored: give the URL again with --storage URL (or keep a "
            "PostgreSQL password in ~/.pgpass)"
        )
    return settings.storage or sqlite_url(folder)


def _read(path: Path) -> Settings:
    """Return the settings in a file. Raises OSError and ValueError."""
    values = plain_json.read(path)
    if isinstance(values, dict) and "words" in values:  # the name of `argv` in earlier versions
        values["argv"] = values.pop("words")
    return plain_json.fill(Settings, values)


def _by_time(results: Path) -> list[str]:
    """Return the names of the studies, beginning with the one that was run last."""
    found = sorted(results.glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent.name for path in found]
