"""The forager's six augmentations for a whole batch at once: one warp per picture, then a blur for those that drew it.

config -> `draw`: for each picture one or two of the six, as one homography and one sigma -> `augment`: one grid, one
`grid_sample`. A homography maps a place in the new picture to the place in the old one that it shows; both are counted
from -1 to 1 between the picture's outer edges, so that pixel i of S has its centre at (2i + 1) / S - 1
(`align_corners=False`). Steps compose by matrix product, so two of them blur the picture by interpolation only once.

Measured against a loop over pictures with torchvision's operations in benchmarks/augment.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)

Floats = npt.NDArray[np.float64]

STEPS = ("crop", "flip", "perspective", "rotation", "translation", "blur")
"""In the order in which a picture that drew two of them gets them."""

MAX_ROTATION = 30.0
"""Degrees, either way, at strength 1."""

MIN_AREA = 0.3
"""Of the picture, for a crop at strength 1. Torchvision's default of 0.08 often shows litter and no mushroom."""

MAX_RATIO = 4 / 3
"""Of a crop's sides, either way, at strength 1: torchvision's default."""

MAX_TRANSLATION = 0.1
"""Of the side, along each axis, either way, at strength 1."""

MAX_DISTORTION = 0.2
"""Of half a side, along each axis, that perspective moves a corner inwards, at strength 1."""

MIN_SIGMA, MAX_SIGMA = 0.1, 2.0
"""Pixels, of the 3x3 Gaussian, at strength 1."""


CACHED_PIXELS = 2**17
"""That a CPU works on at once: two pictures of 256 px."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    strength: float
    """Scales every magnitude: 0 is none at all, 1 the forager's, 2 the most. A flip has none and stays a flip."""
    reuse_originals: bool
    """One view in three is the picture itself, as in the forager's recipe; otherwise every view is augmented."""
    fresh: bool
    """Draw anew every epoch; otherwise a picture's augmented copies are the same in every epoch."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 2:
            raise ValueError(f"`0 <= strength <= 2` must hold, but got strength={self.strength}")


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What n pictures drew."""

    homographies: npt.NDArray[np.float32]
    """(n, 3, 3), new place -> old place."""
    warped: npt.NDArray[np.bool_]
    """(n,), whether the homography is to be applied."""
    sigmas: npt.NDArray[np.float32]
    """(n,), pixels; 0 is no blur."""

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> Self:
        return type(self)(homographies=self.homographies[rows], warped=self.warped[rows], sigmas=self.sigmas[rows])


def draw(strength: float, plain: npt.NDArray[np.bool_], rng: np.random.Generator) -> Draws:
    """One or two steps, at even odds, for each of n pictures; none where `plain` (n,) says so, none at strength 0.

    What a picture draws depends on `rng` and its place alone, not on who else is plain.
    """
    n = len(plain)
    ranks = rng.random((n, len(STEPS))).argsort(axis=1).argsort(axis=1)
    chosen = ranks < rng.integers(1, 3, (n, 1))
    chosen &= ~plain[:, None] & (strength > 0)
    crop, flip, perspective, rotation, translation, blur = chosen.T

    def spread(most: float, on: npt.NDArray[np.bool_], *shape: int) -> Floats:
        values = rng.uniform(-most * strength, most * strength, (n, *shape))
        return values * on.reshape(n, *(1 for _ in shape))

    area = 1 - crop * rng.uniform(0, min(strength * (1 - MIN_AREA), 0.9), n)
    ratio = np.exp(spread(np.log(MAX_RATIO), crop))
    sides = np.minimum(np.sqrt(np.stack([area * ratio, area / ratio], axis=1)), 1)
    corners = rng.uniform(0, MAX_DISTORTION * strength, (n, 4, 2)) * perspective[:, None, None]
    steps = (
        crop_map(sides, (1 - sides) * rng.uniform(-1, 1, (n, 2))),
        flip_map(flip),
        perspective_map(corners),
        rotation_map(np.radians(spread(MAX_ROTATION, rotation))),
        translation_map(spread(2 * MAX_TRANSLATION, translation, 2)),
    )
    homographies = steps[0]
    for step in steps[1:]:
        homographies = homographies @ step
    sigmas = rng.uniform(MIN_SIGMA, MIN_SIGMA + strength * (MAX_SIGMA - MIN_SIGMA), n) * blur
    return Draws(
        homographies=homographies.astype(np.float32),
        warped=crop | flip | perspective | rotation | translation,
        sigmas=sigmas.astype(np.float32),
    )


