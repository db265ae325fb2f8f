"""Near-duplicates: groups thumbnails of copies that were resized, recompressed or slightly changed.

A difference hash of 64 bits [1] finds candidates, the correlation of their thumbnails confirms them, and confirmed
pairs are joined into groups. If two hashes differ in at most 7 bits, one of their four bands of 16 bits differs in at
most 1 bit, so only pictures with such a pair of bands are compared [2]: 60,000 pictures take seconds, while all 1.8
billion pairs would take hours.

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
would be enough, only 86 do. Of copies saved as JPEG at quality 60, 99 % stay within 7 bits. A copy cropped by 3 % at
two edges is found one time in five, one cropped by 6 % never."""

MIN_CONTRAST = 4.0
"""Smallest standard deviation of a thumbnail in grey levels. A flatter one's hash is noise, so it joins no group."""

WINDOW = 64
"""Largest number of neighbours compared in a bucket of equal bands. Buckets are sorted by the bits that follow, so that
neighbours are similar. CIFAR-10 gives the same groups with 32 to 256; 60,000 small figures on black, the worst case
known, take 27 s with 64 and 200 s with 256, and of 10,000 noisy copies among 20,000 such figures 90 % are found with
64."""


def groups(thumbnails: npt.NDArray[np.uint8]) -> Positions:
    """Group grey thumbnails, uint8 (n, 16, 18); return for each the smallest position in its group, int64 (n,)."""
    labels = np.arange(len(thumbnails))
    flat = thumbnails.reshape(-1, 16 * 18).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    contrast = np.sqrt((flat * flat).mean(axis=1))
    structured = np.flatnonzero(contrast >= MIN_CONTRAST)
    hashes = difference_hash(thumbnails[structured])
    units = flat[structured] / (contrast[structured, None] * np.float32(np.sqrt(flat.shape[1])))
    for a, b in _candidates(hashes):
        apart = labels[structured[a]] != labels[structured[b]]
        a, b = a[apart], b[apart]
        same = np.einsum("ij,ij->i", units[a], units[b]) >= MIN_CORRELATION
        labels = _join(labels, structured[a[same]], structured[b[same]])
    return labels


def difference_hash(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Hash thumbnails, uint8 (n, 16, 18), to uint64 (n,): each of 8 x 9 means is compared with its left neighbour."""
    small = thumbnails.reshape(-1, 8, 2, 9, 2).sum(axis=(2, 4), dtype=np.int32)
    bits = (small[:, :, 1:] > small[:, :, :-1]).reshape(-1, 64)
    return np.packbits(bits, axis=1).view(np.uint64).reshape(-1)


def _candidates(hashes: npt.NDArray[np.uint64]) -> Iterator[tuple[Positions, Positions]]:
    """Yield pairs of positions whose hashes differ by up to MAX_BITS, up to 65,536 at a time; pairs may repeat."""
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
                for start in range(0, len(a), 65_536):
                    yield a[start : start + 65_536], b[start : start + 65_536]


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
