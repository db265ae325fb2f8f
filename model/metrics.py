"""Evaluation of a network's logits: accuracy with its interval, calibration, and the temperature that improves it.

network, batches -> `logits` -> (N, C) and labels (N,)        -> `calibrate` on one set of pictures: a temperature
                                                              -> `measure` with it, on another
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.training import Batches, Confusion

Z95 = 1.959964
"""Number of standard deviations around the mean that hold 95 % of a normal distribution."""
BINS = 15
"""Number of confidence bins of the calibration error, as in Guo et al. 2017."""
TEMPERATURES = (0.05, 20.0)
"""Lowest and highest temperature that is fitted."""
PRIOR = 2.0
"""Weight of the prior of the inverse temperature, in pictures."""
RISK = 0.1
"""Largest share of the answers called sure that may be wrong."""
DRAWS = 200
"""Number of draws from which the chance level of a calibration error is computed."""

Logits = tuple[Tensor, Tensor]
"""Logits (N, C) float32 and labels (N,) int64."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How well a network does on pictures that it was not trained on."""

    pictures: int
    loss: float
    """Cross entropy per picture, after the temperature."""
    top1: float
    """Share of the pictures whose true class is the most probable one, 0 to 1."""
    top1_interval: tuple[float, float]
    """95 % Wilson interval of `top1`."""
    top3: float | None
    """Share of the pictures whose true class is among the three most probable ones, 0 to 1; None if there are no more
    than three classes, of which it would always be 1."""
    top3_interval: tuple[float, float] | None
    """95 % Wilson interval of `top3`."""
    ece: float
    """Expected calibration error after the temperature, 0 to 1."""
    ece_chance: float
    """Chance level of `ece`: with probabilities that are exactly right, 95 % of samples as large stay below it."""
    sure: int | None = None
    """Number of pictures with a sure answer; None if no answer is called sure."""
    sure_top1: float | None = None
    """Share of the sure answers that are right, 0 to 1; None without one."""
    sure_interval: tuple[float, float] | None = None
    """95 % Wilson interval of `sure_top1`."""
    strangers: int | None = None
    """Number of pictures that are called strangers; None if none can be."""
    strangers_interval: tuple[float, float] | None = None
    """95 % Wilson interval of the share of strangers."""
    per_class: tuple[float | None, ...]
    """Accuracy within each true class; None for a class without pictures."""
    confusion: Confusion

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements as plain JSON types."""
        return asdict(self)


def logits(model: nn.Module, batches: Batches) -> Logits:
    """Return the logits of all pictures of an epoch, on the CPU; the model is left in evaluation mode.

    They have full float32 precision even on a GPU, as in an exported network; by default cuDNN would use TF32.
    """
    return outputs(model.eval(), batches)


@torch.inference_mode()
def outputs(compute: Callable[[Tensor], Tensor], batches: Batches) -> tuple[Tensor, Tensor]:
    """Return what `compute` makes of all pictures of an epoch, float32, and their labels, both on the CPU.

    The precision is that of `logits`.
    """
    convolutions = cast(Any, torch.backends.cudnn).conv
    before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    try:
        pairs = [(compute(images).float().cpu(), labels.cpu()) for images, labels in batches.epoch(0)]
    finally:
        convolutions.fp32_precision = before
    found, labels = zip(*pairs, strict=True)
    return torch.cat(found), torch.cat(labels)


def measure(
    logits: Tensor, labels: Tensor, temperature: float, sure: float | None = None, strange: Tensor | None = None
) -> Measured:
    """Compare logits (N, C) with labels (N,), N >= 1; the temperature affects only loss, calibration and sure answers.

    An answer is sure if its probability is at least `sure`, 0 to 1, and its picture not among the strangers, for which
    `strange`, bool (N,), is true.
    """
    pictures, classes = logits.shape
    predictions = logits.argmax(dim=1)
    confusion = torch.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)
    rows = tuple(tuple(map(int, row)) for row in confusion.unbind())
    top1 = int(confusion.trace())
    # Sorted stably, so that of equal logits the first counts, as it does for argmax; topk takes any of them
    best = logits.argsort(dim=1, descending=True, stable=True)[:, :3]
    top3 = int((best == labels[:, None]).sum())
    scaled = logits.double() / temperature
    probabilities = scaled.softmax(dim=1)
    is_sure = probabilities.max(dim=1).values >= (math.inf if sure is None else sure)
    if strange is not None:
        is_sure &= ~strange
    strangers = None if strange is None else int(strange.sum())
    answered, right = int(is_sure.sum()), int((predictions == labels)[is_sure].sum())
    return Measured(
        pictures=pictures,
        loss=float(functional.cross_entropy(scaled, labels)),
        top1=top1 / pictures,
        top1_interval=wilson(top1, pictures),
        top3=top3 / pictures if classes > 3 else None,
        top3_interval=wilson(top3, pictures) if classes > 3 else None,
        ece=calibration_error(probabilities, labels),
        ece_chance=chance_level(probabilities),
        sure=None if sure is None else answered,
        sure_top1=right / answered if answered else None,
        sure_interval=wilson(right, answered) if answered else None,
        strangers=strangers,
        strangers_interval=None if strangers is None else wilson(strangers, pictures),
        per_class=tuple(row[label] / sum(row) if sum(row) else None for label, row in enumerate(rows)),
        confusion=rows,
    )


def wilson(hits: float, pictures: float) -> tuple[float, float]:
    """Return the 95 % score interval of a share (Wilson 1927): within 0 to 1, and reliable even for few pictures.

    Raises ValueError if there are no pictures.
    """
    if pictures <= 0:
        raise ValueError(f"`pictures > 0` must hold, but got {pictures}")
    share, weight = hits / pictures, Z95**2 / pictures
    middle = (share + weight / 2) / (1 + weight)
    half = Z95 / (1 + weight) * math.sqrt(share * (1 - share) / pictures + weight / (4 * pictures))
    return max(0.0, middle - half), min(1.0, middle + half)


def difference(first: float, second: float, pictures: int) -> tuple[float, float]:
    """Return the 95 % interval of first - second, each a share of `pictures` (Newcombe 1998, method 10).

    It assumes that the two are independent; on the same pictures they are not, and the true interval is narrower.
    """
    low1, high1 = wilson(round(first * pictures), pictures)
    low2, high2 = wilson(round(second * pictures), pictures)
    return (
        first - second - math.hypot(first - low1, high2 - second),
        first - second + math.hypot(high1 - first, second - low2),
    )


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error: |confidence - accuracy| in BINS equal bins, averaged over the pictures.

    Guo et al. 2017, arXiv:1706.04599, equation 5. Probabilities (N, C), labels (N,).
    """
    confidence, predictions = probabilities.double().max(dim=1)
    return _binned_error(confidence, predictions == labels)


