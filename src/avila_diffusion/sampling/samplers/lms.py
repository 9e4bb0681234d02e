"""The linear multistep method of Adams and Bashforth for steps of any length."""

from __future__ import annotations

from math import prod, sqrt

from torch import Tensor

from ..guidance import Call
from ..noise import StepNoise
from .run import Run, steps

ORDER = 4


def lms(x: Tensor, sigmas: Tensor, noise: StepNoise) -> Run:
    """LMS: the polynomial through the last four slopes, integrated to the next level (k-diffusion).

    The first steps have fewer slopes to go by. A level that comes twice has one slope.
    """
    slopes: list[Tensor] = []
    levels: list[float] = []
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        if sigma_next == sigma:
            continue
        slopes, levels = [*slopes[1 - ORDER :], (x - denoised.x0) / sigma], [*levels[1 - ORDER :], sigma]
        for d, weight in zip(slopes, lagrange_integrals(levels, sigma_next), strict=True):
            x = x + d * weight
    return x


def lagrange_integrals(levels: list[float], sigma_next: float) -> list[float]:
    """Integral of each Lagrange polynomial of up to four levels, from the last of them to sigma_next.

    Gauss' rule of two points is exact for cubics.
    """
    half = (sigma_next - levels[-1]) / 2
    points = [levels[-1] + half * (1 + side / sqrt(3)) for side in (-1, 1)]
    return [
        half * sum(prod((tau - other) / (level - other) for other in levels if other != level) for tau in points)
        for level in levels
    ]
