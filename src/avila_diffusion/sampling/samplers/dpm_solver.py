"""DPM-Solver (Lu et al. 2022, arXiv:2206.00927) of orders 1 to 3: exponential integrators on the predicted noise.

lambda = -ln(sigma), h is a step's length in it, and eps = (x - x0) / sigma. Both samplers go from the first level to the
lowest above 0 and choose the levels between for themselves. Where that is one level, they take x0 from it.
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import pairwise
from math import atan, exp, expm1, log, sqrt

import torch
from torch import Tensor

from ..guidance import Call, Denoised
from ..noise import StepNoise
from .run import Run, ancestral_step

RTOL, ATOL = 0.05, 0.0078
H_FIRST = 0.05
ACCEPT = 0.81
CLOSE = 1e-5  # to the end, in lambda


def dpm_fast(x: Tensor, sigmas: Tensor, noise: StepNoise, *, eta: float = 0.0, s_noise: float = 1.0) -> Run:
    """DPM fast: DPM-Solver-fast, section 3.4 and appendix D.3, of as many model calls as sigmas has steps (k-diffusion).

    Steps of order 3, equal in lambda, and the rest of the calls in one step of order 2, of 1, or one of each. A step of
    the run is one model call.
    """
    n = len(sigmas) - 1
    sigma_max, sigma_min = _ends(sigmas)
    if sigma_min == sigma_max:
        return (yield Call(x, sigma_max, 0)).x0
    m = n // 3 + 1
    orders = [3] * (m - 2) + [2, 1] if n % 3 == 0 else [3] * (m - 1) + [n % 3]
    levels = [sigma_max * (sigma_min / sigma_max) ** (i / m) for i in range(m)] + [sigma_min]
    call = 0
    for order, (sigma, sigma_next) in zip(orders, pairwise(levels), strict=True):
        sigma_down, sigma_up = _down(sigma, sigma_next, sigma_min, eta)
        x, _ = yield from _solver_step(x, sigma, sigma_down, order, [call + i for i in range(order)])
        call += order
        if sigma_up > 0:
            x = x + noise(sigma, sigma_next) * (s_noise * sigma_up)
    return x


def dpm_adaptive(x: Tensor, sigmas: Tensor, noise: StepNoise, *, eta: float = 0.0, s_noise: float = 1.0) -> Run:
    """DPM adaptive: DPM-Solver-12 and -23's adaptive step size, appendix C, in order 3 (k-diffusion).

    A step is taken where the solutions of orders 2 and 3 are near enough to one another, and tried again, shorter, where
    not. k-diffusion's controller with its default coefficients is the integral part alone. A step is an attempt.
    """
    sigma_max, sigma_min = _ends(sigmas)
    if sigma_min == sigma_max:
        return (yield Call(x, sigma_max, 0)).x0
    lambda_s, lambda_end, h = -log(sigma_max), -log(sigma_min), H_FIRST
    x_last, step = x, 0
    while lambda_s < lambda_end - CLOSE:
        sigma = exp(-lambda_s)
        lambda_t = min(lambda_end, lambda_s + h)
        sigma_next = exp(-lambda_t)
        sigma_down, sigma_up = _down(sigma, sigma_next, exp(-lambda_end), eta)
        x_high, x_low = yield from _solver_step(x, sigma, sigma_down, 3, [step] * 3)
        delta = torch.maximum(x_low.abs(), x_last.abs()).mul(RTOL).clamp(min=ATOL)
        error = float(torch.linalg.vector_norm((x_low - x_high) / delta)) / sqrt(x.numel())
        factor = 1 + atan((1 / (error + 1e-8)) ** (1 / (1.5 if eta > 0 else 3)) - 1)
        h *= factor
        step += 1
        if factor >= ACCEPT:
            x, x_last, lambda_s = x_high, x_low, lambda_t
            if sigma_up > 0:
                x = x + noise(sigma, sigma_next) * (s_noise * sigma_up)
    return x


def _ends(sigmas: Tensor) -> tuple[float, float]:
    """The first level and the last above 0."""
    return float(sigmas[0]), float(sigmas[sigmas > 0][-1])


def _down(sigma: float, sigma_next: float, sigma_min: float, eta: float) -> tuple[float, float]:
    """The ancestral step, not below sigma_min."""
    if eta == 0:
        return sigma_next, 0.0
    sigma_down = max(ancestral_step(sigma, sigma_next, eta)[0], sigma_min)
    return sigma_down, sqrt(max(sigma_next**2 - sigma_down**2, 0.0))


def _solver_step(
    x: Tensor, sigma: float, sigma_next: float, order: int, steps: list[int]
) -> Generator[Call, Denoised, tuple[Tensor, Tensor]]:
    """(solution of this order, of the order below) after algorithms 1 to 3: DPM-Solver-1, -2 (r1 = 1/2) or -3.

    For order 3, r1 = 1/3 and r2 = 2/3, and the lower solution is DPM-Solver-2 with r1 = 1/3.
    """
    h = log(sigma / sigma_next)
    r1, r2 = (1 / 3, 2 / 3) if order == 3 else (1 / 2, 1.0)
    denoised = yield Call(x, sigma, steps[0])
    eps = (x - denoised.x0) / sigma
    first = x - sigma_next * expm1(h) * eps
    if order == 1:
        return first, x
    sigma_1 = sigma * exp(-r1 * h)
    u1 = x - sigma_1 * expm1(r1 * h) * eps
    denoised = yield Call(u1, sigma_1, steps[1])
    D1 = (u1 - denoised.x0) / sigma_1 - eps
    second = first - sigma_next / (2 * r1) * expm1(h) * D1
    if order == 2:
        return second, first
    sigma_2 = sigma * exp(-r2 * h)
    u2 = x - sigma_2 * expm1(r2 * h) * eps - sigma_2 * r2 / r1 * _phi(r2 * h) * D1
    denoised = yield Call(u2, sigma_2, steps[2])
    D2 = (u2 - denoised.x0) / sigma_2 - eps
    return first - sigma_next / r2 * _phi(h) * D2, second


def _phi(h: float) -> float:
    """(exp(h) - 1) / h - 1."""
    return expm1(h) / h - 1
