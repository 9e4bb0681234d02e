"""The fields of a request as a form and OpenAPI need them: made from `GenerateRequest` and its limits, said nowhere twice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from ..limits import (
    CHOICES,
    MAX_BATCH,
    MAX_GUIDANCE,
    MAX_OUTPAINT,
    MAX_PROMPT,
    MAX_SEED,
    MAX_SIDE,
    MAX_SIGMA,
    MAX_STEPS,
    NUMBERS,
    RNGS,
    SWITCHED,
    WHOLES,
)
from ..request import PICTURES, PROMPTS, GenerateRequest

_SIDES = dict.fromkeys(("width", "height", "seed_width", "seed_height"), (1, MAX_SIDE))
_SEEDS = dict.fromkeys(("seed", "variation_seed"), (-1, MAX_SEED))
_WHOLES: Mapping[str, tuple[int, int]] = {**WHOLES, **_SIDES, **_SEEDS, "noise_batch": (1, MAX_BATCH)}
_LISTS: Mapping[str, tuple[str, float, float, int, int]] = {
    "sigmas": ("number", 0.0, MAX_SIGMA, 2, MAX_STEPS + 1),
    "guidance_list": ("number", 0.0, MAX_GUIDANCE, 1, MAX_STEPS),
    "outpaint": ("integer", 0, MAX_OUTPAINT, 4, 4),
}
"""Fields that are lists: of what, the least and the most of a value, the fewest and the most values."""
_MORE = {
    "prompt": "What to draw. (word:1.2) weighs, <lora:name:0.8> lays a LoRA on the model.",
    "negative_prompt": "What to stay away from.",
    "steps": "Sampling steps; by default the model's own, else 20.",
    "variation_seed": "The noise that the seed's is brought closer to, by variation_strength.",
    "ngms_all": "With ngms: every call, not every second one.",
    "image": "The picture to begin with.",
    "inpaint_area": "What of the picture is drawn.",
    "hires_scale": "A second pass at so many times the size.",
    "hires_width": "Width of the second pass, in place of hires_scale.",
    "hires_height": "Height of the second pass, in place of hires_scale.",
    "hires_upscaler": "How the first pass is made larger.",
    "hires_steps": "Of the second pass; by default steps.",
    "hires_sampler": "Of the second pass; by default sampler.",
    "hires_schedule": "Of the second pass; by default schedule.",
    "hires_prompt": "Of the second pass; by default prompt.",
    "hires_negative_prompt": "Of the second pass; by default negative_prompt.",
    "hires_guidance_scale": "Of the second pass; by default guidance_scale.",
    "refiner_switch": "From which share on the refiner draws; by default 0.8.",
    "refiner_by": "What refiner_switch measures.",
}
"""What the docstring of `GenerateRequest` says in running text, or says for Python only."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field of a request.

    kind: "integer", "number", "boolean", "text", "picture" or "list". low, high: of a number, or of each in a list. choices:
    the words that it may be, with what they mean. optional: it may be null, its default then. length: of a text the most
    characters, of a list the fewest and most values.
    """

    name: str
    kind: str
    default: Any
    optional: bool
    text: str
    low: float | None = None
    high: float | None = None
    choices: Mapping[str, str] | None = None
    length: tuple[int, int] | None = None
    items: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """What a form needs, plain; what is not known is left out."""
        values = {
            "type": self.kind,
            "default": self.default,
            "optional": self.optional,
            "text": self.text,
            "min": self.low,
            "max": self.high,
            "choices": None if self.choices is None else dict(self.choices),
            "length": None if self.length is None else list(self.length),
            "items": self.items,
        }
        return {name: value for name, value in values.items() if value is not None or name == "default"}

    def schema(self) -> dict[str, Any]:
        """As JSON Schema has it (draft 2020-12)."""
        found: dict[str, Any] = {"type": {"text": "string"}.get(self.kind, self.kind)}
        if self.kind == "picture":
            found = {"$ref": "#/components/schemas/Picture"}
        elif self.kind == "list":
            assert self.length is not None
            found = {"type": "array", "minItems": self.length[0], "maxItems": self.length[1]}
            found["items"] = {"type": self.items, "minimum": self.low, "maximum": self.high}
        elif self.choices is not None:
            found["enum"] = list(self.choices)
        elif self.length is not None:
            found["maxLength"] = self.length[1]
        if self.kind in ("integer", "number"):
            found |= {"minimum": self.low, "maximum": self.high}
        if self.optional:
            found = {"anyOf": [found, {"type": "null"}]}
        if self.text:
            found["description"] = self.text
        if self.default is not None:
            found["default"] = self.default
        return found


@cache
def request_fields() -> tuple[Field, ...]:
    """All fields of `GenerateRequest`, in its order."""
    told = _descriptions(GenerateRequest.__doc__ or "", [field.name for field in fields(GenerateRequest)])
    told |= _MORE
    return tuple(_field(field.name, field.default, told.get(field.name, "")) for field in fields(GenerateRequest))


def _field(name: str, default: Any, text: str) -> Field:
    optional = default is None
    if name in _WHOLES:
        low, high = _WHOLES[name]
        return Field(name=name, kind="integer", default=default, optional=optional, text=text, low=low, high=high)
    if name in NUMBERS:
        bottom, top = NUMBERS[name]
        return Field(name=name, kind="number", default=default, optional=optional, text=text, low=bottom, high=top)
    if name in _LISTS:
        items, bottom, top, fewest, most = _LISTS[name]
        return Field(
            name=name,
            kind="list",
            default=default,
            optional=optional,
            text=text,
            low=bottom,
            high=top,
            length=(fewest, most),
            items=items,
        )
    kind = "picture" if name in PICTURES else "boolean" if name in SWITCHED else "text"
    choices = RNGS if name == "rng" else CHOICES.get(name)
    length = (0, MAX_PROMPT) if name in PROMPTS else None
    return Field(name=name, kind=kind, default=default, optional=optional, text=text, choices=choices, length=length)


def _descriptions(text: str, names: list[str]) -> dict[str, str]:
    """What a docstring says of each name: where one or several, parted by commas, stand before a colon, what follows until
    the next that do, or the end of the paragraph. `hires_upscaler, …` in prose is not found; nothing is guessed."""
    known = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w_])((?:{known})(?:, (?:{known}))*): ")
    found: dict[str, str] = {}
    for paragraph in text.split("\n\n"):
        prose = " ".join(paragraph.split())
        parts = pattern.split(prose)
        for told, meaning in zip(parts[1::2], parts[2::2], strict=True):
            meaning = re.sub(r";? ?see [A-Z_]+\b", "", meaning).strip(" ;")
            for name in told.split(", "):
                found.setdefault(name, meaning[:1].upper() + meaning[1:])
    return found
