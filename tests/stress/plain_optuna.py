"""The usual way to search in several processes: each calls `study.optimize` on one SQLite file, with a heartbeat.

    python tests/stress/plain_optuna.py PICTURES --cache DIR --storage sqlite:///plain.db --trials 40 --epochs 4

It follows Optuna's documentation: `RetryHeartbeatStaleTrialCallback` fails trials whose process has gone silent and
enqueues them again, `MaxTrialsCallback` ends the study. Search space, pictures, network and training are this
project's. `chaos.py` starts two of these and kills them.
"""

import sys
import warnings
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import optuna
import torch
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState

from data.batches import EvaluationBatches, TrainingBatches
from data.cache import CacheHandle, open_part
from data.prepare import find_pictures
from model.network import MushroomCNN
from model.training import Diverged, fit
from search_space import PROFILES, Profile, baselines, suggest
from tests.stress.script import run

HEARTBEAT, GRACE = 5, 15
"""Seconds. The documentation's 60 and 120 are longer than a trial takes here."""


def main(folder: Path, *, cache: Path, storage: str, trials: int = 40, epochs: int = 4) -> None:
    """Search until the study has its trials.

    Parameters
    ----------
    folder
        A folder with one folder of pictures per class.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    pictures = find_pictures(str(folder), cache_dir=cache)
    profile = replace(PROFILES["quick"].within(pictures.catalog.median_short_side), epochs=epochs)
    data = pictures.decode(profile.sizes, cache_dir=cache)
    study = optuna.create_study(
        storage=RDBStorage(
            storage,
            engine_kwargs={"connect_args": {"timeout": 60}},
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        ),
        study_name="plain",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2, n_min_trials=3),
        load_if_exists=True,
    )
    for parameters in baselines(profile).values():
        study.enqueue_trial(parameters, skip_if_exists=True)
    study.optimize(
        lambda trial: objective(trial, profile, data),
        n_trials=trials,
        callbacks=[MaxTrialsCallback(trials, states=(TrialState.COMPLETE, TrialState.PRUNED))],
    )


def objective(trial: optuna.Trial, profile: Profile, data: CacheHandle) -> float:
    """Return the best validation top-1 of a configuration. Raises TrialPruned for a pruned or diverged one."""
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
    run(main)
