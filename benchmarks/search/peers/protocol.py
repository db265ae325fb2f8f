"""How a peer is driven: one JSON message per line, answered in turn. Only the standard library, as every peer loads it.

    the replay sends                                  the peer answers
    {"begin": {seed, epochs, space, guess}}           {}
    {"ask": true}, a slot is free                     {"new": params}, {"resume": trial} or {"idle": true}
    {"began": [trial, params]}, the row it became     {}
    {"epoch": [trial, epoch, best top-1 so far]}      {"decision": "continue", "pause" or "stop"}

Trials are numbered from 0 in the order in which they began, epochs from 1. Parameters are flat: conditional ones are
always there, and ignored where they do not apply.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal

Decision = Literal["continue", "pause", "stop"]


@dataclass(frozen=True)
class Knob:
    """One parameter of the space: a choice if it has `choices`, otherwise a number."""

    name: str
    choices: list[str] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False

    def read(self, value: Any) -> Any:
        """Return a library's value as a plain one, within the bounds whatever its rounding."""
        if self.choices is not None:
            return str(value)
        number = min(self.high, max(self.low, float(value)))
        return round(number) if self.integer else number


@dataclass(frozen=True)
class Task:
    """What a search is given."""

    seed: int
    epochs: int
    space: list[Knob]
    guess: dict[str, Any]
    """Parameters of the best single guess, for a peer that takes a prior; knobs that it lacks are missing."""

    def read(self, values: Any) -> dict[str, Any]:
        """Return a library's configuration as plain parameters."""
        return {knob.name: knob.read(values[knob.name]) for knob in self.space}


class Peer(ABC):
    """A library that decides about every epoch of every trial."""

    @abstractmethod
    def propose(self) -> dict[str, Any] | int | None:
        """Return a new trial's parameters, the number of a trial to resume, or None to leave the slot idle."""

    @abstractmethod
    def began(self, trial: int, params: dict[str, Any]) -> None:
        """Learn which row the last proposed trial has become."""

    @abstractmethod
    def epoch(self, trial: int, epoch: int, best: float) -> Decision:
        """Decide about a trial after an epoch. After the last one, the decision is ignored."""


class FidelityPeer(Peer):
    """A library that asks for a configuration with a number of epochs, and is told one value for both.

    It learns from the configuration that it proposed, not from the row that this became.
    """

    def __init__(self) -> None:
        self._trials: dict[Hashable, int] = {}
        self._reached: dict[int, tuple[int, float]] = {}
        self._jobs: dict[int, list[tuple[Any, int]]] = {}  # of running trials
        self._begun: tuple[Hashable, Any, int] | None = None

    @abstractmethod
    def ask(self) -> tuple[Hashable, dict[str, Any], int, Any] | None:
        """Return a configuration's key, its parameters, the epochs to reach, and what `tell` needs; None to wait."""

    @abstractmethod
    def tell(self, job: Any, value: float) -> None:
        """Report the best top-1 that was reached."""

    def propose(self) -> dict[str, Any] | int | None:
        """Ask until there is something to train.

        What has been trained before is told at once. What is being trained is told when its epochs are reached.
        """
        while (asked := self.ask()) is not None:
            key, params, epochs, job = asked
            trial = self._trials.get(key)
            if trial is None:
                self._begun = key, job, epochs
                return params
            if self._jobs[trial]:
                self._jobs[trial].append((job, epochs))
                continue
            trained, best = self._reached[trial]
            if trained < epochs:
                self._jobs[trial].append((job, epochs))
                return trial
            self.tell(job, best)
        return None

    def began(self, trial: int, params: dict[str, Any]) -> None:
        """Remember the trial's number."""
        assert self._begun is not None
        key, job, epochs = self._begun
        self._trials[key], self._jobs[trial] = trial, [(job, epochs)]

    def epoch(self, trial: int, epoch: int, best: float) -> Decision:
        """Pause when the requested epochs are reached."""
        self._reached[trial] = epoch, best
        jobs = self._jobs[trial]
        for job, epochs in jobs:
            if epochs <= epoch:
                self.tell(job, best)
        self._jobs[trial] = [(job, epochs) for job, epochs in jobs if epochs > epoch]
        return "continue" if self._jobs[trial] else "pause"


def serve(make: Callable[[Task], Peer]) -> None:
    """Answer messages on standard input until it ends; whatever the library prints goes to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    peer: Peer | None = None
    for line in sys.stdin:
        message = json.loads(line)
        answer: dict[str, Any] = {}
        if "begin" in message:
            begin = message["begin"]
            peer = make(Task(begin["seed"], begin["epochs"], [Knob(**knob) for knob in begin["space"]], begin["guess"]))
        elif peer is not None and "ask" in message:
            answer = _proposal(peer.propose())
        elif peer is not None and "began" in message:
            peer.began(*message["began"])
        elif peer is not None:
            answer = {"decision": peer.epoch(*message["epoch"])}
        print(json.dumps(answer), file=answers, flush=True)


def _proposal(proposed: dict[str, Any] | int | None) -> dict[str, Any]:
    if proposed is None:
        return {"idle": True}
    return {"resume": proposed} if isinstance(proposed, int) else {"new": proposed}
