"""Styles as changes to the finished picture: pigment on paper, ink, brush strokes, flat inks, a coarse grid.

Every style takes a picture (height, width, 3) in sRGB, 0 to 1, and the canvas for its depth, and gives such a picture.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d, median_filter, sobel

from .canvas import Canvas
from .grade import resize
from .noise import Array, ramp, sample, stream, texture

Style = Callable[[Array, Canvas, int], Array]


def luma(picture: Array) -> Array:
    """Brightness (height, width) of an sRGB picture."""
    return picture @ np.array([0.2126, 0.7152, 0.0722], np.float32)


def _scale(canvas: Canvas) -> float:
    """Lengths in styles are given for a picture 512 pixels high (or across, where it is lower)."""
    return max(0.05, min(canvas.height, canvas.across, canvas.width * 2.0, canvas.height * 2.0) / 512)


def _blur(picture: Array, sigma: float) -> Array:
    if sigma < 0.2:
        return picture.copy()
    out = gaussian_filter1d(picture, sigma, axis=0, truncate=2.5)
    return np.asarray(gaussian_filter1d(out, sigma, axis=1, truncate=2.5), np.float32)


def _paper(canvas: Canvas, seed: int, name: str, cells: float = 3.2) -> Array:
    """Grain of paper, mean 0 and deviation 1, (height, width)."""
    fibre = texture(stream(seed, name), 0.9, 12.0)
    u, v = np.broadcast_arrays(
        canvas.x[None, :] * np.float32(cells * 0.31), canvas.y[:, None] * np.float32(cells * 0.31)
    )
    return sample(fibre, u, v)


def _displace(picture: Array, down: Array, along: Array) -> Array:
    """The picture looked up at places shifted by (down, along) pixels, nearest pixel."""
    height, width = down.shape
    rows = np.clip(np.rint(np.arange(height, dtype=np.float32)[:, None] + down), 0, height - 1).astype(np.int64)
    columns = np.clip(np.rint(np.arange(width, dtype=np.float32)[None, :] + along), 0, width - 1).astype(np.int64)
    moved: Array = picture.reshape(-1, picture.shape[-1]).take(rows * width + columns, axis=0)
    return moved


def watercolour(picture: Array, canvas: Canvas, seed: int) -> Array:
    """Washes with hard wet edges, pigment that settles in the paper, colours that bleed, a white border of paper."""
    scale = _scale(canvas)
    rng = stream(seed, "watercolour")
    wet = texture(rng, 1.8, 5.0)
    u, v = np.broadcast_arrays(canvas.x[None, :] * np.float32(0.9), canvas.y[:, None] * np.float32(0.9))
    a, b = sample(wet, u, v), sample(wet, u + np.float32(0.37), v + np.float32(0.61))
    amount = np.float32(3.2 * scale)
    bled = _displace(_blur(picture, 1.5 * scale), a * amount, b * amount)
    light = luma(bled)
    steps = np.float32(7.0)
    level = light * steps + np.float32(0.22) * a
    base = np.floor(level)
    washed = (base + ramp(0.38, 0.62, level - base)) / steps
    ratio = (np.float32(0.25) * light + np.float32(0.75) * washed + np.float32(0.03)) / (light + np.float32(0.03))
    bled = bled * ratio[..., None]
    soft = luma(_blur(bled, 2.6 * scale))
    edge = np.clip(soft - luma(_blur(bled, 0.7 * scale)), 0, 0.2)
    grain = _paper(canvas, seed, "paper", 4.0)
    density = np.float32(1.0) + np.float32(2.6) * edge + np.float32(0.10) * a + np.float32(0.07) * grain
    grey = luma(bled)[..., None]
    bled = grey + (bled - grey) * np.float32(1.22)
    pigment = np.clip(bled * np.float32(0.86) + np.float32(0.14), 0.02, 1) ** (density[..., None] * np.float32(0.80))
    paper = np.array([0.985, 0.97, 0.94], np.float32) * (1 + np.float32(0.018) * grain)[..., None]
    margin = _margin(canvas, 0.035, a * np.float32(0.0035) + b * np.float32(0.002))
    out = paper * (1 - margin[..., None] + margin[..., None] * pigment)
    return np.asarray(np.clip(out, 0, 1), np.float32)


def _margin(canvas: Canvas, wide: float, wave: Array) -> Array:
    """1 within the painted area and 0 on the paper around it; the border wavers. Tiny pictures have no border."""
    if min(canvas.height, canvas.width) < 48:
        return np.ones((canvas.height, canvas.width), np.float32)
    aside = np.float32(canvas.span / 2) - np.abs(canvas.x)[None, :]
    above = np.float32(0.5) - np.abs(canvas.y - np.float32(0.5))[:, None]
    return ramp(wide, wide + 0.006, np.minimum(aside, above) + wave)


BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], np.float32) / 16 - np.float32(15 / 32)


def pixel_art(picture: Array, canvas: Canvas, seed: int) -> Array:
    """A grid of about 128 cells across the shorter side, sixteen to twenty-four colours, ordered dither."""
    cell = max(1, round(min(canvas.height, canvas.width) / 128))
    rows, columns = -(-canvas.height // cell), -(-canvas.width // cell)
    small = np.stack([resize(picture[..., c], rows, columns) for c in range(3)], axis=-1)
    grey = luma(small)[..., None]
    small = np.clip(grey + (small - grey) * np.float32(1.25), 0, 1)
    colours = _choose_colours(small, 24, seed)
    pattern = np.tile(BAYER, (rows // 4 + 1, columns // 4 + 1))[:rows, :columns]
    dithered = small + pattern[..., None] * np.float32(0.045)
    out = _nearest(dithered, colours)
    return out.repeat(cell, axis=0).repeat(cell, axis=1)[: canvas.height, : canvas.width]


def _nearest(picture: Array, colours: Array) -> Array:
    flat = picture.reshape(-1, 3)
    best = np.full(len(flat), np.inf, np.float32)
    index = np.zeros(len(flat), np.int64)
    for number, colour in enumerate(colours):
        away = ((flat - colour) ** 2 * np.array([0.6, 1.0, 0.45], np.float32)).sum(axis=1)
        nearer = away < best
        best[nearer], index[nearer] = away[nearer], number
    return colours[index].reshape(picture.shape)


def _choose_colours(picture: Array, count: int, seed: int) -> Array:
    """`count` colours that stand for the picture: k-means on some of its pixels, from spread-out starts."""
    flat = picture.reshape(-1, 3)
    rng = stream(seed, "colours")
    points = flat[rng.integers(0, len(flat), min(4096, len(flat)))]
    centres = points[:1]
    away = np.full(len(points), np.inf, np.float32)
    for _ in range(count - 1):
        away = np.minimum(away, ((points - centres[-1]) ** 2).sum(axis=1))
        centres = np.concatenate([centres, points[int(np.argmax(away)) : int(np.argmax(away)) + 1]])
    for _ in range(6):
        near = ((points[:, None, :] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)
        number = np.bincount(near, minlength=count).astype(np.float32)
        sums = np.stack([np.bincount(near, points[:, c], count) for c in range(3)], axis=1).astype(np.float32)
        filled = number > 0
        centres[filled] = sums[filled] / number[filled, None]
    return centres


def line_art(picture: Array, canvas: Canvas, seed: int) -> Array:
    """Ink on cream paper: contours where depth or tone breaks, hatching that grows denser with shade."""
    scale = _scale(canvas)
    grain = _paper(canvas, seed, "drawing paper", 4.0)
    tone = luma(_blur(picture, 0.7 * scale))
    far = np.log(np.maximum(canvas.depth, 0.3))
    breaks = np.hypot(sobel(far, axis=0, mode="nearest"), sobel(far, axis=1, mode="nearest"))
    contour = np.clip(breaks * np.float32(0.55) - np.float32(0.10), 0, 1)
    wide = luma(_blur(picture, 1.9 * scale))
    detail = np.clip((wide - tone) * np.float32(11.0) - np.float32(0.16), 0, 1)
    ink = np.maximum(gaussian_filter(contour, 0.6 * scale) * np.float32(1.2), detail)
    shade = luma(_blur(picture, 2.2 * scale))
    low, high = np.percentile(shade, (2, 98))
    shade = np.clip((shade - low) / max(0.05, float(high - low)), 0, 1)
    x = np.arange(canvas.width, dtype=np.float32)[None, :] / np.float32(scale)
    y = np.arange(canvas.height, dtype=np.float32)[:, None] / np.float32(scale)
    hand = grain * np.float32(0.35)
    for angle, below in ((0.72, 0.66), (-0.68, 0.40), (0.05, 0.22)):
        along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
        wave = np.abs(((along + hand) / np.float32(4.6)) % 1 - np.float32(0.5)) * 2
        dark = np.clip((np.float32(below) - shade) / np.float32(below), 0, 1)
        stroke = ramp(0.26, 0.0, wave - dark * np.float32(0.34)) * ramp(0.0, 0.12, dark)
        ink = np.maximum(ink, stroke * np.float32(0.72))
    ink = np.clip(ink * (1 + np.float32(0.10) * grain), 0, 1) * _margin(canvas, 0.03, grain * np.float32(0.0012))
    paper = np.array([0.972, 0.955, 0.915], np.float32) * (1 + np.float32(0.012) * grain)[..., None]
    pen = np.array([0.10, 0.10, 0.13], np.float32)
    return np.asarray(np.clip(paper + (pen - paper) * ink[..., None], 0, 1), np.float32)


def poster(picture: Array, canvas: Canvas, seed: int) -> Array:
    """Seven flat inks with clean edges: shapes smoothed, each pixel one of few colours, edges anti-aliased."""
    scale = _scale(canvas)
    shrink = max(1, round(2 * scale))  # shapes do not gain from more pixels; the edges are drawn at full size below
    size = max(1, canvas.height // shrink), max(1, canvas.width // shrink)
    work = np.stack([resize(picture[..., c], *size) for c in range(3)], axis=-1)
    smooth = _blur(work, 1.3 * scale / shrink)
    smooth = np.stack([median_filter(smooth[..., c], size=3) for c in range(3)], axis=-1)
    grey = luma(smooth)[..., None]
    smooth = np.clip(grey + (smooth - grey) * np.float32(1.25), 0, 1)
    colours = _choose_colours(smooth, 8, seed)
    out = np.empty_like(picture)
    full = picture.shape[:2]
    best = np.full(full, -np.inf, np.float32)
    out[:] = colours[0]
    nearest = _nearest(smooth, colours)
    for colour in colours:
        mask = (nearest == colour).all(axis=2).astype(np.float32)
        share = gaussian_filter(mask, max(1.25, 1.7 * scale / shrink), truncate=2.5)
        share = resize(share, *full)
        part = np.clip((share - best) * np.float32(7.0 * max(1.0, scale)) + np.float32(0.5), 0, 1)
        out += (colour - out) * part[..., None]
        np.maximum(best, share, out=best)
    grain = _paper(canvas, seed, "print", 5.0)
    return np.clip(out * (1 + np.float32(0.012) * grain)[..., None], 0, 1)


def oil(picture: Array, canvas: Canvas, seed: int) -> Array:
    """Strokes along the picture's contours, coarse ones under fine ones, lit like ridges of paint."""
    scale = _scale(canvas)
    grey = luma(picture)[..., None]
    base = np.clip(grey + (picture - grey) * np.float32(1.22), 0, 1)
    tone = luma(_blur(base, 2.2 * scale))
    down, along = sobel(tone, axis=0, mode="nearest"), sobel(tone, axis=1, mode="nearest")
    # The structure tensor, smoothed, gives each place a direction even where the picture is flat.
    xx, yy, xy = (
        gaussian_filter(field, 5.0 * scale, truncate=2.5) for field in (along * along, down * down, along * down)
    )
    swirl = sample(
        texture(stream(seed, "flow"), 2.3, 3.0),
        *np.broadcast_arrays(canvas.x[None, :] * np.float32(0.5), canvas.y[:, None] * np.float32(0.5)),
    )
    angle = np.float32(0.5) * np.arctan2(2 * xy, xx - yy) + np.float32(np.pi / 2) + swirl * np.float32(0.30)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    rng = stream(seed, "brush")
    out = _strokes(base, cos, sin, rng, 7.0 * scale, scale, 2.4)
    fine = _strokes(base, cos, sin, rng, 3.4 * scale, scale, 1.1)
    busy = ramp(0.012, 0.07, gaussian_filter(np.abs(luma(base) - tone), 2.5 * scale, truncate=2.5))
    out += (fine - out) * (np.float32(0.30) + np.float32(0.70) * busy)[..., None]
    ridge = luma(out[..., :3]) * np.float32(0.6) + _bristles(cos, sin, rng, scale) * np.float32(0.055)
    relief = np.zeros_like(ridge)
    relief[1:, 1:] = ridge[1:, 1:] - ridge[:-1, :-1]
    return np.asarray(np.clip(out * (1 + np.clip(relief * np.float32(1.9), -0.16, 0.20))[..., None], 0, 1), np.float32)


