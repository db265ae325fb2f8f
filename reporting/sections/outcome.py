"""What came of the study: the best trial, the finalists, the test result, right and wrong."""

from __future__ import annotations

from typing import Any

from optuna.trial import FrozenTrial, TrialState

from reporting import analysis, charts
from reporting.charts import Contender
from reporting.drawing import drawn
from reporting.sections.parts import (
    LIT,
    Drawing,
    Facts,
    Part,
    Photograph,
    Says,
    Section,
    Table,
    duration,
    listed,
    percent,
    plural,
    points,
    trial_name,
    value_text,
    whole_percent,
)
from tuning.storage import Outcome, top

SHOWN_CLASSES = 40
"""Classes of a figure; of more, the best and the worst."""


def result(facts: Facts) -> Section:
    """The best, its interval, and the known-good recipes beside it."""
    best = facts.best
    section = Section(anchor="result", title="The result")
    if best is None:
        section.parts.append(Says(text=_nothing_complete(facts.trials), tone="warning"))
        return section
    if facts.confusion and facts.pictures:
        section.parts.append(_contenders(facts, best, facts.confusion, facts.pictures))
    if not facts.test:
        complete = sum(trial.state is TrialState.COMPLETE for trial in facts.trials)
        if complete > 1:
            section.parts.append(
                Says(
                    text=f"The best of {complete:,} noisy figures flatters itself: {percent(best.value)} is an upper "
                    "estimate, made with one seed. python study.py retrain trains the best few again with several "
                    "seeds and measures the winner once on pictures that the study has never seen.",
                    tone="warning",
                )
            )
    section.parts.append(_best_few(facts))
    if best.user_attrs.get("config"):
        section.parts.append(_configuration(best))
    return section


def _nothing_complete(trials: list[FrozenTrial]) -> str:
    ended = analysis.trained(trials)
    if ended:
        furthest = max(ended, key=lambda trial: analysis.reached(trial) or 0.0)
        return (
            f"No trial has been trained to its last epoch: {plural(len(ended), 'trial was', 'trials were')} stopped "
            f"before. The highest value on the way was {percent(analysis.reached(furthest))}, of trial "
            f"{furthest.number} after {plural(len(furthest.intermediate_values), 'epoch')}."
        )
    if not trials:
        return "The study has no trial yet; run it, and this page fills."
    half_way = analysis.tally(trials)
    return f"No trial has been trained yet ({listed([f'{count:,} {name}' for name, count in half_way.items()])})."


def _contenders(facts: Facts, best: FrozenTrial, confusion: list[list[int]], pictures: int) -> Drawing:
    value = best.value or 0.0
    known = [
        trial
        for trial in top(facts.trials, len(facts.trials))
        if trial.user_attrs.get("known_good") and trial.number != best.number
    ]
    rows: list[Contender] = []
    if facts.retrained and facts.test:
        low, high = facts.test["top1_interval"]
        name = f"{facts.retrained.name} retrained, on the test part"
        rows.append(Contender(name=name, value=facts.test["top1"], low=low, high=high, best=True))
    for trial in [best, *known]:
        low, high = analysis.wilson(trial.value or 0.0, pictures)
        lit = trial is best and not facts.test
        rows.append(Contender(name=trial_name(trial), value=trial.value or 0.0, low=low, high=high, best=lit))
    floor = analysis.commonest_class(confusion)
    low, high = analysis.wilson(value, pictures)
    text = (
        f"T{trial_name(best)[1:]} named {percent(value)} of {plural(pictures, 'validation picture')} correctly "
        f"(95 % interval {100 * low:.1f} to {percent(high)}). "
    )
    for trial in known:
        other = trial.value or 0.0
        low, high = analysis.difference(value, other, pictures)
        sure = "" if low > 0 else ", which chance alone could give"
        text += (
            f"It is {points(value - other)} above the recipe '{trial.user_attrs['known_good']}' "
            f"(interval {100 * low:.1f} to {100 * high:.1f}){sure}. "
        )
    if best.user_attrs.get("known_good"):
        text += "No trial of the search has beaten this recipe yet. "
    if facts.retrained and facts.test:
        if facts.retrained.trial != best.number:
            text += f"Over several seeds {facts.retrained.name} was better. "
        text += (
            f"Trained again on train and validation pictures, it named {percent(facts.test['top1'])} of "
            f"{plural(facts.test['pictures'], 'test picture')} correctly. "
        )
    text += f"Always saying the commonest class would reach {percent(floor)}."
    wide, narrow = drawn(
        lambda wide: charts.contenders(rows, floor, "commonest class", wide), alt=text, key="contenders"
    )
    return Drawing(title="The best beside what was known before", says=text, wide=wide, narrow=narrow)


