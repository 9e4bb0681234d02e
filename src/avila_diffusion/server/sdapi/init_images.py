"""The pictures of image to image and inpainting, as fields of our request."""

from __future__ import annotations

from typing import Any

from ..settings import Settings
from ..waiting import picture_of
from .fields import Body, InvalidBody, invalid

RESIZE_MODES = ("resize", "crop", "fill", "latent")
CONTENTS = ("fill", "original", "noise", "nothing")
"""Ours, by the numbers that AUTOMATIC1111 gives them."""


PICTURE_FIELDS = {
    "init_images": "image",
    "mask": "mask",
    "resize_mode": "resize_mode",
    "image_cfg_scale": "image_guidance_scale",
    "initial_noise_multiplier": "noise_multiplier",
    "mask_blur": "mask_blur",
    "mask_blur_x": "mask_blur",
    "mask_blur_y": "mask_blur",
    "mask_round": "mask_soft",
    "inpainting_fill": "masked_content",
    "inpainting_mask_invert": "mask_invert",
    "inpaint_full_res": "inpaint_area",
    "inpaint_full_res_padding": "mask_padding",
}
"""AUTOMATIC1111's fields of pictures → ours."""


class NoInitImage(InvalidBody):
    """Image to image without an image, which AUTOMATIC1111 answers with 404."""


def picture_values(body: Body, settings: Settings) -> dict[str, Any]:
    """The picture to begin with, the mask, and what goes with them. Raises InvalidBody, FileProblem, TooLarge, NotAllowed."""
    images = body["init_images"] or []
    if not images or not images[0].strip():
        raise NoInitImage(
            [{"loc": ["body", "init_images"], "msg": "Init image not found", "type": "value_error.missing"}]
        )
    if len(images) > 1:
        message = f"init_images has {len(images)} pictures; one is taken here, send a request for each"
        raise invalid("init_images", message)
    values: dict[str, Any] = {
        "image": picture_of(images[0], "init_images", settings.limits, settings.fetch_hosts),
        "resize_mode": RESIZE_MODES[body["resize_mode"]],
    }
    values |= {
        PICTURE_FIELDS[name]: body[name] for name in ("image_cfg_scale", "initial_noise_multiplier") if name in body
    }
    if body["mask"] and body["mask"].strip():
        values |= {"mask": picture_of(body["mask"], "mask", settings.limits, settings.fetch_hosts)} | _masking(body)
    return values


def _masking(body: Body) -> dict[str, Any]:
    return {
        "mask_blur": _blur(body),
        "mask_invert": bool(body["inpainting_mask_invert"]),
        "mask_soft": not body["mask_round"],
        "masked_content": CONTENTS[body["inpainting_fill"]],
        "inpaint_area": "masked" if body["inpaint_full_res"] else "whole",
        "mask_padding": body["inpaint_full_res_padding"],
    }


def _blur(body: Body) -> float:
    if "mask_blur" in body:
        return float(body["mask_blur"])
    across, down = body["mask_blur_x"], body["mask_blur_y"]
    if across != down:
        message = f"mask_blur_x is {across:g} and mask_blur_y {down:g}; a mask is blurred alike both ways here, give mask_blur"
        raise invalid("mask_blur_x", message)
    return float(across)
