"""Composition of one picture: ground and background, shadows, mushrooms, foreground, and the camera.

backdrop (Pillow) -> shadows and mushrooms (`mushrooms.paint`), the far ones first, each with blades at its foot ->
scaled down from 1.5 times the side -> foreground -> camera (exposure, blur, grain). Positions and sizes are shares of
the side, so that every size shows the same scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data.field_guide.mushrooms import Light, View, paint
from data.field_guide.specimens import Floats, Genus, Specimen, colour, grow
from data.field_guide.textures import cloud

Rng = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Habitat:
    """Forest floor: its soil colours, and the numbers of leaves, needles and tufts (moss or grass) on it."""

    soil: tuple[str, str]
    leaves: int = 0
    leaf: tuple[str, ...] = ("#8a5a2b", "#a9713a", "#6b4423", "#b98a4e", "#7d6a3a", "#94502a")
    needles: int = 0
    tufts: int = 0
    tuft: tuple[str, ...] = ("#4f6b2a", "#6d8a35", "#3c5522", "#86a04a", "#5a6e2e")
    blade: float = 0.05
    """Length of a tuft's blades as a share of the side."""


NEEDLES = ("#9a6a3a", "#7a4f2a", "#b58a55", "#5d4026")

HABITATS = (
    Habitat(soil=("#2e2218", "#5b4630"), leaves=75, needles=60, tufts=25, blade=0.09),
    Habitat(soil=("#3a2a1c", "#6b5138"), leaves=8, needles=520, tufts=40, blade=0.05),
    Habitat(soil=("#26331a", "#4a5a28"), leaves=6, needles=60, tufts=800, blade=0.045),
    Habitat(
        soil=("#2c3618", "#55622e"),
        leaves=5,
        tufts=420,
        tuft=("#5d8a34", "#7aa548", "#476f28", "#93b85a", "#a8a860"),
        blade=0.13,
    ),
)


Ink = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Camera position: how a kind of picture is taken."""

    share: float
    """Share of the pictures taken this way."""
    elevation: tuple[float, float]
    """Range of the camera's elevation above the cap's margin, in degrees; below 0 the underside shows."""
    horizon: tuple[float, float] | None = None
    """Range of the ground's upper edge, as a share of the side from the top; None for ground everywhere."""
    rooted: float | None = None
    """Height, as a share of the side, at which stems meet the ground when the lens lies on it; None otherwise."""
    lying: bool = False
    """Whether the mushrooms have been picked and laid down, at any angle."""


POSES = (
    Pose(share=0.38, elevation=(4, 24), horizon=(0.25, 0.5)),
    Pose(share=0.34, elevation=(32, 70)),
    Pose(share=0.12, elevation=(-40, -16), horizon=(0.82, 0.98), rooted=0.94),
    Pose(share=0.16, elevation=(-82, -52), lying=True),
)


def _inks(rng: Rng, colours: tuple[str, ...], number: int, spread: float = 0.16) -> list[Ink]:
    """Sample `number` colours close to those given."""
    base = np.stack([colour(c) for c in colours])[rng.integers(len(colours), size=number)] * 255
    base = base * rng.normal(1, spread, (number, 1)) + rng.normal(0, 6, (number, 3))
    return [(r, g, b) for r, g, b in np.clip(base, 0, 255).astype(int).tolist()]


def _blade(draw: ImageDraw.ImageDraw, x: float, y: float, length: float, lean: float, width: float, fill: Ink) -> None:
    """Draw a curved, tapering blade of grass or moss growing up from (x, y)."""
    mid = (x + 0.35 * lean * length, y - 0.55 * length)
    tip = (x + lean * length, y - length * (1 - 0.25 * abs(lean)))
    draw.polygon(
        [(x - width, y), (mid[0] - width * 0.8, mid[1]), tip, (mid[0] + width * 0.8, mid[1]), (x + width, y)], fill=fill
    )
    dark = tuple(int(v * 0.8) for v in fill)
    draw.polygon([(x, y), mid, tip, (mid[0] + width * 0.8, mid[1]), (x + width, y)], fill=dark)


