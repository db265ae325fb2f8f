"""What the study stands on - pictures, settings, machines - and the commands that come next."""

from __future__ import annotations

import platform
import shlex
from collections import Counter
from importlib.metadata import version
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from reporting import analysis
from reporting.drawing import number
from reporting.sections.parts import (
    Commands,
    Facts,
    Says,
    Section,
    Table,
    listed,
    plural,
    value_text,
)
from tuning.environment import sums_in_order
from tuning.settings import typed
from tuning.storage import counts

SHOWN_CLASSES = 40
SHOWN_FILES = 20


def data(facts: Facts) -> Section | None:
    """The pictures: how many of each class and part, and what was left out."""
    if not facts.data:
        return None
    parts = [part for part in ("train", "validation", "test") if any(row["split"] == part for row in facts.data)]
    used = Counter((row["class"], row["split"]) for row in facts.data if row["split"])
    kept = Counter(row["class"] for row in facts.data if row["verdict"] == "kept")
    out = Counter(row["verdict"].replace("_", " ") for row in facts.data if row["verdict"] != "kept")
    out_of = Counter(row["class"] for row in facts.data if row["verdict"] != "kept")
    labels = facts.classes or ()
    total = {part: sum(used[label, part] for label in labels) for part in parts}
    whole = sum(total.values())
    sizes = {label: sum(used[label, part] for part in parts) for label in labels}
    section = Section(anchor="data", title="The pictures")
    purposes = {"train": "training", "validation": "validation", "test": "the test"}
    text = (
        f"{plural(whole, 'picture')} of {plural(len(labels), 'class', 'classes')}: "
        f"{listed([f'{count:,} for {purposes[part]}' for part, count in total.items()])}. "
    )
    if sizes:
        large, small = max(sizes, key=lambda label: sizes[label]), min(sizes, key=lambda label: sizes[label])
        if sizes[large] > sizes[small] > 0:
            text += (
                f"The largest class, {large}, has {sizes[large] / sizes[small]:.1f} times the pictures of the "
                f"smallest, {small}. "
            )
    left_out = sum(out.values())
    if left_out:
        text += f"Left out: {listed([f'{count:,} {verdict}' for verdict, count in out.most_common()])}."
    else:
        text += "No file was left out."
    if whole < sum(kept.values()):
        text += f" The study used {whole:,} of {sum(kept.values()):,} good pictures."
    section.parts.append(Says(text=text))
    rows = [
        (label, *(f"{used[label, part]:,}" for part in parts), *([f"{out_of[label]:,}"] * bool(left_out)))
        for label in sorted(labels, key=lambda label: -sizes[label])[:SHOWN_CLASSES]
    ]
    hidden = len(labels) - len(rows)
    section.parts.append(
        Table(
            title="Pictures of each class",
            head=("class", *parts, *["left out"] * bool(left_out)),
            rows=rows,
            numeric=frozenset(range(1, 5)),
            note=f"And {plural(hidden, 'smaller class', 'smaller classes')}." if hidden > 0 else "",
        )
    )
    files = [row for row in facts.data if row["verdict"] != "kept"]
    if files:
        section.parts.append(
            Table(
                title="What was left out, and why",
                head=("file", "verdict", "reason"),
                rows=[(row["path"], row["verdict"].replace("_", " "), row["reason"]) for row in files[:SHOWN_FILES]],
                note=f"And {plural(len(files) - SHOWN_FILES, 'other')}: data_report.csv has them all."
                if len(files) > SHOWN_FILES
                else "",
                folded=True,
            )
        )
    return section


def settings(facts: Facts) -> Section:
    """What the study was, what it ran on, and what wrote this page."""
    section = Section(anchor="settings", title="Settings")
    plain = {name: value for name, value in facts.settings.items() if not name.startswith("space ")}
    if plain:
        rows: list[tuple[str, ...]] = [(name, value_text(value)) for name, value in sorted(plain.items())]
        section.parts.append(Table(title="What must not change in this study", head=("setting", "value"), rows=rows))
    places = Counter(
        tuple(sorted(trial.user_attrs["environment"].items()))
        for trial in facts.trials
        if isinstance(trial.user_attrs.get("environment"), dict)
    )
    if places:
        section.parts.append(
            Table(
                title="What it was trained on",
                head=("trials", "with"),
                rows=[
                    (f"{count:,}", ", ".join(f"{name} {value}" for name, value in place))
                    for place, count in places.most_common()
                ],
                numeric=frozenset({0}),
            )
        )
        section.parts.append(Says(text=_repeats(facts)))
    space = analysis.parameters(facts.trials)
    if space:
        section.parts.append(
            Table(
                title="The search space, as the trials met it",
                head=("parameter", "range"),
                rows=[(name, _range(distribution)) for name, distribution in space.items()],
                folded=True,
            )
        )
    made = [
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in ("optuna", "matplotlib", "plotly")),
    ]
    section.parts.append(Says(text=f"This page was written with {listed(made)}."))
    return section


def _repeats(facts: Facts) -> str:
    """What the same seed gives once more."""
    trained = [trial.user_attrs for trial in facts.trials if "environment" in trial.user_attrs]
    exact = all(sums_in_order(attributes["environment"]) for attributes in trained)
    each = (
        "Each trial was trained by one thread of a CPU: with the same seed, versions and processor it gives the same "
        "numbers, bit for bit. "
        if exact
        else "Several threads, or a GPU, may add in another order: the same seed gives the same numbers, or nearly. "
    )
    if len({attributes.get("slot") for attributes in trained}) > 1:
        return each + "Several ran at once: what the sampler knew, and so what it chose, depends on which ended first."
    return each + "One ran at a time: " + ("so does the whole study." if exact else "the sampler knew all before it.")


def _range(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    bounds: Any = distribution
    text = f"{number(bounds.low)} to {number(bounds.high)}"
    if bounds.log:
        return text + ", log scale"
    step = getattr(bounds, "step", None)
    return text + (f", in steps of {number(step)}" if step not in (None, 1) else "")


def go_on(facts: Facts) -> Section:
    """The commands that come next, and the files to look into."""
    places = facts.places or shlex.join(["--study", facts.name])
    more = max(2 * sum(map(counts, facts.trials)), 40)
    if facts.words is None:
        lines = [(f"python study.py {places} --trials {more}", "go on, with what else you began with")]
    else:
        lines = [(typed(facts.words, more), "go on with the study")]
    lines += [
        (f"python study.py dashboard {places}", "every trial, its curves and pictures, in the browser"),
    ]
    if facts.best is not None and not facts.test:
        lines.append(
            (
                f"python study.py retrain {places}",
                "the best few over several seeds, the winner once on the test part",
            )
        )
    if facts.best is not None:
        lines.append((f"python study.py export {places}", "the winner as a folder that needs nothing of this study"))
        lines.append((f"python study.py predict {places} PICTURE", "what it sees in a picture"))
    lines.append((f"python study.py report {places}", "this page again, from what is known by then"))
    section = Section(anchor="go-on", title="Go on")
    section.parts.append(Commands(title="In a terminal, beside study.py", lines=lines))
    section.parts.append(
        Commands(
            title="In Python, in this page's folder: one line per trial, its parameters and attributes",
            lines=[('import pandas as pd; trials = pd.read_csv("trials.csv")', "")],
        )
    )
    return section
