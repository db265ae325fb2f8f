"""Studies that are killed again and again: this program's, and the plain way's, over the same pictures.

    python tests/stress/chaos.py --kills 300
    nice python tests/stress/chaos.py --kills 300 --plain-kills 100 --at-once 2 --sleep 180

A study of 40 small trials is run undisturbed. Then it is run anew, and killed, interrupted and put to sleep at random
moments drawn from a seed, and started again whenever it has ended, until it ends by itself; and so on with the next
seed, until there were so many kills. Each study is then searched for whatever should not be there. `--plain-kills`
does the same, meanwhile, to two processes of `plain_optuna.py` on one SQLite file. Figures go to the screen as
Markdown, what is wrong as well; the folders stay where `--into` says. Linux only: each study gets one core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import optuna
from optuna.trial import FrozenTrial, TrialState

from data.field_guide import GENERA, draw
from model import checkpoint
from tests.stress.monkey import Kind, Tally, disturb, strikes
from tests.stress.sameness import essence
from tuning.coordinator import KEPT_CHECKPOINTS
from tuning.storage import counts

ROOT = Path(__file__).resolve().parents[2]
CLASSES, EACH, SIDE = 4, 14, 32
"""Classes, pictures of each, and their side in pixels: an epoch takes a fraction of a second."""
LIMIT = 1800.0
"""Seconds of one disturbed study after which it is left in peace, to see whether it ends."""
LEFT_OVER = "files left over"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every study of a run has in common."""

    into: Path
    trials: int
    epochs: int
    workers: int
    pause: float
    sleep: float
    seed: int

    @property
    def pictures(self) -> Path:
        """The folder of class folders."""
        return self.into / "pictures"

    @property
    def cache(self) -> Path:
        """Of decoded pictures."""
        return self.into / "cache"

    def command(self, results: Path, seed: int) -> list[str]:
        """The command line of a study."""
        words = [sys.executable, str(ROOT / "study.py"), "--data", str(self.pictures), "--device", "cpu"]
        words += ["--cache", str(self.cache), "--results", str(results), "--study", "chaos", "--profile", "quick"]
        words += ["--epochs", str(self.epochs), "--trials", str(self.trials), "--workers", str(self.workers)]
        return [*words, "--seed", str(seed)]

    def plain(self, results: Path) -> list[list[str]]:
        """The two processes of the plain way."""
        words = [
            sys.executable,
            str(ROOT / "benchmarks" / "plain_optuna.py"),
            str(self.pictures),
            "--cache",
            str(self.cache),
        ]
        words += ["--storage", f"sqlite:///{results / 'plain.db'}"]
        words += ["--trials", str(self.trials), "--epochs", str(self.epochs)]
        return [words, words]

    def strikes(self, *seed: int) -> Iterator[Any]:
        """The disturbances of one study."""
        return strikes([self.seed, *seed], pause=self.pause, sleep=self.sleep)


@dataclass(kw_only=True)
class Ended:
    """One study that has ended, disturbed or not."""

    name: str
    tally: Tally
    trials: list[FrozenTrial]
    wrong: list[str]
    """Whatever should not be there, a line each."""
    undisturbed: float
    """Seconds that the same took without."""
    repeated: int = 0
    """Finished epochs that were trained again."""
    thrown_away: int = 0
    """Reported epochs of trials that do not count."""

    @property
    def lost(self) -> float:
        """Seconds beyond those of the undisturbed study and of the sleeps."""
        return self.tally.seconds - self.undisturbed - self.tally.asleep

    @property
    def states(self) -> Counter[str]:
        """Trials by state."""
        return Counter(trial.state.name for trial in self.trials)

    @property
    def twice(self) -> int:
        """Counted trials with the parameters of an earlier one."""
        points = Counter(json.dumps(trial.params, sort_keys=True) for trial in self.trials if counts(trial))
        return sum(count - 1 for count in points.values())


# -- what is looked for


