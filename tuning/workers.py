"""Workers on this machine: one spawned process per slot, kept for many trials, for importing torch takes seconds."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import platform
import queue
import signal
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import psutil

from tuning.memory import Kills, offer_first

if TYPE_CHECKING:
    from tuning.devices import Slot
    from tuning.jobs import Event, TrialFailure, TrialJob
    from tuning.trainer import Answer

HANG_SECONDS = 300.0
"""A worker that shows no sign of life while it is listened to for so long is given up. The longest silence of a healthy
one is a batch, or the start of a process (importing torch takes seconds, and minutes on a cold network disk)."""
END_SECONDS = 10.0
"""How long a process may take to end that has been killed, or has closed its line. Only the kernel can keep one longer,
in the middle of a call to a disk or a GPU that does not answer; it is left to it, for it runs no more of our code."""
MEMORY_SHARE = 0.5
"""The share of the machine's memory that all idle workers together may hold before they are replaced by fresh ones."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""A Ctrl-C reaches the whole terminal; what becomes of a running epoch is the coordinator's decision, the workers
ignore these."""


class LocalWorkers:
    """Processes on this machine, one per slot; see `Workers` for what each method promises."""

    def __init__(self, slots: Sequence[Slot], *, hang_seconds: float = HANG_SECONDS) -> None:
        self.slots = slots
        self.hang_seconds = hang_seconds
        """May be set at any time."""
        self._processes: dict[int, _Process] = {}
        self._said: queue.SimpleQueue[tuple[_Process, _Message | None]] = queue.SimpleQueue()
        """By every process, in order; None: its line has broken."""

    def start(self, slot: int, job: TrialJob) -> None:
        """Hands the job to the slot's process, or to a fresh one where it has died or grown."""
        process = self._processes.get(slot)
        if process is not None and (not process.alive or process.memory > self._memory_limit):
            self._discard(slot)
            process = None
        if process is None:
            process = self._processes[slot] = _Process(self._said)
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

        begun = time.monotonic()
        said = self._hear(timeout)
        # Where the whole machine slept, or this process, the wait took longer, but nobody was listened to for longer.
        listened = min(time.monotonic() - begun, timeout)
        heard: list[tuple[int, Event]] = []
        for slot, process in list(self._processes.items()):
            messages = [message for speaker, message in said if speaker is process]
            process.silence = 0.0 if messages else process.silence + listened
            events = [event for message in messages for event in process.events(message)]
            if process.job and process.silence > self.hang_seconds:
                reason = f"no sign of life for {self.hang_seconds:.0f} s"
                events.append(TrialFailure(kind=FailureKind.HUNG, reason=reason))
            heard += [(slot, event) for event in events]
            failures = [event.kind for event in events if isinstance(event, TrialFailure)]
            if None in messages or FailureKind.DIED in failures or FailureKind.HUNG in failures:
                self._discard(slot)
        return heard

    def close(self) -> None:
        """Kills every process: what they have finished is on disk."""
        for slot in list(self._processes):
            self._discard(slot)

    def _hear(self, timeout: float) -> list[tuple[_Process, _Message | None]]:
        """All that has been said, once there is something or the time is over."""
        said: list[tuple[_Process, _Message | None]] = []
        with contextlib.suppress(queue.Empty):
            said.append(self._said.get(timeout=timeout))
            while True:
                said.append(self._said.get_nowait())
        return said

    @property
    def _memory_limit(self) -> float:
        """Bytes that one idle worker may hold."""
        return MEMORY_SHARE * psutil.virtual_memory().total / len(self.slots)

    def _discard(self, slot: int) -> None:
        self._processes.pop(slot).kill()


@dataclass(frozen=True)
class _Message:
    """What a worker sends: an event, and the trial it is about as (number, attempt)."""

    about: tuple[int, int]
    event: Event


class _Process:
    """A worker process as the coordinator sees it.

    A thread reads its line and another writes to it: either would wait for ever on a process that is stopped in the
    middle of a message that is larger than the line's buffer.
    """

    def __init__(self, said: queue.SimpleQueue[tuple[_Process, _Message | None]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="trial worker", daemon=True)
        with _signals_held():
            self._process.start()
        theirs.close()
        self._said = said
        self._to_say: queue.SimpleQueue[TrialJob | Answer | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._write)]
        for thread in self._threads:
            thread.start()
        self.job: TrialJob | None = None
        self.silence = 0.0
        """Seconds for which it was listened to since its last sign of life, or since it was spoken to."""

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def memory(self) -> int:
        """Resident bytes."""
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self._process.pid).memory_info().rss
        return 0

    def assign(self, job: TrialJob) -> None:
        self.job = job
        self.send(job)

    def abandon(self) -> None:
        if self.job:
            self.send("stop")
            self.job = None

    def send(self, message: TrialJob | Answer) -> None:
        self.silence = 0.0
        self._kills = Kills.around(self._process.pid or 0)
        self._to_say.put(message)

    def events(self, message: _Message | None) -> list[Event]:
        """What a message says about the present job; a failure ends the job."""
        from tuning.jobs import TrialFailure

        if self.job is None:
            return []
        if message is None:
            event = self._end()
        elif message.about == (self.job.number, self.job.attempt):
            event = message.event
        else:
            return []
        if isinstance(event, TrialFailure):
            self.job = None
        return [event]

    def kill(self) -> None:
        self._process.kill()
        self._process.join(END_SECONDS)
        self._to_say.put(None)
        if not self.alive:  # its end of the line is closed, so both threads come to their end
            for thread in self._threads:
                thread.join(END_SECONDS)
            self._process.close()
            self._connection.close()

    def _end(self) -> TrialFailure:
        """Of the trial, by that of its process."""
        from tuning.jobs import FailureKind, TrialFailure

        self._process.join(END_SECONDS)
        code = self._process.exitcode
        if code is None:
            return TrialFailure(kind=FailureKind.DIED, reason="closed its line")
        if code >= 0:
            return TrialFailure(kind=FailureKind.DIED, reason=f"ended with exit code {code}")
        if code == -signal.SIGKILL and self._kills.risen:
            return TrialFailure(kind=FailureKind.OUT_OF_MEMORY, reason="killed by the kernel, as memory had run out")
        return TrialFailure(kind=FailureKind.DIED, reason=f"killed by {signal.Signals(-code).name}")

    def _read(self) -> None:
        # The line breaks when the process ends, in the middle of a message when it is killed while it sends.
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._said.put((self, self._connection.recv()))
        self._said.put((self, None))

    def _write(self) -> None:
        # Of a process that has just died the reading thread tells.
        with contextlib.suppress(OSError):
            while (message := self._to_say.get()) is not None:
                self._connection.send(message)


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
    offer_first()
    keep_memory_mapped()

    from tuning import trainer
    from tuning.jobs import TrialJob

    with contextlib.suppress(EOFError, OSError):
        usable = True
        while usable:
            message: TrialJob | Answer = connection.recv()
            # A "stop" that crossed the end of its trial on the way says nothing any more.
            if isinstance(message, TrialJob):
                usable = trainer.run(message, _PipeLink(connection, message))
                if usable:
                    trainer.release()


def _leave_with_parent() -> None:
    """An orphan would go on writing into folders that the next coordinator gives to another worker."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def keep_memory_mapped() -> None:
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
