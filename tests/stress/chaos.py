"""Studies that are killed again and again: this program's, and those of plain Optuna over the same pictures.

    python tests/stress/chaos.py --kills 300
    nice python tests/stress/chaos.py --kills 300 --plain-kills 100 --at-once 2 --sleep 180

A study of 40 small trials runs undisturbed. Then it runs again from the start, is killed, interrupted and put to sleep
at random moments drawn from a seed, and is restarted whenever it has ended, until it ends by itself; then the next
seed, until `--kills` kills were sent. Each study is then searched for faults. `--plain-kills` does the same at the same
time to two processes of `plain_optuna.py` on one SQLite file. Figures and faults are printed as Markdown; the folders
stay where `--into` says. Linux only: each study gets one core.
"""

import json
import os
import sqlite3
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import optuna
from cyclopts import Parameter

from data.field_guide import GENERA, draw
from model import checkpoint
from tests.stress.monkey import Kind, Strike, Tally, disturb, strikes
from tests.stress.sameness import essence
from tests.stress.script import ROOT, STUDY, header, machine, row, run
from tuning.coordinator import KEPT_CHECKPOINTS
from tuning.trials import Outcome, Trial, count_trials, read_trials

CLASSES, EACH, SIDE = 4, 14, 32
"""Classes, pictures of each, and their side in pixels: an epoch takes a fraction of a second."""
LIMIT = 1800.0
"""Seconds after which a disturbed study is left alone to end by itself."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Plan:
    """The options on the command line."""

    kills: int = 300
    """Kills over all studies of this program."""
    plain_kills: int = 0
    """Kills over all studies of plain Optuna, which run at the same time."""
    trials: int = 40
    epochs: int = 4
    workers: int = 1
    seeds: int = 2
    """Number of different studies."""
    seed: int = 0
    """Seed of the strikes."""
    pause: float = 10.0
    """Mean seconds between two strikes."""
    sleep: float = 20.0
    """Seconds of the longest sleep."""
    at_once: int = 1
    """Number of studies that are disturbed at the same time, each on its own core."""
    into: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="chaos-")))
    """A new folder; by default a temporary one."""

    @property
    def pictures(self) -> Path:
        """The folder of class folders."""
        return self.into / "pictures"

    def command(self, results: Path, seed: int) -> list[str]:
        """Return the command line of this program's study."""
        argv = [*STUDY, "--data", self.pictures, "--device", "cpu", "--cache", self.into / "cache"]
        argv += ["--results", results, "--study", "chaos", "--profile", "quick", "--epochs", self.epochs]
        return list(map(str, [*argv, "--trials", self.trials, "--workers", self.workers, "--seed", seed]))

    def plain(self, results: Path) -> list[list[str]]:
        """Return the command lines of plain Optuna's two processes."""
        argv = [sys.executable, ROOT / "tests" / "stress" / "plain_optuna.py", self.pictures]
        argv += ["--cache", self.into / "cache", "--storage", f"sqlite:///{results / 'plain.db'}"]
        return [list(map(str, [*argv, "--trials", self.trials, "--epochs", self.epochs]))] * 2

    def strikes(self, number: int) -> Iterator[Strike]:
        """Return the strikes of the study with this number."""
        return strikes([self.seed, number], pause=self.pause, sleep=self.sleep)


@dataclass(kw_only=True)
class Ended:
    """A study that has ended, disturbed or not."""

    name: str
    tally: Tally
    trials: list[Trial]
    faults: list[str]
    """Whatever should not be there, a line each."""
    undisturbed: float
    """Seconds of the same study when it ran undisturbed."""
    repeated: int = 0
    """Number of finished epochs that were trained again."""

    @property
    def epochs_lost(self) -> int:
        """Number of reported epochs of trials that do not count."""
        return sum(trial.epochs for trial in self.trials if not trial.counts)

    @property
    def seconds_lost(self) -> float:
        """Seconds beyond those of the undisturbed study and of the sleeps."""
        return self.tally.seconds - self.undisturbed - self.tally.asleep

    @property
    def states(self) -> Counter[str]:
        """Number of trials by Optuna's state."""
        return Counter(trial.state.name for trial in self.trials)

    @property
    def repeats(self) -> int:
        """Number of counted trials with the parameters of an earlier one."""
        points = Counter(json.dumps(trial.params, sort_keys=True) for trial in self.trials if trial.counts)
        return sum(count - 1 for count in points.values())


