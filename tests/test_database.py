"""The study's database: created, opened, refused if it is damaged or another program's; no password is ever shown."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytest
import sqlalchemy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from tuning import StudyError, database, storage
from tuning.folder import sqlite_url
from tuning.trials import METRIC

IDENTITY = {"data": "9 pictures", "seed": 0, "max flops": None, "space lr": ["{}"]}
FIRST = {"one": {"x": 0.25}, "two": {"x": 0.75}}


@pytest.fixture(autouse=True)
def closed_databases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close all connections: one left to the garbage collector would raise its warning in another test."""
    made: list[optuna.storages.RDBStorage] = []

    class Noted(optuna.storages.RDBStorage):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            made.append(self)
            super().__init__(*arguments, **named)

    monkeypatch.setattr(storage, "RDBStorage", Noted)
    yield
    for one in made:
        if hasattr(one, "engine"):
            one.engine.dispose()


def opened(folder: Path, name: str = "mushrooms", **changes: Any) -> optuna.Study:
    return database.open_study(
        database.connect(sqlite_url(folder), changes.get("own")),
        name,
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.NopPruner(),
        identity=changes.get("identity", IDENTITY),
        first_trials=changes.get("first_trials", FIRST),
        folder=changes.get("own"),
    )


def refusal(folder: Path, **changes: Any) -> str:
    """Return the one line with which the study is refused, after checking that the database is unchanged."""
    file = folder / "study.db"
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(StudyError) as caught:
        opened(folder, **changes)
    assert (file.read_bytes() if file.is_file() else None) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- where it is


@pytest.mark.skipif(os.name == "nt", reason="Windows allows few of these characters")
@given(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=40))
@example("My%20Project")
@example("what?mode=memory#1&2")
@settings(max_examples=300)
def test_a_folder_of_any_name_holds_its_own_database(name: str) -> None:
    folder = Path("/results") / f"a{name}"
    parsed = sqlalchemy.make_url(sqlite_url(folder))
    assert parsed.database == f"{folder}/study.db"
    assert not parsed.query


