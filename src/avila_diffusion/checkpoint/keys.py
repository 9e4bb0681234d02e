"""Other dialects of tensor names → ours, which are those of a released single-file checkpoint.

Pure functions from the names of a file to `{our name: the file's name}`; no shapes, no tensors, no table of a model's
layers: how many blocks there are is read off the names themselves. And the way back, from the names of a built network
to those that other programs give its parameters: add-ons such as LoRA files speak of them by those.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

MAX_DEPTH = 32
"""Dots in a name; released files have up to twelve. Names with more are nobody's layers."""
NUMBER = re.compile(r"(?<=\.)(?:0|[1-9]\d{0,5})(?=\.|\Z)", re.ASCII)
"""A part of a name that counts something: "01" names nothing of ours, nor does a number of thousands of digits."""

UNET_HEAD = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0",  # SD 2 unCLIP
    "class_embedding.linear_2": "label_emb.0.2",
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
TINY_LAYER = re.compile(
    r"(?:(?:taesd_)?(encoder|decoder)\.(layers\.)?)?(0|[1-9]\d?)((?:\.conv\.\d)?\.(?:weight|bias))", re.ASCII
)
OPEN_CLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OPEN_CLIP_FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
"""The thirds of OpenCLIP's `attn.in_proj_weight` and `attn.in_proj_bias`, in the order of their rows."""
TOWER_MARK = "embeddings.token_embedding.weight"
TOWER_PARTS = ("embeddings.", "encoder.", "final_layer_norm.")
TOWER_LEAVES = ("text_projection", "token_embedding.", "positional_embedding", "ln_final.", "logit_scale")


def is_diffusers_unet(names: Collection[str]) -> bool:
    return "conv_in.weight" in names and any(name.startswith("up_blocks.") for name in names)


def is_diffusers_vae(names: Collection[str]) -> bool:
    return any(name.startswith(("decoder.up_blocks.", "encoder.down_blocks.")) for name in names)


def unet_from_diffusers(names: Collection[str]) -> dict[str, str]:
    """Names of a diffusers UNet2DConditionModel → `{ours: theirs}`. Names it does not know are left out."""
    return _rename(names, dict(_unet_prefixes(count_numbers(names))), UNET_RESNET)


def vae_from_diffusers(names: Collection[str]) -> dict[str, str]:
    """Names of a diffusers AutoencoderKL → `{ours: theirs}`. Names it does not know are left out."""
    prefixes = VAE_HEAD | dict(_vae_prefixes(count_numbers(names)))
    return _rename(names, prefixes, VAE_ATTENTION | {"conv_shortcut": "nin_shortcut"})


def tiny_vae_names(names: Collection[str]) -> dict[str, str]:
    """Names of a tiny autoencoder (TAESD), or of one half of it → `{ours: theirs}`, ours being diffusers'; {} for others.

    The original numbers the layers without `layers.`, and a half in a file of its own without `encoder.` or `decoder.`. Its
    decoder begins with a layer without weights, the clamp, which diffusers does not count; its encoder with a convolution,
    so that a file without prefixes that has a layer 0 is the encoder's.
    """
    bare = "encoder" if "0.weight" in names else "decoder"
    renamed: dict[str, str] = {}
    for name in names:
        found = TINY_LAYER.fullmatch(name)
        if found is None:
            continue
        half, layers, number, rest = found.groups()
        half, place = half or bare, int(number)
        if half == "decoder" and layers is None:
            place -= (
                f"{name[: found.start(3)]}0.weight" not in names
            )  # one without the clamp is counted as by diffusers
        if place >= 0:
            renamed.setdefault(f"{half}.layers.{place}{rest}", name)
    return renamed if any(".conv." in name for name in renamed) else {}


