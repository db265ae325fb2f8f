"""Why the good trials are good, and what they cost."""

from __future__ import annotations

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from reporting import analysis, charts
from reporting.drawing import drawn, number
from reporting.importance import FEWEST, Importances
from reporting.sections.parts import (
    LIT,
    Drawing,
    Facts,
    Part,
    Says,
    Section,
    Table,
    axis,
    dot,
    drawn_of,
    listed,
    percent,
    plural,
    points,
    trial_name,
    value_text,
    whole_percent,
)
from tuning.storage import Outcome

FEW = 50
"""Trained trials below which the best tenth is fewer than the five that PED-ANOVA wants."""
DRAWN = 800
"""Points of a figure at most: more hide each other, and the page stays small."""
DRAWN_LINES = 250
DRAWN_SLICE = 250
SLICES = 8
"""Parameters that have a panel, the most important ones; the interactive page has all."""
AXES = 10
"""Parameters that whole configurations are drawn over."""


def mattered(facts: Facts) -> Section | None:
    """Importances, slices, parallel coordinates, and bounds that the best values press against."""
    ended = analysis.trained(facts.trials)
    space = analysis.parameters(ended)
    if not ended or not space:
        return None
    section = Section(anchor="mattered", title="What mattered")
    if facts.importances is None:
        needed = FEWEST
        section.parts.append(
            Says(
                text=f"What mattered cannot be told from {plural(len(ended), 'trained trial')}: importances need at "
                f"least {needed} that have a parameter in common, and {FEW} to be of use.",
                tone="warning",
            )
        )
    else:
        section.parts.extend(_importances(facts.importances))
    hints = analysis.bound_hints(facts.trials)
    section.parts.extend([Says(text=_hint(hint), tone="hint") for hint in hints])
    order = [row.name for row in facts.importances.rows] if facts.importances else []
    names = [*order, *(name for name in space if name not in order)]
    section.parts.append(_slices(facts, ended, space, names))
    whole = _parallel(facts, ended, names) if len(ended) > 1 else None
    if whole is not None:
        section.parts.append(whole)
    return section


def _importances(found: Importances) -> list[Part]:
    telling = [row for row in found.rows if row.tells]
    among = f"the best {found.best} of {found.trials:,} trained trials"
    if telling:
        shares = [f"{row.name} ({whole_percent(row.share)})" for row in telling[:4]]
        rest = len(telling) - 4
        more = f", and {plural(rest, 'other')}" if rest > 0 else ""
        text = f"Whether a trial is among {among} hangs most on {listed(shares)}{more}. "
        quiet = len(found.rows) - len(telling)
        if quiet:
            text += f"The other {plural(quiet, 'parameter')} cannot be told from chance (grey). "
    else:
        text = f"No parameter decides, more than chance would, who is among {among}. "
    text += (
        "All of them were pruned and count with what they had reached."
        if found.pruned == found.trials
        else f"The {found.pruned:,} that were not trained to the end count with what they had reached."
        if found.pruned
        else "All were trained to the end."
    )
    wide, narrow = drawn(lambda wide: charts.importances(found.rows, wide), alt=text, key="importances")
    parts: list[Part] = [
        Drawing(title="Importances", says=text, wide=wide, narrow=narrow, plot="plots/importances.html")
    ]
    warned = []
    if found.trials < FEW:
        warned.append(
            f"{found.trials} trials are few for {len(found.rows)} parameters: take the order as a hint. Of twenty "
            f"that decide nothing, one passes the vermilion mark by luck. It becomes steadier from {FEW} trials on."
        )
    if found.rare:
        few = [f"{name} ({plural(count, 'trial')})" for name, count in found.rare.items()]
        warned.append(f"Too rare to be judged: {listed(few)}.")
    if warned:
        parts.append(Says(text=" ".join(warned), tone="warning"))
    return parts


def _hint(hint: analysis.BoundHint) -> str:
    side = "upper" if hint.upper else "lower"
    at = number(hint.value)
    where = (
        f"is {at}, its {side} bound"
        if hint.value == hint.bound
        else (f"is {at}, close to its {side} bound {number(hint.bound)}")
    )
    return (
        f"The best {hint.name} {where}, as in {hint.at_bound} of the best {hint.among} trials that have it: widen it "
        "(search_space.py, in a new study)."
    )


