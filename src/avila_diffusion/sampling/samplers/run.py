"""What the samplers share: the type of a run, its steps, and the split of a step into going down and noising up."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import pairwise
from math import sqrt

from torch import Tensor

from ..guidance import Call, Denoised

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
