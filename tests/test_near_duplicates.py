"""Near-duplicates: the search finds what comparing all pairs finds, and altered copies share a group and a part."""

from collections import Counter
from pathlib import Path

import numpy as np
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
    base = rng.integers(0, 256, (40, 16, 18))
    noisy = np.clip(np.repeat(base, 5, axis=0) + rng.normal(0, 12, (200, 16, 18)), 0, 255).astype(np.uint8)
    noisy = noisy[rng.permutation(200)]
    hashes = near_duplicates.difference_hash(noisy)
    flat = noisy.reshape(200, -1).astype(float)
    alike = (np.corrcoef(flat) >= near_duplicates.MIN_CORRELATION) & (
        np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= near_duplicates.MAX_BITS
    )
    slow = np.arange(200)
    for _ in range(200):  # each takes the smallest name among its neighbours until nothing changes
        slow = np.array([slow[alike[row]].min() for row in range(200)])
    assert np.array_equal(near_duplicates.groups(noisy), slow)
    assert 20 < len(set(slow.tolist())) < 150


def test_flat_pictures_do_not_chain():
    levels = np.arange(0, 200, dtype=np.uint8)
    flat = np.broadcast_to(levels[:, None, None], (200, 16, 18)) + np.random.default_rng(0).integers(
        0, 3, (200, 16, 18)
    )
    assert np.array_equal(near_duplicates.groups(flat.astype(np.uint8)), np.arange(200))


def test_thousands_of_copies_are_one_group_and_none_is_no_error():
    one = np.random.default_rng(1).integers(0, 256, (1, 16, 18), dtype=np.uint8)
    assert not near_duplicates.groups(np.repeat(one, 5000, axis=0)).any()
    assert len(near_duplicates.groups(np.zeros((0, 16, 18), np.uint8))) == 0
