"""Training pictures per second on a CPU: this program's workers, the original project's method, and bare steps.

    python benchmarks/steps.py                       # about 10 minutes on two cores
    python benchmarks/steps.py --minutes 2           # fewer turns
    python benchmarks/steps.py --network typical     # one of the two networks alone

This program: one single-threaded process per core, like a study's workers, each of which trains its own network with
the real batches, augmentation, loop and optimizer, in the precision that `--precision auto` chooses here and in
float32. Bare steps: the same number of processes, which do nothing but forward, backward and step on one batch that
stays in memory; they are the limit. The original project's method (`peers.py`): one process with torch's default number
of threads and two DataLoader workers. All processes stay alive and take turns, an epoch of the same pictures each;
ratios are taken within a turn. Evaluation is left out: its share is small and the same for all.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.measuring import (
    HAND_TUNED,
    TYPICAL,
    Subprocess,
    bare_step,
    endless_epochs,
    faster_precision,
    gentle,
    named,
    some,
    spread,
    training_batches,
)
from data.batches import TrainingBatches
from data.cache import CacheHandle, Part, open_part
from data.prepare import default_cache, find_pictures
from model.training import Precision
from search_space import Config
from tests.stress.script import header, machine, row, run
from tuning.devices import Slot
from tuning.workers import keep_memory_mapped

Turn = Callable[[], tuple[int, float]]
"""Function that trains for one turn and returns the number of pictures and the seconds."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A training variant to compare, in one or more processes."""

    name: str
    make: Callable[[Config, Part, list[Path]], Turn]
    processes: int
    threads: int | None = 1
    """Threads per process; None is torch's default."""
    mapped: bool = True
    """Whether glibc is kept from returning memory, as in a worker."""


