"""Near-duplicates: groups thumbnails of copies that were resized, recompressed or slightly changed.

A difference hash of 64 bits [1] finds candidates, the correlation of their thumbnails confirms them, and confirmed
pairs are joined into groups. If two hashes differ in at most 7 bits, one of their four bands of 16 bits differs in at
most 1 bit, so only pictures with such a pair of bands are compared [2]: 60,000 pictures take seconds, while all 1.8
billion pairs would take hours.

Where many pictures of a class agree, they show one scene (a product line, a fixed camera, a slide), and that they agree
no longer says that they are copies. These are compared again, by the cell in which they differ most, because a copy
differs evenly and another picture of the scene differs where its subject is.

[1] N. Krawetz, "Kind of like that", 2013, https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html
[2] G. S. Manku, A. Jain, A. Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]

MAX_BITS = 7
MIN_CORRELATION = 0.95
"""Largest difference of the hashes, and smallest correlation, of two near-duplicates. 241 of the 1.25 billion pairs of
CIFAR-10's training pictures pass both, and by eye each shows one object twice; within 3 bits, for which equal bands
would be enough, only 86 do. Of 2,062 photographs of hands before one wall, one pair passes. Of copies saved as JPEG at
quality 60, 99 % stay within 7 bits. A copy cropped by 3 % at two edges is found one time in five, one cropped by 6 %
at most one time in a hundred."""

MAX_DIFFERENCE = 0.25
"""Largest difference in any cell between two near-duplicates of one scene, in standard deviations of the thumbnail, and
in shares of the largest difference of either from the scene's mean picture where that is smaller.

Measured on made-up scenes of 260 to 740 pictures, each with 20 copies that are recompressed, smaller, darker or grey.

| scene | precision and recall of pairs | before: groups joined by correlation alone |
|---|---|---|
| ten products, a mark of 2 % on each | 0.80, 1.00 | 0.00, 1.00; largest group 76 of 740 |
| three cameras, a subject of 3 % | 0.83, 1.00 | 0.00, 1.00; 100 of 320 |
| slides with 40 cells, with 8 | 1.00, 0.90; 1.00, 0.95 | 0.00, 1.00; 153 and 320 of 320 |
| a camera that pans by 3 of 240 pixels a frame, by 1 | 0.55, 0.90; 0.14, 0.95 | 0.01, 1.00; 0.00, 1.00; 44 of 260 |
| one product, 300 unmarked pictures and 120 marked by 2 % | 0.86, 0.30 | 0.00, 1.00; 440 of 440 |
| 60 pictures in five versions, 12 in ten (no scene) | 1.00, 1.00 | 1.00, 1.00 |

Neighbouring frames of the panning camera count as wrong pairs here; the largest of their groups has 6 frames.
Copies of an unmarked picture are not found, as it equals the others. Of the copies among 60,000 pictures of one scene,
92 to 96 % are found, in 6 s of one core."""

FEW, FEW_SHARE = 4, 0.01
"""Largest group that is believed without a closer look: this number of pictures (a third of the class if that is less),
or this share of the class. Agreement only says something where it is rare: one picture of CIFAR-10 in a hundred has a
near-duplicate, and the largest group is 15 of the 6,000 pictures of its class."""

LEAST_GROUPS = 3
"""Smallest number of groups that a class must leave for the split, one for each part. Larger groups are dissolved: the
pictures of a scene in which nothing changes cannot be told from copies, and together they would fill a part."""

MIN_CONTRAST = 4.0
"""Smallest standard deviation of a thumbnail in grey levels. A flatter one's hash is noise, so it joins no group."""

WINDOW = 64
"""Largest number of neighbours compared in a bucket of equal bands. Buckets are sorted by the bits that follow, so that
neighbours are similar. CIFAR-10 gives the same groups with 32 to 256; 60,000 small figures on black, the worst case
known, take 27 s with 64 and 200 s with 256. Of 10,000 copies among 20,000 such figures 99.8 % are found if only the
figure is noisy (sd 12), but 16 to 22 % after saving as JPEG, whose artefacts on black decide half of the bits."""

CHUNK = 65_536
"""Largest number of pairs whose thumbnails are compared at once, which takes 150 MB."""


def groups(thumbnails: npt.NDArray[np.uint8], strata: Positions) -> tuple[Positions, Positions]:
    """Group grey thumbnails, uint8 (n, 16, 18), into near-duplicates and into scenes.

    `strata`, int64 (n,), numbers each picture's class, or class and part: a group may only be a share of each. Returns
    for each picture the smallest position in its group and the smallest in its scene, int64 (n,). A picture without
    near-duplicates is its own group; one that agrees with few others, or only with its own copies, is its own scene.
    """
    alike, singles = np.arange(len(thumbnails)), np.arange(len(thumbnails))
    scaled = thumbnails.reshape(-1, 16 * 18).astype(np.float32)
    scaled -= scaled.mean(axis=1, keepdims=True)
    contrast = np.sqrt((scaled * scaled).mean(axis=1))
    structured = np.flatnonzero(contrast >= MIN_CONTRAST)
    scaled /= np.maximum(contrast, 1.0)[:, None]
    for a, b in _candidates(difference_hash(thumbnails[structured])):
        a, b = structured[a], structured[b]
        apart = alike[a] != alike[b]
        a, b = a[apart], b[apart]
        same = np.einsum("ij,ij->i", scaled[a], scaled[b]) >= MIN_CORRELATION * scaled.shape[1]
        alike = _join(alike, a[same], b[same])
    sizes = np.bincount(strata)
    most = sizes // LEAST_GROUPS
    crowded = _exceed(alike, strata, np.maximum(np.minimum(FEW, most), FEW_SHARE * sizes))
    found, members = alike.copy(), np.flatnonzero(crowded)
    if len(members):
        found[members] = members[_within_scenes(scaled[members], alike[members])]
    found = np.where(_exceed(found, strata, most), singles, found)
    return found, np.where(np.isin(alike, alike[found != alike]), alike, singles)


