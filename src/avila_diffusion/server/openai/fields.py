"""What the fields of a call are, by name, type and range, and what they become in a request.

A JSON body has numbers and a form has texts for the same fields: both are read here. A field that is null counts as missing.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...limits import MAX_SEED, MAX_SIDE, MAX_STEPS, shown
from .errors import BadField

Format = Literal["png", "jpeg", "webp"]
FORMATS: tuple[Format, ...] = ("png", "jpeg", "webp")
MOST_PICTURES = 10
MOST_PARTIAL = 3
QUALITIES: dict[str, tuple[float, str]] = {
    "auto": (1.0, "medium"),
    "standard": (1.0, "medium"),
    "medium": (1.0, "medium"),
    "low": (0.5, "low"),
    "high": (1.5, "high"),
    "hd": (1.5, "high"),
    "xhigh": (2.0, "xhigh"),
    "max": (3.0, "max"),
}
"""Quality → share of the model's own steps, and how an answer names it."""
STEPS = 20
"""Of a model that recommends none."""
DRAWS = (
    "prompt",
    "model",
    "n",
    "size",
    "response_format",
    "output_format",
    "output_compression",
    "quality",
    "background",
    "stream",
    "partial_images",
)
IDLE = ("style", "user", "moderation", "safety_identifier", "input_fidelity", "complexity")
"""Taken, and of no consequence here: there is one style, nobody is judged, pictures are followed as `strength` says."""
OURS = (
    "seed",
    "steps",
    "num_inference_steps",
    "negative_prompt",
    "guidance_scale",
    "sampler",
    "schedule",
    "scheduler",
    "clip_skip",
    "strength",
)
"""What the API does not have, as other servers have it too: at the top level, openai-python's `extra_body`."""
FILES = ("image", "image[]", "mask")
_NOT_HERE = {
    "frame_count": "no moving pictures are made here",
    "frame_duration_ms": "no moving pictures are made here",
    "svg": "no SVG is made here",
    "markup": "marks on a picture are not read here; say it in the prompt, or give a mask",
}
_SIZE = re.compile(r"\s*(\d{1,5})\s*[xX×]\s*(\d{1,5})\s*")
_DEFAULT_MODEL = re.compile(r"(?:dall-e|gpt-image|chatgpt-image)-[\w.-]+|auto|default", re.IGNORECASE)
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A call that was read. values: fields of a request. model: as it was named, None for the default. format, compression:
    how pictures are written. url: they are answered as addresses. partial: previews that a stream shows of each picture.
    steps: that were asked for, None where `quality` says how many. kept: plain values of the call, for its digest."""

    values: Mapping[str, Any]
    model: str | None
    count: int
    format: Format
    compression: int
    url: bool
    quality: str
    stream: bool
    partial: int
    steps: int | None
    kept: Mapping[str, Any] = field(default_factory=dict)

    def steps_of(self, recommended: int | None) -> int:
        """How many are run on a model that recommends so many."""
        if self.steps is not None:
            return self.steps
        return max(1, round((recommended or STEPS) * QUALITIES[self.quality][0]))

    @property
    def told_quality(self) -> str:
        """As an answer names it."""
        return QUALITIES[self.quality][1]


class Given:
    """The fields of a call. form: they are texts. Every reading raises BadField for what cannot be used."""

    def __init__(self, values: Mapping[str, Any], *, form: bool = False) -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._form = form

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def plain(self) -> dict[str, Any]:
        """All of them."""
        return dict(self._values)

    def check_known(self, known: tuple[str, ...]) -> None:
        """Raises BadField for a field that means nothing here."""
        for name in self._values:
            if name in _NOT_HERE:
                raise BadField(name, f"{name} cannot be used: {_NOT_HERE[name]}; leave it out", "unsupported_parameter")
            if name not in known:
                near = difflib.get_close_matches(name[:80], known, n=1)
                hint = f"did you mean {near[0]}?" if near else "leave it out"
                raise BadField(name[:80], f"unknown parameter {shown(name)}; {hint}", "unknown_parameter")

    def text(self, name: str) -> str | None:
        """As it is."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, str):
            raise BadField(name, f"{name} must be text, not {shown(value)}")
        return value

    def choice(self, name: str, known: tuple[str, ...], default: str) -> str:
        """One of some words."""
        value = self.text(name)
        if not value:
            return default
        if value not in known:
            raise BadField(name, f"{name} is {shown(value)}; it must be one of {', '.join(known)}")
        return value

    def whole(self, name: str, low: int, high: int) -> int | None:
        """A whole number in that range."""
        value = self._number(name, whole=True)
        if value is not None and not low <= value <= high:
            raise BadField(name, f"{name} is {shown(value)}; it must be from {low:,} to {high:,}")
        return None if value is None else int(value)

    def number(self, name: str) -> float | None:
        """A number; its range is looked at with the request."""
        value = self._number(name, whole=False)
        return None if value is None else float(value)

    def flag(self, name: str) -> bool:
        """True or false; false where it is missing."""
        value = self._values.get(name, False)
        if self._form and isinstance(value, str) and value.lower() in (*_TRUE, *_FALSE):
            return value.lower() in _TRUE
        if not isinstance(value, bool):
            raise BadField(name, f"{name} must be true or false, not {shown(value)}")
        return value

    def _number(self, name: str, *, whole: bool) -> int | float | None:
        value = self._values.get(name)
        if value is None or (self._form and value == ""):
            return None
        wanted = "a whole number" if whole else "a number"
        if self._form and isinstance(value, str):
            value = _read_number(value, whole)
        fits = isinstance(value, int) or (isinstance(value, float) and (not whole or value.is_integer()))
        if isinstance(value, bool) or not fits or (isinstance(value, float) and not math.isfinite(value)):
            raise BadField(name, f"{name} must be {wanted}, not {shown(self._values[name])}")
        assert isinstance(value, int | float)
        return int(value) if whole else value


