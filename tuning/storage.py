"""Where a study lives: opening, creating and locking it, what is stored of a trial, and its table.

It stays a plain Optuna study: `optuna-dashboard` and Optuna's own command line read it without this program.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import sqlite3
import warnings
from collections.abc import Generator
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import filelock
import optuna
import psutil
import sqlalchemy
import sqlalchemy.exc
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuning import StudyError
from tuning.folder import replace_file
from tuning.identity import refuse_changes

IDENTITY = "identity:"
"""Prefix of the study's attributes that must not change."""
METRIC = "validation top-1"
LOCKED_SECONDS = 300.0
"""How long SQLite waits for another program that holds the database; its own 5 seconds are short for a slow disk or a
copy that is being made. Ctrl-C is heard when the wait is over."""
ANOTHER = "name another with --study NAME or --storage URL"
WAYS_OUT = {
    "database is locked": f"another program holds it for over {LOCKED_SECONDS:.0f} s: close that one, and the same "
    "command goes on",
    "disk is full": "free some space, and the same command goes on",
    "disk i/o error": "mend the disk or its quota, and the same command goes on",
    "gone": f"put it back, or {ANOTHER}",
    "malformed": f"put a copy of it back, or {ANOTHER}",
}
"""By a part of what a database says. Whatever it is, every finished epoch is in the trials' checkpoints too."""
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


class Outcome(StrEnum):
    """How a trial ended, kept as its attribute `outcome`; Optuna's state says less."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    INFEASIBLE = "infeasible"
    DUPLICATE = "duplicate"
    FAILED = "failed"


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of the `--trials`: it has trained and is finished."""
    if trial.state is TrialState.COMPLETE:
        return True
    return trial.state is TrialState.PRUNED and trial.user_attrs.get("outcome") != Outcome.INFEASIBLE


def trials_since_best(trials: list[FrozenTrial]) -> int:
    """How many counted trials have ended since the best value was reached.

    A clock that was set back leaves ends in the future, which count as earlier than the others: by their times they
    would stay the last, and patience would never run out.
    """
    now = datetime.now()

    def end(trial: FrozenTrial) -> tuple[bool, datetime, int]:
        ended = trial.datetime_complete or now
        return ended <= now, ended, trial.number

    ended = sorted(filter(counts, trials), key=end)
    best, since = -1.0, 0
    for trial in ended:
        since += 1
        if trial.state is TrialState.COMPLETE and (trial.value or 0.0) > best:
            best, since = trial.value or 0.0, 0
    return since


def top(trials: list[FrozenTrial], count: int) -> list[FrozenTrial]:
    """The best complete trials, best first; of equals the earlier one."""
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))[:count]


def without_password(text: str) -> str:
    """A storage URL, or a text that holds one, as it may be shown; one that cannot be parsed has its password too."""
    # From the user's colon to the last @, whatever stands between: blanks, a second @, a scheme that was mistyped.
    text = re.sub(r"(://[^:/]*:|^[^:/\\]{2,}:(?!/)|^[^:/\\]{2,}:/[^:/]*:).*@", r"\1***@", text, flags=re.DOTALL)
    text = re.sub(r"(://[^:/@]*:)(?!\d+$)[^@/?]+$", r"\1***", text)  # neither @ nor a port
    return re.sub(r"([?&][^=&\s]*(?:pass|pwd|secret|token)[^=&\s]*=)[^&]*", r"\1***", text, flags=re.IGNORECASE)


def absolute(url: str) -> str:
    """A storage URL that means the same in every folder: of SQLite with the file's whole path."""
    try:
        file, parsed = _file(url), sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # told of when it is opened
        return url
    if file is None or file.is_absolute() or str(parsed.database) != str(file):
        return url
    return parsed.set(database=str(file.absolute())).render_as_string(hide_password=False)


