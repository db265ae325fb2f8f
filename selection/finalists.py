"""Finalists: the best trials trained again with several seeds, as the best of many noisy runs is partly luck.

study -> `candidates` -> `train_finalists`: each with the same seeds -> `Standing` each -> `ranked`: the best mean
validation top-1 wins. It is that of the last epoch, because the network that is exported is of the last epoch too, and
because the best of many epochs is luck: with 200 validation pictures it is 1 to 5 points higher. On NAS-Bench-201, five
finalists changed the winner of 9 to 16 of 40 studies; the best single runs were 0.08 to 0.44 points above their means.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import optuna
from optuna.trial import TrialState

from search_space import GUESS, HAND_TUNED, Config
from selection.fixed_runs import FixedRun, Follow, run_silently, train
from tuning import StudyError, ownership
from tuning.folder import replace_file
from tuning.jobs import Assignment
from tuning.sampling import one_seed
from tuning.session import OpenStudy, Session
from tuning.trials import METRIC, Outcome, Trial, furthest, read_trials

KIND = "finalists"
"""Suffix of the sibling study's name, and name of its folder inside the study's folder."""
FINALISTS = 3
"""Number of finalists, unless --finalists says otherwise."""
LONGER = 8
"""Longest training of the winner, as a multiple of its length in the study, unless --longer says otherwise."""
WORTH_DOUBLING, WORTH_OF_LOSS = 0.005, 0.01
"""Gain in mean validation top-1, or fall of the mean validation loss as a share of it, after which a winner that was
trained twice as long is tried at twice that length. On a few hundred pictures, top-1 alone is too coarse to tell."""
STRONGER, MORE_JITTER = 0.3, 0.2
"""What is added to the strength and to the colour jitter of a winner, to try that in a longer training."""
MOST_JITTER = 0.8
"""Largest colour jitter that is reached in this way, like the search space's."""
STREAM = 2**32 - 1
"""Number used instead of a trial's to derive the finalists' seeds; no trial has such a high number."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration to train with several seeds."""

    name: str
    trial: int
    """Number of the trial that has this configuration, or from which this configuration is derived."""
    config: Config
    recorded: float | None
    """The trial's best validation top-1 in the study, 0 to 1; None if the study did not plan so long a training."""
    epoch_seconds: float
    """Seconds per epoch that the trial took."""
    complete: bool = True
    """Whether the study trained the trial to its last epoch, so that `recorded` is comparable with the new runs."""
    baseline: bool = False
    """Whether the candidate is trained only for comparison and cannot win."""

    def runs(self, seeds: list[int]) -> list[FixedRun]:
        """Return one run per seed, on the training set, represented by its last epoch."""
        epochs = self.config.training.epochs
        return [
            FixedRun(
                key=f"{self.config.digest} seed {seed}, last epoch",
                trial=self.trial,
                seed_index=index,
                seconds=self.epoch_seconds * epochs,
                assignment=Assignment(
                    config=self.config,
                    seed=seed,
                    epochs=epochs,
                    last=True,
                    name=f"{self.name}, seed {index + 1} of {len(seeds)}",
                ),
            )
            for index, seed in enumerate(seeds)
        ]


def stretched(candidate: Candidate, factor: int) -> Candidate:
    """Return a candidate that trains `factor` times as long, its learning rate schedule stretched to match."""
    if factor == 1:
        return candidate
    training = candidate.config.training
    longer = replace(
        training,
        epochs=training.epochs * factor,
        step_period=training.step_period * factor,
        warmup_epochs=training.warmup_epochs * factor,
    )
    return replace(
        candidate,
        name=f"{candidate.name} ({factor}x)",
        config=replace(candidate.config, training=longer),
        recorded=None,
        complete=False,
    )


def stronger(candidate: Candidate) -> list[Candidate]:
    """Return the candidate with stronger augmentation of every view; an empty list if that is as strong as it gets."""
    before = candidate.config.augment
    strength = max(before.strength, min(1.0, round(before.strength + STRONGER, 1)))
    colour_jitter = max(before.colour_jitter, min(MOST_JITTER, round(before.colour_jitter + MORE_JITTER, 1)))
    augment = replace(before, strength=strength, colour_jitter=colour_jitter, reuse_originals=False, fresh=True)
    if augment == before:
        return []
    name = _changed(candidate.name, f"augmentation {strength:g}", f"colour jitter {colour_jitter:g}")
    return [replace(candidate, name=name, config=replace(candidate.config, augment=augment))]


