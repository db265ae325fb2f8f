"""Retraining: the winner is trained on train + validation and evaluated once on the test set.

winner's finalist runs -> the temperature of its probabilities (from validation logits)
    -> `final_runs` on train + validation, one per seed -> `evaluate_on_test`: all of them, once -> `Winner`
The network of the first seed is exported: a choice made before the test set is used.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import Track, no_track
from data.batches import EvaluationBatches
from data.cache import CacheHandle, open_part
from data.split import PartName
from model import checkpoint, metrics, plain_json
from model.files import printable, why
from model.network import MushroomCNN
from model.strangers import AS_MEASURED, Familiar, Limit, find_limit, fit
from search_space import Config
from selection import test_set_uses
from selection.finalists import KIND as FINALISTS
from selection.finalists import Candidate, Standing, candidates, final_seeds
from selection.fixed_runs import FixedRun, Follow, run_silently, train, weights
from selection.pretrained import Pretrained, fit_head
from selection.test_set_uses import TestSet
from tuning import StudyError, ownership
from tuning.database import load_sibling
from tuning.folder import replace_file, trial_directory
from tuning.jobs import Assignment
from tuning.session import OpenStudy, Session
from tuning.trials import Outcome, Trial, count_trials, read_trials

FORMAT = 4
"""Format version of retrained.json."""
FINAL_RUNS = "retrained"
"""Suffix of the sibling study's name, and name of its folder inside the study's folder."""
TRAINED_ON: list[PartName] = ["train", "validation"]
"""Parts on which final runs are trained."""
FINAL_METRIC = "top-1 on validation pictures that it has trained on"
"""Dashboard's name for a final run's value, which shows only that the network has learned."""


@dataclass(frozen=True, kw_only=True)
class FinalRuns:
    """A candidate's final runs."""

    candidate: Candidate
    runs: tuple[Trial, ...]
    """One run per seed, in the seeds' order."""
    folder: Path
    """Folder of the runs' study."""

    @property
    def complete(self) -> list[Trial]:
        """The runs that did not diverge."""
        return [run for run in self.runs if run.outcome is Outcome.COMPLETE]

    @property
    def weights(self) -> list[Path]:
        """Paths of the checkpoints of the complete runs."""
        return [weights(self.folder, run) for run in self.complete]


def final_runs(candidate: Candidate, seeds: list[int]) -> list[FixedRun]:
    """Return one run per seed on train + validation, to the end of the schedule: no pictures are left to stop by."""
    epochs = candidate.config.training.epochs
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
) -> Winner:
    """Train the first of the standings and any baselines on train + validation, then evaluate them on the test set.

    The winner has no test results if other networks have been evaluated on that test set before, unless `retest`.
    Writes retrained.json. Raises StudyError if all of the winner's runs diverged.
    """
    won, seeds = standings[0], len(standings[0].runs)
    tested = [won, *(one for one in standings if one.candidate.baseline and one.complete)]
    fixed = final_seeds(session, seeds)
    runs = [run for one in tested for run in final_runs(one.candidate, fixed)]
    trained = iter(train(session, FINAL_RUNS, FINAL_METRIC, runs, follow))
    folder = session.folder / FINAL_RUNS
    finals = [FinalRuns(candidate=one.candidate, runs=tuple(islice(trained, seeds)), folder=folder) for one in tested]
    evaluator = Evaluator(data=session.data, device=session.own_device)
    winner = conclude(session, won, finals[0], evaluator)
    winner = evaluate_logged(session, winner, finals, evaluator, retest=retest)
    winner = _with_earlier_comparisons(session, winner)
    winner.save(session.folder)
    return winner


def _with_earlier_comparisons(session: Session, winner: Winner) -> Winner:
    """Return the winner with what the same networks were compared with before, as far as it was not asked for again."""
    try:
        before = Winner.load(session.folder)
    except StudyError:  # another version's, or damaged: it is about to be replaced
        return winner
    if before is None or before.networks != winner.networks or before.results is None or winner.results is None:
        return winner
    baselines = winner.results["baselines"] or before.results["baselines"]
    return replace(winner, results=winner.results | {"baselines": baselines}, pretrained=before.pretrained)


