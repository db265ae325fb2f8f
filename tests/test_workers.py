"""The `Workers` protocol: one suite for processes, threads and a Ray cluster, and what is true of processes alone."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from studies import PATIENCE, TINY, ThreadWorkers, Tiny, prepare, until

from data.cache import CacheHandle
from model import checkpoint
from model.training import EpochMetrics, Precision
from search_space import Config, suggest
from tuning import trainer
from tuning.devices import Slot
from tuning.environment import environment
from tuning.folder import replace_file
from tuning.jobs import (
    Assignment,
    FailureKind,
    Progress,
    TrialFailure,
    TrialJob,
    WorkerMessage,
    WorkerReady,
    Workers,
)
from tuning.space import random_points
from tuning.workers import LocalWorkers

CONFIG: Config = next(random_points(partial(suggest, profile=TINY, classes=3), 1))
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


@contextmanager
def on_a_cluster() -> Iterator[Workers]:
    """Workers on a cluster of one node, which keeps the pictures in a cache of its own."""
    from clusters import cluster

    from tuning.ray_workers import connect

    with tempfile.TemporaryDirectory() as cache, cluster("a") as nodes:
        workers = connect(nodes.address, cache_dir=Path(cache)).make_workers([Slot()])
        until(lambda: workers.wait(0.1) or workers.slots, "a slot")
        with closing(workers):
            yield workers


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(lambda: closing(ThreadWorkers()), id="threads"),
        pytest.param(lambda: closing(LocalWorkers([Slot()])), id="processes"),
        pytest.param(on_a_cluster, id="ray", marks=pytest.mark.long),
    ],
)
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    """Workers with one slot."""
    with request.param() as made:
        yield made


@pytest.fixture(scope="module")
def processes() -> Iterator[LocalWorkers]:
    """Worker processes with one slot, shared because a process takes seconds to start."""
    made = LocalWorkers([Slot()])
    yield made
    made.close()


class Jobs:
    """Makes jobs, each trial's in a directory of its own."""

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


