"""Where noise comes from: the only place that draws numbers.

Every image has a source of its own, made from its seed, so an image of a batch can be made again alone. Each draw
continues the image's stream: first the initial noise, then what the sampler adds between steps.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import RequestError

MAX_SEED = 2**64 - 1

StepNoise = Callable[[float, float], Tensor]
"""noise(sigma, sigma_next): fresh unit noise for the step between two levels; the latent's shape, dtype and device."""


class NoiseSource(Protocol):
    """A stream of unit normal numbers on the CPU."""

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The next numbers of the stream: float32, on the CPU, of this shape."""


class PhiloxSource:
    """The numbers of an NVIDIA GPU: Philox4x32-10 (Salmon et al. 2011, Random123) and Box-Muller.

    As AUTOMATIC1111's "NV" source, which gives what torch gives on CUDA for latents of usual size. Draw number k
    of the source takes counter (k, 0, i, 0) for element i.
    """

    def __init__(self, seed: int) -> None:
        self._key = (seed & 0xFFFFFFFF, seed >> 32)
        self._draws = 0

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        first, second = _philox(self._draws, prod(shape), self._key)
        self._draws += 1
        # The factors are rounded to float32, the arithmetic is float64. Both are exact but for 2 pi.
        unit, turn = 2.0**-32, 2.0**-32 * float(np.float32(2 * np.pi))
        radius = np.sqrt(-2.0 * np.log(first * unit + unit / 2))
        values = radius * np.sin(second * turn + turn / 2)
        return torch.from_numpy(values.astype(np.float32)).reshape(shape)


class TorchSource:
    """torch's generator on the CPU (Mersenne Twister), AUTOMATIC1111's "CPU" source.

    It reads the low 32 bits of a seed only.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float32)


SOURCES: dict[str, type[PhiloxSource] | type[TorchSource]] = {"nv": PhiloxSource, "cpu": TorchSource}


def noise_source(rng: Literal["nv", "cpu"], seed: int) -> NoiseSource:
    """The stream of one image. seed: 0 to 2^64 - 1. Raises RequestError for another seed or an unknown source."""
    if rng not in SOURCES:
        raise RequestError(f"noise source {rng!r} is unknown; there are {', '.join(SOURCES)}")
    if not 0 <= seed <= MAX_SEED:
        raise RequestError(f"seed {seed} is out of range; it must be from 0 to {MAX_SEED}")
    return SOURCES[rng](seed)


def initial_noise(source: NoiseSource, shape: tuple[int, int, int]) -> Tensor:
    """Unit noise that an image starts from. shape: (channels, h, w) of the latent. Returns (1, channels, h, w)."""
    return source.draw(shape).unsqueeze(0)


def step_noise(source: NoiseSource, like: Tensor) -> StepNoise:
    """What a sampler calls between steps: the source's next numbers, shaped, cast and placed as `like`, (1, …).

    The numbers do not depend on the levels; they are passed for noise that has a memory of them.
    """

    def noise(sigma: float, sigma_next: float) -> Tensor:
        return source.draw(tuple(like.shape[1:])).unsqueeze(0).to(device=like.device, dtype=like.dtype)

    return noise


Words = npt.NDArray[np.uint64]


def _philox(draw: int, count: int, key: tuple[int, int]) -> tuple[Words, Words]:
    """The first two of four 32-bit words for each of `count` elements, held in 64 bits so that products fit."""
    c0 = np.full(count, draw, dtype=np.uint64)
    c1 = np.zeros(count, dtype=np.uint64)
    c2 = np.arange(count, dtype=np.uint64)
    c3 = np.zeros(count, dtype=np.uint64)
    low, bits = np.uint64(0xFFFFFFFF), np.uint64(32)
    for turn in range(10):
        k0 = np.uint64((key[0] + turn * 0x9E3779B9) & 0xFFFFFFFF)
        k1 = np.uint64((key[1] + turn * 0xBB67AE85) & 0xFFFFFFFF)
        first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (second >> bits) ^ c1 ^ k0, second & low, (first >> bits) ^ c3 ^ k1, first & low
    return c0, c1