def _bristles(cos: Array, sin: Array, rng: np.random.Generator, scale: float) -> Array:
    """White noise drawn out along the strokes (line integral convolution, Cabral & Leedom 1993, few taps)."""
    noise = rng.standard_normal(cos.shape, dtype=np.float32)
    if scale > 1.4:
        noise = gaussian_filter(noise, 0.5 * scale) * np.float32(scale)
    total = np.zeros_like(noise)
    for step in np.linspace(-7, 7, 9):
        total += _displace(noise[..., None], sin * np.float32(step * scale), cos * np.float32(step * scale))[..., 0]
    return total / 3


def _strokes(
    picture: Array, cos: Array, sin: Array, rng: np.random.Generator, reach: float, scale: float, wide: float
) -> Array:
    """Each pixel takes the colour at the heart of the stroke that covers it: cells stretched along the direction."""
    height, width = cos.shape
    cell = max(1.0, wide * 1.6 * scale)
    noise = rng.standard_normal((int(height / cell) + 3, int(width / cell) + 3), dtype=np.float32)
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None, :]
    best = np.full((height, width), -np.inf, np.float32)
    out = np.empty((height, width), np.int64)
    for step in np.linspace(-1, 1, 7):
        r = np.clip(rows + sin * np.float32(step * reach), 0, height - 1)
        c = np.clip(columns + cos * np.float32(step * reach), 0, width - 1)
        row, column = (r / np.float32(cell)).astype(np.int64), (c / np.float32(cell)).astype(np.int64)
        strength = noise.ravel().take(row * noise.shape[1] + column) - np.float32(0.25 * abs(step))
        higher = strength > best
        best = np.where(higher, strength, best)
        heart = np.clip((row + 0.5) * cell, 0, height - 1).astype(np.int64) * width + np.clip(
            (column + 0.5) * cell, 0, width - 1
        ).astype(np.int64)
        out = np.where(higher, heart, out)
    return _blur(_blur(picture, 0.8 * scale).reshape(-1, 3).take(out, axis=0), 0.45 * scale)


