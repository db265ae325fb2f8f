"""Damage to a study's files, in whole studies: each equals the undisturbed one or says in one line what is wrong.

In this process, with workers that are threads, if that makes no difference; otherwise the command itself.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from pictures import picture
from PIL import Image
from studies import HERE, TINY, Finished, Tiny, advanced, prepare, run_here, steady_threads, until

from data.cache import CacheHandle
from data.prepare import find_pictures
from model.training import EpochMetrics
from tests.stress.sameness import essence
from tuning import StudyError
from tuning.events import Ending
from tuning.folder import sqlite_url
from tuning.trials import read_trials

TRIALS = 2


@pytest.fixture(scope="module", autouse=True)
def steady() -> Iterator[None]:
    with steady_threads():
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    study = tiny.at(tmp_path_factory.mktemp("undisturbed"))
    list(study.coordinator(TRIALS).run())
    return study


@pytest.fixture(scope="module")
def interrupted(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A study that was interrupted in trial 1, after its second epoch."""
    study = tiny.at(tmp_path_factory.mktemp("interrupted"))
    with contextlib.closing(study.coordinator(TRIALS).run()) as run:
        for event in run:
            if advanced(event, 1, EpochMetrics) and study.epochs()[1][1] == 2:
                break
    assert study.epochs() == {0: ("COMPLETE", 3), 1: ("RUNNING", 2)}
    return study


@pytest.fixture
def copy(interrupted: Tiny, tmp_path: Path) -> Tiny:
    """A copy of the interrupted study, to be damaged."""
    shutil.copytree(interrupted.results, tmp_path / "results")
    return interrupted.at(tmp_path / "results")


def finish(study: Tiny) -> None:
    coordinator = study.coordinator(TRIALS)
    list(coordinator.run())
    assert coordinator.ending is Ending.TRIALS


