"""Network configs read off tensor shapes. Names are ours, without the component's prefix; no torch, no file.

What comes back can be built and run: counts and channels are within reason, blocks divide into groups of 32, and each row
takes what the row before it gives. That the other tensors fit is seen when they are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..config import TextConfig, TinyVAEConfig, TransformerConfig, UNetBlockConfig, UNetConfig, VAEConfig
from ..errors import WeightMismatch
from .keys import count_numbers

Shapes = Mapping[str, tuple[int, ...]]
Counts = Mapping[str, int]
HeadsOf = Callable[[int], int]
"""Channels of an attention layer → its number of heads, which no shape tells."""

GROUPS = 32
MOST_CHANNELS = 2**18
MOST_ROWS = 64
MOST_TRANSFORMERS = 512
MOST_TINY_LAYERS = 64
"""Far above any released network (SDXL: 12 rows, 70 transformer blocks), and low enough that building stays quick."""


def read_unet_config(shapes: Shapes, heads_of: HeadsOf) -> UNetConfig:
    """The rows of a UNet. Raises WeightMismatch where a tensor that every UNet has is missing or misshapen."""
    conv_in = _shape(shapes, "input_blocks.0.0.weight", 4)
    conv_out = _shape(shapes, "out.2.weight", 4)
    embed = _shape(shapes, "time_embed.0.weight", 2)
    text = next((name for name in shapes if name.endswith("attn2.to_k.weight")), None)
    linear = any(name.endswith(".proj_in.weight") and len(shape) == 2 for name, shape in shapes.items())
    counts = count_numbers(shapes)
    inputs, outputs = counts.get("input_blocks", 0), counts.get("output_blocks", 0)
    if not outputs:
        raise WeightMismatch("the UNet has no output_blocks; the file is truncated or not a Stable Diffusion UNet")
    _limit(max(inputs, outputs), MOST_ROWS, "rows in the UNet")
    depths = sum(count for name, count in counts.items() if name.endswith(".transformer_blocks"))
    _limit(depths, MOST_TRANSFORMERS, "transformer blocks in the UNet")

    def row(prefix: str) -> UNetBlockConfig:
        return _read_row(shapes, counts, prefix, heads_of)

    config = UNetConfig(
        in_channels=conv_in[1],
        out_channels=conv_out[0],
        model_channels=embed[1],
        embed_channels=embed[0],
        context_channels=_shape(shapes, text, 2)[1] if text else 0,
        input_blocks=(
            UNetBlockConfig(in_channels=conv_in[1], out_channels=conv_in[0], residual=False),
            *(row(f"input_blocks.{index}") for index in range(1, inputs)),
        ),
        middle=row("middle_block") if "middle_block" in counts else None,
        output_blocks=tuple(row(f"output_blocks.{index}") for index in range(outputs)),
        linear_projection=linear,
        adm_channels=_second(shapes, "label_emb.0.0.weight"),
        guidance_channels=_second(shapes, "time_embed.cond_proj.weight"),
    )
    _check_flow(config, conv_out[1])
    return config


def _read_row(shapes: Shapes, counts: Counts, prefix: str, heads_of: HeadsOf) -> UNetBlockConfig:
    if f"{prefix}.0.op.weight" in shapes:
        down = _shape(shapes, f"{prefix}.0.op.weight", 4)
        return UNetBlockConfig(in_channels=down[1], out_channels=down[0], residual=False, resample="down")
    conv = _shape(shapes, f"{prefix}.0.in_layers.2.weight", 4)
    transformer = None
    depth = counts.get(f"{prefix}.1.transformer_blocks", 0)
    if depth:
        name = f"{prefix}.1.transformer_blocks.0.attn1.to_k.weight"
        own = name not in shapes or _shape(shapes, name, 2)[1] == conv[0]
        transformer = TransformerConfig(depth=depth, heads=heads_of(conv[0]), self_attention=own)
    up = any(f"{prefix}.{place}.conv.weight" in shapes for place in (1, 2))
    return UNetBlockConfig(
        in_channels=conv[1],
        out_channels=conv[0],
        transformer=transformer,
        resample="up" if up else "none",
    )


def _check_flow(config: UNetConfig, last: int) -> None:
    """Each row takes what the one before gives, and on the way up what its skip brings besides."""
    channels, skips = config.in_channels, []
    for index, row in enumerate(config.input_blocks):
        _check_row(f"input_blocks.{index}", row, channels, grouped=index > 0 and row.residual)
        channels = row.out_channels
        skips.append(channels)
    if config.middle is not None:
        _check_row("middle_block", config.middle, channels, grouped=True)
        channels = config.middle.out_channels
    if len(config.output_blocks) != len(skips):
        raise WeightMismatch(
            f"the UNet has {len(skips)} input_blocks and {len(config.output_blocks)} output_blocks; expected as many of "
            "each; the file is truncated or of a kind not known here"
        )
    for index, row in enumerate(config.output_blocks):
        _check_row(f"output_blocks.{index}", row, channels + skips.pop(), grouped=True)
        channels = row.out_channels
    if channels != last:
        raise WeightMismatch(f"out.2.weight takes {last} channels, the last of the output_blocks gives {channels}")
    if config.model_channels % 2:
        raise WeightMismatch(f"time_embed.0.weight takes {config.model_channels} channels; expected an even number")


def _check_row(name: str, row: UNetBlockConfig, given: int, grouped: bool) -> None:
    if row.in_channels != given:
        raise WeightMismatch(f"the UNet's {name} takes {row.in_channels} channels; {given} come to it")
    if grouped and (row.in_channels % GROUPS or row.out_channels % GROUPS):
        raise WeightMismatch(
            f"the UNet's {name} goes from {row.in_channels} to {row.out_channels} channels; expected multiples of "
            f"{GROUPS}, the number of groups of its norms"
        )


def read_vae_config(shapes: Shapes) -> VAEConfig:
    """The widths and depths of an autoencoder. Raises WeightMismatch where it has no decoder that can be read."""
    counts = count_numbers(shapes)
    decoder = _levels(shapes, counts, "decoder.up")
    encoder = _levels(shapes, counts, "encoder.down") or decoder
    if not decoder:
        raise WeightMismatch("the VAE's decoder has no levels (decoder.up.0…); the file is truncated")
    conv_in = _shape(shapes, "decoder.conv_in.weight", 4)
    moments = _shape(shapes, "encoder.conv_out.weight", 4)[0]
    quant = "post_quant_conv.weight" in shapes
    return VAEConfig(
        image_channels=_shape(shapes, "decoder.conv_out.weight", 4)[0],
        latent_channels=conv_in[1],
        embed_channels=_shape(shapes, "post_quant_conv.weight", 4)[1] if quant else conv_in[1],
        encoder_channels=encoder,
        decoder_channels=decoder,
        encoder_blocks=_blocks(counts, "encoder.down.0.block"),
        decoder_blocks=_blocks(counts, "decoder.up.0.block"),
        encoder_attention="encoder.mid.attn_1.q.weight" in shapes,
        decoder_attention="decoder.mid.attn_1.q.weight" in shapes,
        quant=quant,
        double_z=moments == 2 * conv_in[1],
    )


def _levels(shapes: Shapes, counts: Counts, prefix: str) -> tuple[int, ...]:
    levels = _limit(counts.get(prefix, 0), 8, "levels in the VAE")
    widths = tuple(_shape(shapes, f"{prefix}.{index}.block.0.conv2.weight", 4)[0] for index in range(levels))
    for width in widths:
        if width % GROUPS:
            raise WeightMismatch(
                f"the VAE's {prefix} is {width} channels wide; expected a multiple of {GROUPS}, the groups of its norms"
            )
    return widths


def _blocks(counts: Counts, prefix: str) -> int:
    return _limit(counts.get(prefix, 0), 16, "blocks in a level of the VAE")


def read_tiny_vae_config(shapes: Shapes) -> TinyVAEConfig:
    """The width and depths of a tiny autoencoder. Raises WeightMismatch where it has no decoder that can be read."""
    channels, latent = _shape(shapes, "decoder.layers.0.weight", 4)[:2]
    encoder, _ = _tiny_levels(shapes, "encoder")
    decoder, last = _tiny_levels(shapes, "decoder")
    if not decoder or len(encoder) not in (0, len(decoder)):
        raise WeightMismatch(
            f"the tiny autoencoder has {len(encoder)} levels in its encoder and {len(decoder)} in its decoder; expected as "
            "many in each, or no encoder; the file is truncated or of a kind not known here"
        )
    return TinyVAEConfig(
        image_channels=_shape(shapes, f"decoder.layers.{last}.weight", 4)[0],
        latent_channels=latent,
        channels=channels,
        encoder_blocks=encoder,
        decoder_blocks=decoder,
    )


def _tiny_levels(shapes: Shapes, half: str) -> tuple[tuple[int, ...], int]:
    """The residual blocks after each convolution of a half but the last, and the number of that: nothing follows it."""
    counts, last = [], 0
    for number in range(MOST_TINY_LAYERS):
        if f"{half}.layers.{number}.weight" in shapes:
            counts.append(0)
            last = number
        elif counts and f"{half}.layers.{number}.conv.0.weight" in shapes:
            counts[-1] += 1
    _limit(len(counts), 9, "convolutions outside of blocks in a tiny autoencoder")
    return tuple(counts[:-1]), last


def read_clip_config(shapes: Shapes, heads: int | None, activation: str | None) -> TextConfig:
    """A tower under transformers' names. Towers as wide as H and bigG use the exact GELU unless they say otherwise."""
    vocabulary, width = _shape(shapes, "text_model.embeddings.token_embedding.weight", 2)
    projection = "text_projection.weight" in shapes
    exact = activation == "gelu" if activation else width in (1024, 1280)
    return TextConfig(
        kind="clip",
        vocabulary=vocabulary,
        width=width,
        layers=_tower_layers(shapes, "text_model.encoder.layers"),
        heads=_tower_heads(width, heads),
        mlp=_shape(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        context_length=_shape(shapes, "text_model.embeddings.position_embedding.weight", 2)[0],
        activation="gelu" if exact else "quick_gelu",
        projection=_shape(shapes, "text_projection.weight", 2)[0] if projection else None,
    )


def read_open_clip_config(shapes: Shapes, heads: int | None, activation: str | None) -> TextConfig:
    """A tower under OpenCLIP's names."""
    vocabulary, width = _shape(shapes, "token_embedding.weight", 2)
    return TextConfig(
        kind="open_clip",
        vocabulary=vocabulary,
        width=width,
        layers=_tower_layers(shapes, "transformer.resblocks"),
        heads=_tower_heads(width, heads),
        mlp=_shape(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        context_length=_shape(shapes, "positional_embedding", 2)[0],
        activation="quick_gelu" if activation == "quick_gelu" else "gelu",
        projection=_second(shapes, "text_projection"),
    )


def _tower_layers(shapes: Shapes, prefix: str) -> int:
    layers = count_numbers(name for name in shapes if name.startswith(prefix)).get(prefix, 0)
    if not layers:
        raise WeightMismatch(f"the text encoder has no {prefix}.0; the file is truncated")
    return _limit(layers, 64, "layers in the text encoder")


def _tower_heads(width: int, told: int | None) -> int:
    if told is None and width % 64 == 0:
        return width // 64
    if told is None or told < 1 or width % told:
        raise WeightMismatch(
            f"a text tower {width} wide does not divide into {told or 'heads of 64'}{' heads' if told else ''}; say how "
            "many it has in the file's metadata, avila.text_heads"
        )
    return told


def _second(shapes: Shapes, name: str) -> int | None:
    """The second size of a matrix that need not be there."""
    return _shape(shapes, name, 2)[1] if name in shapes else None


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise WeightMismatch(f"{name} is missing; the file is truncated or of a kind not known here")
    if len(shape) != rank:
        raise WeightMismatch(f"{name} has shape {list(shape)}; expected {rank} dimensions")
    if not all(0 < size <= MOST_CHANNELS for size in shape):
        raise WeightMismatch(f"{name} has shape {list(shape)}; expected sizes from 1 to {MOST_CHANNELS:,}")
    return shape


def _limit(count: int, most: int, what: str) -> int:
    if count > most:
        raise WeightMismatch(f"found {count:,} {what}; expected at most {most}, far more than any released model has")
    return count
