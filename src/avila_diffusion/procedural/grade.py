"""From linear light to the eight-bit picture: bloom, shafts of light, tone curve, vignette, dither."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from .canvas import Canvas
from .noise import Array, blocks, stream


def _shrink(field: Array, rows: int, columns: int) -> Array:
    """Mean over cells of a (height, width) field, to (rows, columns)."""
    for axis, count in ((0, rows), (1, columns)):
        edges = (np.arange(count) * field.shape[axis] / count).astype(np.int64)
        sizes = np.diff(np.append(edges, field.shape[axis])).astype(np.float32)
        field = np.add.reduceat(field, edges, axis=axis) / (sizes[:, None] if axis == 0 else sizes[None, :])
    return field


def _grow(field: Array, height: int, width: int) -> Array:
    """Bilinear enlargement to (height, width)."""
    for axis, count in ((0, height), (1, width)):
        old = field.shape[axis]
        place = np.clip((np.arange(count) + 0.5) * old / count - 0.5, 0, old - 1).astype(np.float32)
        low = np.floor(place).astype(np.int64)
        high = np.minimum(low + 1, old - 1)
        part = place - low
        part = part[:, None] if axis == 0 else part[None, :]
        first, second = field.take(low, axis=axis), field.take(high, axis=axis)
        second -= first
        second *= part
        first += second
        field = first
    return field


def resize(field: Array, rows: int, columns: int) -> Array:
    """A (height, width) field at another size: the mean where it shrinks, bilinear where it grows."""
    field = _shrink(field, min(rows, field.shape[0]), min(columns, field.shape[1]))
    return _grow(field, rows, columns)


def add_bloom(
    canvas: Canvas, strength: float, shafts: tuple[float, float] | None = None, rays: float = 0.0, horizon: float = 1.0
) -> None:
    """Let what outshines white bleed over its surroundings; `shafts` (x, y) is where rays of it come from."""
    rows = max(1, min(canvas.height, 128))
    columns = max(1, min(canvas.width, round(128 * canvas.span)))
    for channel in range(3):
        small = _shrink(np.maximum(canvas.rgb[..., channel] - np.float32(0.82), 0), rows, columns)
        wide = (
            gaussian_filter(small, 2.0) * 0.5 + gaussian_filter(small, 7.0) * 0.35 + gaussian_filter(small, 18.0) * 0.3
        )
        if shafts is not None and rays > 0:
            wide += np.float32(rays) * _radial(
                np.minimum(small, 1.5) * (np.arange(rows) < horizon * rows)[:, None], shafts, canvas
            )
        grown = _grow(np.asarray(wide, np.float32) * np.float32(strength), canvas.height, canvas.width)
        canvas.rgb[..., channel] += grown


def _radial(light: Array, source: tuple[float, float], canvas: Canvas) -> Array:
    """Light smeared away from its source: four doublings of a zoom-and-add."""
    rows, columns = light.shape
    at_row, at_column = source[1] * rows, (source[0] / canvas.span + 0.5) * columns
    r = np.arange(rows, dtype=np.float32)[:, None]
    c = np.arange(columns, dtype=np.float32)[None, :]
    out = light
    for step in (0.04, 0.08, 0.16, 0.32):
        rr = np.clip(at_row + (r - at_row) * (1 - step), 0, rows - 1).astype(np.int64)
        cc = np.clip(at_column + (c - at_column) * (1 - step), 0, columns - 1).astype(np.int64)
        out = 0.5 * out + 0.5 * out[rr, cc]
    return np.asarray(gaussian_filter(out, 1.0), np.float32)


def grade(canvas: Canvas, contrast: float = 1.0, saturation: float = 1.06, vignette: float = 0.16) -> Array:
    """The finished picture in sRGB, 0 to 1, (height, width, 3); the canvas's own array, used up."""
    rgb = canvas.rgb
    across = (canvas.x / np.float32(canvas.span / 2)) ** 2
    for part in blocks(canvas.height, canvas.width):
        area = rgb[part]
        down = ((canvas.y[part, None] - np.float32(0.5)) * 2) ** 2
        area *= (1 - np.float32(vignette) * ((across[None, :] + down) * np.float32(0.5)) ** 1.5)[..., None]
        luma = area @ np.array([0.2126, 0.7152, 0.0722], np.float32)
        whiter = np.clip((luma - 0.75) * np.float32(0.35), 0, 0.7)[..., None]
        grey = luma[..., None]
        area += (grey - area) * (whiter + (1 - np.float32(saturation)))
        np.maximum(area, 0, out=area)
        high = area > 0.7
        area[high] = 0.7 + 0.3 * np.tanh((area[high] - np.float32(0.7)) * np.float32(1 / 0.62))
        encoded = np.where(
            area <= 0.0031308, area * 12.92, 1.055 * np.maximum(area, 1e-9) ** np.float32(1 / 2.4) - 0.055
        )
        curve = encoded * encoded * (3 - 2 * encoded)
        area[:] = encoded + (curve - encoded) * np.float32(0.28 * contrast)
    return rgb


def quantise(picture: Array, seed: int, dither: bool = True) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """sRGB 0 to 1 as bytes; with triangular noise of one level, so that no gradient shows bands."""
    out = np.empty(picture.shape, np.uint8)
    rng = stream(seed, "dither")
    for part in blocks(picture.shape[0], picture.shape[1]):
        area = picture[part] * np.float32(255)
        if dither:
            noise = rng.random((*area.shape[:2], 2), dtype=np.float32)
            area += (noise[..., 0] - noise[..., 1])[..., None]
        out[part] = np.clip(np.rint(area), 0, 255).astype(np.uint8)
    return out
