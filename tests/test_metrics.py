"""Metrics against plain loops, published intervals, and networks whose calibration is known."""

import json
import math
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from data.batches import EvaluationBatches
from data.cache import Part
from model.metrics import (
    BINS,
    PRIOR,
    RISK,
    TEMPERATURES,
    Z95,
    calibrate,
    calibration_error,
    chance_level,
    logits,
    measure,
    surest,
    temperature,
    wilson,
)
from model.network import ModelConfig, MushroomCNN
from model.preprocessing import normalise

# -- Wilson's interval


@pytest.mark.parametrize(
    ("hits", "pictures", "interval"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_is_the_published_score_interval(hits: int, pictures: int, interval: tuple[float, float]) -> None:
    """Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3."""
    assert wilson(hits, pictures) == pytest.approx(interval, abs=5e-5)


def solved(hits: int, pictures: int, low: float, high: float) -> float:
    """Return the share between `low` and `high` that is Z95 standard errors from the observed one, by bisection."""

    def excess(share: float) -> float:
        return (hits / pictures - share) ** 2 - Z95**2 * share * (1 - share) / pictures

    rising = excess(high) > excess(low)
    for _ in range(100):
        middle = (low + high) / 2
        if (excess(middle) > 0) == rising:
            high = middle
        else:
            low = middle
    return low


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=50)
def test_wilson_solves_the_score_equation_and_holds_the_share(seen: tuple[int, int]) -> None:
    hits, pictures = seen
    share = hits / pictures
    low, high = wilson(hits, pictures)
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1
    assert low == pytest.approx(solved(hits, pictures, 0.0, share), abs=1e-9)
    assert high == pytest.approx(solved(hits, pictures, share, 1.0), abs=1e-9)


# -- calibration error


def slow_calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Compute equation 5 of Guo et al. 2017 bin by bin and picture by picture."""
    rows = [
        (max(row), row.index(max(row)) == label)
        for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True)
    ]
    error = 0.0
    for number in range(BINS):
        inside = [row for row in rows if number / BINS < row[0] <= (number + 1) / BINS]
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            confidence = sum(share for share, _ in inside) / len(inside)
            error += len(inside) / len(rows) * abs(accuracy - confidence)
    return error


@pytest.mark.parametrize("seed", range(5))
def test_the_calibration_error_equals_a_slow_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(200, 9, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 9, (200,), generator=generator)
    probabilities = scores.softmax(dim=1)
    assert calibration_error(probabilities, labels) == pytest.approx(slow_calibration_error(probabilities, labels))


def test_a_confidence_on_an_edge_belongs_to_the_lower_bin() -> None:
    """0.8 is the upper edge of bin 12 of 15: with 0.79 it makes one bin, in which the two errors cancel."""
    probabilities = torch.tensor([[0.8, 0.2], [0.79, 0.21]], dtype=torch.float64)
    right_and_wrong = torch.tensor([0, 1])
    assert calibration_error(probabilities, right_and_wrong) == pytest.approx(abs(0.8 + 0.79 - 1) / 2)


def test_the_calibration_error_of_perfect_and_of_confidently_wrong_predictions() -> None:
    labels = torch.arange(10) % 5
    sure = nn.functional.one_hot(labels, 5).double()
    assert calibration_error(sure, labels) == 0.0
    assert calibration_error(sure, (labels + 1) % 5) == 1.0
    # Three of four are right, and each was given three quarters
    honest = torch.tensor([[0.75, 0.25]] * 4, dtype=torch.float64)
    assert calibration_error(honest, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.0)


@pytest.mark.parametrize(("pictures", "classes"), [(8, 2), (60, 9)])
def test_95_of_100_samples_with_the_right_probabilities_stay_below_the_chance_level(
    pictures: int, classes: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    probabilities = (2 * torch.randn(pictures, classes, generator=generator, dtype=torch.float64)).softmax(dim=1)
    labels = torch.multinomial(probabilities, 1000, replacement=True, generator=generator)
    level = chance_level(probabilities)
    below = sum(calibration_error(probabilities, drawn) <= level for drawn in labels.unbind(dim=1))
    assert 920 <= below <= 980


# -- temperature


def loss(scores: Tensor, labels: Tensor, heat: float) -> float:
    return float(nn.functional.cross_entropy(scores.double() / heat, labels))


@pytest.mark.parametrize("k", [0.2, 1.0, 3.0, 10.0])
def test_the_temperature_of_scaled_logits_is_the_scale(k: float) -> None:
    """Logits whose probabilities equal the frequencies of their labels are calibrated at temperature 1."""
    scores = torch.tensor([[math.log(3), 0.0]] * 4, dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1])
    assert temperature(k * scores, labels) == pytest.approx(k, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_temperature_has_the_lowest_loss_that_torchs_optimizer_finds(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = 4 * torch.randn(300, 9, generator=generator)
    labels = torch.multinomial((scores / 2.5).softmax(dim=1), 1, generator=generator)[:, 0]
    heat = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([heat], lr=0.5, max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15)

    def step() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(scores.double() / heat, labels)
        value.backward()
        return value

    optimizer.step(step)  # pyright: ignore[reportArgumentType]
    found = temperature(scores, labels)
    assert found == pytest.approx(heat.item(), rel=1e-5)
    assert loss(scores, labels, found) <= min(loss(scores, labels, t) for t in np.geomspace(*TEMPERATURES, 500)) + 1e-12


def test_the_temperature_stays_in_its_bounds_where_none_is_best() -> None:
    labels = torch.arange(30) % 3
    right = 2.0 * nn.functional.one_hot(labels, 3)
    cold, hot = TEMPERATURES
    assert temperature(right, labels) == pytest.approx(cold)
    assert temperature(1e6 * right, labels) == pytest.approx(cold)
    assert temperature(right, (labels + 1) % 3) == pytest.approx(hot)
    assert cold * (1 - 1e-9) <= temperature(torch.zeros(30, 3), labels) <= hot * (1 + 1e-9)


# -- sure answers


@given(st.integers(0, 2**31), st.integers(1, 300), st.integers(2, 5), st.floats(0.5, 8), st.integers(1, 3))
@settings(max_examples=60)
def test_no_lower_probability_has_its_risk_shown_to_be_small(
    seed: int, pictures: int, classes: int, scale: float, networks: int
) -> None:
    """A slow loop over every probability finds the same threshold."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (pictures,), generator=generator)
    scores = torch.randn(networks, pictures, classes, generator=generator, dtype=torch.float64)
    scores += scale * nn.functional.one_hot(labels, classes)
    probabilities = (4 * scores).softmax(dim=2).round(decimals=3)  # some are equal
    lowest, said = surest(probabilities, labels)
    confidence, predictions = probabilities.max(dim=2)
    shown: list[float] = []
    for candidate in sorted(set(confidence.flatten().tolist())):
        sure = confidence >= candidate
        right = int((sure & (predictions == labels)).sum())
        if 1 - wilson(right / networks, int(sure.sum()) / networks)[0] <= RISK:
            shown.append(candidate)
    assert lowest == (min(shown) if shown else None)
    assert said.startswith("answers of" if shown else "no answer is called sure")
    assert ("too few" in said) == (pictures < 35)


def test_sure_answers_are_measured_on_other_pictures() -> None:
    scores = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.2, 0.0]])
    labels = torch.tensor([0, 1, 1, 0])
    measured = measure(scores, labels, 1.0, 0.9)
    assert (measured.sure, measured.sure_top1, measured.sure_interval) == (3, 2 / 3, wilson(2, 3))
    none, unknown = measure(scores, labels, 1.0, 0.99), measure(scores, labels, 1.0)
    assert (none.sure, none.sure_top1, none.sure_interval) == (0, None, None)
    assert (unknown.sure, unknown.sure_top1, unknown.sure_interval) == (None, None, None)


