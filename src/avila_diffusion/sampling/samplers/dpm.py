"""DPM-Solver of second order: the midpoint in ln(sigma) of each step decides its slope."""

from __future__ import annotations

from math import inf, sqrt

from torch import Tensor

from ..guidance import Call
from ..noise import StepNoise
from .run import Run, ancestral_step, churn, steps


def dpm_2(
    x: Tensor, sigmas: Tensor, noise: StepNoise, *,
    s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = inf, s_noise: float = 1.0,
) -> Run:  # fmt: skip
    """DPM2: after DPM-Solver-2 of Lu et al. 2022, the midpoint rule (k-diffusion). The step to 0 is Euler's."""
    raised = churn(sigmas, noise, s_churn, s_tmin, s_tmax, s_noise)
    for step, sigma, sigma_next in steps(sigmas):
        x, sigma_hat = raised(x, sigma)
        denoised = yield Call(x, sigma_hat, step)
        d = (x - denoised.x0) / sigma_hat
        if sigma_next > 0:
            sigma_mid = sqrt(sigma_hat * sigma_next)
            x_mid = x + d * (sigma_mid - sigma_hat)
            denoised = yield Call(x_mid, sigma_mid, step)
            d = (x_mid - denoised.x0) / sigma_mid
        x = x + d * (sigma_next - sigma_hat)
    return x


def dpm_2_ancestral(x: Tensor, sigmas: Tensor, noise: StepNoise, *, eta: float = 1.0, s_noise: float = 1.0) -> Run:
    """DPM2 a: a DPM2 step to sigma_down, then noise up to sigma_next (k-diffusion).

    Above eta 1 sigma_down can be 0 before the end; that step is Euler's, and k-diffusion adds no noise after it.
    """
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next, eta)
        d = (x - denoised.x0) / sigma
        if sigma_down > 0:
            sigma_mid = sqrt(sigma * sigma_down)
            x_mid = x + d * (sigma_mid - sigma)
            denoised = yield Call(x_mid, sigma_mid, step)
            d = (x_mid - denoised.x0) / sigma_mid
        x = x + d * (sigma_down - sigma)
        if sigma_down > 0 and sigma_up > 0:
            x = x + noise(sigma, sigma_next) * (s_noise * sigma_up)
    return x
