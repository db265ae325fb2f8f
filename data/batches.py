"""Seeded batches: gather uint8 pictures -> device -> normalise -> augment.

part -> `TrainingBatches.epoch(n)` or `EvaluationBatches.epoch(n)` -> (images float32 (B, 3, S, S), labels int64 (B,)).
Epoch n depends only on (seed, n), so that a run resumed at epoch n sees the same batches as an undisturbed one.
There is no DataLoader: one gather from a memory map and one warp cost less than passing pictures between processes.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from data.augment import AugmentConfig, augment, draw
from data.cache import Part
from data.transfer import to_device
from model.preprocessing import normalise

Batch = tuple[torch.Tensor, torch.Tensor]
Indices = npt.NDArray[np.int64]

PLAIN_EVERY = 3
"""Number of views of which one is not augmented: the original recipe shows each picture and two augmented copies."""

EVALUATION_PICTURES, EVALUATION_PIXELS = 256, 2**21
"""Largest number of pictures, and of pixels in total, evaluated at a time: 32 pictures of 256 px. With 256 of those, a
network of half the original recipe's width would take about 7 GB."""

COPIED = 256
"""Number of pictures copied at a time to a GPU that keeps them all; together they might not fit into host memory."""

DEVICE_SHARE = 0.25
"""Largest share of a GPU's free memory for a part's pictures. The rest is for the network and other workers."""

# Purposes of the streams of random numbers. SeedSequence does not tell [s] from [s, 0], so none of these is 0.
ORDER, FRESH, FIXED = 1, 2, 3


