"""Whole studies as a user runs them, one per seed: best accuracy, baselines, outcomes and minutes.

    python benchmarks/studies.py --seeds 0 1 2
    python benchmarks/studies.py --seeds 0 -- --data PATH --pictures 5000

Each study starts in an empty temporary folder, with the decoded pictures already in the cache, and runs with the
defaults of `study.py`. The minutes are those of its trials, from the first one's start to the last one's end.
"""

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import optuna

from tests.stress.script import STUDY, header, machine, row, run
from tuning.folder import sqlite_url
from tuning.trials import Outcome, count_trials, read_trials, top

BASELINES = ("original recipe", "hand-tuned recipe", "best single guess")


def main(*options: str, seeds: tuple[int, ...] = (0, 1, 2), trials: int = 40) -> None:
    """Run the studies one after the other and print a table.

    Parameters
    ----------
    options
        Further options of study.py, after --.
    """
    print(machine())
    header("seed", "best top-1 %", *BASELINES, "complete", "pruned", "other", "counted", "minutes", "expected")
    for seed in seeds:
        row(seed, *study(trials, seed, options))


def study(trials: int, seed: int, options: tuple[str, ...]) -> list[object]:
    """Run one study in a temporary folder; return its cells of the table, except the seed."""
    with tempfile.TemporaryDirectory() as results:
        command = [*STUDY, "--results", results, "--study", "benchmark", "--trials", str(trials), "--seed", str(seed)]
        output = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE, text=True).stdout
        plan = next(line for line in output.splitlines() if line.startswith("Study "))
        stored = optuna.load_study(study_name="benchmark", storage=sqlite_url(Path(results) / "benchmark"))
        ended = read_trials(stored)
    outcomes = Counter(trial.outcome for trial in ended)
    reached = {trial.baseline: f"{100 * (trial.value or 0.0):.1f}" for trial in ended if trial.baseline}
    starts = [trial.started for trial in ended if trial.started]
    ends = [trial.ended for trial in ended if trial.ended]
    shown = (Outcome.COMPLETE, Outcome.PRUNED)
    other = [f"{outcomes[outcome]} {outcome}" for outcome in Outcome if outcome not in shown and outcomes[outcome]]
    return [
        f"{100 * (top(ended, 1)[0].value or 0.0):.1f}",
        *(reached.get(name, "-") for name in BASELINES),
        *(outcomes[outcome] for outcome in shown),
        ", ".join(other) or "-",
        count_trials(ended),
        f"{(max(ends) - min(starts)).total_seconds() / 60:.1f}",
        plan.rpartition("about ")[2].rstrip("."),
    ]


if __name__ == "__main__":
    run(main)
