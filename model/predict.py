"""Classifies picture files with a bundle; needs only torch, numpy, Pillow, safetensors and `model`.

    paths -> decoded by a few threads, ahead of the network -> batches -> softmax(logits / temperature) -> `Prediction`s

From Python:

    from model.predict import Classifier
    classifier = Classifier.load("results/field-guide/best")
    print(next(classifier.predict(["mushroom.jpg"])))

Pictures are preprocessed by `model.preprocessing.read_square`, exactly as in training.
"""

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from model.evidence import evidence, explained
from model.export.bundle import Bundle, load
from model.files import is_hidden, open_regular, printable
from model.limits import cpus
from model.network import MushroomCNN
from model.preprocessing import MAX_BYTES, ORDINARY, SUFFIXES, PictureError, Ranges, Traits, normalise, read_square

DECODERS = min(4, cpus())
"""Number of threads that decode pictures; Pillow releases the GIL while it decodes and resizes."""

Square = npt.NDArray[np.uint8]


class PredictError(Exception):
    """A prediction is impossible; the message is one line with the symptom, the values and the fix."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable classes of one picture, or why it could not be used."""

    path: Path
    """Path of the picture as it was given."""
    classes: tuple[tuple[str, float], ...]
    """The most probable classes with their probabilities, best first; empty if there is an error."""
    sure: bool | None = None
    """Whether the answer is sure, as the bundle's `sure_answers` says, and the picture no stranger; None if there is an
    error or no such rule."""
    stranger: bool | None = None
    """Whether the picture is unlike anything that the network has learned, as the bundle's `strangers` says; None if
    there is an error or no such rule."""
    strangeness: float | None = None
    """How strange the picture is to the network, in standard deviations from what is usual; None as `stranger` is."""
    error: str | None = None
    """Why the picture could not be used; None if it could."""
    traits: Traits = ORDINARY
    """Facts about the file: how many pictures it holds, which share of its values is outside the training range, ..."""


