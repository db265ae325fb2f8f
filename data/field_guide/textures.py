"""The textures of a mushroom as functions of a point on its surface: cap skins, stem barks, gills and pores.

They are all made of two kinds of noise, scattered spots, and cosines, and vary with a specimen's `seed` and `strength`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from data.field_guide.specimens import Floats, Specimen, smooth

TILE = 512
"""Side of the noise tables, in entries."""


@lru_cache(maxsize=8)
def tile(low: int, high: int, slope: float) -> Floats:
    """Return periodic noise (TILE, TILE), deviation 1: `low` to `high` waves per tile, amplitude ~ f ** -slope."""
    waves = np.fft.fft2(np.random.default_rng([low, high]).standard_normal((TILE, TILE)))
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(TILE, 1 / TILE)] * 2))
    frequency[0, 0] = 1
    waves *= frequency**-slope * (frequency >= low) * (frequency <= high)
    field = np.fft.ifft2(waves).real
    return (field / field.std()).astype(np.float32)


def cloud(u: Floats, v: Floats) -> Floats:
    """Return soft noise at points whose unit is a tile."""
    return _sample(tile(3, 48, 1.3), u, v)


def grain(u: Floats, v: Floats) -> Floats:
    """Return noise of one scale, about 24 waves per tile."""
    return _sample(tile(16, 32, 0.0), u, v)


def _sample(field: Floats, u: Floats, v: Floats) -> Floats:
    """Sample a noise table bilinearly, so that slowly changing coordinates leave no steps."""
    x, y = u * TILE, v * TILE
    left, top = np.floor(x), np.floor(y)
    x, y = x - left, y - top
    column, row = left.astype(np.int32) & (TILE - 1), (top.astype(np.int32) & (TILE - 1)) * TILE
    right, below = (column + 1) & (TILE - 1), (row + TILE) & (TILE * TILE - 1)
    flat = field.ravel()
    above = flat.take(row + column)
    above += (flat.take(row + right) - above) * x
    under = flat.take(below + column)
    under += (flat.take(below + right) - under) * x
    return above + (under - above) * y


def spots(u: Floats, v: Floats, seed: int, smallest: float, largest: float, share: float = 1.0) -> Floats:
    """Return each point's depth in a spot (1 = centre, 0 = rim and outside); a unit cell has up to one spot."""
    hashed = np.random.default_rng(seed).random((3, 64 * 64), np.float32)
    column, row = np.floor(u), np.floor(v)
    cell = (row.astype(np.int32) & 63) * 64 + (column.astype(np.int32) & 63)
    radius = smallest + (largest - smallest) * hashed[2].take(cell) / share
    middle = radius + (1 - 2 * radius) * hashed[:2].take(cell, axis=1)
    distance = np.hypot(u - column - middle[0], v - row - middle[1])
    return np.where(hashed[2].take(cell) < share, np.clip(1 - distance / radius, 0, 1), 0).astype(np.float32)


def wave(x: Floats) -> Floats:
    """Return the cosine of an angle in turns."""
    return np.cos(x * np.float32(2 * np.pi))


# Skins take (q, turn, u, v, specimen): distance from the apex in cap radii, angle in turns, and flat coordinates along
# the skin. They return the share of the mark's colour to mix in, the relief in cap radii, and a factor of brightness.

Dress = tuple[Floats, Floats, Floats]
Skin = Callable[[Floats, Floats, Floats, Floats, Specimen], Dress]


