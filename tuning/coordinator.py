"""The coordinator: asks Optuna for configurations, has workers train them one epoch at a time, prunes, and reports.

It is the only writer of the study. A trial passes through

    ask -> Assignment -> TrialJob -> EpochMetrics ... -> report -> continue, pause or prune -> attributes -> tell

and everything is on disk before the next step, so that the same command resumes after any interruption: a trial that
was left RUNNING continues under its own number from its last checkpoint.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError

from data.cache import CacheHandle
from model.network import Cost
from model.training import EpochMetrics
from search_space import Config
from tuning import StudyError
from tuning.events import (
    Ending,
    StudyEvent,
    TrialAdvanced,
    TrialEnded,
    TrialPaused,
    TrialRecord,
    TrialRequeued,
    TrialStarted,
)
from tuning.folder import remove_file, replace_file, trial_directory
from tuning.jobs import Assignment, FailureKind, Progress, TrialFailure, TrialJob, WorkerMessage, WorkerReady, Workers
from tuning.sampling import one_seed
from tuning.scheduling import Decision, Resume, Scheduler
from tuning.storage import Storage
from tuning.trials import (
    Outcome,
    Trial,
    count_trials,
    live_trial,
    read_history,
    read_trial,
    read_trials,
    state_of,
    top,
    trials_since_best,
    write_attempt,
    write_environment,
    write_history,
    write_micro_batch,
    write_paused,
    write_result,
    write_resumed,
    write_work,
)

KEPT_CHECKPOINTS = 3
"""Number of finished trials that keep their best checkpoint, for an export before `retrain`."""
DEATHS = 3
"""Number of worker deaths, without a finished epoch in between, after which a trial fails."""
SMALLEST_MICRO_BATCH = 8
"""Smallest number of pictures per forward pass to which a trial that runs out of memory is reduced. Batch norm loses
1.2 points of accuracy at 8, but 3.7 at 4 and 11 at 2 (Wu & He 2018, arXiv:1803.08494)."""
UNCOUNTED_IN_A_ROW = 20
"""Number of trials in a row without a result after which the study stops."""
FAILED_IN_A_ROW = 3
"""Number of failed trials in a row after which the study stops."""
SPARE_BYTES = 100 * 2**20
"""Bytes of disk space that must remain free besides a trial's own checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """When a run stops and what a trial may cost. The budgets belong to the study, the rest to the run."""

    trials: int | None
    """Total number of counted trials over all restarts and workers; None to train only the enqueued trials."""
    timeout: float | None = None
    """Seconds after which the run stops, even within an epoch."""
    patience: int | None = None
    """Number of trials in a row without an improvement after which no new ones are started."""
    target: float | None = None
    """Validation top-1, 0 to 1, after which no new trials are started."""
    max_parameters: float | None = None
    """Largest number of parameters of a feasible network."""
    max_flops: float | None = None
    """Largest number of forward FLOPs per picture of a feasible network."""

    def over_budget(self, cost: Cost) -> dict[str, float]:
        """Return by which share of each budget a network exceeds it; negative if it stays below."""
        spent = {"parameters": (cost.parameters, self.max_parameters), "flops": (cost.flops, self.max_flops)}
        return {name: (value - budget) / budget for name, (value, budget) in spent.items() if budget is not None}

    def feasible(self, cost: Cost) -> bool:
        """Return whether a network is within every budget."""
        return all(excess <= 0 for excess in self.over_budget(cost).values())


@dataclass(kw_only=True)
class _Live:
    """A trial that is being trained in a slot."""

    trial: optuna.Trial
    assignment: Assignment
    cost: Cost
    attempt: int
    micro_batch: int | None
    """Pictures per forward pass if memory was short; None for whole batches."""
    reported: set[int]
    """Number of epochs that have been reported to the study."""
    decided: int
    """Number of epochs about which the scheduler has already decided, in an earlier run or for an earlier worker."""
    history: list[EpochMetrics] = field(default_factory=list[EpochMetrics])
    deaths: int = 0


