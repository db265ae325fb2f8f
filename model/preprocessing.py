"""Preprocessing: turns a picture file into a network's input, with the same code in training, evaluation and predict.

file -> `open_picture` (check, decode, RGB, upright) -> `to_square` (resize, crop: uint8) -> `normalise` (float32)
The pixels depend only on the file's bytes and the size. Colour profiles are not applied.
"""

import re
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, UnidentifiedImageError, features

from model.files import open_regular

MAX_PIXELS = 100_000_000
"""Largest number of pixels; larger pictures are refused by their header, before a decoder takes 4 bytes per pixel."""

MAX_BYTES = 2**30
"""Largest file size in bytes; larger files are refused unread, as a sparse file may claim 1 TB. 100 megapixels of
uncompressed 16-bit RGBA are 0.8 GB."""

LARGE = 16_000_000
"""Number of pixels above which pictures are decoded one at a time, even with several threads: a file of 0.4 MB can
unpack to 100 megapixels of RGBA, whose conversion to RGB takes 1.5 GB (measured); 32 at once would kill the process."""

MIN_SIDE = 16
"""Shortest side in pixels of a usable picture; the catalog leaves smaller ones out."""

VERSION = 1
"""Version of the preprocessing, part of the cache's key; raise it whenever `load_square` returns other pixels."""

MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
"""Standard deviation of the normalisation, fixed like the mean so that bundles, caches and batches agree: black is -2,
mid-grey 0, white 2."""

# Formats that Pillow decodes by itself. EPS would run Ghostscript on an untrusted file; TGA has no signature and
# accepts text. Pillow has AVIF since 11.3.
FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "PPM",
    "JPEG2000",
    *(["AVIF"] if "avif" in features.modules else []),
)

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
    | {".jp2", ".j2k", ".avif", ".heic", ".heif"}
)
"""Suffixes by which pictures are found in a folder; HEIC cannot be read, but is reported rather than skipped."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that undoes each EXIF orientation."""


class PictureError(ValueError):
    """A picture that cannot be used; the message is the reason, short and without the path."""


def open_picture(source: str | Path | BinaryIO, *, at_least: int | None = None) -> Image.Image:
    """Return a fully decoded picture: upright, in mode RGB, the first frame if it is an animation.

    Transparent areas become white. 16-bit grey is divided by 256. Floating-point grey is taken as 0 to 1 if no value is
    above 1, else as 0 to 255, and clipped. With `at_least` (pixels), a JPEG is decoded at 1/2, 1/4 or 1/8 of its size
    if its shorter side stays at least twice that, so that the better resize that follows hides the decoder's own.

    Raises PictureError if the file cannot be opened, is not a picture, is truncated or broken, or has more than
    MAX_PIXELS or MAX_BYTES. Raises MemoryError if it does not fit into the free memory.
    """
    if not isinstance(source, (str, Path)):
        return _decode(source, at_least)
    try:
        with open_regular(Path(source), MAX_BYTES) as file:
            return _decode(file, at_least)
    except OSError as error:
        raise PictureError(f"cannot be opened ({error.strerror})") from error


def to_square(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Return the central square of an RGB picture, uint8 (size, size, 3): short side resized, long side cropped.

    Bicubic with Pillow's antialiasing is crisper than bilinear or box where gills and pores are a few pixels wide, has
    less ringing than Lanczos, and is smooth when a small picture is enlarged. Resizing the central box equals resizing
    and cropping. `reducing_gap` is not needed because the JPEG decoder has already reduced large pictures.
    """
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.array(square, dtype=np.uint8)


def load_square(path: str | Path | BinaryIO, size: int) -> npt.NDArray[np.uint8]:
    """Return a picture as the cache stores it and `predict` sees it: uint8 (size, size, 3).

    Raises PictureError as `open_picture` does, and for a shorter side below MIN_SIDE.
    """
    image = open_picture(path, at_least=max(size, MIN_SIDE))
    if min(image.size) < MIN_SIDE:
        raise PictureError(f"{image.width} x {image.height} pixels, the shorter side must be at least {MIN_SIDE}")
    return to_square(image, size)


def normalise(pictures: torch.Tensor) -> torch.Tensor:
    """Return (x / 255 - MEAN) / STD: uint8 (N, H, W, 3) -> float32 (N, 3, H, W), channels_last, same device."""
    # The channels share one mean and one deviation, so two scalars will do, and no constant is sent to a GPU per batch.
    images = pictures.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
    return images.mul_(1 / (255 * STD[0])).sub_(MEAN[0] / STD[0])


def _decode(file: BinaryIO, at_least: int | None) -> Image.Image:
    with _quiet_pillow():
        try:
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _too_large(image.width * image.height)
                if at_least is not None:
                    image.draft(None, (2 * at_least, 2 * at_least))
                # A progressive JPEG holds all its coefficients, however small it is decoded.
                large = image.width * image.height > LARGE or "progressive" in image.info
                with _one_at_a_time if large else nullcontext():
                    image.load()
                    return _upright(_to_rgb(image), _orientation(image))
        except (PictureError, MemoryError):
            raise
        except Image.DecompressionBombError as error:  # beyond Pillow's own limit; its message has the number of pixels
            raise _too_large(int(re.findall(r"\d+", str(error))[0])) from error
        except UnidentifiedImageError as error:
            raise PictureError("HEIC, save it as JPEG" if _is_heic(file) else "not a picture") from error
        except Exception as error:  # broken bytes make decoders raise almost anything: SyntaxError, struct.error
            reason = " ".join(str(error).lower().rstrip(".").split())[:80] or type(error).__name__
            if "max_text" in reason:  # Pillow's guard against text and colour profiles that unpack to gigabytes
                raise PictureError("more than 1 MB of text or profile data, save it without") from error
            raise PictureError("truncated" if "truncated" in reason else f"broken ({reason})") from error


def _too_large(pixels: int) -> PictureError:
    return PictureError(f"{pixels / 1e6:.0f} megapixels, more than the {MAX_PIXELS / 1e6:.0f} allowed")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0)
        return _grey(values * 255 if values.max() <= 1 else values)
    if image.mode.startswith("I"):  # "I;16" and its byte orders; older Pillows open a 16-bit PNG as "I"
        return _grey(np.asarray(image) // 256)
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, straight.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _grey(values: npt.NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a picture with broken metadata is still good, and metadata breaks in as many ways as pixels
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _is_heic(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(12)[4:] in (b"ftypheic", b"ftypheix", b"ftypmif1")


_one_at_a_time = threading.Lock()

_quiet_lock = threading.Lock()
_quiet_users = 0
_quiet_filters = warnings.catch_warnings()


@contextmanager
def _quiet_pillow() -> Generator[None]:
    """Silence Pillow's warnings (large picture, odd EXIF, malformed MPO) while any thread decodes.

    `catch_warnings` alone is not thread-safe: a thread that exits may restore filters that another one had changed.
    Here the first thread that enters changes the filters and the last one that exits restores them.
    """
    global _quiet_users, _quiet_filters
    with _quiet_lock:
        if _quiet_users == 0:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _quiet_users += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if _quiet_users == 0:
                _quiet_filters.__exit__(None, None, None)
