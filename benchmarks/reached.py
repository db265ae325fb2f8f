"""How many epochs, over all its trials, a study had trained when it first reached an accuracy, and after how long.

    python benchmarks/reached.py results/field-guide results/cifar10 --targets 66.2 71.9 90

The epochs of a trial are spread evenly over the time that it was trained.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from commands.console import make_console
from commands.options import find_study
from tests.stress.script import header, row, run
from tuning.trials import Trial, read_trials


class Epoch(NamedTuple):
    """An epoch of a trial; the first field sorts by time."""

    ended: float
    """Unix time in seconds."""
    top1: float
    """Validation top-1, 0 to 1."""
    trial: int
    number: int
    """Number of the epoch, from 1."""


def epochs_of(trial: Trial) -> list[Epoch]:
    """Return the epochs of a trial that has left its slot at least once."""
    spans = [(begin, end) for begin, end in trial.spans if end is not None]
    whole = sum(end - begin for begin, end in spans)
    found: list[Epoch] = []
    for number, top1 in enumerate(trial.curve.values(), start=1):
        left = whole * number / trial.epochs
        ended = spans[-1][1]
        for begin, end in spans:
            if left <= end - begin:
                ended = begin + left
                break
            left -= end - begin
        found.append(Epoch(ended, top1, trial.number, number))
    return found


def main(*folders: Path, targets: Sequence[float] = (50.0, 75.0, 90.0)) -> None:
    """Print a row for each study and target.

    Parameters
    ----------
    folders
        Folders of studies.
    targets
        Validation top-1 in percent.
    """
    console = make_console()
    studies = [find_study(console, folder.resolve().parent, folder.name, None) for folder in folders]
    print()
    header("study", "epochs, trials", "target %", "epochs until then", "trials begun", "s", "by")
    for name, study in ((found.name, found.study) for found in studies):
        trials = [trial for trial in read_trials(study) if trial.epochs and any(end for _, end in trial.spans)]
        epochs = sorted(epoch for trial in trials for epoch in epochs_of(trial))
        start = min(trial.spans[0][0] for trial in trials)
        for target in targets:
            first = next((place for place, epoch in enumerate(epochs) if 100 * epoch.top1 >= target), None)
            if first is None:
                row(name, f"{len(epochs)}, {len(trials)}", f"{target:g}", "never", "", "", "")
                continue
            at = epochs[first]
            begun = sum(trial.spans[0][0] < at.ended for trial in trials)
            row(
                name,
                f"{len(epochs)}, {len(trials)}",
                f"{target:g}",
                first + 1,
                begun,
                f"{at.ended - start:.0f}",
                f"trial {at.trial}, epoch {at.number}",
            )


if __name__ == "__main__":
    run(main)
