"""What a person sees in the terminal: the data, the study as it runs, its end. Plain lines where it is no terminal."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import track as rich_track
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from data import Track
from data.catalog import Catalog
from data.file_checks import Verdict
from data.split import Split
from model.files import printable
from model.training import EpochMetrics
from reporting.words import duration, percent
from tuning.cleaning import Item
from tuning.coordinator import (
    Coordinator,
    Ending,
    Happening,
    Plan,
    TrialAdvanced,
    TrialEnded,
    TrialPaused,
    TrialStarted,
)
from tuning.devices import Slot
from tuning.settings import typed
from tuning.storage import Outcome, counts, top

SHOWN_TRIALS = 5
"""Rows of the table of the best trials."""
SHOWN_FILES = 20
"""Left-out files that are listed on the screen."""
SHOWN_CLASSES = 30
WIDE = 100
"""Columns from which the table of the best trials shows all of theirs; in 80 the most telling fit."""


def make_console() -> Console:
    """The terminal; lines as wide as they are where there is none, so that a log is not broken at 80 columns."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def track(console: Console) -> Track:
    """A progress bar for one long pass over something; a plain line where there is no terminal."""

    def tracked(iterable: Iterable[Any], description: str, total: int) -> Iterable[Any]:
        if not console.is_terminal:
            console.print(f"{description} ({total:,}) ...")
            return iterable
        return rich_track(iterable, description, total, console=console, transient=True)

    return tracked


def print_catalog(console: Console, catalog: Catalog, split: Split) -> None:
    """A line per class: the pictures of each part, and how many files are left out; then why they are."""
    parts = dict(split.named())
    rows = catalog.counts()
    per_part = {part: np.bincount(catalog.labels[places], minlength=len(rows)) for part, places in parts.items()}
    left_out = {
        verdict: sum(row[verdict] for row in rows.values()) for verdict in Verdict if verdict is not Verdict.KEPT
    }
    any_left_out = any(left_out.values())
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ["class", *parts, *["left out"] * any_left_out]:
        table.add_column(heading, justify="left" if heading == "class" else "right")
    shown = list(rows.items())[:SHOWN_CLASSES]
    for label, row in shown:
        used = catalog.classes.index(label) if label in catalog.classes else None
        table.add_row(
            Text(printable(label) or "(beside the class folders)"),
            *("" if used is None else f"{per_part[part][used]:,}" for part in parts),
            *[f"{sum(row[verdict] for verdict in left_out):,}"] * any_left_out,
        )
    if len(rows) > len(shown):
        table.add_row(f"... {len(rows) - len(shown):,} more", style="dim")
    table.add_row(
        "all",
        *(f"{len(positions):,}" for positions in parts.values()),
        *[f"{sum(left_out.values()):,}"] * any_left_out,
        style="bold",
    )
    console.print(table)
    if any_left_out:
        reasons = [f"{count:,} {verdict.replace('_', ' ')}" for verdict, count in left_out.items() if count]
        console.print(f"Left out: {', '.join(reasons)}.")


def print_left_out(console: Console, catalog: Catalog, report: Path | None) -> None:
    """The first files that a study would not use, each with its reason, and how to see all of them."""
    left_out = [picture for picture in catalog.pictures if picture.verdict is not Verdict.KEPT]
    for picture in left_out[:SHOWN_FILES]:
        console.print(Text(f"{picture.verdict.replace('_', ' ')}: {printable(picture.path)} ({picture.reason})"))
    if report is not None:
        console.print(Text(f"The verdict on every file is in {printable(report)}."), soft_wrap=True)
    elif len(left_out) > SHOWN_FILES:
        console.print(f"... and {len(left_out) - SHOWN_FILES:,} more; --report FILE writes the verdict on every file.")


