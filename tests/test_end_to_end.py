"""The README's commands on a small data set: from pictures to a finished study, and everything that reads it.

The photographs are a folder of class folders named by the environment variable STUDY_PHOTOS, such as CIFAR-10's train
folder; without it the one test that needs them is skipped.
"""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas
import pytest
from optuna.trial import TrialState
from pictures import FLAWED, flawed_folder

import study
from tuning.folder import sqlite_url
from tuning.settings import command_line
from tuning.trials import Outcome, count_trials, read_trials

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sys.executable).parent


def command(folder: Path, data: Path, *more: str) -> list[str]:
    places = ["--data", str(data), "--results", str(folder / "results"), "--cache", str(folder / "cache")]
    return [*places, "--profile", "quick", "--workers", "2", *more]


def run(folder: Path, data: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run `python study.py` as a process in another working directory."""
    words = [sys.executable, str(ROOT / "study.py"), *command(folder, data, *more)]
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("here")


@pytest.fixture(scope="module")
def flawed(folder: Path) -> Path:
    return flawed_folder(folder / "flawed")


@pytest.fixture(scope="module")
def finished(folder: Path, flawed: Path) -> subprocess.CompletedProcess[str]:
    """The command that ran a study of three trials on the flawed pictures, in `results/flawed`."""
    return run(folder, flawed, "--trials", "3", "--epochs", "2")


@pytest.fixture
def again(folder: Path, flawed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs the command again in this process: (exit code, output, errors)."""

    def again(*more: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["study.py", *command(folder, flawed, *more)])
        code = 0
        try:
            study.main()
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return again


def stored(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="flawed", storage=sqlite_url(folder / "results" / "flawed"))


@pytest.mark.usefixtures("finished")
class TestFlawed:
    """One study of the flawed pictures, and everything that reads it; in this order, as the last tests extend it."""

    def test_one_command_ends_in_a_finished_study(
        self, finished: subprocess.CompletedProcess[str], folder: Path
    ) -> None:
        assert (finished.returncode, finished.stderr) == (0, "")
        trials = read_trials(stored(folder))
        assert count_trials(trials) == 3
        assert all(trial.is_finished or trial.is_waiting for trial in trials)
        assert sum(trial.outcome is Outcome.COMPLETE for trial in trials) == 1
        assert {trial.baseline for trial in trials[:3]} == {"original recipe", "hand-tuned recipe", "best single guess"}
        assert all(trial.epochs == 2 for trial in trials if trial.state is TrialState.COMPLETE)

    def test_it_prints_its_plan_its_trials_and_the_next_commands(
        self, finished: subprocess.CompletedProcess[str], folder: Path, flawed: Path
    ) -> None:
        lines = finished.stdout.splitlines()
        place = folder / "results" / "flawed"
        assert any(
            line.startswith("Study 'flawed': 3 of 3 trials left, 2 epochs each, paused after epoch 1") for line in lines
        )
        begun = [line.split()[1] for line in lines if line.startswith("trial ") and " of 3 trials begun, " in line]
        assert set(begun) == {"0", "1", "2"}
        places = f"--study flawed --results {folder / 'results'}"
        assert lines[-8] == "3 trials: all trials are done."
        assert lines[-7].startswith("Trained: ") and "1 to the last epoch" in lines[-7] and "to epoch 1" in lines[-7]
        assert lines[-6:] == [
            f"Continue: {command_line(command(folder, flawed, '--epochs', '2'), 6)}",
            f"Browse:   python study.py dashboard {places}",
            f"Report:   python study.py report {places}",
            f"Retrain:  python study.py retrain {places}",
            f"Trials:   {place / 'trials.csv'}",
            f"Pictures: {place / 'data_report.csv'}",
        ]
        assert "Traceback" not in finished.stdout

    def test_the_report_has_the_verdict_on_every_file(self, folder: Path) -> None:
        with (folder / "results" / "flawed" / "data_report.csv").open(encoding="utf-8", newline="") as file:
            verdicts = {row["path"]: row["verdict"] for row in csv.DictReader(file)}
        assert {path: verdicts.get(path) for path in FLAWED} == FLAWED
        assert sum(verdict == "kept" for path, verdict in verdicts.items() if path not in FLAWED) >= 3 * 12 - 1

    def test_it_leaves_only_the_files_it_announces(self, folder: Path) -> None:
        place = folder / "results" / "flawed"
        names = {path.name for path in place.iterdir()}
        announced = {"study.db", "settings.json", "trials.csv", "data_report.csv", "trials", "artifacts"}
        assert names - {"study.lock"} == announced
        assert sorted(path.name for path in folder.iterdir()) == [
            *("cache", "flawed", "flawed-outside.jpg"),
            "results",
        ]
        kept = {path.name for path in (place / "trials").rglob("*") if path.is_file()}
        assert kept == {"best.pt", "history.json"}

    def test_pandas_reads_the_table(self, folder: Path) -> None:
        table = pandas.read_csv(folder / "results" / "flawed" / "trials.csv")
        assert table["number"].tolist() == list(range(len(table)))
        assert table["value"].between(0, 1).sum() == 3
        assert table["state"].value_counts()["COMPLETE"] == 1
        assert {"params_optimizer", "params_image_size", "user_attrs_flops", "user_attrs_outcome"} <= set(table)

    def test_optunas_own_command_line_reads_it(self, folder: Path) -> None:
        url = sqlite_url(folder / "results" / "flawed")

        def optuna_says(*words: str) -> Any:
            done = subprocess.run(
                [SCRIPTS / "optuna", "--storage", url, *words, "-f", "json"],
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        best = stored(folder).best_trial
        assert [row["name"] for row in optuna_says("studies")] == ["flawed"]
        assert optuna_says("best-trial", "--study-name", "flawed")["number"] == best.number

    def test_the_dashboard_serves_it(self, folder: Path) -> None:
        url = sqlite_url(folder / "results" / "flawed")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [str(SCRIPTS / "optuna-dashboard"), url, "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def get(path: str) -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
                assert answer.status == 200
                return answer.read().decode()

        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    page = get("/dashboard/")
                    break
                except OSError:
                    assert server.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            assert "<html" in page.lower()
            (summary,) = json.loads(get("/api/studies"))["study_summaries"]
            assert summary["study_name"] == "flawed"
            detail = json.loads(get(f"/api/studies/{summary['study_id']}"))
            assert detail["objective_names"] == ["validation top-1"]
            assert len(detail["trials"]) == len(stored(folder).get_trials())
            best = stored(folder).best_trial
            shown = {trial["number"]: trial for trial in detail["best_trials"]}
            assert shown[best.number]["values"] == [best.value]
            assert len(shown[best.number]["intermediate_values"]) == 2
        finally:
            server.terminate()
            server.wait(30)

    def test_check_data_reports_the_same_and_leaves_no_study(
        self, folder: Path, flawed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ["check-data", "--data", str(flawed), "--cache", str(folder / "cache"), "--report"]
        monkeypatch.setattr(sys, "argv", ["study.py", *words, str(folder / "report.csv")])
        study.main()
        out, err = capsys.readouterr()
        assert err == ""
        assert "Left out: 3 unreadable (" in out
        assert "), 1 too small, 1 duplicate, 2 conflict, 4 refused (" in out
        for path in (path for path, verdict in FLAWED.items() if verdict != "kept"):
            assert any(path in line for line in out.splitlines()), path
        with (folder / "report.csv").open(encoding="utf-8", newline="") as file:
            verdicts = {row["path"]: row["verdict"] for row in csv.DictReader(file)}
        assert {path: verdicts.get(path) for path in FLAWED} == FLAWED
        (folder / "report.csv").unlink()
        assert [path.name for path in (folder / "results").iterdir()] == ["flawed"]

    def test_the_same_command_again_trains_nothing(self, again: Any, folder: Path) -> None:
        before = stored(folder).get_trials()
        code, out, err = again("--trials", "3", "--epochs", "2")
        assert (code, err) == (0, "")
        assert "3 trials: all trials are done." in out
        assert stored(folder).get_trials() == before

    @pytest.mark.parametrize(
        ("option", "change"),
        [
            (["--seed", "1"], "seed: 0 -> 1"),
            (["--scheduler", "asha"], "scheduler: promote -> asha"),
            (["--max-params", "1e6"], "max params: none -> 1,000,000"),
            (["--epochs", "3"], "epochs: 2 -> 3"),
        ],
    )
    def test_another_setting_is_refused_and_nothing_is_lost(
        self, option: list[str], change: str, again: Any, folder: Path
    ) -> None:
        before = (folder / "results" / "flawed" / "study.db").read_bytes()
        words = {"--trials": "3", "--epochs": "2"} | {option[0]: option[1]}
        code, _, err = again(*(word for pair in words.items() for word in pair))
        assert code == 2
        assert err.startswith("error: ")
        assert "'flawed'" in err
        assert change in err
        assert err.count("\n") == 1
        assert (folder / "results" / "flawed" / "study.db").read_bytes() == before

    def test_a_larger_total_extends_the_study_in_another_precision_too(self, again: Any, folder: Path) -> None:
        before = read_trials(stored(folder))
        precision = "float32" if before[0].environment["precision"] == "bfloat16" else "bfloat16"
        code, out, err = again("--trials", "4", "--epochs", "2", "--precision", precision)
        assert (code, err) == (0, "")
        assert "1 of 4 trials left" in out
        assert f"2 at once on cpu in {precision}: about" in " ".join(out.split())
        assert f"Earlier trials were trained in {before[0].environment['precision']}." in out
        after = read_trials(stored(folder))
        assert after[:3] == before[:3]
        assert count_trials(after) == 4
        assert after[3].environment["precision"] == precision

    def test_changed_pictures_are_refused(self, again: Any, folder: Path, flawed: Path) -> None:
        """The old study's data report was replaced by that of the new pictures before they were refused."""
        report = (folder / "results" / "flawed" / "data_report.csv").read_bytes()
        (flawed / "Agaricus" / "0003.jpg").unlink()
        code, _, err = again("--trials", "4", "--epochs", "2")
        assert code == 2
        assert "data: 50 pictures, fingerprint " in err
        assert " -> 49 pictures, fingerprint " in err
        assert (folder / "results" / "flawed" / "data_report.csv").read_bytes() == report
        assert count_trials(read_trials(stored(folder))) == 4


@pytest.fixture
def photographs(tmp_path: Path) -> Iterator[Path]:
    """Three classes of forty pictures each."""
    source = os.environ.get("STUDY_PHOTOS")
    if not source:
        pytest.skip("STUDY_PHOTOS names no folder of class folders of photographs")
    classes = sorted(path for path in Path(source).iterdir() if path.is_dir())[:3]
    assert len(classes) == 3, f"{source} needs three class folders"
    for place in classes:
        (tmp_path / "photos" / place.name).mkdir(parents=True)
        for picture in sorted(path for path in place.iterdir() if path.is_file())[:40]:
            shutil.copy(picture, tmp_path / "photos" / place.name)
    yield tmp_path / "photos"


@pytest.mark.long
def test_photographs_become_a_study(photographs: Path, tmp_path: Path) -> None:
    ended = run(tmp_path, photographs, "--trials", "3", "--epochs", "2", "--study", "my photos")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "photos: 120 pictures of 3 classes" in ended.stdout
    url = sqlite_url(tmp_path / "results" / "my photos")
    assert count_trials(read_trials(optuna.load_study(study_name="my photos", storage=url))) == 3
    assert f"Browse:   python study.py dashboard --study 'my photos' --results {tmp_path}" in ended.stdout
