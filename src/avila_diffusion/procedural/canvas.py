"""The picture in work: linear light, how far each pixel is, and the coordinates everything is placed in."""

from __future__ import annotations

import numpy as np

from .noise import Array

FAR = 1e6
SMALL = 8
"""Dots up to this many pixels are drawn together, greater ones one by one."""
WIDEST = 4.0
"""Beyond 4:1 (or 1:4) the scene is stretched rather than shown wider."""


class Canvas:
    """rgb: (height, width, 3) linear light, 1 is white. depth: (height, width), FAR for the sky.

    x: (width,) from -span/2 to span/2, y: (height,) from 0 (top) to 1 (bottom): a unit is the picture's height.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.span = min(WIDEST, max(1 / WIDEST, width / height))
        self.x: Array = (((np.arange(width) + 0.5) / width - 0.5) * self.span).astype(np.float32)
        self.y: Array = ((np.arange(height) + 0.5) / height).astype(np.float32)
        self.rgb: Array = np.zeros((height, width, 3), np.float32)
        self.depth: Array = np.full((height, width), FAR, np.float32)

    @property
    def across(self) -> float:
        """Pixels a unit, along a row."""
        return self.width / self.span

    def column(self, x: float) -> float:
        """The column (in pixels, fractional) of a place x."""
        return (x / self.span + 0.5) * self.width

    def row(self, y: float) -> int:
        """The first row at or below a height y, within the picture."""
        return int(min(self.height, max(0, round(y * self.height))))

    def box(self, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice]:
        """The slices (rows, columns) that cover a rectangle, cut to the picture; may be empty."""
        columns = [min(self.width, max(0, round_)) for round_ in (int(self.column(left)), int(self.column(right)) + 1)]
        rows = [min(self.height, max(0, r)) for r in (int(top * self.height), int(bottom * self.height) + 1)]
        return slice(rows[0], rows[1]), slice(columns[0], columns[1])

    def cover(self, place: tuple[slice, slice], colour: Array, alpha: Array, depth: float | None = None) -> None:
        """Lay `colour` (3,) or (rows, columns, 3) over a rectangle with the coverage `alpha` (rows, columns)."""
        area = self.rgb[place]
        area += (colour - area) * alpha[..., None]
        if depth is not None:
            self.depth[place][alpha > 0.5] = depth

    def splat(self, x: Array, y: Array, light: Array, radius: float) -> None:
        """Add soft round dots at places x, y with `light` (n, 3) at their middle; radius in units, at least a pixel."""
        high, wide = max(0.6, radius * self.height), max(0.6, radius * self.across)
        columns, rows = (x / self.span + 0.5) * self.width - 0.5, y * self.height - 0.5
        base_column, base_row = np.round(columns).astype(np.int64), np.round(rows).astype(np.int64)
        tall, broad = int(np.ceil(high * 2.2)), int(np.ceil(wide * 2.2))
        for down in range(-tall, tall + 1):
            for along in range(-broad, broad + 1):
                if (down / tall) ** 2 + (along / broad) ** 2 > 1.5:
                    continue
                r, c = base_row + down, base_column + along
                inside = (r >= 0) & (r < self.height) & (c >= 0) & (c < self.width)
                squared = ((r - rows) / high) ** 2 + ((c - columns) / wide) ** 2
                weight = np.where(inside, np.exp(-squared), 0)
                keep = weight > 0.01
                np.add.at(self.rgb, (r[keep], c[keep]), (light[keep] * weight[keep, None]).astype(np.float32))

    def dots(self, x: Array, y: Array, colour: Array, radius: Array) -> None:
        """Cover the picture with soft-edged round dots, smaller ones first; radius (n,) in units."""
        columns, rows = (x / self.span + 0.5) * self.width - 0.5, y * self.height - 0.5
        high, wide = np.maximum(radius * self.height, 0.45), np.maximum(radius * self.across, 0.45)
        size = np.ceil(np.maximum(high, wide)).astype(np.int64)
        for step in np.unique(size[size <= SMALL]):
            group = size == step
            self._small_dots(columns[group], rows[group], colour[group], high[group], wide[group], int(step))
        for number in np.flatnonzero(size > SMALL):
            self._large_dot(columns[number], rows[number], colour[number], high[number], wide[number])

    def _small_dots(self, columns: Array, rows: Array, colour: Array, high: Array, wide: Array, size: int) -> None:
        """Dots of nearly one size together, offset by offset."""
        base_column, base_row = np.round(columns).astype(np.int64), np.round(rows).astype(np.int64)
        for down in range(-size, size + 1):
            for along in range(-size, size + 1):
                r, c = base_row + down, base_column + along
                far = np.sqrt(((r - rows) / high) ** 2 + ((c - columns) / wide) ** 2)
                weight = np.clip((1 - far) * np.minimum(high, wide) + 0.5, 0, 1)
                keep = (weight > 0) & (r >= 0) & (r < self.height) & (c >= 0) & (c < self.width)
                r, c, part = r[keep], c[keep], weight[keep, None].astype(np.float32)
                shade = np.float32(1.0 - 0.25 * down / max(1, size))
                self.rgb[r, c] += (colour[keep] * shade - self.rgb[r, c]) * part

    def _large_dot(self, column: float, row: float, colour: Array, high: float, wide: float) -> None:
        """One dot as a rectangle of coverage."""
        top, bottom = max(0, int(row - high)), min(self.height, int(row + high) + 2)
        left, right = max(0, int(column - wide)), min(self.width, int(column + wide) + 2)
        if top >= bottom or left >= right:
            return
        down = ((np.arange(top, bottom, dtype=np.float32) - np.float32(row)) / np.float32(high))[:, None]
        along = ((np.arange(left, right, dtype=np.float32) - np.float32(column)) / np.float32(wide))[None, :]
        weight = np.clip(
            (1 - np.sqrt(down * down + along * along)) * np.float32(min(high, wide)) + np.float32(0.5), 0, 1
        )
        shaded = colour.astype(np.float32) * (1 - np.float32(0.25) * down)[..., None]
        self.cover((slice(top, bottom), slice(left, right)), shaded, weight)