def receive(workers: Workers, kind: Any = EpochMetrics | TrialFailure) -> WorkerMessage:
    """Return the next message of a kind from slot 0."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for slot, message in workers.wait(1.0):
            assert slot == 0
            if isinstance(message, kind):
                return message
    raise AssertionError(f"no such message in {PATIENCE:.0f} s")


def receive_epochs(workers: Workers, count: int) -> list[EpochMetrics]:
    """Return the next epochs of slot 0, without what varies; ask for each but the first."""
    found: list[EpochMetrics] = []
    for number in range(count):
        if number:
            workers.proceed(0)
        message = receive(workers)
        assert isinstance(message, EpochMetrics), message
        found.append(replace(message, seconds=0.0, peak_memory=0))
    return found


def empty(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


def trained_with(**training: Any) -> Config:
    return replace(CONFIG, training=replace(CONFIG.training, **training))


def test_a_worker_first_sends_the_environment_in_which_it_trains(workers: Workers, job: Jobs) -> None:
    workers.start(0, job(precision="bfloat16"))
    first = receive(workers, object)
    assert first == WorkerReady(environment=environment(Slot(precision="bfloat16")))
    workers.stop(0)


def test_an_epoch_is_sent_once_its_checkpoint_is_on_disk_and_the_next_one_waits_to_be_asked_for(
    workers: Workers, job: Jobs
) -> None:
    workers.start(0, job())
    for epoch in range(TINY.epochs):
        message = receive(workers)
        assert isinstance(message, EpochMetrics) and message.epoch == epoch
        saved = checkpoint.load(job.directory / "0" / "last.pt")
        assert saved.history[-1] == message and len(saved.history) == epoch + 1
        if epoch + 1 < TINY.epochs:
            workers.proceed(0)
    workers.stop(0)
    assert workers.wait(0.01) == []


def test_a_stopped_trial_is_resumed_and_ends_with_the_same_metrics(workers: Workers, job: Jobs) -> None:
    workers.start(0, job(number=1))
    whole = receive_epochs(workers, TINY.epochs)
    workers.stop(0)

    empty(job.directory / "1")
    workers.start(0, job(number=1))
    first = receive_epochs(workers, 1)
    workers.stop(0)
    workers.start(0, job(number=1, attempt=2))
    again = receive_epochs(workers, TINY.epochs)
    workers.stop(0)
    assert again == whole and again[:1] == first
    assert checkpoint.load(job.directory / "1" / "last.pt").attempt == 2


def test_a_trial_is_trained_in_the_precision_of_its_slot(workers: Workers, job: Jobs) -> None:
    def loss(precision: Precision) -> float:
        workers.start(0, job(precision=precision))
        (epoch,) = receive_epochs(workers, 1)
        workers.stop(0)
        (job.directory / "0" / "last.pt").unlink()
        return epoch.train_loss

    plain, half = loss("float32"), loss("bfloat16")
    assert half != plain and half == pytest.approx(plain, rel=0.05)
    assert loss("float32") == plain


def test_a_trial_stopped_within_an_epoch_sends_nothing_more(workers: Workers, job: Jobs) -> None:
    workers.start(0, job(number=2))
    alone = receive_epochs(workers, 1)
    workers.stop(0)
    workers.start(0, job(number=3))
    receive(workers, Progress)
    workers.stop(0)
    workers.start(0, job(number=4))
    workers.stop(0)
    empty(job.directory / "2")
    workers.start(0, job(number=2))
    assert receive_epochs(workers, 1) == alone
    workers.stop(0)


@pytest.mark.parametrize(
    ("broken", "kind", "text"),
    [
        (trained_with(optimizer="sgd", lr=1e30, warmup_epochs=0), FailureKind.DIVERGED, "epoch 0"),
        (replace(CONFIG, model=replace(CONFIG.model, classes=2)), FailureKind.BUG, "Traceback"),
        (replace(CONFIG, image_size=48), FailureKind.DISK, "48.npy"),
    ],
)
def test_a_failure_is_sent_with_its_reason_and_leaves_the_slot_usable(
    workers: Workers, job: Jobs, broken: Config, kind: FailureKind, text: str
) -> None:
    workers.start(0, job(config=broken))
    failure = receive(workers)
    assert isinstance(failure, TrialFailure)
    assert failure.kind is kind
    assert text in failure.reason
    workers.start(0, job(number=1))
    receive_epochs(workers, 1)
    workers.stop(0)


@pytest.mark.parametrize("damage", ["half", "nothing", "another configuration"])
def test_a_trial_with_a_truncated_or_foreign_checkpoint_starts_over(workers: Workers, job: Jobs, damage: str) -> None:
    workers.start(0, job())
    whole = receive_epochs(workers, TINY.epochs)
    workers.stop(0)
    last = job.directory / "0" / "last.pt"
    if damage == "another configuration":
        checkpoint.save(last, replace(checkpoint.load(last), job_digest="another"))
    else:
        last.write_bytes(last.read_bytes()[: len(last.read_bytes()) // 2 if damage == "half" else 0])
    workers.start(0, job(attempt=2))
    again = receive_epochs(workers, TINY.epochs)
    workers.stop(0)
    assert again == whole


def test_a_checkpoint_from_a_device_without_fused_optimizers_is_resumed(workers: Workers, job: Jobs) -> None:
    """The optimizer's state once brought back the other device's flags."""
    workers.start(0, job())
    whole = receive_epochs(workers, TINY.epochs)
    workers.stop(0)
    empty(job.directory / "0")
    workers.start(0, job())
    receive_epochs(workers, 1)
    workers.stop(0)
    last = job.directory / "0" / "last.pt"
    saved = checkpoint.load(last)
    assert saved.optimizer is not None
    groups = [group | {"fused": False} for group in saved.optimizer["param_groups"]]
    checkpoint.save(last, replace(saved, optimizer=saved.optimizer | {"param_groups": groups}))
    workers.start(0, job(attempt=2))
    again = receive_epochs(workers, TINY.epochs)
    workers.stop(0)
    assert again == whole
    optimizer = checkpoint.load(last).optimizer
    assert optimizer is not None and all(group["fused"] for group in optimizer["param_groups"])


def test_a_replaced_attempt_writes_and_sends_nothing(job: Jobs) -> None:
    """Like a worker that slept through its replacement: the attempt changes while its epoch is running."""
    sent: list[WorkerMessage] = []

    class Sleeper:
        def send(self, message: WorkerMessage) -> None:
            if isinstance(message, Progress):
                replace_file(job.directory / "0" / "attempt", lambda path: path.write_text("2"))
            sent.append(message)

        def answer(self) -> trainer.Answer:
            raise AssertionError("waits for an answer that nobody will send")

        def stop_asked(self) -> bool:
            return False

    assert trainer.run(job(), Sleeper(), trainer.CheckpointFolder(job()))
    ready, *others = sent
    assert isinstance(ready, WorkerReady)
    assert others and all(isinstance(message, Progress) for message in others)
    assert [path.name for path in (job.directory / "0").iterdir()] == ["attempt"]


# -- processes


def pid(workers: LocalWorkers) -> int:
    (process,) = workers._processes.values()
    number = process._process.pid
    assert number is not None
    return number


def test_a_killed_process_is_reported_with_its_signal_and_replaced(processes: LocalWorkers, job: Jobs) -> None:
    processes.start(0, job())
    receive(processes)
    os.kill(pid(processes), signal.SIGKILL)
    processes.proceed(0)
    assert receive(processes) == TrialFailure(kind=FailureKind.DIED, reason="killed by SIGKILL")
    processes.start(0, job(attempt=2))
    assert [metrics.epoch for metrics in receive_epochs(processes, 2)] == [0, 1]
    processes.stop(0)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_a_process_ignores_ctrl_c_from_its_first_moment(job: Jobs, capfd: pytest.CaptureFixture[str]) -> None:
    workers = LocalWorkers([Slot()])
    try:
        workers.start(0, job())
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid(workers), number)
        assert isinstance(receive(workers), EpochMetrics)
    finally:
        workers.close()
    assert capfd.readouterr().err == ""


def test_a_silent_process_is_killed(processes: LocalWorkers, job: Jobs) -> None:
    processes.start(0, job())
    receive(processes)
    silent = psutil.Process(pid(processes))
    silent.suspend()
    processes.proceed(0)
    processes.hang_seconds = 1.0
    try:
        failure = receive(processes)
    finally:
        processes.hang_seconds = PATIENCE
    assert isinstance(failure, TrialFailure) and failure.kind is FailureKind.HUNG
    assert "1 s" in failure.reason
    assert not silent.is_running()


def test_time_in_which_nobody_waits_for_a_process_is_not_silence(processes: LocalWorkers, job: Jobs) -> None:
    """After a laptop's sleep the coordinator may wake first, and its last message from anybody is hours old."""
    processes.start(0, job())
    receive(processes)
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
    assert isinstance(receive(processes), EpochMetrics)
    processes.stop(0)


