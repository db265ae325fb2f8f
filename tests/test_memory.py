"""Memory that runs out in every way it can, in Python, torch and the kernel, and how the trial is then resumed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from studies import PATIENCE, Tiny, config, outcomes, prepare

from data import batches
from model.training import EpochMetrics
from search_space import Config
from tuning import trainer
from tuning.coordinator import SMALLEST_MICRO_BATCH
from tuning.devices import Slot
from tuning.events import TrialStarted
from tuning.folder import replace_file
from tuning.jobs import Assignment, FailureKind, Progress, TrialFailure, TrialJob, WorkerMessage
from tuning.memory import Kills, shortage, usable_memory
from tuning.trials import Outcome, Trial
from tuning.workers import LocalWorkers

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


def job(tiny: Tiny, directory: Path, **changes: Any) -> TrialJob:
    """Return a job of one epoch in a directory of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / "attempt", lambda path: path.write_text("1"))
    made = TrialJob(
        number=0,
        attempt=1,
        assignment=Assignment(config=config(), seed=1, epochs=1),
        data=tiny.data,
        slot=Slot(),
        micro_batch=16,
        directory=directory,
    )
    return replace(made, **changes)


class Recorder:
    """A worker's connection that keeps what is sent, and calls `fault` at the first sign of life."""

    def __init__(self, fault: Callable[[], object] = lambda: None) -> None:
        self.sent: list[WorkerMessage] = []
        self._fault = fault

    def send(self, message: WorkerMessage) -> None:
        if isinstance(message, Progress):
            self._fault()
        self.sent.append(message)

    def answer(self) -> trainer.Answer:
        return "stop"

    def stop_asked(self) -> bool:
        return False


def raises(error: Exception) -> Callable[[], None]:
    def fault() -> None:
        raise error

    return fault


