"""The typed record of a trial: the one place that reads and writes the attributes of a trial in an Optuna study.

    writing, while a trial runs:  write_work -> write_attempt -> write_environment -> write_result, before Optuna's tell
    reading, at any time:         read_trials(study) -> Trial ...

The study remains a plain Optuna study, which `optuna-dashboard` and Optuna's command line read without this program.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from model.files import why
from model.network import Cost
from model.training import EpochMetrics
from search_space import Config
from tuning import StudyError
from tuning.folder import replace_file, trial_directory
from tuning.storage import Storage

METRIC = "validation top-1"
"""Dashboard's name for a trial's value."""
LONGEST_ATTRIBUTE = 2045
"""Number of JSON characters that every database accepts as one attribute."""
MOST_SPANS = 50
"""Largest number of times in a slot that are stored, which fit into an attribute; those before are forgotten."""
EARLIER_NAMES = {"improved by hand": "hand-tuned recipe"}
"""Current names of baselines, by the names that earlier versions stored."""


class Outcome(StrEnum):
    """How a trial ended, stored as its attribute `outcome`; more specific than Optuna's state."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    INFEASIBLE = "infeasible"
    DUPLICATE = "duplicate"
    FAILED = "failed"


_OUTCOMES = {str(outcome): outcome for outcome in Outcome}
_BY_STATE = {
    TrialState.COMPLETE: Outcome.COMPLETE,
    TrialState.PRUNED: Outcome.PRUNED,
    TrialState.FAIL: Outcome.FAILED,
}
_STATES = {
    Outcome.COMPLETE: TrialState.COMPLETE,
    Outcome.DUPLICATE: TrialState.FAIL,
    Outcome.FAILED: TrialState.FAIL,
}


