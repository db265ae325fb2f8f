"""Random signals for commands that run for days: drawn from a seed, sent until each command has ended by itself.

    strikes(seed) -> Strike ...        disturb(commands, strikes) -> Tally

A command that ended early is started again at once, as its user would. All processes of the commands carry a marker in
their environment; by it, processes that outlive their command are found.
"""

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

MARKER = "STUDY_CHAOS"
"""Environment variable that marks the processes of disturbed commands."""
SETTLED = 30.0
"""Seconds that a process may outlive its command."""
STRUCK = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, 128 + signal.SIGINT, 128 + signal.SIGTERM}
"""Exit codes that a strike explains."""


class Kind(StrEnum):
    """The signal, then who receives it; "all" are the processes that share the terminal."""

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

    @property
    def sent(self) -> signal.Signals:
        """The signal that is sent first."""
        return signal.Signals[self.replace(",", " ").split()[0]]

    @property
    def receiver(self) -> str:
        """One of "a worker", "the command" and "all"."""
        return self.rpartition(", ")[2]


SLEEPS = (Kind.SLEEP_WORKER, Kind.SLEEP_COMMAND, Kind.SLEEP_ALL)


@dataclass(frozen=True, kw_only=True)
class Strike:
    """One disturbance."""

    after: float
    """Seconds since the previous strike."""
    kind: Kind
    lasts: float
    """Length of a sleep in seconds."""
    victim: int
    """Random number that picks one of the commands or workers running at that moment."""


def strikes(seed: Sequence[int], *, pause: float, sleep: float) -> Iterator[Strike]:
    """Yield strikes without end.

    Half of the pauses are a tenth as long as the others, so that strikes also hit starts and endings and the study
    still gets on. One sleep in thirty lasts half of `sleep` or more, the others about a second.

    Args: `pause`: mean seconds between two strikes; `sleep`: seconds of the longest sleep.
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
    """What happened to commands until they ended by themselves."""

    struck: Counter[Kind] = field(default_factory=Counter[Kind])
    starts: int = 0
    crashes: list[str] = field(default_factory=list[str])
    """Last lines of commands whose exit code no signal explains."""
    asleep: float = 0.0
    """Seconds of all sleeps together."""
    longest: float = 0.0
    """Seconds of the longest sleep."""
    seconds: float = 0.0
    """Seconds from the first start to the last end."""
    orphans: list[str] = field(default_factory=list[str])
    """Processes still alive SETTLED seconds after the last end."""

    @property
    def kills(self) -> int:
        """Number of strikes that were not sleeps."""
        return sum(count for kind, count in self.struck.items() if kind not in SLEEPS)


def disturb(
    commands: Sequence[Sequence[str]],
    planned: Iterator[Strike],
    *,
    log: Path,
    limit: float,
    inspect: Callable[[], None] = lambda: None,
) -> Tally:
    """Strike the commands, and restart them, until each has ended with exit code 0.

    Args: `log`: file for their output; `limit`: seconds after which the strikes end; `inspect`: called after each
    strike. Raises TimeoutError after twice the limit.
    """
    tally = Tally()
    marker = uuid.uuid4().hex
    began = time.monotonic()
    running = [_start(command, log, marker, tally) for command in commands]
    strike = next(planned, None)
    due = began + (strike.after if strike else 0.0)
    try:
        while running:
            running = _restarted(running, log, marker, tally)
            now = time.monotonic()
            if now - began > 2 * limit:
                raise TimeoutError(f"{log}: still running after {now - began:.0f} s")
            if strike and running and now >= due and now - began < limit:
                _strike(strike, [process for _, process in running], tally)
                inspect()
                strike = next(planned, None)
                due = time.monotonic() + (strike.after if strike else 0.0)
            time.sleep(0.01)
        tally.seconds = time.monotonic() - began
        deadline = time.monotonic() + SETTLED
        while (left := _marked(marker)) and time.monotonic() < deadline:
            time.sleep(0.1)
        tally.orphans = [_name(process) for process in left]
    finally:
        for process in _marked(marker):
            with contextlib.suppress(psutil.Error):
                process.kill()
    return tally


_Running = tuple[Sequence[str], "subprocess.Popen[bytes]"]


def _start(command: Sequence[str], log: Path, marker: str, tally: Tally) -> _Running:
    tally.starts += 1
    with log.open("ab") as file:
        file.write(f"\n--- start {tally.starts}\n".encode())
        file.flush()
        return command, subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | {MARKER: marker, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )


def _restarted(running: list[_Running], log: Path, marker: str, tally: Tally) -> list[_Running]:
    """Drop commands that ended with exit code 0 and restart those that ended with another."""
    kept: list[_Running] = []
    for command, process in running:
        code = process.poll()
        if code is None:
            kept.append((command, process))
        elif code != 0:
            if code not in STRUCK:
                tally.crashes.append(f"exit code {code}: {_last_lines(log)}")
            kept.append(_start(command, log, marker, tally))
    return kept


def _strike(strike: Strike, running: list[subprocess.Popen[bytes]], tally: Tally) -> None:
    command = running[strike.victim % len(running)]
    kind, victims = strike.kind, [command.pid]
    if kind.receiver == "all":
        victims = [-process.pid for process in running]
    elif kind.receiver == "a worker":
        if workers := worker_processes(command.pid):
            victims = [workers[strike.victim % len(workers)].pid]
        else:  # the command has no worker yet, or trains by itself: it takes the strike
            kind = Kind.KILL_COMMAND if kind is Kind.KILL_WORKER else Kind.SLEEP_COMMAND
    _send(victims, kind.sent)
    tally.struck[kind] += 1
    if kind is Kind.INTERRUPT_TWICE:
        time.sleep(min(1.0, strike.lasts))
        _send(victims, kind.sent)
    if kind in SLEEPS:
        time.sleep(strike.lasts)
        tally.asleep += strike.lasts
        tally.longest = max(tally.longest, strike.lasts)
        _send(victims, signal.SIGCONT)


def _send(victims: list[int], sent: int) -> None:
    """Send a signal to processes, and to process groups where the number is negative."""
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(-victim, sent) if victim < 0 else os.kill(victim, sent)


def worker_processes(command: int) -> list[psutil.Process]:
    """Return the worker processes of a study's command, by its process id."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(command).children():
            with contextlib.suppress(psutil.Error):
                found += [child] * any("spawn_main" in word for word in child.cmdline())
    return found


def _marked(marker: str) -> list[psutil.Process]:
    """Return all living processes with this marker."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARKER) == marker:
                found.append(process)
    return found


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"process {process.pid}: {shlex.join(process.cmdline())}"
    return f"process {process.pid}"


def _last_lines(log: Path) -> str:
    """Return the last three lines written since the last start."""
    written = log.read_text(encoding="utf-8", errors="replace").rpartition("\n--- start ")[2]
    return " | ".join(written.strip().splitlines()[-3:])
