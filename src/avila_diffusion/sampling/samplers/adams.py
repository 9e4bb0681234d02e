"""Weights of linear multistep (Adams) methods: a polynomial through the latest predictions, integrated over a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

Values = npt.NDArray[np.float64]

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""By the number of known slopes: the weight of each, the latest first, for steps of equal length."""

# Enough for every step a schedule can ask for: products of a cubic and e^u over a whole run in one step.
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def lagrange_integrals(
    nodes: Sequence[float], start: float, end: float, density: Callable[[Values], Values] = np.ones_like
) -> list[float]:
    """For every node j the integral of density(u) L_j(u) from start to end (Gauss-Legendre).

    L_j is Lagrange's polynomial: 1 at node j, 0 at the others.
    """
    u = (start + end) / 2 + (end - start) / 2 * _POINTS
    weights = (end - start) / 2 * _WEIGHTS * density(u)
    integrals = []
    for node in nodes:
        others = [other for other in nodes if other != node]
        basis = np.prod([(u - other) / (node - other) for other in others], axis=0)
        integrals.append(float((weights * basis).sum()))
    return integrals


def combine(weights: Iterable[float], tensors: Iterable[Tensor]) -> Tensor:
    """The weighted sum; there is at least one."""
    first, *others = (weight * tensor for weight, tensor in zip(weights, tensors, strict=True))
    return sum(others, first)
