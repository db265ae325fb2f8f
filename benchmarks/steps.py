"""Training pictures per second on a CPU: this project's workers, the forager's way, and the limit of bare steps.

    python benchmarks/steps.py                       # about 10 minutes on two cores
    python benchmarks/steps.py --minutes 2           # fewer turns
    python benchmarks/steps.py --network quick       # one of the two networks alone

Ours: one single-threaded process per core, as the study's workers are, each training its own network with the real
batches, augmentation, loop and optimizer, in the precision that `--precision auto` takes here and in float32. The
limit: as many processes that do nothing but forward, backward and step on one batch that stays where it is, in each
precision, and with other memory settings. The forager's way: `peers.py`, one process with
torch's own number of threads and two loading processes. All processes stay; they train in turns, an epoch of the same
pictures each, and each ratio is taken within a turn. Without evaluation: that is the same small share for everybody.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from measuring import FORAGERS_NETWORK, drawn_pictures, machine, named, some, spread, typical
from torch import Tensor
from torch.nn import functional

from data.batches import EvaluationBatches, TrainingBatches
from data.cache import CacheHandle, Part, open_part
from model.network import MushroomCNN
from model.training import Precision, autocast, fastest_precision, fit, make_optimizer
from search_space import PROFILES, Config
from tuning.workers import keep_memory_mapped

CPU = torch.device("cpu")
LARGE = 1e9
"""FLOPs of a picture above which a network counts as large."""
Turn = Callable[[], tuple[int, float]]
"""Trains for one turn; returns pictures and seconds."""
Make = Callable[[Config, Part, list[Path]], Turn]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way of training, in so many processes."""

    name: str
    make: Make
    processes: int
    threads: int | None
    """Per process; None is torch's default."""
    mapped: bool
    """Whether glibc is kept from handing memory back, as in a worker."""


