"""The fields of a high-resolution fix and of a refiner, as fields of our request."""

from __future__ import annotations

from typing import Any

from ...errors import RequestError
from ...limits import UPSCALERS, shown, upscaler_named
from ...sampling.names import resolve_sampler, resolve_schedule
from ..models import ModelIndex
from .fields import Body, invalid

_SAME = ("", "none", "use same sampler", "use same scheduler", "use same checkpoint", "use same")
_DEFAULT_UPSCALER = "Latent"
HIRES_FIELDS = {
    "hr_scale": "hires_scale",
    "hr_resize_x": "hires_width",
    "hr_resize_y": "hires_height",
    "firstphase_width": "hires_width",
    "firstphase_height": "hires_height",
    "hr_upscaler": "hires_upscaler",
    "hr_second_pass_steps": "hires_steps",
    "hr_sampler_name": "hires_sampler",
    "hr_scheduler": "hires_schedule",
    "hr_prompt": "hires_prompt",
    "hr_negative_prompt": "hires_negative_prompt",
}
"""AUTOMATIC1111's fields of the second pass → ours."""
SIZES = frozenset(("hires_scale", "hires_width", "hires_height"))
"""Those of ours that are its size, and go together."""


def hires_values(body: Body, models: ModelIndex, model: str) -> dict[str, Any]:
    """What the fields of hr_… become. model: name of the one that the picture is drawn with."""
    _check_checkpoint(body["hr_checkpoint_name"], models, model)
    values: dict[str, Any] = {
        **_size(body),
        "hires_upscaler": _upscaler(body["hr_upscaler"]),
        "hires_steps": body["hr_second_pass_steps"] or None,
        "hires_prompt": body["hr_prompt"] or None,
        "hires_negative_prompt": body["hr_negative_prompt"] or None,
    }
    return values | _sampler(body)


def drawn_size(body: Body) -> tuple[int, int]:
    """Width and height of the first pass. The old firstphase fields turn width and height into the size of the second."""
    if body["firstphase_width"] or body["firstphase_height"]:
        return body["firstphase_width"] or body["width"], body["firstphase_height"] or body["height"]
    return body["width"], body["height"]


def refiner_named(body: Body, told: str | None = None) -> tuple[str | None, dict[str, Any]]:
    """The refiner's name as it was given, None for none, and what goes with it. told: the one of an infotext, which holds where
    the body has none."""
    name = told
    if "refiner_checkpoint" in body:
        name = body["refiner_checkpoint"]
    if is_unset(name):
        return None, {}
    switch = body["refiner_switch_at"]
    if switch is not None and switch > 1:
        message = f"refiner_switch_at is {switch:g}; it must be from 0 to 1, the share at which the refiner takes over"
        raise invalid("refiner_switch_at", message, "value_error.number.not_le")
    if switch == 1:  # it would never take over
        return None, {}
    return name, {} if switch is None else {"refiner_switch": switch}


def _upscaler(name: str | None) -> str:
    found = upscaler_named(name or _DEFAULT_UPSCALER)
    if found not in UPSCALERS:
        raise invalid("hr_upscaler", f"hr_upscaler is {shown(name)}; there are {', '.join(UPSCALERS)}")
    return found


def is_unset(name: str | None) -> bool:
    """Whether a name says: none, or the same as of the first pass."""
    return name is None or name.strip().casefold() in _SAME


def _size(body: Body) -> dict[str, Any]:
    if body["firstphase_width"] or body["firstphase_height"]:
        return {"hires_scale": None, "hires_width": body["width"], "hires_height": body["height"]}
    if body["hr_resize_x"] or body["hr_resize_y"]:
        across, down = body["hr_resize_x"] or None, body["hr_resize_y"] or None
        return {"hires_scale": None, "hires_width": across, "hires_height": down}
    if body["hr_scale"] < 1:
        raise invalid(
            "hr_scale", f"hr_scale is {body['hr_scale']:g}; it must be from 1 to 8", "value_error.number.not_ge"
        )
    return {"hires_scale": body["hr_scale"], "hires_width": None, "hires_height": None}


def _sampler(body: Body) -> dict[str, Any]:
    values: dict[str, Any] = {}
    try:
        if not is_unset(body["hr_sampler_name"]):
            sampler, joint = resolve_sampler(body["hr_sampler_name"])
            values["hires_sampler"] = sampler.name
            if joint is not None:
                return values | {"hires_schedule": joint.name}
    except RequestError as error:
        raise invalid("hr_sampler_name", str(error)) from None
    try:
        if not is_unset(body["hr_scheduler"]):
            values["hires_schedule"] = resolve_schedule(body["hr_scheduler"]).name
    except RequestError as error:
        raise invalid("hr_scheduler", str(error)) from None
    return values


def _check_checkpoint(name: str | None, models: ModelIndex, model: str) -> None:
    if name is None or is_unset(name) or models.find(name).name == model:
        return
    raise invalid(
        "hr_checkpoint_name",
        f"hr_checkpoint_name is {shown(name)}; the second pass is drawn with the first one's model here, leave it out",
    )
