"""Workers on this machine: one spawned process per slot, kept for many trials, for importing torch takes seconds."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import platform
import signal
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from tuning.jobs import Event, TrialJob
    from tuning.trainer import Answer

HANG_SECONDS = 300.0
"""A worker that shows no sign of life for so long is given up. The longest silence of a healthy one is a batch, or the
start of a process (importing torch takes seconds, and minutes on a cold network disk)."""
MEMORY_SHARE = 0.5
"""The share of the machine's memory that all idle workers together may hold before they are replaced by fresh ones."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""A Ctrl-C reaches the whole terminal; what becomes of a running epoch is the coordinator's decision, the workers
ignore these."""


class LocalWorkers:
    """Processes on this machine, one per entry of `devices`; see `Workers` for what each method promises."""

    def __init__(self, devices: list[str], *, hang_seconds: float = HANG_SECONDS) -> None:
        self.slots = len(devices)
        self._devices = devices
        self.hang_seconds = hang_seconds
        """May be set at any time."""
        self._processes: dict[int, _Process] = {}

    def device(self, slot: int) -> str:
        """The device of a slot, as torch names it."""
        return self._devices[slot]

    def start(self, slot: int, job: TrialJob) -> None:
        """Hands the job to the slot's process, or to a fresh one where it has died or grown."""
        process = self._processes.get(slot)
        if process is not None and (not process.alive or process.memory > self._memory_limit):
            self._discard(slot)
            process = None
        if process is None:
            process = self._processes[slot] = _Process()
        process.assign(job)

    def proceed(self, slot: int) -> None:
        """Asks for the next epoch; a process that died after its last word is heard of at the next wait."""
        if slot in self._processes:
            self._processes[slot].send("proceed")

    def stop(self, slot: int) -> None:
        """The process leaves the trial at its next batch; what it still sends is dropped."""
        if slot in self._processes:
            self._processes[slot].abandon()

    def wait(self, timeout: float) -> list[tuple[int, Event]]:
        """Hears every busy process; a dead or a silent one is heard as a TrialFailure."""
        from tuning.jobs import FailureKind, TrialFailure

        busy = {slot: process for slot, process in self._processes.items() if process.job}
        if not busy:
            time.sleep(timeout)
        ready = wait([source for process in busy.values() for source in process.sources], timeout) if busy else []
        heard: list[tuple[int, Event]] = []
        for slot, process in busy.items():
            if any(source in ready for source in process.sources):
                events = process.receive()
                if process.job and not process.alive:
                    events.append(TrialFailure(kind=FailureKind.DIED, reason=process.cause_of_death))
                heard += [(slot, event) for event in events]
                if any(isinstance(event, TrialFailure) and event.kind is FailureKind.DIED for event in events):
                    self._discard(slot)
            elif time.monotonic() - process.heard > self.hang_seconds:
                reason = f"no sign of life for {self.hang_seconds:.0f} s"
                heard.append((slot, TrialFailure(kind=FailureKind.HUNG, reason=reason)))
                self._discard(slot)
        return heard

    def close(self) -> None:
        """Kills every process: what they have finished is on disk."""
        for slot in list(self._processes):
            self._discard(slot)

    @property
    def _memory_limit(self) -> float:
        """Bytes that one idle worker may hold."""
        return MEMORY_SHARE * psutil.virtual_memory().total / self.slots

    def _discard(self, slot: int) -> None:
        self._processes.pop(slot).kill()


@dataclass(frozen=True)
class _Message:
    """What a worker sends: an event, and the trial it is about as (number, attempt)."""

    about: tuple[int, int]
    event: Event


class _Process:
    """A worker process as the coordinator sees it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="trial worker", daemon=True)
        with _signals_held():
            self._process.start()
        theirs.close()
        self.job: TrialJob | None = None
        self.heard = time.monotonic()

    @property
    def sources(self) -> list[Any]:
        """What to wait on: the line and the process's end."""
        return [self._connection, self._process.sentinel]

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def memory(self) -> int:
        """Resident bytes."""
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self._process.pid).memory_info().rss
        return 0

    @property
    def cause_of_death(self) -> str:
        self._process.join()
        code = self._process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def assign(self, job: TrialJob) -> None:
        self.job = job
        self.send(job)

    def abandon(self) -> None:
        if self.job:
            self.send("stop")
            self.job = None

    def send(self, message: TrialJob | Answer) -> None:
        self.heard = time.monotonic()
        # A process that has just died is found by its sentinel at the next wait.
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def receive(self) -> list[Event]:
        """What the process has sent about its present job; a failure ends the job."""
        from tuning.jobs import TrialFailure

        events: list[Event] = []
        # The line breaks in the middle of a message when the process is killed while it sends.
        with contextlib.suppress(EOFError, OSError):
            while self._connection.poll():
                message: _Message = self._connection.recv()
                self.heard = time.monotonic()
                if self.job and message.about == (self.job.number, self.job.attempt):
                    events.append(message.event)
                    if isinstance(message.event, TrialFailure):
                        self.job = None
        return events

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._connection.close()


class _PipeLink:
    """The worker's end of the line, for one job."""

    def __init__(self, connection: Connection[Any, Any], job: TrialJob) -> None:
        self._connection = connection
        self._about = (job.number, job.attempt)

    def send(self, event: Event) -> None:
        self._connection.send(_Message(self._about, event))

    def answer(self) -> Answer:
        return self._connection.recv()

    def stop_asked(self) -> bool:
        return self._connection.poll() and self._connection.recv() == "stop"


@contextlib.contextmanager
def _signals_held() -> Generator[None]:
    """A process started here inherits them blocked; with Python's own handlers it would die of them as it imports."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # whoever starts it, finds these signals unblocked afterwards
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection[Any, Any]) -> None:
    """The life of a worker process: one job after another, until the coordinator is gone."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _keep_memory_mapped()

    from tuning import trainer
    from tuning.jobs import TrialJob

    with contextlib.suppress(EOFError, OSError):
        usable = True
        while usable:
            message: TrialJob | Answer = connection.recv()
            # A "stop" that crossed the end of its trial on the way says nothing any more.
            if isinstance(message, TrialJob):
                usable = trainer.run(message, _PipeLink(connection, message))


def _leave_with_parent() -> None:
    """An orphan would go on writing into folders that the next coordinator gives to another worker."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _keep_memory_mapped() -> None:
    """Keeps glibc from handing large blocks back, and mapping and zeroing them anew at each step.

    That took half of the time of a training step: without it steps ran 1.4 to 2.0 times as fast, with at worst 44 %
    more memory (2 Zen 3 cores, tensors over 32 MB). Where the environment sets malloc's own variables, they decide.
    """
    if platform.libc_ver()[0] != "glibc" or os.environ.keys() & {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"}:
        return
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of <malloc.h>
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
