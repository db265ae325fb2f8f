"""Workers on the nodes of a Ray cluster: one actor per slot, which trains as a local worker process does.

    connect -> RayCluster -> make_workers -> RayWorkers: the same protocol as `LocalWorkers`

Only the coordinator writes the study's folder: a job travels with its last checkpoint, an epoch returns with its new
ones. Each node keeps the decoded pictures in a cache of its own, which the first job to need them fills through the
coordinator. Nodes may join and be lost at any time.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import shutil
import socket
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import filelock

from data import DataError
from data.cache import cache_files, is_intact, read_chunk, remove_abandoned
from data.prepare import default_cache
from model import checkpoint
from model.files import replacing_on_disk
from model.training import Precision
from tuning import StudyError
from tuning.devices import Slot
from tuning.environment import differences, environment, versions
from tuning.jobs import FailureKind, Progress, TrialFailure, TrialJob, WorkerMessage, WorkerReady, first_line
from tuning.memory import offer_first
from tuning.workers import HANG_SECONDS, Envelope, JobLink, keep_memory_mapped

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

CHUNK = 16 * 2**20
"""Bytes of the pictures that travel to a node at a time."""
BEAT_SECONDS = 5.0
"""Shortest time in seconds between two Progress messages of a slot: each costs the coordinator 0.3 ms."""
NODES_SECONDS = 2.0
"""Seconds between two looks at the list of nodes."""
HEAD_SECONDS = 20.0
"""Seconds without a connection to the head after which the run stops."""
CONNECT_SECONDS = 2.0
"""Longest time in seconds that a connection to the head may take."""
IDLE_SECONDS = 30.0
"""Seconds without an idle node after which the user is told what the run waits for."""
NODE_FAILURES = 3
"""Number of failures of a node's workers, without an epoch in between, after which the node is used no more."""
PROGRAM = ("data", "model", "tuning", "search_space.py")
"""What a node needs of this program; the coordinator sends it."""

T = TypeVar("T")
Say = Callable[[str], None]
"""Function that tells the user, in a line, what has happened to a node."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the cluster."""

    key: str
    """Ray's id of the node."""
    host: str
    """Name of the node, or of its machine."""
    slots: int
    """Number of trials that it can train at once."""
    threads: int
    """CPUs of each; 0 if the node has fewer CPUs than GPUs."""


