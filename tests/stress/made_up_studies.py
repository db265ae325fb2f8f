"""Made-up studies of any size: what a coordinator and `retrain` leave, without any training.

The trials are points of the real search space. Their learning curves depend on the parameters, and the lowest quarter
is pruned.
"""

import copy
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
from model.training import EpochMetrics
from search_space import PROFILES, Config, baselines, suggest
from selection.retraining import Compared, Comparison, best_so_far
from tuning.database import IDENTITY
from tuning.folder import sqlite_url, trial_directory
from tuning.scheduling import kept_share, rungs
from tuning.session import OpenStudy
from tuning.settings import Settings
from tuning.space import describe_space
from tuning.trials import (
    METRIC,
    Outcome,
    read_trials,
    state_of,
    top,
    write_attempt,
    write_environment,
    write_history,
    write_result,
    write_work,
)

CLASSES = ("Agaricus", "Amanita", "Boletus", "Cortinarius", "Entoloma", "Hygrocybe", "Lactarius", "Russula", "Suillus")
PICTURES = 210
"""Number of validation pictures."""
PROFILE = replace(PROFILES["quick"], epochs=10)
WORKERS = 2


def random_trial(
    rng: np.random.Generator, forced: dict[str, Any] | None = None, baseline: str | None = None
) -> optuna.Trial:
    """Return a trial of an in-memory study of its own, with `forced` parameters and otherwise random ones."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=RandomSampler(int(rng.integers(2**31))))
    study.enqueue_trial(forced or {}, user_attrs={"baseline": baseline} if baseline else None)
    return study.ask()


def made_up_trials(count: int, *, classes: int = len(CLASSES), seed: int = 0) -> list[FrozenTrial]:
    """Return `count` finished trials as a coordinator leaves them: the baselines, then points that get better."""
    rng = np.random.default_rng([seed, count])
    free = [datetime(2026, 3, 14, 9, 0)] * WORKERS
    trials: list[FrozenTrial] = []
    at_epoch: list[list[float]] = [[] for _ in range(PROFILE.horizon)]
    recipes = list(baselines(PROFILE).items())
    best: list[tuple[float, dict[str, Any]]] = []
    for number in range(count):
        baseline, forced = recipes[number] if number < len(recipes) else (None, _inherited(best, rng))
        trial = random_trial(rng, forced, baseline)
        config = suggest(trial, PROFILE, classes)
        cost, key, curve = config.cost, config.digest, list[float]()
        outcome, reason = Outcome.COMPLETE, "trained to its last epoch"
        excess = (cost.flops - (PROFILE.max_flops or math.inf)) / (PROFILE.max_flops or 1.0)
        trial.set_constraint("flops", excess)
        if excess > 0:
            outcome, reason = Outcome.INFEASIBLE, f"flops {excess:.0%} over budget"
        elif number and number % 23 == 0:
            earlier = int(rng.integers(number))
            outcome, reason, key = Outcome.DUPLICATE, f"duplicate of trial {earlier}", trials[earlier].user_attrs["key"]
        elif number % 41 == 40:
            curve, outcome = [1 / classes], Outcome.DIVERGED
            reason = f"the loss was nan in epoch 2, step {number % 30}, at lr {config.training.lr:.3g}"
            trial.set_constraint("diverged", 1.0)
        else:
            for epoch, value in enumerate(_curve(config, classes, rng)):
                curve.append(value)
                others = at_epoch[epoch]
                prunable = epoch >= 3 and baseline is None and len(others) >= 5
                if prunable and max(curve) < statistics.quantiles(others, n=4)[0]:
                    outcome, reason = Outcome.PRUNED, f"pruned after epoch {epoch + 1}"
                    break
            else:
                for epoch, value in enumerate(curve):
                    at_epoch[epoch].append(value)
        slot = min(range(WORKERS), key=lambda slot: free[slot])
        start, seconds = free[slot], cost.flops * 1063 * 3.3 / 4e10
        write_work(trial, config, cost, seed=number, key=key)
        if curve:
            free[slot] = start + timedelta(seconds=len(curve) * seconds + 0.3)
            write_attempt(trial, 1, slot)
            write_environment(trial, {"device": "cpu: AMD EPYC (AVX2)", "threads": "1", "torch": "2.15.0"})
            for epoch, value in enumerate(curve):
                trial.report(value, epoch)
        confusion = _confusion(max(curve, default=0.0), classes, rng)
        history = [made_up_metrics(epoch, value, confusion, seconds) for epoch, value in enumerate(curve)]
        write_result(trial, outcome, reason, max(history, key=lambda one: one.top1, default=None), history)
        if outcome is Outcome.COMPLETE:
            best = sorted([*best, (max(curve), trial.params)], key=lambda pair: -pair[0])[:20]
        trial.study.tell(trial, max(curve) if outcome is Outcome.COMPLETE else None, state_of(outcome))
        (frozen,) = trial.study.trials
        frozen.number = frozen._trial_id = number  # pyright: ignore[reportPrivateUsage]
        frozen.datetime_start, frozen.datetime_complete = start, free[slot] if curve else start
        if curve:
            frozen.user_attrs["spans"] = [[start.timestamp(), free[slot].timestamp()]]
        trials.append(frozen)
    return trials


def made_up_metrics(epoch: int, top1: float, confusion: Sequence[Sequence[int]], seconds: float) -> EpochMetrics:
    """Return an epoch's metrics with this accuracy and confusion matrix; losses fall as they usually do."""
    return EpochMetrics(
        epoch=epoch,
        train_loss=2.2 * math.exp(-epoch / 5) + 0.1,
        train_top1=min(1.0, top1 + 0.02 * epoch),
        validation_loss=2.0 * math.exp(-epoch / 4) + 0.6 + 0.015 * epoch,
        top1=top1,
        top3=min(1.0, top1 + 0.2),
        confusion=tuple(map(tuple, confusion)),
        lr=0.01 * (1 - epoch / PROFILE.horizon),
        seconds=seconds,
        peak_memory=900_000_000,
    )


