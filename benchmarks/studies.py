"""Whole studies as a user runs them, one per seed: best accuracy, outcomes and minutes, beside the known-good recipes.

    python benchmarks/studies.py --seeds 0 1 2
    python benchmarks/studies.py --seeds 0 -- --data PATH --pictures 5000

Each study starts anew in a temporary folder, with the decoded pictures already in the cache, and runs with the defaults
of `study.py`; the minutes are those of its trials, from the first one's start to the last one's end.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import optuna

from benchmarks.measuring import machine

STUDY = Path(__file__).resolve().parent.parent / "study.py"


def main() -> None:
    """Runs the studies one after the other and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("options", nargs="*", help="further options of study.py, after --")
    chosen = parser.parse_args()

    print(machine())
    columns = ["seed", "best top-1 %", "original recipe", "improved by hand", "complete", "pruned", "other", "counted"]
    columns += ["minutes", "expected"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for seed in chosen.seeds:
        print(run(chosen.trials, seed, chosen.options), flush=True)


def run(trials: int, seed: int, options: list[str]) -> str:
    """One study in a folder of its own; its row of the table."""
    with tempfile.TemporaryDirectory() as results:
        command = [sys.executable, str(STUDY), "--results", results, "--study", "benchmark"]
        command += ["--trials", str(trials), "--seed", str(seed), *options]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        expected = next(line for line in output.splitlines() if line.startswith("Study ")).rpartition("about ")[2]
        storage = f"sqlite:///{results}/benchmark/study.db"
        ended = optuna.load_study(study_name="benchmark", storage=storage).get_trials(deepcopy=False)
    outcomes = Counter(trial.user_attrs["outcome"] for trial in ended)
    counted = sum(outcomes[outcome] for outcome in ("complete", "pruned", "diverged"))
    known = {trial.user_attrs["known_good"]: trial.value for trial in ended if "known_good" in trial.user_attrs}
    best = max(trial.value or 0.0 for trial in ended if trial.state is optuna.trial.TrialState.COMPLETE)
    ends = [trial.datetime_complete for trial in ended if trial.datetime_complete is not None]
    starts = [trial.datetime_start for trial in ended if trial.datetime_start is not None]
    other = ", ".join(f"{n} {kind}" for kind, n in sorted(outcomes.items()) if kind not in ("complete", "pruned"))
    cells = [
        str(seed),
        f"{100 * best:.1f}",
        *(f"{100 * (known[name] or 0.0):.1f}" for name in ("original recipe", "improved by hand")),
        str(outcomes["complete"]),
        str(outcomes["pruned"]),
        other or "-",
        str(counted),
        f"{(max(ends) - min(starts)).total_seconds() / 60:.1f}",
        expected.rstrip("."),
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
