"""The night sky: stars, the Milky Way, the moon, the northern lights, and deep space."""

from __future__ import annotations

import numpy as np

from .canvas import Canvas
from .noise import Array, blocks, ramp, sample, stream, texture, wiggle
from .palette import Palette, linear

STAR_TONES = tuple(linear(code) for code in ("cfe0ff", "f4f6ff", "fff2dc", "ffd8b0", "b4ccff"))


def paint_stars(canvas: Canvas, seed: int, bottom: float, density: float, brightness: float = 1.0) -> None:
    """Stars above y = `bottom`; few bright ones, many faint, fainter toward the horizon."""
    rng = stream(seed, "stars")
    count = int(2600 * density * canvas.span)
    x, y = rng.uniform(-0.5, 0.5, count) * canvas.span, rng.uniform(0, 1, count) * bottom
    magnitude = rng.pareto(1.5, count) * 0.05 + 0.03
    light = np.minimum(magnitude, 2.2) * brightness * np.clip((bottom - y) / bottom * 2.2, 0.1, 1)
    tone = np.stack(STAR_TONES)[rng.integers(0, 5, count)]
    colour = (tone * light[:, None]).astype(np.float32)
    bright = magnitude > 0.35
    canvas.splat(x, y, colour, 0.0009)
    canvas.splat(x[bright], y[bright], colour[bright] * 0.5, 0.0024)


def paint_milky_way(canvas: Canvas, seed: int, bottom: float, palette: Palette, strength: float) -> None:
    """A band of star clouds parted by dust, slanting up from the horizon."""
    rng = stream(seed, "milky way")
    cloud, dust = texture(rng, 1.9, 3.0), texture(rng, 1.9, 3.0)
    angle = rng.uniform(0.5, 1.05) * rng.choice([-1, 1])
    middle = rng.uniform(-0.18, 0.18) * canvas.span, bottom * 0.45
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    warm, cold = linear("ffdcb4"), palette.glow
    for part in blocks(canvas.row(bottom), canvas.width):
        dx, dy = canvas.x[None, :] - np.float32(middle[0]), canvas.y[part, None] - np.float32(middle[1])
        along, aside = dx * cos + dy * sin, -dx * sin + dy * cos
        rough = sample(cloud, along * 0.6, aside * 0.6)
        band = np.exp(-(((aside + np.float32(0.02) * rough) / np.float32(0.15)) ** 2))
        core = np.exp(-((aside / np.float32(0.07)) ** 2)) * (
            np.float32(0.4) + np.float32(0.5) * np.exp(-((along - 0.1) ** 2) * 5)
        )
        lane = sample(dust, along * 0.35 + np.float32(0.3), aside * 0.8) + np.float32(0.45) * sample(
            dust, along * 1.2, aside * 1.8
        )
        gap = ramp(-0.3, 1.9, lane) * np.exp(-((aside / np.float32(0.085)) ** 2)) * np.float32(0.92)
        light = band * (np.float32(0.5) + np.float32(0.28) * np.clip(rough, -1.4, 2)) + core * np.float32(0.9)
        light = np.maximum(light, 0) * (1 - gap) * np.float32(strength * 0.34)
        tone = cold + (warm - cold) * np.clip(core * 1.1 + 0.1 * rough, 0, 1)[..., None]
        fall = np.clip((np.float32(bottom) - canvas.y[part, None]) * 5, 0, 1)
        canvas.rgb[part] += tone * (light * fall)[..., None]
    count = int(5200 * strength * canvas.span)
    along, aside = rng.uniform(-1.4, 1.4, count), rng.normal(0, 0.085, count)
    x, y = middle[0] + along * cos - aside * sin, middle[1] + along * sin + aside * cos
    keep = (y > 0) & (y < bottom) & (np.abs(x) < canvas.span / 2)
    light = (rng.pareto(2.2, count) * 0.07 + 0.03)[keep]
    canvas.splat(x[keep], y[keep], (np.minimum(light, 1)[:, None] * linear("e8ecff")).astype(np.float32), 0.0008)


def paint_moon(canvas: Canvas, x: float, y: float, radius: float, palette: Palette, seed: int, full: bool) -> None:
    """The moon: seas and rays on a lit ball, a dark limb where it is not full, and a halo."""
    rng = stream(seed, "moon")
    seas, rough = texture(rng, 2.0, 3.0, 256), texture(rng, 1.2, 6.0, 256)
    phase = 0.0 if full else rng.uniform(0.35, 0.95) * rng.choice([-1, 1])
    for part in blocks(canvas.height, canvas.width):
        dx, dy = (
            (canvas.x[None, :] - np.float32(x)) / np.float32(radius),
            (canvas.y[part, None] - np.float32(y)) / np.float32(radius),
        )
        far = np.sqrt(dx * dx + dy * dy)
        halo = np.float32(0.16) * np.exp(-far * np.float32(0.42)) + np.float32(0.30) * np.exp(
            -np.maximum(far - 1, 0) * np.float32(2.4)
        )
        canvas.rgb[part] += palette.glow * (halo * ramp(0.0, 1.0, far))[..., None]
        if float(far.min()) > 1.1:
            continue
        ball = np.sqrt(np.maximum(1 - dx * dx - dy * dy, 0))
        lit = np.clip(np.float32(np.cos(phase)) * ball + np.float32(np.sin(phase)) * dx, 0, 1) ** np.float32(0.6)
        mare = ramp(0.1, 1.1, sample(seas, dx * 0.17, dy * 0.17)) * np.float32(0.34)
        grain = np.float32(0.07) * sample(rough, dx * 0.3, dy * 0.3)
        face = (lit * (np.float32(1.02) - mare + grain) + np.float32(0.015))[..., None] * linear("fff6e4")
        edge = np.clip((1 - far) * np.float32(radius * canvas.height) + 0.5, 0, 1)
        area = canvas.rgb[part]
        area += (face * np.float32(1.25) - area) * (edge * (lit > 0.03 if not full else 1.0))[..., None]