def slower(candidate: Candidate) -> Candidate:
    """Return the candidate with half the learning rate: more steps often need smaller ones."""
    training = replace(candidate.config.training, lr=candidate.config.training.lr / 2)
    return replace(
        candidate,
        name=_changed(candidate.name, f"lr {training.lr:.3g}"),
        config=replace(candidate.config, training=training),
    )


def _changed(name: str, *changes: str) -> str:
    """Return a candidate's name with these changes, each in place of an earlier one of its kind."""
    first, *before = name.split(", ")
    merged = {one.rpartition(" ")[0]: one for one in (*before, *changes)}
    return ", ".join([first, *merged.values()])


def final_seeds(study: OpenStudy, count: int) -> list[int]:
    """Return the first `count` seeds of finalists and final runs; they follow from the study's own seed."""
    return [one_seed(study.seed, STREAM, index) for index in range(count)]


def candidates(study: optuna.Study, count: int) -> list[Candidate]:
    """Return the study's best `count` complete trials; if there are fewer, others follow that were trained furthest.

    Raises StudyError if no trial was trained for an epoch.
    """
    # Trials that another program reported have no configuration to train.
    best = furthest([trial for trial in read_trials(study) if trial.seed is not None], count)
    if not best:
        raise StudyError(f"'{study.study_name}' has no trained trial to retrain: run the study further")
    return [_candidate(trial, f"trial {trial.number}") for trial in best]


def candidate(study: optuna.Study, number: int) -> Candidate:
    """Return trial `number` as a candidate. Raises StudyError if it does not exist or was not trained."""
    trials = read_trials(study)
    if number >= len(trials):
        raise StudyError(
            f"--trial {number} does not exist in '{study.study_name}': choose one of 0 to {len(trials) - 1}"
        )
    trial = trials[number]
    if not trial.epochs:
        state = trial.reason or trial.state.name.lower()
        raise StudyError(f"--trial {number} has not been trained ({state}): choose another one")
    return _candidate(trial, f"trial {number}")


def baseline_candidates(study: optuna.Study) -> list[Candidate]:
    """Return the baselines that the study has trained, and the hand-tuned recipe once more without its warm-up.

    Raises StudyError if it has trained none of them.
    """
    known = {
        trial.baseline: replace(_candidate(trial, trial.baseline), baseline=True)
        for trial in read_trials(study)
        if trial.baseline and trial.epochs
    }
    if not known:
        raise StudyError(
            f"'{study.study_name}' has not trained any baseline that --baseline compares with: run the study further, "
            "or omit --baseline"
        )
    if HAND_TUNED not in known:
        return list(known.values())
    recipe = known[HAND_TUNED]
    training = replace(recipe.config.training, warmup_epochs=0)
    cold = replace(recipe, name=f"{HAND_TUNED}, no warm-up", config=replace(recipe.config, training=training))
    return [*known.values(), cold]


def best_guess(study: optuna.Study) -> list[Candidate]:
    """Return the best single guess as a candidate; an empty list if the study has not trained it."""
    return [_candidate(trial, GUESS) for trial in read_trials(study) if trial.baseline == GUESS and trial.epochs]


