"""The commands after a study, end to end on a tiny one: retrain, export and predict, also disturbed and misused.

searched -> a copy, retrained -> a copy, chosen (another trial) -> retested (a second test-set evaluation) -> exported
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
import pytest
import torch
from optuna.trial import TrialState
from pictures import FLAWED, NAMES, class_folders, flawed_folder, picture
from PIL import Image
from studies import EPOCHS, HERE, PATIENCE, Finished, RunningCommand, Tiny, prepare, run_here, steady_threads
from torchvision import models

from commands import console
from commands.output import READER_LEFT
from data.cache import open_part
from model import strangers
from model.export import formats
from model.export.bundle import load
from model.preprocessing import normalise
from reporting import spotlights
from selection import test_set_uses
from selection.test_set_uses import TestSet
from tests.stress.sameness import essence
from tuning import settings
from tuning.folder import sqlite_url
from tuning.lock import sole_coordinator
from tuning.trials import Trial

SEEDS = 3
RUNS = ("--workers", "1", "--finalists", "2", "--seeds", str(SEEDS), "--longer", "1")


@pytest.fixture(scope="module", autouse=True)
def steady() -> Iterator[None]:
    with steady_threads():
        yield


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A study of three trials, with one picture of 12 bits."""
    place = tmp_path_factory.mktemp("tiny")
    (place / "tiny" / NAMES[0]).mkdir(parents=True)
    values = np.asarray(picture(900).convert("L")).astype(np.uint16) * 16
    Image.fromarray(values).save(place / "tiny" / NAMES[0] / "deep.tif")
    study = prepare(place)
    finished = study.command("--workers", "1", "--trials", "3")
    assert (finished.code, finished.err) == (0, "")
    return study


@pytest.fixture(scope="module")
def undisturbed(searched: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Finished]:
    """A copy of it, retrained by one worker without disturbance, and how the command ended."""
    study = copied(searched, tmp_path_factory.mktemp("undisturbed"))
    finished = run_here(*study.after("retrain", *RUNS))
    assert (finished.code, finished.err) == (0, "")
    return study, finished


@pytest.fixture(scope="module")
def retrained(undisturbed: tuple[Tiny, Finished]) -> Tiny:
    return undisturbed[0]


def copied(study: Tiny, place: Path) -> Tiny:
    """Copy the study to `place`."""
    shutil.copytree(study.results, place / "results")
    return study.at(place / "results")


def written(study: Tiny) -> dict[str, Any]:
    """Return the contents of retrained.json without the commit of the program and the time of the evaluation."""
    values = json.loads((study.study_folder / "retrained.json").read_text(encoding="utf-8"))
    assert values["environment"].pop("program")
    if values["results"] is not None:
        assert values["results"].pop("tested")
    return values


def everything(study: Tiny) -> dict[Path, bytes]:
    """Return the contents of all files of all studies, except the lock."""
    return {
        path: path.read_bytes()
        for path in sorted(study.results.rglob("*"))
        if path.is_file() and path.name not in ("study.lock", "study.owner")
    }


def refused(study: Tiny, *words: str) -> str:
    """Run what must be refused, with exit code 2, one line and no file changed; return the line."""
    before = everything(study)
    ended = run_here(*words)
    assert ended.code == 2, ended
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert everything(study) == before
    return ended.err.removeprefix("error: ").rstrip("\n")


# -- retrain


def test_retrain_leaves_a_table_of_its_runs_and_a_test_result(undisturbed: tuple[Tiny, Finished]) -> None:
    study, finished = undisturbed
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
    assert (results["pictures"], results["evaluations"]) == (len(test.labels), 1)
    assert [sum(row) for row in results["confusion"]] == [list(test.labels).count(label) for label in range(3)]
    assert results["top1"] == results["seeds"][0]["top1"]
    assert len(results["seeds"]) == SEEDS
    assert f"{winner['name']}, seed 1: exported" in finished.out
    assert "evaluated once" in finished.out
    assert "Export:    python study.py export --study tiny --results " in finished.out.splitlines()[-1]


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


