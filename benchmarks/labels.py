"""Which score finds wrong labels: some are planted, and networks that were trained beside them have to doubt them.

    python benchmarks/labels.py field-guide ~/pictures/cifar10 ~/pictures/digits

A share of the labels is changed, in the training pictures too, as nobody would know of them there either: to any other
class, or to the next one, as where two classes are often mixed up. Networks of the best single guess are trained on
the training pictures with several seeds, and score the validation pictures. Figures are means over the plantings
(lowest to highest): how many of the planted labels are in the first tenth of the list, in %, and the average precision.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from optuna.trial import FixedTrial
from torch import Tensor

from benchmarks.measuring import CPU, trained
from data.batches import EvaluationBatches
from data.cache import Part, open_part
from data.prepare import default_cache, find_pictures
from model.metrics import logits
from search_space import PROFILES, Config, guess, suggest
from tests.stress.script import header, machine, row, run


def mean_share(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the mean probability of each label, (N,), given those of all networks (S, N, C)."""
    return given(probabilities.mean(dim=0), labels)


def given(values: Tensor, labels: Tensor) -> Tensor:
    """Return each label's column of (N, C)."""
    return values.gather(1, labels[:, None])[:, 0]


def others(values: Tensor, labels: Tensor) -> Tensor:
    """Return the highest of the columns that are not the label's."""
    return values.scatter(1, labels[:, None], -torch.inf).max(dim=1).values


def above_threshold(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the label's probability less its mean over the pictures with that label (Northcutt et al. 2021)."""
    shares = mean_share(probabilities, labels)
    means = torch.stack([shares[labels == label].mean() for label in range(probabilities.shape[2])])
    return shares - means[labels]


def margin(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the label's mean probability less that of the likeliest other class."""
    mean = probabilities.mean(dim=0)
    return given(mean, labels) - others(mean, labels)


def votes(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the number of networks that choose the label; equal ones are ordered by its mean probability."""
    return (probabilities.argmax(dim=2) == labels).double().sum(dim=0) + mean_share(probabilities, labels) / 2


SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "probability": mean_share,
    "log-probability": lambda probabilities, labels: given(probabilities.log().mean(dim=0), labels),
    "margin": margin,
    "above the class's mean": above_threshold,
    "votes": votes,
    "probability, one network": lambda probabilities, labels: mean_share(probabilities[:1], labels),
}
"""Scores by name: the lower, the more doubtful. `probability` is that of `selection.doubts`."""


def main(
    *data: str,
    pictures: int = 2000,
    side: int = 32,
    shown: int = 30000,
    share: float = 0.08,
    plantings: int = 3,
    networks: int = 3,
) -> None:
    """Plant wrong labels in each data set, and compare the scores.

    Parameters
    ----------
    data
        Folders of pictures, or field-guide.
    pictures
        Largest number of pictures of each data set.
    side
        Pixels per side.
    shown
        Number of pictures that a network is shown in its training.
    share
        Share of the labels that are made wrong.
    plantings
        Number of times that labels are planted.
    networks
        Number of networks, each with another seed.
    """
    torch.set_num_threads(1)
    print(f"{machine()}\n")
    header("data, wrong labels", "validation pictures, planted", "top-1 %, true labels", *SCORES)
    for name in data:
        found = find_pictures(name, limit=pictures)
        handle = found.decode([side], cache_dir=default_cache())
        train, validation = open_part(handle, side, "train"), open_part(handle, side, "validation")
        config = single_guess(side, train, shown)
        for kind in ("any class", "the next class"):
            right: list[float] = []
            results: dict[str, list[tuple[float, float]]] = {score: [] for score in SCORES}
            for planting in range(plantings):
                chance = np.random.default_rng(planting)
                learned, judged = (plant(part, share, chance, kind == "any class") for part in (train, validation))
                wrong = torch.from_numpy(judged.labels != validation.labels)
                seeds = [100 * planting + seed for seed in range(networks)]
                batches = EvaluationBatches(judged, device=CPU)
                outputs = [logits(trained(config, learned, judged, seed), batches)[0] for seed in seeds]
                probabilities = torch.stack(outputs).double().softmax(dim=2)
                truth = torch.from_numpy(validation.labels)
                right.append(float((probabilities.mean(dim=0).argmax(dim=1) == truth).double().mean()))
                for score, function in SCORES.items():
                    places = function(probabilities, torch.from_numpy(judged.labels)).argsort(stable=True)
                    results[score].append(judge(wrong[places]))
            row(
                f"{Path(name).name}, {kind}",
                f"{len(validation.labels):,}, {round(share * len(validation.labels))}",
                f"{100 * statistics.fmean(right):.1f}",
                *(
                    f"{spread([first for first, _ in values], 0)}; {spread([whole for _, whole in values], 2)}"
                    for values in results.values()
                ),
            )


def single_guess(side: int, train: Part, shown: int) -> Config:
    profile = PROFILES["quick"].within(side)
    profile = replace(profile, epochs=max(1, round(shown / len(train.labels))))
    return suggest(FixedTrial(guess(profile)), profile, train.classes)  # pyright: ignore[reportArgumentType]


def plant(part: Part, share: float, chance: np.random.Generator, anywhere: bool) -> Part:
    """Return the part with a share of its labels changed, to any other class or to the next one."""
    count = len(part.labels)
    chosen = chance.choice(count, round(share * count), replace=False)
    labels = part.labels.copy()
    step = chance.integers(1, part.classes, len(chosen)) if anywhere else 1
    labels[chosen] = (labels[chosen] + step) % part.classes
    return replace(part, labels=labels)


def judge(wrong: Tensor) -> tuple[float, float]:
    """Return the share of wrong labels in the first tenth, in %, and the average precision; (N,) bool, in order."""
    hits = wrong.double().cumsum(dim=0)
    precision = (hits / torch.arange(1, len(wrong) + 1))[wrong].mean()
    return 100 * float(wrong[: len(wrong) // 10].sum() / wrong.sum()), float(precision)


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.fmean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    run(main)