# -- faults


@dataclass(kw_only=True)
class Epochs:
    """Counts finished epochs that are trained again: each epoch has its own seconds in checkpoint and history."""

    folder: Path
    seen: dict[tuple[str, int], float] = field(default_factory=dict[tuple[str, int], float])
    again: int = 0

    def inspect(self) -> None:
        """Compare what the study's checkpoints and histories hold now with what they held before."""
        for path in self.folder.glob("trials/*/last.pt"):
            try:
                self._note(path.parent.name, [metrics.to_dict() for metrics in checkpoint.load(path).history])
            except checkpoint.CheckpointError:  # replaced or removed in the meantime
                continue
        for path in self.folder.glob("trials/*/history.json"):
            self._note(path.parent.name, json.loads(path.read_text()))

    def _note(self, trial: str, history: list[dict[str, Any]]) -> None:
        for record in history:
            self.again += self.seen.get((trial, record["epoch"]), record["seconds"]) != record["seconds"]
            self.seen[trial, record["epoch"]] = record["seconds"]


def stored(database: Path, name: str) -> list[Trial]:
    """Return the trials of a study in an SQLite database."""
    return read_trials(optuna.load_study(study_name=name, storage=f"sqlite:///{database}"))


def faults(folder: Path, wanted: int, tally: Tally) -> list[str]:
    """Return what a disturbed study has but must not have, a line each.

    Args: `folder`: the study's; `wanted`: number of counted trials it should have.
    """
    found = [f"orphan: {orphan}" for orphan in tally.orphans] + [f"crash: {crash}" for crash in tally.crashes]
    with closing(sqlite3.connect(folder / "study.db", timeout=60)) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    if verdict != "ok":
        found.append(f"database: {verdict}")
    trials = stored(folder / "study.db", folder.name)
    if (counted := count_trials(trials)) != wanted:
        found.append(f"{counted} counted trials instead of {wanted}")
    if [trial.number for trial in trials] != list(range(len(trials))):
        found.append("repeated or missing trial numbers")
    begun = [trial for trial in trials if trial.number < wanted or not trial.is_waiting]
    for trial in begun:  # a study begins with more points than a short one trains
        found += [f"trial {trial.number}: {fault}" for fault in _trial_faults(folder, trial)]
    kept = {path.name for path in folder.glob("trials/*/*")} - {"best.pt", "history.json"}
    complete = sum(trial.outcome is Outcome.COMPLETE for trial in trials)
    if kept or len(list(folder.glob("trials/*/best.pt"))) != min(KEPT_CHECKPOINTS, complete):
        found.append(f"checkpoints of ended trials: {sorted(kept)}")
    if strays := [path.relative_to(folder) for path in folder.rglob(".*")]:
        found.append(f"files left over: {', '.join(map(str, strays))}")
    if sum(max(0, trial.attempts - 1) for trial in trials) > sum(tally.struck.values()) * tally.starts:
        found.append("more attempts than disturbances")
    return found


def _trial_faults(folder: Path, trial: Trial) -> Iterator[str]:
    if not trial.is_finished:
        yield f"left {trial.state.name}"
    if trial.outcome is Outcome.FAILED:
        yield f"failed: {trial.reason}"
    reported = trial.frozen.intermediate_values
    if list(reported) != list(range(len(reported))):
        yield f"epochs {list(reported)} reported"
    path = folder / "trials" / f"{trial.number:04d}" / "history.json"
    history = json.loads(path.read_text()) if path.exists() else []
    if {record["epoch"]: record["top1"] for record in history} != reported or len(history) != len(reported):
        yield f"{len(history)} epochs in its history, {len(reported)} reported"
    if reported and trial.attempts < 1:
        yield "trained in no attempt"