@dataclass(kw_only=True)
class Epochs:
    """Watches that no finished epoch is trained again: each has its own seconds, kept in checkpoint and history."""

    folder: Path
    seen: dict[tuple[str, int], float] = field(default_factory=dict[tuple[str, int], float])
    again: int = 0

    def look(self) -> None:
        """Notes what the study's checkpoints and histories hold now."""
        for path in self.folder.glob("trials/*/last.pt"):
            try:
                self._note(path.parent.name, [metrics.to_dict() for metrics in checkpoint.load(path).history])
            except checkpoint.CheckpointError:  # replaced or removed meanwhile
                continue
        for path in self.folder.glob("trials/*/history.json"):
            self._note(path.parent.name, json.loads(path.read_text()))

    def _note(self, trial: str, history: list[dict[str, Any]]) -> None:
        for record in history:
            self.again += self.seen.get((trial, record["epoch"]), record["seconds"]) != record["seconds"]
            self.seen[trial, record["epoch"]] = record["seconds"]


def stored(database: Path, name: str) -> list[FrozenTrial]:
    """The trials of a study, as anybody reads them."""
    return optuna.load_study(study_name=name, storage=f"sqlite:///{database}").get_trials()


def faults(folder: Path, wanted: int, tally: Tally) -> list[str]:
    """What a study that has been disturbed must not have, a line for each that it has.

    Args: `folder`: the study's; `wanted`: counted trials.
    """
    wrong = [f"orphan: {orphan}" for orphan in tally.orphans] + [f"crash: {crash}" for crash in tally.crashes]
    with closing(sqlite3.connect(folder / "study.db", timeout=60)) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    if verdict != "ok":
        wrong.append(f"database: {verdict}")
    trials = stored(folder / "study.db", folder.name)
    if (counted := sum(map(counts, trials))) != wanted:
        wrong.append(f"{counted} counted trials instead of {wanted}")
    if [trial.number for trial in trials] != list(range(len(trials))):
        wrong.append("numbers twice or missing")
    for trial in trials:
        wrong += [f"trial {trial.number}: {fault}" for fault in _trial_faults(folder, trial)]
    kept = {path.name for path in folder.glob("trials/*/*")} - {"best.pt", "history.json"}
    complete = sum(trial.state is TrialState.COMPLETE for trial in trials)
    if kept or len(list(folder.glob("trials/*/best.pt"))) != min(KEPT_CHECKPOINTS, complete):
        wrong.append(f"checkpoints of ended trials: {sorted(kept)}")
    if strays := [path.relative_to(folder) for path in folder.rglob(".*")]:
        wrong.append(f"{LEFT_OVER}: {', '.join(map(str, strays))}")
    if sum(trial.user_attrs.get("attempts", 1) - 1 for trial in trials) > sum(tally.struck.values()) * tally.starts:
        wrong.append("more attempts than disturbances")
    return wrong


def _trial_faults(folder: Path, trial: FrozenTrial) -> Iterator[str]:
    if not trial.state.is_finished():
        yield f"left {trial.state.name}"
    if trial.state is TrialState.FAIL and trial.user_attrs.get("outcome") != "duplicate":
        yield f"failed: {trial.user_attrs.get('reason')}"
    reported = trial.intermediate_values
    if list(reported) != list(range(len(reported))):
        yield f"epochs {list(reported)} reported"
    path = folder / "trials" / f"{trial.number:04d}" / "history.json"
    history = json.loads(path.read_text()) if path.exists() else []
    if {record["epoch"]: record["top1"] for record in history} != reported or len(history) != len(reported):
        yield f"{len(history)} epochs in its history, {len(reported)} reported"
    if reported and trial.user_attrs.get("attempts", 0) < 1:
        yield "trained in no attempt"


# -- the studies


def undisturbed(plan: Plan, seed: int) -> Ended:
    """This program's study of a seed in peace."""
    results = plan.into / f"undisturbed-{seed}"
    results.mkdir(parents=True)
    tally = disturb([plan.command(results, seed)], iter(()), log=results / "output.txt", limit=LIMIT)
    trials = stored(results / "chaos" / "study.db", "chaos")
    wrong = faults(results / "chaos", plan.trials, tally)
    return Ended(name=f"undisturbed {seed}", tally=tally, trials=trials, wrong=wrong, undisturbed=tally.seconds)


