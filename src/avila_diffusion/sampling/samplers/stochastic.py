"""Multistep samplers of the reverse SDE: earlier predictions of x0 are extrapolated, and fresh noise is added."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, expm1, log, sqrt

import numpy as np
from torch import Tensor

from ..guidance import Call
from ..noise import StepNoise
from ..tables import NoiseTable
from .adams import combine, lagrange_integrals
from .run import Run, steps

INTEGRATION_POINTS = 200
"""Of the sums that stand for integrals in ER-SDE-Solver, as in its authors' program."""


def sa_solver(
    x: Tensor, sigmas: Tensor, noise: StepNoise, *, table: NoiseTable, eta: float = 1.0, s_noise: float = 1.0
) -> Run:
    """SA-Solver: Xue et al. 2023, algorithm 1 on the predicted x0: predictor of 3 steps, corrector of 3 and the new one.

    eta is the paper's tau, on the way to the levels of the middle three fifths of the training time; elsewhere it is 0.
    The corrector takes the same noise as the predictor before it. Towards 0 the orders fall (ComfyUI).
    """
    n, top = len(sigmas) - 1, len(table.sigmas) - 1
    upper, lower = float(table.at(0.8 * top)), float(table.at(0.2 * top))
    to_zero = float(sigmas[-1]) == 0
    x_predicted, added, tau, sigma_last = x, None, 0.0, 0.0
    known: list[tuple[float, Tensor]] = []
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x_predicted, sigma, step)
        if sigma_next == 0:
            return denoised.x0
        known = [(-log(sigma), denoised.x0), *known[:3]]
        left = n - step if to_zero else n
        if step > 0:
            x = _stochastic_adams(x, sigma_last, sigma, tau, known[:left])
            x = x if added is None else x + added
        tau = eta if eta > 0 and lower < sigma_next <= upper else 0.0
        x_predicted = _stochastic_adams(x, sigma, sigma_next, tau, known[: min(3, left - 1) if to_zero else 3])
        added = None
        if tau > 0 and s_noise > 0:
            h = log(sigma / sigma_next)
            added = noise(sigma, sigma_next) * (s_noise * sigma_next * sqrt(-expm1(-2 * tau**2 * h)))
            x_predicted = x_predicted + added
        sigma_last = sigma
    return x_predicted


def _stochastic_adams(
    x: Tensor, sigma: float, sigma_next: float, tau: float, known: Sequence[tuple[float, Tensor]]
) -> Tensor:
    """A step without its noise: the predictor, or the corrector where x0 at sigma_next is among the known."""
    lambdas, x0s = zip(*known, strict=True)
    lambda_s, lambda_t, rate = -log(sigma), -log(sigma_next), 1 + tau**2
    b = lagrange_integrals(lambdas, lambda_s, lambda_t, lambda u: rate * np.exp(rate * (u - lambda_t)))
    return sigma_next / sigma * exp(-(tau**2) * (lambda_t - lambda_s)) * x + combine(b, x0s)


def er_sde(x: Tensor, sigmas: Tensor, noise: StepNoise, *, s_noise: float = 1.0) -> Run:
    """ER-SDE: Cui et al. 2023, VE ER-SDE-Solver-3, with the noise scale phi that the authors recommend.

    The first two steps are those of the solvers 1 and 2. A step to 0 takes the predicted x0.
    """
    known: list[tuple[float, Tensor]] = []  # (sigma, x0), the latest first
    slope = slope_last = None
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        if sigma_next == sigma:  # a level that comes twice
            continue
        if sigma_next == 0:
            return denoised.x0
        known = [(sigma, denoised.x0), *known[:2]]
        phi = _noise_scale(sigma_next)
        r = phi / _noise_scale(sigma)
        x = r * x + (1 - r) * denoised.x0
        if len(known) > 1:
            length = sigma_next - sigma
            points = sigma_next - length / INTEGRATION_POINTS * np.arange(INTEGRATION_POINTS)
            shares = -length / INTEGRATION_POINTS / np.array([_noise_scale(point) for point in points.tolist()])
            slope, slope_last = (denoised.x0 - known[1][1]) / (sigma - known[1][0]), slope
            x = x + (length + phi * float(shares.sum())) * slope
            if slope_last is not None:
                bend = (slope - slope_last) / ((sigma - known[2][0]) / 2)
                x = x + (length**2 / 2 + phi * float((shares * (points - sigma)).sum())) * bend
        if s_noise > 0:
            x = x + noise(sigma, sigma_next) * (s_noise * sqrt(max(sigma_next**2 - (sigma * r) ** 2, 0.0)))
    return x


def _noise_scale(sigma: float) -> float:
    """phi(sigma): how much of the noise is kept from one level to the next."""
    return sigma * (exp(sigma**0.3) + 10)