def compare(
    session: Session, winner: Winner, pretrained: Pretrained, *, retest: bool = False, track: Track = no_track
) -> Winner:
    """Put a logistic regression on a pretrained network's features, and test it beside the winner.

    The evaluation is logged. The winner is returned unchanged if it is untested itself, or if still other networks have
    been evaluated on that test set before, unless `retest`. Writes retrained.json. Raises StudyError or DataError.
    """
    if winner.results is None:
        return winner
    allowed = test_set_uses.log_allowed_use(
        session.folder.parent,
        TestSet.of(session.pictures),
        pretrained.key,
        session.name,
        retest=retest,
        beside=winner.networks,
    )
    if allowed is None:
        return winner
    started = time.monotonic()
    device, pictures = torch.device(session.own_device), session.pictures
    fitted = fit_head(pretrained, pictures.catalog, pictures.split, device, track)
    seconds = time.monotonic() - started
    measured = metrics.measure(fitted.logits, fitted.labels, temperature=1.0)
    cost, run = Config.from_dict(winner.config).cost, exported_run(session, winner)
    winner = replace(
        winner,
        pretrained=Comparison(
            weights=pretrained.weights,
            pictures=measured.pictures,
            penalty=fitted.penalty,
            validation=fitted.validation,
            winner=Compared(
                name=winner.name,
                top1=winner.results["top1"],
                top1_interval=list(winner.results["top1_interval"]),
                parameters=cost.parameters,
                flops=cost.flops,
                seconds=run.seconds if run else None,
            ),
            pretrained=Compared(
                name=pretrained.name,
                top1=measured.top1,
                top1_interval=list(measured.top1_interval),
                parameters=fitted.parameters,
                flops=fitted.flops,
                seconds=seconds,
            ),
        ),
    )
    winner.save(session.folder)
    return winner


def load_network(config: Config, path: Path) -> MushroomCNN:
    """Return a network on the CPU with the weights of a run's checkpoint. Raises StudyError if they are gone."""
    network = MushroomCNN(config.model)
    try:
        network.load_state_dict(checkpoint.load(path).model)
    except (checkpoint.CheckpointError, RuntimeError) as error:
        raise StudyError(
            f"cannot load the weights of a finished run ({' '.join(str(error).split())}): remove {path} and run python "
            "study.py retrain, which trains what is missing"
        ) from error
    return network


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluates networks on a part of the pictures, on one device."""

    data: CacheHandle
    device: str
    """Torch's name for the device: cpu, cuda:0, mps."""

    def logits(self, config: Config, path: Path, part: PartName) -> metrics.Logits:
        """Return logits and labels of the network with the weights at `path`, on a part of the pictures.

        Raises StudyError if the weights are gone or a GPU has too little memory.
        """
        return self._outputs(MushroomCNN.forward, config, path, (part,))

    def features(self, config: Config, path: Path, *parts: PartName) -> tuple[Tensor, Tensor, Tensor]:
        """Return features (N, F), logits (N, C) and labels (N,), like `logits`, on several parts."""

        def compute(network: MushroomCNN, pictures: Tensor) -> Tensor:
            return torch.cat(network.features_and_logits(pictures), dim=1)

        both, labels = self._outputs(compute, config, path, parts)
        return both[:, : -config.model.classes], both[:, -config.model.classes :], labels

    def _outputs(
        self, compute: Callable[[MushroomCNN, Tensor], Tensor], config: Config, path: Path, parts: Sequence[PartName]
    ) -> tuple[Tensor, Tensor]:
        try:
            network, device = load_network(config, path).to(self.device).eval(), torch.device(self.device)
            batches = EvaluationBatches(open_part(self.data, config.image_size, *parts), device=device)
            return metrics.outputs(partial(compute, network), batches)
        except torch.OutOfMemoryError as error:
            raise StudyError(
                f"{self.device} has too little free memory to evaluate the winner: stop other programs that use it, or "
                "run the same command with --device cpu; finished runs are kept"
            ) from error


def calibrate(config: Config, paths: list[Path], evaluator: Evaluator) -> metrics.Calibration:
    """Return the temperature fitted on the validation pictures, on which these weights must not have been trained."""
    outputs, labels = zip(*(evaluator.logits(config, path, "validation") for path in paths), strict=True)
    return metrics.calibrate(torch.stack(outputs), labels[0])


def find_familiar(
    config: Config, path: Path, parts: Sequence[PartName], evaluator: Evaluator, usual: Sequence[float] = AS_MEASURED
) -> Familiar:
    """Return what is familiar to the network with the weights at `path`, which was trained on `parts`."""
    features, _, labels = evaluator.features(config, path, *parts)
    return fit(features, labels, config.model.classes, usual)


def find_strangers(config: Config, paths: list[Path], evaluator: Evaluator) -> Limit:
    """Return the limit that follows from the validation pictures, on which these weights must not have been trained."""

    def measured(path: Path) -> Tensor:
        features, logits, _ = evaluator.features(config, path, "validation")
        return find_familiar(config, path, ["train"], evaluator).measure(features, logits)

    return find_limit(torch.stack([measured(path) for path in paths]))