def test_all_candidates_and_the_final_runs_have_the_same_seeds(retrained: Tiny) -> None:
    searched, finalists, final = (
        [Trial(frozen).seed for frozen in retrained.trials(name)]
        for name in ("tiny", "tiny-finalists", "tiny-retrained")
    )
    assert finalists == final * 2
    assert not set(final) & set(searched)
    assert written(retrained)["seed"] == final[0]


def test_a_second_retrain_trains_nothing_and_prints_the_same(undisturbed: tuple[Tiny, Finished]) -> None:
    study, first = undisturbed
    before, trials = written(study), [essence(study.trials(f"tiny-{kind}")) for kind in ("finalists", "retrained")]
    again = run_here(*study.after("retrain", *RUNS))
    assert (again.code, again.err) == (0, "")
    assert "left; " not in again.out
    assert again.out[again.out.index("Test set") :] == first.out[first.out.index("Test set") :]
    assert written(study) == before
    assert [essence(study.trials(f"tiny-{kind}")) for kind in ("finalists", "retrained")] == trials
    assert len((study.results / test_set_uses.FILE).read_text(encoding="utf-8").splitlines()) == 1


# -- disturbed


def asleep(begun: RunningCommand, certain: Callable[[], bool], what: str) -> psutil.Process:
    """Suspend the worker at a moment when `certain` holds, which is checked again once it sleeps."""

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
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_retrain_killed_and_stopped_in_each_stage_equals_an_undisturbed_one(
    searched: Tiny, retrained: Tiny, tmp_path: Path
) -> None:
    """Killed among the finalists, killed among the final runs, and stopped there by Ctrl-C."""
    study = copied(searched, tmp_path)
    words = study.after("retrain", *RUNS)

    def in_the_second_epoch() -> bool:
        # One epoch of three is reported, so the worker has finished the second one at most
        return study.epochs("tiny-finalists").get(1) == ("RUNNING", 1)

    def one_of_three_has_an_epoch() -> bool:
        runs = study.epochs("tiny-retrained")
        return runs.get(0, ("", 0))[1] > 0 and runs[SEEDS - 1][0] == "WAITING"

    with study.start(argv=words) as begun:
        asleep(begun, in_the_second_epoch, "the second epoch of a finalist")
        begun.process.send_signal(signal.SIGKILL)
        assert begun.end() == -signal.SIGKILL
    assert study.epochs("tiny-finalists")[1][0] == "RUNNING"
    assert not (study.study_folder / "finalists.csv").exists()

    with study.start(argv=words) as begun:
        asleep(begun, one_of_three_has_an_epoch, "the middle of the final runs")
        begun.process.send_signal(signal.SIGKILL)
        assert begun.end() == -signal.SIGKILL
    assert study.epochs("tiny-retrained")[SEEDS - 1][0] == "WAITING"
    assert (study.study_folder / "finalists.csv").exists()

    with study.start(argv=words) as begun:
        begun.until(lambda: begun.workers, "the start of a worker, which takes seconds")
        os.killpg(begun.process.pid, signal.SIGINT)
        assert begun.end() == 130
    assert "Stopping when the running epochs end" in begun.text
    assert f"Resume: python study.py {' '.join(words[:3])}" in begun.text
    assert "Traceback" not in begun.text
    assert study.epochs("tiny-retrained")[SEEDS - 1][0] == "WAITING"
    assert not (study.study_folder / "retrained.json").exists()
    assert not (study.results / test_set_uses.FILE).exists()

    finished = run_here(*words)
    assert (finished.code, finished.err) == (0, "")
    assert written(study) == written(retrained)
    for kind in ("finalists", "retrained"):
        assert essence(study.trials(f"tiny-{kind}")) == essence(retrained.trials(f"tiny-{kind}"))
    assert [Trial(frozen).attempts for frozen in study.trials("tiny-finalists")] == [1, 2, 1, 1, 1, 1]


