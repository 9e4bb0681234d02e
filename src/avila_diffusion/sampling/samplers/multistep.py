"""Linear multistep samplers: the slopes of earlier steps are continued over the next (Zhang & Chen 2022, arXiv:2204.13902)."""

from __future__ import annotations

from math import log1p, sqrt

import numpy as np
from torch import Tensor

from ..guidance import Call
from ..noise import StepNoise
from .adams import ADAMS_BASHFORTH, Values, combine, lagrange_integrals
from .run import Run, steps

# The time of DEIS, whatever the model was trained on: that of the variance-preserving process with sigma 0.002 at t = 0.001
# and 80 at t = 1, as Karras et al. 2022, appendix C.1, fit it: ln(1 + sigma^2) = beta_d t^2 / 2 + beta_min t.
_END, _START = log1p(80.0**2), log1p(0.002**2)
BETA_D = 2 * (_END - _START / 1e-3) / (1 - 1e-3)
BETA_MIN = _END - BETA_D / 2


def deis(x: Tensor, sigmas: Tensor, noise: StepNoise) -> Run:
    """DEIS: tAB-DEIS that knows three slopes, on any noise levels.

    The slope is a polynomial in time, integrated over sigma. The first steps know fewer slopes; a step to 0 is Euler's.
    ComfyUI adds up 10000 points for the integral, which moves a step by a ten-thousandth of its length.
    """
    known: list[tuple[float, Tensor]] = []
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        if sigma_next == 0:
            return denoised.x0
        known = [(_time(sigma), (x - denoised.x0) / sigma), *known[:2]]
        times, slopes = zip(*known, strict=True)
        x = x + combine(lagrange_integrals(times, times[0], _time(sigma_next), _sigma_by_time), slopes)
    return x


def _time(sigma: float) -> float:
    return (sqrt(BETA_MIN**2 + 2 * BETA_D * log1p(sigma**2)) - BETA_MIN) / BETA_D


def _sigma_by_time(t: Values) -> Values:
    """d sigma / dt."""
    exponent = BETA_D * t**2 / 2 + BETA_MIN * t
    rate: Values = (BETA_D * t + BETA_MIN) * np.exp(exponent) / (2 * np.sqrt(np.expm1(exponent)))
    return rate


def ipndm(x: Tensor, sigmas: Tensor, noise: StepNoise) -> Run:
    """IPNDM: appendix H.2: Adams-Bashforth of order 4 as if the steps were equally long, started with lower orders."""
    known: list[Tensor] = []
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        if sigma_next == 0:
            return denoised.x0
        known = [(x - denoised.x0) / sigma, *known[:3]]
        x = x + (sigma_next - sigma) * combine(ADAMS_BASHFORTH[len(known) - 1], known)
    return x


def ipndm_v(x: Tensor, sigmas: Tensor, noise: StepNoise) -> Run:
    """IPNDM_V: IPNDM with weights for steps of unequal length, by Zhou et al. (diff-sampler, and from there ComfyUI)."""
    known: list[Tensor] = []
    lengths: list[float] = []
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        if sigma_next == sigma:  # a level that comes twice
            continue
        if sigma_next == 0:
            return denoised.x0
        known = [(x - denoised.x0) / sigma, *known[:3]]
        lengths = [sigma_next - sigma, *lengths[:3]]
        x = x + (sigma_next - sigma) * combine(_ipndm_v_weights(lengths), known)
    return x


def _ipndm_v_weights(lengths: list[float]) -> list[float]:
    """Weights of the slopes after steps of these lengths, the latest first, that of the step to take in front.

    Newton's form: the slope plus its first, second and third difference, each by the mean of its polynomial over the
    step. Three of the numbers are not Adams-Bashforth's. Every program that has this sampler has them so, and they move
    the latent of 20 steps by a percent or more, so they stay.
    """
    h, *before = lengths
    rows = [[1.0, -1.0, 0.0, 0.0], [0.0, 1.0, -1.0, 0.0], [0.0, 0.0, 1.0, -1.0]]
    weights = [1.0, 0.0, 0.0, 0.0]
    if before:
        h1 = before[0]
        weights = _add(weights, h / (2 * h1), rows[0])
    if len(before) > 1:
        h2 = before[1]
        # Adams-Bashforth: (h^2 / 3 + h h1 / 2) / (h1 (h1 + h2)). The same where h = h1 = h2.
        second = (1 - h**2 / (3 * h1 * (h1 + h2))) / 2
        bend = _add(rows[0], -h1 / h2, rows[1])
        weights = _add(weights, second, bend)
    if len(before) > 2:
        h3 = before[2]
        # Adams-Bashforth: h^3 / 4 + (2 h1 + h2) h^2 / 3 + h1 (h1 + h2) h / 2 above the line.
        third = h * (5 * h**2 / 12 + (h1 + h2 / 3) * h + h1 * (h1 + h2) / 2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
        q = h1 * (h1 + h2) / (h2 * (h2 + h3))
        twist = _add(bend, -q, _add(rows[1], -h2 / h3, rows[2]))
        twist[3] = -q * h1 / h2  # Adams-Bashforth: -q h2 / h3, for a sum of 0
        weights = _add(weights, third, twist)
    return weights[: len(lengths)]


def _add(row: list[float], factor: float, other: list[float]) -> list[float]:
    return [a + factor * b for a, b in zip(row, other, strict=True)]
