"""Heightfields seen in perspective.

Each picture column walks the ground from near to far; what rises above everything nearer is seen. The colours along a
column are summed over the height they cover and differenced at the pixel borders, so that every ridge is
anti-aliased exactly instead of by taking more samples. (The walk is that of voxel landscapes of the 1990s; the exact
coverage is the summed-area idea of Crow 1984, in one dimension.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .canvas import Canvas
from .noise import BLOCK, Array

Height = Callable[[Array, Array, Array], Array]
"""(x, z, footprint) -> height, all (depths, columns) or broadcastable; footprint is the width of a pixel there."""
Shade = Callable[["Ground"], Array]
"""Ground -> linear colour, of the samples' shape and (3,)."""


@dataclass(frozen=True)
class View:
    """The eye: its height over zero, the horizon's y, the focal length, the nearest and the farthest ground."""

    eye: float
    horizon: float
    focal: float
    near: float
    far: float


@dataclass(frozen=True)
class Ground:
    """Samples of ground in view, all of one shape: place x, z, height h, its slopes, and their place on screen."""

    x: Array
    z: Array
    h: Array
    slope_x: Array
    slope_z: Array
    screen_x: Array
    screen_y: Array


def depths(view: View, count: int) -> Array:
    """Distances of the samples: half spread evenly on the screen, half by equal ratios."""
    part = np.linspace(0, 1, count)
    ratio = view.near * (view.far / view.near) ** part
    even = 1 / (1 / view.near + (1 / view.far - 1 / view.near) * part)
    split = count * 3 // 10
    return np.unique(np.concatenate([even[:: max(1, count // split)], ratio]).astype(np.float32))


def paint_ground(canvas: Canvas, view: View, height: Height, shade: Shade, floor: float = 1.0) -> None:
    """Draw the ground over the canvas, down to y = `floor` (1 for the picture's bottom)."""
    z = depths(view, int(min(1100, max(120, canvas.height * 0.8))))[:, None]
    step = max(1, BLOCK // z.shape[0])
    pixel = canvas.span / canvas.width
    for left in range(0, canvas.width, step):
        right = min(canvas.width, left + step)
        places = (np.arange(left - 1, right + 1) + 0.5) / canvas.width - 0.5
        screen = (places * canvas.span).astype(np.float32)[None, :]
        x = screen * (z / np.float32(view.focal))
        footprint = z * np.float32(max(pixel, 1 / canvas.height) / view.focal)
        h = height(x, np.broadcast_to(z, x.shape), footprint)
        slope_x = (h[:, 2:] - h[:, :-2]) / (2 * np.float32(pixel / view.focal) * z)
        x, h, screen = x[:, 1:-1], h[:, 1:-1], screen[:, 1:-1]
        slope_z = np.empty_like(h)
        slope_z[1:] = (h[1:] - h[:-1]) / (z[1:] - z[:-1])
        slope_z[0] = slope_z[1]
        slope_z -= slope_x * (screen / np.float32(view.focal))
        y = np.float32(view.horizon) - np.float32(view.focal) * (h - np.float32(view.eye)) / z
        top = np.clip(
            np.minimum.accumulate(y * np.float32(canvas.height), axis=0), 0, np.float32(floor * canvas.height)
        )
        seen = np.empty(top.shape, bool)
        seen[0] = True
        np.less(top[1:], top[:-1], out=seen[1:])
        fields = (x, np.broadcast_to(z, x.shape), h, slope_x, slope_z, np.broadcast_to(screen, x.shape), y)
        colour = np.zeros((*top.shape, 3), np.float32)
        colour[seen] = shade(Ground(*(field[seen] for field in fields)))
        _integrate(canvas, slice(left, right), top, colour, z[:, 0], floor)


def _integrate(canvas: Canvas, columns: slice, top: Array, colour: Array, z: Array, floor: float) -> None:
    """Sum the visible spans of each column and lay them over the canvas; top: (depths, columns) in rows, falling."""
    rows, count = canvas.height, top.shape[1]
    bottom = np.float32(floor * rows)
    span = np.empty_like(top)
    span[0] = bottom - top[0]
    span[1:] = top[:-1] - top[1:]
    # A slope in full view takes the mean of its two ends, so that spans of several pixels do not show as steps.
    seen = span > 0
    joined = seen[1:] & seen[:-1]
    colour[1:] += (colour[:-1] - colour[1:]) * (joined * np.float32(0.5))[..., None]
    sums = np.cumsum(colour * span[..., None], axis=0)
    bins = np.ceil(top).astype(np.int64)
    counts = np.bincount((bins + np.arange(count) * (rows + 1)).ravel(), minlength=(rows + 1) * count)
    above = counts.reshape(count, rows + 1)[:, ::-1].cumsum(axis=1)[:, ::-1]
    index = np.zeros((rows + 1, count), np.int64)
    index[:-1] = above[:, 1:].T  # samples whose top lies below row r, for each border r
    index = np.minimum(index, len(z) - 1)
    lines = np.arange(rows + 1, dtype=np.float32)[:, None]
    flat = index * count + np.arange(count)
    border = np.clip(lines, top[-1], bottom)
    missing = border - top.ravel().take(flat)
    total = sums.reshape(-1, 3).take(flat, axis=0)
    total -= colour.reshape(-1, 3).take(flat, axis=0) * np.maximum(missing, 0)[..., None]
    paint = total[:-1] - total[1:]
    alpha = np.clip(np.minimum(lines[1:], bottom) - np.maximum(lines[:-1], top[-1]), 0, 1)
    area = canvas.rgb[:, columns]
    area *= 1 - alpha[..., None]
    area += paint
    depth = canvas.depth[:, columns]
    np.copyto(depth, z[index[1:]], where=alpha > 0.5)