# -- studies


def undisturbed(plan: Plan) -> list[Ended]:
    """Run this program's study of each seed undisturbed, as many at once as later, so that their seconds compare."""
    cores = sorted(os.sched_getaffinity(0))

    def one(seed: int) -> Ended:
        os.sched_setaffinity(0, {cores[seed % plan.at_once % len(cores)]})
        results = plan.into / f"undisturbed-{seed}"
        results.mkdir(parents=True)
        tally = disturb([plan.command(results, seed)], iter(()), log=results / "output.txt", limit=LIMIT)
        trials = stored(results / "chaos" / "study.db", "chaos")
        found = faults(results / "chaos", plan.trials, tally)
        return Ended(name=f"undisturbed {seed}", tally=tally, trials=trials, faults=found, undisturbed=tally.seconds)

    with ThreadPoolExecutor(plan.at_once) as pool:
        return list(pool.map(one, range(plan.seeds)))


def disturbed(plan: Plan, number: int, seed: int, peace: Ended) -> Ended:
    """Run this program's study of a seed under the strikes of this number."""
    results = plan.into / f"disturbed-{number}"
    results.mkdir(parents=True)
    epochs = Epochs(folder=results / "chaos")
    tally = disturb(
        [plan.command(results, seed)],
        plan.strikes(number),
        log=results / "output.txt",
        limit=LIMIT,
        inspect=epochs.inspect,
    )
    epochs.inspect()
    trials = stored(results / "chaos" / "study.db", "chaos")
    found = faults(results / "chaos", plan.trials, tally)
    if plan.workers == 1 and essence([one.frozen for one in trials]) != essence([one.frozen for one in peace.trials]):
        found.append("not equal to the undisturbed study")
    return Ended(
        name=f"study {seed}, kills {number}",
        tally=tally,
        trials=trials,
        faults=found,
        undisturbed=peace.tally.seconds,
        repeated=epochs.again,
    )


def plain(plan: Plan, number: int | None, peace: float = 0.0) -> Ended:
    """Run plain Optuna's study under the strikes of this number, or undisturbed where it is None."""
    results = plan.into / f"plain-{'undisturbed' if number is None else number}"
    results.mkdir(parents=True)
    planned = iter(()) if number is None else plan.strikes(number)
    tally = disturb(plan.plain(results), planned, log=results / "output.txt", limit=LIMIT)
    return Ended(
        name=f"plain, kills {number}",
        tally=tally,
        trials=stored(results / "plain.db", "plain"),
        faults=[f"crash: {crash}" for crash in tally.crashes],
        undisturbed=peace or tally.seconds,
    )


def until_enough(kills: int, at_once: int, study: Callable[[int], Ended]) -> list[Ended]:
    """Run studies 0, 1, ..., `at_once` at a time and each on a core, until they were killed `kills` times in all."""
    ended: list[Ended] = []
    lock, numbers = threading.Lock(), iter(range(10**6))
    cores = sorted(os.sched_getaffinity(0))

    def more(place: int) -> None:
        os.sched_setaffinity(0, {cores[place % len(cores)]})  # of this thread and of what it starts
        while sum(one.tally.kills for one in ended) < kills:
            with lock:
                number = next(numbers)
            ended.append(study(number))
            print_study(ended[-1])

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(more, range(at_once)))
    return ended


# -- tables


def print_study(study: Ended) -> None:
    """Print a row of the table of studies."""
    tally, states = study.tally, study.states
    row(
        study.name,
        tally.kills,
        sum(tally.struck.values()) - tally.kills,
        tally.starts,
        count_trials(study.trials),
        states["RUNNING"] + states["WAITING"],
        states["FAIL"],
        f"{tally.seconds:.0f}",
        f"{tally.asleep:.0f}",
        "; ".join(study.faults) or "none",
    )


