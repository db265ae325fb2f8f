"""Runs whose configuration, seed and epochs are fixed in advance: finalists, replays, final runs, audited trials.

Each FixedRun -> `enqueue`: a waiting trial in a sibling study -> trained by a coordinator as in a search -> a finished
`Trial`. A run is trained only once, however often it is requested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from model import checkpoint
from tuning import StudyError, ownership
from tuning.coordinator import Coordinator, Plan
from tuning.database import open_study, shown, sibling
from tuning.folder import study_folder, trial_directory
from tuning.jobs import Assignment
from tuning.scheduling import PrunerScheduler
from tuning.session import Session
from tuning.trials import Trial, read_trial, read_trials

Follow = Callable[[str, optuna.Study, Coordinator], None]
"""Function that runs a coordinator to its end, given the kind of runs and their study; commands show its progress."""


@dataclass(frozen=True, kw_only=True)
class FixedRun:
    """One run to train, with everything fixed in advance."""

    key: str
    """Key that identifies the run within its study."""
    assignment: Assignment
    trial: int
    """Number of the trial in the search that has the run's configuration."""
    seed_index: int
    """Index of the run's seed among the seeds of all runs, from 0."""
    seconds: float
    """Expected duration in seconds."""


def run_silently(kind: str, study: optuna.Study, coordinator: Coordinator) -> None:
    """Run a coordinator to its end without showing anything."""
    for _ in coordinator.run():
        pass


def train(session: Session, kind: str, metric: str, runs: list[FixedRun], follow: Follow = run_silently) -> list[Trial]:
    """Train those of `runs` that have not been trained yet and return the trial of each, complete or diverged.

    `kind` is the suffix of the sibling study's name, and the name of its folder inside the study's folder; `metric` is
    what the dashboard calls a run's value. If a run failed, raises StudyError with its name.
    """
    ownership.refuse_second_folder(session.study, session.folder, shown(session.url))
    study_id = ownership.identify(session.study)
    folder = study_folder(session.folder, kind)
    study = open_study(
        session.storage,
        sibling(session.study, kind),
        sampler=RandomSampler(),
        identity={"runs": kind, "data": session.data_identity},
        first_trials={},
        metric=metric,
        folder=folder,
        study_id=study_id,
    )
    if enqueue(study, runs, folder):
        coordinator = session.coordinator(
            study,
            assign=assign,
            plan=Plan(trials=None),
            scheduler=PrunerScheduler(study),
            folder=folder,
            keep=len(study.trials),
        )
        follow(kind, study, coordinator)
    return finished(study, runs)


def enqueue(study: optuna.Study, runs: list[FixedRun], folder: Path) -> bool:
    """Enqueue each run that the study does not have yet, and return whether any of `runs` has to be trained.

    A run that failed, or whose weights are gone, is enqueued again. Unfinished runs of an interrupted command that are
    not among `runs` are marked as failed, so that they are not trained now. If all `runs` have ended, nothing changes:
    the rest may be wanted later, by the command that is being resumed.
    """
    wanted = {run.key for run in runs}
    trials = read_trials(study)
    unfinished = [trial for trial in trials if not trial.is_finished]
    ended = {trial.run for trial in trials if trial.counts and _has_weights(trial, folder)}
    if wanted <= ended:
        return False
    for trial in unfinished:
        if trial.run not in wanted:
            # `tell` rejects waiting trials
            study._storage.set_trial_state_values(trial.frozen._trial_id, TrialState.FAIL)  # pyright: ignore[reportPrivateUsage]
    there = ended | {trial.run for trial in unfinished}
    for run in sorted(runs, key=lambda run: run.seconds, reverse=True):  # a long last run would leave slots idle
        work = run.assignment
        if run.key not in there:
            there.add(run.key)
            study.enqueue_trial(
                {"trial": run.trial, "seed": run.seed_index},
                user_attrs={
                    "run": run.key,
                    "name": work.name,
                    "config": work.config.to_dict(),
                    "seed": work.seed,
                    "epochs": work.epochs,
                    "final": work.final,
                    "last": work.last,
                    "expected_seconds": run.seconds,
                },
            )
    return True


def assign(trial: optuna.Trial) -> Assignment:
    """Return the assignment of an enqueued run; record its trial and seed as parameters, which the dashboard shows."""
    for name in ("trial", "seed"):
        trial.suggest_int(name, 0, 2**31 - 1)
    run = read_trial(trial)
    if run.config is None or run.seed is None:
        raise StudyError(
            f"cannot read the configuration of {run.name} (from another version of search_space.py): retrain another "
            "trial with --trial N"
        )
    return Assignment(
        config=run.config,
        seed=run.seed,
        epochs=run.planned_epochs,
        final=run.is_final,
        last=run.keeps_last,
        name=run.name,
    )


def expected_seconds(study: optuna.Study) -> float:
    """Return the expected total seconds of all unfinished runs, trained one after the other."""
    return sum(trial.expected_seconds for trial in read_trials(study) if not trial.is_finished)


def _has_weights(trial: Trial, folder: Path) -> bool:
    """Return whether a finished run still has its checkpoint; a diverged run does not need one."""
    path = weights(folder, trial)
    return trial.value is None or (path.is_file() and not is_of_another_run(path, trial))


def is_of_another_run(path: Path, trial: Trial) -> bool:
    """Return whether a run's best checkpoint has another history than the run; its loader refuses damaged ones."""
    try:
        history = checkpoint.load(path).history
    except checkpoint.CheckpointError:
        return False
    result = trial.result
    if result is None:
        return False
    known = {epoch: top1 for epoch, top1 in trial.curve.items() if epoch <= result.epoch}
    return known != {one.epoch: one.top1 for one in history}


def weights(folder: Path, trial: Trial) -> Path:
    """Return the path of a complete run's best checkpoint; `folder` is the folder of the runs' study."""
    return trial_directory(folder, trial.number) / "best.pt"


def finished(study: optuna.Study, runs: Iterable[FixedRun]) -> list[Trial]:
    """Return the trial of each run, complete or diverged, in order. If one failed, raises StudyError with its name."""
    trials = {trial.run: trial for trial in read_trials(study)}
    for run in runs:
        trial = trials[run.key]
        if not trial.counts:
            raise StudyError(
                f"{run.assignment.name} failed ({trial.reason or 'ended by another program'}): run the same command "
                "again to retry it, with fewer --workers if memory is short"
            )
    return [trials[run.key] for run in runs]
