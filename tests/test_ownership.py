"""Whether a folder, a database and results belong together: any mixture is told apart, and no file is changed."""

from __future__ import annotations

import contextlib
import csv
import json
import platform
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from selection.pruner_audit import KIND, read_audit
from tuning import StudyError, ownership, settings
from tuning.database import connect, load_study, open_study, sibling
from tuning.folder import sqlite_url, study_folder
from tuning.ownership import OUTPUTS, SESSION
from tuning.settings import STUDY_ID, Settings

BEGUN = 3
"""Trials that the studies of these tests have begun; two more are enqueued."""
KEPT = Settings(data="field-guide", test_data=None, pictures=None, storage=None)
ROOT = Path(__file__).parents[1]


def opened(folder: Path, url: str | None = None, **options: Any) -> optuna.Study:
    """Open or create the study of a folder, without trials to begin with."""
    known: dict[str, Any] = {"identity": {"data": "these"}, "first_trials": {}}
    study = open_study(
        connect(url or sqlite_url(folder), folder),
        folder.name,
        sampler=optuna.samplers.RandomSampler(),
        folder=folder,
        **known | options,
    )
    settings_of(study, folder, ownership.begin_session(study, folder))
    return study


def settings_of(study: optuna.Study, folder: Path, session: str | None = None, **changes: Any) -> None:
    known: dict[str, Any] = vars(KEPT) | {"study_id": ownership.study_id(study), "session": session}
    Settings(**known | changes).save(folder)


def begin(study: optuna.Study, folder: Path) -> None:
    """Begin a trial, as the coordinator does, and write a file of it."""
    number = study.ask().number
    trial_files(folder, number)


def trial_files(folder: Path, number: int) -> None:
    directory = folder / "trials" / f"{number:04d}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "history.json").write_text("[]")


def run_study(folder: Path, url: str | None = None) -> optuna.Study:
    study_folder(folder.parent, folder.name)
    study = opened(folder, url)
    for _ in range(BEGUN):
        begin(study, folder)
    for value in (0.25, 0.75):
        study.enqueue_trial({"x": value})
    return study


