"""Timed training steps: how long an average trial takes in each precision, and in which of the two a study trains.

Which one is faster does not follow from a CPU's features: of two with AVX512_BF16, one trained 1.2 to 2 times as fast
in bfloat16 as in float32, the other 0.7 times as fast (benchmarks/README.md, "Precision").
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from torch.nn import functional

from model.network import Cost, MushroomCNN
from model.training import Precision, autocast, make_optimizer
from search_space import Config
from tuning.devices import RunThere, Slot, run_here
from tuning.environment import environment
from tuning.space import SpacePoint, random_points

POINTS = 24
"""Number of random points whose mean cost represents that of a trial where there is no portfolio."""
TIMED = 3
"""Number of points whose training steps are timed."""
ROUNDS = 5
"""Number of timed steps of each point in each precision, after one that loads kernels and memory; two if they are too
large for STEP_FLOPS."""
BOTH_PASSES = 3
"""FLOPs of a training step in forward passes: a backward pass costs two (Kaplan et al. 2020, section 2.1)."""
STEP_FLOPS = 3e9
"""Largest number of FLOPs in a timed step on a CPU: less than a tenth of a second on one core."""
SHORT = 1e11
"""Training FLOPs of an average trial, a few seconds of one core, below which timing would take longer than it saves."""
LEAST_GAIN = 1.05
"""Speed of bfloat16, relative to float32, that it must exceed in three quarters of the rounds to be chosen."""
HOPELESS = 0.5
"""Speed of bfloat16, relative to float32, below which it is emulated, and timed no further."""
TIMINGS = "precision timings"
"""Study attribute with the `Comparison.gains` of every machine on which the study has been opened."""

FLOAT32: Sequence[Precision] = ("float32",)
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The speed of training steps in bfloat16 relative to float32."""

    gains: tuple[float, ...]
    """float32's time divided by bfloat16's, once per round; both were timed in turns."""

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Quartiles of the gains, the second of which is the median."""
        low, middle, high = np.quantile(self.gains, (0.25, 0.5, 0.75))
        return float(low), float(middle), float(high)

    @property
    def faster(self) -> Precision:
        """The precision to train in: bfloat16 only if the noise leaves no doubt that it is faster."""
        return "bfloat16" if self.quartiles[0] > LEAST_GAIN else "float32"

    def __str__(self) -> str:
        """Return what is to be said behind the name of the faster one."""
        low, gain, high = self.quartiles
        if low > LEAST_GAIN:
            return f"{gain:.1f} times as fast as float32 here"
        if high < 1 / LEAST_GAIN:
            return f"{1 / gain:.1f} times as fast as bfloat16 here"
        return "about as fast as bfloat16 here"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Timed training steps of typical networks while all slots are busy."""

    seconds: dict[Precision, float]
    """Seconds of all training steps of an average trial, by the precision that was timed."""
    comparison: Comparison | None
    """Comparison of the precisions; None if only one was timed."""


def typical(
    suggest: Callable[[Any], Config], feasible: Callable[[Cost], bool], portfolio: Sequence[Mapping[str, Any]] = ()
) -> list[Config]:
    """Return points that cost as much as those that a study trains for long, cheapest first.

    These are the points of its portfolio, which its best trials resemble (benchmarks/README.md, "The forecast").
    Without a portfolio they are random points within the budgets, or the cheapest of them if none is.
    """
    if portfolio:
        rng = np.random.default_rng(0)
        return sorted((suggest(SpacePoint(rng, params)) for params in portfolio), key=lambda config: config.cost.flops)
    drawn = sorted(random_points(suggest, POINTS), key=lambda config: config.cost.flops)
    return [config for config in drawn if feasible(config.cost)] or drawn[:1]


def training_flops(config: Config, pictures: int) -> float:
    """Return the FLOPs of all training steps of a trial that is not pruned, on this number of training pictures."""
    return BOTH_PASSES * config.cost.flops * pictures * config.views * config.training.epochs


def settle_precision(
    study: optuna.Study,
    slots: Sequence[Slot],
    wanted: Literal["auto"] | Precision,
    points: Sequence[Config],
    pictures: int,
    run_there: RunThere = run_here,
) -> tuple[list[Slot], Timing | None]:
    """Return the slots in the wanted precision, and what was timed to decide what "auto" means.

    A study keeps to the precision that was the faster one when it was first opened on a machine, so that it resumes bit
    for bit; on another machine both are timed again. Where trials are SHORT nothing is timed, and float32 is chosen.

    Args: `points`: typical points of the study, cheapest first; `pictures`: number of training pictures; `run_there`:
    runs what is timed on the machine of the first slot.
    """
    timing, chosen = None, wanted
    if wanted == "auto":
        timing = _timing(study, slots, points, pictures, run_there)
        chosen = timing.comparison.faster if timing and timing.comparison else "float32"
    return [replace(slot, precision=chosen) for slot in slots], timing


def _timing(
    study: optuna.Study, slots: Sequence[Slot], points: Sequence[Config], pictures: int, run_there: RunThere
) -> Timing | None:
    stored: dict[str, list[float]] = study.user_attrs.get(TIMINGS, {})
    facts = run_there(environment, slots[0])
    machine = f"{facts['device']}, threads {facts['threads']}"
    if machine in stored:
        return Timing(seconds={}, comparison=Comparison(gains=tuple(stored[machine])))
    flops = [training_flops(point, pictures) for point in points]
    if not flops or statistics.fmean(flops) < SHORT:
        return None
    timing: Timing | None = run_there(_time_both, points, pictures, on_one_machine(slots))
    if timing and timing.comparison:
        study.set_user_attr(TIMINGS, stored | {machine: timing.comparison.gains})
    return timing


