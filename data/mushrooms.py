"""Draws one mushroom: a solid of revolution, sphere-traced, then dressed with the skin, gills and bark of its genus.

`grow` turns a `Genus` (ranges) into a `Specimen` (numbers); `paint` traces it under a `View` and a `Light` and lays it on a canvas.
World units are cap radii: the cap's margin lies in the plane z = 0, z points up, the stem goes down. Rays are parallel, each point of
a surface knows its polar place on the cap or the stem, and all texture is a function of that place: so one model serves the views from
the side, from above and from below. Colours are squared before they are lit and rooted after (gamma 2, close to a camera's).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Range = tuple[float, float]
TILE = 512
STEPS = 400
"""Entries per cap radius of the profile tables."""


@dataclass(frozen=True, kw_only=True)
class Genus:
    """What the pictures of a genus have in common; each range is drawn from evenly, each tuple of colours by one choice."""

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
    crust: float = 0.0
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
    tilt: tuple[float, float, float]
    bend: float
    ring: tuple[float, float] | None
    """Height and width of the ring."""
    volva: bool
    crust: bool
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


@dataclass(frozen=True, kw_only=True)
class View:
    """Where a mushroom stands in the picture: the margin's centre (pixels), the cap's radius (pixels), elevation and roll (radians)."""

    x: float
    y: float
    radius: float
    elevation: float
    roll: float


@dataclass(frozen=True, kw_only=True)
class Light:
    """A sun in camera axes (right, up, towards the camera), its colour and the sky's."""

    sun: Floats
    sun_colour: Floats
    sky_colour: Floats


def colour(text: str) -> Floats:
    """'#rrggbb' as three numbers from 0 to 1."""
    return np.array([int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)], np.float32)


@lru_cache(maxsize=8)
def tile(low: int, high: int, slope: float) -> Floats:
    """(TILE, TILE) periodic noise, mean 0 and deviation 1, of waves between `low` and `high` per tile falling as frequency ** -slope."""
    waves = np.fft.fft2(np.random.default_rng([low, high]).standard_normal((TILE, TILE)))
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(TILE, 1 / TILE)] * 2))
    frequency[0, 0] = 1
    waves *= frequency**-slope * (frequency >= low) * (frequency <= high)
    field = np.fft.ifft2(waves).real
    return (field / field.std()).astype(np.float32)


def cloud(u: Floats, v: Floats) -> Floats:
    """Soft noise at places given in tiles."""
    return _look(tile(3, 48, 1.3), u, v)


def grain(u: Floats, v: Floats) -> Floats:
    """Noise of one scale, about 24 waves a tile."""
    return _look(tile(16, 32, 0.0), u, v)


def _look(field: Floats, u: Floats, v: Floats) -> Floats:
    column = (u * TILE).astype(np.int32) & (TILE - 1)
    row = (v * TILE).astype(np.int32) & (TILE - 1)
    return field.ravel().take(row * TILE + column)


def spots(u: Floats, v: Floats, seed: int, smallest: float, largest: float, share: float = 1.0) -> Floats:
    """How deep each place lies in a spot (1 = its middle, 0 = its rim and outside); one spot or none in each unit cell."""
    hashed = np.random.default_rng(seed).random((3, 64 * 64), np.float32)
    column, row = np.floor(u), np.floor(v)
    cell = (row.astype(np.int32) & 63) * 64 + (column.astype(np.int32) & 63)
    radius = smallest + (largest - smallest) * hashed[2].take(cell) / share
    middle = radius + (1 - 2 * radius) * hashed[:2].take(cell, axis=1)
    distance = np.hypot(u - column - middle[0], v - row - middle[1])
    return np.where(hashed[2].take(cell) < share, np.clip(1 - distance / radius, 0, 1), 0).astype(np.float32)


def _smooth(low: float, high: float, x: Floats) -> Floats:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _wave(x: Floats) -> Floats:
    return np.cos(x * np.float32(2 * np.pi))


# --- growing ---------------------------------------------------------------------------------------------------------------------