def print_plan(
    console: Console,
    study: str,
    plan: Plan,
    epochs: int,
    first_pruning: int | None,
    slots: Sequence[Slot],
    *,
    wanted: int,
    expected: float,
) -> None:
    """What is about to happen and how long it should take. `expected`: seconds of one trial in one slot."""
    pruned = f"pruned after epoch {first_pruning} at the earliest" if first_pruning else "never pruned"
    console.print(
        Text(
            f"Study '{study}': {wanted} of {plan.trials} trials to go, each of {epochs} epochs, {pruned}; "
            f"{_at_once(slots)}: about {duration(wanted * expected / len(slots))}."
        )
    )


def print_runs(console: Console, kind: str, wanted: int, slots: Sequence[Slot], expected: float) -> None:
    """What is about to be trained again. `expected`: seconds of one run in one slot."""
    runs = f"{wanted} run{'s' * (wanted != 1)}"
    took = duration(wanted * expected / len(slots))
    console.print(f"{kind}: {runs} to go, {_at_once(slots)}: about {took}.")


def _at_once(slots: Sequence[Slot]) -> str:
    return f"{len(slots)} at once on {slots[0].device.partition(':')[0]} in {slots[0].precision}"


@dataclass(kw_only=True)
class _Running:
    """What a slot's line shows."""

    number: int
    epochs: int
    name: str | None
    epoch: int = 0
    share: float | None = None
    """Of the running epoch; None until the worker has been heard of."""
    top1: float | None = None
    final: bool = False
    """Whether it trains on the validation pictures, so that its accuracy on them says nothing."""
    epoch_seconds: float = 0.0

    @property
    def seconds_left(self) -> float:
        """Of the running epoch."""
        return self.epoch_seconds * (1.0 - (self.share or 0.0))

    @property
    def done(self) -> float:
        return min(1.0, (self.epoch + (self.share or 0.0)) / self.epochs)


