"""One GPU: the forager's full recipe against bare steps, the data path against her loader, several trials at once.

    python benchmarks/gpu.py                                     # about 10 minutes; "not measured" where there is none
    python benchmarks/gpu.py --pictures 640 --size 128 --turns 3
    python benchmarks/gpu.py --device cpu --pictures 64 --size 32 --width 0.25 --turns 2     # does it run at all?

An epoch is 4,700 made-up pictures of 256 px, three views each, one of them plain, batches of 32, the forager's network
and optimizer; the bare steps are as many on one batch that is there already, in the same number format. What several
processes on one GPU gain is told by the pictures per second of 1, 2 and 4 of them at once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from measuring import FORAGERS_NETWORK, drawn_pictures, machine, named, some, spread
from torch.nn import functional

from data.batches import EvaluationBatches, TrainingBatches
from data.cache import Part
from model.network import MushroomCNN
from model.training import autocast, fastest_precision, fit, make_optimizer
from search_space import Config

AT_ONCE = (1, 2, 4)


def made_up(count: int, size: int) -> Part:
    """Random pictures of nine classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return Part(images=images, indices=np.arange(count), labels=np.arange(count) % 9, classes=9)


def batches(config: Config, part: Part, device: torch.device) -> TrainingBatches:
    return TrainingBatches(
        part,
        batch_size=config.training.batch_size,
        views=config.views,
        augment=config.augment,
        oversample=False,
        seed=0,
        device=device,
    )


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds until the device has done it."""
    wait(device)
    begun = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - begun


def ways(config: Config, part: Part, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Each trains, or makes the batches of, one epoch."""
    ours, precision = batches(config, part, device), fastest_precision(device)
    gentle = replace(config.training, lr=1e-4, epochs=10_000)
    epochs = fit(MushroomCNN(config.model).to(device), ours, EvaluationBatches(some(part, 2), device=device), gentle,
                 seed=0, precision=precision)  # fmt: skip
    model = MushroomCNN(config.model).to(device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, gentle)
    images, labels = next(iter(ours.epoch(0)))
    images = images.contiguous(memory_format=torch.channels_last)

    def bare() -> None:
        for _ in range(len(ours)):
            optimizer.zero_grad()
            with autocast(device, precision):
                loss = functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()

    def data() -> None:
        for _ in ours.epoch(0):
            pass

    return {"epoch": lambda: next(epochs), "bare steps": bare, "batches": data}


def one_gpu(config: Config, part: Part, device: torch.device, turns: int) -> float:
    """Prints an epoch's rows; returns the data path's pictures per second."""
    contestants = ways(config, part, device)
    for work in contestants.values():
        work()
    seconds = [{name: timed(device, work) for name, work in contestants.items()} for _ in range(turns)]
    shown = len(part.labels) * config.views
    print("| way | s an epoch | pictures/s | epoch / it |\n|---|---|---|---|")
    for name in contestants:
        column = [turn[name] for turn in seconds]
        ratio = spread([turn["epoch"] / turn[name] for turn in seconds])
        print(f"| {name} | {spread(column)} | {spread([shown / value for value in column], 0)} | {ratio} |")
    print(flush=True)
    return shown / statistics.median(turn["batches"] for turn in seconds)


def foragers_loader(config: Config) -> float:
    """Pictures per second of the forager's DataLoader, on drawn pictures of 256 px, without training."""
    from peers import Files, loaders

    catalog, split, _ = drawn_pictures([])
    files = Files.of(catalog, [int(place) for place in split.train])
    loader, _ = loaders(files, files, replace(config, views=1))
    begun = time.perf_counter()
    shown = sum(len(labels) for _, labels in loader)
    return shown / (time.perf_counter() - begun)


def _live(connection: Connection, config: Config, count: int, device: str) -> None:
    part = made_up(count, config.image_size)
    work = ways(config, part, torch.device(device))["epoch"]
    work()
    connection.send(None)
    while connection.recv():
        connection.send(timed(torch.device(device), work))


def at_once(config: Config, count: int, device: str, turns: int) -> None:
    """Prints what 1, 2 and 4 processes train together."""
    context = multiprocessing.get_context("spawn")
    lines: list[Any] = []
    for _ in range(max(AT_ONCE)):
        here, there = context.Pipe()
        context.Process(target=_live, args=(there, config, count, device), daemon=True).start()
        there.close()  # so that its end is heard of
        here.recv()
        lines.append(here)
    rates: dict[int, list[float]] = {processes: [] for processes in AT_ONCE}
    for _ in range(turns):
        for processes, found in rates.items():
            for line in lines[:processes]:
                line.send(True)
            found.append(sum(count * config.views / line.recv() for line in lines[:processes]))
    for line in lines:
        line.send(False)
    print("| trials at once | pictures/s together | times one |\n|---|---|---|")
    for processes, found in rates.items():
        ratio = spread([many / one for many, one in zip(found, rates[1], strict=True)])
        print(f"| {processes} | {spread(found, 0)} | {ratio} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pictures", type=int, default=4700)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=5)
    chosen = parser.parse_args()
    print(machine())
    device = torch.device(chosen.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("| one GPU | not measured: torch finds none here |")
        return
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU in a GPU's place")
    config = replace(
        FORAGERS_NETWORK, image_size=chosen.size, model=replace(FORAGERS_NETWORK.model, width=chosen.width)
    )
    print(f"{named(config)}, {config.views} views; {3 * config.cost.flops / 1e9:.1f} GFLOP a trained picture")
    print(f"{chosen.pictures:,} pictures; median and quartiles of {chosen.turns} interleaved turns\n")
    part = made_up(chosen.pictures, chosen.size)
    ours = one_gpu(config, part, device, chosen.turns)
    theirs = foragers_loader(config)
    print(
        f"The data path makes {ours:,.0f} pictures/s, the forager's loader {theirs:,.0f}: {ours / theirs:.0f} times.\n"
    )
    small = replace(config, image_size=chosen.size // 2, views=1)
    print(f"Several at once, each of {named(small)}:\n")
    at_once(small, min(1000, chosen.pictures), chosen.device, chosen.turns)


if __name__ == "__main__":
    main()
