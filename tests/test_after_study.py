"""The commands after a study, end to end on a tiny one: retrain, export, predict, disturbed and given wrong input.

searched -> copies of it -> retrained -> a copy -> chosen (another trial, a second look) -> exported -> predict
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState
from pictures import FLAWED, NAMES, class_folders, flawed_folder, picture
from studies import EPOCHS, HERE, Begun, Finished, Tiny, prepare, run_here, steady_threads
from tuning.storage import sole_coordinator

from data.cache import open_part
from model.export import formats
from model.export.bundle import load
from selection import test_set_uses as looks
from tests.stress.sameness import essence
from tuning import settings
from tuning.folder import sqlite_url

SEEDS = 3
RUNS = ("--workers", "1", "--finalists", "2", "--seeds", str(SEEDS))


@pytest.fixture(scope="module", autouse=True)
def steady() -> Iterator[None]:
    with steady_threads():
        yield


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A study of three trials."""
    study = prepare(tmp_path_factory.mktemp("tiny"))
    finished = study.command("--workers", "1", "--trials", "3")
    assert (finished.code, finished.err) == (0, "")
    return study


@pytest.fixture(scope="module")
def undisturbed(searched: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Finished]:
    """It, retrained by one worker that nobody disturbs; what the command said."""
    study = copied(searched, tmp_path_factory.mktemp("undisturbed"))
    finished = run_here(*study.after("retrain", *RUNS))
    assert (finished.code, finished.err) == (0, "")
    return study, finished


@pytest.fixture(scope="module")
def retrained(undisturbed: tuple[Tiny, Finished]) -> Tiny:
    return undisturbed[0]


def copied(study: Tiny, place: Path) -> Tiny:
    """The same study elsewhere."""
    shutil.copytree(study.results, place / "results")
    return study.at(place / "results")


def written(study: Tiny) -> dict[str, Any]:
    """retrained.json, but for the time of the look."""
    values = json.loads((study.study_folder / "retrained.json").read_text(encoding="utf-8"))
    if values["results"] is not None:
        assert values["results"].pop("tested")
    return values


def everything(study: Tiny) -> dict[Path, bytes]:
    """All files of all studies, but for the lock."""
    return {
        path: path.read_bytes()
        for path in sorted(study.results.rglob("*"))
        if path.is_file() and path.name not in ("study.lock", "study.owner")
    }


def refused(study: Tiny, *words: str) -> str:
    """Runs what must be refused: exit code 2, one line, and nothing lost. Returns the line."""
    before = everything(study)
    ended = run_here(*words)
    assert ended.code == 2, ended
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert everything(study) == before
    return ended.err.removeprefix("error: ").rstrip("\n")


# -- retrain


