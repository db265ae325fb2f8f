"""A study on a real Ray cluster: equal to a local one, and whole whatever happens to the nodes."""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from clusters import Nodes, cluster, ray
from studies import PATIENCE, TINY, ThreadWorkers, Tiny, gone, prepare, until

from data import cache
from model.training import EpochMetrics
from search_space import Config, suggest
from tests.stress.sameness import essence
from tuning import StudyError
from tuning.coordinator import Coordinator
from tuning.devices import Slot
from tuning.environment import environment
from tuning.events import StudyEvent, TrialAdvanced, TrialRequeued, TrialStarted
from tuning.folder import replace_file
from tuning.jobs import Assignment, FailureKind, TrialFailure, TrialJob, WorkerMessage
from tuning.ray_workers import RayCluster, RayWorkers, connect
from tuning.space import random_points
from tuning.trials import Trial

pytestmark = pytest.mark.long
GIGABYTE = 2**30
CONFIG: Config = next(random_points(partial(suggest, profile=TINY, classes=3), 1))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with cluster("a") as started:
        connect(started.address)
        yield started


@pytest.fixture
def said() -> list[str]:
    """What the user was told about nodes."""
    return []


@pytest.fixture
def joined(nodes: Nodes, said: list[str], tmp_path: Path) -> RayCluster:
    """The cluster, of whose nodes each test finds `a` alone, without any pictures."""
    for name in [*nodes.nodes]:
        if name != "a":
            nodes.remove(name)
    if "a" not in nodes.nodes:
        nodes.add("a")
    until(lambda: sum(node["Alive"] for node in ray.nodes()) == 2, "the head and one node")
    return connect(nodes.address, cache_dir=tmp_path / "node", say=said.append)


@pytest.fixture
def workers(joined: RayCluster) -> Iterator[RayWorkers]:
    made = joined.make_workers([Slot()])
    with contextlib.closing(made):
        ready(made, 1)
        yield made


def replace_node(nodes: Nodes, joined: RayCluster, slots: int = 1, **environment: str) -> None:
    """Replace node `a` by a node `b`, and wait until the cluster has that one alone."""
    nodes.remove("a")
    nodes.add("b", slots, **environment)
    until(lambda: joined.update() or [slot.host for slot in joined.slots] == ["b"] * slots, "the new node alone")


def ready(workers: RayWorkers, count: int) -> None:
    """Wait until so many slots are up."""
    until(lambda: workers.wait(0.1) or len(workers.slots) == count, f"{count} slots")


@pytest.fixture
def job(tiny: Tiny, tmp_path: Path) -> Callable[..., TrialJob]:
    def make(number: int = 0, attempt: int = 1) -> TrialJob:
        directory = tmp_path / "trials" / str(number)
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(directory / "attempt", lambda path: path.write_text(str(attempt)))
        work = Assignment(config=CONFIG, seed=7, epochs=TINY.epochs)
        return TrialJob(
            number=number,
            attempt=attempt,
            assignment=work,
            data=tiny.data,
            slot=Slot(),
            micro_batch=CONFIG.training.batch_size,
            directory=directory,
        )

    return make


