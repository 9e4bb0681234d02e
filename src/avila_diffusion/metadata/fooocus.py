"""Fooocus's record in its own scheme: JSON in the place of the infotext. (Its other scheme is an infotext.)

Its pictures have much that no request here says, above all its sharpness filter and its guidance of two kinds of sizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..images import KEY
from ..infotext import LoraUsed
from .found import Draft, load_json, number, plain_fields, rows, shown, stem, text_of, whole

SOURCE = "Fooocus"
_CHANGES = (
    "styles", "sharpness", "adm_guidance", "refiner_model", "refiner_switch", "performance", "adaptive_cfg", "inpaint_mode",
    "freeu", "overwrite_switch", "uov_method",
)  # fmt: skip
_CARRIED = (
    "full_prompt", "full_negative_prompt", "prompt", "negative_prompt", "prompt_expansion", "steps", "seed", "guidance_scale",
    "sampler", "scheduler", "clip_skip", "resolution", "base_model", "base_model_hash", "vae", "loras", "version",
    "metadata_scheme", "created_by", "refiner_model_hash",
)  # fmt: skip


def read_fooocus(texts: Mapping[str, str]) -> Draft | None:
    """A picture of Fooocus; None for others."""
    told = load_json(texts.get(KEY))
    if not isinstance(told, dict) or "base_model" not in told:
        return None
    draft = Draft(source=SOURCE, version=text_of(told.get("version")), fields=plain_fields(told))
    for name, key in (("full_prompt", "prompt"), ("full_negative_prompt", "negative_prompt")):
        whole_text = [part for part in rows(told.get(name)) if isinstance(part, str)]
        draft.take(key, ", ".join(whole_text) or told.get(key))
    for name in ("steps", "seed"):
        draft.take(name, whole(told.get(name)))
    draft.take("guidance_scale", number(told.get("guidance_scale")))
    draft.take("sampler", told.get("sampler"))
    draft.take("schedule", told.get("scheduler"))
    draft.take("clip_skip", whole(told.get("clip_skip")))
    if size := re.findall(r"\d{1,9}", shown(told.get("resolution", ""))):
        draft.values |= dict(zip(("width", "height"), map(int, size), strict=False))
    draft.values["rng"] = "cpu"
    draft.model, draft.model_hash = stem(told["base_model"]), text_of(told.get("base_model_hash"))
    draft.vae = stem(told.get("vae")) if told.get("vae") != "Default (model)" else None
    for row in rows(told.get("loras")):
        parts = row if isinstance(row, list) else []
        file, weight = stem(parts[0]) if parts else None, number(parts[1]) if len(parts) > 1 else None
        if file is None or weight is None:
            draft.lose("loras", row)
            continue
        digest = text_of(parts[2]) if len(parts) > 2 else None
        draft.loras.append(LoraUsed(name=file, text_weight=weight, unet_weight=weight, hash=digest))
    for name in _CHANGES:
        if told.get(name) not in (None, "None", "", [], 0, False):
            draft.lose(name, told[name])
    draft.note_others(told, (*_CARRIED, *_CHANGES))
    return draft