def monochrome(picture: Array, canvas: Canvas, seed: int) -> Array:
    """A silver print: red-filtered tones, deep blacks, film grain."""
    tone = picture @ np.array([0.48, 0.38, 0.14], np.float32)
    low, high = np.percentile(tone, (0.5, 99.5))
    tone = np.clip((tone - low) / max(0.15, float(high - low)), 0, 1)
    tone = tone + (tone * tone * (3 - 2 * tone) - tone) * np.float32(0.55)
    grain = _paper(canvas, seed, "film", 7.0)
    tone = np.clip(tone + grain * np.float32(0.018) * (1 - np.abs(2 * tone - 1)), 0, 1)
    return np.asarray(tone[..., None] * np.array([1.0, 0.99, 0.97], np.float32), np.float32)


def neon(picture: Array, canvas: Canvas, seed: int) -> Array:
    """Saturated light with a faint raster of screen lines."""
    grey = luma(picture)[..., None]
    out = np.clip(grey + (picture - grey) * np.float32(1.18), 0, 1)
    period = max(2.0, canvas.height / 170)
    lines = np.float32(1) - np.float32(0.07) * (np.cos(np.arange(canvas.height) * (2 * np.pi / period)) > 0)
    return np.asarray(out * lines[:, None, None], np.float32)


STYLED: dict[str, Style] = {
    "watercolour": watercolour,
    "pixel art": pixel_art,
    "line art": line_art,
    "poster": poster,
    "oil": oil,
    "monochrome": monochrome,
    "neon": neon,
}
