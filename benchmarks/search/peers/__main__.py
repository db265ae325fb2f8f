"""Replays of recorded tables with other programs for hyperparameter search beside this program's policies.

    python -m benchmarks.search.peers --environments ~/.cache/search-peers

Each program is installed into a virtual environment of its own (several gigabytes in all) unless it is there. It
decides, and the simulated machine of the replay trains.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from benchmarks.search.machine import Charges
from benchmarks.search.peers.client import running
from benchmarks.search.peers.environments import PEERS, NotInstalled, install
from benchmarks.search.policies import Policy, policies
from benchmarks.search.replay import compare
from benchmarks.search.tables import FOLDER, Table, read_tables
from tests.stress.script import run


def main(
    *,
    environments: Path,
    tables: Path = FOLDER,
    slots: tuple[int, ...] = (1, 2, 8),
    budgets: tuple[float, ...] = (2.0, 4.0, 8.0),
    repetitions: int = 50,
    by_flops: bool = False,
    resume: float = Charges.resume,
) -> None:
    """Install the peers, say which could not be installed, and print the results of all others.

    Parameters
    ----------
    environments
        Folder of the virtual environments.
    tables
        Folder of the recorded tables.
    slots
        Numbers of slots of the simulated machines.
    budgets
        Budgets at which the regret is measured, in horizons.
    repetitions
        Number of pools drawn from each table.
    by_flops
        Charge an epoch by its network's FLOPs instead of charging all epochs alike.
    resume
        Share of the horizon that resuming a paused trial costs.
    """
    environments = environments.expanduser().absolute()
    read = read_tables(tables)
    with ExitStack() as stack:
        started: dict[str, Policy] = {}
        for peer in PEERS:
            try:
                install(peer, environments)
                started[peer.name] = stack.enter_context(running(peer, environments))
            except NotInstalled as error:
                print(f"{peer.name} is left out, because it could not be installed: {error}")

        def candidates(table: Table) -> dict[str, Policy]:
            return policies(table, [other for other in read if other is not table]) | started

        compare(read, candidates, slots, budgets, repetitions, Charges(by_flops=by_flops, resume=resume))


if __name__ == "__main__":
    run(main)