class TrainingBatches:
    """Training batches: every picture `views` times per epoch, shuffled within each view, most views augmented.

    With `augment.reuse_originals`, one view in three of each picture is not augmented, over any three epochs. With
    `oversample`, epochs have the same length but classes have equal shares (to within one picture), each going through
    its pictures in one random order after another; about a third of the views are not augmented. A last batch of a
    single picture is joined to the batch before it, because batch norm cannot train on one value per channel.
    """

    def __init__(
        self,
        part: Part,
        *,
        batch_size: int,
        views: int,
        augment: AugmentConfig,
        oversample: bool,
        seed: int,
        device: torch.device,
    ) -> None:
        if batch_size < 1 or views < 1:
            raise ValueError(f"`1 <= batch_size, views` must hold, but got batch_size={batch_size}, views={views}")
        counts = np.bincount(part.labels, minlength=part.classes)
        self.class_counts: tuple[int, ...] = tuple(counts.tolist())
        self._part = part
        self._pictures = DevicePictures(part, device)
        self._batch_size = batch_size
        self._views = views
        self._augment = augment
        self._oversample = oversample
        self._seed = seed
        self._total = len(part.labels) * views
        # All views of all pictures are rows of one table of draws. Oversampled rare pictures have more than `views`.
        self._views_each = np.full(len(part.labels), views)
        if oversample:
            share = -(-self._total // np.count_nonzero(counts))
            self._views_each = -(-share // counts[part.labels])
        self._first_row = np.cumsum(self._views_each) - self._views_each

    def __len__(self) -> int:
        full, rest = divmod(self._total, self._batch_size)
        return full + (rest > 1 or full == 0)

    def epoch(self, n: int) -> Iterator[Batch]:
        """Yield the batches of epoch n (0-based): channels_last images and labels, on the device."""
        pictures, views = self.order(n)
        rows = self._first_row[pictures] + views
        all_pictures = np.repeat(np.arange(len(self._views_each)), self._views_each)
        all_views = np.arange(len(all_pictures)) - self._first_row[all_pictures]
        stream = [self._seed, n, FRESH] if self._augment.fresh else [self._seed, FIXED]
        plain = self.plain(all_pictures, all_views, n)
        draws = draw(self._augment, plain, np.random.default_rng(stream))
        for batch in np.split(np.arange(self._total), np.arange(1, len(self)) * self._batch_size):
            images, labels = self._pictures[pictures[batch]]
            yield augment(normalise(images), draws[rows[batch]]), labels

    def order(self, n: int) -> tuple[Indices, Indices]:
        """Return the pictures of epoch n, as positions in the part, and the view number of each, from 0."""
        rng = np.random.default_rng([self._seed, n, ORDER])
        if not self._oversample:
            positions = np.concatenate([rng.permutation(len(self._views_each)) for _ in range(self._views)])
            return positions, np.repeat(np.arange(self._views), len(self._views_each))
        present = np.flatnonzero(self.class_counts)
        extra = rng.permutation(len(present)) < self._total % len(present)
        chosen: list[tuple[Indices, Indices]] = []
        for label, share in zip(present, self._total // len(present) + extra, strict=True):
            members = np.flatnonzero(self._part.labels == label)
            passes = -(-int(share) // len(members))
            positions = np.concatenate([rng.permutation(members) for _ in range(passes)])[:share]
            chosen.append((positions, np.repeat(np.arange(passes), len(members))[:share]))
        mixed = rng.permutation(self._total)
        positions, views = (np.concatenate(column)[mixed] for column in zip(*chosen, strict=True))
        return positions, views

    def plain(self, pictures: Indices, views: Indices, n: int) -> npt.NDArray[np.bool_]:
        """Return which of these views are not augmented in epoch n: a third of them, taking turns."""
        if not self._augment.reuse_originals:
            return np.zeros(len(pictures), dtype=np.bool_)
        return (views + pictures + n * self._views) % PLAIN_EVERY == 0


def evaluated_at_once(size: int) -> int:
    """Return the number of pictures of this side (pixels) to evaluate at a time."""
    return max(1, min(EVALUATION_PICTURES, EVALUATION_PIXELS // size**2))


class EvaluationBatches:
    """Evaluation batches: every picture of a part once, unaugmented, in the part's order."""

    def __init__(self, part: Part, *, batch_size: int | None = None, device: torch.device) -> None:
        """Take batches of `batch_size` pictures, or of `evaluated_at_once` if it is None."""
        batch_size = evaluated_at_once(part.images.shape[1]) if batch_size is None else batch_size
        if batch_size < 1:
            raise ValueError(f"`1 <= batch_size` must hold, but got batch_size={batch_size}")
        self.class_counts: tuple[int, ...] = tuple(np.bincount(part.labels, minlength=part.classes).tolist())
        self._pictures = DevicePictures(part, device)
        self._batch_size = batch_size
        self._total = len(part.labels)

    def __len__(self) -> int:
        return -(-self._total // self._batch_size)

    def epoch(self, n: int) -> Iterator[Batch]:
        """Yield the batches, the same in every epoch: channels_last images and labels, on the device."""
        for start in range(0, self._total, self._batch_size):
            images, labels = self._pictures[np.arange(start, min(start + self._batch_size, self._total))]
            yield normalise(images), labels


class DevicePictures:
    """A part's uint8 pictures and labels on `device`: copied there once if they fit, otherwise batch by batch.

    `room` is the number of bytes they may take there. By default it is DEVICE_SHARE of a GPU's free memory, and 0 on
    other devices, because the system's page cache already holds the memory map, shared by all workers.
    """

    def __init__(self, part: Part, device: torch.device, *, room: int | None = None) -> None:
        if room is None:
            room = int(DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0
        self._part = part
        self._device = device
        self._labels = torch.as_tensor(part.labels, device=device)
        shape = (len(part.indices), *part.images.shape[1:])
        self._resident: torch.Tensor | None = None
        if int(np.prod(shape)) <= room:
            self._resident = torch.empty(shape, dtype=torch.uint8, device=device)
            for start in range(0, len(part.indices), COPIED):
                some = part.indices[start : start + COPIED]
                self._resident[start : start + len(some)] = torch.as_tensor(part.images[some])

    @property
    def resident(self) -> bool:
        """Whether all pictures are kept on the device."""
        return self._resident is not None

    def __getitem__(self, positions: Indices) -> Batch:
        """Return pictures, uint8 (B, S, S, 3), and labels, int64 (B,), at these positions in the part."""
        on_device = to_device(positions, self._device)
        if self._resident is not None:
            return self._resident[on_device], self._labels[on_device]
        return to_device(self._part.images[self._part.indices[positions]], self._device), self._labels[on_device]