def test_the_answer_to_a_stranger_is_never_sure() -> None:
    scores, labels = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.2, 0.0]]), torch.tensor([0, 1, 1, 0])
    measured = measure(scores, labels, 1.0, 0.9, torch.tensor([False, True, False, True]))
    assert (measured.sure, measured.sure_top1) == (2, 1.0)
    assert (measured.strangers, measured.strangers_interval) == (2, wilson(2, 4))
    assert (measured.top1, measured.pictures) == (0.75, 4)
    assert measure(scores, labels, 1.0, 0.9).strangers is None


# -- calibration


def drawn(seed: int, pictures: int, classes: int, overconfidence: float, networks: int = 1) -> tuple[Tensor, Tensor]:
    """Return logits (S, N, C) that are too large by a factor, and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(pictures, classes, generator=generator)
    labels = torch.multinomial(scores.softmax(dim=1), 1, generator=generator)[:, 0]
    return overconfidence * scores.repeat(networks, 1, 1), labels


@given(st.integers(1, 200), st.integers(2, 5), st.floats(0.1, 30), st.integers(1, 3))
@settings(max_examples=30)
def test_a_network_without_a_mistake_is_not_called_certain(
    pictures: int, classes: int, confidence: float, networks: int
) -> None:
    """The loss is lowest at certainty. Among other pictures, a mistake in as many may be expected."""
    labels = torch.arange(pictures) % classes
    outputs = (confidence * nn.functional.one_hot(labels, classes).double()).repeat(networks, 1, 1)
    found = calibrate(outputs, labels)
    before, after = (
        pictures * (1 - float((outputs[0] / heat).softmax(dim=1).amax(dim=1).mean())) for heat in (1, found.temperature)
    )
    assert after <= before + 1e-9
    assert after <= 1.1 or confidence < 1.5, "it was never sure itself"
    assert after >= min(before, 0.1) / 10
    assert f"fitted on {pictures} validation pictures" in found.text


@given(st.integers(0, 2**31), st.sampled_from([1, 8, 30, 300]), st.integers(2, 9), st.floats(0.2, 8))
@settings(max_examples=40)
def test_the_temperature_balances_the_loss_and_its_prior(
    seed: int, pictures: int, classes: int, overconfidence: float
) -> None:
    outputs, labels = drawn(seed, pictures, classes, overconfidence)
    found = calibrate(outputs, labels)

    def penalised(heat: float) -> float:
        return pictures * loss(outputs[0], labels, heat) + PRIOR * (1 / heat + math.log(heat))

    assert penalised(found.temperature) <= min(map(penalised, np.geomspace(*TEMPERATURES, 500))) + 1e-9
    again = calibrate(outputs.repeat(3, 1, 1), labels)  # no more pictures than before
    assert (again.temperature, again.text) == (pytest.approx(found.temperature), found.text)


def test_a_network_that_is_calibrated_already_hardly_changes() -> None:
    found = [math.log(calibrate(*drawn(seed, 100, 4, 1.0)).temperature) for seed in range(100)]
    assert abs(sum(found)) / 100 < 0.05 and max(map(abs, found)) < 0.5
    assert all(calibrate(*drawn(seed, 100, 4, 3.0)).temperature > 2 for seed in range(20))


# -- measure


@st.composite
def guesses(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Draw logits, some of them equal, and labels."""
    pictures, classes = draw(st.integers(1, 30)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([2, 5, 10_000]))
    scores = rng.integers(0, levels, (pictures, classes)) / 100
    return torch.tensor(scores, dtype=torch.float32), torch.tensor(rng.integers(0, classes, pictures))