def receive(workers: RayWorkers, slot: int = 0) -> WorkerMessage:
    """Return the next epoch or failure of a slot."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for sender, message in workers.wait(1.0):
            if sender == slot and isinstance(message, EpochMetrics | TrialFailure):
                return message
    raise AssertionError(f"no message in {PATIENCE:.0f} s")


def failure(workers: RayWorkers) -> TrialFailure:
    found = receive(workers)
    assert isinstance(found, TrialFailure), found
    return found


def actor(nodes: Nodes, name: str = "a") -> psutil.Process:
    (process,) = nodes.workers(name)
    return process


def before_torch(folder: Path, code: str) -> str:
    """Write a package that runs this code and then imports the real torch; return the folder for PYTHONPATH."""
    (folder / "torch").mkdir()
    body = f"import os, sys\n{code}\ndel sys.modules['torch']\nsys.path.remove({str(folder)!r})\nimport torch\n"
    (folder / "torch" / "__init__.py").write_text(body)
    return str(folder)


def other_work() -> Any:
    """Keep a CPU of a node busy; `ray.kill` ends it."""

    class Other: ...

    other = ray.remote(num_cpus=1)(Other).remote()
    ray.get(other.__ray_ready__.remote())
    return other


def search(study: Tiny, trials: int, joined: RayCluster, **plan: float) -> Coordinator:
    return study.coordinator(trials, workers=joined.make_workers([Slot()]), **plan)


# -- a study


def test_with_one_slot_and_one_seed_a_study_equals_that_of_local_workers(
    tiny: Tiny, joined: RayCluster, tmp_path: Path
) -> None:
    local, there = tiny.at(tmp_path / "local"), tiny.at(tmp_path / "there")
    list(local.coordinator(4, workers=ThreadWorkers()).run())
    list(search(there, 4, joined).run())
    assert essence(there.trials()) == essence(local.trials())
    assert {Trial(trial).host for trial in there.trials()} == {"a"}
    assert Trial(local.trials()[0]).environment == Trial(there.trials()[0]).environment


def test_nodes_that_are_killed_and_added_at_random_leave_a_whole_study(
    tiny: Tiny, nodes: Nodes, joined: RayCluster, said: list[str], tmp_path: Path
) -> None:
    nodes.add("b")
    study, dice = tiny.at(tmp_path / "study"), random.Random(0)
    made = iter(range(100))
    trained: defaultdict[tuple[int, int], set[float]] = defaultdict(set)
    started, events, killed = set[str](), list[StudyEvent](), 0
    seen: set[psutil.Process] = set()
    run = search(study, 40, joined).run()
    since = 0
    for event in run:
        events.append(event)
        if isinstance(event, TrialStarted) and event.host:
            started.add(event.host)
        if isinstance(event, TrialAdvanced) and isinstance(event.progress, EpochMetrics):
            trained[event.number, event.progress.epoch].add(event.progress.seconds)
            since += 1
        if since >= 12 and killed < 6:
            since, killed = 0, killed + 1
            name = dice.choice(sorted(nodes.nodes))
            seen.update(nodes.workers(name))
            if dice.random() < 0.5:
                nodes.remove(name)
            else:
                nodes.raylet(name).kill()
                nodes.nodes.pop(name)
            nodes.add(f"n{next(made)}")
    trials = study.trials()
    assert killed == 6 and sum(Trial(trial).counts for trial in trials) == 40
    assert [trial.state.name for trial in trials if not trial.state.is_finished()] == []
    assert all(len(seconds) == 1 for seconds in trained.values()), "an epoch was trained twice"
    assert any(isinstance(event, TrialRequeued) for event in events)
    assert len(started) > 2 and any("has joined" in line for line in said) and any("is lost" in line for line in said)
    assert not [trial for trial in trials if Trial(trial).outcome == "failed"]
    seen.update(worker for name in nodes.nodes for worker in nodes.workers(name))
    until(lambda: all(gone(process) for process in seen), "the end of every worker")
    left = {path.name for path in (tmp_path / "node" / "pictures" / tiny.data.fingerprint).iterdir()}
    assert left == {path.name for path in cache.cache_files(tiny.data, 32)} | {"32.lock"}


# -- faults


def test_a_killed_worker_is_a_death_and_is_replaced(
    nodes: Nodes, workers: RayWorkers, job: Callable[..., TrialJob]
) -> None:
    workers.start(0, job())
    assert isinstance(receive(workers), EpochMetrics)
    actor(nodes).kill()
    assert failure(workers).kind is FailureKind.DIED
    workers.start(0, job(attempt=2))
    first = receive(workers)
    assert isinstance(first, EpochMetrics) and first.epoch == 0
    workers.proceed(0)
    second = receive(workers)
    assert isinstance(second, EpochMetrics) and second.epoch == 1


@pytest.mark.parametrize("fault", ["removed", "raylet killed", "frozen"])
def test_a_lost_node_is_no_death_and_takes_its_slot_along(
    nodes: Nodes, workers: RayWorkers, job: Callable[..., TrialJob], said: list[str], fault: str
) -> None:
    workers.start(0, job())
    assert isinstance(receive(workers), EpochMetrics)
    frozen = [nodes.raylet("a"), *nodes.raylet("a").children(recursive=True)]
    if fault == "removed":
        nodes.remove("a")
    else:
        for process in frozen if fault == "frozen" else frozen[:1]:
            process.suspend() if fault == "frozen" else process.kill()
        nodes.nodes.pop("a")
    lost = failure(workers)
    assert lost.kind is FailureKind.LOST and "node a" in lost.reason
    assert not workers.slots and said == ["Node a is lost; its trials continue elsewhere."]
    for process in frozen if fault == "frozen" else []:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    nodes.add("b")
    ready(workers, 1)
    assert workers.slots[0].host == "b"
    workers.start(0, job(attempt=2))
    again = receive(workers)
    assert isinstance(again, EpochMetrics) and again.epoch == 0


def test_a_silent_worker_is_killed_and_replaced(
    nodes: Nodes, workers: RayWorkers, job: Callable[..., TrialJob]
) -> None:
    workers.start(0, job())
    receive(workers)
    silent = actor(nodes)
    silent.suspend()
    workers.proceed(0)
    workers.hang_seconds = 1.0
    assert failure(workers).kind is FailureKind.HUNG
    workers.hang_seconds = PATIENCE
    workers.start(0, job(attempt=2))
    assert isinstance(receive(workers), EpochMetrics)
    until(lambda: gone(silent), "the end of the silent one")


def test_a_new_worker_that_waits_for_a_busy_node_is_neither_a_hang_nor_a_death(
    nodes: Nodes, workers: RayWorkers, job: Callable[..., TrialJob], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.ray_workers.IDLE_SECONDS", 1.0)
    workers.start(0, job())
    assert isinstance(receive(workers), EpochMetrics)
    actor(nodes).kill()
    assert failure(workers).kind is FailureKind.DIED
    other = other_work()
    workers.hang_seconds = 1.0
    workers.start(0, job(attempt=2))
    assert failure(workers).kind is FailureKind.LOST
    workers.hang_seconds = PATIENCE
    until(lambda: workers.wait(0.1) or said, "a word to the user")
    assert not workers.slots
    ray.kill(other)
    ready(workers, 1)
    workers.start(0, job(attempt=3))
    assert isinstance(receive(workers), EpochMetrics)


def test_a_worker_ended_for_its_memory_is_told_from_a_death(
    nodes: Nodes, joined: RayCluster, job: Callable[..., TrialJob]
) -> None:
    """Ray's own monitor ends it, shortly before the kernel would; this process takes the memory."""
    memory = psutil.virtual_memory()
    share = (memory.total - memory.available + 2 * GIGABYTE) / memory.total
    if share > 0.8:
        pytest.skip("other programs leave too little memory")
    replace_node(nodes, joined, RAY_memory_usage_threshold=f"{share:.3f}")
    with contextlib.closing(joined.make_workers([Slot()])) as workers:
        ready(workers, 1)
        workers.start(0, job())
        assert isinstance(receive(workers), EpochMetrics)
        ballast = np.ones(3 * GIGABYTE, dtype=np.uint8)
        ended = failure(workers)
        del ballast
    assert ended.kind is FailureKind.OUT_OF_MEMORY and "memory" in ended.reason


