"""What a study was begun with, for the commands that come after it: `results/<study>/settings.json`.

Written anew by every run, so that the file's time tells which study was run last.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from model import plain_json
from model.files import printable, why
from tuning import StudyError
from tuning.folder import replace_file, sqlite_url

FILE = "settings.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where a study's pictures and trials are."""

    data: str
    """As `--data` takes it; a folder with its whole path."""
    test_data: str | None
    pictures: int | None
    """How many are used; None: all."""
    storage: str | None
    """The database's URL without its password; None: the SQLite file in the study's folder."""
    words: list[str] = field(default_factory=list[str])
    """What was typed after `study.py`, without passwords."""

    def save(self, folder: Path) -> None:
        """Writes the file, whole or not at all."""
        replace_file(folder / FILE, lambda path: path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8"))


def typed(words: Sequence[str], trials: int | None = None) -> str:
    """The command with these arguments, as it is typed. `trials`: with this total in the place of its own."""
    kept = list(words)
    if trials is not None:
        if "--trials" in kept:
            at = kept.index("--trials")
            del kept[at : at + 2]
        kept = [*(word for word in kept if not word.startswith("--trials=")), "--trials", str(trials)]
    return shlex.join(["python", "study.py", *kept])


def recall(results: Path, study: str | None) -> tuple[Path, Settings]:
    """A study's folder and settings; by default of the one run last. Raises StudyError where there is none."""
    names = [study] if study is not None else _by_time(results)
    path = results / names[0] / FILE if names else results / "*" / FILE
    try:
        return path.parent, plain_json.fill(Settings, plain_json.read(path))
    except FileNotFoundError:
        there = f"; there are: {', '.join(map(printable, _by_time(results)))}" if names and _by_time(results) else ""
        raise StudyError(
            f"this command goes on from a study, but there is no {printable(path)}{there}; run one with python "
            "study.py, or name it with --study NAME and its place with --results DIR"
        ) from None
    except (OSError, ValueError) as error:
        raise StudyError(
            f"{FILE} is what a run of a study has written, but {printable(path)} is not ({why(error)}); run the "
            "study's own command again, which writes it anew"
        ) from error


def url(settings: Settings, folder: Path, given: str | None) -> str:
    """The study's database: the one that is named now, else the one that it was begun with.

    Raises StudyError where its password is needed and only the name was kept.
    """
    if given is not None:
        return given
    if settings.storage is not None and "***" in settings.storage:
        raise StudyError(
            "passwords are not written down (PostgreSQL finds one in ~/.pgpass, too), so a command after the study "
            f"needs --storage URL again; it was {settings.storage}"
        )
    return settings.storage or sqlite_url(folder)


def _by_time(results: Path) -> list[str]:
    """The studies' names, the last run first."""
    found = sorted(results.glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent.name for path in found]
