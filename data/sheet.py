"""The picture sheet: a few pictures of each class as the network will see them, the strangest first.

`draw(catalog, handle, size)` returns an image with one row per class. People see at a glance what no table of numbers
tells them: pictures that are sideways, black, of something else, or in the wrong folder.
"""

from math import ceil
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from data.cache import CacheHandle, open_part
from data.catalog import Catalog
from data.split import PARTS
from model.files import printable

STRANGEST, ORDINARY = 6, 6
"""Number of pictures of each class: the strangest ones, then a random sample of the others."""

MOST_TILES = 6_000
"""Largest number of pictures on a sheet. With more than 500 classes, each has fewer than twelve, but at least two."""

TILE = 96
"""Smallest side of a picture on the sheet, in pixels; smaller pictures are enlarged by a whole factor."""

GAP, LINE, TITLE = 6, 14, 22
"""Pixels between pictures, height of a file name and height of a class name."""

CHUNK = 1_024
"""Number of pictures whose features are computed at once."""


def draw(catalog: Catalog, handle: CacheHandle, size: int) -> Image.Image:
    """Draw the sheet of a catalog whose pictures are in the cache at `size` pixels.

    Raises DataError if the cache is damaged.
    """
    images, labels = open_part(handle, size, *PARTS).images, catalog.labels
    strange = strangeness(images, labels)
    shown = max(2, min(STRANGEST + ORDINARY, MOST_TILES // len(catalog.classes)))
    rows = [_choose(np.flatnonzero(labels == label), strange, shown) for label in range(len(catalog.classes))]

    side = size * ceil(TILE / size)
    first = _strangest_of(shown)
    width, height = shown * (side + GAP) + 3 * GAP, TITLE + side + LINE + GAP
    columns = max(1, round((len(rows) * height / width) ** 0.5))  # of classes: the sheet is about square
    lines = ceil(len(rows) / columns)
    sheet = Image.new("RGB", (columns * width, lines * height + GAP), "white")
    pen, font, title = ImageDraw.Draw(sheet), ImageFont.load_default(10), ImageFont.load_default(14)
    for label, row in enumerate(rows):
        left, top = label // lines * width + GAP, label % lines * height + GAP
        counted = f"{printable(catalog.classes[label])}: {np.count_nonzero(labels == label):,}"
        pen.text((left, top), _fitting(f"{counted}, the strangest:", title, width // 2), fill="black", font=title)
        if len(row) > first:
            pen.text((left + first * (side + GAP) + 2 * GAP, top), "at random:", fill="black", font=title)
        for place, position in enumerate(row):
            at = left + place * (side + GAP) + 2 * GAP * (place >= first)
            tile = Image.fromarray(images[position]).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(tile, (at, top + TITLE))
            name = _fitting(printable(Path(catalog.kept[position].path).name), font, side)
            pen.text((at, top + TITLE + side + 1), name, fill="#555", font=font)
    return sheet


def strangeness(pictures: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return how unlike the others of its class each picture is; uint8 (n, size, size, 3), int64 (n,) -> float64 (n,).

    Compared are colours, contrast and sharpness. Differences from the class's median are counted in the data set's
    own spread (the median absolute difference), so that they mean the same on every data set.
    """
    features = np.concatenate([_features(pictures[start : start + CHUNK]) for start in range(0, len(labels), CHUNK)])
    away = np.empty_like(features)
    for label in np.unique(labels):
        away[labels == label] = features[labels == label] - np.median(features[labels == label], axis=0)
    spread = np.median(np.abs(away), axis=0)
    squares = np.square(np.clip(np.abs(away) / np.maximum(spread, 1e-3), 0, 10))
    # The colours of all places count as much as contrast or sharpness alone: each is one way to be strange.
    return np.sqrt(squares[:, :-2].mean(axis=1) + squares[:, -2] + squares[:, -1])


def _features(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return mean colours of 4 x 4 places, the logarithm of the contrast, and that of the sharpness; (n, 50)."""
    values = pictures.astype(np.float32) / 255
    size = values.shape[1] // 4 * 4
    colours = values[:, :size, :size].reshape(len(values), 4, size // 4, 4, size // 4, 3).mean(axis=(2, 4))
    grey = values.mean(axis=3)
    contrast = grey.std(axis=(1, 2))
    sharpness = np.abs(np.diff(grey, axis=1)).mean(axis=(1, 2)) + np.abs(np.diff(grey, axis=2)).mean(axis=(1, 2))
    logs = np.log(np.stack([contrast, sharpness], axis=1) + 1 / 255)
    return np.concatenate([colours.reshape(len(values), -1), logs], axis=1).astype(np.float64)


def _choose(positions: npt.NDArray[np.int64], strange: npt.NDArray[np.float64], shown: int) -> npt.NDArray[np.int64]:
    """Return the positions of the strangest pictures of one class, then those of a random sample of the others."""
    ranked = positions[np.argsort(-strange[positions], kind="stable")]
    first = _strangest_of(shown)
    rest = ranked[first:]
    sample = np.random.default_rng(0).permutation(len(rest))[: shown - first]
    return np.concatenate([ranked[:first], rest[np.sort(sample)]])


def _strangest_of(shown: int) -> int:
    return ceil(shown * STRANGEST / (STRANGEST + ORDINARY))


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return the text, or as much of its beginning and end as fits into a line of `width` pixels."""
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept > 2 and font.getlength(_shortened(text, kept)) > width:
        kept -= 1
    return _shortened(text, kept)


def _shortened(text: str, kept: int) -> str:
    return f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"
