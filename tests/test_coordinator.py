"""The coordinator, in this process, over workers that are threads and train for real."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

import pytest
from optuna.pruners import MedianPruner
from studies import Tiny, essence, outcomes, prepare

from model.training import EpochMetrics
from tuning.coordinator import TrialAdvanced
from tuning.storage import Outcome


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


def test_interrupted_after_every_single_epoch_it_equals_an_undisturbed_study(tiny: Tiny, tmp_path: Path) -> None:
    """Each run leaves with its first new epoch, before the decision on it and in mid-epoch by turns.

    The next has new objects for everything, as a new process has. Once a trial whose decision was still out was asked
    about again with the first of its repeated epochs, and lost the later ones from its record when it was pruned.
    """
    pruner = MedianPruner(n_startup_trials=1, n_warmup_steps=1, n_min_trials=1)
    whole, broken = tiny.at(tmp_path / "whole"), tiny.at(tmp_path / "broken")
    ended = outcomes(list(whole.coordinator(4, study=whole.open(pruner=pruner)).run()))
    assert {outcome for _, outcome in ended} == {Outcome.COMPLETE, Outcome.PRUNED}

    interruptions, ending = 0, None
    while ending is None:
        coordinator = broken.coordinator(4, study=broken.open(pruner=pruner))
        known = sum(count for _, count in broken.epochs().values())
        with contextlib.closing(coordinator.run()) as run:
            for happening in run:
                new = sum(count for _, count in broken.epochs().values()) > known
                if new and isinstance(happening, TrialAdvanced) and isinstance(happening.progress, EpochMetrics):
                    interruptions += 1
                    list(itertools.islice(run, 0 if happening.progress.epoch == 1 else 2))
                    break
        ending = coordinator.ending
    assert interruptions >= 6
    assert essence(broken.trials()) == essence(whole.trials())
