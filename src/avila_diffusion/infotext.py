"""The text that a picture carries about how it was made, in AUTOMATIC1111's grammar: written and read.

    <prompt, may span lines>
    Negative prompt: <negative prompt, may span lines>
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, …

Source: the behaviour of AUTOMATIC1111's WebUI 1.10. Where the grammar cannot tell (a line of the prompt that opens with
"Negative prompt:"), neither can we. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .errors import RequestError
from .version import __version__

NEGATIVE = "Negative prompt:"
VERSION = f"avila_diffusion {__version__}"
"""Not of the form v1.2.3: AUTOMATIC1111 would take that for its own version and switch to behaviour of that time."""

_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)$")
_LEAST_PAIRS = 3
_SCALED_ETA = ("DDIM", "DDIM CFG++", "PLMS", "UniPC")
"""Samplers whose eta AUTOMATIC1111 keeps apart from that of ancestral ones, under a name of its own."""


class Settings(Protocol):
    """What is written of a resolved `GenerateRequest`."""

    @property
    def prompt(self) -> str: ...
    @property
    def negative_prompt(self) -> str: ...
    @property
    def width(self) -> int | None: ...
    @property
    def height(self) -> int | None: ...
    @property
    def steps(self) -> int: ...
    @property
    def sampler(self) -> str: ...
    @property
    def schedule(self) -> str: ...
    @property
    def guidance_scale(self) -> float: ...
    @property
    def clip_skip(self) -> int: ...
    @property
    def rng(self) -> str: ...
    @property
    def eta(self) -> float | None: ...


@dataclass(frozen=True, kw_only=True)
class LoraUsed:
    """A LoRA in the record: its file's name without suffix, its strengths, and the first 12 digits of its hash, which is
    the sha256 of the file without its header.
    """

    name: str
    text_weight: float
    unet_weight: float
    hash: str | None = None

    @property
    def word(self) -> str:
        """The name as tag and hash list can hold it."""
        return re.sub(r'[:,<>"\s]+', " ", self.name).strip()

    @property
    def tag(self) -> str:
        """`<lora:name:0.8>`, or `<lora:name:0.8:1>` where text towers and UNet differ."""
        weights = dict.fromkeys((_number(self.text_weight), _number(self.unet_weight)))
        return f"<lora:{':'.join((self.word, *weights))}>"


def write(
    request: Settings,
    seed: int,
    *,
    model: str | None = None,
    model_hash: str | None = None,
    vae: str | None = None,
    vae_hash: str | None = None,
    loras: Sequence[LoraUsed] = (),
    extra: Mapping[str, object] | None = None,
) -> str:
    """The infotext of one picture of a resolved request.

    seed: of this picture. model, vae: file names without folder; their hashes are the first 10 hex digits of the
    file's sha256; vae only where it is a file of its own. extra: further fields, before the version.
    loras: AUTOMATIC1111 and others look for them in two places, as tags behind the prompt and in the field of hashes.
    What is None is left out.
    """
    eta_name = "Eta DDIM" if request.sampler in _SCALED_ETA else "Eta"
    values: dict[str, object] = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "Schedule type": request.schedule,
        "CFG scale": _number(request.guidance_scale),
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": model_hash,
        "Model": model,
        "VAE hash": vae_hash,
        "VAE": vae,
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "RNG": "CPU" if request.rng == "cpu" else None,  # absent means as on a GPU, which is what "nv" draws
        eta_name: None if request.eta is None else _number(request.eta),
        "Lora hashes": ", ".join(dict.fromkeys(f"{lora.word}: {lora.hash}" for lora in loras if lora.hash)) or None,
        **(extra or {}),
        "Version": VERSION,
    }
    prompt = " ".join(filter(None, [request.prompt, *(lora.tag for lora in loras)]))
    return write_fields(prompt, request.negative_prompt, values)


def write_fields(prompt: str, negative_prompt: str, values: Mapping[str, object]) -> str:
    """An infotext of any fields, in their order; those that are None are left out."""
    fields = ", ".join(_pair(name, value) for name, value in values.items() if value is not None)
    negative = f"\n{NEGATIVE} {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{fields}".strip()


@dataclass(frozen=True)
class Parsed:
    """An infotext taken apart. fields: in their order, unquoted; "Size" as "Size-1" (width) and "Size-2" (height)."""

    prompt: str = ""
    negative_prompt: str = ""
    fields: dict[str, str] = field(default_factory=dict)

    def request_values(self) -> dict[str, Any]:
        """What `GenerateRequest.from_dict` takes to ask for this picture again; what is not recorded is left out.

        Raises RequestError where a field that should be a number is none.
        """
        values: dict[str, Any] = {"prompt": self.prompt, "negative_prompt": self.negative_prompt}
        for name, key in (("Sampler", "sampler"), ("Schedule type", "schedule")):
            if name in self.fields:
                values[key] = self.fields[name]
        for name, (key, kind) in _NUMBERS.items():
            if name in self.fields:
                values[key] = self._as_number(name, kind)
        values["rng"] = "cpu" if self.fields.get("RNG") == "CPU" else "nv"
        return values

    def _as_number(self, name: str, kind: type[int] | type[float]) -> int | float:
        try:
            return kind(self.fields[name])
        except ValueError:
            raise RequestError(f"{name} in the picture's metadata is {self.fields[name]!r}, not a number") from None


_NUMBERS: dict[str, tuple[str, type[int] | type[float]]] = {
    "Steps": ("steps", int),
    "CFG scale": ("guidance_scale", float),
    "Seed": ("seed", int),
    "Size-1": ("width", int),
    "Size-2": ("height", int),
    "Clip skip": ("clip_skip", int),
    "Eta": ("eta", float),
    "Eta DDIM": ("eta", float),
}


def read(text: str) -> Parsed:
    """Takes an infotext apart; any text is one.

    The last line counts as fields where it holds at least three pairs, else it belongs to the prompt. Lines lose white
    space at both ends, as they do in AUTOMATIC1111.
    """
    *lines, last = text.strip().split("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < _LEAST_PAIRS:
        lines.append(last)
        pairs = []
    prompt, negative = "", ""
    in_negative = False
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            in_negative = True
            line = line.removeprefix(NEGATIVE).strip()
        if in_negative:
            negative += line if not negative else f"\n{line}"
        else:
            prompt += line if not prompt else f"\n{line}"
    return Parsed(prompt, negative, _fields(pairs))


def _fields(pairs: list[tuple[str, str]]) -> dict[str, str]:
    fields = {}
    for name, raw in pairs:
        if not raw:
            continue
        value = _unquote(raw)
        if size := _SIZE.match(value):
            fields[f"{name}-1"], fields[f"{name}-2"] = size.groups()
        else:
            fields[name] = value
    return fields


def _pair(name: str, value: object) -> str:
    text = str(value)
    if text == name:
        return name
    # A quote in front or white space at an end would be lost in reading, were it not for the quotes.
    plain = not set(text) & set(",:\n") and not text.startswith('"') and text == text.strip()
    return f"{name}: {text if plain else json.dumps(text, ensure_ascii=False)}"


def _unquote(text: str) -> str:
    if not (text.startswith('"') and text.endswith('"')):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