class Classifier:
    """A bundle's network, ready to classify picture files."""

    def __init__(self, bundle: Bundle, network: MushroomCNN, device: torch.device) -> None:
        self.bundle = bundle
        self._network = network.to(device)
        self._device = device

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> "Classifier":
        """Load the bundle in a folder. Raises BundleError, or PredictError if torch has no such device."""
        bundle, network = load(Path(folder))
        try:
            return cls(bundle, network, torch.device(device))
        except (RuntimeError, AssertionError) as error:  # torch built without CUDA fails an assertion
            reason = str(error).partition("\n")[0].rstrip(".")
            raise PredictError(f"cannot use device {device!r} ({reason}): use 'cpu'") from error

    def predict(self, paths: Iterable[str | Path], *, top: int = 3, batch_size: int = 32) -> Iterator[Prediction]:
        """Yield one `Prediction` per picture file, in their order, as soon as its batch is done.

        `paths` may be an endless iterator, because only two batches are held at a time; for folders see `pictures_in`.
        `top` is the number of classes to return, at most all of them. For a picture that cannot be used, the reason is
        returned, and the others are not affected. Raises ValueError for a single path, or a number below 1.
        """
        if isinstance(paths, (str, Path)) or top < 1 or batch_size < 1:
            raise ValueError(
                f"`paths` must be a list of paths, and `top` and `batch_size` 1 or more, but got {paths!r}, {top}, "
                f"{batch_size}"
            )
        return self._predict(paths, top, batch_size)

    def probabilities(self, pictures: Square) -> torch.Tensor:
        """Return float32 (N, classes), on the CPU, for uint8 (N, S, S, 3) as `load_square` returns them."""
        return self._answers(pictures)[0]

    @torch.inference_mode()
    def _answers(self, pictures: Square) -> tuple[torch.Tensor, list[float | None]]:
        """Return probabilities, as `probabilities` does, and each picture's strangeness."""
        network = self._network
        features, logits = network.features_and_logits(normalise(torch.tensor(pictures, device=self._device)))
        probabilities = torch.softmax(logits.float() / self.bundle.temperature, dim=1).cpu()
        if network.familiar is None:
            return probabilities, [None] * len(pictures)
        return probabilities, network.familiar(features, logits).tolist()

    def explain(self, path: Path, name: str, *, side: int = 256) -> Image.Image:
        """Return what the network sees of a picture and, to the right of it, where it looked for the class `name`.

        Both are `side` pixels wide and high; see `model.evidence`. Raises PictureError if the file cannot be used.
        """
        square, _ = square_of(path, self.bundle.image_size, self.bundle.ranges)
        pictures = normalise(torch.tensor(square[None], device=self._device))
        label = torch.tensor([self.bundle.classes.index(name)], device=self._device)
        parts = evidence(self._network, pictures, label)[0].float().cpu().numpy()
        return explained(square, parts, side)

    def _predict(self, paths: Iterable[str | Path], top: int, batch_size: int) -> Iterator[Prediction]:
        coming = map(Path, paths)
        pool = ThreadPoolExecutor(DECODERS)
        waiting: deque[tuple[Path, Future[tuple[Square, Traits] | str]]] = deque()
        try:
            while True:
                # While the network computes one batch, the threads decode the next
                for path in islice(coming, 2 * batch_size - len(waiting)):
                    waiting.append((path, pool.submit(self._square, path)))
                if not waiting:
                    return
                yield from self._classify([waiting.popleft() for _ in range(min(batch_size, len(waiting)))], top)
        finally:  # also if the caller stops early
            pool.shutdown(wait=True, cancel_futures=True)

    def _square(self, path: Path) -> tuple[Square, Traits] | str:
        try:
            return square_of(path, self.bundle.image_size, self.bundle.ranges)
        except PictureError as error:
            return str(error)
        except MemoryError:
            return "too large for the free memory"

    def _classify(
        self, batch: list[tuple[Path, Future[tuple[Square, Traits] | str]]], top: int
    ) -> Iterator[Prediction]:
        found = [future.result() for _, future in batch]
        good = [one[0] for one in found if not isinstance(one, str)]
        probabilities, strangeness = self._answers(np.stack(good)) if good else (torch.empty(0), [])
        answers = zip(probabilities.tolist(), strangeness, strict=True)
        for (path, _), one in zip(batch, found, strict=True):
            if isinstance(one, str):
                yield Prediction(path=path, classes=(), error=one)
                continue
            row, strange = next(answers)
            if not math.isfinite(sum(row)):
                yield Prediction(path=path, classes=(), error="the network's numbers overflow")
                continue
            best = sorted(range(len(row)), key=lambda label: -row[label])[:top]
            classes = tuple((self.bundle.classes[label], row[label]) for label in best)
            sure, strangest = self.bundle.sure, self.bundle.strangest
            stranger = None if strangest is None or strange is None else strange > strangest
            yield Prediction(
                path=path,
                classes=classes,
                sure=None if sure is None else max(row) >= sure and not stranger,
                stranger=stranger,
                strangeness=strange,
                traits=one[1],
            )


def square_of(path: Path, size: int, ranges: Ranges) -> tuple[Square, Traits]:
    """Open a regular file of up to MAX_BYTES, and read it as `read_square` does. Raises PictureError."""
    try:
        with open_regular(path, MAX_BYTES) as file:
            return read_square(file, size, ranges)
    except OSError as error:
        raise PictureError(f"cannot be opened ({error.strerror})") from error


def pictures_in(paths: Iterable[str | Path]) -> Iterator[Path]:
    """Yield files as given, and each folder's pictures in sorted order, followed by those of its subfolders.

    Hidden files are skipped, and so are links to folders unless they are given themselves. Raises PredictError at once
    for a path that does not exist, and during iteration for a folder that cannot be read.
    """
    given = [Path(path) for path in paths]
    for path in given:
        if not path.exists():
            raise PredictError(f"no such picture or folder: {printable(path)}; check its name")
    return (picture for path in given for picture in (_walk(path) if path.is_dir() else (path,)))


def _walk(top: Path) -> Iterator[Path]:
    folders = [top]  # not recursive, as folders may nest deeper than Python's calls
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            problem = f"cannot read folder {printable(folder)} ({error.strerror})"
            raise PredictError(f"{problem}: check its permissions, or pass its pictures instead") from error
        seen = [entry for entry in entries if not is_hidden(entry.name)]
        for entry in seen:
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - 20 times faster than Path
            if suffix in SUFFIXES and entry.is_file():
                yield folder / entry.name
        folders += [folder / entry.name for entry in reversed(seen) if entry.is_dir(follow_symlinks=False)]
