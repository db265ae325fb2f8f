"""Which study a folder, a database and results belong to: told apart before anything is written.

A study has a random id, in its database and in every file that a later command reads: settings, finalists, winner,
bundle. A file belongs to the study in the database if it names no other id, and no trial that this study has not
started. Of several folders that share one study in a database, the one in which it was last run owns it.
"""

from __future__ import annotations

import csv
import platform
import shlex
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.trial import TrialState

from model import plain_json
from model.files import printable
from tuning import StudyError, settings
from tuning.folder import OUTPUTS
from tuning.settings import STUDY_ID

SESSION = "session"
"""Study attribute that says where a study was last run: `folder`, `host`, and a random `id` that the folder's settings
hold as well."""


def study_id(study: optuna.Study) -> str | None:
    """Return the random id of a study; None for a study of an earlier version."""
    return study.user_attrs.get(STUDY_ID)


def identify(study: optuna.Study, made_by: str | None = None) -> str:
    """Return the random id of a study, after giving it this one, by default a new one, if it has none."""
    if (known := study_id(study)) is None:
        study.set_user_attr(STUDY_ID, known := made_by or _random_id())
    return known


def begin_session(study: optuna.Study, folder: Path) -> str:
    """Record in the database that a study is now run in `folder`, and return the random id of this session."""
    session = _random_id()
    study.set_user_attr(SESSION, {"id": session, "folder": str(folder.resolve()), "host": platform.node()})
    return session


def leftovers(folder: Path) -> list[str]:
    """Return the names of a study's outputs that a folder holds."""
    return [output for output in OUTPUTS if _holds_files(folder / output)]


def missing_study(folder: Path, where: str, held: str) -> StudyError:
    """Return the error of a database that lacks the study whose files a folder holds.

    That is so after a study was renamed or deleted in the dashboard, its folder renamed or copied, or another database
    given. `where` is the database's URL as it is shown, `held` says what is there instead.
    """
    kept = settings.found(folder)
    elsewhere = kept.storage if kept is not None and kept.storage != where else None
    given = f"it was started with --storage {elsewhere}, so give that again; " if elsewhere else ""
    return StudyError(
        f"{folder} holds files of a study ({plain_json.few(leftovers(folder) or ['study.db'])}), but {where} {held}: "
        f"{given}if it was renamed, give study and folder the same name again; if its database was moved, put it back; "
        "if it was deleted, move its files elsewhere or start another study with --study NAME"
    )


def refuse_strange_files(study: optuna.Study, folder: Path, where: str) -> None:
    """Raise StudyError if a folder holds files that the study in the database has not written.

    They are another study's, or the database was restored from an older backup. A folder older than its database lacks
    files but has no wrong ones, and is accepted.
    """
    files = list(_files(folder))  # before the trials: a running study adds a trial first
    trials = study.get_trials(deepcopy=False)
    started = {trial.number for trial in trials if trial.state is not TrialState.WAITING}
    strange = [path for path, made_by, named in files if made_by not in (None, study_id(study)) or not named <= started]
    if strange:
        names = plain_json.few(path.relative_to(folder).as_posix() for path in strange)
        raise StudyError(
            f"{folder} holds files ({names}) that are not of study '{study.study_name}' in {where}, or of trials that "
            f"it does not have (it has begun {len(started)}): restore folder and database from the same backup, move "
            "these files elsewhere to continue with what the database holds, or start another study with --study NAME"
        )


def refuse_second_folder(study: optuna.Study, folder: Path, where: str) -> None:
    """Raise StudyError if the study was last run in another folder, which is still there or on another machine."""
    session, kept = study.user_attrs.get(SESSION), settings.found(folder)
    if not isinstance(session, dict) or (kept is not None and kept.session == session["id"]):
        return
    place, host, name = Path(session["folder"]), session["host"], study.study_name
    if host == platform.node() and (place == folder.resolve() or not (place / settings.FILE).exists()):
        return  # its settings were lost or restored from a backup, or it was moved
    forget = ["optuna", "study", "set-user-attr", f"--storage={where}", f"--study-name={name}", f"--key={SESSION}"]
    raise StudyError(
        f"study '{name}' in {where} was last run in {printable(place)} on {host}, not in {folder}: run it there with "
        f"--results DIR, move that folder here, or start another study with --study NAME; if that folder is lost: "
        f"{shlex.join([*forget, '--value=lost'])}"
    )


def _files(folder: Path) -> Iterator[tuple[Path, str | None, set[int]]]:
    """Yield each file that a later command reads, with the id of the study that wrote it and the trials it is about."""
    for directory in sorted(folder.glob("trials/*")):
        if directory.name.isdecimal() and _holds_files(directory):
            yield directory, None, {int(directory.name)}
    kept = settings.found(folder)
    if kept is not None:
        yield folder / settings.FILE, kept.study_id, set()
    winner = _json(folder / "retrained.json")
    yield folder / "retrained.json", winner.get("study_id"), _numbers([winner.get("trial")])
    bundle = _json(folder / "best" / "config.json").get("provenance")
    if isinstance(bundle, dict):
        bundle = cast(dict[str, Any], bundle)
        yield folder / "best", bundle.get(STUDY_ID), _numbers([bundle.get("trial")])
    for made_by in {row.get("study_id") or None for row in _rows(folder / "doubts.csv")}:
        yield folder / "doubts.csv", made_by, set()
    finalists = _rows(folder / "finalists.csv")
    for made_by in {row.get("study_id") or None for row in finalists}:
        yield folder / "finalists.csv", made_by, _numbers(row.get("trial") for row in finalists)
    trials = [row for row in _rows(folder / "trials.csv") if row.get("state") != TrialState.WAITING.name]
    yield folder / "trials.csv", None, _numbers(row.get("number") for row in trials)


def _random_id() -> str:
    return uuid.uuid4().hex[:16]


def _holds_files(path: Path) -> bool:
    return path.is_file() or any(each.is_file() for each in path.rglob("*"))


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if there is none, or if its reader will refuse it."""
    try:
        values = plain_json.read(path)
    except (OSError, ValueError):
        return {}
    return cast(dict[str, Any], values) if isinstance(values, dict) else {}


def _rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; none if it is missing or damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _numbers(values: Iterable[object]) -> set[int]:
    """Return those of the values that are trial numbers."""
    return {int(value) for value in map(str, values) if value.isdecimal()}
