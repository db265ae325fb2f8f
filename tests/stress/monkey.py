"""What befalls commands that run for days: signals at random moments, drawn from a seed, until they end by themselves.

    strikes(seed) -> Strike ...        disturb(commands, strikes) -> Tally

A command that has ended before its time is started again at once, as its user would. All of a command's processes carry
a mark in their environment, by which those that outlive it are found.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import psutil

MARK = "STUDY_CHAOS"
"""The environment variable."""
SETTLED = 30.0
"""Seconds that a process may outlive its command."""
STRUCK = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, 128 + signal.SIGINT, 128 + signal.SIGTERM}
"""How a command ends that was struck."""


class Kind(StrEnum):
    """What is sent, and to whom; "all" are the processes that share the terminal."""

    KILL_WORKER = "SIGKILL, a worker"
    KILL_COMMAND = "SIGKILL, the command"
    KILL_ALL = "SIGKILL, all"
    HANG_UP = "SIGHUP, all"
    TERMINATE = "SIGTERM, the command"
    INTERRUPT = "SIGINT, the command"
    INTERRUPT_ALL = "SIGINT, all"
    INTERRUPT_TWICE = "SIGINT twice, all"
    SLEEP_WORKER = "SIGSTOP and SIGCONT, a worker"
    SLEEP_COMMAND = "SIGSTOP and SIGCONT, the command"
    SLEEP_ALL = "SIGSTOP and SIGCONT, all"


SLEEPS = (Kind.SLEEP_WORKER, Kind.SLEEP_COMMAND, Kind.SLEEP_ALL)
_SENT = {
    Kind.KILL_WORKER: signal.SIGKILL,
    Kind.KILL_COMMAND: signal.SIGKILL,
    Kind.KILL_ALL: signal.SIGKILL,
    Kind.HANG_UP: signal.SIGHUP,
    Kind.TERMINATE: signal.SIGTERM,
    Kind.INTERRUPT: signal.SIGINT,
    Kind.INTERRUPT_ALL: signal.SIGINT,
    Kind.INTERRUPT_TWICE: signal.SIGINT,
    Kind.SLEEP_WORKER: signal.SIGSTOP,
    Kind.SLEEP_COMMAND: signal.SIGSTOP,
    Kind.SLEEP_ALL: signal.SIGSTOP,
}


@dataclass(frozen=True, kw_only=True)
class Strike:
    """One disturbance."""

    after: float
    """Seconds since the last one."""
    kind: Kind
    lasts: float
    """Seconds of a sleep."""
    victim: int
    """Drawn, for a choice among as many commands or workers as there are then."""


def strikes(seed: Sequence[int], *, pause: float, sleep: float) -> Iterator[Strike]:
    """Without end. `pause`: mean seconds between two; `sleep`: the longest.

    Half of the pauses are a tenth as long as the others: blows fall on starts and endings too, and there is time
    to get on. One sleep in thirty is of half of `sleep` and more, the others take about a second.
    """
    rng = np.random.default_rng(list(seed))
    kinds = list(Kind)
    while True:
        long = rng.random() < 1 / 30
        yield Strike(
            after=float(rng.exponential(pause * rng.choice([20, 2]) / 11)),
            kind=kinds[rng.integers(len(kinds))],
            lasts=float(sleep * rng.uniform(0.5, 1.0) if long else min(sleep, rng.exponential(1.0))),
            victim=int(rng.integers(2**31)),
        )


@dataclass(kw_only=True)
class Tally:
    """What was done to commands until they ended by themselves."""

    struck: Counter[Kind] = field(default_factory=Counter[Kind])
    starts: int = 0
    crashes: list[str] = field(default_factory=list[str])
    """The last words of commands that ended in a way that no signal explains."""
    asleep: float = 0.0
    """Seconds, in all sleeps together."""
    longest: float = 0.0
    """The longest sleep in seconds."""
    seconds: float = 0.0
    """From the first start to the last end."""
    orphans: list[str] = field(default_factory=list[str])
    """Processes that were still there SETTLED seconds later."""

    @property
    def kills(self) -> int:
        """All that was not only put to sleep."""
        return sum(count for kind, count in self.struck.items() if kind not in SLEEPS)


def disturb(
    commands: Sequence[Sequence[str]],
    planned: Iterator[Strike],
    *,
    log: Path,
    limit: float,
    look: Callable[[], None] = lambda: None,
) -> Tally:
    """Keeps the commands running until each has ended with exit code 0, and strikes them meanwhile.

    Args: `log`: takes their output; `limit`: seconds after which the strikes end, and twice as many after which this
    gives up with a TimeoutError; `look`: called after each strike.
    """
    tally = Tally()
    mark = uuid.uuid4().hex
    begun = time.monotonic()
    running = [_start(command, log, mark, tally) for command in commands]
    strike = next(planned, None)
    due = begun + (strike.after if strike else 0.0)
    try:
        while running:
            running = _kept_running(running, log, mark, tally)
            now = time.monotonic()
            if now - begun > 2 * limit:
                raise TimeoutError(f"{log}: not at its end after {now - begun:.0f} s")
            if strike and running and now >= due and now - begun < limit:
                _strike(strike, [process for _, process in running], tally)
                look()
                strike = next(planned, None)
                due = time.monotonic() + (strike.after if strike else 0.0)
            time.sleep(0.01)
        tally.seconds = time.monotonic() - begun
        deadline = time.monotonic() + SETTLED
        while (left := _marked(mark)) and time.monotonic() < deadline:
            time.sleep(0.1)
        tally.orphans = [_name(process) for process in left]
    finally:
        for process in _marked(mark):
            with contextlib.suppress(psutil.Error):
                process.kill()
    return tally


_Running = tuple[Sequence[str], "subprocess.Popen[bytes]"]


def _start(command: Sequence[str], log: Path, mark: str, tally: Tally) -> _Running:
    tally.starts += 1
    with log.open("ab") as file:
        file.write(f"\n--- start {tally.starts}\n".encode())
        file.flush()
        return command, subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | {MARK: mark, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )


def _kept_running(running: list[_Running], log: Path, mark: str, tally: Tally) -> list[_Running]:
    """Those that have not ended by themselves; those that were struck begin anew."""
    kept: list[_Running] = []
    for command, process in running:
        code = process.poll()
        if code is None:
            kept.append((command, process))
        elif code != 0:
            if code not in STRUCK:
                tally.crashes.append(f"exit code {code}: {_last_words(log)}")
            kept.append(_start(command, log, mark, tally))
    return kept


def _strike(strike: Strike, running: list[subprocess.Popen[bytes]], tally: Tally) -> None:
    command = running[strike.victim % len(running)]
    kind, sent = strike.kind, _SENT[strike.kind]
    if kind in (Kind.KILL_WORKER, Kind.SLEEP_WORKER):
        workers = _workers(command.pid)
        # A command that has no worker yet, or trains by itself, is met instead.
        victims = [workers[strike.victim % len(workers)].pid] if workers else [command.pid]
        kind = kind if workers else Kind.KILL_COMMAND if kind is Kind.KILL_WORKER else Kind.SLEEP_COMMAND
        _send(victims, sent)
    elif kind in (Kind.KILL_ALL, Kind.HANG_UP, Kind.INTERRUPT_ALL, Kind.INTERRUPT_TWICE, Kind.SLEEP_ALL):
        victims = [-process.pid for process in running]
        _send(victims, sent)
    else:
        victims = [command.pid]
        _send(victims, sent)
    tally.struck[kind] += 1
    if kind is Kind.INTERRUPT_TWICE:
        time.sleep(min(1.0, strike.lasts))
        _send(victims, sent)
    if kind in SLEEPS:
        time.sleep(strike.lasts)
        tally.asleep += strike.lasts
        tally.longest = max(tally.longest, strike.lasts)
        _send(victims, signal.SIGCONT)


def _send(victims: list[int], sent: int) -> None:
    """To processes, and where the number is negative to groups; a command that has just ended is a zombie, at least."""
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(-victim, sent) if victim < 0 else os.kill(victim, sent)


def _workers(command: int) -> list[psutil.Process]:
    """The command's worker processes."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(command).children():
            with contextlib.suppress(psutil.Error):
                found += [child] * any("spawn_main" in word for word in child.cmdline())
    return found


def _marked(mark: str) -> list[psutil.Process]:
    """All living processes of these commands."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"process {process.pid}: {shlex.join(process.cmdline())}"
    return f"process {process.pid}"


def _last_words(log: Path) -> str:
    """The end of what was said since the last start."""
    said = log.read_text(encoding="utf-8", errors="replace").rpartition("\n--- start ")[2]
    return " | ".join(said.strip().splitlines()[-3:])