def _inherited(best: list[tuple[float, dict[str, Any]]], rng: np.random.Generator) -> dict[str, Any]:
    """Return most of a good trial's parameters two times out of three, as a sampler that has learned would."""
    if len(best) < 5 or rng.random() < 1 / 3:
        return {}
    _, parent = best[int(rng.integers(len(best)))]
    return {name: value for name, value in parent.items() if rng.random() < 0.75}


def _curve(config: Config, classes: int, rng: np.random.Generator) -> list[float]:
    """Return validation top-1 by epoch. Some knobs matter, most do not, and 210 pictures are noisy."""
    training, model = config.training, config.model
    ideal = {"sgd": 0.03, "adam": 1e-3, "adamw": 4e-3, "muon": 0.03}[training.optimizer]
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
    """Return a confusion matrix with this share of correct pictures; mistakes fall on neighbouring classes."""
    sizes = np.maximum(1, rng.multinomial(PICTURES, rng.dirichlet(np.full(classes, 8.0))))
    rows = np.zeros((classes, classes), dtype=int)
    for truth, size in enumerate(sizes):
        weights = np.exp(-np.abs(np.arange(classes) - truth) / 1.5)
        weights[truth] = 0.0
        weights *= (1 - share) / max(weights.sum(), 1e-9)
        weights[truth] = share
        rows[truth] = rng.multinomial(size, weights / weights.sum())
    return rows.tolist()