def _leaf(draw: ImageDraw.ImageDraw, x: float, y: float, length: float, angle: float, plump: float, fill: Ink) -> None:
    """Draw a fallen leaf: a lighter and a darker half, a midrib, and a shadow."""
    t = np.linspace(0, 1, 9)
    bulge = plump * length * np.sin(np.pi * t**0.8)
    along = (t - 0.5) * length
    c, s = np.cos(angle), np.sin(angle)
    spine = [(x + a * c, y + a * s) for a in along]
    one = [(x + a * c - b * s, y + a * s + b * c) for a, b in zip(along, bulge, strict=True)]
    two = [(x + a * c + b * s, y + a * s - b * c) for a, b in zip(along, bulge, strict=True)]
    drop = 0.05 * length
    draw.polygon([(px + drop, py + drop) for px, py in one + two[::-1]], fill=(22, 16, 10))
    draw.polygon(one + spine[::-1], fill=fill)
    draw.polygon(two + spine[::-1], fill=tuple(int(v * 0.84) for v in fill))
    rib = tuple(min(255, int(v * 1.18) + 8) for v in fill)
    draw.line(spine, fill=rib, width=max(1, int(length * 0.025)))


def _floor(habitat: Habitat, side: int, scale: float, rng: Rng) -> Image.Image:
    """Draw soil, needles and leaves from straight above; `scale` multiplies their sizes."""
    half = side // 2
    u, v = np.meshgrid(*[np.arange(half, dtype=np.float32) / half * 0.7 / scale] * 2)
    offset = rng.random(2).astype(np.float32)
    mixed = np.clip(0.5 + 0.3 * cloud(u + offset[0], v + offset[1]), 0, 1)[..., None]
    low, high = colour(habitat.soil[0]) * 255, colour(habitat.soil[1]) * 255
    image = Image.fromarray((low + (high - low) * mixed).astype(np.uint8)).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    draw = ImageDraw.Draw(image)
    number = int(habitat.needles / scale)
    x, y = rng.random((2, number)) * side
    angle, length = rng.uniform(0, np.pi, number), side * scale * rng.uniform(0.04, 0.09, number)
    ends = np.stack([x, y, x + length * np.cos(angle), y + length * np.sin(angle)], 1).tolist()
    for end, ink in zip(ends, _inks(rng, NEEDLES, number), strict=True):
        draw.line(end, fill=ink, width=max(1, round(side * scale / 200)))
    number = int(habitat.leaves / scale)
    x, y = rng.uniform(-0.05, 1.05, (2, number)) * side
    length, angle, plump = (
        side * scale * rng.uniform(0.12, 0.26, number),
        rng.uniform(0, 2 * np.pi, number),
        rng.uniform(0.18, 0.34, number),
    )
    for place, ink in zip(zip(x, y, length, angle, plump, strict=True), _inks(rng, habitat.leaf, number), strict=True):
        _leaf(draw, *place, ink)
    return image


def _tufts(image: Image.Image, habitat: Habitat, horizon: float, rng: Rng) -> None:
    """Draw blades of moss and grass, the far ones first, vanishing at the horizon (a share of the side)."""
    draw, side = ImageDraw.Draw(image), image.width
    y = horizon + (1.08 - horizon) * np.sort(rng.random(habitat.tufts)) ** (0.7 if horizon >= 0 else 1)
    near = (y - horizon) / (1 - horizon) if horizon >= 0 else np.ones_like(y)
    x, lean = rng.random(habitat.tufts), rng.normal(0, 0.5, habitat.tufts)
    length = habitat.blade * (0.25 + 0.75 * near) * rng.uniform(0.6, 1.3, habitat.tufts)
    for place in zip(
        x * side,
        y * side,
        length * side,
        lean,
        (0.002 + 0.03 * length) * side,
        _inks(rng, habitat.tuft, habitat.tufts),
        strict=True,
    ):
        _blade(draw, *place)


def _distance(side: int, rng: Rng) -> Image.Image:
    """Draw the forest behind, far out of focus: light between trunks and blurred discs, drawn small and enlarged."""
    small = 128
    image = Image.new("RGB", (small, small), _inks(rng, ("#3d4a2a", "#55602f", "#4a4232", "#2f3a2c", "#6b6a48"), 1)[0])
    draw = ImageDraw.Draw(image)
    for ink in _inks(rng, ("#7d8a4a", "#5a6a38", "#8f8a5a", "#3a4528", "#a5ae74", "#6b5a3c"), 14, 0.2):
        x, y, r = rng.uniform(0, small), rng.uniform(0, small), rng.uniform(6, 26)
        draw.ellipse([x - r, y - r, x + r, y + r], fill=ink)
    for ink in _inks(rng, ("#3a2f24", "#54463a", "#2a241c"), int(rng.integers(1, 5))):
        x, w = rng.uniform(0, small), rng.uniform(2, 9)
        draw.polygon([(x - w, small), (x - w * 0.8, 0), (x + w * 0.8, 0), (x + w, small)], fill=ink)
    image = image.filter(ImageFilter.GaussianBlur(5))
    draw = ImageDraw.Draw(image)
    for ink in _inks(rng, ("#c8cf9a", "#b0b87a", "#d8d2b0"), int(rng.integers(0, 12)), 0.1):
        x, y, r = rng.uniform(0, small), rng.uniform(0, small * 0.7), rng.uniform(2, 6)
        draw.ellipse([x - r, y - r, x + r, y + r], fill=ink)
    return image.filter(ImageFilter.GaussianBlur(1.6)).resize((side, side), Image.Resampling.BICUBIC)


