"""Replays of recorded tables: which policy, or which other program, finds a good network first.

    python -m benchmarks.search.replay
    python -m benchmarks.search.replay --slots 2 --repetitions 200 --by-flops
    python -m benchmarks.search.replay --sweep                         # rungs and shares to keep of the promotion

Every repetition draws its own pool and gives it to all policies with the same seed. Resources are counted in horizons,
the epochs of one full training, over all slots together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cyclopts import Parameter

from benchmarks.search.machine import BudgetSpent, Charges, Machine
from benchmarks.search.measures import Run, ranks, shown, target
from benchmarks.search.policies import REFERENCE, Policy, PolicyFailed, policies, promotion_sweep
from benchmarks.search.tables import FOLDER, Pool, Table, read_tables
from tests.stress.script import header, row, run

REFERENCE_BUDGET = 40 * 10 * 0.7 / 60
"""Horizons of a study of 40 trials of ten epochs with a median pruner, when a horizon is 60 epochs."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Replay:
    """What is replayed, and how often.

    Parameters
    ----------
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

    tables: Path = FOLDER
    slots: tuple[int, ...] = (1, 2, 8)
    budgets: tuple[float, ...] = (2.0, 4.0, 8.0)
    repetitions: int = 50
    by_flops: bool = False
    resume: float = Charges.resume


def main(
    *,
    replay: Replay = Replay(),
    sweep: bool = False,
    shares: tuple[float, ...] = (0.05, 0.125, 0.25, 0.4),
    keeps: tuple[float, ...] = (0.2, 0.3, 0.5),
) -> None:
    """Run every policy on every table and print the results.

    Parameters
    ----------
    sweep
        Compare rungs and shares to keep of the promotion scheduler instead of policies.
    shares
        Shares of the horizon at which the sweep may place its rungs.
    keeps
        Shares of the trials that the sweep keeps at each rung.
    """

    def candidates(table: Table, others: Sequence[Table]) -> dict[str, Policy]:
        found = policies(table, others)
        return {REFERENCE: found[REFERENCE], **dict(promotion_sweep(table, shares, keeps))} if sweep else found

    compare(replay, read_tables(replay.tables), candidates)


Results = Mapping[str, Mapping[float, Sequence[Run]]]
"""The runs on a table by policy and budget, one for each repetition."""


def compare(
    how: Replay, tables: Sequence[Table], candidates: Callable[[Table, Sequence[Table]], Mapping[str, Policy]]
) -> None:
    """Run each table's candidates, made from it and the others, and print the results of every table, then of all."""
    budgets = sorted(how.budgets)
    charges = Charges(by_flops=how.by_flops, resume=how.resume)
    for count in how.slots:
        results: list[Results] = []
        for table in tables:
            replayed: dict[str, Mapping[float, Sequence[Run]]] = {}
            for name, policy in candidates(table, [other for other in tables if other is not table]).items():
                try:
                    replayed[name] = run_all(policy, table, budgets, how.repetitions, count, charges)
                except PolicyFailed as error:
                    print(f"{name} is left out, because it failed: {error}")
            results.append(replayed)
            print_results(f"{table.data}, slots: {count}", results[-1:], budgets)
        if len(tables) > 1:
            print_results(f"all tables, slots: {count}", results, budgets)


def run_all(
    policy: Policy, table: Table, budgets: Sequence[float], repetitions: int, slots: int, charges: Charges
) -> dict[float, list[Run]]:
    """Return the runs of a policy for each budget; those of the largest stand for all if they need no plan."""

    def runs(budget: float) -> list[Run]:
        return [run_once(policy, table, seed, slots, budget, charges) for seed in range(repetitions)]

    longest = runs(budgets[-1])
    return {budget: longest if policy.anytime or budget == budgets[-1] else runs(budget) for budget in budgets}


def run_once(policy: Policy, table: Table, seed: int, slots: int, budget: float, charges: Charges) -> Run:
    """Run a policy on a pool of its own."""
    machine = Machine(Pool(table, seed), slots=slots, budget=budget, charges=charges)
    with suppress(BudgetSpent):
        policy(machine, seed)
        if machine.pool.is_dry:
            machine.finish_best()
    return Run.of(machine)


def print_results(title: str, tables: Sequence[Results], budgets: Sequence[float]) -> None:
    """Print one line per policy that ran on all of these tables, the best mean rank first.

    A run that misses its target counts as if it had reached it at the end of its budget.
    """
    last = budgets[-1]
    names = [name for name in tables[0] if all(name in results for results in tables)]
    places = [
        np.transpose([ranks(worths) for worths in zip(*(_worths(results[name][last]) for name in names), strict=True)])
        for results in tables
    ]
    caught = f"horizons to what {REFERENCE} has after {REFERENCE_BUDGET:.1f}"
    regrets = [f"{kind} regret after {budget:g}" for budget in budgets for kind in ("validation", "test")]
    print(f"\n{title}\n")
    header("policy", "mean rank", "horizons to the top 5 %", caught, *regrets, "unspent %", "ran dry %")
    lines: list[tuple[float, list[str]]] = []
    for number, name in enumerate(names):
        mine = [results[name] for results in tables]
        at_end = [runs[last] for runs in mine]
        best = [[target(run.pool) for run in runs] for runs in at_end]
        aims = [[run.chosen(REFERENCE_BUDGET).worth for run in results[REFERENCE][last]] for results in tables]
        cells = [name, shown([place[number] for place in places]), _reached(at_end, best), _reached(at_end, aims)]
        for budget in budgets:
            cells += [
                shown([[100 * regret(run, budget) for run in runs[budget]] for runs in mine])
                for regret in (Run.regret, Run.test_regret)
            ]
        cells += [_percent(run.unspent for runs in at_end for run in runs)]
        cells += [_percent(run.ran_dry for runs in at_end for run in runs)]
        lines.append((float(np.mean([place[number].mean() for place in places])), cells))
    for _, cells in sorted(lines):
        row(*cells)


def _worths(runs: Sequence[Run]) -> list[float]:
    return [run.chosen(run.budget).worth for run in runs]


def _reached(groups: Sequence[Sequence[Run]], worths: Sequence[Sequence[float]]) -> str:
    """Return the horizons that runs took to reach these worths, and the share of runs that did not."""
    clocks = [
        [run.reached(worth) for run, worth in zip(runs, aims, strict=True)]
        for runs, aims in zip(groups, worths, strict=True)
    ]
    budget = groups[0][0].budget
    taken = shown([[budget if clock is None else clock for clock in group] for group in clocks])
    return f"{taken}, {_percent(clock is None for group in clocks for clock in group)} % missed"


def _percent(shares: Iterable[float]) -> str:
    return str(round(100 * float(np.mean(list(shares)))))


if __name__ == "__main__":
    run(main)