def chance_level(probabilities: Tensor) -> float:
    """Return the calibration error below which 95 % of samples stay whose labels are drawn from `probabilities`.

    The error is never negative, so that of a few pictures is large even if every probability (N, C) is exactly right.
    """
    confidence = probabilities.double().max(dim=1).values
    generator = torch.Generator().manual_seed(0)
    draws = (torch.rand(len(confidence), generator=generator, dtype=torch.float64) for _ in range(DRAWS))
    errors = [_binned_error(confidence, drawn < confidence) for drawn in draws]
    return float(torch.tensor(errors, dtype=torch.float64).quantile(0.95))


def _binned_error(confidence: Tensor, right: Tensor) -> float:
    """Return the calibration error of predictions made with these confidences (N,), each right or wrong."""
    # A bin includes its upper edge, as in the paper
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    sums = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, confidence - right.double())
    return float(sums.abs().sum()) / len(confidence)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The temperature of a network's probabilities, and how it was found."""

    temperature: float
    """Divisor of the logits."""
    text: str
    """The temperature and the number of pictures that it was fitted on."""
    sure: float | None
    """Lowest probability of a sure answer, 0 to 1, as `surest` returns it."""
    sure_text: str
    """What a sure answer is, or why no answer is called sure."""


def calibrate(outputs: Tensor, labels: Tensor) -> Calibration:
    """Fit the temperature of networks that were trained alike, and find the sure answers.

    `outputs` (S, N, C) are the logits of S networks for the same N validation pictures, `labels` (N,) their classes. A
    picture counts once, however many networks there are.
    """
    networks, pictures, _ = outputs.shape
    heat = temperature(outputs.flatten(0, 1), labels.repeat(networks), PRIOR / pictures)
    text = f"temperature {heat:.2f}, fitted on {pictures:,} validation pictures"
    sure, sure_text = surest((outputs.double() / heat).softmax(dim=2), labels)
    return Calibration(temperature=heat, text=text, sure=sure, sure_text=sure_text)


