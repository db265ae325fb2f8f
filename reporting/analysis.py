"""The numbers behind the report: pure functions of a study's trials, each with the source of its method.

A trial counts as trained here if it has finished or is paused, and has at least one epoch. Shares are from 0 to 1,
times are in seconds, epochs are counted from 1.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from model import metrics
from tuning.trials import Outcome, Trial, top

NEAR_BOUND = 0.05
"""Largest distance of a value that counts as at a bound, as a share of the parameter's range on its own scale."""
FEWEST = 3
"""Smallest number of trials with a parameter, among the best and among the others, of which a leaning is told."""
SHUFFLES = 100
"""Number of times that the trials are shuffled to find how strong a leaning chance alone would give."""
PAUSE = 60.0
"""Number of seconds without a running trial that count as a pause between two runs of a study."""

Floats = npt.NDArray[np.float64]
Points = list[tuple[float, float]]


def trained(trials: Sequence[Trial]) -> list[Trial]:
    """Return the finished and paused trials that have at least one epoch or a value."""
    return [trial for trial in trials if (trial.is_finished or trial.is_paused) and trial.reached is not None]


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trained trials, best first; complete ones come before all others, whatever their values."""
    return sorted(trained(trials), key=lambda trial: (trial.value is None, -(trial.reached or 0.0), trial.number))


def sampled(trials: Sequence[Trial], most: int) -> list[Trial]:
    """Return up to `most` trained trials: the best eighth, the baselines, and a random sample of the rest."""
    order = ranked(trials)
    if len(order) <= most:
        return order
    first = order[: most // 8] + [trial for trial in order[most // 8 :] if trial.baseline]
    rest = [trial for trial in order[most // 8 :] if not trial.baseline]
    chosen = np.random.default_rng(0).choice(len(rest), most - len(first), replace=False)
    return first + [rest[place] for place in sorted(chosen)]


def curve(trial: Trial) -> Points:
    """Return a trial's epochs, from 1, each with its validation top-1."""
    return [(epoch + 1, value) for epoch, value in trial.curve.items()]


def best_so_far(trials: Sequence[Trial]) -> Points:
    """Return the trials at which the best complete value rose, with that value, and the last one that has started."""
    found: Points = []
    started = sorted((trial for trial in trials if not trial.is_waiting), key=lambda trial: trial.number)
    for trial in started:
        if trial.value is not None and (not found or trial.value > found[-1][1]):
            found.append((trial.number, trial.value))
    return [*found, (started[-1].number, found[-1][1])] if found else []


def parameters(trials: Sequence[Trial]) -> dict[str, BaseDistribution]:
    """Return every parameter that varies, with its distribution in the latest trial that has it."""
    found: dict[str, BaseDistribution] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        found |= trial.distributions
    return {name: distribution for name, distribution in sorted(found.items()) if not distribution.single()}


# ---------------------------------------------------------------------------------------------------------------------
# Shares


