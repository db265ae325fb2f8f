"""Genera and specimens: a `Genus` consists of ranges, a `Specimen` of numbers drawn from them and profile tables.

The unit of length is the cap's radius. The cap's margin lies in the plane z = 0, z points up, and the stem goes down to
z = -length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
"""Arrays of float32, with half the memory and twice the speed of numpy's default."""
Range = tuple[float, float]

STEPS = 400
"""Entries per cap radius in the cap's profile tables."""


@dataclass(frozen=True, kw_only=True)
class Genus:
    """Appearance of a genus: ranges to draw from uniformly, and colours of which one is chosen."""

    caps: tuple[tuple[str, str], ...]
    """Colours of the cap: at the centre and at the margin."""
    skin: str
    """The cap's texture, a key of `SKINS`."""
    mark: tuple[str, ...]
    """Colours of the skin's marks: warts, scales, cracks, fibrils."""
    height: Range
    """Height of the cap, in cap radii."""
    peak: Range = (0.0, 0.0)
    """Shape of the cap, from 0 (dome) to 1 (cone)."""
    umbo: Range = (0.0, 0.0)
    dip: Range = (0.0, 0.0)
    """Height of a boss (umbo) and depth of a hollow (dip) in the cap's centre, in cap radii."""
    gloss: Range = (0.0, 0.05)
    unders: tuple[str, ...]
    """Colours of gills or pores."""
    pores: bool = False
    count: Range
    """Number of gills around the cap, or of pores along its radius."""
    attach: float = 0.0
    """Distance that the gills run down the stem (above 0) or keep from it (below 0: free gills)."""
    cortina: float = 0.0
    """Probability of a cortina's threads over the gills."""
    drops: float = 0.0
    """Probability of milk drops on the gills."""
    stems: tuple[str, ...]
    bark: str
    """The stem's texture, a key of `BARKS`."""
    ink: tuple[str, ...]
    """Colours of the bark's marks."""
    width: Range
    length: Range
    """Radius and length of the stem, in cap radii."""
    club: Range = (1.0, 1.2)
    """Ratio of the stem's radius at the base to that at the top."""
    ring: float = 0.0
    volva: float = 0.0
    """Probabilities of a ring and of a volva."""


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """One mushroom: profile tables over the radius (cap) and the height (stem), its parts, and its colours."""

    genus: Genus
    top: Floats
    bottom: Floats
    stem: Floats
    length: float
    neck: float
    """Height at which the stem ends inside the cap."""
    tilt: tuple[float, float, float]
    bend: float
    ring: tuple[float, float] | None
    """Height and width of the ring, if there is one."""
    volva: bool
    cortina: bool
    drops: bool
    cap: Floats
    """Colours of the cap at its centre and margin, (2, 3); the fields below hold one colour each, (3,)."""
    mark: Floats
    under: Floats
    foot: Floats
    ink: Floats
    gloss: float
    strength: float
    count: float
    seed: int
    """Seed of this specimen's textures."""


def colour(text: str) -> Floats:
    """Convert '#rrggbb' to three numbers from 0 to 1."""
    return np.array([int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)], np.float32)


def smooth(low: float, high: float, x: Floats) -> Floats:
    """Return 0 below `low`, 1 above `high`, and an S-curve between (the reverse if low > high)."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def grow(genus: Genus, rng: np.random.Generator, like: Specimen | None = None) -> Specimen:
    """Sample a specimen's numbers; with `like`, those of a neighbour with nearly the same colours."""

    def between(limits: Range) -> float:
        return float(rng.uniform(*limits))

    def one(colours: tuple[str, ...]) -> Floats:
        return np.clip(
            colour(colours[rng.integers(len(colours))]) * rng.normal(1, 0.05) + rng.normal(0, 0.012, 3), 0, 1
        ).astype(np.float32)

    q = np.arange(int(1.3 * STEPS), dtype=np.float32) / STEPS
    inside = np.minimum(q, 1)
    height, peak, dip = between(genus.height), between(genus.peak), between(genus.dip)
    dome = (1 - inside**2.4) ** 0.62
    cone = 1.07 - np.sqrt((inside * 1.05) ** 2 + 0.006)
    top = height * (dome + peak * (np.maximum(cone, 0) - dome))
    top += between(genus.umbo) * np.exp(-((q / 0.2) ** 2)) - dip * np.exp(-((q / 0.42) ** 2))
    width, length = between(genus.width), between(genus.length)
    if genus.pores:
        bottom = -0.16 * np.abs(np.sin(np.pi * inside)) ** 0.7
    else:
        bottom = 0.35 * height * (1 - inside**2) - 0.3 * np.sin(np.pi * inside) * min(height, 0.5) * 0.5
        bottom += -genus.attach * (1 - inside) ** 2 * 1.2
    bottom = np.minimum(bottom, top - 0.05)
    down = np.linspace(0, 1, 256, dtype=np.float32)
    club = between(genus.club)
    stem = width * (
        1 + (club - 1) * (smooth(0.1, 0.95, down) - 0.55 * np.clip(down - 0.8, 0, 1) ** 2 * 25 * (club > 1.4) * 0.2)
    )
    volva = bool(rng.random() < genus.volva)
    if volva:
        stem = stem + width * (0.75 * np.exp(-(((down - 0.9) / 0.09) ** 2)) + 0.25 * smooth(0.76, 0.8, down))
    palette = genus.caps[rng.integers(len(genus.caps))]
    shade = rng.normal(1, 0.07)
    cap = np.stack([colour(c) for c in palette]) * shade + rng.normal(0, 0.015, 3)
    ring = (-length * rng.uniform(0.22, 0.4), width * rng.uniform(0.7, 1.2)) if rng.random() < genus.ring else None
    return Specimen(
        genus=genus,
        top=top.astype(np.float32),
        bottom=bottom.astype(np.float32),
        stem=stem.astype(np.float32),
        length=length,
        neck=float(bottom[: int(width * STEPS)].min()) + 0.02,
        tilt=(float(rng.normal(0, 0.1)), float(rng.normal(0, 0.1)), float(rng.normal(0, 0.03))),
        bend=float(rng.normal(0, 0.06)),
        ring=ring,
        volva=volva,
        cortina=bool(rng.random() < genus.cortina),
        drops=bool(rng.random() < genus.drops),
        cap=np.clip(cap, 0, 1).astype(np.float32)
        if like is None
        else np.clip(like.cap * shade, 0, 1).astype(np.float32),
        mark=one(genus.mark) if like is None else like.mark,
        under=one(genus.unders) if like is None else like.under,
        foot=one(genus.stems) if like is None else like.foot,
        ink=one(genus.ink) if like is None else like.ink,
        gloss=between(genus.gloss),
        strength=float(rng.uniform(0.7, 1.0)),
        count=between(genus.count),
        seed=int(rng.integers(1 << 31)),
    )