class RayCluster:
    """A Ray cluster to which this process is connected, and the part of it that trains."""

    def __init__(
        self, address: str, *, kind: str, limit: int | None, cache_dir: Path | None, say: Say, head_seconds: float
    ) -> None:
        import ray

        self._address = address
        self._head: str = ray.get_runtime_context().gcs_address
        self._head_seen = time.monotonic()
        self._head_seconds = head_seconds
        self.kind = kind
        """Kind of device that trains: cpu or cuda."""
        self.limit = limit
        """Largest number of slots; None for no limit."""
        self.cache_dir = cache_dir
        """Folder of the pictures on every node; None for the default cache folder of each."""
        self.say = say
        self.refused: set[str] = set()
        """Keys of nodes that cannot be used."""
        self.nodes: Sequence[Node] = ()
        """The nodes that can be used, as they were last listed."""
        self._used: set[str] = set()
        self._idle_since: float | None = None
        self.update()
        self._used.update(node.key for node in self.nodes)

    @property
    def slots(self) -> list[Slot]:
        """The slots of the present nodes, in float32."""
        return [self.slot(node) for node in self.places()]

    def places(self) -> list[Node]:
        """Return the node of each slot, up to the limit: the first slots of all nodes, then their second ones, ..."""
        indexed = sorted((index, place) for place, node in enumerate(self.nodes) for index in range(node.slots))
        return [self.nodes[place] for _, place in indexed][: self.limit]

    def slot(self, node: Node, precision: Precision = "float32") -> Slot:
        """Return a slot of a node; Ray shows each worker its own GPU alone, as number 0."""
        device = "cuda:0" if self.kind == "cuda" else self.kind
        return Slot(device=device, threads=max(1, node.threads), precision=precision, host=node.host)

    def make_workers(self, slots: Sequence[Slot]) -> RayWorkers:
        """Return workers that train in the precision of `slots`, on the nodes that there are while they train."""
        return RayWorkers(self, precision=slots[0].precision)

    def run_there(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run a function on the first node as soon as that is idle. Raises StudyError if the node or the head fails."""
        import ray
        from ray import exceptions

        places = self.places()
        node = places[0]
        # What is timed needs the whole node.
        there = self.resources(node, 1 if function is environment else places.count(node))
        there |= {"max_retries": 0, "num_returns": "streaming"}
        results = cast(Any, ray.remote)(_begun).options(**there).remote(function, args, options)
        try:
            ray.get(self._next(results, busy=True))
            return ray.get(self._next(results, busy=False))
        except exceptions.RayError as error:
            raise StudyError(
                f"node {node.host} of the Ray cluster cannot run this program ({_last_line(error)}): repair or stop "
                "it, then run the same command again"
            ) from error

    def _next(self, results: Any, *, busy: bool) -> ObjectRef[Any]:
        """Wait for a task's next result; the node may be busy. Raises StudyError if the head is gone meanwhile."""
        import ray

        self.say_if_idle(False)
        while not ray.wait([results], timeout=NODES_SECONDS)[0]:
            self.update()
            self.say_if_idle(busy)
        return next(results)

    def resources(self, node: Node, count: int = 1) -> dict[str, Any]:
        """Return Ray's options for something that takes this many slots of a node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node.key, soft=False)
        return {
            "num_cpus": count * node.threads,
            "num_gpus": count if self.kind == "cuda" else 0,
            "scheduling_strategy": there,
        }

    def update(self) -> None:
        """List the nodes. Raises StudyError if the head has not responded for too long; until then nothing changes."""
        import ray

        try:
            _knock(self._head)
        except OSError as error:
            if time.monotonic() - self._head_seen > self._head_seconds:
                raise StudyError(
                    f"the head of the Ray cluster at {self._head} does not respond ({error.strerror or error}): start "
                    "the cluster again, then run the same command again to resume"
                ) from error
            return
        self._head_seen = time.monotonic()
        listed = [_node(entry, self.kind) for entry in ray.nodes() if entry["Alive"]]
        self.nodes = [node for node in listed if node.slots and node.key not in self.refused]

    def say_if_idle(self, idle: bool) -> None:
        """Tell the user what the run waits for, once it has been idle for IDLE_SECONDS."""
        now = time.monotonic()
        if not idle:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since > IDLE_SECONDS:
            self._idle_since = float("inf")
            self.say("Waiting for a node of the Ray cluster that is not busy with other work.")

    def welcome(self, node: Node) -> None:
        """Note that a node trains; tell the user if it is a new one."""
        if node.key not in self._used:
            self._used.add(node.key)
            self.say(f"Node {node.host} has joined with {node.slots} slot{'s' * (node.slots != 1)}.")

    def miss(self, node: Node) -> None:
        """Note that a node is lost, and tell the user."""
        if node.key in self._used:
            self._used.discard(node.key)
            self.say(f"Node {node.host} is lost; its trials continue elsewhere.")

    def refuse(self, node: Node, reason: str) -> None:
        """Use a node no more, and say why. Raises StudyError if there is no other one."""
        if node.key in self.refused:
            return
        self.refused.add(node.key)
        self.nodes = [one for one in self.nodes if one.key != node.key]
        if not self.nodes:
            raise StudyError(f"no node of the Ray cluster at {self._head} can train: {node.host} {reason}")
        self.say(f"Node {node.host} is not used: it {reason}.")


def connect(
    address: str,
    *,
    device: str = "auto",
    workers: int | None = None,
    cache_dir: Path | None = None,
    say: Say = print,
    head_seconds: float = HEAD_SECONDS,
) -> RayCluster:
    """Connect this process to a Ray cluster, of whose nodes its machine must be one.

    Args:
        address: The head's host and port; "auto" is the cluster that runs on this machine.
        device: Kind of device that trains: cpu, cuda, or "auto" for cuda if a node has it.
        workers: Largest number of slots; by default every CPU or GPU of every node.
        cache_dir: Folder of the pictures on every node; by default each node's user's cache folder.
        say: Function that tells the user what has happened to a node.
        head_seconds: Seconds without a connection to the head after which a run stops.

    Raises StudyError without Ray, without a cluster at that address, or if none of its nodes has such a device.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would end this process without a word; `RayCluster.update` notices a dead head first.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(24 * 3600))
    try:
        import ray
        import ray._private.worker as driver
        from ray import exceptions
        from ray._private import services
    except ImportError:
        raise StudyError('--ray needs Ray, which is not installed: run pip install -e ".[cluster]"') from None
    # Ray prints whatever happens to a node, with pages of its own log.
    driver.listen_error_messages = lambda worker, threads_stopped: None
    try:
        head = str(services.canonicalize_bootstrap_address(address))
        _knock(head)
        with _program() as folder:
            ray.init(
                address=head,
                runtime_env={"working_dir": str(folder), "env_vars": {"MALLOC_ARENA_MAX": "1"}},
                log_to_driver=False,
                logging_level=logging.ERROR,
                ignore_reinit_error=True,  # connected before, as in a notebook
            )
    except (ConnectionError, RuntimeError, ValueError, OSError, exceptions.RayError) as error:
        raise StudyError(
            f"cannot join the Ray cluster at {address} from this machine ({first_line(error)}): start one with ray "
            "start --head, or join it with ray start --address=HOST:PORT, then run the same command again"
        ) from error
    alive = [entry for entry in ray.nodes() if entry["Alive"]]
    gpus = any(entry["Resources"].get("GPU") for entry in alive)
    kind = ("cuda" if gpus else "cpu") if device == "auto" else device
    cluster = RayCluster(address, kind=kind, limit=workers, cache_dir=cache_dir, say=say, head_seconds=head_seconds)
    if not cluster.nodes:
        raise StudyError(
            f"--device {kind} is on none of the {len(alive)} nodes of the Ray cluster at {address}: use --device "
            f"{'cuda or cpu' if gpus else 'cpu'}, or start its nodes with ray start --num-cpus or --num-gpus"
        )
    return cluster


