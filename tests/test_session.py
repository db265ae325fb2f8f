"""The Python API: a study, its finalists and its winner without a command line, a signal or a screen.

The README's own example runs as it is printed, with real processes; the other tests train in threads.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from pictures import altered, class_folders
from PIL import Image
from studies import TINY, ThreadWorkers, Tiny, advanced, outcomes, prepare

from data.prepare import find_pictures
from model.predict import Classifier
from model.training import EpochMetrics
from search_space import Config, Profile, portfolio, suggest
from selection.exporting import winner_of
from selection.finalists import train_finalists
from selection.retraining import retrain_winner
from tuning import StudyError
from tuning.coordinator import Plan
from tuning.database import IDENTITY
from tuning.devices import Slot
from tuning.events import Ending, TrialEnded
from tuning.folder import sqlite_url
from tuning.scheduling import PrunerScheduler
from tuning.session import SearchSession, find_study, open_session
from tuning.trials import Outcome, count_trials, read_trials

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


def opened(tiny: Tiny, results: Path, trials: int, **options: Any) -> AbstractContextManager[SearchSession]:
    """Open a session of the tiny study under `results`, whose workers are threads."""
    known = {"profile": TINY, "scheduler": "median", "slots": [Slot()], "cache_dir": tiny.folder.parent / "cache"}
    return open_session(
        tiny.pictures, plan=Plan(trials=trials), results=results, make_workers=ThreadWorkers, **(known | options)
    )


def test_a_session_runs_a_study_silently_and_yields_its_events(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with opened(tiny, tmp_path, 3) as session:
        events = list(session.run())
        assert session.searcher.ending is Ending.TRIALS
        assert count_trials(read_trials(session.study)) == 3
    ended = [event for event in events if isinstance(event, TrialEnded)]
    assert [event.number for event in ended] == [0, 1, 2]
    assert [event.value for event in ended] == [trial.value for trial in read_trials(session.study)[:3]]
    assert sum(advanced(event, 0, EpochMetrics) for event in events) == TINY.epochs
    assert (session.name, session.folder) == ("tiny", tmp_path / "tiny")
    assert {path.name for path in session.folder.iterdir()} >= {"study.db", "settings.json", "trials.csv"}
    assert capfd.readouterr() == ("", "")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_stated_parts_and_followed_links_are_recalled_where_the_data_now_are(tmp_path: Path) -> None:
    old, store = tmp_path / "old", tmp_path / "store"
    class_folders(store / "a", classes=2, each=24)
    class_folders(store / "b", classes=2, each=30)
    for file in store.rglob("*.jpg"):
        if file.parent.parent.name == "a" or int(file.stem) >= 24:  # no picture is in both parts
            link = old / file.relative_to(store)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    cache = tmp_path / "cache"
    pictures = find_pictures(str(old), parts="train=a,test=b", follow_links=True, cache_dir=cache)
    with open_session(
        pictures, plan=Plan(trials=1), profile=TINY, results=tmp_path / "results", cache_dir=cache
    ) as session:
        started = session.data_identity
    old.rename(tmp_path / "new")
    again = find_study(tmp_path / "results").reopen([32], data=str(tmp_path / "new"), cache_dir=cache)
    assert again.data_identity == started
    assert set(again.pictures.catalog.source.parts) == {"train", "test"}
    with pytest.raises(StudyError, match="have changed"):
        find_study(tmp_path / "results").reopen(
            [32], data=str(tmp_path / "new"), parts="train=b,test=a", cache_dir=cache
        )


def rename_in_dashboard(url: str, name: str) -> None:
    """Rename the only study of a database as the dashboard's button does."""
    body = json.dumps({"study_name": name}).encode()
    storage = optuna.storages.RDBStorage(url)
    (study,) = storage.get_all_studies()
    environ: dict[str, Any] = {
        "CONTENT_LENGTH": str(len(body)),
        "CONTENT_TYPE": "application/json",
        "PATH_INFO": f"/api/studies/{study._study_id}/rename",  # pyright: ignore[reportPrivateUsage]
        "wsgi.input": io.BytesIO(body),
    }
    environ["REQUEST_METHOD"] = "POST"
    setup_testing_defaults(environ)
    statuses: list[str] = []
    list(optuna_dashboard.wsgi(storage)(environ, lambda status, *_: statuses.append(status)))
    assert statuses == ["201 Created"]
    storage.engine.dispose()