def _best_few(facts: Facts) -> Table:
    best = top(facts.trials, LIT)
    shown = best + [trial for trial in top(facts.trials, len(facts.trials))[LIT:] if trial.user_attrs.get("known_good")]
    rows = [
        (
            trial_name(trial),
            percent(trial.value),
            percent(trial.user_attrs.get("best_top3")),
            f"{trial.user_attrs['best_epoch'] + 1}" if "best_epoch" in trial.user_attrs else "-",
            f"{trial.user_attrs['flops'] / 1e6:,.0f}" if "flops" in trial.user_attrs else "-",
            f"{trial.user_attrs['parameters'] / 1e3:,.0f}" if "parameters" in trial.user_attrs else "-",
            duration(analysis.seconds(trial)),
        )
        for trial in shown
    ]
    return Table(
        title="The best trials",
        head=("trial", "top-1", "top-3", "best epoch", "MFLOP a picture", "thousand weights", "trained for"),
        rows=rows,
        numeric=frozenset(range(1, 7)),
    )


def _configuration(best: FrozenTrial) -> Table:
    rows: list[tuple[str, ...]] = []
    for group, values in best.user_attrs["config"].items():
        if isinstance(values, dict):
            rows += [(group, name.replace("_", " "), value_text(value)) for name, value in values.items()]
        else:
            rows.append(("", group.replace("_", " "), value_text(values)))
    memory = best.user_attrs.get("peak_memory")
    if memory:
        rows.append(("cost", "peak memory", f"{memory / 2**20:,.0f} MB"))
    return Table(
        title=f"The whole configuration of trial {best.number}",
        head=("part", "setting", "value"),
        rows=rows,
        folded=True,
    )


