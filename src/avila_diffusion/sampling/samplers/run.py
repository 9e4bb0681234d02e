"""What the samplers share: the type of a run, its steps, and the noise that is added before a step or after it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from itertools import pairwise
from math import sqrt

from torch import Tensor

from ..guidance import Call, Denoised
from ..noise import StepNoise

Run = Generator[Call, Denoised, Tensor]


def steps(sigmas: Tensor) -> Iterator[tuple[int, float, float]]:
    """(step, sigma, sigma_next) of every step, the levels as Python floats."""
    return ((step, *pair) for step, pair in enumerate(pairwise(sigmas.tolist())))


def ancestral_step(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """(sigma_down, sigma_up): the level to go down to, and the noise that brings it up to sigma_next (k-diffusion).

    eta 1 is the variance of Ho et al. 2020; more is cut off where sigma_down would be below 0.
    """
    sigma_up = min(sigma_next, eta * sigma_next * sqrt(sigma**2 - sigma_next**2) / sigma)
    return sqrt(sigma_next**2 - sigma_up**2), sigma_up


def churn(
    sigmas: Tensor, noise: StepNoise, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> Callable[[Tensor, float], tuple[Tensor, float]]:
    """(x, sigma) → (x, sigma_hat) before a step: Karras et al. 2022, algorithm 2, lines 4 to 6.

    s_churn is shared out evenly over the steps; a step's gamma is at most sqrt(2) - 1, and 0 outside s_tmin to s_tmax.
    """
    gamma = min(s_churn / max(len(sigmas) - 1, 1), sqrt(2) - 1)

    def raised(x: Tensor, sigma: float) -> tuple[Tensor, float]:
        if s_churn <= 0:
            return x, sigma
        sigma_hat = sigma * (1 + gamma)
        # k-diffusion draws outside the limits too; without that the later numbers would be other ones.
        epsilon = noise(sigma, sigma_hat)
        if not s_tmin <= sigma <= s_tmax:
            return x, sigma
        return x + epsilon * (s_noise * sqrt(sigma_hat**2 - sigma**2)), sigma_hat

    return raised
