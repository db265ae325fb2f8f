"""Galleries: pictures as a network sees them, with a caption each, as one JPEG."""

import io
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

COLUMNS, SIDE, CAPTION, GAP = 4, 180, 36, 10
"""Columns; side of a picture, height of its caption and the gap around them in pixels."""


def gallery(pictures: Iterable[tuple[npt.NDArray[np.uint8], str]]) -> bytes:
    """Return a JPEG of pictures, uint8 (S, S, 3), each under its caption of up to two lines."""
    shown = list(pictures)
    lines = -(-len(shown) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, lines * (SIDE + CAPTION + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, (square, caption) in enumerate(shown):
        left = GAP + place % COLUMNS * (SIDE + GAP)
        top = GAP + place // COLUMNS * (SIDE + CAPTION + GAP)
        pen.text((left, top), caption, fill="black", font=font)
        picture = Image.fromarray(square)
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, top + CAPTION))
    target = io.BytesIO()
    sheet.save(target, "JPEG", quality=88)
    return target.getvalue()
