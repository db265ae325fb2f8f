"""From a bundle and picture files to classes with probabilities; needs torch, Pillow, safetensors and `model` alone.

    paths -> decoded by a few threads, ahead of the network -> batches -> softmax(logits / temperature) -> `Prediction`s

From Python:

    from model.predict import Classifier
    classifier = Classifier.load("results/field-guide/best")
    print(next(classifier.predict(["mushroom.jpg"])))

A picture goes through `model.preprocessing.load_square`, as the pictures of the validation part did.
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

from model.export.bundle import Bundle, load
from model.files import is_hidden, printable
from model.network import MushroomCNN
from model.preprocessing import SUFFIXES, PictureError, load_square, normalise

DECODERS = min(4, os.cpu_count() or 1)
"""Threads. Pillow frees the interpreter's lock while it decodes and resizes."""

Square = npt.NDArray[np.uint8]


class PredictError(Exception):
    """A request that cannot be answered; one line: the rule, the values, the way out."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the network makes of one picture."""

    path: Path
    """As it was given."""
    classes: tuple[tuple[str, float], ...]
    """The most probable classes with their calibrated probabilities, best first; none where there is an error."""
    error: str | None = None
    """Why the picture could not be used."""


class Classifier:
    """A bundle at work."""

    def __init__(self, bundle: Bundle, network: MushroomCNN, device: torch.device) -> None:
        self.bundle = bundle
        self._network = network.to(device)
        self._device = device

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> "Classifier":
        """Reads a bundle. Raises BundleError or PredictError where torch has no such device."""
        bundle, network = load(Path(folder))
        try:
            return cls(bundle, network, torch.device(device))
        except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts that it had been
            reason = str(error).partition("\n")[0].rstrip(".")
            raise PredictError(
                f"a device must be one that torch has here, but {device!r} is not ({reason}); use 'cpu'"
            ) from error

    def predict(self, paths: Iterable[str | Path], *, top: int = 3, batch_size: int = 32) -> Iterator[Prediction]:
        """One `Prediction` per picture file, in their order, as soon as its batch is done.

        `paths` is drawn from as needed and two batches are held at a time, so it may be endless; for folders see
        `pictures_in`. `top`: how many classes, all of them where there are fewer. A picture that cannot be used gives
        its reason and stops no other.
        """
        if isinstance(paths, (str, Path)) or top < 1 or batch_size < 1:
            raise ValueError(
                f"`paths` must be several and `1 <= top, batch_size` must hold, but got {paths!r}, {top}, {batch_size}"
            )
        return self._predict(paths, top, batch_size)

    def probabilities(self, pictures: Square) -> torch.Tensor:
        """uint8 (N, S, S, 3), prepared as `load_square` does, to float32 (N, classes) on the CPU."""
        with torch.inference_mode():
            logits = self._network(normalise(torch.tensor(pictures, device=self._device)))
            return torch.softmax(logits.float() / self.bundle.temperature, dim=1).cpu()

    def _predict(self, paths: Iterable[str | Path], top: int, batch_size: int) -> Iterator[Prediction]:
        coming = map(Path, paths)
        pool = ThreadPoolExecutor(DECODERS)
        waiting: deque[tuple[Path, Future[Square | str]]] = deque()
        try:
            while True:
                # While the network is at one batch, the threads decode the next
                for path in islice(coming, 2 * batch_size - len(waiting)):
                    waiting.append((path, pool.submit(self._square, path)))
                if not waiting:
                    return
                yield from self._classify([waiting.popleft() for _ in range(min(batch_size, len(waiting)))], top)
        finally:  # also when nobody takes the rest
            pool.shutdown(wait=True, cancel_futures=True)

    def _square(self, path: Path) -> Square | str:
        try:
            return load_square(path, self.bundle.image_size)
        except PictureError as error:
            return str(error)
        except MemoryError:
            return "too large for the memory that is free"

    def _classify(self, batch: list[tuple[Path, Future[Square | str]]], top: int) -> Iterator[Prediction]:
        squares = [future.result() for _, future in batch]
        good = [square for square in squares if not isinstance(square, str)]
        rows = iter(self.probabilities(np.stack(good)).tolist() if good else ())
        for (path, _), square in zip(batch, squares, strict=True):
            if isinstance(square, str):
                yield Prediction(path=path, classes=(), error=square)
                continue
            row: list[float] = next(rows)
            if not math.isfinite(sum(row)):
                yield Prediction(path=path, classes=(), error="its numbers overflow in the network")
                continue
            best = sorted(range(len(row)), key=lambda label: -row[label])[:top]
            yield Prediction(path=path, classes=tuple((self.bundle.classes[label], row[label]) for label in best))


def pictures_in(paths: Iterable[str | Path]) -> Iterator[Path]:
    """Files as they are given; of a folder its pictures in sorted order, then those of its folders, none hidden.

    A folder that is a link is entered where it is given, not where it is found. Raises PredictError: at once for a path
    that does not exist, on the way for a folder that cannot be read.
    """
    given = [Path(path) for path in paths]
    for path in given:
        if not path.exists():
            raise PredictError(f"a picture or folder must exist, but {printable(path)} does not; check its name")
    return (picture for path in given for picture in (_walk(path) if path.is_dir() else (path,)))


def _walk(top: Path) -> Iterator[Path]:
    folders = [top]  # and no recursion: folders nest deeper than Python's calls may
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise PredictError(
                f"a folder of pictures must be readable, but {printable(folder)} is not ({error.strerror}); "
                "mend its rights, or name its pictures"
            ) from error
        seen = [entry for entry in entries if not is_hidden(entry.name)]
        for entry in seen:
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - of a bare name, 20 times faster than Path
            if suffix in SUFFIXES and entry.is_file():
                yield folder / entry.name
        folders += [folder / entry.name for entry in reversed(seen) if entry.is_dir(follow_symlinks=False)]
