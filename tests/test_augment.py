"""Augmentation equals a slow per-pixel reference, and each step equals torchvision's own operation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from data.augment import (
    MAX_ROTATION,
    MIN_AREA,
    AugmentConfig,
    Draws,
    augment,
    blur,
    changed_by_flips,
    crop_map,
    draw,
    flip_map,
    perspective_map,
    recolour,
    rotation_map,
    translation_map,
    warp,
)

SIZE = 24


def pictures(n: int = 1, size: int = SIZE, *, smooth: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n * size)
    images = torch.rand(n, 3, size, size, generator=generator) * 4 - 2
    return tv.gaussian_blur(images, [7, 7], [2.0, 2.0]) if smooth else images


def warped(image: torch.Tensor, homography: np.ndarray) -> torch.Tensor:
    return warp(image, torch.as_tensor(homography, dtype=torch.float32))


def draws(
    n: int,
    *,
    strength: float = 1.0,
    seed: int = 0,
    plain: bool | np.ndarray = False,
    flips: bool = True,
    colour_jitter: float = 0.0,
) -> Draws:
    config = AugmentConfig(
        strength=strength, reuse_originals=False, fresh=True, flips=flips, colour_jitter=colour_jitter
    )
    return draw(config, np.full(n, plain), np.random.default_rng(seed))


def mirrored(place: float, size: int) -> float:
    """Reflect a pixel coordinate at the outer edges, -0.5 and size - 0.5, into the picture."""
    place = (place + 0.5) % (2 * size)
    return min(place, 2 * size - place) - 0.5


def slow_augment(image: np.ndarray, homography: np.ndarray, sigma: float) -> np.ndarray:
    """Augment one picture (3, S, S), pixel by pixel."""
    channels, size, _ = image.shape

    def pixel(x: int, y: int) -> np.ndarray:
        return image[:, min(max(y, 0), size - 1), min(max(x, 0), size - 1)]

    seen = np.empty_like(image)
    for row in range(size):
        for column in range(size):
            u, v, w = homography @ [(2 * column + 1) / size - 1, (2 * row + 1) / size - 1, 1]
            x, y = (mirrored(((place / w + 1) * size - 1) / 2, size) for place in (u, v))
            left, top = math.floor(x), math.floor(y)
            seen[:, row, column] = sum(
                pixel(i, j) * (1 - abs(x - i)) * (1 - abs(y - j)) for i in (left, left + 1) for j in (top, top + 1)
            )
    if not sigma:
        return seen
    weights = np.array([[math.exp(-(i * i + j * j) / (2 * sigma**2)) for i in (-1, 0, 1)] for j in (-1, 0, 1)])
    padded = np.pad(seen, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    return np.stack(
        [
            [
                [(padded[c, y : y + 3, x : x + 3] * weights).sum() / weights.sum() for x in range(size)]
                for y in range(size)
            ]
            for c in range(channels)
        ]
    )


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_a_batch_equals_the_slow_reference(strength: float):
    n = 24
    batch, drawn = pictures(n, 12), draws(n, strength=strength)
    got = augment(batch, drawn)
    for image, result, homography, sigma in zip(batch, got, drawn.homographies, drawn.sigmas, strict=True):
        expected = slow_augment(image.numpy().astype(np.float64), homography.astype(np.float64), float(sigma))
        np.testing.assert_allclose(result.numpy(), expected, atol=2e-4)


def inside(operation) -> torch.Tensor:
    """Return where torchvision's operation shows only the old picture, without fill."""
    return operation(torch.ones(1, 1, SIZE, SIZE)) > 0.9999


@pytest.mark.parametrize("angle", [-30.0, 7.0, 30.0])
def test_rotation_is_torchvisions(angle: float):
    def turn(image: torch.Tensor) -> torch.Tensor:
        return tv.rotate(image, angle, InterpolationMode.BILINEAR)

    image = pictures()
    difference = (warped(image, rotation_map(np.radians([angle]))) - turn(image)).abs()
    assert (difference * inside(turn)).max() < 1e-4 and inside(turn).float().mean() > 0.7


@pytest.mark.parametrize("shift", [(2, -1), (-2, 2)])
def test_translation_is_torchvisions(shift: tuple[int, int]):
    def move(image: torch.Tensor) -> torch.Tensor:
        return tv.affine(image, 0.0, list(shift), 1.0, [0.0, 0.0], InterpolationMode.BILINEAR)

    image = pictures()
    difference = (warped(image, translation_map(np.array([shift]) * 2 / SIZE)) - move(image)).abs()
    assert (difference * inside(move)).max() < 1e-5 and inside(move).float().mean() > 0.7


