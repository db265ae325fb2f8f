"""Strangers: pictures unlike anything that a network has learned, known by their features.

training pictures -> features (N, F), labels -> `fit` -> Familiar: the classes' means, and the spread around them
features of validation pictures -> distances -> `farthest`: above it, a picture is called a stranger

A low probability does not find strangers: a network may be certain of a picture of noise. The distance of its features
to the nearest class mean does, in units of the spread within the classes (Mahalanobis; Lee et al. 2018,
arXiv:1807.03888). benchmarks/README.md, "Which score finds strangers", compares it with other scores.
"""

import math

import torch
from torch import Tensor, nn

FALSE_ALARMS = 0.05
"""Share of the pictures like those in the data that are called strangers."""
SHRINKAGE = 0.1
"""Share of the spread that is assumed to be equal in all directions, which a few hundred pictures do not determine."""


class Familiar(nn.Module):
    """What a network has learned, as its features see it: maps features (N, F) to distances (N,)."""

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.whitening = nn.Buffer(torch.empty(features, features))
        """Matrix (F, F) by which features are multiplied, so that the spread within the classes becomes 1."""
        self.means = nn.Buffer(torch.empty(classes, features))
        """The classes' mean features, (C, F), multiplied by `whitening`."""

    def forward(self, features: Tensor) -> Tensor:
        whitened = features @ self.whitening
        return torch.cdist(whitened, self.means, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)


def fit(features: Tensor, labels: Tensor) -> Familiar:
    """Return what is familiar to a network with these features (N, F) of its training pictures, of classes (N,).

    Take unaugmented pictures; every class has at least one.
    """
    exact, classes = features.cpu().double(), int(labels.max()) + 1
    means = torch.stack([exact[labels == label].mean(dim=0) for label in range(classes)])
    within = exact - means[labels]
    spread = within.T @ within / len(within)
    even = torch.eye(len(spread), dtype=torch.float64) * spread.diagonal().mean().clamp(min=1e-12)
    factor = torch.linalg.cholesky((1 - SHRINKAGE) * spread + SHRINKAGE * even)
    found = Familiar(classes, exact.shape[1])
    found.whitening.copy_(torch.linalg.inv(factor).T)
    found.means.copy_(means @ found.whitening.double())
    return found


def farthest(distances: Tensor) -> tuple[float | None, str]:
    """Return the largest distance at which a picture is no stranger, and say what that means.

    `distances` (S, N) are those of S networks for the same N validation pictures. At most FALSE_ALARMS of other
    pictures like these are expected beyond it (split conformal prediction; Vovk et al. 2005). Returns None, and
    the reason, if there are too few pictures.
    """
    networks, pictures = distances.shape
    familiar = math.ceil((pictures + 1) * (1 - FALSE_ALARMS))
    if familiar > pictures:
        return None, f"no picture is called a stranger: {pictures:,} validation pictures are too few to set a limit"
    return float(distances.flatten().sort().values[networks * familiar - 1]), (
        "pictures whose features are farther from all classes than those of "
        f"{100 * familiar / pictures:.0f} % of {pictures:,} validation pictures are called unlike anything learned"
    )
