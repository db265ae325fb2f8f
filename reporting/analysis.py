"""The numbers behind the report: pure functions of a study's trials, each with the source of its method.

"Trained" is a finished trial that has reported an epoch, whatever ended it; "reached" is the best validation top-1 of
the epochs that it trained. Shares are from 0 to 1, times are in seconds, epochs are counted from 1.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from model import metrics
from tuning.storage import Outcome, top

NEAR_BOUND = 0.05
"""Share of a parameter's range, on its own scale, within which a value is at the bound."""
PAUSE = 60.0
"""Seconds without any trial that part two runs of a study."""

Floats = npt.NDArray[np.float64]


# ---------------------------------------------------------------------------------------------------------------------
# Trials


_OUTCOMES = {str(outcome): outcome for outcome in Outcome}
_STATES = {
    TrialState.COMPLETE: Outcome.COMPLETE,
    TrialState.PRUNED: Outcome.PRUNED,
    TrialState.FAIL: Outcome.FAILED,
}


def outcome(trial: FrozenTrial) -> Outcome | None:
    """How a trial ended; None while it waits or runs. One that was told from outside has Optuna's state alone."""
    return _OUTCOMES.get(trial.user_attrs.get("outcome", "")) or _STATES.get(trial.state)


def reached(trial: FrozenTrial) -> float | None:
    """The best validation top-1 of a trial's epochs; None where it has none."""
    if trial.state is TrialState.COMPLETE and trial.value is not None:
        return trial.value
    values = [value for value in trial.intermediate_values.values() if math.isfinite(value)]
    return max(values, default=None)


