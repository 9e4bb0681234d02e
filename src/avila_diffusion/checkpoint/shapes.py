"""Network configs read off tensor shapes. Names are ours, without the component's prefix; no torch, no file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ..config import TextConfig, TransformerConfig, UNetBlockConfig, UNetConfig, VAEConfig
from ..errors import WeightMismatch

Shapes = Mapping[str, tuple[int, ...]]
HeadsOf = Callable[[int], int]
"""Channels of an attention layer → its number of heads, which no shape tells."""


def read_unet_config(shapes: Shapes, heads_of: HeadsOf) -> UNetConfig:
    """The rows of a UNet. Raises WeightMismatch where a tensor that every UNet has is missing or misshapen."""
    conv_in = _shape(shapes, "input_blocks.0.0.weight", 4)
    conv_out = _shape(shapes, "out.2.weight", 4)
    embed = _shape(shapes, "time_embed.0.weight", 2)
    context = next((shape[-1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), 0)
    projections = [len(shape) for name, shape in shapes.items() if name.endswith(".proj_in.weight")]
    label = shapes.get("label_emb.0.0.weight")
    guidance = shapes.get("time_embed.cond_proj.weight")
    first = UNetBlockConfig(in_channels=conv_in[1], out_channels=conv_in[0], residual=False)
    rows = [_read_row(shapes, f"input_blocks.{i}.", heads_of) for i in range(1, _count(shapes, "input_blocks"))]
    middle = None
    if any(name.startswith("middle_block.0.") for name in shapes):
        middle = _read_row(shapes, "middle_block.", heads_of)
    outputs = [_read_row(shapes, f"output_blocks.{i}.", heads_of) for i in range(_count(shapes, "output_blocks"))]
    if not outputs:
        raise WeightMismatch("the UNet has no output_blocks; the file is truncated or not a Stable Diffusion UNet")
    return UNetConfig(
        in_channels=conv_in[1],
        out_channels=conv_out[0],
        model_channels=embed[1],
        embed_channels=embed[0],
        context_channels=context,
        input_blocks=(first, *rows),
        middle=middle,
        output_blocks=tuple(outputs),
        linear_projection=2 in projections,
        adm_channels=label[1] if label else None,
        guidance_channels=guidance[1] if guidance else None,
    )


def _read_row(shapes: Shapes, prefix: str, heads_of: HeadsOf) -> UNetBlockConfig:
    down = shapes.get(f"{prefix}0.op.weight")
    if down is not None:
        return UNetBlockConfig(in_channels=down[1], out_channels=down[0], residual=False, resample="down")
    conv = _shape(shapes, f"{prefix}0.in_layers.2.weight", 4)
    up = any(f"{prefix}{place}.conv.weight" in shapes for place in (1, 2))
    return UNetBlockConfig(
        in_channels=conv[1],
        out_channels=conv[0],
        transformer=_read_transformer(shapes, f"{prefix}1.", conv[0], heads_of),
        resample="up" if up else "none",
    )


def _read_transformer(shapes: Shapes, prefix: str, channels: int, heads_of: HeadsOf) -> TransformerConfig | None:
    depth = _count(shapes, f"{prefix}transformer_blocks")
    if depth == 0:
        return None
    key = shapes.get(f"{prefix}transformer_blocks.0.attn1.to_k.weight", (channels, channels))
    return TransformerConfig(depth=depth, heads=heads_of(channels), self_attention=key[-1] == channels)


def read_vae_config(shapes: Shapes) -> VAEConfig:
    """The widths and depths of an autoencoder. Raises WeightMismatch where it has no decoder that can be read."""
    decoder = _levels(shapes, "decoder.up")
    encoder = _levels(shapes, "encoder.down")
    conv_in = _shape(shapes, "decoder.conv_in.weight", 4)
    quant = shapes.get("post_quant_conv.weight")
    moments = shapes.get("encoder.conv_out.weight", (2 * conv_in[1],))[0]
    return VAEConfig(
        image_channels=_shape(shapes, "decoder.conv_out.weight", 4)[0],
        latent_channels=conv_in[1],
        embed_channels=quant[1] if quant else conv_in[1],
        encoder_channels=encoder or decoder,
        decoder_channels=decoder,
        encoder_blocks=_count(shapes, "encoder.down.0.block") or 2,
        decoder_blocks=_count(shapes, "decoder.up.0.block"),
        encoder_attention="encoder.mid.attn_1.q.weight" in shapes or not encoder,
        decoder_attention="decoder.mid.attn_1.q.weight" in shapes,
        quant=quant is not None,
        double_z=moments == 2 * conv_in[1],
    )


def _levels(shapes: Shapes, prefix: str) -> tuple[int, ...]:
    return tuple(_shape(shapes, f"{prefix}.{i}.block.0.conv2.weight", 4)[0] for i in range(_count(shapes, prefix)))


def read_clip_config(shapes: Shapes, heads: int | None, activation: str | None) -> TextConfig:
    """A tower under transformers' names. Towers as wide as H and bigG use the exact GELU unless they say otherwise."""
    vocabulary, width = _shape(shapes, "text_model.embeddings.token_embedding.weight", 2)
    projection = shapes.get("text_projection.weight")
    exact = activation == "gelu" if activation else width in (1024, 1280)
    return TextConfig(
        kind="clip",
        vocabulary=vocabulary,
        width=width,
        layers=_count(shapes, "text_model.encoder.layers"),
        heads=heads or _tower_heads(width),
        mlp=_shape(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        context_length=_shape(shapes, "text_model.embeddings.position_embedding.weight", 2)[0],
        activation="gelu" if exact else "quick_gelu",
        projection=projection[0] if projection else None,
    )


def read_open_clip_config(shapes: Shapes, heads: int | None, activation: str | None) -> TextConfig:
    """A tower under OpenCLIP's names."""
    vocabulary, width = _shape(shapes, "token_embedding.weight", 2)
    projection = shapes.get("text_projection")
    return TextConfig(
        kind="open_clip",
        vocabulary=vocabulary,
        width=width,
        layers=_count(shapes, "transformer.resblocks"),
        heads=heads or _tower_heads(width),
        mlp=_shape(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        context_length=_shape(shapes, "positional_embedding", 2)[0],
        activation="quick_gelu" if activation == "quick_gelu" else "gelu",
        projection=projection[1] if projection else None,
    )


def _tower_heads(width: int) -> int:
    if width % 64:
        raise WeightMismatch(
            f"a text tower {width} wide does not divide into heads of 64; say how many it has in the file's "
            "metadata, avila.text_heads"
        )
    return width // 64


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise WeightMismatch(f"{name} is missing; the file is truncated or of a kind not known here")
    if len(shape) != rank:
        raise WeightMismatch(f"{name} has shape {list(shape)}; expected {rank} dimensions")
    return shape


def _count(shapes: Shapes, prefix: str) -> int:
    """How many consecutive numbers, from 0, follow `prefix.` in the names."""
    numbered = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    found = {int(match[1]) for name in shapes if (match := numbered.match(name))}
    return next(n for n in range(len(found) + 1) if n not in found)
