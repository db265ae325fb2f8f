"""What can go wrong with a study: the command itself is killed, stopped, disturbed and given bad input."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from pictures import class_folders
from studies import HERE, PATIENCE, RunningCommand, Tiny, advanced, gone, one_core, prepare, until

from model import checkpoint
from model.training import EpochMetrics
from tests.stress.sameness import essence
from tuning.devices import Slot
from tuning.events import TrialStarted
from tuning.trials import Trial, count_trials
from tuning.workers import HANG_SECONDS, LocalWorkers

TRIALS = 4
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")


@pytest.fixture(scope="module", autouse=True)
def steady() -> Iterator[None]:
    with one_core():
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A study of one worker that nobody disturbs."""
    study = tiny.at(tmp_path_factory.mktemp("undisturbed"), "--workers", "1", "--trials", str(TRIALS))
    finished = study.command()
    assert (finished.code, finished.err) == (0, "")
    assert f"{TRIALS} trials: all trials are done." in finished.out
    return study


def read(study: Tiny) -> list[Trial]:
    return [Trial(frozen) for frozen in study.trials()]


def suspend_within_epoch(study: Tiny, running: RunningCommand, number: int) -> psutil.Process:
    """Wait until a worker is within an epoch of this trial, and suspend it there."""

    def caught() -> bool:
        # Once an epoch is reported, the worker waits for its next order and trains; it must not finish that epoch.
        if not study.running(number) or not running.workers:
            return False
        running.workers[0].suspend()
        if study.running(number) and unreported(study, number) == 0:
            return True
        running.workers[0].resume()
        return False

    running.until(caught, f"an epoch of trial {number}")
    return running.workers[0]


def unreported(study: Tiny, number: int) -> int:
    """Return how many epochs of the checkpoint have not been reported yet."""
    return len(checkpoint.load(study.directory(number) / "last.pt").history) - study.epochs()[number][1]


def assert_finished(study: Tiny, trials: int = TRIALS) -> None:
    """Check that exactly `trials` count, all are finished, and only the files to keep are left on the disk."""
    found = read(study)
    assert count_trials(found) == trials
    assert all(trial.is_finished or trial.is_waiting for trial in found)
    assert [trial.number for trial in found] == list(range(len(found)))
    kept = {path.name for path in study.study_folder.glob("trials/*/*")}
    assert kept <= {"best.pt", "history.json"}
    assert len(list(study.study_folder.glob("trials/*/best.pt"))) == 3


@pytest.mark.long
def test_killed_within_an_epoch_worker_and_coordinator_it_equals_an_undisturbed_study(
    undisturbed: Tiny, tmp_path: Path
) -> None:
    """The worker is killed in trial 1; the coordinator in trial 2, while its worker is suspended and so outlives it.

    That worker wakes when the study has been finished by others: it must end and write nothing.
    """
    study = undisturbed.at(tmp_path, *undisturbed.options)
    with study.start() as running:
        suspend_within_epoch(study, running, 1).kill()
        sleeper = suspend_within_epoch(study, running, 2)
        running.process.send_signal(signal.SIGKILL)
        assert running.end() == -signal.SIGKILL
        assert study.running(2)
        finished = study.command()
        assert (finished.code, finished.err) == (0, "")
        files = {path: path.stat().st_mtime_ns for path in study.study_folder.rglob("*") if path.is_file()}
        sleeper.resume()
        until(lambda: gone(sleeper), "the end of the orphan")
    assert {path: path.stat().st_mtime_ns for path in study.study_folder.rglob("*") if path.is_file()} == files
    assert_finished(study)
    assert essence(study.trials()) == essence(undisturbed.trials())
    assert [trial.attempts for trial in read(study)] == [1, 2, 2, 1, *[0] * 7]


@pytest.mark.long
def test_a_killed_coordinator_leaves_no_process(tiny: Tiny, tmp_path: Path) -> None:
    study = tiny.at(tmp_path, "--workers", "2", "--trials", "20")
    with study.start() as running:
        running.until(lambda: study.running(0) or study.running(1) or study.running(2), "a running trial")
        family = psutil.Process(running.process.pid).children(recursive=True)
        assert len(running.workers) == 2
        running.process.kill()
        running.end()
        until(lambda: all(map(gone, family)), "the end of every process")


@pytest.mark.long
def test_a_worker_that_hangs_is_terminated_and_a_fresh_one_resumes_its_trial(tiny: Tiny, tmp_path: Path) -> None:
    whole, broken = tiny.at(tmp_path / "whole"), tiny.at(tmp_path / "broken")
    list(whole.coordinator(2).run())
    workers = LocalWorkers([Slot()])
    hanging, since, waited = None, 0.0, 0.0
    for event in broken.coordinator(2, workers=workers).run():
        if hanging is None and advanced(event, 0, EpochMetrics):
            (hanging,) = (child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline()))
            hanging.suspend()
            workers.hang_seconds, since = 3.0, time.monotonic()
        elif hanging is not None and isinstance(event, TrialStarted) and event.attempt == 2:
            waited = time.monotonic() - since
            assert gone(hanging)
            workers.hang_seconds = PATIENCE  # a process needs longer to start than an epoch takes
    assert waited >= 3.0
    assert essence(broken.trials()) == essence(whole.trials())
    assert [trial.attempts for trial in read(broken)] == [2, 1]