class Timed:
    """Batches whose epoch is timed, from the request for the first batch to the end of the last step."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.class_counts, self._batches = batches.class_counts, batches
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        began = time.perf_counter()
        yield from self._batches.epoch(n)
        self.seconds = time.perf_counter() - began


def this_program(precision: Precision, config: Config, part: Part, files: list[Path]) -> Turn:
    """Train with `fit` on `TrainingBatches`, as a worker does."""
    timed = Timed(training_batches(config, part))
    epochs = endless_epochs(config, timed, part, precision)

    def turn() -> tuple[int, float]:
        next(epochs)
        return len(part.labels) * config.views, timed.seconds

    return turn


def bare_steps(
    precision: Precision, memory_format: torch.memory_format, config: Config, part: Part, files: list[Path]
) -> Turn:
    """Do an epoch's number of steps on a single batch."""
    batch = config.training.batch_size
    step = bare_step(config, precision, memory_format=memory_format)
    steps = -(-len(part.labels) * config.views // batch)

    def turn() -> tuple[int, float]:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return steps * batch, time.perf_counter() - began

    return turn


def original_method(config: Config, part: Part, files: list[Path]) -> Turn:
    """Train with `peers.OriginalTraining` on the files of the same pictures."""
    from benchmarks.peers import Files, OriginalTraining

    chosen = Files([files[place] for place in part.indices], part.labels.tolist())
    training = OriginalTraining(gentle(config), chosen, chosen)

    def turn() -> tuple[int, float]:
        began = time.perf_counter()
        return training.train_epoch(), time.perf_counter() - began

    return turn


def variants(config: Config, cores: int, *, large: bool) -> list[Variant]:
    """Return the variants to compare; two fewer for a large network, because all processes are in memory at once."""
    best, last = faster_precision(config, [Slot()] * cores), torch.channels_last
    found: dict[str, Callable[[Config, Part, list[Path]], Turn]] = {
        f"this program, {best}": partial(this_program, best),
        f"bare steps, {best}": partial(bare_steps, best, last),
        "this program, float32": partial(this_program, "float32"),
        "bare steps, float32": partial(bare_steps, "float32", last),
    }
    if not large:
        found[f"bare steps, {best}, contiguous"] = partial(bare_steps, best, torch.contiguous_format)
        found[f"bare steps, {best}, default malloc settings"] = partial(bare_steps, best, last)
    ours = [Variant(name=name, make=make, processes=cores, mapped="malloc" not in name) for name, make in found.items()]
    theirs = Variant(
        name="the original project's method", make=original_method, processes=1, threads=None, mapped=False
    )
    return [*ours, theirs]


def start(variant: Variant, config: Config, handle: CacheHandle, files: list[Path], pictures: int) -> Turn:
    """Set up a process and train for one turn, so that it is warm."""
    if variant.mapped:
        keep_memory_mapped()
    if variant.threads is not None:
        torch.set_num_threads(variant.threads)
    torch.manual_seed(0)
    turn = variant.make(config, some(open_part(handle, config.image_size, "train"), pictures), files)
    turn()
    return turn


def compare(heading: str, config: Config, *, large: bool, pictures: int, handle: CacheHandle, files: list[Path],
            minutes: float) -> None:  # fmt: skip
    """Print a network's table."""
    compared = variants(config, len(os.sched_getaffinity(0)), large=large)
    processes: list[list[Subprocess]] = []
    for one in compared:
        processes.append([Subprocess(start, one, config, handle, files, pictures) for _ in range(one.processes)])
        print(f"{one.name}: ready", file=sys.stderr, flush=True)
    rates: list[list[float]] = []
    began = time.perf_counter()
    while len(rates) < 3 or time.perf_counter() - began < minutes * 60:
        turn: list[float] = []
        for group in processes:
            for process in group:
                process.ask()
            turn.append(sum(shown / seconds for shown, seconds in (process.answer() for process in group)))
        rates.append(turn)
    for process in (process for group in processes for process in group):
        process.close()
    flops = 3 * config.cost.flops  # a backward pass costs twice a forward one
    print(f"\n{heading}: {named(config)}; {flops / 1e9:.2f} GFLOP per training picture")
    print(f"{pictures} pictures per turn and process; median and quartiles of {len(rates)} interleaved turns\n")
    header("variant", "processes", "pictures/s", "GFLOP/s", "first row / this row")
    for index, one in enumerate(compared):
        column = [turn[index] for turn in rates]
        ratio = "" if index == 0 else spread([turn[0] / turn[index] for turn in rates])
        row(one.name, one.processes, spread(column, 1), spread([flops * rate / 1e9 for rate in column], 1), ratio)
    print(flush=True)


def main(
    *, minutes: float = 4, network: Literal["typical", "hand-tuned", "both"] = "both", pictures: int | None = None
) -> None:
    """Print the tables.

    Parameters
    ----------
    minutes
        Minutes of turns for each network; at least three turns.
    network
        The typical network of the quick profile, that of the hand-tuned recipe, or both.
    pictures
        Pictures per turn and process; by default 640 (typical) and 32 (hand-tuned).
    """
    found = find_pictures()
    handle = found.decode([TYPICAL.image_size, HAND_TUNED.image_size], cache_dir=default_cache())
    files = [found.catalog.file(picture) for picture in found.catalog.kept]
    print(machine())
    if network != "hand-tuned":
        compare("Typical network of the quick profile", TYPICAL, large=False, pictures=pictures or 640, handle=handle,
                files=files, minutes=minutes)  # fmt: skip
    if network != "typical":
        # Shown once: three views would make a turn three times as long and say the same. 16 pictures per batch: with
        # 32, the activations of all processes together would not fit into 24 GB.
        once = replace(HAND_TUNED, views=1, training=replace(HAND_TUNED.training, batch_size=16))
        compare("Network of the hand-tuned recipe", once, large=True, pictures=pictures or 32, handle=handle,
                files=files, minutes=minutes)  # fmt: skip


if __name__ == "__main__":
    run(main)
