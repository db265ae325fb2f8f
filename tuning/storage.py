"""The database as the coordinator uses it: patient with a server, and read only where something may have changed.

A trial is written to about sixty times, and the study is looked at as often. Optuna reads every unfinished trial anew
at each look, which takes seconds with hundreds of slots. But a study has one writer: a trial is as this process has
left it, except for what people change in the dashboard, which may be seen a moment later.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from typing import Any, cast

import sqlalchemy
import sqlalchemy.exc
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage  # pyright: ignore[reportPrivateUsage]
from optuna.storages._rdb.models import TrialUserAttributeModel
from optuna.storages._rdb.storage import _create_scoped_session  # pyright: ignore[reportPrivateUsage]
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.pool import NullPool

from tuning import StudyError

PATIENCE_SECONDS = 300.0
"""Seconds for which a server that cannot be reached is waited for."""
RETRY_SECONDS = 1.0
"""Seconds between two attempts to reach it."""
GUARD_SECONDS = 5.0
"""Seconds after which the lock is checked again."""
REREAD_SECONDS = 2.0
"""Seconds after which all unfinished trials, and a study's attributes, are read again, for what others have changed."""
REREAD_SHARE = 0.05
"""Largest share of the time that may be spent on reading them: with many slots they are read less often."""
LARGEST_ID = 2**31 - 1
"""Largest number of a trial in a database."""
AWAY = ("08", "53", "57")
"""Classes of SQLSTATE codes that say that a server is out of reach, short of resources, or shutting down."""
POSTGRESQL_ARGUMENTS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""Arguments for libpq with which a connection to a server that has vanished breaks within half a minute, not hours."""
SERVER_SETTINGS = ("tcp_keepalives_idle = 30", "tcp_keepalives_interval = 10", "tcp_keepalives_count = 3")
"""Settings with which the server releases the lock of a machine that has vanished within a minute, not two hours."""
SET_STATE = "set_trial_state_values"
"""Name of the method whose answer tells whether this process has changed a trial's state."""
LONGEST_NAME = 63
"""Bytes of an application's name that PostgreSQL keeps."""

_logger = logging.getLogger(__name__)


class Database(RDBStorage):
    """Optuna's storage, which would store each attribute in a transaction of its own."""

    def set_trial_user_attrs(self, trial_id: int, values: Mapping[str, Any]) -> None:
        """Store several user attributes in one transaction."""
        with _create_scoped_session(self.scoped_session) as session:
            for key, value in values.items():
                self._set_trial_attr_without_commit(session, TrialUserAttributeModel, trial_id, key, value)