def on_one_machine(slots: Sequence[Slot]) -> list[Slot]:
    """Return the slots on the machine of the first one: those that slow each other down."""
    return [slot for slot in slots if slot.host == slots[0].host]


def _time_both(points: Sequence[Config], pictures: int, slots: Sequence[Slot]) -> Timing | None:
    """Time both precisions; None if bfloat16 cannot be the faster one."""
    if not all(_may_be_faster(slot.device) for slot in slots):
        return None
    return time_steps(points, pictures=pictures, slots=slots, precisions=get_args(Precision))


def _may_be_faster(device: str) -> bool:
    """Return whether bfloat16 is worth timing on a device: it is emulated on GPUs before Ampere, and untried on MPS."""
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu"


def time_steps(
    points: Sequence[Config], *, pictures: int, slots: Sequence[Slot], precisions: Sequence[Precision]
) -> Timing:
    """Time training steps of `points`, cheapest first, in the slots, and in these precisions in turns."""
    # Two pictures are the least that batch norm takes, and large steps vary less.
    large = slots[0].device == "cpu" and 2 * BOTH_PASSES * points[-1].cost.flops > STEP_FLOPS
    rounds, comparison = 2 if large else ROUNDS, None
    if len(precisions) > 1:
        tried = _seconds_per_flop(points[0], slots, precisions, 2)
        best = float(max(tried["float32"] / tried["bfloat16"]))
        if best < HOPELESS:
            comparison, precisions = Comparison(gains=(best,)), FLOAT32
    work = np.array([training_flops(point, pictures) for point in points])
    whole: dict[Precision, Floats] = {precision: np.zeros(rounds) for precision in precisions}
    for some in np.array_split(np.arange(len(points)), min(TIMED, len(points))):
        # Small networks reach fewer FLOPs per second, so each point is timed by one of its own size.
        steps = _seconds_per_flop(points[some[len(some) // 2]], slots, precisions, rounds)
        for precision, per_flop in steps.items():
            whole[precision] += work[some].sum() * per_flop
    if len(precisions) > 1:
        comparison = Comparison(gains=tuple(map(float, whole["float32"] / whole["bfloat16"])))
    return Timing(
        seconds={precision: float(np.median(rounds)) / len(points) for precision, rounds in whole.items()},
        comparison=comparison,
    )


def _seconds_per_flop(
    config: Config, slots: Sequence[Slot], precisions: Sequence[Precision], rounds: int
) -> dict[Precision, Floats]:
    """Return the seconds per FLOP of a point's training steps, (rounds,), by precision.

    On a CPU all slots are timed at once, because they slow each other down; of GPUs, one of each kind.
    """
    if slots[0].device == "cpu":
        batch = max(2, min(config.training.batch_size, int(STEP_FLOPS / BOTH_PASSES / config.cost.flops)))
        before = torch.get_num_threads()
        torch.set_num_threads(slots[0].threads)
        turns = threading.Barrier(len(slots))
        try:
            with ThreadPoolExecutor(len(slots)) as pool:
                busy = [pool.submit(_timed, config, slot, batch, precisions, rounds, turns) for slot in slots]
            failed = [error for one in busy if (error := one.exception())]
            for error in sorted(failed, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
                raise error
            timed = [one.result() for one in busy]
        finally:
            torch.set_num_threads(before)
    else:
        kinds = {environment(slot)["device"]: slot for slot in slots}
        timed = [_timed_on_gpu(config, slot, precisions, rounds) for slot in kinds.values()]
    return {precision: np.mean([one[precision] for one in timed], axis=0) for precision in precisions}


def _timed_on_gpu(config: Config, slot: Slot, precisions: Sequence[Precision], rounds: int) -> dict[Precision, Floats]:
    """Time steps on a GPU; the batch is halved until it fits into the memory that other programs leave free."""
    batch = config.training.batch_size
    while True:
        try:
            return _timed(config, slot, batch, precisions, rounds, threading.Barrier(1))
        except torch.OutOfMemoryError:
            if batch == 2:
                raise
        finally:
            torch.cuda.empty_cache()  # the workers have their own caches
        batch = max(2, batch // 2)


def _timed(
    config: Config,
    slot: Slot,
    batch: int,
    precisions: Sequence[Precision],
    rounds: int,
    turns: threading.Barrier,
) -> dict[Precision, Floats]:
    """Return the seconds per FLOP of steps on random pictures, (rounds,), by precision; all slots take each turn."""
    try:
        device = torch.device(slot.device)
        model = MushroomCNN(config.model).to(device).to(memory_format=torch.channels_last)
        optimizer = make_optimizer(model, config.training)
        pictures = torch.randn(batch, 3, config.image_size, config.image_size, device=device)
        pictures = pictures.to(memory_format=torch.channels_last)
        labels = torch.zeros(batch, dtype=torch.int64, device=device)
        seconds: dict[Precision, list[float]] = {precision: [] for precision in precisions}
        for turn in range(rounds + 1):
            # Each precision goes first every other time, so that neither profits when the machine becomes busier.
            for precision in precisions if turn % 2 else reversed(precisions):
                turns.wait()
                began = time.perf_counter()
                with autocast(device, precision):
                    loss = functional.cross_entropy(model(pictures), labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds[precision].append(time.perf_counter() - began)
        # The first step also loads kernels and memory.
        flops = BOTH_PASSES * config.cost.flops * batch
        return {precision: np.array(column[1:]) / flops for precision, column in seconds.items()}
    except BaseException:
        turns.abort()  # the other slots would wait for ever
        raise