def read(given: Given, *, prompt: bool = True, known: tuple[str, ...] = ()) -> Asked:
    """The fields of any of the three calls. prompt: there must be one. known: fields that this call has beside. Raises
    BadField."""
    given.check_known((*DRAWS, *IDLE, *OURS, *known))
    text = given.text("prompt")
    if text is None and prompt:
        raise BadField("prompt", "prompt is missing; say what is to be drawn", "missing_required_parameter")
    if given.choice("background", ("auto", "opaque", "transparent"), "auto") == "transparent":
        raise BadField(
            "background", "background cannot be transparent: the models here draw opaque pictures; leave it out"
        )
    stream = given.flag("stream")
    partial = given.whole("partial_images", 0, MOST_PARTIAL) or 0
    if partial and not stream:
        raise BadField("partial_images", "partial_images needs a stream; send stream true, or leave it out")
    model = given.text("model")
    # Programs that name one of these read `url`, which is their default at OpenAI.
    usual = "url" if not stream and (model or "").lower().startswith("dall-e-") else "b64_json"
    url = given.choice("response_format", ("b64_json", "url"), usual) == "url"
    if url and stream:
        raise BadField("response_format", "response_format url does not go with stream; leave out one of the two")
    compression = given.whole("output_compression", 0, 100)
    format_ = _format(given)
    count = given.whole("n", 1, MOST_PICTURES) or 1
    return Asked(
        values=_values(given, text or "", count),
        model=model_name(model),
        count=count,
        format=format_,
        compression=100 if compression is None else compression,
        url=url,
        quality=given.choice("quality", tuple(QUALITIES), "auto"),
        stream=stream,
        partial=partial,
        steps=_steps(given),
        kept=given.plain(),
    )


def model_name(name: str | None) -> str | None:
    """The model that is named; None where it is one of OpenAI's own, or none: the default is meant."""
    return None if not name or _DEFAULT_MODEL.fullmatch(name) else name


def _format(given: Given) -> Format:
    wanted = given.text("output_format")
    if wanted in ("gif", "svg"):
        raise BadField(
            "output_format", f"output_format {wanted} is not made here; it must be one of {', '.join(FORMATS)}"
        )
    chosen = given.choice("output_format", ("png", "jpeg", "jpg", "webp"), "png")
    return "jpeg" if chosen in ("jpeg", "jpg") else "webp" if chosen == "webp" else "png"


def _values(given: Given, prompt: str, count: int) -> dict[str, Any]:
    """Fields of a request, but for steps and pictures."""
    schedules = [given.text(name) for name in ("schedule", "scheduler")]
    values = {
        "prompt": prompt,
        "count": count,
        "negative_prompt": given.text("negative_prompt"),
        "guidance_scale": given.number("guidance_scale"),
        "seed": given.whole("seed", -1, MAX_SEED),
        "sampler": given.text("sampler") or None,
        "schedule": next(filter(None, schedules), None),
        "clip_skip": given.whole("clip_skip", 1, 12),
        "strength": given.number("strength"),
        **_size(given.text("size")),
    }
    return {name: value for name, value in values.items() if value is not None}


def _size(text: str | None) -> dict[str, int]:
    if text is None or text.strip().lower() in ("", "auto"):
        return {}
    found = _SIZE.fullmatch(text)
    if found is None:
        raise BadField("size", f"size is {shown(text)}; it must be WIDTHxHEIGHT in pixels, such as 512x512, or auto")
    width, height = int(found[1]), int(found[2])
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise BadField("size", f"size is {width}x{height}; each side must be from 1 to {MAX_SIDE:,} pixels")
    return {"width": width, "height": height}


def _steps(given: Given) -> int | None:
    steps, other = (given.whole(name, 1, MAX_STEPS) for name in ("steps", "num_inference_steps"))
    if steps is not None and other is not None and steps != other:
        raise BadField("steps", f"steps is {steps} and num_inference_steps is {other}; give one of the two")
    return other if steps is None else steps


def _read_number(text: str, whole: bool) -> int | float | str:
    """The number that a field of a form says, or the text where it says none."""
    if len(text) > 40:
        return text
    try:
        return int(text) if whole else float(text)
    except ValueError:
        return text
