"""Euler's and Heun's methods on the probability-flow ODE dx/dsigma = (x - x0) / sigma."""

from __future__ import annotations

from torch import Tensor

from ..guidance import Call
from ..noise import StepNoise
from .run import Run, ancestral_step, steps


def euler(x: Tensor, sigmas: Tensor, noise: StepNoise) -> Run:
    """Euler: Karras et al. 2022, algorithm 2 without churn and without correction."""
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        d = (x - denoised.x0) / sigma
        x = x + d * (sigma_next - sigma)
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


def heun(x: Tensor, sigmas: Tensor, noise: StepNoise) -> Run:
    """Heun: Karras et al. 2022, algorithm 1. The step to 0 is Euler's."""
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        d = (x - denoised.x0) / sigma
        x_next = x + d * (sigma_next - sigma)
        if sigma_next > 0:
            denoised = yield Call(x_next, sigma_next, step)
            d_next = (x_next - denoised.x0) / sigma_next
            x_next = x + (d + d_next) / 2 * (sigma_next - sigma)
        x = x_next
    return x
