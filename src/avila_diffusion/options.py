"""The keyword options of the Python interface, for type checkers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from .request import Compat, Emphasis, Rng

MemoryMode = Literal["auto", "fast", "lean"]
"""What is kept of the weights in the form that is computed with: as much as there is room for, all, nothing."""


class RunOptions(TypedDict, total=False):
    """The fields of `GenerateRequest` but prompts and size, as keyword options."""

    steps: int
    sampler: str
    schedule: str
    guidance_scale: float
    seed: int | None
    batch: int
    count: int
    clip_skip: int
    compat: Compat
    emphasis: Emphasis
    rng: Rng | None
    ensd: int
    variation_seed: int | None
    variation_strength: float
    seed_width: int | None
    seed_height: int | None
    noise_batch: int | None
    noise_index: int
    eta: float | None
    s_churn: float | None
    s_tmin: float | None
    s_tmax: float | None
    s_noise: float | None
    sigmas: Sequence[float] | None
    rho: float | None
    sigma_min: float | None
    sigma_max: float | None
    guidance_list: Sequence[float] | None
    guidance_rescale: float
    guidance_start: float
    guidance_stop: float
    skip_early: float
    ngms: float
    ngms_all: bool


class GenerateOptions(RunOptions, total=False):
    """The fields of `GenerateRequest` but the prompts, as keyword options."""

    width: int | None
    height: int | None
