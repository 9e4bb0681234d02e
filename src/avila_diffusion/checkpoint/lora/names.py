"""The names that programs give to the tensors of a LoRA file, brought to one: kohya's. No torch.

A tensor's name is a module and a leaf. The module names a layer of the model in the writing of one program or another
and becomes kohya's: `lora_unet_`, `lora_te_`, or `lora_te1_` and `lora_te2_` for two text towers, and the layer's name
with its dots turned to underscores, from the single file or from diffusers. The leaf says which part of the change the
tensor is. The first LoRA program numbered the layers; `unet:7` stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LEAVES = (
    "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "scale", "dora_scale",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
    "oft_blocks", "oft_diag", "rescale", "lora_up.bias", "a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight",
    "weight", "on_input", "ia3_l", "diff", "diff_b", "w_norm", "b_norm",
)  # fmt: skip
_PLAIN = re.compile(rf"(.+?)\.({'|'.join(map(re.escape, LEAVES))})", re.ASCII)
_PEFT = re.compile(r"(.+?)\.lora_([AB])(?:\.(?!(?:weight|bias)\b)\w+)?(?:\.weight)?", re.ASCII)
_PEFT_BIAS = re.compile(r"(.+?)\.lora_B(?:\.(?!bias\b)\w+)?\.bias", re.ASCII)
_MAGNITUDE = re.compile(r"(.+?)\.lora_magnitude_vector(?:\.\w+)*", re.ASCII)
_PEFT_IA3 = re.compile(r"(.+?)\.ia3_l(?:\.\w+)?", re.ASCII)
_DIFFUSERS = re.compile(r"(.+?)\.(?:lora|lora_linear_layer)\.(up|down)\.weight", re.ASCII)
_PROCESSOR = re.compile(r"(.+?)(?:\.processor)?\.to_(q|k|v|out)_lora\.(up|down)\.weight", re.ASCII)
_NUMBERED = re.compile(r"((?:unet|text_encoder):(?:0|[1-9]\d{0,4})):(up|down)", re.ASCII)
_HALVES = {"A": "lora_down.weight", "B": "lora_up.weight", "down": "lora_down.weight", "up": "lora_up.weight"}
_SINGLE_FILE = re.compile(r"lora_unet_(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)_", re.ASCII)

# What a module's name begins with, tried in order; kohya's beginning for it; whose convention that is.
PREFIXES: tuple[tuple[str, str, str], ...] = (
    (r"lora_unet_", "lora_unet_", "kohya"),
    (r"lora_te([12]?)_", r"lora_te\1_", "kohya"),
    (r"oft_unet_", "lora_unet_", "kohya"),  # of its program for OFT, which changes the UNet alone
    (r"lora_unet\.", "lora_unet_", "OneTrainer"),
    (r"lora_te([12]?)\.", r"lora_te\1_", "OneTrainer"),
    (r"lycoris_te([12]?)_", r"lora_te\1_", "LyCORIS"),
    (r"lycoris_(?=text_model_)", "lora_te1_", "LyCORIS"),
    (r"lycoris_(?:unet_)?", "lora_unet_", "LyCORIS"),
    (r"base_model\.model\.(?=text_model\.)", "lora_te1_", "PEFT"),
    (r"base_model\.model\.(?:unet\.)?", "lora_unet_", "PEFT"),
    (r"unet\.", "lora_unet_", "diffusers"),
    (r"text_encoder\.", "lora_te1_", "diffusers"),
    (r"text_encoder_2\.", "lora_te2_", "diffusers"),
    (r"(?:model\.)?diffusion_model\.", "lora_unet_", "ComfyUI"),
    (r"(?:text_encoders\.)?clip_l\.(?:transformer\.)?", "lora_te1_", "ComfyUI"),
    (r"(?:text_encoders\.)?clip_g\.(?:transformer\.)?", "lora_te2_", "ComfyUI"),
    (r"(?=(?:down_blocks|mid_block|up_blocks|conv_in|conv_out|conv_norm_out|time_embedding|add_embedding)\.)",
     "lora_unet_", "diffusers"),
    (r"(?=text_model\.)", "lora_te1_", "diffusers"),
)  # fmt: skip
_PREFIXES = tuple((re.compile(pattern, re.ASCII), ours, convention) for pattern, ours, convention in PREFIXES)


@dataclass(frozen=True)
class Place:
    """module: as the file names the layer. name: kohya's. leaf: which part of the change, of `LEAVES`."""

    module: str
    name: str
    leaf: str
    convention: str


def read_name(tensor: str) -> Place | None:
    """What a tensor's name says; None where it is not the name of a part of a LoRA."""
    if found := _NUMBERED.fullmatch(tensor):
        return Place(found[1], found[1], _HALVES[found[2]], "numbered")
    if found := _PROCESSOR.fullmatch(tensor):
        own = "self_attn" in found[1]  # a text tower's
        inner = {"out": "out_proj" if own else "to_out.0"}.get(
            found[2], f"{found[2]}_proj" if own else f"to_{found[2]}"
        )
        return _place(f"{found[1]}.{inner}", _HALVES[found[3]], "diffusers, attention processors")
    if found := _DIFFUSERS.fullmatch(tensor):
        return _place(found[1], _HALVES[found[2]])
    if found := _PEFT.fullmatch(tensor):
        return _place(found[1], _HALVES[found[2]], "PEFT")
    if found := _PEFT_BIAS.fullmatch(tensor):
        return _place(found[1], "lora_up.bias", "PEFT")
    if found := _PEFT_IA3.fullmatch(tensor):
        return _place(found[1], "ia3_l", "PEFT")
    if found := _MAGNITUDE.fullmatch(tensor):
        return _place(found[1], "dora_scale", "PEFT")
    if found := _PLAIN.fullmatch(tensor):
        return _place(found[1], found[2])
    return None


def _place(module: str, leaf: str, convention: str = "") -> Place | None:
    for pattern, ours, whose in _PREFIXES:
        if begin := pattern.match(module):
            name = begin.expand(ours) + module[begin.end() :].replace(".", "_")
            if convention == "PEFT" and whose == "diffusers":
                convention = "diffusers, PEFT leaves"
            elif whose == "kohya" and _SINGLE_FILE.match(name):
                whose = "kohya, single-file names"
            elif whose == "kohya":
                whose = "kohya, diffusers names" if name.startswith("lora_unet_") else "kohya, text encoder only"
            return Place(module, name, leaf, convention or whose)
    return None


def spell(name: str) -> Iterator[str]:
    """The names under which a model may have the layer: as given, and the other writings of text towers."""
    yield name
    for tower, other in (("lora_te1_", "lora_te_"), ("lora_te_", ""), ("lora_te2_", "")):
        if name.startswith(tower):
            layer = name[len(tower) :]
            layers = [layer] if layer.startswith("text_model_") else [layer, f"text_model_{layer}"]
            yield from (begin + spelled for begin in filter(None, (tower, other)) for spelled in layers)


def count_conventions(found: list[str]) -> str:
    """One convention for a file whose modules have these."""
    names = list(dict.fromkeys(found))
    unet = [name for name in names if name != "kohya, text encoder only"]
    return " and ".join(unet or names)