def contents(folder: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".owner", ".lock")
    }


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Two studies of one name, of which a test mixes the files."""

    folder: Path
    """Folder of the first study, of two trials."""
    earlier: bytes
    """Its database after one trial."""
    other: Path
    """Folder of the second study, likewise of two trials."""


@pytest.fixture(scope="module")
def two_studies(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    results = tmp_path_factory.mktemp("two")
    with opened(tiny, results / "one", 1) as session:
        list(session.run())
        folder, earlier = session.folder, (session.folder / "study.db").read_bytes()
    for place in ("one", "other"):
        with opened(tiny, results / place, 2) as session:
            list(session.run())
    return Mixture(folder=folder, earlier=earlier, other=session.folder)


@pytest.fixture
def mixture(two_studies: Mixture, tmp_path: Path) -> Mixture:
    """A copy of the two studies."""
    folders = [
        Path(shutil.copytree(place, tmp_path / place.parent.name / "tiny"))
        for place in (two_studies.folder, two_studies.other)
    ]
    return replace(two_studies, folder=folders[0], other=folders[1])


def rename_study(mixture: Mixture) -> Path:
    rename_in_dashboard(sqlite_url(mixture.folder), "mushrooms")
    return mixture.folder


def delete_study(mixture: Mixture) -> Path:
    optuna.delete_study(study_name="tiny", storage=sqlite_url(mixture.folder))
    return mixture.folder


def rename_folder(mixture: Mixture) -> Path:
    return mixture.folder.rename(mixture.folder.with_name("mushrooms"))


def copy_folder(mixture: Mixture) -> Path:
    return Path(shutil.copytree(mixture.folder, mixture.folder.with_name("mushrooms")))


def copy_database(mixture: Mixture) -> Path:
    (mixture.folder.with_name("mushrooms")).mkdir()
    shutil.copy(mixture.folder / "study.db", mixture.folder.with_name("mushrooms"))
    return mixture.folder.with_name("mushrooms")


def remove_database(mixture: Mixture) -> Path:
    (mixture.folder / "study.db").unlink()
    return mixture.folder


def restore_an_older_database(mixture: Mixture) -> Path:
    (mixture.folder / "study.db").write_bytes(mixture.earlier)
    return mixture.folder


def replace_database(mixture: Mixture) -> Path:
    shutil.copy(mixture.other / "study.db", mixture.folder)
    return mixture.folder


def replace_settings(mixture: Mixture) -> Path:
    shutil.copy(mixture.other / "settings.json", mixture.folder)
    return mixture.folder


HELD = {
    rename_study: "holds 'mushrooms'",
    delete_study: "holds no study",
    rename_folder: "holds 'tiny'",
    copy_folder: "holds 'tiny'",
    copy_database: "holds 'tiny'",
    remove_database: "study.db does not exist",
    restore_an_older_database: "'trials/0001'",
    replace_database: "'settings.json'",
    replace_settings: "'settings.json'",
}
"""What the error says, by what was done to the study."""


@pytest.mark.parametrize("change", HELD)
def test_a_folder_and_a_database_that_do_not_belong_together_are_told_apart_before_anything_is_written(
    change: Callable[[Mixture], Path], mixture: Mixture, tiny: Tiny
) -> None:
    """It once began a new study in the old one's folder, overwrote its checkpoints and exported its winner."""
    folder = change(mixture)
    before = contents(folder)
    with pytest.raises(StudyError) as refused, opened(tiny, folder.parent, 3, name=folder.name):
        pass
    assert HELD[change] in str(refused.value)
    assert str(folder) in str(refused.value)
    if change is not copy_database:  # which no later command finds
        with pytest.raises(StudyError, match=re.escape(str(folder))):
            find_study(folder.parent, folder.name)
    assert contents(folder) == before


def test_a_study_renamed_in_the_dashboard_goes_on_once_its_folder_has_the_new_name(
    mixture: Mixture, tiny: Tiny
) -> None:
    rename_study(mixture)
    folder = rename_folder(mixture)
    with opened(tiny, folder.parent, 3, name="mushrooms") as session:
        list(session.run())
        assert count_trials(read_trials(session.study)) == 3


