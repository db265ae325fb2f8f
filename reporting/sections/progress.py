"""Report sections on the course of the study: its trials and epochs, how they ended, and how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from model.training import EpochMetrics
from reporting import analysis, charts, svg
from reporting.sections.parts import BEST_FEW, Facts, Figure, Paragraph, Section, Table, as_dot, drawn_of
from reporting.words import duration, how_far, listed, numbered_epochs, percent, plural, points, times
from selection.pruner_audit import PrunerAudit
from tuning.scheduling import kept_share
from tuning.trials import Outcome, Trial, count_trials

DRAWN = 800
"""Largest number of points in a chart: more would hide each other and enlarge the page."""
DRAWN_CURVES = 150
STRONG = 0.7
"""Rank correlation between early and final values from which the early order can be relied on."""
SHOWN_REASONS = 12


def search(facts: Facts) -> Section | None:
    """Show validation top-1 over the trials and over the epochs."""
    ended = analysis.trained(facts.trials)
    if not ended:
        return None
    shown, best = analysis.sampled(facts.trials, DRAWN), analysis.best_so_far(facts.trials)
    section = Section(anchor="search", title="Search")
    section.parts.append(
        Figure(
            title="Validation top-1 of each trial",
            says=_history_says(facts, best) + drawn_of(len(shown), len(ended)),
            drawings=[charts.history([as_dot(trial, trial.number) for trial in shown], best)],
            plots=("history",),
        )
    )
    order = [trial for trial in analysis.ranked(facts.trials) if trial.epochs]
    if order:
        section.parts.append(_curves(facts, order))
    if facts.history and facts.best is not None and facts.best.result is not None:
        epoch = facts.best.result.epoch
        section.parts.append(
            Figure(
                title=f"Training of trial {facts.best.number}",
                says=_training_says(facts.best.number, facts.history, epoch),
                drawings=svg.curve_panels(facts.history, epoch + 1),
            )
        )
    return section


def _history_says(facts: Facts, best: analysis.Points) -> str:
    if not best:
        return "No trial was trained to its last epoch, so there is no best value yet."
    last, rises = int(best[-1][0]), len(best) - 2
    (number, value), (_, first) = best[-2], best[0]
    if last == 0:
        return f"The first trial reached {percent(first, 1)}; it is the only one so far."
    if rises == 0:
        return f"The first complete trial, {number}, is still the best of {last + 1:,}."
    text = (
        f"The best value rose {times(rises)}, from {percent(first, 1)} to {percent(value, 1)}, last by "
        f"{points(value - best[-3][1])} in trial {number}"
    )
    if number == last:
        return text + ": more trials may find better ones."
    return text + f"; the {plural(int(last - number), 'trial')} since then brought no improvement."


def _curves(facts: Facts, order: Sequence[Trial]) -> Figure:
    """Draw learning curves, the best few highlighted."""
    chosen = {trial.number for trial in analysis.sampled(facts.trials, DRAWN_CURVES)}
    others = [trial for trial in order[BEST_FEW:] if trial.number in chosen]
    drawn = [
        [
            charts.Curve(
                points=analysis.curve(trial),
                outcome=trial.outcome,
                name=f"trial {trial.number}: {percent(trial.reached, 1)}",
            )
            for trial in some
        ]
        for some in (order[:BEST_FEW], others)
    ]
    return Figure(
        title="Learning curves",
        says=_curves_says(facts, order) + drawn_of(sum(map(len, drawn)), len(order)),
        drawings=[charts.curves(drawn[0], drawn[1], facts.rungs)],
        plots=("curves",),
    )


def _curves_says(facts: Facts, order: Sequence[Trial]) -> str:
    texts: list[str] = []
    if facts.best is not None and facts.best.epochs:
        curve = facts.best.curve
        at, last = max(curve, key=lambda epoch: curve[epoch]) + 1, max(curve) + 1
        texts.append(f"The best trial reached its {percent(max(curve.values()), 1)} in epoch {at} of {last}.")
        if at == last > 1:
            texts.append("It was still improving when training ended: try more --epochs, in a new study.")
    pruned = [trial.epochs for trial in order if trial.outcome is Outcome.PRUNED]
    if facts.rungs or pruned:
        first = facts.rungs[0] if facts.rungs else min(pruned)
        if facts.rungs:
            paused, kept = numbered_epochs(facts.rungs), percent(kept_share(facts.settings["epochs"]), 0)
            texts.append(f"Each trial pauses after {paused}; the best {kept} at each are resumed.")
        else:
            texts.append(f"Pruning began after epoch {first}.")
        if found := analysis.agreement(facts.trials, first):
            texts.append(_agreement_says(found, first, audited=facts.audit is not None))
    elif len(order) > 1:
        texts.append("No trial was pruned.")
    return " ".join(texts) or f"Trained for {plural(order[0].epochs, 'epoch')}."


def _agreement_says(found: analysis.Agreement, first: int, *, audited: bool) -> str:
    """Say whether trials ahead after epoch `first` ended ahead, as far as the interval of the correlation tells.

    Trials trained to the end are a selection, so a weak order among them does not show that pruning was wrong; unless
    the study was audited, the text says what would show it.
    """
    weak = found.high < STRONG
    if weak:
        order = f"those ahead after epoch {first} {'rarely ended' if found.low <= 0 else 'often did not end'} ahead"
    elif found.low <= 0:
        order = f"there are too few to say whether those ahead after epoch {first} end ahead"
    else:
        order = f"those ahead after epoch {first} mostly ended ahead, too"
    text = (
        f"Of {plural(found.trials, 'trial')} trained to the end, {order} (rank correlation {found.correlation:.2f}, "
        f"95 % interval {found.low:.2f} to {found.high:.2f})."
    )
    if weak and not audited:
        return text + (
            " But only trials that were ahead of others got to the end: --audit-pruner 8 shows whether pruned ones "
            "would have got as far."
        )
    return text


def _training_says(number: int, history: Sequence[EpochMetrics], at: int) -> str:
    best, gap = history[at], history[at].train_top1 - history[at].top1
    text = (
        f"In its best epoch, {at + 1} of {len(history)} (dashed line), trial {number} classified "
        f"{percent(best.train_top1, 1)} of the augmented training pictures and {percent(best.top1, 1)} of the "
        f"validation pictures correctly{f', a gap of {points(gap)}' if gap > 0 else ''}. "
    )
    losses = [epoch.validation_loss for epoch in history]
    lowest = losses.index(min(losses))
    if lowest == len(losses) - 1:
        return text + "The validation loss was still falling in the last epoch."
    if losses[-1] > 1.05 * losses[lowest]:
        return text + (
            f"The validation loss was lowest in epoch {lowest + 1} and then rose by "
            f"{percent(losses[-1] / losses[lowest] - 1, 0)}: the network began to overfit."
        )
    return text + f"The validation loss was lowest in epoch {lowest + 1} and stayed close to that."


def endings(facts: Facts) -> Section | None:
    """Show how the trials ended, what that saved, and how long the study took."""
    tally = analysis.tally(facts.trials)
    if not tally:
        return None
    more: dict[str, str] = {
        Outcome.INFEASIBLE: " (over budget, not trained)",
        Outcome.DUPLICATE: " (not trained again)",
    }
    ends = [f"{count:,} {name}{more.get(name, '')}" for name, count in tally.items()]
    section = Section(anchor="endings", title="Trials and time")
    section.parts.append(
        Paragraph(
            text=f"{plural(len(facts.trials), 'trial')}: {listed(ends)}. {count_trials(facts.trials):,} count towards "
            "--trials."
        )
    )
    if drawn := [trial for trial in analysis.trained(facts.trials) if trial.epochs]:
        section.parts.append(_progress(facts, drawn))
    if facts.audit is not None:
        section.parts.append(Paragraph(text=_audit(facts.audit)))
    time = analysis.run_time(facts.trials)
    if time is not None:
        section.parts.append(Paragraph(text=_time_says(facts, time), plots=("timeline",)))
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
                title="Why trials ended",
                head=("outcome", "reason", "trials", "numbers"),
                rows=rows[:SHOWN_REASONS],
                numeric=frozenset({2}),
                note=f"{plural(left, 'rarer reason')} left out; trials.csv has them all." if left > 0 else "",
            )
        )
    return section


def _progress(facts: Facts, drawn: Sequence[Trial]) -> Figure:
    """Draw how far each trial was trained."""
    chosen = {trial.number for trial in analysis.sampled(facts.trials, DRAWN)}
    shown = [trial for trial in drawn if trial.number in chosen]
    dots = [replace(as_dot(trial, trial.number), y=trial.epochs) for trial in shown]
    horizon = facts.settings.get("epochs") or max(trial.epochs for trial in drawn)
    says = f"Trained: {how_far(drawn)}. {_savings(analysis.savings(facts.trials))}".strip()
    return Figure(
        title="Epochs of each trial",
        says=says + drawn_of(len(shown), len(drawn)),
        drawings=[charts.progress(dots, horizon, facts.rungs)],
    )


def _savings(saved: analysis.Savings) -> str:
    texts: list[str] = []
    if saved.spared:
        texts.append(
            f"Pruning saved {saved.spared:,} of {saved.epochs + saved.spared:,} epochs ({percent(saved.share, 0)}), "
            f"about {duration(saved.spared_seconds)} of training."
        )
    if saved.duplicate_epochs:
        texts.append(
            f"Not training duplicates again saved {plural(saved.duplicate_epochs, 'epoch')}, "
            f"{duration(saved.duplicate_seconds)}."
        )
    return " ".join(texts)


def _audit(audit: PrunerAudit) -> str:
    tried, won = len(audit.pruned), len(audit.winners)
    number, _, value = max(audit.pruned, key=lambda row: row[2])
    return (
        f"Pruning was audited: of {plural(tried, 'pruned trial')} trained to the last epoch, {won or 'none'} beat "
        f"the study's best, {percent(audit.best, 1)}. The highest, trial {number}, reached {percent(value, 1)}."
    )


def _time_says(facts: Facts, time: analysis.RunTime) -> str:
    text = (
        f"{plural(time.workers, 'worker')} trained for {duration(time.seconds)}, from {time.began:%Y-%m-%d %H:%M} to "
        f"{time.ended:%Y-%m-%d %H:%M}, busy {percent(time.busy, 0)} of the time."
    )
    if time.pauses:
        text += f" It was interrupted {times(len(time.pauses))}, for {duration(sum(time.pauses))} in all."
    longest = max((trial for trial in facts.trials if trial.is_finished), key=lambda trial: trial.seconds, default=None)
    if longest is not None and longest.seconds:
        text += f" The longest trial, {longest.number}, took {duration(longest.seconds)}."
    return text
