"""Restart sampling: Heun's method on a way that goes up again by noise."""

from __future__ import annotations

from torch import Tensor

from ..noise import StepNoise
from ..restarts import restart_levels
from .euler import heun_step
from .run import Run


def restart(x: Tensor, sigmas: Tensor, noise: StepNoise, *, s_noise: float = 1.0) -> Run:
    """Restart: Xu et al. 2023, arXiv:2306.14878, algorithm 1 with Heun's steps; a step to 0 is Euler's.

    The levels are those of `restart_levels` (AUTOMATIC1111).
    """
    for step, (sigma, sigma_next, up) in enumerate(restart_levels(sigmas)):
        if up > 0:
            x = x + noise(sigma, sigma_next) * (s_noise * up)
        x = yield from heun_step(x, sigma, sigma_next, step)
    return x