def _scales(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Agaricus: rings of small flat scales, darker and denser towards the centre."""
    rows = q * 8.5 + 0.35 * grain(u * 0.06, v * 0.06)
    ring = np.floor(rows)
    around = turn * np.round(5 + 6.5 * ring) + ring * 0.37 + 0.12 * grain(v * 0.1, u * 0.1)
    along, across = rows - ring, np.abs(around - np.floor(around) - 0.5)
    scale = smooth(0.0, 0.25, along * 0.8 - across * 1.1 + 0.22)
    fade = 1 - 0.35 * smooth(0.5, 1.0, q)
    return scale * fade * s.strength, scale * 0.03, 1 + 0.05 * cloud(u * 0.2, v * 0.2)


def _warts(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Amanita: pale warts, raised, larger in the middle; a finely lined margin."""
    depth = spots(u * 4.2 + 9, v * 4.2 + 9, s.seed, 0.24, 0.46, 0.9)
    depth = np.maximum(depth, spots(u * 6.5, v * 6.5, s.seed + 1, 0.15, 0.4, 0.35))
    wart = smooth(0.08, 0.3, depth + 0.10 * grain(u * 0.12, v * 0.12))
    lines = smooth(0.84, 0.98, q) * wave(turn * 56)
    return wart * min(1.0, s.strength * 1.15), wart * 0.06 + 0.008 * lines, 1 + 0.05 * lines


def _suede(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Boletus: mottled velvet, cracked into small fields."""
    bumps = grain(u * 0.2 + 0.2, v * 0.2)
    crack = 1 - smooth(0.08, 0.34, np.abs(grain(u * 0.13, v * 0.13 + 0.5)))
    crack *= smooth(-0.5, 0.7, cloud(u * 0.1, v * 0.1) + 0.3)
    return crack * 0.4 * s.strength, bumps * 0.005 - crack * 0.01, 1 + 0.08 * bumps


def _fibrils(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Cortinarius: fine dark fibrils from centre to margin, and a torn web at the margin."""
    thread = grain(turn * 2 + 0.012 * cloud(u * 0.1, v * 0.1), q * 0.05)
    dark = smooth(0.1, 1.2, thread) * smooth(0.05, 0.35, q)
    return dark * 0.75 * s.strength, thread * 0.005, 1 + 0.07 * thread


def _streaks(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Entoloma: a dark boss on a silky cap that dries in pale wedges."""
    wedge = wave(turn * 17 + 0.35 * cloud(u * 0.07, v * 0.07)) + 0.5 * grain(turn * 0.5, q * 0.01)
    pale = smooth(0.1, 0.9, wedge) * smooth(0.18, 0.4, q) * (1 - 0.6 * smooth(0.8, 1.0, q))
    return pale * 0.85 * s.strength, wedge * 0.01, 1 - 0.2 * (1 - smooth(0.05, 0.3, q))


def _wax(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Hygrocybe: wet wax, with the gills showing through as lines at the margin."""
    line = wave(turn * np.round(s.count)) * smooth(0.35, 0.8, q)
    return smooth(0.1, 0.9, line) * 0.45 * s.strength, line * 0.01, 1 + 0.04 * cloud(u * 0.1, v * 0.1)


def _zones(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Lactarius: darker zones around the centre, broken into watery spots."""
    zone = wave(q * (4.5 + (s.seed % 16) / 8) + 0.14 * cloud(u * 0.1, v * 0.1))
    spot = grain(u * 0.075, v * 0.075)
    dark = smooth(-0.5, 1.2, zone + 0.35 * spot)
    return dark * 0.85 * s.strength, -dark * 0.008 + spot * 0.003, 1 + 0.03 * spot


def _chalk(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Russula: smooth as chalk with faded patches, a grooved and knobbed margin, and a few slug bites."""
    groove = wave(turn * 42) * smooth(0.76, 0.93, q)
    bite = smooth(0.25, 0.5, spots(u * 1.7 + 3, v * 1.7 + 3, s.seed, 0.1, 0.24, 0.22) + 0.08 * grain(u * 0.1, v * 0.1))
    pale = 0.5 * smooth(0.3, 2.2, cloud(u * 0.09 + 0.3, v * 0.09))
    return np.maximum(bite, pale), groove * 0.022 - bite * 0.05, 1 + 0.10 * groove


def _slime(q: Floats, turn: Floats, u: Floats, v: Floats, s: Specimen) -> Dress:
    """Suillus: streaks and lumps under a coat of slime."""
    streak = grain(turn + 0.01 * cloud(u * 0.1, v * 0.1), q * 0.03) + 0.4 * cloud(u * 0.15, v * 0.15)
    lump = cloud(u * 0.12 + 0.7, v * 0.12)
    return smooth(-0.2, 2.2, streak) * 0.6 * s.strength, lump * 0.012, 1 + 0.04 * lump


SKINS: dict[str, Skin] = {
    "scales": _scales, "warts": _warts, "suede": _suede, "fibrils": _fibrils, "streaks": _streaks,
    "wax": _wax, "zones": _zones, "chalk": _chalk, "slime": _slime,
}  # fmt: skip


# Barks take (turn, z, specimen): angle in turns and height in cap radii.

Bark = Callable[[Floats, Floats, Specimen], Dress]


def _bands(turn: Floats, z: Floats, s: Specimen) -> Dress:
    """Agaricus, Amanita: torn bands below the ring, smooth above it."""
    band = wave(z * 5.5 + 0.3 * grain(turn * 0.25, z * 0.08)) + 0.4 * grain(turn * 0.5, z * 0.2)
    below = 1.0 if s.ring is None else smooth(0, 0.1, s.ring[0] - z)
    return smooth(0.2, 1.2, band) * 0.45 * below * s.strength, band * 0.008 * below, np.ones_like(z)


def _net(turn: Floats, z: Floats, s: Specimen) -> Dress:
    """Boletus: a raised net, finest at the top."""
    a, b = turn * 13 + z * 2.6, turn * 13 - z * 2.6
    line = np.maximum(np.abs(wave(a * 0.5)), np.abs(wave(b * 0.5)))
    net = smooth(0.86, 0.97, line) * smooth(-s.length, -0.4 * s.length, z + 0.1)
    return net * 0.9 * s.strength, net * 0.03, np.ones_like(z)


def _dots(turn: Floats, z: Floats, s: Specimen) -> Dress:
    """Suillus: dark glandular dots."""
    dot = smooth(0.1, 0.4, spots(turn * 11, z * 5.5, s.seed, 0.22, 0.44, 0.85))
    return dot * 0.95 * s.strength, dot * 0.015, np.ones_like(z)


def _threads(turn: Floats, z: Floats, s: Specimen) -> Dress:
    """Cortinarius: silky lengthwise threads, and a rusty zone where the cortina was torn."""
    thread = grain(turn * 0.5, z * 0.02)
    zone = np.exp(-(((z / s.length + 0.33 + 0.02 * thread) / 0.09) ** 2))
    dark = np.maximum(smooth(0.3, 1.8, thread) * 0.3, zone * smooth(-1.2, 0.6, thread))
    return dark * s.strength, thread * 0.007 + zone * 0.02, np.ones_like(z)


def _twist(turn: Floats, z: Floats, s: Specimen) -> Dress:
    """Entoloma: silvery lines that twist around the stem."""
    line = wave(turn * 9 + z * 0.5 + 0.2 * grain(turn * 0.2, z * 0.05))
    return smooth(0.0, 1, line) * 0.4 * s.strength, line * 0.006, np.ones_like(z)


def _plain(turn: Floats, z: Floats, s: Specimen) -> Dress:
    """Hygrocybe: waxy, paler or yellower towards the base."""
    return smooth(-0.5, -1, z / s.length) * 0.8, np.zeros_like(z), np.ones_like(z)


def _pits(turn: Floats, z: Floats, s: Specimen) -> Dress:
    """Lactarius: shallow darker pits."""
    pit = smooth(0.0, 0.6, spots(turn * 8, z * 4.0, s.seed, 0.2, 0.46, 0.55))
    return pit * 0.5 * s.strength, -pit * 0.006, 1 + 0.04 * cloud(turn * 0.3, z * 0.1)


def _brittle(turn: Floats, z: Floats, s: Specimen) -> Dress:
    """Russula: chalk white with fine wrinkles."""
    wrinkle = grain(turn * 0.35, z * 0.045)
    return smooth(1.2, 2.5, wrinkle) * 0.25, wrinkle * 0.006, 1 + 0.03 * wrinkle


BARKS: dict[str, Bark] = {
    "bands": _bands, "net": _net, "dots": _dots, "threads": _threads, "twist": _twist, "plain": _plain, "pits": _pits,
    "brittle": _brittle,
}  # fmt: skip


def gills(q: Floats, turn: Floats, s: Specimen) -> tuple[Floats, Floats]:
    """Return (brightness, relief) of gills; every second one is short and starts half-way to the margin."""
    whole = np.float32(np.round(s.count))
    phase = turn * whole + 0.03 * grain(turn * 0.2, q * 0.05)
    long = np.abs(phase - np.floor(phase) - 0.5) * 2
    phase = phase + 0.5
    short = np.abs(phase - np.floor(phase) - 0.5) * 2 + smooth(0.75, 0.45, q)
    edge = 1 - np.minimum(long, short) / np.where(q > 0.6, 0.5, 1.0)
    lit = smooth(0.05, 0.75, edge)
    return 0.6 + 0.48 * lit, lit * 0.04


def pores(x: Floats, y: Floats, s: Specimen) -> tuple[Floats, Floats]:
    """Return (brightness, relief) of pores: dark mouths, close together."""
    u, v = x * s.count, y * s.count
    odd = np.floor(v) % 2 * 0.5
    mouth = spots(u + odd, v, s.seed, 0.33, 0.47)
    hole = smooth(0.02, 0.5, mouth)
    return 1.05 - 0.5 * hole, -hole * 0.04
