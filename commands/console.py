"""What the terminal shows of a run: the pictures, the running study and its end; plain lines in a log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import track as rich_track
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from data import Track
from data.augment import changed_by_flips
from data.catalog import Catalog, Picture, remedy, shown, why_left_out
from data.facts import describe_sizes
from data.file_checks import Verdict
from data.findings import look_alikes, odd_shares
from data.prepare import Pictures
from data.report import describe_layout, describe_subfolders, remarks
from model.files import printable
from model.limits import describe_cpus
from model.training import EpochMetrics
from reporting.words import duration, how_far, numbered_epochs, percent, plural, stopped_baselines
from tuning.cleaning import Item
from tuning.coordinator import Plan
from tuning.database import network_file_system, without_password
from tuning.events import Ending, StudyEvent, TrialAdvanced, TrialEnded, TrialPaused, TrialRequeued, TrialStarted
from tuning.memory import shortage
from tuning.session import SearchSession, Session
from tuning.settings import command_line
from tuning.trials import Outcome, Trial, count_trials, furthest, read_trials, top

SHOWN_TRIALS = 5
"""Number of rows in the table of the best trials."""
SHOWN_FILES = 20
"""Largest number of left-out files that are listed."""
SHOWN_CLASSES = 30
WIDE = 100
"""Terminal width from which the table of the best trials has all columns; in 80 only the most informative ones fit."""


def make_console() -> Console:
    """Return a console on standard output; if that is a log rather than a terminal, it is 160 columns wide, not 80."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def track(console: Console) -> Track:
    """Return a `Track` that shows progress: a bar in a terminal, one line in a log."""

    def tracked(iterable: Iterable[Any], description: str, total: int) -> Iterable[Any]:
        if not console.is_terminal:
            console.print(f"{description} ({total:,}) ...")
            return iterable
        return rich_track(iterable, description, total, console=console, transient=True)

    return tracked


def print_pictures(console: Console, pictures: Pictures, *, classes: bool = True) -> None:
    """Print how many pictures are in use, and the table of the classes."""
    used, catalog = len(pictures.catalog.kept), pictures.catalog
    some = f"{used:,} of {pictures.available:,}" if used < pictures.available else f"{used:,}"
    line = f"{pictures.name}: {some} pictures of {len(catalog.classes)} classes"
    console.print(line, style="bold", highlight=False, markup=False)
    if classes:
        _print_layout(console, catalog)
        _print_classes(console, catalog, dict(pictures.split.named()))


