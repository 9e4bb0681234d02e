"""DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095): exponential integrators on the predicted x0."""

from __future__ import annotations

from math import expm1, log

from torch import Tensor

from ..guidance import Call
from ..noise import StepNoise
from .run import Run, steps


def dpmpp_2m(x: Tensor, sigmas: Tensor, noise: StepNoise) -> Run:
    """DPM++ 2M: DPM-Solver++(2M), algorithm 2, with lambda = -ln(sigma).

    D is x0 extrapolated from the last two predictions; the first step, and a step to 0, take the latest alone.
    """
    last = h_last = None
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        D = denoised.x0
        if sigma_next == 0:
            return D
        h = log(sigma) - log(sigma_next)
        if last is not None and h_last is not None:
            r = h_last / h
            D = (1 + 1 / (2 * r)) * D - 1 / (2 * r) * last
        x = sigma_next / sigma * x - expm1(-h) * D
        last, h_last = denoised.x0, h
    return x
