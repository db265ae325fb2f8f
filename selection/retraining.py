"""The winner, trained on everything but the test part and evaluated there once.

winner's finalist runs -> how many epochs it trains for, and the temperature of its probabilities (validation logits)
    -> `final_runs` on train + validation, one per seed -> `evaluate_on_test`: all of them, once -> `Winner`
The network of the first seed is the one that is exported; which one that is, is fixed before the test part is used.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from data.batches import EvaluationBatches
from data.cache import CacheHandle, open_part
from data.split import PartName
from model import checkpoint, metrics, plain_json
from model.files import printable, why
from model.network import MushroomCNN
from search_space import Config
from selection import test_set_uses
from selection.finalists import KIND as FINALISTS
from selection.finalists import Candidate, Standing, candidates, final_seeds
from selection.fixed_runs import FixedRun, Follow, run_silently, train, weights
from selection.test_set_uses import TestSetUse
from tuning import StudyError
from tuning.folder import replace_file
from tuning.jobs import Assignment
from tuning.session import OpenStudy, Session
from tuning.trials import Outcome, Trial, count_trials, read_trials

FORMAT = 3
"""Version of retrained.json."""
FINAL_RUNS = "retrained"
"""Suffix of the name of the final runs' study, and its folder within the study's."""
FINAL_METRIC = "top-1 on validation pictures that it has trained on"
"""What the dashboard calls a final run's value: it shows that the network has learned, and nothing else."""


@dataclass(frozen=True, kw_only=True)
class FinalRuns:
    """A candidate's final runs."""

    candidate: Candidate
    runs: tuple[Trial, ...]
    """One run per seed, in the seeds' order."""

    @property
    def complete(self) -> list[Trial]:
        """The runs that did not diverge."""
        return [run for run in self.runs if run.outcome is Outcome.COMPLETE]


def final_runs(standing: Standing, seeds: list[int]) -> list[FixedRun]:
    """Return one run per seed on train + validation, for the median of the finalist runs' best epochs.

    The lr schedule keeps its horizon.
    """
    candidate, epochs = standing.candidate, standing.epochs
    return [
        FixedRun(
            key=f"{candidate.config.digest} seed {seed}, {epochs} epochs",
            trial=candidate.trial,
            seed_index=index,
            seconds=candidate.epoch_seconds * epochs,
            assignment=Assignment(
                config=candidate.config,
                seed=seed,
                epochs=epochs,
                final=True,
                name=f"{candidate.name}, seed {index + 1} of {len(seeds)}",
            ),
        )
        for index, seed in enumerate(seeds)
    ]


def retrain_winner(
    session: Session, standings: Sequence[Standing], *, retest: bool = False, follow: Follow = run_silently
) -> tuple[Winner, list[TestSetUse]]:
    """Train the winner of the finalists, and the baselines among them, on train + validation and evaluate them once.

    Returns the winner and no test-set uses; or the winner without test results and the uses by other networks that
    forbid them, unless `retest`. Writes retrained.json. Raises StudyError where all of the winner's runs diverged.
    """
    won, seeds = standings[0], len(standings[0].runs)
    tested = [won, *(one for one in standings if one.candidate.baseline and one.complete)]
    fixed = final_seeds(session, seeds)
    runs = [run for one in tested for run in final_runs(one, fixed)]
    trained = iter(train(session, FINAL_RUNS, FINAL_METRIC, runs, follow))
    finals = [FinalRuns(candidate=one.candidate, runs=tuple(islice(trained, seeds))) for one in tested]
    bench = Bench(data=session.data, folder=session.folder, device=session.slots[0].device)
    trials = count_trials(read_trials(session.study))
    winner = conclude(won, finals[0], bench, pictures=session.data_identity, trials=trials)
    winner, earlier = evaluate_logged(session, winner, finals, bench, retest=retest)
    winner.save(session.folder)
    return winner, earlier