# -- checkpoints


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    """Flip one bit of a weight, in the middle of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def swapped(path: Path) -> None:
    """Replace the checkpoint with that of another trial."""
    shutil.copy(path.parent.parent / "0000" / "best.pt", path)


def removed(path: Path) -> None:
    path.unlink()


def removed_with_its_folder(path: Path) -> None:
    shutil.rmtree(path.parent.parent)


@pytest.mark.parametrize("damage", [truncated, emptied, flipped, swapped, removed, removed_with_its_folder])
def test_a_study_whose_last_checkpoint_was_damaged_equals_the_undisturbed_one(
    damage: Callable[[Path], None], copy: Tiny, undisturbed: Tiny
) -> None:
    damage(copy.directory(1) / "last.pt")
    finish(copy)
    assert essence(copy.trials()) == essence(undisturbed.trials())


# -- the cache, and the pictures behind it


def decoded(tiny: Tiny, cache: Path) -> CacheHandle:
    """Build the cache, or repair it, in a folder of its own, as the command does."""
    return find_pictures(str(tiny.folder), cache_dir=cache).decode(TINY.sizes, cache_dir=cache)


@pytest.mark.parametrize("damage", [truncated, emptied, removed])
def test_a_study_whose_cache_was_damaged_equals_the_undisturbed_one(
    damage: Callable[[Path], None], copy: Tiny, undisturbed: Tiny, tmp_path: Path
) -> None:
    handle = decoded(copy, tmp_path / "cache")
    for path in handle.directory.iterdir():
        damage(path)
    lost = replace(copy, data=handle)
    with pytest.raises(StudyError, match=rf"^trial 1 .*{handle.directory}.*same command"):
        list(lost.coordinator(TRIALS).run())
    finish(replace(copy, data=decoded(copy, tmp_path / "cache")))
    assert essence(copy.trials()) == essence(undisturbed.trials())


def while_it_runs(study: Tiny, disturb: Callable[[], object], *more: str) -> Finished:
    """Run the command, and call `disturb` once its first trial has reported an epoch."""

    def wait() -> None:
        until(lambda: study.running(0), "a running trial")
        disturb()

    thread = threading.Thread(target=wait)
    thread.start()
    finished = study.command(*more)
    thread.join()
    return finished


def test_pictures_that_change_while_a_study_runs_are_refused_by_the_next_run(tiny: Tiny, tmp_path: Path) -> None:
    """The running study trains from its cache, which holds the pictures as they were."""
    shutil.copytree(tiny.folder, tmp_path / "tiny")
    study = replace(tiny.at(tmp_path / "results", "--workers", "1", "--trials", "1"), folder=tmp_path / "tiny")
    victim = study.folder / "Boletus" / "0003.jpg"
    finished = while_it_runs(study, lambda: picture(77, label=2).save(victim))
    assert (finished.code, finished.err) == (0, "")
    before = essence(study.trials())
    refused = study.command("--trials", "2")
    assert refused.code == 2
    assert refused.err.startswith("error: study 'tiny'")
    assert "data: 42 pictures" in refused.err and "--study NAME" in refused.err
    assert refused.err.count("\n") == 1
    assert essence(study.trials()) == before


# -- the folder and the database


def test_results_removed_while_a_study_runs_are_an_error_in_one_line(tiny: Tiny, tmp_path: Path) -> None:
    """A worker that finds no folder must not take itself for replaced and stop silently."""
    study = tiny.at(tmp_path / "results", "--workers", "1", "--trials", "3")
    finished = while_it_runs(study, lambda: shutil.rmtree(study.results, ignore_errors=True))
    assert finished.code == 2
    assert finished.err.startswith("error: ")
    assert finished.err.count("\n") == 1
    assert str(study.study_folder) in finished.err


HOLDER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


@contextlib.contextmanager
def locked(database: Path, seconds: float) -> Iterator[None]:
    """Have another program lock the database for this long."""
    command = [sys.executable, "-c", HOLDER, str(database), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        yield


@pytest.mark.parametrize("seconds", [1.5, pytest.param(75.0, marks=pytest.mark.long)])
def test_a_locked_database_is_waited_for_at_the_start_and_in_the_middle(
    seconds: float, copy: Tiny, undisturbed: Tiny
) -> None:
    database = copy.study_folder / "study.db"
    with locked(database, seconds):
        started = time.monotonic()
        run = copy.coordinator(TRIALS).run()
        waited = time.monotonic() - started
        with contextlib.closing(run):
            for event in run:
                if advanced(event, 1, EpochMetrics):
                    break
            with locked(database, seconds):
                started = time.monotonic()
                list(run)
                assert min(waited, time.monotonic() - started) > 0.7 * seconds
    assert essence(copy.trials()) == essence(undisturbed.trials())


def test_a_study_with_trials_in_the_future_is_resumed(copy: Tiny, undisturbed: Tiny) -> None:
    """The clock was set back by years in between; one trial even ended before it started."""
    with contextlib.closing(sqlite3.connect(copy.study_folder / "study.db")) as connection:
        connection.execute("UPDATE trials SET datetime_start = '2090-05-05 05:05:05.000000'")
        connection.execute(
            "UPDATE trials SET datetime_complete = '2089-01-01 00:00:00.000000' WHERE state = 'COMPLETE'"
        )
        connection.commit()
    coordinator = copy.coordinator(TRIALS, patience=TRIALS)
    list(coordinator.run())
    assert essence(copy.trials()) == essence(undisturbed.trials())


# -- a disk of its own, in a mount namespace that ends with the process

FULL = """
set -e
disk=$1; out=$2; shift 2
mount -t tmpfs -o size=200m tmpfs "$disk"
(
    while ! ls "$disk"/tiny/trials/*/last.pt > /dev/null 2>&1; do sleep 0.1; done
    cat /dev/zero > "$disk/filler" 2> /dev/null || true
) &
"$@" > "$out/first.out" 2> "$out/first.err" && code=0 || code=$?
echo $code > "$out/first.code"
wait
rm "$disk/filler"
"$@" > "$out/second.out" 2> "$out/second.err" && code=0 || code=$?
echo $code > "$out/second.code"
cp -r "$disk/tiny" "$out/tiny"
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="needs the mount namespaces of Linux")
def test_a_disk_that_fills_up_is_an_error_in_one_line_and_the_study_is_resumed_when_there_is_room(
    tiny: Tiny, tmp_path: Path
) -> None:
    """A real file system of 200 MB, which another program fills as soon as the first checkpoint is there."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system allows no mount namespace")
    whole = tiny.at(tmp_path / "whole", "--workers", "1", "--trials", "3")
    assert whole.command().code == 0
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    study = tiny.at(out, "--workers", "1", "--trials", "3")
    command = [sys.executable, str(HERE / "study.py"), *study.arguments("--results", str(disk))]
    subprocess.run(["unshare", "-rm", "sh", "-c", FULL, "sh", str(disk), str(out), *command], check=True, timeout=300)
    error = (out / "first.err").read_text()
    assert (out / "first.code").read_text() == "2\n", error
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert str(disk) in error
    assert any(reason in error for reason in ("No space left on device", "disk is full", "MB of free disk")), error
    assert ((out / "second.code").read_text(), (out / "second.err").read_text()) == ("0\n", "")
    assert essence(study.trials()) == essence(whole.trials())


# -- numbers


def test_a_network_that_always_predicts_the_same_class_is_an_ordinary_trial(tmp_path: Path) -> None:
    """All pictures have one colour, so each gets the same prediction."""
    for label in range(3):
        (tmp_path / "grey" / f"class {label}").mkdir(parents=True)
        for number in range(14):
            # Each of another size: equal files would be left out as duplicates.
            grey = Image.new("RGB", (32 + number, 32 + label), (120, 120, 120))
            grey.save(tmp_path / "grey" / f"class {label}" / f"{number}.png")
    paths = ["--data", str(tmp_path / "grey"), "--results", str(tmp_path), "--cache", str(tmp_path / "cache")]
    ended = run_here(*paths, "--study", "tiny", "--profile", "quick", "--epochs", "1", "--trials", "1")
    assert (ended.code, ended.err) == (0, "")
    (trial, *_) = read_trials(optuna.load_study(study_name="tiny", storage=sqlite_url(tmp_path / "tiny")))
    assert trial.state is TrialState.COMPLETE
    assert trial.result and trial.result.confusion
    assert sum(any(row[column] for row in trial.result.confusion) for column in range(3)) == 1