def replay(candidate: Candidate, trial: Trial) -> FixedRun:
    """Return a run that repeats a trial with its seed and epochs. Raises StudyError if another program trained it."""
    if trial.seed is None:
        raise StudyError(f"--trial {trial.number} was not trained by this program: choose another one")
    return FixedRun(
        key=f"replay of trial {trial.number}: {candidate.config.digest} seed {trial.seed}",
        trial=trial.number,
        seed_index=0,
        seconds=trial.seconds,
        assignment=Assignment(
            config=candidate.config, seed=trial.seed, epochs=trial.epochs, name=f"replay of trial {trial.number}"
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A candidate and its runs, by which it is ranked."""

    candidate: Candidate
    runs: tuple[Trial, ...]
    """One run per seed, in the seeds' order."""

    @property
    def complete(self) -> list[Trial]:
        """Runs that did not diverge."""
        return [run for run in self.runs if run.outcome is Outcome.COMPLETE]

    @property
    def top1(self) -> list[float]:
        """Validation top-1, 0 to 1, after the last epoch of the runs that did not diverge."""
        return [run.result.top1 for run in self.complete if run.result]

    @property
    def diverged(self) -> int:
        """Number of runs that diverged."""
        return len(self.runs) - len(self.complete)

    @property
    def mean(self) -> float:
        """Mean validation top-1, 0 to 1; 0 if all runs diverged."""
        return statistics.fmean(self.top1) if self.top1 else 0.0

    @property
    def loss(self) -> float:
        """Mean validation loss after the last epoch; nan without a run that did not diverge."""
        losses = [run.result.loss for run in self.complete if run.result and run.result.loss is not None]
        return statistics.fmean(losses) if losses else math.nan

    def is_worth_doubling(self, shorter: Standing) -> bool:
        """Return whether this gains so much on the `shorter` training before it that a still longer one may, too."""
        return self.mean - shorter.mean >= WORTH_DOUBLING or self.loss <= (1 - WORTH_OF_LOSS) * shorter.loss

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None with fewer than two."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else None


def train_finalists(
    session: Session,
    chosen: Sequence[Candidate] | None = None,
    seeds: int = 3,
    follow: Follow = run_silently,
    *,
    longer: int = LONGER,
    alternatives: bool = True,
    baselines: Sequence[Candidate] = (),
) -> list[Standing]:
    """Train every candidate, by default the best three trials, with the same seeds; return them ranked, winner first.

    The winner is also trained twice as long, and wins at the length with the highest mean. While doubling is worth it,
    the length is doubled again, up to `longer` times that of the study. What is best after a short training may learn
    its pictures by heart in a longer one, or take steps that are too large for it. With `alternatives`, the winner so
    far is therefore tried at each length, with the first seed, beside itself with stronger augmentation and with half
    the learning rate, and at twice the length beside the best single guess; the best of them continues. The baselines
    are then trained for as many times their length as the winner. Writes finalists.csv. Raises StudyError if all of the
    winner's runs diverged, or naming a run that failed.
    """
    fixed = final_seeds(session, seeds)

    def train_all(ones: Sequence[Candidate], count: int = seeds) -> list[Standing]:
        runs = [run for one in ones for run in one.runs(fixed)[:count]]
        trained = iter(train(session, KIND, METRIC, runs, follow))
        return ranked(Standing(candidate=one, runs=tuple(islice(trained, count))) for one in ones)

    standings = train_all(chosen or candidates(session.study, FINALISTS))
    latest, length, worthwhile = standings[0], 1, bool(standings[0].complete)
    base, horizon = latest.candidate, latest.candidate.config.training.epochs
    met = {one.candidate.trial for one in standings}
    guesses = [one for one in best_guess(session.study) if one.trial not in met]
    while worthwhile and length < longer:
        length = min(2 * length, longer)
        if alternatives:
            rivals = {stretched(one, length): one for one in (base, *stronger(base), slower(base), *guesses)}
            guesses = []
            tried = train_all(list(rivals), 1)
            base = rivals[tried[0].candidate]
            standings += tried[1:]
        shorter, (latest,) = latest, train_all([stretched(base, length)])
        standings.append(latest)
        worthwhile = latest.is_worth_doubling(shorter)
    standings = ranked(standings)
    if baselines:
        factor = standings[0].candidate.config.training.epochs // horizon
        standings += train_all([stretched(one, factor) for one in baselines])
    write_csv(standings, session.folder / "finalists.csv", ownership.study_id(session.study))
    if not standings[0].complete:
        raise StudyError(f"{standings[0].candidate.name} diverged with every seed: choose another one with --trial N")
    return standings


def ranked(standings: Iterable[Standing]) -> list[Standing]:
    """Return the standings sorted by most seeds, fewest diverged runs, highest mean, lowest loss and longest training.

    Means of a few hundred pictures are often equal: then the loss decides. Baselines come last.
    """
    return sorted(
        standings,
        key=lambda standing: (
            standing.candidate.baseline,
            -len(standing.runs),
            standing.diverged,
            -round(standing.mean, 9),
            math.inf if math.isnan(standing.loss) else standing.loss,
            -standing.candidate.config.training.epochs,
            standing.candidate.trial,
        ),
    )


def write_csv(standings: list[Standing], path: Path, study_id: str | None) -> None:
    """Write one line per run, in the order of the standings, each with the study's random id. Raises StudyError."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["name", "trial", "epochs", "seed", "outcome", "top1", "study_id"])
            for standing in standings:
                one = standing.candidate
                for run in standing.runs:
                    top1 = run.result.top1 if run.result else ""
                    table.writerow(
                        [one.name, one.trial, one.config.training.epochs, run.seed, run.outcome, top1, study_id]
                    )

    replace_file(path, write)


def _candidate(trial: Trial, name: str) -> Candidate:
    if trial.config is None:
        raise StudyError(
            f"cannot read the configuration of trial {trial.number} (from another version of search_space.py): choose "
            "another trial with --trial N"
        )
    return Candidate(
        name=name,
        trial=trial.number,
        config=trial.config,
        recorded=trial.reached or 0.0,
        complete=trial.state is TrialState.COMPLETE,
        epoch_seconds=trial.seconds / trial.epochs,
    )
