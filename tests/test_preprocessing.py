"""Preprocessing: every kind of file becomes the picture that a person sees, or an error with a short reason."""

import io
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import deep_png, exif_block, picture, png_claiming, tiff
from PIL import ExifTags, Image

from model import preprocessing
from model.predict import square_of
from model.preprocessing import (
    FORMATS,
    MAX_PIXELS,
    MEAN,
    ORDINARY,
    STD,
    TURNS,
    MissingReaderError,
    PictureError,
    Values,
    check_ranges,
    load_square,
    normalise,
    read_exif,
    read_picture,
    settle_ranges,
    to_square,
    usual_range,
)

LOSSLESS = [name for name in FORMATS if name in ("PNG", "BMP", "TIFF", "PPM", "JPEG2000")]


def encoded(image: Image.Image, name: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def opened(content: bytes, **options) -> Image.Image:
    image, _ = read_picture(io.BytesIO(content), **options)
    assert image.mode == "RGB"
    return image


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(opened(content))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read(name: str):
    image = picture(0)
    error = np.abs(pixels(encoded(image, name)).astype(int) - np.asarray(image))
    assert error.max() == 0 if name in LOSSLESS else error.mean() < 12


def test_the_suffix_does_not_matter(tmp_path: Path):
    image = picture(0)
    for name in ("right.png", "WRONG.JPG", "none", "text.txt"):
        (tmp_path / name).write_bytes(encoded(image, "PNG"))
        assert np.array_equal(square_of(tmp_path / name, 32, {})[0], np.asarray(image))


def test_transparent_areas_become_white():
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, [0, 128, 255]
    expected = np.array([[255, 255, 255], [227, 127, 127], [200, 0, 0]])
    got = pixels(encoded(Image.fromarray(rgba), "PNG"))
    assert np.abs(got.astype(int) - expected).max() <= 1


def test_transparent_areas_without_an_alpha_channel_become_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    assert pixels(encoded(palette, "PNG", transparency=b"\0\xff")).tolist() == [[[255] * 3, [9] * 3]]
    for image, colour in ((Image.new("L", (1, 1), 7), 7), (Image.new("RGB", (1, 1), (1, 2, 3)), (1, 2, 3))):
        assert pixels(encoded(image, "PNG", transparency=colour)).tolist() == [[[255] * 3]]
    grey = Image.new("LA", (2, 1))
    grey.putpixel((1, 0), (0, 255))
    assert pixels(encoded(grey, "PNG")).tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "PA", "LA", "RGB", "RGBX", "CMYK", "YCbCr", "LAB"])
def test_other_pixel_formats_keep_their_colours(mode: str):
    image = picture(0).convert(mode)
    assert np.array_equal(pixels(encoded(image, "TIFF")), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_is_not_inverted():
    image = Image.new("RGB", (16, 16), (250, 20, 20)).convert("CMYK")
    red, green, blue = pixels(encoded(image, "JPEG", quality=95))[8, 8].tolist()
    assert red > 200 > 60 > max(green, blue)


# --- more than 8 bits

STORED = {
    "png grey": lambda values: deep_png(values),
    "png colour": lambda values: deep_png(np.repeat(values[..., None], 3, axis=2)),
    "png grey and alpha": lambda values: deep_png(np.stack([values, np.full_like(values, 65535)], axis=2)),
    "png colour and alpha": lambda values: deep_png(np.stack([*[values] * 3, np.full_like(values, 65535)], axis=2)),
    "tiff": lambda values: encoded(Image.fromarray(values), "TIFF"),
    "tiff, big endian": lambda values: tiff(values, order=">"),
    "tiff, compressed": lambda values: encoded(Image.fromarray(values), "TIFF", compression="tiff_lzw"),
    "tiff, mode I;16B": lambda values: encoded(
        Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes()), "TIFF"
    ),
    "tiff, 32 bits": lambda values: encoded(Image.fromarray(values.astype(np.int32)), "TIFF"),
    "tiff, 32 bits unsigned": lambda values: tiff(values.astype(np.uint32)),
    "tiff colour": lambda values: tiff(np.repeat(values[..., None], 3, axis=2)),
    "tiff colour, big endian": lambda values: tiff(np.repeat(values[..., None], 3, axis=2), order=">"),
    "tiff colour, compressed": lambda values: tiff(np.repeat(values[..., None], 3, axis=2), compressed=True),
}


