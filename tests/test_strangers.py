"""Strangers: how strange pictures are to a network, and the limit beyond which one is called a stranger."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.strangers import FALSE_ALARMS, LEAST_SPREAD, fit, strangest


def made(seed: int, pictures: int, classes: int = 3, width: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (pictures, width) of classes that are a few spreads apart, logits, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(pictures) % classes
    means = 4 * torch.randn(classes, width, generator=generator)
    stretch = torch.rand(width, generator=generator) + 0.1
    features = means[labels] + torch.randn(pictures, width, generator=generator) * stretch
    return features, features @ torch.randn(width, classes, generator=generator), labels


@given(st.integers(0, 2**31), st.integers(2, 5), st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_it_is_the_distance_to_the_nearest_mean_less_the_energy(seed: int, classes: int, width: int) -> None:
    """A slow loop finds the same."""
    features, logits, labels = made(seed, 40, classes, width)
    rows, truth = features.double().tolist(), labels.tolist()
    members = [[row for row, label in zip(rows, truth, strict=True) if label == one] for one in range(classes)]
    means = [[sum(column) / len(column) for column in zip(*own, strict=True)] for own in members]
    squares = [
        [(value - mean) ** 2 for value, mean in zip(row, means[label], strict=True)]
        for row, label in zip(rows, truth, strict=True)
    ]
    spread = [math.sqrt(sum(column) / len(column)) for column in zip(*squares, strict=True)]
    spread = [max(one, LEAST_SPREAD * sum(spread) / width) for one in spread]
    distances = [
        min(math.dist(*([v / s for v, s in zip(one, spread, strict=True)] for one in (row, mean))) for mean in means)
        for row in rows
    ]
    energies = [math.log(sum(map(math.exp, row))) for row in logits.double().tolist()]
    standard = [
        [(one - mean) / math.sqrt(sum((each - mean) ** 2 for each in values) / len(values)) for one in values]
        for values, mean in ((values, sum(values) / len(values)) for values in (distances, energies))
    ]
    expected = torch.tensor([distance - energy for distance, energy in zip(*standard, strict=True)])
    torch.testing.assert_close(fit(features, logits, labels)(features, logits), expected, rtol=1e-3, atol=1e-3)


@given(st.integers(0, 2**31), st.floats(0.1, 100))
@settings(max_examples=30, deadline=None)
def test_neither_the_scale_nor_the_origin_of_features_and_logits_matters(seed: int, scale: float) -> None:
    """The limit is found with one network and used with another one, whose features and logits differ in both."""
    features, logits, labels = made(seed, 60)
    moved, higher = scale * (features + 3), logits + scale
    torch.testing.assert_close(
        fit(moved, higher, labels)(moved, higher), fit(features, logits, labels)(features, logits), rtol=1e-2, atol=1e-2
    )


def test_far_features_and_low_logits_are_strange() -> None:
    features, logits, labels = made(0, 300)
    familiar = fit(features, logits, labels)
    usual = familiar(features, logits)
    assert float(usual.mean()) == pytest.approx(0, abs=1e-4)
    assert (familiar(features + 30, logits) > usual).all()
    assert (familiar(features, logits - 1) > usual).all()


def test_a_feature_that_never_varied_is_not_infinitely_strange() -> None:
    features, logits, labels = made(0, 300, width=20)
    features[:, 7] = 0
    familiar, woken = fit(features, logits, labels), features.clone()
    woken[:, 7] = 1e-3
    torch.testing.assert_close(familiar(woken, logits), familiar(features, logits), rtol=0, atol=1e-2)


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_a_network_that_gives_all_pictures_the_same_answer_has_a_limit(value: float) -> None:
    features, logits, labels = torch.full((20, 5), value), torch.zeros(20, 3), torch.arange(20) % 3
    familiar = fit(features, logits, labels)
    limit, _ = strangest(familiar(features, logits)[None])
    assert limit == pytest.approx(0, abs=1)
    assert torch.isfinite(familiar(features + 1, logits)).all()


@pytest.mark.parametrize("networks", [1, 3])
def test_few_of_other_pictures_like_them_are_strangers(networks: int) -> None:
    """On average over draws of 50 validation pictures, which is all that 50 pictures can promise."""
    generator = torch.Generator().manual_seed(networks)
    alarms: list[float] = []
    for _ in range(300):
        limit, _ = strangest(torch.rand(networks, 50, generator=generator))
        assert limit is not None
        alarms.append(1 - limit)
    assert FALSE_ALARMS - 0.03 < sum(alarms) / len(alarms) <= FALSE_ALARMS


@given(st.lists(st.floats(-100, 100), min_size=19, max_size=200))
def test_the_limit_is_the_strangeness_of_a_picture_and_few_lie_beyond_it(values: list[float]) -> None:
    limit, said = strangest(torch.tensor([values], dtype=torch.float64))
    assert limit in values
    assert sum(one > limit for one in values) <= FALSE_ALARMS * len(values)
    assert f"{len(values)} validation pictures" in said


@pytest.mark.parametrize("pictures", [1, 6, 18])
def test_too_few_pictures_set_no_limit(pictures: int) -> None:
    limit, said = strangest(torch.rand(3, pictures))
    assert limit is None
    assert f"{pictures} validation pictures are too few" in said
