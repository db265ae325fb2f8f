"""The pruner audit: trains some pruned trials to their last epoch and compares them with the study's best.

study -> `audit_runs`: a random sample of the pruned trials, each with its own configuration and seed -> trained as
fixed runs in a sibling study -> `PrunerAudit`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna

from selection.fixed_runs import FixedRun, Follow, run_silently, train
from tuning import StudyError
from tuning.database import load_sibling
from tuning.jobs import Assignment
from tuning.session import OpenStudy, Session
from tuning.trials import METRIC, Outcome, Trial, read_trials, top

KIND = "audit"
"""Suffix of the sibling study's name, and name of its folder inside the study's folder."""


@dataclass(frozen=True, kw_only=True)
class PrunerAudit:
    """Result of an audit: what pruned trials would have reached."""

    best: float
    """Best validation top-1 of the study, 0 to 1."""
    pruned: tuple[tuple[int, float, float], ...]
    """Number, best top-1 when pruned, and best top-1 after the last epoch, for each audited trial."""

    @property
    def winners(self) -> list[int]:
        """Numbers of the audited trials that beat the study's best."""
        return [number for number, _, value in self.pruned if value > self.best]


def audit_pruner(session: Session, count: int, follow: Follow = run_silently) -> PrunerAudit:
    """Train `count` of the pruned trials, or all if there are fewer, to their last epoch and compare them.

    Raises StudyError if none was pruned.
    """
    return _compare(session.study, train(session, KIND, METRIC, audit_runs(session, count), follow))


def audit_runs(study: OpenStudy, count: int) -> list[FixedRun]:
    """Return the runs of an audit; a larger `count` adds runs without changing the others.

    Raises StudyError if no trial was pruned.
    """
    pruned = [trial for trial in read_trials(study.study) if trial.outcome is Outcome.PRUNED and trial.result]
    if not pruned:
        raise StudyError(f"'{study.name}' has no pruned trials for --audit-pruner to train: omit it")
    draws = [np.random.default_rng([study.seed, trial.number]).random() for trial in pruned]
    sample = [pruned[place] for place in np.argsort(draws)[:count]]
    return [run for trial in sample if (run := _run(trial))]


def _run(trial: Trial) -> FixedRun | None:
    """Return a run that trains a pruned trial to its last epoch; None if its configuration cannot be read."""
    if trial.config is None or trial.seed is None or trial.result is None:
        return None
    epochs = trial.config.training.epochs
    return FixedRun(
        key=f"audit of trial {trial.number}: {trial.config.digest} seed {trial.seed}",
        trial=trial.number,
        seed_index=0,
        seconds=trial.result.seconds / trial.epochs * epochs,
        assignment=Assignment(config=trial.config, seed=trial.seed, epochs=epochs, name=f"pruned trial {trial.number}"),
    )


def read_audit(study: optuna.Study) -> PrunerAudit | None:
    """Return the audit that is stored for a study; None if there is none."""
    runs = load_sibling(study, KIND)
    if runs is None:
        return None
    ended = [trial for trial in read_trials(runs) if trial.counts]
    return _compare(study, ended) if ended else None


def _compare(study: optuna.Study, audited: Sequence[Trial]) -> PrunerAudit:
    """Compare audited runs with the study's best; a diverged run counts with the best value it had reached."""
    trials = read_trials(study)
    best = top(trials, 1)
    rows = [
        (number, trials[number].reached or 0.0, run.reached or 0.0)
        for run in audited
        for number in (run.params["trial"],)
    ]
    return PrunerAudit(best=(best[0].value or 0.0) if best else 0.0, pruned=tuple(sorted(rows)))
