"""The coordinator: asks Optuna for a configuration, has a worker train it an epoch at a time, decides, and tells.

It is the only writer of the study. The way of a trial: ask -> Assignment -> TrialJob -> EpochMetrics ... ->
report -> go on, pause or prune -> attributes -> tell. Everything is on disk before anyone is told, so that the same
command goes on after anything: a trial left RUNNING is taken over under its own number, from its last checkpoint.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from data.cache import CacheHandle
from model.network import Cost
from model.training import EpochMetrics
from search_space import Config
from tuning import StudyError
from tuning.environment import environment
from tuning.folder import remove_file, replace_file, trial_directory
from tuning.jobs import Assignment, Event, FailureKind, Progress, TrialFailure, TrialJob, Workers
from tuning.sampling import one_seed
from tuning.scheduling import Decision, Scheduler
from tuning.storage import Outcome, counts, top, trials_since_best
from tuning.trainer import chosen_epoch

KEPT_CHECKPOINTS = 3
"""Finished trials whose best checkpoint stays: an export before `retrain` takes the best one's."""
DEATHS = 3
"""Worker deaths without a finished epoch between after which a trial is failed."""
SMALLEST_MICRO_BATCH = 8
"""Pictures per forward pass down to which a trial that runs out of memory is halved again and again. With fewer, batch
norm's own statistics cost accuracy: 1.2 points at 8, but 3.7 at 4 and 11 at 2 (Wu & He 2018, arXiv:1803.08494)."""
UNCOUNTED_IN_A_ROW = 20
FAILED_IN_A_ROW = 3
SPARE_BYTES = 100 * 2**20
"""Disk space that a trial leaves free beside its own checkpoints."""
LONGEST_ATTRIBUTE = 2045
"""Characters of JSON that every database takes as one attribute."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How far a run goes and what a trial may cost. Budgets belong to the study, the rest to the run."""

    trials: int | None
    """Counted trials in all, over restarts and workers; None: those that wait in the study, and no others."""
    timeout: float | None = None
    """Seconds after which this run leaves, in mid-epoch too."""
    patience: int | None = None
    """Counted trials without a better one after which no more are asked for."""
    target: float | None = None
    """Validation top-1, as a share of 1, after which no more are asked for."""
    max_parameters: float | None = None
    max_flops: float | None = None
    """Forward FLOPs of one picture."""

    def over_budget(self, price: Cost) -> dict[str, float]:
        """By how much of the budget a network is over it (above 0) or under it (below), for each budget there is."""
        spent = {"parameters": (price.parameters, self.max_parameters), "flops": (price.flops, self.max_flops)}
        return {name: (value - budget) / budget for name, (value, budget) in spent.items() if budget is not None}

    def feasible(self, price: Cost) -> bool:
        """Whether a network is within every budget."""
        return all(excess <= 0 for excess in self.over_budget(price).values())


class Ending(StrEnum):
    """Why a run came to its end."""

    TRIALS = "all trials are done"
    TARGET = "the target is reached"
    PATIENCE = "patience has run out"
    TIMEOUT = "time is up"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class TrialStarted:
    """A slot trains a trial: for the first time, or on from its checkpoint."""

    slot: int
    number: int
    attempt: int
    assignment: Assignment
    cost: Cost
    micro_batch: int | None = None
    """Pictures per forward pass where memory was short; None: the whole batch."""


@dataclass(frozen=True, kw_only=True)
class TrialAdvanced:
    """A slot's trial goes forward: within a pass over the pictures, or by an epoch."""

    slot: int
    number: int
    progress: Progress | EpochMetrics


@dataclass(frozen=True, kw_only=True)
class TrialPaused:
    """A trial has left its slot and waits."""

    slot: int
    number: int


