"""The samplers: generators that yield a `Call` and are sent the `Denoised`, and return the finished latent.

x is (1, channels, h, w) with noise of level sigmas[0]; sigmas are float64 on the CPU, falling, usually to 0. A sampler
computes in x's dtype, never changes x in place, never calls a model and knows nothing of images beside its own.
"""

from __future__ import annotations

from collections.abc import Callable
from math import hypot

from torch import Tensor

from ...errors import RequestError
from ..names import SamplerInfo
from ..noise import StepNoise
from .dpm import dpm_2, dpm_2_ancestral
from .dpmpp import dpmpp_2m
from .euler import euler, euler_ancestral, heun
from .grid import ddim, ddpm
from .run import Run

SAMPLERS: dict[str, Callable[..., Run]] = {
    "dpmpp_2m": dpmpp_2m,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm_2": dpm_2,
    "dpm_2_ancestral": dpm_2_ancestral,
    "ddim": ddim,
    "ddpm": ddpm,
}
"""Key of a sampler → f(x, sigmas, noise, *, eta=…); eta only where `SamplerInfo.uses_eta`."""


def start(
    sampler: SamplerInfo, noise: Tensor, sigmas: Tensor, *, latent: Tensor | None = None, level: float | None = None
) -> Tensor:
    """The latent that a run starts from, of noise's shape and dtype.

    noise: (1, channels, h, w), unit normal. Without a latent that is noise * sigma, or the variance-preserving process'
    unit noise, by the sampler's `text_start`. With one, it is noised to `level` (see `schedules.image_sigmas`; by
    default the first of sigmas); where that is not the first level, it is scaled as AUTOMATIC1111's variance-preserving
    samplers see it: noised for one level, read as another.
    """
    first = float(sigmas[0])
    if latent is None:
        return noise * (first if sampler.text_start == "scaled" else hypot(1, first))
    if level is None or level == first:
        return latent + noise * first
    return (latent + noise * level) * (hypot(1, first) / hypot(1, level))


def sample(sampler: SamplerInfo, x: Tensor, sigmas: Tensor, noise: StepNoise, *, eta: float | None = None) -> Run:
    """The generator of a run. Advance it with `next`, then `send` it the `Denoised` for each `Call`.

    eta: weight of the noise between steps, None for the sampler's own. Raises RequestError for one that takes none.
    """
    if not sampler.uses_eta:
        if eta is not None:
            raise RequestError(f"{sampler.name} takes no eta; leave it out or choose an ancestral sampler or DDIM")
        return SAMPLERS[sampler.key](x, sigmas, noise)
    return SAMPLERS[sampler.key](x, sigmas, noise, eta=sampler.eta if eta is None else eta)
