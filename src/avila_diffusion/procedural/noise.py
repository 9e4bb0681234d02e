"""Random fields: streams of numbers by name, tileable textures with a power-law spectrum, value noise with slopes.

Everything is made from an integer seed and a name through PCG64, so that the same scene comes out in any process, and
in coordinates that do not know the picture's size, so that it comes out at any size.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
"""float32 in all that is as large as a picture."""

TEXTURE = 512
TABLE = 256
BLOCK = 1 << 17
"""Samples worked on at a time: what fits a processor's cache, and what keeps a 16 Mpx picture out of the swap."""


def stream(seed: int, name: str) -> np.random.Generator:
    """A stream of random numbers that depends on the seed (0 to 2**64 - 1) and the name of its use only."""
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode("utf-8"))]))


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices that walk `rows` rows of `width` samples, about BLOCK samples at a time."""
    step = max(1, BLOCK // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def texture(rng: np.random.Generator, beta: float = 1.6, lowest: float = 2.0, size: int = TEXTURE) -> Array:
    """A tileable (size, size) field of mean 0 and deviation 1 whose amplitude falls as frequency ** -beta.

    Frequencies below `lowest` cycles a tile are held back, so that a tile shows no single dominant blob.
    """
    white = rng.standard_normal((size, size), dtype=np.float32)
    spectrum = scipy.fft.rfft2(white)
    rows = (np.fft.fftfreq(size) * size).astype(np.float32)[:, None]
    columns = np.arange(size // 2 + 1, dtype=np.float32)[None, :]
    radius = np.sqrt(rows * rows + columns * columns)
    spectrum *= radius / (radius + 1e-6) * (radius + lowest) ** np.float32(-beta)
    field: Array = scipy.fft.irfft2(spectrum, s=(size, size)).astype(np.float32)
    return field / np.float32(field.std())


def sample(field: Array, u: Array, v: Array) -> Array:
    """Bilinear look-up in a tileable field, u along the columns and v along the rows, both in tiles (1 = once across).

    u and v are broadcast. The field's side is a power of two.
    """
    size = field.shape[0]
    fu, fv = np.float32(size) * u, np.float32(size) * v
    iu, iv = np.floor(fu), np.floor(fv)
    fu, fv = fu - iu, fv - iv
    left = iu.astype(np.int32) & (size - 1)
    right = (left + 1) & (size - 1)
    top = iv.astype(np.int32) & (size - 1)
    bottom = ((top + 1) & (size - 1)) * size
    top = top * size
    flat = field.ravel()
    upper: Array = flat.take(top + left)
    upper += fu * (flat.take(top + right) - upper)
    lower: Array = flat.take(bottom + left)
    lower += fu * (flat.take(bottom + right) - lower)
    lower -= upper
    lower *= fv
    lower += upper
    return lower


def table(rng: np.random.Generator) -> Array:
    """The lattice values of `value`: (TABLE, TABLE) in -1 to 1."""
    return rng.uniform(-1.0, 1.0, (TABLE, TABLE)).astype(np.float32)


def value(lattice: Array, x: Array, z: Array) -> tuple[Array, Array, Array]:
    """Value noise and its slopes (n, dn/dx, dn/dz) at points in lattice cells; quintic interpolation, n in -1 to 1."""
    ix, iz = np.floor(x), np.floor(z)
    fx, fz = x - ix, z - iz
    left = ix.astype(np.int32) & (TABLE - 1)
    right = (left + 1) & (TABLE - 1)
    near = iz.astype(np.int32) & (TABLE - 1)
    far = ((near + 1) & (TABLE - 1)) * TABLE
    near = near * TABLE
    flat = lattice.ravel()
    a = flat.take(near + left)
    b = flat.take(near + right) - a
    c = flat.take(far + left)
    d = flat.take(far + right) - c - b
    c -= a
    ux = fx * fx * fx * (fx * (fx * 6 - 15) + 10)
    uz = fz * fz * fz * (fz * (fz * 6 - 15) + 10)
    sx = 1 - fx
    sx *= fx
    sz = 1 - fz
    sz *= fz
    cross = d * ux
    n = a + b * ux + (c + cross) * uz
    return n, 30 * sx * sx * (b + d * uz), 30 * sz * sz * (c + cross)


def wiggle(rng: np.random.Generator, x: Array, cells: float, octaves: int = 4, fall: float = 0.5) -> Array:
    """A one-dimensional fractal curve in about -1 to 1 over positions x, `cells` lattice cells a unit of x."""
    total = np.zeros(x.shape, np.float32)
    amplitude = 1.0
    for _ in range(octaves):
        lattice = rng.uniform(-1.0, 1.0, 1024).astype(np.float32)
        place = x * np.float32(cells) + np.float32(300.0)
        cell = np.floor(place)
        part = place - cell
        part = part * part * (3 - 2 * part)
        index = cell.astype(np.int32) & 1023
        total += amplitude * (lattice[index] * (1 - part) + lattice[(index + 1) & 1023] * part)
        cells, amplitude = cells * 2.03, amplitude * fall
    return total


def ramp(low: float, high: float, x: Array) -> Array:
    """Smoothstep: 0 below `low`, 1 above `high`; `low` may be the greater one."""
    part: Array = np.clip((x - np.float32(low)) * np.float32(1.0 / (high - low)), 0, 1)
    return part * part * (3 - 2 * part)
