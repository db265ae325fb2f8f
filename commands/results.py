"""What the terminal shows of finalists, the test result, the pruner audit and the exported bundle."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.export.card import compared, strangers_result, sure_result
from model.export.formats import Published
from model.metrics import difference
from reporting.words import percent, plural, share_of
from selection.doubts import FILE, Doubt
from selection.finalists import Standing
from selection.pruner_audit import PrunerAudit
from selection.retraining import Comparison, Winner, compare_curves
from selection.test_set_uses import TestSetUse
from tuning.environment import differences, sums_in_order
from tuning.trials import Trial


def print_replay(console: Console, trial: Trial, again: Trial) -> None:
    """Print how far a replay is from the recorded trial, and why."""
    difference, epoch = compare_curves(trial, again)
    now = percent(again.result.top1) if again.result else "diverged"
    line = f"Replay of trial {trial.number}: recorded {percent(trial.reached)}, now {now}, "
    if epoch is None:
        line += f"the same in each of its {trial.epochs} epochs."
    else:
        then, here = _set_up(trial), _set_up(again)
        set_up = differences(then, here)
        if set_up:
            why = f"the set-up differs ({', '.join(set_up)})"
        elif sums_in_order(here):
            why = "nothing recorded differs"
        else:
            why = "several threads, or a GPU, sum in varying order"
        line += "" if difference is None else f"{100 * difference:+.2f} points; "
        line += f"the curves differ from epoch {epoch + 1}: {why}."
    console.print(Text(line), soft_wrap=True)


def _set_up(trial: Trial) -> dict[str, str]:
    """Return the facts that, besides configuration and seed, determine a trial's numbers."""
    return trial.environment | {"micro-batch": str(trial.micro_batch or "whole")}