def print_summary(heading: str, studies: list[Ended], wanted: int) -> None:
    """Print the totals over all studies of this program, or of plain Optuna."""
    struck = sum((study.tally.struck for study in studies), Counter[Kind]())
    kills = sum(study.tally.kills for study in studies)
    counted = [count_trials(study.trials) for study in studies]
    states = sum((study.states for study in studies), Counter[str]())
    trials = [trial for study in studies for trial in study.trials]
    found = Counter(fault.partition(":")[0] for study in studies for fault in study.faults)
    lines = {
        "studies": len(studies),
        "kills": kills,
        **{str(kind): struck[kind] for kind in Kind},
        "longest sleep, s": f"{max(study.tally.longest for study in studies):.0f}",
        "starts of a command": sum(study.tally.starts for study in studies),
        f"studies with exactly {wanted} counted trials": sum(number == wanted for number in counted),
        "counted trials, fewest and most": f"{min(counted)} and {max(counted)}",
        "trials left RUNNING or WAITING": states["RUNNING"] + states["WAITING"],
        "trials that failed": states["FAIL"],
        "counted trials with the parameters of another": sum(study.repeats for study in studies),
        "epochs of counted trials": sum(trial.epochs for trial in trials if trial.counts),
        "finished epochs lost": sum(study.epochs_lost for study in studies),
        "finished epochs trained again": sum(study.repeated for study in studies),
        "unfinished epochs cut short, at most": sum(max(0, trial.attempts - 1) for trial in trials),
        "exits that no signal explains": sum(len(study.tally.crashes) for study in studies),
        "processes left over": sum(len(study.tally.orphans) for study in studies),
        "seconds undisturbed, mean": f"{sum(study.undisturbed for study in studies) / len(studies):.0f}",
        "seconds lost per kill": f"{sum(study.seconds_lost for study in studies) / max(1, kills):.1f}",
        "studies with a fault": sum(bool(study.faults) for study in studies),
        "faults": ", ".join(f"{count} x {fault}" for fault, count in found.items()) or "none",
    }
    print()
    header("", heading)
    for name, value in lines.items():
        row(name, value)


def main(plan: Plan | None = None) -> None:
    """Run the studies and print the tables; the exit code is 1 if one of this program's studies has a fault."""
    plan = plan or Plan()
    write_pictures(plan.pictures)
    print(f"{machine()}; {plan.into}\n")
    header("study", "kills", "sleeps", "starts", "counted", "RUNNING or WAITING", "FAIL", "seconds", "asleep", "faults")

    def ours() -> list[Ended]:
        peace = undisturbed(plan)
        for one in peace:
            print_study(one)

        def study(number: int) -> Ended:
            seed = number % plan.seeds
            return disturbed(plan, number, seed, peace[seed])

        return until_enough(plan.kills, plan.at_once, study)

    def theirs() -> list[Ended]:
        peace = plain(plan, None)
        print_study(peace)
        return until_enough(plan.plain_kills, 1, lambda number: plain(plan, number, peace.tally.seconds))

    with ThreadPoolExecutor(2) as pool:
        our_run, their_run = pool.submit(ours), pool.submit(theirs) if plan.plain_kills else None
        ended = our_run.result()
        print_summary(f"this program, {plan.workers} worker(s)", ended, plan.trials)
        if their_run is not None:
            print_summary("plain Optuna, 2 processes", their_run.result(), plan.trials)
    raise SystemExit(any(study.faults for study in ended))


def write_pictures(folder: Path) -> None:
    """Write small drawn mushrooms, a folder for each class."""
    for genus in list(GENERA)[:CLASSES]:
        (folder / genus).mkdir(parents=True)
        for index in range(EACH):
            draw(genus, index, size=SIDE).save(folder / genus / f"{index:02d}.png")


if __name__ == "__main__":
    run(main)