def test_flip_is_torchvisions():
    image = pictures()
    torch.testing.assert_close(warped(image, flip_map(np.array([True]))), tv.horizontal_flip(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("top", "left", "height", "width"), [(0, 0, 12, 16), (5, 3, 18, 20), (8, 12, 16, 12)])
def test_crop_is_torchvisions(top: int, left: int, height: int, width: int):
    image = pictures()
    centre = np.array([[2 * left + width, 2 * top + height]]) / SIZE - 1
    got = warped(image, crop_map(np.array([[width, height]]) / SIZE, centre))
    expected = tv.resized_crop(image, top, left, height, width, [SIZE, SIZE], antialias=False)
    # Resizing ends at the box, but the warp also sees the picture around it, so the outermost pixels may differ.
    torch.testing.assert_close(got[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], rtol=0, atol=1e-4)


def test_perspective_is_torchvisions():
    corners = np.array([[[1, 2], [2, 0], [0, 1], [2, 2]]], dtype=np.float64)  # pixels, as torchvision counts them
    ends = [[1, 2], [SIZE - 2 - 1, 0], [SIZE - 1, SIZE - 1 - 1], [2, SIZE - 1 - 2]]
    starts = [[0, 0], [SIZE - 1, 0], [SIZE - 1, SIZE - 1], [0, SIZE - 1]]

    def distort(image: torch.Tensor) -> torch.Tensor:
        return tv.perspective(image, starts, ends, InterpolationMode.BILINEAR)

    image = pictures(smooth=True)
    # Torchvision gives corners from 0 to S - 1 on a scale whose outer edges are 0 and S: convert to it and back.
    k = SIZE / (SIZE - 1)
    scale = np.array([[k, 0, k - 1], [0, k, k - 1], [0, 0, 1]])
    got = warped(image, np.linalg.inv(scale) @ perspective_map(corners * 2 / (SIZE - 1)) @ scale)
    assert ((got - distort(image)).abs() * inside(distort)).max() < 1e-3 and inside(distort).float().mean() > 0.7


def test_perspective_moves_the_corners_where_it_should():
    moved = np.array([[[0.1, 0.2], [0.0, 0.3], [0.4, 0.1], [0.2, 0.0]]])
    for (x, y), (inward_x, inward_y) in zip([(-1, -1), (1, -1), (1, 1), (-1, 1)], moved[0], strict=True):
        u, v, w = perspective_map(moved)[0] @ [x * (1 - inward_x), y * (1 - inward_y), 1]
        assert (u / w, v / w) == pytest.approx((x, y))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_blur_is_torchvisions(sigma: float):
    image = pictures()
    torch.testing.assert_close(
        blur(image, torch.tensor([sigma])), tv.gaussian_blur(image, [3, 3], [sigma, sigma]), rtol=0, atol=1e-5
    )


def test_two_steps_in_one_warp_equal_the_steps_one_after_the_other():
    image = pictures(smooth=True, size=64)
    first, second = rotation_map(np.radians([20])), crop_map(np.array([[0.6, 0.5]]), np.array([[0.1, -0.1]]))
    one = warped(image, first @ second)
    two = warped(warped(image, first), second)
    assert (one - two)[..., 8:-8, 8:-8].abs().mean() < 0.01


def test_a_plain_picture_is_copied_bit_for_bit():
    batch, drawn = pictures(64), draws(64, colour_jitter=0.4)
    plain = np.arange(64) % 3 == 0
    got = augment(batch, draws(64, plain=plain, colour_jitter=0.4))
    assert torch.equal(got[plain], batch[plain])
    assert torch.equal(got[~plain], augment(batch, drawn)[~plain])


@pytest.mark.parametrize("size", [16, 33])
def test_the_result_is_channels_last_and_the_input_unchanged(size: int):
    batch = pictures(8, size)
    before = batch.clone()
    for drawn in (draws(8), draws(8, colour_jitter=1.0), draws(8, plain=True)):
        got = augment(batch, drawn)
        assert got.shape == batch.shape and got.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch, before)


def test_a_picture_does_not_depend_on_its_batch():
    batch, drawn = pictures(40), draws(40, colour_jitter=0.5)
    rows = np.array([31, 3, 8], dtype=np.int64)
    torch.testing.assert_close(augment(batch[rows], drawn[rows]), augment(batch, drawn)[rows], rtol=0, atol=1e-6)


def test_strength_0_changes_nothing():
    drawn = draws(200, strength=0.0)
    assert not drawn.warped.any() and not drawn.sigmas.any()
    assert (drawn.homographies == np.eye(3)).all()
    assert (drawn.colours == 1).all()


def test_each_picture_draws_one_or_two_of_six():
    drawn = draws(60_000)
    blurred, warps = drawn.sigmas > 0, drawn.warped
    assert (blurred | warps).all()
    # With one or two steps at even odds, blur is drawn in 1/6 or 2/6 of cases, and alone in half of the 1/6.
    assert blurred.mean() == pytest.approx((1 / 6 + 2 / 6) / 2, abs=0.01)
    assert (blurred & ~warps).mean() == pytest.approx(1 / 12, abs=0.01)
    flipped = np.linalg.det(drawn.homographies[:, :2, :2]) < 0
    assert flipped.mean() == pytest.approx(1 / 4, abs=0.01)


