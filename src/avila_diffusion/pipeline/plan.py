"""What the sampling of a request consists of: sampler, noise levels, options, guidance, and each picture's noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..config import ModelSpec
from ..errors import RequestError
from ..request import GenerateRequest
from ..sampling.denoiser import Denoiser
from ..sampling.grids import GRIDS
from ..sampling.guidance import Call, Denoise, Denoised, Guidance, guide
from ..sampling.lcm import lcm_denoiser
from ..sampling.names import SamplerInfo, resolve_sampler, resolve_schedule
from ..sampling.noise import ImageNoise, Seeding
from ..sampling.samplers import Options, check_options, sample, start
from ..sampling.samplers.run import Run
from ..sampling.schedules import ScheduleOptions, calls, sampler_sigmas
from ..sampling.tables import NoiseTable
from .prompts import Conditions


def numbers_of(request: GenerateRequest) -> Literal["a1111", "comfyui"]:
    """Whose noise, schedules and starts hold. The diffusers dialect is one of prompts; its numbers are AUTOMATIC1111's."""
    return "comfyui" if request.compat == "comfyui" else "a1111"


@dataclass(frozen=True, eq=False)
class Plan:
    """The part of a run that all pictures of a resolved request share.

    sigmas: the noise levels, float64, falling. table: the model's noise, as the sampler sees it. calls: of the model, for
    a picture; None where only the run can tell.
    """

    request: GenerateRequest
    sampler: SamplerInfo
    sigmas: Tensor
    table: NoiseTable
    options: Options
    guidance: Guidance
    calls: int | None

    @property
    def unguided(self) -> bool:
        """Whether the negative prompt is never looked at."""
        scales = self.guidance.scales or (self.guidance.scale,)
        return not self.sampler.uncond and all(scale == 1 for scale in scales)

    @property
    def counted(self) -> int:
        """The model calls that prompt schedules and shares of calls are counted in, as AUTOMATIC1111 counts them."""
        return self.request.steps * (2 if self.sampler.second_order else 1)

    def guide(self, denoiser: Denoiser, conditions: Conditions) -> Denoise:
        """The model with its prompts, as the sampler asks it: at each call with those that hold there."""
        asked = lcm_denoiser(denoiser) if self._consistency else denoiser
        asked = replace(asked, whole_timesteps=numbers_of(self.request) == "comfyui")

        def denoise(call: Call) -> Denoised:
            conds, uncond = conditions.at(call.number)
            steps = len(self.sigmas) - 1
            return guide(asked, conds, uncond, self.guidance, steps=steps, calls=self.counted)(call)

        return denoise

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

    def first(self, noise: ImageNoise, shape: tuple[int, int, int], like: Tensor) -> Tensor:
        """The latent that a picture of latent `shape` starts from, from text; placed and cast as `like`."""
        return start(
            self.sampler,
            noise.initial(shape).to(like),
            self.sigmas,
            compat=numbers_of(self.request),
            table=self.table,
        )

    def run(self, noise: ImageNoise, x: Tensor, sigmas: Tensor | None = None) -> Run:
        """The sampler's generator from x on. sigmas: the levels still to walk, where they are not all."""
        between = noise.between(x, self.sigmas, brownian=self.sampler.brownian)
        levels = self.sigmas if sigmas is None else sigmas
        return sample(self.sampler, x, levels, between, table=self.table, options=self.options)


def make_plan(request: GenerateRequest, spec: ModelSpec, table: NoiseTable) -> Plan:
    """The plan of a resolved request on a model. Raises RequestError for what sampler or model do not take."""
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
    sigmas = sampler_sigmas(sampler, resolve_schedule(request.schedule), request.steps, table, levels)
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
        ngms=request.ngms,
        ngms_all=request.ngms_all,
        ngms_level=partial(_timestep, table) if _asks_by_timestep(sampler, request) else None,
    )
    return Plan(request, sampler, sigmas, table, options, guidance, calls(sampler, sigmas))


def _asks_by_timestep(sampler: SamplerInfo, request: GenerateRequest) -> bool:
    """Whether AUTOMATIC1111's sampler hands its model a timestep where others hand a sigma: DDIM, PLMS, UniPC and kin.

    Its "Negative Guidance minimum sigma" is then compared with the timestep, a number up to 999.
    """
    return sampler.grid in GRIDS and numbers_of(request) == "a1111"


def _timestep(table: NoiseTable, sigma: float) -> float:
    """The timestep of a level, without the last bits that the way from timestep to sigma and back leaves."""
    return round(float(table.sigma_to_t(sigma)), 6)
