"""Where a study lives: folders, locks, databases that are none, what is counted, and what others can read."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pandas
import pytest
from optuna.trial import FrozenTrial, TrialState

from tuning import StudyError, storage
from tuning.folder import replace_file, sqlite_url, study_folder
from tuning.storage import Outcome

IDENTITY = {"data": "9 pictures", "seed": 0, "max flops": None, "space lr": ["{}"]}
FIRST = {"one": {"x": 0.25}, "two": {"x": 0.75}}


@pytest.fixture(autouse=True)
def closed_databases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connections that a test leaves to the garbage collector would warn from another test."""
    made: list[optuna.storages.RDBStorage] = []

    class Noted(optuna.storages.RDBStorage):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            made.append(self)
            super().__init__(*arguments, **named)

    monkeypatch.setattr(optuna.storages, "RDBStorage", Noted)
    yield
    for database in made:
        if hasattr(database, "engine"):
            database.engine.dispose()


def opened(folder: Path, name: str = "mushrooms", **changes: Any) -> optuna.Study:
    return storage.open_study(
        sqlite_url(folder),
        name,
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.NopPruner(),
        identity=changes.get("identity", IDENTITY),
        first_trials=changes.get("first_trials", FIRST),
    )


def trial(number: int, state: TrialState, value: float | None = None, *, minute: int = 0, **attrs: Any) -> FrozenTrial:
    started = datetime(2026, 1, 1)
    made = optuna.trial.create_trial(state=state, value=value, user_attrs=attrs)
    made.number = number
    made.datetime_complete = started + timedelta(minutes=minute or number) if state.is_finished() else None
    return made


# -- what counts


@pytest.mark.parametrize(
    ("state", "outcome", "counted"),
    [
        (TrialState.COMPLETE, Outcome.COMPLETE, True),
        (TrialState.PRUNED, Outcome.PRUNED, True),
        (TrialState.PRUNED, Outcome.DIVERGED, True),
        (TrialState.PRUNED, Outcome.INFEASIBLE, False),
        (TrialState.FAIL, Outcome.DUPLICATE, False),
        (TrialState.FAIL, Outcome.FAILED, False),
        (TrialState.FAIL, None, False),
        (TrialState.RUNNING, None, False),
        (TrialState.WAITING, None, False),
    ],
)
def test_a_trial_counts_when_it_was_trained_and_has_ended(
    state: TrialState, outcome: Outcome | None, counted: bool
) -> None:
    value = 0.5 if state is TrialState.COMPLETE else None
    attrs: dict[str, Any] = {"outcome": str(outcome)} if outcome else {}
    assert storage.counts(trial(0, state, value, **attrs)) == counted


class Row(NamedTuple):
    value: float | None
    since: int
    """What must be counted up to and with this row."""


def test_patience_counts_the_trials_that_ended_since_the_best() -> None:
    rows = [Row(None, 1), Row(0.5, 0), Row(0.4, 1), Row(None, 2), Row(0.5, 3), Row(0.6, 0), Row(0.1, 1)]
    trials: list[FrozenTrial] = []
    for number, row in enumerate(rows):
        state = TrialState.PRUNED if row.value is None else TrialState.COMPLETE
        trials.append(trial(number, state, row.value))
        assert storage.trials_since_best(trials) == row.since


def test_patience_goes_by_the_time_of_the_end_not_by_number() -> None:
    late = trial(0, TrialState.COMPLETE, 0.9, minute=30)
    early = trial(1, TrialState.COMPLETE, 0.5, minute=10)
    assert storage.trials_since_best([late, early]) == 0


def test_patience_runs_out_where_the_clock_was_set_back() -> None:
    """The best trial ended in what was the future after that, and stayed the last one for ever."""
    best = trial(0, TrialState.COMPLETE, 0.9)
    best.datetime_complete = datetime.now() + timedelta(days=1000)
    later = [trial(number, TrialState.COMPLETE, 0.1, minute=number) for number in (1, 2, 3)]
    assert storage.trials_since_best([best, *later]) == 3


def test_patience_is_not_spent_on_trials_that_do_not_count() -> None:
    trials = [trial(0, TrialState.COMPLETE, 0.5), trial(1, TrialState.FAIL), trial(2, TrialState.RUNNING)]
    trials.append(trial(3, TrialState.PRUNED, outcome=str(Outcome.INFEASIBLE)))
    assert storage.trials_since_best(trials) == 0
    assert storage.trials_since_best([]) == 0


def test_the_best_trials_come_best_first_and_of_equals_the_earlier() -> None:
    values = [0.5, 0.7, None, 0.7, 0.0]
    states = [TrialState.PRUNED if value is None else TrialState.COMPLETE for value in values]
    trials = [trial(number, state, value) for number, (state, value) in enumerate(zip(states, values, strict=True))]
    assert [best.number for best in storage.top(trials, 3)] == [1, 3, 0]
    assert [best.number for best in storage.top(trials, 99)] == [1, 3, 0, 4]


