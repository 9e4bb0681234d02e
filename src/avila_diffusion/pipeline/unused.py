"""What of a request changes nothing in the run it is for: a line each, so that nothing is ignored in silence.

What a sampler or model cannot take at all is refused elsewhere; here is what could mean something, and does not in this run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields

from ..config import Variant
from ..request import SECOND_PASS, GenerateRequest
from ..sampling.grids import GRIDS
from ..sampling.names import SCHEDULES, SamplerInfo, ScheduleInfo, resolve_sampler, resolve_schedule
from ..sampling.restarts import FEWEST
from .plan import edits

LEVELS = ("rho", "sigma_min", "sigma_max")
IMAGE = ("outpaint", "exact_steps", "noise_multiplier", "resize_mode")
MASK = ("mask_blur", "mask_soft", "masked_content", "inpaint_area", "mask_padding")
GUIDED = ("guidance_rescale", "skip_early", "ngms")


def unused(
    request: GenerateRequest, *, guided: bool, variant: Variant = "base", refined: bool | None = None
) -> tuple[str, ...]:
    """One line for each field, or kin of fields, that a request sets and its run does not look at.

    request: as it was asked for; resolved ones have lost some. guided: whether the negative prompt is looked at.
    variant: of the model. refined: whether a refiner was asked, None where there is none.
    """
    sampler, joint = resolve_sampler(request.sampler)
    schedule = resolve_schedule(request.schedule)
    if joint is not None and schedule.key == "automatic":
        schedule = joint
    return (
        *_noise(request, sampler),
        *_levels(request, sampler, schedule),
        *_guidance(request, guided, variant),
        *_pictures(request, variant),
        *_second_pass(request, sampler),
        *_refiner(request, refined),
    )


def _noise(request: GenerateRequest, sampler: SamplerInfo) -> Iterator[str]:
    if request.variation_seed not in (None, -1) and not request.variation_strength:
        yield "variation_seed was not used; variation_strength is 0"
    why = _noiseless(request, sampler)
    if why is None:
        low, high = request.s_tmin, request.s_tmax
        if low is not None and high is not None and low > high:
            yield f"s_churn was not used; s_tmin {low:g} lies above s_tmax {high:g}, so no level is between them"
        return
    churn = ("s_noise", "s_tmin", "s_tmax")
    idle = [name for name in churn if getattr(request, name) is not None]
    if request.ensd:
        idle.append("ensd")
    if idle:
        yield f"{_listed(idle)} not used; {why}"


def _noiseless(request: GenerateRequest, sampler: SamplerInfo) -> str | None:
    """Why no noise is drawn after the first, None where some is."""
    if "eta" in sampler.options:
        eta = sampler.eta if request.eta is None else request.eta
        return None if eta else f"{sampler.name} adds no noise between steps with eta 0"
    if "s_churn" in sampler.options:
        return None if request.s_churn else f"{sampler.name} adds noise between steps with s_churn above 0 only"
    if sampler.calls == "restart" and request.steps < FEWEST:
        return f"{sampler.name} goes back to more noise from {FEWEST} steps on"
    return None if sampler.stochastic else f"{sampler.name} adds no noise between steps"


def _levels(request: GenerateRequest, sampler: SamplerInfo, schedule: ScheduleInfo) -> Iterator[str]:
    asked = [name for name in LEVELS if getattr(request, name) is not None]
    # DPM fast and DPM adaptive run over the chosen schedule where they begin with a picture.
    itself = sampler.grid in GRIDS or (sampler.grid != "schedule" and request.image is None)
    if itself and request.compat != "comfyui":
        if schedule.key != "automatic":
            asked.insert(0, f"schedule {schedule.name}")
        if asked:
            yield f"{_listed(asked)} not used; {sampler.name} chooses its noise levels itself"
        return
    if request.sigmas is not None:
        return
    if schedule.key == "automatic":
        schedule = SCHEDULES[sampler.automatic]
    idle = [name for name in asked if name not in schedule.options]
    if idle:
        takes = f"takes only {', '.join(schedule.options)}" if schedule.options else "takes none of these"
        yield f"{_listed(idle)} not used; the schedule {schedule.name} {takes}"


def _guidance(request: GenerateRequest, guided: bool, variant: Variant) -> Iterator[str]:
    if edits(request, variant) and request.ngms:
        yield "ngms was not used; with image_guidance_scale the negative prompt is looked at in every call"
    if request.ngms_all and not request.ngms:
        yield "ngms_all was not used; ngms is 0"
    scales = len(request.guidance_list or ())
    if scales > request.steps:
        yield f"the last {scales - request.steps} of guidance_list were not used; there are {request.steps} steps"
    if guided:
        return
    idle = [name for name in GUIDED if getattr(request, name)]
    idle += ["guidance_start"] if request.guidance_start > 0 else []
    idle += ["guidance_stop"] if request.guidance_stop < 1 else []
    if idle:
        yield f"{_listed(idle)} not used, because guidance is off"


def _pictures(request: GenerateRequest, variant: Variant) -> Iterator[str]:
    defaults = {field.name: field.default for field in fields(request)}

    def idle(names: Iterable[str], why: str) -> Iterator[str]:
        changed = [name for name in names if getattr(request, name) != defaults[name]]
        if changed:
            yield f"{_listed(changed)} not used, because {why}"

    if request.image is None:
        yield from idle(IMAGE, "there is no image")
        if not request.hires:
            yield from idle(("strength", "extra_noise"), "there is no image, nor a second pass")
    if not request.masked:
        yield from idle(MASK, "there is no mask")
    elif request.inpaint_area == "whole":
        yield from idle(("mask_padding",), "the whole picture is drawn")
        if request.width is None and request.height is None and request.resize_mode != "keep":
            yield from idle(("resize_mode",), "no size is asked for, and the picture keeps its own")
    else:
        yield from idle(("resize_mode",), "what is masked is cut out in the proportions that are drawn")
    if request.mask is None:
        yield from idle(("mask_invert",), "there is no mask")
    if not request.hires:
        yield from idle(SECOND_PASS, "there is no hires_scale, hires_width or hires_height")
    if variant != "depth":
        yield from idle(("depth",), "the model follows none")
    if variant != "pix2pix":
        yield from idle(("image_guidance_scale",), "the model is not of the instruct-pix2pix kind")
    if variant != "inpainting":
        yield from idle(("mask_weight",), "the model is not an inpainting model")
    elif request.image is None and not request.hires:
        yield from idle(("mask_weight",), "there is no image, nor a second pass")


def _second_pass(request: GenerateRequest, first: SamplerInfo) -> Iterator[str]:
    """hires_schedule, where the second pass' sampler has a grid of its own. `_levels` speaks of the first pass."""
    if not request.hires or request.hires_schedule is None or request.compat == "comfyui":
        return
    sampler = first if request.hires_sampler is None else resolve_sampler(request.hires_sampler)[0]
    if sampler.grid in GRIDS and resolve_schedule(request.hires_schedule).key != "automatic":
        yield f"hires_schedule was not used; {sampler.name} chooses its noise levels itself"


def _refiner(request: GenerateRequest, refined: bool | None) -> Iterator[str]:
    if refined is None and request.refiner_by != "timestep":
        yield "refiner_by was not used, because there is no refiner"
    if refined is False:
        yield "the refiner was not used; the last call came before refiner_switch"


def _listed(names: list[str]) -> str:
    return f"{' and '.join(names)} {'was' if len(names) == 1 else 'were'}"
