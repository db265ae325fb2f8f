"""Workers on this machine: one spawned process per slot, kept for many trials because importing torch takes seconds."""

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
from typing import TYPE_CHECKING, Any, Protocol

import psutil

from tuning.memory import Kills, offer_first, usable_memory

if TYPE_CHECKING:
    from tuning.devices import Slot
    from tuning.jobs import TrialFailure, TrialJob, WorkerMessage
    from tuning.trainer import Answer

HANG_SECONDS = 300.0
"""Seconds without a message after which a busy worker is terminated. A healthy one is silent during a batch, and while
its process starts (importing torch takes seconds, and minutes on a cold network disk)."""
END_SECONDS = 10.0
"""Seconds to wait for the end of a process that was killed or has closed its connection. Only the kernel can delay it,
in a call to a disk or a GPU that does not respond; such a process no longer runs our code and is left alone."""
MEMORY_SHARE = 0.5
"""Share of the usable memory that all idle workers together may hold before they are replaced by fresh ones."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals that workers ignore: Ctrl-C reaches all processes of a terminal, and the coordinator decides what happens."""


class LocalWorkers:
    """Worker processes on this machine, one per slot, following the `Workers` protocol."""

    def __init__(self, slots: Sequence[Slot], *, hang_seconds: float = HANG_SECONDS) -> None:
        self.slots = dict(enumerate(slots))
        self.hang_seconds = hang_seconds
        """Seconds without a message after which a busy worker is terminated."""
        self._processes: dict[int, _Process] = {}
        self._received: queue.SimpleQueue[tuple[_Process, Envelope | None]] = queue.SimpleQueue()
        """Queue of the messages of all processes, in order; None means that the connection is broken."""

    def start(self, slot: int, job: TrialJob) -> None:
        """Give the job to the slot's process, or to a fresh one if that has died or holds too much memory."""
        process = self._processes.get(slot)
        if process is not None and (not process.alive or process.memory > self._memory_limit):
            self._discard(slot)
            process = None
        if process is None:
            process = self._processes[slot] = _Process(self._received)
        process.assign(job)

    def proceed(self, slot: int) -> None:
        """Request the next epoch; the next `wait` reports a process that has died meanwhile."""
        if slot in self._processes:
            self._processes[slot].send("proceed")

    def stop(self, slot: int) -> None:
        """Have the process stop the trial at its next batch; what it still sends is dropped."""
        if slot in self._processes:
            self._processes[slot].abandon()

    def wait(self, timeout: float) -> list[tuple[int, WorkerMessage]]:
        """Return the messages of all busy processes; a dead or silent one becomes a TrialFailure."""
        from tuning.jobs import FailureKind, TrialFailure

        begun = time.monotonic()
        received = self._receive(timeout)
        # If the machine or this process was suspended, the wait took longer, but the workers were not silent.
        waited = min(time.monotonic() - begun, timeout)
        found: list[tuple[int, WorkerMessage]] = []
        for slot, process in list(self._processes.items()):
            envelopes = [envelope for sender, envelope in received if sender is process]
            process.silence = 0.0 if envelopes else process.silence + waited
            messages = [message for envelope in envelopes for message in process.messages(envelope)]
            if process.job and process.silence > self.hang_seconds:
                messages.append(TrialFailure(kind=FailureKind.HUNG, reason=f"no message for {self.hang_seconds:.0f} s"))
            found += [(slot, message) for message in messages]
            failures = [message.kind for message in messages if isinstance(message, TrialFailure)]
            if None in envelopes or FailureKind.DIED in failures or FailureKind.HUNG in failures:
                self._discard(slot)
        return found

    def close(self) -> None:
        """Kill every process; what they have finished is on disk."""
        for slot in list(self._processes):
            self._discard(slot)

    def _receive(self, timeout: float) -> list[tuple[_Process, Envelope | None]]:
        """Return the messages received, as soon as there are any or the time is up."""
        received: list[tuple[_Process, Envelope | None]] = []
        with contextlib.suppress(queue.Empty):
            received.append(self._received.get(timeout=timeout))
            while True:
                received.append(self._received.get_nowait())
        return received

    @property
    def _memory_limit(self) -> float:
        """Largest number of bytes of memory that an idle worker may hold."""
        return MEMORY_SHARE * usable_memory() / len(self.slots)

    def _discard(self, slot: int) -> None:
        self._processes.pop(slot).kill()


@dataclass(frozen=True)
class Envelope:
    """A message together with the trial that it is about."""

    trial: tuple[int, int]
    """Number and attempt of the trial."""
    message: WorkerMessage


