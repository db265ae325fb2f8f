"""Galleries: pictures as a network sees them, with a caption each, as one JPEG."""

import io
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

COLUMNS, SIDE, CAPTION, GAP = 4, 180, 36, 10
"""Columns; height of a picture, height of its caption and the gap around them in pixels."""

Captioned = tuple[npt.NDArray[np.uint8], str]
"""A picture, uint8 (H, W, 3), and its caption of up to two lines."""


def gallery(*groups: Iterable[Captioned], columns: int = COLUMNS, side: int = SIDE) -> bytes:
    """Return a JPEG of pictures under their captions, `side` pixels high. Each group begins a new line.

    All pictures have the same shape, and there is at least one.
    """
    lines = [shown[first : first + columns] for shown in map(list, groups) for first in range(0, len(shown), columns)]
    height, width = lines[0][0][0].shape[:2]
    size = side * width // height, side
    sheet = Image.new("RGB", (columns * (size[0] + GAP) + GAP, len(lines) * (side + CAPTION + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for row, line in enumerate(lines):
        for column, (picture, caption) in enumerate(line):
            left, top = GAP + column * (size[0] + GAP), GAP + row * (side + CAPTION + GAP)
            pen.text((left, top), caption, fill="black", font=font)
            sheet.paste(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC), (left, top + CAPTION))
    target = io.BytesIO()
    sheet.save(target, "JPEG", quality=80)
    return target.getvalue()
