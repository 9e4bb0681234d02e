"""NovelAI's record: the prompt in the PNG text `Description`, the rest as JSON in `Comment`.

Its weights are `{x}` for times 1.05 and `[x]` for divided by it, which no prompt language here reads. Its first models were
read at the text tower's second last layer and drew later noise with the seed plus 31337, as AUTOMATIC1111 has it too.
"""

from __future__ import annotations

from collections.abc import Mapping

from .found import Draft, load_json, number, plain_fields, text_of, whole

SOURCE = "NovelAI"
_CHANGES = (
    "strength", "noise", "sm", "sm_dyn", "dynamic_thresholding", "uncond_scale", "skip_cfg_above_sigma", "reference_strength",
    "reference_information_extracted", "v4_prompt", "controlnet_model", "legacy_v3_extend", "image", "mask",
)  # fmt: skip
_CARRIED = (
    "prompt", "uc", "width", "height", "steps", "seed", "scale", "cfg_rescale", "sampler", "noise_schedule", "n_samples",
    "request_type", "signed_hash", "v4_negative_prompt",
)  # fmt: skip
_DEFAULTS = {"uncond_scale": 1.0}


def read_novelai(texts: Mapping[str, str]) -> Draft | None:
    """A picture of NovelAI; None for others."""
    told = load_json(texts.get("Comment"))
    if not isinstance(told, dict) or "uc" not in told or not ("Description" in texts or "prompt" in told):
        return None
    draft = Draft(source=SOURCE, version=texts.get("Source"), fields=plain_fields(told))
    prompt = text_of(told.get("prompt")) or texts.get("Description", "")
    negative = text_of(told.get("uc")) or ""
    draft.values |= {"prompt": prompt, "negative_prompt": negative, "rng": "nv"}
    for name in ("width", "height", "steps", "seed"):
        draft.take(name, whole(told.get(name)))
    draft.take("guidance_scale", number(told.get("scale")))
    draft.take("guidance_rescale", number(told.get("cfg_rescale")))
    sampler = text_of(told.get("sampler"))
    draft.take("sampler", "DDIM" if sampler in ("ddim", "ddim_v3") else sampler)
    schedule = text_of(told.get("noise_schedule"))
    if schedule != "native":
        draft.take("schedule", schedule)
    source = texts.get("Source", "")
    if not source.startswith(("Stable Diffusion XL", "NovelAI")):
        draft.values |= {"clip_skip": 2, "ensd": 31337}
    draft.notes.append(f"NovelAI's models are not public ({source[:40] or 'not named'}); -m says which to take")
    if "{" in prompt + negative or "[" in prompt + negative:
        draft.lost.append("the prompts weigh words in NovelAI's way ({x}, [x] by 1.05), which is not read")
    for name in _CHANGES:
        value = told.get(name)
        if value not in (None, False, 0, "", [], {}, _DEFAULTS.get(name)):
            draft.lose(name, value)
    draft.note_others(told, (*_CARRIED, *_CHANGES))
    if number(told.get("n_samples"), 1) != 1:
        draft.lose("n_samples", told["n_samples"])
    return draft
