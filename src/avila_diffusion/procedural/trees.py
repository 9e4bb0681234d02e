"""Trees as small coverage pictures (sprites) and the woods, lines and frames made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from .canvas import Canvas
from .grade import resize
from .noise import Array, ramp, wiggle

CELL = 160
"""Side of the grid that leafy trees are grown on before they are brought to size."""


def conifer(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Coverage (rows, columns) of a spruce: drooping tiers of branches, each side with its own irregularity."""
    y = ((np.arange(rows) + 0.5) / rows).astype(np.float32)[:, None]
    x = ((np.arange(columns) + 0.5) / columns * 2 - 1).astype(np.float32)[None, :]
    tiers = rng.integers(9, 15)
    lean = np.float32(rng.uniform(-0.06, 0.06))
    slender = rng.uniform(0.72, 1.0)
    edges = []
    for _ in range(2):
        jitter = wiggle(rng, y, 7, 3) * np.float32(0.5)
        tier = y ** np.float32(0.85) * np.float32(tiers) + jitter
        saw = tier - np.floor(tier)
        ragged = wiggle(rng, y, 26, 3) * np.float32(0.16)
        edges.append(y ** np.float32(0.88) * np.float32(slender) * (np.float32(0.40) + np.float32(0.6) * saw**0.8 + ragged))
    x = x - lean * (1 - y)
    edge = np.where(x < 0, edges[0], edges[1])
    crown = ramp(-1.2, 1.2, (edge - np.abs(x)) * np.float32(columns / 2)) * (y < 0.94)
    needles = wiggle(rng, x * 3 + y * 11, 9, 2)
    crown *= np.clip(1.15 - 0.35 * ramp(0.5, 1.0, np.abs(x) / np.maximum(edge, 0.02)) * (needles > 0.25), 0, 1)
    trunk = ramp(-1, 1, (np.float32(0.055) - np.abs(x)) * np.float32(columns / 2)) * (y > 0.3)
    return np.maximum(crown, trunk)


def leafy(rng: np.random.Generator, rows: int, columns: int, bare: bool = False) -> tuple[Array, Array]:
    """Coverage and light (0 shadow to 1 sun) of a broad-leaved tree, each (rows, columns); light falls from the left."""
    points, light = [], []
    for _ in range(26):
        angle, out = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0, 1))
        middle = np.array([0.5 + 0.33 * out * np.cos(angle), 0.36 + 0.25 * out * np.sin(angle)])
        size = rng.uniform(0.07, 0.14)
        count = 40 if bare else 260
        offset = rng.normal(0, 0.5, (count, 2))
        points.append(middle + offset * size * np.array([1.15, 0.85]))
        height = 0.55 - offset[:, 1] * 0.42 - offset[:, 0] * 0.22 - (middle[1] - 0.36) * 1.3
        light.append(height + rng.normal(0, 0.12, count))
    place = np.clip(np.concatenate(points), 0.01, 0.985)
    index = (place[:, 1] * CELL).astype(np.int64) * CELL + (place[:, 0] * CELL).astype(np.int64)
    bright = np.concatenate(light)
    mass = gaussian_filter(np.bincount(index, minlength=CELL * CELL).reshape(CELL, CELL).astype(np.float32), 0.9)
    glow = gaussian_filter(np.bincount(index, bright, CELL * CELL).reshape(CELL, CELL).astype(np.float32), 0.9)
    shade = np.clip(glow / np.maximum(mass, 1e-4), 0, 1.2)
    alpha = np.clip(1 - np.exp(-mass * 3.2), 0, 1)
    wood = _branches(rng)
    shade = shade * alpha + 0.12 * (1 - alpha)
    alpha = np.maximum(alpha, wood)
    return resize(alpha.astype(np.float32), rows, columns), resize(shade.astype(np.float32), rows, columns)


def _branches(rng: np.random.Generator) -> Array:
    """A trunk that forks five times, on the CELL grid."""
    wood = np.zeros((CELL, CELL), np.float32)
    grow = [(0.5, 0.995, -np.pi / 2, 0.26, 0.026)]
    for _ in range(6):
        following = []
        for x, y, angle, length, thick in grow:
            steps = np.linspace(0, 1, 40)
            xs = x + np.cos(angle) * length * steps + 0.01 * np.sin(steps * 5 + angle * 9)
            ys = y + np.sin(angle) * length * steps
            for px, py in zip(xs * CELL, ys * CELL, strict=True):
                reach = max(0.5, thick * CELL / 2)
                top, left = int(max(0, py - reach)), int(max(0, px - reach))
                wood[top : int(py + reach) + 1, left : int(px + reach) + 1] = 1
            for side in (-1, 1):
                fork = angle + side * rng.uniform(0.25, 0.6)
                following.append((xs[-1], ys[-1], fork, length * rng.uniform(0.6, 0.78), thick * 0.62))
        grow = following[:16]
    return np.asarray(gaussian_filter(wood, 0.5), np.float32)


