"""The infotext of AUTOMATIC1111, of what grew out of it, of stable-diffusion.cpp, and of ourselves.

What a field means and what it leaves open is the behaviour of AUTOMATIC1111's WebUI 1.10; which of its versions read prompts
and levels otherwise is told in notes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import RequestError
from ..images import KEY
from ..infotext import LoraUsed, Parsed, read
from ..picture_fields import CONTENTS, MASKED, NOT_MASKED, ONLY_MASKED, RESIZES, has_mask
from .found import Draft, number, stem

_HYPERNET = re.compile(r" ?<hypernet:[^<>]*>")
LORA_TAG = re.compile(r"<(?:lora|lyco):([^<>:]+)((?::[^<>:]*)*)>")

_OURS = "avila_diffusion"
_SDCPP = "stable-diffusion.cpp"
_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(-RC)?(?:-(\d+)-g[0-9a-f]+)?$")
"""Of git's tags; without v where it was installed without git and read its list of changes."""
_PAIR = re.compile(r'(?<![^,:"])([^,:"]+)"?:\s*([0-9a-fA-F]+)')
_CARRIED = frozenset(
    [
        "Steps",
        "Sampler",
        "Schedule type",
        "CFG scale",
        "Seed",
        "Size-1",
        "Size-2",
        "Variation seed",
        "Variation seed strength",
        "Seed resize from-1",
        "Seed resize from-2",
        "Clip skip",
        "Emphasis",
        "ENSD",
        "RNG",
        "Schedule min sigma",
        "Schedule max sigma",
        "Schedule rho",
        "Eta",
        "Eta DDIM",
        "Sigma churn",
        "Sigma tmin",
        "Sigma tmax",
        "Sigma noise",
        "Skip Early CFG",
        "NGMS",
        "NGMS all steps",
        "Sigmas",
        "CFG list",
        "CFG rescale",
        "CFG start",
        "CFG stop",
        "Compat",
        "Model",
        "Model hash",
        "VAE",
        "VAE hash",
        "Lora hashes",
        "TI hashes",
        "Hashes",
        "Version",
        "App",
        "Batch size",
        "Batch pos",
        "Hires upscale",
        "Hires steps",
        "Hires resize-1",
        "Hires resize-2",
        "Hires sampler",
        "Hires schedule type",
        "Hires prompt",
        "Hires negative prompt",
        "Hires CFG Scale",
        "Refiner switch at",
        "Refiner switch by sampling steps",
        "Exact steps",
        "Soft mask",
        "Outpaint",
        "Extra noise",
        "Noise multiplier",
        "Image CFG scale",
        "Conditional mask weight",
        "Mask blur",
        "Masked area padding",
        "Denoising strength",
        "Hires upscaler",
        "Refiner",
    ]
)
"""Fields that are in the request or say which files to take. A batch changes nothing of AUTOMATIC1111's pictures."""
_CHANGES = re.compile(
    r"Hires|Denoising|Mask|Inpaint|Masked|Soft inpainting|Init image|Image CFG|Refiner|ControlNet|ADetailer|Script|[XYZ] |"
    r"Dynamic|Tiling|Hypernet|Token merging|FP8|Branched|Variation|Old prompt|Use old|Pad conds|Downcast|"
    r"Noise Schedule|Noise multiplier|Extra noise|Beta schedule|UniPC|SGM noise|Discard penultimate|Always discard|AddNet|"
    r"Face restoration|Upcast|Conditional mask|Color correction|CFG Rescale|FreeU|Tiled|Postprocess|Refiner switch|"
    r"SLG|Skip layers|Guidance|dynthres|Downcast|Negative Guidance|HyperTile|Regional|RP |AnimateDiff|Diffusion in Low|PAG|SAG"
)
_KNOWN_VALUES = {
    "Resize mode": {"Just resize", *RESIZES.values()},
    "Masked content": {"original", *CONTENTS.values()},
    "Inpaint area": {"Whole picture", ONLY_MASKED},
    "Mask mode": {MASKED, NOT_MASKED},
    "Tiling": {"False", "True", "x", "y"},
}
"""Fields that are in the request where they have one of these values."""
_REFINER = re.compile(r"(.*?)(?: \[([0-9a-fA-F]+)\])?$", re.DOTALL)
_DEFAULTS = {
    "Noise Schedule": "Default",
    "Beta schedule alpha": "0.6",
    "Beta scheduler alpha": "0.6",
    "Beta schedule beta": "0.6",
    "Beta scheduler beta": "0.6",
    "Mask mode": MASKED,
    "SLG scale": "0",
    "Guidance": "3.5",
}
"""At these values the fields change nothing. Beta's two are written by one name and read by the other there; both count."""


