"""Preprocessing: turns a picture file into a network's input, with the same code in training, evaluation and predict.

file -> `read_picture` (check, decode, scale to 8 bits, RGB, upright) -> `to_square` (resize, crop: uint8)
     -> `normalise` (float32)

The pixels depend only on the file's bytes, the size and the data set's ranges. Colour profiles are not applied.
Every bundle has a copy of this file, so that any program can read pictures as `predict` does: it imports nothing but
numpy and Pillow, pillow-heif for HEIC files, and torch in `normalise`.
"""

from __future__ import annotations

import functools
import importlib
import math
import re
import struct
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError, features

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 100_000_000
"""Largest number of pixels; larger pictures are refused by their header, before a decoder takes 4 bytes per pixel."""

MAX_BYTES = 2**30
"""Largest file size in bytes; larger files are refused unread, as a sparse file may claim 1 TB. 100 megapixels of
uncompressed 16-bit RGBA are 0.8 GB."""

LARGE = 16_000_000
"""Number of pixels above which pictures are decoded one at a time, even with several threads: a file of 0.4 MB can
unpack to 100 megapixels of RGBA, whose conversion to RGB takes 1.5 GB, with 16 bits 2.8 GB (measured); 32 at once
would kill the process."""

MIN_SIDE = 16
"""Shortest side in pixels of a usable picture; the catalog leaves smaller ones out."""

VERSION = 1
"""Version of the preprocessing, part of the cache's key; raise it whenever `load_square` returns other pixels for files
that were read before. Files read in a new way change a catalog's fingerprint by their `Traits`."""

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

HEIF = "HEIF"
"""Name under which pillow-heif registers its reader of HEIC with Pillow."""

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
    | {".jp2", ".j2k", ".avif", ".heic", ".heif", ".hif"}
)
"""Suffixes by which pictures are found in a folder. HEIC is among them even without pillow-heif: it is then reported
rather than skipped."""

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


Ranges = Mapping[str, Sequence[float]]
"""Range of the values of a data set's pictures with more than 8 bits: [low, high] by kind, "integers" or "floats".

A kind is missing if the data set has no such picture. Then integers are taken as 0 to 65535, and each picture of floats
by its own `usual_range`."""

NO_RANGES: Ranges = {}
"""Ranges of a data set whose pictures all have 8 bits."""

KINDS = ("integers", "floats")

STRAY_VALUES = 1000
STRAY_PICTURES = 100
"""One in how many values of a picture, and in how many pictures of a data set, may lie outside the range at each end.
Otherwise a sensor's dead pixels, or a single odd file, could leave a few grey levels for everything else."""


class PictureError(ValueError):
    """A picture that cannot be used; the message is the reason, short and without the path."""


class MissingReaderError(PictureError):
    """A picture that cannot be used because an optional package is not installed."""


class Values(NamedTuple):
    """Values of one picture with more than 8 bits, all its colours together."""

    kind: str
    """Kind of the values: "integers" or "floats"."""
    lowest: float
    low: float
    high: float
    highest: float
    """Smallest and largest value, and in between the same without one in STRAY_VALUES at each end. Values that are not
    finite, or that the file marks as not measured, do not count."""


class Traits(NamedTuple):
    """Facts about a picture file that the decoded picture no longer shows."""

    pages: int = 1
    """Number of pictures in the file. The first one is used; in HEIC, the primary one."""
    values: Values | None = None
    """Values as stored; None with 8 bits, if none of them counts, or if the data set's range was given."""
    flat: bool = False
    """Whether the picture has a single colour. Only `data.file_checks` sets it; see `is_flat` for more than 8 bits."""
    damaged: bool = False
    """Whether its EXIF metadata are damaged."""
    recovered: int = 1
    """Orientation that was found in metadata in which Pillow finds none; 1 if there was no need or no orientation."""
    clipped: float = 0.0
    """Share of the values outside the data set's range."""
    missing: int = 0
    """Number of values that do not count: not finite, or marked as not measured."""


ORDINARY = Traits()
"""Traits of nearly every file, shared by all of them."""


