"""The keyword options of the Python interface, for type checkers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from .given import PictureGiven
from .request import Compat, Emphasis, InpaintArea, MaskedContent, ResizeMode, Rng, Switch, Tiling

MemoryMode = Literal["auto", "fast", "lean"]
"""What is kept of the weights in the form that is computed with: as much as there is room for, all, nothing."""


class RunOptions(TypedDict, total=False):
    """The fields of `GenerateRequest` but prompts, size, image and mask, as keyword options."""

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
    depth: PictureGiven | None
    strength: float
    exact_steps: bool
    extra_noise: float
    noise_multiplier: float
    resize_mode: ResizeMode
    image_guidance_scale: float
    mask_blur: float
    mask_invert: bool
    mask_soft: bool
    masked_content: MaskedContent
    inpaint_area: InpaintArea
    mask_padding: int
    mask_weight: float
    outpaint: Sequence[int] | None
    hires_scale: float | None
    hires_width: int | None
    hires_height: int | None
    hires_upscaler: str
    hires_steps: int | None
    hires_sampler: str | None
    hires_schedule: str | None
    hires_prompt: str | None
    hires_negative_prompt: str | None
    hires_guidance_scale: float | None
    refiner_switch: float | None
    refiner_by: Switch
    tiling: Tiling


class SizedOptions(RunOptions, total=False):
    """Those with the size."""

    width: int | None
    height: int | None


class PictureOptions(RunOptions, total=False):
    """Those with the pictures that a run begins with."""

    image: PictureGiven | None
    mask: PictureGiven | None


class GenerateOptions(PictureOptions, total=False):
    """The fields of `GenerateRequest` but the prompts, as keyword options."""

    width: int | None
    height: int | None