@contextlib.contextmanager
def editing(file: Path) -> Generator[sqlite3.Connection]:
    """Edit an SQLite database."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        yield connection
        connection.commit()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(folder: Path, act: Callable[[], object]) -> str:
    """Return the one line with which something is refused, after checking that no file has changed."""
    before = contents(folder)
    with pytest.raises(StudyError) as caught:
        act()
    assert contents(folder) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- files in the folder


def write_winner(folder: Path, made_by: str | None, trial: int) -> str:
    (folder / "retrained.json").write_text(json.dumps({"study_id": made_by, "trial": trial}))
    return "retrained.json"


def write_bundle(folder: Path, made_by: str | None, trial: int) -> str:
    (folder / "best").mkdir()
    provenance = {"trial": trial} | ({STUDY_ID: made_by} if made_by else {})
    (folder / "best" / "config.json").write_text(json.dumps({"provenance": provenance}))
    return "best"


def write_finalists(folder: Path, made_by: str | None, trial: int) -> str:
    column = {"study_id": made_by} if made_by else {}
    with (folder / "finalists.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["name", "trial", *column])
        table.writeheader()
        table.writerow({"name": "a, b", "trial": trial, **column})
    return "finalists.csv"


def write_trial(folder: Path, made_by: str | None, trial: int) -> str:
    trial_files(folder, trial)
    return f"trials/{trial:04d}"


def write_table(folder: Path, made_by: str | None, trial: int) -> str:
    (folder / "trials.csv").write_text(f"number,state\n0,COMPLETE\n{trial},PRUNED\n{BEGUN + 9},WAITING\n")
    return "trials.csv"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "birds"
    run_study(folder)
    return folder


WRITERS = {write_winner: True, write_bundle: True, write_finalists: True, write_trial: False, write_table: False}
"""Functions that write a file about a trial, and whether the file names its study."""


@given(st.sampled_from(list(WRITERS)), st.sampled_from(["ours", "another", None]), st.integers(0, BEGUN + 2))
@examples(max_examples=15, deadline=None)
def test_a_file_belongs_if_it_names_no_other_study_and_no_trial_that_was_not_begun(
    made: Path, tmp_path_factory: pytest.TempPathFactory, write: Callable[..., str], author: str | None, trial: int
) -> None:
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("copy") / "birds"))
    kept = settings.found(folder)
    assert kept is not None and kept.study_id
    name = write(folder, kept.study_id if author == "ours" else author, trial)
    if trial >= BEGUN or (author == "another" and WRITERS[write]):
        assert f"'{name}'" in refusal(folder, lambda: load_study(sqlite_url(folder), "birds", folder))
        assert f"'{name}'" in refusal(folder, lambda: opened(folder))
    else:
        assert len(load_study(sqlite_url(folder), "birds", folder).get_trials()) == BEGUN + 2


@pytest.mark.parametrize("text", ["", "[]", "{", '{"trial": []}', '{"study_id": {}, "trial": "x"}'])
def test_a_damaged_result_is_left_to_its_reader_or_refused(text: str, made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "birds"))
    (folder / "best").mkdir()
    for name in ("retrained.json", "best/config.json", "finalists.csv", "trials.csv"):
        (folder / name).write_text(text)
    if "{}" in text:
        assert "'retrained.json'" in refusal(folder, lambda: load_study(sqlite_url(folder), "birds", folder))
    else:
        load_study(sqlite_url(folder), "birds", folder)


def test_every_output_that_the_readme_of_results_lists_is_known() -> None:
    table = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    listed = {
        name.rstrip("/") for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(.*?)`", row)
    }
    assert {name.partition("/")[0] for name in listed} - {"study.db", "study.lock", "study.owner"} == set(OUTPUTS)


@pytest.mark.parametrize("shared", [False, True])
def test_a_new_study_is_not_started_among_the_files_of_another(shared: bool, made: Path, tmp_path: Path) -> None:
    folder, url = study_folder(tmp_path, "owls"), sqlite_url(made) if shared else None
    for name in OUTPUTS:
        path = folder / name if "." in name else folder / name / "0000" / "a"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("an earlier study's")
        assert f"'{name}'" in refusal(tmp_path, lambda: opened(folder, url))
        path.rename(folder / "my notes.txt")
    opened(folder, url)


def test_a_database_that_is_older_than_its_folder_goes_on_once_the_newer_files_are_moved(tmp_path: Path) -> None:
    folder = tmp_path / "birds"
    study = run_study(folder)
    earlier = (folder / "study.db").read_bytes()
    begin(study, folder)
    write_winner(folder, ownership.study_id(study), BEGUN)
    (folder / "study.db").write_bytes(earlier)
    text = refusal(folder, lambda: opened(folder))
    assert f"'trials/{BEGUN:04d}'" in text and "'retrained.json'" in text and f"begun {BEGUN}" in text
    for name in (f"trials/{BEGUN:04d}", "retrained.json"):
        (folder / name).rename(tmp_path / Path(name).name)
    assert len(opened(folder).get_trials()) == BEGUN + 2


def test_a_folder_that_is_older_than_its_database_or_lost_its_files_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "birds"
    study = run_study(folder)
    shutil.copytree(folder, tmp_path / "backup", ignore=shutil.ignore_patterns("study.db"))
    for _ in range(3):
        begin(study, folder)
    opened(folder)
    shutil.copytree(tmp_path / "backup", folder, dirs_exist_ok=True)
    for lost in ("trials", settings.FILE):
        path = folder / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert len(opened(folder).get_trials()) == BEGUN + 3


def without_ids(folder: Path) -> None:
    """Make a study one of an earlier version."""
    with editing(folder / "study.db") as connection:
        connection.execute("DELETE FROM study_user_attributes WHERE key IN (?, ?)", (STUDY_ID, SESSION))
    KEPT.save(folder)


def test_a_study_of_an_earlier_version_opens_with_its_results_and_gets_an_id(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "birds"))
    without_ids(folder)
    write_winner(folder, None, 0)
    assert ownership.study_id(load_study(sqlite_url(folder), "birds", folder)) is None
    assert ownership.study_id(opened(folder)) is not None
    load_study(sqlite_url(folder), "birds", folder)
    write_winner(folder, "another", 0)
    refusal(folder, lambda: load_study(sqlite_url(folder), "birds", folder))


def test_an_empty_study_of_another_program_is_not_taken_over(tmp_path: Path) -> None:
    """A study without trials in a folder's own database was left by an interrupted start, and is used."""
    shared = f"sqlite:///{tmp_path / 'shared.db'}"
    for url in (shared, sqlite_url(study_folder(tmp_path, "birds"))):
        optuna.create_study(storage=url, study_name="birds", direction="maximize")
    assert "not created by this program" in refusal(tmp_path, lambda: opened(tmp_path / "birds", shared))
    opened(tmp_path / "birds")


