"""Water: what stands above it mirrored and broken by waves, its own depth, and the glitter path of the sun."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import Canvas
from .noise import Array, blocks, ramp, sample, stream, texture


@dataclass(frozen=True)
class Water:
    """A level sheet seen from above its far edge.

    edge: y of the far shore. horizon: y of the horizon, at or above the edge. waves: 0 glassy to 1 open sea.
    colour: the depth, linear. mirror: how much is reflected where the view is steep, 0 to 1.
    sun: x of the light, and how strong its glitter is; end: y where the water ends (1: the picture's bottom).
    """

    edge: float
    horizon: float
    waves: float
    colour: Array
    mirror: float
    sun: tuple[float, float]
    glint: Array
    end: float = 1.0
    depth: float = 30.0


def paint_water(canvas: Canvas, water: Water, seed: int) -> None:
    """Draw the water between its edge and its end over the canvas; everything above the edge must be there already."""
    rng = stream(seed, "water")
    swell, ripple = texture(rng, 2.0, 6.0), texture(rng, 1.5, 8.0)
    first, last = canvas.row(water.edge), canvas.row(water.end)
    if first >= last or first < 1:
        return
    source = canvas.rgb[:first].copy()
    gap = np.float32(0.012 + 0.02 * (1 - water.waves))
    for part in blocks(last - first, canvas.width):
        rows = slice(first + part.start, first + part.stop)
        y = canvas.y[rows, None]
        away = 1 / (y - np.float32(water.edge) + gap)
        u = canvas.x[None, :] * away * np.float32(0.030 + 0.05 * water.waves)
        v = np.broadcast_to(away * np.float32(0.09 + 0.16 * water.waves), u.shape)
        slope = sample(swell, u, v) + np.float32(0.55) * sample(ripple, u * 1.9 + np.float32(0.37), v * 1.3)
        below = np.maximum(y - np.float32(water.edge), 0)
        reach = np.float32(0.008 + 0.16 * water.waves) * (np.float32(0.05) + np.minimum(below, 0.3) * np.float32(1.4))
        seen = _mirror(canvas, source, first, rows, slope, reach)
        part_mirror = np.float32(water.mirror) + np.float32(1 - water.mirror) * np.exp(-below * np.float32(2.6))
        part_mirror = np.clip(part_mirror - np.float32(0.20 * water.waves) * np.clip(-slope, -0.8, 1.5), 0.1, 0.97)
        lift = np.float32(1 + 0.16 * water.waves) + np.float32(0.10 * water.waves) * slope
        body = water.colour * lift[..., None]
        colour = body + (seen * np.float32(0.92) - body) * part_mirror[..., None]
        if water.sun[1] > 0:
            width = np.float32(0.035) + below * np.float32(0.28)
            column = np.exp(-(((canvas.x[None, :] - np.float32(water.sun[0])) / width) ** 2))
            crest = ramp(0.55, 1.7, slope + np.float32(0.5) * column) * column
            colour += water.glint * (crest * np.float32(water.sun[1]))[..., None]
        canvas.rgb[rows] = colour
        canvas.depth[rows] = np.minimum(water.depth, np.maximum(0.5, 1.5 / np.maximum(below, 1e-3)))


def _mirror(canvas: Canvas, source: Array, first: int, rows: slice, slope: Array, reach: Array) -> Array:
    """The picture above row `first`, mirrored below it and displaced by the waves' slopes; three taps blur it."""
    index = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
    up = 2 * first - 1 - index - slope * reach * np.float32(canvas.height)
    aside = np.arange(canvas.width, dtype=np.float32)[None, :] + slope * reach * np.float32(0.22 * canvas.across)
    column = np.clip(np.rint(aside), 0, canvas.width - 1).astype(np.int64)
    flat = source.reshape(-1, 3)
    total = np.zeros((*slope.shape, 3), np.float32)
    top = np.float32(first - 1)
    for shift, share in ((-0.3, 0.3), (0.0, 0.4), (0.35, 0.3)):
        row = np.clip(np.abs(up + shift * reach * np.float32(canvas.height)), 0, top)
        low = np.minimum(np.floor(row).astype(np.int64), max(0, first - 2))
        part = np.minimum(row - low, 1)[..., None]
        nearer = flat.take(low * canvas.width + column, axis=0)
        further = flat.take(np.minimum(low + 1, first - 1) * canvas.width + column, axis=0)
        total += np.float32(share) * (nearer + (further - nearer) * part)
    return total


def paint_beach(canvas: Canvas, start: float, sand: Array, foam: Array, seed: int, grain_light: float) -> None:
    """A beach from y = `start` to the bottom: wet sand that mirrors, a foam line, dry sand with grain."""
    rng = stream(seed, "beach")
    fine = texture(rng, 0.7, 20.0)
    folds = texture(rng, 2.0, 3.0)
    curve = rng.uniform(-0.12, 0.12)
    phase = rng.uniform(0, 1)
    for part in blocks(canvas.height, canvas.width):
        if part.stop < canvas.row(start - 0.12):
            continue
        x, y = canvas.x[None, :], canvas.y[part, None]
        wave = sample(folds, x * 0.22 + np.float32(phase), np.zeros_like(x)) * np.float32(0.016)
        wave = wave + sample(folds, x * 0.9, np.full_like(x, 0.3)) * np.float32(0.004)
        shore = np.float32(start) + np.float32(curve) * x + wave
        into = (y - shore) * np.float32(1.0)
        grain = sample(fine, x * 2.0 + 0 * y, y * 3.2 + 0 * x)
        dune = sample(folds, x * 0.5 + 0 * y, y * 1.6 + 0 * x)
        dry = ramp(0.02, 0.12, into)[..., None]
        shine = canvas.rgb[part]
        wet = sand * np.float32(0.42) + shine * np.float32(0.40)
        lit = np.float32(grain_light) * (1 + np.float32(0.05) * grain + np.float32(0.07) * dune)
        colour = wet + (sand * lit[..., None] - wet) * dry
        alpha = ramp(-1.0 / canvas.height, 1.0 / canvas.height, into)
        lace = np.exp(-(((into - np.float32(0.004)) / np.float32(0.008)) ** 2)) * (0.7 + 0.25 * grain)
        lace += ramp(0.4, 1.4, grain + dune) * np.exp(-np.maximum(-into, 0) * 26) * (into < 0) * np.float32(0.75)
        second = np.exp(-(((into + np.float32(0.055) + wave * 2) / np.float32(0.007)) ** 2))
        lace += second * np.clip(0.35 + 0.4 * grain + 0.3 * dune, 0, 1)
        shine += (colour - shine) * alpha[..., None]
        shine += (foam - shine) * np.clip(lace, 0, 1)[..., None]
        canvas.depth[part] = np.where(alpha > 0.5, np.float32(2.0), canvas.depth[part])
