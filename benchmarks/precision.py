"""Training steps in bfloat16 against float32 on a CPU, and what `--precision auto` chooses.

    python benchmarks/precision.py                # about 2 minutes on two cores
    python benchmarks/precision.py --turns 40     # more turns

Networks of three sizes, in one single-threaded process, in one per core, and in one with all cores. A process does
nothing but forward, backward and step on one batch that stays in memory, with a worker's malloc settings. The processes
of all rows stay alive and take turns, once in each precision; a turn's gain is float32's time divided by bfloat16's.
"auto" is what a study of such networks would time, in threads of one process, and choose.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.measuring import TYPICAL, Subprocess, bare_step, spread
from model.training import Precision
from search_space import Config
from tests.stress.script import header, machine, row, run
from tuning.devices import Slot, slots
from tuning.timing import time_steps
from tuning.workers import keep_memory_mapped

BOTH: tuple[Precision, ...] = ("float32", "bfloat16")
TURN_FLOPS = 2e10
"""FLOPs of a turn of one process: about half a second."""


def network(size: int, width: float, batch: int) -> Config:
    """Return the typical network at another size of its pictures, width and batch."""
    model, training = replace(TYPICAL.model, width=width), replace(TYPICAL.training, batch_size=batch)
    return replace(TYPICAL, image_size=size, model=model, training=training)


NETWORKS = (network(40, 0.375, 32), network(96, 0.5, 32), network(256, 0.5, 8))
"""Networks of about 22, 200 and 1,500 MFLOP per picture; a batch of 32 of the largest would not fit into memory."""


def start(config: Config, threads: int) -> Callable[[Precision], float]:
    """Set up a process that does a turn in a precision and returns the seconds per step; both are warm."""
    keep_memory_mapped()
    torch.set_num_threads(threads)
    does = {precision: bare_step(config, precision) for precision in BOTH}
    for step in does.values():
        step()
    steps = max(1, round(TURN_FLOPS / (3 * config.cost.flops * config.training.batch_size)))

    def turn(precision: Precision) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            does[precision]()
        return (time.perf_counter() - began) / steps

    return turn


def gain(processes: list[Subprocess], first: int) -> tuple[float, float]:
    """Return float32's seconds per step and its ratio to bfloat16's, from one turn in each; `first` is 0 or 1."""
    seconds: dict[Precision, float] = {}
    for precision in (BOTH[first], BOTH[1 - first]):
        for process in processes:
            process.ask(precision)
        seconds[precision] = statistics.fmean([process.answer() for process in processes])
    return seconds["float32"], seconds["float32"] / seconds["bfloat16"]


def main(*, turns: int = 10) -> None:
    """Print the table.

    Parameters
    ----------
    turns
        Number of turns of every row, in both precisions.
    """
    print(f"{machine()}\n{turns} interleaved turns; median and quartiles\n")
    cores = len(slots("cpu", None))
    ways = [[Slot()], [Slot()] * cores, [Slot(threads=cores)]]
    rows = [(config, way) for config in NETWORKS for way in ways]
    groups = [[Subprocess(start, config, slot.threads) for slot in way] for config, way in rows]
    measured = [[gain(group, turn % 2) for group in groups] for turn in range(turns)]
    for process in (process for group in groups for process in group):
        process.close()
    header("MFLOP per picture", "batch", "processes x threads", "float32, pictures/s", "gain", "auto's gain", "auto")
    for place, (config, way) in enumerate(rows):
        seconds, gains = zip(*(turn[place] for turn in measured), strict=True)
        batch = config.training.batch_size
        rates = [len(way) * batch / value for value in seconds]
        compared = time_steps([config], pictures=1, slots=way, precisions=BOTH).comparison
        assert compared is not None
        low, middle, high = compared.quartiles
        row(
            f"{config.cost.flops / 1e6:,.0f}",
            batch,
            f"{len(way)} x {way[0].threads}",
            spread(rates, 0 if rates[0] > 100 else 1),
            spread(gains),
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            compared.faster,
        )


if __name__ == "__main__":
    run(main)
