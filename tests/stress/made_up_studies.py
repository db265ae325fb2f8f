"""Made-up studies, as large as one likes: what a coordinator and `retrain` leave, without any training.

Points of the real search space with learning curves that depend on them, and a quartile that prunes.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy.event
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from data.file_checks import Verdict
from search_space import PROFILES, Config, known_good, suggest
from selection.retraining import best_so_far
from tuning.folder import sqlite_url
from tuning.space import describe_space
from tuning.storage import IDENTITY, METRIC, Outcome

CLASSES = ("Agaricus", "Amanita", "Boletus", "Cortinarius", "Entoloma", "Hygrocybe", "Lactarius", "Russula", "Suillus")
PICTURES = 210
"""In the validation part of a made-up study."""
PROFILE = PROFILES["quick"]
WORKERS = 2


def random_trial(rng: np.random.Generator, forced: dict[str, Any] | None = None) -> optuna.Trial:
    """Return a trial, of a study of its own in memory, whose parameters are `forced` or else drawn at random."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=RandomSampler(int(rng.integers(2**31))))
    if forced:
        study.enqueue_trial(forced)
    return study.ask()


def made_up_trials(count: int, *, classes: int = len(CLASSES), seed: int = 0) -> list[FrozenTrial]:
    """`count` finished trials as a coordinator leaves them: known-good ones first, then points that get better."""
    rng = np.random.default_rng([seed, count])
    begun = datetime(2026, 3, 14, 9, 0)
    free = [begun] * WORKERS
    trials: list[FrozenTrial] = []
    at_step: list[list[float]] = [[] for _ in range(PROFILE.epochs)]
    recipes = list(known_good(PROFILE).items())
    best: list[tuple[float, dict[str, Any]]] = []
    for number in range(count):
        name, forced = recipes[number] if number < len(recipes) else (None, _inherited(best, rng))
        point = random_trial(rng, forced)
        config = suggest(point, PROFILE, classes)
        slot = min(range(WORKERS), key=lambda slot: free[slot])
        price = config.cost
        attributes: dict[str, Any] = {
            "config": config.to_dict(),
            "key": config.digest,
            "seed": number,
            "parameters": price.parameters,
            "flops": price.flops,
        }
        if name:
            attributes["known_good"] = name
        values: dict[int, float] = {}
        state, end, reason = TrialState.COMPLETE, Outcome.COMPLETE, "trained to its last epoch"
        constraints = {"flops": (price.flops - (PROFILE.max_flops or math.inf)) / (PROFILE.max_flops or 1.0)}
        if constraints["flops"] > 0:
            state, end = TrialState.PRUNED, Outcome.INFEASIBLE
            reason = f"flops {constraints['flops']:.0%} over budget"
        elif number and number % 23 == 0:
            twin = int(rng.integers(number))
            state, end, reason = TrialState.FAIL, Outcome.DUPLICATE, f"duplicate of trial {twin}"
        elif number % 41 == 40:
            values = {0: 1 / classes}
            state, end = TrialState.PRUNED, Outcome.DIVERGED
            reason = f"the loss was nan in epoch 2, step {number % 30}, at lr {config.training.lr:.3g}"
            constraints["diverged"] = 1.0
        else:
            for epoch, value in enumerate(_curve(config, classes, rng)):
                values[epoch] = value
                peers = at_step[epoch]
                prunable = epoch >= 3 and name is None and len(peers) >= 5
                if prunable and max(values.values()) < statistics.quantiles(peers, n=4)[0]:
                    state, end, reason = TrialState.PRUNED, Outcome.PRUNED, f"pruned after epoch {epoch + 1}"
                    break
            else:
                for epoch, value in values.items():
                    at_step[epoch].append(value)
        length = len(values) * price.flops * 1063 * 3.3 / 4e10
        start = free[slot]
        if values:
            free[slot] = start + timedelta(seconds=length + 0.3)
            confusion = _confusion(max(values.values()), classes, rng)
            attributes |= {
                "attempts": 1,
                "slot": slot,
                "best_epoch": max(values, key=lambda epoch: values[epoch]),
                "best_top1": max(values.values()),
                "best_top3": min(1.0, max(values.values()) + 0.2),
                "seconds": round(length, 2),
                "peak_memory": 900_000_000,
                "environment": {"device": "cpu: AMD EPYC (AVX2)", "threads": "1", "torch": "2.15.0"},
            }
            if len(json.dumps(confusion)) <= 2045:
                attributes["confusion"] = confusion
            if state is TrialState.COMPLETE:
                best = sorted([*best, (max(values.values()), point.params)], key=lambda pair: -pair[0])[:20]
        attributes |= {"outcome": end, "reason": reason}
        trial = optuna.trial.create_trial(
            state=state,
            value=_told(state, values),
            params=point.params,
            distributions=point.distributions,
            user_attrs=attributes,
            intermediate_values=values,
            constraints=constraints,
        )
        trial.number = trial._trial_id = number  # pyright: ignore[reportPrivateUsage]
        trial.datetime_start, trial.datetime_complete = start, free[slot] if values else start
        trials.append(trial)
    return trials