def _slices(facts: Facts, ended: list[FrozenTrial], space: dict[str, BaseDistribution], names: list[str]) -> Drawing:
    shown = analysis.sampled(facts.trials, DRAWN_SLICE)
    best = facts.best
    panels = [
        charts.Slice(
            axis=axis(name, space[name]),
            dots=[
                (trial.params[name], analysis.reached(trial) or 0.0, analysis.outcome(trial) or Outcome.COMPLETE)
                for trial in shown
                if name in trial.params
            ],
            best=(best.params[name], best.value or 0.0) if best is not None and name in best.params else None,
        )
        for name in names[:SLICES]
    ]
    few = min(50, max(5, len(ended) // 10))
    found = analysis.leanings(facts.trials, few)[:3] if len(ended) >= 10 else []
    if found:
        text = f"The {few} best trials lean to {listed([_leaning(one) for one in found])}. "
    else:
        text = "With so few trials no value stands out. "
    if best is not None:
        text += f"The large dot is trial {best.number}, the best. "
    if len(names) > len(panels):
        text += f"These are {len(panels)} of {len(names)} parameters, the most important ones first."
    text += drawn_of(len(shown), len(ended), "trials")
    wide, narrow = drawn(lambda wide: charts.slices(panels, wide), alt=text, key="slices")
    return Drawing(
        title="Each parameter against what was reached", says=text.strip(), wide=wide, narrow=narrow,
        plot="plots/slices.html",
    )  # fmt: skip


def _leaning(found: analysis.Leaning) -> str:
    if found.everywhere is None:
        shares = f"{whole_percent(found.share_best)} of them, {whole_percent(found.share_all)} of all"
        return f"{found.name} {value_text(found.best)} ({shares})"
    if found.best == found.everywhere:
        return f"{found.name} close to {number(found.best)}, the median of all trials"
    more = "larger" if found.best > found.everywhere else "smaller"
    return f"{more} {found.name} (median {number(found.best)}, of all trials {number(found.everywhere)})"


def _parallel(facts: Facts, ended: list[FrozenTrial], names: list[str]) -> Drawing | None:
    shown = analysis.sampled(facts.trials, DRAWN_LINES)
    space, values = analysis.coordinates(shown)
    first = ["lr", *names] if "lr" in space else names
    chosen = [name for name in dict.fromkeys(first) if name in space][:AXES]
    if not chosen:
        return None
    lines = [
        charts.Line(values=row, value=analysis.reached(trial) or 0.0, lit=place if place < LIT else None)
        for place, (trial, row) in enumerate(zip(shown, values, strict=True))
    ]
    lit = shown[:LIT]
    common = [
        f"{name} {value_text(values[0][name])}"
        for name in chosen
        if len({str(row[name]) for row in values[: len(lit)]}) == 1
    ]
    text = f"The best {len(lit)} trials " + (
        f"agree in {listed(common)} and part elsewhere." if common else "agree in no parameter: good networks differ."
    )
    text += drawn_of(len(shown), len(ended), "trials")
    labels = [f"trial {trial.number}: {percent(analysis.reached(trial))}" for trial in lit]
    axes = [axis(name, space[name]) for name in chosen]
    wide, narrow = drawn(lambda wide: charts.parallel(axes, lines, labels, wide), alt=text, key="parallel")
    return Drawing(title="Whole configurations", says=text, wide=wide, narrow=narrow, plot="plots/parallel.html")


def cost(facts: Facts) -> Section | None:
    """Accuracy against FLOPs."""
    priced = [trial for trial in analysis.trained(facts.trials) if trial.user_attrs.get("flops")]
    if not priced:
        return None
    shown = analysis.sampled(priced, DRAWN)
    best = analysis.front(facts.trials)
    shown += [trial for trial in best if trial not in shown]
    line = ([trial.user_attrs["flops"] / 1e6 for trial in best], [trial.value or 0.0 for trial in best])
    budget = facts.settings.get("max flops")
    text = _front_says(best) + drawn_of(len(shown), len(priced), "trials")
    wide, narrow = drawn(
        lambda wide: charts.price(
            [dot(trial, trial.user_attrs["flops"] / 1e6) for trial in shown],
            line,
            budget / 1e6 if budget else None,
            wide,
        ),
        alt=text,
        key="cost",
    )
    section = Section(anchor="cost", title="What accuracy costs")
    section.parts.append(
        Drawing(title="Accuracy against FLOPs", says=text, wide=wide, narrow=narrow, plot="plots/cost.html")
    )
    if len(best) > 1:
        section.parts.append(
            Table(
                title="The Pareto front: nothing is better for less",
                head=("trial", "top-1", "MFLOP a picture", "thousand weights", "image size"),
                rows=[
                    (
                        trial_name(trial),
                        percent(trial.value),
                        number(trial.user_attrs["flops"] / 1e6),
                        f"{trial.user_attrs.get('parameters', 0) / 1e3:,.0f}",
                        value_text((trial.user_attrs.get("config") or {}).get("image_size", "-")),
                    )
                    for trial in best
                ],
                numeric=frozenset({1, 2, 3, 4}),
            )
        )
    return section


def _front_says(best: list[FrozenTrial]) -> str:
    if not best:
        return "No trial was trained to its end, so there is no front yet."
    last = best[-1]
    mflop = last.user_attrs["flops"] / 1e6
    if len(best) == 1:
        return f"Trial {last.number}, the best, is also the cheapest complete one, with {number(mflop)} million FLOPs."
    near = next((t for t in best if (t.value or 0.0) >= (last.value or 0.0) - 0.03), last)
    text = (
        f"{plural(len(best), 'trial')} of the complete ones are beaten by none in both: from {percent(best[0].value)} "
        f"for {number(best[0].user_attrs['flops'] / 1e6)} million FLOPs to {percent(last.value)} for {number(mflop)}. "
    )
    if near is not last:
        share = near.user_attrs["flops"] / last.user_attrs["flops"]
        text += (
            f"Trial {near.number} comes within {points((last.value or 0.0) - (near.value or 0.0))} of the best for "
            f"{whole_percent(share)} of its FLOPs."
        )
    else:
        text += "Within 3 points of the best nothing is cheaper."
    return text