def test_retrain_leaves_its_runs_a_table_and_a_result(undisturbed: tuple[Tiny, Finished]) -> None:
    study, said = undisturbed
    winner = written(study)
    with (study.study_folder / "finalists.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * SEEDS
    means = {
        name: sum(float(row["top1"]) for row in rows if row["name"] == name) / SEEDS
        for name in {row["name"] for row in rows}
    }
    assert winner["validation"]["finalists_mean"] == pytest.approx(max(means.values()))
    assert means[winner["name"]] == max(means.values())
    test = open_part(study.data, 32, "test")
    results = winner["results"]
    assert (results["pictures"], results["looks"]) == (len(test.labels), 1)
    assert [sum(row) for row in results["confusion"]] == [list(test.labels).count(label) for label in range(3)]
    assert results["top1"] == results["seeds"][0]["top1"]
    assert len(results["seeds"]) == SEEDS
    assert f"{winner['name']}, seed 1: exported" in said.out
    assert "looked at once" in said.out
    assert "Export:    python study.py export --study tiny --results " in said.out.splitlines()[-1]


@pytest.mark.parametrize(("kind", "runs"), [("finalists", 2 * SEEDS), ("retrained", SEEDS)])
def test_the_runs_are_plain_trials_of_a_sibling_study_and_keep_their_weights(
    kind: str, runs: int, retrained: Tiny
) -> None:
    plain = optuna.load_study(study_name=f"tiny-{kind}", storage=sqlite_url(retrained.study_folder))
    trials = plain.get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * runs
    assert [trial.params["seed"] for trial in trials] == [0, 1, 2] * (runs // SEEDS)
    assert {trial.params["trial"] for trial in trials} <= {0, 1, 2}
    for trial in trials:
        place = retrained.study_folder / kind / "trials" / f"{trial.number:04d}"
        assert sorted(path.name for path in place.iterdir()) == ["best.pt", "history.json"]


def test_the_seeds_of_all_candidates_and_of_the_final_runs_are_the_same(retrained: Tiny) -> None:
    finalists = [trial.user_attrs["seed"] for trial in retrained.trials("tiny-finalists")]
    final = [trial.user_attrs["seed"] for trial in retrained.trials("tiny-retrained")]
    assert finalists == final * 2
    assert not set(final) & {trial.user_attrs["seed"] for trial in retrained.trials()}
    assert written(retrained)["seed"] == final[0]


def test_a_second_retrain_trains_nothing_and_says_the_same(undisturbed: tuple[Tiny, Finished]) -> None:
    study, first = undisturbed
    before, trials = written(study), [essence(study.trials(f"tiny-{kind}")) for kind in ("finalists", "retrained")]
    again = run_here(*study.after("retrain", *RUNS))
    assert (again.code, again.err) == (0, "")
    assert "to go" not in again.out
    assert again.out[again.out.index("Test part") :] == first.out[first.out.index("Test part") :]
    assert written(study) == before
    assert [essence(study.trials(f"tiny-{kind}")) for kind in ("finalists", "retrained")] == trials
    assert len((study.results / looks.FILE).read_text(encoding="utf-8").splitlines()) == 1


# -- disturbed


def asleep(begun: Begun, certain: Callable[[], bool], what: str) -> psutil.Process:
    """Stops the worker where this is certain, looked at once it sleeps."""

    def caught() -> bool:
        if not certain() or not begun.workers:
            return False
        begun.workers[0].suspend()
        if certain():
            return True
        begun.workers[0].resume()
        return False

    begun.until(caught, what)
    return begun.workers[0]


@pytest.mark.long
@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_killed_and_stopped_in_each_stage_it_equals_an_undisturbed_one(
    searched: Tiny, retrained: Tiny, tmp_path: Path
) -> None:
    """Killed among the finalists, killed among the final runs, and stopped there by Ctrl-C."""
    study = copied(searched, tmp_path)
    words = study.after("retrain", *RUNS)

    def in_the_second_epoch() -> bool:
        # One epoch of three is reported: the worker is at most done with the second
        return study.epochs("tiny-finalists").get(1) == ("RUNNING", 1)

    def one_of_three_has_an_epoch() -> bool:
        runs = study.epochs("tiny-retrained")
        return runs.get(0, ("", 0))[1] > 0 and runs[SEEDS - 1][0] == "WAITING"

    with study.begin(words=words) as begun:
        asleep(begun, in_the_second_epoch, "the second epoch of a finalist")
        begun.process.send_signal(signal.SIGKILL)
        assert begun.end() == -signal.SIGKILL
    assert study.epochs("tiny-finalists")[1][0] == "RUNNING"
    assert not (study.study_folder / "finalists.csv").exists()

    with study.begin(words=words) as begun:
        asleep(begun, one_of_three_has_an_epoch, "the middle of the final runs")
        begun.process.send_signal(signal.SIGKILL)
        assert begun.end() == -signal.SIGKILL
    assert study.epochs("tiny-retrained")[SEEDS - 1][0] == "WAITING"
    assert (study.study_folder / "finalists.csv").exists()

    with study.begin(words=words) as begun:
        begun.until(lambda: begun.workers, "a worker, which takes seconds to start")
        os.killpg(begun.process.pid, signal.SIGINT)
        assert begun.end() == 130
    assert "Stopping when the running epochs end" in begun.text
    assert f"Go on: python study.py {' '.join(words[:3])}" in begun.text
    assert "Traceback" not in begun.text
    assert study.epochs("tiny-retrained")[SEEDS - 1][0] == "WAITING"
    assert not (study.study_folder / "retrained.json").exists()
    assert not (study.results / looks.FILE).exists()

    finished = run_here(*words)
    assert (finished.code, finished.err) == (0, "")
    assert written(study) == written(retrained)
    for kind in ("finalists", "retrained"):
        assert essence(study.trials(f"tiny-{kind}")) == essence(retrained.trials(f"tiny-{kind}"))
    assert [trial.user_attrs["attempts"] for trial in study.trials("tiny-finalists")] == [1, 2, 1, 1, 1, 1]


def test_a_study_that_is_being_run_is_left_alone(retrained: Tiny) -> None:
    with sole_coordinator(retrained.study_folder):
        for command in ("retrain", "export"):
            assert "is being run by process" in refused(retrained, *retrained.after(command))


# -- other networks, and the replay


@pytest.fixture(scope="module")
def chosen(retrained: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Finished]:
    """A copy in which one's own choice is retrained, and the recipe beside it; they do not look yet."""
    study = copied(retrained, tmp_path_factory.mktemp("chosen"))
    trial = next(number for number in range(3) if number != written(retrained)["trial"])
    study.options = ("--workers", "1", "--trial", str(trial), "--seeds", "1", "--baseline")
    finished = run_here(*study.after("retrain", *study.options))
    assert (finished.code, finished.err) == (0, "")
    return study, finished


@pytest.fixture(scope="module")
def looked_again(chosen: tuple[Tiny, Finished]) -> tuple[Tiny, Finished]:
    """They look all the same."""
    study, first = chosen
    assert written(study)["results"] is None
    assert "Not tested: other networks have looked at the test part of these pictures once before" in first.out
    finished = run_here(*study.after("retrain", *study.options, "--look-again"))
    assert (finished.code, finished.err) == (0, "")
    return study, finished


def test_one_worker_on_the_cpu_replays_a_trial_bit_for_bit(chosen: tuple[Tiny, Finished]) -> None:
    study, said = chosen
    number = int(study.options[3])
    again = next(trial for trial in study.trials("tiny-finalists") if trial.user_attrs["run"].startswith("replay"))
    assert again.intermediate_values == study.trials()[number].intermediate_values
    assert f"Replay of trial {number}: recorded " in said.out
    assert f"the same in each of its {EPOCHS} epochs." in said.out


def test_other_networks_look_only_knowingly(looked_again: tuple[Tiny, Finished]) -> None:
    study, said = looked_again
    assert "to go" not in said.out
    assert "looked at 2 times" in said.out
    assert written(study)["results"]["looks"] == 2
    assert len(looks.looks(study.results, study.data.fingerprint)) == 2


def test_the_recipe_is_tested_beside_the_winner(looked_again: tuple[Tiny, Finished]) -> None:
    study, said = looked_again
    names = [one["name"] for one in written(study)["results"]["baselines"]]
    assert names == ["original recipe", "improved by hand", "improved by hand, no warm-up"]
    assert all(name in said.out for name in names)


def test_networks_that_looked_again_keep_their_result(looked_again: tuple[Tiny, Finished], tmp_path: Path) -> None:
    """The same command without --look-again wrote `results: null` over what it had found."""
    study = copied(looked_again[0], tmp_path)
    again = run_here(*study.after("retrain", *looked_again[0].options))
    assert (again.code, again.err) == (0, "")
    assert written(study) == written(looked_again[0])


def test_the_first_networks_keep_their_result_when_others_have_looked(retrained: Tiny, tmp_path: Path) -> None:
    study = copied(retrained, tmp_path)
    looks.count(study.results, study.data.fingerprint, "other networks", "elsewhere")
    assert run_here(*study.after("retrain", *RUNS)).code == 0
    assert written(study) == written(retrained)


def test_a_second_study_of_the_same_pictures_does_not_look(retrained: Tiny, tmp_path: Path) -> None:
    study = copied(retrained, tmp_path)
    (study.results / looks.FILE).unlink()
    looks.count(study.results, study.data.fingerprint, "other networks", "elsewhere")
    said = run_here(*study.after("retrain", *RUNS))
    assert said.code == 0
    assert "Not tested: " in said.out and "the last time in study 'elsewhere' at" in said.out
    assert written(study)["results"] is None
    assert [one.study for one in looks.looks(study.results, study.data.fingerprint)] == ["elsewhere"]


# -- the pictures


@pytest.fixture
def elsewhere(retrained: Tiny, tmp_path: Path) -> Path:
    """The same pictures in another place."""
    return Path(shutil.copytree(retrained.folder, tmp_path / "elsewhere"))


def test_the_same_pictures_elsewhere_will_do(retrained: Tiny, elsewhere: Path) -> None:
    before = written(retrained)
    again = run_here(*retrained.after("retrain", *RUNS, "--data", str(elsewhere)))
    assert (again.code, again.err) == (0, "")
    assert "to go" not in again.out
    assert written(retrained) == before


def one_more(folder: Path) -> str:
    picture(500, label=0).save(folder / NAMES[0] / "new.jpg")
    return "1 new (Agaricus/new.jpg)"


def one_less(folder: Path) -> str:
    (folder / NAMES[1] / "0003.jpg").unlink()
    return "1 gone (Amanita/0003.jpg)"


def another(folder: Path) -> str:
    picture(501, label=2).save(folder / NAMES[2] / "0005.jpg", quality=50)
    return "1 changed (Boletus/0005.jpg)"


@pytest.mark.parametrize("change", [one_more, one_less, another])
def test_other_pictures_are_refused_by_what_differs(
    change: Callable[[Path], str], retrained: Tiny, elsewhere: Path
) -> None:
    named = change(elsewhere)
    for command in ("retrain", "export"):
        line = refused(retrained, *retrained.after(command, "--data", str(elsewhere)))
        assert line.startswith(f"what comes after a study uses its own pictures, but {elsewhere} has others: 42 pict")
        assert named in line
        assert line.endswith("say where they are now with --data PATH, or begin another study with --study NAME")


def test_pictures_that_are_gone_are_told_with_the_option_that_names_them(retrained: Tiny, tmp_path: Path) -> None:
    assert "--data must be" in refused(retrained, *retrained.after("retrain", "--data", str(tmp_path / "gone")))


def test_a_folder_given_by_its_bare_name_is_found_from_anywhere(
    searched: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--data tiny` was kept as it was typed where it is also the study's name: retrain found it from there alone."""
    study = copied(searched, tmp_path)
    monkeypatch.chdir(study.folder.parent)
    assert study.command("--workers", "1", "--trials", "3", "--data", study.folder.name).code == 0
    assert settings.recall(study.results, "tiny")[1].data == str(study.folder)


@pytest.mark.long
def test_an_official_test_part_is_the_test_part(tmp_path: Path) -> None:
    """As folders `train` and `test`; the same pictures by --test-data are the same study."""
    both = tmp_path / "pictures" / "both"
    class_folders(both / "train", classes=3, each=12)
    for label, name in enumerate(NAMES[:3]):
        (both / "test" / name).mkdir(parents=True)
        for number in range(label + 2):
            picture(700 + number, label=label).save(both / "test" / name / f"{number}.jpg")
    study = Tiny(
        folder=both,
        data=None,  # pyright: ignore[reportArgumentType] - built by the command
        results=tmp_path / "results",
        options=("--workers", "1", "--trials", "1", "--epochs", "1"),
    )
    assert study.command().code == 0
    words = study.after("retrain", "--workers", "1", "--finalists", "1", "--seeds", "1")
    assert run_here(*words).code == 0
    tested = written(study)
    assert [sum(row) for row in tested["results"]["confusion"]] == [2, 3, 4]

    again = study.command("--data", str(both / "train"), "--test-data", str(both / "test"))
    assert (again.code, again.err) == (0, "")
    assert ": all trials are done." in again.out
    assert settings.recall(study.results, None)[1].test_data == str(both / "test")
    after = run_here(*words)
    assert (after.code, after.err) == (0, "")
    assert "to go" not in after.out
    assert written(study) == tested


# -- wrong input


@pytest.mark.parametrize("command", ["retrain", "export"])
def test_without_a_study_there_is_nothing_after_it(command: str, tmp_path: Path) -> None:
    study = Tiny(folder=tmp_path, data=None, results=tmp_path / "none")  # pyright: ignore[reportArgumentType]
    words = [word for word in study.after(command) if word not in ("--study", "tiny")]
    assert refused(study, *words).startswith("this command goes on from a study, but there is no ")
    assert not study.results.exists()


def test_a_mistyped_study_is_told_with_those_that_are_there(retrained: Tiny) -> None:
    for command in ("retrain", "export"):
        words = ["tinny" if word == "tiny" else word for word in retrained.after(command)]
        assert "there are: tiny; run one with python study.py" in refused(retrained, *words)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--trial", "99"], "--trial names a trial of the study, but 'tiny' has 0 to 2 and no 99"),
        (["--finalists", "0"], "--finalists must be >= 1, but got 0"),
        (["--seeds", "1.5"], "--seeds must be a whole number, but got '1.5'"),
        (["--trial", "-1"], "--trial must be >= 0, but got -1"),
    ],
)
def test_what_cannot_be_retrained_is_told_in_one_line(options: list[str], rule: str, retrained: Tiny) -> None:
    assert refused(retrained, *retrained.after("retrain", *options)).startswith(rule)


def test_a_broken_result_is_told_by_its_path_and_retrain_writes_it_anew(retrained: Tiny, tmp_path: Path) -> None:
    study = copied(retrained, tmp_path)
    path = study.study_folder / "retrained.json"
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")
    assert str(path) in refused(study, *study.after("export"))
    assert run_here(*study.after("retrain", *RUNS)).code == 0
    assert written(study) == written(retrained)


def test_weights_that_are_gone_are_told_by_their_path(retrained: Tiny, tmp_path: Path) -> None:
    study = copied(retrained, tmp_path)
    path = study.study_folder / written(study)["weights"]
    path.unlink()
    line = refused(study, *study.after("export"))
    assert str(path) in line
    assert line.endswith("python study.py retrain trains anew what it needs")


@pytest.mark.parametrize("name", ["study.owner", "finalists.csv", "retrained.json"])
def test_a_file_that_cannot_be_written_is_one_line(name: str, retrained: Tiny, tmp_path: Path) -> None:
    """On a full disk it was a traceback."""
    study = copied(retrained, tmp_path)
    (study.study_folder / name).unlink(missing_ok=True)
    (study.study_folder / name).mkdir()
    assert f"{study.study_folder / name} cannot be written" in refused(study, *study.after("retrain", *RUNS))


# -- export and predict


@pytest.fixture(scope="module")
def exported(looked_again: tuple[Tiny, Finished]) -> Finished:
    study, _ = looked_again
    finished = run_here(*study.after("export"))
    assert (finished.code, finished.err) == (0, "")
    return finished


@pytest.fixture(scope="module")
def best(looked_again: tuple[Tiny, Finished], exported: Finished) -> Path:
    return looked_again[0].study_folder / "best"


def test_the_bundle_is_the_winner_with_its_result(
    best: Path, looked_again: tuple[Tiny, Finished], exported: Finished
) -> None:
    study, _ = looked_again
    winner = written(study)
    assert {path.name for path in best.iterdir()} == formats.NAMES
    bundle, _ = load(best)
    assert bundle.classes == tuple(NAMES[:3])
    assert bundle.temperature == winner["temperature"]
    assert bundle.results is not None
    assert bundle.results["top1"] == winner["results"]["top1"]
    assert bundle.results["looks"] == 2
    assert bundle.provenance["trial"] == winner["trial"]
    assert "look number 2 at them" in (best / "README.md").read_text(encoding="utf-8")
    assert f"--model {best}" in exported.out


def predicted(best: Path, *words: str | Path) -> Finished:
    return run_here("predict", *map(str, words), "--model", str(best))


def test_predictions_are_a_table_json_and_csv_that_agree(best: Path, searched: Tiny) -> None:
    folder = searched.folder / NAMES[0]
    table, listed, rows = (predicted(best, folder, *form) for form in ([], ["--json"], ["--csv"]))
    assert [(ended.code, ended.err) for ended in (table, listed, rows)] == [(0, "")] * 3
    found = json.loads(listed.out)
    assert [one["path"] for one in found] == [str(path) for path in sorted(folder.iterdir())]
    for one in found:
        shares = [each["probability"] for each in one["classes"]]
        assert sum(shares) == pytest.approx(1)
        assert shares == sorted(shares, reverse=True)
    lines = list(csv.DictReader(io.StringIO(rows.out)))
    assert [(line["path"], line["class_1"]) for line in lines] == [
        (one["path"], one["classes"][0]["class"]) for one in found
    ]
    assert len(table.out.splitlines()) == 1 + len(found)


def test_of_the_study_run_last_the_bundle_is_found(looked_again: tuple[Tiny, Finished], best: Path) -> None:
    study, _ = looked_again
    one = str(study.folder / NAMES[0] / "0000.jpg")
    by_study = run_here(*study.after("predict", one, "--json"))
    by_default = run_here("predict", one, "--json", "--results", str(study.results))
    assert by_study == by_default
    assert by_default.out == predicted(best, one, "--json").out
    assert by_default.err == f"with {study.study_folder / 'best'}\n"


def test_the_command_needs_nothing_of_the_search(best: Path, searched: Tiny) -> None:
    code = f"""
import sys
for name in ("optuna", "optuna_dashboard", "pandas", "plotly", "matplotlib", "torchvision", "onnx", "onnxruntime"):
    sys.modules[name] = None
import study
sys.argv = ["study.py", "predict", {str(searched.folder / NAMES[0] / "0000.jpg")!r}, "--model", {str(best)!r}, "--json"]
study.main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)) == 1


def test_broken_pictures_stop_no_other(best: Path, tmp_path: Path) -> None:
    folder = flawed_folder(tmp_path / "flawed")
    ended = predicted(best, folder, "--json")
    assert ended.code == 0
    found = {str(Path(one["path"]).relative_to(folder)): one for one in json.loads(ended.out)}
    broken = {path for path, one in found.items() if one["error"]}
    assert {path for path, verdict in FLAWED.items() if verdict == "unreadable" and path in found} <= broken
    assert all(len(one["classes"]) == (0 if path in broken else 3) for path, one in found.items())
    assert len(found) - len(broken) >= 36
    assert ended.err == f"{len(broken)} of {len(found)} pictures could not be used\n"


def test_a_bundle_works_wherever_it_is(best: Path, tmp_path: Path, searched: Tiny) -> None:
    moved = Path(shutil.copytree(best, tmp_path / "moved"))
    one = searched.folder / NAMES[1] / "0001.jpg"
    assert predicted(moved, one, "--json", "--top", "1") == predicted(best, one, "--json", "--top", "1")
    assert len(json.loads(predicted(moved, one, "--json", "--top", "1").out)[0]["classes"]) == 1
    assert len(json.loads(predicted(moved, one, "--json", "--top", "99").out)[0]["classes"]) == 3


def test_what_cannot_be_predicted_is_told_in_one_line(best: Path, searched: Tiny, tmp_path: Path) -> None:
    good = str(searched.folder / NAMES[0] / "0000.jpg")
    (tmp_path / "empty").mkdir()
    for words, rule in (
        (["--model", best], "predict needs at least one picture or folder"),
        ([good, "--model", best, "--json", "--csv"], "predictions have one form, but got --json and --csv"),
        ([tmp_path / "gone.jpg", "--model", best], f"a picture or folder must exist, but {tmp_path / 'gone.jpg'} does"),
        ([tmp_path / "empty", "--model", best], "no picture could be classified"),
        ([good, "--model", tmp_path / "gone"], str(tmp_path / "gone")),
        ([good, "--results", tmp_path / "none"], "this command goes on from a study, but there is no "),
        ([good, "--model", best, "--top", "0"], "--top must be >= 1, but got 0"),
    ):
        ended = run_here("predict", *map(str, words))
        assert ended.code == 2, (words, ended)
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") == 1
        assert rule in ended.err


def test_a_reader_that_has_seen_enough_ends_predict_in_silence(best: Path, searched: Tiny) -> None:
    """`predict ... | head` ended in the traceback of a BrokenPipeError."""
    # More than a pipe holds
    words = [sys.executable, str(HERE / "study.py"), "predict", *[str(searched.folder)] * 60, "--model", str(best)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("top-1")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_study_without_a_bundle_says_how_to_make_one(retrained: Tiny) -> None:
    line = refused(retrained, *retrained.after("predict", str(retrained.folder / NAMES[0] / "0000.jpg")))
    assert str(retrained.study_folder / "best") in line
