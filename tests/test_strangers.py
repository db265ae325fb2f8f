"""Strangers: the distance from what a network has learned, and the limit beyond which a picture is one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.strangers import FALSE_ALARMS, SHRINKAGE, farthest, fit


def made(seed: int, pictures: int, classes: int = 3, width: int = 6) -> tuple[Tensor, Tensor]:
    """Return features (pictures, width) of classes that are a few spreads apart, and labels that name every class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(pictures) % classes
    means = 4 * torch.randn(classes, width, generator=generator)
    stretch = torch.randn(width, width, generator=generator)
    return means[labels] + torch.randn(pictures, width, generator=generator) @ stretch, labels


@given(st.integers(0, 2**31), st.integers(2, 5), st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_the_distance_is_that_of_mahalanobis_to_the_nearest_mean(seed: int, classes: int, width: int) -> None:
    """A slow loop with the inverse of the covariance finds the same."""
    features, labels = made(seed, 40, classes, width)
    exact = features.double()
    means = [exact[labels == label].mean(dim=0) for label in range(classes)]
    within = torch.stack([one - means[int(label)] for one, label in zip(exact, labels, strict=True)])
    covariance = within.T @ within / len(within)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * covariance.trace() / width * torch.eye(width)
    inverse = torch.linalg.inv(shrunk)
    expected = [min(math.sqrt(float((one - mean) @ inverse @ (one - mean))) for mean in means) for one in exact]
    torch.testing.assert_close(fit(features, labels)(features), torch.tensor(expected), rtol=1e-3, atol=1e-3)


@given(st.integers(0, 2**31), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_neither_the_scale_nor_the_origin_of_the_features_matters(seed: int, scale: float) -> None:
    features, labels = made(seed, 60)
    moved = scale * (features + 3)
    torch.testing.assert_close(fit(moved, labels)(moved), fit(features, labels)(features), rtol=1e-3, atol=1e-3)


def test_what_lies_in_a_direction_that_never_varied_is_strange() -> None:
    """A dead feature of the training pictures that a stranger wakes; the classes vary in all the others."""
    features, labels = made(0, 300, width=20)
    features[:, 7] = 0
    familiar = fit(features, labels)
    woken = features.clone()
    woken[:, 7] = 20
    assert float(familiar(woken).min()) > float(familiar(features).max())


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_features_that_do_not_vary_at_all_have_a_distance(value: float) -> None:
    features, labels = torch.full((12, 5), value), torch.arange(12) % 3
    familiar = fit(features, labels)
    assert familiar(features).tolist() == [0.0] * 12
    assert math.isfinite(float(familiar(features + 1).max()))


@pytest.mark.parametrize("networks", [1, 3])
def test_few_of_other_pictures_like_them_are_strangers(networks: int) -> None:
    """On average over draws of 50 validation pictures, which is all that 50 pictures can promise."""
    generator = torch.Generator().manual_seed(networks)
    alarms: list[float] = []
    for _ in range(300):
        limit, _ = farthest(torch.rand(networks, 50, generator=generator))
        assert limit is not None
        alarms.append(1 - limit)
    assert FALSE_ALARMS - 0.03 < sum(alarms) / len(alarms) <= FALSE_ALARMS


@given(st.lists(st.floats(0, 100), min_size=19, max_size=200))
def test_the_limit_is_one_of_the_distances_and_few_lie_beyond_it(distances: list[float]) -> None:
    limit, said = farthest(torch.tensor([distances], dtype=torch.float64))
    assert limit in distances
    assert sum(one > limit for one in distances) <= FALSE_ALARMS * len(distances)
    assert f"{len(distances)} validation pictures" in said


@pytest.mark.parametrize("pictures", [1, 6, 18])
def test_too_few_pictures_set_no_limit(pictures: int) -> None:
    limit, said = farthest(torch.rand(3, pictures))
    assert limit is None
    assert f"{pictures} validation pictures are too few" in said
