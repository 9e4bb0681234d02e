"""Scenes without a horizon: under water, and flowing colour."""

from __future__ import annotations

import numpy as np

from .noise import Array, blocks, ramp, sample, texture, wiggle
from .palette import linear, mix, toward
from .stage import Stage


def paint_underwater(stage: Stage) -> None:
    """Light falling through the surface, a sandy floor with caustics, coral, fish."""
    canvas, scene = stage.canvas, stage.scene
    rng = stage.rng("underwater")
    net, soft = texture(rng, 1.6, 8.0), texture(rng, 2.0, 4.0)
    top, deep = linear("7fe4ec"), linear("04305c")
    if scene.time == "night":
        top, deep = linear("2c6c9c"), linear("020c22")
    middle = linear("1486b4") if scene.time != "night" else linear("0a3460")
    for name in scene.colours[:1]:
        top, middle, deep = toward(top, name), toward(middle, name), toward(deep, name)
    light_x = float(rng.uniform(-0.2, 0.2)) * canvas.span
    floor = 0.80 + wiggle(rng, canvas.x, 1.4, 4) * np.float32(0.035)
    for part in blocks(canvas.height, canvas.width):
        x, y = canvas.x[None, :], canvas.y[part, None]
        down = y ** np.float32(0.8)
        water = np.where(
            down[..., None] < 0.4,
            top + (middle - top) * (down[..., None] / 0.4),
            middle + (deep - middle) * ((down[..., None] - 0.4) / 0.6),
        )
        colour = np.broadcast_to(water, (*np.broadcast_shapes(x.shape, y.shape), 3)).copy()
        dx = x - np.float32(light_x)
        colour += top * _sunlight(net, soft, dx, y)[..., None]
        sand = (
            mix(middle, linear("d8d0a0"), 0.35)
            * (np.float32(0.34) + np.float32(0.50) * _caustics(net, x, y))[..., None]
        )
        under = np.clip((y - floor[None, :]) * np.float32(canvas.height) + 0.5, 0, 1)
        fade = (np.exp(-np.maximum(y - floor[None, :], 0) * 9) * np.float32(0.9))[..., None]
        colour += ((sand + (middle * np.float32(0.75) - sand) * fade) - colour) * under[..., None]
        canvas.rgb[part] = colour
        canvas.depth[part] = np.where(under > 0.5, np.float32(10), canvas.depth[part])
    _corals(stage, rng, floor, middle)
    _fish(stage, rng, middle)
    bubbles = rng.uniform(0, 1, (140, 2))
    canvas.splat(
        (bubbles[:, 0] - 0.5) * canvas.span,
        bubbles[:, 1] * 0.95,
        np.tile(top * np.float32(0.20), (140, 1)).astype(np.float32),
        0.0022,
    )


def _sunlight(net: Array, soft: Array, dx: Array, y: Array) -> Array:
    """Light from above at places dx aside of its source: shafts, the moving surface, and a wide glow."""
    angle = np.arctan2(dx, y + np.float32(0.35))
    low = y * np.float32(0.02)
    rays = sample(soft, angle * np.float32(1.1), low + np.float32(0.13))
    rays = rays + np.float32(0.6) * sample(soft, angle * np.float32(3.1), low + np.float32(0.61))
    beam = ramp(0.0, 1.9, rays) * np.exp(-y * np.float32(2.0)) * np.exp(-(dx**2) * np.float32(2.2))
    away = 1 / (y + np.float32(0.06))
    ripple = np.abs(sample(net, dx * away * np.float32(0.10), away * np.float32(0.08)))
    shimmer = np.exp(-ripple * 4) * np.exp(-y * 9) * np.exp(-(dx**2) * np.float32(2.5))
    wide = np.exp(-(dx**2 * 4 + (y * np.float32(3.2)) ** 2))
    return np.asarray(beam * np.float32(0.8) + shimmer * np.float32(1.1) + wide * np.float32(0.55), np.float32)


def _caustics(net: Array, x: Array, y: Array) -> Array:
    """The bright net that waves throw on the floor, in perspective."""
    near = 1 / (y - np.float32(0.62)).clip(0.05)
    first = np.abs(sample(net, x * near * np.float32(0.09), near * np.float32(0.16)))
    second = np.abs(sample(net, x * near * np.float32(0.12) + np.float32(0.4), near * np.float32(0.21)))
    return np.asarray(np.exp(-np.minimum(first, second) * 5), np.float32)