def network_file_system(folder: Path) -> str | None:
    """The kind of network file system that holds the folder; None on a local disk. SQLite's locks are unsafe on one."""
    folder = folder.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)]
    kind = max(mounts, key=lambda part: len(part.mountpoint)).fstype.lower() if mounts else ""
    return kind if kind in NETWORK_FILE_SYSTEMS else None


@contextlib.contextmanager
def sole_coordinator(folder: Path) -> Generator[None]:
    """Holds the study's lock; the system releases it when the process ends, however it ends.

    Raises StudyError naming the owner where another process holds it.
    """
    owner = folder / "study.owner"
    lock = filelock.FileLock(folder / "study.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        with contextlib.suppress(OSError):
            raise StudyError(
                f"a study has one coordinator, but {folder} is being run by {owner.read_text().strip()}; "
                "wait for it, stop it, or start another study with --study NAME"
            ) from None
        raise StudyError(
            f"a study has one coordinator, but {folder} is being run by another process; wait for it, stop it, or "
            "start another study with --study NAME"
        ) from None
    except OSError as error:
        raise _unwritable(Path(lock.lock_file), error) from error
    try:
        owner.write_text(f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M}\n")
    except OSError as error:
        lock.release()
        raise _unwritable(owner, error) from error
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _unwritable(path: Path, error: OSError) -> StudyError:
    return StudyError(
        f"a study that is being run is locked, but {path} cannot be written ({error.strerror or error}); free or mend "
        "the disk, and the same command goes on"
    )


@contextlib.contextmanager
def explained(url: str) -> Generator[None]:
    """Turns what a database says when it cannot go on into one StudyError; nothing committed is lost by it."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(getattr(cause, "orig", None) or cause).strip().partition("\n")[0]
        file = _file(url)
        if file is not None and not file.exists():
            reason += " (its file is gone)"  # SQLite writes no removed file, and calls it read-only
        way_out = next((way for said, way in WAYS_OUT.items() if said in reason.lower()), f"mend it, or {ANOTHER}")
        raise StudyError(
            f"a study needs a database that it can read and write, but {without_password(url)} says: {reason}; "
            f"{way_out}"
        ) from error


@contextlib.contextmanager
def _legible(url: str) -> Generator[None]:
    """Where the database is whole but what it holds makes no sense, as after a flipped bit, Optuna stumbles over it."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise StudyError(
            f"a study needs a database as Optuna wrote it, but {without_password(url)} holds something else "
            f"({type(error).__name__}: {reason}); {WAYS_OUT['malformed']}"
        ) from error


def _file(url: str) -> Path | None:
    """The file of an SQLite database; None where it is another's."""
    parsed = sqlalchemy.make_url(url)
    named = parsed.database if parsed.get_backend_name() == "sqlite" else None
    return Path(named.removeprefix("file:")) if named and named != ":memory:" else None


def _check(file: Path) -> None:
    """Raises StudyError for an SQLite database that is damaged, or that has gone from beside its trials."""
    there = file.stat().st_size if file.is_file() else 0
    trials = sorted(file.parent.glob("trials/[0-9][0-9][0-9][0-9]/*"))
    if not there and not file.is_dir() and trials:
        raise StudyError(
            f"a study goes on from its database, but {file} is {'empty' if file.exists() else 'gone'}, and "
            f"{trials[0].parent} is of a study; put a copy of the database back, or begin another study with --study "
            "NAME"
        )
    if there:
        with contextlib.closing(sqlite3.connect(file, timeout=LOCKED_SECONDS)) as connection:
            # By itself SQLite finds a damaged page only when it comes to it: in the middle of a study.
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(f"database disk image is malformed: {' '.join(found.split())}")


