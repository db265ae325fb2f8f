"""Opens a study's database, creates the study in it, and explains what is wrong if that fails."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import optuna
import psutil
import sqlalchemy
import sqlalchemy.exc
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection

from model.plain_json import few
from tuning import StudyError, ownership
from tuning.settings import STUDY_ID
from tuning.space import refuse_changes
from tuning.storage import Storage, is_away, reason
from tuning.trials import METRIC

IDENTITY = "identity:"
"""Prefix of study attributes that must not change."""
LOCKED_SECONDS = 300.0
"""Seconds that SQLite waits for another program to release the database; its default of 5 s is too short for a slow
disk or a backup in progress. Ctrl-C takes effect when the wait is over."""
ANOTHER = "use another study with --study NAME or another database with --storage URL"
WAYS_OUT = {
    "database is locked": f"another program has held it for more than {LOCKED_SECONDS:.0f} s: close that program, then "
    "run the same command again to resume",
    "disk is full": "free some space, then run the same command again to resume",
    "disk i/o error": "repair the disk or raise its quota, then run the same command again to resume",
    "its file is gone": f"put it back, or {ANOTHER}",
    "password": "keep the password in the file that PGPASSFILE names, by default ~/.pgpass",
    "permission denied": "grant the role SELECT, INSERT, UPDATE and DELETE on all tables and sequences",
    "read-only": "connect to a server and with a role that may write",
    "does not exist": "create it on the server, or correct the address in --storage URL",
    "no pg_hba.conf entry": "let the server accept this machine in pg_hba.conf",
    "no space left": "free some space on the server, then run the same command again to resume",
    "away": "start the server, or give its address with --storage URL, then run the same command again to resume",
    "malformed": f"restore it from a backup, or {ANOTHER}",
}
"""Fixes to suggest, each by a phrase in the database's error message."""
REFUSALS = ("password", "does not exist", "no pg_hba.conf entry", "no space left")
"""Those phrases by which a server, whose driver calls it away, says why it refuses."""
NETWORK_FILE_SYSTEMS = {
    "nfs",
    "nfs4",
    "cifs",
    "smbfs",
    "smb3",
    "afpfs",
    "fuse.sshfs",
    "9p",
    "lustre",
    "ceph",
    "glusterfs",
}


def without_password(text: str) -> str:
    """Return a storage URL, or a text that contains one, with its password masked, even if the URL cannot be parsed."""
    # From the user's colon to the last @, whatever is in between: blanks, a second @, a mistyped scheme.
    text = re.sub(r"(://[^:/]*:|^[^:/\\]{2,}:(?!/)|^[^:/\\]{2,}:/[^:/]*:).*@", r"\1***@", text, flags=re.DOTALL)
    text = re.sub(r"(://[^:/@]*:)(?!\d+$)[^@/?]+$", r"\1***", text)  # neither an @ nor a port
    return re.sub(r"([?&][^=&\s]*(?:pass|pwd|secret|token)[^=&\s]*=)[^&]*", r"\1***", text, flags=re.IGNORECASE)


def shown(url: str) -> str:
    """Return a storage URL as errors show it: without its password, an SQLite file with its absolute path."""
    return without_password(absolute(url))


def absolute(url: str) -> str:
    """Return a storage URL that works from any working directory: an SQLite file gets its absolute path."""
    file = _file(url)
    if file is None or file.is_absolute():
        return url
    parsed = sqlalchemy.make_url(url)
    if str(parsed.database) != str(file):
        return url
    return parsed.set(database=str(file.absolute())).render_as_string(hide_password=False)


def network_file_system(folder: Path) -> str | None:
    """Return the kind of network file system that holds `folder`, on which SQLite's locks are unsafe; None if local."""
    folder = folder.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)]
    kind = max(mounts, key=lambda part: len(part.mountpoint)).fstype.lower() if mounts else ""
    return kind if kind in NETWORK_FILE_SYSTEMS else None


