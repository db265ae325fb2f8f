"""The winner, trained on all that is not the test part, and measured once.

winner's finalist runs -> how long it trains, and the temperature of its probabilities (from validation logits)
    -> `final_runs` on train + validation, one per seed -> `look`: all of them on the test part, once -> `Winner`
The first seed's network is the one that is exported; which that is, is fixed before the test part is seen.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial

from data.batches import EvaluationBatches
from data.cache import CacheHandle, PartName, open_part
from model import checkpoint, metrics, plain_json
from model.files import printable, why
from model.network import MushroomCNN
from search_space import Config
from selection import test_set_uses as looks
from selection.finalists import Candidate, Standing, candidates
from selection.fixed_runs import FixedRun, weights
from selection.test_set_uses import Look
from tuning import StudyError
from tuning.folder import replace_file
from tuning.jobs import Assignment
from tuning.searched import Searched
from tuning.storage import Outcome, counts

FORMAT = 2
"""Of retrained.json."""
FINALISTS = "finalists"
FINAL_RUNS = "retrained"
"""The sibling studies, and their folders within the study's."""
FINAL_METRIC = "top-1 on validation pictures that it has trained on"
"""What the dashboard calls a final run's value: it shows that the network has learned, and nothing else."""


def final_runs(standing: Standing, seeds: list[int]) -> list[FixedRun]:
    """A candidate on train + validation, for its finalist runs' median best epoch; the lr schedule stays as it was."""
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


@dataclass(frozen=True, kw_only=True)
class Finals:
    """A candidate's final runs, in the seeds' order."""

    candidate: Candidate
    runs: tuple[FrozenTrial, ...]

    @property
    def trained(self) -> list[FrozenTrial]:
        """Those that did not diverge."""
        return [run for run in self.runs if run.user_attrs.get("outcome") == Outcome.COMPLETE]


def load_network(config: Config, path: Path) -> MushroomCNN:
    """A run's network with the weights of its chosen epoch, on the CPU. Raises StudyError where they are gone."""
    network = MushroomCNN(config.model)
    try:
        network.load_state_dict(checkpoint.load(path).model)
    except (checkpoint.CheckpointError, RuntimeError) as error:
        raise StudyError(
            f"the weights of a finished run must stay until it is exported, but {' '.join(str(error).split())}; "
            f"remove {path}; python study.py retrain trains anew what it needs"
        ) from error
    return network


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a study's networks are measured."""

    data: CacheHandle
    folder: Path
    """The study's."""
    device: str

    def logits(self, config: Config, path: Path, part: PartName) -> metrics.Logits:
        """What a run's network makes of a part of the pictures. Raises StudyError where a GPU has no memory for it."""
        try:
            network = load_network(config, path).to(self.device)
            batches = EvaluationBatches(open_part(self.data, config.image_size, part), device=torch.device(self.device))
            return metrics.logits(network, batches)
        except torch.OutOfMemoryError as error:
            raise StudyError(
                f"the winner is measured on {self.device}, but its memory has run out; end what else uses it, or add "
                "--device cpu to the same command: its runs are kept"
            ) from error


def fit_temperature(config: Config, paths: list[Path], bench: Bench) -> float:
    """One temperature for a configuration, from the validation pictures' logits of runs that did not train on them."""
    pairs = [bench.logits(config, path, "validation") for path in paths]
    outputs, labels = (torch.cat(column) for column in zip(*pairs, strict=True))
    return metrics.temperature(outputs, labels)


def look(finals: list[Finals], temperature: float, bench: Bench) -> dict[str, Any]:
    """The test part, seen by every final run: the winner's, which come first, and those it is compared with.

    Returns: what the exported network reaches, mean and standard deviation over the seeds, and the others' top-1.
    """
    won, *others = [one for one in finals if one.trained]
    seen = [_on_test(one, temperature if one is won else 1.0, bench) for one in (won, *others)]
    first, top1 = seen[0][0], [one.top1 for one in seen[0]]
    return first.to_dict() | {
        "diverged": len(won.runs) - len(won.trained),
        "seeds": [
            {"seed": run.user_attrs["seed"], "top1": one.top1, "top3": one.top3, "ece": one.ece}
            for run, one in zip(won.trained, seen[0], strict=True)
        ],
        "top1_mean": statistics.fmean(top1),
        "top1_sd": _spread(top1),
        "tested": datetime.now().astimezone().isoformat(timespec="seconds"),
        "baselines": [
            {
                "name": one.candidate.name,
                "top1": [each.top1 for each in measured],
                "top1_interval": measured[0].top1_interval,
                "top3": measured[0].top3,
                "top1_mean": statistics.fmean(each.top1 for each in measured),
                "top1_sd": _spread([each.top1 for each in measured]),
                "diverged": len(one.runs) - len(one.trained),
            }
            for one, measured in zip(others, seen[1:], strict=True)
        ],
    }


def look_counted(
    searched: Searched, winner: Winner, finals: list[Finals], bench: Bench, *, again: bool
) -> tuple[Winner, list[Look]]:
    """The winner with its test results, counted before they are taken; or the looks of others that forbid them.

    Recipes that the winner is compared with are seen in the same look: they cannot win by it. `again`: look although
    other networks have. Raises StudyError where looks cannot be counted.
    """
    results, key = searched.folder.parent, (bench.data.fingerprint, winner.networks)
    with looks.counting(results):
        earlier = looks.by_others(results, *key)
        if earlier and not again and not looks.have_looked(results, *key):
            return winner, earlier
        looks.count(results, *key, searched.name)
    seen = look(finals, winner.temperature or 1.0, bench)
    return replace(winner, results=seen | {"looks": len(earlier) + 1}), []