def in_peace(plan: Plan, seeds: Sequence[int], at_once: int) -> list[Ended]:
    """This program's studies of these seeds, so many at once as later, so that their seconds compare."""
    cores = sorted(os.sched_getaffinity(0))

    def run(seed: int) -> Ended:
        os.sched_setaffinity(0, {cores[seed % at_once % len(cores)]})
        return undisturbed(plan, seed)

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(run, seeds))


def disturbed(plan: Plan, number: int, seed: int, peace: Ended) -> Ended:
    """This program's study of a seed, struck as the `number` says."""
    results = plan.into / f"disturbed-{number}"
    results.mkdir(parents=True)
    epochs = Epochs(folder=results / "chaos")
    tally = disturb(
        [plan.command(results, seed)],
        plan.strikes(number),
        log=results / "output.txt",
        limit=LIMIT,
        look=epochs.look,
    )
    epochs.look()
    trials = stored(results / "chaos" / "study.db", "chaos")
    wrong = faults(results / "chaos", plan.trials, tally)
    if plan.workers == 1 and essence(trials) != essence(peace.trials):
        wrong.append("not equal to the undisturbed study")
    return Ended(
        name=f"study {seed}, kills {number}",
        tally=tally,
        trials=trials,
        wrong=wrong,
        undisturbed=peace.tally.seconds,
        repeated=epochs.again,
        thrown_away=sum(len(trial.intermediate_values) for trial in trials if not counts(trial)),
    )


def plain(plan: Plan, number: int | None, peace: float = 0.0) -> Ended:
    """The plain way's study, struck as the `number` says; None: in peace."""
    results = plan.into / f"plain-{'undisturbed' if number is None else number}"
    results.mkdir(parents=True)
    planned = iter(()) if number is None else plan.strikes(number)
    tally = disturb(plan.plain(results), planned, log=results / "output.txt", limit=LIMIT)
    trials = stored(results / "plain.db", "plain")
    wrong = [f"crash: {crash}" for crash in tally.crashes]
    return Ended(
        name=f"plain, kills {number}",
        tally=tally,
        trials=trials,
        wrong=wrong,
        undisturbed=peace or tally.seconds,
        thrown_away=sum(len(trial.intermediate_values) for trial in trials if not counts(trial)),
    )


def until_enough(kills: int, at_once: int, run: Callable[[int], Ended]) -> list[Ended]:
    """Runs studies 0, 1, ... so many at once, a core for each, until they were killed so often in all."""
    ended: list[Ended] = []
    lock, numbers = threading.Lock(), iter(range(10**6))
    cores = sorted(os.sched_getaffinity(0))

    def more(place: int) -> None:
        os.sched_setaffinity(0, {cores[place % len(cores)]})  # of this thread and what it starts
        while sum(study.tally.kills for study in ended) < kills:
            with lock:
                number = next(numbers)
            study = run(number)
            ended.append(study)
            print(row(study), flush=True)

    with ThreadPoolExecutor(at_once) as pool:
        for future in [pool.submit(more, place) for place in range(at_once)]:
            future.result()
    return ended


# -- tables

COLUMNS = ("study", "kills", "sleeps", "starts", "counted", "RUNNING or WAITING", "FAIL", "seconds", "asleep", "wrong")


