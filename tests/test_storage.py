"""The database as the coordinator uses it: equal to what is stored, and patient with a real PostgreSQL server."""

from __future__ import annotations

import copy
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy.event
import sqlalchemy.exc
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna_dashboard import get_note, save_note
from servers import Server, server_programs
from sqlalchemy.pool import Pool
from studies import TINY, ThreadWorkers, Tiny, prepare, until

from tests.stress.sameness import essence
from tuning import StudyError, storage
from tuning.coordinator import Plan
from tuning.database import connect
from tuning.devices import Slot
from tuning.events import StudyEvent, TrialAdvanced, TrialEnded
from tuning.folder import sqlite_url
from tuning.session import open_session
from tuning.storage import ServerLock, Storage
from tuning.trials import Outcome, read_trials

TRIALS = 4
COUNTED = (Outcome.COMPLETE, Outcome.PRUNED)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    programs = server_programs()
    # Not in pytest's folders, which are closed to the account of the server.
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        server = Server(Path(folder), programs)
        stack.callback(server.stop)
        yield server


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Return the server with an empty database; in the end close all connections, of which psycopg would warn."""
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.1)
    made: list[Any] = []

    def note(connection: Any, record: object) -> None:
        made.append(connection)

    sqlalchemy.event.listen(Pool, "connect", note)
    running.empty()
    yield running
    sqlalchemy.event.remove(Pool, "connect", note)
    for connection in made:
        connection.close()


def study_at(tiny: Tiny, results: Path, url: str | None = None, trials: int = TRIALS) -> Any:
    return open_session(
        tiny.pictures,
        plan=Plan(trials=trials),
        name="tiny",
        profile=TINY,
        scheduler="median",
        slots=[Slot()],
        results=results,
        storage=url,
        cache_dir=tiny.folder.parent / "cache",
        make_workers=ThreadWorkers,
    )


def run(tiny: Tiny, results: Path, url: str | None = None, at: Callable[[StudyEvent], object] = id) -> list[Any]:
    """Run a study to its end and return what its trials amount to; `at` is called with every event."""
    with study_at(tiny, results, url) as session:
        for event in session.run():
            at(event)
        stored = optuna.load_study(study_name="tiny", storage=url or sqlite_url(results / "tiny"))
        return essence(stored.get_trials())


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run(tiny, tmp_path_factory.mktemp("undisturbed"))


# -- what is remembered equals what is stored

_OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "enqueue", "pop", "param", "attribute", "value", "tell", "note"]),
        st.integers(0, 4),
        st.floats(-1e300, 1e300) | st.just(float("nan")),
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Storage, RDBStorage]]:
    """Return a database as the coordinator uses it, and the same one as it is."""
    url = sqlite_url(tmp_path_factory.mktemp("database"))
    ours, others = connect(url), RDBStorage(url)
    yield ours, others
    others.engine.dispose()


@settings(max_examples=25)
@given(_OPERATIONS)
def test_a_look_at_a_study_equals_what_is_stored(both: tuple[Storage, RDBStorage], operations: Any) -> None:
    ours, others = both
    study = ours.create_new_study([StudyDirection.MAXIMIZE])
    for what, which, value in operations:
        act(ours, study, what, which, value)
        stored = others.get_all_trials(study)
        assert ours.get_study_system_attrs(study) == others.get_study_system_attrs(study)
        expected = list(map(facts, stored))
        assert list(map(facts, ours.get_all_trials(study))) == expected
        assert [facts(ours.get_trial(ident(trial))) for trial in stored] == expected


def facts(trial: FrozenTrial) -> str:
    """Return a trial as text, as nan equals nothing; its attributes have no order."""
    trial = copy.copy(trial)
    trial.user_attrs = dict(sorted(trial.user_attrs.items()))
    trial.system_attrs = dict(sorted(trial.system_attrs.items()))
    trial.intermediate_values = dict(sorted(trial.intermediate_values.items()))
    return repr(trial)


def ident(trial: FrozenTrial) -> int:
    return trial._trial_id  # pyright: ignore[reportPrivateUsage]


def act(ours: Storage, study: int, what: str, which: int, value: float) -> None:
    """Do one thing to a study."""
    if what == "ask":
        ours.create_new_trial(study)
    elif what == "enqueue":
        waiting = create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": {"x": which}})
        ours.create_new_trial(study, waiting)
    trials = ours.get_all_trials(study)
    if what in ("ask", "enqueue") or not trials:
        return
    trial = trials[which % len(trials)]
    number = ident(trial)
    if what == "note":
        ours.set_study_system_attr(study, f"note {which}", {"values": [which, None], "pair": (1, 2)})
    if what == "pop" and trial.state is TrialState.WAITING:
        assert ours.set_trial_state_values(number, TrialState.RUNNING)
    if trial.state is not TrialState.RUNNING:
        return
    if what == "param":
        name, distribution, chosen = (
            ("lr", FloatDistribution(1e-5, 1.0, log=True), 0.1),
            ("depth", IntDistribution(1, 9, step=2), 3.0),
            ("pooling", CategoricalDistribution(["avg", "max"]), 1.0),
        )[which % 3]
        if name not in trial.params:
            ours.set_trial_param(number, name, chosen, distribution)
    elif what == "attribute":
        ours.set_trial_user_attr(number, f"fact {which}", {"values": [value, None], "pair": (1, 2)})
    elif what == "value":
        ours.set_trial_intermediate_value(number, which, value)
    elif what == "tell":
        ours.set_trial_state_values(number, TrialState.PRUNED)


def test_what_others_do_is_seen_after_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "REREAD_SECONDS", 0.2)
    url = sqlite_url(tmp_path)
    study = optuna.create_study(storage=connect(url), study_name="s")
    trial = study.ask()
    assert not study.trials[0].state.is_finished()
    others = optuna.load_study(study_name="s", storage=url)
    others.tell(0, 1.0)
    others.enqueue_trial({"x": 1})
    until(lambda: [one.state for one in study.get_trials()] == [TrialState.COMPLETE, TrialState.WAITING], "a look")
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        trial.set_user_attr("a", 1)
    assert get_note(study) == ""
    save_note(others, "by hand")
    until(lambda: get_note(study) == "by hand", "the note of another")


# -- a server that goes away


def cut_connections(server: Server) -> None:
    others = "SELECT pid FROM pg_stat_activity WHERE datname = 'study' AND pid <> pg_backend_pid()"
    server.query(f"SELECT pg_terminate_backend(pid) FROM ({others}) AS others")


def crash(server: Server) -> None:
    server.stop()
    server.start()


def stop_for_seconds(server: Server) -> None:
    server.stop("fast")
    threading.Timer(1.0, server.start).start()


@pytest.mark.parametrize(
    "disturb",
    [cut_connections, *(pytest.param(one, marks=pytest.mark.long) for one in (crash, stop_for_seconds))],
)
def test_whatever_happens_to_the_server_the_study_equals_one_in_sqlite(
    server: Server,
    tiny: Tiny,
    tmp_path: Path,
    undisturbed: list[Any],
    disturb: Callable[[Server], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[StudyEvent] = []

    def at(event: StudyEvent) -> None:
        if isinstance(event, TrialAdvanced | TrialEnded):
            seen.append(event)
            if len(seen) in (2, 3, 7):
                disturb(server)

    assert run(tiny, tmp_path, server.url(), at) == undisturbed
    assert len(seen) >= 7
    if disturb is stop_for_seconds:
        assert "waiting for the database" in caplog.text and "is back" in caplog.text


def test_a_connection_may_break_at_any_statement_of_a_running_study(
    server: Server, tiny: Tiny, tmp_path: Path, undisturbed: list[Any]
) -> None:
    statements, cuts = 0, 0

    def cut(connection: object, cursor: object, statement: str, *rest: object) -> None:
        nonlocal statements, cuts
        if "pg_terminate_backend" not in statement:
            statements += 1
            if statements % 23 == 0:
                cuts += 1
                cut_connections(server)

    with study_at(tiny, tmp_path, server.url()) as session:
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", cut)
        try:
            list(session.run())
        finally:
            sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", cut)
        assert essence(session.study.get_trials()) == undisturbed
    assert cuts > 10


class Forgetful(storage.Database):
    """A database whose answer is lost every few calls, when everything has been stored."""

    def __init__(self, url: str, **named: Any) -> None:
        self.calls = 0
        super().__init__(url, **named)

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith(("create_new", "_create_new", "set_trial", "_set_trial_param")) or "without" in name:
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            answer = found(*arguments, **named)
            self.calls += 1
            if self.calls % 4 == 0:
                raise lost_connection()
            return answer

        call.__name__ = name
        return call


def lost_connection() -> Exception:
    error = optuna.exceptions.StorageInternalError("lost")
    error.__cause__ = sqlalchemy.exc.OperationalError("COMMIT", {}, Exception("gone"), connection_invalidated=True)
    return error


def test_no_trial_is_lost_or_counted_twice_when_answers_are_lost(
    server: Server, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(storage, "Database", Forgetful)
    with study_at(tiny, tmp_path, server.url()) as session:
        list(session.run())
        trials = read_trials(session.study)
    assert sum(trial.counts for trial in trials) == TRIALS
    assert {trial.outcome for trial in trials if not trial.is_waiting} <= {*COUNTED, Outcome.DUPLICATE}
    assert len({trial.key for trial in trials if trial.counts}) == TRIALS


def test_a_running_trial_that_nobody_trains_is_trained(tiny: Tiny, tmp_path: Path) -> None:
    """The answer to its creation was lost with the connection."""
    with study_at(tiny, tmp_path) as session:
        lost: list[int] = []
        for event in session.run():
            if isinstance(event, TrialAdvanced) and not lost:
                lost.append(session.study.ask().number)
        trials = read_trials(session.study)
    assert trials[lost[0]].counts
    assert sum(trial.counts for trial in trials) == TRIALS


def test_a_server_that_stays_away_is_an_error_and_the_same_command_resumes(
    server: Server,
    tiny: Tiny,
    tmp_path: Path,
    undisturbed: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The files that a command writes at its end each waited anew."""
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 1.5)

    stopped: list[StudyEvent] = []

    def stop(event: StudyEvent) -> None:
        if isinstance(event, TrialAdvanced) and not stopped:
            stopped.append(event)
            server.stop()

    with pytest.raises(StudyError) as caught:
        run(tiny, tmp_path, server.url(), stop)
    assert str(server.port) in str(caught.value) and "--storage" in str(caught.value)
    assert [record.message.split()[0] for record in caplog.records if record.name == storage.__name__] == ["waiting"]
    server.start()
    assert run(tiny, tmp_path, server.url()) == undisturbed


