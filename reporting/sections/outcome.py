"""Report sections on the results: the best trial, the finalists, the test result and the mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from model import metrics
from model.export.card import compared, strangers_result, sure_result
from reporting import analysis, charts, svg
from reporting.sections.parts import BEST_FEW, Facts, Figure, Paragraph, Part, Section, Table, interval, trial_table
from reporting.words import (
    configuration,
    listed,
    percent,
    plural,
    points,
    share_of,
    stopped_baselines,
    times,
    trial_name,
)
from tuning.trials import Outcome, Trial, top

SHOWN_CLASSES = 40
"""Largest number of classes in the table; if there are more, it shows the best and the worst."""
SHOWN_DOUBTS = 50
"""Largest number of doubted labels in the table."""


def result(facts: Facts) -> Section:
    """Show the best trial with its interval, beside the baselines."""
    best = facts.best
    section = Section(anchor="result", title="Result")
    if best is None:
        section.parts.append(Paragraph(text=_nothing_complete(facts.trials), tone="warning"))
        return section
    if facts.confusion and facts.pictures:
        section.parts.append(_accuracies(facts, best, facts.confusion))
    complete = sum(trial.value is not None for trial in facts.trials)
    if complete > 1 and not facts.test:
        section.parts.append(
            Paragraph(
                text=f"{percent(best.value, 1)} is the highest of {complete:,} noisy values, each from a single run: "
                "expect less on new pictures. python study.py retrain trains the best few with several seeds and "
                "tests the winner once, on pictures that the study has not used.",
                tone="warning",
            )
        )
    order = top(facts.trials, len(facts.trials))
    few = [trial for place, trial in enumerate(order) if place < BEST_FEW or trial.baseline]
    section.parts.append(trial_table("The best trials", few))
    if best.config is not None:
        groups = configuration(best.config).items()
        rows = [(group, name, value) for group, settings in groups for name, value in settings.items()]
        title = f"Configuration of trial {best.number}"
        section.parts.append(Table(title=title, head=("part", "setting", "value"), rows=rows, folded=True))
    return section


def _nothing_complete(trials: Sequence[Trial]) -> str:
    trained = analysis.trained(trials)
    if trained:
        highest = max(trained, key=lambda trial: trial.reached or 0.0)
        paused = sum(trial.is_paused for trial in trained)
        parts = [f"{plural(paused, 'trial')} paused"] * bool(paused)
        parts += [f"{plural(len(trained) - paused, 'trial')} ended early"] * (len(trained) > paused)
        return (
            f"No trial has been trained to its last epoch yet; {listed(parts)}. The highest validation top-1 so far is "
            f"{percent(highest.reached, 1)}, in trial {highest.number} after {plural(highest.epochs, 'epoch')}."
        )
    if not trials:
        return "The study has no trials yet."
    counts = [f"{count:,} {name}" for name, count in analysis.tally(trials).items()]
    return f"No trial has been trained yet: {listed(counts)}."


def _accuracies(facts: Facts, best: Trial, confusion: Sequence[Sequence[int]]) -> Figure:
    """Compare the best trial, the test result and the baselines."""
    test, value = facts.test, best.value or 0.0
    known = [trial for trial in top(facts.trials, len(facts.trials)) if trial.baseline and trial is not best]
    bars: list[charts.Bar] = []
    if facts.retrained and test:
        name, (low, high) = f"on test: {facts.retrained.name}", test["top1_interval"]
        bars.append(charts.Bar(name=name, value=test["top1"], low=low, high=high, best=True))
    for trial in (best, *known):
        low, high = analysis.wilson(trial.value or 0.0, facts.pictures)
        highlighted = trial is best and not test
        bars.append(charts.Bar(name=trial_name(trial), value=trial.value or 0.0, low=low, high=high, best=highlighted))
    floor = analysis.commonest_class(confusion)
    text = (
        f"T{trial_name(best)[1:]} classifies {percent(value, 1)} of {plural(facts.pictures, 'validation picture')} "
        f"correctly (95 % interval {interval(*analysis.wilson(value, facts.pictures))}). "
    )
    above: list[str] = []
    for trial in known:
        low, high = metrics.difference(value, trial.value or 0.0, facts.pictures)
        unsure = "" if low > 0 else ", so chance could explain it"
        difference = f"{points(value - (trial.value or 0.0))} above the {trial.baseline}"
        above.append(f"{difference} (95 % interval {100 * low:.1f} to {100 * high:.1f}{unsure})")
    text += f"That is {listed(above)}. " if above else ""
    if stopped := stopped_baselines(facts.trials):
        text += f"Baselines stopped earlier: {stopped}. python study.py retrain --baseline trains them to the end. "
    if best.baseline:
        text += "No sampled configuration has beaten this baseline yet. "
    if facts.retrained and test:
        if facts.retrained.trial != best.number:
            if str(best.number) in {row["trial"] for row in facts.finalists}:
                text += f"Trained again, {facts.retrained.name} is better. "
            else:
                text += f"Trial {best.number} was not trained again. "
        text += (
            f"Retrained on training and validation pictures, {facts.retrained.name} classifies "
            f"{percent(test['top1'], 1)} of "
            f"{plural(test['pictures'], 'test picture')} correctly. "
        )
    text += f"Always predicting the most common class would give {percent(floor, 1)}."
    return Figure(title="The best trial and the baselines", says=text, drawings=[charts.accuracies(bars, floor)])


def finalists(facts: Facts) -> Section | None:
    """Show the finalists' results over several seeds, if they have been trained."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in facts.finalists:
        groups.setdefault(row["name"], []).append(row)
    if not groups:
        return None
    single = {str(trial.number): trial for trial in facts.trials}
    rows: list[tuple[str, ...]] = []
    texts: list[str] = []
    many = any(len(runs) > 1 for runs in groups.values())
    for name, runs in groups.items():
        values = [float(run["top1"]) for run in runs if run["outcome"] == Outcome.COMPLETE and run["top1"]]
        mean, trial = sum(values) / len(values) if values else None, single.get(runs[0]["trial"])
        recorded = trial.reached if trial else None
        alike = trial is None or int(runs[0].get("epochs", trial.epochs)) == trial.epochs
        partly = f" after {plural(trial.epochs, 'epoch')}" if trial and not alike else ""
        spread = f" ({100 * min(values):.1f} to {100 * max(values):.1f})" if len(values) > 1 else ""
        rows.append((name, f"{len(values)} of {len(runs)}", percent(mean, 1) + spread, percent(recorded, 1) + partly))
        if mean is not None and not texts:
            if len(values) == 1:
                texts.append(f"With one seed, {name} won with {percent(mean, 1)}: luck may have decided.")
                continue
            won = f"{name[:1].upper()}{name[1:]} won, with {percent(mean, 1)}"
            texts.append(f"{won} on average over its seeds after the last epoch.")
            if recorded is not None and not partly:
                side = "above" if recorded >= mean else "below"
                texts.append(
                    f"The best epoch of its single run in the study was {points(recorded - mean)} {side} that."
                )
    return Section(
        anchor="finalists",
        title="Finalists",
        parts=[
            Paragraph(text=" ".join(texts) or "No run of a finalist was trained to the end."),
            Table(
                title="Validation top-1, trained again",
                head=(
                    "finalist",
                    "runs trained",
                    "last epoch, mean (range)" if many else "last epoch",
                    "best epoch in the study",
                ),
                rows=rows,
                numeric=frozenset({1, 2, 3}),
            ),
        ],
    )