def print_facts(console: Console, pictures: Pictures, studies: Mapping[str, Mapping[str, Any]]) -> None:
    """Print sizes, what is odd, and what a study by each profile would do with the pictures."""
    catalog = pictures.catalog
    for line in (describe_sizes(catalog), *describe_subfolders(catalog), *remarks(catalog)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    plans: list[str] = []
    for name, study in studies.items():
        sizes = study["image_sizes"]
        ends = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        plans.append(f"{name}: {plural(study['epochs'], 'epoch')} at {ends} pixels")
    console.print(f"Each trial of a study, by profile: {'; '.join(plans)}.", highlight=False, soft_wrap=True)


def print_unusable(console: Console, catalog: Catalog) -> None:
    """Print the table of the classes of a data set of which no study can be made, with the usable pictures of each."""
    _print_layout(console, catalog)
    _print_classes(console, catalog, {"usable": np.arange(len(catalog.kept))})


def _print_layout(console: Console, catalog: Catalog) -> None:
    """Print which folders are official parts, and which are not used."""
    for line in describe_layout(catalog):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def ask_about_flips(console: Console, pictures: Pictures) -> None:
    """Print a line if the names of some classes suggest that a mirrored picture means something else."""
    if names := changed_by_flips(pictures.catalog.classes):
        shown = ", ".join(f"'{printable(name)}'" for name in names[:3])
        console.print(
            f"Training mirrors some pictures. If a mirrored picture of {shown} means something else, add --no-flips.",
            highlight=False,
            markup=False,
        )


def print_look_alikes(console: Console, pictures: Pictures) -> None:
    """Print which pictures look alike, what that means for the split, and which parts are far from their share."""
    alike = look_alikes(pictures.catalog)
    notes: list[str] = []
    warnings: list[str] = []
    if alike.groups:
        notes.append(
            f"Near-duplicates: {sum(map(len, alike.groups)):,} pictures in {plural(len(alike.groups), 'group')}, the "
            f"largest of {len(alike.groups[0]):,} ({_examples(alike.groups[0])}). Each group stays in one part"
            f"{', unless official parts divide it' * bool(alike.leaks)}."
        )
    if alike.scenes:
        notes.append(
            f"Scenes: {sum(map(len, alike.scenes)):,} pictures look alike in {plural(len(alike.scenes), 'scene')}, the "
            f"largest of {len(alike.scenes[0]):,} ({_examples(alike.scenes[0])}). They are split like different "
            "pictures, because too many match for them to be copies. If they are frames of one video, the accuracy "
            "will be too optimistic: sort the pictures into train/, val/ and test/."
        )
    if alike.leaks:
        warnings.append(
            f"{plural(len(alike.leaks), 'picture')} of train or validation "
            f"{'is a near-duplicate' if len(alike.leaks) == 1 else 'are near-duplicates'} of one in the official "
            f"{' or '.join(sorted({judge.part for _, judge in alike.leaks}))} set ({_examples(alike.leaks[0])}). "
            "Official parts are used as they are: remove what should not be there, or the accuracy may be too "
            "optimistic."
        )
    for odd in odd_shares(pictures.catalog, pictures.split):
        of = "" if odd.label is None else f" of '{printable(odd.label)}'"
        cause = "by chance"
        if odd.cause:
            cause = (
                f"{len(odd.cause):,} of them are near-duplicates of others ({_examples(odd.cause)}); "
                "--near-duplicates keep splits them like different pictures"
            )
        warnings.append(
            f"{odd.found:,} of {odd.total:,} pictures{of} are in {odd.part} instead of about "
            f"{odd.share * odd.total:,.0f}: {cause}."
        )
    for line in notes:
        console.print(Text(line), soft_wrap=True)
    for line in warnings:
        console.print(Text(f"Warning: {line}", style="yellow"), soft_wrap=True)


def _examples(pictures: Sequence[Picture]) -> str:
    return " and ".join(shown(picture) for picture in pictures[:2])


def _print_classes(console: Console, catalog: Catalog, parts: Mapping[str, npt.NDArray[np.int64]]) -> None:
    """Print one line per class with its pictures in each part, then how many files are left out and why.

    `parts` holds positions in `catalog.kept`.
    """
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
        fix = remedy(catalog.pictures)
        line = f"Left out: {why_left_out(catalog.pictures)}.{f' {fix[0].upper()}{fix[1:]}.' if fix else ''}"
        console.print(Text(printable(line)), soft_wrap=True)


def print_left_out(console: Console, catalog: Catalog, report: Path | None) -> None:
    """Print the first files that a study would leave out, each with its reason, and where the others are listed."""
    left_out = [picture for picture in catalog.pictures if picture.verdict is not Verdict.KEPT]
    for picture in left_out[:SHOWN_FILES]:
        console.print(Text(f"{picture.verdict.replace('_', ' ')}: {printable(picture.path)} ({picture.reason})"))
    if report is not None:
        console.print(Text(f"The verdict on every file is in {printable(report)}."), soft_wrap=True)
    elif len(left_out) > SHOWN_FILES:
        console.print(f"... and {len(left_out) - SHOWN_FILES:,} more: --report FILE writes the verdict on every file.")


def warn_of_network_file_system(console: Console, results: Path) -> None:
    """Print a warning if the results are on a network file system, on which SQLite's locks are unsafe."""
    kind = network_file_system(results)
    if kind:
        console.print(
            f"Warning: {results} is on a network file system ({kind}), where SQLite can lose a study: use --results "
            "DIR on a local disk, or --storage with PostgreSQL.",
            style="yellow",
            markup=False,
        )


def warn_of_password(console: Console, storage: str) -> None:
    """Print a warning if a storage URL holds a password, which is on the command line then."""
    if without_password(storage) != storage:
        console.print(
            "Warning: everyone who can list this machine's processes can see the password in --storage: keep a "
            "PostgreSQL password in the file that PGPASSFILE names instead.",
            style="yellow",
            markup=False,
        )


def print_machine(console: Console, workers: int) -> None:
    """Print what is odd about this machine: fewer CPUs than one sees, too little memory for the workers."""
    if used := describe_cpus():
        console.print(f"Using {used}.")
    if short := shortage(workers):
        console.print(f"Warning: {short}.", style="yellow")


def print_plan(
    console: Console,
    session: SearchSession,
    *,
    wanted: int,
    rungs: Sequence[int],
    first_pruning: int | None,
    left: float,
) -> None:
    """Print what is about to be trained and how long that should take.

    Args: `wanted`: number of trials left; `rungs`: epochs, from 1, after which each trial pauses; `first_pruning`: the
    first epoch after which a trial can be pruned; `left`: expected seconds of the whole run.
    """
    pruned = f"pruned after epoch {first_pruning} at the earliest" if first_pruning else "never pruned"
    if rungs:
        pruned = f"paused after {numbered_epochs(rungs)}"
    trials = read_trials(session.study)
    paused = sum(trial.is_paused for trial in trials)
    waiting = f" ({paused} paused)" if paused else ""
    console.print(
        Text(
            f"Study '{session.name}': {wanted} of {session.plan.trials} trials left{waiting}, {session.profile.epochs} "
            f"epochs each, {pruned}; {_at_once(session)}: about {duration(left)}{_limits(session.plan)}."
        )
    )
    earlier = {trial.environment.get("precision", "unknown") for trial in trials if trial.environment}
    if other := sorted(earlier - {session.slots[0].precision}):
        console.print(f"Earlier trials were trained in {' and '.join(other)}.")


def _limits(plan: Plan) -> str:
    """Return when the run stops earlier, with units: a value in the wrong one is seen before hours are lost."""
    limits = [f"after {duration(plan.timeout)}"] if plan.timeout else []
    if plan.patience is not None:
        limits.append(f"after {plural(plan.patience, 'trial')} without an improvement")
    if plan.target is not None:
        limits.append(f"at {percent(plan.target)} validation top-1")
    return f", unless it ends {' or '.join(limits)}" if limits else ""


def print_runs(console: Console, title: str, wanted: int, session: Session, expected: float) -> None:
    """Print which fixed runs are about to be trained; `expected` is the seconds of one run in one slot."""
    took = duration(wanted * expected / len(session.slots))
    console.print(f"{title}: {plural(wanted, 'run')} left; {_at_once(session)}: about {took}.")


def _at_once(session: Session) -> str:
    first, compared = session.slots[0], session.timing and session.timing.comparison
    speed = f", {compared}" if compared else ""
    hosts = len({slot.host for slot in session.slots})
    where = f" of {hosts} machines" if hosts > 1 else ""
    return f"{len(session.slots)} at once on {first.device.partition(':')[0]}{where} in {first.precision}{speed}"


@dataclass(kw_only=True)
class _Running:
    """The state of a trial in a slot, as its line shows it."""

    number: int
    epochs: int
    name: str | None
    epoch: int = 0
    share: float | None = None
    """Finished share of the running epoch, 0 to 1; None before the worker's first message."""
    top1: float | None = None
    final: bool = False
    """Whether the run also trains on the validation pictures, so that its accuracy on them means nothing."""
    epoch_seconds: float = 0.0
    host: str | None = None
    """Name of the slot's machine; None if it is not known."""
    stop: int
    """Number of epochs after which it pauses, or ends."""

    @property
    def seconds_to_stop(self) -> float:
        """Seconds until it pauses or ends."""
        return self.epoch_seconds * max(0.0, self.stop - self.done)

    @property
    def seconds_left(self) -> float:
        """Seconds until the running epoch ends."""
        return self.epoch_seconds * (1.0 - (self.share or 0.0))

    @property
    def done(self) -> float:
        """Number of finished epochs, with the finished share of the running one."""
        return min(self.epochs, self.epoch + (self.share or 0.0))


class Screen:
    """Shows a running study: a headline and a line per worker in a terminal, a line per finished trial in a log."""

    def __init__(
        self,
        console: Console,
        study: optuna.Study,
        *,
        trials: int,
        slots: int,
        expected: float,
        epochs: float | None = None,
        rungs: Sequence[int] = (),
        searches: bool = True,
    ) -> None:
        """Read the study's current state.

        Args: `trials`: total number; `expected`: seconds of one trial in one slot, from which the time left is computed
        until enough has been trained; `epochs`: expected mean number of epochs of a trial if the scheduler promotes
        trials, which pause after `rungs` epochs; `searches`: False for fixed runs, among which there is no best.
        """
        known = read_trials(study)
        finished = [trial for trial in known if trial.is_finished]
        self._outcomes = Counter(trial.outcome for trial in finished)
        self._counted = count_trials(finished)
        best = top(finished, 1)
        self._best = (best[0].value or 0.0, best[0].number) if best and searches else None
        self._console, self._study_name = console, study.study_name
        self._trials, self._slots, self._expected = trials, slots, expected
        self._searches, self._unit = searches, "trial" if searches else "run"
        self._running: dict[int, _Running] = {}
        self._hosts = {trial.host for trial in known if trial.host}
        self._mean_epochs, self._rungs = epochs, rungs
        self._epochs = {trial.number: trial.epochs for trial in known}
        self._reached = {trial.number: trial.reached for trial in known if trial.reached is not None}
        self._paused = {trial.number for trial in known if trial.is_paused}
        self._began, self._done_before = time.monotonic(), self._done
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
        """Seconds until the last trial ends, from what has been trained in this run or the expected duration.

        It is at least as long as the running trials take, as more may have been promoted than expected.
        """
        elapsed, done_here = time.monotonic() - self._began, self._done - self._done_before
        per_trial = elapsed * self._slots / done_here if done_here >= 2 * self._slots else self._expected
        running = (one.seconds_to_stop for one in self._running.values())
        return max(max(0.0, self._trials - self._done) * per_trial / self._slots, *running, 0.0)

    @property
    def _done(self) -> float:
        """Finished work in trials of mean length: with promotion, trials end last, so that only their epochs tell."""
        if self._mean_epochs is not None:
            begun = sum(running.share or 0.0 for running in self._running.values())
            return (sum(self._epochs.values()) + begun) / self._mean_epochs
        return self._counted + sum(running.done / running.epochs for running in self._running.values())

    def print_stopping(self) -> None:
        """Print, once, that the run is stopping and how long its running epochs still take."""
        if not self._stopping:
            self._stopping = True
            left = max((running.seconds_left for running in self._running.values()), default=0.0)
            when = f"when the running epochs end, in about {duration(left)}"
            self._console.print(Text(f"Stopping {when}; Ctrl-C again stops now."))

    def show(self, event: StudyEvent) -> None:
        """Show an event of the study."""
        match event:
            case TrialStarted():
                epoch, last = self._epochs.get(event.number, 0), event.assignment.epochs
                self._running[event.slot] = _Running(
                    number=event.number,
                    epochs=last,
                    epoch=epoch,
                    stop=next((rung for rung in self._rungs if rung > epoch), last),
                    name=event.assignment.name,
                    final=event.assignment.final,
                    epoch_seconds=self._expected / (self._mean_epochs or last),
                    host=event.host,
                )
                if event.host:
                    self._hosts.add(event.host)
                if event.number in self._paused:
                    self._paused.remove(event.number)
                elif event.attempt > 1:
                    fewer = event.micro_batch
                    short = f", in micro-batches of {fewer} as memory was short" if fewer else ""
                    self._line(event.number, None, f"resumed from its last checkpoint{short}")
            case TrialAdvanced():
                running, progress = self._running[event.slot], event.progress
                if isinstance(progress, EpochMetrics):
                    running.epoch, running.share = progress.epoch + 1, 0.0
                    self._epochs[event.number] = max(running.epoch, self._epochs.get(event.number, 0))
                    self._reached[event.number] = max(progress.top1, self._reached.get(event.number, 0.0))
                    running.top1 = None if running.final else progress.top1
                    running.epoch_seconds = progress.seconds
                else:
                    running.share = max(running.share or 0.0, progress.share)
            case TrialPaused():
                running = self._running.pop(event.slot, None)
                self._paused.add(event.number)
                facts = [running.name, self._where(running)] if running else []
                after = [*filter(None, facts), f"paused after epoch {self._epochs.get(event.number, 0)}"]
                self._line(event.number, self._reached.get(event.number), ", ".join(after))
            case TrialRequeued():
                self._running.pop(event.slot, None)
                self._line(event.number, None, f"requeued: {event.reason}")
            case TrialEnded():
                self._end(event)
                if self._live.is_started:
                    self._live.refresh()
            case None:
                pass

    def _end(self, ended: TrialEnded) -> None:
        running = self._running.pop(ended.slot, None) if ended.slot is not None else None
        retired = ended.number in self._paused
        self._paused.discard(ended.number)
        if ended.outcome is None:
            self._line(ended.number, None, ended.reason)
            return
        self._outcomes[ended.outcome] += 1
        counted = ended.outcome in (Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED)
        self._counted += counted
        better = (
            self._searches
            and ended.outcome is Outcome.COMPLETE
            and (self._best is None or (ended.value or 0.0) > self._best[0])
        )
        if better:
            self._best = (ended.value or 0.0, ended.number)
        facts = [running.name] if running and running.name else []
        if running and (where := self._where(running)):
            facts.append(where)
        if ended.outcome is Outcome.PRUNED:
            facts.append(ended.reason)
        elif ended.outcome is not Outcome.COMPLETE:
            facts.append(f"{ended.outcome}: {ended.reason}")
        value = None if running and running.final else ended.value
        if retired:
            return  # its line was printed when it was paused
        self._line(ended.number, value, ", ".join([*facts, *["best so far"] * better]))

    def _line(self, number: int, value: float | None, text: str) -> None:
        line = f"{self._unit} {number:>{len(str(self._trials))}}  {percent(value):>8}  {text}".rstrip()
        if self._console.is_terminal:
            self._console.print(Text(line, style="dim"))
        else:
            self._console.print(Text(f"{line} | {self._headline()}, {self._time_left()}"), soft_wrap=True)

    def _where(self, running: _Running) -> str:
        """Return where a trial runs if the study has seen several machines; otherwise an empty text."""
        return f"on {running.host}" if running.host and len(self._hosts) > 1 else ""

    def _headline(self) -> str:
        facts = [f"{self._counted} of {self._trials} {self._unit}s"]
        if self._paused:
            begun = self._counted + len(self._paused) + len(self._running)
            facts = [f"{begun} of {self._trials} {self._unit}s begun", f"{len(self._paused)} paused"]
        for outcome in (Outcome.PRUNED, Outcome.DIVERGED, Outcome.INFEASIBLE, Outcome.DUPLICATE, Outcome.FAILED):
            if self._outcomes[outcome] or (self._searches and outcome in (Outcome.PRUNED, Outcome.FAILED)):
                facts.append(f"{self._outcomes[outcome]} {outcome}")
        if self._best:
            facts.append(f"best {percent(self._best[0])} (trial {self._best[1]})")
        elif self._paused:
            highest = max(self._paused, key=lambda number: self._reached.get(number, 0.0))
            facts.append(f"highest {percent(self._reached.get(highest))} (trial {highest})")
        return ", ".join(facts)

    def _time_left(self) -> str:
        return f"about {duration(self.seconds_left)} left" if self._counted < self._trials else "done"

    def _render(self) -> RenderableType:
        lines = Table.grid(padding=(0, 2))
        for slot in sorted({*range(self._slots), *self._running}):
            running = self._running.get(slot)
            if running is None:
                lines.add_row(Text(f"worker {slot}", style="dim"))
                continue
            epoch = f"epoch {min(running.epoch + 1, running.epochs)}/{running.epochs}"
            lines.add_row(
                Text(f"worker {slot} {self._where(running)}".rstrip(), style="dim"),
                Text(f"{self._unit} {running.number}"),
                Text("starting" if running.share is None else epoch),
                ProgressBar(total=running.epochs, completed=running.done, width=16),
                Text(percent(running.top1) if running.top1 is not None else ""),
                Text(running.name or "", style="dim"),
            )
        elapsed = duration(time.monotonic() - self._began)
        return Group(
            Text(f"{self._study_name}: {self._headline()}", style="bold"),
            lines,
            Text(f"{elapsed} elapsed, {self._time_left()}", style="dim"),
        )


def print_best(console: Console, study: optuna.Study) -> None:
    """Print the best trials and the baselines, each with its main settings."""
    trials = read_trials(study)
    best = top(trials, SHOWN_TRIALS)
    if not best:
        console.print("No trial has been trained to its last epoch yet.")
        for trial in furthest(trials, 1):
            console.print(f"Furthest: trial {trial.number}, {percent(trial.reached)} after epoch {trial.epochs}.")
        return
    baselines = [trial for trial in top(trials, len(trials)) if trial.baseline]
    rows = {trial.number: _cells(trial) for trial in best + baselines}
    wide = console.width >= WIDE
    table = Table(box=None, pad_edge=False, header_style="dim")
    hidden = set() if wide else {"top-3", "epoch", "decay"}
    if all(cells.get("top-3", "-") == "-" for cells in rows.values()):
        hidden.add("top-3")
    headings = [name for name in rows[best[0].number] if name not in hidden]
    for heading in headings:
        left = heading in ("stride", "dilation", "optimizer", "decay")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for number, cells in rows.items():
        table.add_row(
            *(cells.get(heading, "-") for heading in headings),
            style="bold" if number == best[0].number else None,
        )
    console.print(table)
    if baselines:
        names = [f"trial {trial.number} ({trial.baseline})" for trial in baselines]
        console.print(f"Baselines: {', '.join(names)}.")
    if stopped := stopped_baselines(trials):
        console.print(Text(f"Baselines stopped earlier: {stopped}."))


def _cells(trial: Trial) -> dict[str, str]:
    """Return a trial's row by heading; settings are "-" if its configuration cannot be read."""
    result, config = trial.result, trial.config
    cells = {
        "trial": str(trial.number),
        "top-1": percent(trial.value),
        "top-3": percent(result.top3 if result else None),
        "epoch": str(result.epoch + 1) if result else "-",
    }
    for heading in ("size", "width", "stride", "dilation", "optimizer", "decay"):
        cells[heading] = "-"
    if config:
        model, training = config.model, config.training
        cells |= {
            "size": str(config.image_size),
            "width": f"{model.width:g}",
            "stride": model.stride_pattern,
            "dilation": model.dilation_pattern,
            "optimizer": f"{training.optimizer} {training.lr:.2g}",
            "decay": training.schedule,
        }
    return cells | {"MFLOP": f"{trial.flops / 1e6:,.0f}" if trial.flops else "-"}


def print_end(
    console: Console, session: SearchSession, ending: Ending | None, argv: Sequence[str], study_options: str
) -> None:
    """Print the best trials, why the run ended, and the next commands.

    `argv` are the arguments after `study.py`, `study_options` the options with which other commands find the study.
    """
    console.print()
    print_best(console, session.study)
    console.print()
    trials = read_trials(session.study)
    counted, unfinished = count_trials(trials), sum(trial.is_running for trial in trials)
    kept = f" The finished epochs of {plural(unfinished, 'unfinished trial')} are kept." if unfinished else ""
    lines = [f"{plural(counted, 'trial')}: {ending}{_measured(session.plan, ending, trials)}.{kept}"]
    if far := how_far(trials):
        lines.append(f"Trained:  {far}")
    match ending:
        case Ending.PATIENCE | Ending.TARGET:
            lines.append(f"Continue: run the same command with a larger --{ending.name.lower()}, or without it")
        case Ending.TRIALS:
            lines.append(f"Continue: {command_line(argv, 2 * counted)}")
        case _:
            lines.append(f"Resume:   {command_line(argv)}")
    lines += [
        f"Browse:   python study.py dashboard {study_options}",
        f"Report:   python study.py report {study_options}",
        f"Retrain:  python study.py retrain {study_options}",
        f"Trials:   {session.folder / 'trials.csv'}",
        f"Pictures: {session.folder / 'data_report.csv'}",
    ]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _measured(plan: Plan, ending: Ending | None, trials: Sequence[Trial]) -> str:
    """Return the limit that ended a run, and a target beside the best value, in parentheses; empty without either."""
    facts = [f"after {duration(plan.timeout)}"] if ending is Ending.TIMEOUT and plan.timeout else []
    if ending is Ending.PATIENCE and plan.patience is not None:
        facts.append(f"{plural(plan.patience, 'trial')} without an improvement")
    if plan.target is not None:
        facts.append(f"target {percent(plan.target)}")
        facts += [f"best {percent(best.value)} in trial {best.number}" for best in top(trials, 1)]
    return f" ({', '.join(facts)})" if facts else ""


def print_sizes(console: Console, items: list[Item]) -> None:
    """Print the studies and caches with their sizes, and how to remove one."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("name")
    table.add_column("MB", justify="right")
    table.add_column("path", overflow="fold")
    for item in items:
        table.add_row(Text(item.name), f"{item.size / 2**20:,.1f}", Text(str(item.path)))
    console.print(table if items else "No studies or caches.")
    if items:
        console.print("Remove with: python study.py clean NAME ...")


def print_removed(console: Console, item: Item, storage: str | None) -> None:
    """Print what was removed, and where the trials of a study are that has its database elsewhere."""
    console.print(Text(f"removed {item.name} ({item.size / 2**20:,.1f} MB)"))
    if storage is not None:
        rest = f"Its trials are still in {storage}: delete the study there with optuna-dashboard, or resume it."
        console.print(Text(rest), soft_wrap=True)