def augment(pictures: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Normalised float32 (n, 3, S, S) -> as many, channels_last, on the same device; a plain picture bit for bit.

    What lies outside the old picture is its mirror image: natural texture up to the edge, where a grey wedge would tell
    the network how the picture was turned.
    """
    out = pictures.clone(memory_format=torch.channels_last)
    _replace(out, np.flatnonzero(draws.warped), draws.homographies, warp)
    _replace(out, np.flatnonzero(draws.sigmas), draws.sigmas, blur)
    return out


def moved(values: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """An array on a device. On the way to a GPU through pinned memory, so that nobody waits for what it is doing."""
    tensor = torch.as_tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def warp(pictures: torch.Tensor, homographies: torch.Tensor) -> torch.Tensor:
    """(n, 3, S, S) seen through (n, 3, 3), bilinear, mirrored at the edges (F.grid_sample)."""
    n, _, height, width = pictures.shape
    # Each row and column is multiplied once and the grid is their sums: 8 times as quick as a product per pixel.
    along_x = homographies[:, :, 0, None] * _centres(width, pictures.device)
    along_y = homographies[:, :, 1, None] * _centres(height, pictures.device) + homographies[:, :, 2, None]
    seen = along_x[:, :, None, :] + along_y[:, :, :, None]
    grid = torch.empty(n, height, width, 2, device=pictures.device)
    torch.div(seen[:, :2].permute(0, 2, 3, 1), seen[:, 2, :, :, None], out=grid)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def blur(pictures: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """3x3 Gaussian of (n,) sigmas in pixels over (n, 3, S, S), mirrored at the edges; one axis after the other."""
    side = torch.exp(-0.5 / sigmas**2).view(-1, 1, 1, 1)
    middle = 1 / (1 + 2 * side)
    side = side * middle
    padded = F.pad(pictures, (1, 1, 1, 1), mode="reflect")
    down = middle * padded[:, :, 1:-1] + side * (padded[:, :, :-2] + padded[:, :, 2:])
    return middle * down[..., 1:-1] + side * (down[..., :-2] + down[..., 2:])


def crop_map(sides: Floats, centres: Floats) -> Floats:
    """A box with `sides` (n, 2: x, y; 1 is the whole) around `centres` (n, 2; -1 to 1), enlarged to the whole."""
    maps = _identity(len(sides))
    maps[:, [0, 1], [0, 1]] = sides
    maps[:, :2, 2] = centres
    return maps


def flip_map(flipped: npt.NDArray[np.bool_]) -> Floats:
    """Left and right exchanged where (n,) says so."""
    maps = _identity(len(flipped))
    maps[:, 0, 0] = np.where(flipped, -1, 1)
    return maps


def rotation_map(angles: Floats) -> Floats:
    """Turned counter-clockwise, as seen, by (n,) radians about the centre; y points down."""
    maps = _identity(len(angles))
    maps[:, 0, 0] = maps[:, 1, 1] = np.cos(angles)
    maps[:, 1, 0] = np.sin(angles)
    maps[:, 0, 1] = -maps[:, 1, 0]
    return maps


def translation_map(shifts: Floats) -> Floats:
    """Moved by (n, 2: x, y), where the whole side is 2."""
    maps = _identity(len(shifts))
    maps[:, :2, 2] = -shifts
    return maps


def perspective_map(corners: Floats) -> Floats:
    """Each corner moved inwards by (n, 4, 2: x, y), where half a side is 1; clockwise from the top left.

    Old -> new takes the square to a quadrilateral (Heckbert, Fundamentals of Texture Mapping and Image Warping, 1989,
    section 2.2.3, for the unit square); new -> old is its inverse.
    """
    outer = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float64)
    p0, p1, p2, p3 = np.moveaxis(outer * (1 - corners), 1, 0)
    (ax, ay), (bx, by), (cx, cy) = (p1 - p2).T, (p3 - p2).T, (p0 - p1 + p2 - p3).T
    area = ax * by - bx * ay
    g, h = (cx * by - bx * cy) / area, (ax * cy - cx * ay) / area
    quads = np.empty((len(corners), 3, 3))
    quads[:, :2, 0] = p1 - p0 + g[:, None] * p1
    quads[:, :2, 1] = p3 - p0 + h[:, None] * p3
    quads[:, :2, 2] = p0
    quads[:, 2] = np.stack([g, h, np.ones_like(g)], axis=1)
    to_unit_square = np.array([[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]])
    return np.linalg.inv(quads @ to_unit_square).astype(np.float64)


def _replace(
    pictures: torch.Tensor,
    rows: npt.NDArray[np.intp],
    values: npt.NDArray[np.float32],
    step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """Puts `step(pictures, values)` of these rows in their place; on a CPU few at a time, to stay in its cache."""
    at_once = max(1, CACHED_PIXELS // pictures[0, 0].numel()) if pictures.device.type == "cpu" else len(rows)
    for start in range(0, len(rows), max(1, at_once)):
        some = rows[start : start + at_once]
        index = moved(some, pictures.device)
        changed = step(pictures[index], moved(values[some], pictures.device))
        # Of another memory format it would be copied one number at a time, which takes twice as long.
        pictures.index_copy_(0, index, changed.contiguous(memory_format=torch.channels_last))


def _centres(size: int, device: torch.device) -> torch.Tensor:
    """Of the pixels of a row, from edge to edge -1 to 1."""
    return (torch.arange(size, device=device) * 2 + 1) / size - 1


def _identity(n: int) -> Floats:
    return np.tile(np.eye(3), (n, 1, 1))