@pytest.mark.skipif(os.name == "nt", reason="Windows allows few of these characters")
@pytest.mark.parametrize("name", ["My%20Project", "100%", "a?b=c", "a#b&c", "'quoted'", '"', "ä b", "-x", "[bold]"])
def test_a_database_lies_in_the_folder_that_was_named(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    opened(folder)
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*.db")] == [Path(name) / "study.db"]
    assert optuna.load_study(study_name="mushrooms", storage=sqlite_url(folder)).user_attrs


@pytest.mark.parametrize(
    ("mountpoint", "kind", "found"),
    [
        ("/home", "nfs4", "nfs4"),
        ("/home/me", "CIFS", "cifs"),
        ("/home/m", "nfs", None),  # a sibling with the same beginning
        ("/home/me", "ext4", None),
        ("/elsewhere", "nfs", None),
    ],
)
def test_a_network_file_system_is_recognised(
    mountpoint: str, kind: str, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mount(NamedTuple):
        mountpoint: str
        fstype: str

    mounts = [Mount("/", "ext4"), Mount(mountpoint, kind)]
    monkeypatch.setattr(database.psutil, "disk_partitions", lambda **_: mounts)
    assert database.network_file_system(Path("/home/me/results")) == found


def test_this_disk_is_local_or_on_a_known_network_file_system(tmp_path: Path) -> None:
    assert database.network_file_system(tmp_path) in {None, *database.NETWORK_FILE_SYSTEMS}


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
def test_an_unusable_url_is_refused_in_one_line_without_its_password(url: str) -> None:
    with pytest.raises(StudyError) as caught:
        database.connect(url)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "--storage" in str(caught.value)


def test_a_shown_url_masks_the_password_alone() -> None:
    assert database.without_password("postgresql://me:s3cret@host:5432/n") == "postgresql://me:***@host:5432/n"
    assert database.without_password("postgresql://me:s3:c@ret@host/n") == "postgresql://me:***@host/n"
    assert (
        database.without_password("postgresql://host/n?password=s3cret&x=1") == "postgresql://host/n?password=***&x=1"
    )
    assert database.without_password("sqlite:////tmp/a b/study.db") == "sqlite:////tmp/a b/study.db"


def test_a_stored_url_means_the_same_in_every_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("study.db", "sub/study.db"):
        assert database.absolute(f"sqlite:///{name}") == f"sqlite:///{tmp_path / name}"
    for other in (f"sqlite:///{tmp_path}/x.db", "sqlite://", "postgresql://me:secret@host/name", "no url", "://"):
        assert database.absolute(other) == other


# -- opening a study


def test_a_new_study_has_its_first_trials_enqueued_and_opening_it_again_adds_none(tmp_path: Path) -> None:
    for _ in range(2):
        study = opened(tmp_path)
        waiting = study.get_trials(states=[TrialState.WAITING])
        assert [trial.user_attrs["baseline"] for trial in waiting] == ["one", "two"]
        assert len(study.get_trials()) == 2
        assert study.metric_names == [METRIC]
        assert study.directions == [optuna.study.StudyDirection.MAXIMIZE]


def test_a_study_killed_between_its_first_trials_gets_the_missing_ones(tmp_path: Path) -> None:
    opened(tmp_path, first_trials={"one": FIRST["one"]})
    assert [trial.user_attrs["baseline"] for trial in opened(tmp_path).get_trials()] == ["one", "two"]


def test_two_studies_share_a_database_by_name(tmp_path: Path) -> None:
    opened(tmp_path, "a")
    opened(tmp_path, "b", identity={"seed": 5})
    assert optuna.load_study(study_name="b", storage=sqlite_url(tmp_path)).user_attrs["identity:seed"] == 5
    assert opened(tmp_path, "a").user_attrs["identity:seed"] == 0


def test_a_changed_identity_is_refused_with_both_values(tmp_path: Path) -> None:
    opened(tmp_path)
    text = refusal(tmp_path, identity=IDENTITY | {"seed": 1})
    assert "'mushrooms'" in text and "(seed: 0 -> 1)" in text
    assert opened(tmp_path).user_attrs["identity:seed"] == 0


def test_a_study_that_minimises_is_refused(tmp_path: Path) -> None:
    optuna.create_study(storage=sqlite_url(tmp_path), study_name="mushrooms", direction="minimize")
    text = refusal(tmp_path)
    assert "'mushrooms'" in text and sqlite_url(tmp_path) in text and "--study NAME" in text


def test_another_programs_study_of_the_same_name_is_refused(tmp_path: Path) -> None:
    """The error once listed every setting that the other study lacks."""
    other = optuna.create_study(storage=sqlite_url(tmp_path), study_name="mushrooms", direction="maximize")
    other.tell(other.ask(), 0.5)
    text = refusal(tmp_path)
    assert "'mushrooms'" in text and sqlite_url(tmp_path) in text and "--study NAME" in text
    assert "->" not in text


def test_a_study_that_has_been_run_is_loaded(tmp_path: Path) -> None:
    opened(tmp_path)
    assert database.load_study(sqlite_url(tmp_path), "mushrooms", tmp_path).user_attrs["identity:seed"] == 0


@pytest.mark.parametrize("other", [None, "ours", "another program's", "turned"])
def test_loading_a_study_that_was_never_run_is_refused_and_creates_no_database(
    other: str | None, tmp_path: Path
) -> None:
    if other == "ours":
        opened(tmp_path, "other")
    elif other == "turned":
        opened(tmp_path)
        with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as connection:
            connection.execute("UPDATE study_directions SET direction = 'MINIMIZE'")
            connection.commit()
    elif other:
        optuna.create_study(storage=sqlite_url(tmp_path), study_name="mushrooms", direction="maximize")
    with pytest.raises(StudyError) as caught:
        database.load_study(sqlite_url(tmp_path), "mushrooms", tmp_path)
    text = str(caught.value)
    assert sqlite_url(tmp_path) in text and "--study NAME" in text
    assert ("'other'" in text) == (other == "ours")
    assert (tmp_path / "study.db").exists() == bool(other)


# -- damage


def not_a_database(folder: Path) -> str:
    (folder / "study.db").write_text("this is not SQLite, but it is somebody's\n" * 50)
    return "file is not a database"


def a_directory(folder: Path) -> str:
    (folder / "study.db").mkdir()
    return "unable to open database file"


def a_truncated_database(folder: Path) -> str:
    opened(folder)
    whole = (folder / "study.db").read_bytes()
    (folder / "study.db").write_bytes(whole[: len(whole) // 2])
    return "malformed"


@pytest.mark.parametrize("spoil", [not_a_database, a_directory, a_truncated_database])
def test_a_file_that_is_no_database_is_named_and_left_unchanged(spoil: Any, tmp_path: Path) -> None:
    reason = spoil(tmp_path)
    text = refusal(tmp_path)
    assert text.startswith(f"cannot use the database {sqlite_url(tmp_path)} (")
    assert reason in text
    assert "--study NAME" in text and "--storage URL" in text


def with_a_trial(folder: Path) -> bytes:
    """Create a study with one trial in its folder; return the database."""
    study = opened(folder)
    study.tell(study.ask(), 0.5)
    (folder / "trials" / "0000").mkdir(parents=True)
    (folder / "trials" / "0000" / "history.json").write_text("[]")
    return (folder / "study.db").read_bytes()


@pytest.mark.parametrize("emptied", [False, True])
def test_a_study_whose_database_is_missing_is_not_started_over(emptied: bool, tmp_path: Path) -> None:
    """Once a new study was started over the trials of the old one."""
    whole, file = with_a_trial(tmp_path), tmp_path / "study.db"
    file.unlink()
    if emptied:
        file.touch()
    text = refusal(tmp_path, own=tmp_path)
    assert f"{sqlite_url(tmp_path)} {'is empty' if emptied else 'does not exist'}" in text
    assert "'trials'" in text and "--study NAME" in text
    assert file.exists() == emptied
    file.write_bytes(whole)
    assert len(opened(tmp_path).get_trials()) == 2


def flip(file: Path, needle: bytes, offset: int, bit: int) -> None:
    """Flip one bit, `offset` bytes after the start of the first `needle`."""
    content = bytearray(file.read_bytes())
    assert content.count(needle) >= 1
    content[content.index(needle) + offset] ^= bit
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("needle", "offset", "bit", "reason"),
    [
        (b"SQLite format 3", 3, 0x10, "file is not a database"),
        (b"CREATE TABLE trials", 3, 0x10, "malformed"),  # the schema's text
        (b"FloatDistribution", 2, 0x01, "Unknown distribution class"),  # a value that only Optuna reads
    ],
)
def test_a_flipped_bit_is_an_error_and_nothing_is_written(
    needle: bytes, offset: int, bit: int, reason: str, tmp_path: Path
) -> None:
    study = opened(tmp_path)
    asked = study.ask()
    asked.suggest_float("x", 0.0, 1.0)
    study.tell(asked, 0.5)
    flip(tmp_path / "study.db", needle, offset, bit)
    text = refusal(tmp_path)
    assert reason in text and "--study NAME" in text


def test_a_damaged_page_is_found_when_the_database_is_opened(tmp_path: Path) -> None:
    """And not in the middle of the study. Each page of the file in turn is overwritten."""
    study = opened(tmp_path)
    for _ in range(2):
        study.tell(study.ask(), 0.5)
    whole = (tmp_path / "study.db").read_bytes()
    size = 4096
    for page in range(len(whole) // size):
        damaged = whole[: page * size] + b"\xa5" * size + whole[(page + 1) * size :]
        (tmp_path / "study.db").write_bytes(damaged)
        with pytest.raises(StudyError, match=r"\((database disk image is malformed|file is not a database)"):
            database.connect(sqlite_url(tmp_path))
        assert (tmp_path / "study.db").read_bytes() == damaged


def test_the_tables_of_a_newer_optuna_are_refused_with_the_upgrade(tmp_path: Path) -> None:
    opened(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v9.9.0.a'")
        connection.commit()
    text = refusal(tmp_path)
    assert sqlite_url(tmp_path) in text and "The runtime optuna" in text
    assert "pip install -U optuna" in text and "--study NAME" in text and "--storage URL" in text


def test_a_locked_database_is_an_error_after_the_stated_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path)
    monkeypatch.setattr(database, "LOCKED_SECONDS", 0.2)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        text = refusal(tmp_path)
    assert "database is locked" in text and "another program" in text and "same command" in text
    assert len(opened(tmp_path).get_trials()) == 2


def test_a_full_disk_is_an_error_and_keeps_what_was_stored(tmp_path: Path) -> None:
    """SQLite's own limit on pages stands in for the disk's: it raises the same error on the same path."""
    study = opened(tmp_path)
    url = sqlite_url(tmp_path)
    with (
        pytest.raises(StudyError, match=r"disk is full.*free some space.*same command"),
        database.explained(url),
    ):
        exceed_page_limit(study)
    with sqlite3.connect(tmp_path / "study.db") as connection:
        assert connection.execute("SELECT count(*) FROM trials").fetchone() == (2,)
    connection.close()


def exceed_page_limit(study: optuna.Study) -> None:
    engine = study._storage._backend.engine  # type: ignore[attr-defined]
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        for _ in range(200):
            connection.exec_driver_sql(
                "INSERT INTO trial_user_attributes (key, value_json) VALUES ('k', zeroblob(9999))"
            )