@contextlib.contextmanager
def explained(url: str) -> Generator[None]:
    """Turn a database error into a StudyError that says what to do; nothing that was committed is lost."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error) as error:
        said, file = reason(error), _file(url)
        if file is not None and not file.exists():
            said += " (its file is gone)"  # SQLite calls a file that was removed read-only
        away = is_away(error) and file is None
        default = WAYS_OUT["away"] if away else f"repair it, or {ANOTHER}"
        parts = REFUSALS if away else WAYS_OUT
        way_out = next((WAYS_OUT[part] for part in parts if part in said.lower()), default)
        raise StudyError(f"cannot use the database {without_password(url)} ({said}): {way_out}") from error


@contextlib.contextmanager
def not_deleted(study: optuna.Study) -> Generator[None]:
    """Turn the KeyError for a study that another program deletes meanwhile into a StudyError."""
    try:
        yield
    except KeyError as error:
        if _is_there(study):
            raise
        raise StudyError(
            f"study '{study.study_name}' was deleted from its database while it was running: run the same command "
            "again to start it over"
        ) from error


def _is_there(study: optuna.Study) -> bool:
    try:
        found = study._storage.get_study_id_from_name(study.study_name)  # pyright: ignore[reportPrivateUsage]
    except KeyError:
        return False
    return found == study._study_id  # pyright: ignore[reportPrivateUsage]


@contextlib.contextmanager
def _legible(url: str) -> Generator[None]:
    """Turn what Optuna raises for invalid values in a readable database, such as a flipped bit, into a StudyError."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise StudyError(
            f"cannot interpret the contents of database {without_password(url)} ({type(error).__name__}: {reason}): "
            f"{WAYS_OUT['malformed']}"
        ) from error


def _file(url: str) -> Path | None:
    """Return the path of an SQLite database's file; None for any other database, or a URL that `connect` refuses."""
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return None
    named = parsed.database if parsed.get_backend_name() == "sqlite" else None
    return Path(named.removeprefix("file:")) if named and named != ":memory:" else None


def _is_empty(file: Path) -> bool:
    """Return whether connecting would make a new database."""
    return not (file.exists() and file.stat().st_size)


def _check(file: Path) -> None:
    """Raise an error if an SQLite database is damaged."""
    if file.is_file() and file.stat().st_size:
        with contextlib.closing(sqlite3.connect(file, timeout=LOCKED_SECONDS)) as connection:
            # Left alone, SQLite finds a damaged page only when it reads it: in the middle of a study.
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(f"database disk image is malformed: {' '.join(found.split())}")


