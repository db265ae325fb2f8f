"""Replays of recorded tables with other programs for hyperparameter search beside this program's policies.

    python -m benchmarks.search.peers --environments ~/.cache/search-peers

Each program is installed into a virtual environment of its own (several gigabytes in all) unless it is there. It
decides, and the simulated machine of the replay trains.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from benchmarks.search.peers.client import running
from benchmarks.search.peers.environments import PEERS, NotInstalled, install
from benchmarks.search.policies import Policy, policies
from benchmarks.search.replay import Replay, compare
from benchmarks.search.tables import read_tables
from tests.stress.script import run


def main(*, environments: Path, replay: Replay = Replay()) -> None:  # noqa: B008 - it is frozen
    """Install the peers, say which could not be installed, and print the results of all others.

    Parameters
    ----------
    environments
        Folder of the virtual environments.
    """
    environments = environments.expanduser().absolute()
    tables = read_tables(replay.tables)
    with ExitStack() as stack:
        started: dict[str, Policy] = {}
        for peer in PEERS:
            try:
                install(peer, environments)
                started[peer.name] = stack.enter_context(running(peer, environments))
            except NotInstalled as error:
                print(f"{peer.name} is left out, because it could not be installed: {error}")

        compare(replay, tables, lambda table, others: policies(table, others) | started)


if __name__ == "__main__":
    run(main)
