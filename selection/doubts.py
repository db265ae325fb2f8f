"""Doubts: validation pictures whose label the finalists' networks find improbable together.

standings -> probabilities of every network for the validation pictures, on which none was trained -> their mean
    -> `Doubt` each, the least probable label first -> doubts.csv

A wrong label and a picture that is hard to tell look alike to a network, so a person has to look. Each network is an
independent opinion: what one seed finds odd is often chance (self-confidence, Northcutt et al. 2021, arXiv:1911.00068).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.report import report_path
from model.files import csv_cell
from selection.finalists import KIND, Standing
from selection.fixed_runs import weights
from selection.retraining import Evaluator
from tuning import ownership
from tuning.folder import replace_file
from tuning.session import Session

FILE = "doubts.csv"
GALLERY = "doubts.jpg"
"""Name of the file with thumbnails of the first of them."""


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """What the finalists' networks think of a validation picture and its label."""

    place: int
    """Place of the picture in the validation part."""
    path: Path
    """Path of the picture as in data_report.csv."""
    label: str
    label_share: float
    """Mean probability of the label, 0 to 1."""
    guess: str
    """The class that is most probable on average."""
    guess_share: float
    networks: int
    against: int
    """Number of the networks to which another class than the label is the most probable."""


def find(session: Session, standings: Sequence[Standing]) -> list[Doubt]:
    """Return a doubt for each validation picture, the least probable label first; [] if all networks diverged."""
    evaluator = Evaluator(data=session.data, device=session.own_device)
    found = [
        evaluator.logits(standing.candidate.config, weights(session.folder / KIND, run), "validation")
        for standing in standings
        if not standing.candidate.baseline
        for run in standing.complete
    ]
    if not found:
        return []
    labels, probabilities = found[0][1], torch.stack([logits.double().softmax(dim=1) for logits, _ in found])
    catalog, places = session.pictures.catalog, session.pictures.split.validation.tolist()
    mean, against = probabilities.mean(dim=0), (probabilities.argmax(dim=2) != labels).sum(dim=0)
    return [
        Doubt(
            place=place,
            path=report_path(catalog, catalog.kept[places[place]]),
            label=session.data.classes[int(labels[place])],
            label_share=float(mean[place, labels[place]]),
            guess=session.data.classes[int(mean[place].argmax())],
            guess_share=float(mean[place].max()),
            networks=len(found),
            against=int(against[place]),
        )
        for place in order(probabilities, labels)
    ]


def order(probabilities: Tensor, labels: Tensor) -> list[int]:
    """Return the places of N pictures, that with the least probable label first.

    `probabilities` (S, N, C) are those of S networks, of which the mean counts; `labels` is (N,).
    """
    shares = probabilities.mean(dim=0).gather(1, labels[:, None])[:, 0]
    return shares.argsort(stable=True).tolist()


def write(doubts: Sequence[Doubt], session: Session) -> None:
    """Write one line per picture into doubts.csv, each with the study's random id. Raises StudyError."""
    made_by = ownership.study_id(session.study)

    def fill(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            head = ["path", "label", "label_probability", "likeliest", "likeliest_probability"]
            table.writerow([*head, "networks", "networks_against", "study_id"])
            for one in doubts:
                shares = f"{one.label_share:.6f}", f"{one.guess_share:.6f}"
                said = csv_cell(one.label), shares[0], csv_cell(one.guess), shares[1]
                table.writerow([csv_cell(one.path), *said, one.networks, one.against, made_by])

    replace_file(session.folder / FILE, fill)
