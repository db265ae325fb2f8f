"""How the study went: its trials and their epochs, how they ended, and who trained when."""

from __future__ import annotations

from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from reporting import analysis, charts
from reporting.drawing import drawn
from reporting.sections.parts import (
    LIT,
    Drawing,
    Facts,
    Says,
    Section,
    Table,
    dot,
    drawn_of,
    duration,
    listed,
    percent,
    plural,
    points,
    whole_percent,
)
from selection.pruner_audit import Verdict
from tuning.storage import Outcome, counts

DRAWN = 800
"""Points of a figure at most: more hide each other, and the page stays small."""
DRAWN_CURVES = 150
DRAWN_BARS = 500
SHOWN_REASONS = 12


def search(facts: Facts) -> Section | None:
    """How the values came about: over the trials, and over the epochs."""
    ended = analysis.trained(facts.trials)
    if not ended:
        return None
    section = Section(anchor="search", title="The search")
    shown = analysis.sampled(facts.trials, DRAWN)
    steps = analysis.best_so_far(facts.trials)
    text = _history_says(facts, steps) + drawn_of(len(shown), len(ended), "trained trials")
    wide, narrow = drawn(
        lambda wide: charts.history([dot(trial, trial.number) for trial in shown], steps, wide), alt=text, key="history"
    )
    section.parts.append(
        Drawing(title="What each trial reached", says=text, wide=wide, narrow=narrow, plot="plots/history.html")
    )
    section.parts.append(_curves(facts, ended))
    if facts.history and facts.best is not None:
        section.parts.append(_training(facts.best, facts.history))
    return section


def _history_says(facts: Facts, steps: tuple[list[int], list[float]]) -> str:
    numbers, values = steps
    if not numbers:
        return "No trial was trained to its end, so there is no best one to follow."
    rises = len(numbers) - 2
    last = facts.trials[-1].number
    if last == 0:
        return f"The first trial reached {percent(values[0])}; there is no other yet."
    if rises == 0:
        return f"The first complete trial, number {numbers[0]}, is still the best of {last + 1:,}."
    since = last - numbers[-2]
    text = (
        f"The best value rose {'once' if rises == 1 else f'{rises} times'} from {percent(values[0])} to "
        f"{percent(values[-1])}; the last step, {points(values[-1] - values[-3])}, came with trial {numbers[-2]}"
    )
    if since == 0:
        return text + ", the last one: the search may not have come to its end."
    return text + f", and the {plural(since, 'trial')} after it brought nothing better."


def _curve(trial: FrozenTrial) -> charts.Curve:
    epochs, values = analysis.curve(trial)
    value = percent(analysis.reached(trial))
    return charts.Curve(
        epochs=epochs,
        values=values,
        outcome=analysis.outcome(trial) or Outcome.COMPLETE,
        name=f"trial {trial.number}: {value}",
    )


def _curves(facts: Facts, ended: list[FrozenTrial]) -> Drawing:
    order = [trial for trial in analysis.ranked(facts.trials) if trial.intermediate_values]
    lit = order[:LIT]
    chosen = {trial.number for trial in analysis.sampled(facts.trials, DRAWN_CURVES)}
    others = [trial for trial in order[LIT:] if trial.number in chosen]
    text = _curves_says(facts, order) + drawn_of(len(lit) + len(others), len(order), "curves")
    wide, narrow = drawn(
        lambda wide: charts.curves([_curve(trial) for trial in lit], [_curve(trial) for trial in others], wide),
        alt=text,
        key="curves",
    )
    return Drawing(title="Learning curves", says=text, wide=wide, narrow=narrow, plot="plots/curves.html")


def _curves_says(facts: Facts, order: list[FrozenTrial]) -> str:
    pruned = [len(trial.intermediate_values) for trial in order if analysis.outcome(trial) is Outcome.PRUNED]
    text = ""
    best = facts.best
    if best is not None and best.intermediate_values:
        epochs, values = analysis.curve(best)
        at = epochs[int(np.argmax(values))]
        text = f"The best trial came to its {percent(max(values))} in epoch {at} of {epochs[-1]}. "
        if at == epochs[-1] and len(epochs) > 1:
            text += "It was still rising when its training ended: more --epochs, in a new study, may give more. "
    if pruned:
        first = min(pruned)
        text += f"Pruning began after epoch {first}. "
        found = analysis.agreement(facts.trials, first)
        if found:
            rho, of = found
            words = (
                "mostly ended ahead"
                if rho >= 0.7
                else "ended ahead only in part"
                if rho >= 0.4
                else "hardly ended ahead: early values say little here, and --pruner none is worth a try"
            )
            text += (
                f"Of {plural(of, 'trial')} trained to the end, those that were ahead by then {words} "
                f"(rank correlation {rho:.2f})."
            )
    elif len(order) > 1:
        text += "No trial was pruned."
    return text.strip() or "One trial was trained for one epoch."


def _training(best: FrozenTrial, history: list[dict[str, Any]]) -> Drawing:
    at = best.user_attrs["best_epoch"]
    row = history[at]
    gap = row["train_top1"] - row["top1"]
    text = (
        f"In its best epoch, {at + 1} of {len(history)} (dashed), trial {best.number} named "
        f"{percent(row['train_top1'])} of the augmented training pictures and {percent(row['top1'])} of the validation "
        "pictures correctly"
    )
    text += f", a gap of {points(gap)}. " if gap > 0 else ". "
    losses = [row["validation_loss"] for row in history]
    lowest = int(np.argmin(losses))
    if lowest == len(losses) - 1:
        text += "The validation loss was still falling in the last epoch."
    elif losses[-1] > 1.05 * losses[lowest]:
        text += (
            f"The validation loss was lowest in epoch {lowest + 1} and rose by "
            f"{whole_percent(losses[-1] / losses[lowest] - 1)} after it: the network began to learn its training "
            "pictures by heart, or to be too sure of itself."
        )
    else:
        text += f"The validation loss was lowest in epoch {lowest + 1} and stayed near that."
    wide, narrow = drawn(lambda wide: charts.training(history, at + 1, wide), alt=text, key="training")
    return Drawing(title=f"The training of trial {best.number}", says=text, wide=wide, narrow=narrow)


