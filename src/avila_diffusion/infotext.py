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
from typing import Any

from .errors import RequestError
from .limits import EMPHASES
from .picture_fields import from_picture, hires, number_text, picture_values, refined
from .request import GenerateRequest
from .sampling.names import resolve_sampler
from .version import __version__

NEGATIVE = "Negative prompt:"
VERSION = f"avila_diffusion {__version__}"
"""Not of the form v1.2.3: AUTOMATIC1111 would take that for its own version and switch to behaviour of that time."""

# A name begins where a run of its letters does, so that no text takes time by the square of its length.
_PAIR = re.compile(r'(?<![\w \-/])[ \-/]*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)$")
_LEAST_PAIRS = 3
_SCALED_ETA = ("DDIM", "DDIM CFG++", "PLMS", "UniPC")
"""Samplers whose eta AUTOMATIC1111 keeps apart from that of ancestral ones, under a name of its own."""


@dataclass(frozen=True, kw_only=True)
class LoraUsed:
    """A LoRA in the record: its file's name without suffix, its strengths, and the first 12 digits of its hash, which is
    the file's own `sshs_model_hash`, else the sha256 of the file without its header. in_prompt: the request's prompt has
    the tag already.
    """

    name: str
    text_weight: float
    unet_weight: float
    hash: str | None = None
    in_prompt: bool = False

    @property
    def word(self) -> str:
        """The name as tag and hash list can hold it."""
        return _word(self.name)

    @property
    def tag(self) -> str:
        """`<lora:name:0.8>`, or `<lora:name:0.8:1>` where text towers and UNet differ."""
        weights = dict.fromkeys((number_text(self.text_weight), number_text(self.unet_weight)))
        return f"<lora:{':'.join((self.word, *weights))}>"


def write(
    request: GenerateRequest,
    seed: int,
    *,
    index: int = 0,
    model: str | None = None,
    model_hash: str | None = None,
    vae: str | None = None,
    vae_hash: str | None = None,
    refiner: str | None = None,
    refiner_hash: str | None = None,
    loras: Sequence[LoraUsed] = (),
    embeddings: Mapping[str, str] | None = None,
    extra: Mapping[str, object] | None = None,
) -> str:
    """The infotext of one picture of a resolved request.

    seed: of this picture, which is picture `index` of the request. model, vae, refiner: file names without folder;
    their hashes are the first 10 hex digits of the file's sha256; vae only where it is a file of its own. extra: further
    fields, before the version.
    loras: AUTOMATIC1111 and others look for them in two places, as tags behind the prompt and in the field of hashes.
    embeddings: those that the prompts use, by name, with the first 12 digits of the sha256 of each file; "" for one
    without a file of its own. What is None is left out.
    """
    values: dict[str, object] = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "Schedule type": request.schedule,
        "CFG scale": number_text(request.guidance_scale),
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": model_hash,
        "Model": model,
        "VAE hash": vae_hash,
        "VAE": vae,
        **_variation(request, index),
        **from_picture(request),
        **hires(request),
        **refined(request, refiner, refiner_hash),
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "ENSD": request.ensd if request.ensd and _draws(request) else None,
        "Tiling": {"none": None, "both": True}.get(request.tiling, request.tiling),
        # Absent means as on a GPU, which is what "nv" draws.
        "RNG": request.rng.upper() if request.rng in ("cpu", "gpu") else None,
        "Emphasis": request.emphasis if request.emphasis != "Original" and _has_brackets(request) else None,
        **_options(request),
        **_ours(request, index),
        "Lora hashes": ", ".join(dict.fromkeys(f"{lora.word}: {lora.hash}" for lora in loras if lora.hash)) or None,
        "TI hashes": ", ".join(f"{_word(name)}: {digest}" for name, digest in (embeddings or {}).items() if digest)
        or None,
        **(extra or {}),
        "Version": VERSION,
    }
    prompt = " ".join(filter(None, [request.prompt, *(lora.tag for lora in loras if not lora.in_prompt)]))
    return write_fields(prompt, request.negative_prompt, values)


def _has_brackets(request: GenerateRequest) -> bool:
    """Whether the mode of emphasis changes anything; AUTOMATIC1111 names it in this case only."""
    return any(mark in request.prompt + request.negative_prompt for mark in "([")


def _variation(request: GenerateRequest, index: int) -> dict[str, object]:
    values: dict[str, object] = {}
    if request.variation_strength:
        values["Variation seed"] = request.variation_seeds[index]
        values["Variation seed strength"] = number_text(request.variation_strength)
    if request.seed_width is not None:
        values["Seed resize from"] = f"{request.seed_width}x{request.seed_height}"
    return values


def _draws(request: GenerateRequest) -> bool:
    """Whether numbers are taken from the picture's stream between steps, so that the seed delta shows."""
    info, _ = resolve_sampler(request.sampler)
    eta = info.eta if request.eta is None else request.eta
    noisy = bool(eta) if info.uses_eta else info.stochastic
    return (noisy and not info.brownian) or bool(request.s_churn)


def _options(request: GenerateRequest) -> dict[str, object]:
    """What AUTOMATIC1111 records of sampler, schedule and guidance, by its names; what is at its default is left out."""
    eta = "Eta DDIM" if request.sampler in _SCALED_ETA else "Eta"
    values: dict[str, float | None] = {
        "Schedule min sigma": request.sigma_min,
        "Schedule max sigma": request.sigma_max,
        "Schedule rho": request.rho,
        eta: request.eta,
        "Sigma churn": request.s_churn,
        "Sigma tmin": request.s_tmin,
        "Sigma tmax": request.s_tmax,
        "Sigma noise": request.s_noise,
        "Skip Early CFG": request.skip_early or None,
        "NGMS": request.ngms or None,
    }
    numbers: dict[str, object] = {name: number_text(value) for name, value in values.items() if value is not None}
    return numbers | ({"NGMS all steps": True} if request.ngms and request.ngms_all else {})