@pytest.mark.long
def test_the_command_terminates_a_hanging_worker_after_the_stated_time(undisturbed: Tiny, tmp_path: Path) -> None:
    study = undisturbed.at(tmp_path, *undisturbed.options)
    with study.start() as running:
        hanging, since = suspend_within_epoch(study, running, 1), time.monotonic()
        while not gone(hanging):
            assert running.process.poll() is None
            assert time.monotonic() - since < HANG_SECONDS + PATIENCE
            time.sleep(0.1)
        assert time.monotonic() - since >= HANG_SECONDS - 1.0
        assert running.end() == 0
    assert_finished(study)
    assert essence(study.trials()) == essence(undisturbed.trials())
    assert [trial.attempts for trial in read(study)] == [1, 2, 1, 1, *[0] * 7]


ASLEEP = """
import pickle, sys
from studies import PATIENCE, Tiny
from model.training import EpochMetrics
from tuning.events import TrialAdvanced
from tuning.devices import Slot
from tuning.workers import LocalWorkers

if __name__ == "__main__":
    study: Tiny = pickle.load(sys.stdin.buffer)
    workers = LocalWorkers([Slot()], hang_seconds=PATIENCE)
    for event in study.coordinator(2, workers=workers).run():
        if isinstance(event, TrialAdvanced) and isinstance(event.progress, EpochMetrics):
            workers.hang_seconds = 20.0
"""


@pytest.mark.long
def test_a_laptop_that_sleeps_for_longer_than_that_loses_no_worker(tiny: Tiny, tmp_path: Path) -> None:
    """All processes are suspended together, as by closing the lid; the coordinator wakes first and has no message.

    If it terminated the worker then, three such nights would fail the trial.
    """
    study = tiny.at(tmp_path)
    script = tmp_path / "asleep.py"
    script.write_text(ASLEEP)
    path = os.pathsep.join([str(HERE), str(HERE / "tests")])
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
    ) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(pickle.dumps(study))
            process.stdin.close()
            worker = suspend_within_epoch(study, RunningCommand(process=process, output=script), 0)
            time.sleep(1.0)  # until the coordinator waits for it
            process.send_signal(signal.SIGSTOP)
            time.sleep(25.0)
            process.send_signal(signal.SIGCONT)
            time.sleep(0.5)
            worker.resume()
            until(lambda: process.poll() is not None, "the end of the study")
        finally:
            process.kill()
    assert process.returncode == 0
    assert [(trial.attempts, trial.state.name) for trial in read(study)] == [(1, "COMPLETE")] * 2


def test_ctrl_c_keeps_finished_epochs_and_a_second_coordinator_is_refused(undisturbed: Tiny, tmp_path: Path) -> None:
    """The signal reaches the whole process group, workers too, as from a terminal; here while an epoch is running."""
    study = undisturbed.at(tmp_path, *undisturbed.options)
    with study.start() as running:
        worker = suspend_within_epoch(study, running, 1)
        refused = study.command()
        assert refused.code == 2
        assert refused.err.count("\n") == 1
        assert f"process {running.process.pid} on" in refused.err
        assert "--study NAME" in refused.err

        known = study.epochs()[1][1]
        os.killpg(running.process.pid, signal.SIGINT)
        running.until(lambda: "Stopping" in running.text, "the message about the stop")
        worker.resume()
        assert running.end() == 130
        until(lambda: gone(worker), "the end of the worker")
    assert study.epochs()[1][1] == known + 1
    assert "Resume:" in running.text and "study.py --data" in running.text
    assert "Traceback" not in running.text
    assert study.command().code == 0
    assert_finished(study)
    assert essence(study.trials()) == essence(undisturbed.trials())