def test_a_node_that_is_busy_with_other_work_is_waited_for(
    joined: RayCluster, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.ray_workers.IDLE_SECONDS", 1.0)

    other = other_work()
    with contextlib.closing(joined.make_workers([Slot()])) as workers:
        until(lambda: workers.wait(0.1) or said, "a word to the user")
        assert not workers.slots and "Waiting for a node" in said[0]
        ray.kill(other)
        ready(workers, 1)


# -- pictures and versions


def test_a_node_gets_the_pictures_once_and_compares_their_digest(
    tiny: Tiny, nodes: Nodes, workers: RayWorkers, job: Callable[..., TrialJob], tmp_path: Path
) -> None:
    def train(attempt: int) -> None:
        workers.start(0, job(attempt=attempt))
        assert isinstance(receive(workers), EpochMetrics)
        workers.stop(0)

    train(1)
    images = tmp_path / "node" / "pictures" / tiny.data.fingerprint / "32.npy"
    written, mine = images.stat().st_mtime_ns, tiny.data.directory / "32.npy"
    assert images.read_bytes() == mine.read_bytes()
    train(2)
    actor(nodes).kill()
    until(lambda: workers.wait(0.1) or not workers._workers[0].actor, "the end of the worker")
    train(3)
    assert images.stat().st_mtime_ns == written, "a new worker on the node found them"
    actor(nodes).kill()
    until(lambda: workers.wait(0.1) or not workers._workers[0].actor, "the end of the worker")
    images.write_bytes(images.read_bytes()[:-1] + b"\0")
    train(4)
    assert images.read_bytes() == mine.read_bytes(), "damaged ones were replaced"


def test_a_node_without_room_for_the_pictures_is_used_no_more(
    nodes: Nodes, workers: RayWorkers, job: Callable[..., TrialJob], said: list[str], tmp_path: Path
) -> None:
    nodes.add("b")
    ready(workers, 2)
    (tmp_path / "node").write_text("a file where the folder should be")
    workers.start(0, job())
    lost = failure(workers)
    assert lost.kind is FailureKind.LOST and "cannot keep the pictures" in lost.reason
    assert [slot.host for slot in workers.slots.values()] == ["b"] and "Node a is not used" in said[-1]
    (slot,) = workers.slots
    workers.start(slot, job(attempt=2))
    with pytest.raises(StudyError, match=r"no node .* can train: b cannot keep the pictures"):
        receive(workers, slot)


def test_pictures_that_are_removed_from_a_node_are_sent_again(
    tiny: Tiny, workers: RayWorkers, job: Callable[..., TrialJob], tmp_path: Path
) -> None:
    workers.start(0, job())
    assert isinstance(receive(workers), EpochMetrics)
    workers.stop(0)
    shutil.rmtree(tmp_path / "node")
    workers.start(0, job(number=1))
    lost = failure(workers)
    assert lost.kind is FailureKind.LOST and "node a" in lost.reason
    ready(workers, 1)
    workers.start(0, job(number=1, attempt=2))
    assert isinstance(receive(workers), EpochMetrics)


def test_a_node_without_a_cache_folder_is_left_out_by_name(
    nodes: Nodes, joined: RayCluster, job: Callable[..., TrialJob], tmp_path: Path
) -> None:
    nodes.remove("a")
    unknown_user = "import pwd\nos.environ.pop('HOME')\npwd.getpwuid = {}.__getitem__"
    nodes.add("b", PYTHONPATH=before_torch(tmp_path, unknown_user), XDG_CACHE_HOME="")
    joined.cache_dir = None
    with contextlib.closing(joined.make_workers([Slot()])) as workers:
        until(lambda: workers.wait(0.1) or [slot.host for slot in workers.slots.values()] == ["b"], "a slot")
        (slot,) = workers.slots
        workers.start(slot, job())
        with pytest.raises(StudyError, match=r"no node .* can train: b cannot keep the pictures"):
            receive(workers, slot)


def test_a_node_with_another_version_is_refused_by_name(
    nodes: Nodes, workers: RayWorkers, said: list[str], tmp_path: Path
) -> None:
    other = tmp_path / "site" / "pillow-1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: pillow\nVersion: 1.0\n")
    nodes.add("b", PYTHONPATH=str(other.parent))
    until(lambda: workers.wait(0.1) or said, "a word to the user")
    assert said[0].startswith("Node b is not used: it has other versions than this machine (pillow ")
    assert "-> 1.0" in said[0]
    assert [slot.host for slot in workers.slots.values()] == ["a"]