def test_a_stop_ends_the_wait(server: Server, tiny: Tiny, tmp_path: Path) -> None:
    began = None
    with pytest.raises(StudyError), study_at(tiny, tmp_path, server.url()) as session:
        for event in session.run():
            if isinstance(event, TrialAdvanced) and began is None:
                server.stop()
                threading.Timer(1.0, session.searcher.stop).start()
                began = time.monotonic()
    assert began is not None and time.monotonic() - began < storage.PATIENCE_SECONDS / 10
    server.start()


def test_a_role_that_may_not_write_is_refused_in_one_line(server: Server, tiny: Tiny, tmp_path: Path) -> None:
    run(tiny, tmp_path, server.url())
    server.query("DROP ROLE IF EXISTS reader")
    server.query("CREATE ROLE reader LOGIN")
    server.query("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    with pytest.raises(StudyError) as caught, study_at(tiny, tmp_path, server.url("reader"), trials=9) as session:
        list(session.run())
    assert "permission denied" in str(caught.value) and "\n" not in str(caught.value)
    server.query("DROP OWNED BY reader")
    server.query("DROP ROLE reader")


@pytest.mark.parametrize(("user", "database"), [("nobody", "study"), ("study", "nothing")])
def test_a_role_or_database_that_is_missing_is_not_called_a_server_that_is_away(
    server: Server, tmp_path: Path, user: str, database: str
) -> None:
    with pytest.raises(StudyError, match=r"does not exist.*\): create it") as caught:
        connect(server.url(user, database), tmp_path)
    assert "start the server" not in str(caught.value)


# -- one coordinator


def test_a_coordinator_with_another_folder_is_refused_and_told_who_the_first_is(
    server: Server, tiny: Tiny, tmp_path: Path, undisturbed: list[Any]
) -> None:
    with study_at(tiny, tmp_path / "one", server.url()) as session:
        with pytest.raises(StudyError) as caught, study_at(tiny, tmp_path / "two", server.url()):
            pass
        assert f"process {os.getpid()} on " in str(caught.value)
        list(session.run())
    assert run(tiny, tmp_path / "one", server.url()) == undisturbed


def test_a_coordinator_whose_lock_another_one_has_taken_stops(
    server: Server, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "GUARD_SECONDS", 0.0)
    second, taken = ServerLock(server.url(), "tiny"), list[StudyEvent]()

    def take(event: StudyEvent) -> None:
        if isinstance(event, TrialAdvanced) and not taken:
            taken.append(event)
            cut_connections(server)
            second.check()

    with pytest.raises(StudyError) as caught:
        run(tiny, tmp_path, server.url(), take)
    assert "in use by process" in str(caught.value)
    second.release()


@pytest.mark.long
def test_a_killed_coordinator_resumes_and_its_lock_is_free(server: Server, tiny: Tiny, tmp_path: Path) -> None:
    disturbed = tiny.at(tmp_path / "killed", "--trials", "4", "--workers", "1", "--storage", server.url())
    for epochs in (1, 4):
        with disturbed.start() as command:
            command.until(partial(lambda wanted: epochs_in(server) >= wanted, epochs), "epochs")
            command.process.kill()
            command.end()
    assert disturbed.command().code == 0
    whole = tiny.at(tmp_path / "whole", "--trials", "4", "--workers", "1")
    assert whole.command().code == 0
    stored = optuna.load_study(study_name="tiny", storage=server.url()).get_trials()
    assert essence(stored) == essence(whole.trials())


def epochs_in(server: Server) -> int:
    if not server.query("SELECT 1 FROM pg_tables WHERE tablename = 'trial_intermediate_values'"):
        return 0
    ((count,),) = server.query("SELECT count(*) FROM trial_intermediate_values")
    return int(str(count))