def grow(genus: Genus, rng: np.random.Generator, like: Specimen | None = None) -> Specimen:
    """Draw a specimen; `like` a neighbour of the same find: its colours, with small differences."""

    def between(limits: Range) -> float:
        return float(rng.uniform(*limits))

    def one(colours: tuple[str, ...]) -> Floats:
        return np.clip(
            colour(colours[rng.integers(len(colours))]) * rng.normal(1, 0.05) + rng.normal(0, 0.02, 3), 0, 1
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
        1 + (club - 1) * (_smooth(0.1, 0.95, down) - 0.55 * np.clip(down - 0.8, 0, 1) ** 2 * 25 * (club > 1.4) * 0.2)
    )
    volva = bool(rng.random() < genus.volva)
    if volva:
        stem = stem + width * (0.75 * np.exp(-(((down - 0.9) / 0.09) ** 2)) + 0.25 * _smooth(0.76, 0.8, down))
    palette = genus.caps[rng.integers(len(genus.caps))]
    shade = rng.normal(1, 0.07)
    cap = np.stack([colour(c) for c in palette]) * shade + rng.normal(0, 0.025, 3)
    ring = (-length * rng.uniform(0.22, 0.4), width * rng.uniform(0.7, 1.2)) if rng.random() < genus.ring else None
    return Specimen(
        genus=genus,
        top=top.astype(np.float32),
        bottom=bottom.astype(np.float32),
        stem=stem.astype(np.float32),
        length=length,
        tilt=(float(rng.normal(0, 0.1)), float(rng.normal(0, 0.1)), float(rng.normal(0, 0.07))),
        bend=float(rng.normal(0, 0.06)),
        ring=ring,
        volva=volva,
        crust=bool(rng.random() < genus.crust),
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


# --- tracing ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Solid:
    """The specimen's tables made ready for distances: heights, and the factors that keep a step from overshooting on a slope."""

    specimen: Specimen
    top_slope: Floats
    bottom_slope: Floats
    top_step: Floats
    bottom_step: Floats

    @classmethod
    def of(cls, specimen: Specimen) -> Solid:
        top, bottom = (np.gradient(table).astype(np.float32) * STEPS for table in (specimen.top, specimen.bottom))
        return cls(
            specimen=specimen, top_slope=top, bottom_slope=bottom,
            top_step=1 / np.sqrt(1 + np.minimum(top**2, 20)), bottom_step=1 / np.sqrt(1 + np.minimum(bottom**2, 20)),
        )  # fmt: skip

    def distances(self, x: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Lower bounds of the distances to the cap's top, its underside, the stem and the ring."""
        s = self.specimen
        square = y * y
        flat = z - s.tilt[0] * x - s.tilt[1] * y - s.tilt[2] * (x * x - square)
        rho = np.sqrt(x * x + square)
        i = (rho * STEPS).astype(np.int32)
        rim = rho - 1
        above = (flat - s.top.take(i, mode="clip")) * self.top_step.take(i, mode="clip")
        below = (s.bottom.take(i, mode="clip") - flat) * self.bottom_step.take(i, mode="clip")
        lean = x - s.bend * z * z
        radius = np.sqrt(lean * lean + square)
        outside = radius - s.stem.take((z * (-255 / s.length)).astype(np.int32), mode="clip")
        stem = np.maximum(np.maximum(outside * 0.9, z - s.bottom[0] - 0.03), -s.length - z)
        ring = stem
        if s.ring is not None:
            ring = np.maximum(np.abs(z - s.ring[0] + 0.9 * outside) * 0.7 - 0.025, outside - s.ring[1])
        return np.maximum(above, rim), np.maximum(below, rim), stem, ring


@dataclass(frozen=True, kw_only=True)
class Hits:
    """The rays that met the specimen: place in the patch, point, and which part: 0 top, 1 underside, 2 stem, 3 ring."""

    at: NDArray[np.int64]
    x: Floats
    y: Floats
    z: Floats
    part: NDArray[np.int64]


def _march(
    solid: Solid, x: Floats, s: Floats, t: Floats, far: float, view: tuple[np.float32, np.float32], steps: int
) -> tuple[Floats, Floats]:
    """Walk rays from depth `t` towards the solid: (depths, distances left), for a solid that ends before depth `far`."""
    sine, cosine = view
    depth, left = t.copy(), np.full_like(t, 9)
    at = np.arange(t.size)
    for step in range(steps):
        above, below, stem, ring = solid.distances(x, s * sine + t * cosine, s * cosine - t * sine)
        distance = np.minimum(np.minimum(np.maximum(above, below), stem), ring)
        t = t + distance * 0.92
        if step % 3 == 2 or step == steps - 1:
            depth[at], left[at] = t, distance
            stay = (distance > 0.005) & (t < far)
            at, x, s, t = at[stay], x[stay], s[stay], t[stay]
    return depth, left


def trace(solid: Solid, across: Floats, up: Floats, elevation: float) -> Hits:
    """Sphere tracing (Hart 1996) of parallel rays through the points (across, up) of the screen, in cap radii.

    Every fourth ray of every fourth row goes first; the others start a little before the nearest of their neighbours.
    """
    view = sine, cosine = np.float32(np.sin(elevation)), np.float32(np.cos(elevation))
    far = float(abs(sine) * (1.6 + 0.6 * solid.specimen.length) + cosine * 1.2) + 0.3
    coarse_x, coarse_s = across[::4, ::4], up[::4, ::4]
    depth, left = _march(
        solid, coarse_x.ravel(), coarse_s.ravel(), np.full(coarse_x.size, -far, np.float32), far, view, 30
    )
    start = np.pad(np.where(left < 0.1, depth, far).reshape(coarse_x.shape), 1, constant_values=far)
    start = np.minimum(np.minimum(start[:-2], start[1:-1]), start[2:])
    start = np.minimum(np.minimum(start[:, :-2], start[:, 1:-1]), start[:, 2:])
    start = start.repeat(4, 0).repeat(4, 1)[: across.shape[0], : across.shape[1]].ravel()
    at = np.flatnonzero(start < far)
    x, s = across.ravel()[at], up.ravel()[at]
    t, left = _march(solid, x, s, start[at] - np.float32(0.1), far, view, 15)
    met = left < 0.03
    at, x, s, t = at[met], x[met], s[met], t[met]
    y, z = s * sine + t * cosine, s * cosine - t * sine
    above, below, stem, ring = solid.distances(x, y, z)
    part = np.argmin(np.stack([np.maximum(above, below), stem, ring]), 0)
    part = np.where(part == 0, (below > above) & (np.sqrt(x * x + y * y) < 0.985), part + 1)
    return Hits(at=at, x=x, y=y, z=z, part=part)


# --- skins of the cap --------------------------------------------------------------------------------------------------------------
# Each takes (q, turn, u, v, specimen): distance from the apex in cap radii, angle in turns, flat coordinates along the skin, and gives
# how much of the mark's colour to mix in (0-1), the relief (in cap radii, roughly), and a factor on the brightness.

Dress = tuple[Floats, Floats, Floats]
Skin = Callable[[Floats, Floats, Floats, Floats, Specimen], Dress]


def _scales(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Agaricus: rings of small pressed scales, darker and closer towards the centre."""
    rows = q * 8.5 + 0.35 * grain(u * 0.06, v * 0.06)
    ring = np.floor(rows)
    around = turn * np.round(5 + 6.5 * ring) + ring * 0.37 + 0.12 * grain(v * 0.1, u * 0.1)
    along, across = rows - ring, np.abs(around - np.floor(around) - 0.5)
    scale = _smooth(0.0, 0.25, along * 0.8 - across * 1.1 + 0.22)
    fade = 1 - 0.35 * _smooth(0.5, 1.0, q)
    return scale * fade * s.strength, scale * 0.03, 1 + 0.05 * cloud(u * 0.2, v * 0.2)


def _warts(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Amanita: pale warts, raised, larger in the middle; a finely lined margin."""
    depth = spots(u * 4.2 + 9, v * 4.2 + 9, s.seed, 0.24, 0.46, 0.9)
    depth = np.maximum(depth, spots(u * 6.5, v * 6.5, s.seed + 1, 0.15, 0.4, 0.35))
    wart = _smooth(0.08, 0.3, depth + 0.10 * grain(u * 0.12, v * 0.12))
    lines = _smooth(0.84, 0.98, q) * _wave(turn * 56)
    return wart * min(1.0, s.strength * 1.15), wart * 0.06 + 0.008 * lines, 1 + 0.05 * lines


def _suede(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Boletus: velvet, mottled and cracked into small fields."""
    bumps = grain(u * 0.11 + 0.2, v * 0.11)
    crack = 1 - _smooth(0.05, 0.28, np.abs(grain(u * 0.085, v * 0.085 + 0.5)))
    crack *= _smooth(-0.6, 0.6, cloud(u * 0.1, v * 0.1) + 0.6)
    return crack * 0.75 * s.strength, bumps * 0.008 - crack * 0.03, 1 + 0.11 * bumps


def _fibrils(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Cortinarius: fine dark fibrils from centre to margin, and a torn web at the margin."""
    thread = grain(turn * 2 + 0.03 * cloud(u * 0.1, v * 0.1), q * 0.07)
    dark = _smooth(0.1, 1.2, thread) * _smooth(0.05, 0.35, q)
    return dark * 0.8 * s.strength, thread * 0.012, 1 + 0.07 * thread


def _streaks(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Entoloma: dark boss, a cap that dries in pale wedges, silky."""
    wedge = _wave(turn * 17 + 0.35 * cloud(u * 0.07, v * 0.07)) + 0.5 * grain(turn * 0.5, q * 0.01)
    pale = _smooth(0.1, 0.9, wedge) * _smooth(0.18, 0.4, q) * (1 - 0.6 * _smooth(0.8, 1.0, q))
    return pale * 0.85 * s.strength, wedge * 0.01, 1 - 0.2 * (1 - _smooth(0.05, 0.3, q))


def _wax(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Hygrocybe: wet wax, its margin lined by the gills that shine through."""
    line = _wave(turn * np.round(s.count)) * _smooth(0.35, 0.8, q)
    return _smooth(0.1, 0.9, line) * 0.45 * s.strength, line * 0.01, 1 + 0.04 * cloud(u * 0.1, v * 0.1)


def _zones(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Lactarius: darker zones around the centre, broken into watery spots."""
    zone = _wave(q * (4.5 + (s.seed % 16) / 8) + 0.10 * cloud(u * 0.12, v * 0.12))
    spot = grain(u * 0.075, v * 0.075)
    dark = _smooth(-0.1, 0.9, zone + 0.3 * spot)
    return dark * 0.85 * s.strength, -dark * 0.012 + spot * 0.003, 1 + 0.03 * spot


def _chalk(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Russula: smooth as chalk, faded in clouds, the margin grooved and knobbed, here and there gnawed by a slug."""
    groove = _wave(turn * 42) * _smooth(0.76, 0.93, q)
    bite = _smooth(0.25, 0.5, spots(u * 1.7 + 3, v * 1.7 + 3, s.seed, 0.1, 0.24, 0.22) + 0.08 * grain(u * 0.1, v * 0.1))
    pale = 0.5 * _smooth(0.3, 2.2, cloud(u * 0.09 + 0.3, v * 0.09))
    return np.maximum(bite, pale), groove * 0.022 - bite * 0.05, 1 + 0.10 * groove


def _slime(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Suillus: streaks and clots under a coat of slime that drips at the margin."""
    streak = grain(turn * 0.6 + 0.05 * cloud(u * 0.1, v * 0.1), q * 0.035) + 0.6 * cloud(u * 0.11, v * 0.11)
    lump = cloud(u * 0.16 + 0.7, v * 0.16)
    return _smooth(0.2, 1.8, streak) * 0.75 * s.strength, lump * 0.03, 1 + 0.06 * lump


SKINS: dict[str, Skin] = {
    "scales": _scales, "warts": _warts, "suede": _suede, "fibrils": _fibrils, "streaks": _streaks,
    "wax": _wax, "zones": _zones, "chalk": _chalk, "slime": _slime,
}  # fmt: skip


# --- barks of the stem -------------------------------------------------------------------------------------------------------------
# Each takes (turn, z, specimen): angle in turns and height in cap radii.

Bark = Callable[[Floats, Floats, Specimen], Dress]


def _bands(turn: Floats, z: Floats, s: Specimen) -> Dress:
    """Agaricus, Amanita: torn bands below the ring, smooth above it."""
    band = _wave(z * 4.5 + 0.25 * grain(turn * 0.25, z * 0.05))
    below = 1.0 if s.ring is None else _smooth(0, 0.1, s.ring[0] - z)
    return _smooth(0.35, 0.9, band) * 0.5 * below * s.strength, band * 0.02 * below, np.ones_like(z)


def _net(turn: Floats, z: Floats, s: Specimen) -> Dress:
    """Boletus: a raised net, finest at the top."""
    a, b = turn * 9 + z * 2.4, turn * 9 - z * 2.4
    line = np.maximum(np.abs(_wave(a * 0.5)), np.abs(_wave(b * 0.5)))
    net = _smooth(0.86, 0.97, line) * _smooth(-s.length, -0.4 * s.length, z + 0.1)
    return net * 0.9 * s.strength, net * 0.03, np.ones_like(z)


def _dots(turn: Floats, z: Floats, s: Specimen) -> Dress:
    """Suillus: dark glandular dots."""
    dot = _smooth(0.1, 0.4, spots(turn * 11, z * 5.5, s.seed, 0.22, 0.44, 0.85))
    return dot * 0.95 * s.strength, dot * 0.015, np.ones_like(z)


def _threads(turn: Floats, z: Floats, s: Specimen) -> Dress:
    """Cortinarius: silky lengthwise threads and a rusty zone where the cortina was torn."""
    thread = grain(turn * 0.5, z * 0.02)
    zone = np.exp(-(((z / s.length + 0.33 + 0.02 * thread) / 0.09) ** 2))
    dark = np.maximum(_smooth(0.3, 1.5, thread) * 0.4, zone * _smooth(-1.2, 0.6, thread))
    return dark * s.strength, thread * 0.012 + zone * 0.03, np.ones_like(z)


def _twist(turn: Floats, z: Floats, s: Specimen) -> Dress:
    """Entoloma: silvery lines that turn about the stem."""
    line = _wave(turn * 9 + z * 0.5 + 0.2 * grain(turn * 0.2, z * 0.05))
    return _smooth(0.2, 1, line) * 0.6 * s.strength, line * 0.01, np.ones_like(z)


def _plain(turn: Floats, z: Floats, s: Specimen) -> Dress:
    """Hygrocybe: waxy, paler or yellower towards the base."""
    return _smooth(-0.5, -1, z / s.length) * 0.8, np.zeros_like(z), np.ones_like(z)


def _pits(turn: Floats, z: Floats, s: Specimen) -> Dress:
    """Lactarius: shallow darker pits."""
    pit = _smooth(0.1, 0.5, spots(turn * 6, z * 3.0, s.seed, 0.2, 0.46, 0.5))
    return pit * 0.6 * s.strength, -pit * 0.02, 1 + 0.04 * cloud(turn * 0.3, z * 0.1)


def _brittle(turn: Floats, z: Floats, s: Specimen) -> Dress:
    """Russula: chalk white with fine wrinkles."""
    wrinkle = grain(turn * 0.35, z * 0.045)
    return _smooth(1.2, 2.5, wrinkle) * 0.25, wrinkle * 0.006, 1 + 0.03 * wrinkle


BARKS: dict[str, Bark] = {
    "bands": _bands, "net": _net, "dots": _dots, "threads": _threads, "twist": _twist, "plain": _plain, "pits": _pits,
    "brittle": _brittle,
}  # fmt: skip


# --- undersides --------------------------------------------------------------------------------------------------------------------


def _gills(q: Floats, turn: Floats, s: Specimen) -> tuple[Floats, Floats]:
    """(brightness, relief) of gills: every second one is short and starts half-way to the margin."""
    whole = np.float32(np.round(s.count))
    phase = turn * whole + 0.03 * grain(turn * 0.2, q * 0.05)
    long = np.abs(phase - np.floor(phase) - 0.5) * 2
    phase = phase + 0.5
    short = np.abs(phase - np.floor(phase) - 0.5) * 2 + _smooth(0.75, 0.45, q)
    edge = 1 - np.minimum(long, short) / np.where(q > 0.6, 0.5, 1.0)
    lit = _smooth(0.05, 0.75, edge)
    return 0.42 + 0.68 * lit, lit * 0.05


def _pores(x: Floats, y: Floats, s: Specimen) -> tuple[Floats, Floats]:
    """(brightness, relief) of pores: dark mouths, close together."""
    u, v = x * s.count, y * s.count
    odd = np.floor(v) % 2 * 0.5
    mouth = spots(u + odd, v, s.seed, 0.33, 0.47)
    hole = _smooth(0.02, 0.5, mouth)
    return 1.06 - 0.58 * hole, -hole * 0.05


# --- dressing and lighting -----------------------------------------------------------------------------------------------------------


def _mix(a: Floats, b: Floats, share: Floats) -> Floats:
    return a + (b - a) * share[:, None]


def _dress(hits: Hits, solid: Solid) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """(colour, normal, relief, gloss, shelter) of every hit; shelter is the share of the sky that it sees."""
    s = solid.specimen
    n = hits.at.size
    paint, normal = np.empty((n, 3), np.float32), np.empty((n, 3), np.float32)
    relief, gloss, shelter = np.zeros(n, np.float32), np.zeros(n, np.float32), np.ones(n, np.float32)
    offset = np.float32(s.seed % 977 / 977)

    on = np.flatnonzero(hits.part <= 1)
    x, y, under = hits.x[on], hits.y[on], hits.part[on] == 1
    rho = np.sqrt(x * x + y * y) + 1e-6
    turn = np.arctan2(y, x) / np.float32(2 * np.pi) + offset
    i = np.minimum(rho * STEPS, STEPS - 1).astype(np.int32)
    slope = np.where(under, solid.bottom_slope.take(i), solid.top_slope.take(i))
    slope = np.clip(slope, -5, 5)
    facing = np.stack([-slope * x / rho - s.tilt[0], -slope * y / rho - s.tilt[1], np.ones_like(x)], 1)
    facing /= np.linalg.norm(facing, axis=1, keepdims=True)
    normal[on] = np.where(under[:, None], -facing, facing)

    t = np.flatnonzero(~under)
    arc = np.cumsum(np.sqrt(1 + np.minimum(solid.top_slope, 3) ** 2)).astype(np.float32) / STEPS
    stretch = arc.take(i[t]) / rho[t]
    u, v = x[t] * stretch + offset, y[t] * stretch + offset * 7
    share, height, bright = SKINS[s.genus.skin](rho[t], turn[t], u, v, s)
    blend = _smooth(0.0, 1.0, rho[t] + 0.05 * cloud(u * 0.1, v * 0.1))
    paint[on[t]] = _mix(_mix(s.cap[0], s.cap[1], blend), s.mark, np.clip(share, 0, 1)) * bright[:, None]
    relief[on[t]], gloss[on[t]] = height, s.gloss * (1 - 0.6 * share)

    b = np.flatnonzero(under)
    q = rho[b]
    bright, height = _pores(x[b], y[b], s) if s.genus.pores else _gills(q, turn[b], s)
    colours = s.under * bright[:, None]
    colours = _mix(colours, s.cap[1], _smooth(0.965, 0.98, q))
    if s.crust:
        web = _smooth(0.5, 1.3, grain(turn[b] * 1.1 + 0.1 * q, q * 0.05)) * _smooth(0.3, 0.9, q)
        colours = _mix(colours, s.ink, web * 0.8)
    if s.drops:
        drop = _smooth(0.0, 0.25, spots(x[b] * 4 + 5, y[b] * 4 + 5, s.seed, 0.16, 0.34, 0.45))
        colours = _mix(colours, np.float32([0.97, 0.96, 0.9]), drop)
        gloss[on[b]], height = drop * 0.9, np.maximum(height, drop * 0.12)
    paint[on[b]], relief[on[b]] = colours, height
    shelter[on[b]] = 0.62 + 0.38 * _smooth(0.1, 0.9, q)

    on = np.flatnonzero(hits.part >= 2)
    x, y, z, ring = hits.x[on] - s.bend * hits.z[on] ** 2, hits.y[on], hits.z[on], hits.part[on] == 3
    radius = np.sqrt(x * x + y * y) + 1e-6
    turn = np.arctan2(y, x) / np.float32(2 * np.pi) + offset
    share, height, bright = BARKS[s.genus.bark](turn, z, s)
    colours = _mix(np.broadcast_to(s.foot, (on.size, 3)), s.ink, np.clip(share, 0, 1)) * bright[:, None]
    if s.volva:
        cup = _smooth(-0.76, -0.8, z / s.length + 0.03 * grain(turn * 0.3, z * 0.05))
        colours = _mix(colours, np.float32([0.93, 0.91, 0.84]), cup)
        height = height * (1 - cup) + cup * (0.02 * grain(turn * 0.3, z * 0.1))
    pleat = _wave(turn * 18)
    colours = np.where(ring[:, None], _mix(s.foot, s.ink, 0.15 + 0.15 * pleat), colours)
    colours = _mix(
        colours, np.float32([0.3, 0.24, 0.17]), 0.6 * _smooth(-0.86, -1.02, z / s.length + 0.05 * cloud(turn, z * 0.3))
    )
    paint[on], relief[on] = colours, np.where(ring, 0.02 * pleat, height)
    gloss[on] = s.gloss * 0.4
    facing = np.stack([x / radius, y / radius, np.where(ring, 0.6, 0.05)], 1)
    normal[on] = facing / np.linalg.norm(facing, axis=1, keepdims=True)
    shade = 0.45 + 0.55 * _smooth(0.05, 0.75, -z)
    shelter[on] = np.where(ring, np.maximum(shade, 0.7), shade)
    if s.ring is not None:
        drop = s.ring[0] - z
        shelter[on] *= np.where(ring, 1, 1 - 0.35 * _smooth(0.3, 0.0, drop) * (drop > 0))
    return paint, normal, relief, gloss, shelter


def paint(canvas: Floats, specimen: Specimen, view: View, light: Light) -> None:
    """Draw the specimen onto `canvas` (H, W, 3; colours squared), in place."""
    solid = Solid.of(specimen)
    tall, wide = canvas.shape[:2]
    sine, cosine = np.sin(view.elevation), np.cos(view.elevation)
    below = specimen.length * cosine + abs(sine) * 1.0 + 0.3
    above = float(specimen.top.max()) * cosine + abs(sine) + 0.25 + (specimen.length * -sine * 0 if sine > 0 else 0)
    swing = abs(np.sin(view.roll)) * (below + above)
    left, right = int(view.x - (1.1 + swing) * view.radius), int(view.x + (1.1 + swing) * view.radius)
    high, low = (
        int(view.y - (above + abs(np.sin(view.roll))) * view.radius),
        int(view.y + (below + abs(np.sin(view.roll))) * view.radius),
    )
    left, right, high, low = max(left, 0), min(right, wide), max(high, 0), min(low, tall)
    if left >= right or high >= low:
        return
    row, column = np.mgrid[high:low, left:right].astype(np.float32)
    a, b = (column + 0.5 - view.x) / view.radius, (view.y - row - 0.5) / view.radius
    across = (a * np.cos(view.roll) + b * np.sin(view.roll)).astype(np.float32)
    up = (b * np.cos(view.roll) - a * np.sin(view.roll)).astype(np.float32)
    hits = trace(solid, across, up, view.elevation)
    colours, normal, relief, gloss, shelter = _dress(hits, solid)

    # World normals in camera axes (right, up, towards the camera), rolled with the specimen.
    right_ = normal[:, 0]
    up_ = normal[:, 1] * sine + normal[:, 2] * cosine
    towards = -normal[:, 1] * cosine + normal[:, 2] * sine
    camera = np.stack(
        [
            right_ * np.cos(view.roll) - up_ * np.sin(view.roll),
            right_ * np.sin(view.roll) + up_ * np.cos(view.roll),
            towards,
        ],
        1,
    )
    camera = camera.astype(np.float32)

    # Relief lights the slopes that face the sun: the difference of height one step along the light.
    flat = np.zeros((low - high, right - left), np.float32)
    flat.ravel()[hits.at] = relief
    kind = np.full(flat.shape, 9, np.int8)
    kind.ravel()[hits.at] = hits.part
    step = max(1, round(view.radius / 90))
    dx, dy = int(np.sign(light.sun[0])) * step, -step
    behind = np.roll(flat, (dy, dx), (0, 1))
    same = np.roll(kind, (dy, dx), (0, 1)) == kind
    slope = np.where(same, np.roll(flat, (-dy, -dx), (0, 1)) - flat, 0).ravel()[hits.at]
    del behind
    lean = np.clip(-slope * view.radius * 0.55 / step, -0.45, 0.45)

    facing = np.clip((camera @ light.sun + 0.2) / 1.2 + lean, 0, 1.3)
    sky = 0.55 + 0.45 * camera[:, 1]
    lit = (
        facing[:, None] * shelter[:, None] * light.sun_colour
        + ((0.35 + 0.65 * sky) * shelter * (1 + lean))[:, None] * light.sky_colour
    )
    half = light.sun + np.float32([0, 0, 1])
    half = half / np.linalg.norm(half)
    shine = np.clip(camera @ half + 0.12 * lean, 0, 1)
    shine = gloss * (shine**40 * 1.1 + shine**9 * 0.18)
    canvas[high:low, left:right].reshape(-1, 3)  # a view only where the patch is whole rows
    patch = canvas[high:low, left:right]
    inked = patch.reshape(-1, 3).copy()
    inked[hits.at] = colours * colours * lit + shine[:, None] * light.sun_colour
    patch[...] = inked.reshape(patch.shape)
