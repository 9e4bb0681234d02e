"""Bodies of requests as AUTOMATIC1111 takes them: a table of fields, values brought to their type as pydantic would, and what
is wrong with them told in FastAPI's shape, all of it at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import RequestError
from ...limits import MAX_BATCH, MAX_COUNT, MAX_SEED, MAX_SIDE, NUMBERS, WHOLES, shown

Kind = Literal["whole", "number", "switch", "text", "texts", "list", "table", "any"]

_TRUE = ("true", "1", "on", "yes", "t", "y")
_FALSE = ("false", "0", "off", "no", "f", "n")
_EXPECTED: dict[Kind, tuple[str, str]] = {
    "whole": ("a whole number, such as 20", "type_error.integer"),
    "number": ("a number, such as 7.5", "type_error.float"),
    "switch": ("true or false", "type_error.bool"),
    "text": ("text", "type_error.str"),
    "texts": ("a list of texts", "type_error.list"),
    "list": ("a list", "type_error.list"),
    "table": ("an object of names and values", "type_error.dict"),
}
"""What a kind is called, and the name that pydantic has for its absence."""


@dataclass(frozen=True)
class Field:
    """One field of a body. default: where it is missing or null. low, high: of numbers. choices: of texts."""

    kind: Kind
    default: Any = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


Detail = dict[str, Any]
"""One thing that is wrong: {"loc": ["body", "steps"], "msg": …, "type": …}."""


class InvalidBody(RequestError):
    """Fields of a body that cannot be used. details: a Detail for each."""

    def __init__(self, details: list[Detail]) -> None:
        super().__init__("; ".join(str(detail["msg"]) for detail in details))
        self.details = details


def invalid(name: str, message: str, kind: str = "value_error", *, within: tuple[str, ...] = ("body",)) -> InvalidBody:
    """One field that cannot be used."""
    return InvalidBody([{"loc": [*within, name], "msg": message, "type": kind}])


@dataclass(frozen=True)
class Body:
    """A body that was read. values: of every field of the table, defaults too. given: those that were there and not null."""

    values: Mapping[str, Any]
    given: frozenset[str] = field(default_factory=frozenset)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def __contains__(self, name: object) -> bool:
        """Whether the field was given."""
        return name in self.given


def read_fields(body: Mapping[str, Any], table: Mapping[str, Field], *, within: tuple[str, ...] = ("body",)) -> Body:
    """The fields of a table out of a body; what the table does not know is passed over, as AUTOMATIC1111 does.

    Raises InvalidBody, which names everything that is wrong.
    """
    values: dict[str, Any] = {}
    given, wrong = [], []
    for name, known in table.items():
        value = body.get(name)
        if value is None:
            values[name] = known.default
            continue
        try:
            values[name] = read_value(name, value, known, within=within)
            given.append(name)
        except InvalidBody as error:
            wrong += error.details
    if wrong:
        raise InvalidBody(wrong)
    return Body(values, frozenset(given))


def read_value(name: str, value: Any, known: Field, *, within: tuple[str, ...] = ("body",)) -> Any:
    """A value brought to its field's type. Raises InvalidBody for what is none, and for numbers that are out of range."""
    if known.kind == "any":
        return value
    try:
        found = _READERS[known.kind](value)
    except (ValueError, TypeError, OverflowError):
        expected, kind = _EXPECTED[known.kind]
        raise invalid(name, f"{name} is {shown(value)}; expected {expected}", kind, within=within) from None
    if isinstance(found, int | float) and not isinstance(found, bool):
        _check_range(name, found, known, within)
    if known.choices and found not in known.choices:
        same = next((choice for choice in known.choices if choice.casefold() == str(found).casefold()), None)
        if same is None:
            message = f"{name} is {shown(value)}; it is one of {', '.join(known.choices)}"
            raise invalid(name, message, "value_error.const", within=within)
        return same
    return found


def _check_range(name: str, value: float, known: Field, within: tuple[str, ...]) -> None:
    low, high = known.low, known.high
    if low is not None and value < low:
        kind = "value_error.number.not_ge"
    elif high is not None and value > high:
        kind = "value_error.number.not_le"
    else:
        return
    span = f"from {low:,} to {high:,}" if high is not None else f"{low:,} or more"
    raise invalid(name, f"{name} is {shown(value)}; it must be {span}", kind, within=within)


def _whole(value: Any) -> int:
    if isinstance(value, str):
        text = value.strip()
        if len(text) > 40:
            raise ValueError
        try:
            return int(text)
        except ValueError:
            value = float(text)
    if isinstance(value, float) and value != int(value):
        raise ValueError
    if not isinstance(value, int | float):
        raise TypeError
    return int(value)


