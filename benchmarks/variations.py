"""What other parameters, or a longer training, gain for the best single guess.

    python benchmarks/variations.py field-guide ~/pictures/cifar10 --pictures 6000 --training 1275 --times 1 2 4
    python benchmarks/variations.py field-guide --pictures 6000 --changes adamw_lr=0.008 optimizer=muon,muon_lr=0.03

Networks are trained with several seeds on the training and validation pictures, to the last epoch, and tested on the
test pictures: this is how a `retrain` ends. Nothing is chosen here, so that the test pictures can be many.
"""

import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from optuna.trial import FixedTrial

from benchmarks.measuring import CPU, QUICK, faster_precision, some, trained
from data.batches import EvaluationBatches
from data.cache import CacheHandle, open_part
from data.prepare import default_cache, find_pictures
from model.training import Precision, evaluate
from search_space import Config, Profile, guess, portfolio, suggest
from tests.stress.script import header, machine, row, run
from tuning.devices import Slot
from tuning.workers import keep_memory_mapped

UNCHANGED = "none"
"""Name of the change that is none: the best single guess itself."""


@dataclass(frozen=True)
class Run:
    """One training."""

    handle: CacheHandle
    training: int
    """Number of pictures trained on."""
    config: Config
    seed: int
    precision: Precision


def parameters(change: str) -> dict[str, Any]:
    """Return the parameters in NAME=VALUE[,NAME=VALUE ...].

    Raises SystemExit if neither the guess nor its variations have them.
    """
    known, params = guess(QUICK), dict[str, Any]()
    for variation in portfolio(QUICK):
        known |= variation
    for pair in change.split(",") if change != UNCHANGED else ():
        name, _, text = pair.partition("=")
        if name not in known:
            raise SystemExit(f"--changes {change}: {name} is none of the parameters ({', '.join(known)})")
        try:
            params[name] = type(known[name])(text)
        except ValueError:
            raise SystemExit(f"--changes {change}: {text!r} is not a number") from None
    return params


def point(profile: Profile, change: dict[str, Any], classes: int) -> Config:
    """Return the best single guess with changed parameters."""
    trial: Any = FixedTrial(guess(profile) | change)
    return suggest(trial, profile, classes)


def train(job: Run) -> tuple[float, float]:
    """Train a network; return its test top-1, 0 to 1, that of the averaged weights, and the seconds it took."""
    torch.set_num_threads(1)
    keep_memory_mapped()
    started, size = perf_counter(), job.config.image_size
    learned = some(open_part(job.handle, size, "train", "validation"), job.training)
    test = open_part(job.handle, size, "test")
    # Two pictures after each epoch take no time.
    network = trained(job.config, learned, some(test, 2), job.seed, job.precision)
    return evaluate(network, EvaluationBatches(test, device=CPU)).top1, perf_counter() - started


def main(
    *data: str,
    pictures: int | None = None,
    training: int | None = None,
    changes: Sequence[str] = (UNCHANGED,),
    times: Sequence[int] = (1,),
    shown: int = QUICK.shown,
    flips: bool = True,
    seeds: int = 3,
    processes: int = 2,
) -> None:
    """Print a row for each data set, change and length.

    Parameters
    ----------
    data
        Folders of pictures, or field-guide.
    pictures
        Largest number of pictures in use, of each data set.
    training
        Number of pictures trained on, spread over the classes; by default all but the test pictures.
    changes
        Parameters of the guess to change, each as NAME=VALUE[,NAME=VALUE ...], or none.
    times
        Lengths of the training, as multiples of that of a trial.
    shown
        Pictures shown to a network in a training of length 1.
    seeds
        Number of trainings in each row.
    processes
        Number of networks trained at once, each by one thread.
    """
    wishes = {change: parameters(change) for change in changes}
    print(f"{machine()}\n")
    header("data", "trained, tested", "change", "epochs", "MFLOP", "test top-1 %, mean (sd)", "runs", "s per run")
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for name in data:
            found = find_pictures(name, limit=pictures)
            learned = len(found.split.train) + len(found.split.validation)
            learned = min(training or learned, learned)
            profile = replace(QUICK, shown=shown, flips=flips).fitted(found.catalog.median_short_side, learned)
            handle = found.decode(profile.sizes, cache_dir=default_cache())
            classes = len(handle.classes)
            precision = faster_precision(point(profile, {}, classes), [Slot()] * processes)
            for change, wish in wishes.items():
                for factor in times:
                    longer = replace(profile, epochs=factor * profile.horizon)
                    config = point(longer, wish, classes)
                    jobs = [Run(handle, learned, config, seed, precision) for seed in range(seeds)]
                    top1, seconds = zip(*pool.map(train, jobs), strict=True)
                    deviation = f" ({100 * statistics.stdev(top1):.1f})" if seeds > 1 else ""
                    row(
                        Path(name).name,
                        f"{learned:,}, {len(found.split.test):,}",
                        change,
                        longer.horizon,
                        f"{config.cost.flops / 1e6:.0f}",
                        f"{100 * statistics.fmean(top1):.1f}{deviation}",
                        seeds,
                        f"{statistics.fmean(seconds):.0f}",
                    )


if __name__ == "__main__":
    run(main)
