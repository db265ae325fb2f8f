"""Near-duplicates: altered copies share a group and a part; different pictures of one scene do not."""

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import altered, class_folders, scanned
from PIL import Image

from data import near_duplicates
from data.split import split


def test_altered_copies_share_a_group_and_a_part(tmp_path: Path):
    root = class_folders(tmp_path / "set", size=96)
    for number, copy in enumerate(altered(Image.open(root / "Boletus" / "0005.jpg"))):
        copy.save(root / ("Boletus", "Agaricus")[number % 2] / f"copy-{number}.jpg", quality=60)
    catalog = scanned(root, tmp_path / "cache")
    sizes = Counter(picture.group for picture in catalog.kept)
    assert sorted(sizes.values())[-2:] == [1, 4]
    group = {
        picture.group for picture in catalog.pictures if "copy" in picture.path or picture.path == "Boletus/0005.jpg"
    }
    assert group == {min(picture.content_hash for picture in catalog.kept if picture.group in group)}
    sides = [{catalog.kept[position].group for position in positions} for _, positions in split(catalog).named()]
    assert sum(group <= side for side in sides) == 1


def test_grouping_equals_comparing_all_pairs():
    rng = np.random.default_rng(3)
    base = rng.integers(0, 256, (50, 16, 18))
    noisy = np.clip(np.repeat(base, 4, axis=0) + rng.normal(0, 12, (200, 16, 18)), 0, 255).astype(np.uint8)
    noisy = noisy[rng.permutation(200)]
    hashes = near_duplicates.difference_hash(noisy)
    flat = noisy.reshape(200, -1).astype(float)
    alike = (np.corrcoef(flat) >= near_duplicates.MIN_CORRELATION) & (
        np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= near_duplicates.MAX_BITS
    )
    slow = np.arange(200)
    for _ in range(200):  # each takes the smallest name among its neighbours until nothing changes
        slow = np.array([slow[alike[row]].min() for row in range(200)])
    found, scenes = near_duplicates.groups(noisy, ONE_CLASS[:200])
    assert np.array_equal(found, slow) and np.array_equal(scenes, np.arange(200))
    assert 20 < len(set(slow.tolist())) < 150


def test_flat_pictures_do_not_chain():
    levels = np.arange(0, 200, dtype=np.uint8)
    flat = np.broadcast_to(levels[:, None, None], (200, 16, 18)) + np.random.default_rng(0).integers(
        0, 3, (200, 16, 18)
    )
    assert np.array_equal(near_duplicates.groups(flat.astype(np.uint8), ONE_CLASS[:200])[0], np.arange(200))


def test_thousands_of_copies_are_one_group_and_none_is_no_error():
    rng = np.random.default_rng(1)
    one, others = (rng.integers(0, 256, (count, 16, 18), dtype=np.uint8) for count in (1, 4000))
    found, scenes = near_duplicates.groups(np.concatenate([np.repeat(one, 2000, axis=0), others]), ONE_CLASS)
    assert not found[:2000].any() and np.array_equal(found[2000:], np.arange(2000, 6000))
    assert np.array_equal(scenes, np.arange(6000))  # they are no scene, because all of them are copies
    assert not any(map(len, near_duplicates.groups(np.zeros((0, 16, 18), np.uint8), ONE_CLASS[:0])))


def test_pictures_of_one_scene_are_told_apart_and_their_copies_found():
    thumbnails = scene(300, copies=40)
    found, scenes = near_duplicates.groups(thumbnails, ONE_CLASS[:340])
    assert not scenes.any()
    copies, sizes = found[300:] == found[:40], np.bincount(found)
    assert copies.sum() >= 36 and sizes.max() <= 4
    assert (sizes[found[40:300]] > 1).mean() <= 0.1


@pytest.mark.parametrize("classes", [1, 2])
def test_a_scene_in_which_nothing_changes_is_not_grouped(classes: int):
    still = scene(120, contrast=0.0)
    found, scenes = near_duplicates.groups(still, np.arange(120) % classes)
    assert np.array_equal(found, np.arange(120)) and not scenes.any()


def test_frames_of_a_moving_camera_do_not_chain():
    wide = np.random.default_rng(5).normal(0, 60, (16, 40)).cumsum(axis=1)
    wide = 128 + 50 * (wide - wide.mean()) / wide.std()
    at = np.linspace(0, 20, 121)[:, None, None] + np.arange(18)
    low, rest = at.astype(int), at % 1
    row = np.arange(16)[:, None]
    frames = np.clip((1 - rest) * wide[row, low] + rest * wide[row, low + 1], 0, 255).astype(np.uint8)
    found, scenes = near_duplicates.groups(frames, ONE_CLASS[:121])
    assert np.bincount(scenes).max() > 30 and np.bincount(found).max() <= 10


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 80), st.floats(0.0, 80.0))
def test_no_group_fills_a_class_and_the_order_does_not_matter(seed: int, classes: int, copies: int, contrast: float):
    thumbnails = scene(80, copies=copies, contrast=contrast, seed=seed)
    strata = np.random.default_rng(seed).integers(0, classes, len(thumbnails))
    found, scenes = near_duplicates.groups(thumbnails, strata)
    for label in range(classes):
        assert np.bincount(found[strata == label], minlength=1).max() <= max(1, (strata == label).sum() // 3)
    order = np.random.default_rng(seed).permutation(len(thumbnails))
    again = near_duplicates.groups(thumbnails[order], strata[order])
    for labels, shuffled in zip((found, scenes), again, strict=True):
        assert partition(labels) == {frozenset(order[list(group)].tolist()) for group in partition(shuffled)}


ONE_CLASS = np.zeros(6000, np.int64)


def partition(labels: npt.NDArray[np.int64]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels.tolist())}


def scene(count: int, *, copies: int = 0, contrast: float = 60.0, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Thumbnails of a camera that does not move: a subject somewhere, and noise; then darker copies of the first."""
    rng = np.random.default_rng(seed)
    wall = np.asarray(Image.fromarray(rng.normal(128, 50, (5, 6)).astype(np.float32)).resize((18, 16)))
    y, x = np.mgrid[:16, :18]
    top, left, size = (rng.uniform(low, high, (count, 1, 1)) for low, high in ((0, 16), (0, 18), (1.0, 2.0)))
    subject = contrast * np.exp(-((y - top) ** 2 + (x - left) ** 2) / size**2)
    pictures = wall + subject + rng.normal(0, 0.5, subject.shape)
    darker = 0.9 * pictures[:copies] + rng.normal(0, 0.5, pictures[:copies].shape)
    return np.clip(np.concatenate([pictures, darker]), 0, 255).astype(np.uint8)
