"""Record a table: train many configurations of the quick profile's space to their end and keep every epoch's accuracy.

    python -m benchmarks.search.record field-guide
    python -m benchmarks.search.record cifar10 --data PATH --pictures 6000
    python -m benchmarks.search.record sign-digits --data PATH

A table takes hours. Each trained network is one line of `tables/NAME.jsonl`; the same command resumes where the last
one stopped, and a larger `--rows` or `--seeds` adds to what is there. Random row N is the same point on every data set,
except for what depends on the data: the image size, and what is counted in epochs.
"""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import CPU, faster_precision, training_batches
from benchmarks.search.tables import FOLDER, RANDOM
from data.batches import EvaluationBatches
from data.cache import CacheHandle, open_part
from data.prepare import default_cache, find_pictures
from model.files import replacing
from model.network import MushroomCNN
from model.training import Diverged, Precision, evaluate, fit
from search_space import PROFILES, Config, Profile, baselines, guess, portfolio, suggest
from tests.stress.script import run
from tuning.coordinator import Plan
from tuning.devices import Slot
from tuning.sampling import one_seed
from tuning.space import FeasibleSpace, SpacePoint
from tuning.workers import keep_memory_mapped

QUICK = PROFILES["quick"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One network to train."""

    data: str
    """Name of the table."""
    row: str
    """Name of the configuration."""
    seed: int
    params: dict[str, Any]
    config: Config
    precision: Precision
    handle: CacheHandle


class NamedPoint(SpacePoint):
    """A random point whose parameters do not depend on each other's number or order."""

    def __init__(self, number: int, forced: dict[str, Any] | None = None) -> None:
        super().__init__(np.random.default_rng(), forced)
        self._number = number

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self._rng = self._stream(name)
        return super().suggest_categorical(name, choices)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        self._rng = self._stream(name)
        return super().suggest_int(name, low, high, step=step, log=log)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        self._rng = self._stream(name)
        return super().suggest_float(name, low, high, step=step, log=log)

    def _stream(self, name: str) -> np.random.Generator:
        return np.random.default_rng(one_seed(self._number, zlib.crc32(name.encode())))


def points(profile: Profile, space: FeasibleSpace, rows: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and parameters of every row: baselines, variations of the guess, random points.

    Of `rows` random points the infeasible ones are left out.
    """
    yield from baselines(profile).items()
    for number, wish in enumerate(portfolio(profile)):
        if params := space.affordable(wish, profile):
            yield f"variation {number}", params
    for number in range(rows):
        point = NamedPoint(number)
        if space.feasible(space.suggest(point).cost):
            yield f"{RANDOM}{number}", point.params


def train(job: Job) -> dict[str, Any]:
    """Train one network to the end of its horizon and return its line of the table.

    `curve` holds the validation top-1 of the averaged weights after each epoch, `raw` that of the weights themselves.
    """
    torch.set_num_threads(1)
    keep_memory_mapped()
    size, started, curve, raw = job.config.image_size, perf_counter(), list[float](), list[float]()
    parts = {name: open_part(job.handle, size, name) for name in ("train", "validation", "test")}
    torch.manual_seed(job.seed)
    model = MushroomCNN(job.config.model)
    averaged = copy.deepcopy(model)
    validation = EvaluationBatches(parts["validation"], device=CPU)
    try:
        for metrics in fit(
            model,
            training_batches(job.config, parts["train"], seed=job.seed),
            validation,
            job.config.training,
            seed=job.seed,
            averaged=averaged,
            precision=job.precision,
        ):
            curve.append(round(metrics.top1, 4))
            raw.append(round(evaluate(model, validation).top1, 4))
        test = round(evaluate(averaged, EvaluationBatches(parts["test"], device=CPU)).top1, 4)
    except Diverged:
        test = None
    return {
        "data": job.data,
        "row": job.row,
        "seed": job.seed,
        "params": job.params,
        "flops": job.config.cost.flops,
        "curve": curve,
        "raw": raw,
        "test": test,
        "seconds": round(perf_counter() - started, 1),
    }


def main(
    name: str,
    *,
    data: str = "field-guide",
    pictures: int | None = None,
    rows: int = 100,
    seeds: int = 1,
    shown: int = QUICK.shown,
    processes: int = 2,
    folder: Path = FOLDER,
) -> None:
    """Train what the table lacks, with the first seed for all rows, then the next.

    Parameters
    ----------
    name
        Name of the table.
    data
        A folder of class folders, or field-guide.
    pictures
        Largest number of pictures in use.
    rows
        Number of random points, of which some are infeasible.
    shown
        Training pictures shown to each network, from which its epochs follow.
    seeds
        Number of trainings of each row.
    processes
        Number of networks trained at once, each by one thread.
    folder
        Where tables are kept.
    """
    found = find_pictures(data, limit=pictures)
    profile = replace(QUICK, shown=shown).fitted(found.catalog.median_short_side, len(found.split.train))
    handle = found.decode(profile.sizes, cache_dir=default_cache())
    path = folder / f"{name}.jsonl"
    done = _finished(path)
    draw = partial(suggest, profile=profile, classes=len(handle.classes))
    space = FeasibleSpace(draw, Plan(trials=None, max_flops=profile.max_flops).feasible)
    precision = faster_precision(space.suggest(NamedPoint(0, guess(profile))), [Slot()] * processes)
    jobs = [
        Job(
            data=name,
            row=row,
            seed=seed,
            params=params,
            config=space.suggest(NamedPoint(0, params)),
            precision=precision,
            handle=handle,
        )
        for seed in range(seeds)
        for row, params in points(profile, space, rows)
        if (row, seed) not in done
    ]
    print(
        f"{path}: {len(done)} networks trained, {len(jobs)} to go, {profile.horizon} epochs each, in {precision}",
        flush=True,
    )
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(train, job) for job in jobs]):
            line = future.result()
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            best = max(line["curve"], default=0.0)
            print(f"{line['row']}, seed {line['seed']}: {best:.3f} in {line['seconds']:.0f} s", flush=True)


def _finished(path: Path) -> set[tuple[str, int]]:
    """Return row and seed of every line of a table, without a line that was being written when a run was killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    with replacing(path) as temporary:
        temporary.write_text("".join(whole), encoding="utf-8")
    return {(line["row"], line["seed"]) for line in map(json.loads, whole)}


if __name__ == "__main__":
    run(main)