def connect(url: str) -> optuna.storages.BaseStorage:
    """The storage behind a URL. Raises StudyError where there is none, or one of another Optuna schema."""
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise StudyError(
            f"--storage is a database URL such as sqlite:///study.db or postgresql://user@host/name, but got "
            f"{without_password(url)!r}"
        ) from None
    if "@" in (parsed.host or ""):  # the driver would look for a host of that name, and tell it
        raise StudyError(
            f"a password in a --storage URL writes @ as %40, / as %2F and : as %3A, but got {without_password(url)!r}"
        )
    file = _file(url)
    arguments = {"connect_args": {"timeout": LOCKED_SECONDS}} if parsed.get_backend_name() == "sqlite" else {}
    try:
        with explained(url):
            if file is not None:
                _check(file)
            return optuna.storages.get_storage(optuna.storages.RDBStorage(url, engine_kwargs=arguments))
    except ImportError as error:
        raise StudyError(
            f"a --storage needs its database's driver, but for {without_password(url)} none is installed; "
            "pip install it (psycopg2-binary for PostgreSQL, mysqlclient for MySQL)"
        ) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise StudyError(
            f"a --storage needs this Optuna's tables, but {without_password(url)}: {reason}; or {ANOTHER}"
        ) from error


def open_study(
    url: str,
    name: str,
    *,
    sampler: BaseSampler,
    pruner: optuna.pruners.BasePruner,
    identity: dict[str, Any],
    first_trials: dict[str, dict[str, Any]],
    metric: str = METRIC,
) -> optuna.Study:
    """Opens a study and holds it to its identity, or creates it with its first trials waiting.

    Args: `identity`: JSON values by name, compared and refused when they differ; `first_trials`: parameters by name;
    `metric`: what the dashboard calls a trial's value.
    Raises StudyError: another study's database, a changed identity, a database that cannot be used.
    """
    storage = connect(url)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    now = {name: json.loads(json.dumps(value)) for name, value in identity.items()}
    with explained(url):
        with _legible(url):
            study = optuna.create_study(
                storage=storage,
                study_name=name,
                sampler=sampler,
                pruner=pruner,
                direction="maximize",
                load_if_exists=True,
            )
            trials = study.get_trials(deepcopy=False)
            stored = {key[len(IDENTITY) :]: v for key, v in study.user_attrs.items() if key.startswith(IDENTITY)}
        if study.directions != [StudyDirection.MAXIMIZE] or (trials and now and not stored):
            raise StudyError(f"study '{name}' in {without_password(url)} is not one of this program; use --study NAME")
        if trials:
            with _legible(url):
                refuse_changes(stored, now, name)
        else:
            # No trial yet: whatever an interrupted start has left is written anew.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names([metric])
            for key, value in now.items():
                study.set_user_attr(IDENTITY + key, value)
        if len(trials) < len(first_trials):
            for known, parameters in first_trials.items():
                study.enqueue_trial(parameters, user_attrs={"known_good": known}, skip_if_exists=True)
    return study


def load_study(url: str, name: str) -> optuna.Study:
    """A study that is there. Raises StudyError where it is not, or the database cannot be used."""
    missing = StudyError(
        f"this command goes on from a study, but {without_password(url)} has none called '{name}'; run it first, or "
        "name another with --study NAME"
    )
    if url.startswith("sqlite:///") and (file := _file(url)) is not None and not file.exists():
        raise missing  # connecting would make an empty database
    storage = connect(url)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with explained(url), _legible(url):
        try:
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            raise missing from None
        study.get_trials(deepcopy=False)
        if not any(key.startswith(IDENTITY) for key in study.user_attrs):
            raise StudyError(f"study '{name}' in {without_password(url)} is not one of this program; use --study NAME")
    return study


def write_trials_csv(study: optuna.Study, path: Path) -> None:
    """One line per trial: number, state, value, times, parameters and attributes; written whole or not at all.

    Raises StudyError where it cannot be written.
    """
    table = study.trials_dataframe(
        attrs=("number", "state", "value", "datetime_start", "datetime_complete", "duration", "params", "user_attrs")
    )
    table = table.rename(columns={f"value_{METRIC}": "value"})
    replace_file(path, lambda temporary: table.to_csv(temporary, index=False))