class Screen:
    """Follows a running study: a headline and a line per worker, or a plain line per finished trial."""

    def __init__(
        self,
        console: Console,
        study: optuna.Study,
        *,
        trials: int,
        slots: int,
        expected: float,
        searches: bool = True,
    ) -> None:
        """`expected`: seconds of one trial in one slot, until enough have ended to know better.

        `searches`: whether the best of them is looked for; else they are runs that were decided beforehand.
        """
        finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
        self._outcomes = Counter(trial.user_attrs.get("outcome", Outcome.FAILED) for trial in finished)
        self._counted = sum(map(counts, finished))
        best = top(finished, 1)
        self._best = (best[0].value or 0.0, best[0].number) if best and searches else None
        self._console, self._study_name = console, study.study_name
        self._trials, self._slots, self._expected = trials, slots, expected
        self._searches, self._unit = searches, "trial" if searches else "run"
        self._running: dict[int, _Running] = {}
        self._began, self._ended_here = time.monotonic(), 0
        self._stopping = False
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=True)

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    @property
    def seconds_left(self) -> float:
        """Until the last trial, from the trials that ended in this run, or from what was expected of them."""
        elapsed = time.monotonic() - self._began
        per_trial = elapsed * self._slots / self._ended_here if self._ended_here >= 2 * self._slots else self._expected
        left = self._trials - self._counted - sum(running.done for running in self._running.values())
        return max(0.0, left) * per_trial / self._slots

    def stop(self) -> None:
        """Says, once, that the run is about to leave and how long the running epochs still take."""
        if not self._stopping:
            self._stopping = True
            left = max((running.seconds_left for running in self._running.values()), default=0.0)
            self._console.print(
                Text(f"Stopping when the running epochs end, in about {duration(left)}; once more leaves without them.")
            )

    def show(self, happening: Happening) -> None:
        """Takes one thing that has happened."""
        match happening:
            case TrialStarted():
                self._running[happening.slot] = _Running(
                    number=happening.number,
                    epochs=happening.assignment.epochs,
                    name=happening.assignment.name,
                    final=happening.assignment.final,
                    epoch_seconds=self._expected / happening.assignment.epochs,
                )
                if happening.attempt > 1:
                    fewer = happening.micro_batch
                    short = f", {fewer} pictures at a time, as memory was short" if fewer else ""
                    self._line(happening.number, None, f"goes on from its last checkpoint{short}")
            case TrialAdvanced() if isinstance(happening.progress, EpochMetrics):
                running = self._running[happening.slot]
                running.epoch, running.share = happening.progress.epoch + 1, 0.0
                running.top1 = None if running.final else happening.progress.top1
                running.epoch_seconds = happening.progress.seconds
            case TrialAdvanced():
                running = self._running[happening.slot]
                running.share = max(running.share or 0.0, getattr(happening.progress, "share", 0.0))
            case TrialPaused():
                self._running.pop(happening.slot, None)
            case TrialEnded():
                self._end(happening)
                if self._live.is_started:
                    self._live.refresh()
            case None:
                pass

    def _end(self, ended: TrialEnded) -> None:
        running = self._running.pop(ended.slot, None) if ended.slot is not None else None
        if ended.outcome is None:
            self._line(ended.number, None, ended.reason)
            return
        self._outcomes[ended.outcome] += 1
        counted = ended.outcome in (Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED)
        self._counted += counted
        self._ended_here += counted
        better = (
            self._searches
            and ended.outcome is Outcome.COMPLETE
            and (self._best is None or (ended.value or 0.0) > self._best[0])
        )
        if better:
            self._best = (ended.value or 0.0, ended.number)
        facts = [running.name] if running and running.name else []
        if ended.outcome is Outcome.PRUNED:
            facts.append(ended.reason)
        elif ended.outcome is not Outcome.COMPLETE:
            facts.append(f"{ended.outcome}: {ended.reason}")
        value = None if running and running.final else ended.value
        self._line(ended.number, value, ", ".join([*facts, *["the best so far"] * better]))

    def _line(self, number: int, value: float | None, text: str) -> None:
        line = f"{self._unit} {number:>{len(str(self._trials))}}  {percent(value):>8}  {text}".rstrip()
        if self._console.is_terminal:
            self._console.print(Text(line, style="dim"))
        else:
            self._console.print(Text(f"{line} | {self._headline()}, {self._time_left()}"), soft_wrap=True)

    def _headline(self) -> str:
        facts = [f"{self._counted} of {self._trials} {self._unit}s"]
        for outcome in (Outcome.PRUNED, Outcome.DIVERGED, Outcome.INFEASIBLE, Outcome.DUPLICATE, Outcome.FAILED):
            if self._outcomes[outcome] or (self._searches and outcome in (Outcome.PRUNED, Outcome.FAILED)):
                facts.append(f"{self._outcomes[outcome]} {outcome}")
        if self._best:
            facts.append(f"best {percent(self._best[0])} (trial {self._best[1]})")
        return ", ".join(facts)

    def _time_left(self) -> str:
        return f"about {duration(self.seconds_left)} left" if self._counted < self._trials else "done"

    def _render(self) -> RenderableType:
        lines = Table.grid(padding=(0, 2))
        for slot in range(self._slots):
            running = self._running.get(slot)
            if running is None:
                lines.add_row(Text(f"worker {slot}", style="dim"))
                continue
            epoch = f"epoch {min(running.epoch + 1, running.epochs)}/{running.epochs}"
            lines.add_row(
                Text(f"worker {slot}", style="dim"),
                Text(f"{self._unit} {running.number}"),
                Text("starting" if running.share is None else epoch),
                ProgressBar(total=1.0, completed=running.done, width=16),
                Text(percent(running.top1) if running.top1 is not None else ""),
                Text(running.name or "", style="dim"),
            )
        elapsed = duration(time.monotonic() - self._began)
        return Group(
            Text(f"{self._study_name}: {self._headline()}", style="bold"),
            lines,
            Text(f"{elapsed} gone, {self._time_left()}", style="dim"),
        )


