"""Whatever keeps the `Workers` protocol: one suite for worker processes and for threads; and what processes add."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from studies import PATIENCE, TINY, ThreadWorkers, Tiny, prepare, until
from tuning.identity import random_points

from data.cache import CacheHandle
from model import checkpoint
from model.training import EpochMetrics, Precision
from search_space import Config, suggest
from tuning import trainer
from tuning.devices import Slot
from tuning.folder import replace_file
from tuning.jobs import Assignment, Event, FailureKind, Progress, TrialFailure, TrialJob, Workers
from tuning.workers import LocalWorkers

CONFIG: Config = next(random_points(partial(suggest, profile=TINY, classes=3), 1))
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=[ThreadWorkers, lambda: LocalWorkers([Slot()])], ids=["threads", "processes"])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    """One slot."""
    made: Workers = request.param()
    yield made
    made.close()


@pytest.fixture(scope="module")
def processes() -> Iterator[LocalWorkers]:
    """One slot; shared, because a process takes seconds to start."""
    made = LocalWorkers([Slot()])
    yield made
    made.close()


class Jobs:
    """Jobs of one trial in a folder of its own."""

    def __init__(self, data: CacheHandle, directory: Path) -> None:
        self.data, self.directory = data, directory

    def __call__(
        self, attempt: int = 1, config: Config = CONFIG, number: int = 0, precision: Precision = "float32"
    ) -> TrialJob:
        directory = self.directory / str(number)
        directory.mkdir(exist_ok=True)
        replace_file(directory / "attempt", lambda path: path.write_text(str(attempt)))
        return TrialJob(
            number=number,
            attempt=attempt,
            assignment=Assignment(config=config, seed=7 + number, epochs=config.training.epochs, key=config.digest),
            data=self.data,
            slot=Slot(precision=precision),
            micro_batch=config.training.batch_size,
            directory=directory,
        )


@pytest.fixture
def job(tiny: Tiny, tmp_path: Path) -> Jobs:
    return Jobs(tiny.data, tmp_path)


def heard(workers: Workers, kind: Any = EpochMetrics | TrialFailure) -> Event:
    """The next event of a kind from slot 0."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for slot, event in workers.wait(1.0):
            assert slot == 0
            if isinstance(event, kind):
                return event
    raise AssertionError(f"nothing was heard in {PATIENCE:.0f} s")


def rest(workers: Workers, epochs: int) -> list[EpochMetrics]:
    """The next epochs of slot 0, each asked for but the first."""
    found: list[EpochMetrics] = []
    for number in range(epochs):
        if number:
            workers.proceed(0)
        event = heard(workers)
        assert isinstance(event, EpochMetrics), event
        found.append(replace(event, seconds=0.0, peak_memory=0))
    return found


def configured(**training: Any) -> Config:
    return replace(CONFIG, training=replace(CONFIG.training, **training))


def test_an_epoch_is_told_when_its_checkpoint_is_on_disk_and_the_next_waits_to_be_asked(
    workers: Workers, job: Jobs
) -> None:
    workers.start(0, job())
    for epoch in range(TINY.epochs):
        event = heard(workers)
        assert isinstance(event, EpochMetrics) and event.epoch == epoch
        saved = checkpoint.load(job.directory / "0" / "last.pt")
        assert saved.history[-1] == event and len(saved.history) == epoch + 1
        if epoch + 1 < TINY.epochs:
            workers.proceed(0)
    workers.stop(0)
    assert workers.wait(0.01) == []


def test_a_stopped_trial_goes_on_where_it_was_and_ends_with_the_same_metrics(workers: Workers, job: Jobs) -> None:
    workers.start(0, job(number=1))
    whole = rest(workers, TINY.epochs)
    workers.stop(0)

    for path in (job.directory / "1").iterdir():
        path.unlink()
    workers.start(0, job(number=1))
    first = rest(workers, 1)
    workers.stop(0)
    workers.start(0, job(number=1, attempt=2))
    again = rest(workers, TINY.epochs)
    workers.stop(0)
    assert again == whole and again[:1] == first
    assert checkpoint.load(job.directory / "1" / "last.pt").attempt == 2


def test_a_trial_is_trained_in_the_precision_of_its_slot(workers: Workers, job: Jobs) -> None:
    def loss(precision: Precision) -> float:
        workers.start(0, job(precision=precision))
        (epoch,) = rest(workers, 1)
        workers.stop(0)
        (job.directory / "0" / "last.pt").unlink()
        return epoch.train_loss

    plain, half = loss("float32"), loss("bfloat16")
    assert half != plain and half == pytest.approx(plain, rel=0.05)
    assert loss("float32") == plain