def read_webui(texts: Mapping[str, str]) -> Draft | None:
    """A picture with an infotext; None where there is none, or one without any field beside a ComfyUI graph."""
    text = texts.get(KEY)
    if text is None or not text.strip():
        return None
    parsed = read(text)
    if not parsed.fields and "prompt" in texts:
        return None
    return draft_of(parsed)


def draft_of(parsed: Parsed) -> Draft:
    """What an infotext becomes."""
    fields = dict(parsed.fields)
    source, version = _program(fields)
    draft = Draft(source=source, version=version, fields=fields)
    draft.values = _values(parsed, draft)
    _take_tags(draft, fields.get("Lora hashes", ""))
    draft.model, draft.model_hash = fields.get("Model") or stem(fields.get("Checkpoint")), fields.get("Model hash")
    if source == _SDCPP:
        draft.model = stem(draft.model)
        _as_sdcpp(draft)
    draft.vae, draft.vae_hash = fields.get("VAE"), fields.get("VAE hash")
    if draft.vae in ("None", "Automatic", ""):
        draft.vae = None
    draft.embeddings = {name.strip(): digest for name, digest in _PAIR.findall(fields.get("TI hashes", ""))}
    if refiner := _REFINER.match(fields.get("Refiner", "")):
        draft.refiner, draft.refiner_hash = refiner[1] or None, refiner[2]
    draft.pictures = dict.fromkeys(_pictures(fields), "")
    for name, value in fields.items():
        if name in _CARRIED or _DEFAULTS.get(name) == value or value in _KNOWN_VALUES.get(name, ()):
            continue
        if name.startswith("First pass size-"):  # the second pass of before 1.0; 0 is as large as fits
            draft.lose(name.removesuffix(name[-2:]), f"{fields.get(name[:-1] + '1')}x{fields.get(name[:-1] + '2')}")
            continue
        if _CHANGES.match(name):
            draft.lose(name, value)
        elif name not in ("Drawn at-1", "Drawn at-2", "Resized with", "Checkpoint", "User"):
            draft.notes.append(f"{name}: {value[:60]} (not understood)")
    if source == "AUTOMATIC1111":
        draft.notes += _dialect(parsed)
    return draft


def _pictures(fields: Mapping[str, str]) -> Iterator[str]:
    """Which pictures the run began with."""
    if "Denoising strength" not in fields or any(name.startswith(("Hires", "First pass size")) for name in fields):
        return
    yield "image"
    if has_mask(fields):
        yield "mask"


def _program(fields: Mapping[str, str]) -> tuple[str, str | None]:
    version = fields.get("Version")
    said = version or ""
    if said.startswith(_OURS):
        return _OURS, said.removeprefix(_OURS).strip() or None
    if said.startswith(_SDCPP):
        return _SDCPP, said.removeprefix(_SDCPP).strip(" -") or None
    if "Fooocus" in said:
        return "Fooocus", said
    if app := fields.get("App"):
        return app[:40], version
    if said == "ComfyUI":
        return "ComfyUI", None
    return ("AUTOMATIC1111" if not said or _VERSION.match(said) else "AUTOMATIC1111's kin"), version


