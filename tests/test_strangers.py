"""Strangers: how strange pictures are to a network, and the limit beyond which one is called a stranger."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.strangers import FALSE_ALARMS, LEAST_SPREAD, Familiar, Limit, find_limit, fit, standardised


def made(seed: int, pictures: int, classes: int = 3, width: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (pictures, width) of classes that are a few spreads apart, logits, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(pictures) % classes
    means = 4 * torch.randn(classes, width, generator=generator)
    stretch = torch.rand(width, generator=generator) + 0.1
    features = means[labels] + torch.randn(pictures, width, generator=generator) * stretch
    return features, features @ torch.randn(width, classes, generator=generator), labels


def calibrated(features: Tensor, logits: Tensor, labels: Tensor) -> tuple[Familiar, Limit]:
    """Return what is familiar, with what is usual for the same pictures."""
    classes = logits.shape[1]
    limit = find_limit(fit(features, labels, classes).measure(features, logits)[None])
    return fit(features, labels, classes, limit.usual), limit


def uniform(networks: int, pictures: int, generator: torch.Generator) -> Tensor:
    """Return measured distances between 0 and 1, and energies that are all alike."""
    distances = torch.rand(networks, 1, pictures, generator=generator)
    return torch.cat((distances, torch.zeros_like(distances)), dim=1)


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
    familiar, _ = calibrated(features, logits, labels)
    torch.testing.assert_close(familiar(features, logits), expected, rtol=1e-3, atol=1e-3)


@given(st.integers(0, 2**31), st.floats(0.1, 100))
@settings(max_examples=30, deadline=None)
def test_neither_the_scale_nor_the_origin_of_the_features_matters(seed: int, scale: float) -> None:
    """The limit is found with one network and used with another one, whose features differ in both."""
    features, logits, labels = made(seed, 60)
    familiar, moved = fit(features, labels, 3), fit(scale * (features + 3), labels, 3)
    torch.testing.assert_close(
        moved.measure(scale * (features + 3), logits), familiar.measure(features, logits), rtol=1e-2, atol=1e-2
    )


def test_far_features_and_low_logits_are_strange() -> None:
    features, logits, labels = made(0, 300)
    familiar, _ = calibrated(features, logits, labels)
    usual = familiar(features, logits)
    assert float(usual.mean()) == pytest.approx(0, abs=1e-4)
    assert (familiar(features + 30, logits) > usual).all()
    assert (familiar(features, logits - 1) > usual).all()


def test_a_feature_that_never_varied_is_not_infinitely_strange() -> None:
    features, logits, labels = made(0, 300, width=20)
    features[:, 7] = 0
    (familiar, _), woken = calibrated(features, logits, labels), features.clone()
    woken[:, 7] = 1e-3
    torch.testing.assert_close(familiar(woken, logits), familiar(features, logits), rtol=0, atol=1e-2)


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_a_network_that_gives_all_pictures_the_same_answer_has_a_limit(value: float) -> None:
    features, logits, labels = torch.full((20, 5), value), torch.zeros(20, 3), torch.arange(20) % 3
    familiar, limit = calibrated(features, logits, labels)
    assert limit.strangest == pytest.approx(0, abs=1)
    assert torch.isfinite(familiar(features + 1, logits)).all()


@pytest.mark.parametrize("networks", [1, 3])
def test_few_of_other_pictures_like_them_are_strangers(networks: int) -> None:
    """On average over draws of 50 validation pictures, which is all that 50 pictures can promise."""
    generator = torch.Generator().manual_seed(networks)
    alarms: list[float] = []
    for _ in range(300):
        limit = find_limit(uniform(networks, 50, generator))
        assert limit.strangest is not None
        mean, deviation, *_ = limit.usual
        alarms.append(1 - (limit.strangest * deviation + mean))
    assert FALSE_ALARMS - 0.03 < sum(alarms) / len(alarms) <= FALSE_ALARMS


@given(st.integers(19, 200), st.integers(1, 3), st.integers(0, 2**31))
@settings(max_examples=50)
def test_the_limit_is_the_strangeness_of_a_picture_and_few_lie_beyond_it(
    pictures: int, networks: int, seed: int
) -> None:
    measured = torch.randn(networks, 2, pictures, generator=torch.Generator().manual_seed(seed))
    limit = find_limit(measured)
    assert limit.strangest is not None
    strange = standardised(measured, torch.tensor(limit.usual).view(2, 2))
    assert float((strange - limit.strangest).abs().min()) == pytest.approx(0, abs=1e-5)
    assert int((strange > limit.strangest + 1e-5).sum()) <= FALSE_ALARMS * networks * pictures
    assert f"{pictures} validation pictures" in limit.text


@pytest.mark.parametrize("pictures", [1, 6, 18])
def test_too_few_pictures_set_no_limit(pictures: int) -> None:
    limit = find_limit(uniform(3, pictures, torch.Generator().manual_seed(0)))
    assert limit.strangest is None
    assert f"{pictures} validation pictures are too few" in limit.text


@pytest.mark.parametrize("usual", [[], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 1.0, math.inf, 1.0]])
def test_a_damaged_limit_is_refused(usual: list[float]) -> None:
    with pytest.raises(ValueError, match="two means"):
        Limit(usual=usual, strangest=1.0, text="")
