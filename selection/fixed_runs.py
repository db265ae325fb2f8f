"""Trials that are decided beforehand, in a study beside the one that was searched: finalists, replays, final runs.

FixedRun ... -> `add`: a waiting trial each -> the coordinator, workers, checkpoints and resume of a search, with
`assign` -> `finished`. A run is trained once, however often it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from search_space import Config
from tuning import StudyError
from tuning.folder import trial_directory
from tuning.jobs import Assignment
from tuning.storage import counts, open_study

Trained = list[FrozenTrial]
"""The trials of runs, in the runs' order."""


@dataclass(frozen=True, kw_only=True)
class FixedRun:
    """One training that is wanted."""

    key: str
    """Tells it from all others of its study."""
    assignment: Assignment
    trial: int
    """The trial of the searched study whose configuration it has, or comes from."""
    seed_index: int
    """Which of the seeds it has, from 0."""
    seconds: float
    """That it should take."""


def open_pool(url: str, name: str, metric: str, runs: list[FixedRun], folder: Path, data: str) -> optuna.Study:
    """The study of that name, made where it is missing, in which these runs wait or have ended; for `finished`.

    `data`: which pictures, split how; a pool of other ones is refused with a StudyError.
    """
    pool = open_study(
        url,
        name,
        sampler=RandomSampler(),
        pruner=NopPruner(),
        identity={"runs": folder.name, "data": data},
        first_trials={},
        metric=metric,
    )
    add(pool, runs, folder)
    return pool


def add(study: optuna.Study, runs: list[FixedRun], folder: Path) -> None:
    """Lets each run wait in the study, but for those that are there.

    One that failed or lost its weights waits anew. One that an interrupted command left and that is not wanted now is
    failed, so that nobody trains it; but where all that is wanted has ended, nothing is touched.
    """
    wanted = {run.key for run in runs}
    trials = study.get_trials(deepcopy=False)
    unfinished = [trial for trial in trials if not trial.state.is_finished()]
    ended = {trial.user_attrs["run"] for trial in trials if counts(trial) and _has_weights(trial, folder)}
    if wanted <= ended:
        return
    for trial in unfinished:
        if trial.user_attrs["run"] not in wanted:
            # `tell` takes no waiting trial
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)  # pyright: ignore[reportPrivateUsage]
    there = ended | {trial.user_attrs["run"] for trial in unfinished}
    for run in sorted(runs, key=lambda run: run.seconds, reverse=True):  # a long one that begins last is waited for
        work = run.assignment
        if run.key not in there:
            there.add(run.key)
            attributes: dict[str, Any] = {
                "run": run.key,
                "name": work.name,
                "config": work.config.to_dict(),
                "seed": work.seed,
                "epochs": work.epochs,
                "final": work.final,
                "expected_seconds": run.seconds,
            }
            study.enqueue_trial({"trial": run.trial, "seed": run.seed_index}, user_attrs=attributes)


def assign(trial: optuna.Trial) -> Assignment:
    """What `add` let wait; shows the dashboard which trial and seed it is."""
    for name in ("trial", "seed"):
        trial.suggest_int(name, 0, 2**31 - 1)
    attributes = trial.user_attrs
    return Assignment(
        config=Config.from_dict(attributes["config"]),
        seed=attributes["seed"],
        epochs=attributes["epochs"],
        final=attributes["final"],
        name=attributes["name"],
    )


def seconds(study: optuna.Study) -> float:
    """What the runs that have not ended should take, one after the other."""
    open_ones = [trial for trial in study.get_trials(deepcopy=False) if not trial.state.is_finished()]
    return sum(trial.user_attrs["expected_seconds"] for trial in open_ones)


def _has_weights(trial: FrozenTrial, folder: Path) -> bool:
    """Whether a run that has ended still has all that it needs: one that diverged needs nothing."""
    return trial.state is not TrialState.COMPLETE or weights(folder, trial).is_file()


def weights(folder: Path, trial: FrozenTrial) -> Path:
    """The checkpoint of a complete run's chosen epoch."""
    return trial_directory(folder, trial.number) / "best.pt"


def finished(study: optuna.Study, runs: Iterable[FixedRun]) -> Trained:
    """The trial of each run, in their order: complete, or diverged. Raises StudyError naming one that failed."""
    trials = {trial.user_attrs["run"]: trial for trial in study.get_trials(deepcopy=False)}
    found: Trained = []
    for run in runs:
        trial = trials[run.key]
        if not counts(trial):
            reason = trial.user_attrs.get("reason", "stopped from outside")
            raise StudyError(
                f"every run must come to its end, but {run.assignment.name} did not ({reason}); the same command "
                "tries it again, with fewer --workers where memory is short"
            )
        found.append(trial)
    return found