def test_a_worker_that_dies_while_it_starts_costs_no_other_slot(
    nodes: Nodes, workers: RayWorkers, said: list[str], tmp_path: Path
) -> None:
    fault = tmp_path / "fault"
    fault.touch()
    once = f"fault = {str(fault)!r}\nif os.path.exists(fault):\n    os.remove(fault)\n    os._exit(1)"
    nodes.add("b", slots=2, PYTHONPATH=before_torch(tmp_path, once))
    ready(workers, 3)
    assert not fault.exists()
    assert "Node b has joined with 2 slots." in said and not any("not used" in line for line in said)


@pytest.mark.parametrize("fault", ["torch is damaged", "the program does not arrive"])
def test_a_node_on_which_no_worker_starts_is_left_out_by_name(
    nodes: Nodes, workers: RayWorkers, said: list[str], tmp_path: Path, fault: str
) -> None:
    if fault == "torch is damaged":
        nodes.add("b", PYTHONPATH=before_torch(tmp_path, "raise ImportError"))
    else:
        nodes.add("b", RAY_RUNTIME_ENV_FAIL_DOWNLOAD_FOR_TESTING="1")
    try:
        until(lambda: workers.wait(0.1) or any("Node b" in line for line in said), "a word to the user")
        assert said[-1].startswith("Node b is not used") and "cannot start a worker" in said[-1]
        assert [slot.host for slot in workers.slots.values()] == ["a"]
    finally:
        nodes.remove("a")  # nodes of one machine share the program's folder, which Ray removes when it cannot fill it