def endings(facts: Facts) -> Section | None:
    """How the trials ended, and what that saved."""
    tally = analysis.tally(facts.trials)
    if not tally:
        return None
    section = Section(anchor="endings", title="How the trials ended")
    words = {
        Outcome.COMPLETE: "trained to the last epoch",
        Outcome.PRUNED: "pruned",
        Outcome.DIVERGED: "diverged",
        Outcome.INFEASIBLE: "over a budget and not trained",
        Outcome.DUPLICATE: "the same as an earlier one and not trained again",
        Outcome.FAILED: "failed",
    }
    counted = sum(map(counts, facts.trials))
    parts = [
        f"{count:,} {words.get(Outcome(name), name) if name in set(Outcome) else name}" for name, count in tally.items()
    ]
    text = f"Of {plural(len(facts.trials), 'trial')}, {listed(parts)}; {counted:,} count towards --trials."
    wide, narrow = drawn(lambda wide: charts.tally(tally, wide), alt=text, key="tally")
    section.parts.append(Drawing(title="Outcomes", says=text, wide=wide, narrow=narrow))
    saved = _savings(analysis.savings(facts.trials))
    if saved:
        section.parts.append(Says(text=saved))
    if facts.audit is not None:
        section.parts.append(Says(text=_audit(facts.audit)))
    rows = [
        (
            str(reason.outcome),
            reason.text,
            f"{reason.count:,}",
            ", ".join(map(str, reason.numbers)) + (", …" if reason.count > len(reason.numbers) else ""),
        )
        for reason in analysis.reasons(facts.trials)
    ]
    if rows:
        left = len(rows) - SHOWN_REASONS
        section.parts.append(
            Table(
                title="Reasons",
                head=("outcome", "reason", "trials", "which"),
                rows=rows[:SHOWN_REASONS],
                numeric=frozenset({2}),
                note=f"And {plural(left, 'rarer reason')}; trials.csv has every trial's own." if left > 0 else "",
            )
        )
    return section


def _audit(verdict: Verdict) -> str:
    """Was the pruner right?"""
    tried, won = len(verdict.pruned), len(verdict.winners)
    number, _, value = max(verdict.pruned, key=lambda row: row[2])
    said = "none" if not won else "all" if won == tried else f"{won:,}"
    return (
        f"The pruner was checked: {plural(tried, 'pruned trial was', 'pruned trials were')} trained to the end, just "
        f"as they would have been, and {said} of them beat the study's best, {percent(verdict.best)}. The highest, "
        f"trial {number}, reached {percent(value)}."
    )


def _savings(saved: analysis.Savings) -> str:
    parts: list[str] = []
    if saved.spared:
        parts.append(
            f"Pruning spared {saved.spared:,} of {saved.epochs + saved.spared:,} epochs "
            f"({whole_percent(saved.share)}), about {duration(saved.spared_seconds)} of training."
        )
    if saved.duplicates:
        one = saved.duplicates == 1
        parts.append(
            f"{plural(saved.duplicates, 'proposed configuration was', 'proposed configurations were')} "
            f"known already; not training {'it' if one else 'them'} again spared "
            f"{plural(saved.duplicate_epochs, 'epoch')}, {duration(saved.duplicate_seconds)}."
        )
    return " ".join(parts)


def workers(facts: Facts) -> Section | None:
    """Who trained when, on what."""
    line = analysis.timeline(facts.trials)
    if line is None:
        return None
    section = Section(anchor="workers", title="How it ran")
    shown = line.bars[-DRAWN_BARS:]
    origin = min(bar.begin for bar in shown) if len(shown) < len(line.bars) else 0.0
    span = max(bar.end for bar in shown) - origin
    text = (
        f"{plural(line.slots, 'worker')} trained for {duration(line.seconds)}, from {line.began:%Y-%m-%d %H:%M} to "
        f"{line.ended:%Y-%m-%d %H:%M}, busy {whole_percent(line.busy)} of the time."
    )
    if line.pauses:
        away = sum(length for _, length in line.pauses)
        count = "a pause" if len(line.pauses) == 1 else f"{len(line.pauses)} pauses"
        text += f" The study lay still in {count} of {duration(away)} in all (dashed), cut out here."
    longest = max((trial for trial in facts.trials if trial.state.is_finished()), key=analysis.seconds, default=None)
    if longest is not None and analysis.seconds(longest) > 0:
        text += f" The longest trial was number {longest.number} with {duration(analysis.seconds(longest))}."
    if len(shown) < len(line.bars):
        text += f" Drawn are the last {len(shown):,} of {len(line.bars):,} trials."
    bars = [(bar.slot, bar.begin - origin, bar.end - origin, bar.outcome) for bar in shown]
    pauses = [at - origin for at, _ in line.pauses if at >= origin]
    wide, narrow = drawn(lambda wide: charts.workers(bars, line.slots, span, pauses, wide), alt=text, key="workers")
    section.parts.append(Drawing(title="The workers' time", says=text, wide=wide, narrow=narrow))
    return section
