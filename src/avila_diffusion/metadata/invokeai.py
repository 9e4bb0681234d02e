"""InvokeAI's records: `invokeai_metadata` of versions 3 to 5, `sd-metadata` of 2, `Dream` command lines of 1.

Its prompts weigh words as `word+` and `(two words)1.3` (compel), which no prompt language here reads; such prompts are carried
over as they stand, and that is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..infotext import LoraUsed
from ..sampling.names import resolve_sampler
from .found import Draft, load_json, number, plain_fields, rows, shown, stem, table, text_of, whole

SOURCE = "InvokeAI"

_WEIGHED = re.compile(r"[\w)\"'][+-]{1,9}(?=[\s,.)]|$)|\)\d|\.(?:blend|and|swap)\(")
_CHANGES: dict[str, Any] = {
    "init_image": None, "strength": None, "mask": None, "controlnets": [], "ipAdapters": [], "t2iAdapters": [],
    "hrf_enabled": False, "hrf_method": None, "seamless_x": False, "seamless_y": False, "refiner_model": None,
    "positive_style_prompt": "", "negative_style_prompt": "", "threshold": 0, "perlin": 0, "variations": [],
    "with_variations": [], "hires_fix": False, "seamless": False, "init_image_path": None, "mask_image_path": None,
    "upscale": None, "facetool": None, "regions": [], "control_layers": None, "canvas_v2_metadata": None, "ref_images": [],
}  # fmt: skip
"""Fields that change pixels, with the values at which they do not."""
_CARRIED = (
    "app_version", "generation_mode", "positive_prompt", "negative_prompt", "width", "height", "seed", "rand_device",
    "cfg_scale", "cfg_rescale_multiplier", "steps", "scheduler", "clip_skip", "model", "vae", "loras", "metadata_version",
)  # fmt: skip
_DREAM = {
    "s": "steps", "steps": "steps", "S": "seed", "seed": "seed", "W": "width", "width": "width", "H": "height",
    "height": "height", "C": "cfg_scale", "cfg_scale": "cfg_scale", "A": "sampler", "sampler": "sampler",
}  # fmt: skip


def read_invokeai(texts: Mapping[str, str]) -> Draft | None:
    """A picture of any version of InvokeAI; None for others."""
    told = load_json(texts.get("invokeai_metadata"))
    if isinstance(told, dict):
        return _newest(told)
    told = load_json(texts.get("sd-metadata"))
    if isinstance(told, dict) and isinstance(told.get("image"), dict):
        return _second(told)
    for name in ("Dream", "dream"):
        if match := re.match(r'\s*"(.*)"((?:\s+-\S.*)?)$', texts.get(name, ""), re.DOTALL):
            return _dream(match[1], match[2])
    return None


def _newest(told: dict[str, Any]) -> Draft:
    draft = Draft(source=SOURCE, version=text_of(told.get("app_version")), fields=plain_fields(told))
    draft.take("prompt", told.get("positive_prompt"))
    draft.take("negative_prompt", told.get("negative_prompt"))
    _numbers(draft, told)
    draft.take("guidance_rescale", number(told.get("cfg_rescale_multiplier")))
    _sampler(draft, told.get("scheduler"))
    skipped = whole(told.get("clip_skip"))
    if isinstance(skipped, int) and skipped:
        draft.take("clip_skip", skipped + 1)
    draft.values["rng"] = "nv" if told.get("rand_device") == "cuda" else "cpu"
    model = told.get("model")
    draft.model = _name(model) if isinstance(model, dict) else stem(model)
    draft.vae = _name(told.get("vae"))
    for row in rows(told.get("loras")):
        name, weight = (
            _name(table(row).get("model")) or _name(table(row).get("lora")),
            number(table(row).get("weight"), 0.75),
        )
        if name is not None and weight is not None:
            draft.loras.append(LoraUsed(name=name, text_weight=weight, unet_weight=weight))
        else:
            draft.lose("loras", row)
    mode = told.get("generation_mode")
    if isinstance(mode, str) and not mode.endswith("txt2img"):
        draft.lose("generation_mode", mode)
    _changes(draft, told)
    draft.note_others(told, (*_CARRIED, *_CHANGES))
    _prompts(draft)
    return draft


def _second(told: dict[str, Any]) -> Draft:
    image = table(told.get("image"))
    draft = Draft(
        source=SOURCE, version=text_of(told.get("app_version")), fields=plain_fields({**told, **image}, ("image",))
    )
    prompts = image.get("prompt")
    parts = [text_of(table(part).get("prompt")) or "" for part in rows(prompts)]
    if len(parts) > 1:
        draft.lose("prompt in weighed parts", prompts)
    _split_prompt(draft, prompts if isinstance(prompts, str) else ", ".join(parts))
    _numbers(draft, image)
    _sampler(draft, image.get("sampler", image.get("scheduler")))
    draft.values["rng"] = "nv"  # drawn on the GPU
    draft.model = stem(told.get("model_weights"))
    digest = text_of(told.get("model_hash"))
    draft.model_hash = digest if digest is not None and re.fullmatch("[0-9a-fA-F]{8,64}", digest) else None
    if image.get("type", "txt2img") != "txt2img":
        draft.lose("type", image["type"])
    _changes(draft, image)
    draft.note_others(image, (*_CARRIED, *_CHANGES, "prompt", "sampler", "type"))
    _prompts(draft)
    return draft


def _dream(prompt: str, options: str) -> Draft:
    draft = Draft(source=SOURCE, fields={"Dream": f'"{prompt}"{options}'})
    _split_prompt(draft, prompt)
    told: dict[str, Any] = {}
    for long, name, value in re.findall(r"\s(--?)([A-Za-z_]+)[=\s]*((?!-[A-Za-z])\S*)", options):
        if long == "-" and len(name) > 1 and name[0] in _DREAM and not value:
            name, value = name[0], name[1:]  # -Ak_lms
        if name in _DREAM:
            told[_DREAM[name]] = value
        else:
            draft.lose(f"{long}{name}", value)
    # "-s50" puts the number behind the letter, where the pattern leaves it to the value.
    _numbers(draft, told)
    _sampler(draft, told.get("sampler"))
    draft.values["rng"] = "nv"
    _prompts(draft)
    return draft


def _numbers(draft: Draft, told: Mapping[str, Any]) -> None:
    for name in ("width", "height", "steps", "seed"):
        draft.take(name, whole(told.get(name)))
    draft.take("guidance_scale", number(told.get("cfg_scale")))


def _sampler(draft: Draft, name: object) -> None:
    """Its "euler" and others run as diffusers' schedulers, whose levels are those of the schedule Automatic here."""
    if isinstance(name, str):
        draft.values["sampler"] = name
        try:
            resolve_sampler(name)
        except ValueError:
            return  # which `finish` says
        draft.notes.append(f"InvokeAI runs {shown(name)} by diffusers' code, whose noise levels can differ a little")


def _split_prompt(draft: Draft, prompt: str) -> None:
    """Old prompts hold the negative one in square brackets."""
    negative = [part.strip(" ,") for part in re.findall(r"\[([^\[\]]*)\]", prompt)]
    draft.values["prompt"] = re.sub(r"(?<!\s)\s*\[[^\[\]]*\]", "", prompt).strip()
    draft.values["negative_prompt"] = ", ".join(filter(None, negative))


def _prompts(draft: Draft) -> None:
    for name in ("prompt", "negative_prompt"):
        text = draft.values.get(name)
        if isinstance(text, str) and _WEIGHED.search(text):
            draft.lost.append(f"{name} weighs words in InvokeAI's way (word+, word-), which is not read")


def _changes(draft: Draft, told: Mapping[str, Any]) -> None:
    for name, value in told.items():
        if name in _CHANGES and value is not None and value != _CHANGES[name] and value not in ([], {}, "", False, 0):
            draft.lose(name, value)


def _name(model: object) -> str | None:
    told = table(model)
    return text_of(told.get("model_name")) or text_of(told.get("name"))