class Storage(_CachedStorage):
    """A database with studies, for their one coordinator or for readers.

    What this object writes is also written into its copy of the trial. A trial whose state it has changed, or whose
    writing failed, is read again at the next look, every unfinished one after REREAD_SECONDS.
    """

    def __init__(self, url: str, *, shown: str, locked_seconds: float) -> None:
        """Connect to a database, and create its tables if it has none.

        Args: `shown`: the URL without a password; `locked_seconds`: seconds that SQLite waits for another program to
        release it. Raises what RDBStorage raises.
        """
        self.url = url
        self.kind = sqlalchemy.make_url(url).get_backend_name()
        self._patient: PatientBackend | None = None
        if self.kind == "sqlite":
            super().__init__(Database(url, engine_kwargs={"connect_args": {"timeout": locked_seconds}}))
        else:
            arguments = POSTGRESQL_ARGUMENTS if self.kind == "postgresql" else {}
            backend = Database(url, engine_kwargs={"pool_pre_ping": True, "connect_args": arguments})
            self._patient = PatientBackend(backend, shown)
            super().__init__(cast(RDBStorage, self._patient))
        self._stale: dict[int, set[int]] = {}
        self._read_again_at: dict[int, float] = {}
        self._study_attrs: dict[int, tuple[dict[str, Any], float]] = {}
        """System attributes of each study, and when they are read again."""

    @contextmanager
    def sole_coordinator(self, study: str) -> Generator[None]:
        """Hold the lock of a study in a PostgreSQL server, against coordinators on any machine.

        Other databases have no such lock. Raises StudyError if another process holds it, naming that process.
        """
        if self._patient is None or self.kind != "postgresql":
            yield
            return
        lock = ServerLock(self.url, study)
        try:
            lock.check()
            self._patient.guard = lock.check
            yield
        finally:
            self._patient.guard = None
            lock.release()
            self._backend.engine.dispose()

    def stop_waiting(self) -> None:
        """From now on, do not wait for a server that is away. It can be called from a signal handler."""
        if self._patient is not None:
            self._patient.patience = 0.0

    def read_again(self) -> None:
        """At the next look at a study, read all of its unfinished trials and its attributes."""
        self._read_again_at.clear()
        self._study_attrs.clear()

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Store a system attribute of a study."""
        super().set_study_system_attr(study_id, key, value)
        if study_id in self._study_attrs:
            self._study_attrs[study_id][0][key] = json.loads(json.dumps(value))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the system attributes of a study: the notes of all its trials, of which saving one reads all."""
        begin = time.monotonic()
        attributes, read_again_at = self._study_attrs.get(study_id, ({}, 0.0))
        if begin >= read_again_at:
            attributes = super().get_study_system_attrs(study_id)
            self._study_attrs[study_id] = attributes, _next_reading(begin)
        return attributes.copy()

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Store a parameter."""
        with self._writing(trial_id):
            super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        distribution = json_to_distribution(distribution_to_json(distribution))
        value = distribution.to_external_repr(param_value_internal)
        self._mirror(trial_id, params={param_name: value}, distributions={param_name: distribution})

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Store a state; return False for a waiting trial that another process has begun meanwhile."""
        try:
            return super().set_trial_state_values(trial_id, state, values)
        finally:
            self._read_soon(trial_id)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Store the value of a step."""
        with self._writing(trial_id):
            super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._mirror(trial_id, intermediate_values={step: float(intermediate_value)})

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Store a user attribute."""
        self.set_trial_user_attrs(trial_id, {key: value})

    def set_trial_user_attrs(self, trial_id: int, values: dict[str, Any]) -> None:
        """Store several user attributes, all or none."""
        with self._writing(trial_id):
            cast(Database, self._backend).set_trial_user_attrs(trial_id, values)
        self._mirror(trial_id, user_attrs=json.loads(json.dumps(values)))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Store a system attribute."""
        with self._writing(trial_id):
            super().set_trial_system_attr(trial_id, key, value)
        self._mirror(trial_id, system_attrs=json.loads(json.dumps({key: value})))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial; one that has not finished is a copy, which Optuna's `Trial` changes."""
        if (where := self._trial_id_to_study_id_and_number.get(trial_id)) is None:
            return super().get_trial(trial_id)
        study_id, number = where
        self._read_trials_from_remote_storage(study_id)
        trial = self._studies[study_id].trials[number]
        return trial if trial.state.is_finished() else copy.deepcopy(trial)

    @contextmanager
    def _writing(self, trial_id: int) -> Generator[None]:
        """Have the trial read again if the body fails: another program may have ended the trial."""
        try:
            yield
        except BaseException:
            self._read_soon(trial_id)
            raise

    def _read_soon(self, trial_id: int) -> None:
        """Have a trial read again at the next look."""
        if trial_id in self._trial_id_to_study_id_and_number:
            study_id, _ = self._trial_id_to_study_id_and_number[trial_id]
            self._stale.setdefault(study_id, set()).add(trial_id)

    def _mirror(self, trial_id: int, **stored: dict[Any, Any]) -> None:
        """Write into the copy of a trial what has been stored; those who hold the trial as it was see no change."""
        if (where := self._trial_id_to_study_id_and_number.get(trial_id)) is None:
            return
        study_id, number = where
        with self._lock:
            trials = self._studies[study_id].trials
            trials[number] = copy.copy(trials[number])
            for name, values in stored.items():
                setattr(trials[number], name, getattr(trials[number], name) | values)

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        begin = time.monotonic()
        stale = self._stale.pop(study_id, None)  # before reading: another thread may write meanwhile
        try:
            if begin >= self._read_again_at.get(study_id, 0.0):
                super()._read_trials_from_remote_storage(study_id)
                self._read_again_at[study_id] = _next_reading(begin)
            elif stale:
                trials = self._backend._get_trials(study_id, None, stale, LARGEST_ID)  # pyright: ignore[reportPrivateUsage]
                with self._lock:
                    self._add_trials_to_cache(study_id, trials)
        except BaseException:
            self.read_again()
            raise


def _next_reading(begin: float) -> float:
    """Return when to read again what has been read since `begin`."""
    end = time.monotonic()
    return end + max(REREAD_SECONDS, (end - begin) / REREAD_SHARE)


