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
        edges.append(
            y ** np.float32(0.88) * np.float32(slender) * (np.float32(0.40) + np.float32(0.6) * saw**0.8 + ragged)
        )
    x = x - lean * (1 - y)
    edge = np.where(x < 0, edges[0], edges[1])
    crown = ramp(-1.2, 1.2, (edge - np.abs(x)) * np.float32(columns / 2)) * (y < 0.94)
    needles = wiggle(rng, x * 3 + y * 11, 9, 2)
    crown *= np.clip(1.15 - 0.35 * ramp(0.5, 1.0, np.abs(x) / np.maximum(edge, 0.02)) * (needles > 0.25), 0, 1)
    trunk = ramp(-1, 1, (np.float32(0.055) - np.abs(x)) * np.float32(columns / 2)) * (y > 0.3)
    return np.maximum(crown, trunk)


def leafy(rng: np.random.Generator, bare: bool = False) -> tuple[Array, Array]:
    """Coverage and light (0 shadow to 1 sun) of a broad-leaved tree, each (CELL, CELL); light falls from the left."""
    groups, leaves = 30, 30 if bare else 240
    angle, out = rng.uniform(0, 2 * np.pi, groups), np.sqrt(rng.uniform(0, 1, groups))
    middle = np.stack([0.5 + 0.34 * out * np.cos(angle), 0.36 + 0.25 * out * np.sin(angle)], axis=1)[:, None, :]
    size = rng.uniform(0.06, 0.13, (groups, 1, 1))
    offset = rng.normal(0, 0.5, (groups, leaves, 2))
    place = np.clip((middle + offset * size * np.array([1.2, 0.8])).reshape(-1, 2), 0.01, 0.985)
    bright = 0.52 - offset[..., 1] * 0.42 - offset[..., 0] * 0.24 - (middle[..., 1] - 0.36) * 1.3
    bright = (bright + rng.normal(0, 0.12, bright.shape)).ravel()
    index = (place[:, 1] * CELL).astype(np.int64) * CELL + (place[:, 0] * CELL).astype(np.int64)
    mass = gaussian_filter(np.bincount(index, minlength=CELL * CELL).reshape(CELL, CELL).astype(np.float32), 0.8)
    glow = gaussian_filter(np.bincount(index, bright, CELL * CELL).reshape(CELL, CELL).astype(np.float32), 0.8)
    shade = np.clip(glow / np.maximum(mass, 1e-4), 0, 1.2)
    alpha = np.clip(1 - np.exp(-mass * 3.2), 0, 1)
    shade = shade * alpha + 0.10 * (1 - alpha)
    return np.maximum(alpha, _branches(rng)).astype(np.float32), shade.astype(np.float32)


def _branches(rng: np.random.Generator) -> Array:
    """A trunk that forks six times, on the CELL grid; lines are dots thickened by their own width."""
    wood = np.zeros((CELL, CELL), np.float32)
    grow = np.array([[0.5, 0.995, -np.pi / 2, 0.26, 0.030]])
    steps = np.linspace(0, 1, 60)
    for _ in range(6):
        x, y, angle, length, thick = (grow[:, i : i + 1] for i in range(5))
        xs, ys = x + np.cos(angle) * length * steps, y + np.sin(angle) * length * steps
        xs = xs + 0.008 * np.sin(steps * 5 + angle * 9) * np.sin(steps * np.pi)
        for offset in np.linspace(-0.5, 0.5, 7):
            columns = np.clip((xs + offset * thick * (1.15 - 0.4 * steps)) * CELL, 0, CELL - 1).astype(np.int64)
            wood[np.clip(ys * CELL, 0, CELL - 1).astype(np.int64), columns] = 1
        forks = np.repeat(np.concatenate([xs[:, -1:], ys[:, -1:], angle, length, thick], axis=1), 2, axis=0)
        forks[:, 2] += np.tile([-1, 1], len(grow)) * rng.uniform(0.2, 0.6, len(forks))
        forks[:, 3] *= rng.uniform(0.6, 0.8, len(forks))
        forks[:, 4] *= 0.62
        grow = forks[:20]
    return np.asarray(gaussian_filter(wood, 0.5), np.float32)


class Grove:
    """A few leafy trees grown once for a picture and used again at other sizes, mirrored."""

    def __init__(self, rng: np.random.Generator, bare: bool, count: int = 5) -> None:
        self.grown = [leafy(rng, bare) for _ in range(count)]

    def pick(self, rng: np.random.Generator, rows: int, columns: int) -> tuple[Array, Array]:
        """One of them at a size: coverage and light, each (rows, columns)."""
        alpha, light = self.grown[int(rng.integers(len(self.grown)))]
        if rng.uniform() < 0.5:
            alpha = alpha[:, ::-1]
        return resize(alpha, rows, columns), resize(light, rows, columns)


