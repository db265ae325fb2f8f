"""What grows: a `Genus` is ranges, a `Specimen` is numbers drawn from them, with its profile as tables.

Lengths are cap radii: the cap's margin lies in the plane z = 0, z points up, the stem goes down to z = -length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
"""In fact float32: half the memory and twice the speed of numpy's default."""
Range = tuple[float, float]

STEPS = 400
"""Entries per cap radius of the cap's profile tables."""


@dataclass(frozen=True, kw_only=True)
class Genus:
    """What the pictures of a genus have in common: ranges, drawn from evenly, and colours, of which one is chosen."""

    caps: tuple[tuple[str, str], ...]
    """Colours of the cap: at the centre and at the margin."""
    skin: str
    """The cap's texture, a key of `SKINS`."""
    mark: tuple[str, ...]
    """Colours of the skin's marks: warts, scales, cracks, fibrils."""
    height: Range
    """The cap's height over its radius."""
    peak: Range = (0.0, 0.0)
    """0 = a dome, 1 = a cone."""
    umbo: Range = (0.0, 0.0)
    dip: Range = (0.0, 0.0)
    """The boss or the hollow in the cap's centre, in cap radii."""
    gloss: Range = (0.0, 0.05)
    unders: tuple[str, ...]
    """Colours of gills or pores."""
    pores: bool = False
    count: Range
    """Gills around the cap, or pores along its radius."""
    attach: float = 0.0
    """How far the gills run down the stem (above 0), or stay away from it (below 0: free gills)."""
    cortina: float = 0.0
    """Chance of a cortina's threads over the gills."""
    drops: float = 0.0
    """Chance of milk drops on the gills."""
    stems: tuple[str, ...]
    bark: str
    """The stem's texture, a key of `BARKS`."""
    ink: tuple[str, ...]
    """Colours of the bark's marks."""
    width: Range
    length: Range
    """The stem's radius and length in cap radii."""
    club: Range = (1.0, 1.2)
    """Radius at the base over radius at the top."""
    ring: float = 0.0
    volva: float = 0.0
    """Chances of a ring and of a volva."""


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """One mushroom: its profile tables over the radius (cap) and over the height (stem), and what it wears."""

    genus: Genus
    top: Floats
    bottom: Floats
    stem: Floats
    length: float
    neck: float
    """Where the stem ends, inside the cap."""
    tilt: tuple[float, float, float]
    bend: float
    ring: tuple[float, float] | None
    """Height and width of the ring."""
    volva: bool
    cortina: bool
    drops: bool
    cap: Floats
    """(2, 3) colours at the centre and at the margin, and so on."""
    mark: Floats
    under: Floats
    foot: Floats
    ink: Floats
    gloss: float
    strength: float
    count: float
    seed: int
    """Where the textures of this one begin."""


def colour(text: str) -> Floats:
    """'#rrggbb' as three numbers from 0 to 1."""
    return np.array([int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)], np.float32)


def smooth(low: float, high: float, x: Floats) -> Floats:
    """0 below `low`, 1 above `high` (or the other way round where low > high), an S between them."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def grow(genus: Genus, rng: np.random.Generator, like: Specimen | None = None) -> Specimen:
    """Draw a specimen; `like` a neighbour of the same find: its colours, with small differences."""

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