def promoted(trials: Sequence[FrozenTrial], *, paused: bool = False) -> list[FrozenTrial]:
    """Return the trials as promotion leaves them: after each rung the best share continues, the others were pruned.

    Only trials that were trained to the end continue: the values of the others end where the median pruned them.
    With `paused`, they are still waiting, as when time is up, and those that passed the last rung are left out.
    """
    made = {trial.number: copy.deepcopy(trial) for trial in trials}
    trained = (Outcome.COMPLETE, Outcome.PRUNED)
    going = [trial for trial in made.values() if trial.user_attrs["outcome"] in trained]
    last = max(trial.datetime_complete for trial in made.values() if trial.datetime_complete is not None)
    for rung in rungs(PROFILE.horizon):
        going.sort(
            key=lambda trial, rung=rung: (
                trial.state is not TrialState.COMPLETE,
                -max(trial.intermediate_values[epoch] for epoch in range(rung)),
            )
        )
        kept = int(kept_share(PROFILE.horizon) * len(going))
        for trial in going[kept:]:
            values = {epoch: trial.intermediate_values[epoch] for epoch in range(rung)}
            (begin, end), epochs = trial.user_attrs["spans"][0], len(trial.intermediate_values)
            trial.user_attrs["spans"] = [[begin, begin + (end - begin) * rung / epochs]]
            trial.user_attrs["best_epoch"] = max(values, key=values.__getitem__)
            trial.user_attrs |= {"best_top1": max(values.values()), "outcome": Outcome.PRUNED}
            trial.user_attrs |= {"reason": f"pruned after epoch {rung}: paused there and not resumed"}
            trial.intermediate_values, trial.values = values, None
            trial.state, trial.datetime_complete = TrialState.PRUNED, last
            if paused:
                trial.state, trial.datetime_complete = TrialState.RUNNING, None
                trial.user_attrs["paused"] = True
                for name in ("outcome", "reason", "best_top1", "best_top3", "best_epoch", "seconds"):
                    del trial.user_attrs[name]
        going = going[:kept]
    return [trial for trial in made.values() if not (paused and trial.state is TrialState.COMPLETE)]