class PatientBackend:
    """A database server's storage whose every call is repeated while the server is away.

    It answers to all names of the storage that it wraps, those included that only Optuna's cache calls. What it repeats
    may have been carried out before the connection broke: attributes and values are then written twice with the same
    content, a trial's state is compared with what is stored, and a trial that was created twice is found by the
    coordinator, which trains every running trial.
    """

    def __init__(self, storage: RDBStorage, shown: str) -> None:
        """Wrap a storage. Args: `shown`: its URL without a password."""
        self.patience = PATIENCE_SECONDS
        """Seconds for which the server is waited for."""
        self.guard: Callable[[], None] | None = None
        """Called before every call; it raises an error if nothing may be written."""
        self._storage = storage
        self._shown = shown
        self._away_since: float | None = None
        """When the server was first away; None if the last call succeeded."""

    def __getattr__(self, name: str) -> Any:
        """Return a method that waits, or another attribute as it is."""
        found = getattr(self._storage, name)
        return partial(self._call, found) if callable(found) else found

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        repeated = False
        while True:
            try:
                if self.guard is not None:
                    self.guard()
                result = method(*args, **kwargs)
            except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
                if not is_away(error):
                    raise
                # Not each call has all the patience: a command that has given up still writes its files.
                if self._away_since is None:
                    self._away_since = time.monotonic()
                    _logger.warning("waiting for the database %s (%s)", self._shown, reason(error))
                if time.monotonic() - self._away_since >= self.patience:
                    raise
                repeated = True
                time.sleep(RETRY_SECONDS)
            except UpdateFinishedTrialError:
                if not repeated or method.__name__ != SET_STATE or not self._is_stored(*args, **kwargs):
                    raise
                return True
            else:
                if self._away_since is not None:
                    _logger.warning("the database is back after %.0f s", time.monotonic() - self._away_since)
                    self._away_since = None
                if repeated and method.__name__ == SET_STATE:
                    result = result or self._is_stored(*args, **kwargs)
                return result

    def _is_stored(self, trial_id: int, state: Any = None, values: Sequence[float] | None = None) -> bool:
        """Return whether a call of SET_STATE was carried out before its answer was lost."""
        stored = self._storage.get_trial(trial_id)
        return isinstance(state, TrialState) and stored.state is state and (values is None or stored.values == values)


class ServerLock:
    """PostgreSQL's advisory lock of a study, held by a connection of its own and lost with it."""

    def __init__(self, url: str, study: str) -> None:
        """Make the lock; `check` takes it."""
        owner = f"process {os.getpid()} on {platform.node()}".encode()[:LONGEST_NAME].decode(errors="ignore")
        self._study = study
        self._key = int.from_bytes(blake2b(study.encode(), digest_size=8).digest(), "big", signed=True)
        self._engine = sqlalchemy.create_engine(
            url,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args=POSTGRESQL_ARGUMENTS | {"application_name": owner},
        )
        self._connection: sqlalchemy.Connection | None = None
        self._checked = 0.0

    def check(self) -> None:
        """Make sure that the lock is held, and take it again if its connection broke.

        A connection that was alive GUARD_SECONDS ago is trusted. Raises StudyError if another process holds the lock,
        and SQLAlchemyError if the server is away.
        """
        if self._connection is not None and time.monotonic() - self._checked < GUARD_SECONDS:
            return
        try:
            if self._connection is None:
                self._take()
            else:
                self._connection.scalar(sqlalchemy.text("SELECT 1"))
        except sqlalchemy.exc.SQLAlchemyError:
            self.release()
            raise
        self._checked = time.monotonic()

    def release(self) -> None:
        """Give the lock back by closing its connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
                connection.invalidate()
            with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
                connection.close()

    def _take(self) -> None:
        self._connection = connection = self._engine.connect()
        for setting in SERVER_SETTINGS:
            connection.execute(sqlalchemy.text(f"SET {setting}"))
        key = {"key": self._key}
        if connection.scalar(sqlalchemy.text("SELECT pg_try_advisory_lock(:key)"), key):
            return
        holder = connection.scalar(HOLDER, key) or "another process"
        self.release()
        raise StudyError(
            f"study '{self._study}' is in use by {holder}, in the same database: wait for it, stop it, or start "
            "another study with --study NAME"
        )


HOLDER = sqlalchemy.text(
    """
    SELECT application_name || ' since ' || to_char(backend_start, 'YYYY-MM-DD HH24:MI')
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
    AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint << 32 | objid::bigint) = :key
    """
)
"""Asks who holds a lock: an advisory lock's key is stored as two halves of 32 bits."""


def is_away(error: BaseException) -> bool:
    """Return whether a database error means that its server cannot be reached or is shutting down or starting."""
    for cause in causes(error):
        if isinstance(cause, sqlalchemy.exc.PendingRollbackError):
            return True  # Optuna asks again with a connection that has just broken
        if isinstance(cause, sqlalchemy.exc.DBAPIError):
            code = getattr(cause.orig, "sqlstate", None)
            away = isinstance(cause, sqlalchemy.exc.OperationalError) if code is None else code.startswith(AWAY)
            return away or cause.connection_invalidated
    return False


def causes(error: BaseException) -> Generator[BaseException]:
    """Yield an error, what caused it, what caused that, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def reason(error: BaseException) -> str:
    """Return the first line of what the database itself says."""
    *_, last = causes(error)
    return str(getattr(last, "orig", None) or last).strip().partition("\n")[0]