def read_picture(
    file: BinaryIO, *, at_least: int | None = None, ranges: Ranges | None = NO_RANGES
) -> tuple[Image.Image, Traits]:
    """Return a fully decoded picture, upright and in mode RGB, and its traits.

    Transparent areas become white. Values of more than 8 bits are scaled by the data set's `ranges`, or, if that is
    None, by the picture's own. With `at_least` (pixels), a JPEG in grey or RGB is decoded at 1/2, 1/4 or 1/8 of its
    size if its shorter side stays at least twice that, so that the better resize that follows hides the decoder's own.

    Raises PictureError if the file is not a picture, is truncated or broken, or has more than MAX_PIXELS. Raises
    MemoryError if it does not fit into the free memory.
    """
    formats = picture_formats(file)
    with _quiet_pillow():
        try:
            with Image.open(file, formats=formats) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _too_large(image.width * image.height)
                # Of HEIC it would be an embedded preview; of CMYK, browsers hide what classify.html would need for it.
                if at_least is not None and image.format in ("JPEG", "MPO") and image.mode != "CMYK":
                    image.draft(None, (2 * at_least, 2 * at_least))
                # A progressive JPEG holds all its coefficients, however small it is decoded.
                large = image.width * image.height > LARGE or "progressive" in image.info
                with _one_at_a_time if large else nullcontext():
                    return _decode(image, file, formats, ranges)
        except (PictureError, MemoryError):
            raise
        except Image.DecompressionBombError as error:  # beyond Pillow's own limit; its message has the number of pixels
            raise _too_large(int(re.findall(r"\d+", str(error))[0])) from error
        except UnidentifiedImageError as error:
            raise PictureError("broken (not valid HEIC)" if HEIF in formats else "not a picture") from error
        except Exception as error:  # broken bytes make decoders raise almost anything: SyntaxError, struct.error
            reason = " ".join(str(error).lower().rstrip(".").split())[:80] or type(error).__name__
            if "max_text" in reason:  # Pillow's guard against text and colour profiles that unpack to gigabytes
                raise PictureError("more than 1 MB of text or profile data, save it without") from error
            raise PictureError("truncated" if "truncated" in reason else f"broken ({reason})") from error


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


def load_square(file: BinaryIO, size: int, ranges: Ranges = NO_RANGES) -> npt.NDArray[np.uint8]:
    """Return a picture as the cache stores it and `predict` sees it: uint8 (size, size, 3).

    Raises PictureError as `read_picture` does, and for a shorter side below MIN_SIDE.
    """
    return read_square(file, size, ranges)[0]


def read_square(file: BinaryIO, size: int, ranges: Ranges) -> tuple[npt.NDArray[np.uint8], Traits]:
    """Return what `load_square` returns, and the picture's traits."""
    image, traits = read_picture(file, at_least=max(size, MIN_SIDE), ranges=ranges)
    if min(image.size) < MIN_SIDE:
        raise PictureError(f"{image.width} x {image.height} pixels, the shorter side must be at least {MIN_SIDE}")
    return to_square(image, size), traits


def normalise(pictures: torch.Tensor) -> torch.Tensor:
    """Return (x / 255 - MEAN) / STD: uint8 (N, H, W, 3) -> float32 (N, 3, H, W), channels_last, same device."""
    import torch

    # The channels share one mean and one deviation, so two scalars will do, and no constant is sent to a GPU per batch.
    images = pictures.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
    return images.mul_(1 / (255 * STD[0])).sub_(MEAN[0] / STD[0])


# --- more than 8 bits


def settle_ranges(pictures: Iterable[Values]) -> dict[str, list[float]]:
    """Return the ranges of a data set, from the values of its pictures with more than 8 bits.

    All pictures of a kind share one range, so that equal values become equal grey levels. Scaled by its own extremes, a
    dark picture would look like a bright one; scaled by what the file format can hold, 12 bits stored as 16 would keep
    16 grey levels. Every picture fits into the range, unless one in STRAY_PICTURES would cost all others 4 of their 8
    bits. Pictures with 8 bits are not scaled, whatever else is in the data set.
    """
    ranges: dict[str, list[float]] = {}
    found = list(pictures)
    for kind in KINDS:
        lows = sorted(values.low for values in found if values.kind == kind)
        highs = sorted(values.high for values in found if values.kind == kind)
        if lows:
            stray = len(lows) // STRAY_PICTURES
            whole = usual_range(kind, lows[0], highs[-1])
            most = usual_range(kind, lows[stray], highs[-1 - stray])
            ranges[kind] = most if whole[1] - whole[0] >= 16 * (most[1] - most[0]) else whole
    return ranges