class Timed:
    """Batches whose epoch is timed, from the first picture asked for to the end of the last step."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.class_counts, self._batches = batches.class_counts, batches
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        begun = time.perf_counter()
        yield from self._batches.epoch(n)
        self.seconds = time.perf_counter() - begun


def ours(precision: Precision) -> Make:
    """`fit` on `TrainingBatches`, as a worker calls it."""

    def make(config: Config, part: Part, files: list[Path]) -> Turn:
        batches = TrainingBatches(
            part,
            batch_size=config.training.batch_size,
            views=config.views,
            augment=config.augment,
            oversample=config.training.class_balance == "oversampling",
            seed=0,
            device=CPU,
        )
        timed = Timed(batches)
        # Nothing need be learnt, but it must not diverge
        many = replace(config.training, epochs=10_000, lr=1e-6)
        validation = EvaluationBatches(some(part, 2), device=CPU)
        epochs = fit(MushroomCNN(config.model), timed, validation, many, seed=0, precision=precision)

        def turn() -> tuple[int, float]:
            next(epochs)
            return len(part.labels) * config.views, timed.seconds

        return turn

    return make


def bare(precision: Precision, memory_format: torch.memory_format = torch.channels_last) -> Make:
    """Steps on one resident batch: forward, loss, backward, step."""

    def make(config: Config, part: Part, files: list[Path]) -> Turn:
        batch, size = config.training.batch_size, config.image_size
        model = MushroomCNN(config.model).to(memory_format=memory_format)
        optimizer = make_optimizer(model, replace(config.training, lr=1e-6))
        images = torch.randn(batch, 3, size, size).contiguous(memory_format=memory_format)
        labels = torch.arange(batch) % config.model.classes
        steps = -(-len(part.labels) * config.views // batch)

        def turn() -> tuple[int, float]:
            begun = time.perf_counter()
            for _ in range(steps):
                optimizer.zero_grad()
                with autocast(CPU, precision):
                    loss = functional.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
            return steps * batch, time.perf_counter() - begun

        return turn

    return make


def foragers_way(config: Config, part: Part, files: list[Path]) -> Turn:
    """`peers.SeedsWay` on the files of the same pictures."""
    from peers import Files, SeedsWay

    chosen = Files([files[place] for place in part.indices], part.labels.tolist())
    gentle = replace(config, training=replace(config.training, epochs=10_000, lr=1e-6))
    way = SeedsWay(gentle, chosen, chosen)

    def turn() -> tuple[int, float]:
        begun = time.perf_counter()
        return way.train_epoch(), time.perf_counter() - begun

    return turn


def contestants(cores: int, large: bool) -> list[Contestant]:
    """Of a large network fewer, for all are in memory at once."""
    best = fastest_precision(CPU)
    ways: dict[str, Make] = {
        f"ours, {best}": ours(best),
        f"bare steps, {best}": bare(best),
        "ours, float32": ours("float32"),
        "bare steps, float32": bare("float32"),
    }
    if not large:
        ways[f"bare steps, {best}, contiguous"] = bare(best, torch.contiguous_format)
        ways[f"bare steps, {best}, malloc as it comes"] = bare(best)
    return [
        *(
            Contestant(name=name, make=make, processes=cores, threads=1, mapped="malloc" not in name)
            for name, make in ways.items()
        ),
        Contestant(name="the forager's way", make=foragers_way, processes=1, threads=None, mapped=False),
    ]


def _live(connection: Connection, index: int, cores: int, config: Config, handle: CacheHandle, files: list[Path],
          pictures: int) -> None:  # fmt: skip
    """A process: one turn, in pictures and seconds, whenever it is asked for one."""
    one = contestants(cores, config.cost.flops > LARGE)[index]
    if one.mapped:
        keep_memory_mapped()
    if one.threads is not None:
        torch.set_num_threads(one.threads)
    torch.manual_seed(0)
    turn = one.make(config, some(open_part(handle, config.image_size, "train"), pictures), files)
    turn()
    connection.send(torch.get_num_threads())
    while connection.recv():
        connection.send(turn())


def compare(name: str, config: Config, pictures: int, handle: CacheHandle, files: list[Path], minutes: float) -> None:
    """Prints a network's table."""
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    ways = contestants(cores, config.cost.flops > LARGE)
    lines: list[list[Any]] = []
    processes: list[Any] = []
    for index, one in enumerate(ways):
        lines.append([])
        for _ in range(one.processes):
            here, there = context.Pipe()
            process = context.Process(
                target=_live, args=(there, index, cores, config, handle, files, pictures), daemon=False
            )
            process.start()
            processes.append(process)
            lines[-1].append(here)
        threads = [line.recv() for line in lines[-1]]  # warm, before the next one starts
        print(f"{one.name}: {one.processes} processes of {threads[0]} threads", file=sys.stderr, flush=True)
    rates: list[list[float]] = []
    begun = time.perf_counter()
    while len(rates) < 3 or time.perf_counter() - begun < minutes * 60:
        turn: list[float] = []
        for mine in lines:
            for line in mine:
                line.send(True)
            turn.append(sum(shown / seconds for shown, seconds in (line.recv() for line in mine)))
        rates.append(turn)
    for line in (line for mine in lines for line in mine):
        line.send(False)
    for process in processes:
        process.join()
    print(f"\n{name}: {named(config)}; {3 * config.cost.flops / 1e9:.2f} GFLOP a trained picture")
    print(f"{pictures} pictures a turn and process; median and quartiles of {len(rates)} interleaved turns\n")
    print("| way | processes | pictures/s | GFLOP/s | the first / it |")
    print("|---|---|---|---|---|")
    for index, one in enumerate(ways):
        column = [turn[index] for turn in rates]
        ratio = "" if index == 0 else spread([turn[0] / turn[index] for turn in rates])
        rate = spread([3 * config.cost.flops * value / 1e9 for value in column], 1)
        print(f"| {one.name} | {one.processes} | {spread(column, 1)} | {rate} | {ratio} |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4, help="of turns for each network; three turns at least")
    parser.add_argument("--network", choices=["quick", "seed", "both"], default="both")
    parser.add_argument("--pictures", type=int, help="a turn and process; by default 640 (quick) and 32 (seed)")
    chosen = parser.parse_args()
    quick = typical(PROFILES["quick"])
    catalog, _, handle = drawn_pictures([quick.image_size, FORAGERS_NETWORK.image_size])
    files = [catalog.file(picture) for picture in catalog.kept]
    print(machine())
    if chosen.network != "seed":
        compare("The quick profile's typical network", quick, chosen.pictures or 640, handle, files, chosen.minutes)
    if chosen.network != "quick":
        # Shown once, 16 at a time: three views would make a turn three times as long and say the same, and of 32
        # pictures the activations of all processes together would not fit into 24 GB.
        training = replace(FORAGERS_NETWORK.training, batch_size=16)
        once = replace(FORAGERS_NETWORK, views=1, training=training)
        compare("The forager's own network", once, chosen.pictures or 32, handle, files, chosen.minutes)


if __name__ == "__main__":
    main()