def test_nothing_is_heard_of_a_trial_that_was_stopped_in_mid_epoch(workers: Workers, job: Jobs) -> None:
    workers.start(0, job(number=2))
    alone = rest(workers, 1)
    workers.stop(0)
    workers.start(0, job(number=3))
    heard(workers, Progress)
    workers.stop(0)
    workers.start(0, job(number=4))
    workers.stop(0)
    for path in (job.directory / "2").iterdir():
        path.unlink()
    workers.start(0, job(number=2))
    assert rest(workers, 1) == alone
    workers.stop(0)


@pytest.mark.parametrize(
    ("broken", "kind", "text"),
    [
        (configured(optimizer="sgd", lr=1e30, warmup_epochs=0), FailureKind.DIVERGED, "must stay finite"),
        (replace(CONFIG, model=replace(CONFIG.model, classes=2)), FailureKind.BUG, "Traceback"),
        (replace(CONFIG, image_size=48), FailureKind.DISK, "48.npy"),
    ],
)
def test_a_failure_is_told_with_its_reason_and_leaves_the_slot_usable(
    workers: Workers, job: Jobs, broken: Config, kind: FailureKind, text: str
) -> None:
    workers.start(0, job(config=broken))
    failure = heard(workers)
    assert isinstance(failure, TrialFailure)
    assert failure.kind is kind
    assert text in failure.reason
    workers.start(0, job(number=1))
    rest(workers, 1)
    workers.stop(0)