def test_a_study_whose_files_were_deleted_trains_the_remaining_trials(mixture: Mixture, tiny: Tiny) -> None:
    shutil.rmtree(mixture.folder / "trials")
    with opened(tiny, mixture.folder.parent, 3) as session:
        list(session.run())
        assert count_trials(read_trials(session.study)) == 3
    assert [path.name for path in (mixture.folder / "trials").iterdir()] == ["0002"]


def test_the_weights_of_another_trial_are_not_exported(mixture: Mixture) -> None:
    study = find_study(mixture.folder.parent)
    winner = winner_of(study)
    path = mixture.folder / winner.weights
    (other,) = {*mixture.folder.glob("trials/*/best.pt")} - {path}
    shutil.copy(other, path)
    with pytest.raises(StudyError, match=rf"{re.escape(str(path))} .*'tiny'"):
        winner_of(study)


def test_a_loop_that_is_left_early_is_resumed_by_the_next_session(tiny: Tiny, tmp_path: Path) -> None:
    with opened(tiny, tmp_path, 2) as session:
        for event in session.run():
            if advanced(event, 1, EpochMetrics):
                break
    with opened(tiny, tmp_path, 2) as session:
        assert outcomes(list(session.run())) == [(1, Outcome.COMPLETE)]
        trials = read_trials(session.study)
    assert [(trial.epochs, trial.attempts) for trial in trials[:2]] == [(TINY.epochs, 1), (TINY.epochs, 2)]
    assert all(trial.is_waiting for trial in trials[2:])


def test_space_sampler_scheduler_and_seed_can_be_ones_own(tiny: Tiny, tmp_path: Path) -> None:
    def narrow(trial: Any, profile: Profile, classes: int) -> Config:
        trial.suggest_float("mine", 0.0, 1.0)
        return suggest(trial, profile, classes)

    def keeps_all(study: optuna.Study, epochs: int) -> PrunerScheduler:
        assert epochs == TINY.epochs
        return PrunerScheduler(study)

    def options(sampler: str | RandomSampler) -> dict[str, Any]:
        return {"space": narrow, "sampler": sampler, "scheduler": keeps_all, "seed": 7, "name": "my own"}

    with opened(tiny, tmp_path, 3, **options(RandomSampler(0))) as session:
        list(session.run())
    stored = optuna.load_study(study_name="my own", storage=sqlite_url(tmp_path / "my own"))
    trained = [trial for trial in stored.trials if trial.state is not TrialState.WAITING]
    assert len(trained) == 3 and all(0.0 <= trial.params["mine"] <= 1.0 for trial in trained)
    identity = {name: stored.user_attrs[IDENTITY + name] for name in ("sampler", "scheduler", "seed")}
    assert identity == {"sampler": "RandomSampler", "scheduler": "keeps_all", "seed": 7}
    with pytest.raises(StudyError, match="sampler: RandomSampler -> tpe"), opened(tiny, tmp_path, 3, **options("tpe")):
        pass


def test_a_study_begins_with_a_portfolio_within_its_budget(tiny: Tiny, tmp_path: Path) -> None:
    """Points over it would be places of the study that are lost; they get narrower instead."""
    costs = {}
    for name, budget in (("all", None), ("few", 20e6)):
        plan = Plan(trials=1, max_flops=budget)
        with open_session(tiny.pictures, plan=plan, name=name, profile=TINY, results=tmp_path) as session:
            waiting = [trial.frozen.system_attrs["fixed_params"] for trial in read_trials(session.study)]
            draw: Callable[[Any], Config] = partial(suggest, profile=session.profile, classes=3)
            costs[name] = [draw(optuna.trial.FixedTrial(params)).cost.flops for params in waiting][3:]
            assert [point.cost.flops for point in session.points] == sorted(costs[name]), "they make the forecast"
    assert len(costs["all"]) == len(costs["few"]) == len(portfolio(TINY))
    assert max(costs["few"]) <= 20e6 < max(costs["all"])
    assert costs["few"] == [min(cost, few) for cost, few in zip(costs["all"], costs["few"], strict=True)]