def _told(state: TrialState, values: dict[int, float]) -> float | None:
    """A trial's value: of a pruned one Optuna takes its last epoch's."""
    if not values:
        return None
    return max(values.values()) if state is TrialState.COMPLETE else values[max(values)]


def _inherited(best: list[tuple[float, dict[str, Any]]], rng: np.random.Generator) -> dict[str, Any]:
    """Two times of three most of a good trial's parameters, as a sampler that has learned proposes them."""
    if len(best) < 5 or rng.random() < 1 / 3:
        return {}
    _, parent = best[int(rng.integers(len(best)))]
    return {name: value for name, value in parent.items() if rng.random() < 0.75}


def _curve(config: Config, classes: int, rng: np.random.Generator) -> list[float]:
    """Validation top-1 by epoch: some knobs matter, most do not, and 210 pictures are noisy."""
    training, model = config.training, config.model
    ideal = {"sgd": 0.03, "adam": 1e-3, "adamw": 4e-3}[training.optimizer]
    score = 0.72 - 0.1 * math.log10(training.lr / ideal) ** 2
    score += {"late": 0.0, "middle": 0.04, "early": 0.02, "every": -0.12}[model.stride_pattern]
    score += 0.0015 * (config.image_size - 48) + 0.25 * (model.width - 0.375) - 0.25 * max(0.0, model.dropout - 0.2)
    score += {"step": -0.06, "cosine": 0.0, "one-cycle": 0.02}[training.schedule]
    score -= 0.08 * config.augment.strength
    score = 1 / classes + (1 - 1 / classes) * min(0.95, max(0.0, score - 0.1))
    pace = rng.uniform(1.5, 4.0)
    shares: list[float] = []
    for epoch in range(training.epochs):
        share = 1 / classes + (score - 1 / classes) * (1 - math.exp(-(epoch + 1) / pace))
        shares.append(round(min(1.0, max(0.0, rng.normal(share, 0.02))) * PICTURES) / PICTURES)
    return shares


def _confusion(share: float, classes: int, rng: np.random.Generator) -> list[list[int]]:
    """A matrix of so many pictures right, its mistakes between neighbours."""
    sizes = np.maximum(1, rng.multinomial(PICTURES, rng.dirichlet(np.full(classes, 8.0))))
    rows = np.zeros((classes, classes), dtype=int)
    for truth, size in enumerate(sizes):
        weights = np.exp(-np.abs(np.arange(classes) - truth) / 1.5)
        weights[truth] = 0.0
        weights *= (1 - share) / max(weights.sum(), 1e-9)
        weights[truth] = share
        rows[truth] = rng.multinomial(size, weights / weights.sum())
    return rows.tolist()