def unet_to_diffusers(names: Collection[str]) -> dict[str, str]:
    """Our names of a UNet's parameters → `{diffusers': ours}`. A layer that diffusers knows by two names has both."""
    inner = {ours: theirs for theirs, ours in UNET_RESNET.items()}
    renamed: dict[str, str] = {}
    for theirs, ours in _unet_prefixes(_count_as_diffusers(names)):
        if ".attentions." in theirs and f"{ours}.proj_in.weight" not in names:
            continue  # the place is taken by something else, or by nothing
        for name in names:
            if name.startswith(f"{ours}."):
                layer, _, leaf = name[len(ours) + 1 :].rpartition(".")
                renamed[".".join(filter(None, [theirs, inner.get(layer, layer), leaf]))] = name
    return renamed


def open_clip_to_transformers(names: Collection[str]) -> dict[str, tuple[str, int | None]]:
    """Names of an OpenCLIP tower's blocks → `{transformers': (OpenCLIP's, third)}`, the third that holds it or None."""
    renamed: dict[str, tuple[str, int | None]] = {}
    for name in names:
        mark, found, rest = name.partition("transformer.resblocks.")
        index, _, inner = rest.partition(".")
        if mark or not found:
            continue
        block = f"text_model.encoder.layers.{index}."
        layer, _, leaf = inner.rpartition(".")
        if layer in OPEN_CLIP_BLOCK:
            renamed[f"{block}{OPEN_CLIP_BLOCK[layer]}.{leaf}"] = (name, None)
        elif layer == "attn" and leaf in ("in_proj_weight", "in_proj_bias"):
            for third, theirs in enumerate(OPEN_CLIP_FUSED):
                renamed[f"{block}{theirs}.{leaf.removeprefix('in_proj_')}"] = (name, third)
    return renamed


def count_numbers(names: Iterable[str]) -> dict[str, int]:
    """For each prefix that a number follows in some name, how many consecutive ones do, from 0: `{"input_blocks": 12}`.

    Prefixes that are not there, or whose numbers do not begin with 0, are absent.
    """
    found: dict[str, set[int]] = {}
    for name in names:
        if name.count(".") <= MAX_DEPTH:
            for number in NUMBER.finditer(name):
                found.setdefault(name[: number.start() - 1], set()).add(int(number[0]))
    counts = {}
    for prefix, numbers in found.items():
        count = 0
        while count in numbers:
            count += 1
        if count:
            counts[prefix] = count
    return counts