def usual_range(kind: str, low: float, high: float) -> list[float]:
    """Return a range around `low` and `high` that changes only in large steps when pictures are added.

    That is 0 to 1 or -1 to 1 for floats, else 0 to the largest number of 8, 10, 12, ... bits; with negative values, the
    ends are at powers of two. Where `low` to `high` fill less than an eighth of that, as in elevations or in pictures
    of a thermal camera (hundredths of a kelvin), it is the smallest window around them that is a power of two wide.
    """
    step = kind == "integers"  # the width of one value
    if not step and -1 <= low <= high <= 1:
        start, end = (0.0 if low >= 0 else -1.0), 1.0
    else:
        bits = max(8, math.frexp(math.ceil(max(high, 0)))[1])
        start = 0.0 if low >= 0 else -_power_of_two(-low)
        end = 2.0 ** (bits if low < 0 else bits + bits % 2) - 1
    if 0 < 8 * (high - low) < end - start and (end - start > 255 or not step):
        width = max(_power_of_two(high - low), 256.0 * step)
        while (start := math.floor(4 * low / width) * width / 4) + width - step < high:
            width *= 2
        end = start + width - step
    return [int(start), int(end)] if step else [start, end]


def check_ranges(ranges: Ranges) -> None:
    """Raise ValueError if these cannot be the ranges of a data set."""
    for kind, ends in ranges.items():
        if kind not in KINDS or len(ends) != 2 or not -1e300 < ends[0] < ends[1] < 1e300:
            raise ValueError(
                f"a range must be 'integers' or 'floats' and [low, high], but is {kind!r:.60}, {ends!r:.60}"
            )


def is_flat(traits: Traits, ranges: Ranges) -> bool:
    """Return whether a picture has a single colour once its values are scaled."""
    values = traits.values
    if values is None:
        return traits.flat
    ends = np.array([values.lowest, values.highest])
    darkest, brightest = _to_8_bits(ends, values.kind, *_range_of(values, ranges))
    return bool(darkest == brightest)


def _range_of(values: Values, ranges: Ranges) -> Sequence[float]:
    default = (0, 65535) if values.kind == "integers" else usual_range(values.kind, values.low, values.high)
    return ranges.get(values.kind, default)


def _to_8_bits(values: npt.NDArray[Any], kind: str, low: float, high: float) -> npt.NDArray[np.uint8]:
    """Cut the range into 256 equal steps, so that 16 bits are divided by 256; clip what is outside; NaN becomes low.

    Floats that were made from 8 bits by a division by 255 or 256 become the same 8 bits again.
    """
    scale = 256 / (high - low + (kind == "integers"))
    scaled = np.empty(values.shape, np.uint8)
    parts = max(1, values.size // 2**20)  # one after the other, because float64 takes 8 times the memory of the result
    for part, result in zip(np.array_split(values, parts), np.array_split(scaled, parts), strict=True):
        finite = np.nan_to_num(part.astype(np.float64), nan=low, posinf=high, neginf=low)
        result[...] = np.clip(np.floor((finite - low) * scale), 0, 255)
    return scaled


def _power_of_two(number: float) -> float:
    """Return the smallest power of two that is not less than a positive number."""
    mantissa, exponent = math.frexp(number)
    return 2.0 ** (exponent - (mantissa == 0.5))


class _Deep(NamedTuple):
    """A picture with more than 8 bits, as stored."""

    values: npt.NDArray[Any]
    """(height, width), or (height, width, 3) for colours."""
    alpha: npt.NDArray[np.uint8] | None
    missing: float | None
    """Value of pixels that were not measured; None if the file names none."""

    @property
    def kind(self) -> str:
        return "floats" if self.values.dtype.kind == "f" else "integers"

    def summary(self) -> tuple[Values | None, int]:
        """Return what `settle_ranges` needs, None if no value counts, and the number of values that do not count."""
        found = self.values[np.isfinite(self.values)] if self.kind == "floats" else self.values.reshape(-1)
        if self.missing is not None:
            found = found[found != self.missing]
        missing = self.values.size - len(found)
        if not len(found):
            return None, missing
        last, stray = len(found) - 1, len(found) // STRAY_VALUES
        places = [0, stray, last - stray, last]
        ends: list[float] = np.partition(found, places)[places].tolist()
        return Values(self.kind, *ends), missing

    def scaled(self, ranges: Ranges | None) -> tuple[Image.Image, Traits]:
        """Return the picture with 8 bits, and what there is to say about its values."""
        values, missing = (None, 0) if self.kind in (ranges or {}) else self.summary()
        if values is not None and ranges is None and values.low < values.high:
            low, high = values.low, values.high
        else:
            low, high = _range_of(values or Values(self.kind, 0, 0, 0, 0), ranges or NO_RANGES)
        image = Image.fromarray(_to_8_bits(self.values, self.kind, low, high)).convert("RGB")
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha))
        clipped = 0.0 if ranges is None else float(np.mean((self.values < low) | (self.values > high)))
        return _to_rgb(image), Traits(values=values, missing=missing, clipped=clipped)


