"""What a temperature does to the probabilities, and how far sure answers can be trusted.

    python benchmarks/calibration.py

Each case is three networks, as after three seeds, for a random number of classes, accuracy and overconfidence. Their
temperature is fitted on few pictures, and the first network is measured on 5,000 others: without it, with the
temperature that has the lowest loss, and with that of `model.metrics.calibrate`, whose prior keeps it from extremes;
and how many answers are sure, and how many of them wrong.
Overconfidence is log-normal around 1, with a factor of 1.65.
"""

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from model.metrics import RISK, calibrate, measure, temperature
from tests.stress.script import header, machine, row, run

CLASSES = (2, 3, 5, 9, 20)
SPREADS = (0.5, 8.0)
"""Standard deviation of the true logits: from hard to nearly separable classes."""
ERRORS = (0.0, 0.7)
"""Standard deviation of a network's errors, relative to that of the true logits."""
FRESH = 5000


class Case:
    """Pictures with known probabilities of their classes, and networks that know them only partly."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._torch = torch.Generator().manual_seed(seed)
        self._classes = int(self._rng.choice(CLASSES))
        self._spread = float(np.exp(self._rng.uniform(*np.log(SPREADS))))
        self._error = float(self._rng.uniform(*ERRORS))
        self._overconfidence = float(np.exp(self._rng.normal(0.0, 0.5)))

    def draw(self, pictures: int) -> tuple[Tensor, Tensor]:
        """Return the logits (3, N, C) of three networks, and the classes (N,)."""
        true = self._spread * torch.randn(pictures, self._classes, generator=self._torch)
        labels = torch.multinomial(true.softmax(dim=1), 1, generator=self._torch)[:, 0]
        errors = torch.randn(3, pictures, self._classes, generator=self._torch)
        return self._overconfidence * (true + self._error * self._spread * errors), labels


def main(*, cases: int = 1000, pictures: tuple[int, ...] = (8, 30, 100, 300, 1000)) -> None:
    """Measure all cases for each number of validation pictures.

    Parameters
    ----------
    cases
        Number of cases.
    pictures
        Numbers of validation pictures.
    """
    torch.set_num_threads(1)
    print(f"{cases:,} cases, {machine()}\n")
    header(
        "validation pictures",
        "ECE % without, lowest loss, with the prior",
        "loss without, lowest loss, with the prior",
        "largest rise of the loss: lowest loss, with the prior",
        "sure answers exist %",
        "then sure %",
        "of these wrong %",
        f"more than {100 * RISK:.0f} % wrong, % of cases",
    )
    for count in pictures:
        errors: list[tuple[float, ...]] = []
        losses: list[tuple[float, ...]] = []
        shares: list[float] = []
        risks: list[float] = []
        for seed in range(cases):
            case = Case(seed)
            outputs, labels = case.draw(count)
            found = calibrate(outputs, labels)
            lowest = temperature(outputs.flatten(0, 1), labels.repeat(3))
            fresh, truth = case.draw(FRESH)
            measured = [measure(fresh[0], truth, heat, found.sure) for heat in (1.0, lowest, found.temperature)]
            if measured[-1].sure is not None:
                shares.append(measured[-1].sure / FRESH)
                risks.append(1 - (measured[-1].sure_top1 or 0))
            errors.append(tuple(one.ece for one in measured))
            losses.append(tuple(one.loss for one in measured))
        row(
            f"{count:,}",
            ", ".join(f"{100 * statistics.fmean(column):.1f}" for column in zip(*errors, strict=True)),
            ", ".join(f"{statistics.fmean(column):.3f}" for column in zip(*losses, strict=True)),
            ", ".join(f"{max(each[place] - each[0] for each in losses):.2f}" for place in (1, 2)),
            f"{100 * len(shares) / cases:.0f}",
            f"{100 * statistics.fmean(shares):.0f}" if shares else "-",
            f"{100 * statistics.fmean(risks):.1f}" if risks else "-",
            f"{100 * sum(risk > RISK for risk in risks) / len(risks):.0f}" if risks else "-",
        )


if __name__ == "__main__":
    run(main)