def wilson(share: float, pictures: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of independent pictures. Raises ValueError if there are none."""
    return metrics.wilson(round(share * pictures), pictures)


def pictures_of(confusion: Sequence[Sequence[int]]) -> int:
    """Return the number of pictures in a confusion matrix."""
    return sum(map(sum, confusion))


def commonest_class(confusion: Sequence[Sequence[int]]) -> float:
    """Return the top-1 accuracy of always predicting the most common class."""
    return max(map(sum, confusion)) / pictures_of(confusion)


class Mistake(NamedTuple):
    """How often one class is mistaken for another."""

    truth: int
    prediction: int
    pictures: int
    of: int
    """Number of pictures of the true class."""


def mistakes(confusion: Sequence[Sequence[int]], count: int) -> list[Mistake]:
    """Return the `count` most common mistakes, those with the most pictures first."""
    found = [
        Mistake(truth, prediction, cell, sum(row))
        for truth, row in enumerate(confusion)
        for prediction, cell in enumerate(row)
        if cell and truth != prediction
    ]
    return sorted(found, key=lambda one: (-one.pictures, -one.pictures / one.of, one.truth))[:count]


# ---------------------------------------------------------------------------------------------------------------------
# What matters


@dataclass(frozen=True, kw_only=True)
class BoundHint:
    """A parameter whose best values lie at a bound of its range."""

    name: str
    upper: bool
    bound: float
    value: float
    """Parameter's value in the best trial."""
    at_bound: int
    """Number of the best trials that are at this bound, the very best included."""
    among: int
    """Number of the best trials that have the parameter."""


def bound_hints(trials: Sequence[Trial]) -> list[BoundHint]:
    """Return the numeric parameters that the best trial, and at least half of the best few, have at a bound.

    The best few are the best fifth of the complete trials, 3 to 10 of them, if that is up to half of all. A lower bound
    of 0 is natural for dropout or a share, and gives no hint.
    """
    complete = top(trials, len(trials))
    best = complete[: min(10, max(3, len(complete) // 5))]
    if 2 * len(best) > len(complete):
        return []
    hints: list[BoundHint] = []
    for name, value in best[0].params.items() if best else ():
        distribution = best[0].distributions[name]
        if isinstance(distribution, CategoricalDistribution) or distribution.single():
            continue
        numeric = cast("FloatDistribution | IntDistribution", distribution)
        values = [trial.params[name] for trial in best if name in trial.params]
        for upper in (False, True):
            bound = numeric.high if upper else numeric.low
            if not upper and bound == 0:
                continue
            near = [abs(_place(numeric, other) - upper) <= NEAR_BOUND for other in values]
            if near[0] and len(near) >= 3 and 2 * sum(near) >= len(near):
                hints.append(
                    BoundHint(name=name, upper=upper, bound=bound, value=value, at_bound=sum(near), among=len(near))
                )
    return hints


def _place(distribution: FloatDistribution | IntDistribution, value: float) -> float:
    """Return where a value lies between its bounds, 0 to 1, on the distribution's own scale."""
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


@dataclass(frozen=True, kw_only=True)
class Leaning:
    """A parameter in which the best trials differ from the others."""

    name: str
    strength: float
    """Size of the difference: 0 for none, 1 for no overlap."""
    best: Any
    """Parameter's median over the best trials, or the choice most overrepresented among them."""
    everywhere: float | None
    """Parameter's median over all trials; None for a categorical parameter."""
    share_best: float = 0.0
    """Share of the best trials that have the preferred choice."""
    share_all: float = 0.0


def leanings(trials: Sequence[Trial], count: int) -> list[Leaning]:
    """Return how the `count` best trained trials differ from the others beyond chance, the strongest difference first.

    The strength for a number is |2 AUC - 1| between the two groups, for a choice the difference between its shares. A
    difference counts if it is stronger than the strongest of all parameters in 95 % of shuffles of the trials.
    """
    order, rng = ranked(trials), np.random.default_rng(0)
    best = np.arange(len(order)) < count
    rows = np.array([best, *(rng.permutation(best) for _ in range(SHUFFLES))])
    found: list[Leaning] = []
    by_chance = np.zeros(SHUFFLES)
    for name, distribution in parameters(order).items():
        places = [place for place, one in enumerate(order) if name in one.params]
        values = [order[place].params[name] for place in places]
        mine = values[: sum(place < count for place in places)]
        if not FEWEST <= len(mine) <= len(values) - FEWEST:
            continue
        if isinstance(distribution, CategoricalDistribution):
            strengths, choice = _preferences(values, rows[:, places])
            leaning = Leaning(
                name=name,
                strength=float(strengths[0]),
                best=choice,
                everywhere=None,
                share_best=mine.count(choice) / len(mine),
                share_all=values.count(choice) / len(values),
            )
        else:
            strengths = _separations(values, rows[:, places])
            medians = float(np.median(mine)), float(np.median(values))
            leaning = Leaning(name=name, strength=float(strengths[0]), best=medians[0], everywhere=medians[1])
        by_chance = np.maximum(by_chance, strengths[1:])
        found.append(leaning)
    least = np.quantile(by_chance, 0.95)
    return sorted((one for one in found if one.strength > least), key=lambda leaning: -leaning.strength)


def _separations(values: Sequence[float], rows: npt.NDArray[np.bool_]) -> Floats:
    """Return |2 AUC - 1| between the values that a row (R, N) selects and the others; 0 where either are too few."""
    mine = rows.sum(axis=1)
    others = len(values) - mine
    wins = rows @ _ranks(values) - mine * (mine + 1) / 2
    enough = np.minimum(mine, others) >= FEWEST
    return np.where(enough, np.abs(2 * wins / np.maximum(mine * others, 1) - 1), 0.0)


def _preferences(values: Sequence[Any], rows: npt.NDArray[np.bool_]) -> tuple[Floats, Any]:
    """Return how much more often the values that a row (R, N) selects are its preferred choice than the others are.

    Preferred is what is most overrepresented; that of the first row is returned, too. 0 where either are too few.
    """
    choices = sorted(set(values), key=str)
    selects = np.array([[value == choice for choice in choices] for value in values], dtype=np.float64)
    mine = rows.sum(axis=1)[:, None]
    others, counts = len(values) - mine, rows @ selects
    among_mine = counts / np.maximum(mine, 1)
    preferred = (among_mine - selects.mean(axis=0)).argmax(axis=1)
    surplus = among_mine - (selects.sum(axis=0) - counts) / np.maximum(others, 1)
    strengths = surplus[np.arange(len(rows)), preferred]
    return np.where(np.minimum(mine, others)[:, 0] >= FEWEST, strengths, 0.0), choices[preferred[0]]


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Return the Pareto front of accuracy and FLOPs among the complete trials, from the cheapest to the best."""
    complete = [trial for trial in trials if trial.value is not None and trial.flops is not None]
    found: list[Trial] = []
    for trial in sorted(complete, key=lambda trial: (trial.flops, -(trial.value or 0.0), trial.number)):
        if not found or (trial.value or 0.0) > (found[-1].value or 0.0):
            found.append(trial)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# How it ran


@dataclass(frozen=True, kw_only=True)
class Savings:
    """Training saved by pruning and by recognising duplicates."""

    epochs: int
    """Number of epochs that were trained."""
    spared: int
    """Number of epochs that pruned trials did not train."""
    spared_seconds: float
    """Seconds that the pruned epochs would have taken, at each trial's own time per epoch."""
    duplicate_epochs: int
    """Number of epochs that duplicates did not train again."""
    duplicate_seconds: float

    @property
    def share(self) -> float:
        """Share of all epochs that pruning saved."""
        return self.spared / (self.epochs + self.spared) if self.spared else 0.0


def savings(trials: Sequence[Trial]) -> Savings:
    """Count the epochs that were not trained. Diverged trials saved none, because nothing was left to train."""
    pruned = [trial for trial in trials if trial.outcome is Outcome.PRUNED and trial.epochs]
    left = [max(0, trial.config.training.epochs - trial.epochs) if trial.config else 0 for trial in pruned]
    originals = {trial.key: trial for trial in trained(trials) if trial.key}
    duplicates = [trial.key for trial in trials if trial.outcome is Outcome.DUPLICATE]
    repeated = [originals[key] for key in duplicates if key in originals]
    return Savings(
        epochs=sum(trial.epochs for trial in trials if trial.is_finished),
        spared=sum(left),
        spared_seconds=sum(epochs * trial.seconds / trial.epochs for epochs, trial in zip(left, pruned, strict=True)),
        duplicate_epochs=sum(trial.epochs for trial in repeated),
        duplicate_seconds=sum(trial.seconds for trial in repeated),
    )


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Spearman's rank correlation between early and final values."""

    correlation: float
    low: float
    high: float
    """95 % interval of the correlation."""
    trials: int
    """Number of complete trials that it is computed from."""


def agreement(trials: Sequence[Trial], epoch: int) -> Agreement | None:
    """Return how far the best value up to `epoch` and the final one have the same order.

    Only complete trials are included: pruned ones had the lowest early values and would raise it. The interval is
    Fisher's, with the variance of Bonett and Wright 2000. Returns None for fewer than four trials, with which there is
    no interval, or if all are equal.
    """
    pairs: list[tuple[float, float]] = []
    for trial in trials:
        points = curve(trial)
        if trial.value is not None and points and points[-1][0] > epoch >= points[0][0]:
            pairs.append((max(value for at, value in points if at <= epoch), trial.value))
    early, final = zip(*pairs, strict=True) if pairs else ((), ())
    count = len(early)
    if count < 4 or len(set(early)) == 1 or len(set(final)) == 1:
        return None
    found = float(np.corrcoef(_ranks(early), _ranks(final))[0, 1])
    # The transform of 1 is infinite: count it as half a step below, where a step swaps two neighbours
    most = 1 - 6 / (count * (count**2 - 1))
    middle = math.atanh(max(-most, min(most, found)))
    half = metrics.Z95 * math.sqrt((1 + found**2 / 2) / (count - 3))
    return Agreement(correlation=found, low=math.tanh(middle - half), high=math.tanh(middle + half), trials=count)


def _ranks(values: Sequence[float]) -> Floats:
    """Return ranks from 1, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def tally(trials: Sequence[Trial]) -> dict[str, int]:
    """Return the number of trials of each outcome, then of paused, running and waiting ones, without zeros."""
    ends = Counter(trial.outcome for trial in trials)
    found = {str(end): ends[end] for end in Outcome}
    found["paused"] = sum(trial.is_paused for trial in trials)
    found["running"] = sum(trial.is_running for trial in trials) - found["paused"]
    found["waiting"] = sum(trial.is_waiting for trial in trials)
    return {name: count for name, count in found.items() if count}


@dataclass(frozen=True, kw_only=True)
class Reason:
    """A reason for which trials ended, and the trials that share it."""

    outcome: Outcome
    text: str
    """Text of the reason, with an ellipsis for the numbers in which the trials differ."""
    count: int
    numbers: tuple[int, ...]
    """Numbers of the first few trials."""


def reasons(trials: Sequence[Trial], *, shown: int = 5) -> list[Reason]:
    """Return why trials ended, by outcome, the most common reason first, each with up to `shown` trial numbers."""
    groups: dict[tuple[Outcome, str], dict[str, list[Trial]]] = {}
    for trial in trials:
        if trial.outcome is not None:
            text = " ".join((trial.reason or "no reason was stored").split())
            # A duplicate, a budget and a loss have numbers of their own each time; an epoch groups.
            same = text if trial.outcome is Outcome.PRUNED else re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "…", text)
            groups.setdefault((trial.outcome, same), {}).setdefault(text, []).append(trial)
    found = [
        Reason(
            outcome=end,
            text=next(iter(texts)) if len(texts) == 1 else same,
            count=sum(map(len, texts.values())),
            numbers=tuple(sorted(trial.number for members in texts.values() for trial in members)[:shown]),
        )
        for (end, same), texts in groups.items()
    ]
    order = list(Outcome)
    return sorted(found, key=lambda reason: (order.index(reason.outcome), -reason.count, reason.numbers))


@dataclass(frozen=True, kw_only=True)
class RunTime:
    """How long a study ran, and on how many workers."""

    workers: int
    seconds: float
    """Duration of the study in seconds, without pauses."""
    busy: float
    """Share of the workers' time in which a trial ran."""
    pauses: tuple[float, ...]
    """Lengths in seconds of the pauses, in which no trial ran."""
    began: datetime
    ended: datetime


def in_slots(trials: Sequence[Trial]) -> dict[int, Points]:
    """Return by number when each trial was in a slot, in Unix seconds: more than once if it was paused or interrupted.

    If an end is not known, because the trial still runs, or its process was killed, it is estimated from the training
    time, or is the last moment known of any trial.
    """
    moments = [moment.timestamp() for one in trials for moment in (one.started, one.left_slot) if moment is not None]
    last, found = max(moments, default=0.0), dict[int, Points]()
    for trial in trials:
        if trial.slot is None or trial.started is None:
            continue
        if trial.spans:
            known = sum(end - begin for begin, end in trial.spans if end is not None)
            lost = max(0.0, 1.1 * trial.seconds - known) if trial.is_finished else last
            ends = [min(max(last, begin), begin + lost) if end is None else end for begin, end in trial.spans]
            found[trial.number] = [(begin, end) for (begin, _), end in zip(trial.spans, ends, strict=True)]
        else:  # trained by an earlier version
            begin, end = trial.started.timestamp(), trial.ended.timestamp() if trial.ended else last
            resumed = trial.attempts > 1 and trial.ended is not None
            found[trial.number] = [(max(begin, end - 1.1 * trial.seconds) if resumed else begin, end)]
    return found


def run_time(trials: Sequence[Trial]) -> RunTime | None:
    """Return how long the study ran; None if no trial was in a slot."""
    spans = sorted(span for each in in_slots(trials).values() for span in each)
    if not spans:
        return None
    origin = reach = spans[0][0]
    pauses: list[float] = []
    for begin, end in spans:
        if begin - reach > PAUSE:
            pauses.append(begin - reach)
        reach = max(reach, end)
    workers, total = max(trial.slot or 0 for trial in trials) + 1, reach - origin - sum(pauses)
    busy = sum(end - begin for begin, end in spans) / (workers * total) if total > 0 else 0.0
    return RunTime(
        workers=workers,
        seconds=total,
        busy=min(1.0, busy),
        pauses=tuple(pauses),
        began=datetime.fromtimestamp(origin),
        ended=datetime.fromtimestamp(reach),
    )
