"""The plain way to search in several processes: each calls `study.optimize` on one SQLite file, with a heartbeat.

    python benchmarks/plain_optuna.py PICTURES --cache DIR --storage sqlite:///plain.db --trials 40 --epochs 4

As Optuna's documentation has it: trials whose process has gone silent are failed and put back into the queue by
`RetryHeartbeatStaleTrialCallback`, and `MaxTrialsCallback` ends the study. Space, pictures, network and training are
this repository's. Written for `chaos.py`, which starts two of these and kills them.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import optuna
import torch
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState

from data import catalog, sources
from data.batches import EvaluationBatches, TrainingBatches
from data.cache import CacheHandle, build, open_part
from model.network import MushroomCNN
from model.training import Diverged, fit
from search_space import PROFILES, Profile, known_good, suggest

HEARTBEAT, GRACE = 5, 15
"""Seconds; the documentation's 60 and 120 are longer than a trial here takes."""


def main() -> None:
    """Searches until the study has its trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--storage", required=True)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=4)
    chosen = parser.parse_args()

    torch.set_num_threads(1)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    found = catalog.scan(
        sources.resolve(str(chosen.pictures), cache_dir=chosen.cache, pictures=None), cache_dir=chosen.cache
    )
    profile = replace(PROFILES["quick"].within(found.median_short_side), epochs=chosen.epochs)
    data = build(found, catalog.split(found), profile.sizes, cache_dir=chosen.cache)
    storage = RDBStorage(
        chosen.storage,
        engine_kwargs={"connect_args": {"timeout": 60}},
        heartbeat_interval=HEARTBEAT,
        grace_period=GRACE,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
    )
    study = optuna.create_study(
        storage=storage,
        study_name="plain",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2, n_min_trials=3),
        load_if_exists=True,
    )
    for parameters in known_good(profile).values():
        study.enqueue_trial(parameters, skip_if_exists=True)
    study.optimize(
        lambda trial: objective(trial, profile, data),
        n_trials=chosen.trials,
        callbacks=[MaxTrialsCallback(chosen.trials, states=(TrialState.COMPLETE, TrialState.PRUNED))],
    )


def objective(trial: optuna.Trial, profile: Profile, data: CacheHandle) -> float:
    """Best validation top-1 of one configuration; a pruned or diverged one is pruned."""
    config = suggest(trial, profile, len(data.classes))
    cpu = torch.device("cpu")
    train = TrainingBatches(
        open_part(data, config.image_size, "train"),
        batch_size=config.training.batch_size,
        views=config.views,
        augment=config.augment,
        oversample=config.training.class_balance == "oversampling",
        seed=trial.number,
        device=cpu,
    )
    validation = EvaluationBatches(open_part(data, config.image_size, "validation"), device=cpu)
    best = 0.0
    try:
        for metrics in fit(MushroomCNN(config.model), train, validation, config.training, seed=trial.number):
            best = max(best, metrics.top1)
            trial.report(metrics.top1, metrics.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
    except Diverged as error:
        raise optuna.TrialPruned from error
    return best


if __name__ == "__main__":
    main()