def finalists(facts: Facts) -> Section | None:
    """The best few again over several seeds, where they were trained."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in facts.finalists:
        groups.setdefault(row["name"], []).append(row)
    if not groups:
        return None
    value_of = {trial.number: analysis.reached(trial) for trial in facts.trials}
    rows: list[tuple[str, list[float], float | None]] = []
    for name, runs in groups.items():
        values = [float(run["top1"]) for run in runs if run["outcome"] == Outcome.COMPLETE and run["top1"]]
        rows.append((name, values, value_of.get(int(runs[0]["trial"])) if runs[0]["trial"] else None))
    name, values, recorded = rows[0]
    section = Section(anchor="finalists", title="Finalists")
    if values:
        mean = sum(values) / len(values)
        text = f"Over {plural(len(values), 'seed')}, {name} is the best of {len(rows)} with a mean of {percent(mean)}"
        text += f" ({percent(min(values))} to {percent(max(values))}). " if len(values) > 1 else ". "
        if recorded is not None:
            how = "flattered it" if recorded >= mean else "was too low"
            text += f"Its single run in the study, {percent(recorded)}, {how} by {points(recorded - mean)}."
    else:
        text = "No finalist's run came to its end."
    wide, narrow = drawn(lambda wide: charts.finalists(rows, wide), alt=text, key="finalists")
    section.parts.append(Drawing(title="The best few, over several seeds", says=text, wide=wide, narrow=narrow))
    return section


def mistakes(facts: Facts) -> Section | None:
    """The test part's confusion matrix, or the best trial's on the validation part."""
    test = facts.test
    confusion = test["confusion"] if test else facts.confusion
    if not confusion or not analysis.pictures_of(confusion):
        return None
    names = [facts.class_name(label) for label in range(len(confusion))]
    part = "test" if test else "validation"
    section = Section(anchor="mistakes", title="The test result" if test else "Right and wrong")
    if test:
        section.parts.extend(_tested(test))
    found = analysis.mistakes(confusion, 8)
    wrong = sum(sum(row) - row[label] for label, row in enumerate(confusion))
    who = "The retrained network" if test else f"Trial {facts.best.number}" if facts.best is not None else "The best"
    text = f"{who} got {wrong:,} of {analysis.pictures_of(confusion):,} {part} pictures wrong"
    if found:
        first = found[0]
        text += (
            f"; the commonest mistake: {first.count} of {first.of} {names[first.truth]} pictures were taken for "
            f"{names[first.prediction]}"
        )
    text += "."
    wide, narrow = drawn(lambda wide: charts.confusion(confusion, names, wide), alt=text, key="confusion")
    section.parts.append(Drawing(title=f"Confusion on the {part} part", says=text, wide=wide, narrow=narrow))
    if found:
        section.parts.append(
            Table(
                title="The commonest mistakes",
                head=("truth", "taken for", "pictures", "of", "share"),
                rows=[
                    (
                        names[one.truth],
                        names[one.prediction],
                        f"{one.count:,}",
                        f"{one.of:,}",
                        f"{whole_percent(one.count / one.of)}",
                    )
                    for one in found
                ],
                numeric=frozenset({2, 3, 4}),
            )
        )
    section.parts.append(_per_class(confusion, names, part))
    if facts.gallery and facts.best is not None:
        text = (
            f"The validation pictures that trial {facts.best.number} got wrong most confidently, as the network saw "
            "them: above each what it is, and what it was taken for with which probability."
        )
        section.parts.append(Photograph(title="The most confident mistakes", says=text, jpeg=facts.gallery))
    return section


def _tested(test: dict[str, Any]) -> list[Part]:
    low, high = test["top1_interval"]
    text = (
        f"On {plural(test['pictures'], 'test picture')}, which the study has not seen, the exported network reaches "
        f"{percent(test['top1'])} top-1 (95 % interval {100 * low:.1f} to {percent(high)}) and {percent(test['top3'])} "
        f"top-3; its probabilities are off by {percent(test['ece'])} on average (ECE). "
    )
    lost = f" ({test['diverged']} more diverged)" if test["diverged"] else ""
    if test["top1_sd"] is not None:
        text += (
            f"Over {plural(len(test['seeds']), 'seed')}{lost} the mean is {percent(test['top1_mean'])}, the standard "
            f"deviation {points(test['top1_sd'])}. "
        )
    looks = "once" if test["looks"] == 1 else f"{test['looks']} times"
    text += f"The test part has been looked at {looks}."
    parts: list[Part] = [Says(text=text)]
    if test["looks"] > 1:
        parts.append(
            Says(text="Who looks often finds a lucky network: take the figure for an upper estimate.", tone="warning")
        )
    rows = [
        (
            "retrained winner",
            percent(test["top1_mean"]),
            percent(test["top1_sd"]),
            _runs(len(test["seeds"]), test["diverged"]),
        )
    ]
    rows += [
        (one["name"], percent(one["top1_mean"]), percent(one["top1_sd"]), _runs(len(one["top1"]), one["diverged"]))
        for one in test["baselines"]
    ]
    if len(rows) > 1:
        parts.append(
            Table(
                title="Beside what was known before, on the test part",
                head=("network", "mean top-1", "standard deviation", "seeds"),
                rows=rows,
                numeric=frozenset({1, 2, 3}),
            )
        )
    return parts


def _runs(trained: int, diverged: int) -> str:
    return f"{trained}, {diverged} diverged" if diverged else str(trained)


def _per_class(confusion: list[list[int]], names: list[str], part: str) -> Drawing:
    present = [label for label, row in enumerate(confusion) if sum(row)]
    order = sorted(present, key=lambda label: -confusion[label][label] / sum(confusion[label]))
    if len(order) > SHOWN_CLASSES:
        shown = order[: SHOWN_CLASSES // 2] + order[-SHOWN_CLASSES // 2 :]
        note = f" Drawn are the best and the worst {SHOWN_CLASSES // 2} of {len(order):,} classes."
    else:
        shown, note = order, ""
    share = {label: confusion[label][label] / sum(confusion[label]) for label in order}
    best, worst = order[0], order[-1]
    text = (
        f"From {names[best]} ({percent(share[best])} of {sum(confusion[best]):,}) to {names[worst]} "
        f"({percent(share[worst])} of {sum(confusion[worst]):,}); the bars are 95 % intervals.{note}"
    )
    intervals = [analysis.wilson(share[label], sum(confusion[label])) for label in shown]
    wide, narrow = drawn(
        lambda wide: charts.per_class(
            [names[label] for label in shown], [share[label] for label in shown], intervals, wide
        ),
        alt=text,
        key="classes",
    )
    return Drawing(title=f"How many of each class are right ({part} part)", says=text, wide=wide, narrow=narrow)