def _backdrop(habitat: Habitat, horizon: float | None, side: int, rng: Rng) -> Image.Image:
    """Draw the ground from above, or, with a horizon (a share of the side), receding towards the forest."""
    if horizon is None:
        floor = _floor(habitat, side, 1.0, rng)
        _tufts(floor, habitat, -0.06, rng)
        return floor
    line = int(horizon * side)
    # The bottom row of the picture shows the middle half of the floor, the horizon its full width.
    targets, sources = (
        [(0, side), (side, side), (side, line), (0, line)],
        [(0.25, 1.0), (0.75, 1.0), (1.0, 0.0), (0.0, 0.0)],
    )
    warp = _homography(targets, [(x * side, y * side) for x, y in sources])
    ground = _floor(habitat, side, 0.55, rng).transform(
        (side, side), Image.Transform.PERSPECTIVE, warp, Image.Resampling.BILINEAR
    )
    _tufts(ground, habitat, horizon, rng)
    quarter = (side // 4, side // 4)
    blurred = (
        ground.resize(quarter, Image.Resampling.BOX)
        .filter(ImageFilter.GaussianBlur(side / 200))
        .resize((side, side), Image.Resampling.BILINEAR)
    )
    ground = Image.composite(ground, blurred, _ramp(side, horizon + 0.12, horizon + 0.42))
    return Image.composite(ground, _distance(side, rng), _ramp(side, horizon + 0.01, horizon + 0.09))


def _ramp(side: int, start: float, end: float) -> Image.Image:
    """Return a mask that rises from 0 to 255 between two heights (shares of the side, from the top)."""
    rows = np.clip((np.linspace(0, 1, side) - start) / (end - start), 0, 1) * 255
    return Image.fromarray(np.repeat(rows.astype(np.uint8)[:, None], side, 1))


def _homography(targets: Sequence[tuple[float, float]], sources: Sequence[tuple[float, float]]) -> list[float]:
    """Return Pillow's eight coefficients of the perspective map from four targets to four sources."""
    rows, values = [], []
    for (x, y), (u, v) in zip(targets, sources, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return [float(c) for c in np.linalg.solve(np.array(rows, float), np.array(values, float))]


def _light(rng: Rng) -> Light:
    """Sample direction, warmth and contrast of the light: sun, shade or an overcast sky."""
    side = rng.choice([-1.0, 1.0]) * rng.uniform(0.3, 0.9)
    sun = np.array([side, rng.uniform(0.5, 1.0), rng.uniform(0.35, 0.9)], np.float32)
    contrast, warmth = rng.uniform(0.25, 0.8), rng.normal(0.03, 0.04)
    return Light(
        sun=sun / np.linalg.norm(sun),
        sun_colour=(1.25 * contrast * np.array([1.04 + warmth, 1, 0.9 - warmth])).astype(np.float32),
        sky_colour=((1.12 - contrast * 0.95) * np.array([0.95 - warmth / 2, 1, 1.0 + warmth / 2])).astype(np.float32),
    )


def _shadow(canvas: Floats, x: float, y: float, wide: float, tall: float, depth: float) -> None:
    """Darken an ellipse of the ground softly, in place."""
    side = canvas.shape[0]
    left, right = max(int(x - 2 * wide), 0), min(int(x + 2 * wide), side)
    high, low = max(int(y - 2 * tall), 0), min(int(y + 2 * tall), side)
    if left < right and high < low:
        b, a = np.ogrid[high:low, left:right]
        far = (((a - x) / wide) ** 2 + ((b - y) / tall) ** 2).astype(np.float32)
        canvas[high:low, left:right] *= (1 - depth * np.exp(-(far**1.5)))[..., None].astype(np.float32)


def _foot(canvas: Floats, habitat: Habitat, x: float, y: float, width: float, rng: Rng) -> None:
    """Draw blades, or leaves on bare litter, before a stem's foot (shares of the side), so that it is rooted."""
    side = canvas.shape[0]
    high, low = max(0, int((y - 0.25) * side)), min(side, int((y + 0.2) * side))
    image = Image.fromarray((np.sqrt(np.clip(canvas[high:low], 0, 1)) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    bare = habitat.tufts < 100
    number = 5 if bare else 16
    across, down = (x + rng.normal(0, width, number)) * side, (y + np.sort(rng.uniform(0, 0.06, number))) * side - high
    if bare:
        shapes = rng.uniform(0.08, 0.17, number) * side, rng.normal(0, 0.6, number), np.full(number, 0.25)
    else:
        length = habitat.blade * rng.uniform(0.7, 1.5, number) * side
        shapes = length, rng.normal(0, 0.5, number), 0.003 * side + 0.02 * length
    inks = _inks(rng, habitat.leaf if bare else habitat.tuft, number)
    for place, ink in zip(zip(across, down, *shapes, strict=True), inks, strict=True):
        (_leaf if bare else _blade)(draw, *place, ink)
    canvas[high:low] = (np.asarray(image, np.float32) / 255) ** 2


def _foreground(image: Image.Image, habitat: Habitat, rng: Rng) -> Image.Image:
    """Draw blades of grass close to the lens, out of focus, over part of the picture."""
    small = 128
    dark = [int(0.75 * channel) for channel in _inks(rng, habitat.tuft, 1)[0]]
    layer, mask = Image.new("RGB", image.size, (dark[0], dark[1], dark[2])), Image.new("L", (small, small))
    draw = ImageDraw.Draw(mask)
    for _ in range(rng.integers(1, 4)):
        x, lean, w = rng.uniform(0, small), rng.normal(0, 25), rng.uniform(1.5, 4.0)
        draw.polygon([(x - w, small), (x + lean, rng.uniform(0.1, 0.6) * small), (x + w, small)], fill=215)
    mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 2.2))).resize(image.size, Image.Resampling.BICUBIC)
    return Image.composite(layer, image, mask)


def _near_ground(image: Image.Image, habitat: Habitat, height: float, rng: Rng) -> Image.Image:
    """Draw the moss or litter next to a lens on the ground, out of focus, below `height` (a share of the side)."""
    side = image.width
    soil = Image.new("RGB", (side, side), _inks(rng, habitat.tuft if habitat.tufts > 100 else habitat.leaf, 1)[0])
    draw = ImageDraw.Draw(soil)
    for ink in _inks(rng, (*habitat.tuft, *habitat.soil, *habitat.soil), 40):
        x, y, r = rng.uniform(0, side), rng.uniform(height - 0.1, 1) * side, rng.uniform(0.02, 0.08) * side
        draw.ellipse([x - 1.6 * r, y - r, x + 1.6 * r, y + r], fill=ink)
    edge = ImageDraw.Draw(mask := Image.new("RGB", (side, side)))
    edge.rectangle([0, (height + 0.02) * side, side, side], fill=(255, 255, 255))
    for x in rng.uniform(0, side, 30):
        _blade(
            edge,
            x,
            (height + 0.03) * side,
            rng.uniform(0.03, 0.1) * side,
            rng.normal(0, 0.5),
            0.008 * side,
            (255, 255, 255),
        )
    blur = ImageFilter.GaussianBlur(side * 0.008)
    return Image.composite(soil.filter(blur), image, mask.convert("L").filter(blur))


def _camera(image: Image.Image, rng: Rng) -> Image.Image:
    """Apply dappled light, vignette, exposure, white balance, a slight blur and grain."""
    side = image.width
    offset, spread = rng.random(2), rng.uniform(0.1, 0.25)
    grid = np.arange(48, dtype=np.float32) / 48 - 0.5
    u, v = np.meshgrid(grid, grid)
    dapple = cloud(u * spread + offset[0], v * spread + offset[1]) * rng.uniform(0, 0.16)
    field = (1 + dapple) * (1 - rng.uniform(0, 0.5) * (u * u + v * v)) * rng.uniform(0.88, 1.14)
    gain = np.asarray(Image.fromarray(field.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))
    blur = max(0.0, rng.normal(0.25, 0.3)) * side / 256
    if blur > 0.15:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(image, np.float32) * gain[..., None] * rng.normal(1, 0.025, 3).astype(np.float32)
    noise = rng.standard_normal((256, 256), np.float32) * rng.uniform(1, 4.5)
    chroma = rng.standard_normal((64, 64, 3), np.float32) * 2
    if side != 256:
        noise = np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BILINEAR))
    pixels += noise[..., None]
    pixels += (
        np.asarray(Image.fromarray(np.clip(chroma * 8 + 128, 0, 255).astype(np.uint8)).resize((side, side)), np.float32)
        / 8
        - 16
    )
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