@pytest.mark.parametrize("damage", ["half", "nothing", "another configuration"])
def test_a_torn_or_foreign_checkpoint_starts_the_trial_anew(workers: Workers, job: Jobs, damage: str) -> None:
    workers.start(0, job())
    whole = rest(workers, TINY.epochs)
    workers.stop(0)
    last = job.directory / "0" / "last.pt"
    if damage == "another configuration":
        checkpoint.save(last, replace(checkpoint.load(last), job_digest="of another"))
    else:
        last.write_bytes(last.read_bytes()[: len(last.read_bytes()) // 2 if damage == "half" else 0])
    workers.start(0, job(attempt=2))
    again = rest(workers, TINY.epochs)
    workers.stop(0)
    assert again == whole


def test_a_checkpoint_of_a_device_without_fused_optimizers_is_gone_on_with(workers: Workers, job: Jobs) -> None:
    """Its optimizer's flags came back with its state, and were not this device's."""
    workers.start(0, job())
    whole = rest(workers, TINY.epochs)
    workers.stop(0)
    for path in (job.directory / "0").iterdir():
        path.unlink()
    workers.start(0, job())
    rest(workers, 1)
    workers.stop(0)
    last = job.directory / "0" / "last.pt"
    saved = checkpoint.load(last)
    assert saved.optimizer is not None
    groups = [group | {"fused": False} for group in saved.optimizer["param_groups"]]
    checkpoint.save(last, replace(saved, optimizer=saved.optimizer | {"param_groups": groups}))
    workers.start(0, job(attempt=2))
    again = rest(workers, TINY.epochs)
    workers.stop(0)
    assert again == whole
    optimizer = checkpoint.load(last).optimizer
    assert optimizer is not None and all(group["fused"] for group in optimizer["param_groups"])


def test_an_attempt_that_has_been_replaced_writes_and_says_nothing(tiny: Tiny, job: Jobs) -> None:
    """As a worker does that slept through its replacement: the attempt changes while its epoch is running."""
    said: list[Event] = []

    class Sleeper:
        def send(self, event: Event) -> None:
            if isinstance(event, Progress):
                replace_file(job.directory / "0" / "attempt", lambda path: path.write_text("2"))
            said.append(event)

        def answer(self) -> trainer.Answer:
            raise AssertionError("asked for an answer that nobody will give")

        def stop_asked(self) -> bool:
            return False

    assert trainer.run(job(), Sleeper())
    assert said and all(isinstance(event, Progress) for event in said)
    assert [path.name for path in (job.directory / "0").iterdir()] == ["attempt"]


# -- processes


def pid(workers: LocalWorkers) -> int:
    (process,) = workers._processes.values()
    number = process._process.pid
    assert number is not None
    return number


def test_a_killed_process_is_heard_with_its_signal_and_replaced(processes: LocalWorkers, job: Jobs) -> None:
    processes.start(0, job())
    heard(processes)
    os.kill(pid(processes), signal.SIGKILL)
    processes.proceed(0)
    assert heard(processes) == TrialFailure(kind=FailureKind.DIED, reason="killed by SIGKILL")
    processes.start(0, job(attempt=2))
    assert [metrics.epoch for metrics in rest(processes, 2)] == [0, 1]
    processes.stop(0)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_a_process_is_deaf_to_the_terminal_from_its_first_moment(job: Jobs, capfd: pytest.CaptureFixture[str]) -> None:
    workers = LocalWorkers([Slot()])
    try:
        workers.start(0, job())
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid(workers), number)
        assert isinstance(heard(workers), EpochMetrics)
    finally:
        workers.close()
    assert capfd.readouterr().err == ""


def test_a_silent_process_is_given_up_and_killed(processes: LocalWorkers, job: Jobs) -> None:
    processes.start(0, job())
    heard(processes)
    silent = psutil.Process(pid(processes))
    silent.suspend()
    processes.proceed(0)
    processes.hang_seconds = 1.0
    try:
        failure = heard(processes)
    finally:
        processes.hang_seconds = PATIENCE
    assert failure == TrialFailure(kind=FailureKind.HUNG, reason="no sign of life for 1 s")
    assert not silent.is_running()


def test_a_process_is_not_silent_while_nobody_listens(processes: LocalWorkers, job: Jobs) -> None:
    """As after a laptop's sleep: the coordinator wakes first, and its last word from anybody is hours old."""
    processes.start(0, job())
    heard(processes)
    sleeping = psutil.Process(pid(processes))
    sleeping.suspend()
    processes.proceed(0)
    processes.hang_seconds = 1.0
    try:
        time.sleep(1.5)
        assert processes.wait(0.01) == []
    finally:
        processes.hang_seconds = PATIENCE
        sleeping.resume()
    assert isinstance(heard(processes), EpochMetrics)
    processes.stop(0)


@pytest.mark.long
def test_a_process_stopped_in_the_middle_of_a_message_holds_nobody_up(tiny: Tiny, tmp_path: Path) -> None:
    """Of 700 classes an epoch's confusion is a megabyte, more than the line holds: whoever reads it waits for the rest.

    Once that was the coordinator, for ever; the timer ended it by the death of the process.
    """
    many = Jobs(replace(tiny.data, classes=tuple(f"class {number}" for number in range(700))), tmp_path)
    workers = LocalWorkers([Slot()])
    try:
        workers.start(0, many(config=replace(CONFIG, model=replace(CONFIG.model, classes=700))))
        until((tmp_path / "0" / "last.pt").exists, "a checkpoint, after which it speaks")
        silent = psutil.Process(pid(workers))
        timer = threading.Timer(PATIENCE / 2, silent.kill)
        timer.start()
        time.sleep(0.5)
        silent.suspend()
        workers.hang_seconds = 1.0
        while not isinstance(event := heard(workers), TrialFailure):
            pass  # it had said the whole of it
        timer.cancel()
        assert event.kind is FailureKind.HUNG
    finally:
        workers.close()


def test_a_process_out_of_memory_says_so_and_trains_again_when_there_is_some(
    processes: LocalWorkers, job: Jobs, tmp_path: Path
) -> None:
    if not hasattr(psutil.Process, "rlimit"):
        pytest.skip("no limit of a process's memory here")
    data = prepare(tmp_path / "large").data
    pictures = np.random.default_rng(0).integers(0, 256, (42, 256, 256, 3), dtype=np.uint8)
    np.save(data.directory / "256.npy", pictures)
    large = Jobs(data, tmp_path)
    processes.start(0, job())
    heard(processes)
    processes.stop(0)
    process = psutil.Process(pid(processes))
    before = process.rlimit(psutil.RLIMIT_AS)
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + 40 * MEGABYTE, before[1]))
    config = replace(
        CONFIG,
        image_size=256,
        model=replace(CONFIG.model, stride_pattern="late"),
        training=replace(CONFIG.training, batch_size=32),
    )
    processes.start(0, large(number=8, config=config))
    failure = heard(processes)
    process.rlimit(psutil.RLIMIT_AS, before)
    assert isinstance(failure, TrialFailure)
    assert failure.kind is FailureKind.OUT_OF_MEMORY, failure.reason
    assert "memory" in failure.reason or "allocate" in failure.reason
    assert "\n" not in failure.reason
    processes.start(0, job(attempt=2))
    rest(processes, 1)
    assert pid(processes) == process.pid
    processes.stop(0)


def test_a_full_disk_is_told_as_such_and_leaves_the_last_checkpoint_whole(processes: LocalWorkers, job: Jobs) -> None:
    """No file may grow beyond a hundred kilobytes: to a program that looks like a disk that fills as it writes."""
    if not hasattr(psutil.Process, "rlimit"):
        pytest.skip("no limit of a file's size here")
    processes.start(0, job())
    heard(processes)
    process = psutil.Process(pid(processes))
    before = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (100_000, before[1]))
    processes.proceed(0)
    failure = heard(processes)
    process.rlimit(psutil.RLIMIT_FSIZE, before)
    assert isinstance(failure, TrialFailure)
    assert failure.kind is FailureKind.DISK, failure.reason
    assert len(checkpoint.load(job.directory / "0" / "last.pt").history) == 1
    assert not list((job.directory / "0").glob("*.tmp"))
    processes.start(0, job(attempt=2))
    rest(processes, TINY.epochs)
    processes.stop(0)
