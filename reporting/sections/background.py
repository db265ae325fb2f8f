"""Report sections on pictures, settings, machines and the next commands."""

from __future__ import annotations

from collections import Counter
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from reporting import analysis
from reporting.sections.parts import Commands, Facts, Paragraph, Section, Table
from reporting.words import listed, number, plural, value_text
from tuning.environment import sums_in_order
from tuning.settings import command_line
from tuning.trials import count_trials

SHOWN_CLASSES = 40
SHOWN_FILES = 20


def data(facts: Facts) -> Section | None:
    """Show the number of pictures of each class and part, and what was left out."""
    if not facts.data:
        return None
    kept, out = ([row for row in facts.data if (row["verdict"] == "kept") is whether] for whether in (True, False))
    used = Counter((row["class"], row["split"]) for row in kept if row["split"])
    parts = [part for part in ("train", "validation", "test") if any(split == part for _, split in used)]
    labels = facts.classes or ()
    sizes = {label: sum(used[label, part] for part in parts) for label in labels}
    whole = sum(sizes.values())
    purposes = {"train": "training", "validation": "validation", "test": "testing"}
    counts = [f"{sum(used[label, part] for label in labels):,} for {purposes[part]}" for part in parts]
    text = f"{plural(whole, 'picture')} of {plural(len(labels), 'class', 'classes')}: {listed(counts)}. "
    large, small = (max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)) if sizes else ("", "")
    if sizes and sizes[large] > sizes[small] > 0:
        ratio = f"{sizes[large] / sizes[small]:.1f}"
        text += f"The largest class, {large}, is {ratio} times the size of the smallest, {small}. "
    verdicts = Counter(row["verdict"].replace("_", " ") for row in out)
    left_out = [f"{count:,} {verdict}" for verdict, count in verdicts.most_common()]
    text += f"Left out: {listed(left_out)}. " if left_out else "No file was left out. "
    if whole < len(kept):
        text += f"The study used {whole:,} of {len(kept):,} usable pictures."
    out_of, more = Counter(row["class"] for row in out), len(labels) - SHOWN_CLASSES
    section = Section(anchor="data", title="Pictures")
    section.parts.append(Paragraph(text=text.strip()))
    section.parts.append(
        Table(
            title="Pictures by class",
            head=("class", *parts, *["left out"] * bool(out)),
            rows=[
                (label, *(f"{used[label, part]:,}" for part in parts), *([f"{out_of[label]:,}"] * bool(out)))
                for label in sorted(labels, key=lambda label: -sizes[label])[:SHOWN_CLASSES]
            ],
            numeric=frozenset(range(1, 5)),
            note=f"And {plural(more, 'smaller class', 'smaller classes')}." if more > 0 else "",
        )
    )
    if out:
        more = len(out) - SHOWN_FILES
        section.parts.append(
            Table(
                title="Files that were left out",
                head=("file", "verdict", "reason"),
                rows=[(row["path"], row["verdict"].replace("_", " "), row["reason"]) for row in out[:SHOWN_FILES]],
                note=f"And {plural(more, 'other')}; data_report.csv has them all." if more > 0 else "",
                folded=True,
            )
        )
    return section


def settings(facts: Facts) -> Section:
    """Show the study's settings, the machines it ran on and the search space."""
    section = Section(anchor="settings", title="Settings")
    plain = {name: value for name, value in facts.settings.items() if not name.startswith("space ")}
    if plain:
        rows = [(name, value_text(value)) for name, value in sorted(plain.items())]
        section.parts.append(Table(title="Fixed for this study", head=("setting", "value"), rows=rows))
    several = len({trial.host for trial in facts.trials if trial.host}) > 1
    machines = Counter(
        (("host", trial.host or "unknown"),) * several + tuple(sorted(trial.environment.items()))
        for trial in facts.trials
        if trial.environment
    )
    if machines:
        rows = [
            (f"{count:,}", ", ".join(f"{name} {value}" for name, value in machine))
            for machine, count in machines.most_common()
        ]
        head = ("trials", "environment")
        section.parts.append(Table(title="Machines and versions", head=head, rows=rows, numeric=frozenset({0})))
        section.parts.append(Paragraph(text=_reproducible(facts)))
    space = analysis.parameters(facts.trials)
    if space:
        rows = [(name, _range(distribution)) for name, distribution in space.items()]
        section.parts.append(Table(title="Search space", head=("parameter", "range"), rows=rows, folded=True))
    return section


def _reproducible(facts: Facts) -> str:
    """Say how far a second run with the same seed would give the same results."""
    trained = [trial for trial in facts.trials if trial.environment]
    exact = all(sums_in_order(trial.environment) for trial in trained)
    each = (
        "Each trial was trained by one CPU thread: the same seed, versions and processor repeat it bit for bit. "
        if exact
        else "Several threads, or a GPU, add in varying order: the same seed repeats a trial only approximately. "
    )
    if len({trial.slot for trial in trained}) > 1:
        return each + "Several trials ran at once, so what the sampler chose depends on which of them ended first."
    return each + ("The whole study repeats too, as one trial ran at a time." if exact else "One trial ran at a time.")


def _range(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    bounds: Any = distribution
    text = f"{number(bounds.low)} to {number(bounds.high)}"
    if bounds.log:
        return text + ", log scale"
    return text + (f", in steps of {number(bounds.step)}" if bounds.step not in (None, 1) else "")


def next_steps(facts: Facts) -> Section:
    """Show the next commands."""
    options, more = facts.study_options, max(2 * count_trials(facts.trials), 40)
    if facts.argv is None:
        resume = (f"python study.py {options} --trials {more}", "continue the study; add your other options")
    else:
        resume = (command_line(facts.argv, more), "continue the study")
    lines = [resume, (f"python study.py dashboard {options}", "browse all trials, their curves and pictures")]
    if analysis.trained(facts.trials):
        if not facts.test:
            what = "train the best few with several seeds and test the winner once"
            lines.append((f"python study.py retrain {options}", what))
        lines += [
            (f"python study.py export {options}", "write the winner into a folder that works without this program"),
            (f"python study.py predict {options} PICTURE", "classify a picture"),
        ]
    lines.append((f"python study.py report {options}", "write this page again"))
    return Section(
        anchor="next",
        title="Next steps",
        parts=[
            Commands(title="In a terminal", lines=lines),
            Commands(
                title="In Python: one row per trial, with its parameters and attributes",
                lines=[('import pandas as pd; trials = pd.read_csv("trials.csv")', "")],
            ),
        ],
    )