@dataclass(frozen=True, kw_only=True)
class Stand:
    """Specimen and its position: the cap's centre and radius as shares of the side, elevation and roll in radians."""

    specimen: Specimen
    x: float
    y: float
    radius: float
    elevation: float
    roll: float

    @property
    def foot(self) -> tuple[float, float]:
        """Point at which the stem meets the ground."""
        reach = self.radius * self.specimen.length * float(np.cos(self.elevation))
        return self.x + reach * float(np.sin(self.roll)), self.y + reach * float(np.cos(self.roll))


def _find(genus: Genus, pose: Pose, rng: Rng) -> list[Stand]:
    """Place one mushroom in the middle, often with smaller ones beside it; return the far ones first."""
    others = int(rng.choice(4, p=[0.45, 0.3, 0.15, 0.1]))
    stands: list[Stand] = []
    for number in range(1 + others):
        specimen = grow(genus, rng, like=stands[0].specimen if stands else None)
        roll = float(rng.uniform(-np.pi, np.pi) if pose.lying else rng.normal(0, 0.12))
        if number == 0:
            radius = rng.uniform(0.27, 0.38) * (0.85 if others else 1)
            x, y = 0.5 + rng.normal(0, 0.06), 0.46 + rng.normal(0, 0.05)
            elevation = float(np.radians(rng.uniform(*pose.elevation)))
        else:
            radius = stands[0].radius * rng.uniform(0.45, 0.9)
            x = stands[0].x + rng.choice([-1, 1]) * (stands[0].radius + radius) * rng.uniform(0.55, 1.05)
            y, elevation = stands[0].y + rng.uniform(-0.2, 0.28), stands[0].elevation + rng.normal(0, 0.08)
        stand = Stand(specimen=specimen, x=x, y=y, radius=radius, elevation=elevation, roll=roll)
        if pose.rooted is not None:
            # Deep enough for the ground to hide the end of the stem.
            end = radius * specimen.stem[-1] * abs(np.sin(elevation))
            stand = replace(stand, y=max(0.3, y + pose.rooted + float(end) - stand.foot[1]))
        stands.append(stand)
    return sorted(stands, key=lambda stand: stand.foot[1])