def test_without_flips_each_picture_draws_one_or_two_of_the_other_five():
    drawn = draws(60_000, flips=False)
    assert (np.linalg.det(drawn.homographies[:, :2, :2]) > 0).all()
    blurred = drawn.sigmas > 0
    assert (blurred | drawn.warped).all()
    assert (blurred & ~drawn.warped).mean() == pytest.approx(1 / 10, abs=0.01)


def test_classes_that_flips_may_change_are_digits_letters_and_sides():
    odd = ["7", "b", "left hand", "TURN_RIGHT", "Seven"]
    usual = ["12", "00014", "Boletus", "bright", "airplane", "n02119789", "stonefish"]
    assert changed_by_flips([*odd, *usual]) == odd


@settings(max_examples=30)
@given(st.floats(0.01, 2), st.integers(0, 2**32))
def test_magnitudes_stay_within_the_strength(strength: float, seed: int):
    drawn = draws(500, strength=strength, seed=seed)
    assert np.isfinite(drawn.homographies).all()
    assert drawn.sigmas.max() <= 0.1 + 1.9 * strength + 1e-6
    edges = np.array([[x, y, 1] for x in (-1, 0, 1) for y in (-1, 0, 1)])
    depth = edges @ drawn.homographies[:, 2, :].T
    assert depth.min() > 0.1  # nothing is seen from behind
    upright = (
        drawn.homographies[:, :2, :2] * np.where(np.linalg.det(drawn.homographies[:, :2, :2]) < 0, -1, 1)[:, None, None]
    )
    assert np.abs(np.linalg.det(upright)).min() > 0.1 * min(1, 1.05 - strength * (1 - MIN_AREA) * 0.5)


def test_at_strength_1_rotations_cover_their_range():
    homographies = draws(40_000).homographies
    sines = homographies[:, 1, 0]
    turned = (
        np.isclose(homographies[:, 0, 0] ** 2 + sines**2, 1, atol=1e-5) & (sines != 0) & (homographies[:, 0, 2] == 0)
    )
    angles = np.degrees(np.arcsin(sines[turned]))
    assert angles.min() < -0.98 * MAX_ROTATION and angles.max() > 0.98 * MAX_ROTATION
    assert np.abs(angles).max() <= MAX_ROTATION + 1e-3


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.4, 0.9, 1.3])
def test_each_change_of_colour_is_torchvisions(name: str, factor: float):
    images = pictures(3) / 4  # values from 0.375 to 0.625 of white, none of which is clipped
    colours = torch.ones(3, 3)
    colours[:, ["brightness", "contrast", "saturation"].index(name)] = factor
    expected = getattr(tv, f"adjust_{name}")(images / 4 + 0.5, factor)
    torch.testing.assert_close(recolour(images, colours), (expected - 0.5) * 4, rtol=0, atol=1e-5)


def test_colours_are_changed_in_torchvisions_order_and_clipped_at_black_and_white():
    images = pictures(3) / 4
    expected = images / 4 + 0.5
    for adjust, factor in zip(
        (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation), (1.2, 0.7, 1.4), strict=True
    ):
        expected = adjust(expected, factor)
    colours = torch.tensor([[1.2, 0.7, 1.4]]).expand(3, 3)
    torch.testing.assert_close(recolour(images, colours), (expected - 0.5) * 4, rtol=0, atol=1e-5)
    dazzling = recolour(pictures(4), torch.full((4, 3), 2.0))
    assert (dazzling.min(), dazzling.max()) == (-2, 2)


@given(colour_jitter=st.floats(0.001, 1), strength=st.sampled_from([0.0, 1.0]))
def test_colours_of_augmented_pictures_cover_the_jitters_range(colour_jitter: float, strength: float):
    changes = draws(500, strength=strength, colour_jitter=colour_jitter).colours - 1
    assert np.abs(changes).max() <= colour_jitter + 1e-6
    assert (changes.min(axis=0) <= -0.9 * colour_jitter).all() and (changes.max(axis=0) >= 0.9 * colour_jitter).all()
    assert (draws(500, strength=strength, colour_jitter=colour_jitter, plain=True).colours == 1).all()


def test_colour_jitter_leaves_the_other_draws_as_they_were():
    without, jittered = draws(200), draws(200, colour_jitter=0.4)
    assert np.array_equal(without.homographies, jittered.homographies)
    assert np.array_equal(without.sigmas, jittered.sigmas)


def test_magnitudes_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"strength=2\.5"):
        AugmentConfig(strength=2.5, reuse_originals=True, fresh=True)
    with pytest.raises(ValueError, match=r"colour_jitter=1\.5"):
        AugmentConfig(strength=1, reuse_originals=True, fresh=True, colour_jitter=1.5)