@pytest.mark.parametrize(
    "fault",
    [
        lambda: np.empty(2**60, np.uint8),  # MemoryError
        lambda: torch.empty(2**48),  # the CPU allocator's RuntimeError
        raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")),
        raises(RuntimeError("CUDA error: out of memory")),
        raises(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
        raises(RuntimeError("cuDNN error: CUDNN_STATUS_SUBLIBRARY_LOADING_FAILED_DEVICE_ALLOCATION_FAILED")),
        raises(RuntimeError("GET was unable to find an engine to execute this computation")),
        raises(RuntimeError("std::bad_alloc")),
        raises(OSError(12, "Cannot allocate memory")),
    ],
    ids=["numpy", "torch", "cuda", "cuda driver", "cublas", "cudnn", "cudnn's workspace", "c++", "mmap"],
)
def test_memory_that_runs_out_during_training_is_recognised(
    tiny: Tiny, tmp_path: Path, fault: Callable[[], object]
) -> None:
    link = Recorder(fault)
    one = job(tiny, tmp_path)
    assert trainer.run(one, link, trainer.CheckpointFolder(one)), "the process can train another trial"
    _, failure = link.sent
    assert isinstance(failure, TrialFailure)
    assert failure.kind is FailureKind.OUT_OF_MEMORY
    assert failure.reason and "\n" not in failure.reason


def test_a_trial_short_of_memory_also_evaluates_fewer_pictures_at_a_time(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once all six were evaluated at a time whatever the micro-batch; if that was too much, halving did not help."""
    monkeypatch.setattr(batches, "EVALUATION_PICTURES", 6)
    sizes: list[tuple[bool, int]] = []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if type(module).__name__ == "MushroomCNN":
            sizes.append((module.training, len(inputs[0])))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        link = Recorder()
        one = job(tiny, tmp_path, micro_batch=8)
        trainer.run(one, link, trainer.CheckpointFolder(one))
    finally:
        hook.remove()
    assert isinstance(link.sent[-1], EpochMetrics)
    assert max(size for training, size in sizes if training) <= 8
    assert [size for training, size in sizes if not training] == [3, 3]


# -- kills by the kernel


def group_file(root: Path, name: str, count: int) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"low 0\nunder_oom 0\noom 9\noom_kill {count}\noom_group_kill 0\n")
    return path


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        # Version 2: the group's own file; in a container without a cgroup namespace, that of the mount.
        ("0::/user/me\n", ["sys/fs/cgroup/user/me/memory.events", "proc/vmstat"]),
        ("0::/of/the/host\n", ["sys/fs/cgroup/memory.events", "proc/vmstat"]),
        # Version 1, alone and beside version 2.
        ("9:cpu:/\n4:memory:/me\n", ["sys/fs/cgroup/memory/me/memory.oom_control", "proc/vmstat"]),
        ("4:memory:/docker/1\n0::/\n", ["sys/fs/cgroup/memory/memory.oom_control", "proc/vmstat"]),
        # In no group with a counter: the whole machine.
        ("0::/\n", ["proc/vmstat"]),
        ("", ["proc/vmstat"]),
    ],
)
def test_the_kernels_kills_are_read_where_it_counts_them(groups: str, files: list[str], tmp_path: Path) -> None:
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text(groups)
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/mountinfo").write_text(
        "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
        "32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    )
    paths = [group_file(tmp_path, name, 3) for name in files]
    before = Kills.around(7, tmp_path)
    assert (before.place, before.count) == (paths[0], 3)
    assert not before.risen
    group_file(tmp_path, files[0], 4)
    assert before.risen


def test_without_a_counter_there_are_no_kills(tmp_path: Path) -> None:
    assert Kills.around(7, tmp_path) == Kills(None, 0)
    assert not Kills(None, 0).risen


def test_the_memory_of_a_control_group_limits_workers_and_is_said_to_be_short(tmp_path: Path) -> None:
    assert usable_memory(tmp_path) == psutil.virtual_memory().total
    assert shortage(1, tmp_path) is None
    for path, text in {
        "proc/self/cgroup": "0::/outer/inner\n",
        "proc/self/mountinfo": "31 23 0:28 / /groups rw - cgroup2 cgroup rw\n",
        "groups/outer/memory.max": str(512 * MEGABYTE),
        "groups/outer/inner/memory.max": "max",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert usable_memory(tmp_path) == 512 * MEGABYTE
    warning = shortage(500, tmp_path)
    assert warning and "only 0.5 GiB" in warning and "--workers " in warning
    assert shortage(int(warning.rpartition(" ")[2]), tmp_path) is None


@pytest.mark.skipif(not Path("/proc/vmstat").exists(), reason="only Linux counts kills")
def test_this_machine_counts_kills() -> None:
    assert Kills.around(os.getpid()).place is not None


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group with 40 MB for a process that is moved into it; what it held before is not counted."""
    own = Kills.around(os.getpid()).place
    if own is None or own.name == "vmstat":
        pytest.skip("no control groups here")
    parent = own.parent if own.name == "memory.oom_control" else Path("/sys/fs/cgroup")
    group = parent / f"mushroom-study-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here ({error.strerror})")
    try:
        limits = ("memory.limit_in_bytes", "memory.max")
        limit = next((group / name for name in limits if (group / name).exists()), None)
        if limit is None:
            pytest.skip("memory cannot be limited in a control group here")
        limit.write_text(str(40 * MEGABYTE))
        for name, value in (("memory.memsw.limit_in_bytes", str(40 * MEGABYTE)), ("memory.swap.max", "0")):
            with contextlib.suppress(OSError):
                (group / name).write_text(value)
        yield group
    finally:
        group.rmdir()


@pytest.mark.long
def test_a_worker_that_the_kernel_kills_for_its_memory_is_followed_by_one_with_half_the_pictures(
    tiny: Tiny, small_group: Path, tmp_path: Path
) -> None:
    """The first worker is moved into a control group with too little memory before its trial; the second one is not."""
    large = prepare(tmp_path / "large")
    pictures = np.random.default_rng(0).integers(0, 256, (42, 128, 128, 3), dtype=np.uint8)
    np.save(large.data.directory / "128.npy", pictures)
    small = config()
    costly = replace(small, image_size=128, model=replace(small.model, stride_pattern="late"))
    workers = LocalWorkers([Slot()])
    workers.start(0, job(tiny, tmp_path / "first"))
    while not any(isinstance(message, EpochMetrics) for _, message in workers.wait(PATIENCE)):
        pass
    workers.stop(0)
    (worker,) = (child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline()))
    (small_group / "cgroup.procs").write_text(str(worker.pid))

    def draw(trial: Any) -> Config:
        trial.suggest_float("unused", 0.0, 1.0)
        return costly

    study = large.at(tmp_path / "results")
    events = list(study.coordinator(1, workers=workers, draw=draw).run())
    assert not worker.is_running()
    assert outcomes(events) == [(0, Outcome.COMPLETE)]
    assert [event.micro_batch for event in events if isinstance(event, TrialStarted)] == [None, SMALLEST_MICRO_BATCH]
    (trial,) = map(Trial, study.trials())
    assert trial.micro_batch == SMALLEST_MICRO_BATCH
    assert trial.reason and trial.reason.startswith("trained to its last epoch (8 pictures")