# -- the folder and its lock


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "c:", "what?", "a*", "x\0y", "two\nlines", "a|b", "<a>"]
)
def test_a_study_name_that_is_no_folder_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"^a study's name is also its folder's, so it holds none of ") as caught:
        study_folder(tmp_path, name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mushrooms", "Pilze & Käfer", "蘑菇", "a.b", "-x", "with space"])
def test_any_other_name_is_a_folder(name: str, tmp_path: Path) -> None:
    assert study_folder(tmp_path / "results", name) == tmp_path / "results" / name
    assert (tmp_path / "results" / name / "trials").is_dir()


def test_a_folder_that_cannot_be_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(StudyError) as caught:
        study_folder(tmp_path / "results", "mushrooms")
    assert str(caught.value) == (
        f"a study writes into its folder, but {tmp_path / 'results' / 'mushrooms'} cannot be written "
        "(Not a directory); free or mend it, or choose another place with --results DIR"
    )


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux has /proc")
def test_a_folder_on_a_file_system_that_takes_no_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"but /proc/self/mushrooms cannot be written \(.+\)"):
        study_folder(Path("/proc/self"), "mushrooms")


def test_a_name_too_long_for_the_file_system_is_told(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"cannot be written \(File name too long\)"):
        study_folder(tmp_path, "x" * 300)


def test_a_second_coordinator_is_told_who_the_first_is(tmp_path: Path) -> None:
    with storage.sole_coordinator(tmp_path), pytest.raises(StudyError) as caught, storage.sole_coordinator(tmp_path):
        pass
    assert f"a study has one coordinator, but {tmp_path} is being run by process {os.getpid()} on " in str(caught.value)
    with storage.sole_coordinator(tmp_path):
        assert (tmp_path / "study.owner").exists()
    assert not (tmp_path / "study.owner").exists()