@given(guesses())
@settings(max_examples=60)
def test_the_measurements_equal_a_slow_loop(guessed: tuple[Tensor, Tensor]) -> None:
    scores, labels = guessed
    pictures, classes = scores.shape
    measured = measure(scores, labels, 1.0)
    hits, close, nats = 0, 0, 0.0
    confusion = [[0] * classes for _ in range(classes)]
    for row, truth in zip(scores.tolist(), labels.tolist(), strict=True):
        order = sorted(range(classes), key=lambda label: -row[label])  # of equals the first
        hits += order[0] == truth
        close += truth in order[:3]
        confusion[truth][order[0]] += 1
        nats += math.log(sum(map(math.exp, row))) - row[truth]
    assert measured.pictures == pictures
    assert (measured.top1, measured.top1_interval) == (hits / pictures, wilson(hits, pictures))
    known = (close / pictures, wilson(close, pictures)) if classes > 3 else (None, None)
    assert (measured.top3, measured.top3_interval) == known
    assert measured.confusion == tuple(map(tuple, confusion))
    assert measured.loss == pytest.approx(nats / pictures, abs=1e-9)
    assert measured.ece == pytest.approx(slow_calibration_error(scores.double().softmax(dim=1), labels), abs=1e-9)


@given(guesses(), st.floats(0.05, 20))
@settings(max_examples=50)
def test_the_measurements_are_consistent(guessed: tuple[Tensor, Tensor], heat: float) -> None:
    scores, labels = guessed
    measured = measure(scores, labels, heat)
    assert sum(map(sum, measured.confusion)) == measured.pictures == len(labels)
    assert [sum(row) for row in measured.confusion] == torch.bincount(labels, minlength=scores.shape[1]).tolist()
    assert [share is None for share in measured.per_class] == [sum(row) == 0 for row in measured.confusion]
    hits = sum((share or 0.0) * sum(row) for share, row in zip(measured.per_class, measured.confusion, strict=True))
    assert measured.top1 == pytest.approx(hits / len(labels))
    assert measured.top3 is None or measured.top1 <= measured.top3
    assert 0 <= measured.ece <= 1


