"""The replay's side of a peer: a process that decides, a machine that trains, the same clock as for everyone."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from benchmarks.search.machine import Machine
from benchmarks.search.peers.environments import PeerProgram
from benchmarks.search.policies import PolicyFailed
from benchmarks.search.tables import Row, Table
from search_space import guess
from tuning.space import SpacePoint

ROOT = Path(__file__).resolve().parents[3]


class PeerPolicy:
    """A policy that asks a running peer."""

    anytime = True

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self._process = process
        self._errors = errors

    def __call__(self, machine: Machine, seed: int) -> None:
        """Train what the peer asks for, until it refuses to go on or the pool is dry. Raises BudgetSpent, PolicyFailed.

        After a proposal that the pool cannot serve, the peer is not asked again: running trials end as it decides.
        """
        table = machine.pool.table
        begin = {"seed": seed, "epochs": table.points, "space": knobs(table), "guess": guess(table.profile)}
        self._send(begin=begin)
        trials: list[Row] = []
        free, dry = list(range(machine.slots)), False
        while True:
            while free and not dry and not (answer := self._send(ask=True)).get("idle"):
                if "resume" in answer:
                    row = trials[answer["resume"]]
                elif (row := machine.pool.snap(active(table, answer["new"]))) is not None:
                    self._send(began=[len(trials), answer["new"] | row.params])
                    trials.append(row)
                else:
                    dry = True
                    break
                machine.start(free.pop(), row)
            if len(free) == machine.slots:
                return
            slot, row, epoch = machine.wait()
            answer = self._send(epoch=[trials.index(row), epoch + 1, machine.best(row)])
            if answer["decision"] == "continue" and epoch + 1 < machine.points:
                machine.proceed(slot)
            else:
                free.append(slot)

    def _send(self, **message: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError) as error:
            last = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise PolicyFailed(f"{''.join(last)}; more in {self._errors}") from error


@contextmanager
def running(peer: PeerProgram, environments: Path) -> Generator[PeerPolicy]:
    """Start a peer's process, and end it. Its errors go to a file beside its environment."""
    errors = environments / f"{peer.file} {peer.variant}".strip().replace(" ", "-")
    errors = errors.with_name(f"{errors.name}.log")
    with tempfile.TemporaryDirectory() as scratch, errors.open("w") as log:
        process = subprocess.Popen(
            peer.command(environments),
            cwd=ROOT,
            env={**os.environ, "TMPDIR": scratch, "OMP_NUM_THREADS": "1", "KERAS_BACKEND": "jax"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        with process:
            try:
                yield PeerPolicy(process, errors)
            finally:
                process.kill()


def knobs(table: Table) -> list[dict[str, Any]]:
    """Return the parameters of a table's space that can vary, as `protocol.Knob` takes them."""
    varying = {name: it for name, it in table.distributions.items() if not it.single()}
    return [{"name": name} | _bounds(distribution) for name, distribution in varying.items()]


def _bounds(distribution: BaseDistribution) -> dict[str, Any]:
    match distribution:
        case CategoricalDistribution(choices=choices):
            return {"choices": list(choices)}
        case FloatDistribution(low=low, high=high, log=log) | IntDistribution(low=low, high=high, log=log):
            return {"low": low, "high": high, "log": log, "integer": isinstance(distribution, IntDistribution)}
        case _:
            raise TypeError(f"unknown distribution: {distribution}")


def active(table: Table, params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that apply, of flat ones."""
    point = SpacePoint(np.random.default_rng(0), params)
    table.space(point)
    return point.params