@pytest.mark.long
def test_a_signal_that_the_shell_has_had_ignored_stays_ignored(tiny: Tiny, tmp_path: Path) -> None:
    """As SIGINT is in what a script starts in the background: the Ctrl-C is meant for the script's own foreground."""
    study = tiny.at(tmp_path, "--workers", "1", "--trials", "2")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a process inherits what is ignored
    try:
        with subprocess.Popen(
            [sys.executable, str(HERE / "study.py"), *study.arguments()], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            started = next(line for line in process.stdout if " %" in line)  # a trial has ended
            process.send_signal(signal.SIGINT)
            shown = started + process.stdout.read()
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.returncode == 0
    assert "Stopping" not in shown
    assert count_trials(read(study)) == 2


@pytest.mark.long
def test_a_second_signal_stops_without_the_running_epoch(undisturbed: Tiny, tmp_path: Path) -> None:
    """The worker is suspended, so that its epoch never ends. The exit code is that of the first signal, SIGTERM."""
    study = undisturbed.at(tmp_path, *undisturbed.options)
    with study.start() as running:
        worker = suspend_within_epoch(study, running, 0)
        known = study.epochs()[0]
        running.process.terminate()
        running.until(lambda: "Stopping" in running.text, "the message about the stop")
        running.process.send_signal(signal.SIGINT)
        assert running.end() == 143
        until(lambda: gone(worker), "the end of the worker")
    assert study.epochs()[0] == known
    assert (study.study_folder / "trials.csv").exists()


@pytest.mark.long
@pytest.mark.parametrize("shell", ['"$@" | head -n 1', '"$@" 2>&1 | true', '"$@" > /dev/full', '"$@" <&- >&- 2>&-'])
def test_output_that_cannot_be_written_does_not_end_the_study(shell: str, tiny: Tiny, tmp_path: Path) -> None:
    study = tiny.at(tmp_path, "--workers", "1", "--trials", "3")
    command = ["bash", "-c", f"set -o pipefail; {shell}", "bash", sys.executable, str(HERE / "study.py")]
    ended = subprocess.run([*command, *study.arguments()], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0
    assert ended.stderr.count("\n") == ("full" in shell)  # a full disk is said, a closed pipe is not
    assert_finished(study, 3)


@pytest.mark.long
def test_ctrl_c_that_ends_the_reader_too_lets_the_running_epoch_finish(tiny: Tiny, tmp_path: Path) -> None:
    """As with `study.py | tee log`: the line that says so cannot be printed, and ended the command at once."""
    study = tiny.at(tmp_path, "--workers", "1", "--trials", "9", "--epochs", "50", "--scheduler", "none")
    command = [sys.executable, str(HERE / "study.py"), *study.arguments()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        until(lambda: study.running(0) or process.poll() is not None, "a running trial")
        family = psutil.Process(process.pid).children(recursive=True)
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
    assert process.returncode == 130
    until(lambda: all(map(gone, family)), "the end of every process")
    assert study.epochs()[0] == ("RUNNING", len(checkpoint.load(study.directory(0) / "last.pt").history))


def test_a_second_run_is_a_no_op_and_says_so(undisturbed: Tiny) -> None:
    before = essence(undisturbed.trials())
    again = undisturbed.command()
    assert (again.code, again.err) == (0, "")
    assert f"{TRIALS} trials: all trials are done." in again.out
    assert essence(undisturbed.trials()) == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--seed", "1"], "seed: 0 -> 1"),
        (["--epochs", "4"], "epochs: 3 -> 4"),
        (["--max-params", "1e6"], "max params: none -> "),
        (["--sampler", "random"], "sampler: tpe -> random"),
        (["--scheduler", "none"], "scheduler: median -> none"),
        (["--profile", "laptop"], "profile: quick -> laptop"),
    ],
)
def test_a_study_keeps_its_settings(undisturbed: Tiny, options: list[str], named: str) -> None:
    before = essence(undisturbed.trials())
    refused = undisturbed.command(*options, "--trials", "9")
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert named in refused.err
    assert "--study NAME" in refused.err
    assert essence(undisturbed.trials()) == before


def test_a_study_keeps_its_data(undisturbed: Tiny, tmp_path: Path) -> None:
    before = essence(undisturbed.trials())
    refused = undisturbed.command("--data", str(class_folders(tmp_path / "other", 3, 15)), "--trials", "9")
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert "data: 42 pictures" in refused.err and "-> 45 pictures" in refused.err
    assert essence(undisturbed.trials()) == before


def test_workers_and_time_may_change(undisturbed: Tiny) -> None:
    before = essence(undisturbed.trials())
    assert undisturbed.command("--workers", "2", "--timeout", "5", "--patience", "30").code == 0
    assert essence(undisturbed.trials()) == before


def garbage(folder: Path) -> list[str]:
    (folder / "results" / "tiny").mkdir(parents=True)
    (folder / "results" / "tiny" / "study.db").write_bytes(b"this is no database " * 99)
    return ["--results", str(folder / "results")]


def a_file_for_results(folder: Path) -> list[str]:
    (folder / "file").write_text("not a folder")
    return ["--results", str(folder / "file")]


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (lambda folder: ["--data", str(folder / "nowhere")], "nowhere"),
        (lambda folder: ["--data", str(class_folders(folder / "one", 1, 12))], "class folder"),
        (lambda folder: ["--data", str(class_folders(folder / "few", 3, 5))], "10"),
        (a_file_for_results, "/file/tiny (Not a directory)"),
        (garbage, "study.db (file is not a database)"),
        (lambda folder: ["--storage", "nonsense"], "--storage 'nonsense'"),
        (lambda folder: ["--study", "a/b"], "'a/b'"),
        (lambda folder: ["--trials", "none"], "--trials"),
        (lambda folder: ["--workers", "0"], "--workers"),
        (lambda folder: ["--colour", "red"], "--colour"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tiny: Tiny, tmp_path: Path, options: Callable[[Path], list[str]], fact: str
) -> None:
    refused = tiny.at(tmp_path / "results").command(*options(tmp_path))
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert refused.err.startswith("error: ")
    assert fact in refused.err
