"""Euler's and Heun's methods on the probability-flow ODE dx/dsigma = (x - x0) / sigma."""

from __future__ import annotations

from math import inf

from torch import Tensor

from ..guidance import Call
from ..noise import StepNoise
from .run import Run, ancestral_step, churn, steps


def euler(
    x: Tensor, sigmas: Tensor, noise: StepNoise, *,
    s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = inf, s_noise: float = 1.0,
) -> Run:  # fmt: skip
    """Euler: Karras et al. 2022, algorithm 2 without correction."""
    raised = churn(sigmas, noise, s_churn, s_tmin, s_tmax, s_noise)
    for step, sigma, sigma_next in steps(sigmas):
        x, sigma_hat = raised(x, sigma)
        denoised = yield Call(x, sigma_hat, step)
        d = (x - denoised.x0) / sigma_hat
        x = x + d * (sigma_next - sigma_hat)
    return x


def euler_ancestral(x: Tensor, sigmas: Tensor, noise: StepNoise, *, eta: float = 1.0, s_noise: float = 1.0) -> Run:
    """Euler a: an Euler step to sigma_down, then noise up to sigma_next (k-diffusion)."""
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next, eta)
        d = (x - denoised.x0) / sigma
        x = x + d * (sigma_down - sigma)
        if sigma_up > 0:
            x = x + noise(sigma, sigma_next) * (s_noise * sigma_up)
    return x


def heun(
    x: Tensor, sigmas: Tensor, noise: StepNoise, *,
    s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = inf, s_noise: float = 1.0,
) -> Run:  # fmt: skip
    """Heun: Karras et al. 2022, algorithm 2. The step to 0 is Euler's."""
    raised = churn(sigmas, noise, s_churn, s_tmin, s_tmax, s_noise)
    for step, sigma, sigma_next in steps(sigmas):
        x, sigma_hat = raised(x, sigma)
        x = yield from heun_step(x, sigma_hat, sigma_next, step)
    return x


def heun_step(x: Tensor, sigma: float, sigma_next: float, step: int) -> Run:
    """One step of Heun's method, or of Euler's to 0."""
    denoised = yield Call(x, sigma, step)
    d = (x - denoised.x0) / sigma
    x_next = x + d * (sigma_next - sigma)
    if sigma_next == 0:
        return x_next
    denoised = yield Call(x_next, sigma_next, step)
    d_next = (x_next - denoised.x0) / sigma_next
    return x + (d + d_next) / 2 * (sigma_next - sigma)


def heunpp2(
    x: Tensor, sigmas: Tensor, noise: StepNoise, *,
    s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = inf, s_noise: float = 1.0,
) -> Run:  # fmt: skip
    """HeunPP2: the slope at x is corrected by those at the next level and the one after it, met by Euler steps.

    Of m slopes, one at level sigma weighs sigma / (m * sigmas[0]), and the first makes up the rest to 1. The last level is
    not looked at, so that the last step is Euler's and the one before it has two slopes.
    """
    raised = churn(sigmas, noise, s_churn, s_tmin, s_tmax, s_noise)
    levels = sigmas.tolist()
    for step, sigma, sigma_next in steps(sigmas):
        x, sigma_hat = raised(x, sigma)
        denoised = yield Call(x, sigma_hat, step)
        d = slope = (x - denoised.x0) / sigma_hat
        ahead = levels[step + 1 : -1][:2]
        x_look, d_look, sigma_look = x, d, sigma_hat
        for sigma_ahead in ahead:
            x_look = x_look + d_look * (sigma_ahead - sigma_look)
            denoised = yield Call(x_look, sigma_ahead, step)
            d_look, sigma_look = (x_look - denoised.x0) / sigma_ahead, sigma_ahead
            slope = slope + (d_look - d) * (sigma_ahead / ((1 + len(ahead)) * levels[0]))
        x = x + slope * (sigma_next - sigma_hat)
    return x


def euler_cfg_pp(x: Tensor, sigmas: Tensor, noise: StepNoise) -> Run:
    """Euler CFG++: the guided x0 is noised to the next level by the unguided prediction's noise.

    Chung et al. 2024, arXiv:2406.08070, algorithm 2, in the noise levels of Karras et al. 2022 (ComfyUI).
    """
    return (yield from euler_ancestral_cfg_pp(x, sigmas, noise, eta=0.0))


def euler_ancestral_cfg_pp(
    x: Tensor, sigmas: Tensor, noise: StepNoise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Run:
    """Euler a CFG++: as Euler CFG++, to sigma_down, then noise up to sigma_next (ComfyUI).

    Where there is no negative prompt the guided prediction is the unguided one.
    """
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step, want_uncond=True)
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next, eta)
        d = (x - (denoised.x0 if denoised.uncond is None else denoised.uncond)) / sigma
        x = denoised.x0 + d * sigma_down
        if sigma_up > 0:
            x = x + noise(sigma, sigma_next) * (s_noise * sigma_up)
    return x