def follow(
    coordinator: Coordinator, screen: Screen, hear: Callable[[Happening], None] = lambda happening: None
) -> int | None:
    """Runs to the end, shows it and lets `hear` know; returns the signal that ended it before, None where none did."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        coordinator.stop()

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # Closed whatever ends the loop: workers ignore the SIGTERM with which Python would end them, and it would wait.
        with screen, closing(coordinator.run()) as run:
            for happening in run:
                screen.show(happening)
                hear(happening)
                if received:
                    screen.stop()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return received[0] if received else None


def print_best(console: Console, study: optuna.Study) -> None:
    """The best trials, what each was, and how the known-good configurations did."""
    trials = study.get_trials(deepcopy=False)
    best = top(trials, SHOWN_TRIALS)
    if not best:
        console.print("No trial has been trained to its end yet.")
        return
    known = [trial for trial in top(trials, len(trials)) if trial.user_attrs.get("known_good")]
    rows = {trial.number: _cells(trial) for trial in best + known}
    wide = console.width >= WIDE
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in rows[best[0].number]:
        if wide or heading not in ("top-3", "epoch", "decay"):
            left = heading in ("stride", "dilation", "optimizer", "decay")
            table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for number, cells in rows.items():
        table.add_row(
            *(cells[str(column.header)] for column in table.columns),
            style="bold" if number == best[0].number else None,
        )
    console.print(table)
    if known:
        names = [f"{trial.number} ({trial.user_attrs['known_good']})" for trial in known]
        console.print(f"Known-good starting points: trial {', '.join(names)}.")


def _cells(trial: optuna.trial.FrozenTrial) -> dict[str, str]:
    """A trial's row by heading."""
    config = trial.user_attrs["config"]
    model, training = config["model"], config["training"]
    return {
        "trial": str(trial.number),
        "top-1": percent(trial.value),
        "top-3": percent(trial.user_attrs.get("best_top3")),
        "epoch": str(trial.user_attrs.get("best_epoch", 0) + 1),
        "size": str(config["image_size"]),
        "width": f"{model['width']:g}",
        "stride": model["stride_pattern"],
        "dilation": model["dilation_pattern"],
        "optimizer": f"{training['optimizer']} {training['lr']:.2g}",
        "decay": training["schedule"],
        "MFLOP": f"{trial.user_attrs['flops'] / 1e6:,.0f}",
    }


def print_end(
    console: Console, study: optuna.Study, folder: Path, ending: Ending | None, words: Sequence[str], places: str
) -> None:
    """The best trials, why the run ended, and what can be done next.

    `words`: what was typed after `study.py`; `places`: the options by which the next commands find the study.
    """
    console.print()
    print_best(console, study)
    console.print()
    trials = study.get_trials(deepcopy=False)
    counted = sum(map(counts, trials))
    half_way = sum(trial.state is TrialState.RUNNING for trial in trials)
    lines = [
        f"{counted} trial{'s' * (counted != 1)}: {ending}."
        + f" {half_way} half-way, their finished epochs are kept." * bool(half_way)
    ]
    match ending:
        case Ending.PATIENCE | Ending.TARGET:
            lines.append(f"Go on:    the same command with a larger --{ending.name.lower()}, or without it")
        case Ending.TRIALS:
            lines.append(f"Go on:    {typed(words, 2 * counted)}")
        case _:
            lines.append(f"Go on:    {typed(words)}")
    lines += [
        f"Look:     python study.py dashboard {places}",
        f"Report:   python study.py report {places}",
        f"Retrain:  python study.py retrain {places}",
        f"Table:    {folder / 'trials.csv'}",
        f"Pictures: {folder / 'data_report.csv'}",
    ]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def print_weights(console: Console, items: list[Item]) -> None:
    """What lies on the disk and how to remove it."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("name")
    table.add_column("MB", justify="right")
    table.add_column("place", overflow="fold")
    for item in items:
        table.add_row(Text(item.name), f"{item.size / 2**20:,.1f}", Text(str(item.path)))
    console.print(table if items else "No studies and no caches.")
    if items:
        console.print("python study.py clean NAME ... removes what is named.")


def print_removed(console: Console, item: Item) -> None:
    """What has been removed."""
    console.print(Text(f"removed {item.name} ({item.size / 2**20:,.1f} MB)"))