def _values(parsed: Parsed, draft: Draft) -> dict[str, Any]:
    """The request's values; a number that is none is said and left out."""
    fields = dict(parsed.fields)
    while True:
        try:
            return Parsed(parsed.prompt, parsed.negative_prompt, fields).request_values()
        except RequestError as error:
            wrong = next((name for name in fields if str(error).startswith(f"{name} in the picture's")), None)
            if wrong is None:
                draft.lost.append(str(error))
                return {"prompt": parsed.prompt, "negative_prompt": parsed.negative_prompt}
            draft.lose(wrong, fields.pop(wrong))


def _take_tags(draft: Draft, hashes: str) -> None:
    """LoRA tags out of the prompt, as AUTOMATIC1111 takes them out before it encodes the prompt."""
    known = {name.strip(): digest for name, digest in _PAIR.findall(hashes)}
    prompt, draft.loras, wrong = take_tags(draft.values["prompt"], known)
    draft.lost += wrong
    for tag in _HYPERNET.findall(prompt):
        draft.lose("hypernetwork", tag)
    draft.values["prompt"] = _HYPERNET.sub("", prompt)


def take_tags(prompt: str, hashes: Mapping[str, str]) -> tuple[str, list[LoraUsed], list[str]]:
    """The prompt without its LoRA tags and the blank before each, the LoRAs, and what is wrong with others.

    `<lora:name:te:unet>`; te is 1 where it is missing, unet as te; both may be named, as `te=`, `unet=`.
    """
    loras, wrong = [], []
    for match in LORA_TAG.finditer(prompt):
        name, arguments = match[1].strip(), match[2].split(":")[1:]
        named = dict(part.split("=", 1) for part in arguments if "=" in part)
        placed = [part for part in arguments if "=" not in part]
        text = number(named.get("te", placed[0] if placed else 1.0))
        unet = number(named.get("unet", placed[1] if len(placed) > 1 else text))
        if text is None or unet is None:
            wrong.append(f"{match[0][:80]} has a weight that is no number")
            continue
        if len(placed) > 2 or "dyn" in named:
            wrong.append(f"{match[0][:80]} cuts the rank of the LoRA (dyn)")
        loras.append(LoraUsed(name=name, text_weight=text, unet_weight=unet, hash=hashes.get(name)))
    return re.sub(" ?" + LORA_TAG.pattern, "", prompt), loras, wrong


def _as_sdcpp(draft: Draft) -> None:
    """Where stable-diffusion.cpp means something else by a name."""
    rng = draft.fields.get("RNG", "cuda").lower()
    if rng == "cpu":
        draft.values["rng"] = "cpu"
    elif rng != "cuda":
        draft.lose("RNG", rng)
    sampler = str(draft.values.get("sampler", "")).lower()
    if "eta" in draft.values and not sampler.startswith(("ddim", "tcd")):
        del draft.values["eta"]  # which it writes, and leaves unused, beside every sampler
    draft.notes.append("stable-diffusion.cpp draws the same noise in single precision; last digits differ")


def _dialect(parsed: Parsed) -> list[str]:
    """Which switches of older times AUTOMATIC1111 would turn on for this picture."""
    match = _VERSION.match(parsed.fields.get("Version", ""))
    if match is None:
        return []
    major, minor, patch, candidate, commits = match.groups()
    version = (int(major), int(minor), int(patch), -1 if candidate else int(commits or 0))
    notes = []
    if version < (1, 6, 0, 0):
        if "[" in parsed.prompt + parsed.negative_prompt:
            notes.append(
                "made before 1.6.0: [from:to:when] was read by the old timelines, where only when < 1 is a share"
            )
        if parsed.fields.get("Sampler") in ("DDIM", "PLMS", "UniPC"):
            notes.append(
                "made before 1.6.0: prompts of unequal length were padded with their last vector (Pad conds v0)"
            )
    if version < (1, 7, 0, 225):
        notes.append("made before 1.7.0-225: the noise levels were rounded to float16 (Downcast alphas_cumprod)")
    if version < (1, 8, 0, 0) and "Refiner" in parsed.fields:
        notes.append("made before 1.8.0: the refiner took over by sampling steps, not by timesteps")
    return notes
