"""The best few again, over several seeds: a study's best trial is the luckiest of many noisy runs.

study -> `candidates` -> `runs` of each, trained like trials -> `Standing` each -> `ranked`: the best mean validation
top-1 wins.
Every candidate meets the same seeds. On NAS-Bench-201 five finalists changed the winner of 9 to 16 of 40 studies, whose
single best run flattered itself by 0.08 to 0.44 points.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from search_space import Config
from selection.fixed_runs import FixedRun
from tuning import StudyError
from tuning.folder import replace_file
from tuning.jobs import Assignment
from tuning.sampling import one_seed
from tuning.storage import IDENTITY, Outcome, top

BASELINE = "improved by hand"
"""The known-good configuration that a winner is compared with."""

STREAM = 2**32 - 1
"""Stands where a trial's number does in the seed of a trial; no number is as high."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration to be trained with several seeds."""

    name: str
    trial: int
    """The trial of the study that it is, or comes from."""
    config: Config
    recorded: float
    """The trial's validation top-1 in the study."""
    epoch_seconds: float
    """What an epoch of the trial took."""
    whole: bool = True
    """Whether the study trained it to its end, so that `recorded` compares with what it reaches now."""
    baseline: bool = False
    """Only compared with: it cannot win."""

    def runs(self, seeds: list[int]) -> list[FixedRun]:
        """On the training part, each with one of the seeds."""
        return [
            FixedRun(
                key=f"{self.config.digest} seed {seed}",
                trial=self.trial,
                seed_index=index,
                seconds=self.epoch_seconds * self.config.training.epochs,
                assignment=Assignment(
                    config=self.config,
                    seed=seed,
                    epochs=self.config.training.epochs,
                    name=f"{self.name}, seed {index + 1} of {len(seeds)}",
                ),
            )
            for index, seed in enumerate(seeds)
        ]


def seeds(study: optuna.Study, count: int) -> list[int]:
    """The seeds of finalists and final runs, fixed by the study's own; fewer are the first of more."""
    own = study.user_attrs[IDENTITY + "seed"]
    return [one_seed(own, STREAM, index) for index in range(count)]


def candidates(study: optuna.Study, count: int) -> list[Candidate]:
    """The study's best trials. Raises StudyError where none was trained to its end."""
    # One that was told from outside has no configuration that could be trained again.
    best = top([trial for trial in study.get_trials(deepcopy=False) if "best_top1" in trial.user_attrs], count)
    if not best:
        raise StudyError(
            f"retrain takes the best of a study's complete trials, but '{study.study_name}' has none; "
            "go on with the study, or choose a trial with --trial N"
        )
    return [_candidate(trial, f"trial {trial.number}") for trial in best]


def candidate(study: optuna.Study, number: int) -> Candidate:
    """One's own choice. Raises StudyError for a trial that is not there or was not trained."""
    trials = study.get_trials(deepcopy=False)
    if number >= len(trials):
        raise StudyError(
            f"--trial names a trial of the study, but '{study.study_name}' has 0 to {len(trials) - 1} and no {number}; "
            "choose one of them"
        )
    trial = trials[number]
    if not trial.state.is_finished() or "best_top1" not in trial.user_attrs:
        state = trial.user_attrs.get("reason") or trial.state.name.lower()
        raise StudyError(
            f"--trial names a trial that has been trained, but trial {number} has not ({state}); choose another one"
        )
    return _candidate(trial, f"trial {number}")


def baselines(study: optuna.Study) -> list[Candidate]:
    """The recipes that were known before, and the one improved by hand without its warm-up, too.

    Raises StudyError where the study lacks that one.
    """
    known = {
        trial.user_attrs["known_good"]: replace(_candidate(trial, trial.user_attrs["known_good"]), baseline=True)
        for trial in study.get_trials(deepcopy=False)
        if {"known_good", "best_top1"} <= trial.user_attrs.keys()
    }
    if BASELINE not in known:
        raise StudyError(
            f"--baseline compares with the trial '{BASELINE}', but '{study.study_name}' has not trained it to its end; "
            "go on with the study, or leave --baseline away"
        )
    recipe = known[BASELINE]
    training = replace(recipe.config.training, warmup_epochs=0)
    cold = replace(recipe, name=f"{BASELINE}, no warm-up", config=replace(recipe.config, training=training))
    return [*known.values(), cold]


def replay(candidate: Candidate, trial: FrozenTrial) -> FixedRun:
    """The trial once more: its own seed, as many epochs as it was trained."""
    return FixedRun(
        key=f"replay of trial {trial.number}: {candidate.config.digest} seed {trial.user_attrs['seed']}",
        trial=trial.number,
        seed_index=0,
        seconds=trial.user_attrs["seconds"],
        assignment=Assignment(
            config=candidate.config,
            seed=trial.user_attrs["seed"],
            epochs=len(trial.intermediate_values),
            name=f"replay of trial {trial.number}",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A candidate and its runs."""

    candidate: Candidate
    runs: tuple[FrozenTrial, ...]
    """In the seeds' order."""

    @property
    def complete(self) -> list[FrozenTrial]:
        """The runs that did not diverge."""
        return [run for run in self.runs if run.user_attrs.get("outcome") == Outcome.COMPLETE]

    @property
    def top1(self) -> list[float]:
        """Of the runs that did not diverge."""
        return [run.user_attrs["best_top1"] for run in self.complete]

    @property
    def diverged(self) -> int:
        """How many did."""
        return len(self.runs) - len(self.complete)

    @property
    def mean(self) -> float:
        """0 where all diverged."""
        return statistics.fmean(self.top1) if self.top1 else 0.0

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None of one."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else None

    @property
    def epochs(self) -> int:
        """How long a final run trains: the median of the best epochs. Raises StudyError where all runs diverged."""
        if not self.complete:
            raise StudyError(
                f"a final run trains as long as its finalists needed, but {self.candidate.name} diverged with every "
                "seed; choose another one with --trial N"
            )
        return math.floor(statistics.median(run.user_attrs["best_epoch"] + 1 for run in self.complete) + 0.5)


def ranked(standings: Iterable[Standing]) -> list[Standing]:
    """The winner first: by the mean, after whether runs diverged; recipes that are only compared with come last."""
    return sorted(
        standings,
        key=lambda standing: (
            standing.candidate.baseline,
            standing.diverged,
            -standing.mean,
            standing.candidate.trial,
        ),
    )


def write_csv(standings: list[Standing], path: Path) -> None:
    """One line per run, in the standings' order; written whole or not at all."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["name", "trial", "seed", "outcome", "top1", "best_epoch"])
            for standing in standings:
                for run in standing.runs:
                    facts = [run.user_attrs.get(name, "") for name in ("seed", "outcome", "best_top1", "best_epoch")]
                    table.writerow([standing.candidate.name, standing.candidate.trial, *facts])

    replace_file(path, write)


def _candidate(trial: FrozenTrial, name: str) -> Candidate:
    attributes = trial.user_attrs
    return Candidate(
        name=name,
        trial=trial.number,
        config=Config.from_dict(attributes["config"]),
        recorded=attributes["best_top1"],
        whole=trial.state is TrialState.COMPLETE,
        epoch_seconds=attributes["seconds"] / len(trial.intermediate_values),
    )