def row(study: Ended) -> str:
    """One line of the table of studies."""
    tally, states = study.tally, study.states
    cells = [
        study.name,
        tally.kills,
        sum(tally.struck.values()) - tally.kills,
        tally.starts,
        sum(map(counts, study.trials)),
        states["RUNNING"] + states["WAITING"],
        states["FAIL"],
        f"{tally.seconds:.0f}",
        f"{tally.asleep:.0f}",
        "; ".join(study.wrong) or "nothing",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def summary(heading: str, studies: list[Ended], wanted: int) -> str:
    """What a way has lost over all its studies, as lines of a table."""
    struck = sum((study.tally.struck for study in studies), Counter[Kind]())
    kills = sum(study.tally.kills for study in studies)
    counted = [sum(map(counts, study.trials)) for study in studies]
    attempts = sum(trial.user_attrs.get("attempts", 1) - 1 for study in studies for trial in study.trials)
    epochs = sum(len(trial.intermediate_values) for study in studies for trial in study.trials if counts(trial))
    wrong = Counter(fault.partition(":")[0] for study in studies for fault in study.wrong)
    crashes = sum(len(study.tally.crashes) for study in studies)
    lines = {
        "studies": len(studies),
        "kills": kills,
        **{str(kind): struck[kind] for kind in Kind},
        "longest sleep, s": f"{max(study.tally.longest for study in studies):.0f}",
        "starts of a command": sum(study.tally.starts for study in studies),
        f"studies with exactly {wanted} counted trials": sum(number == wanted for number in counted),
        "counted trials, fewest and most": f"{min(counted)} and {max(counted)}",
        "trials left RUNNING": sum(study.states["RUNNING"] for study in studies),
        "trials left WAITING": sum(study.states["WAITING"] for study in studies),
        "trials FAIL": sum(study.states["FAIL"] for study in studies),
        "counted trials with the parameters of another": sum(study.twice for study in studies),
        "epochs of counted trials": epochs,
        "finished epochs thrown away": sum(study.thrown_away for study in studies),
        "finished epochs trained again": sum(study.repeated for study in studies),
        "begun epochs cut short, at most": attempts,
        "ends with an error": crashes,
        "processes left": sum(len(study.tally.orphans) for study in studies),
        "seconds undisturbed, mean": f"{sum(study.undisturbed for study in studies) / len(studies):.0f}",
        "seconds lost per kill": f"{sum(study.lost for study in studies) / max(1, kills):.1f}",
        "studies with anything wrong": sum(bool(study.wrong) for study in studies),
        "what": ", ".join(f"{count} x {fault}" for fault, count in wrong.items()) or "-",
    }
    return "\n".join([f"\n| | {heading} |", "|---|---|", *(f"| {name} | {value} |" for name, value in lines.items())])


def main() -> None:
    """Runs the studies and prints the tables; exit code 1 where one of this program's has anything wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="of each way, over all its studies")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=2, help="how many different studies")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--pause", type=float, default=10.0, help="mean seconds between two disturbances")
    parser.add_argument("--sleep", type=float, default=20.0, help="the longest sleep, in seconds")
    parser.add_argument("--at-once", type=int, default=1, help="how many disturbed studies, each with a core to itself")
    parser.add_argument("--plain-kills", type=int, default=0, help="of the plain way, at the same time")
    parser.add_argument("--into", type=Path, help="a new folder; by default a temporary one")
    chosen = parser.parse_args()

    plan = Plan(
        into=(chosen.into or Path(tempfile.mkdtemp(prefix="chaos-"))).absolute(),
        trials=chosen.trials,
        epochs=chosen.epochs,
        workers=chosen.workers,
        pause=chosen.pause,
        sleep=chosen.sleep,
        seed=chosen.seed,
    )
    write_pictures(plan.pictures)
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "optuna"))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}; {plan.into}\n"
    )
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")

    with ThreadPoolExecutor(2) as pool:

        def ours() -> list[Ended]:
            peace = in_peace(plan, range(chosen.seeds), chosen.at_once)
            for study in peace:
                print(row(study), flush=True)

            def run(number: int) -> Ended:
                seed = number % chosen.seeds
                return disturbed(plan, number, seed, peace[seed])

            return until_enough(chosen.kills, chosen.at_once, run)

        def theirs() -> list[Ended]:
            peace = plain(plan, None)
            print(row(peace), flush=True)
            return until_enough(chosen.plain_kills, 1, lambda number: plain(plan, number, peace.tally.seconds))

        mine, other = pool.submit(ours), pool.submit(theirs) if chosen.plain_kills else None
        ended = mine.result()
        print(summary(f"this program, {plan.workers} worker(s)", ended, plan.trials), flush=True)
        if other is not None:
            print(summary("plain Optuna, 2 processes", other.result(), plan.trials), flush=True)
    raise SystemExit(any(study.wrong for study in ended))


def write_pictures(folder: Path) -> None:
    """Small drawn mushrooms, a folder for each class."""
    for genus in list(GENERA)[:CLASSES]:
        (folder / genus).mkdir(parents=True)
        for index in range(EACH):
            draw(genus, index, size=SIDE).save(folder / genus / f"{index:02d}.png")


if __name__ == "__main__":
    main()
