"""Samplers of the variance-preserving process x_t = sqrt(a) x0 + sqrt(1 - a) eps, a = 1 / (1 + sigma^2).

Their x is kept as x_t / sqrt(a) = x0 + sigma eps, like every other sampler's.
"""

from __future__ import annotations

from math import hypot, sqrt

from torch import Tensor

from ..guidance import Call
from ..noise import StepNoise
from .adams import ADAMS_BASHFORTH, combine
from .run import Run, steps


def ddim(x: Tensor, sigmas: Tensor, noise: StepNoise, *, eta: float = 0.0) -> Run:
    """DDIM: Song et al. 2021, equation 12, with the variance (sigma_t^2 there) of equation 16.

    It ends where its levels end, and what it returns is the variance-preserving latent x_t of that level, as
    AUTOMATIC1111 hands it to the decoder. The variance is cut off at 1 - a_prev, which matters above eta 1 only.
    """
    return _ddim(x, sigmas, noise, eta, unguided_noise=False)


def ddim_cfgpp(x: Tensor, sigmas: Tensor, noise: StepNoise, *, eta: float = 0.0) -> Run:
    """DDIM CFG++: Chung et al. 2024, algorithm 2: DDIM to the guided x0, noised again with the unguided eps.

    The guidance scale is the paper's lambda, from 0 to 1.
    """
    return _ddim(x, sigmas, noise, eta, unguided_noise=True)


def _ddim(x: Tensor, sigmas: Tensor, noise: StepNoise, eta: float, *, unguided_noise: bool) -> Run:
    a_prev = 1 / (1 + float(sigmas[0]) ** 2)
    for step, sigma, sigma_prev in steps(sigmas):
        denoised = yield Call(x, sigma, step, want_uncond=unguided_noise)
        # Without guidance the one prediction is the unguided one.
        unguided = denoised.uncond if unguided_noise and denoised.uncond is not None else denoised.x0
        eps = (x - unguided) / sigma
        a_t, a_prev = 1 / (1 + sigma**2), 1 / (1 + sigma_prev**2)
        rest = sigma_prev**2 * a_prev  # 1 - a_prev, without cancellation
        variance = min(eta**2 * rest / (sigma**2 * a_t) * (1 - a_t / a_prev), rest)
        x_prev = sqrt(a_prev) * denoised.x0 + sqrt(rest - variance) * eps
        if eta > 0 and sigma_prev > 0:
            x_prev = x_prev + sqrt(variance) * noise(sigma, sigma_prev)
        x = x_prev / sqrt(a_prev)
    return x * sqrt(a_prev)


def plms(x: Tensor, sigmas: Tensor, noise: StepNoise) -> Run:
    """PLMS: Liu et al. 2022, the linear multistep part of PNDM, started by one step of improved Euler (LDM).

    In x0 + sigma eps its transfer is Euler's step. Returns the variance-preserving latent, as `ddim` does.
    """
    known: list[Tensor] = []
    sigma_prev = float(sigmas[0])
    for step, sigma, sigma_prev in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        eps = (x - denoised.x0) / sigma
        known = [eps, *known[:3]]
        slope = combine(ADAMS_BASHFORTH[len(known) - 1], known)
        if step == 0 and sigma_prev > 0:
            x_prev = x + (sigma_prev - sigma) * eps
            denoised = yield Call(x_prev, sigma_prev, step)
            slope = (eps + (x_prev - denoised.x0) / sigma_prev) / 2
        x = x + (sigma_prev - sigma) * slope
    return x / hypot(1, sigma_prev)


def ddpm(x: Tensor, sigmas: Tensor, noise: StepNoise) -> Run:
    """DDPM: ancestral sampling of Ho et al. 2020, the posterior of equations 6 and 7 between any two levels.

    In x0 + sigma eps its mean is a mixture of x0 and x by the ratio of the variances, its variance
    sigma_prev^2 * (1 - ratio). Nothing is drawn on the way to 0.
    """
    for step, sigma, sigma_prev in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        ratio = (sigma_prev / sigma) ** 2
        x = (1 - ratio) * denoised.x0 + ratio * x
        if sigma_prev > 0:
            x = x + sigma_prev * sqrt(1 - ratio) * noise(sigma, sigma_prev)
    return x
