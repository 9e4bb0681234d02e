"""What a safetensors file is, told from its names: a checkpoint, a part of one, an add-on, another model. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .safetensors import Header


@dataclass(frozen=True, kw_only=True)
class Kind:
    """key for programs, title for people ("a LoRA"), advice: what to do with such a file, where that helps."""

    key: str
    title: str
    advice: str = ""


CHECKPOINT = Kind(key="checkpoint", title="a Stable Diffusion checkpoint")
FOREIGN = frozenset({"flux", "sd3", "video", "cascade"})
"""Kinds that may carry a UNet by our names and still are another network."""
UNKNOWN = Kind(key="unknown", title="nothing that is known here")

# Patterns over tensor names, tried in order: the first with a match decides. More telling ones stand first.
KINDS: tuple[tuple[str, Kind], ...] = (
    (r"double_blocks\.\d+\.", Kind(key="flux", title="a Flux-like model", advice="only SD 1, SD 2 and SDXL are run here")),
    (r"joint_blocks\.\d+\.", Kind(key="sd3", title="a Stable Diffusion 3 model", advice="only SD 1, SD 2 and SDXL are run here")),
    (r"time_stack|temporal_transformer|motion_modules", Kind(key="video", title="a video or motion model")),
    (r"clip_txt_mapper|^(down_blocks|embedding\.1)\..*effnet", Kind(key="cascade", title="a Stable Cascade model")),
    (r"^model\.diffusion_model\.input_blocks\.0\.0\.weight$", CHECKPOINT),
    (r"^lora_|^lycoris_|\.lora_(up|down|A|B)\.|\.(lora|lora_linear_layer)\.(up|down)\.|_lora\.(up|down)\.|\.hada_w1_a|\.lokr_w|\.oft_|(^|:)\d+:(up|down)$|\.(diff|diff_b|on_input|w_norm|dora_scale|ia3_l)$",
     Kind(key="lora", title="a LoRA", advice="it changes a checkpoint and is not one itself")),
    (r"(^|\.)ip_adapter\.|image_proj\.", Kind(key="ip_adapter", title="an IP-Adapter")),
    (r"control_model\.|controlnet_|zero_convs\.|input_hint_block\.", Kind(key="controlnet", title="a ControlNet")),
    (r"^adapter\.body\.|^body\.\d+\.(in_conv|block1)", Kind(key="t2i_adapter", title="a T2I-Adapter")),
    (r"^emb_params$|^string_to_param|^<.*>$|^clip_[lg]$|^t5xxl$", Kind(key="embedding", title="a textual inversion embedding")),
    (r"(^|\.)input_blocks\.0\.0\.weight$", CHECKPOINT),
    (r"^down_blocks\.0\.resnets\.0\.", CHECKPOINT),
    (r"(^|\.)(decoder|encoder)\.(layers\.\d+|\d+)\.(conv\.\d+\.)?(weight|bias)|^taesd_|^\d+\.conv\.\d\.(weight|bias)$", Kind(key="taesd", title="a tiny autoencoder (TAESD)", advice="give it beside a checkpoint with --vae or --preview-decoder")),
    (r"(^|\.)decoder\.(conv_in|up_blocks|up)\.", Kind(key="vae", title="a VAE", advice="give it beside a checkpoint with --vae")),
    (r"vision_model\.|visual\.(transformer|conv1|trunk)", Kind(key="clip", title="a CLIP image model")),
    (r"text_model\.(embeddings|encoder)\.|transformer\.resblocks\.\d+\.",
     Kind(key="text_encoder", title="a CLIP text encoder", advice="give it beside a checkpoint with --text-encoder")),
    (r"encoder\.block\.\d+\.layer\.\d+\.SelfAttention", Kind(key="t5", title="a T5 text encoder")),
    (r"(^|\.)layers\.\d+\.(self_attn|attention)\.|^(transformer\.)?h\.\d+\.attn\.|^gpt_neox\.", Kind(key="language_model", title="a language model")),
    (r"conv_first\.|^model\.0\.weight$|\.rdb1\.conv1|^upsampler\.|\.RDB1\.", Kind(key="upscaler", title="an upscaler (ESRGAN kind)")),
    (r"(^|\.)blocks\.\d+\.(cross_attn|self_attn|attn)\.|transformer_blocks\.\d+\.", Kind(key="transformer", title="a diffusion transformer")),
)  # fmt: skip
_COMPILED = tuple((re.compile(pattern, re.MULTILINE), kind) for pattern, kind in KINDS)


def recognise(header: Header) -> Kind:
    """The kind of a file by its names alone."""
    names = "\n".join(header.entries)  # one search over all is many times faster than one each
    return next((kind for pattern, kind in _COMPILED if pattern.search(names)), UNKNOWN)
