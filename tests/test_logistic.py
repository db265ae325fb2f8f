"""The logistic regression on fixed features, checked against Newton's method and on features that can be separated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.logistic import PENALTIES, choose_penalty, fit


def blobs(count: int, features: int, apart: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return `count` points of three normal distributions whose means are `apart`, and which one each is from."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    noise = torch.randn(count, features, generator=generator)
    return noise + apart * torch.eye(features)[labels], labels


def by_newton(features: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """Return the probabilities that Newton's method finds in float64, with the same loss."""
    points = features.double()
    points = (points - points.mean(dim=0)) / points.std(dim=0, correction=0)
    points = torch.cat([points, torch.ones(len(points), 1, dtype=torch.float64)], dim=1)
    size = points.shape[1]
    penalised = torch.cat([torch.full((3, size - 1), penalty), torch.zeros(3, 1)], dim=1).double().flatten()
    weights = torch.zeros(3 * size, dtype=torch.float64)
    truth = torch.eye(3, dtype=torch.float64)[labels]
    for _ in range(30):
        shares = (points @ weights.view(3, size).T).softmax(dim=1)
        slope = ((shares - truth).T @ points / len(points)).flatten() + penalised * weights
        spread = torch.diag_embed(shares) - shares[:, :, None] * shares[:, None, :]
        curvature = torch.einsum("nij,nk,nl->ikjl", spread, points, points).reshape(3 * size, 3 * size) / len(points)
        # The biases may all be shifted alike, which changes no probability
        weights -= torch.linalg.pinv(curvature + torch.diag(penalised)) @ slope
    return (points @ weights.view(3, size).T).softmax(dim=1)


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_it_is_what_newtons_method_finds(penalty: float) -> None:
    features, labels = blobs(90, 5, 2.0, seed=0)
    features = features * torch.tensor([1.0, 100.0, 0.01, 1.0, 1.0]) + 7  # features have any scale
    found = fit(features, labels, 3, penalty)(features).softmax(dim=1)
    assert torch.allclose(found.double(), by_newton(features, labels, penalty), atol=2e-3)


def test_features_that_can_be_separated_are() -> None:
    features, labels = blobs(60, 8, 20.0, seed=1)
    others, truth = blobs(300, 8, 20.0, seed=2)
    penalty, top1 = choose_penalty(features, labels, others, truth, 3)
    assert top1 == 1.0
    assert (fit(features, labels, 3, penalty)(others).argmax(dim=1) == truth).all()


def test_a_constant_feature_changes_nothing() -> None:
    features, labels = blobs(60, 4, 1.0, seed=3)
    constant = torch.cat([features, torch.full((60, 1), 0.3)], dim=1)
    assert torch.allclose(fit(constant, labels, 3, 0.1)(constant), fit(features, labels, 3, 0.1)(features), atol=1e-4)


def test_the_penalty_with_the_best_top1_on_the_other_pictures_is_chosen() -> None:
    """With more features than pictures, the weakest penalty is not the best."""
    features, labels = blobs(45, 60, 2.0, seed=4)
    others, truth = blobs(900, 60, 2.0, seed=5)
    reached = {
        penalty: float((fit(features, labels, 3, penalty)(others).argmax(dim=1) == truth).double().mean())
        for penalty in PENALTIES
    }
    chosen = choose_penalty(features, labels, others, truth, 3)
    assert chosen == (chosen[0], max(reached.values())) and reached[chosen[0]] == max(reached.values())
    assert chosen[0] > min(PENALTIES)