def made_up_study(
    trials: Sequence[FrozenTrial],
    *,
    name: str = "made-up",
    scheduler: str = "median",
    storage: optuna.storages.BaseStorage | None = None,
) -> optuna.Study:
    """Return a study of these trials with the identity of a real one, in memory if no storage is given."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize", study_name=name, storage=storage or optuna.storages.InMemoryStorage()
    )
    facts = {
        "data": "1500 pictures, fingerprint f384d49f0857afe85ec61586558046e7, split 3675369b4fcce00e",
        "profile": "quick",
        "epochs": PROFILE.horizon,
        "views": PROFILE.views,
        "batch size": PROFILE.batch_size,
        "flips": PROFILE.flips,
        "max params": None,
        "max flops": PROFILE.max_flops,
        "sampler": "tpe",
        "scheduler": scheduler,
        "seed": 0,
    }
    for key, value in (facts | describe_space(lambda point: suggest(point, PROFILE, len(CLASSES)))).items():
        study.set_user_attr(IDENTITY + key, value)
    study._storage.set_study_system_attr(study._study_id, "study:metric_names", [METRIC])  # pyright: ignore[reportPrivateUsage]
    study.add_trials(trials)
    return study


def careless_storage(url: str) -> optuna.storages.RDBStorage:
    """Return an SQLite storage that does not wait for the disk after each of the many thousand commits."""
    storage = optuna.storages.RDBStorage(url)

    def hurry(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=MEMORY")

    sqlalchemy.event.listen(storage.engine, "connect", hurry)
    storage.engine.dispose()
    return storage


def write_files(study: optuna.Study, folder: Path, *, classes: Sequence[str] = CLASSES, histories: int = 50) -> None:
    """Write what lies beside a study's database: histories of the best trained trials, and the data report."""
    rng = np.random.default_rng(0)
    ranked = sorted(read_trials(study), key=lambda trial: -(trial.frozen.value or 0.0))
    for trial in [trial for trial in ranked if trial.curve][:histories]:
        trial_directory(folder, trial.number).mkdir(parents=True, exist_ok=True)
        confusions = {epoch: _confusion(top1, len(classes), rng) for epoch, top1 in trial.curve.items()}
        history = [made_up_metrics(epoch, top1, confusions[epoch], 2.0) for epoch, top1 in trial.curve.items()]
        write_history(folder, trial.number, history)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,class,part,verdict,reason,width,height,mode,bytes,group,split"]
    for name in classes:
        quoted = '"' + name.replace('"', '""') + '"'
        for index in range(166):
            split = "train" if index < 118 else "validation" if index < 142 else "test"
            lines.append(f"{quoted},{quoted},all,{Verdict.KEPT},,256,256,RGB,20000,g{index},{split}")
        lines.append(f"{quoted},{quoted},all,{Verdict.UNREADABLE},truncated,0,0,,1000,,")
    (folder / "data_report.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_finals(study: optuna.Study, folder: Path, *, classes: Sequence[str] = CLASSES, evaluations: int = 1) -> None:
    """Write what `retrain` leaves: finalists.csv and retrained.json. The study's second-best trial has won."""
    rng = np.random.default_rng(1)
    first, won, third = top(read_trials(study), 3)
    lines = ["name,trial,seed,outcome,top1,best_epoch"]
    for place, trial in enumerate((won, first, third)):
        for seed in range(3):
            top1 = (won.value or 0.0) - 0.02 * (1 + place) + float(rng.normal(0, 0.005))
            lines.append(f"trial {trial.number},{trial.number},{seed},complete,{top1},8")
    (folder / "finalists.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    confusion = _confusion(won.value or 0.0, len(classes), rng)
    pictures = sum(map(sum, confusion))
    top1 = sum(row[label] for label, row in enumerate(confusion)) / pictures
    results = {
        "evaluations": evaluations,
        "pictures": pictures,
        "top1": top1,
        "top1_interval": [top1 - 0.06, top1 + 0.06],
        "top3": min(1.0, top1 + 0.2),
        "ece": 0.031,
        "ece_chance": 0.024,
        "per_class": [row[label] / max(1, sum(row)) for label, row in enumerate(confusion)],
        "confusion": confusion,
        "seeds": [{"seed": seed, "top1": top1 - 0.01 * seed, "top3": 0.9, "ece": 0.03} for seed in range(3)],
        "top1_mean": top1 - 0.01,
        "top1_sd": 0.01,
        "diverged": 0,
        "baselines": [
            {"name": "hand-tuned recipe", "top1": [0.41, 0.4], "top1_mean": 0.405, "top1_sd": 0.007, "diverged": 1}
        ],
    }
    settings = Settings(data="made-up pictures", test_data=None, pictures=None, storage=None)
    replace(
        best_so_far(OpenStudy(study=study, folder=folder, url="", settings=settings)),
        name=f"trial {won.number}",
        trial=won.number,
        config=won.config.to_dict() if won.config else {},
        trained_on=["train", "validation"],
        temperature=1.25,
        calibration="temperature 1.25, fitted on 216 validation pictures",
        results=results,
        pretrained=Comparison(
            weights="IMAGENET1K_V1",
            pictures=pictures,
            penalty=0.1,
            validation=0.5,
            winner=_compared(f"trial {won.number}", top1, 175_000),
            pretrained=_compared("mobilenet_v3_small", top1 / 2, 1_520_000),
        ),
    ).save(folder)


def _compared(name: str, top1: float, parameters: int) -> Compared:
    interval = [top1 - 0.06, top1 + 0.06]
    return Compared(name=name, top1=top1, top1_interval=interval, parameters=parameters, flops=10**8, seconds=12.3)


def fill(folder: Path, count: int) -> None:
    """Write a study of `count` trials into its folder, database and all."""
    study = made_up_study(made_up_trials(count), storage=careless_storage(sqlite_url(folder)))
    write_files(study, folder)
    write_finals(study, folder)
