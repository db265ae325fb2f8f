"""What the averaged probabilities of a winner's seeds gain over a single one.

    python benchmarks/ensemble.py results/field-guide results/cifar10

The networks that `retrain` trained are compared: the winner's finalist runs on the validation pictures, and its final
runs on the test pictures, which are not used up by that, as nothing is chosen by them.
"""

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from commands.console import make_console
from commands.options import find_study
from data.split import PartName
from model.metrics import Logits, wilson
from search_space import Config
from selection.finalists import KIND as FINALISTS
from selection.fixed_runs import weights
from selection.retraining import FINAL_RUNS, Evaluator, Winner
from tests.stress.script import header, machine, row, run
from tuning import devices
from tuning.database import load_sibling
from tuning.trials import Outcome, read_trials


def main(*folders: Path) -> None:
    """Compare the networks of each study's winner.

    Parameters
    ----------
    folders
        Folders of studies that were retrained.
    """
    print(f"{machine()}\n")
    header("study", "part", "pictures", "networks", "one, mean % (range)", "together %", "95 % interval", "gain")
    console = make_console()
    for folder in folders:
        found = find_study(console, folder.resolve().parent, folder.name, None)
        winner = Winner.load(found.folder)
        assert winner is not None, f"{folder} was not retrained"
        config = Config.from_dict(winner.config)
        session = found.reopen([config.image_size], slots=devices.slots("cpu", 1))
        evaluator = Evaluator(data=session.data, device="cpu")
        parts: tuple[tuple[str, PartName], ...] = ((FINALISTS, "validation"), (FINAL_RUNS, "test"))
        for kind, part in parts:
            study = load_sibling(session.study, kind)
            assert study is not None, f"{folder} was not retrained"
            runs = [one for one in read_trials(study) if one.config == config and one.outcome is Outcome.COMPLETE]
            paths = [weights(session.folder / kind, one) for one in runs]
            compare(folder.name, part, [evaluator.logits(config, path, part) for path in paths])


def compare(name: str, part: PartName, outputs: list[Logits]) -> None:
    """Print the accuracies of the networks, and that of their mean probabilities."""
    labels, together = outputs[0][1], torch.stack([one.double().softmax(dim=1) for one, _ in outputs]).mean(dim=0)
    alone = [float((logits.argmax(dim=1) == labels).double().mean()) for logits, _ in outputs]
    hits, pictures = int((together.argmax(dim=1) == labels).sum()), len(labels)
    low, high = wilson(hits, pictures)
    row(
        name,
        part,
        f"{pictures:,}",
        str(len(outputs)),
        f"{100 * statistics.fmean(alone):.1f} ({100 * min(alone):.1f} to {100 * max(alone):.1f})",
        f"{100 * hits / pictures:.1f}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{100 * (hits / pictures - statistics.fmean(alone)):+.1f}",
    )


if __name__ == "__main__":
    run(main)