def connect(url: str, folder: Path | None = None) -> Storage:
    """Return the storage at a URL; `folder` is that of the study for which a new SQLite file may be made.

    Raises StudyError if there is no database server, if another Optuna version created the database, or if there is no
    file although the folder holds a study's files.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise StudyError(
            f"--storage {without_password(url)!r} is not a database URL: write it like sqlite:///study.db or "
            "postgresql://user@host/name"
        ) from None
    if "@" in (parsed.host or ""):  # the driver would look up a host of that name, and print it
        raise StudyError(
            f"--storage {without_password(url)!r} has an unescaped character in its password: write @ as %40, / as %2F "
            "and : as %3A"
        )
    file = _file(url)
    if file is not None and folder is not None and _is_empty(file) and ownership.leftovers(folder):
        raise ownership.missing_study(folder, shown(url), "is empty" if file.exists() else "does not exist")
    try:
        with explained(url):
            if file is not None:
                _check(file)
            return Storage(url, shown=without_password(url), locked_seconds=LOCKED_SECONDS)
    except ImportError as error:
        raise StudyError(
            f"no driver for --storage {without_password(url)} is installed: pip install -e '.[cluster]' for "
            "PostgreSQL, or pip install mysqlclient for MySQL"
        ) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise StudyError(
            f"cannot use the tables of {without_password(url)} with this version of Optuna ({reason}): {ANOTHER}"
        ) from error


def open_study(
    storage: Storage,
    name: str,
    *,
    sampler: BaseSampler,
    pruner: BasePruner | None = None,
    identity: dict[str, Any],
    first_trials: dict[str, dict[str, Any]],
    portfolio: Sequence[dict[str, Any]] = (),
    metric: str = METRIC,
    folder: Path | None = None,
    study_id: str | None = None,
) -> optuna.Study:
    """Open a study and check its identity, or create it with its first trials enqueued.

    Args:
        identity: JSON values by name; a study that was created with other values is refused.
        first_trials: Parameters by the baseline's name, enqueued when the study is created.
        portfolio: Parameters that are enqueued after them.
        metric: What the dashboard calls a trial's value.
        folder: The study's folder, which is checked to belong to it.
        study_id: Random id that the study must have, or gets; by default a new one.

    Raises StudyError if another program created the study, its identity differs, folder and database do not belong
    together, or the database cannot be used.
    """
    url = storage.url
    storage.read_again()
    file = _file(url)
    own = folder is not None and file is not None and file.resolve().parent == folder.resolve()
    left = folder is not None and ownership.leftovers(folder)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    now = {name: json.loads(json.dumps(value)) for name, value in identity.items()}
    with explained(url):
        with _legible(url):
            there = optuna.get_all_study_names(storage)
            if folder is not None and name not in there and (left or (own and there)):
                raise ownership.missing_study(folder, shown(url), _held(name, there))
            study = optuna.create_study(
                storage=storage,
                study_name=name,
                sampler=sampler,
                pruner=pruner or NopPruner(),
                direction="maximize",
                load_if_exists=True,
            )
            trials = study.get_trials(deepcopy=False)
            stored = {key[len(IDENTITY) :]: v for key, v in study.user_attrs.items() if key.startswith(IDENTITY)}
        owner = ownership.study_id(study)
        # A study without trials in its folder's own database was left by an interrupted start.
        theirs = bool(trials) or (name in there and not own and folder is not None and study_id is None)
        ours = stored or owner or not now or not theirs
        if study.directions != [StudyDirection.MAXIMIZE] or not ours:
            raise StudyError(f"study '{name}' in {without_password(url)} was not created by this program: {ANOTHER}")
        if study_id is not None and owner not in (None, study_id):
            raise StudyError(
                f"'{name}' in {shown(url)} belongs to an earlier study of this name: rename or delete it in the "
                "dashboard, or start another study with --study NAME"
            )
        if folder is not None:
            with _legible(url):
                ownership.refuse_strange_files(study, folder, shown(url))
                ownership.refuse_second_folder(study, folder, shown(url))
        if trials:
            with _legible(url):
                refuse_changes(stored, now, name)
        ownership.identify(study, study_id)
        if not trials:
            # Overwrite whatever an interrupted start has left.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names([metric])
            for key, value in now.items():
                study.set_user_attr(IDENTITY + key, value)
        if len(trials) < len(first_trials) + len(portfolio):
            for baseline, parameters in first_trials.items():
                study.enqueue_trial(parameters, user_attrs={"baseline": baseline}, skip_if_exists=True)
            for parameters in portfolio:
                study.enqueue_trial(parameters, skip_if_exists=True)
    return study


def load_study(url: str, name: str, folder: Path) -> optuna.Study:
    """Return an existing study.

    Raises StudyError if it does not exist, if its folder and database do not belong together, or if the database cannot
    be used.
    """
    if (file := _file(url)) is not None and not file.exists():
        # Connecting would make an empty database.
        raise ownership.missing_study(folder, shown(url), "does not exist")
    storage = connect(url)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with explained(url), _legible(url):
        there = optuna.get_all_study_names(storage)
        if name not in there:
            raise ownership.missing_study(folder, shown(url), _held(name, there))
        study = optuna.load_study(study_name=name, storage=storage)
        study.get_trials(deepcopy=False)
        ours = any(key.startswith(IDENTITY) for key in study.user_attrs)
        if study.directions != [StudyDirection.MAXIMIZE] or not ours:
            raise StudyError(f"study '{name}' in {without_password(url)} was not created by this program: {ANOTHER}")
        ownership.refuse_strange_files(study, folder, shown(url))
    return study


def load_sibling(study: optuna.Study, kind: str) -> optuna.Study | None:
    """Return the study of these runs; None if there is none, or if it is an earlier study's of the same name."""
    storage = study._storage  # pyright: ignore[reportPrivateUsage]
    try:
        runs = optuna.load_study(study_name=sibling(study, kind), storage=storage)
    except KeyError:
        return None
    return runs if ownership.study_id(runs) in (None, ownership.study_id(study)) else None


def sibling(study: optuna.Study, kind: str) -> str:
    """Return the name of the study of these runs: finalists, final runs or audited trials.

    It keeps its name when the study itself is renamed.
    """
    name, storage = f"{study.study_name}-{kind}", study._storage  # pyright: ignore[reportPrivateUsage]
    owner, ours = ownership.study_id(study), list[str]()
    for other_study in storage.get_all_studies():
        known = other_study.user_attrs
        if owner is not None and known.get(STUDY_ID) == owner and known.get(IDENTITY + "runs") == kind:
            ours.append(other_study.study_name)
    return name if name in ours or not ours else ours[0]


def _held(name: str, there: Sequence[str]) -> str:
    """Say which studies a database holds, apart from the finalists and final runs of the named one."""
    others = [other for other in there if not other.startswith(f"{name}-")]
    return f"holds {few(others)}" if others else "holds no study"