def print_standings(console: Console, standings: list[Standing]) -> None:
    """Print the validation top-1 of each candidate's runs, the winner first and in bold."""
    won = standings[0]
    table = Table(box=None, pad_edge=False, header_style="dim", title="Validation top-1 in %", title_justify="left")
    seeds = max(len(standing.runs) for standing in standings)
    table.add_column("", overflow="fold")
    spread = ("mean", "sd") if seeds > 1 else ()
    for heading in ("study", *(f"seed {index + 1}" for index in range(seeds)), *spread, "epochs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for standing in standings:
        table.add_row(
            standing.candidate.name,
            _points(standing.candidate.recorded),
            *(_points(run.value) if run in standing.complete else "diverged" for run in standing.runs),
            *["-"] * (seeds - len(standing.runs)),
            *(_points(standing.mean if standing.top1 else None), _points(standing.spread))[: len(spread)],
            str(standing.candidate.config.training.epochs),
            style="bold" if standing is won else "dim" if standing.candidate.baseline else None,
        )
    console.print(table)
    console.print(
        'Column "study" is the best epoch of the trial; the seed columns are the last epoch, which is exported.'
    )
    planned = (one.candidate for one in standings if one.candidate.recorded is not None)
    if shorter := [one.name for one in planned if not one.complete]:
        console.print(f"Trained for fewer epochs in the study: {', '.join(shorter)}.")
    console.print(f"{won.candidate.name} wins.")
    if seeds == 1:
        return  # luck decides about single runs, and they have no mean
    searched = [
        (one.candidate.recorded, one)
        for one in standings
        if one.candidate.complete and one.top1 and not one.candidate.baseline and one.candidate.recorded is not None
    ]
    if searched:
        recorded, best = max(searched, key=lambda pair: pair[0])
        difference = 100 * (recorded - best.mean)
        console.print(
            f"The best single run, {best.candidate.name}, was {abs(difference):.2f} points "
            f"{'above' if difference >= 0 else 'below'} its mean over {plural(len(best.top1), 'seed')}."
        )


def _points(share: float | None) -> str:
    """Return a share as a percentage without the sign (0.6385 -> 63.85), so that five seeds fit into 80 columns."""
    return "-" if share is None else f"{100 * share:.2f}"


def print_doubts(console: Console, doubts: Sequence[Doubt], folder: Path) -> None:
    """Print how many labels are not what the finalists find most probable, and where they are listed."""
    doubted = sum(one.guess != one.label for one in doubts)
    if doubted:
        console.print(
            Text(
                f"Labels to check: listed in {folder / FILE}, the least probable first; for {doubted:,} of "
                f"{len(doubts):,} validation pictures, the finalists find another class more probable."
            ),
            soft_wrap=True,
        )


def print_tested(console: Console, winner: Winner, results: dict[str, Any], classes: tuple[str, ...]) -> None:
    """Print the test results of the winner and the baselines, and the accuracy of each class."""
    table = Table(box=None, pad_edge=False, header_style="dim", title_justify="left")
    table.add_column("Test set", overflow="fold")
    has_top3, spread = results["top3"] is not None, results["top1_sd"] is not None
    for heading in ("top-1", "95 % interval", *["top-3"] * has_top3, *("mean", "sd") * spread):
        table.add_column(heading, justify="right", no_wrap=True)

    def add(name: str, one: dict[str, Any], top1: float, style: str) -> None:
        table.add_row(
            name,
            percent(top1),
            _interval(one["top1_interval"]),
            *[percent(one["top3"])] * has_top3,
            *(percent(one["top1_mean"]), percent(one["top1_sd"])) * spread,
            style=style,
        )

    add(f"{winner.name}, seed {winner.seed_index + 1}: exported", results, results["top1"], "bold")
    for other in results["baselines"]:
        add(other["name"], other, other["top1"][0], "dim")
    console.print(table)
    used = "once" if results["evaluations"] == 1 else f"{results['evaluations']} times"
    runs, diverged = len(results["seeds"]), results["diverged"]
    console.print(
        f"{results['pictures']:,} pictures, evaluated {used}; {'mean and sd over ' * spread}{plural(runs, 'seed')}"
        f"{f', {diverged} diverged' if diverged else ''}; ECE {percent(results['ece'])} (chance level "
        f"{percent(results['ece_chance'])}); {winner.calibration}."
    )
    for said in filter(None, (sure_result(results), strangers_result(results))):
        console.print(Text(said), soft_wrap=True)
    for other in results["baselines"]:
        means = results["top1_mean"], other["top1_mean"]
        low, high = (100 * end for end in difference(*means, results["pictures"]))
        console.print(
            Text(
                f"{100 * (means[0] - means[1]):+.2f} points (95 % interval {low:+.1f} to {high:+.1f}) compared with "
                f"'{other['name']}'{', mean to mean' * spread}."
            ),
            soft_wrap=True,
        )
    console.print(_per_class(results, classes))


def print_compared(console: Console, comparison: Comparison) -> None:
    """Print the test result of the winner beside that of a pretrained network, and what it means."""
    head, rows, says = compared(asdict(comparison))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in head:
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    console.print(Text(says), soft_wrap=True)


def print_audit(console: Console, audit: PrunerAudit) -> None:
    """Print how often the pruner was wrong."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("pruned trial", "when pruned", "at the end", "compared with the best"):
        table.add_column(heading, justify="right")
    for number, then, value in audit.pruned:
        table.add_row(str(number), percent(then), percent(value), f"{100 * (value - audit.best):+.2f} points")
    console.print(table)
    won, tried = len(audit.winners), plural(len(audit.pruned), "pruned trial")
    console.print(f"{won} of {tried} would have beaten the study's best ({percent(audit.best)}).")


def _interval(bounds: list[float]) -> str:
    return f"{100 * bounds[0]:.1f} - {100 * bounds[1]:.1f} %"


def _per_class(results: dict[str, Any], classes: tuple[str, ...]) -> Table:
    """Return a table of the classes: pictures, accuracy, and the class each is most often mistaken for."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("class", "pictures", "top-1 (95 % interval)", "most often mistaken for"):
        table.add_column(
            heading, justify="left" if heading in ("class", "most often mistaken for") else "right", overflow="fold"
        )
    for label, (name, row) in enumerate(zip(classes, results["confusion"], strict=True)):
        wrong = [(count, classes[other]) for other, count in enumerate(row) if other != label and count]
        most = max(wrong, key=lambda pair: pair[0], default=None)
        table.add_row(
            Text(name),
            f"{sum(row):,}",
            share_of(row[label], sum(row)),
            Text(f"{most[1]} ({most[0]})" if most else ""),
        )
    return table


def print_not_tested(console: Console, earlier: list[TestSetUse], name: str = "") -> None:
    """Print why the winner was not tested, or the pretrained network called `name`."""
    last = earlier[-1]
    times = "once" if len(earlier) == 1 else f"{len(earlier)} times"
    said = f"{name} was not tested" if name else "Not tested"
    console.print(
        Text(
            f"{said}: other networks have been tested on the test set of these pictures {times}, last in study "
            f"'{last.study}' at {last.when}. The more often it is used, the more the best result is luck. To test "
            "anyway, run the same command with --retest."
        ),
        style="yellow",
        soft_wrap=True,
    )


def print_next(console: Console, folder: Path, study_options: str) -> None:
    """Print where the results are, and the next command."""
    console.print()
    for line in (
        f"Finalists: {folder / 'finalists.csv'}",
        f"Result:    {folder / 'retrained.json'}",
        f"Export:    python study.py export {study_options}",
    ):
        console.print(Text(line), soft_wrap=True)


def print_published(console: Console, published: Published, winner: Winner, trials: int) -> None:
    """Print the bundle's files, each with its size and how far its output is from the trained network's.

    `trials` is the number of counted trials that the study has now.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("file", "kB", "largest error of log p", "different top-1"):
        table.add_column(heading, justify="left" if heading == "file" else "right")
    for name, size in published.sizes.items():
        parity = published.parity.get(name)
        table.add_row(
            name,
            f"{size / 1e3:,.0f}",
            f"{parity.log_probability:.1e}" if parity else "",
            f"{parity.disagreements} of {parity.pictures * len(parity.batch_sizes)}" if parity else "",
        )
    console.print(table)
    latency = published.latency
    console.print(
        f"model.onnx takes {latency.median:.2f} ms ({latency.low:.2f} to {latency.high:.2f}) per picture on one thread."
    )
    bundle = published.bundle
    rules = f"Probabilities: {bundle.calibration}; {bundle.sure_answers}; {bundle.strangers}."
    console.print(Text(rules), soft_wrap=True)
    untested = "other networks had been tested before" if winner.networks else "python study.py retrain tests it"
    result = f"untested: {untested}" if winner.test_top1 is None else f"test top-1 {percent(winner.test_top1)}"
    console.print(Text(f"Exported {winner.name} to {published.folder} ({result})."), soft_wrap=True)
    place = shlex.quote(str(published.folder))
    if trials > winner.trials:
        console.print(
            f"It was retrained after {winner.trials:,} trials, and the study now has {trials:,}: run python study.py "
            "retrain again to consider the later ones.",
            style="yellow",
        )
    console.print(Text(f"Use it:  python study.py predict PICTURE ... --model {place}"), soft_wrap=True)
