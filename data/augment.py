"""The original recipe's six augmentations and colour jitter, for a whole batch at once.

config -> `draw`: one or two of the six for each picture, as one homography and one sigma, and three factors of its
colours -> `augment`: one `grid_sample`, some blurs, new colours. A homography maps each point of the new picture to the
point of the old one shown there. Coordinates run from -1 to 1 between the picture's outer edges, so that pixel i of S
has its centre at (2i + 1) / S - 1 (`align_corners=False`). Steps are composed by matrix product, so that two of them
interpolate the picture only once.

benchmarks/README.md compares the speed with that of a loop over torchvision's operations.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)

from data.transfer import to_device
from model.preprocessing import MEAN, STD

Floats = npt.NDArray[np.float64]

STEPS = ("crop", "flip", "perspective", "rotation", "translation", "blur")
"""Names of the steps, in order of application."""

MAX_ROTATION = 30.0
"""Largest angle in degrees, in either direction, at strength 1."""

MIN_AREA = 0.3
"""Smallest area of a crop, as a share of the picture, at strength 1. Torchvision's 0.08 often misses the mushroom."""

MAX_RATIO = 4 / 3
"""Largest ratio of a crop's sides, in either direction, at strength 1: torchvision's default."""

MAX_TRANSLATION = 0.1
"""Largest shift as a share of the side, along each axis and in either direction, at strength 1."""

MAX_DISTORTION = 0.2
"""Largest inward shift of a corner by perspective, as a share of half a side, along each axis, at strength 1."""

MIN_SIGMA, MAX_SIGMA = 0.1, 2.0
"""Range of the 3x3 Gaussian's sigma in pixels, at strength 1."""

GREY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in a pixel's grey level, as torchvision has them."""

BLACK, WHITE = -MEAN[0] / STD[0], (1 - MEAN[0]) / STD[0]
"""Values of black and white in a normalised picture."""