def palm(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Coverage (rows, columns) of a coconut palm: a bowed trunk and hanging fronds combed into leaflets."""
    side = 360
    lean = rng.uniform(0.10, 0.22) * rng.choice([-1, 1])
    steps = np.linspace(0, 1, 600)
    trunk_x, trunk_y = 0.5 - lean + lean * 1.6 * steps**1.6, 1 - 0.68 * steps
    xs = [trunk_x + offset * (0.014 - 0.007 * steps) for offset in np.linspace(-1, 1, 13)]
    ys = [trunk_y] * 13
    for number in range(11):
        angle = np.pi * (number + rng.uniform(0.1, 0.9)) / 11
        length, droop = rng.uniform(0.25, 0.36), rng.uniform(0.16, 0.30)
        reach = np.repeat(np.linspace(0.06, 1, 44), 2)
        fx = trunk_x[-1] + np.cos(angle) * length * reach * 1.1
        fy = trunk_y[-1] - np.sin(angle) * length * 0.8 * reach + reach**2.0 * droop
        long_ = 0.10 * np.sin(np.pi * np.clip(reach * 0.85 + 0.12, 0, 1)) * rng.uniform(0.7, 1.1, len(reach))
        turn = np.tile([-1.0, 1.0], 44)
        way = np.arctan2(-np.sin(angle) * 0.8 + 2 * reach * droop / length, np.cos(angle)) + turn * 0.75
        for part in np.linspace(0, 1, 46):
            xs.append(fx + np.cos(way) * long_ * part)
            ys.append(fy + np.sin(way) * long_ * part * 0.8 + long_ * part * part * 0.55)
        spine = np.linspace(0, 1, 300)
        xs.append(trunk_x[-1] + np.cos(angle) * length * spine * 1.1)
        ys.append(trunk_y[-1] - np.sin(angle) * length * 0.8 * spine + spine**2.0 * droop)
    place_x, place_y = np.concatenate(xs), np.concatenate(ys)
    inside = (place_x > 0) & (place_x < 1) & (place_y > 0) & (place_y < 1)
    index = (place_y[inside] * side).astype(np.int64) * side + (place_x[inside] * side).astype(np.int64)
    mass = np.bincount(index, minlength=side * side).reshape(side, side).astype(np.float32)
    return resize(np.clip(gaussian_filter(np.minimum(mass, 1), 0.5) * 1.5, 0, 1).astype(np.float32), rows, columns)


@dataclass(frozen=True)
class Tints:
    """Colours of a tree: its dark side, its lit side, and the air it fades into by `air` (0 near to 1 far)."""

    dark: Array
    lit: Array
    air: Array
    fade: float = 0.0


def plant(
    canvas: Canvas,
    kind: str,
    rng: np.random.Generator,
    x: float,
    foot: float,
    tall: float,
    tints: Tints,
    depth: float,
    grove: Grove | None = None,
) -> None:
    """One tree with its foot at (x, foot), `tall` units high, laid over the canvas; leafy ones come from a grove."""
    broad = {"conifer": 0.44, "leafy": 0.95, "bare": 0.95, "palm": 1.0}[kind] * tall * rng.uniform(0.85, 1.15)
    rows, columns = round(tall * canvas.height), round(broad * canvas.across)
    top, left = round(foot * canvas.height) - rows, round(canvas.column(x) - columns / 2)
    if (
        rows < 2
        or columns < 2
        or top >= canvas.height
        or left >= canvas.width
        or left + columns <= 0
        or top + rows <= 0
    ):
        return
    light: Array | None = None
    if kind in ("leafy", "bare"):
        alpha, light = (grove or Grove(rng, kind == "bare", 1)).pick(rng, rows, columns)
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


def tree_line(
    canvas: Canvas,
    kind: str,
    rng: np.random.Generator,
    foot: Array,
    tall: float,
    several: tuple[Tints, ...],
    depth: float,
    spread: float = 0.42,
    grove: Grove | None = None,
) -> None:
    """A row of trees along `foot` (width,), the ground below them filled; smaller ones stand between taller ones."""
    span = canvas.span
    x = -span / 2 - tall * 0.2
    tints = several[0]
    ground = tints.dark + (tints.air - tints.dark) * np.float32(tints.fade)
    top = canvas.row(float(foot.min()) - 0.01)
    lower = canvas.y[top:, None]
    alpha = np.clip((lower - foot[None, :]) * np.float32(canvas.height) + 0.5, 0, 1)
    deeper = np.clip((lower - foot[None, :]) * np.float32(1.2), 0, 0.5)[..., None]
    canvas.cover((slice(top, None), slice(None)), ground * (1 - deeper), alpha, depth)
    while x < span / 2 + tall * 0.2:
        size = tall * float(rng.uniform(0.45, 1.0)) ** 1.3
        column = int(min(canvas.width - 1, max(0, canvas.column(x))))
        plant(
            canvas,
            kind,
            rng,
            x,
            float(foot[column]) + 0.02 * tall + 0.004,
            size,
            several[int(rng.integers(len(several)))],
            depth,
            grove,
        )
        x += spread * tall * float(rng.uniform(0.25, 0.9))
