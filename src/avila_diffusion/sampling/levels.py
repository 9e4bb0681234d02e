"""The schedules: functions from a number of steps to that many noise levels, falling, without the closing 0.

Where AUTOMATIC1111 and ComfyUI give one name to two things, `Span.compat` says whose is meant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..config import NoiseConfig
from ..errors import RequestError
from . import published
from .schedule_catalogue import Compat
from .tables import NoiseTable

LINEAR_SHARE: float = 0.025
"""How far the linear half of `linear_quadratic` goes."""
TURBO_STEPS = 10
"""As many steps SD Turbo was trained for."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """What a schedule is made of: the table, the levels to run between, rho, the bend of Karras' and of polyexponential,
    the model's family, which chooses among published lists, and whose reading of an ambiguous name is meant.
    """

    table: NoiseTable
    sigma_min: float
    sigma_max: float
    rho: float = 7.0
    family: str = "sd1"
    compat: Compat = "a1111"

    def timesteps(self, n: int) -> Tensor:
        """n timesteps, evenly spaced from sigma_max's to sigma_min's."""
        start, end = self.table.sigma_to_t(self.sigma_max), self.table.sigma_to_t(self.sigma_min)
        return torch.linspace(float(start), float(end), n, dtype=torch.float64)


def karras(n: int, span: Span) -> Tensor:
    """Evenly spaced in sigma^(1/rho): Karras et al. 2022, equation 5."""
    start, end = torch.tensor((span.sigma_max, span.sigma_min), dtype=torch.float64) ** (1 / span.rho)
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    sigmas: Tensor = (start + ramp * (end - start)) ** span.rho
    return sigmas


def exponential(n: int, span: Span) -> Tensor:
    """Evenly spaced in ln(sigma)."""
    return torch.linspace(math.log(span.sigma_max), math.log(span.sigma_min), n, dtype=torch.float64).exp()


def polyexponential(n: int, span: Span) -> Tensor:
    """The steps of ln(sigma) bent by the power rho; 1 is `exponential` (k-diffusion)."""
    low, high = math.log(span.sigma_min), math.log(span.sigma_max)
    ramp = torch.linspace(1, 0, n, dtype=torch.float64) ** span.rho
    return (low + ramp * (high - low)).exp()


def uniform(n: int, span: Span) -> Tensor:
    """Evenly spaced timesteps over the whole table, both ends included; other limits are ignored (AUTOMATIC1111)."""
    return normal(n, replace(span, sigma_min=span.table.sigma_min, sigma_max=span.table.sigma_max))


def normal(n: int, span: Span) -> Tensor:
    """Evenly spaced timesteps, both ends included."""
    return span.table.t_to_sigma(span.timesteps(n))


def sgm_uniform(n: int, span: Span) -> Tensor:
    """Evenly spaced timesteps without the lowest: the next would be sigma_min, the run goes to 0 instead (SGM)."""
    return span.table.t_to_sigma(span.timesteps(n + 1)[:-1])


def simple(n: int, span: Span) -> Tensor:
    """Every (steps / n)-th level of the table from the top, rounded to whole timesteps (ComfyUI).

    Where more levels are wanted than the table has, they are `uniform`.
    """
    sigmas = span.table.sigmas
    stride = len(sigmas) / n
    if stride < 1:
        return uniform(n, span)
    return sigmas[[len(sigmas) - 1 - int(i * stride) for i in range(n)]]


def ddim(n: int, span: Span) -> Tensor:
    """Every (steps // n)-th level from timestep 1 up (ComfyUI's ddim_uniform).

    So the top level is below sigma_max, the number of levels is n only where n divides the steps (30 give 31, 600 give
    999), and n = 1 gives timestep 1 alone, which is hardly any noise.
    """
    sigmas = span.table.sigmas
    return sigmas[1 :: max(len(sigmas) // n, 1)].flip(0)


def turbo(n: int, span: Span) -> Tensor:
    """The last of n equal parts of the table: 999, 899, … for 10 (Sauer et al. 2023, ADD, arXiv:2311.17042).

    AUTOMATIC1111's (that is, Forge's) reading cuts the table into n parts, and is `uniform` where it has fewer levels
    than that. ComfyUI's takes the first n of 10 parts, so that fewer steps end higher; more than 10 are refused.
    """
    count = len(span.table.sigmas)
    if span.compat == "comfyui" and n > TURBO_STEPS:
        raise RequestError(
            f"the schedule Turbo has {TURBO_STEPS} steps in ComfyUI, not {n}; ask for {TURBO_STEPS} at most"
        )
    parts = TURBO_STEPS if span.compat == "comfyui" else n
    if parts > count:
        return uniform(n, span)
    # In float32, so that halves round as Forge's do.
    ends = torch.arange(1, parts + 1, dtype=torch.float32) * (count / parts) - 1
    return span.table.sigmas[ends.round().long().clamp(0, count - 1)].flip(0)[:n]


def kl_optimal(n: int, span: Span) -> Tensor:
    """Evenly spaced in arctan(sigma): Sabour et al. 2024, arXiv:2404.14507.

    AUTOMATIC1111 ends the run at sigma_min, its n-th step, and not at 0; ComfyUI steps from there to 0 as others do.
    """
    count = n + 1 if span.compat == "a1111" else n
    return torch.linspace(math.atan(span.sigma_max), math.atan(span.sigma_min), count, dtype=torch.float64).tan()


def beta(n: int, span: Span) -> Tensor:
    """Quantiles of Beta(0.6, 0.6): Lee et al. 2024, Beta Sampling, arXiv:2407.12173.

    In AUTOMATIC1111 the sigmas are those quantiles, from sigma_max to sigma_min. In ComfyUI the whole timesteps are,
    the lowest left out; those that coincide are dropped, so a run of many steps is shorter than asked for.
    """
    from scipy.special import betaincinv  # 0.1 s to load, for this alone

    comfyui = span.compat == "comfyui"
    quantiles = betaincinv(0.6, 0.6, 1 - np.linspace(0, 1, n, endpoint=not comfyui))
    if comfyui:
        timesteps = np.rint(quantiles * (len(span.table.sigmas) - 1)).astype(int)
        return span.table.sigmas[list(dict.fromkeys(timesteps.tolist()))]
    return span.sigma_min + torch.from_numpy(quantiles) * (span.sigma_max - span.sigma_min)


def linear_quadratic(n: int, span: Span) -> Tensor:
    """sigma_max (1 - f), f a line through the first half of the steps, then a parabola that carries on its slope to 1.

    Of Mochi 1 by Genmo (ComfyUI). In the first half f rises to 0.025.
    """
    if n == 1:
        return span.table.sigmas[-1:]
    half = n // 2
    step = torch.arange(n, dtype=torch.float64)
    bend = (half - LINEAR_SHARE * n) / (half * (n - half) ** 2)
    f = LINEAR_SHARE * step / half + bend * (step - half).clamp(min=0) ** 2
    return span.table.sigma_max * (1 - f)


def align_your_steps(n: int, span: Span) -> Tensor:
    """The list of Sabour et al. 2024, arXiv:2404.14507, for other numbers of steps between its levels (log-linearly).

    In AUTOMATIC1111 the n levels run to the list's last, 0.029, and then to 0, so that the published steps are those
    of n = 11. In ComfyUI 0 stands in place of the last level, and n = 10 is as published.
    """
    if span.compat == "comfyui":
        return _fit(published.ALIGN_YOUR_STEPS_EXACT, n + 1, span)[:n]
    return _fit(published.ALIGN_YOUR_STEPS, n, span)


def align_your_steps_11(n: int, span: Span) -> Tensor:
    """Forge's: the levels of AUTOMATIC1111's `align_your_steps`, whichever program is asked for."""
    return _fit(published.ALIGN_YOUR_STEPS, n, span)


def align_your_steps_32(n: int, span: Span) -> Tensor:
    """Forge's list of 32 levels, of which the last is 0.015, below the table of Stable Diffusion."""
    return _fit(published.ALIGN_YOUR_STEPS_32, n, span)


