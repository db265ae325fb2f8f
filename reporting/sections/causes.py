"""Report sections on the settings that make good trials, and on accuracy against cost."""

from __future__ import annotations

from collections.abc import Sequence

from reporting import analysis, charts
from reporting.importance import FEWEST, Importances
from reporting.sections.parts import Facts, Figure, Paragraph, Part, Section, as_dot, drawn_of, trial_table
from reporting.words import listed, number, percent, plural, points, value_text
from tuning.trials import Trial

FEW = 50
"""Number of trained trials below which the best tenth is fewer than the five that PED-ANOVA needs."""
DRAWN = 800
"""Largest number of points in a chart: more would hide each other and enlarge the page."""


def mattered(facts: Facts) -> Section | None:
    """Show importances, what the best trials have in common, and bounds that the best values lie at."""
    ended = analysis.trained(facts.trials)
    if not ended or not analysis.parameters(ended):
        return None
    section = Section(anchor="mattered", title="What matters")
    if facts.importances is None:
        section.parts.append(
            Paragraph(
                text=f"{plural(len(ended), 'trained trial')} cannot show what matters: importances need at least "
                f"{FEWEST} trials with a parameter in common, and are useful from {FEW} on.",
                tone="warning",
            )
        )
    else:
        section.parts.extend(_importances(facts.importances))
    few = min(50, max(5, len(ended) // 10))
    found = analysis.leanings(facts.trials, few)[:3]
    text = (
        f"The {few} best trials prefer {listed([_leaning(one) for one in found])}." if found else "Interactive plots:"
    )
    section.parts.append(Paragraph(text=text, plots=("slices", "parallel", "rank")))
    section.parts.extend(Paragraph(text=_hint(hint), tone="hint") for hint in analysis.bound_hints(facts.trials))
    return section


def _importances(found: Importances) -> list[Part]:
    telling = [row for row in found.rows if row.tells]
    among = f"the best {found.best} of {found.trials:,} trained trials"
    if telling:
        rest, quiet = len(telling) - 4, len(found.rows) - len(telling)
        shares = [f"{row.name} ({percent(row.share, 0)})" for row in telling[:4]]
        shares += [plural(rest, "other")] * (rest > 0)
        text = f"Whether a trial is among {among} depends most on {listed(shares)}. "
        text += f"The other {plural(quiet, 'parameter')} (grey) cannot be distinguished from chance. " if quiet else ""
    else:
        text = f"No parameter matters more than chance would explain for being among {among}. "
    if found.pruned:
        text += f"For {plural(found.pruned, 'trial')} that stopped earlier, the best value reached counts."
    drawings = [charts.importances(found.rows)]
    parts: list[Part] = [Figure(title="Importances", says=text.strip(), drawings=drawings, plots=("importances",))]
    warnings: list[str] = []
    if found.trials < FEW:
        warnings.append(
            f"{found.trials} trials are few for {len(found.rows)} parameters: the order is a hint at best, and of 20 "
            f"parameters without any effect, one exceeds the chance level. From {FEW} trials on, it is more reliable."
        )
    if found.rare:
        rare = [f"{name} ({plural(count, 'trial')})" for name, count in found.rare.items()]
        warnings.append(f"Too few trials to judge: {listed(rare)}.")
    if warnings:
        parts.append(Paragraph(text=" ".join(warnings), tone="warning"))
    return parts


def _leaning(found: analysis.Leaning) -> str:
    if found.everywhere is None:
        shares = f"{percent(found.share_best, 0)} of them, {percent(found.share_all, 0)} of all"
        return f"{found.name} {value_text(found.best)} ({shares})"
    if found.best == found.everywhere:
        return f"{found.name} close to {number(found.best)}, the median of all trials"
    more = "larger" if found.best > found.everywhere else "smaller"
    return f"a {more} {found.name} (median {number(found.best)}, over all trials {number(found.everywhere)})"


def _hint(hint: analysis.BoundHint) -> str:
    side = "upper" if hint.upper else "lower"
    at = "at" if hint.value == hint.bound else f"{number(hint.value)}, close to"
    return (
        f"The best {hint.name} is {at} its {side} bound, {number(hint.bound)}, as in {hint.at_bound} of the best "
        f"{hint.among} trials: widen its range in search_space.py and start a new study."
    )


def cost(facts: Facts) -> Section | None:
    """Show accuracy against FLOPs."""
    priced = [trial for trial in analysis.trained(facts.trials) if trial.flops]
    if not priced:
        return None
    front, shown = analysis.front(facts.trials), analysis.sampled(priced, DRAWN)
    numbers = {trial.number for trial in shown}
    shown += [trial for trial in front if trial.number not in numbers]
    budget = facts.settings.get("max flops")
    section = Section(anchor="cost", title="Accuracy and cost")
    section.parts.append(
        Figure(
            title="Accuracy against FLOPs",
            says=_front_says(front) + drawn_of(len(shown), len(priced)),
            drawings=[
                charts.cost(
                    [as_dot(trial, _mflops(trial)) for trial in shown],
                    [(_mflops(trial), trial.value or 0.0) for trial in front],
                    budget / 1e6 if budget else None,
                )
            ],
            plots=("cost",),
        )
    )
    if len(front) > 1:
        section.parts.append(trial_table("The Pareto front", front))
    return section


def _mflops(trial: Trial) -> float:
    return (trial.flops or 0) / 1e6


def _front_says(front: Sequence[Trial]) -> str:
    if not front:
        return "No trial was trained to its last epoch, so there is no Pareto front yet."
    last = front[-1]
    best = last.value or 0.0
    if len(front) == 1:
        return f"Trial {last.number}, the best, is also the cheapest complete one, at {number(_mflops(last))} MFLOPs."
    text = (
        f"No trial beats these {len(front)} in both accuracy and cost: they range from {percent(front[0].value, 1)} at "
        f"{number(_mflops(front[0]))} MFLOPs to {percent(best, 1)} at {number(_mflops(last))} MFLOPs. "
    )
    near = next(trial for trial in front if (trial.value or 0.0) >= best - 0.03)
    if near is last:
        return text + "No cheaper one comes within 3 points of the best."
    return text + (
        f"Trial {near.number} comes within {points(best - (near.value or 0.0))} of the best for "
        f"{percent(_mflops(near) / _mflops(last), 0)} of its FLOPs."
    )