def mistakes(facts: Facts) -> Section | None:
    """Show the retrained network's mistakes on the test set, or the best trial's on the validation set."""
    test = facts.test
    confusion = test["confusion"] if test else facts.confusion
    if not confusion or not analysis.pictures_of(confusion) or facts.best is None:
        return None
    names = [facts.class_name(label) for label in range(len(confusion))]
    part = "test" if test else "validation"
    section = Section(anchor="mistakes", title="Test result" if test else "Mistakes")
    if facts.retrained and test:
        section.parts.extend(_tested(test, facts.retrained.calibration))
        if facts.retrained.pretrained:
            head, rows, says = compared(asdict(facts.retrained.pretrained))
            title = "Beside a pretrained network on the test set"
            section.parts.append(Table(title=title, head=head, rows=rows, numeric=frozenset(range(1, 6)), note=says))
    found = analysis.mistakes(confusion, 3)
    wrong = sum(sum(row) - row[label] for label, row in enumerate(confusion))
    who = "The retrained network" if test else f"Trial {facts.best.number}"
    text = f"{who} gets {wrong:,} of {plural(analysis.pictures_of(confusion), f'{part} picture')} wrong. "
    if found:
        said = [
            f"{one.pictures:,} of {one.of:,} {names[one.truth]} mistaken for {names[one.prediction]}" for one in found
        ]
        text += f"Most common: {listed(said)}."
    title = f"Confusion matrix of the {part} set"
    section.parts.append(Figure(title=title, says=text.strip(), drawings=[svg.confusion(confusion, names)]))
    section.parts.append(_per_class(confusion, names))
    if test and facts.evidence:
        kinds = ["mistakes"] * (wrong > 0) + ["right answers"] * (test["top1"] > 0)
        section.parts.append(
            Figure(
                title="Where the network looked",
                says=f"The exported network's most confident {listed(kinds)} on the test set, spread over the classes: "
                "above each picture its class, and the answer with its probability. In the copy on the right, places "
                "that speak for the answer are bright, and places that say nothing or speak against it are dark.",
                jpeg=facts.evidence,
            )
        )
    section.parts.extend(_doubts(facts))
    if facts.gallery:
        section.parts.append(
            Figure(
                title="The most confident mistakes",
                says=f"The validation pictures that trial {facts.best.number} was most wrong about, as the network saw "
                "them: each with its true class, the predicted class and that class's probability.",
                jpeg=facts.gallery,
            )
        )
    return section


