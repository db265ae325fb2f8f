"""Which score tells pictures unlike anything that a network has learned, and how many of them are called strangers.

    python benchmarks/strangers.py field-guide ~/pictures/cifar10 ~/pictures/digits

Of each data set, every fourth class is left out. Networks of the best single guess learn the others, each with another
seed, as for `retrain`: on the training pictures, so that the validation pictures give the limit, and on both together,
which are the networks that are measured. Known pictures are those of the test part; strangers are the test pictures of
the classes left out and of the other data sets, noise, and pictures of one colour.

The figures are areas under the ROC curve in %, mean (standard deviation) over the seeds: the share of pairs of a known
picture and a stranger in which the stranger's score is the higher one. A second table says how many of the pictures
`model.strangers` calls strangers, in %, mean (lowest to highest).
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.labels import single_guess, spread
from benchmarks.measuring import trained
from data.cache import CacheHandle, Part, open_part
from data.prepare import default_cache, find_pictures
from model.network import MushroomCNN
from model.preprocessing import normalise
from model.strangers import AS_MEASURED, find_limit, fit
from tests.stress.script import header, machine, row, run

MADE = 200
"""Number of pictures of noise, and of one colour."""
EVERY = 4
"""One class of so many is left out."""
BATCH = 64

Squares = npt.NDArray[np.uint8]


def main(*data: str, pictures: int = 4000, side: int = 48, shown: int = 40000, networks: int = 3) -> None:
    """Train networks on each data set, and compare the scores on every kind of strangers.

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
    networks
        Number of seeds.
    """
    print(f"{machine()}\n")
    header("known pictures (number; top-1 %)", "strangers (number)", *SCORES)
    found = {Path(name).name: find_pictures(name, limit=pictures) for name in data}
    handles = {name: one.decode([side], cache_dir=default_cache()) for name, one in found.items()}
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (MADE, 1, 1, 3), dtype=np.uint8)
    made = {
        "noise": rng.integers(0, 256, (MADE, side, side, 3), dtype=np.uint8),
        "one colour": np.broadcast_to(colours, (MADE, side, side, 3)).copy(),
    }
    shares: list[tuple[str, ...]] = []
    means: dict[str, list[float]] = {score: [] for score in SCORES}
    for name, handle in handles.items():
        left_out = squares(part_of(handle, side, "test", known=False))
        others = {other: squares(part_of(handles[other], side, "test")) for other in handles if other != name}
        strangers = {"classes left out": left_out, **others, **made}
        areas: dict[str, dict[str, list[float]]] = {kind: {score: [] for score in SCORES} for kind in strangers}
        called: dict[str, list[float]] = {"known": [], **{kind: [] for kind in strangers}}
        parts = [part_of(handle, side, *names) for names in (("train",), ("validation",), ("train", "validation"))]
        train, validation, both = parts
        config, test = single_guess(side, train, shown), part_of(handle, side, "test")
        first = [Learned(trained(config, train, validation, seed), train) for seed in range(networks)]
        limit = find_limit(torch.stack([one.familiar.measure(*one.outputs(squares(validation))) for one in first]))
        assert limit.strangest is not None, f"{name} has too few validation pictures"
        right: list[float] = []
        for seed in range(networks, 2 * networks):
            final = Learned(trained(single_guess(side, both, shown), both, validation, seed), both, limit.usual)
            known = final.scores(squares(test))
            _, logits = final.outputs(squares(test))
            right.append(100 * float((logits.argmax(dim=1).numpy() == test.labels).mean()))
            called["known"].append(100 * float((known[OURS] > limit.strangest).double().mean()))
            for kind, some in strangers.items():
                strange = final.scores(some)
                called[kind].append(100 * float((strange[OURS] > limit.strangest).double().mean()))
                for score in SCORES:
                    areas[kind][score].append(100 * area(known[score], strange[score]))
        for kind, by_score in areas.items():
            cells = [f"{statistics.fmean(one):.1f} ({statistics.stdev(one):.1f})" for one in by_score.values()]
            who = f"{name} ({len(test.labels):,}; {statistics.fmean(right):.1f})"
            row(who, f"{kind} ({len(strangers[kind]):,})", *cells)
            for score, one in by_score.items():
                means[score].append(statistics.fmean(one))
        shares.append((name, *(f"{kind}: {spread(one, 0)}" for kind, one in called.items())))
    row("mean of all rows", "", *(f"{statistics.fmean(one):.1f}" for one in means.values()))
    print("\nCalled strangers, in %")
    for name, *cells in shares:
        print(f"{name}: {'; '.join(cells)}")


def part_of(handle: CacheHandle, side: int, *names: str, known: bool = True) -> Part:
    """Return the pictures of the classes that are learned, numbered from 0, or of those that are left out."""
    part = open_part(handle, side, *names)  # pyright: ignore[reportArgumentType]
    learned = [label for label in range(part.classes) if (label + 1) % EVERY]
    chosen = np.isin(part.labels, learned) == known
    numbers = np.cumsum(np.isin(np.arange(part.classes), learned)) - 1
    labels = numbers[part.labels[chosen]] if known else part.labels[chosen]
    return replace(part, indices=part.indices[chosen], labels=labels, classes=len(learned))


def squares(part: Part) -> Squares:
    return np.asarray(part.images[part.indices])


def area(known: Tensor, strange: Tensor) -> float:
    """Return the share of pairs in which the stranger's score is higher; equal ones count half."""
    ordered = known.sort().values
    below, above = (torch.searchsorted(ordered, strange, right=right) for right in (False, True))
    return float((below + above).double().mean() / 2 / len(known))