@dataclass(frozen=True, kw_only=True)
class TrialEnded:
    """A trial has been told, with its outcome. One that ended from outside has none."""

    number: int
    outcome: Outcome | None
    reason: str
    value: float | None
    """Best validation top-1 of the epochs it trained; None where there is none."""
    slot: int | None
    """None where it never reached a worker."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """All that is known of a trial when it is told."""

    assignment: Assignment
    cost: Cost
    history: list[EpochMetrics]
    """Empty where it was not trained."""
    outcome: Outcome
    reason: str

    @property
    def chosen(self) -> EpochMetrics | None:
        """The epoch that stands for the trial."""
        return chosen_epoch(self.history, self.assignment) if self.history else None


Happening = TrialStarted | TrialAdvanced | TrialPaused | TrialEnded | None
"""What `Coordinator.run` yields; None at least once a second, for clocks."""


@dataclass(kw_only=True)
class _Live:
    """A trial in a slot."""

    trial: optuna.Trial
    assignment: Assignment
    cost: Cost
    attempt: int
    micro_batch: int
    prunable: bool
    reported: set[int]
    """Epochs that the study knows."""
    decided: int
    """Epochs after which it was decided to go on, by an earlier run or before the worker was replaced."""
    history: list[EpochMetrics] = field(default_factory=list[EpochMetrics])
    deaths: int = 0

    @property
    def short_of_memory(self) -> bool:
        return self.micro_batch < self.assignment.config.training.batch_size


class Coordinator:
    """Runs a study to its plan; see the module for the way of a trial."""

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
        describe: Callable[[optuna.Trial, TrialRecord], None] = lambda trial, record: None,
    ) -> None:
        """`keep`: how many finished trials, the best of them, keep the checkpoint of their chosen epoch.

        `describe` is called before each trial is told, its checkpoints still there; it may add to the trial.
        """
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
        self._paused: list[int] = []
        self._uncounted: list[Outcome] = []
        self._stops = 0
        self.ending: Ending | None = None
        """Why the last run ended; None while it runs."""

    @property
    def wanted(self) -> int:
        """Counted trials that the plan still lacks, those that an earlier run left half-way among them."""
        trials = self._study.get_trials(deepcopy=False)
        begun = sum(trial.state is TrialState.RUNNING for trial in trials)
        if self._plan.trials is None:
            return begun + sum(trial.state is TrialState.WAITING for trial in trials)
        return 0 if self._fulfilled() and not begun else max(1, self._plan.trials - sum(map(counts, trials)))

    def stop(self) -> None:
        """First call: running epochs end, then the run does. Second: it ends now. Safe in a signal handler."""
        self._stops += 1

    def run(self) -> Generator[Happening]:
        """Trains until the plan is fulfilled or a stop is asked for, and yields what happens.

        Raises StudyError: too many trials in a row that do not count, a full disk, a study deleted meanwhile.
        Raises RuntimeError with the worker's traceback: a bug. In every case what is unfinished can be gone on with.
        """
        deadline = time.monotonic() + (self._plan.timeout or float("inf"))
        trials = self._study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state is TrialState.RUNNING:
                (self._paused if trial.user_attrs.get("paused") else self._adopted).append(trial.number)
        self._seen = {
            trial.user_attrs["key"]: trial.number
            for trial in reversed(trials)
            if "key" in trial.user_attrs and trial.user_attrs.get("outcome") != Outcome.DUPLICATE
        }
        self._remove_checkpoints()
        try:
            while True:
                if time.monotonic() > deadline:
                    self.ending = Ending.TIMEOUT
                elif self._stops:
                    self.ending = Ending.STOPPED
                if self.ending is None:
                    yield from self._fill_slots()
                if not self._live:
                    self.ending = self.ending or self._fulfilled() or Ending.STOPPED
                    return
                if self.ending is Ending.TIMEOUT or self._stops > 1:
                    return
                for slot, event in self._workers.wait(timeout=min(1.0, max(0.0, deadline - time.monotonic()))):
                    if slot in self._live:
                        yield from self._hear(slot, event)
                yield None
        finally:
            self._workers.close()

    # -- for a free slot

    def _fill_slots(self) -> Iterator[Happening]:
        for slot in range(len(self._workers.slots)):
            while slot not in self._live:
                resumed = None if self._adopted else self._scheduler.resume(self._paused)
                trial = self._next_trial(resumed)
                if trial is None:
                    break
                try:
                    yield from self._begin(slot, trial, resumed=resumed is not None)
                except (UpdateFinishedTrialError, KeyError) as error:
                    yield self._honour(slot, trial, error)

    def _next_trial(self, resumed: int | None) -> optuna.Trial | None:
        """One left by an earlier run, else the paused one, else a new one; None where the plan wants no more."""
        if self._adopted:
            return self._running(self._adopted.popleft())
        if resumed is not None:
            self._paused.remove(resumed)
            return self._running(resumed)
        begun = len(self._live) + len(self._paused)
        if self._fulfilled(begun):
            return None
        trials = self._study.get_trials(deepcopy=False)
        last = 1 if self._plan.trials is None else self._plan.trials - begun - sum(map(counts, trials))
        return self._longest_of(last) if 1 < last <= len(self._workers.slots) else self._study.ask()

    def _longest_of(self, last: int) -> optuna.Trial:
        """Asks for the study's last trials together and takes the longest; the others are next.

        Begun last it would be waited for. LPT (Graham 1969), with the cost that is known before a trial starts.
        """
        asked = sorted((self._study.ask() for _ in range(last)), key=self._training_flops, reverse=True)
        self._adopted.extend(trial.number for trial in asked[1:])
        return asked[0]

    def _training_flops(self, trial: optuna.Trial) -> int:
        """In proportion to them, for each picture."""
        work = self._assign(trial)
        return work.config.cost.flops * work.config.views * work.epochs

    def _running(self, number: int) -> optuna.Trial:
        """A trial that an earlier ask created, as the object that is told."""
        storage = self._study._storage  # pyright: ignore[reportPrivateUsage]
        study_id = self._study._study_id  # pyright: ignore[reportPrivateUsage]
        return optuna.Trial(self._study, storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def _fulfilled(self, begun: int = 0) -> Ending | None:
        """Whether no new trial is wanted, counting those that have begun as if they will count."""
        trials = self._study.get_trials(deepcopy=False)
        if self._plan.trials is None:
            return None if any(trial.state is TrialState.WAITING for trial in trials) else Ending.TRIALS
        if sum(map(counts, trials)) + begun >= self._plan.trials:
            return Ending.TRIALS
        if self._plan.target is not None and any((trial.value or 0.0) >= self._plan.target for trial in top(trials, 1)):
            return Ending.TARGET
        if self._plan.patience is not None and trials_since_best(trials) >= self._plan.patience:
            return Ending.PATIENCE
        return None

    def _begin(self, slot: int, trial: optuna.Trial, *, resumed: bool) -> Iterator[Happening]:
        """Turns a trial into a running job, or tells at once that it is none."""
        if resumed:
            trial.set_user_attr("paused", False)
        work = self._assign(trial)
        price = work.config.cost
        attributes = trial.user_attrs
        stored = {
            "config": work.config.to_dict(),
            "key": work.key,
            "seed": work.seed,
            "parameters": price.parameters,
            "flops": price.flops,
        }
        for name, value in stored.items():
            if name not in attributes and value is not None:
                trial.set_user_attr(name, value)
        excess = self._plan.over_budget(price)
        for name, value in excess.items():
            if name not in trial.constraints:
                trial.set_constraint(name, value)
        untrained = partial(TrialRecord, assignment=work, cost=price, history=[])
        twin = trial.number if work.key is None else self._seen.setdefault(work.key, trial.number)
        if not self._plan.feasible(price):
            over = ", ".join(f"{name} {value:.0%} over budget" for name, value in excess.items() if value > 0)
            yield self._tell(trial, untrained(outcome=Outcome.INFEASIBLE, reason=over))
        elif twin != trial.number:
            yield self._tell(trial, untrained(outcome=Outcome.DUPLICATE, reason=f"duplicate of trial {twin}"))
        else:
            self._require_space(price)
            frozen = self._study._storage.get_trial(trial._trial_id)  # pyright: ignore[reportPrivateUsage]
            live = _Live(
                trial=trial,
                assignment=work,
                cost=price,
                attempt=attributes.get("attempts", 0),
                micro_batch=attributes.get("micro_batch", work.config.training.batch_size),
                prunable="known_good" not in attributes,
                reported=set(frozen.intermediate_values),
                decided=max(0, len(frozen.intermediate_values) - (not resumed)),
            )
            yield self._start(slot, live)

    def _start(self, slot: int, live: _Live) -> Happening:
        """Hands the trial to the slot's worker, as a new attempt that owns the trial's folder."""
        number = live.trial.number
        live.attempt += 1
        directory = trial_directory(self._folder, number)
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(directory / "attempt", lambda path: path.write_text(str(live.attempt)))
        live.trial.set_user_attr("attempts", live.attempt)
        live.trial.set_user_attr("slot", slot)
        live.trial.set_user_attr("environment", environment(self._workers.slots[slot]))
        self._live[slot] = live
        job = TrialJob(
            number=number,
            attempt=live.attempt,
            assignment=live.assignment,
            data=self._data,
            slot=self._workers.slots[slot],
            micro_batch=live.micro_batch,
            directory=directory,
        )
        self._workers.start(slot, job)
        return TrialStarted(
            slot=slot,
            number=number,
            attempt=live.attempt,
            assignment=live.assignment,
            cost=live.cost,
            micro_batch=live.micro_batch if live.short_of_memory else None,
        )

    # -- what a slot says

    def _hear(self, slot: int, event: Event) -> Iterator[Happening]:
        live = self._live[slot]
        try:
            if isinstance(event, Progress):
                yield TrialAdvanced(slot=slot, number=live.trial.number, progress=event)
            elif isinstance(event, EpochMetrics):
                yield from self._epoch(slot, live, event)
            else:
                yield from self._failure(slot, live, event)
        except (UpdateFinishedTrialError, KeyError) as error:
            yield self._honour(slot, live.trial, error)

    def _epoch(self, slot: int, live: _Live, metrics: EpochMetrics) -> Iterator[Happening]:
        if metrics.epoch == len(live.history):  # else repeated by the worker that replaced another
            live.history.append(metrics)
            live.deaths = 0
            if metrics.epoch not in live.reported:
                live.trial.report(metrics.top1, metrics.epoch)
                live.reported.add(metrics.epoch)
            yield TrialAdvanced(slot=slot, number=live.trial.number, progress=metrics)
        if metrics.epoch + 1 == live.assignment.epochs:
            yield self._end(slot, live, Outcome.COMPLETE, "trained to its last epoch")
            return
        # A pruner looks at the last epoch that was reported: asked with an earlier one, it would end the trial there.
        stays = not live.prunable or metrics.epoch < live.decided
        decision = Decision.GO_ON if stays else self._scheduler.after_epoch(live.trial, metrics)
        live.decided = max(live.decided, metrics.epoch + 1)
        if decision is Decision.PRUNE:
            yield self._end(slot, live, Outcome.PRUNED, f"pruned after epoch {metrics.epoch + 1}")
        elif decision is Decision.PAUSE:
            live.trial.set_user_attr("paused", True)
            self._paused.append(live.trial.number)
            self._release(slot)
            yield TrialPaused(slot=slot, number=live.trial.number)
        elif self.ending is None and not self._stops:
            self._workers.proceed(slot)
        else:
            self._release(slot)

    def _failure(self, slot: int, live: _Live, failure: TrialFailure) -> Iterator[Happening]:
        match failure.kind:
            case FailureKind.BUG:
                raise RuntimeError(f"trial {live.trial.number} met a bug; its worker says:\n{failure.reason}")
            case FailureKind.DISK:
                raise StudyError(
                    f"a trial writes its checkpoints into {self._folder}, but trial {live.trial.number} could not "
                    f"({failure.reason}); free or mend the disk, and the same command goes on"
                )
            case FailureKind.DIVERGED:
                if "diverged" not in live.trial.constraints:
                    live.trial.set_constraint("diverged", 1.0)
                yield self._end(slot, live, Outcome.DIVERGED, failure.reason)
                return
            case FailureKind.OUT_OF_MEMORY:
                again = live.micro_batch > SMALLEST_MICRO_BATCH
                if again:
                    live.micro_batch = max(SMALLEST_MICRO_BATCH, live.micro_batch // 2)
                    live.trial.set_user_attr("micro_batch", live.micro_batch)
            case FailureKind.DIED | FailureKind.HUNG:
                live.deaths += 1
                again = live.deaths < DEATHS
        if not again:
            yield self._end(slot, live, Outcome.FAILED, f"{failure.kind}: {failure.reason}")
        elif self.ending is None and not self._stops:
            yield self._start(slot, live)
        else:
            self._release(slot)

    # -- the end of a trial

    def _end(self, slot: int, live: _Live, outcome: Outcome, reason: str) -> TrialEnded:
        """Frees the slot and tells the trial, with all that is known of it."""
        self._release(slot)
        if live.short_of_memory:
            reason += f" ({live.micro_batch} pictures at a time, as memory was short)"
        record = TrialRecord(
            assignment=live.assignment, cost=live.cost, history=live.history, outcome=outcome, reason=reason
        )
        ended = self._tell(live.trial, record, slot)
        self._remove_checkpoints(live.trial.number)
        return ended

    def _release(self, slot: int) -> None:
        self._workers.stop(slot)
        self._live.pop(slot, None)  # already out where its end was told from outside in between

    def _honour(self, slot: int, trial: optuna.Trial, error: Exception) -> TrialEnded:
        """Lets go of a trial that somebody else has told. Raises what stood against it where nobody has."""
        try:
            ended = self._study._storage.get_trial(trial._trial_id).state.is_finished()  # pyright: ignore[reportPrivateUsage]
        except KeyError:
            raise StudyError(
                f"a study stays where it is while it runs, but '{self._study.study_name}' was deleted from its "
                "database; the same command begins it anew"
            ) from error
        if not ended:
            raise error
        self._release(slot)
        self._remove_checkpoints(trial.number)
        return TrialEnded(
            number=trial.number, outcome=None, reason=f"ended from outside ({error})", value=None, slot=slot
        )

    def _tell(
        self,
        trial: optuna.Trial,
        record: TrialRecord,
        slot: int | None = None,
    ) -> TrialEnded:
        """Attributes and artifacts first: after the tell a trial takes none."""
        outcome, reason, best, history = record.outcome, record.reason, record.chosen, record.history
        if best is not None:
            replace_file(
                trial_directory(self._folder, trial.number) / "history.json",
                lambda path: path.write_text(json.dumps([metrics.to_dict() for metrics in history])),
            )
            attributes = {
                "best_epoch": best.epoch,
                "best_top1": best.top1,
                "best_top3": best.top3,
                "per_class": [None if share != share else share for share in best.per_class],
                "confusion": best.confusion,
                "seconds": round(sum(metrics.seconds for metrics in history), 2),
                "peak_memory": max(metrics.peak_memory for metrics in history),
            }
            for name, attribute in attributes.items():
                if len(json.dumps(attribute)) <= LONGEST_ATTRIBUTE:
                    trial.set_user_attr(name, attribute)
        trial.set_user_attr("reason", reason[-LONGEST_ATTRIBUTE // 2 :])
        trial.set_user_attr("outcome", outcome)
        self._describe(trial, record)
        state = {
            Outcome.COMPLETE: TrialState.COMPLETE,
            Outcome.DUPLICATE: TrialState.FAIL,
            Outcome.FAILED: TrialState.FAIL,
        }.get(outcome, TrialState.PRUNED)
        value = best.top1 if best else None
        self._study.tell(trial, value if state is TrialState.COMPLETE else None, state)
        self._watch_uncounted(outcome, reason)
        return TrialEnded(number=trial.number, outcome=outcome, reason=reason, value=value, slot=slot)

    def _watch_uncounted(self, outcome: Outcome, reason: str) -> None:
        """Stops a study that goes nowhere."""
        if outcome not in (Outcome.INFEASIBLE, Outcome.DUPLICATE, Outcome.FAILED):
            self._uncounted.clear()
            return
        self._uncounted.append(outcome)
        failed = self._uncounted[-FAILED_IN_A_ROW:].count(Outcome.FAILED) == FAILED_IN_A_ROW
        if failed or len(self._uncounted) == UNCOUNTED_IN_A_ROW:
            kinds = ", ".join(f"{self._uncounted.count(kind)} {kind}" for kind in sorted(set(self._uncounted)))
            raise StudyError(
                f"a study goes on while its trials count, but the last {len(self._uncounted)} did not ({kinds}; "
                f"the last: {reason}); use fewer --workers where memory is short, or begin another study with --study "
                "NAME and larger --max-params and --max-flops or a wider search_space.py"
            )

    # -- the disk

    def _require_space(self, price: Cost) -> None:
        # Weights and two moments for the optimizer, in last and best, each with its temporary copy.
        needed = 4 * price.parameters * (3 + 1) * 2 * len(self._workers.slots) + SPARE_BYTES
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise StudyError(
                f"a trial needs {needed / 2**20:,.0f} MB of free disk for its checkpoints, but {self._folder} has "
                f"{free / 2**20:,.0f} MB; free some, and the same command goes on"
            )

    def _remove_checkpoints(self, ended: int | None = None) -> None:
        """Keeps the best checkpoint of the best few trials, and those of every trial that is not finished.

        With `ended` only that trial and the one that it may have pushed out are looked at, so that it stays cheap.
        """
        trials = self._study.get_trials(deepcopy=False)
        best = {trial.number for trial in top(trials, self._keep)}
        if ended is None:
            suspects = {trial.number for trial in trials}
        else:
            suspects = {ended} | {trial.number for trial in top(trials, self._keep + 1)}
        for trial in trials:
            if trial.number in suspects and trial.state.is_finished():
                stays = {"history.json"} | ({"best.pt"} if trial.number in best else set[str]())
                for path in trial_directory(self._folder, trial.number).glob("*"):
                    if path.name not in stays:
                        remove_file(path)


def search(suggest: Callable[[optuna.Trial], Config], seed: int) -> Callable[[optuna.Trial], Assignment]:
    """What a search has its trials train: a point of the space each, with a seed of its own, and no point twice."""

    def assign(trial: optuna.Trial) -> Assignment:
        config = suggest(trial)
        return Assignment(
            config=config,
            seed=one_seed(seed, trial.number),
            epochs=config.training.epochs,
            key=config.digest,
            name=trial.user_attrs.get("known_good"),
        )

    return assign
