"""Where noise comes from: the only place that draws numbers.

Every image has a source of its own, made from its seed, so an image of a batch can be made again alone. Each draw
continues the image's stream: first the initial noise, then what the sampler adds between steps. `ImageNoise` is all of
one image's noise, as AUTOMATIC1111 or ComfyUI make it from the same seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import RequestError
from .brownian import BrownianPath, path_noise

MAX_SEED = 2**64 - 1
CPU = torch.device("cpu")

Rng = Literal["nv", "cpu", "gpu"]
"""Where numbers come from: as on an NVIDIA GPU, torch's generator on the CPU, or torch's on the device of the run."""

StepNoise = Callable[[float, float], Tensor]
"""noise(sigma, sigma_next): fresh unit noise for the step between two levels; the latent's shape, dtype and device."""


class NoiseSource(Protocol):
    """A stream of unit normal numbers."""

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The next numbers of the stream: float32, of this shape, on the CPU unless the source is the device's own."""


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
    """torch's generator on a device. On the CPU (Mersenne Twister), which is AUTOMATIC1111's "CPU" source, it reads the
    low 32 bits of a seed only.
    """

    def __init__(self, seed: int, device: torch.device = CPU) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        generator = self._generator
        return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)


def noise_source(rng: Rng, seed: int, device: torch.device = CPU) -> NoiseSource:
    """The stream of one image. seed: 0 to 2^64 - 1. device: of the run, which the source `gpu` draws on.

    Raises RequestError for another seed, an unknown source, or `gpu` on the CPU.
    """
    if rng not in ("nv", "cpu", "gpu"):
        raise RequestError(f"noise source {rng!r} is unknown; there are nv, cpu, gpu")
    seed = _checked(seed)
    if rng == "gpu" and device.type == "cpu":
        raise RequestError(
            "noise source gpu needs a CUDA device and the run is on the CPU; nv gives the same numbers as an NVIDIA GPU"
        )
    return PhiloxSource(seed) if rng == "nv" else TorchSource(seed, device if rng == "gpu" else CPU)


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


@dataclass(frozen=True, kw_only=True)
class Seeding:
    """What one image's noise is made from.

    seed: of the image; with compat "comfyui", of the whole batch. rng: see `Rng`. ensd: added to the seed after the
    first noise ("eta noise seed delta"), 0 for none. variation_seed, variation_strength: another seed's noise and how
    much of it, 0 to 1. resize_from: latent (h, w) of the picture whose composition is to be kept, where that had
    another size. device: of the run.
    compat: whose picture of that seed it is. "comfyui" draws one noise for a batch, of which this image is number
    `index` of `batch`, on the CPU; it knows neither variations, nor resizing, nor ensd.
    """

    seed: int
    rng: Rng = "nv"
    ensd: int = 0
    variation_seed: int | None = None
    variation_strength: float = 0.0
    resize_from: tuple[int, int] | None = None
    compat: Literal["a1111", "comfyui"] = "a1111"
    index: int = 0
    batch: int = 1
    device: torch.device = CPU


class ImageNoise:
    """All noise of one image's run, in the order that it is asked for: `initial` first, then what `between` gives.

    A second pass over the image has an ImageNoise of its own, from the same seeds. Raises RequestError for a seeding
    that cannot be.
    """

    def __init__(self, seeding: Seeding) -> None:
        self._seeding = seeding
        if seeding.compat == "comfyui":
            _check_comfyui(seeding)
            self._source: NoiseSource = _BatchSlice(TorchSource(_checked(seeding.seed)), seeding)
            return
        self._source = noise_source(seeding.rng, seeding.seed, seeding.device)
        if seeding.variation_strength != 0 and seeding.variation_seed is None:
            raise RequestError("a variation strength needs a variation seed; give one, or leave the strength out")

    def initial(self, shape: tuple[int, int, int]) -> Tensor:
        """Unit noise that the image starts from, float32. shape: (channels, h, w) of the latent. Asked for once.

        Returns (1, channels, h, w).
        """
        seeding = self._seeding
        drawn = initial_noise(self._source, shape)
        if seeding.compat == "comfyui":
            self._source = _comfyui_steps(seeding)
            return drawn
        noise = drawn[0]
        size = seeding.resize_from or shape[1:]
        if size != shape[1:]:
            noise = self._fresh(seeding.seed).draw((shape[0], *size))
        if seeding.variation_strength != 0 and seeding.variation_seed is not None:
            other = self._fresh(seeding.variation_seed).draw(tuple(noise.shape))
            noise = slerp(seeding.variation_strength, noise, other)
        if size != shape[1:]:
            noise = _pasted(noise, drawn[0])
        if seeding.ensd != 0:
            self._source = self._fresh((seeding.seed + seeding.ensd) % (MAX_SEED + 1))
        return noise.unsqueeze(0)

    def encoding(self) -> NoiseSource | None:
        """Numbers by which a latent is drawn from the encoder's distribution; None where its mean is taken, as by ComfyUI.

        AUTOMATIC1111 draws them from a generator that nobody has seeded. Here they are a stream of their own, an NVIDIA
        GPU's of the seed with its highest bit turned: first for the picture, then for what else is encoded.
        """
        return None if self._seeding.compat == "comfyui" else PhiloxSource(_checked(self._seeding.seed) ^ (1 << 63))

    def between(self, like: Tensor, sigmas: Tensor, *, brownian: bool) -> StepNoise:
        """What the sampler adds between steps, shaped, cast and placed as `like`, (1, channels, h, w).

        sigmas: the levels that a Brownian path spans, from its largest to its smallest above 0. For a picture as input
        AUTOMATIC1111 takes those of the whole schedule, ComfyUI the run's. brownian: as the sampler's row says; without
        it, the numbers continue the image's stream.
        """
        if not brownian:
            return step_noise(self._source, like)
        levels = sigmas[sigmas > 0].float()
        path = BrownianPath(self._node_draw(like), self._seeding.seed, float(levels.min()), float(levels.max()))

        def noise(sigma: float, sigma_next: float) -> Tensor:
            return path_noise(path, sigma, sigma_next).unsqueeze(0).to(device=like.device, dtype=like.dtype)

        return noise

    def _fresh(self, seed: int) -> NoiseSource:
        return noise_source(self._seeding.rng, seed, self._seeding.device)

    def _node_draw(self, like: Tensor) -> Callable[[int], Tensor]:
        """Numbers of a split of the path: the first draw of a source made from the split's seed."""
        seeding, shape = self._seeding, tuple(like.shape[1:])
        if seeding.compat == "comfyui":
            return lambda seed: _BatchSlice(TorchSource(seed), seeding).draw(shape)
        return lambda seed: self._fresh(seed).draw(shape)