@pytest.mark.parametrize(
    ("mountpoint", "kind", "found"),
    [
        ("/home", "nfs4", "nfs4"),
        ("/home/me", "CIFS", "cifs"),
        ("/home/m", "nfs", None),  # a sibling whose name begins alike
        ("/home/me", "ext4", None),
        ("/elsewhere", "nfs", None),
    ],
)
def test_a_network_file_system_is_known_by_its_name(
    mountpoint: str, kind: str, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mount(NamedTuple):
        mountpoint: str
        fstype: str

    mounts = [Mount("/", "ext4"), Mount(mountpoint, kind)]
    monkeypatch.setattr(storage.psutil, "disk_partitions", lambda **_: mounts)
    assert storage.network_file_system(Path("/home/me/results")) == found


def test_this_disk_has_a_kind(tmp_path: Path) -> None:
    assert storage.network_file_system(tmp_path) in {None, *storage.NETWORK_FILE_SYSTEMS}


# -- the database


def not_a_database(folder: Path) -> str:
    (folder / "study.db").write_text("this is not SQLite, but it is somebody's\n" * 50)
    return "file is not a database"


def a_directory(folder: Path) -> str:
    (folder / "study.db").mkdir()
    return "unable to open database file"


def a_torn_database(folder: Path) -> str:
    opened(folder)
    whole = (folder / "study.db").read_bytes()
    (folder / "study.db").write_bytes(whole[: len(whole) // 2])
    return "malformed"


@pytest.mark.parametrize("spoil", [not_a_database, a_directory, a_torn_database])
def test_what_is_no_database_is_named_and_left_alone(spoil: Any, tmp_path: Path) -> None:
    said = spoil(tmp_path)
    database = tmp_path / "study.db"
    before = database.read_bytes() if database.is_file() else None
    with pytest.raises(StudyError) as caught:
        opened(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"a study needs a database that it can read and write, but {sqlite_url(tmp_path)} says: ")
    assert said in text
    ways_out = ("; mend it, or name another", "; put a copy of it back, or name another")
    assert text.endswith(tuple(f"{way} with --study NAME or --storage URL" for way in ways_out))
    assert "\n" not in text
    assert (database.read_bytes() if database.is_file() else None) == before


def with_a_trial(folder: Path) -> bytes:
    """A study with a trial in its folder; returns its database."""
    study = opened(folder)
    study.tell(study.ask(), 0.5)
    (folder / "trials" / "0000").mkdir(parents=True)
    (folder / "trials" / "0000" / "history.json").write_text("[]")
    return (folder / "study.db").read_bytes()


@pytest.mark.parametrize("emptied", [False, True])
def test_a_database_that_has_gone_from_beside_its_trials_is_not_begun_anew(emptied: bool, tmp_path: Path) -> None:
    """A new study was begun over the trials of the old one."""
    whole, database = with_a_trial(tmp_path), tmp_path / "study.db"
    database.unlink()
    if emptied:
        database.touch()
    with pytest.raises(StudyError) as caught:
        opened(tmp_path)
    assert str(caught.value) == (
        f"a study goes on from its database, but {database} is {'empty' if emptied else 'gone'}, and "
        f"{tmp_path / 'trials' / '0000'} is of a study; put a copy of the database back, or begin another study with "
        "--study NAME"
    )
    assert (database.read_bytes() if database.exists() else None) == (b"" if emptied else None)
    database.write_bytes(whole)
    assert len(opened(tmp_path).get_trials()) == 2


def flipped(database: Path, needle: bytes, offset: int, bit: int) -> None:
    """Flips one bit, so many bytes after the only place where `needle` stands."""
    content = bytearray(database.read_bytes())
    assert content.count(needle) >= 1
    content[content.index(needle) + offset] ^= bit
    database.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("needle", "offset", "bit", "said"),
    [
        (b"SQLite format 3", 3, 0x10, "file is not a database"),
        (b"CREATE TABLE trials", 3, 0x10, "malformed"),  # the schema's text
        (b"FloatDistribution", 2, 0x01, "Unknown distribution class"),  # a value that only Optuna reads
    ],
)
def test_a_flipped_bit_is_told_and_nothing_is_written(
    needle: bytes, offset: int, bit: int, said: str, tmp_path: Path
) -> None:
    study = opened(tmp_path)
    asked = study.ask()
    asked.suggest_float("x", 0.0, 1.0)
    study.tell(asked, 0.5)
    flipped(tmp_path / "study.db", needle, offset, bit)
    before = (tmp_path / "study.db").read_bytes()
    with pytest.raises(StudyError) as caught:
        opened(tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "--study NAME" in str(caught.value)
    assert (tmp_path / "study.db").read_bytes() == before


def test_a_damaged_page_is_found_at_the_start_and_not_in_the_middle_of_a_study(tmp_path: Path) -> None:
    """Each page of the file in turn is overwritten."""
    study = opened(tmp_path)
    for _ in range(2):
        study.tell(study.ask(), 0.5)
    whole = (tmp_path / "study.db").read_bytes()
    size = 4096
    for page in range(len(whole) // size):
        damaged = whole[: page * size] + b"\xa5" * size + whole[(page + 1) * size :]
        (tmp_path / "study.db").write_bytes(damaged)
        with pytest.raises(StudyError, match=r"says: (database disk image is malformed|file is not a database)"):
            storage.connect(sqlite_url(tmp_path))
        assert (tmp_path / "study.db").read_bytes() == damaged


def test_a_newer_optunas_tables_are_told_with_the_way_out(tmp_path: Path) -> None:
    opened(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v9.9.0.a'")
        connection.commit()
    before = (tmp_path / "study.db").read_bytes()
    with pytest.raises(StudyError) as caught:
        opened(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"a --storage needs this Optuna's tables, but {sqlite_url(tmp_path)}: The runtime optuna")
    assert "pip install -U optuna" in text and text.endswith("; or name another with --study NAME or --storage URL")
    assert "\n" not in text
    assert (tmp_path / "study.db").read_bytes() == before


def test_a_database_that_another_program_never_lets_go_is_told_after_a_stated_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path)
    monkeypatch.setattr(storage, "LOCKED_SECONDS", 0.2)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StudyError, match=r"database is locked; another program holds it .*: close that one, and"):
            opened(tmp_path)
    assert len(opened(tmp_path).get_trials()) == 2


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "",
        "postgresql://me:s3cret@host:not-a-port/name",
        "nosuchdatabase://me:s3cret@host/name",
        "postgresql://me:s3cret@127.0.0.1:1/name",
        "mysql+nosuchdriver://me:s3cret@host/name",
        "postgresql://host/name?user=me&password=s3cret",
        "sqlite:////no/such/folder/study.db",
    ],
)
def test_a_storage_that_is_none_is_told_in_one_line_without_its_password(url: str) -> None:
    with pytest.raises(StudyError) as caught:
        storage.connect(url)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "--storage" in str(caught.value)


def test_a_shown_url_keeps_all_but_the_password() -> None:
    assert storage.without_password("postgresql://me:s3cret@host:5432/n") == "postgresql://me:***@host:5432/n"
    assert storage.without_password("postgresql://me:s3:c@ret@host/n") == "postgresql://me:***@host/n"
    assert storage.without_password("postgresql://host/n?password=s3cret&x=1") == "postgresql://host/n?password=***&x=1"
    assert storage.without_password("sqlite:////tmp/a b/study.db") == "sqlite:////tmp/a b/study.db"


def test_a_storage_is_remembered_so_that_it_means_the_same_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("study.db", "sub/study.db"):
        assert storage.absolute(f"sqlite:///{name}") == f"sqlite:///{tmp_path / name}"
    for other in (f"sqlite:///{tmp_path}/x.db", "sqlite://", "postgresql://me:secret@host/name", "no url", "://"):
        assert storage.absolute(other) == other


def test_a_study_that_minimises_is_not_ours(tmp_path: Path) -> None:
    optuna.create_study(storage=sqlite_url(tmp_path), study_name="mushrooms", direction="minimize")
    with pytest.raises(
        StudyError, match=r"^study 'mushrooms' in sqlite:.* is not one of this program; use --study NAME"
    ):
        opened(tmp_path)


def test_another_programs_study_of_the_same_name_is_not_ours(tmp_path: Path) -> None:
    """It was refused with a list of every setting that it lacks."""
    other = optuna.create_study(storage=sqlite_url(tmp_path), study_name="mushrooms", direction="maximize")
    other.tell(other.ask(), 0.5)
    with pytest.raises(StudyError, match="is not one of this program; use --study NAME"):
        opened(tmp_path)


def test_a_new_study_has_its_first_trials_waiting_and_a_second_opening_adds_none(tmp_path: Path) -> None:
    for _ in range(2):
        study = opened(tmp_path)
        waiting = study.get_trials(states=[TrialState.WAITING])
        assert [t.user_attrs["known_good"] for t in waiting] == ["one", "two"]
        assert len(study.get_trials()) == 2
        assert study.metric_names == [storage.METRIC]
        assert study.directions == [optuna.study.StudyDirection.MAXIMIZE]


def test_killed_between_its_first_trials_a_study_gets_the_missing_ones(tmp_path: Path) -> None:
    opened(tmp_path, first_trials={"one": FIRST["one"]})
    assert [t.user_attrs["known_good"] for t in opened(tmp_path).get_trials()] == ["one", "two"]


def test_a_changed_identity_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    opened(tmp_path)
    before = (tmp_path / "study.db").read_bytes()
    with pytest.raises(StudyError, match=r"study 'mushrooms' was begun with others \(seed: 0 -> 1\)"):
        opened(tmp_path, identity=IDENTITY | {"seed": 1})
    assert (tmp_path / "study.db").read_bytes() == before
    assert opened(tmp_path).user_attrs["identity:seed"] == 0


def test_two_studies_share_a_database_by_name(tmp_path: Path) -> None:
    opened(tmp_path, "a")
    opened(tmp_path, "b", identity={"seed": 5})
    assert optuna.load_study(study_name="b", storage=sqlite_url(tmp_path)).user_attrs["identity:seed"] == 5
    assert opened(tmp_path, "a").user_attrs["identity:seed"] == 0


def test_a_database_that_is_full_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    """SQLite's own limit on pages stands in for the disk's: the same error by the same way."""
    study = opened(tmp_path)
    url = sqlite_url(tmp_path)
    with (
        pytest.raises(StudyError, match=r"disk is full; free some space, and the same"),
        storage.explained(url),
    ):
        raise_full(study)
    with sqlite3.connect(tmp_path / "study.db") as connection:
        assert connection.execute("SELECT count(*) FROM trials").fetchone() == (2,)
    connection.close()


def raise_full(study: optuna.Study) -> None:
    engine = study._storage._backend.engine  # type: ignore[attr-defined]
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        for _ in range(200):
            connection.exec_driver_sql(
                "INSERT INTO trial_user_attributes (key, value_json) VALUES ('k', zeroblob(9999))"
            )


# -- what others read


def test_pandas_reads_the_table_of_trials(tmp_path: Path) -> None:
    study = opened(tmp_path)
    for value in (0.25, 0.5):
        asked = study.ask()
        asked.suggest_float("x", 0.0, 1.0)
        asked.set_user_attr("reason", 'käse, "quoted"\nsecond line')
        study.tell(asked, value)
    storage.write_trials_csv(study, tmp_path / "trials.csv")
    table = pandas.read_csv(tmp_path / "trials.csv")
    assert table["value"].tolist() == [0.25, 0.5]
    assert table["params_x"].tolist() == [0.25, 0.75]
    assert table["state"].tolist() == ["COMPLETE", "COMPLETE"]
    assert table["user_attrs_reason"].tolist()[0] == 'käse, "quoted"\nsecond line'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.db", "trials.csv"]


def test_the_table_of_a_study_without_trials_is_a_table(tmp_path: Path) -> None:
    storage.write_trials_csv(opened(tmp_path, first_trials={}), tmp_path / "trials.csv")
    assert (tmp_path / "trials.csv").is_file()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    def torn(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    (tmp_path / "file").write_text("old")
    with pytest.raises(StudyError, match="disk full"):
        replace_file(tmp_path / "file", torn)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