def surest(probabilities: Tensor, labels: Tensor) -> tuple[float | None, str]:
    """Return the lowest probability of an answer that is called sure, 0 to 1, and say what that means.

    `probabilities` (S, N, C) are those of S networks for the same N validation pictures, `labels` (N,) their classes.
    Answers that are at least as probable may be wrong in RISK of the cases, by the upper end of the 95 % interval, in
    which a picture counts once (selective classification; Geifman and El-Yaniv 2017, arXiv:1705.08500). Returns None,
    and the reason, if the validation pictures show this for no probability.
    """
    networks, pictures, _ = probabilities.shape
    confidence, predictions = probabilities.max(dim=2)
    order = confidence.flatten().argsort(descending=True)
    confidence, right = confidence.flatten()[order], (predictions == labels).flatten()[order].double().cumsum(dim=0)
    ends = [*(confidence.diff().nonzero().flatten() + 1).tolist(), len(confidence)]  # equal ones are sure together
    sure = [end for end in ends if 1 - wilson(float(right[end - 1]) / networks, end / networks)[0] <= RISK]
    wanted = f"{100 * (1 - RISK):.0f} % of its answers are right"
    if not sure and wilson(pictures, pictures)[0] < 1 - RISK:
        return None, f"no answer is called sure: {pictures:,} validation pictures are too few to show when {wanted}"
    if not sure:
        return None, f"no answer is called sure: on {pictures:,} validation pictures, at no probability {wanted}"
    end = sure[-1]
    lowest, share, correct = float(confidence[end - 1]), end / networks / pictures, float(right[end - 1]) / end
    return lowest, (
        f"answers of {100 * lowest:.0f} % and more are called sure: {100 * share:.0f} % of those on {pictures:,} "
        f"validation pictures, of which {100 * correct:.1f} % are right"
    )


def temperature(logits: Tensor, labels: Tensor, prior: float = 0.0) -> float:
    """Return the divisor of the logits (N, C) that gives the lowest loss (Guo et al. 2017, section 4.2).

    Fit it on pictures that the weights were not fitted on. `prior` is the weight of a gamma prior of the inverse
    temperature, whose mode is 1, relative to the mean loss: few pictures do not determine a temperature, and a network
    that makes no mistake on them would claim certainty. Measured on made-up networks with the weight PRIOR / N
    (benchmarks/README.md, "What a temperature does"). The loss is convex in the inverse temperature, so bisection
    within TEMPERATURES finds where its slope changes sign.
    """
    exact = logits.double()
    truth = exact.gather(1, labels[:, None])[:, 0]
    low, high = (math.log(1 / bound) for bound in reversed(TEMPERATURES))
    for _ in range(60):
        middle = (low + high) / 2
        expected = ((exact * math.exp(middle)).softmax(dim=1) * exact).sum(dim=1)
        if float((expected - truth).mean()) + prior * (1 - math.exp(-middle)) > 0:
            high = middle
        else:
            low = middle
    return math.exp(-(low + high) / 2)
