"""UniPC (Zhao et al. 2023, arXiv:2302.04867): one formula predicts a step, and corrects it once x0 is known there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import expm1, factorial, hypot, log

import torch
from torch import Tensor

from ..guidance import Call
from ..noise import StepNoise
from .adams import combine
from .run import Run, steps

Known = Sequence[tuple[float, Tensor]]
"""(sigma, x0) of earlier calls, the latest first."""

LAST_SIGMA = 0.001
"""Where a run to 0 ends, whose logarithm is wanted (ComfyUI)."""


def uni_pc(x: Tensor, sigmas: Tensor, noise: StepNoise) -> Run:
    """UniPC with B1(h) = h: the multistep UniP and UniC of order 3 on the predicted x0.

    The first steps have the orders 1 and 2, the last 2 and 1; the last is not corrected. Returns the variance-preserving
    latent of the last level, as AUTOMATIC1111 hands it to the decoder; a run to 0 ends at 0.001 instead, as ComfyUI's.
    """
    return _uni_pc(x, sigmas, lambda h: h)


def uni_pc_bh2(x: Tensor, sigmas: Tensor, noise: StepNoise) -> Run:
    """UniPC with B2(h) = e^h - 1, else `uni_pc`."""
    return _uni_pc(x, sigmas, expm1)


def _uni_pc(x: Tensor, sigmas: Tensor, B: Callable[[float], float]) -> Run:
    n = len(sigmas) - 1
    x_predicted = x
    known: list[tuple[float, Tensor]] = []
    used = known
    sigma_next = float(sigmas[0])
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x_predicted, sigma, step)
        if sigma_next == sigma:  # a level that comes twice
            continue
        if used:
            x = _unified_step(x, used, sigma, B, denoised.x0)
        known = [(sigma, denoised.x0), *known[:2]]
        used = known[: min(n - step, 3)]
        x_predicted = _unified_step(x, used, sigma_next or LAST_SIGMA, B)
    return x_predicted / hypot(1, sigma_next)


def _unified_step(
    x: Tensor, known: Known, sigma_next: float, B: Callable[[float], float], x0_next: Tensor | None = None
) -> Tensor:
    """From the latest known level to sigma_next: UniP, or UniC where x0 at sigma_next is known."""
    (sigma, m0), *earlier = known
    h = log(sigma) - log(sigma_next)
    r = [log(sigma / sigma_i) / h for sigma_i, _ in earlier]
    D = [(x0 - m0) / r_i for r_i, (_, x0) in zip(r, earlier, strict=True)]
    if x0_next is not None:
        r, D = [*r, 1.0], [*D, x0_next - m0]
    x = sigma_next / sigma * x - expm1(-h) * m0
    return x - B(-h) * combine(_solve(r, -h, B(-h)), D) if D else x


def _solve(r: list[float], h: float, B_h: float) -> list[float]:
    """The weights of the differences: for i = 1, 2, … the sum of r^(i - 1) a is i! h phi_(i + 1)(h) / B(h)."""
    if len(r) == 1:
        return [0.5]  # of the same order, as the paper advises
    h_phi, right = expm1(h), []
    for i in range(1, len(r) + 1):
        h_phi = h_phi / h - 1 / factorial(i)
        right.append(factorial(i) * h_phi / B_h)
    matrix = torch.tensor([[r_j**i for r_j in r] for i in range(len(r))], dtype=torch.float64)
    weights: list[float] = torch.linalg.solve(matrix, torch.tensor(right, dtype=torch.float64)).tolist()
    return weights
