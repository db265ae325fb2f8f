"""Strangers: pictures unlike anything that a network has learned, known by its features and logits.

training pictures -> features (N, F), labels -> `fit` -> Familiar: the class means, from which it measures distances
validation pictures -> Familiar: measured (2, N) -> `find_limit` -> Limit: what is usual, and who is a stranger

A low probability does not find strangers: a network may be certain of a picture of noise. Two things together do: the
distance of the features to the nearest class mean (Lee et al. 2018, arXiv:1807.03888, but with a spread per feature),
and the energy, the logarithm of the sum of all exponentiated logits, which is low where no class is recognised (Liu et
al. 2020, arXiv:2010.03759). benchmarks/README.md, "Which score finds strangers", compares them with others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

FALSE_ALARMS = 0.05
"""Share of the pictures like those in the data that are called strangers."""
LEAST_SPREAD = 0.1
"""Smallest spread of a feature within the classes, as a share of the mean spread of all; one that never varied in
training would be infinitely strange otherwise."""
TINY = 1e-6
"""Added to what is divided by, which is 0 for a network that gives all pictures the same answer."""


AS_MEASURED = (0.0, 1.0, 0.0, 1.0)
"""Mean and standard deviation that leave the distance, and the energy, as they are."""


class Familiar(nn.Module):
    """What is familiar to a network: maps features (N, F) and logits (N, C) to the strangeness of N pictures.

    The strangeness is the distance to the nearest class mean less the energy, both in standard deviations from what is
    usual: around 0 for familiar pictures, and the higher the stranger.
    """

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.scale = nn.Buffer(torch.empty(features))
        """Factor of each feature, (F,), after which its spread within the classes is 1."""
        self.means = nn.Buffer(torch.empty(classes, features))
        """The classes' mean features, (C, F), multiplied by `scale`."""
        self.usual = nn.Buffer(torch.empty(2, 2))
        """Usual mean and standard deviation of the distance, and of the energy."""

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        return standardised(self.measure(features, logits), self.usual)

    def measure(self, features: Tensor, logits: Tensor) -> Tensor:
        """Return the distance of each picture to the nearest class mean, and its energy: (2, N)."""
        scaled = features * self.scale
        distances = torch.cdist(scaled, self.means, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.stack((distances.amin(dim=1), logits.logsumexp(dim=1)))


def standardised(measured: Tensor, usual: Tensor) -> Tensor:
    """Return the strangeness (..., N) of pictures that were `measured` (..., 2, N), if `usual` (2, 2) is usual."""
    distance, energy = ((measured - usual[:, :1]) / usual[:, 1:]).unbind(dim=-2)
    return distance - energy


def fit(features: Tensor, labels: Tensor, classes: int, usual: Sequence[float] = AS_MEASURED) -> Familiar:
    """Return what is familiar to a network that was trained on pictures with these features (N, F), of classes (N,).

    Take unaugmented pictures; every class has at least one. `usual` is that of a `Limit`.
    """
    means = torch.stack([features[labels == label].mean(dim=0) for label in range(classes)])
    spread = (features - means[labels]).square().mean(dim=0).sqrt()
    familiar = Familiar(classes, features.shape[1])
    familiar.scale.copy_(1 / (spread.clamp(min=LEAST_SPREAD * float(spread.mean())) + TINY))
    familiar.means.copy_(means * familiar.scale)
    familiar.usual.copy_(torch.tensor(usual).view(2, 2))
    return familiar


@dataclass(frozen=True, kw_only=True)
class Limit:
    """From where on a picture is called a stranger."""

    usual: list[float]
    """Mean and standard deviation of the distance, then of the energy, of pictures that the networks had not seen."""
    strangest: float | None
    """Highest strangeness of a picture that is not called a stranger; None if no picture is called one."""
    text: str
    """Which pictures are called strangers, or why none is."""

    def __post_init__(self) -> None:
        if len(self.usual) != 4 or not all(math.isfinite(one) for one in self.usual) or min(self.usual[1::2]) <= 0:
            raise ValueError(f"`usual` is not two means, each with a standard deviation: {self.usual}")


def find_limit(measured: Tensor) -> Limit:
    """Return the limit beyond which few familiar pictures lie.

    `measured` (S, 2, N) is what S networks of one configuration measure for N validation pictures. It holds for another
    network of that configuration too: a network that was trained on more pictures measures the same distances and
    energies for pictures that it has not seen, although not for those that it was trained on. At most FALSE_ALARMS of
    pictures like these are expected to be called strangers (split conformal prediction; Vovk et al. 2005).
    """
    each = measured.transpose(0, 1).flatten(start_dim=1)
    usual = torch.stack((each.mean(dim=1), each.std(dim=1, correction=0) + TINY), dim=1)
    networks, _, pictures = measured.shape
    familiar = math.ceil((pictures + 1) * (1 - FALSE_ALARMS))
    if familiar > pictures:
        limit = None
        text = f"no picture is called a stranger: {pictures:,} validation pictures are too few to set a limit"
    else:
        limit = float(standardised(measured, usual).flatten().sort().values[networks * familiar - 1])
        text = (
            f"pictures that are stranger to the network than {100 * familiar / pictures:.0f} % of {pictures:,} "
            "validation pictures are called unlike anything learned"
        )
    return Limit(usual=usual.flatten().tolist(), strangest=limit, text=text)