def test_a_running_study_is_left_alone(retrained: Tiny) -> None:
    with sole_coordinator(retrained.study_folder):
        for command in ("retrain", "export"):
            assert f"in use by process {os.getpid()}" in refused(retrained, *retrained.after(command))


def test_a_pretrained_network_is_tested_beside_the_winner_and_resumed_after_ctrl_c(
    retrained: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = copied(retrained, tmp_path)
    torch.save(models.get_model("mobilenet_v3_small", weights=None).state_dict(), tmp_path / "random.pth")
    words = ("--baseline", "pretrained", "--weights", str(tmp_path / "random.pth"))
    finished: list[Finished] = []
    for stage in ("interrupted", "resumed"):
        with monkeypatch.context() as patch:
            if stage == "interrupted":
                patch.setattr(console, "track", lambda _: interrupting)
            finished.append(run_here(*study.after("retrain", *RUNS, *words)))
    assert (finished[0].code, finished[0].err) == (130, "")
    assert finished[0].out.splitlines()[-1].startswith("Resume: ") and "--weights" in finished[0].out.splitlines()[-1]
    assert (finished[1].code, finished[1].err) == (0, "")
    assert "mobilenet_v3_small" in finished[1].out
    uses = test_set_uses.all_uses(study.results, TestSet.of(study.pictures))
    assert [use.networks.partition(" ")[0] for use in uses[1:]] == ["mobilenet_v3_small"]
    with_it = written(study)
    comparison = with_it.pop("pretrained")
    assert comparison["weights"] == "random.pth" and comparison["winner"]["seconds"] > 0
    assert with_it | {"pretrained": None} == written(retrained)


def interrupting(iterable: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """Show no progress, and press Ctrl-C when features are computed."""
    if description.startswith("Features"):
        raise KeyboardInterrupt
    return iterable


# -- other networks, and the replay


@pytest.fixture(scope="module")
def chosen(retrained: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Finished]:
    """A copy in which another trial is retrained, with the baselines; the test set has been used by others."""
    study = copied(retrained, tmp_path_factory.mktemp("chosen"))
    trial = next(number for number in range(3) if number != written(retrained)["trial"])
    study.options = ("--workers", "1", "--trial", str(trial), "--seeds", "1", "--longer", "2", "--baseline")
    finished = run_here(*study.after("retrain", *study.options))
    assert (finished.code, finished.err) == (0, "")
    return study, finished


@contextmanager
def few_are_enough() -> Iterator[None]:
    """Call so many familiar pictures strangers that the study's few validation pictures suffice for a limit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strangers, "FALSE_ALARMS", 0.3)
        yield


@pytest.fixture(scope="module")
def retested(chosen: tuple[Tiny, Finished]) -> tuple[Tiny, Finished]:
    """The same study, evaluated on the test set nevertheless."""
    study, first = chosen
    assert written(study)["results"] is None
    assert "Not tested: " in first.out
    assert "--retest" in first.out
    assert not (study.study_folder / spotlights.FILE).exists()
    with few_are_enough():
        finished = run_here(*study.after("retrain", *study.options, "--retest"))
    assert (finished.code, finished.err) == (0, "")
    return study, finished


def test_one_worker_on_the_cpu_replays_a_trial_bit_for_bit(chosen: tuple[Tiny, Finished]) -> None:
    study, finished = chosen
    number = int(study.options[3])
    runs = [Trial(frozen) for frozen in study.trials("tiny-finalists")]
    (again,) = (run for run in runs if (run.run or "").startswith("replay"))
    assert again.curve == Trial(study.trials()[number]).curve
    assert f"Replay of trial {number}: recorded " in finished.out
    assert f"the same in each of its {EPOCHS} epochs." in finished.out


def test_other_networks_are_tested_only_with_retest(retested: tuple[Tiny, Finished]) -> None:
    study, finished = retested
    assert "left; " not in finished.out
    assert "evaluated 2 times" in finished.out
    assert written(study)["results"]["evaluations"] == 2
    assert len(test_set_uses.all_uses(study.results, TestSet.of(study.pictures))) == 2


def test_the_baselines_are_tested_beside_the_winner(retested: tuple[Tiny, Finished]) -> None:
    study, finished = retested
    names = [one["name"] for one in written(study)["results"]["baselines"]]
    recipes = ["original recipe", "hand-tuned recipe", "best single guess", "hand-tuned recipe, no warm-up"]
    length = "".join(re.findall(r" \(\dx\)$", written(study)["name"]))
    assert sorted(names) == sorted(f"{name}{length}" for name in recipes)  # the best one first
    assert all(name in finished.out for name in names)


def test_retested_networks_keep_their_result_and_the_baselines(retested: tuple[Tiny, Finished], tmp_path: Path) -> None:
    """The same command without --retest wrote `results: null` over its earlier results."""
    study = copied(retested[0], tmp_path)
    with few_are_enough():
        again = run_here(*study.after("retrain", *(word for word in retested[0].options if word != "--baseline")))
    assert (again.code, again.err) == (0, "")
    assert written(study) == written(retested[0])


def test_another_number_of_seeds_keeps_the_test_result(retrained: Tiny, tmp_path: Path) -> None:
    study, before = copied(retrained, tmp_path), written(retrained)
    options = ("--trial", str(before["trial"]), "--seeds", "1", "--longer", "1", "--workers", "1")
    finished = run_here(*study.after("retrain", *options))
    assert (finished.code, finished.err) == (0, "")
    after = written(study)
    assert after["weights"] == before["weights"]
    assert [after["results"][name] for name in ("top1", "evaluations")] == [before["results"]["top1"], 1]
    assert len(after["results"]["seeds"]) == 1


def test_networks_keep_their_result_when_others_are_tested_later_which_are_counted(
    retrained: Tiny, tmp_path: Path
) -> None:
    study, before = copied(retrained, tmp_path), written(retrained)
    test_set_uses.log_use(study.results, TestSet.of(study.pictures), "other networks", "elsewhere")
    assert run_here(*study.after("retrain", *RUNS)).code == 0
    assert written(study) == before | {"results": before["results"] | {"evaluations": 2}}


def test_a_second_study_of_the_same_pictures_is_not_tested(retrained: Tiny, tmp_path: Path) -> None:
    study = copied(retrained, tmp_path)
    (study.results / test_set_uses.FILE).unlink()
    test_set_uses.log_use(study.results, TestSet.of(study.pictures), "other networks", "elsewhere")
    finished = run_here(*study.after("retrain", *RUNS))
    assert finished.code == 0
    assert "Not tested: " in finished.out and "in study 'elsewhere' at" in finished.out
    assert written(study)["results"] is None
    assert [use.study for use in test_set_uses.all_uses(study.results, TestSet.of(study.pictures))] == ["elsewhere"]


@pytest.mark.long
def test_the_winner_is_trained_twice_as_long_again_and_again_while_that_gains(retrained: Tiny, tmp_path: Path) -> None:
    """The other finalists' runs are those of before; the longer ones are added to them."""
    study = copied(retrained, tmp_path)
    finished = run_here(*study.after("retrain", *RUNS[:-2]))
    assert (finished.code, finished.err) == (0, "")
    assert essence(study.trials("tiny-finalists")[: 2 * SEEDS]) == essence(retrained.trials("tiny-finalists"))

    with (study.study_folder / "finalists.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    runs = {row["name"]: [float(one["top1"]) for one in rows if one["name"] == row["name"]] for row in rows}
    assert {int(row["epochs"]) for row in rows} <= {times * EPOCHS for times in (1, 2, 4, 8)}
    twice = {name: values for name, values in runs.items() if name.endswith(" (2x)")}
    met = {int(row["trial"]) for row in rows if int(row["epochs"]) == EPOCHS}
    rivals = 3 if 2 in met else 4  # as it is, with stronger augmentation, with half the lr, and the best guess
    assert sorted(map(len, twice.values())) == [*[1] * (rivals - 1), SEEDS]
    assert [sum(change in name for name in twice) for change in (", augmentation ", ", lr ")] == [1, 1]
    (chosen,) = (values[0] for values in twice.values() if len(values) == SEEDS)
    assert chosen == max(values[0] for values in twice.values())
    means = {name: sum(values) / SEEDS for name, values in runs.items() if len(values) == SEEDS}
    winner = written(study)["name"]
    assert means[winner] == max(means.values())
    assert f"{winner} wins." in finished.out

    after = written(study)
    again = run_here(*study.after("retrain", *RUNS[:-2]))
    assert (again.code, again.err) == (0, "")
    assert "left; " not in again.out
    assert written(study) == after


# -- the pictures


@pytest.fixture
def elsewhere(retrained: Tiny, tmp_path: Path) -> Path:
    """A copy of the pictures in another folder."""
    return Path(shutil.copytree(retrained.folder, tmp_path / "elsewhere"))


def test_pictures_that_have_moved_are_found_with_data(retrained: Tiny, elsewhere: Path) -> None:
    before = written(retrained)
    again = run_here(*retrained.after("retrain", *RUNS, "--data", str(elsewhere)))
    assert (again.code, again.err) == (0, "")
    assert "left; " not in again.out
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
def test_changed_pictures_are_refused_with_what_has_changed(
    change: Callable[[Path], str], retrained: Tiny, elsewhere: Path
) -> None:
    named = change(elsewhere)
    for command in ("retrain", "export"):
        line = refused(retrained, *retrained.after(command, "--data", str(elsewhere)))
        assert line.startswith(f"the pictures in {elsewhere} have changed ")
        assert ": 43 pictures, " in line
        assert named in line
        assert "--data PATH" in line and "--study NAME" in line


def test_missing_pictures_are_an_error_naming_path_and_option(retrained: Tiny, tmp_path: Path) -> None:
    line = refused(retrained, *retrained.after("retrain", "--data", str(tmp_path / "gone")))
    assert f"--data '{tmp_path / 'gone'}'" in line


def test_a_folder_given_by_its_bare_name_is_found_from_anywhere(
    searched: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--data tiny` was stored as it was typed, so that retrain found the folder from one working directory only."""
    study = copied(searched, tmp_path)
    monkeypatch.chdir(study.folder.parent)
    assert study.command("--workers", "1", "--trials", "3", "--data", study.folder.name).code == 0
    assert settings.recall(study.results, "tiny")[1].data == str(study.folder)


@pytest.mark.long
def test_an_official_test_part_is_the_test_part(tmp_path: Path) -> None:
    """Folders `train` and `test` of one data set; the same pictures with --test-data are the same study."""
    both = tmp_path / "pictures" / "both"
    class_folders(both / "train", classes=3, each=12)
    for label, name in enumerate(NAMES[:3]):
        (both / "test" / name).mkdir(parents=True)
        for number in range(label + 2):
            picture(700 + number, label=label).save(both / "test" / name / f"{number}.jpg")
    study = Tiny(
        folder=both,
        pictures=None,  # pyright: ignore[reportArgumentType] - read by the command
        data=None,  # pyright: ignore[reportArgumentType] - decoded by the command
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
    assert "left; " not in after.out
    assert written(study) == tested


# -- wrong input


@pytest.mark.parametrize("command", ["retrain", "export"])
def test_a_missing_study_is_an_error_naming_its_folder(command: str, tmp_path: Path) -> None:
    results = tmp_path / "none"
    ended = run_here(command, "--results", str(results))
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith(f"error: no study found at {results}")
    assert not results.exists()


def test_a_mistyped_study_is_an_error_that_lists_the_studies(retrained: Tiny) -> None:
    for command in ("retrain", "export"):
        words = ["tinny" if word == "tiny" else word for word in retrained.after(command)]
        line = refused(retrained, *words)
        assert f"{retrained.results / 'tinny'}" in line
        assert "(there are: tiny)" in line


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (["--trial", "99"], "0 to 10"),
        (["--finalists", "0"], ">= 1"),
        (["--longer", "0"], ">= 1"),
        (["--seeds", "1.5"], "integer"),
        (["--trial", "-1"], ">= 0"),
        (["--baseline", "pretraind"], "did you mean pretrained?"),
        (["--baseline", "--weights", "w.pth"], "--baseline pretrained"),
    ],
)
def test_what_cannot_be_retrained_is_an_error_of_one_line(options: list[str], fact: str, retrained: Tiny) -> None:
    line = refused(retrained, *retrained.after("retrain", *options))
    assert [word for word in (*options, fact) if word not in line] == []


@pytest.mark.parametrize("words", [("--weights", "nowhere.pth"), ("--pretrained", "resnet19")])
def test_a_pretrained_network_that_cannot_be_had_is_refused_before_anything_is_trained(
    words: tuple[str, str], retrained: Tiny
) -> None:
    line = refused(retrained, *retrained.after("retrain", "--finalists", "3", "--baseline", "pretrained", *words))
    assert all(word in line for word in words)


def test_a_damaged_result_is_an_error_naming_it_and_retrain_rewrites_it(retrained: Tiny, tmp_path: Path) -> None:
    study = copied(retrained, tmp_path)
    path = study.study_folder / "retrained.json"
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")
    assert str(path) in refused(study, *study.after("export"))
    assert run_here(*study.after("retrain", *RUNS)).code == 0
    assert written(study) == written(retrained)


def test_missing_weights_are_an_error_naming_them(retrained: Tiny, tmp_path: Path) -> None:
    study = copied(retrained, tmp_path)
    path = study.study_folder / written(study)["weights"]
    path.unlink()
    line = refused(study, *study.after("export"))
    assert str(path) in line
    assert "python study.py retrain" in line


@pytest.mark.parametrize("name", ["study.owner", "finalists.csv", "retrained.json"])
def test_a_file_that_cannot_be_written_is_an_error_naming_it(name: str, retrained: Tiny, tmp_path: Path) -> None:
    """On a full disk it was a traceback."""
    study = copied(retrained, tmp_path)
    (study.study_folder / name).unlink(missing_ok=True)
    (study.study_folder / name).mkdir()
    assert refused(study, *study.after("retrain", *RUNS)).startswith(f"cannot write {study.study_folder / name} (")


# -- export and predict


@pytest.fixture(scope="module")
def exported(retested: tuple[Tiny, Finished]) -> Finished:
    study, _ = retested
    finished = run_here(*study.after("export"))
    assert (finished.code, finished.err) == (0, "")
    return finished


@pytest.fixture(scope="module")
def best(retested: tuple[Tiny, Finished], exported: Finished) -> Path:
    return retested[0].study_folder / "best"


def test_the_bundle_is_the_winner_with_its_result(
    best: Path, retested: tuple[Tiny, Finished], exported: Finished
) -> None:
    study, _ = retested
    winner = written(study)
    assert {path.name for path in best.iterdir()} == formats.NAMES
    bundle, _ = load(best)
    assert bundle.classes == tuple(NAMES[:3])
    assert (bundle.temperature, bundle.calibration) == (winner["temperature"], winner["calibration"])
    assert bundle.ranges == {"integers": [0, 4095]}
    assert bundle.results is not None
    assert bundle.results["top1"] == winner["results"]["top1"]
    assert bundle.results["evaluations"] == 2
    assert bundle.provenance["trial"] == winner["trial"]
    text = (best / "README.md").read_text(encoding="utf-8")
    assert "2 evaluations have been made on these pictures" in text
    assert bundle.strangest == winner["strangers"]["strangest"] is not None
    assert f"{winner['results']['strangers']} were called unlike anything learned" in text
    assert "were called unlike anything learned" in retested[1].out
    assert f"--model {best}" in exported.out


def predicted(best: Path, *words: str | Path) -> Finished:
    return run_here("predict", *map(str, words), "--model", str(best))


def test_predictions_as_table_json_and_csv_agree(best: Path, searched: Tiny) -> None:
    folder = searched.folder / NAMES[0]
    table, listed, rows = (predicted(best, folder, *form) for form in ([], ["--json"], ["--csv"]))
    assert [(ended.code, ended.err) for ended in (table, listed, rows)] == [(0, "")] * 3
    found = json.loads(listed.out)
    assert [one["path"] for one in found] == [str(path) for path in sorted(folder.iterdir())]
    strangest = load(best)[0].strangest
    assert strangest is not None
    for one in found:
        assert one["stranger"] == (one["strangeness"] > strangest)
        shares = [each["probability"] for each in one["classes"]]
        assert sum(shares) == pytest.approx(1)
        assert shares == sorted(shares, reverse=True)
    lines = list(csv.DictReader(io.StringIO(rows.out)))
    assert [(line["path"], line["class_1"]) for line in lines] == [
        (one["path"], one["classes"][0]["class"]) for one in found
    ]
    assert len(table.out.splitlines()) == 1 + len(found)
    said = [line["answer"] == "stranger" for line in lines]
    assert said == [line.startswith("stranger") for line in table.out.splitlines()[1:]]
    assert said == [one["stranger"] for one in found]


def test_strangeness_is_measured_against_the_pictures_that_the_network_was_trained_on(
    best: Path, retested: tuple[Tiny, Finished]
) -> None:
    study, winner = retested[0], written(retested[0])
    part = open_part(study.data, winner["config"]["image_size"], "train", "validation")
    _, network = load(best)
    with torch.inference_mode():
        seen = network.features_and_logits(normalise(torch.from_numpy(part.images[part.indices])))
    assert network.familiar is not None
    labels, usual = torch.from_numpy(part.labels), winner["strangers"]["usual"]
    expected = strangers.fit(seen[0], labels, network.head.out_features, usual)(*seen)
    torch.testing.assert_close(network.familiar(*seen), expected, rtol=1e-3, atol=1e-3)


def test_predict_finds_the_bundle_of_the_study_that_was_run_last(retested: tuple[Tiny, Finished], best: Path) -> None:
    study, _ = retested
    one = str(study.folder / NAMES[0] / "0000.jpg")
    by_study = run_here(*study.after("predict", one, "--json"))
    by_default = run_here("predict", one, "--json", "--results", str(study.results))
    assert by_study == by_default
    assert by_default.out == predicted(best, one, "--json").out
    assert by_default.err == f"Using {study.study_folder / 'best'}\n"


def test_predict_does_not_use_another_studys_bundle_unless_it_is_named(
    retested: tuple[Tiny, Finished], best: Path, tmp_path: Path
) -> None:
    study, other = copied(retested[0], tmp_path / "one"), tmp_path / "other"
    one = str(study.folder / NAMES[0] / "0000.jpg")
    (other / "tiny").mkdir(parents=True)
    shutil.copy(study.study_folder / "settings.json", other / "tiny")
    settings = json.loads((other / "tiny" / "settings.json").read_text(encoding="utf-8"))
    (other / "tiny" / "settings.json").write_text(json.dumps(settings | {"study_id": "another"}), encoding="utf-8")
    shutil.copytree(study.study_folder / "best", other / "tiny" / "best")
    text = refused(study.at(other), "predict", one, "--results", str(other))
    assert str(other / "tiny" / "best") in text
    command = shlex.split(text[text.index("--model") :])
    assert run_here("predict", one, *command).out == predicted(best, one).out


def test_predict_needs_none_of_the_packages_of_the_search(best: Path, searched: Tiny) -> None:
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


def test_a_broken_picture_does_not_stop_the_others(best: Path, tmp_path: Path) -> None:
    folder = flawed_folder(tmp_path / "flawed")
    ended = predicted(best, folder, "--json")
    assert ended.code == 0
    found = {str(Path(one["path"]).relative_to(folder)): one for one in json.loads(ended.out)}
    broken = {path for path, one in found.items() if one["error"]}
    assert {path for path, verdict in FLAWED.items() if verdict == "unreadable" and path in found} <= broken
    assert all(len(one["classes"]) == (0 if path in broken else 3) for path, one in found.items())
    assert len(found) - len(broken) >= 36
    *odd, last = ended.err.splitlines()
    assert last == f"{len(broken)} of {len(found)} pictures could not be classified"
    assert ["stereo.mpo" in odd[0], "sixteen-bit.png" in odd[1]] == [True, True]


def test_a_bundle_works_wherever_it_is(best: Path, tmp_path: Path, searched: Tiny) -> None:
    moved = Path(shutil.copytree(best, tmp_path / "moved"))
    one = searched.folder / NAMES[1] / "0001.jpg"
    assert predicted(moved, one, "--json", "--top", "1") == predicted(best, one, "--json", "--top", "1")
    assert len(json.loads(predicted(moved, one, "--json", "--top", "1").out)[0]["classes"]) == 1
    assert len(json.loads(predicted(moved, one, "--json", "--top", "99").out)[0]["classes"]) == 3


def test_what_cannot_be_predicted_is_an_error_of_one_line(best: Path, searched: Tiny, tmp_path: Path) -> None:
    good = str(searched.folder / NAMES[0] / "0000.jpg")
    (tmp_path / "empty").mkdir()
    for words, fact in (
        (["--model", best], "no pictures "),
        ([good, "--model", best, "--json", "--csv"], "--json and --csv"),
        ([tmp_path / "gone.jpg", "--model", best], str(tmp_path / "gone.jpg")),
        ([tmp_path / "empty", "--model", best], "no picture was classified"),
        ([good, "--model", tmp_path / "gone"], str(tmp_path / "gone")),
        ([good, "--results", tmp_path / "none"], f"no study found at {tmp_path / 'none'}"),
        ([good, "--model", best, "--top", "0"], "--top must be >= 1, but got 0"),
    ):
        ended = run_here("predict", *map(str, words))
        assert ended.code == 2, (words, ended)
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") == 1
        assert fact in ended.err


def test_predict_ends_silently_when_its_reader_closes_the_pipe(best: Path, searched: Tiny) -> None:
    """`predict ... | head` ended in the traceback of a BrokenPipeError."""
    # More than a pipe holds
    words = [sys.executable, str(HERE / "study.py"), "predict", *[str(searched.folder)] * 60, "--model", str(best)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("answer")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == READER_LEFT


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no bash")
def test_every_command_does_its_work_for_a_reader_that_leaves(searched: Tiny, tmp_path: Path) -> None:
    study = copied(searched, tmp_path)
    short = ("--finalists", "1", "--seeds", "1", "--longer", "1")
    for words, made in (
        (study.after("retrain", *short), "retrained.json"),
        (study.after("export"), "best/config.json"),
        (["report", "--results", str(study.results)], "report.html"),
    ):
        command = ["bash", "-c", 'set -o pipefail; "$@" 2>&1 | true', "bash", sys.executable, str(HERE / "study.py")]
        assert subprocess.run([*command, *words], timeout=PATIENCE).returncode == 0
        assert (study.study_folder / made).is_file()
    shutil.copytree(study.study_folder, study.results / "another")
    words = ["clean", "tiny", "another", "--results", str(study.results), "--cache", str(tmp_path / "cache")]
    assert subprocess.run([*command, *words], timeout=PATIENCE).returncode == 0
    assert not study.study_folder.exists() and not (study.results / "another").exists()


def test_a_study_without_a_bundle_is_an_error_naming_its_folder(retrained: Tiny) -> None:
    line = refused(retrained, *retrained.after("predict", str(retrained.folder / NAMES[0] / "0000.jpg")))
    assert str(retrained.study_folder / "best") in line
