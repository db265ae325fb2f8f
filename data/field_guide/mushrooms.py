"""Drawing of one mushroom: a solid of revolution, sphere-traced and textured with its genus's skin, gills and bark.

`paint`: specimen -> `Solid` (distances) -> `trace` (where each ray hits which part) -> `Surface` (colour, normal and
relief of each hit) -> light -> canvas. Rays are parallel. Textures are functions of a hit's polar coordinates on cap or
stem, so one model serves views from the side, from above and from below.
Colours are squared before lighting and their root is taken afterwards (gamma 2, close to a camera's).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from data.field_guide.specimens import STEPS, Floats, Specimen, smooth
from data.field_guide.textures import BARKS, SKINS, cloud, gills, grain, pores, spots, wave

MILK, VOLVA, SOIL, FLESH = np.array(
    [(0.97, 0.96, 0.9), (0.93, 0.91, 0.84), (0.3, 0.24, 0.17), (0.9, 0.86, 0.76)], np.float32
)


@dataclass(frozen=True, kw_only=True)
class View:
    """Position of a mushroom in the picture: the cap's centre and radius in pixels, elevation and roll in radians."""

    x: float
    y: float
    radius: float
    elevation: float
    roll: float


@dataclass(frozen=True, kw_only=True)
class Light:
    """Direction of the sun in camera axes (right, up, towards the camera), and the colours of sun and sky."""

    sun: Floats
    sun_colour: Floats
    sky_colour: Floats


def _caution(slope: Floats) -> Floats:
    """Return the safe ray-marching step per height above a surface, from the steepest slope within 1/5 of a radius."""
    reach = STEPS // 5
    steepest = sliding_window_view(np.pad(np.minimum(np.abs(slope), 4.5), reach, mode="edge"), 2 * reach + 1).max(1)
    return 1 / np.sqrt(1 + steepest**2)