class Coordinator:
    """The loop that runs a study until its plan is fulfilled; the module's docstring shows the stages of a trial.

    Args:
        keep: How many of the best finished trials keep the checkpoint of their best epoch.
        describe: Called before a trial is reported as finished, while its checkpoints are still there; it may add to
            the trial.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        workers: Workers,
        scheduler: Scheduler,
        assign: Callable[[optuna.Trial], Assignment],
        plan: Plan,
        data: CacheHandle,
        folder: Path,
        keep: int = KEPT_CHECKPOINTS,
        describe: Callable[[optuna.Trial, TrialRecord], None],
    ) -> None:
        self._study = study
        self._workers = workers
        self._scheduler = scheduler
        self._assign = assign
        self._plan = plan
        self._data = data
        self._folder = folder
        self._keep = keep
        self._describe = describe
        self._live: dict[int, _Live] = {}
        self._adopted: deque[int] = deque()
        self._seen: dict[str, int] = {}
        self._uncounted: list[Outcome] = []
        self._stops = 0
        self.ending: Ending | None = None
        """Why the last run ended; None while one is running."""

    @property
    def wanted(self) -> int:
        """Number of trials that remain to be trained, including those that an earlier run left unfinished."""
        trials = read_trials(self._study)
        unfinished = sum(trial.is_running for trial in trials)
        if self._plan.trials is None:
            return unfinished + sum(trial.is_waiting for trial in trials)
        return 0 if self._fulfilled(trials) and not unfinished else max(1, self._plan.trials - count_trials(trials))

    def stop(self) -> None:
        """Ask the run to stop: on the first call after the running epochs, on the second at once.

        It can be called from a signal handler.
        """
        self._stops += 1
        if isinstance(storage := self._study._storage, Storage):  # pyright: ignore[reportPrivateUsage]
            storage.stop_waiting()

    def run(self) -> Generator[StudyEvent]:
        """Train until the plan is fulfilled or a stop is requested, and yield the study's events.

        Raises StudyError for too many trials in a row without a result or a full disk, KeyError for a study that
        another program has deleted, which a session turns into a StudyError, and RuntimeError with the worker's
        traceback for a bug. A later run resumes unfinished trials.
        """
        deadline = time.monotonic() + (self._plan.timeout or float("inf"))
        trials = read_trials(self._study)
        self._seen = {trial.key: trial.number for trial in reversed(trials) if trial.key and not trial.is_duplicate}
        self._remove_checkpoints()
        try:
            while True:
                if time.monotonic() > deadline:
                    self.ending = Ending.TIMEOUT
                elif self._stops:
                    self.ending = Ending.STOPPED
                if self.ending is None:
                    yield from self._fill_slots()
                if not self._live and (self._workers.slots or self.ending is not None):
                    if self.ending is None and not self._stops:
                        yield from self._retire_paused()
                        self.ending = self._fulfilled(read_trials(self._study))
                    if self.ending is not None:
                        return
                    continue  # a stop was asked for meanwhile, or another program failed a paused trial
                if self.ending is Ending.TIMEOUT or self._stops > 1:
                    return
                for slot, message in self._workers.wait(timeout=min(1.0, max(0.0, deadline - time.monotonic()))):
                    if slot in self._live:
                        yield from self._receive(slot, message)
                yield None
        finally:
            self._workers.close()

    # -- for a free slot

    def _fill_slots(self) -> Iterator[StudyEvent]:
        for slot in self._workers.slots:
            while slot not in self._live:
                match self._next_action():
                    case None:
                        break
                    case Resume(number):
                        trial, resumed = live_trial(self._study, number), True
                    case trial:
                        resumed = False
                try:
                    yield from self._begin(slot, trial, resumed=resumed)
                except (UpdateFinishedTrialError, KeyError) as error:
                    yield self._ended_outside(slot, trial, error)

    def _next_action(self) -> Resume | optuna.Trial | None:
        """Return a running trial that has no slot, else the scheduler's choice, else a new one; None if there is none.

        An earlier run may have left such a trial, or a node that was lost, or a database whose answer was lost.
        """
        trials = read_trials(self._study)
        if not self._adopted:
            here = {live.trial.number for live in self._live.values()}
            running = (trial.number for trial in trials if trial.is_running and not trial.is_paused)
            self._adopted.extend(number for number in running if number not in here)
        if self._adopted:
            return live_trial(self._study, self._adopted.popleft())
        unfinished = len(self._live) + sum(trial.is_paused for trial in trials)
        fulfilled = self._fulfilled(trials, unfinished)
        if fulfilled is not Ending.TARGET:
            action = self._scheduler.for_free_slot(trials, new_wanted=fulfilled is None)
            if action is not None:
                return action
        if fulfilled is not None:
            return None
        last = 1 if self._plan.trials is None else self._plan.trials - unfinished - count_trials(trials)
        return self._longest_of(last) if 1 < last <= len(self._workers.slots) else self._study.ask()

    def _longest_of(self, last: int) -> optuna.Trial:
        """Ask for all of the study's last trials and return the longest; the others follow.

        If the longest started last, the other slots would wait for it. This is longest-processing-time-first scheduling
        (Graham 1969); the relative training cost is known before a trial starts.
        """
        asked = sorted((self._study.ask() for _ in range(last)), key=self._training_flops, reverse=True)
        self._adopted.extend(trial.number for trial in asked[1:])
        return asked[0]

    def _training_flops(self, trial: optuna.Trial) -> int:
        """Return the relative training cost: FLOPs x views x epochs."""
        work = self._assign(trial)
        return work.config.cost.flops * work.config.views * work.epochs

    def _fulfilled(self, trials: list[Trial], unfinished: int = 0) -> Ending | None:
        """Return why no new trial is needed, assuming that the unfinished ones will count; None if one is needed."""
        if self._plan.trials is None:
            return None if any(trial.is_waiting for trial in trials) else Ending.TRIALS
        counted = count_trials(trials)
        if counted >= self._plan.trials:
            return Ending.TRIALS
        if self._plan.target is not None and any((trial.value or 0.0) >= self._plan.target for trial in top(trials, 1)):
            return Ending.TARGET
        if self._plan.patience is not None and trials_since_best(trials) >= self._plan.patience:
            return Ending.PATIENCE
        return Ending.TRIALS if counted + unfinished >= self._plan.trials else None

    def _begin(self, slot: int, trial: optuna.Trial, *, resumed: bool) -> Iterator[StudyEvent]:
        """Turn a trial into a running job, or report at once that it is infeasible or a duplicate."""
        if resumed:
            write_resumed(trial, read_trial(trial).epochs)
        work = self._assign(trial)
        cost = work.config.cost
        write_work(trial, work.config, cost, seed=work.seed, key=work.key)
        excess = self._plan.over_budget(cost)
        for name, value in excess.items():
            if name not in trial.constraints:
                trial.set_constraint(name, value)
        untrained = partial(TrialRecord, assignment=work, cost=cost, history=[])
        first = trial.number if work.key is None else self._seen.setdefault(work.key, trial.number)
        if not self._plan.feasible(cost):
            over = ", ".join(f"{name} {value:.0%} over budget" for name, value in excess.items() if value > 0)
            yield self._tell(trial, untrained(outcome=Outcome.INFEASIBLE, reason=over))
        elif first != trial.number:
            yield self._tell(trial, untrained(outcome=Outcome.DUPLICATE, reason=f"duplicate of trial {first}"))
        else:
            self._require_space(cost)
            stored = read_trial(trial)
            live = _Live(
                trial=trial,
                assignment=work,
                cost=cost,
                attempt=stored.attempts,
                micro_batch=stored.micro_batch,
                reported=set(stored.curve),
                # After an interruption, the decision about the last reported epoch may not have been made.
                decided=max(stored.epochs - 1, stored.resumed_after),
            )
            yield self._start(slot, live)

    def _start(self, slot: int, live: _Live) -> StudyEvent:
        """Give the trial to the slot's worker, as a new attempt that owns the trial's directory."""
        number = live.trial.number
        live.attempt += 1
        directory = trial_directory(self._folder, number)
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(directory / "attempt", lambda path: path.write_text(str(live.attempt)))
        write_attempt(live.trial, live.attempt, slot, self._workers.slots[slot].host)
        self._live[slot] = live
        job = TrialJob(
            number=number,
            attempt=live.attempt,
            assignment=live.assignment,
            data=self._data,
            slot=self._workers.slots[slot],
            micro_batch=live.micro_batch or live.assignment.config.training.batch_size,
            directory=directory,
        )
        self._workers.start(slot, job)
        return TrialStarted(
            slot=slot,
            number=number,
            attempt=live.attempt,
            assignment=live.assignment,
            micro_batch=live.micro_batch,
            host=self._workers.slots[slot].host,
        )

    # -- what a worker sends

    def _receive(self, slot: int, message: WorkerMessage) -> Iterator[StudyEvent]:
        live = self._live[slot]
        try:
            match message:
                case WorkerReady():
                    write_environment(live.trial, message.environment)
                case Progress():
                    yield TrialAdvanced(slot=slot, number=live.trial.number, progress=message)
                case EpochMetrics():
                    yield from self._epoch(slot, live, message)
                case TrialFailure():
                    yield from self._failure(slot, live, message)
        except (UpdateFinishedTrialError, KeyError) as error:
            yield self._ended_outside(slot, live.trial, error)

    def _epoch(self, slot: int, live: _Live, metrics: EpochMetrics) -> Iterator[StudyEvent]:
        if metrics.epoch == len(live.history):  # otherwise repeated by a worker that replaced another
            live.history.append(metrics)
            live.deaths = 0
            if metrics.epoch not in live.reported:
                live.trial.report(metrics.top1, metrics.epoch)
                live.reported.add(metrics.epoch)
            yield TrialAdvanced(slot=slot, number=live.trial.number, progress=metrics)
        if metrics.epoch + 1 == live.assignment.epochs:
            yield self._end(slot, live, Outcome.COMPLETE, "trained to its last epoch")
            return
        decision = Decision.CONTINUE
        # A scheduler judges the last reported epoch; asked about a repeated one, it would end the trial there.
        if metrics.epoch >= live.decided:
            decision = self._scheduler.after_epoch(read_trial(live.trial))
        live.decided = max(live.decided, metrics.epoch + 1)
        if decision is Decision.PRUNE:
            yield self._end(slot, live, Outcome.PRUNED, f"pruned after epoch {metrics.epoch + 1}")
        elif decision is Decision.PAUSE:
            write_history(self._folder, live.trial.number, live.history)
            write_paused(live.trial)
            self._release(slot)
            yield TrialPaused(slot=slot, number=live.trial.number)
        elif self.ending is None and not self._stops:
            self._workers.proceed(slot)
        else:
            self._release(slot)

    def _failure(self, slot: int, live: _Live, failure: TrialFailure) -> Iterator[StudyEvent]:
        match failure.kind:
            case FailureKind.BUG:
                raise RuntimeError(f"a bug ended trial {live.trial.number}; the worker's traceback:\n{failure.reason}")
            case FailureKind.DISK:
                raise StudyError(
                    f"trial {live.trial.number} of {self._folder} cannot read or write a file ({failure.reason}): free "
                    "or repair the disk, then run the same command again to resume"
                )
            case FailureKind.DIVERGED:
                if "diverged" not in live.trial.constraints:
                    live.trial.set_constraint("diverged", 1.0)
                yield self._end(slot, live, Outcome.DIVERGED, failure.reason)
                return
            case FailureKind.LOST:
                self._release(slot)
                yield TrialRequeued(slot=slot, number=live.trial.number, reason=failure.reason)
                return
            case FailureKind.OUT_OF_MEMORY:
                pictures = live.micro_batch or live.assignment.config.training.batch_size
                again = pictures > SMALLEST_MICRO_BATCH
                if again:
                    live.micro_batch = max(SMALLEST_MICRO_BATCH, pictures // 2)
                    write_micro_batch(live.trial, live.micro_batch)
            case FailureKind.DIED | FailureKind.HUNG:
                live.deaths += 1
                again = live.deaths < DEATHS
        if not again:
            yield self._end(slot, live, Outcome.FAILED, f"{failure.kind}: {failure.reason}")
        elif self.ending is not None or self._stops:
            self._release(slot)
        elif slot in self._workers.slots:
            yield self._start(slot, live)
        else:  # its node was left out after this message
            self._release(slot)
            yield TrialRequeued(slot=slot, number=live.trial.number, reason=failure.reason)

    # -- the end of a trial

    def _end(self, slot: int, live: _Live, outcome: Outcome, reason: str) -> TrialEnded:
        """Free the slot and report its trial as finished."""
        self._release(slot)
        record = TrialRecord(
            assignment=live.assignment, cost=live.cost, history=live.history, outcome=outcome, reason=reason
        )
        ended = self._tell(live.trial, record, slot)
        self._remove_checkpoints(live.trial.number)
        return ended

    def _retire(self, number: int) -> Iterator[TrialEnded]:
        """Report a paused trial as pruned."""
        trial = live_trial(self._study, number)
        work = self._assign(trial)
        record = TrialRecord(
            assignment=work,
            cost=work.config.cost,
            history=read_history(self._folder, number),
            outcome=Outcome.PRUNED,
            reason=f"pruned after epoch {read_trial(trial).epochs}: paused there and not resumed",
        )
        try:
            yield self._tell(trial, record)
            self._remove_checkpoints(number)
        except (UpdateFinishedTrialError, KeyError) as error:
            yield self._ended_outside(None, trial, error)

    def _retire_paused(self) -> Iterator[TrialEnded]:
        """Report all paused trials as pruned: with no other trial running, the scheduler would never resume one."""
        for trial in read_trials(self._study):
            if trial.is_paused and not self._stops:
                yield from self._retire(trial.number)

    def _release(self, slot: int) -> None:
        self._workers.stop(slot)
        self._live.pop(slot, None)  # missing if another program ended the trial meanwhile

    def _ended_outside(self, slot: int | None, trial: optuna.Trial, error: Exception) -> TrialEnded:
        """Release the slot's trial if another program has finished it; otherwise re-raise `error`."""
        if not read_trial(trial).is_finished:
            raise error
        if slot is not None:
            self._release(slot)
        self._remove_checkpoints(trial.number)
        reason = f"ended by another program ({error})"
        return TrialEnded(number=trial.number, outcome=None, reason=reason, value=None, slot=slot)

    def _tell(self, trial: optuna.Trial, record: TrialRecord, slot: int | None = None) -> TrialEnded:
        """Store the result and describe the trial, then tell Optuna, which rejects artifacts of a finished trial."""
        if (pictures := read_trial(trial).micro_batch) is not None:
            record = replace(record, reason=f"{record.reason} ({pictures} pictures at a time, as memory was short)")
        outcome, reason, best = record.outcome, record.reason, record.chosen
        if best is not None:
            write_history(self._folder, trial.number, record.history)
        write_result(trial, outcome, reason, best, record.history)
        self._describe(trial, record)
        value = best.top1 if best else None
        self._study.tell(trial, value if outcome is Outcome.COMPLETE else None, state_of(outcome))
        self._watch_uncounted(outcome, reason)
        return TrialEnded(number=trial.number, outcome=outcome, reason=reason, value=value, slot=slot)

    def _watch_uncounted(self, outcome: Outcome, reason: str) -> None:
        """Raise StudyError if too many trials in a row produced no result."""
        if outcome not in (Outcome.INFEASIBLE, Outcome.DUPLICATE, Outcome.FAILED):
            self._uncounted.clear()
            return
        self._uncounted.append(outcome)
        failed = self._uncounted[-FAILED_IN_A_ROW:].count(Outcome.FAILED) == FAILED_IN_A_ROW
        if failed or len(self._uncounted) == UNCOUNTED_IN_A_ROW:
            kinds = ", ".join(f"{self._uncounted.count(kind)} {kind}" for kind in sorted(set(self._uncounted)))
            raise StudyError(
                f"stopped: the last {len(self._uncounted)} trials produced no result ({kinds}; the last: {reason}): "
                "use fewer --workers if memory is short, or start another study with --study NAME and a larger "
                "--max-params or --max-flops, or a wider search_space.py"
            )

    # -- the disk

    def _require_space(self, cost: Cost) -> None:
        # Weights, their average and two moments of the optimizer in last.pt, the average in best.pt, each with its
        # temporary copy.
        needed = 4 * cost.parameters * (4 + 1) * 2 * len(self._workers.slots) + SPARE_BYTES
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise StudyError(
                f"{self._folder} has {free / 2**20:,.0f} MB of free disk space, but checkpoints need "
                f"{needed / 2**20:,.0f} MB: free some, then run the same command again to resume"
            )

    def _remove_checkpoints(self, ended: int | None = None) -> None:
        """Remove the checkpoints of finished trials, except the best one of each of the best few trials.

        With `ended`, only that trial and the one that it may have displaced are checked, which keeps this cheap.
        """
        trials = read_trials(self._study)
        best = {trial.number for trial in top(trials, self._keep)}
        if ended is None:
            suspects = {trial.number for trial in trials}
        else:
            suspects = {ended} | {trial.number for trial in top(trials, self._keep + 1)}
        for trial in trials:
            if trial.number in suspects and trial.is_finished:
                kept = {"history.json"} | ({"best.pt"} if trial.number in best else set[str]())
                for path in trial_directory(self._folder, trial.number).glob("*"):
                    if path.name not in kept:
                        remove_file(path)


def search(suggest: Callable[[optuna.Trial], Config], seed: int) -> Callable[[optuna.Trial], Assignment]:
    """Return the assignment of a searched trial: a point of the space with its own seed; no point is trained twice."""

    def assign(trial: optuna.Trial) -> Assignment:
        config = suggest(trial)
        return Assignment(
            config=config,
            seed=one_seed(seed, trial.number),
            epochs=config.training.epochs,
            key=config.digest,
            name=read_trial(trial).baseline,
        )

    return assign