@given(guesses(), st.floats(0.05, 20))
@settings(max_examples=50)
def test_a_temperature_changes_no_prediction(guessed: tuple[Tensor, Tensor], heat: float) -> None:
    scores, labels = guessed
    plain, tempered = measure(scores, labels, 1.0), measure(scores, labels, heat)
    same = [astuple(replace(one, loss=0, ece=0, ece_chance=0)) for one in (plain, tempered)]
    assert same[0] == same[1]
    assert tempered.loss == pytest.approx(loss(scores, labels, heat))


def test_a_network_with_equal_logits_has_no_more_top_1_than_top_3() -> None:
    """torch's topk takes any of equal values: a dead network had a top-1 of 1 and a top-3 of 0."""
    measured = measure(torch.zeros(12, 9), torch.zeros(12, dtype=torch.int64), 1.0)
    assert (measured.top1, measured.top3) == (1.0, 1.0)
    assert measure(torch.zeros(12, 9), torch.full((12,), 3), 1.0).top3 == 0.0


def test_the_measurements_are_json() -> None:
    measured = measure(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0]), 1.0)
    values = json.loads(json.dumps(measured.to_dict()))
    assert values["per_class"] == [1.0, None, None]
    assert values["confusion"] == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


# -- logits


def test_the_logits_equal_those_of_each_picture_alone_in_the_order_of_the_part() -> None:
    rng = np.random.default_rng(0)
    indices = np.array([4, 0, 6, 2, 5])
    part = Part(
        images=rng.integers(0, 256, (7, 24, 24, 3), dtype=np.uint8),
        indices=indices,
        labels=np.array([2, 0, 1, 1, 2]),
        classes=3,
    )
    torch.manual_seed(0)
    network = MushroomCNN(ModelConfig(classes=3, width=0.25, dropout=0.5)).train()
    outputs, labels = logits(network, EvaluationBatches(part, batch_size=2, device=torch.device("cpu")))
    assert not network.training
    assert (outputs.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert labels.tolist() == part.labels.tolist()
    with torch.inference_mode():
        for row, place in zip(outputs, indices, strict=True):
            alone = network(normalise(torch.from_numpy(part.images[place : place + 1])))
            torch.testing.assert_close(row, alone[0], rtol=1e-4, atol=1e-5)