def slerp(strength: float, noise: Tensor, other: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985) from `noise` to `other`, (channels, h, w), column by column: the vectors
    lie along h, as AUTOMATIC1111's do.

    Where the two are all but parallel it is linear, and there `strength` is the share of the first, as in that program.
    """
    cosine = (noise / noise.norm(dim=1, keepdim=True) * (other / other.norm(dim=1, keepdim=True))).sum(1)
    if cosine.mean() > 0.9995:
        return noise * strength + other * (1 - strength)
    omega = torch.acos(cosine)
    share = torch.sin((1 - strength) * omega) / torch.sin(omega)
    other_share = torch.sin(strength * omega) / torch.sin(omega)
    return share.unsqueeze(1) * noise + other_share.unsqueeze(1) * other


def _pasted(noise: Tensor, onto: Tensor) -> Tensor:
    """`noise` in the middle of `onto`, both (channels, h, w); what does not fit is cut off.

    Odd differences are halved downwards: towards the upper left where it fits, and where it does not, the last row or
    column of `onto` stays.
    """
    to, cut = [slice(None)], [slice(None)]
    for large, small in zip(onto.shape[1:], noise.shape[1:], strict=True):
        margin = (large - small) // 2
        length = small + 2 * min(margin, 0)
        to.append(slice(max(margin, 0), max(margin, 0) + length))
        cut.append(slice(max(-margin, 0), max(-margin, 0) + length))
    pasted = onto.clone()
    pasted[tuple(to)] = noise[tuple(cut)]
    return pasted


class _BatchSlice:
    """One image's part of numbers that are drawn for a whole batch at once."""

    def __init__(self, source: NoiseSource, seeding: Seeding) -> None:
        self._source = source
        self._index, self._batch = seeding.index, seeding.batch

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        return self._source.draw((self._batch, *shape))[self._index]


def _comfyui_steps(seeding: Seeding) -> NoiseSource:
    """ComfyUI's noise between steps: a new generator of the same seed on the run's device. On the CPU that would give
    the first noise again, so there it is the next seed's; old versions took the same.
    """
    seed = (seeding.seed + 1) % (MAX_SEED + 1) if seeding.device.type == "cpu" else seeding.seed
    return _BatchSlice(TorchSource(seed, seeding.device), seeding)


def _checked(seed: int) -> int:
    if not 0 <= seed <= MAX_SEED:
        raise RequestError(f"seed {seed} is out of range; it must be from 0 to {MAX_SEED}")
    return seed


def _check_comfyui(seeding: Seeding) -> None:
    """Raise RequestError for what ComfyUI's noise cannot be made from: nothing is ignored in silence."""
    if seeding.rng != "cpu":
        raise RequestError(f"ComfyUI's noise comes from the source cpu, not {seeding.rng}; leave rng out, or take cpu")
    extra = {
        "ensd": seeding.ensd != 0,
        "variation": seeding.variation_strength != 0,
        "seed resize": seeding.resize_from is not None,
    }
    if any(extra.values()):
        named = ", ".join(name for name, given in extra.items() if given)
        raise RequestError(f"ComfyUI's noise knows no {named}; leave that out, or take AUTOMATIC1111's noise")
    if not 0 <= seeding.index < seeding.batch:
        raise RequestError(f"image {seeding.index} is not in a batch of {seeding.batch}; they count from 0")


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