def state_of(outcome: Outcome) -> TrialState:
    """Return the Optuna state of a trial with this outcome."""
    return _STATES.get(outcome, TrialState.PRUNED)


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of the epoch that represents a trial, on the validation set."""

    epoch: int
    """Number of the epoch, from 0."""
    top1: float
    """Top-1 as a share of the validation pictures, 0 to 1."""
    top3: float | None
    """Top-3, likewise; None for up to three classes."""
    loss: float | None
    """Cross entropy per validation picture; None in earlier versions."""
    seconds: float
    """Training time in seconds of all epochs together."""
    peak_memory: int | None
    """Peak memory in bytes."""
    per_class: Sequence[float | None] | None
    """Top-1 of each class, or None for a class without pictures; None if the list is too long for the database."""
    confusion: Sequence[Sequence[int]] | None
    """Number of pictures by true class and predicted class; None if it is too long for the database."""


@dataclass(frozen=True)
class Trial:
    """One trial of a study as it stands in the database."""

    frozen: FrozenTrial
    """Optuna's own record of the trial."""

    @property
    def number(self) -> int:
        """The trial's number in its study, from 0."""
        return self.frozen.number

    @property
    def state(self) -> TrialState:
        """Optuna's state of the trial."""
        return self.frozen.state

    @property
    def value(self) -> float | None:
        """Best validation top-1, 0 to 1, of a complete trial; None otherwise."""
        return self.frozen.value if self.state is TrialState.COMPLETE else None

    @property
    def params(self) -> dict[str, Any]:
        """The sampled parameters by name."""
        return self.frozen.params

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The distributions that the parameters were sampled from, by name."""
        return self.frozen.distributions

    @property
    def started(self) -> datetime | None:
        """When the trial was created."""
        return self.frozen.datetime_start

    @property
    def ended(self) -> datetime | None:
        """When the trial was reported as finished."""
        return self.frozen.datetime_complete

    @property
    def curve(self) -> dict[int, float]:
        """Validation top-1, 0 to 1, by epoch from 0, in order."""
        return dict(sorted(self.frozen.intermediate_values.items()))

    @property
    def epochs(self) -> int:
        """Number of epochs reported so far."""
        return len(self.frozen.intermediate_values)

    @property
    def is_running(self) -> bool:
        """Whether the trial has started and not finished; it may be paused, or left by an interrupted run."""
        return self.state is TrialState.RUNNING

    @property
    def is_waiting(self) -> bool:
        """Whether the trial is enqueued and has not started."""
        return self.state is TrialState.WAITING

    @property
    def is_finished(self) -> bool:
        """Whether the trial has an outcome."""
        return self.state.is_finished()

    @property
    def outcome(self) -> Outcome | None:
        """How the trial ended; None before. A trial finished by another program only has Optuna's state."""
        if not self.is_finished:
            return None
        return _OUTCOMES.get(str(self._attributes.get("outcome"))) or _BY_STATE[self.state]

    @property
    def is_duplicate(self) -> bool:
        """Whether the trial was found to repeat an earlier one, even if it was interrupted before its end."""
        return self._attributes.get("outcome") == Outcome.DUPLICATE

    @property
    def counts(self) -> bool:
        """Whether the trial counts towards `--trials`: it has been trained and is finished."""
        return self.outcome in (Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED)

    @property
    def is_paused(self) -> bool:
        """Whether the trial waits for its scheduler to resume it."""
        return self.is_running and bool(self._attributes.get("paused"))

    @property
    def resumed_after(self) -> int:
        """Number of epochs that the trial had when it was last resumed from a pause; 0 if it never was."""
        return self._attributes.get("resumed_after", 0)

    @property
    def reached(self) -> float | None:
        """Best validation top-1, 0 to 1, of the epochs trained so far; None without one."""
        if self.value is not None:
            return self.value
        return max(filter(math.isfinite, self.frozen.intermediate_values.values()), default=None)

    @property
    def seconds(self) -> float:
        """Training time in seconds; if none was stored, the time in slots, or between the trial's start and end."""
        if (stored := self._attributes.get("seconds")) is not None:
            return float(stored)
        if self.spans:
            return sum((end or begin) - begin for begin, end in self.spans)
        return self.frozen.duration.total_seconds() if self.frozen.duration else 0.0

    @property
    def spans(self) -> Sequence[tuple[float, float | None]]:
        """When the trial was in a slot: begin and end in Unix seconds of each time; no end while it runs or if killed.

        Empty for a trial of an earlier version.
        """
        return [(begin, end) for begin, end in self._attributes.get("spans", [])]

    @property
    def left_slot(self) -> datetime | None:
        """When the trial was last paused or finished; None before that."""
        if self.spans and self.spans[-1][1] is not None:
            return datetime.fromtimestamp(self.spans[-1][1])
        return self.ended

    @property
    def reason(self) -> str | None:
        """Why the trial ended as it did, in one line."""
        return self._attributes.get("reason")

    @property
    def result(self) -> Result | None:
        """Result of the trial; None if no epoch was trained, or before all of it is stored."""
        stored = self._attributes
        if "outcome" not in stored or "best_top1" not in stored:  # the outcome is stored last
            return None
        return Result(
            epoch=stored["best_epoch"],
            top1=stored["best_top1"],
            top3=stored.get("best_top3"),
            loss=stored.get("best_loss"),
            seconds=stored["seconds"],
            peak_memory=stored.get("peak_memory"),
            per_class=stored.get("per_class"),
            confusion=stored.get("confusion"),
        )

    @cached_property
    def config(self) -> Config | None:
        """Configuration of the trial; None before it has started, or if this version of the space cannot read it."""
        try:
            return Config.from_dict(self._attributes["config"])
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def key(self) -> str | None:
        """Text that is equal for trials that would train the same network."""
        return self._attributes.get("key")

    @property
    def seed(self) -> int | None:
        """Seed of the weights, the order of pictures, augmentation and dropout."""
        return self._attributes.get("seed")

    @property
    def parameters(self) -> int | None:
        """Number of the network's parameters."""
        return self._attributes.get("parameters")

    @property
    def flops(self) -> int | None:
        """Forward FLOPs of one picture."""
        return self._attributes.get("flops")

    @property
    def baseline(self) -> str | None:
        """Name of the baseline that the trial trains; None for a sampled configuration."""
        name = self._attributes.get("baseline", self._attributes.get("known_good"))
        return EARLIER_NAMES.get(name, name) if isinstance(name, str) else None

    @property
    def attempts(self) -> int:
        """How often training was started or resumed."""
        return self._attributes.get("attempts", 0)

    @property
    def slot(self) -> int | None:
        """Index of the slot that trained the trial last."""
        return self._attributes.get("slot")

    @property
    def host(self) -> str | None:
        """Name of the machine that trained the trial last; None in earlier versions."""
        return self._attributes.get("host")

    @property
    def micro_batch(self) -> int | None:
        """Pictures per forward pass if memory was short; None for whole batches."""
        return self._attributes.get("micro_batch")

    @property
    def environment(self) -> dict[str, str]:
        """Facts of the machine that trained the trial last, as `tuning.environment` returns them."""
        stored = self._attributes.get("environment")
        return stored if isinstance(stored, dict) else {}

    @property
    def run(self) -> str | None:
        """Key of the fixed run that the trial trains; None in a search."""
        return self._attributes.get("run")

    @property
    def name(self) -> str | None:
        """Name of a fixed run or of a baseline."""
        return self._attributes.get("name", self.baseline)

    @property
    def planned_epochs(self) -> int:
        """Epochs of a fixed run."""
        return self._attributes["epochs"]

    @property
    def is_final(self) -> bool:
        """Whether a fixed run trains on the validation pictures too."""
        return self._attributes.get("final", False)

    @property
    def keeps_last(self) -> bool:
        """Whether the trial's last epoch represents it, not its best one."""
        return self._attributes.get("last", False)

    @property
    def expected_seconds(self) -> float:
        """Expected duration of a fixed run in seconds."""
        return self._attributes.get("expected_seconds", 0.0)

    @property
    def _attributes(self) -> dict[str, Any]:
        return self.frozen.user_attrs


