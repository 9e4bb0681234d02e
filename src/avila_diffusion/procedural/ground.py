"""Gentler ground: hills and meadows with flowers, dunes, mesas, islands; how it is coloured and laid on the canvas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .land import Cover, eroded, shader, veil
from .noise import Array, blocks, ramp, sample, table, texture, value
from .palette import COLOURS, linear, mix, toward
from .stage import FOCAL, Stage
from .terrain import Ground, Height, View, paint_ground


def hills(rng: np.random.Generator, tall: float) -> Height:
    """Rolling hills that begin some way off; short grass as fine roughness."""
    lattices = [table(rng) for _ in range(3)]
    at = rng.uniform(20, 200, 2).astype(np.float32)

    def height(x: Array, z: Array, footprint: Array) -> Array:
        broad = eroded(lattices, x / 26 + at[0], z / 26 + at[1], footprint / 26, 4, 0.0)
        near = ramp(3.0, 40.0, z)
        rough, _, _ = value(lattices[2], x * 9, z * 9)
        tuft, _, _ = value(lattices[1], x * 2.3, z * 2.3)
        grass = ramp(0.16, 0.05, footprint) * (rough * np.float32(0.035) + tuft * np.float32(0.05))
        return (broad + np.float32(0.30)) * near * np.float32(9.0 * tall) + grass + np.float32(0.12) * broad

    return height


def dunes(rng: np.random.Generator) -> Height:
    """Dunes with a long windward and a short lee side and ripples across the wind."""
    lattices = [table(rng) for _ in range(3)]
    at = rng.uniform(20, 200, 2).astype(np.float32)
    turn = rng.uniform(-0.5, 0.5)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))

    def height(x: Array, z: Array, footprint: Array) -> Array:
        u, v = (x * cos - z * sin), (x * sin + z * cos)
        bend, _, _ = value(lattices[0], u / 17 + at[0], v / 17 + at[1])
        ease, _, _ = value(lattices[2], u / 9 + at[1], v / 9 + at[0])
        total = np.zeros(x.shape, np.float32)
        for long_, tall in ((15.0, 1.0), (6.0, 0.25)):
            phase = (v + bend * np.float32(7.0) + ease * np.float32(1.6) + u * np.float32(0.35)) / np.float32(long_)
            part = phase - np.floor(phase)
            rise = np.where(part < 0.72, part / np.float32(0.72), (1 - part) / np.float32(0.28))
            total += np.float32(tall) * rise ** np.float32(1.35)
        ripple_at = (v + bend * 2 + ease * np.float32(0.8)) * np.float32(7.5)
        ripple = np.sin(ripple_at) * ramp(0.05, 0.012, footprint) * np.float32(0.012)
        size = np.float32(0.5) + np.float32(0.5) * ease
        sand: Array = (
            total * (np.float32(0.35) + np.maximum(size, 0)) * np.float32(3.4) * ramp(1.0, 30.0, z) ** np.float32(0.6)
            + ripple
        )
        return sand

    return height


def canyon(rng: np.random.Generator) -> Height:
    """Flat-topped mesas and buttes with stepped walls over a plain."""
    lattices = [table(rng) for _ in range(3)]
    at = rng.uniform(20, 200, 2).astype(np.float32)

    def height(x: Array, z: Array, footprint: Array) -> Array:
        n = eroded(lattices, x / 24 + at[0], z / 24 + at[1], footprint / 24, 7, 0.0)
        n = n + np.float32(0.06) * ramp(8, 60, z)
        steps = (
            np.float32(0.35) * ramp(0.06, 0.12, n)
            + np.float32(0.30) * ramp(0.14, 0.17, n)
            + np.float32(0.35) * ramp(0.21, 0.235, n)
        )
        talus = np.maximum(n, -0.2) * np.float32(0.5)
        rock: Array = (steps * np.float32(9.0) + talus * np.float32(3.0)) * ramp(5.0, 30.0, z)
        return rock

    return height


def isles(rng: np.random.Generator, span: float, tall: float) -> Height:
    """One to three islands at the horizon; below the sea everything is far down, where it hides itself."""
    lattices = [table(rng) for _ in range(3)]
    at = rng.uniform(20, 200, 2).astype(np.float32)
    count = int(rng.integers(1, 4))
    places = [
        (float(rng.uniform(-0.42, 0.42)) * span, float(rng.uniform(48, 110)), float(rng.uniform(0.10, 0.26)))
        for _ in range(count)
    ]

    def height(x: Array, z: Array, footprint: Array) -> Array:
        n = eroded(lattices, x / 16 + at[0], z / 16 + at[1], footprint / 16, 7, 0.5)
        mass = np.zeros(x.shape, np.float32)
        for middle, far, wide in places:
            dx = (x / z * np.float32(FOCAL) - np.float32(middle)) / np.float32(wide)
            dz = (z - np.float32(far)) / np.float32(far * 0.30)
            mass = np.maximum(mass, np.exp(-(np.abs(dx) ** np.float32(1.5)) * 2 - dz * dz) * np.float32(far / 70))
        h = mass * (np.float32(0.72) + n * np.float32(1.7)) * np.float32(11.0 * tall) - np.float32(1.2)
        return np.where(h > 0, h, np.float32(-400.0))

    return height


def paint_hills(stage: Stage, height: Height, near: float, floor: float, eye: float = 0.7, sand: bool = False) -> None:
    """Grass, or sand, on a gentle landform."""
    scene, palette = stage.scene, stage.palette
    low = linear({"winter": "dfe7f2", "autumn": "a8823c", "spring": "6c9638", "summer": "587c2e"}[scene.season])
    if sand:
        low = linear("d8a468" if scene.season != "winter" else "e4e4ea")
    wished = scene.tint("ground") or (scene.tint("foliage") if not sand else None)
    if wished is not None:
        low = toward(low, wished)
    rock = mix(low, linear("6c6054"), 0.0 if sand else 0.5)
    fog = scene.has("fog")
    day = scene.time == "day"
    lift = np.float32(1.9 if stage.low_sun and not sand else 1.15)  # grass against the light would go brown
    cover = Cover(
        rock * lift,
        low * lift,
        linear("f4f6fa"),
        1e4,
        1e4,
        haze=4.0 if fog else 0.9 if day else 1.4,
        mist=0.9 if fog else 0.10 if day else 0.28,
        mist_top=2.5,
        crag=0.0,
        sharp=2.2 if sand else 1.0,
    )
    view = View(eye, stage.horizon, FOCAL, near, 170.0)
    paint_ground(stage.canvas, view, height, shader(palette, cover, stage.sun[0], 170.0, stage.low_sun), floor)


STONE = ("b4582c", "c87848", "94401f", "d8a070", "a84c28", "e0b488", "8a3c24", "c46a38")


def paint_mesas(stage: Stage, height: Height) -> None:
    """Canyon land in its bands of red, ochre and pale stone.

    Only the light is drawn with the ground; the bands go on afterwards, by the height that each pixel's distance gives
    it, because a cliff has many pixels between two samples of the ground.
    """
    canvas, palette, rng = stage.canvas, stage.palette, stage.rng("strata")
    bands = np.stack([linear(code) for code in rng.permutation(STONE)])
    wished = stage.scene.tint("ground")
    if wished is not None:
        bands = np.stack([toward(band, wished) for band in bands])
    white = np.ones(3, np.float32)
    light = Cover(white, white, white, 1e4, 1e4, haze=0.0, mist=0.0, mist_top=1.0, crag=0.4)
    air = Cover(white, white, white, 1e4, 1e4, haze=3.0 if stage.scene.has("fog") else 1.0, mist=0.12, mist_top=2.5)
    view = View(3.2, stage.horizon, FOCAL, 3.0, 170.0)
    paint_ground(canvas, view, height, shader(palette, light, stage.sun[0], 170.0, stage.low_sun))
    scrub = texture(rng, 1.5, 6.0)
    for part in blocks(canvas.height, canvas.width):
        z = canvas.depth[part]
        land = z < 1e5
        if not land.any():
            continue
        z = np.minimum(z, 170.0)
        x = canvas.x[None, :] * z / np.float32(FOCAL)
        h = (np.float32(stage.horizon) - canvas.y[part, None]) * z / np.float32(FOCAL) + np.float32(view.eye)
        wave = h * np.float32(1.3) + np.float32(0.18) * sample(scrub, x * np.float32(0.006), z * np.float32(0.002)) + 40
        index = np.floor(wave).astype(np.int64)
        within = ramp(0.3, 0.7, wave - index)[..., None]
        albedo = bands[index % 8] * (1 - within) + bands[(index + 1) % 8] * within
        grit = sample(scrub, x * np.float32(0.10), (z + h * 3) * np.float32(0.10))
        spots = ramp(0.7, 1.3, sample(scrub, x * np.float32(0.05), z * np.float32(0.05))) * ramp(1.2, 0.4, h)
        albedo = albedo + (linear("5c6434") - albedo) * (spots * np.float32(0.6))[..., None]
        colour = canvas.rgb[part] * albedo * (np.float32(1.35) + np.float32(0.10) * grit)[..., None]
        ground = Ground(x, z, h, x, x, np.broadcast_to(canvas.x[None, :], z.shape), z)
        colour = veil(palette, air, ground, np.asarray(colour, np.float32), stage.sun[0], 170.0)
        np.copyto(canvas.rgb[part], colour, where=land[..., None])


@dataclass(frozen=True)
class Bloom:
    """Flowers of a field: their colours and how dense they stand."""

    colours: tuple[Array, ...]
    count: int


FIELDS = (
    ("d8281c", "e84820", "c81c1c"),
    ("f4d030", "f8e060", "f0b820"),
    ("8c5cd0", "a880e0", "7444b8"),
    ("f0f0f4", "f8d8e4", "f090b4"),
    ("e84c8c", "f8b0cc", "d03070"),
    ("4c6ce0", "7c98f0", "e8ecf8"),
)


def bloom_field(stage: Stage) -> Bloom:
    """The flowers the scene asks for, else a kind the seed chooses."""
    wished, rng = stage.scene.tint("flowers"), stage.rng("bloom")
    codes = FIELDS[int(rng.integers(len(FIELDS)))]
    colours = [linear(code) for code in codes]
    if wished is not None:
        base = linear(COLOURS[wished])
        colours = [base, base * np.float32(0.7), mix(base, np.ones(3, np.float32), 0.25)]
    return Bloom(tuple(colours), 5200 if stage.scene.has("flowers") else 1800)


def paint_flowers(stage: Stage, height: Height, bloom: Bloom, eye: float) -> None:
    """Dots of blossom standing on the ground, in drifts, smaller with distance."""
    canvas, rng = stage.canvas, stage.rng("blossoms")
    count = int(bloom.count * canvas.span)
    z = np.sort(1.7 / (1 - rng.uniform(0, 0.955, count)))[::-1].astype(np.float32)
    x = (rng.uniform(-0.55, 0.55, count) * canvas.span * z / FOCAL).astype(np.float32)
    drift, _, _ = value(table(rng), x * np.float32(0.35) + 40, z * np.float32(0.35) + 40)
    keep = drift + rng.uniform(-0.5, 0.7, count) > 0
    x, z = x[keep], z[keep]
    h = height(x[None, :], z[None, :], np.full((1, len(x)), 0.02, np.float32))[0] + rng.uniform(0.03, 0.16, len(x))
    y = stage.horizon - FOCAL * (h - eye) / z
    light = stage.palette.shade * np.float32(0.35) + stage.palette.light * np.float32(0.85)
    light = mix(light, np.full(3, light.mean(), np.float32), 0.65)  # else an orange light makes every flower orange
    tone = np.stack(bloom.colours)[rng.integers(0, len(bloom.colours), len(x))] * light
    tone = tone * (rng.uniform(0.65, 1.15, len(x)) * (0.3 + 0.7 * stage.dim) * 1.1)[:, None]
    fade = (1 - np.exp(-z / 60.0))[:, None]
    tone = tone + (stage.palette.haze - tone) * fade
    canvas.dots(
        x * FOCAL / z,
        y,
        tone.astype(np.float32),
        (0.030 * rng.uniform(0.6, 1.25, len(x)) / z * FOCAL).astype(np.float32),
    )
