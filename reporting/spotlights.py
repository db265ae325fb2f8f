"""Where the exported network looked on the test set, in its most confident mistakes and right answers.

winner -> its answers for the test pictures -> `choose` -> what each place added to the answer -> evidence.jpg
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from data.cache import open_part
from model.evidence import evidence, explained
from model.preprocessing import normalise
from reporting.gallery import gallery
from reporting.words import short
from search_space import Config
from selection.retraining import Evaluator, Winner, load_network
from tuning.folder import remove_file, replace_file
from tuning.session import Session

FILE = "evidence.jpg"
SHOWN = 8
"""Largest number of mistakes, and of right answers, that are shown."""
COLUMNS, SIDE = 3, 120
"""Columns of the sheet, and pixels per side of a picture in it."""


def write(session: Session, winner: Winner) -> None:
    """Write evidence.jpg: what the exported network sees of some test pictures, and where it looked for its answers.

    Needs the winner's test result and is part of that one use of the test set, as nothing is chosen by it. Without a
    result, the file is removed. Raises StudyError.
    """
    path = session.folder / FILE
    if winner.results is None:
        remove_file(path)
        return
    config, weights, classes = Config.from_dict(winner.config), session.folder / winner.weights, session.data.classes
    logits, labels = Evaluator(data=session.data, device=session.own_device).logits(config, weights, "test")
    shares, answers = (logits.double() / (winner.temperature or 1.0)).softmax(dim=1).max(dim=1)
    is_right = answers == labels
    mistakes, right = choose(shares, labels, ~is_right), choose(shares, labels, is_right)
    places = mistakes + right
    part = open_part(session.data, config.image_size, "test")
    squares = part.images[part.indices[places]]
    network = load_network(config, weights).eval()
    parts = evidence(network, normalise(torch.from_numpy(squares)), answers[places]).numpy()

    def caption(place: int) -> str:
        said = "right" if is_right[place] else f"taken for {short(classes[answers[place]], 20)}"
        return f"{short(classes[labels[place]], 32)}\n{said}, {100 * float(shares[place]):.0f} %"

    shown = [
        (np.asarray(explained(square, part_of, SIDE)), caption(place))
        for place, square, part_of in zip(places, squares, parts, strict=True)
    ]
    drawn = gallery(shown[: len(mistakes)], shown[len(mistakes) :], columns=COLUMNS, side=SIDE)
    replace_file(path, lambda temporary: temporary.write_bytes(drawn))


def choose(shares: Tensor, labels: Tensor, among: Tensor) -> list[int]:
    """Return the places of up to SHOWN pictures: the most confident answer of each class first, then the second ones.

    `shares` (N,) are the probabilities of the answers, `labels` (N,) the true classes, and `among` (N,), bool, are the
    pictures to choose from.
    """
    order = [place for place in shares.argsort(descending=True, stable=True).tolist() if among[place]]
    rank: dict[int, int] = {}
    counts = Counter[int]()
    for place in order:
        label = int(labels[place])
        rank[place] = counts[label]
        counts[label] += 1
    return sorted(order, key=rank.__getitem__)[:SHOWN]
