"""Other dialects of tensor names → ours, which are those of a released single-file checkpoint.

Pure functions from the names of a file to `{our name: the file's name}`; no shapes, no tensors, no table of a model's
layers: how many blocks there are is read off the names themselves.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

UNET_HEAD = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_HEAD = {
    f"{half}.{theirs}": f"{half}.{ours}"
    for half in ("encoder", "decoder")
    for theirs, ours in {
        "conv_in": "conv_in",
        "conv_out": "conv_out",
        "conv_norm_out": "norm_out",
        "mid_block.resnets.0": "mid.block_1",
        "mid_block.resnets.1": "mid.block_2",
        "mid_block.attentions.0": "mid.attn_1",
    }.items()
} | {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "query": "q",  # as diffusers named them until 0.17
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}


def is_diffusers_unet(names: Collection[str]) -> bool:
    return "conv_in.weight" in names and any(name.startswith("up_blocks.") for name in names)


def is_diffusers_vae(names: Collection[str]) -> bool:
    return any(name.startswith(("decoder.up_blocks.", "encoder.down_blocks.")) for name in names)


def unet_from_diffusers(names: Collection[str]) -> dict[str, str]:
    """Names of a diffusers UNet2DConditionModel → `{ours: theirs}`. Names it does not know are left out."""
    return _rename(names, dict(_unet_prefixes(names)), UNET_RESNET)


def vae_from_diffusers(names: Collection[str]) -> dict[str, str]:
    """Names of a diffusers AutoencoderKL → `{ours: theirs}`. Names it does not know are left out."""
    prefixes = VAE_HEAD | dict(_vae_prefixes(names))
    return _rename(names, prefixes, VAE_ATTENTION | {"conv_shortcut": "nin_shortcut"})


def _rename(names: Collection[str], prefixes: dict[str, str], inner: dict[str, str]) -> dict[str, str]:
    """Replace the longest known prefix of each name, then the layer inside it where `inner` knows that."""
    renamed = {}
    for name in names:
        parts = name.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            prefix = ".".join(parts[:cut])
            if prefix in prefixes:
                rest, leaf = ".".join(parts[cut:-1]), parts[-1]
                renamed[".".join(filter(None, [prefixes[prefix], inner.get(rest, rest), leaf]))] = name
                break
    return renamed


def _unet_prefixes(names: Collection[str]) -> Iterator[tuple[str, str]]:
    yield from UNET_HEAD.items()
    row = 1
    for level in range(_count(names, "down_blocks.{}.")):
        block = f"down_blocks.{level}"
        for index in range(_count(names, f"{block}.resnets.{{}}.")):
            yield f"{block}.resnets.{index}", f"input_blocks.{row}.0"
            yield f"{block}.attentions.{index}", f"input_blocks.{row}.1"
            row += 1
        if _count(names, f"{block}.downsamplers.{{}}."):
            yield f"{block}.downsamplers.0.conv", f"input_blocks.{row}.0.op"
            row += 1
    yield "mid_block.resnets.0", "middle_block.0"
    yield "mid_block.attentions.0", "middle_block.1"
    yield "mid_block.resnets.1", "middle_block.2"
    row = 0
    for level in range(_count(names, "up_blocks.{}.")):
        block = f"up_blocks.{level}"
        resnets = _count(names, f"{block}.resnets.{{}}.")
        attention = _count(names, f"{block}.attentions.{{}}.") > 0
        for index in range(resnets):
            yield f"{block}.resnets.{index}", f"output_blocks.{row}.0"
            yield f"{block}.attentions.{index}", f"output_blocks.{row}.1"
            if index == resnets - 1:
                yield f"{block}.upsamplers.0", f"output_blocks.{row}.{2 if attention else 1}"
            row += 1


def _vae_prefixes(names: Collection[str]) -> Iterator[tuple[str, str]]:
    for level in range(_count(names, "encoder.down_blocks.{}.")):
        block = f"encoder.down_blocks.{level}"
        for index in range(_count(names, f"{block}.resnets.{{}}.")):
            yield f"{block}.resnets.{index}", f"encoder.down.{level}.block.{index}"
        yield f"{block}.downsamplers.0", f"encoder.down.{level}.downsample"
    levels = _count(names, "decoder.up_blocks.{}.")
    for level in range(levels):
        block = f"decoder.up_blocks.{level}"
        ours = f"decoder.up.{levels - 1 - level}"  # the single-file layout counts from full resolution
        for index in range(_count(names, f"{block}.resnets.{{}}.")):
            yield f"{block}.resnets.{index}", f"{ours}.block.{index}"
        yield f"{block}.upsamplers.0", f"{ours}.upsample"


def _count(names: Collection[str], pattern: str) -> int:
    """How many consecutive numbers, from 0, stand in the place of {} at the start of some name."""
    numbered = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)"))
    found = {int(match[1]) for name in names if (match := numbered.match(name))}
    count = 0
    while count in found:
        count += 1
    return count