def _deep(image: Image.Image, raw_mode: str, file: BinaryIO, formats: tuple[str, ...]) -> _Deep | None:
    """Return the values of a loaded picture with more than 8 bits; None if it has 8, or Pillow cannot give more.

    Of 16-bit colours Pillow keeps the upper byte. Decoded again as if in the other byte order, it is the lower one.
    """
    alpha = None
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if raw_mode == "I;32N":  # unsigned, for which Pillow has no mode
            values = values.view(np.uint32)
    elif raw_mode == "LA;16B":
        first, second, alpha, _ = np.moveaxis(_decoded_as("RGBA", file, formats), -1, 0)
        values = first.astype(np.uint16) << 8 | second
    elif match := re.fullmatch(r"(RGB[AX]?;16)([BLN])", raw_mode):
        little = match[2] == "L" or (match[2] == "N" and sys.byteorder == "little")
        upper, lower = np.asarray(image), _decoded_as(match[1] + ("B" if little else "L"), file, formats)
        values = upper[..., :3].astype(np.uint16)
        values <<= 8
        values |= lower[..., :3]
        alpha = upper[..., 3] if image.mode == "RGBA" else None
    else:
        return None
    transparent = image.info.get("transparency")
    if transparent is not None:  # one value, or one colour
        same = values == np.array(transparent)
        alpha = np.where(same if values.ndim == 2 else same.all(axis=-1), 0, 255).astype(np.uint8)
    return _Deep(values, alpha, _not_measured(image))


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's name for the layout of the file's pixels, which it forgets as it loads them; "" if unknown."""
    tiles: list[Any] = getattr(image, "tile", [])
    arguments: Any = tiles[0].args if tiles else ""
    raw_mode: Any = arguments[0] if isinstance(arguments, (tuple, list)) and arguments else arguments
    return raw_mode if isinstance(raw_mode, str) else ""


def _decoded_as(raw_mode: str, file: BinaryIO, formats: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    """Decode a picture again as if its pixels had another layout of as many bits."""
    file.seek(0)
    with Image.open(file, formats=formats) as image:
        opened: Any = image
        opened.tile = [
            tile._replace(args=raw_mode if isinstance(tile.args, str) else (raw_mode, *tile.args[1:]))
            for tile in opened.tile
        ]
        return np.asarray(image)


def _tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    return getattr(image, "tag_v2", {})


def _not_measured(image: Image.Image) -> float | None:
    """Return the value of pixels that were not measured, which GDAL writes into a TIFF tag as text; None without it."""
    try:
        return float(_tiff_tags(image)[42113])
    except (KeyError, TypeError, ValueError):
        return None


# --- decoding


def picture_formats(file: BinaryIO) -> tuple[str, ...]:
    """Return the formats that a file may have. Raises MissingReaderError for HEIC if pillow-heif is not installed."""
    file.seek(0)
    head = file.read(64)
    file.seek(0)
    if head[4:8] != b"ftyp":
        return FORMATS
    # Such a file begins with a block of 4-byte names: what it is, and what else it conforms to.
    names = {head[place : place + 4] for place in range(8, min(len(head), int.from_bytes(head[:4], "big")), 4)}
    if names & {b"avif", b"avis"} or not any(name.startswith((b"hei", b"hev", b"mif1", b"msf1")) for name in names):
        return FORMATS
    if not _register_heif():
        raise MissingReaderError('HEIC, install the extra "heic" (pillow-heif), or save it as JPEG')
    return (*FORMATS, HEIF)


@functools.cache
def _register_heif() -> bool:
    """Let Pillow read HEIC if pillow-heif is installed. Nothing is imported before the first such file."""
    try:
        pillow_heif = importlib.import_module("pillow_heif")
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _decode(
    image: Image.Image, file: BinaryIO, formats: tuple[str, ...], ranges: Ranges | None
) -> tuple[Image.Image, Traits]:
    raw_mode, tags = _raw_mode(image), _tiff_tags(image)
    if tags.get(_PLANES) == 2 and max(tags[_BITS]) > 8:  # Pillow mixes them up, or keeps the upper bytes alone
        raise PictureError("16-bit colours in separate planes, save it with interleaved colours")
    image.load()
    orientation, recovered, damaged = _orientation(image)
    deep = _deep(image, raw_mode, file, formats)
    rgb, traits = deep.scaled(ranges) if deep else (_to_rgb(image), ORDINARY)
    upright = rgb.transpose(TURNS[orientation]) if orientation in TURNS else rgb
    return upright, traits._replace(pages=_pages(image), damaged=damaged, recovered=recovered)


_BITS, _PLANES = 258, 284
"""TIFF tags: the number of bits of each colour, and whether colours are interleaved (1) or in separate planes (2)."""


def _too_large(pixels: int) -> PictureError:
    return PictureError(f"{pixels / 1e6:.0f} megapixels, more than the {MAX_PIXELS / 1e6:.0f} allowed")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, straight.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _pages(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # a later page may be broken in as many ways as the first
        return 1


def _orientation(image: Image.Image) -> tuple[int, int, bool]:
    """Return a picture's orientation, the orientation if Pillow did not find it, and whether its metadata are damaged.

    Pillow gives up at the first entry that it cannot read. Browsers and viewers read on, and turn the picture.
    """
    if image.format == HEIF:
        return 1, 1, False  # already turned: the file has a rotation of its own, which replaces that in the metadata
    try:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 0))
    except Exception:  # a picture with broken metadata is still good, and metadata breaks in as many ways as pixels
        orientation = 0
    if image.format not in ("JPEG", "MPO", "PNG", "WEBP"):  # without its entries, a TIFF could not be read at all
        return orientation, 1, False
    segments: list[tuple[str, bytes]] = getattr(image, "applist", [])  # of a JPEG; Pillow skips "Exif\0\xff"
    others = (content for _, content in segments if content.startswith(b"Exif\0"))
    by_hand, damaged = read_exif(image.info.get("exif") or next(others, b""))
    return (orientation, 1, damaged) if orientation or by_hand < 2 else (by_hand, by_hand, damaged)


def read_exif(block: bytes) -> tuple[int, bool]:
    """Return the orientation in a block of EXIF metadata, 0 if it has none, and whether the block is damaged.

    Only the first directory is read, entry by entry, up to where the block ends. An orientation counts only as the
    standard has it, a single 16-bit number.
    """
    block = re.sub(rb"^(Exif\0.)+", b"", block, flags=re.DOTALL)
    if not block:
        return 0, False
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 10:
        return 0, True
    (start,) = struct.unpack_from(f"{order}I", block, 4)
    if start + 2 > len(block):
        return 0, True
    (count,) = struct.unpack_from(f"{order}H", block, start)
    entries = block[start + 2 : start + 2 + 12 * count]
    damaged, orientation = len(entries) < 12 * count, 0
    for tag, kind, number, value in struct.iter_unpack(f"{order}HHI4s", entries[: len(entries) // 12 * 12]):
        size = number * (_EXIF_SIZES[kind] if kind < len(_EXIF_SIZES) else 0)
        damaged |= size > 4 and struct.unpack(f"{order}I", value)[0] + size > len(block)
        if (tag, kind, number) == (ExifTags.Base.Orientation, 3, 1) and not orientation:
            (orientation,) = struct.unpack_from(f"{order}H", value)
    return (orientation if orientation in TURNS else 0), damaged


_EXIF_SIZES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8)
"""Bytes of one value, by the number of its type."""


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