@pytest.mark.usefixtures("joined")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU that torch can use")
def test_a_node_whose_gpu_torch_cannot_use_is_left_out_by_name(nodes: Nodes, said: list[str]) -> None:
    """Even one that was started with `--num-cpus=0`, on which a worker gets no CPU of Ray's count."""
    nodes.add("b", slots=0, gpus=1)
    nodes.add("c", gpus=1)
    joined = connect(nodes.address, device="cuda", say=said.append)
    assert [(slot.device, slot.threads) for slot in joined.slots] == [("cuda:0", 1)] * 2
    refused = pytest.raises(StudyError, match=r"no node .* can train: [bc] cannot use cuda:0")
    with contextlib.closing(joined.make_workers(joined.slots)) as workers, refused:
        until(lambda: workers.wait(0.1), "the end")
    assert [line[:6] for line in said if "is not used: it cannot use cuda:0" in line] in (["Node b"], ["Node c"])


def test_workers_limits_the_slots_and_spreads_them(nodes: Nodes, joined: RayCluster) -> None:
    nodes.add("b", slots=2)
    joined.limit = 2
    joined.update()
    assert {slot.host for slot in joined.slots} == {"a", "b"}
    with contextlib.closing(joined.make_workers([Slot(precision="bfloat16")])) as workers:
        ready(workers, 2)
        assert {slot.host for slot in workers.slots.values()} == {"a", "b"}
        assert {slot.precision for slot in workers.slots.values()} == {"bfloat16"}


def test_a_function_runs_on_the_node(joined: RayCluster) -> None:
    assert joined.run_there(environment, Slot(precision="bfloat16"))["precision"] == "bfloat16"
    with pytest.raises(StudyError, match=r"node a .* run this program \(\w+Error: "):
        joined.run_there(environment, Slot(device="cuda:99"))


def test_a_function_that_times_waits_until_its_node_is_idle_and_says_so(
    joined: RayCluster, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_node(nodes, joined, slots=2)
    other = other_work()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        ray.kill(other)

    joined.say = say
    assert joined.run_there(environment, Slot())["threads"] == "1"
    assert not said, "a free slot is enough to read facts"
    monkeypatch.setattr("tuning.ray_workers.IDLE_SECONDS", 1.0)
    assert joined.run_there(sum, [1, 2]) == 3
    assert len(said) == 1


def test_a_dead_head_ends_the_wait_for_an_idle_node(joined: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    other = other_work()
    monkeypatch.setattr(joined, "_head", "127.0.0.1:1")
    monkeypatch.setattr(joined, "_head_seconds", 1.0)
    with pytest.raises(StudyError, match=r"head of the Ray cluster at 127\.0\.0\.1:1 does not respond"):
        joined.run_there(sum, [1, 2])
    ray.kill(other)


def test_a_device_that_no_node_has_is_refused(joined: RayCluster, nodes: Nodes) -> None:
    with pytest.raises(StudyError, match=r"--device cuda is on none of the 2 nodes.*--device cpu"):
        connect(nodes.address, device="cuda")
