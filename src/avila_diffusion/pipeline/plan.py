"""What the sampling of a request consists of: sampler, noise levels, options, guidance, and each picture's noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..config import ModelSpec, Variant
from ..errors import RequestError
from ..request import GenerateRequest
from ..sampling.blending import blend, blend_after, blend_before, blend_renoised
from ..sampling.denoiser import Denoiser
from ..sampling.grids import GRIDS, unipc_image_grid
from ..sampling.guidance import Call, Denoise, Denoised, Guidance, guide, guide_edit
from ..sampling.lcm import lcm_denoiser
from ..sampling.names import SamplerInfo, resolve_sampler, resolve_schedule
from ..sampling.noise import ImageNoise, Seeding
from ..sampling.samplers import Options, check_options, sample, start
from ..sampling.samplers.run import Run
from ..sampling.schedules import ScheduleOptions, calls, image_sigmas, image_steps, sampler_sigmas
from ..sampling.tables import NoiseTable
from .begin import Begin
from .prompts import Conditions


def numbers_of(request: GenerateRequest) -> Literal["a1111", "comfyui"]:
    """Whose noise, schedules and starts hold. The diffusers dialect is one of prompts; its numbers are AUTOMATIC1111's."""
    return "comfyui" if request.compat == "comfyui" else "a1111"


def edits(request: GenerateRequest, variant: Variant) -> bool:
    """Whether the guidance of a request is that by text and by picture; variant: of the model."""
    return variant == "pix2pix" and request.image_guidance_scale != 1