def evaluate_on_test(
    finals: list[FinalRuns],
    temperature: float,
    evaluator: Evaluator,
    sure: float | None = None,
    limit: Limit | None = None,
) -> dict[str, Any]:
    """Evaluate all final runs on the test set: the winner's, which come first, and the baselines'.

    `sure` is the lowest probability of the winner's sure answers, `limit` says which pictures it calls strangers.

    Returns the metrics of the exported network, mean and standard deviation over the seeds, and the baselines' top-1.
    """
    won, *others = [one for one in finals if one.complete]
    measured = [
        _on_test(won, temperature, sure, limit, evaluator),
        *(_on_test(one, 1.0, None, None, evaluator) for one in others),
    ]
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
    session: Session, winner: Winner, finals: list[FinalRuns], evaluator: Evaluator, *, retest: bool
) -> Winner:
    """Log the test-set evaluation, then run it; return the winner with its results.

    If other networks have been evaluated there before, the winner is returned unchanged, unless `retest`. Baselines are
    not logged, as nothing is chosen by them. Raises StudyError if the log cannot be used.
    """
    others = test_set_uses.log_allowed_use(
        session.folder.parent, TestSet.of(session.pictures), winner.networks, session.name, retest=retest
    )
    if others is None:
        return winner
    tested = evaluate_on_test(finals, winner.temperature or 1.0, evaluator, winner.sure, winner.strangers)
    return replace(winner, results=tested | {"evaluations": len(others) + 1})


def _on_test(
    finals: FinalRuns, temperature: float, sure: float | None, limit: Limit | None, evaluator: Evaluator
) -> list[metrics.Measured]:
    config = finals.candidate.config

    def measured(path: Path) -> metrics.Measured:
        if limit is None or limit.strangest is None:
            return metrics.measure(*evaluator.logits(config, path, "test"), temperature, sure)
        features, logits, labels = evaluator.features(config, path, "test")
        familiar = find_familiar(config, path, TRAINED_ON, evaluator, limit.usual)
        return metrics.measure(logits, labels, temperature, sure, familiar(features, logits) > limit.strangest)

    return [measured(path) for path in finals.weights]


