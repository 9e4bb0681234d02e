"""The way of Restart sampling through the noise levels: down, up again by noise, and down once more.

Xu et al. 2023, arXiv:2306.14878, with the settings that AUTOMATIC1111 chooses by the number of steps.
"""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

from torch import Tensor

FEWEST, TWICE = 20, 36  # steps from which on there is one restart, and two
LOW, HIGH = 0.1, 2.0  # levels, more or less, that a restart goes up from and up to
RHO = 7.0


def restart_levels(sigmas: Tensor) -> list[tuple[float, float, float]]:
    """(sigma, sigma_next, up) of every step; up is the deviation of the noise that comes before it, mostly 0.

    Below 20 steps these are the steps of sigmas. From 20 on, r * k steps go to the restarts (r = 9, k = 1; from 36 on
    r = n // 4, k = 2), the others to Karras levels between the first and the next-to-last of sigmas, and to 0. When the
    level nearest 0.1 is reached, noise brings it k times up to the level nearest 2, and r steps down again. Where the
    latter is not above the former there is no restart, and its steps are not made up for.
    """
    levels: list[float] = sigmas.tolist()
    n = len(levels) - 1
    if n < FEWEST:
        return [(sigma, sigma_next, 0.0) for sigma, sigma_next in pairwise(levels)]
    r, k = (n // 4, 2) if n >= TWICE else (9, 1)
    levels = [*_karras(n - r * k, levels[0], levels[-2]), 0.0]
    low, high = (min(range(len(levels)), key=lambda i: abs(levels[i] - near)) for near in (LOW, HIGH))
    down = [(sigma, sigma_next, 0.0) for sigma, sigma_next in pairwise(levels)]
    if low <= high:  # a schedule that ends high
        return down
    again = list(pairwise(_karras(r + 1, levels[high], levels[low])))
    first = (*again[0], sqrt(levels[high] ** 2 - levels[low] ** 2))
    segment = [first, *((sigma, sigma_next, 0.0) for sigma, sigma_next in again[1:])]
    return [*down[:low], *(segment * k), *down[low:]]


def _karras(n: int, first: float, last: float) -> list[float]:
    """n levels from first to last, the two ends to the bit (Karras et al. 2022, equation 5)."""
    start, end = first ** (1 / RHO), last ** (1 / RHO)
    return [first, *((start + i / (n - 1) * (end - start)) ** RHO for i in range(1, n - 1)), last]
