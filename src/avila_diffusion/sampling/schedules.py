"""The noise levels of a run: by its schedule, its sampler and what is asked for; how many model calls they take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import RequestError
from ..limits import lengthened
from .grids import GRIDS
from .lcm import lcm_table
from .levels import LEVELS, Span
from .names import SCHEDULES, Compat, SamplerInfo, ScheduleInfo
from .restarts import restart_levels
from .tables import NoiseTable

__all__ = [
    "NoiseTable",
    "ScheduleOptions",
    "calls",
    "image_sigmas",
    "image_steps",
    "sampler_sigmas",
    "schedule_sigmas",
]

COMFYUI_DISCARDS = frozenset({"dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"})
"""The samplers that lose the last level before 0 in ComfyUI."""


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """What may be asked of a schedule; None is its own value.

    rho: the bend of Karras' (7) and of Polyexponential (1). sigma_min, sigma_max: limits in place of the model's own.
    sigmas: levels in place of any schedule, falling, with or without the closing 0; their number is that of the steps.
    family: of the model, for the published lists; those of SDXL go to "sdxl" and "sdxl_refiner".
    compat: whose reading of the names, where AUTOMATIC1111 and ComfyUI differ.
    """

    rho: float | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    sigmas: tuple[float, ...] | None = None
    family: str = "sd1"
    compat: Compat = "a1111"


def schedule_sigmas(
    info: ScheduleInfo, n: int, table: NoiseTable, options: ScheduleOptions = ScheduleOptions()
) -> Tensor:
    """The noise levels of n steps: n + 1 values falling from the first level to 0, float64.

    Not quite so many where the schedule says so: `levels.ddim` and ComfyUI's `levels.beta`; and `levels.kl_optimal` ends
    above 0. Options that a schedule does not take (see its row) are ignored, as AUTOMATIC1111 does.
    Raises RequestError for "automatic", which only a sampler can decide, and where the options leave no room.
    """
    if options.sigmas is not None:
        return _given(options.sigmas)
    if info.key not in LEVELS:
        raise RequestError(f"schedule {info.name} is decided by the sampler; name one of {', '.join(LEVELS)}")
    low = table.sigma_min if options.sigma_min is None else options.sigma_min
    high = table.sigma_max if options.sigma_max is None else options.sigma_max
    rho = (info.rho or 1.0) if options.rho is None else options.rho
    asked = f"{n} step(s) from sigma {high:g} to {low:g} with rho {rho:g}"
    if n < 1 or not rho > 0 or not 0 < low < high < math.inf:
        raise RequestError(
            f"{asked} make no schedule; at least 1 step, rho above 0 and 0 < smallest < largest are needed"
        )
    span = Span(table=table, sigma_min=low, sigma_max=high, rho=rho, family=options.family, compat=options.compat)
    sigmas = LEVELS[info.key](n, span)
    if info.ends == "zero" or options.compat == "comfyui":
        sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
    if not bool((sigmas.diff() < 0).all() and sigmas[0] < math.inf):
        raise RequestError(
            f"{asked} do not fall from step to step in {info.name}; the model's own levels go from "
            f"{table.sigma_max:g} to {table.sigma_min:g}: give limits within them, and a usual rho"
        )
    return sigmas


def sampler_sigmas(
    sampler: SamplerInfo,
    schedule: ScheduleInfo,
    n: int,
    table: NoiseTable,
    options: ScheduleOptions = ScheduleOptions(),
    *,
    image: bool = False,
) -> Tensor:
    """The noise levels that a sampler walks for n steps: (levels,) float64, falling.

    "Automatic" is the sampler's own choice; samplers with `discard_penultimate` lose the last level before 0 of n + 1
    steps, but none of a list that was given. In AUTOMATIC1111's reading those with a grid of their own ignore the
    schedule and its options, and DPM fast and DPM adaptive do so for text, where they run over the whole table; `image`:
    the run begins with a picture. In ComfyUI's every sampler runs over the chosen schedule.
    """
    comfyui = options.compat == "comfyui"
    if sampler.grid != "schedule" and not comfyui:
        if options.sigmas is not None:
            raise RequestError(
                f"{sampler.name} chooses its noise levels itself; leave sigmas out or take another sampler"
            )
        if sampler.grid in GRIDS:
            if n < 1:
                raise RequestError(f"{n} steps make no run; at least 1 is needed")
            return GRIDS[sampler.grid](n, table)
        if not image:
            schedule = SCHEDULES["uniform"]
    if sampler.denoiser == "lcm" and not comfyui:
        table = lcm_table(table)
    if schedule.key == "automatic":
        schedule = SCHEDULES[sampler.automatic]
    discards = sampler.key in COMFYUI_DISCARDS if comfyui else sampler.discard_penultimate
    more = 1 if discards and options.sigmas is None else 0
    sigmas = schedule_sigmas(schedule, n + more, table, options)
    return torch.cat([sigmas[:-2], sigmas[-1:]]) if more and len(sigmas) > 2 else sigmas


def _given(levels: tuple[float, ...]) -> Tensor:
    """Levels that somebody wrote, checked."""
    if len(levels) < 2:
        raise RequestError(f"sigmas has {len(levels)} value(s); at least 2 are needed, a first level and a last")
    for number, level in enumerate(levels, 1):
        if not 0 <= level < math.inf:
            raise RequestError(f"value {number} of sigmas is {level:g}; noise levels are finite and not below 0")
    for number, (level, after) in enumerate(pairwise(levels), 2):
        if after >= level:
            raise RequestError(f"value {number} of sigmas is {after:g}, after {level:g}; noise levels must fall")
    return torch.tensor(levels, dtype=torch.float64)


def calls(sampler: SamplerInfo, sigmas: Tensor) -> int | None:
    """Model calls of a run over these levels at the sampler's default options, None where only the run can tell."""
    steps = len(sigmas) - 1
    if steps < 1:
        return 0
    if sampler.calls == "adaptive":
        return None
    if sampler.calls == "restart":
        return sum(2 if sigma_next > 0 else 1 for _, sigma_next, _ in restart_levels(sigmas))
    if sampler.calls == "two":
        return 2 * steps - int(sigmas[-1] == 0)
    if sampler.calls == "three":
        return max(3 * steps - 3, steps)
    return steps + int(sampler.calls == "extra")


