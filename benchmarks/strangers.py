"""Which score tells pictures unlike anything that a network has learned from those that it has.

    python benchmarks/strangers.py results/field-guide results/cifar10 --strangers ~/walk --strangers ~/screenshots

Of each study the best trial's network is taken, which has seen the training pictures alone. Its validation pictures are
the known ones; strangers are those of the other folders, noise, and pictures of one colour. Figures are areas under the
ROC curve: the share of pairs of a known picture and a stranger in which the stranger's score is the higher one.
"""

import sys
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from commands.console import make_console
from commands.options import find_study
from data.cache import Part, open_part
from model.network import MushroomCNN
from model.predict import pictures_in, square_of
from model.preprocessing import PictureError, normalise
from search_space import Config
from selection.retraining import best_so_far, load_network
from tests.stress.script import header, machine, row, run
from tuning import devices

MADE = 200
"""Number of pictures of noise, and of one colour."""
BATCH = 64

Squares = npt.NDArray[np.uint8]


def main(*folders: Path, strangers: tuple[Path, ...] = (), most: int = 500) -> None:
    """Compare the scores for each study and each kind of strangers.

    Parameters
    ----------
    folders
        Folders of studies.
    strangers
        Folders of pictures that no study has learned.
    most
        Largest number of pictures taken from each of these folders.
    """
    print(f"{machine()}\n")
    header("study", "strangers", "known, strangers", *SCORES)
    torch.set_num_threads(2)
    console = make_console()
    for folder in folders:
        found = find_study(console, folder.resolve().parent, folder.name, None)
        winner = best_so_far(found)
        config = Config.from_dict(winner.config)
        session = found.reopen([config.image_size], slots=devices.slots("cpu", 1))
        network = load_network(config, session.folder / winner.weights).eval()
        train, known = (open_part(session.data, config.image_size, part) for part in ("train", "validation"))
        learned = Learned(network, train)
        seen = learned.scores(squares_of(known))
        rng = np.random.default_rng(0)
        side = config.image_size
        kinds: dict[str, Squares] = {
            "noise": rng.integers(0, 256, (MADE, side, side, 3), dtype=np.uint8),
            "one colour": np.broadcast_to(
                rng.integers(0, 256, (MADE, 1, 1, 3), dtype=np.uint8), (MADE, side, side, 3)
            ).copy(),
        }
        for other in strangers:
            paths = list(pictures_in([other]))
            rng.shuffle(paths)
            kinds[other.name] = np.stack(list(islice(readable(paths, side), most)))
        for name, pictures in kinds.items():
            strange = learned.scores(pictures)
            areas = [100 * area(seen[score], strange[score]) for score in SCORES]
            row(folder.name, name, f"{len(known.indices):,}, {len(pictures):,}", *(f"{one:.1f}" for one in areas))


def readable(paths: Iterable[Path], side: int) -> Iterable[Squares]:
    for path in paths:
        try:
            yield square_of(path, side, {})[0]
        except PictureError:
            continue


def squares_of(part: Part) -> Squares:
    return np.asarray(part.images[part.indices])


def area(known: Tensor, strange: Tensor) -> float:
    """Return the share of pairs in which the stranger's score is higher; equal ones count half."""
    ordered = known.sort().values
    below, above = (torch.searchsorted(ordered, strange, right=right) for right in (False, True))
    return float((below + above).double().mean() / 2 / len(known))


class Learned:
    """A network and the features of its training pictures."""

    def __init__(self, network: MushroomCNN, train: Part) -> None:
        self.network = network
        self.features, _ = self.outputs(squares_of(train))
        labels = torch.as_tensor(np.asarray(train.labels), dtype=torch.long)
        self.means = torch.stack([self.features[labels == label].mean(dim=0) for label in labels.unique()])
        within = self.features - self.means[torch.unique(labels, return_inverse=True)[1]]
        self.within = whitening(within)
        self.mean, self.whole = self.features.mean(dim=0), whitening(self.features - self.features.mean(dim=0))
        self.deviations = within.std(dim=0) + 1e-6

    @torch.inference_mode()
    def outputs(self, pictures: Squares) -> tuple[Tensor, Tensor]:
        """Return features (N, F) and logits (N, C), float64."""
        found: list[Tensor] = []
        hook = self.network.head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].double()))
        logits = [
            self.network(normalise(torch.from_numpy(pictures[first : first + BATCH])))
            for first in range(0, len(pictures), BATCH)
        ]
        hook.remove()
        return torch.cat(found), torch.cat(logits).double()

    def scores(self, pictures: Squares) -> dict[str, Tensor]:
        """Return every score of each picture, the higher the stranger."""
        features, logits = self.outputs(pictures)
        return {name: score(self, features, logits) for name, score in SCORES.items()}


def whitening(centred: Tensor) -> Tensor:
    """Return the matrix that gives centred features (N, F) unit variance, their covariance shrunk a little."""
    covariance = centred.T @ centred / len(centred)
    shrunk = 0.9 * covariance + 0.1 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    return torch.linalg.inv(torch.linalg.cholesky(shrunk)).T


def nearest(features: Tensor, means: Tensor, matrix: Tensor | None = None) -> Tensor:
    """Return the distance of each row to the nearest mean, after a linear map."""
    if matrix is not None:
        features, means = features @ matrix, means @ matrix
    return torch.cdist(features, means).min(dim=1).values


def unit(features: Tensor) -> Tensor:
    return features / features.norm(dim=1, keepdim=True)


SCORES: dict[str, Callable[[Learned, Tensor, Tensor], Tensor]] = {
    "1 - probability": lambda _, features, logits: 1 - logits.softmax(dim=1).max(dim=1).values,
    "entropy": lambda _, features, logits: -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1),
    "energy": lambda _, features, logits: -logits.logsumexp(dim=1),
    "distance to a class mean": lambda one, features, _: nearest(features, one.means),
    "the same, scaled": lambda one, features, _: nearest(features / one.deviations, one.means / one.deviations),
    "angle to a class mean": lambda one, features, _: 1 - (unit(features) @ unit(one.means).T).max(dim=1).values,
    "Mahalanobis": lambda one, features, _: nearest(features, one.means, one.within),
    "relative Mahalanobis": lambda one, features, _: (
        nearest(features, one.means, one.within) ** 2 - nearest(features, one.mean[None], one.whole) ** 2
    ),
    "10th neighbour": lambda one, features, _: (
        torch.cdist(unit(features), unit(one.features)).kthvalue(10, dim=1).values
    ),
}
"""Scores by name: functions of what was learned, features (N, F) and logits (N, C). Relative Mahalanobis is from Ren et
al. 2021 (arXiv:2106.09022), the tenth neighbour from Sun et al. 2022 (arXiv:2204.06507)."""


if __name__ == "__main__":
    run(main)