def _on_test(finals: Finals, temperature: float, bench: Bench) -> list[metrics.Measured]:
    config = finals.candidate.config
    paths = [weights(bench.folder / FINAL_RUNS, run) for run in finals.trained]
    return [metrics.measure(*bench.logits(config, path, "test"), temperature) for path in paths]


def _spread(values: list[float]) -> float | None:
    """Standard deviation; None of one value."""
    return statistics.stdev(values) if len(values) > 1 else None


def conclude(won: Standing, finals: Finals, bench: Bench, *, pictures: str, trials: int) -> Winner:
    """What is known of the winner before the test part is seen. Raises StudyError where all its final runs diverged."""
    if not finals.trained:
        raise StudyError(
            f"a winner is exported, but {won.candidate.name} diverged with every seed on train + validation; choose "
            "another one with --trial N"
        )
    config, run = won.candidate.config, finals.trained[0]
    finalists = [weights(bench.folder / FINALISTS, one) for one in won.complete]
    return Winner(
        name=won.candidate.name,
        trial=won.candidate.trial,
        config=config.to_dict(),
        pictures=pictures,
        trials=trials,
        seed=run.user_attrs["seed"],
        seed_index=run.params["seed"],
        environment=run.user_attrs["environment"],
        epochs=won.epochs,
        trained_on=["train", "validation"],
        weights=weights(bench.folder / FINAL_RUNS, run).relative_to(bench.folder).as_posix(),
        temperature=fit_temperature(config, finalists, bench),
        networks=" ".join(one.user_attrs["run"] for one in finals.runs),
        validation={
            "recorded": won.candidate.recorded,
            "finalists_mean": won.mean,
            "finalists_sd": won.spread,
        },
        results=None,
    )


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The network that is exported: `retrained.json` in the study's folder, once it has been retrained."""

    name: str
    trial: int
    """The trial of the study that has its configuration."""
    config: dict[str, Any]
    """As `Config.to_dict` gives it."""
    pictures: str
    """Which, split how: what the study was begun with."""
    trials: int
    """Counted trials that the study had."""
    seed: int
    seed_index: int
    """Which of the final runs it is, from 0: above 0 where the first ones diverged."""
    environment: dict[str, str]
    """Where it was trained."""
    epochs: int
    """That it was trained."""
    trained_on: list[PartName]
    weights: str
    """Its checkpoint, relative to the study's folder."""
    temperature: float | None
    """Divides its logits; None: not fitted."""
    networks: str
    """Tells the final runs, of which it is the first, from any others."""
    validation: dict[str, float | None]
    """`recorded` in the study; `finalists_mean` and `finalists_sd` over its finalist runs."""
    results: dict[str, Any] | None
    """What `look` returns, and how many `looks` at the test part there have been; None before it was looked at."""

    def save(self, folder: Path) -> None:
        """Writes retrained.json, whole or not at all."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        replace_file(folder / "retrained.json", lambda path: path.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, folder: Path) -> Winner | None:
        """What was saved; None where nothing was. Raises StudyError for a file that is not whole."""
        path = folder / "retrained.json"
        try:
            values = plain_json.read(path)
            if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
                raise ValueError("another format")
            winner = plain_json.fill(cls, values)
            Config.from_dict(winner.config)
            if not (folder / winner.weights).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"weights outside of the study, {plain_json.short(winner.weights)}")
            return winner
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StudyError(
                f"retrained.json is what `retrain` has written, but {printable(path)} is not ({why(error)}); remove it "
                "and retrain again: its runs are kept"
            ) from error


def best_so_far(study: optuna.Study, pictures: str) -> Winner:
    """A study's best trial as it is, for an export before `retrain`. Raises StudyError where it has none."""
    best, trials = candidates(study, 1)[0], study.get_trials(deepcopy=False)
    trial = trials[best.trial]
    return Winner(
        name=best.name,
        trial=best.trial,
        config=best.config.to_dict(),
        pictures=pictures,
        trials=sum(map(counts, trials)),
        seed=trial.user_attrs["seed"],
        seed_index=0,
        environment=trial.user_attrs["environment"],
        epochs=trial.user_attrs["best_epoch"] + 1,
        trained_on=["train"],
        weights=weights(Path(), trial).as_posix(),
        temperature=None,
        networks="",
        validation={"recorded": best.recorded},
        results=None,
    )


def same_curve(trial: FrozenTrial, again: FrozenTrial) -> tuple[float | None, int | None]:
    """Replayed value minus the recorded one, and the first epoch (from 0) whose validation top-1 differs, or None.

    There is no replayed value where the replay diverged in its first epoch.
    """
    then, now = trial.intermediate_values, again.intermediate_values
    apart = [epoch for epoch in sorted(then) if now.get(epoch) != then[epoch]]
    replayed = again.user_attrs.get("best_top1")
    difference = None if replayed is None else replayed - trial.user_attrs["best_top1"]
    return difference, apart[0] if apart else None