def _doubts(facts: Facts) -> list[Part]:
    """Show the validation pictures whose labels the finalists' networks doubt together."""
    doubted = [row for row in facts.doubts if row["likeliest"] != row["label"]]
    if not doubted:
        return []
    networks = plural(int(doubted[0]["networks"]), "finalist network")
    says = (
        f"For {len(doubted):,} of {len(facts.doubts):,} validation pictures, the most probable class on average over "
        f"{networks} is not the label. No network was trained on these pictures. Look at them: a label may be wrong, "
        "or a picture hard to tell."
    )
    rows = [
        (
            row["path"],
            row["label"],
            percent(float(row["label_probability"]), 1),
            row["likeliest"],
            percent(float(row["likeliest_probability"]), 1),
            f"{row['networks_against']} of {row['networks']}",
        )
        for row in doubted[:SHOWN_DOUBTS]
    ]
    more = len(doubted) - SHOWN_DOUBTS
    table = Table(
        title="Labels to check, the least probable first",
        head=("picture", "label", "its probability", "likeliest", "its probability", "networks against the label"),
        rows=rows,
        numeric=frozenset({2, 4, 5}),
        note=f"And {plural(more, 'other')}; doubts.csv has them all." if more > 0 else "",
        folded=True,
    )
    return [Figure(title="Labels to check", says=says, jpeg=facts.doubted), table]


def _tested(test: dict[str, Any], calibration: str | None) -> list[Part]:
    top3 = "" if test["top3"] is None else f" and {percent(test['top3'], 1)} top-3"
    text = (
        f"On {plural(test['pictures'], 'test picture')}, which the study has not used, the exported network reaches "
        f"{percent(test['top1'], 1)} top-1 (95 % interval {interval(*test['top1_interval'])}){top3}. "
        f"Its probabilities ({calibration}) are off by {percent(test['ece'], 1)} on average (expected calibration "
        f"error); if they were exactly right, 95 % of test sets of this size would stay below "
        f"{percent(test['ece_chance'], 1)}. "
    )
    lost = f" ({test['diverged']} more diverged)" if test["diverged"] else ""
    if test["top1_sd"] is not None:
        text += (
            f"The mean over {plural(len(test['seeds']), 'seed')}{lost} is {percent(test['top1_mean'], 1)}, with a "
            f"standard deviation of {points(test['top1_sd'])}. "
        )
    for said in filter(None, (sure_result(test), strangers_result(test))):
        text += f"{said} "
    parts: list[Part] = [Paragraph(text=f"{text}The test set was used {times(test['evaluations'])}.")]
    if test["evaluations"] > 1:
        parts.append(
            Paragraph(
                text="Each further evaluation makes a lucky network more likely: expect less on new pictures.",
                tone="warning",
            )
        )
    tested = [("retrained winner", test, len(test["seeds"]))]
    tested += [(one["name"], one, len(one["top1"])) for one in test["baselines"]]
    spread = any(one["top1_sd"] is not None for _, one, _ in tested)
    rows: list[tuple[str, ...]] = []
    for name, one, seeds in tested:
        lost = f", {one['diverged']} diverged" if one["diverged"] else ""
        sd = [percent(one["top1_sd"], 1)] * spread
        rows.append((name, percent(one["top1_mean"], 1), *sd, f"{seeds}{lost}"))
    if len(rows) > 1:
        parts.append(
            Table(
                title="The winner and the baselines on the test set",
                head=("network", *(("mean top-1", "standard deviation") if spread else ("top-1",)), "seeds"),
                rows=rows,
                numeric=frozenset({1, 2, 3}),
            )
        )
    return parts


def _per_class(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> Table:
    """Return a row per class, best first, with the class that it is most often mistaken for."""
    present = [label for label, row in enumerate(confusion) if sum(row)]
    order = sorted(present, key=lambda label: -confusion[label][label] / sum(confusion[label]))
    half = SHOWN_CLASSES // 2
    shown = order if len(order) <= SHOWN_CLASSES else order[:half] + order[-half:]
    rows: list[tuple[str, ...]] = []
    for label in shown:
        row, whole = confusion[label], sum(confusion[label])
        others = [count if other != label else 0 for other, count in enumerate(row)]
        worst = max(range(len(row)), key=lambda other: others[other])
        rows.append(
            (
                names[label],
                f"{whole:,}",
                share_of(row[label], whole),
                f"{names[worst]} ({others[worst]:,})" if others[worst] else "-",
            )
        )
    return Table(
        title="Accuracy by class",
        head=("class", "pictures", "correct (95 % interval)", "most often mistaken for"),
        rows=rows,
        numeric=frozenset({1, 2}),
        note="" if shown == order else f"The best and the worst {half} of {len(order):,} classes.",
    )