def _knock(head: str) -> None:
    """Connect to a cluster's head and hang up. Ray itself would wait for a dead head without end. Raises OSError."""
    host, _, port = head.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def _node(entry: Mapping[str, Any], kind: str) -> Node:
    resources, name = entry["Resources"], entry["NodeName"]
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    slots = {"cpu": cpus, "cuda": gpus}.get(kind, 0)
    return Node(
        key=entry["NodeID"],
        host=name if name != entry["NodeManagerAddress"] else entry["NodeManagerHostname"],
        slots=slots,
        threads=1 if kind == "cpu" else cpus // max(1, gpus),
    )


@contextlib.contextmanager
def _program() -> Generator[Path]:
    """Yield a folder with what a node needs of this program, whatever else lies beside it here."""
    here = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(prefix="program-") as folder:
        for name in PROGRAM:
            if (here / name).is_dir():
                shutil.copytree(here / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(here / name, folder)
        yield Path(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Messages between a slot's actor and the coordinator, besides those of every worker


@dataclass(frozen=True, kw_only=True)
class _Order:
    """A job, with the last checkpoint of its trial."""

    job: TrialJob
    last: bytes | None


@dataclass(frozen=True, kw_only=True)
class _Parcel(Envelope):
    """A message about a trial, with the checkpoints of an epoch."""

    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """Contents of the files to write into the trial's directory, by name, in order."""


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What the coordinator has to know before it uses a node."""

    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """Request for the next chunk of a file of the picture cache."""

    name: str
    offset: int


@dataclass(frozen=True, kw_only=True)
class _Unusable:
    """The node cannot train, for example because its disk is full or torch cannot use its GPU."""

    reason: str


# ---------------------------------------------------------------------------------------------------------------------
# The coordinator's side


@dataclass(kw_only=True, eq=False)
class _Worker:
    """One slot as the coordinator sees it."""

    node: Node
    slot: Slot
    actor: ActorHandle[Any] | None = None
    """None after a failure, until the slot gets another job."""
    received: ObjectRef[list[Any]] | None = None
    """The actor's answer to the request for messages."""
    up: bool = False
    """Whether the node has been accepted, so that the slot can be used."""
    runs: bool = False
    """Whether the actor has sent anything; until then its node may be busy with other work."""
    job: TrialJob | None = None
    silence: float = 0.0
    """Seconds spent waiting for the actor since its last message, or since the last one sent to it."""


class RayWorkers:
    """Actors on the nodes of a Ray cluster, following the `Workers` protocol."""

    def __init__(self, cluster: RayCluster, *, precision: Precision, hang_seconds: float = HANG_SECONDS) -> None:
        self.hang_seconds = hang_seconds
        """Seconds without a message after which a busy worker is terminated."""
        self._cluster = cluster
        self._precision: Precision = precision
        self._versions = versions()
        self._workers: dict[int, _Worker] = {}
        self._failures: Counter[str] = Counter()
        """Number of failures on each node since its last epoch."""
        self._updated = -NODES_SECONDS

    @property
    def slots(self) -> Mapping[int, Slot]:
        """The slots that are up; numbers of lost ones are used again."""
        return {number: worker.slot for number, worker in sorted(self._workers.items()) if worker.up}

    def start(self, slot: int, job: TrialJob) -> None:
        """Send the job and the trial's last checkpoint to the slot's actor, or to a new one if that has failed."""
        worker = self._workers[slot]
        if worker.actor is None:
            self._launch(worker)
        worker.job = job
        last = None
        with contextlib.suppress(OSError):  # without its last checkpoint a trial starts over
            last = (job.directory / "last.pt").read_bytes()
        self._put(worker, _Order(job=job, last=last))

    def proceed(self, slot: int) -> None:
        """Request the next epoch; the next `wait` reports an actor that has died meanwhile."""
        if slot in self._workers:
            self._put(self._workers[slot], "proceed")

    def stop(self, slot: int) -> None:
        """Have the actor stop the trial at its next batch; what it still sends is dropped."""
        worker = self._workers.get(slot)
        if worker is not None and worker.job is not None:
            self._put(worker, "stop")
            worker.job = None

    def wait(self, timeout: float) -> list[tuple[int, WorkerMessage]]:
        """Return the messages of all busy actors; a dead or silent one becomes a TrialFailure, or loses its slot."""
        import ray

        begun = time.monotonic()
        self._meet_nodes()
        refs = [worker.received for worker in self._workers.values() if worker.received is not None]
        ready: set[Any] = set()
        if refs:
            some, _ = ray.wait(refs, timeout=timeout)
            ready = set(ray.wait(refs, num_returns=len(refs), timeout=0)[0] if some else ())
        else:
            time.sleep(min(timeout, 0.1))
        # If the machine or this process was suspended, the wait took longer, but the workers were not silent.
        waited = min(time.monotonic() - begun, timeout)
        found: list[tuple[int, WorkerMessage]] = []
        for number, worker in list(self._workers.items()):
            if number not in self._workers:  # its node has just been given up
                continue
            there = worker.received in ready
            worker.silence = 0.0 if there else worker.silence + waited
            if there:
                found += self._collect(number, worker)
            elif worker.job and worker.silence > self.hang_seconds:
                kind = FailureKind.HUNG if worker.runs else FailureKind.LOST
                reason = f"no message for {self.hang_seconds:.0f} s from node {worker.node.host}"
                found += self._fail(number, worker, TrialFailure(kind=kind, reason=reason))
        return found

    def close(self) -> None:
        """Kill every actor; what they have finished is on the coordinator's disk."""
        for worker in self._workers.values():
            _kill(worker)
        self._workers.clear()

    # -- nodes

    def _meet_nodes(self) -> None:
        """Start actors on nodes that have room for more slots."""
        now = time.monotonic()
        if now - self._updated < NODES_SECONDS:
            return
        self._updated = now
        self._cluster.update()
        self._cluster.say_if_idle(not any(worker.runs for worker in self._workers.values()))
        limit = self._cluster.limit
        taken = Counter(worker.node.key for worker in self._workers.values())
        for node in self._cluster.places():
            if taken[node.key] > 0:
                taken[node.key] -= 1
                continue
            if limit is not None and len(self._workers) >= limit:
                break
            number = next(number for number in range(len(self._workers) + 1) if number not in self._workers)
            self._workers[number] = worker = _Worker(node=node, slot=self._cluster.slot(node, self._precision))
            self._launch(worker)

    def _launch(self, worker: _Worker) -> None:
        import ray

        cluster = self._cluster
        # Within a group, calls keep their order; in one group, a call that waits for messages would block the others.
        remote = cast(Any, ray.remote)(concurrency_groups={"line": 1, "ear": 1}, max_restarts=0)(_Actor)
        given = (self._versions["program"], cluster.cache_dir, worker.slot.device)
        worker.actor = remote.options(**cluster.resources(worker.node)).remote(*given)
        worker.silence, worker.runs = 0.0, False
        self._listen(worker)

    def _listen(self, worker: _Worker) -> None:
        if worker.actor is not None:
            worker.received = worker.actor.messages.options(concurrency_group="ear").remote()

    def _put(self, worker: _Worker, message: object) -> None:
        worker.silence = 0.0
        if worker.actor is not None:
            worker.actor.put.options(concurrency_group="line").remote(message)

    # -- messages

    def _collect(self, number: int, worker: _Worker) -> list[tuple[int, WorkerMessage]]:
        """Return what an actor has sent, and ask for more."""
        import ray
        from ray import exceptions

        assert worker.received is not None
        try:
            messages = ray.get(worker.received)
        except exceptions.RayError as error:
            return self._broken(number, worker, error)
        self._listen(worker)
        found: list[tuple[int, WorkerMessage]] = []
        for message in messages:
            if worker.actor is None:  # a failure before this message
                break
            match message:
                case _Facts():
                    found += self._accept(worker, message)
                case _Wanted():
                    found += self._provide(number, worker, message)
                case _Unusable():
                    found += self._give_up(worker.node, message.reason)
                case _Parcel():
                    found += self._deliver(number, worker, message)
                case _:
                    raise AssertionError(message)
        return found

    def _accept(self, worker: _Worker, facts: _Facts) -> list[tuple[int, WorkerMessage]]:
        """Use a node, unless another version of a package there would give other numbers."""
        here, there = ({name: text.partition("+")[0] for name, text in one.items() if name != "program"}
                       for one in (self._versions, facts.versions))  # fmt: skip
        if other := differences(here, there):
            return self._give_up(worker.node, f"has other versions than this machine ({', '.join(other)})")
        worker.up = worker.runs = True
        self._cluster.welcome(worker.node)
        return []

    def _provide(self, number: int, worker: _Worker, wanted: _Wanted) -> list[tuple[int, WorkerMessage]]:
        """Send a node the next chunk of a file of the picture cache."""
        if worker.job is None:
            return []
        files = cache_files(worker.job.data, worker.job.assignment.config.image_size)
        try:
            (path,) = [path for path in files if path.name == wanted.name]
            self._put(worker, read_chunk(path, wanted.offset, CHUNK))
        except DataError as error:
            self._put(worker, "stop")
            worker.job = None
            return [(number, TrialFailure(kind=FailureKind.DISK, reason=str(error)))]
        return []

    def _deliver(self, number: int, worker: _Worker, parcel: _Parcel) -> list[tuple[int, WorkerMessage]]:
        """Write the checkpoints that come with a message, and return the message if it is about the current job."""
        if parcel.files:
            del self._failures[worker.node.key]
        job = worker.job
        if job is None or parcel.trial != (job.number, job.attempt):
            return []
        try:
            for name, content in parcel.files.items():
                with replacing_on_disk(job.directory / name) as file:
                    file.write(content)
        except OSError as error:
            self.stop(number)
            return [(number, TrialFailure(kind=FailureKind.DISK, reason=str(error)))]
        failure = parcel.message
        if not isinstance(failure, TrialFailure):
            return [(number, parcel.message)]
        if failure.kind is FailureKind.DISK:  # the node's own: its next worker checks the pictures again
            failure = TrialFailure(kind=FailureKind.LOST, reason=f"node {worker.node.host}: {failure.reason}")
        if failure.kind in (FailureKind.LOST, FailureKind.DIED):  # its process cannot be used again
            return self._count(number, worker, failure)
        worker.job = None
        return [(number, failure)]

    # -- failures

    def _fail(self, number: int, worker: _Worker, failure: TrialFailure) -> list[tuple[int, WorkerMessage]]:
        """End an actor; its job fails, and its slot goes with it if the node is lost, or if it was not up yet."""
        _kill(worker)
        busy, worker.job = worker.job is not None, None
        if failure.kind is FailureKind.LOST or not worker.up:
            del self._workers[number]
        return [(number, failure)] if busy else []

    def _broken(self, number: int, worker: _Worker, error: Exception) -> list[tuple[int, WorkerMessage]]:
        """Turn Ray's error into a failure: of the whole node, of the trial's memory, or of the actor's process."""
        from ray import exceptions

        self._cluster.update()
        alive = any(node.key == worker.node.key for node in self._cluster.nodes)
        out_of_reach = (exceptions.ActorUnavailableError, exceptions.NodeDiedError, exceptions.ObjectLostError)
        if not alive or isinstance(error, out_of_reach):
            failure = TrialFailure(kind=FailureKind.LOST, reason=f"node {worker.node.host} was lost")
            self._cluster.miss(worker.node)
            return self._fail(number, worker, failure)
        kind, reason = FailureKind.DIED, _cause(error)
        if isinstance(error, exceptions.OutOfMemoryError):
            kind, reason = FailureKind.OUT_OF_MEMORY, "ended by Ray, as the node's memory had run out"
        if worker.runs:
            return self._fail(number, worker, TrialFailure(kind=kind, reason=reason))
        failure = TrialFailure(kind=FailureKind.DIED, reason=f"cannot start a worker: {reason}")
        return self._count(number, worker, failure)

    def _count(self, number: int, worker: _Worker, failure: TrialFailure) -> list[tuple[int, WorkerMessage]]:
        """End an actor after a failure that may be its node's, which is used no more after NODE_FAILURES in a row.

        A worker that does not start beside others that have started is not counted.
        """
        node, working = worker.node, {one.node.key for one in self._workers.values() if one.up}
        if worker.up or node.key not in working:
            self._failures[node.key] += 1
        # Without another node, a trial that dies again and again ends as failed; one that is requeued never would.
        elsewhere = working != {node.key} or failure.kind is FailureKind.LOST
        if self._failures[node.key] >= NODE_FAILURES and elsewhere:
            return self._give_up(node, f"failed {NODE_FAILURES} times in a row ({failure.reason})")
        return self._fail(number, worker, failure)

    def _give_up(self, node: Node, reason: str) -> list[tuple[int, WorkerMessage]]:
        """Use a node no more; its trials continue elsewhere."""
        self._cluster.refuse(node, reason)
        there = [(number, worker) for number, worker in self._workers.items() if worker.node.key == node.key]
        lost = TrialFailure(kind=FailureKind.LOST, reason=f"node {node.host} {reason}")
        return [message for number, worker in there for message in self._fail(number, worker, lost)]


def _kill(worker: _Worker) -> None:
    import ray
    from ray import exceptions

    if worker.actor is not None:
        with contextlib.suppress(exceptions.RayError):
            ray.kill(worker.actor)
    worker.actor = worker.received = None


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2]


def _cause(error: BaseException) -> str:
    """Return how an actor's process ended, without Ray's advice, or why it did not start."""
    text = " ".join(str(error).split())
    _, found, detail = text.partition("Worker exit detail: ")
    return f"its process ended ({detail.partition('. ')[0]})" if found else _last_line(error)


# ---------------------------------------------------------------------------------------------------------------------
# The worker's side


def _begun(function: Callable[..., T], args: Sequence[Any], options: Mapping[str, Any]) -> Generator[T | None]:
    """Yield None as soon as this runs, then the function's result."""
    yield None
    yield function(*args, **options)


class _Actor:
    """A slot's worker: calls put messages into its queue and take some from it, and a thread of its own trains."""

    def __init__(self, program: str, cache_dir: Path | None, device: str) -> None:
        self._program, self._device = program, device
        self._end = _ActorsEnd()
        self._cache = cache_dir
        self._intact: set[tuple[str, int]] = set()
        # Ray replaces the program's folder, which is the current one, when a second node joins on this machine.
        os.chdir(tempfile.gettempdir())
        for work in (self._serve, _leave_with_node):
            threading.Thread(target=work, daemon=True).start()

    def put(self, message: object) -> None:
        """Take a message from the coordinator."""
        self._end.inbox.put(message)

    def messages(self) -> list[object]:
        """Wait for messages to the coordinator and return them."""
        found = [self._end.outbox.get()]
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._end.outbox.get_nowait())
        return found

    def _serve(self) -> None:
        """Run one job after another until the process is killed."""
        try:
            offer_first()
            keep_memory_mapped()

            import torch

            from tuning import trainer

            try:
                torch.zeros(1, device=self._device)
            except (AssertionError, RuntimeError) as error:  # AssertionError: a torch that was built without CUDA
                self._end.send(_Unusable(reason=f"cannot use {self._device} ({first_line(error)})"))
                return
            self._end.send(_Facts(versions=versions()))
            usable = True
            while usable:
                message = self._end.recv()
                # A "stop" that arrives after the end of its trial means nothing.
                if isinstance(message, _Order):
                    link = _RayLink(self._end, message.job, self._program)
                    job = self._with_pictures(message.job, link)
                    if job is not None:
                        usable = trainer.run(job, link, _CarriedCheckpoints(message.last, link))
                        trainer.release()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _with_pictures(self, job: TrialJob, link: _RayLink) -> TrialJob | None:
        """Return the job with this node's copy of the pictures; None if it was stopped or the node has no room."""
        from tuning.trainer import Stopped

        size = job.assignment.config.image_size
        try:
            directory = (self._cache or default_cache()) / "pictures" / job.data.fingerprint
            data = replace(job.data, directory=directory)
            if (data.split, size) in self._intact:
                return replace(job, data=data)
            directory.mkdir(parents=True, exist_ok=True)
            with _locked(directory / f"{size}.lock", link):
                if not is_intact(data, size):
                    remove_abandoned(directory)
                    for path in cache_files(data, size):
                        self._fetch(path, link)
                    if not is_intact(data, size):
                        raise OSError(f"{directory} is damaged: its digest is not that of the coordinator's pictures")
        except Stopped:
            return None
        except (OSError, DataError) as error:
            link.send_fact(_Unusable(reason=f"cannot keep the pictures ({error})"))
            return None
        self._intact.add((data.split, size))
        return replace(job, data=data)

    def _fetch(self, path: Path, link: _RayLink) -> None:
        """Ask the coordinator for a file of the picture cache, chunk by chunk."""
        from tuning.trainer import Stopped

        with replacing_on_disk(path) as file:
            while True:
                link.send_fact(_Wanted(name=path.name, offset=file.tell()))
                chunk = self._end.recv()
                if not isinstance(chunk, bytes):
                    raise Stopped
                file.write(chunk)
                if len(chunk) < CHUNK:
                    return


