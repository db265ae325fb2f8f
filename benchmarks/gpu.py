"""Speed on one GPU: training compared with bare steps, the data path with a DataLoader, and several trials at once.

    python benchmarks/gpu.py                                     # about 10 minutes; "not measured" without a GPU
    python benchmarks/gpu.py --pictures 640 --size 128 --turns 3
    python benchmarks/gpu.py --device cpu --pictures 64 --size 32 --width 0.25 --turns 2     # does it run at all?

An epoch trains the hand-tuned recipe's network on 4,700 made-up pictures of 256 px, with three views each, two of them
augmented, in batches of 32. Bare steps are the same number of steps on one batch that stays on the GPU, in the same
precision. Finally, 1, 2 and 4 processes train on the GPU at the same time, to see whether several trials at once pay
off.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.measuring import (
    HAND_TUNED,
    Subprocess,
    bare_step,
    endless_epochs,
    faster_precision,
    named,
    spread,
    training_batches,
)
from data.cache import Part
from data.prepare import find_pictures
from search_space import Config
from tests.stress.script import header, machine, row, run
from tuning.devices import Slot

AT_ONCE = (1, 2, 4)


def made_up(count: int, size: int) -> Part:
    """Return random pictures of nine classes."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return Part(images=images, indices=np.arange(count), labels=np.arange(count) % 9, classes=9)


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    """Return the seconds until the device has finished the work."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def variants(config: Config, part: Part, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return the variants to compare: an epoch of training, its steps alone, its batches alone."""
    batches, precision = training_batches(config, part, device), faster_precision(config, [Slot(device=str(device))])
    epochs = endless_epochs(config, batches, part, precision, device)
    step = bare_step(config, precision, device)

    def steps() -> None:
        for _ in range(len(batches)):
            step()

    def data() -> None:
        for _ in batches.epoch(0):
            pass

    return {"epoch": lambda: next(epochs), "bare steps": steps, "batches": data}


def one_gpu(config: Config, part: Part, device: torch.device, turns: int) -> float:
    """Print the table of an epoch; return the data path's pictures per second."""
    compared = variants(config, part, device)
    for work in compared.values():
        work()
    seconds = [{name: timed(device, work) for name, work in compared.items()} for _ in range(turns)]
    shown = len(part.labels) * config.views
    header("variant", "s per epoch", "pictures/s", "epoch / this row")
    for name in compared:
        column = [turn[name] for turn in seconds]
        ratio = spread([turn["epoch"] / turn[name] for turn in seconds])
        row(name, spread(column), spread([shown / value for value in column], 0), ratio)
    print(flush=True)
    return shown / statistics.median(turn["batches"] for turn in seconds)


def original_loader(config: Config) -> float:
    """Return the pictures per second of the original project's DataLoader, on drawn pictures of 256 px."""
    from benchmarks.peers import Files, loaders

    pictures = find_pictures()
    files = Files.of(pictures.catalog, pictures.split.train.tolist())
    loader, _ = loaders(files, files, replace(config, views=1))
    began = time.perf_counter()
    shown = sum(len(labels) for _, labels in loader)
    return shown / (time.perf_counter() - began)


def start(config: Config, count: int, device: str) -> Callable[[], float]:
    """Set up a process that trains for one epoch per turn, and train the first one."""
    work = variants(config, made_up(count, config.image_size), torch.device(device))["epoch"]
    work()
    return lambda: timed(torch.device(device), work)


def at_once(config: Config, count: int, device: str, turns: int) -> None:
    """Print the combined training speed of 1, 2 and 4 processes."""
    processes = [Subprocess(start, config, count, device) for _ in range(max(AT_ONCE))]
    rates: dict[int, list[float]] = {number: [] for number in AT_ONCE}
    for _ in range(turns):
        for number, found in rates.items():
            for process in processes[:number]:
                process.ask()
            found.append(sum(count * config.views / process.answer() for process in processes[:number]))
    for process in processes:
        process.close()
    header("trials at once", "pictures/s together", "times one trial")
    for number, found in rates.items():
        row(number, spread(found, 0), spread([many / one for many, one in zip(found, rates[1], strict=True)]))


def main(*, device: str = "cuda", pictures: int = 4700, size: int = 256, width: float = 1.0, turns: int = 5) -> None:
    """Print the tables."""
    print(machine())
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        print("not measured: torch finds no GPU here")
        return
    print(torch.cuda.get_device_name(place) if place.type == "cuda" else "a CPU in a GPU's place")
    config = replace(HAND_TUNED, image_size=size, model=replace(HAND_TUNED.model, width=width))
    print(f"{named(config)}, {config.views} views; {3 * config.cost.flops / 1e9:.1f} GFLOP per training picture")
    print(f"{pictures:,} pictures; median and quartiles of {turns} interleaved turns\n")
    ours = one_gpu(config, made_up(pictures, size), place, turns)
    theirs = original_loader(config)
    print(
        f"The data path makes {ours:,.0f} pictures/s, the original project's DataLoader {theirs:,.0f}: "
        f"{ours / theirs:.0f} times.\n"
    )
    small = replace(config, image_size=size // 2, views=1)
    print(f"Several at once, each {named(small)}:\n")
    at_once(small, min(1000, pictures), device, turns)


if __name__ == "__main__":
    run(main)