def load_network(config: Config, path: Path) -> MushroomCNN:
    """Return a run's network with the weights of its best epoch, on the CPU. Raises StudyError where they are gone."""
    network = MushroomCNN(config.model)
    try:
        network.load_state_dict(checkpoint.load(path).model)
    except (checkpoint.CheckpointError, RuntimeError) as error:
        raise StudyError(
            f"cannot load the weights of a finished run ({' '.join(str(error).split())}): remove {path}, then python "
            "study.py retrain trains what is missing"
        ) from error
    return network


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a study's networks are evaluated."""

    data: CacheHandle
    folder: Path
    """The study's folder."""
    device: str

    def logits(self, config: Config, path: Path, part: PartName) -> metrics.Logits:
        """Return the logits and labels of a run's network on a part of the pictures.

        Raises StudyError where a GPU has too little memory.
        """
        try:
            network = load_network(config, path).to(self.device)
            batches = EvaluationBatches(open_part(self.data, config.image_size, part), device=torch.device(self.device))
            return metrics.logits(network, batches)
        except torch.OutOfMemoryError as error:
            raise StudyError(
                f"{self.device} has too little free memory to evaluate the winner: stop what else uses it, or run the "
                "same command with --device cpu; the finished runs are kept"
            ) from error


def fit_temperature(config: Config, paths: list[Path], bench: Bench) -> float:
    """Return one temperature for a configuration, fitted to validation logits of runs that did not train on them."""
    pairs = [bench.logits(config, path, "validation") for path in paths]
    outputs, labels = (torch.cat(column) for column in zip(*pairs, strict=True))
    return metrics.temperature(outputs, labels)


def evaluate_on_test(finals: list[FinalRuns], temperature: float, bench: Bench) -> dict[str, Any]:
    """Evaluate all final runs on the test part: the winner's, which come first, and the baselines'.

    Returns what the exported network reaches, mean and standard deviation over the seeds, and the baselines' top-1.
    """
    won, *others = [one for one in finals if one.complete]
    measured = [_on_test(one, temperature if one is won else 1.0, bench) for one in (won, *others)]
    exported, top1 = measured[0][0], [one.top1 for one in measured[0]]
    return exported.to_dict() | {
        "diverged": len(won.runs) - len(won.complete),
        "seeds": [
            {"seed": run.seed, "top1": one.top1, "top3": one.top3, "ece": one.ece}
            for run, one in zip(won.complete, measured[0], strict=True)
        ],
        "top1_mean": statistics.fmean(top1),
        "top1_sd": _spread(top1),
        "tested": datetime.now().astimezone().isoformat(timespec="seconds"),
        "baselines": [
            {
                "name": one.candidate.name,
                "top1": [each.top1 for each in results],
                "top1_interval": results[0].top1_interval,
                "top3": results[0].top3,
                "top1_mean": statistics.fmean(each.top1 for each in results),
                "top1_sd": _spread([each.top1 for each in results]),
                "diverged": len(one.runs) - len(one.complete),
            }
            for one, results in zip(others, measured[1:], strict=True)
        ],
    }


def evaluate_logged(
    study: OpenStudy, winner: Winner, finals: list[FinalRuns], bench: Bench, *, retest: bool
) -> tuple[Winner, list[TestSetUse]]:
    """Return the winner with its test results, logged before the evaluation; or the uses by others that forbid it.

    Baselines are evaluated along with the winner, as they cannot win by it. `retest`: evaluate although other networks
    have been. Raises StudyError where the log cannot be used.
    """
    results, key = study.folder.parent, (bench.data.fingerprint, winner.networks)
    with test_set_uses.log_locked(results):
        earlier = test_set_uses.uses_by_others(results, *key)
        if earlier and not retest and not test_set_uses.already_tested(results, *key):
            return winner, earlier
        test_set_uses.log_use(results, *key, study.name)
    tested = evaluate_on_test(finals, winner.temperature or 1.0, bench)
    return replace(winner, results=tested | {"evaluations": len(earlier) + 1}), []


def _on_test(finals: FinalRuns, temperature: float, bench: Bench) -> list[metrics.Measured]:
    config = finals.candidate.config
    paths = [weights(bench.folder / FINAL_RUNS, run) for run in finals.complete]
    return [metrics.measure(*bench.logits(config, path, "test"), temperature) for path in paths]