def _exceed(labels: Positions, strata: Positions, most: npt.NDArray[np.int64 | np.float64]) -> npt.NDArray[np.bool_]:
    """Return for each picture whether its group has more pictures of some stratum than that stratum's `most`."""
    pairs, counts = np.unique(np.stack([labels, strata]), axis=1, return_counts=True)
    return np.isin(labels, pairs[0, counts > most[pairs[1]]])


def _within_scenes(scaled: npt.NDArray[np.float32], scenes: Positions) -> Positions:
    """Group the pictures of each scene that are nearly equal; return for each the smallest position in its group.

    Each picture is described by the cell in which it differs most from its scene's mean picture, and compared with the
    WINDOW pictures that differ there by nearly as much; those that differ nowhere are equal to the mean.
    """
    _, scene = np.unique(scenes, return_inverse=True)
    common = np.zeros((scene.max() + 1, scaled.shape[1]), np.float32)
    np.add.at(common, scene, scaled)
    apart = scaled - (common / np.bincount(scene)[:, None])[scene]
    cell = np.abs(apart).argmax(axis=1)
    peak = apart[np.arange(len(apart)), cell]
    tolerance = MAX_DIFFERENCE * np.minimum(1.0, np.abs(peak))
    labels, plain = np.arange(len(scene)), np.abs(peak) <= MAX_DIFFERENCE
    first = np.full(len(common), len(scene))
    np.minimum.at(first, scene[plain], labels[plain])
    labels[plain] = first[scene[plain]]
    order = np.lexsort((peak, cell, scene, plain))[: np.count_nonzero(~plain)]
    key = scene[order] * scaled.shape[1] + cell[order]
    for step in range(1, WINDOW + 1):
        near = np.flatnonzero(key[step:] == key[:-step])
        for start in range(0, len(near), CHUNK):
            chosen = near[start : start + CHUNK]
            a, b = order[chosen], order[chosen + step]
            same = np.abs(scaled[a] - scaled[b]).max(axis=1) <= np.minimum(tolerance[a], tolerance[b])
            labels = _join(labels, a[same], b[same])
    return labels


def difference_hash(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Hash thumbnails, uint8 (n, 16, 18), to uint64 (n,): each of 8 x 9 means is compared with its left neighbour."""
    small = thumbnails.reshape(-1, 8, 2, 9, 2).sum(axis=(2, 4), dtype=np.int32)
    bits = (small[:, :, 1:] > small[:, :, :-1]).reshape(-1, 64)
    return np.packbits(bits, axis=1).view(np.uint64).reshape(-1)


def _candidates(hashes: npt.NDArray[np.uint64]) -> Iterator[tuple[Positions, Positions]]:
    """Yield pairs of positions whose hashes differ by up to MAX_BITS, up to CHUNK at a time; pairs may repeat."""
    for band in range(4):
        shift = np.uint64(16 * band)
        rotated = (hashes << shift) | (hashes >> (np.uint64(64) - shift)) if band else hashes
        order = np.argsort(rotated, kind="stable")
        rotated = rotated[order]
        keys = rotated >> np.uint64(48)
        for probe in (0, *(1 << bit for bit in range(16))):
            wanted = keys ^ np.uint64(probe)
            first = np.flatnonzero(wanted >= keys)  # the rest would find the same pairs again, from the other side
            low, high = np.searchsorted(keys, wanted[first]), np.searchsorted(keys, wanted[first], side="right")
            if probe:
                nearest = np.searchsorted(rotated, rotated[first] ^ np.uint64(probe << 48))
                low = np.maximum(low, np.minimum(nearest - WINDOW // 2, high - WINDOW))
            else:
                low = first + 1
            for step in range(WINDOW):
                first, low, high = (array[low + step < high] for array in (first, low, high))
                if not len(first):
                    break
                second = low + step
                near = np.bitwise_count(rotated[first] ^ rotated[second]) <= MAX_BITS
                a, b = order[first[near]], order[second[near]]
                for start in range(0, len(a), CHUNK):
                    yield a[start : start + CHUNK], b[start : start + CHUNK]


def _join(labels: Positions, a: Positions, b: Positions) -> Positions:
    """Join pairs into groups by union-find on whole arrays, attaching larger roots to smaller ones until all agree."""
    while len(a):
        high, low = np.maximum(labels[a], labels[b]), np.minimum(labels[a], labels[b])
        if (high == low).all():
            break
        np.minimum.at(labels, high, low)
        while not np.array_equal(shorter := labels[labels], labels):
            labels = shorter
    return labels
