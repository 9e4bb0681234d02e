"""Samplers of distilled models that predict x0 in one step: jump to it and come back with noise."""

from __future__ import annotations

from math import floor, hypot, sqrt

from torch import Tensor

from ..guidance import Call
from ..noise import StepNoise
from ..tables import NoiseTable
from .run import Run, steps


def lcm(x: Tensor, sigmas: Tensor, noise: StepNoise) -> Run:
    """LCM: Luo et al. 2023, algorithm 3: multistep consistency sampling of Song et al. 2023 on latents."""
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        x = denoised.x0
        if sigma_next > 0:
            x = x + sigma_next * noise(sigma, sigma_next)
    return x


def tcd(x: Tensor, sigmas: Tensor, noise: StepNoise, *, table: NoiseTable, eta: float = 0.3) -> Run:
    """TCD: Zheng et al. 2024, algorithm 4, strategic stochastic sampling; eta is the paper's gamma, from 0 to 1.

    Each step goes down to the timestep s = floor((1 - eta) t_next) and is noised up to t_next. The last ends at the
    table's lowest level, and what is returned is the variance-preserving latent of it, as diffusers does.
    """
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        eps = (x - denoised.x0) / sigma
        if sigma_next == 0:
            return (denoised.x0 + table.sigma_min * eps) / hypot(1, table.sigma_min)
        sigma_s = sigma_next
        if eta > 0:
            # A whole timestep comes back from its level with an error in the last digits.
            sigma_s = min(float(table.at(floor((1 - eta) * _place(table, sigma_next) + 1e-6))), sigma_next)
        x = denoised.x0 + sigma_s * eps
        if sigma_s < sigma_next:
            x = x + sqrt(sigma_next**2 - sigma_s**2) * noise(sigma, sigma_next)
    return x


def _place(table: NoiseTable, sigma: float) -> float:
    """Where in the table a level lies: its timestep, counted from 0 where the network is told something else."""
    t, low, high = (float(table.sigma_to_t(level)) for level in (sigma, table.sigma_min, table.sigma_max))
    return (t - low) / (high - low) * (len(table.sigmas) - 1)