class Learned:
    """A network and the features of its training pictures."""

    def __init__(self, network: MushroomCNN, train: Part, usual: Sequence[float] = AS_MEASURED) -> None:
        self.network = network
        self.features, _ = self.outputs(squares(train))
        labels = torch.from_numpy(train.labels)
        self.familiar = fit(self.features, labels, train.classes, usual)
        self.means = torch.stack([self.features[labels == label].mean(dim=0) for label in range(train.classes)])
        self.within = whitening(self.features - self.means[labels])
        self.mean = self.features.mean(dim=0)
        self.whole = whitening(self.features - self.mean)

    @torch.inference_mode()
    def outputs(self, pictures: Squares) -> tuple[Tensor, Tensor]:
        """Return features (N, F) and logits (N, C)."""
        firsts = range(0, len(pictures), BATCH)
        batches = (normalise(torch.from_numpy(pictures[first : first + BATCH])) for first in firsts)
        features, logits = zip(*map(self.network.features_and_logits, batches), strict=True)
        return torch.cat(features), torch.cat(logits)

    def scores(self, pictures: Squares) -> dict[str, Tensor]:
        """Return every score of each picture, the higher the stranger."""
        features, logits = self.outputs(pictures)
        return {name: score(self, features, logits) for name, score in SCORES.items()}


def whitening(centred: Tensor) -> Tensor:
    """Return the matrix that gives centred features (N, F) unit variance, their covariance shrunk a little."""
    covariance = centred.T @ centred / len(centred)
    shrunk = 0.9 * covariance + 0.1 * covariance.diagonal().mean() * torch.eye(len(covariance))
    return torch.linalg.inv(torch.linalg.cholesky(shrunk)).T


def nearest(features: Tensor, means: Tensor, matrix: Tensor | None = None) -> Tensor:
    """Return the distance of each row to the nearest mean, after a linear map."""
    if matrix is not None:
        features, means = features @ matrix, means @ matrix
    return torch.cdist(features, means).min(dim=1).values


def unit(features: Tensor) -> Tensor:
    return features / features.norm(dim=1, keepdim=True)


OURS = "distance, a spread per feature, less energy"
SCORES: dict[str, Callable[[Learned, Tensor, Tensor], Tensor]] = {
    "1 - probability": lambda _, features, logits: 1 - logits.softmax(dim=1).max(dim=1).values,
    "energy": lambda _, features, logits: -logits.logsumexp(dim=1),
    "distance to a class mean": lambda one, features, _: nearest(features, one.means),
    "angle to it": lambda one, features, _: 1 - (unit(features) @ unit(one.means).T).max(dim=1).values,
    "distance, a spread per feature": lambda one, features, logits: one.familiar.measure(features, logits)[0],
    "Mahalanobis": lambda one, features, _: nearest(features, one.means, one.within),
    "relative Mahalanobis": lambda one, features, _: (
        nearest(features, one.means, one.within) ** 2 - nearest(features, one.mean[None], one.whole) ** 2
    ),
    "10th neighbour": lambda one, features, _: (
        torch.cdist(unit(features), unit(one.features)).kthvalue(10, dim=1).values
    ),
    OURS: lambda one, features, logits: one.familiar(features, logits),
}
"""Scores by name: functions of what was learned, features (N, F) and logits (N, C). Relative Mahalanobis is from Ren et
al. 2021 (arXiv:2106.09022), the tenth neighbour from Sun et al. 2022 (arXiv:2204.06507); the last one is that of
`model.strangers`."""


if __name__ == "__main__":
    run(main)