@pytest.mark.long
def test_a_process_stopped_in_the_middle_of_a_message_blocks_nobody(tiny: Tiny, tmp_path: Path) -> None:
    """The confusion matrix of 700 classes is a megabyte, more than the connection holds: a reader waits for the rest.

    Once that was the coordinator, and it waited for ever; the timer kills the process should that happen again.
    """
    many = Jobs(replace(tiny.data, classes=tuple(f"class {number}" for number in range(700))), tmp_path)
    workers = LocalWorkers([Slot()])
    try:
        workers.start(0, many(config=replace(CONFIG, model=replace(CONFIG.model, classes=700))))
        until((tmp_path / "0" / "last.pt").exists, "a checkpoint, after which it sends the epoch")
        silent = psutil.Process(pid(workers))
        timer = threading.Timer(PATIENCE / 2, silent.kill)
        timer.start()
        time.sleep(0.5)
        silent.suspend()
        workers.hang_seconds = 1.0
        while not isinstance(message := receive(workers), TrialFailure):
            pass  # it was stopped only after the whole message
        timer.cancel()
        assert message.kind is FailureKind.HUNG
    finally:
        workers.close()


def test_a_process_out_of_memory_says_so_and_can_train_again(
    processes: LocalWorkers, job: Jobs, tmp_path: Path
) -> None:
    if not hasattr(psutil.Process, "rlimit"):
        pytest.skip("a process's memory cannot be limited here")
    data = prepare(tmp_path / "large").data
    pictures = np.random.default_rng(0).integers(0, 256, (42, 256, 256, 3), dtype=np.uint8)
    np.save(data.directory / "256.npy", pictures)
    large = Jobs(data, tmp_path)
    processes.start(0, job())
    receive(processes)
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
    failure = receive(processes)
    process.rlimit(psutil.RLIMIT_AS, before)
    assert isinstance(failure, TrialFailure)
    assert failure.kind is FailureKind.OUT_OF_MEMORY, failure.reason
    assert "memory" in failure.reason or "allocate" in failure.reason
    assert "\n" not in failure.reason
    processes.start(0, job(attempt=2))
    receive_epochs(processes, 1)
    assert pid(processes) == process.pid
    processes.stop(0)


def test_a_full_disk_is_reported_and_leaves_the_last_checkpoint_whole(processes: LocalWorkers, job: Jobs) -> None:
    """No file may grow beyond a hundred kilobytes, which looks to a program like a disk that fills up as it writes."""
    if not hasattr(psutil.Process, "rlimit"):
        pytest.skip("a file's size cannot be limited here")
    processes.start(0, job())
    receive(processes)
    process = psutil.Process(pid(processes))
    before = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (100_000, before[1]))
    processes.proceed(0)
    failure = receive(processes)
    process.rlimit(psutil.RLIMIT_FSIZE, before)
    assert isinstance(failure, TrialFailure)
    assert failure.kind is FailureKind.DISK, failure.reason
    assert len(checkpoint.load(job.directory / "0" / "last.pt").history) == 1
    assert {path.name for path in (job.directory / "0").iterdir()} == {"attempt", "best.pt", "last.pt"}
    processes.start(0, job(attempt=2))
    receive_epochs(processes, TINY.epochs)
    processes.stop(0)