def test_two_sessions_of_one_study_exclude_each_other(tiny: Tiny, tmp_path: Path) -> None:
    in_use = f"in use by process {os.getpid()} "
    with opened(tiny, tmp_path, 1), pytest.raises(StudyError, match=in_use), opened(tiny, tmp_path, 1):
        pass
    with opened(tiny, tmp_path, 1):
        pass


def test_an_invalid_study_name_is_refused_and_writes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    for name in ("", "a/b"):
        with pytest.raises(StudyError, match=f"{name!r}"), opened(tiny, tmp_path, 1, name=name):
            pass
    assert list(tmp_path.iterdir()) == []


def test_later_commands_treat_near_duplicates_as_the_study_did(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", size=96)
    altered(Image.open(root / "Boletus" / "0002.jpg"))[0].save(root / "Boletus" / "near.jpg")
    pictures = find_pictures(str(root), near_duplicates="keep", cache_dir=tmp_path)
    with open_session(
        pictures, plan=Plan(trials=1), profile=TINY, results=tmp_path / "results", cache_dir=tmp_path, slots=[Slot()]
    ):
        pass
    again = find_study(tmp_path / "results", "set").reopen([16], cache_dir=tmp_path, slots=[Slot()])
    assert again.pictures.catalog.fingerprint == pictures.catalog.fingerprint
    assert again.pictures.catalog.fingerprint != find_pictures(str(root), cache_dir=tmp_path).catalog.fingerprint


def test_a_study_that_has_been_run_is_found_and_its_winner_retrained(tiny: Tiny, tmp_path: Path) -> None:
    with opened(tiny, tmp_path, 2) as session:
        list(session.run())
    found = find_study(tmp_path)
    assert found.name == "tiny"
    with found.locked():
        session = found.reopen(slots=[Slot()], cache_dir=tiny.folder.parent / "cache", make_workers=ThreadWorkers)
        standings = train_finalists(session, seeds=1, longer=2)
        winner = retrain_winner(session, standings)
        assert retrain_winner(session, standings).networks == winner.networks
        other = retrain_winner(session, standings[::-1])
    assert {standing.candidate.trial for standing in standings} == {0, 1}
    assert sorted(standing.candidate.config.training.epochs for standing in standings) == [3, 3, 6, 6, 6]
    assert winner.trial == standings[0].candidate.trial
    assert winner.test_top1 is not None and 0.0 <= winner.test_top1 <= 1.0
    assert other.test_top1 is None, "a second network is not tested on the same pictures"


@pytest.mark.long
def test_the_readmes_example_runs_as_it_is_printed(tmp_path: Path) -> None:
    """A copy of the program, so that its own results/ folder is empty; decoded pictures go to another cache, too."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## From Python\n")[2]
    found = re.search(r"```python\n(.*?)```", section.partition("\n## ")[0], flags=re.DOTALL)
    assert found is not None
    for package in ("data", "model", "selection", "tuning"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "search_space.py", tmp_path)
    (tmp_path / "example.py").write_text(found[1], encoding="utf-8")
    home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env=os.environ | home,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert (done.returncode, done.stderr) == (0, "")
    *trials, last = done.stdout.splitlines()
    assert sorted(int(line.split()[0]) for line in trials) == [0, 1, 2]
    assert all(line.split()[1] == "complete" and 0.0 <= float(line.split()[2]) <= 1.0 for line in trials)

    folder = tmp_path / "results" / "from-python"
    assert last.endswith(f" {folder / 'best'}")
    changes = r"(?:, (?:augmentation|colour jitter|lr) [\d.e-]+)*"
    assert re.match(rf"trial [012]{changes}(?: \([248]x\))? 0\.\d+ ", last)
    left = {path.name for path in folder.iterdir()}
    assert left >= {"study.db", "trials.csv", "finalists.csv", "retrained.json", "data_report.csv", "best"}
    classifier = Classifier.load(folder / "best")
    one = next(path for path in (tmp_path / "home").rglob("*.jpg"))
    assert sum(share for _, share in next(classifier.predict([one], top=9)).classes) == pytest.approx(1.0)
