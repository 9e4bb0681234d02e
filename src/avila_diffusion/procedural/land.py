"""Landforms: the heights of mountains, hills, dunes, mesas and islands, and the colours of their ground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .noise import TABLE, Array, ramp, sample, stream, table, texture, value
from .palette import Palette
from .terrain import Ground, Height, Shade

_TURN = (np.float32(0.8), np.float32(0.6))


def eroded(lattices: list[Array], x: Array, z: Array, footprint: Array, octaves: int, ridge: float) -> Array:
    """Fractal height in about -1 to 1, less rough where it is already steep (Íñigo Quílez's erosion-like sum).

    ridge: 0 rolling, 1 sharp crests. Octaves finer than a pixel fade out, so that distance does not flicker.
    """
    total = np.zeros(x.shape, np.float32)
    slope_x, slope_z = np.zeros(x.shape, np.float32), np.zeros(x.shape, np.float32)
    amplitude, cell = np.float32(0.5), np.float32(1.0)
    rows = x.shape[0]
    for octave in range(octaves):
        seen = ramp(1.0, 0.35, footprint / cell)
        if seen.shape[0] > 1:  # the far rows, where this octave is finer than a pixel, are left alone
            rows = min(rows, int(seen.any(axis=1).sum()))
            seen = seen[:rows]
        if rows == 0 or not seen.any():
            break
        x, z = x[:rows], z[:rows]
        n, nx, nz = value(lattices[octave % len(lattices)], x, z)
        if ridge > 0 and octave < 4:
            sharp = np.sqrt(n * n + np.float32(0.003))
            n = n + np.float32(ridge) * (np.float32(0.62) - 2 * sharp - n)
        along, aside = slope_x[:rows], slope_z[:rows]
        along += nx * np.float32(0.6)
        aside += nz * np.float32(0.6)
        total[:rows] += (amplitude * seen) * n / (1 + along * along + aside * aside)
        amplitude *= np.float32(0.46)
        cell *= np.float32(0.5)
        x, z = (_TURN[0] * x - _TURN[1] * z) * 2, (_TURN[1] * x + _TURN[0] * z) * 2
    return total


@dataclass(frozen=True)
class Relief:
    """Parameters of a landform. Units: the eye stands about one unit over the valley.

    size: width of a mountain; tall: height of the peaks; ridge: sharpness; start, full: distances where the land
    begins to rise and where it has its full height; gap: how much lower the land is around `gap_x` (as x / z);
    trees: height of woods below the treeline; base: height of the plain.
    """

    size: float = 20.0
    tall: float = 34.0
    ridge: float = 0.7
    start: float = 4.0
    full: float = 60.0
    gap: float = 0.6
    gap_x: float = 0.0
    trees: float = 0.0
    treeline: float = 4.0
    base: float = 0.0
    octaves: int = 8


def mountains(rng: np.random.Generator, relief: Relief) -> Height:
    """Ranges behind ranges, lower around the gap and higher with distance."""
    lattices = [table(rng) for _ in range(3)]
    at = rng.uniform(20, 200, 2)

    def height(x: Array, z: Array, footprint: Array) -> Array:
        scale = np.float32(1 / relief.size)
        place = x * scale + np.float32(at[0]), z * scale + np.float32(at[1])
        h = eroded(lattices, *place, footprint * scale, relief.octaves, relief.ridge)
        aside = x / z - np.float32(relief.gap_x)
        open_ = np.exp(-aside * aside * np.float32(14.0))
        lift = 1 - np.float32(relief.gap) * open_
        rise = ramp(relief.start, relief.full, z)
        rise = np.float32(0.06) + np.float32(0.94) * rise * np.sqrt(rise)
        h = (h + np.float32(0.22)) * lift * rise * np.float32(relief.tall) + np.float32(relief.base)
        if relief.trees > 0:
            h = h + _woods(lattices, x, z, footprint, h, relief)
        return h

    return height


def _woods(lattices: list[Array], x: Array, z: Array, footprint: Array, h: Array, relief: Relief) -> Array:
    """Tree tops as spikes on the ground below the treeline, where trees are still wider than a pixel."""
    cell = relief.trees * 0.55
    seen = ramp(1.3, 0.5, footprint / np.float32(cell))
    # Turned and bent, or the cells would stand in rows like an orchard.
    bend, bend_x, _ = value(lattices[0], x / np.float32(cell * 3), z / np.float32(cell * 3))
    u = (x * np.float32(0.82) - z * np.float32(0.57)) / np.float32(cell) + bend * np.float32(1.3)
    v = (x * np.float32(0.57) + z * np.float32(0.82)) / np.float32(cell) + bend_x * np.float32(0.5)
    crowns = _cones(lattices[1], u, v)
    stand, _, _ = value(lattices[2], x / np.float32(cell * 14), z / np.float32(cell * 14))
    below = ramp(relief.treeline, relief.treeline * 0.6, h + stand * np.float32(relief.treeline * 0.3))
    wood: Array = np.float32(relief.trees * 1.35) * seen * below * crowns * ramp(-0.8, -0.2, stand)
    return wood


def _cones(lattice: Array, x: Array, z: Array) -> Array:
    """One cone in each cell, of its own size and place, 0 to 1: the crowns of spruces."""
    iz = np.floor(z)
    x = x + lattice[0].take(iz.astype(np.int32) & (TABLE - 1))
    ix = np.floor(x)
    column, row = ix.astype(np.int32) & (TABLE - 1), (iz.astype(np.int32) & (TABLE - 1)) * TABLE
    flat = lattice.ravel()
    first, second = flat.take(row + column), flat.take((row + column + TABLE * 7 + 3) % (TABLE * TABLE))
    dx = x - ix - np.float32(0.5) - np.float32(0.22) * first
    dz = z - iz - np.float32(0.5) - np.float32(0.22) * second
    tall = np.float32(0.72) + np.float32(0.28) * flat.take((row + column + TABLE * 3 + 11) % (TABLE * TABLE))
    crown: Array = np.maximum(tall - np.sqrt(dx * dx + dz * dz) * np.float32(2.3), 0)
    return crown


@dataclass(frozen=True)
class Cover:
    """Colours of the ground, linear: rock, low (grass, woods), snow; where snow starts, how steep it still lies."""

    rock: Array
    low: Array
    snow: Array
    snow_from: float
    low_to: float
    haze: float
    mist: float
    mist_top: float
    crag: float = 0.22
    sharp: float = 1.0


def shader(palette: Palette, cover: Cover, sun_x: float, far: float, backlit: bool) -> Shade:
    """The light on ground: direct light by slope, sky light from above, then the air between.

    The air takes distance into haze, brighter toward the sun, and fills valleys with mist below `mist_top`.
    """
    side = 1.0 if sun_x >= 0 else -1.0
    direction = np.array([0.75 * side, 0.42, 0.5] if backlit else [0.85 * side, 0.55, -0.30], np.float32)
    direction /= np.linalg.norm(direction)

    crags = texture(stream(1, "crags"), 1.3, 4.0, 256)

    def shade(ground: Ground) -> Array:
        # Steep faces would show the map's detail drawn out downward; texture by height puts ledges across them.
        craggy = sample(
            crags, (ground.x + ground.z * np.float32(0.6)) * np.float32(0.030), ground.h * np.float32(0.055)
        )
        up = 1 / np.sqrt(1 + ground.slope_x**2 + ground.slope_z**2)
        steep = 1 - up
        facing = (-ground.slope_x * direction[0] - ground.slope_z * direction[2]) * np.float32(cover.sharp) + direction[
            1
        ]
        facing *= up
        facing += np.float32(cover.crag) * craggy * steep
        direct = np.clip(facing, 0, None) * np.float32(palette.power * (0.48 if backlit else 0.66))
        ambient = (np.float32(0.35) + np.float32(0.3) * up) * np.float32(0.9)
        snowy = ramp(
            -0.22,
            0.22,
            ground.h / np.float32(cover.snow_from)
            - 1
            + (up - np.float32(0.62)) * np.float32(0.9)
            + craggy * np.float32(0.10),
        )
        low = ground.h / np.float32(cover.low_to)
        green = np.maximum(ramp(1.15, 0.75, low), ramp(1.9, 0.8, low) * ramp(0.40, 0.75, up))
        albedo = cover.rock + (cover.low - cover.rock) * green[..., None]
        albedo += (cover.snow - albedo) * snowy[..., None]
        colour = albedo * (direct[..., None] * palette.light + ambient[..., None] * palette.shade)
        return veil(palette, cover, ground, colour, sun_x, far)

    return shade


def veil(palette: Palette, cover: Cover, ground: Ground, colour: Array, sun_x: float, far: float) -> Array:
    """The air in front of the ground laid over its colour."""
    thick = 1 - np.exp(-(ground.z / np.float32(far)) * np.float32(cover.haze))
    low = np.exp(-np.maximum(ground.h, 0) / np.float32(cover.mist_top))
    mist = np.float32(cover.mist) * low * (1 - np.exp(-ground.z * np.float32(4.0 / far)))
    part = 1 - (1 - thick) * (1 - np.clip(mist, 0, 1))
    toward = np.exp(-np.abs(ground.screen_x - np.float32(sun_x)) * np.float32(2.6)) * np.float32(0.55)
    # What scatters toward the eye from nearby air is the colour of the shade; the sun's own comes in with distance.
    base = palette.shade + (palette.haze - palette.shade) * np.clip(thick * np.float32(1.35), 0, 1)[..., None]
    air = base + (palette.horizon - base) * (toward + np.float32(0.20) * thick)[..., None]
    air += palette.glow * (toward * thick * np.float32(0.22 * min(1.0, palette.power)))[..., None]
    colour += (air - colour) * part[..., None]
    return colour