@dataclass(frozen=True, eq=False)
class Plan:
    """The part of a run that all pictures of a resolved request share.

    sigmas: the noise levels that are walked, float64, falling. table: the model's noise, as the sampler sees it. calls: of
    the model, for a picture; None where only the run can tell. level: that a latent to begin with is noised to, None where
    the run begins with noise alone. span: the levels between which a Brownian path lies.
    run_steps: those that are run of a picture's steps, as AUTOMATIC1111 counts them. variant: what the network is
    given beside latents and text. earlier: the calls of the passes before this one, as schedules count them.
    """

    request: GenerateRequest
    sampler: SamplerInfo
    sigmas: Tensor
    table: NoiseTable
    options: Options
    guidance: Guidance
    calls: int | None
    level: float | None
    span: Tensor
    run_steps: int
    variant: Variant = "base"
    earlier: tuple[int, ...] | None = None

    @property
    def unguided(self) -> bool:
        """Whether the negative prompt is never looked at."""
        scales = self.guidance.scales or (self.guidance.scale,)
        return not self.sampler.uncond and not self.edits and all(scale == 1 for scale in scales)

    @property
    def edits(self) -> bool:
        """Whether the picture guides beside the text, as instruct-pix2pix models have it."""
        return edits(self.request, self.variant)

    @property
    def counted(self) -> int:
        """The model calls that prompt schedules are counted in, as AUTOMATIC1111 counts them."""
        return self.request.steps * (2 if self.sampler.second_order else 1)

    @property
    def shared(self) -> int:
        """Those that shares of the calls are of."""
        return self.run_steps * (2 if self.sampler.second_order else 1)

    def asking(self, denoiser: Denoiser) -> Denoiser:
        """The model as the sampler asks it."""
        asked = lcm_denoiser(denoiser) if self._consistency else denoiser
        return replace(asked, whole_timesteps=numbers_of(self.request) == "comfyui")

    def guide(self, asked: Denoiser, conditions: Conditions, begin: Begin) -> Denoise:
        """The model with its prompts: at each call with those that hold there, and with what the network is given of
        pictures. asked: of `asking`."""
        steps = len(self.sigmas) - 1

        def denoise(call: Call) -> Denoised:
            conds, uncond = conditions.at(call.number)
            if begin.concat is not None:
                conds = tuple(replace(cond, concat=begin.concat) for cond in conds)
                uncond = None if uncond is None else replace(uncond, concat=begin.concat)
            scale = self.request.image_guidance_scale
            if self.edits and uncond is not None:
                return guide_edit(asked, conds[0], uncond, self.guidance, scale, steps=steps, calls=self.shared)(call)
            return guide(asked, conds, uncond, self.guidance, steps=steps, calls=self.shared)(call)

        return denoise

    def masked(self, denoise: Denoise, begin: Begin, noise: Tensor) -> Denoise:
        """The same, what is to be kept put back at every call. noise: the run's first."""
        if begin.latent is None or begin.keep is None:
            return denoise
        if numbers_of(self.request) == "comfyui":
            return blend_renoised(denoise, begin.latent, begin.keep, noise)
        blended = blend_before if self.sampler.grid in GRIDS else blend_after
        return blended(denoise, begin.latent, begin.keep)

    def finished(self, latent: Tensor, begin: Begin) -> Tensor:
        """A finished latent, with what is to be kept as it was. ComfyUI's samplers end with that, and it is not mixed with
        what is half painted once more."""
        if begin.latent is None or begin.keep is None or numbers_of(self.request) == "comfyui":
            return latent
        return blend(latent, begin.latent, begin.keep)

    @property
    def _consistency(self) -> bool:
        """Whether x0 is predicted as AUTOMATIC1111's LCM sampler does."""
        return self.sampler.denoiser == "lcm" and numbers_of(self.request) == "a1111"

    def noise(self, index: int, latent: tuple[int, int], scale: int, device: torch.device) -> ImageNoise:
        """The noise of picture `index`. latent: its height and width in cells of `scale` pixels."""
        request = self.request
        resized = None
        if request.seed_width is not None and request.seed_height is not None:
            resized = (max(request.seed_height // scale, 1), max(request.seed_width // scale, 1))
        return ImageNoise(
            Seeding(
                seed=request.seeds[index],
                rng=request.rng or "nv",
                ensd=request.ensd,
                variation_seed=request.variation_seeds[index],
                variation_strength=request.variation_strength,
                resize_from=None if resized == latent else resized,
                compat=numbers_of(request),
                index=request.noise_index + index % request.batch,
                batch=request.noise_batch or request.batch,
                device=device,
            )
        )

    def first(
        self, noise: ImageNoise, shape: tuple[int, int, int], like: Tensor, latent: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(what a picture of latent `shape` starts from, the noise in it); placed and cast as `like`. latent: without noise."""
        request = self.request
        drawn = noise.initial(shape).to(like)
        if request.image is not None:  # not of a second pass
            drawn = drawn * request.noise_multiplier
        x = start(
            self.sampler,
            drawn,
            self.sigmas,
            latent=latent,
            level=self.level,
            extra=0.0 if latent is None else request.extra_noise,
            compat=numbers_of(request),
            table=self.table,
        )
        return x, drawn

    def run(self, noise: ImageNoise, x: Tensor, sigmas: Tensor | None = None) -> Run:
        """The sampler's generator from x on. sigmas: the levels still to walk, where they are not all."""
        levels = self.sigmas if sigmas is None else sigmas
        if len(levels) < 2:
            return _finished(x)
        between = noise.between(x, self.span, brownian=self.sampler.brownian)
        return sample(self.sampler, x, levels, between, table=self.table, options=self.options)


def _finished(x: Tensor) -> Run:
    """A run of no steps."""
    yield from ()
    return x


def make_plan(
    request: GenerateRequest, spec: ModelSpec, table: NoiseTable, earlier: tuple[int, ...] | None = None
) -> Plan:
    """The plan of a resolved request on a model. earlier: the calls of the pass before this one, as prompt schedules count
    them, where this is the second of a high-resolution fix.

    Raises RequestError for what sampler or model do not take.
    """
    sampler, _ = resolve_sampler(request.sampler)
    if spec.unet.guidance_channels is not None and request.guidance_list is not None:
        raise RequestError("this model is told one guidance scale for all steps; leave guidance_list out")
    options = Options(
        eta=request.eta,
        s_noise=request.s_noise,
        s_churn=request.s_churn,
        s_tmin=request.s_tmin,
        s_tmax=request.s_tmax,
    )
    check_options(sampler, options)
    levels = ScheduleOptions(
        rho=request.rho,
        sigma_min=request.sigma_min,
        sigma_max=request.sigma_max,
        sigmas=request.sigmas,
        family=spec.family,
        compat=numbers_of(request),
    )
    walked = _walked(sampler, request, table, levels, begins=request.image is not None or earlier is not None)
    divisor = sampler.guidance_divisor
    scales, embedded = request.guidance_list, spec.unet.guidance_channels is not None
    guidance = Guidance(
        # Guidance-distilled networks are told the scale instead.
        scale=1.0 if embedded else request.guidance_scale / divisor,
        scales=None if scales is None or embedded else tuple(scale / divisor for scale in scales),
        rescale=request.guidance_rescale,
        start=request.guidance_start,
        stop=request.guidance_stop,
        skip_early=request.skip_early,
        ngms=0.0 if edits(request, spec.variant) else request.ngms,  # which AUTOMATIC1111 does not heed there
        ngms_all=request.ngms_all,
        ngms_level=partial(_timestep, table) if _asks_by_timestep(sampler, request) else None,
    )
    return Plan(
        request,
        sampler,
        walked.sigmas,
        table,
        options,
        guidance,
        calls(sampler, walked.sigmas),
        walked.level,
        walked.span,
        walked.run_steps,
        spec.variant,
        earlier,
    )


@dataclass(frozen=True, eq=False)
class _Walked:
    """See `Plan`."""

    sigmas: Tensor
    level: float | None
    span: Tensor
    run_steps: int


def _walked(
    sampler: SamplerInfo, request: GenerateRequest, table: NoiseTable, levels: ScheduleOptions, *, begins: bool
) -> _Walked:
    """The noise levels of a request. begins: with a latent, which is noised."""
    schedule, steps, compat = resolve_schedule(request.schedule), request.steps, numbers_of(request)
    if not begins:
        sigmas = sampler_sigmas(sampler, schedule, steps, table, levels)
        return _Walked(sigmas, None, sigmas, steps)
    exact = request.exact_steps or compat == "comfyui"
    if request.sigmas is not None and exact and request.strength > 0:  # those that are given are all there are
        of, run = steps, steps - 1
    else:
        of, run = image_steps(steps, request.strength, exact=exact)
    if not of:  # in AUTOMATIC1111 as well: its k samplers give back what they are given
        nothing = torch.zeros(1, dtype=torch.float64)
        return _Walked(nothing, 0.0, nothing, 1)
    whole = sampler_sigmas(sampler, schedule, of, table, levels, image=True)
    if sampler.grid == "unipc" and compat != "comfyui" and run:
        sigmas, level = unipc_image_grid(of, run, table)
    else:
        sigmas, level = image_sigmas(sampler, whole, of, run, compat=compat)
    return _Walked(sigmas, level, sigmas if compat == "comfyui" else whole, run + 1)


def _asks_by_timestep(sampler: SamplerInfo, request: GenerateRequest) -> bool:
    """Whether AUTOMATIC1111's sampler hands its model a timestep where others hand a sigma: DDIM, PLMS, UniPC and kin.

    Its "Negative Guidance minimum sigma" is then compared with the timestep, a number up to 999.
    """
    return sampler.grid in GRIDS and numbers_of(request) == "a1111"


def _timestep(table: NoiseTable, sigma: float) -> float:
    """The timestep of a level, without the last bits that the way from timestep to sigma and back leaves."""
    return round(float(table.sigma_to_t(sigma)), 6)
