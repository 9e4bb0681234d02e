"""The passes of a run: one from text or from a picture, and the second one of a high-resolution fix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..config import ModelSpec
from ..errors import RequestError
from ..limits import LATENT_UPSCALERS
from ..request import GenerateRequest
from ..sampling.grids import GRIDS
from ..sampling.names import SamplerInfo, resolve_sampler, resolve_schedule
from ..sampling.tables import NoiseTable
from ..second_pass import enlarged, latent_size
from .plan import Plan, make_plan


@dataclass(frozen=True, eq=False)
class Pass:
    """request: with the pass' own size, prompts, sampler and steps. size: of the latent that is sampled, height and width."""

    request: GenerateRequest
    plan: Plan
    size: tuple[int, int]


def passes_of(drawn: GenerateRequest, spec: ModelSpec, table: NoiseTable) -> tuple[Pass, ...]:
    """Of a resolved request at the size that the networks work at. Raises RequestError for what cannot be run."""
    assert drawn.width is not None and drawn.height is not None
    scale = spec.vae.scale
    plan = make_plan(drawn, spec, table)
    first = Pass(drawn, plan, (drawn.height // scale, drawn.width // scale))
    if not drawn.hires:
        return (first,)
    if spec.fixed_size:
        raise RequestError(
            "this model draws at one size only, and has no second pass; leave out the high-resolution fix"
        )
    request, size = _second(drawn, scale)
    return first, Pass(request, make_plan(request, spec, table, earlier=(plan.counted,)), size)


def _second(request: GenerateRequest, scale: int) -> tuple[GenerateRequest, tuple[int, int]]:
    """(the second pass as a request of its own, height and width of its latent)."""
    width, height = enlarged(request)
    size = latent_size(request, scale)
    sampler, joint = (None, None) if request.hires_sampler is None else resolve_sampler(request.hires_sampler)
    schedule = request.schedule if joint is None else joint.name
    own: dict[str, Any] = {} if sampler is None else dict.fromkeys(_foreign(sampler, request))
    second = replace(
        request,
        **own,
        width=width,
        height=height,
        steps=request.hires_steps or request.steps,
        sampler=request.sampler if sampler is None else sampler.name,
        schedule=schedule if request.hires_schedule is None else resolve_schedule(request.hires_schedule).name,
        prompt=request.hires_prompt or request.prompt,
        negative_prompt=request.hires_negative_prompt or request.negative_prompt,
        guidance_scale=request.guidance_scale if request.hires_guidance_scale is None else request.hires_guidance_scale,
        guidance_list=request.guidance_list if request.hires_guidance_scale is None else None,
        sigmas=None,  # which are the first pass' own
        exact_steps=True,
        hires_scale=None,
        hires_width=None,
        hires_height=None,
    )
    return second, size


def _foreign(sampler: SamplerInfo, request: GenerateRequest) -> list[str]:
    """The options of the first pass' sampler that mean nothing to the second one's. AUTOMATIC1111 keeps the eta of samplers
    that walk timesteps apart from that of all others."""
    first, _ = resolve_sampler(request.sampler)
    another_eta = (first.grid in GRIDS) != (sampler.grid in GRIDS)
    return [name for name in _OPTIONS if name not in sampler.options or (name == "eta" and another_eta)]


_OPTIONS = ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise")


def enlarge(latent: Tensor, request: GenerateRequest, scale: int) -> Tensor:
    """The first pass' latent at the size of `enlarged`."""
    mode, smooth = LATENT_UPSCALERS[request.hires_upscaler]
    width, height = enlarged(request)
    # On the processor: MPS cannot smooth, and so the numbers are the same everywhere.
    size = height // scale, width // scale
    return F.interpolate(latent.cpu(), size=size, mode=mode, antialias=smooth).to(latent)