def read_trials(study: optuna.Study) -> list[Trial]:
    """Return all trials of a study in the order of their numbers."""
    return [Trial(frozen) for frozen in study.get_trials(deepcopy=False)]


def read_trial(trial: optuna.Trial) -> Trial:
    """Return a live trial as it stands in the database now. Raises KeyError if it has been deleted."""
    return Trial(trial.storage.get_trial(trial._trial_id))  # pyright: ignore[reportPrivateUsage]


def live_trial(study: optuna.Study, number: int) -> optuna.Trial:
    """Return an unfinished trial of an earlier run as an object that Optuna's `tell` accepts."""
    storage, study_id = study._storage, study._study_id  # pyright: ignore[reportPrivateUsage]
    return optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))


def top(trials: Iterable[Trial], count: int) -> list[Trial]:
    """Return the best `count` complete trials, best first, and earlier ones first if they are equal."""
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))[:count]


def furthest(trials: Iterable[Trial], count: int) -> list[Trial]:
    """Return the `count` trials that were trained furthest: the complete ones as in `top`, then paused, interrupted and
    pruned ones, most epochs first, and among equals the highest top-1 so far first."""
    trials = list(trials)
    partly = [trial for trial in trials if trial.epochs and (trial.is_running or trial.outcome is Outcome.PRUNED)]
    partly.sort(key=lambda trial: (-trial.epochs, -(trial.reached or 0.0), trial.number))
    return [*top(trials, count), *partly][:count]


def count_trials(trials: Iterable[Trial]) -> int:
    """Return how many trials count towards `--trials`."""
    return sum(trial.counts for trial in trials)


def trials_since_best(trials: Iterable[Trial]) -> int:
    """Return how many trials have been paused or counted since the best top-1 was reached.

    If the clock was set back, some trials left their slots in the future; they are treated as earlier than all others.
    Sorted by time, they would stay the last for hours, and patience would not run out.
    """
    now = datetime.now()

    def order(trial: Trial) -> tuple[bool, datetime, int]:
        left = trial.left_slot or now
        return left <= now, left, trial.number

    best, since = -1.0, 0
    for trial in sorted((trial for trial in trials if trial.counts or trial.is_paused), key=order):
        since += 1
        if trial.outcome is not Outcome.DIVERGED and trial.reached is not None and trial.reached > best:
            best, since = trial.reached, 0
    return since


# ---------------------------------------------------------------------------------------------------------------------
# Writing, by the coordinator alone; Optuna rejects all of it once a trial has finished


def write_work(trial: optuna.Trial, config: Config, cost: Cost, *, seed: int, key: str | None) -> None:
    """Store what a trial trains; later calls change nothing."""
    facts = {
        "config": config.to_dict(),
        "key": key,
        "seed": seed,
        "parameters": cost.parameters,
        "flops": cost.flops,
    }
    there = trial.user_attrs
    _write(trial, {name: value for name, value in facts.items() if name not in there and value is not None})


def write_attempt(trial: optuna.Trial, attempt: int, slot: int, host: str | None = None) -> None:
    """Store the number of the attempt, from 1, the slot and the machine that train it, and that it begins now."""
    there = trial.user_attrs
    spans = [*there.get("spans", [])[-MOST_SPANS + 1 :], [_now(), None]]
    moved = {} if host in (None, there.get("host")) else {"host": host}
    _write(trial, {"attempts": attempt, "slot": slot, **moved, "spans": spans})