def _shadows(canvas: Floats, stand: Stand, light: Light, lying: bool) -> None:
    """Draw the cap's shadow on the ground, away from the sun, and the shade around the stem's foot."""
    side = canvas.shape[0]
    x, y, r = stand.x * side, stand.y * side, stand.radius * side
    foot = stand.foot[0] * side, stand.foot[1] * side
    if lying:
        _shadow(canvas, x - light.sun[0] * r * 0.25, y + r * 0.2, r * 1.1, r * 1.05, 0.75)
    else:
        tall = r * (0.25 + 0.6 * abs(np.sin(stand.elevation)))
        _shadow(canvas, foot[0] - light.sun[0] * r * 0.6, foot[1], r * 1.2, tall, 0.65)
        _shadow(canvas, *foot, r * 0.5, r * 0.25, 0.6)


def _develop(canvas: Floats) -> Image.Image:
    """Convert light to colours: compress highlights above 0.75, then take the root."""
    over = np.maximum(canvas - 0.75, 0)
    return Image.fromarray((np.sqrt(np.minimum(canvas, 0.75) + over / (1 + 4 * over)) * 255).astype(np.uint8))


def compose(genus: Genus, rng: Rng, side: int) -> Image.Image:
    """Draw one picture of a genus, `side` pixels square."""
    habitat = HABITATS[rng.integers(len(HABITATS))]
    pose = POSES[rng.choice(len(POSES), p=[pose.share for pose in POSES])]
    light = _light(rng)
    work = side * 3 // 2
    horizon = None if pose.horizon is None else rng.uniform(*pose.horizon)
    canvas = np.asarray(_backdrop(habitat, horizon, work, rng), np.float32) / 255
    canvas = canvas * canvas * (light.sun_colour * 0.55 + light.sky_colour * 0.75)
    for stand in _find(genus, pose, rng):
        _shadows(canvas, stand, light, pose.lying)
        view = View(
            x=stand.x * work, y=stand.y * work, radius=stand.radius * work, elevation=stand.elevation, roll=stand.roll
        )
        paint(canvas, stand.specimen, view, light)
        if horizon is not None and 0 < stand.foot[1] < 1.02:
            _foot(canvas, habitat, *stand.foot, stand.radius * 0.35, rng)
    image = _develop(canvas).resize((side, side), Image.Resampling.HAMMING)
    if pose.rooted is not None:
        image = _near_ground(image, habitat, pose.rooted - rng.uniform(0.0, 0.05), rng)
    if rng.random() < 0.3:
        image = _foreground(image, habitat, rng)
    return _camera(image, rng)
