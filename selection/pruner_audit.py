"""Was the pruner right? Some pruned trials are trained to their end, just as they would have been, and compared.

study -> `runs`: pruned trials drawn by lot, each with its own configuration and seed -> trained like any fixed runs, in
a sibling study -> `Verdict`
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from search_space import Config
from selection.fixed_runs import FixedRun
from tuning import StudyError
from tuning.jobs import Assignment
from tuning.storage import IDENTITY, Outcome, counts, top

KIND = "audit"
"""The sibling study's name and folder, after the study's."""


def runs(study: optuna.Study, count: int) -> list[FixedRun]:
    """That many of the pruned trials, or all; those of a smaller count are among those of a larger one.

    Raises StudyError where nothing was pruned.
    """
    trials = study.get_trials(deepcopy=False)
    pruned = [trial for trial in trials if trial.user_attrs.get("outcome") == Outcome.PRUNED]
    if not pruned:
        raise StudyError(
            f"--audit-pruner trains pruned trials to their end, but '{study.study_name}' has none; leave it away"
        )
    lots = [np.random.default_rng([study.user_attrs[IDENTITY + "seed"], trial.number]).random() for trial in pruned]
    drawn = [pruned[place] for place in np.argsort(lots)[:count]]
    return [_run(trial) for trial in drawn]


def _run(trial: FrozenTrial) -> FixedRun:
    config = Config.from_dict(trial.user_attrs["config"])
    epochs = config.training.epochs
    return FixedRun(
        key=f"audit of trial {trial.number}: {config.digest} seed {trial.user_attrs['seed']}",
        trial=trial.number,
        seed_index=0,
        seconds=trial.user_attrs["seconds"] / len(trial.intermediate_values) * epochs,
        assignment=Assignment(
            config=config, seed=trial.user_attrs["seed"], epochs=epochs, name=f"pruned trial {trial.number}"
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the pruned trials would have reached."""

    best: float
    """The study's own best validation top-1."""
    pruned: tuple[tuple[int, float, float], ...]
    """Per audited trial: its number, its best top-1 when it was pruned, and at its end."""

    @property
    def winners(self) -> list[int]:
        """Those that would have been the study's best."""
        return [number for number, _, value in self.pruned if value > self.best]


def verdict(study: optuna.Study, audited: list[FrozenTrial]) -> Verdict:
    """From the trials of `runs`; one that diverged has reached what it had until then, on a GPU perhaps nothing."""
    trials = study.get_trials(deepcopy=False)
    best = top(trials, 1)
    rows = [
        (number, trials[number].user_attrs["best_top1"], trial.user_attrs.get("best_top1", 0.0))
        for trial in audited
        for number in (trial.params["trial"],)
    ]
    return Verdict(best=(best[0].value or 0.0) if best else 0.0, pruned=tuple(sorted(rows)))


def read(study: optuna.Study, storage: optuna.storages.BaseStorage) -> Verdict | None:
    """The verdict of an audit that has been made; None where none has."""
    try:
        pool = optuna.load_study(study_name=f"{study.study_name}-{KIND}", storage=storage)
    except KeyError:
        return None
    ended = [trial for trial in pool.get_trials(deepcopy=False) if counts(trial)]
    return verdict(study, ended) if ended else None
