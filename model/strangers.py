"""Strangers: pictures unlike anything that a network has learned, known by its features and logits.

training pictures -> features (N, F), logits (N, C), labels -> `fit` -> Familiar: what is usual for them
validation pictures -> Familiar: strangeness (N,) -> `strangest`: above it, a picture is called a stranger

A low probability does not find strangers: a network may be certain of a picture of noise. Two things together do: the
distance of the features to the nearest class mean (Lee et al. 2018, arXiv:1807.03888, but with a spread per feature),
and the energy, the logarithm of the sum of all exponentiated logits, which is low where no class is recognised (Liu et
al. 2020, arXiv:2010.03759). benchmarks/README.md, "Which score finds strangers", compares them with others.
"""

import math

import torch
from torch import Tensor, nn

FALSE_ALARMS = 0.05
"""Share of the pictures like those in the data that are called strangers."""
LEAST_SPREAD = 0.1
"""Smallest spread of a feature within the classes, as a share of the mean spread of all; one that never varied in
training would be infinitely strange otherwise."""
TINY = 1e-6
"""Added to what is divided by, which is 0 for a network that gives all pictures the same answer."""


class Familiar(nn.Module):
    """What is usual for the pictures that a network has learned: maps features (N, F) and logits (N, C) to (N,).

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
        """Mean and standard deviation of the distance, and of the energy, over the training pictures."""

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        measured = torch.stack((self.distance(features), logits.logsumexp(dim=1)))
        distance, energy = (measured - self.usual[:, :1]) / self.usual[:, 1:]
        return distance - energy

    def distance(self, features: Tensor) -> Tensor:
        """Return the distance of each row of (N, F) to the nearest class mean, (N,)."""
        scaled = features * self.scale
        return torch.cdist(scaled, self.means, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)


def fit(features: Tensor, logits: Tensor, labels: Tensor) -> Familiar:
    """Return what is usual for training pictures with these features (N, F) and logits (N, C), of classes (N,).

    Take unaugmented pictures; every class has at least one.
    """
    classes = logits.shape[1]
    means = torch.stack([features[labels == label].mean(dim=0) for label in range(classes)])
    spread = (features - means[labels]).square().mean(dim=0).sqrt()
    familiar = Familiar(classes, features.shape[1])
    familiar.scale.copy_(1 / (spread.clamp(min=LEAST_SPREAD * float(spread.mean())) + TINY))
    familiar.means.copy_(means * familiar.scale)
    measured = torch.stack((familiar.distance(features), logits.logsumexp(dim=1)))
    familiar.usual.copy_(torch.stack((measured.mean(dim=1), measured.std(dim=1, correction=0) + TINY), dim=1))
    return familiar


def strangest(strangeness: Tensor) -> tuple[float | None, str]:
    """Return the highest strangeness of a picture that is not called a stranger, and say what that means.

    `strangeness` (S, N) is that of S networks for the same N validation pictures. At most FALSE_ALARMS of other
    pictures like these are expected to be called strangers (split conformal prediction; Vovk et al. 2005). Returns
    None, and the reason, if there are too few pictures.
    """
    networks, pictures = strangeness.shape
    familiar = math.ceil((pictures + 1) * (1 - FALSE_ALARMS))
    if familiar > pictures:
        return None, f"no picture is called a stranger: {pictures:,} validation pictures are too few to set a limit"
    return float(strangeness.flatten().sort().values[networks * familiar - 1]), (
        f"pictures that are stranger to the network than {100 * familiar / pictures:.0f} % of {pictures:,} validation "
        "pictures are called unlike anything learned"
    )