def _now() -> float:
    """Return the time in Unix seconds, rounded down: what has been stored is never in the future."""
    return math.floor(10 * time.time()) / 10


def write_environment(trial: optuna.Trial, environment: Mapping[str, str]) -> None:
    """Store the facts of the machine that trains the trial, as its worker sent them."""
    _write(trial, {"environment": dict(environment)})


def write_micro_batch(trial: optuna.Trial, pictures: int) -> None:
    """Store how many pictures a forward pass takes because memory was short."""
    _write(trial, {"micro_batch": pictures})


def write_paused(trial: optuna.Trial) -> None:
    """Store that a trial has left its slot and waits for its scheduler to resume it."""
    _write(trial, _left(trial) | {"paused": True})


def _left(trial: optuna.Trial) -> dict[str, Any]:
    """Return the attribute of a trial that leaves its slot now; nothing if it is not in one."""
    spans = trial.user_attrs.get("spans", [])
    return {"spans": [*spans[:-1], [spans[-1][0], _now()]]} if spans and spans[-1][1] is None else {}


def write_resumed(trial: optuna.Trial, epochs: int) -> None:
    """Store that a paused trial continues after this many epochs."""
    _write(trial, {"resumed_after": epochs, "paused": False})


def write_result(
    trial: optuna.Trial, outcome: Outcome, reason: str, best: EpochMetrics | None, history: Sequence[EpochMetrics]
) -> None:
    """Store how a trial ended and what its best epoch reached; None if no epoch was trained."""
    facts = _left(trial)
    if best is not None:
        reached = {
            "best_epoch": best.epoch,
            "best_top1": best.top1,
            "best_top3": best.top3,
            "best_loss": best.validation_loss,
            "per_class": [None if math.isnan(share) else share for share in best.per_class],
            "confusion": best.confusion,
            "seconds": round(sum(metrics.seconds for metrics in history), 2),
            "peak_memory": max(metrics.peak_memory for metrics in history),
        }
        facts |= {
            name: value
            for name, value in reached.items()
            if value is not None and len(json.dumps(value)) <= LONGEST_ATTRIBUTE
        }
    _write(trial, facts | {"reason": reason[-LONGEST_ATTRIBUTE // 2 :], "outcome": outcome})


def _write(trial: optuna.Trial, facts: dict[str, Any]) -> None:
    """Store attributes of a live trial, all or none if the study is in a database."""
    if isinstance(storage := trial.storage, Storage):
        storage.set_trial_user_attrs(trial._trial_id, facts)  # pyright: ignore[reportPrivateUsage]
        trial._cached_frozen_trial.user_attrs.update(facts)  # pyright: ignore[reportPrivateUsage]
    else:
        for name, value in facts.items():
            trial.set_user_attr(name, value)


# ---------------------------------------------------------------------------------------------------------------------
# Beside the database


def write_history(folder: Path, number: int, history: Sequence[EpochMetrics]) -> None:
    """Write the metrics of all of a trial's epochs into history.json in its directory. Raises StudyError."""
    text = json.dumps([metrics.to_dict() for metrics in history])
    replace_file(trial_directory(folder, number) / "history.json", lambda path: path.write_text(text))


def read_history(folder: Path, number: int) -> list[EpochMetrics]:
    """Return the metrics of all of a trial's epochs; an empty list if none were written or the file was removed.

    Raises StudyError for a file that this program did not write.
    """
    path = trial_directory(folder, number) / "history.json"
    try:
        return [EpochMetrics.from_dict(record) for record in json.loads(path.read_bytes())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = why(error) if isinstance(error, OSError | ValueError) else "not a list of epochs"
        raise StudyError(f"cannot read {path} ({reason}): remove it; the trial's curves are then left out") from error


def write_trials_csv(study: optuna.Study, path: Path) -> None:
    """Write one line per trial: number, state, value, times, parameters and attributes. Raises StudyError."""
    table = study.trials_dataframe(
        attrs=("number", "state", "value", "datetime_start", "datetime_complete", "duration", "params", "user_attrs")
    )
    table = table.rename(columns={f"value_{METRIC}": "value"})
    replace_file(path, lambda temporary: table.to_csv(temporary, index=False))
