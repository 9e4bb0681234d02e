"""A skyline: rows of buildings behind each other, their windows, crowns and the light they give at night."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import Canvas
from .noise import Array, ramp
from .palette import Palette, linear, mix

LAMPS = tuple(linear(code) for code in ("ffd08a", "ffb860", "ffe4b8", "fff4e0", "c8e0ff"))
NEONS = tuple(linear(code) for code in ("ff2e88", "27e0ff", "b44cff", "ffd23c", "3cffb0"))


@dataclass(frozen=True)
class City:
    """ground: y of the street line. lit: share of lit windows, 0 by day to 0.6 at night. neon: coloured edges.

    tall: height of the highest tower, units. sun_x: where the light comes from. focus: x of the centre.
    dim: how bright the walls are, 1 by day, less against the light.
    """

    palette: Palette
    ground: float
    lit: float
    neon: bool
    tall: float
    sun_x: float
    focus: float
    dim: float


@dataclass(frozen=True)
class Facade:
    """A building's windows: their spacing (units), whether the wall is glass, the key of their pattern, share lit."""

    across: float
    down: float
    glass: bool
    key: int
    lit: float


def paint_city(canvas: Canvas, city: City, rng: np.random.Generator) -> None:
    """Four rows of buildings from the haze to the waterfront."""
    for number, fade in enumerate((0.84, 0.60, 0.30, 0.04)):
        x = -canvas.span / 2 - 0.05
        while x < canvas.span / 2 + 0.05:
            wide = float(rng.uniform(0.026, 0.070)) * (1.0 + 0.18 * number)
            near = np.exp(-(((x - city.focus) / 0.42) ** 2))
            peak = city.tall * (0.26 + 0.74 * near) * (0.92, 1.0, 0.80, 0.40)[number]
            high = peak * float(rng.uniform(0.36, 1.0)) ** 1.4
            _building(canvas, city, rng, x, wide, max(0.03, high), fade, 40.0 - 8 * number)
            x += wide * float(rng.uniform(0.75, 1.35))


def _building(
    canvas: Canvas, city: City, rng: np.random.Generator, x: float, wide: float, high: float, fade: float, depth: float
) -> None:
    """One building with setbacks and perhaps a spire, from its crown down."""
    palette = city.palette
    night = city.lit > 0
    stone = linear(("8c8a90", "6d7684", "9a8c80", "5c6878", "a49c94")[int(rng.integers(5))])
    glass = float(rng.uniform(0, 1)) < 0.45
    base = (
        stone
        * (palette.shade * np.float32(0.62 if not night else 0.28) + palette.light * np.float32(0.10 * palette.power))
        * np.float32(city.dim)
    )
    crown = int(rng.integers(5))
    tiers = [(0.0, 1.0, high)]
    if crown in (1, 2) and high > 0.16:
        tiers = [(0.0, 1.0, high * 0.72), (0.14, 0.72, high * 0.9), (0.28, 0.44, high)]
    lit = city.lit * float(rng.uniform(0.25, 1.5)) * (1 - 0.35 * fade)
    style = Facade(
        float(rng.uniform(0.0038, 0.0060)), float(rng.uniform(0.0060, 0.0085)), glass, int(rng.integers(1 << 31)), lit
    )
    for inset, share, top in tiers:
        _block(canvas, city, x + wide * inset, wide * share, city.ground - top, base, fade, depth, style)
    if crown in (2, 3) and high > 0.2:
        _mast(
            canvas, city, x + wide / 2, city.ground - high, 0.22 * high * float(rng.uniform(0.4, 1)), base, fade, depth
        )
    if city.neon and rng.uniform() < 0.4 and fade < 0.7:
        tone = NEONS[int(rng.integers(5))] * np.float32(1.6 * (1 - fade))
        edge = x if rng.uniform() < 0.5 else x + wide - 0.004
        place = canvas.box(edge, city.ground - high, edge + 0.003, city.ground - high * float(rng.uniform(0.1, 0.6)))
        canvas.rgb[place] = tone