def trained(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The finished trials that have reported an epoch, or a value at least."""
    return [trial for trial in trials if trial.state.is_finished() and reached(trial) is not None]


def ranked(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trained trials, best first; those that were trained to their end come before the pruned ones of any value."""
    return sorted(
        trained(trials),
        key=lambda trial: (trial.state is not TrialState.COMPLETE, -(reached(trial) or 0.0), trial.number),
    )


def sampled(trials: Sequence[FrozenTrial], most: int) -> list[FrozenTrial]:
    """At most so many trained trials: the best eighth of them, the known-good ones, and the rest by lot."""
    order = ranked(trials)
    if len(order) <= most:
        return order
    first = order[: most // 8] + [trial for trial in order[most // 8 :] if "known_good" in trial.user_attrs]
    rest = [trial for trial in order[most // 8 :] if "known_good" not in trial.user_attrs]
    chosen = np.random.default_rng(0).choice(len(rest), most - len(first), replace=False)
    return first + [rest[place] for place in sorted(chosen)]


def curve(trial: FrozenTrial) -> tuple[list[int], list[float]]:
    """A trial's epochs, from 1, and its validation top-1 after each."""
    steps = sorted(trial.intermediate_values)
    return [step + 1 for step in steps], [trial.intermediate_values[step] for step in steps]


def best_so_far(trials: Sequence[FrozenTrial]) -> tuple[list[int], list[float]]:
    """Trial numbers at which the best complete value rose, and the values; the last trial's number closes the line."""
    numbers: list[int] = []
    values: list[float] = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        better = trial.state is TrialState.COMPLETE and (not values or (trial.value or 0.0) > values[-1])
        if better:
            numbers.append(trial.number)
            values.append(trial.value or 0.0)
    if numbers:
        numbers.append(max(trial.number for trial in trials))
        values.append(values[-1])
    return numbers, values


def parameters(trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """Every parameter of the space and its distribution; of several distributions the latest trial's."""
    found: dict[str, Any] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        found |= trial.distributions
    return {name: distribution for name, distribution in sorted(found.items()) if not distribution.single()}


def coordinates(trials: Sequence[FrozenTrial]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The parameters that all of the trials have, and each trial's values.

    `lr` is among them where the configurations are known: it has a parameter of its own for each optimizer.
    """
    space = {
        name: distribution
        for name, distribution in parameters(trials).items()
        if all(name in trial.params for trial in trials)
    }
    values = [{name: trial.params[name] for name in space} for trial in trials]
    rates = [trial.user_attrs["config"]["training"]["lr"] for trial in trials if "config" in trial.user_attrs]
    if "lr" not in space and len(rates) == len(trials) and len(set(rates)) > 1:
        space["lr"] = FloatDistribution(min(rates), max(rates), log=True)
        values = [row | {"lr": rate} for row, rate in zip(values, rates, strict=True)]
    return space, values


# ---------------------------------------------------------------------------------------------------------------------
# Shares


def wilson(share: float, pictures: int) -> tuple[float, float]:
    """The 95 % interval of a share of independent pictures. Raises ValueError without a picture."""
    return metrics.wilson(round(share * pictures), pictures)


def difference(first: float, second: float, pictures: int) -> tuple[float, float]:
    """The 95 % interval of first - second, each a share of `pictures` (Newcombe 1998, method 10).

    It takes the two for independent; on the same pictures they are not, which makes the true interval narrower.
    """
    low1, high1 = wilson(first, pictures)
    low2, high2 = wilson(second, pictures)
    return (
        first - second - math.hypot(first - low1, high2 - second),
        first - second + math.hypot(high1 - first, second - low2),
    )


def pictures_of(confusion: Sequence[Sequence[int]]) -> int:
    """How many pictures a confusion matrix has counted."""
    return sum(map(sum, confusion))


def commonest_class(confusion: Sequence[Sequence[int]]) -> float:
    """The top-1 of always naming the commonest class."""
    return max(map(sum, confusion)) / pictures_of(confusion)


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """How often one class is taken for another."""

    truth: int
    prediction: int
    count: int
    of: int
    """Pictures of the true class."""


def mistakes(confusion: Sequence[Sequence[int]], count: int) -> list[Mistake]:
    """The commonest mistakes, most pictures first."""
    found = [
        Mistake(truth=truth, prediction=prediction, count=cell, of=sum(row))
        for truth, row in enumerate(confusion)
        for prediction, cell in enumerate(row)
        if cell and truth != prediction
    ]
    return sorted(found, key=lambda mistake: (-mistake.count, -mistake.count / mistake.of, mistake.truth))[:count]


# ---------------------------------------------------------------------------------------------------------------------
# What mattered


@dataclass(frozen=True, kw_only=True)
class BoundHint:
    """A parameter whose best values press against an end of their range."""

    name: str
    upper: bool
    bound: float
    value: float
    """Of the best trial."""
    at_bound: int
    """How many of the best trials are at this bound, the best among them."""
    among: int
    """The best trials that have the parameter."""


def bound_hints(trials: Sequence[FrozenTrial]) -> list[BoundHint]:
    """Numeric parameters that the best trial has at a bound, and at least half of the best few with it.

    The best few are the best fifth of the complete trials, 3 to 10 of them. A lower bound of 0 is the nature of a
    dropout or a share, and no hint.
    """
    complete = top(list(trials), len(trials))
    best = complete[: min(10, max(3, len(complete) // 5))]
    hints: list[BoundHint] = []
    for name, value in best[0].params.items() if best else ():
        distribution = best[0].distributions[name]
        if isinstance(distribution, CategoricalDistribution) or distribution.single():
            continue
        number = cast("FloatDistribution | IntDistribution", distribution)
        values = [trial.params[name] for trial in best if name in trial.params]
        for upper in (False, True):
            bound = number.high if upper else number.low
            if not upper and bound == 0:
                continue
            near = [abs(_place(number, other) - upper) <= NEAR_BOUND for other in values]
            if near[0] and len(near) >= 3 and 2 * sum(near) >= len(near):
                hints.append(
                    BoundHint(name=name, upper=upper, bound=bound, value=value, at_bound=sum(near), among=len(near))
                )
    return hints


def _place(distribution: FloatDistribution | IntDistribution, value: float) -> float:
    """Where a value lies between its bounds, 0 to 1, on the distribution's own scale."""
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


@dataclass(frozen=True, kw_only=True)
class Leaning:
    """How the best trials differ from all in one parameter."""

    name: str
    strength: float
    """0: not at all; 1: no overlap."""
    best: Any
    """The best trials' median, or the choice that they lean to most."""
    everywhere: Any
    """All trials' median; of a choice None."""
    share_best: float
    """Of a choice: how many of the best have it; of a number 0."""
    share_all: float


def leanings(trials: Sequence[FrozenTrial], count: int) -> list[Leaning]:
    """What the `count` best trained trials lean to, the strongest first.

    The strength of a number is the distance of the two groups' order from chance, |2 AUC - 1|; of a choice the
    difference of its shares.
    """
    order = ranked(trials)
    best = order[:count]
    found: list[Leaning] = []
    for name, distribution in parameters(order).items():
        mine = [trial.params[name] for trial in best if name in trial.params]
        others = [trial.params[name] for trial in order[count:] if name in trial.params]
        if len(mine) < 3 or len(others) < 3:
            continue
        if isinstance(distribution, CategoricalDistribution):
            shares = {
                choice: (mine.count(choice) / len(mine), (mine + others).count(choice) / len(mine + others))
                for choice in distribution.choices
            }
            choice = max(shares, key=lambda choice: shares[choice][0] - shares[choice][1])
            ours, all_share = shares[choice]
            found.append(
                Leaning(
                    name=name,
                    strength=ours - others.count(choice) / len(others),
                    best=choice,
                    everywhere=None,
                    share_best=ours,
                    share_all=all_share,
                )
            )
        else:
            above = np.sign(np.subtract.outer(np.array(mine, float), np.array(others, float))).mean()
            found.append(
                Leaning(
                    name=name,
                    strength=abs(float(above)),
                    best=float(np.median(mine)),
                    everywhere=float(np.median(mine + others)),
                    share_best=0.0,
                    share_all=0.0,
                )
            )
    return sorted(found, key=lambda leaning: -leaning.strength)


def front(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The complete trials that no other beats in accuracy without more FLOPs, from the cheapest to the best."""
    priced = [trial for trial in trials if trial.state is TrialState.COMPLETE and "flops" in trial.user_attrs]
    priced.sort(key=lambda trial: (trial.user_attrs["flops"], -(trial.value or 0.0), trial.number))
    found: list[FrozenTrial] = []
    for trial in priced:
        if not found or (trial.value or 0.0) > (found[-1].value or 0.0):
            found.append(trial)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What was saved


@dataclass(frozen=True, kw_only=True)
class Savings:
    """What pruning and the memory of tried configurations spared."""

    pruned: int
    epochs: int
    """That all trained trials trained."""
    spared: int
    """Epochs that pruned trials did not train."""
    spared_seconds: float
    """What they would have taken, at each trial's own seconds an epoch."""
    duplicates: int
    duplicate_epochs: int
    """What their twins trained."""
    duplicate_seconds: float

    @property
    def share(self) -> float:
        """Of the epochs without pruning, those that were spared."""
        return self.spared / (self.epochs + self.spared) if self.spared else 0.0


def horizon(trial: FrozenTrial) -> int | None:
    """The epochs that a trial trains when it is not pruned; None where its configuration is not known."""
    config = trial.user_attrs.get("config")
    return int(config["training"]["epochs"]) if isinstance(config, dict) else None


def savings(trials: Sequence[FrozenTrial]) -> Savings:
    """Counts the epochs that were not trained. Diverged trials were not spared: there was nothing left to train."""
    by_number = {trial.number: trial for trial in trials}
    epochs = pruned = spared = duplicates = duplicate_epochs = 0
    spared_seconds = duplicate_seconds = 0.0
    for trial in trials:
        done = len(trial.intermediate_values)
        epochs += done * trial.state.is_finished()
        if outcome(trial) is Outcome.PRUNED and done:
            pruned += 1
            left = max(0, (horizon(trial) or done) - done)
            spared += left
            spared_seconds += left * seconds(trial) / done
        elif outcome(trial) is Outcome.DUPLICATE:
            duplicates += 1
            twin = re.search(r"trial (\d+)", str(trial.user_attrs.get("reason")))
            original = by_number.get(int(twin[1])) if twin else None
            if original is not None:
                duplicate_epochs += len(original.intermediate_values)
                duplicate_seconds += seconds(original)
    return Savings(
        pruned=pruned,
        epochs=epochs,
        spared=spared,
        spared_seconds=spared_seconds,
        duplicates=duplicates,
        duplicate_epochs=duplicate_epochs,
        duplicate_seconds=duplicate_seconds,
    )


def seconds(trial: FrozenTrial) -> float:
    """What a trial's training took; where it was not noted, the time between its start and its end."""
    noted = trial.user_attrs.get("seconds")
    if noted is not None:
        return float(noted)
    return trial.duration.total_seconds() if trial.duration else 0.0


def agreement(trials: Sequence[FrozenTrial], epoch: int) -> tuple[float, int] | None:
    """Spearman's rank correlation between the best value up to `epoch` and the final one, over complete trials.

    Returns: the correlation and the number of trials; None below five of them or where all are equal. The pruned ones
    are missing, whose early values were the lowest: over all trials it would be higher.
    """
    early: list[float] = []
    final: list[float] = []
    for trial in trials:
        epochs, values = curve(trial)
        if trial.state is TrialState.COMPLETE and epochs and epochs[-1] > epoch >= epochs[0]:
            early.append(max(value for at, value in zip(epochs, values, strict=True) if at <= epoch))
            final.append(trial.value or 0.0)
    if len(early) < 5 or len(set(early)) == 1 or len(set(final)) == 1:
        return None
    return float(np.corrcoef(_ranks(early), _ranks(final))[0, 1]), len(early)


def _ranks(values: Sequence[float]) -> Floats:
    """Ranks from 1, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


# ---------------------------------------------------------------------------------------------------------------------
# How it ran


def tally(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """Trials by outcome, then those that run and wait; only what there is."""
    ends = Counter(outcome(trial) for trial in trials)
    found = {str(end): ends[end] for end in Outcome}
    found["running"] = sum(trial.state is TrialState.RUNNING for trial in trials)
    found["waiting"] = sum(trial.state is TrialState.WAITING for trial in trials)
    return {name: count for name, count in found.items() if count}


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why trials ended, equal words taken together."""

    outcome: Outcome
    text: str
    """With an ellipsis for the numbers in which they differ."""
    count: int
    numbers: tuple[int, ...]
    """Of the first few trials."""


def reasons(trials: Sequence[FrozenTrial], *, shown: int = 5) -> list[Reason]:
    """The reasons, those of each outcome together, the commonest first; `shown` trial numbers of each."""
    groups: dict[tuple[Outcome, str], dict[str, list[FrozenTrial]]] = {}
    for trial in trials:
        end = outcome(trial)
        if end is not None:
            text = " ".join(str(trial.user_attrs.get("reason", "no reason was noted")).split())
            # A duplicate, a budget and a loss have numbers of their own each time; an epoch groups.
            pattern = text if end is Outcome.PRUNED else re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "…", text)
            groups.setdefault((end, pattern), {}).setdefault(text, []).append(trial)
    found = [
        Reason(
            outcome=end,
            text=next(iter(texts)) if len(texts) == 1 else pattern,
            count=sum(map(len, texts.values())),
            numbers=tuple(sorted(trial.number for members in texts.values() for trial in members)[:shown]),
        )
        for (end, pattern), texts in groups.items()
    ]
    order = list(Outcome)
    return sorted(found, key=lambda reason: (order.index(reason.outcome), -reason.count, reason.numbers))


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One trial's time in its slot, in seconds since the study began, pauses cut out."""

    slot: int
    begin: float
    end: float
    number: int
    outcome: Outcome | None


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Who trained what, and when."""

    bars: tuple[Bar, ...]
    slots: int
    seconds: float
    """Of the study, pauses cut out."""
    busy: float
    """The share of the slots' time in which a trial ran."""
    pauses: tuple[tuple[float, float], ...]
    """Where a pause was cut out, and how many seconds it was."""
    began: datetime
    ended: datetime


def timeline(trials: Sequence[FrozenTrial]) -> Timeline | None:
    """The trials in their slots. None where no trial has been in one.

    A trial that was interrupted and adopted counts with its training's own seconds up to its end, not with the night
    in between.
    """
    spans: list[tuple[float, float, FrozenTrial]] = []
    known = [moment for t in trials for moment in (t.datetime_start, t.datetime_complete) if moment is not None]
    for trial in trials:
        if "slot" in trial.user_attrs and trial.datetime_start is not None:
            begin, end = trial.datetime_start.timestamp(), (trial.datetime_complete or max(known)).timestamp()
            if trial.user_attrs.get("attempts", 1) > 1 and "seconds" in trial.user_attrs:
                begin = max(begin, end - 1.1 * seconds(trial))
            spans.append((begin, end, trial))
    if not spans:
        return None
    spans.sort(key=lambda span: span[:2])
    origin, reach, cut = spans[0][0], spans[0][1], 0.0
    pauses: list[tuple[float, float]] = []
    bars: list[Bar] = []
    for begin, end, trial in spans:
        if begin - reach > PAUSE:
            cut += begin - reach
            pauses.append((begin - origin - cut, begin - reach))
        reach = max(reach, end)
        bars.append(
            Bar(
                slot=int(trial.user_attrs["slot"]),
                begin=begin - origin - cut,
                end=end - origin - cut,
                number=trial.number,
                outcome=outcome(trial),
            )
        )
    slots, total = max(bar.slot for bar in bars) + 1, max(bar.end for bar in bars)
    busy = sum(bar.end - bar.begin for bar in bars) / (slots * total) if total > 0 else 0.0
    return Timeline(
        bars=tuple(bars),
        slots=slots,
        seconds=total,
        busy=min(1.0, busy),
        pauses=tuple(pauses),
        began=datetime.fromtimestamp(origin),
        ended=datetime.fromtimestamp(reach),
    )