@dataclass(frozen=True, kw_only=True)
class Solid:
    """Specimen prepared for computing distances: slopes, and factors that keep steps from overshooting."""

    specimen: Specimen
    top_slope: Floats
    bottom_slope: Floats
    top_step: Floats
    bottom_step: Floats

    @classmethod
    def of(cls, specimen: Specimen) -> Solid:
        top, bottom = (np.gradient(table).astype(np.float32) * STEPS for table in (specimen.top, specimen.bottom))
        return cls(
            specimen=specimen, top_slope=top, bottom_slope=bottom, top_step=_caution(top), bottom_step=_caution(bottom)
        )  # fmt: skip

    def distances(self, x: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Return lower bounds of the distances to the cap's top, its underside, the stem and the ring."""
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
        stem = np.maximum(np.maximum(outside * 0.9, flat - s.neck), -s.length - z)
        ring = stem
        if s.ring is not None:
            ring = np.maximum(np.abs(z - s.ring[0] + 0.9 * outside) * 0.7 - 0.025, outside - s.ring[1])
        return np.maximum(above, rim), np.maximum(below, rim), stem, ring


@dataclass(frozen=True, kw_only=True)
class Hits:
    """Rays that hit the specimen: index in the patch, point, and part (0 top, 1 underside, 2 stem, 3 ring)."""

    at: NDArray[np.int64]
    x: Floats
    y: Floats
    z: Floats
    part: NDArray[np.int64]


def _march(
    solid: Solid, x: Floats, s: Floats, t: Floats, far: float, view: tuple[np.float32, np.float32], steps: int
) -> tuple[Floats, Floats]:
    """March rays from depth `t`; return (depths, remaining distances). The solid ends before depth `far`."""
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
    """Trace parallel rays through the points (across, up) of the screen, in cap radii, by sphere tracing (Hart 1996).

    Every fourth ray of every fourth row is traced first; the others start shortly before their nearest neighbour's hit.
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


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Appearance of n hits before lighting."""

    colour: Floats
    """Colours, not squared yet, (n, 3)."""
    normal: Floats
    """Normals in the specimen's axes, (n, 3)."""
    relief: Floats
    """Height of the texture above the smooth solid, roughly in cap radii; it only affects the lighting."""
    gloss: Floats
    shelter: Floats
    """Share of the light that reaches the point: less under the cap."""


def _mix(a: Floats, b: Floats, share: Floats) -> Floats:
    return a + (b - a) * share[:, None]


def _unit(vectors: Floats) -> Floats:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _turns(x: Floats, y: Floats, s: Specimen) -> Floats:
    """Return the angle around the stem in turns, from an origin that differs between specimens."""
    return np.arctan2(y, x) / np.float32(2 * np.pi) + np.float32(s.seed % 977 / 977)


def _cap_normal(x: Floats, y: Floats, rho: Floats, slopes: Floats, s: Specimen) -> Floats:
    slope = np.clip(slopes.take((rho * STEPS).astype(np.int32), mode="clip"), -5, 5) / rho
    return _unit(np.stack([-slope * x - s.tilt[0], -slope * y - s.tilt[1], np.ones_like(x)], 1))


def _top(x: Floats, y: Floats, z: Floats, solid: Solid) -> Surface:
    s = solid.specimen
    rho = np.sqrt(x * x + y * y) + np.float32(1e-6)
    # Flat coordinates along the skin: the arc length from the apex, so that textures do not stretch on steep caps.
    arc = np.cumsum(np.sqrt(1 + np.minimum(solid.top_slope, 3) ** 2)).astype(np.float32) / STEPS
    stretch, offset = arc.take((rho * STEPS).astype(np.int32), mode="clip") / rho, np.float32(s.seed % 977 / 977)
    u, v = x * stretch + offset, y * stretch + offset * 7
    share, relief, bright = SKINS[s.genus.skin](rho, _turns(x, y, s), u, v, s)
    ground = _mix(s.cap[0], s.cap[1], smooth(0.0, 1.0, rho + 0.05 * cloud(u * 0.1, v * 0.1)))
    return Surface(
        colour=_mix(ground, s.mark, np.clip(share, 0, 1)) * bright[:, None],
        normal=_cap_normal(x, y, rho, solid.top_slope, s),
        relief=relief,
        gloss=s.gloss * (1 - 0.6 * share),
        shelter=np.ones_like(x),
    )


def _underside(x: Floats, y: Floats, z: Floats, solid: Solid) -> Surface:
    s = solid.specimen
    rho = np.sqrt(x * x + y * y) + np.float32(1e-6)
    turn = _turns(x, y, s)
    bright, relief = pores(x, y, s) if s.genus.pores else gills(rho, turn, s)
    gloss = np.zeros_like(x)
    colours = _mix(s.under * bright[:, None], s.cap[1], smooth(0.965, 0.98, rho))
    if s.cortina:
        web = smooth(0.5, 1.3, grain(turn * 1.1 + 0.1 * rho, rho * 0.05)) * smooth(0.3, 0.9, rho)
        colours = _mix(colours, s.ink, web * 0.8)
    if s.drops:
        drop = smooth(0.0, 0.25, spots(x * 4 + 5, y * 4 + 5, s.seed, 0.16, 0.34, 0.45))
        colours, gloss, relief = _mix(colours, MILK, drop), drop * 0.9, np.maximum(relief, drop * 0.12)
    normal = -_cap_normal(x, y, rho, solid.bottom_slope, s)
    return Surface(
        colour=colours, normal=normal, relief=relief, gloss=gloss, shelter=0.62 + 0.38 * smooth(0.1, 0.9, rho)
    )


def _stem(x: Floats, y: Floats, z: Floats, solid: Solid) -> Surface:
    s = solid.specimen
    lean = x - s.bend * z * z
    radius, turn = np.sqrt(lean * lean + y * y) + np.float32(1e-6), _turns(lean, y, s)
    share, relief, bright = BARKS[s.genus.bark](turn, z, s)
    colours = _mix(np.broadcast_to(s.foot, (x.size, 3)), s.ink, np.clip(share, 0, 1)) * bright[:, None]
    if s.volva:
        cup = smooth(-0.76, -0.8, z / s.length + 0.03 * grain(turn * 0.3, z * 0.05))
        colours = _mix(colours, VOLVA, cup)
        relief = relief * (1 - cup) + cup * 0.02 * grain(turn * 0.3, z * 0.1)
    colours = _mix(colours, SOIL, 0.5 * smooth(-0.88, -1.02, z / s.length + 0.05 * cloud(turn, z * 0.3)))
    cut = z < 0.01 - s.length
    colours = np.where(cut[:, None], FLESH * (0.85 + 0.15 * np.minimum(radius * 4, 1))[:, None], colours)
    normal = np.stack([lean / radius, y / radius, np.full_like(x, 0.05)], 1)
    normal[cut] = (0, 0, -1)
    shelter = 0.45 + 0.55 * smooth(0.05, 0.75, -z)
    if s.ring is not None:
        under = s.ring[0] - z
        shelter = shelter * (1 - 0.35 * smooth(0.3, 0.0, under) * (under > 0))
    return Surface(
        colour=colours,
        normal=_unit(normal),
        relief=np.where(cut, 0, relief),
        gloss=np.full_like(x, s.gloss * 0.4),
        shelter=shelter,
    )


def _ring(x: Floats, y: Floats, z: Floats, solid: Solid) -> Surface:
    s = solid.specimen
    radius, pleat = np.sqrt(x * x + y * y) + np.float32(1e-6), wave(_turns(x, y, s) * 18)
    return Surface(
        colour=_mix(s.foot, s.ink, 0.15 + 0.15 * pleat),
        normal=_unit(np.stack([x / radius, y / radius, np.full_like(x, 0.6)], 1)),
        relief=0.02 * pleat,
        gloss=np.full_like(x, s.gloss * 0.4),
        shelter=np.maximum(0.45 + 0.55 * smooth(0.05, 0.75, -z), 0.7),
    )


PARTS = (_top, _underside, _stem, _ring)


def _dress(hits: Hits, solid: Solid) -> Surface:
    """Return the surface of every hit, in the order of the hits."""
    places = [np.flatnonzero(hits.part == part) for part in range(len(PARTS))]
    surfaces = [dress(hits.x[on], hits.y[on], hits.z[on], solid) for dress, on in zip(PARTS, places, strict=True)]
    order = np.argsort(np.concatenate(places))

    def joined(values: list[Floats]) -> Floats:
        return np.concatenate(values)[order].astype(np.float32)

    return Surface(
        colour=joined([surface.colour for surface in surfaces]),
        normal=joined([surface.normal for surface in surfaces]),
        relief=joined([surface.relief for surface in surfaces]),
        gloss=joined([surface.gloss for surface in surfaces]),
        shelter=joined([surface.shelter for surface in surfaces]),
    )


def _facing(normal: Floats, view: View) -> Floats:
    """Rotate normals to camera axes: right, up, towards the camera."""
    sine, cosine = np.sin(view.elevation), np.cos(view.elevation)
    right, up = normal[:, 0], normal[:, 1] * sine + normal[:, 2] * cosine
    towards = normal[:, 2] * sine - normal[:, 1] * cosine
    c, s = np.cos(view.roll), np.sin(view.roll)
    return np.stack([right * c - up * s, right * s + up * c, towards], 1).astype(np.float32)


def _lean(relief: Floats, hits: Hits, shape: tuple[int, int], radius: float, light: Light) -> Floats:
    """Return the extra light on the texture's slopes: above 0 where they face the sun."""
    flat, kind = np.zeros(shape, np.float32), np.full(shape, -1, np.int8)
    flat.ravel()[hits.at], kind.ravel()[hits.at] = relief, hits.part
    step = max(1, round(radius / 90))
    towards_sun = (step, -step if light.sun[0] > 0 else step)
    rise = np.roll(flat, towards_sun, (0, 1)) - flat
    rise = np.where(np.roll(kind, towards_sun, (0, 1)) == kind, rise, 0).ravel()[hits.at]
    return np.clip(-rise * radius * 0.55 / step, -0.45, 0.45)


def _lit(surface: Surface, normal: Floats, lean: Floats, light: Light) -> Floats:
    """Return squared colours lit by sun (wrapped Lambert) and sky (from above), with gloss (Blinn, two widths)."""
    sun = np.clip((normal @ light.sun + 0.2) / 1.2 + lean, 0, 1.3) * surface.shelter
    sky = (0.7 + 0.3 * normal[:, 1]) * (1 + lean) * surface.shelter
    half = light.sun + np.array([0, 0, 1], np.float32)
    shine = np.clip(normal @ (half / np.linalg.norm(half)) + 0.3 * lean, 0, 1)
    shine = surface.gloss * (1.5 * shine**60 + 0.16 * shine**9)
    lit = sun[:, None] * light.sun_colour + sky[:, None] * light.sky_colour
    return surface.colour**2 * lit + shine[:, None] * light.sun_colour


def _bounds(s: Specimen, view: View, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of the picture that the specimen may cover."""
    sine, cosine = np.sin(view.elevation), np.cos(view.elevation)
    # The outline of half an ellipsoid, with room for tilt and waves.
    cap = float(np.hypot(sine, s.top.max() * cosine)) + 0.35
    low, high = min(-s.length * cosine - s.stem[-1] * abs(sine) - 0.1, -cap), cap
    wide = 1.1 + abs(s.bend) * s.length**2
    across, up = np.array([-wide, wide, -wide, wide]), np.array([low, low, high, high])
    c, r = np.cos(view.roll), np.sin(view.roll)
    x, y = view.x + view.radius * (across * c - up * r), view.y - view.radius * (across * r + up * c)
    rows = slice(max(int(y.min()), 0), max(min(int(y.max()) + 1, shape[0]), 0))
    return rows, slice(max(int(x.min()), 0), max(min(int(x.max()) + 1, shape[1]), 0))


def paint(canvas: Floats, specimen: Specimen, view: View, light: Light) -> None:
    """Draw the specimen onto `canvas` (H, W, 3; squared colours), in place; parts outside it are cut off."""
    solid = Solid.of(specimen)
    rows, columns = _bounds(specimen, view, canvas.shape[:2])
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    row, column = np.mgrid[rows, columns].astype(np.float32)
    a, b = (column + 0.5 - view.x) / view.radius, (view.y - row - 0.5) / view.radius
    c, s = np.float32(np.cos(view.roll)), np.float32(np.sin(view.roll))
    hits = trace(solid, (a * c + b * s).astype(np.float32), (b * c - a * s).astype(np.float32), view.elevation)
    surface = _dress(hits, solid)
    lean = _lean(surface.relief, hits, row.shape, view.radius, light)
    where = rows.start + hits.at // row.shape[1], columns.start + hits.at % row.shape[1]
    canvas[where] = _lit(surface, _facing(surface.normal, view), lean, light)