def _block(
    canvas: Canvas,
    city: City,
    left: float,
    wide: float,
    top: float,
    base: Array,
    fade: float,
    depth: float,
    style: Facade,
) -> None:
    """A box of the building: lit side, windows in a grid, its foot in the haze."""
    place = canvas.box(left, top, left + wide, city.ground)
    y, x = canvas.y[place[0], None], canvas.x[None, place[1]]
    if y.size == 0 or x.size == 0:
        return
    count = max(2, round(wide / style.across))
    across = (x - np.float32(left)) / np.float32(wide)
    toward = 1.0 if city.sun_x > left + wide / 2 else 0.0
    face = np.float32(0.82) + np.float32(0.36) * ramp(1 - toward, toward, across)
    colour = base * np.broadcast_to(face, (y.shape[0], x.shape[1]))[..., None]
    if style.glass:
        climb = np.clip((np.float32(city.ground) - y) / np.float32(max(0.1, city.tall)), 0, 1)
        share = (np.float32(0.22) + np.float32(0.3) * climb) * np.float32(0.45 if city.lit > 0.3 else city.dim)
        colour = colour + (mix(city.palette.low, city.palette.high, 0.5) - colour) * share[..., None]
    colour, lamps = _windows(
        canvas, colour, across * np.float32(count), (y - np.float32(top)) / np.float32(style.down), style
    )
    foot = np.clip(1 - (np.float32(city.ground) - y) * np.float32(3.2), 0, 1) * np.float32(0.28 * city.dim)
    veil = np.clip(np.float32(fade) + foot * (1 - fade), 0, 0.95)
    air = mix(city.palette.haze, city.palette.horizon, 0.3 + 0.4 * float(np.exp(-abs(left - city.sun_x) * 3)))
    keep = 1 - np.float32(0.55) * lamps  # a lamp shines through haze that hides a wall
    colour = colour + (air - colour) * (veil * keep)[..., None]
    edge = np.clip((x - np.float32(left)) * np.float32(canvas.across) + 0.5, 0, 1) * np.clip(
        (np.float32(left + wide) - x) * np.float32(canvas.across) + 0.5, 0, 1
    )
    alpha = edge * np.clip((y - np.float32(top)) * np.float32(canvas.height) + 0.5, 0, 1)
    canvas.cover(place, np.asarray(colour, np.float32), alpha, depth)


def _windows(canvas: Canvas, wall: Array, across: Array, down: Array, style: Facade) -> tuple[Array, Array]:
    """A wall with its windows, at places (across, down) in windows; and how much of each pixel is a lit one."""
    ix, iy = np.floor(across).astype(np.int64), np.floor(down).astype(np.int64)
    soft_x = max(0.08, canvas.span / canvas.width / style.across * 0.7)
    soft_y = max(0.08, 1 / canvas.height / style.down * 0.7)
    pane = ramp(0.30 + soft_x, 0.30 - soft_x, np.abs(across - ix - 0.5))
    pane = pane * ramp(0.30 + soft_y, 0.30 - soft_y, np.abs(down - iy - 0.5))
    # A hash of the window's place, so that the same windows are lit at every size.
    number = (ix * 73856093 ^ iy * 19349663 ^ style.key) & 0x7FFFFFFF
    number = (number * 1103515245 + 12345) & 0x7FFFFFFF
    number = ((number >> 7) * 69069 + style.key) & 0xFFFF
    lit = number < int(65536 * style.lit)
    lamps = np.stack(LAMPS)[(number >> 3) % 5] * (np.float32(0.55) + (number % 97).astype(np.float32)[..., None] / 75)
    window = np.where(lit[..., None], lamps, wall * np.float32(0.8 if style.glass else 0.62))
    return wall + (window - wall) * pane[..., None], lit * pane


def _mast(
    canvas: Canvas, city: City, x: float, top: float, high: float, base: Array, fade: float, depth: float
) -> None:
    """A spire on a roof, with a red lamp at night."""
    place = canvas.box(x - 0.006, top - high, x + 0.006, top)
    y, across = canvas.y[place[0], None], canvas.x[None, place[1]]
    if y.size == 0 or across.size == 0:
        return
    width = np.float32(0.0008) + np.float32(0.0035) * (y - np.float32(top - high)) / np.float32(high)
    alpha = np.clip((width - np.abs(across - np.float32(x))) * np.float32(canvas.across) + 0.5, 0, 1)
    canvas.cover(place, np.asarray(mix(base * np.float32(0.8), city.palette.haze, fade), np.float32), alpha, depth)
    if city.lit > 0:
        lamp = linear("ff3020")[None, :] * np.float32(1.8)
        canvas.splat(np.array([x]), np.array([top - high]), lamp, 0.0018)
