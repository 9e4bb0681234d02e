"""What an infotext says of pictures that a run began with, of a second pass and a refiner: written and read.

By AUTOMATIC1111's names where it has them. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .request import GenerateRequest

AsNumber = Callable[[str, str, type[int] | type[float]], int | float]
"""(a field's name, its text, int or float) → the number; raises RequestError for what is none."""


def from_picture(request: GenerateRequest) -> dict[str, object]:
    """What AUTOMATIC1111 records of image to image and inpainting; "Exact steps", "Soft mask" and "Outpaint" are ours.

    Its fields of masks stand beside "Outpaint" too, so there "Mask mode" is written for a mask, and for nothing else.
    """
    if request.image is None:
        return {}
    values: dict[str, object] = {"Denoising strength": number_text(request.strength)}
    if request.resize_mode != "resize":
        values["Resize mode"] = RESIZES[request.resize_mode]
    numbers = {
        "Extra noise": (request.extra_noise, 0),
        "Noise multiplier": (request.noise_multiplier, 1),
        "Image CFG scale": (request.image_guidance_scale, 1.5),
        "Conditional mask weight": (request.mask_weight, 1),
    }
    values |= {name: number_text(value) for name, (value, default) in numbers.items() if value != default}
    if request.exact_steps:
        values["Exact steps"] = True
    if not request.masked:
        return values
    values["Mask blur"] = number_text(request.mask_blur)
    if request.mask is not None and (request.mask_invert or request.outpaint is not None):
        values["Mask mode"] = NOT_MASKED if request.mask_invert else MASKED
    if request.mask_soft:
        values["Soft mask"] = True
    if request.masked_content != "original":
        values["Masked content"] = CONTENTS[request.masked_content]
    if request.inpaint_area == "masked":
        values |= {"Inpaint area": ONLY_MASKED, "Masked area padding": request.mask_padding}
    if request.outpaint is not None:
        values["Outpaint"] = " ".join(map(str, request.outpaint))
    return values


def hires(request: GenerateRequest) -> dict[str, object]:
    if not request.hires:
        return {}
    values: dict[str, object] = {"Denoising strength": number_text(request.strength)}
    if request.extra_noise:
        values["Extra noise"] = number_text(request.extra_noise)
    if request.mask_weight != 1:
        values["Conditional mask weight"] = number_text(request.mask_weight)
    if request.hires_scale is not None:
        values["Hires upscale"] = number_text(request.hires_scale)
    else:
        values["Hires resize"] = f"{request.hires_width or 0}x{request.hires_height or 0}"
    scale = request.hires_guidance_scale
    return values | {
        "Hires steps": request.hires_steps,
        "Hires upscaler": request.hires_upscaler,
        "Hires sampler": request.hires_sampler,
        "Hires schedule type": request.hires_schedule,
        "Hires CFG Scale": None if scale is None else number_text(scale),
        "Hires prompt": request.hires_prompt or None,
        "Hires negative prompt": request.hires_negative_prompt or None,
    }


def refined(request: GenerateRequest, name: str | None, digest: str | None) -> dict[str, object]:
    if name is None:
        return {}
    values: dict[str, object] = {
        "Refiner": name if digest is None else f"{name} [{digest}]",
        "Refiner switch at": number_text(request.refined_from),
    }
    return values | ({"Refiner switch by sampling steps": True} if request.refiner_by == "step" else {})


RESIZES = {
    "crop": "Crop and resize",
    "fill": "Resize and fill",
    "latent": "Just resize (latent upscale)",
    "keep": "Keep size",
}
CONTENTS = {"fill": "fill", "noise": "latent noise", "nothing": "latent nothing"}
ONLY_MASKED = "Only masked"
MASKED, NOT_MASKED = "Inpaint masked", "Inpaint not masked"
"""AUTOMATIC1111's names of what we have shorter ones for; its defaults are left out."""
_OF_MASKS = ("Mask blur", "Mask mode", "Masked content", "Inpaint area", "Masked area padding", "Soft mask")


def has_mask(fields: Mapping[str, str]) -> bool:
    """Whether a picture was made with a mask. Every field of masks alone may say so: AUTOMATIC1111 writes each only where it is
    not at its default, and "Mask blur" above 0 only."""
    return "Mask mode" in fields if "Outpaint" in fields else not fields.keys().isdisjoint(_OF_MASKS)


def picture_values(fields: Mapping[str, str], as_number: AsNumber) -> dict[str, Any]:
    """What is recorded of pictures, by names that are not ours."""
    values: dict[str, Any] = {}
    for name, key, known in (
        ("Resize mode", "resize_mode", RESIZES),
        ("Masked content", "masked_content", CONTENTS),
    ):
        values |= [(key, ours) for ours, theirs in known.items() if fields.get(name) == theirs]
    if fields.get("Inpaint area") == ONLY_MASKED:
        values["inpaint_area"] = "masked"
    if fields.get("Mask mode") == NOT_MASKED:
        values["mask_invert"] = True
    if has_mask(fields) and "Mask blur" not in fields:
        values["mask_blur"] = 0.0
    if "Outpaint" in fields:
        values["outpaint"] = tuple(as_number("Outpaint", part, int) for part in fields["Outpaint"].split())
    for name, key in (("Hires resize-1", "hires_width"), ("Hires resize-2", "hires_height")):
        if side := as_number(name, fields.get(name, "0"), int):
            values[key] = side
    if "Tiling" in fields:
        values["tiling"] = {"True": "both", "x": "x", "y": "y"}.get(fields["Tiling"], "none")
    if fields.get("Refiner switch by sampling steps") == "True":
        values["refiner_by"] = "step"
    return values


def number_text(value: float) -> str:
    """A number as an infotext has it: whole ones without a point."""
    return str(int(value)) if value == int(value) else repr(float(value))