def split_towers(names: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    """CLIP text towers among names: (their prefix, `{ours: theirs}`, both without it).

    A tower has transformers' names (`text_model.…`; since version 5 without that beginning) or OpenCLIP's.
    """
    towers: dict[str, dict[str, str]] = {}
    rest = []
    for name in names:
        for mark in ("text_model.", "transformer.resblocks."):
            prefix, found, inner = name.partition(mark)
            if found and (mark != "text_model." or inner.startswith(TOWER_PARTS)) and _begins_a_tower(prefix):
                towers.setdefault(prefix, {})[found + inner] = found + inner
                break
        else:
            rest.append(name)
    marked = {name.removesuffix(TOWER_MARK) for name in rest if name.endswith(TOWER_MARK)}
    bare = {prefix for prefix in marked - set(towers) if _begins_a_tower(prefix)}
    towers |= {prefix: {} for prefix in sorted(bare)}
    for name in rest:
        for mark in (*TOWER_PARTS, *TOWER_LEAVES):
            prefix, found, inner = name.partition(mark)
            if found and prefix in (bare if mark in TOWER_PARTS else towers):
                inner = found + inner
                towers[prefix]["text_model." + inner if mark in TOWER_PARTS else inner] = inner
                break
    return list(towers.items())


def _begins_a_tower(prefix: str) -> bool:
    """Not in the middle of a word, and not CLIP's other tower, the one for pictures."""
    return not prefix or (prefix.endswith(".") and not prefix.endswith(("visual.", "vision_model.")))


def _rename(names: Collection[str], prefixes: Mapping[str, str], inner: Mapping[str, str]) -> dict[str, str]:
    """Replace the longest known prefix of each name, then the layer inside it where `inner` knows that."""
    renamed: dict[str, str] = {}
    for name in names:
        parts = name.split(".", MAX_DEPTH + 1)
        if len(parts) > MAX_DEPTH:
            continue
        for cut in range(len(parts) - 1, 0, -1):
            prefix = ".".join(parts[:cut])
            if prefix in prefixes:
                rest, leaf = ".".join(parts[cut:-1]), parts[-1]
                renamed.setdefault(".".join(filter(None, [prefixes[prefix], inner.get(rest, rest), leaf])), name)
                break
    return renamed


def _unet_prefixes(counts: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    yield from UNET_HEAD.items()
    row = 1
    for level in range(counts.get("down_blocks", 0)):
        block = f"down_blocks.{level}"
        for index in range(counts.get(f"{block}.resnets", 0)):
            yield f"{block}.resnets.{index}", f"input_blocks.{row}.0"
            yield f"{block}.attentions.{index}", f"input_blocks.{row}.1"
            row += 1
        if counts.get(f"{block}.downsamplers", 0):
            yield f"{block}.downsamplers.0.conv", f"input_blocks.{row}.0.op"
            row += 1
    yield "mid_block.resnets.0", "middle_block.0"
    yield "mid_block.attentions.0", "middle_block.1"
    yield "mid_block.resnets.1", "middle_block.2"
    row = 0
    for level in range(counts.get("up_blocks", 0)):
        block = f"up_blocks.{level}"
        resnets = counts.get(f"{block}.resnets", 0)
        attention = counts.get(f"{block}.attentions", 0) > 0
        for index in range(resnets):
            yield f"{block}.resnets.{index}", f"output_blocks.{row}.0"
            yield f"{block}.attentions.{index}", f"output_blocks.{row}.1"
            if index == resnets - 1:
                yield f"{block}.upsamplers.0", f"output_blocks.{row}.{2 if attention else 1}"
            row += 1


def _count_as_diffusers(names: Collection[str]) -> dict[str, int]:
    """How many blocks, resnets and attentions a UNet by our names has in diffusers' way of counting: by resolution."""
    rows = count_numbers(names)
    counts: Counter[str] = Counter(down_blocks=1, up_blocks=1)
    for row in range(1, rows.get("input_blocks", 0)):
        block = f"down_blocks.{counts['down_blocks'] - 1}"
        if f"input_blocks.{row}.0.op.weight" in names:
            counts[f"{block}.downsamplers"] += 1
            counts["down_blocks"] += 1
        else:
            counts[f"{block}.resnets"] += 1
            counts[f"{block}.attentions"] += f"input_blocks.{row}.1.proj_in.weight" in names
    for row in range(rows.get("output_blocks", 0)):
        block = f"up_blocks.{counts['up_blocks'] - 1}"
        counts[f"{block}.resnets"] += 1
        counts[f"{block}.attentions"] += f"output_blocks.{row}.1.proj_in.weight" in names
        counts["up_blocks"] += any(f"output_blocks.{row}.{place}.conv.weight" in names for place in (1, 2))
    return counts


def _vae_prefixes(counts: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    for level in range(counts.get("encoder.down_blocks", 0)):
        block = f"encoder.down_blocks.{level}"
        for index in range(counts.get(f"{block}.resnets", 0)):
            yield f"{block}.resnets.{index}", f"encoder.down.{level}.block.{index}"
        yield f"{block}.downsamplers.0", f"encoder.down.{level}.downsample"
    levels = counts.get("decoder.up_blocks", 0)
    for level in range(levels):
        block = f"decoder.up_blocks.{level}"
        ours = f"decoder.up.{levels - 1 - level}"  # the single-file layout counts from full resolution
        for index in range(counts.get(f"{block}.resnets", 0)):
            yield f"{block}.resnets.{index}", f"{ours}.block.{index}"
        yield f"{block}.upsamplers.0", f"{ours}.upsample"