def paint_aurora(canvas: Canvas, seed: int, bottom: float, colours: tuple[Array, Array]) -> None:
    """Curtains of northern light: folded bands with a sharp lower hem and rays that fade upward."""
    rng = stream(seed, "aurora")
    width = canvas.width
    lower, upper = colours
    for number in range(3):
        strength = np.float32((0.75, 0.6, 0.4)[number])
        phase = rng.uniform(-2, 2)
        u = (canvas.x * np.float32(rng.uniform(0.6, 0.9)) + np.float32(phase)).astype(np.float32)
        base = bottom * (0.80 - 0.22 * number) + wiggle(rng, u, 1.5, 4, 0.5) * np.float32(0.15 * bottom)
        fold = wiggle(rng, u, 4.0, 3)
        rays = np.clip(0.50 + 0.34 * wiggle(rng, u + 0.02 * fold, 22, 4, 0.7), 0.06, 1.2) ** 1.2
        gust = np.clip(0.55 + 0.6 * wiggle(rng, u, 1.3, 2), 0, 1.2)
        tall = np.float32(bottom) * (np.float32(0.26) + np.float32(0.16) * np.clip(wiggle(rng, u, 6, 3), -1, 1.2))
        slant = np.float32(rng.uniform(-0.14, 0.14))
        for part in blocks(canvas.row(bottom), width):
            y = canvas.y[part, None]
            shift = ((y - np.float32(bottom * 0.6)) * slant) * np.float32(canvas.across)
            column = np.clip(np.arange(width)[None, :] + np.rint(shift).astype(np.int64), 0, width - 1)
            up = (base[column] - y) / tall[column]
            glow = np.where(
                up > 0, np.exp(-np.maximum(up, 0) * 1.7) * ramp(0.0, 0.10, up), np.exp(np.minimum(up, 0) * 14) * 0.0
            )
            glow = glow * rays[column] + np.exp(-np.abs(up - 0.15) * 2.6) * np.float32(0.22)
            glow = glow * gust[column] * strength
            tone = lower + (upper - lower) * np.clip(up * np.float32(0.75) - np.float32(0.12), 0, 1)[..., None]
            canvas.rgb[part] += tone * glow[..., None]


GASES = (
    ("160a3c", "5a2a9c", "e0488c", "ffb070", "66b8ff"),
    ("06203c", "0f6a8c", "38c8b8", "ffd890", "f06a9c"),
    ("200818", "8c1c44", "f0683c", "ffd080", "5c8cff"),
    ("0a1040", "2c48c0", "9a6cf0", "ff9ac0", "7ce8f0"),
)


def paint_nebula(canvas: Canvas, seed: int, tones: tuple[Array, ...] = ()) -> None:
    """Deep space: glowing gas folded by domain warping, dark dust before it; tones: five, dark to bright."""
    rng = stream(seed, "nebula")
    gas, dust = texture(rng, 2.3, 2.0), texture(rng, 1.9, 3.0)
    chosen = [linear(code) for code in GASES[int(rng.integers(len(GASES)))]]
    void, deep, body, hot, rim = tones or chosen
    angle = rng.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    offset = rng.uniform(0, 1, 4).astype(np.float32)
    heart = rng.uniform(-0.18, 0.18, 2).astype(np.float32)
    for part in blocks(canvas.height, canvas.width):
        x, y = canvas.x[None, :], canvas.y[part, None] - np.float32(0.5)
        along, aside = x * cos + y * sin - heart[0], -x * sin + y * cos - heart[1]
        u, v = along * np.float32(0.34), aside * np.float32(0.34)
        a = sample(gas, u * 0.7 + offset[0], v * 0.7 + offset[1])
        b = sample(gas, u * 0.7 + offset[2], v * 0.7 + offset[3])
        wu, wv = u + np.float32(0.055) * a, v + np.float32(0.055) * b
        cloud = sample(gas, wu + offset[1], wv + offset[2]) + np.float32(0.30) * sample(dust, wu * 2.2, wv * 2.2)
        veil = sample(dust, wu * 0.8 + offset[3], wv * 0.8 + offset[0]) + np.float32(0.35) * sample(
            dust, wu * 2.7, wv * 2.7
        )
        core = np.exp(-(along**2 * 3.0 + (aside + np.float32(0.05) * a) ** 2 * 9.0))
        glow = np.clip(cloud * np.float32(0.36) + np.float32(0.18) + np.float32(0.75) * core, 0, 2.4)
        dark = 1 - np.float32(0.86) * ramp(0.0, 1.9, veil) * ramp(1.9, 0.9, glow)
        colour = void * np.float32(0.10) + deep * (np.float32(0.55) * glow)[..., None]
        colour += body * (ramp(0.30, 1.25, glow) * ramp(-1.2, 0.9, b) * np.float32(0.75))[..., None]
        colour += rim * (ramp(0.25, 1.0, glow) * ramp(0.3, 1.8, -b) * np.float32(0.60))[..., None]
        colour += hot * (np.clip(glow - np.float32(0.85), 0, 1.5) ** 1.5 * np.float32(1.1))[..., None]
        canvas.rgb[part] = colour * dark[..., None] + linear("03040a")
