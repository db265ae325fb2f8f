"""Seeded batches: gather uint8 pictures -> device -> normalise -> augment.

part -> `TrainingBatches.epoch(n)` or `EvaluationBatches.epoch(n)` -> (images float32 (B, 3, S, S), labels int64 (B,)).
What epoch n holds depends on (seed, n) alone, so a run that resumes at epoch n sees what an undisturbed one sees.
No DataLoader: one gather from a memory map and one warp are cheaper than handing pictures between processes.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from data.augment import AugmentConfig, augment, draw, moved
from data.cache import Part
from model.preprocessing import normalise

Batch = tuple[torch.Tensor, torch.Tensor]
Indices = npt.NDArray[np.int64]

PLAIN_EVERY = 3
"""One view in three is the picture itself: the forager's recipe is the original and two augmented copies."""

EVALUATED, EVALUATED_PIXELS = 256, 2**21
"""Pictures that are evaluated at a time, at most, and pixels: of 256 px 32 pictures. All 256 of them would take about
7 GB in a network of half the forager's width."""

COPIED = 256
"""Pictures that go to a GPU at a time where all are kept there: together they may not fit into the host's memory."""

DEVICE_SHARE = 0.25
"""Of a GPU's free memory that a part's pictures may take; the rest is for the network, and for other workers."""

# What a stream of random numbers is for; SeedSequence takes [s] and [s, 0] for the same, so none of these is 0.
ORDER, FRESH, FIXED = 1, 2, 3


class TrainingBatches:
    """Every training picture `views` times an epoch, shuffled within each view, most of the views augmented.

    With `augment.reuse_originals` one view in three of each picture is plain, over any three epochs. With `oversample`
    an epoch is as long, but each class has an equal share of it (to within one), going through its pictures in one
    random order after another; about a third is plain. A last batch of one picture is joined to the batch before it,
    because batch norm cannot train on one value per channel.
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
        self._pictures = Pictures(part, device)
        self._batch_size = batch_size
        self._views = views
        self._augment = augment
        self._oversample = oversample
        self._seed = seed
        self._total = len(part.labels) * views
        # A picture's views are rows of one table of draws; an oversampled rare one has more views than `views`.
        self._most = np.full(len(part.labels), views)
        if oversample:
            share = -(-self._total // np.count_nonzero(counts))
            self._most = -(-share // counts[part.labels])
        self._first_row = np.cumsum(self._most) - self._most

    def __len__(self) -> int:
        full, rest = divmod(self._total, self._batch_size)
        return full + (rest > 1 or full == 0)

    def epoch(self, n: int) -> Iterator[Batch]:
        """The batches of epoch n (0-based): channels_last images and labels on the device."""
        pictures, views = self.order(n)
        rows = self._first_row[pictures] + views
        all_pictures = np.repeat(np.arange(len(self._most)), self._most)
        all_views = np.arange(len(all_pictures)) - self._first_row[all_pictures]
        stream = [self._seed, n, FRESH] if self._augment.fresh else [self._seed, FIXED]
        draws = draw(self._augment.strength, self.plain(all_pictures, all_views, n), np.random.default_rng(stream))
        for batch in np.split(np.arange(self._total), np.arange(1, len(self)) * self._batch_size):
            images, labels = self._pictures[pictures[batch]]
            yield augment(normalise(images), draws[rows[batch]]), labels

    def order(self, n: int) -> tuple[Indices, Indices]:
        """Epoch n's pictures, as places in the part, and which view of its picture each is, counted from 0."""
        rng = np.random.default_rng([self._seed, n, ORDER])
        if not self._oversample:
            places = np.concatenate([rng.permutation(len(self._most)) for _ in range(self._views)])
            return places, np.repeat(np.arange(self._views), len(self._most))
        present = np.flatnonzero(self.class_counts)
        extra = rng.permutation(len(present)) < self._total % len(present)
        chosen: list[tuple[Indices, Indices]] = []
        for label, share in zip(present, self._total // len(present) + extra, strict=True):
            members = np.flatnonzero(self._part.labels == label)
            passes = -(-int(share) // len(members))
            places = np.concatenate([rng.permutation(members) for _ in range(passes)])[:share]
            chosen.append((places, np.repeat(np.arange(passes), len(members))[:share]))
        mixed = rng.permutation(self._total)
        places, views = (np.concatenate(column)[mixed] for column in zip(*chosen, strict=True))
        return places, views

    def plain(self, pictures: Indices, views: Indices, n: int) -> npt.NDArray[np.bool_]:
        """Which of these views are the pictures themselves in epoch n; each third of the pictures takes its turn."""
        if not self._augment.reuse_originals:
            return np.zeros(len(pictures), dtype=np.bool_)
        return (views + pictures + n * self._views) % PLAIN_EVERY == 0


def evaluated_at_once(size: int) -> int:
    """How many pictures of this side (pixels) are evaluated at a time."""
    return max(1, min(EVALUATED, EVALUATED_PIXELS // size**2))


class EvaluationBatches:
    """Every picture of a part once, plain and in the part's order."""

    def __init__(self, part: Part, *, batch_size: int | None = None, device: torch.device) -> None:
        """`batch_size`: None is `evaluated_at_once`."""
        batch_size = evaluated_at_once(part.images.shape[1]) if batch_size is None else batch_size
        if batch_size < 1:
            raise ValueError(f"`1 <= batch_size` must hold, but got batch_size={batch_size}")
        self.class_counts: tuple[int, ...] = tuple(np.bincount(part.labels, minlength=part.classes).tolist())
        self._pictures = Pictures(part, device)
        self._batch_size = batch_size
        self._total = len(part.labels)

    def __len__(self) -> int:
        return -(-self._total // self._batch_size)

    def epoch(self, n: int) -> Iterator[Batch]:
        """The same batches whatever n: channels_last images and labels on the device."""
        for start in range(0, self._total, self._batch_size):
            images, labels = self._pictures[np.arange(start, min(start + self._batch_size, self._total))]
            yield normalise(images), labels


class Pictures:
    """A part's uint8 pictures and labels by place, on `device`: copied there once if they fit, else batch by batch.

    `room` is how many bytes may be kept there: by default DEVICE_SHARE of what a GPU has free, and none elsewhere, as
    the memory map is in the system's page cache, which all workers share.
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
        """Whether the pictures are kept on the device."""
        return self._resident is not None

    def __getitem__(self, places: Indices) -> Batch:
        """uint8 (B, S, S, 3) and int64 (B,)."""
        on_device = moved(places, self._device)
        if self._resident is not None:
            return self._resident[on_device], self._labels[on_device]
        return moved(self._part.images[self._part.indices[places]], self._device), self._labels[on_device]
