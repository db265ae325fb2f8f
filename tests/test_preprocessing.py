"""Preprocessing: every kind of file becomes the picture that a person sees, or an error with a short reason."""

import io
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import picture, png_claiming
from PIL import ExifTags, Image

from model.preprocessing import (
    FORMATS,
    MAX_PIXELS,
    MEAN,
    STD,
    TURNS,
    PictureError,
    load_square,
    normalise,
    open_picture,
    to_square,
)

LOSSLESS = [name for name in FORMATS if name in ("PNG", "BMP", "TIFF", "PPM", "JPEG2000")]


def encoded(image: Image.Image, name: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def opened(content: bytes, **options) -> Image.Image:
    image = open_picture(io.BytesIO(content), **options)
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
        assert np.array_equal(np.asarray(open_picture(tmp_path / name)), np.asarray(image))
        assert np.array_equal(np.asarray(open_picture(str(tmp_path / name))), np.asarray(image))


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


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_other_pixel_formats_keep_their_colours(mode: str):
    image = picture(0).convert(mode)
    assert np.array_equal(pixels(encoded(image, "TIFF")), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_is_not_inverted():
    image = Image.new("RGB", (16, 16), (250, 20, 20)).convert("CMYK")
    red, green, blue = pixels(encoded(image, "JPEG", quality=95))[8, 8].tolist()
    assert red > 200 > 60 > max(green, blue)


def test_sixteen_bits_are_divided_by_256():
    values = np.array([[0, 255, 256, 1000, 32768, 65535]], np.uint16)
    expected = np.repeat(values[..., None] // 256, 3, axis=2)
    for name in ("PNG", "TIFF"):
        assert np.array_equal(pixels(encoded(Image.fromarray(values), name)), expected)
    big_endian = Image.frombytes("I;16B", (6, 1), values.astype(">u2").tobytes())
    assert np.array_equal(pixels(encoded(big_endian, "TIFF")), expected)
    wide = Image.fromarray(np.array([[-5, 255, 256, 1000, 32768, 70_000_000]], np.int32))
    assert np.array_equal(pixels(encoded(wide, "TIFF")), expected)


def test_floats_are_read_as_0_to_1_or_as_0_to_255():
    def grey(*values: float) -> list[int]:
        return pixels(encoded(Image.fromarray(np.array([values], np.float32)), "TIFF"))[0, :, 0].tolist()

    assert grey(-1, 0, 0.5, 1) == [0, 0, 127, 255]
    assert grey(-1, 0, 0.5, 100, 300) == [0, 0, 0, 100, 255]
    assert grey(float("nan"), float("inf"), float("-inf"), 10) == [0, 255, 0, 10]


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


@settings(max_examples=150, deadline=None)
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
    assert reason(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic") == "HEIC, save it as JPEG"
    assert reason(encoded(picture(0), "WEBP")[:-92]) == "broken (could not create decoder object)"
    with pytest.raises(PictureError, match=r"^cannot be opened \(No such file or directory\)$"):
        open_picture(tmp_path / "absent.jpg")
    with pytest.raises(PictureError, match=r"^cannot be opened \("):
        open_picture(tmp_path)


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


@settings(max_examples=30, deadline=None)
@given(st.integers(16, 900), st.integers(16, 900), st.integers(16, 128))
def test_a_reduced_jpeg_keeps_twice_the_requested_size(width: int, height: int, size: int):
    got = opened(encoded(Image.new("RGB", (width, height)), "JPEG"), at_least=size)
    assert min(got.size) >= min(width, height, 2 * size)
    assert min(got.size) < 4 * size + 4 or min(got.size) <= min(width, height) // 8 + 1


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
    (tmp_path / "a.jpg").write_bytes(content)
    (tmp_path / "b").write_bytes(content)
    first, second = load_square(tmp_path / "a.jpg", 24), load_square(tmp_path / "b", 24)
    assert first.dtype == np.uint8 and first.shape == (24, 24, 3)
    assert np.array_equal(first, second)
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