def _spread(values: list[float]) -> float | None:
    """Return the standard deviation; None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def conclude(won: Standing, finals: FinalRuns, bench: Bench, *, pictures: str, trials: int) -> Winner:
    """Return all that is known of the winner before the test part is used.

    Raises StudyError where all of its final runs diverged.
    """
    if not finals.complete:
        raise StudyError(
            f"{won.candidate.name} diverged with every seed on train + validation: choose another one with --trial N"
        )
    config, run = won.candidate.config, finals.complete[0]
    finalists = [weights(bench.folder / FINALISTS, one) for one in won.complete]
    return Winner(
        name=won.candidate.name,
        trial=won.candidate.trial,
        config=config.to_dict(),
        pictures=pictures,
        trials=trials,
        seed=run.seed or 0,
        seed_index=run.params["seed"],
        environment=run.environment,
        epochs=won.epochs,
        trained_on=["train", "validation"],
        weights=weights(bench.folder / FINAL_RUNS, run).relative_to(bench.folder).as_posix(),
        temperature=fit_temperature(config, finalists, bench),
        networks=" ".join(one.run or "" for one in finals.runs),
        validation={
            "recorded": won.candidate.recorded,
            "finalists_mean": won.mean,
            "finalists_sd": won.spread,
        },
        results=None,
    )


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The network that is exported, stored as `retrained.json` in the study's folder."""

    name: str
    trial: int
    """The trial of the study that has its configuration."""
    config: dict[str, Any]
    """The configuration, as `Config.to_dict` gives it."""
    pictures: str
    """Text that identifies the study's pictures and their split."""
    trials: int
    """Counted trials of the study at that time."""
    seed: int
    seed_index: int
    """Index of the final run, from 0; above 0 where the first ones diverged."""
    environment: dict[str, str]
    """Facts of the machine that trained it."""
    epochs: int
    """Epochs that it was trained for."""
    trained_on: list[PartName]
    weights: str
    """Path of its checkpoint, relative to the study's folder."""
    temperature: float | None
    """Divisor of its logits; None where it was not fitted."""
    networks: str
    """Identifies the final runs, the exported one among them, in the log of test-set evaluations."""
    validation: dict[str, float | None]
    """Validation top-1: `recorded` in the study, `finalists_mean` and `finalists_sd` over its finalist runs."""
    results: dict[str, Any] | None
    """What `evaluate_on_test` returns, and the number of `evaluations` on the test part; None before."""

    def save(self, folder: Path) -> None:
        """Write retrained.json. Raises StudyError."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        replace_file(folder / "retrained.json", lambda path: path.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, folder: Path) -> Winner | None:
        """Return what was saved; None where nothing was. Raises StudyError for a file that cannot be read."""
        path = folder / "retrained.json"
        try:
            values = plain_json.read(path)
            if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
                raise ValueError("written by another version")
            winner = plain_json.fill(cls, values)
            Config.from_dict(winner.config)
            if not (folder / winner.weights).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"weights outside of the study, {plain_json.short(winner.weights)}")
            return winner
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StudyError(
                f"cannot read {printable(path)} ({why(error)}): remove it and run python study.py retrain again; its "
                "finished runs are kept"
            ) from error


def best_so_far(study: OpenStudy) -> Winner:
    """Return a study's best trial as it is, for an export before `retrain`. Raises StudyError where there is none."""
    (best,), trials = candidates(study.study, 1), read_trials(study.study)
    trial = trials[best.trial]
    return Winner(
        name=best.name,
        trial=best.trial,
        config=best.config.to_dict(),
        pictures=study.data_identity,
        trials=count_trials(trials),
        seed=trial.seed or 0,
        seed_index=0,
        environment=trial.environment,
        epochs=(trial.result.epoch if trial.result else 0) + 1,
        trained_on=["train"],
        weights=weights(Path(), trial).as_posix(),
        temperature=None,
        networks="",
        validation={"recorded": best.recorded},
        results=None,
    )


def same_curve(trial: Trial, again: Trial) -> tuple[float | None, int | None]:
    """Return the replayed value minus the recorded one, and the first epoch, from 0, whose validation top-1 differs.

    The difference is None where the replay diverged in its first epoch; the epoch is None where the curves are equal.
    """
    then, now = trial.curve, again.curve
    apart = [epoch for epoch in then if now.get(epoch) != then[epoch]]
    replayed, recorded = again.result, trial.result
    difference = None if replayed is None or recorded is None else replayed.top1 - recorded.top1
    return difference, apart[0] if apart else None