def palm(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Coverage (rows, columns) of a coconut palm: a bowed trunk and hanging fronds combed into leaflets."""
    side = 256
    lean = rng.uniform(0.10, 0.24) * rng.choice([-1, 1])
    steps = np.linspace(0, 1, 420)
    trunk_x, trunk_y = 0.5 - lean + lean * 2 * steps**1.6 * 0.8, 1 - 0.66 * steps
    xs, ys = [], []
    for offset in np.linspace(-1, 1, 9):
        xs.append(trunk_x + offset * (0.016 - 0.007 * steps))
        ys.append(trunk_y)
    top_x, top_y = trunk_x[-1], trunk_y[-1]
    for number in range(13):
        angle = np.pi * (number + rng.uniform(0.1, 0.9)) / 13
        length = rng.uniform(0.24, 0.34)
        reach = np.linspace(0, 1, 110)
        fx = top_x + np.cos(angle) * length * reach * 1.15
        fy = top_y - np.sin(angle) * length * 0.75 * reach + reach**2.2 * rng.uniform(0.16, 0.30)
        for drop in np.linspace(0, 1, 26):
            hang = drop * 0.085 * np.sin(np.pi * np.clip(reach * 0.93 + 0.05, 0, 1)) ** 0.7
            comb = (np.arange(110) % 3 != 0) | (drop < 0.15)
            xs.append((fx + np.cos(angle) * hang * 0.5)[comb])
            ys.append((fy + hang)[comb])
    place_x, place_y = np.concatenate(xs), np.concatenate(ys)
    inside = (place_x > 0) & (place_x < 1) & (place_y > 0) & (place_y < 1)
    index = (place_y[inside] * side).astype(np.int64) * side + (place_x[inside] * side).astype(np.int64)
    mass = np.bincount(index, minlength=side * side).reshape(side, side).astype(np.float32)
    return resize(np.clip(gaussian_filter(mass, 0.55) * 1.6, 0, 1).astype(np.float32), rows, columns)


@dataclass(frozen=True)
class Tints:
    """Colours of a tree: its dark side, its lit side, and the air it fades into by `air` (0 near to 1 far)."""

    dark: Array
    lit: Array
    air: Array
    fade: float = 0.0


def plant(canvas: Canvas, kind: str, rng: np.random.Generator, x: float, foot: float, tall: float, tints: Tints,
          depth: float) -> None:
    """One tree with its foot at (x, foot), `tall` units high, laid over the canvas."""
    broad = {"conifer": 0.44, "leafy": 0.95, "bare": 0.95, "palm": 1.0}[kind] * tall * rng.uniform(0.85, 1.15)
    rows, columns = round(tall * canvas.height), round(broad * canvas.across)
    top, left = round(foot * canvas.height) - rows, round(canvas.column(x) - columns / 2)
    if rows < 2 or columns < 2 or top >= canvas.height or left >= canvas.width or left + columns <= 0 or top + rows <= 0:
        return
    light: Array | None = None
    if kind in ("leafy", "bare"):
        alpha, light = leafy(rng, rows, columns, kind == "bare")
    else:
        alpha = conifer(rng, rows, columns) if kind == "conifer" else palm(rng, rows, columns)
    cut = slice(max(0, -top), rows - max(0, top + rows - canvas.height))
    across = slice(max(0, -left), columns - max(0, left + columns - canvas.width))
    place = (slice(top + cut.start, top + cut.stop), slice(left + across.start, left + across.stop))
    colour = tints.dark
    if light is not None:
        colour = tints.dark + (tints.lit - tints.dark) * light[cut, across][..., None]
    elif kind == "conifer":
        side = np.linspace(0.75, -0.1, columns, dtype=np.float32)[None, :] * np.ones((rows, 1), np.float32)
        colour = tints.dark + (tints.lit - tints.dark) * np.clip(side[cut, across], 0, 1)[..., None]
    colour = np.asarray(colour + (tints.air - colour) * np.float32(tints.fade), np.float32)
    canvas.cover(place, colour, alpha[cut, across], depth)


def tree_line(canvas: Canvas, kind: str, rng: np.random.Generator, foot: Array, tall: float, tints: Tints, depth: float,
              spread: float = 0.42) -> None:
    """A row of trees along `foot` (width,), the ground below them filled; smaller ones stand between taller ones."""
    span = canvas.span
    x = -span / 2 - tall * 0.2
    ground = tints.dark + (tints.air - tints.dark) * np.float32(tints.fade)
    top = canvas.row(float(foot.min()) - 0.01)
    lower = canvas.y[top:, None]
    alpha = np.clip((lower - foot[None, :]) * np.float32(canvas.height) + 0.5, 0, 1)
    deeper = np.clip((lower - foot[None, :]) * np.float32(1.2), 0, 0.5)[..., None]
    canvas.cover((slice(top, None), slice(None)), ground * (1 - deeper), alpha, depth)
    while x < span / 2 + tall * 0.2:
        size = tall * float(rng.uniform(0.45, 1.0)) ** 1.3
        column = int(min(canvas.width - 1, max(0, canvas.column(x))))
        plant(canvas, kind, rng, x, float(foot[column]) + 0.02 * tall + 0.004, size, tints, depth)
        x += spread * tall * float(rng.uniform(0.25, 0.9))