def _spread(values: list[float]) -> float | None:
    """Return the sample standard deviation; None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def conclude(study: OpenStudy, won: Standing, finals: FinalRuns, evaluator: Evaluator) -> Winner:
    """Return the winner with everything that is known before the test set is used.

    Raises StudyError if all of its final runs diverged.
    """
    if not finals.complete:
        raise StudyError(
            f"{won.candidate.name} diverged with every seed on train + validation: choose another one with --trial N"
        )
    config, run = won.candidate.config, finals.complete[0]
    finalists = [weights(study.folder / FINALISTS, one) for one in won.complete]
    calibration = calibrate(config, finalists, evaluator)
    return Winner(
        name=won.candidate.name,
        trial=won.candidate.trial,
        config=config.to_dict(),
        pictures=study.data_identity,
        study_id=ownership.study_id(study.study),
        trials=count_trials(read_trials(study.study)),
        seed=run.seed or 0,
        seed_index=run.params["seed"],
        environment=run.environment,
        epochs=config.training.epochs,
        trained_on=TRAINED_ON,
        weights=finals.weights[0].relative_to(study.folder).as_posix(),
        temperature=calibration.temperature,
        calibration=calibration.text,
        sure=calibration.sure,
        sure_text=calibration.sure_text,
        strangers=find_strangers(config, finalists, evaluator),
        networks=" ".join(one.run or "" for one in finals.runs),
        # The accuracy of a shorter run cannot be compared with the mean over seeds.
        validation=({"recorded": won.candidate.recorded} if won.candidate.complete else {})
        | {"finalists_mean": won.mean, "finalists_sd": won.spread},
        results=None,
    )


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One of two networks that are compared on the test set."""

    name: str
    top1: float
    """Top-1 on the test set, 0 to 1."""
    top1_interval: list[float]
    """95 % Wilson interval of `top1`."""
    parameters: int
    flops: int
    """FLOPs per picture, two per multiply-add."""
    seconds: float | None
    """Seconds that training took: of the exported network, or of the features and the head; None if unknown."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The winner beside a logistic regression on the features of a pretrained network."""

    weights: str
    """Name of the pretrained weights."""
    pictures: int
    """Number of test pictures."""
    penalty: float
    """The head's penalty, which was best on the validation pictures."""
    validation: float
    """Top-1 on the validation pictures, 0 to 1, of the head that was fitted without them."""
    winner: Compared
    pretrained: Compared


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The winning network, which is exported; stored as `retrained.json` in the study's folder."""

    name: str
    trial: int
    """Number of the trial that has the winner's configuration."""
    config: dict[str, Any]
    """Configuration of the winner, as `Config.to_dict` returns it."""
    pictures: str
    """Text that identifies the study's pictures and their split."""
    study_id: str | None = None
    """Random id of the study; None in earlier versions."""
    trials: int
    """Number of counted trials that the study had when the winner was retrained."""
    seed: int
    seed_index: int
    """Index of the exported final run, from 0; above 0 if the first ones diverged."""
    environment: dict[str, str]
    """Facts of the machine that trained the winner, as `tuning.environment` returns them."""
    epochs: int
    """Number of epochs that the winner was trained for."""
    trained_on: list[PartName]
    weights: str
    """Path of the winner's checkpoint, relative to the study's folder."""
    temperature: float | None
    """Temperature, the divisor of the logits; None before retraining."""
    calibration: str | None
    """How the temperature was found, as `metrics.Calibration.text`; None before retraining."""
    sure: float | None = None
    """Lowest probability of an answer that is called sure, 0 to 1; None if none is."""
    sure_text: str | None = None
    """What a sure answer is, as `metrics.Calibration.sure_text`; None before retraining and in earlier versions."""
    strangers: Limit | None = None
    """Which pictures are called strangers; None before retraining and in earlier versions."""
    networks: str
    """Key of the final runs in the log of test-set evaluations; empty before retraining."""
    validation: dict[str, float | None]
    """Validation top-1: `finalists_mean` and `finalists_sd` over its finalist runs; `recorded` in the study, which is
    missing after retraining if the study trained it for fewer epochs."""
    results: dict[str, Any] | None
    """Result of `evaluate_on_test`, and `evaluations`, how often the test set has been used; None if untested."""
    pretrained: Comparison | None = None
    """Comparison with a pretrained network; None if there was none."""

    @property
    def test_top1(self) -> float | None:
        """Top-1 on the test set, 0 to 1, of the exported network; None if untested."""
        return self.results["top1"] if self.results else None

    def save(self, folder: Path) -> None:
        """Write retrained.json. Raises StudyError."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        replace_file(folder / "retrained.json", lambda path: path.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, folder: Path) -> Winner | None:
        """Return the winner in retrained.json; None without that file. Raises StudyError if it cannot be read."""
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
                f"cannot read {printable(path)} ({why(error)}): remove it and run python study.py retrain again; "
                "finished runs are kept"
            ) from error


def best_so_far(study: OpenStudy) -> Winner:
    """Return the first of `candidates`, untested, for an export before `retrain`. Raises StudyError without one."""
    (best,), trials = candidates(study.study, 1), read_trials(study.study)
    trial = trials[best.trial]
    return Winner(
        name=best.name,
        trial=best.trial,
        config=best.config.to_dict(),
        pictures=study.data_identity,
        study_id=ownership.study_id(study.study),
        trials=count_trials(trials),
        seed=trial.seed or 0,
        seed_index=0,
        environment=trial.environment,
        epochs=max(trial.curve, key=lambda epoch: trial.curve[epoch]) + 1,
        trained_on=["train"],
        weights=weights(Path(), trial).as_posix(),
        temperature=None,
        calibration=None,
        networks="",
        validation={"recorded": best.recorded},
        results=None,
    )


def exported_run(study: OpenStudy, winner: Winner) -> Trial | None:
    """Return the run that trained the winner's weights; None if the database does not have it."""
    path = Path(winner.weights)
    runs = load_sibling(study.study, FINAL_RUNS) if path.is_relative_to(FINAL_RUNS) else study.study
    trials = [] if runs is None else read_trials(runs)
    return next((trial for trial in trials if trial_directory(Path(), trial.number).name == path.parent.name), None)


def compare_curves(trial: Trial, again: Trial) -> tuple[float | None, int | None]:
    """Return the replay's value minus the recorded one, and the first epoch, from 0, whose validation top-1 differs.

    The difference is None if the replay diverged in its first epoch; the epoch is None if the curves are equal.
    """
    then, now = trial.curve, again.curve
    apart = [epoch for epoch in then if now.get(epoch) != then[epoch]]
    replayed, recorded = again.result, trial.result
    difference = None if replayed is None or recorded is None else replayed.top1 - recorded.top1
    return difference, apart[0] if apart else None