# -- several folders and one database


def test_a_shared_database_belongs_to_the_folder_in_which_the_study_was_last_run(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    mine, yours = tmp_path / "mine" / "birds", study_folder(tmp_path / "yours", "birds")
    run_study(mine, url)
    assert str(mine) in refusal(tmp_path, lambda: opened(yours, url))
    copy = Path(shutil.copytree(mine, tmp_path / "copy" / "birds"))
    opened(copy, url)  # it was copied whole, and goes on
    assert str(copy) in refusal(tmp_path, lambda: opened(mine, url))
    moved = copy.rename(tmp_path / "moved")
    (moved / settings.FILE).unlink()
    assert len(opened(moved.rename(tmp_path / "birds"), url).get_trials()) == BEGUN + 2


def test_a_study_run_on_another_machine_goes_on_with_its_folder_or_once_that_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = f"sqlite:///{tmp_path / 'shared.db'}", tmp_path / "there" / "birds"
    run_study(folder, url)
    copy = Path(shutil.copytree(folder, tmp_path / "here" / "birds"))
    empty = study_folder(tmp_path / "empty", "birds")
    shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(platform, "node", lambda: "another-machine")
        text = refusal(tmp_path, lambda: opened(empty, url))
        assert str(folder) in text
        command = shlex.split(text.rpartition(": ")[2])
        opened(copy, url)
    assert "another-machine" in refusal(tmp_path, lambda: opened(empty, url))
    subprocess.run([str(Path(sys.executable).parent / command[0]), *command[1:]], check=True, capture_output=True)
    assert len(opened(empty, url).get_trials()) == BEGUN + 2


def test_a_forgotten_storage_is_named_and_no_database_is_made(tmp_path: Path) -> None:
    url, folder = f"sqlite:///{tmp_path / 'shared.db'}", tmp_path / "birds"
    study = run_study(folder, url)
    settings_of(study, folder, storage=url)
    assert url in refusal(tmp_path, lambda: opened(folder))
    assert not (folder / "study.db").exists()


# -- finalists, final runs, audits


def fixed(study: optuna.Study, folder: Path, url: str, kind: str = KIND) -> optuna.Study:
    """Open the study's sibling as `retrain` does."""
    return open_study(
        connect(url),
        sibling(study, kind),
        sampler=optuna.samplers.RandomSampler(),
        identity={"runs": kind},
        first_trials={},
        folder=study_folder(folder, kind),
        study_id=ownership.identify(study),
    )


def test_a_sibling_is_found_after_the_study_was_renamed_and_not_another_studys(tmp_path: Path) -> None:
    url, folder = f"sqlite:///{tmp_path / 'shared.db'}", tmp_path / "birds"
    study = run_study(folder, url)
    runs = fixed(study, folder, url)
    runs.add_trial(optuna.trial.create_trial(value=0.5, user_attrs={"outcome": "complete"}))
    with editing(tmp_path / "shared.db") as connection:
        connection.execute("UPDATE studies SET study_name = 'owls' WHERE study_name = 'birds'")
    owls = opened(folder.rename(tmp_path / "owls"), url)
    assert fixed(owls, tmp_path / "owls", url).study_name == runs.study_name
    optuna.delete_study(study_name="owls", storage=url)
    shutil.rmtree(tmp_path / "owls")

    new = run_study(tmp_path / "birds", url)
    assert read_audit(new) is None
    assert f"'{runs.study_name}'" in refusal(tmp_path, lambda: fixed(new, tmp_path / "birds", url))


def test_runs_that_the_database_does_not_have_are_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "birds"
    study = run_study(folder)
    trial_files(study_folder(folder, KIND), 0)
    assert str(folder / KIND) in refusal(tmp_path, lambda: fixed(study, folder, sqlite_url(folder)))