class _Process:
    """A worker process as the coordinator sees it.

    One thread reads from its connection and another writes to it: both can block while the process is suspended in the
    middle of a message that is larger than the connection's buffer.
    """

    def __init__(self, received: queue.SimpleQueue[tuple[_Process, Envelope | None]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="trial worker", daemon=True)
        with _signals_held():
            self._process.start()
        theirs.close()
        self._received = received
        self._to_send: queue.SimpleQueue[TrialJob | Answer | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._write)]
        for thread in self._threads:
            thread.start()
        self.job: TrialJob | None = None
        self.silence = 0.0
        """Seconds spent waiting for the process since its last message, or since the last one sent to it."""

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def memory(self) -> int:
        """Resident memory of the process in bytes."""
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
        self._to_send.put(message)

    def messages(self, envelope: Envelope | None) -> list[WorkerMessage]:
        """Return the message if it is about the current job; a failure ends the job."""
        from tuning.jobs import TrialFailure

        if self.job is None:
            return []
        if envelope is None:
            message = self._failure_of_exit()
        elif envelope.trial == (self.job.number, self.job.attempt):
            message = envelope.message
        else:
            return []
        if isinstance(message, TrialFailure):
            self.job = None
        return [message]

    def kill(self) -> None:
        self._process.kill()
        self._process.join(END_SECONDS)
        self._to_send.put(None)
        if not self.alive:  # its end of the connection is closed, so both threads end
            for thread in self._threads:
                thread.join(END_SECONDS)
            self._process.close()
            self._connection.close()

    def _failure_of_exit(self) -> TrialFailure:
        """Turn the process's exit into a failure of its trial."""
        from tuning.jobs import FailureKind, TrialFailure

        self._process.join(END_SECONDS)
        code = self._process.exitcode
        if code is None:
            return TrialFailure(kind=FailureKind.DIED, reason="closed its connection")
        if code >= 0:
            return TrialFailure(kind=FailureKind.DIED, reason=f"ended with exit code {code}")
        if code == -signal.SIGKILL and self._kills.risen:
            return TrialFailure(kind=FailureKind.OUT_OF_MEMORY, reason="killed by the kernel, as memory had run out")
        return TrialFailure(kind=FailureKind.DIED, reason=f"killed by {signal.Signals(-code).name}")

    def _read(self) -> None:
        # The connection breaks when the process ends, even within a message if it is killed while sending one.
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._received.put((self, self._connection.recv()))
        self._received.put((self, None))

    def _write(self) -> None:
        # The reading thread reports a process that has just died.
        with contextlib.suppress(OSError):
            while (message := self._to_send.get()) is not None:
                self._connection.send(message)


class WorkersEnd(Protocol):
    """The worker's end of its connection to the coordinator, such as that of a pipe."""

    def send(self, obj: Any, /) -> None:
        """Send a message."""
        ...

    def recv(self) -> Any:
        """Wait for a message and return it."""
        ...

    def poll(self) -> bool:
        """Return whether a message has arrived."""
        ...


class JobLink:
    """The worker's link to the coordinator for one job."""

    def __init__(self, connection: WorkersEnd, job: TrialJob) -> None:
        self._connection = connection
        self.trial = (job.number, job.attempt)
        """Number and attempt of the job's trial."""

    def send(self, message: WorkerMessage) -> None:
        self._connection.send(Envelope(self.trial, message))

    def answer(self) -> Answer:
        return self._connection.recv()

    def stop_asked(self) -> bool:
        return self._connection.poll() and self._connection.recv() == "stop"


@contextlib.contextmanager
def _signals_held() -> Generator[None]:
    """Block the signals in a process that is started here; they could otherwise kill it while it imports."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # starting it unblocks these signals, so do that first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection[Any, Any]) -> None:
    """Run one job after another until the coordinator is gone."""
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
            # A "stop" that arrives after the end of its trial means nothing.
            if isinstance(message, TrialJob):
                usable = trainer.run(message, JobLink(connection, message), trainer.CheckpointFolder(message))
                if usable:
                    trainer.release()


def _leave_with_parent() -> None:
    """Exit when the coordinator exits: an orphan would write into directories that the next run's workers use."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def keep_memory_mapped() -> None:
    """Keep glibc from returning large blocks to the system, only to map and zero them again in the next step.

    Mapping took half the time of a training step: without it, steps ran 1.4 to 2.0 times as fast, with at most 44 %
    more memory (2 Zen 3 cores, tensors over 32 MB). malloc's own environment variables take precedence.
    """
    if platform.libc_ver()[0] != "glibc" or os.environ.keys() & {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"}:
        return
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of <malloc.h>
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
