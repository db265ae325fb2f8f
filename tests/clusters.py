"""Real Ray clusters of several nodes on this machine, for tests; each takes seconds to start."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "3600")  # as `ray_workers.connect` has it
os.environ.setdefault("RAY_worker_niceness", "0")  # by default other programs leave a worker a twentieth of a core
ray = pytest.importorskip("ray")

from ray._private import ray_constants  # noqa: E402 - only if there is Ray
from ray.cluster_utils import Cluster  # noqa: E402

FAST = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
"""Ray's settings with which it notices a dead node within seconds."""


class Nodes:
    """A cluster whose head trains nothing, and its other nodes by name."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "include_dashboard": False, "node_name": "head", "_system_config": FAST}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return self._cluster.address

    def add(self, name: str, slots: int = 1, gpus: int = 0, **environment: str) -> None:
        """Start a node with as many CPUs as slots, with these variables in its environment."""
        assert name not in self.nodes, f"node {name} of an earlier test would run on"
        node = self._cluster.add_node(num_cpus=slots, num_gpus=gpus, node_name=name, env_vars=environment)
        self.nodes[name] = node

    def remove(self, name: str) -> None:
        """Kill all processes of a node."""
        self._cluster.remove_node(self.nodes.pop(name), allow_graceful=False)

    def raylet(self, name: str) -> psutil.Process:
        """Return the process to which a node's workers belong."""
        return _process(self.nodes[name], ray_constants.PROCESS_TYPE_RAYLET)

    def workers(self, name: str) -> list[psutil.Process]:
        """Return the processes of a node's actors."""
        found: list[psutil.Process] = []
        for child in self.raylet(name).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [child] * ("Actor" in " ".join(child.cmdline()))
        return found

    def kill_head(self) -> None:
        """Kill the process that knows the cluster."""
        _process(self._cluster.head_node, ray_constants.PROCESS_TYPE_GCS_SERVER).kill()

    def close(self) -> None:
        """Disconnect this process and end every node."""
        ray.shutdown()
        self._cluster.shutdown()


def _process(node: Any, kind: str) -> psutil.Process:
    return psutil.Process(node.all_processes[kind][0].process.pid)


@contextlib.contextmanager
def cluster(*names: str) -> Iterator[Nodes]:
    """Start a cluster with nodes of one slot each."""
    with contextlib.closing(Nodes()) as nodes:
        for name in names:
            nodes.add(name)
        yield nodes