def image_steps(steps: int, strength: float, *, exact: bool = False) -> tuple[int, int]:
    """(steps of the whole schedule, steps run on the picture) for image to image, as AUTOMATIC1111 counts them.

    strength: 0 to 1, how far the picture is noised. By default a share of the steps is run, and one more than the share
    in the grid (`image_sigmas`); `exact` (and the second pass of a high-resolution fix) lengthens the schedule instead: to
    none at strength 0, where nothing is run. Raises RequestError where it would be too long.
    """
    if not exact:
        return steps, int(min(strength, 0.999) * steps)
    return lengthened(steps, strength), steps - 1


def image_sigmas(
    sampler: SamplerInfo, sigmas: Tensor, steps: int, run: int, *, compat: Compat = "a1111"
) -> tuple[Tensor, float]:
    """(levels to walk, level that the picture is noised to) of image to image.

    sigmas: of the whole schedule, for `steps` steps; run: see `image_steps`. `samplers.start` takes the level.
    compat: AUTOMATIC1111 counts the levels from the first, ComfyUI (whose steps are `exact`) from the last.
    """
    if compat == "comfyui":
        tail = sigmas[-(run + 2) :]
        return tail, float(tail[0])
    if sampler.image_start == "first":
        tail = sigmas[max(steps - run - 1, 0) :]
        return tail, float(tail[0])
    above = max(len(sigmas) - 1 - run, 0)
    return sigmas[min(above + 1, len(sigmas) - 1) :], float(sigmas[above])