def made_up_study(
    trials: Sequence[FrozenTrial], *, name: str = "made-up", storage: optuna.storages.BaseStorage | None = None
) -> optuna.Study:
    """A study of these trials with the identity that one of this program has, in memory where no storage is given."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize", study_name=name, storage=storage or optuna.storages.InMemoryStorage()
    )
    facts = {
        "data": "1500 pictures, fingerprint f384d49f0857afe85ec61586558046e7, split 3675369b4fcce00e",
        "profile": "quick",
        "epochs": PROFILE.epochs,
        "views": PROFILE.views,
        "batch size": PROFILE.batch_size,
        "max params": None,
        "max flops": PROFILE.max_flops,
        "sampler": "tpe",
        "pruner": "median",
        "seed": 0,
    }
    for key, value in (facts | describe_space(lambda point: suggest(point, PROFILE, len(CLASSES)))).items():
        study.set_user_attr(IDENTITY + key, value)
    study._storage.set_study_system_attr(study._study_id, "study:metric_names", [METRIC])  # pyright: ignore[reportPrivateUsage]
    study.add_trials(trials)
    return study


def careless_storage(url: str) -> optuna.storages.RDBStorage:
    """SQLite that does not wait for the disk after each of a made-up study's many thousand commits."""
    storage = optuna.storages.RDBStorage(url)

    def hurry(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=MEMORY")

    sqlalchemy.event.listen(storage.engine, "connect", hurry)
    storage.engine.dispose()
    return storage


def write_files(study: optuna.Study, folder: Path, *, classes: Sequence[str] = CLASSES, histories: int = 50) -> None:
    """What lies beside a study's database: histories of the first trained trials, and the data report."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    ranked = sorted(study.get_trials(deepcopy=False), key=lambda trial: -(trial.value or 0.0))
    for trial in [trial for trial in ranked if trial.intermediate_values][:histories]:
        place = folder / "trials" / f"{trial.number:04d}"
        place.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "epoch": epoch,
                "train_loss": 2.2 * math.exp(-epoch / 5) + 0.1,
                "train_top1": min(1.0, value + 0.02 * epoch),
                "validation_loss": 2.0 * math.exp(-epoch / 4) + 0.6 + 0.015 * epoch,
                "top1": value,
                "top3": min(1.0, value + 0.2),
                "confusion": _confusion(value, len(classes), rng),
                "lr": 0.01 * (1 - epoch / PROFILE.epochs),
                "seconds": 2.0,
                "peak_memory": 900_000_000,
            }
            for epoch, value in sorted(trial.intermediate_values.items())
        ]
        (place / "history.json").write_text(json.dumps(rows), encoding="utf-8")
    lines = ["path,class,part,verdict,reason,width,height,mode,bytes,group,split"]
    for name in classes:
        quoted = '"' + name.replace('"', '""') + '"'
        for index in range(166):
            split = "train" if index < 118 else "validation" if index < 142 else "test"
            lines.append(f"{quoted},{quoted},all,{Verdict.KEPT},,256,256,RGB,20000,g{index},{split}")
        lines.append(f"{quoted},{quoted},all,{Verdict.UNREADABLE},truncated,0,0,,1000,,")
    (folder / "data_report.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_finals(study: optuna.Study, folder: Path, *, classes: Sequence[str] = CLASSES, looks: int = 1) -> None:
    """What `retrain` leaves: finalists.csv and retrained.json. The study's best trial comes out second."""
    rng = np.random.default_rng(1)
    best = sorted(study.get_trials(deepcopy=False), key=lambda trial: -(trial.value or 0.0))[:3]
    won = best[1]
    lines = ["name,trial,seed,outcome,top1,best_epoch"]
    for place, trial in enumerate((won, best[0], best[2])):
        for seed in range(3):
            top1 = (won.value or 0.0) - 0.02 * (1 + place) + float(rng.normal(0, 0.005))
            lines.append(f"trial {trial.number},{trial.number},{seed},complete,{top1},8")
    (folder / "finalists.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    confusion = _confusion(won.value or 0.0, len(classes), rng)
    pictures = sum(map(sum, confusion))
    top1 = sum(row[label] for label, row in enumerate(confusion)) / pictures
    results = {
        "looks": looks,
        "pictures": pictures,
        "top1": top1,
        "top1_interval": [top1 - 0.06, top1 + 0.06],
        "top3": min(1.0, top1 + 0.2),
        "ece": 0.031,
        "per_class": [row[label] / max(1, sum(row)) for label, row in enumerate(confusion)],
        "confusion": confusion,
        "seeds": [{"seed": seed, "top1": top1 - 0.01 * seed, "top3": 0.9, "ece": 0.03} for seed in range(3)],
        "top1_mean": top1 - 0.01,
        "top1_sd": 0.01,
        "diverged": 0,
        "baselines": [
            {"name": "improved by hand", "top1": [0.41, 0.4], "top1_mean": 0.405, "top1_sd": 0.007, "diverged": 1}
        ],
    }
    replace(
        best_so_far(study, "made-up pictures"),
        name=f"trial {won.number}",
        trial=won.number,
        config=won.user_attrs["config"],
        trained_on=["train", "validation"],
        results=results,
    ).save(folder)


def fill(folder: Path, count: int) -> None:
    """A study of `count` trials in its folder, database and all."""
    study = made_up_study(made_up_trials(count), storage=careless_storage(sqlite_url(folder)))
    write_files(study, folder)
    write_finals(study, folder)