SIDED = frozenset(["left", "right", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
"""Words in the names of classes that flips may change."""

CACHED_PIXELS = 2**17
"""Number of pixels augmented at a time on a CPU, so that they fit into its cache: two pictures of 256 px."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of the training pictures."""

    strength: float
    """Scale of the six augmentations' magnitudes, 0 to 2: 0 is none of the six, 1 the original recipe. Flips are
    unaffected above 0."""
    reuse_originals: bool
    """Leave one view of three unaugmented, as the original recipe does; otherwise augment every view."""
    fresh: bool
    """Draw new augmentations in every epoch; otherwise each picture's augmented copies are the same in every epoch."""
    flips: bool = True
    """Whether mirrored pictures keep their meaning and flips are among the augmentations."""
    colour_jitter: float = 0.0
    """Largest relative change of brightness, of contrast and of saturation, 0 to 1, in every augmented view."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 2:
            raise ValueError(f"`0 <= strength <= 2` must hold, but got strength={self.strength}")
        if not 0 <= self.colour_jitter <= 1:
            raise ValueError(f"`0 <= colour_jitter <= 1` must hold, but got colour_jitter={self.colour_jitter}")


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Augmentations drawn for n pictures."""

    homographies: npt.NDArray[np.float32]
    """Homographies from new to old coordinates, (n, 3, 3)."""
    warped: npt.NDArray[np.bool_]
    """Whether to apply each picture's homography, (n,)."""
    sigmas: npt.NDArray[np.float32]
    """Standard deviation of each picture's blur in pixels, (n,); 0 means no blur."""
    colours: npt.NDArray[np.float32]
    """Factors of each picture's brightness, contrast and saturation, (n, 3)."""

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> Self:
        return type(self)(
            homographies=self.homographies[rows],
            warped=self.warped[rows],
            sigmas=self.sigmas[rows],
            colours=self.colours[rows],
        )


def draw(config: AugmentConfig, plain: npt.NDArray[np.bool_], rng: np.random.Generator) -> Draws:
    """Draw one or two of the six, equally likely, and colours for each of n pictures, but none for `plain` (n,) ones.

    Without flips, one or two of the other five are drawn. A picture's draw depends only on `rng` and its position, not
    on which other pictures are plain.
    """
    n, strength = len(plain), config.strength
    priorities = rng.random((n, len(STEPS)))
    if not config.flips:
        priorities[:, STEPS.index("flip")] = 1  # last, and at most two steps are chosen
    ranks = priorities.argsort(axis=1).argsort(axis=1)
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
    changes = rng.uniform(-config.colour_jitter, config.colour_jitter, (n, 3)) * ~plain[:, None]
    return Draws(
        homographies=homographies.astype(np.float32),
        warped=crop | flip | perspective | rotation | translation,
        sigmas=sigmas.astype(np.float32),
        colours=(1 + changes).astype(np.float32),
    )


def changed_by_flips(classes: Iterable[str]) -> list[str]:
    """Return the names of classes whose pictures may mean something else in a mirror: digits, letters, sides."""
    return [name for name in classes if len(name) == 1 or SIDED & set(re.split(r"[^a-z]+", name.lower()))]


def augment(pictures: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Return augmented copies of normalised float32 pictures (n, 3, S, S), channels_last, on the same device.

    Plain pictures are copied bit for bit. Beyond its edges a picture is continued by its mirror image, because a grey
    corner would tell the network how the picture was rotated.
    """
    out = pictures.clone(memory_format=torch.channels_last)
    _apply(out, np.flatnonzero(draws.warped), draws.homographies, warp)
    _apply(out, np.flatnonzero(draws.sigmas), draws.sigmas, blur)
    _apply(out, np.flatnonzero((draws.colours != 1).any(axis=1)), draws.colours, recolour)
    return out


def warp(pictures: torch.Tensor, homographies: torch.Tensor) -> torch.Tensor:
    """Warp pictures (n, 3, S, S) by homographies (n, 3, 3): bilinear, mirrored at the edges."""
    n, _, height, width = pictures.shape
    # Rows and columns are multiplied once and the grid is their sum: 8 times as fast as one product per pixel.
    along_x = homographies[:, :, 0, None] * _centres(width, pictures.device)
    along_y = homographies[:, :, 1, None] * _centres(height, pictures.device) + homographies[:, :, 2, None]
    seen = along_x[:, :, None, :] + along_y[:, :, :, None]
    grid = torch.empty(n, height, width, 2, device=pictures.device)
    torch.div(seen[:, :2].permute(0, 2, 3, 1), seen[:, 2, :, :, None], out=grid)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def blur(pictures: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Blur pictures (n, 3, S, S) by 3x3 Gaussians of (n,) sigmas in pixels, mirrored at the edges, axis by axis."""
    side = torch.exp(-0.5 / sigmas**2).view(-1, 1, 1, 1)
    middle = 1 / (1 + 2 * side)
    side = side * middle
    padded = F.pad(pictures, (1, 1, 1, 1), mode="reflect")
    down = middle * padded[:, :, 1:-1] + side * (padded[:, :, :-2] + padded[:, :, 2:])
    return middle * down[..., 1:-1] + side * (down[..., :-2] + down[..., 2:])


def recolour(pictures: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """Multiply brightness, contrast and saturation of pictures (n, 3, S, S), in this order, by factors (n, 3).

    Contrast is the distance from a picture's mean grey level, saturation that from each pixel's own, as in torchvision.
    Values are clipped to black and white once, at the end.
    """
    brightness, contrast, saturation = colours.view(-1, 3, 1, 1, 1).unbind(1)
    out = pictures - BLACK
    # Brightness and contrast turn x into slope * x + level. All three are linear: one pass over the pictures instead of
    # three is 1.8 times as fast.
    grey, slope = _grey(out), brightness * contrast
    level = (1 - contrast) * brightness * grey.mean(dim=(2, 3), keepdim=True)
    shift = saturation * level + (1 - saturation) * (slope * grey + sum(GREY) * level)
    return torch.addcmul(shift, saturation * slope, out).clamp_(0, WHITE - BLACK).add_(BLACK)


def crop_map(sides: Floats, centres: Floats) -> Floats:
    """Return maps that enlarge a box to the whole picture: `sides` (n, 2: x, y; 1 = all), `centres` (n, 2; -1 to 1)."""
    maps = _identity(len(sides))
    maps[:, [0, 1], [0, 1]] = sides
    maps[:, :2, 2] = centres
    return maps


def flip_map(flipped: npt.NDArray[np.bool_]) -> Floats:
    """Return maps that swap left and right where `flipped` (n,) is true."""
    maps = _identity(len(flipped))
    maps[:, 0, 0] = np.where(flipped, -1, 1)
    return maps


def rotation_map(angles: Floats) -> Floats:
    """Return maps that rotate by (n,) radians about the centre, counter-clockwise as seen; y points down."""
    maps = _identity(len(angles))
    maps[:, 0, 0] = maps[:, 1, 1] = np.cos(angles)
    maps[:, 1, 0] = np.sin(angles)
    maps[:, 0, 1] = -maps[:, 1, 0]
    return maps


def translation_map(shifts: Floats) -> Floats:
    """Return maps that shift by (n, 2: x, y), where the side has length 2."""
    maps = _identity(len(shifts))
    maps[:, :2, 2] = -shifts
    return maps


def perspective_map(corners: Floats) -> Floats:
    """Return maps that move each corner inwards by (n, 4, 2: x, y), in halves of a side; clockwise from the top left.

    From old to new, the square becomes a quadrilateral (Heckbert, Fundamentals of Texture Mapping and Image Warping,
    1989, section 2.2.3, for the unit square); from new to old is the inverse.
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


def _apply(
    pictures: torch.Tensor,
    rows: npt.NDArray[np.intp],
    values: npt.NDArray[np.float32],
    step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """Replace these rows with `step(pictures, values)`, on a CPU a few at a time, so that they fit into its cache."""
    at_once = max(1, CACHED_PIXELS // pictures[0, 0].numel()) if pictures.device.type == "cpu" else len(rows)
    for start in range(0, len(rows), max(1, at_once)):
        some = rows[start : start + at_once]
        index = to_device(some, pictures.device)
        changed = step(pictures[index], to_device(values[some], pictures.device))
        # In another memory format it would be copied number by number, which takes twice as long.
        pictures.index_copy_(0, index, changed.contiguous(memory_format=torch.channels_last))


def _centres(size: int, device: torch.device) -> torch.Tensor:
    """Return the coordinates of the pixel centres in a row; its edges are -1 and 1."""
    return (torch.arange(size, device=device) * 2 + 1) / size - 1


def _grey(pictures: torch.Tensor) -> torch.Tensor:
    """Return the grey levels (n, 1, S, S) of pictures (n, 3, S, S) whose black is 0."""
    red, green, blue = pictures.split(1, dim=1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def _identity(n: int) -> Floats:
    return np.tile(np.eye(3), (n, 1, 1))