def _number(value: Any) -> float:
    if not isinstance(value, int | float | str) or (isinstance(value, str) and len(value) > 400):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _switch(value: Any) -> bool:
    word = str(value).strip().casefold() if isinstance(value, str | int) else ""
    if word not in _TRUE + _FALSE:
        raise ValueError
    return word in _TRUE


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise TypeError


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):  # of one name, as many scripts write it
        return [value] if value else []
    return [_text(one) for one in _list(value)]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


_READERS: dict[Kind, Any] = {
    "whole": _whole,
    "number": _number,
    "switch": _switch,
    "text": _text,
    "texts": _texts,
    "list": _list,
    "table": _table,
}


def _ranged(kind: Kind, name: str, default: Any) -> Field:
    """A field with the range of ours that it becomes."""
    low, high = (WHOLES | NUMBERS)[name]
    return Field(kind, default, low, high)


_SEED = Field("whole", -1, -MAX_SEED, MAX_SEED)
_SIDE = Field("whole", 0, 0, MAX_SIDE)
_OLD_SIDE = Field("whole", -1, -MAX_SIDE, MAX_SIDE)

COMMON: dict[str, Field] = {
    "prompt": Field("text", ""),
    "negative_prompt": Field("text", ""),
    "styles": Field("texts"),
    "seed": _SEED,
    "subseed": _SEED,
    "subseed_strength": _ranged("number", "variation_strength", 0.0),
    "seed_resize_from_h": _OLD_SIDE,
    "seed_resize_from_w": _OLD_SIDE,
    "sampler_name": Field("text"),
    "scheduler": Field("text"),
    "sampler_index": Field("text", "Euler"),
    "batch_size": Field("whole", 1, 1, MAX_BATCH),
    "n_iter": Field("whole", 1, 1, MAX_COUNT),
    "steps": _ranged("whole", "steps", 50),
    "cfg_scale": _ranged("number", "guidance_scale", 7.0),
    "width": Field("whole", 512, 1, MAX_SIDE),
    "height": Field("whole", 512, 1, MAX_SIDE),
    "restore_faces": Field("switch"),
    "tiling": Field("switch"),
    "do_not_save_samples": Field("switch", False),
    "do_not_save_grid": Field("switch", False),
    "eta": _ranged("number", "eta", None),
    "denoising_strength": _ranged("number", "strength", 0.75),
    "s_min_uncond": _ranged("number", "ngms", None),
    "s_churn": _ranged("number", "s_churn", None),
    "s_tmax": _ranged("number", "s_tmax", None),
    "s_tmin": _ranged("number", "s_tmin", None),
    "s_noise": _ranged("number", "s_noise", None),
    "override_settings": Field("table"),
    "override_settings_restore_afterwards": Field("switch", True),
    "refiner_checkpoint": Field("text"),
    "refiner_switch_at": Field("number", None, 0.0),
    "disable_extra_networks": Field("switch", False),
    "comments": Field("table"),
    "send_images": Field("switch", True),
    "save_images": Field("switch", False),
    "script_name": Field("text"),
    "script_args": Field("list", []),
    "alwayson_scripts": Field("table", {}),
    "force_task_id": Field("text"),
    "infotext": Field("text"),
}
"""What text to image and image to image have in common."""

TEXT_TO_IMAGE: dict[str, Field] = COMMON | {
    "enable_hr": Field("switch", False),
    "firstphase_width": _SIDE,
    "firstphase_height": _SIDE,
    "hr_scale": Field("number", 2.0, 0.0, 8.0),
    "hr_upscaler": Field("text"),
    "hr_second_pass_steps": Field("whole", 0, 0, WHOLES["hires_steps"][1]),
    "hr_resize_x": _SIDE,
    "hr_resize_y": _SIDE,
    "hr_checkpoint_name": Field("text"),
    "hr_sampler_name": Field("text"),
    "hr_scheduler": Field("text"),
    "hr_prompt": Field("text", ""),
    "hr_negative_prompt": Field("text", ""),
    "firstpass_image": Field("text"),
}

IMAGE_TO_IMAGE: dict[str, Field] = COMMON | {
    "init_images": Field("texts"),
    "mask": Field("text"),
    "resize_mode": Field("whole", 0, 0, 3),
    "image_cfg_scale": _ranged("number", "image_guidance_scale", None),
    "mask_blur": _ranged("number", "mask_blur", None),
    "mask_blur_x": _ranged("number", "mask_blur", 4),
    "mask_blur_y": _ranged("number", "mask_blur", 4),
    "mask_round": Field("switch", True),
    "inpainting_fill": Field("whole", 0, 0, 3),
    "inpaint_full_res": Field("switch", True),
    "inpaint_full_res_padding": _ranged("whole", "mask_padding", 0),
    "inpainting_mask_invert": Field("whole", 0, 0, 1),
    "initial_noise_multiplier": _ranged("number", "noise_multiplier", None),
    "include_init_images": Field("switch", False),
}