def gits(n: int, span: Span) -> Tensor:
    """Chen et al. 2024, GITS, arXiv:2405.11326.

    AUTOMATIC1111's (that is, Forge's) reading is one list of 11 levels. ComfyUI's is a list for each number of steps from
    2 to 20, of its default coefficient 1.20; beyond 20 the longest is filled up.
    """
    if span.compat == "a1111":
        return _fit(published.GITS, n, span)
    places = published.GITS_PLACES[min(max(n, 2), 1 + len(published.GITS_PLACES)) - 2]
    noise = NoiseTable.from_config(NoiseConfig())
    whole = tuple(noise.at(place / 100 * (len(noise.sigmas) - 1)).item() for place in places)
    return _fit({"sd1": whole, "sdxl": whole}, n + 1, span)[:n]


def _fit(lists: published.Lists, n: int, span: Span) -> Tensor:
    """n levels of the family's list, at even distances between its places, log-linearly.

    The levels are those of the list, whatever the table, as in the programs that have them; but a table that does not
    reach as high, which they do not know, has them moved onto it (linearly in ln(sigma)).
    """
    levels = np.log(lists["sdxl" if span.family.startswith("sdxl") else "sd1"])
    low, high = math.log(span.table.sigma_min), math.log(span.table.sigma_max)
    if high < levels[0] - 1e-3:
        levels = low + (levels - levels[-1]) * (high - low) / (levels[0] - levels[-1])
    return torch.from_numpy(np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(levels)), levels)).exp()


LEVELS: dict[str, Callable[[int, Span], Tensor]] = {
    "uniform": uniform,
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "sgm_uniform": sgm_uniform,
    "kl_optimal": kl_optimal,
    "align_your_steps": align_your_steps,
    "align_your_steps_11": align_your_steps_11,
    "align_your_steps_32": align_your_steps_32,
    "gits": gits,
    "simple": simple,
    "normal": normal,
    "ddim": ddim,
    "beta": beta,
    "linear_quadratic": linear_quadratic,
    "turbo": turbo,
}
"""Key of a schedule → f(n, span)."""