def _ours(request: GenerateRequest, index: int) -> dict[str, object]:
    """What changes a picture and AUTOMATIC1111 has no name for; it passes over these."""
    values: dict[str, object] = {}
    if request.sigmas is not None:
        values["Sigmas"] = _list(request.sigmas)
    if request.guidance_list is not None:
        values["CFG list"] = _list(request.guidance_list)
    shares = {
        "CFG rescale": (request.guidance_rescale, 0),
        "CFG start": (request.guidance_start, 0),
        "CFG stop": (request.guidance_stop, 1),
    }
    values |= {name: number_text(value) for name, (value, default) in shares.items() if value != default}
    if request.compat != "a1111":
        values["Compat"] = request.compat
    if request.compat == "comfyui" and (request.noise_batch or 1) > 1:
        values["Batch size"] = request.noise_batch
        values["Batch pos"] = request.noise_index + index % request.batch
    return values


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
        for name, key in _WORDS:
            if name in self.fields:
                values[key] = self.fields[name]
        if "Emphasis" in self.fields:
            values["emphasis"] = self._emphasis(self.fields["Emphasis"])
        if "Sigmas" in self.fields:
            values.pop("schedule", None)
        for name, (key, kind) in _NUMBERS.items():
            if name in self.fields:
                values[key] = self._as_number(name, self.fields[name], kind)
        for name, key in (("Sigmas", "sigmas"), ("CFG list", "guidance_list")):
            if name in self.fields:
                values[key] = tuple(self._as_number(name, part, float) for part in self.fields[name].split(","))
        for name, key in _SWITCHES.items():
            if self.fields.get(name) == "True":
                values[key] = True
        values |= picture_values(self.fields, self._as_number)
        if values.get("compat") == "comfyui":
            for name, key in (("Batch size", "noise_batch"), ("Batch pos", "noise_index")):
                if name in self.fields:
                    values[key] = self._as_number(name, self.fields[name], int)
        else:
            # A GPU of others is most likely NVIDIA's, whose numbers "nv" gives on any machine.
            ours = self.fields.get("Version", "").startswith(VERSION.split()[0])
            known = {"CPU": "cpu", "GPU": "gpu"} if ours else {"CPU": "cpu"}
            values["rng"] = known.get(self.fields.get("RNG", ""), "nv")
        return values

    def _emphasis(self, said: str) -> str:
        for known in EMPHASES:
            if said.casefold() == known.casefold():
                return known
        raise RequestError(f"Emphasis in the picture's metadata is {said[:80]!r}; known are {', '.join(EMPHASES)}")

    def _as_number(self, name: str, text: str, kind: type[int] | type[float]) -> int | float:
        try:
            return kind(text)
        except ValueError:
            raise RequestError(f"{name} in the picture's metadata is {text[:80]!r}, not a number") from None


_WORDS = (
    ("Sampler", "sampler"),
    ("Schedule type", "schedule"),
    ("Compat", "compat"),
    ("Hires upscaler", "hires_upscaler"),
    ("Hires sampler", "hires_sampler"),
    ("Hires schedule type", "hires_schedule"),
    ("Hires prompt", "hires_prompt"),
    ("Hires negative prompt", "hires_negative_prompt"),
)
_SWITCHES = {"NGMS all steps": "ngms_all", "Exact steps": "exact_steps", "Soft mask": "mask_soft"}
_NUMBERS: dict[str, tuple[str, type[int] | type[float]]] = {
    "Steps": ("steps", int),
    "CFG scale": ("guidance_scale", float),
    "Seed": ("seed", int),
    "Size-1": ("width", int),
    "Size-2": ("height", int),
    "Variation seed": ("variation_seed", int),
    "Variation seed strength": ("variation_strength", float),
    "Seed resize from-1": ("seed_width", int),
    "Seed resize from-2": ("seed_height", int),
    "Clip skip": ("clip_skip", int),
    "ENSD": ("ensd", int),
    "Schedule min sigma": ("sigma_min", float),
    "Schedule max sigma": ("sigma_max", float),
    "Schedule rho": ("rho", float),
    "Eta": ("eta", float),
    "Eta DDIM": ("eta", float),
    "Sigma churn": ("s_churn", float),
    "Sigma tmin": ("s_tmin", float),
    "Sigma tmax": ("s_tmax", float),
    "Sigma noise": ("s_noise", float),
    "Skip Early CFG": ("skip_early", float),
    "NGMS": ("ngms", float),
    "CFG rescale": ("guidance_rescale", float),
    "CFG start": ("guidance_start", float),
    "CFG stop": ("guidance_stop", float),
    "Denoising strength": ("strength", float),
    "Extra noise": ("extra_noise", float),
    "Noise multiplier": ("noise_multiplier", float),
    "Image CFG scale": ("image_guidance_scale", float),
    "Conditional mask weight": ("mask_weight", float),
    "Mask blur": ("mask_blur", float),
    "Masked area padding": ("mask_padding", int),
    "Hires upscale": ("hires_scale", float),
    "Hires steps": ("hires_steps", int),
    "Hires CFG Scale": ("hires_guidance_scale", float),
    "Refiner switch at": ("refiner_switch", float),
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


def _word(name: str) -> str:
    return re.sub(r'[:,<>"\s]+', " ", name).strip()


def _list(values: Sequence[float]) -> str:
    return ", ".join(map(number_text, values))