def _leave_with_node() -> None:
    """Exit when the node's own process ends: Ray would first wait for the call that waits for messages."""
    node = os.getppid()
    while os.getppid() == node:
        time.sleep(1.0)
    os._exit(1)


@contextlib.contextmanager
def _locked(path: Path, link: _RayLink) -> Generator[None]:
    """Hold a lock of this node; raise Stopped if the trial is stopped while another slot holds it."""
    from tuning.trainer import Stopped

    lock = filelock.FileLock(path)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=1.0)
        except filelock.Timeout:
            link.send(Progress(share=0.0))
            if link.stop_asked():
                raise Stopped from None
    try:
        yield
    finally:
        lock.release()


class _ActorsEnd:
    """The actor's end of the coordinator's calls, with the methods of the end of a pipe."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[object] = queue.SimpleQueue()

    def send(self, obj: object, /) -> None:
        self.outbox.put(obj)

    def recv(self) -> Any:
        return self.inbox.get()

    def poll(self) -> bool:
        return not self.inbox.empty()


class _RayLink(JobLink):
    """The link of one job, which adds what the coordinator does not get from a process on its own machine."""

    def __init__(self, end: _ActorsEnd, job: TrialJob, program: str) -> None:
        super().__init__(end, job)
        self._end, self._program = end, program
        self._last_beat = 0.0
        self.files: dict[str, bytes] = {}
        """Checkpoints that leave with the next message."""

    def send(self, message: WorkerMessage) -> None:
        """Send a message, with the checkpoints of its epoch; Progress only now and then."""
        if isinstance(message, Progress):
            if time.monotonic() - self._last_beat < BEAT_SECONDS:
                return
            self._last_beat = time.monotonic()
        if isinstance(message, WorkerReady):  # the copy of the program on this node does not know its commit
            message = WorkerReady(environment=message.environment | {"program": self._program})
        self._end.send(_Parcel(trial=self.trial, message=message, files=self.files))
        self.files = {}

    def send_fact(self, fact: _Wanted | _Unusable) -> None:
        """Send something that is not about the trial."""
        self._end.send(fact)


class _CarriedCheckpoints:
    """The checkpoints of a trial that travel with messages: nothing is written on the node."""

    def __init__(self, last: bytes | None, link: _RayLink) -> None:
        self._last, self._link = last, link

    def last(self) -> checkpoint.Checkpoint | None:
        """Return the checkpoint that came with the job; None if there is no intact one."""
        try:
            return checkpoint.read(io.BytesIO(self._last), Path("last.pt")) if self._last else None
        except checkpoint.CheckpointError:
            return None

    def keep(self, last: checkpoint.Checkpoint, best: checkpoint.Checkpoint | None) -> None:
        """Send the checkpoints with the epoch's metrics; the best one is written first, see `CheckpointFolder`."""
        for name, one in (("best.pt", best), ("last.pt", last)):
            if one is not None:
                checkpoint.write(content := io.BytesIO(), one)
                self._link.files[name] = content.getvalue()