def _corals(stage: Stage, rng: np.random.Generator, floor: Array, water: Array) -> None:
    """Branching corals and weed: curves of dots that grow from the floor, far ones first."""
    canvas = stage.canvas
    codes = ("ff6a4c", "f8a03c", "e85c9c", "b05ce0", "58c878", "f4d860", "d84860")
    for layer, (size, fade, count) in enumerate(((0.07, 0.68, 26), (0.11, 0.42, 16), (0.15, 0.12, 10))):
        parts: list[tuple[Array, Array, Array, Array]] = []
        for _ in range(int(count * max(1.0, canvas.span))):
            x = float(rng.uniform(-0.52, 0.52)) * canvas.span
            column = int(min(canvas.width - 1, max(0, canvas.column(x))))
            foot = float(floor[column]) + 0.015 + 0.065 * layer
            tone = linear(codes[int(rng.integers(len(codes)))])
            tone = (tone + (water - tone) * np.float32(fade)) * np.float32(0.62)
            weed = rng.uniform() < 0.3
            for _ in range(7 if weed else 11):
                reach = np.linspace(0, 1, 60)
                lean = rng.normal(0, 0.16 if weed else 0.38)
                sway = 0.05 * np.sin(reach * 7 + rng.uniform(0, 6)) if weed else 0.22 * lean * reach**2
                xs = x + size * (lean * reach + sway)
                ys = foot - size * (1.7 if weed else 0.9) * reach * rng.uniform(0.5, 1.0)
                wide = size * (0.050 if weed else 0.085) * (1.1 - 0.7 * reach)
                shade = (0.45 + 0.75 * reach)[:, None] * tone
                parts.append((xs, ys, shade.astype(np.float32), wide.astype(np.float32)))
        canvas.dots(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def _fish(stage: Stage, rng: np.random.Generator, water: Array) -> None:
    """Shoals of small fish, and a few larger ones, drawn as a body and a tail."""
    canvas = stage.canvas
    for size, fade, count in ((0.013, 0.5, 34), (0.030, 0.25, 9)):
        middle = rng.uniform(-0.25, 0.25) * canvas.span, rng.uniform(0.28, 0.55)
        way = float(rng.choice([-1, 1]))
        for _ in range(count):
            x, y = middle[0] + rng.normal(0, 0.13), middle[1] + rng.normal(0, 0.06)
            tone = linear(("ffb43c", "f4f0d0", "ff7a3c", "a0d8f0")[int(rng.integers(4))])
            tone = tone + (water - tone) * np.float32(fade)
            reach = size * rng.uniform(0.7, 1.2)
            place = canvas.box(x - reach * 1.6, y - reach, x + reach * 1.6, y + reach)
            dx, dy = (canvas.x[None, place[1]] - x) / reach * way, (canvas.y[place[0], None] - y) / reach
            body = 0.36 * np.sqrt(np.clip(1 - dx * dx, 0, 1)) * (1.1 + 0.3 * dx) - np.abs(dy)
            tail = np.minimum(np.minimum(-0.75 - dx, dx + 1.35), (-dx - 0.75) * 0.75 + 0.06 - np.abs(dy))
            shape = np.maximum(body, tail)
            light = np.clip(0.75 - dy * 1.1, 0.3, 1.3)[..., None]
            canvas.cover(
                place,
                np.asarray(tone * light * np.ones((*shape.shape, 1)), np.float32),
                np.clip(shape * reach * canvas.height + 0.5, 0, 1).astype(np.float32),
                8.0,
            )


def paint_abstract(stage: Stage) -> None:
    """Folded ribbons of colour: a field warped by itself twice (Íñigo Quílez's domain warping), lit like relief."""
    canvas, scene = stage.canvas, stage.scene
    rng = stage.rng("abstract")
    field = texture(rng, 2.6, 2.0)
    codes = (
        ("0b1f3a", "125e8a", "2ec4b6", "f4e3c1", "ff6b4a"),
        ("1a0b2e", "5b1e78", "e0447c", "ffb35c", "fff0d0"),
        ("10261f", "1f6f54", "a8c66c", "f6e7b4", "d9622b"),
        ("131a3a", "3a4fb0", "8f7be8", "f2b8d8", "ffe9c9"),
        ("2a0f14", "8c1c2e", "e5533d", "f7b267", "f4f1de"),
    )
    ladder = np.stack([linear(code) for code in codes[int(rng.integers(len(codes)))]])
    if scene.colours:
        tones = [toward(tone * np.float32(0.6), scene.colours[i % len(scene.colours)]) for i, tone in enumerate(ladder)]
        ladder = np.stack(tones)
    offset = rng.uniform(0, 1, 6).astype(np.float32)
    lamp = rng.uniform(0, 2 * np.pi)
    light = np.float32(np.cos(lamp)), np.float32(np.sin(lamp))
    for part in blocks(canvas.height, canvas.width):
        u, v = np.broadcast_arrays(canvas.x[None, :] * np.float32(0.36), canvas.y[part, None] * np.float32(0.36))
        a, b = sample(field, u + offset[0], v + offset[1]), sample(field, u + offset[2], v + offset[3])
        qu, qv = u + np.float32(0.085) * a, v + np.float32(0.085) * b
        c, d = sample(field, qu + offset[4], qv), sample(field, qu, qv + offset[5])
        ru, rv = u + np.float32(0.075) * c, v + np.float32(0.075) * d
        height = sample(field, ru, rv)
        rise = sample(field, ru + np.float32(0.006) * light[0], rv + np.float32(0.006) * light[1]) - height
        bands = height * np.float32(0.75) + np.float32(0.3) * c
        place = np.clip((bands * np.float32(0.42) + np.float32(0.5)) * 4, 0, 3.999)
        step = place.astype(np.int64)
        within = ramp(0.12, 0.88, place - step)[..., None]
        colour = ladder[step] + (ladder[step + 1] - ladder[step]) * within
        groove = np.sin(bands * np.float32(26.0)) * np.float32(0.05)
        colour = colour * (1 + np.clip(rise * np.float32(7.0), -0.55, 0.7) + groove)[..., None]
        shine = np.clip(rise * np.float32(9.0) - np.float32(0.35), 0, 1) ** 2
        canvas.rgb[part] = np.minimum(colour, 0.85) + (shine * np.float32(0.35))[..., None]
        canvas.depth[part] = 20 + height * 4