@pytest.mark.parametrize("stored", STORED)
def test_every_way_to_store_sixteen_bits_keeps_all_of_them(stored: str):
    values = np.random.default_rng(1).integers(0, 4096, (20, 30)).astype(np.uint16)
    values[0, :2] = 0, 4095
    content = STORED[stored](values)
    image, traits = read_picture(io.BytesIO(content), ranges={"integers": [0, 4095]})
    assert np.array_equal(np.asarray(image), np.repeat((values // 16)[..., None], 3, axis=2))
    assert traits.clipped == 0
    _, traits = read_picture(io.BytesIO(content), ranges=None)
    assert traits.values == ("integers", 0, 0, 4095, 4095)
    full = pixels(content)  # of an 8-bit data set, or an earlier version's bundle
    assert np.array_equal(full, np.repeat((values // 256)[..., None], 3, axis=2))


def test_eight_bits_are_never_scaled():
    for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr"):
        content = encoded(picture(0).convert(mode), "TIFF")
        image, traits = read_picture(io.BytesIO(content), ranges={"integers": [0, 100], "floats": [0, 9]})
        assert np.array_equal(np.asarray(image), pixels(content))
        assert traits == ORDINARY


def test_signed_values_and_values_beyond_the_range():
    content = tiff(np.array([[-1000, -1024, 0, 3071, 4095, 9000]], np.int16))
    image, traits = read_picture(io.BytesIO(content), ranges={"integers": [-1024, 4095]})
    assert np.asarray(image)[0, :, 0].tolist() == [1, 0, 51, 204, 255, 255]
    assert traits.clipped == pytest.approx(1 / 6)


def test_floats_become_the_bits_that_they_were_made_from():
    eight = np.arange(256, dtype=np.uint8)[None]
    for divisor, ends in ((255, [0.0, 1.0]), (256, [0.0, 1.0]), (1, [0.0, 255.0])):
        content = encoded(Image.fromarray((eight / divisor).astype(np.float32)), "TIFF")
        image, _ = read_picture(io.BytesIO(content), ranges={"floats": ends})
        assert np.array_equal(np.asarray(image)[..., 0], eight)
        assert np.array_equal(pixels(content)[..., 0], eight)  # by its own values


def test_values_that_are_not_finite_or_not_measured_spoil_no_others():
    ramp = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    spoilt = ramp.copy()
    spoilt[0, :3] = np.inf, -np.inf, np.nan
    expected = pixels(encoded(Image.fromarray(ramp), "TIFF"))
    content = encoded(Image.fromarray(spoilt), "TIFF")
    got = pixels(content)
    assert np.array_equal(got[1:], expected[1:])
    assert got[0, :3, 0].tolist() == [255, 0, 0]
    _, traits = read_picture(io.BytesIO(content), ranges=None)
    assert (traits.values.highest, traits.missing) == (1, 3)
    spoilt[0, :3] = -3.4e38  # what GDAL writes where nothing was measured
    for text in (b"-3.4e+38\0", b"-9999\0"):
        _, traits = read_picture(io.BytesIO(tiff(spoilt, no_data=text)), ranges=None)
        assert (traits.missing, traits.values.lowest > -1) == ((3, True) if text.startswith(b"-3.4") else (0, False))
    nothing, traits = read_picture(
        io.BytesIO(encoded(Image.fromarray(np.full_like(ramp, np.nan)), "TIFF")), ranges=None
    )
    assert (traits.values, traits.missing, nothing.getextrema()[0]) == (None, 400, (0, 0))


def test_a_few_dead_pixels_do_not_count_as_the_pictures_values():
    values = np.random.default_rng(0).integers(300, 4000, (100, 100)).astype(np.uint16)
    values[0, :9] = 65535
    _, traits = read_picture(io.BytesIO(deep_png(values)), ranges=None)
    assert traits.values.highest == 65535 and traits.values.high < 4000 and traits.values.low >= traits.values.lowest


def test_sixteen_bit_pictures_have_transparent_areas_too():
    values = np.full((20, 20, 4), [1000, 2000, 3000, 0], np.uint16)
    values[:10, :, 3] = 65535
    image, _ = read_picture(io.BytesIO(deep_png(values)), ranges={"integers": [0, 4095]})
    assert image.getpixel((3, 3)) == (62, 125, 187) and image.getpixel((3, 15)) == (255, 255, 255)
    for shape, key in (((20, 20), [7]), ((20, 20, 3), [7, 8, 9])):
        values = np.full(shape, 7 if len(key) == 1 else key, np.uint16)
        values[:10] = 4095
        image, _ = read_picture(io.BytesIO(deep_png(values, transparent=key)), ranges={"integers": [0, 4095]})
        assert [image.getpixel((3, y)) for y in (3, 15)] == [(255, 255, 255)] * 2
        assert pixels(deep_png(values))[15, 3, 0] == 0


def test_separate_planes_that_pillow_would_mix_up_are_refused():
    for compressed in (False, True):
        with pytest.raises(PictureError, match="separate planes"):
            opened(tiff(np.zeros((20, 20, 3), np.uint16), planes=True, compressed=compressed))
    eight = np.arange(1200, dtype=np.uint8).reshape(20, 20, 3)
    assert np.array_equal(pixels(tiff(eight, planes=True)), eight)


@pytest.mark.parametrize(
    ("kind", "low", "high", "expected"),
    [
        ("integers", 3, 200, [0, 255]),
        ("integers", 0, 1, [0, 255]),
        ("integers", 0, 256, [0, 1023]),
        ("integers", 120, 3900, [0, 4095]),
        ("integers", 0, 4096, [0, 16383]),
        ("integers", 5, 65535, [0, 65535]),
        ("integers", 0, 2**32 - 1, [0, 2**32 - 1]),
        ("integers", -1024, 3071, [-1024, 4095]),  # computed tomography
        ("integers", -32768, 32767, [-32768, 32767]),
        ("integers", 29_000, 31_500, [28_672, 32_767]),  # a thermal camera's hundredths of a kelvin
        ("integers", 800, 800, [0, 1023]),
        ("floats", 0.2, 0.9, [0, 1]),
        ("floats", -1, 1, [-1, 1]),
        ("floats", 0, 255, [0, 255]),
        ("floats", 0, 4095.0, [0, 4095]),
        ("floats", 0.5, 0.5, [0, 1]),
        ("floats", 812.3, 1204.7, [768, 1280]),  # elevations
        ("floats", 0, 3e-9, [0, 2**-28]),
    ],
)
def test_the_range_of_a_data_set(kind: str, low: float, high: float, expected: list[float]):
    assert usual_range(kind, low, high) == expected


finite = st.floats(-1e30, 1e30) | st.floats(-2, 2)


@given(st.sampled_from(["integers", "floats"]), st.data())
def test_a_range_holds_the_values_and_leaves_enough_grey_levels(kind: str, data: st.DataObject):
    numbers = st.integers(-(2**31), 2**32 - 1) if kind == "integers" else finite
    low, high = sorted((data.draw(numbers), data.draw(numbers)))
    start, end = usual_range(kind, low, high)
    assert start <= low <= high <= end
    check_ranges({kind: [start, end]})
    assert high == low or (kind == "integers" and end - start <= 255) or 8.01 * (high - low) >= end - start


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=20), st.integers(0, 65535))
def test_ranges_depend_on_no_order_and_only_widen_for_more_pictures(highs: list[int], another: int):
    def settled(numbers: list[int]) -> list[float]:
        return settle_ranges(Values("integers", 0, 0, high, high) for high in numbers)["integers"]

    assert settled(highs) == settled(sorted(highs))
    assert settled([*highs, another])[1] >= settled(highs)[1]


def test_one_odd_picture_in_many_does_not_cost_the_others_their_grey_levels():
    ordinary = [Values("integers", 0, 0, 3000, 3000)] * 120
    assert settle_ranges([*ordinary, Values("integers", 0, 0, 65535, 65535)]) == {"integers": [0, 4095]} | {}
    assert settle_ranges([*ordinary, Values("integers", 0, 0, 9000, 9000)]) == {"integers": [0, 16383]}
    assert settle_ranges([*ordinary[:20], Values("integers", 0, 0, 65535, 65535)]) == {"integers": [0, 65535]}
    assert settle_ranges([*ordinary, Values("floats", 0, 0, 1, 1)]) == {"integers": [0, 4095], "floats": [0, 1]}
    assert settle_ranges([]) == {}


# --- orientation


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_set_upright(orientation: int, name: str):
    image = picture(0, width=32, height=48)
    undone = {turn: number for number, turn in TURNS.items()}
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    stored = image.transpose(TURNS[inverse]) if orientation > 1 else image
    assert undone.keys() == set(Image.Transpose)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    got = opened(encoded(stored, name, exif=exif, **({"lossless": True} if name == "WEBP" else {})))
    assert got.size == image.size
    assert np.abs(np.asarray(got).astype(int) - np.asarray(image)).mean() < (8 if name == "JPEG" else 0.01)


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0"])
def test_broken_metadata_does_not_break_a_picture(exif: bytes):
    image = picture(0)
    assert np.array_equal(pixels(encoded(image, "JPEG", exif=exif)), pixels(encoded(image, "JPEG")))


LATER = (0x0131, 2, 9, 150)
"""Entry of a program's name, which is stored behind the entries."""
BEYOND = (0x010F, 2, 40, 50_000)
"""Entry of a camera's name, which points past the end of the block, and stands before the orientation."""


def turned(order: str, name: str = "JPEG", **damage) -> tuple[bool, bool]:
    """Return whether a picture with such metadata is turned, and whether they count as damaged."""
    entries = damage.pop("entries", [BEYOND, (0x0112, 3, 1, 6), LATER])
    exif = b"Exif\0\0" + exif_block(entries, order=order, **damage)
    image, traits = read_picture(io.BytesIO(encoded(picture(0, width=48, height=32), name, exif=exif)))
    return image.size == (32, 48), traits.damaged


@pytest.mark.parametrize("name", ["JPEG", "MPO", "PNG", "WEBP"])
@pytest.mark.parametrize("order", "<>")
def test_a_picture_with_damaged_metadata_is_turned_as_browsers_do(order: str, name: str):
    """Each answer for JPEG and PNG is Chromium's. Pillow gives up at the first entry that points past the end."""
    six = (0x0112, 3, 1, 6)
    assert turned(order, name) == (True, True)
    assert turned(order, name, entries=[six, LATER]) == (True, False)
    assert turned(order, name, entries=[six, BEYOND]) == (True, True)
    assert turned(order, name, cut=8 + 2 + 2 * 12 + 5) == (True, True)  # within the last entry
    assert turned(order, name, cut=8 + 2 + 12 + 6) == (False, True)  # within the orientation
    assert turned(order, name, count=60_000) == (True, True)
    assert turned(order, name, start=4000) == (False, True)
    assert turned(order, name, entries=[BEYOND, (0x0112, 3, 1, 9)]) == (False, True)
    assert turned(order, name, entries=[BEYOND, (0x0112, 3, 0, 6)]) == (False, True)
    assert turned(order, name, entries=[BEYOND, six, (0x0112, 3, 1, 1)]) == (True, True)


def test_the_orientation_that_pillow_missed_is_named():
    content = encoded(picture(0), "JPEG", exif=b"Exif\0\0" + exif_block([BEYOND, (0x0112, 3, 1, 3)]))
    assert read_picture(io.BytesIO(content))[1].recovered == 3
    whole = encoded(picture(0), "JPEG", exif=b"Exif\0\0" + exif_block([(0x0112, 3, 1, 3)]))
    assert read_picture(io.BytesIO(whole))[1] == ORDINARY
    odd = whole.replace(b"Exif\0\0", b"Exif\0\xff")  # Chromium reads it
    assert read_picture(io.BytesIO(odd))[1].recovered == 3


@given(st.binary(max_size=40) | st.builds(lambda rest: b"II*\0\x08\0\0\0" + rest, st.binary(max_size=60)))
def test_any_metadata_can_be_read(block: bytes):
    orientation, damaged = read_exif(block)
    assert orientation in (0, *TURNS) and isinstance(damaged, bool)


# --- HEIC, and several pictures in one file


def heic(image: Image.Image, **options) -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()
    return encoded(image, "HEIF", **options)


def test_without_pillow_heif_the_reason_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    preprocessing._register_heif.cache_clear()
    try:
        for head in (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"\0\0\0\x1cftypmif1\0\0\0\0miafMiHBheix"):
            with pytest.raises(MissingReaderError, match=r'^HEIC, install the extra "heic"'):
                opened(head)
        for head in (b"\0\0\0\x18ftypisom\0\0\0\0mp42isom", b"\0\0\0\x18ftypavif\0\0\0\0mif1miaf"):
            with pytest.raises(PictureError, match=r"^not a picture$"):
                opened(head)
    finally:
        preprocessing._register_heif.cache_clear()


def test_heic_is_read_and_not_turned_twice():
    """The writer stores the orientation as the file's own rotation, and in the metadata."""
    image = picture(0, width=64, height=48)
    for before in ([], [BEYOND]):
        exif = b"Exif\0\0" + exif_block([*before, (0x0112, 3, 1, 6)])
        got = pixels(heic(image, exif=exif, quality=90)).astype(int)
        assert np.abs(got - np.asarray(image.transpose(TURNS[6]))).mean() < 12
    with pytest.raises(PictureError, match="HEIC"):
        opened(heic(image)[:200])


def test_several_pictures_in_one_file_are_counted():
    images = [picture(number) for number in range(3)]
    for name in ("GIF", "WEBP", "PNG", "TIFF", "MPO", *(["AVIF"] if "AVIF" in FORMATS else [])):
        for count in (1, 3):
            content = encoded(images[0], name, save_all=True, append_images=images[1:count])
            assert read_picture(io.BytesIO(content))[1].pages == count, name


def test_several_pictures_in_a_heic_file_are_counted():
    content = heic(picture(0), save_all=True, append_images=[picture(1)])
    assert read_picture(io.BytesIO(content))[1].pages == 2


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    for name in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        content = encoded(frames[0], name, save_all=True, append_images=frames[1:])
        red, _, blue = pixels(content)[10, 10].tolist()
        assert red > 240 > 20 > blue


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_anywhere_is_an_error_or_whole(name: str):
    content = encoded(picture(0), name)
    whole = pixels(content)
    errors = 0
    for end in range(0, len(content), max(1, len(content) // 100)):
        try:
            assert np.array_equal(pixels(content[:end]), whole)
        except PictureError:
            errors += 1
    assert errors > 90


@settings(max_examples=150)
@given(st.sampled_from(FORMATS), st.integers(0, 2**32), st.integers(1, 20))
def test_damaged_bytes_give_a_picture_or_a_picture_error(name: str, seed: int, many: int):
    rng = np.random.default_rng(seed)
    content = bytearray(encoded(picture(0), name))
    for place in rng.integers(0, min(len(content), int(rng.choice([64, 100_000]))), many):
        content[place] = rng.integers(256)
    try:
        opened(bytes(content), at_least=16)
    except PictureError as error:
        assert 0 < len(str(error)) <= 100 and "\n" not in str(error)


def test_reasons_are_short_and_human(tmp_path: Path):
    def reason(content: bytes) -> str:
        with pytest.raises(PictureError) as caught:
            opened(content)
        return str(caught.value)

    assert reason(encoded(picture(0), "JPEG")[:-92]) == "truncated"
    assert reason(encoded(picture(0), "JPEG", progressive=True)[:-92]) == "truncated"
    assert reason(encoded(picture(0), "PNG")[:-92]) == "truncated"
    assert reason(b"") == "not a picture"
    assert reason(b"shopping list\n" * 50) == "not a picture"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "not a picture"
    assert reason(encoded(picture(0), "WEBP")[:-92]) == "broken (could not create decoder object)"
    with pytest.raises(PictureError, match=r"^cannot be opened \(No such file or directory\)$"):
        square_of(tmp_path / "absent.jpg", 32, {})
    with pytest.raises(PictureError, match=r"^cannot be opened \("):
        square_of(tmp_path, 32, {})


@pytest.mark.parametrize(
    ("width", "height", "megapixels"), [(20_000, 10_000, 200), (12_000, 9_000, 108), (100_000, 100_000, 10_000)]
)
def test_a_bomb_is_refused_by_its_header(width: int, height: int, megapixels: int):
    with pytest.raises(PictureError, match=f"^{megapixels} megapixels, more than the 100 allowed$"):
        opened(png_claiming(width, height))


def test_a_large_picture_within_the_limit_brings_no_warning():
    assert Image.MAX_IMAGE_PIXELS is not None and Image.MAX_IMAGE_PIXELS < 95_000_000 < MAX_PIXELS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(PictureError, match="truncated"):
            opened(png_claiming(10_000, 9_500))
    assert caught == []


def test_decoding_in_threads_leaves_warning_filters_and_pillow_as_they_were():
    before = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    content = encoded(picture(0, width=200, height=200), "JPEG")
    start = threading.Barrier(8)

    def decode(_: int) -> None:
        start.wait(10)
        for _ in range(20):
            opened(content)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, range(8)))
    assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS) == before


@settings(max_examples=30)
@given(st.integers(16, 900), st.integers(16, 900), st.integers(16, 128))
def test_a_reduced_jpeg_keeps_twice_the_requested_size(width: int, height: int, size: int):
    got = opened(encoded(Image.new("RGB", (width, height)), "JPEG"), at_least=size)
    assert min(got.size) >= min(width, height, 2 * size)
    assert min(got.size) < 4 * size + 4 or min(got.size) <= min(width, height) // 8 + 1


def test_a_jpeg_in_cmyk_is_decoded_whole():
    assert opened(encoded(Image.new("CMYK", (900, 900)), "JPEG"), at_least=32).size == (900, 900)


def test_reduced_decoding_hardly_changes_the_pixels():
    image = picture(3, width=1024, height=768)
    content = encoded(image, "JPEG", quality=95)
    assert min(opened(content, at_least=64).size) < 768
    difference = to_square(opened(content), 64).astype(int) - load_square(io.BytesIO(content), 64)
    assert np.abs(difference).max() <= 6 and np.abs(difference).mean() < 1


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 64), (64, 128), (16, 64), (5000, 16)])
def test_to_square_is_resize_then_crop(width: int, height: int):
    image, size = picture(0, width=width, height=height), 32
    scale = size / min(width, height)
    resized = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    cropped = np.asarray(resized.crop((left, top, left + size, top + size)))
    assert np.abs(to_square(image, size).astype(int) - cropped).max() <= 1


def test_to_square_of_a_square_of_that_size_is_itself():
    image = picture(0, width=32, height=32)
    assert np.array_equal(to_square(image, 32), np.asarray(image))


def test_stripes_too_fine_for_the_size_become_grey():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = to_square(Image.fromarray(stripes), 32)[:, 2:-2].astype(int)
    assert np.abs(inner - 127).max() <= 2


def test_load_square_depends_only_on_the_bytes(tmp_path: Path):
    content = encoded(picture(0, width=300, height=200), "JPEG")
    (tmp_path / "b").write_bytes(content)
    first, _ = square_of(tmp_path / "b", 24, {})
    assert first.dtype == np.uint8 and first.shape == (24, 24, 3)
    assert np.array_equal(first, load_square(io.BytesIO(content), 24))


def test_normalise_is_mean_and_deviation_in_channels_last():
    pictures = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(2, 8, 16, 3)
    images = normalise(pictures)
    expected = (pictures.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]
    assert images.dtype == torch.float32 and images.shape == (2, 3, 8, 16)
    assert images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
    assert (images.min().item(), images.max().item()) == (-2, pytest.approx(2))
    assert pictures.dtype == torch.uint8 and pictures.max() == 255
