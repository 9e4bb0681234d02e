"""What a file is: names, shapes and metadata → `ModelSpec`, with a reason for each decision. No torch.

Shapes tell the architecture (`shapes`). What they cannot tell, such as heads and sizes, comes from the file's own `avila.*`
metadata, a diffusers folder's configs, standard metadata, and the family's habit; the training noise from `noise`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ..config import (
    FAMILIES,
    VARIANT_OF_CHANNELS,
    Defaults,
    Family,
    ModelSpec,
    NoiseConfig,
    TextConfig,
    TextEncoderSpec,
    TinyVAEConfig,
    UNetConfig,
    VAEConfig,
    Variant,
)
from ..errors import MissingPart, RequestError, Unsupported, WeightMismatch
from ..sampling.names import resolve_sampler
from .noise import check_prediction, read_latent, read_noise
from .parts import UNET, VAE, Parts, slot_of
from .shapes import read_clip_config, read_open_clip_config, read_tiny_vae_config, read_unet_config, read_vae_config

SCALED = (".scale_weight", ".weight_scale", ".scale_input", "scaled_fp8", ".comfy_quant", ".absmax", ".qweight")
"""Endings of the tensors that quantized weights must be multiplied with."""
CLIP_TOKENS = 49408
DIFFUSERS_SETTINGS: dict[str, dict[str, Any]] = {
    "unet": {
        "act_fn": "silu",
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "center_input_sample": False,
        "dual_cross_attention": False,
        "resnet_time_scale_shift": "default",
        "addition_embed_type": ("text_time",),
        "encoder_hid_dim_type": (),
    },
    "vae": {"act_fn": "silu", "norm_num_groups": 32, "shift_factor": 0},
    "tiny vae": {
        "act_fn": "relu",
        "upsample_fn": "nearest",
        "upsampling_scaling_factor": 2,
        "scaling_factor": 1,
        "shift_factor": 0,
    },
}
"""Settings of diffusers configs that no shape tells and that our networks have in one way only."""

TowerRead = tuple[str, TextEncoderSpec]
VAERead = VAEConfig | TinyVAEConfig | None


def detect(parts: Parts, prediction: str | None = None) -> tuple[ModelSpec, tuple[str, ...]]:
    """The model's spec and the prefix of each of its text towers, in the order the model uses them.

    prediction overrules what the file says. Decisions go into `parts.report`.
    Raises MissingPart without VAE or text encoder, WeightMismatch or Unsupported for networks that cannot be run.
    """
    unet, family = read_unet(parts)
    towers = read_towers(parts, family)
    return build_spec(parts, unet, family, towers, read_vae(parts), prediction), tuple(prefix for prefix, _ in towers)


def build_spec(
    parts: Parts,
    unet: UNetConfig,
    family: Family,
    towers: list[TowerRead],
    vae: VAERead,
    prediction: str | None,
) -> ModelSpec:
    """Put together what was read; towers and VAE must be there."""
    vae = _check_complete(parts, family, towers, vae)
    check_prediction(prediction)
    noise = read_noise(parts, family, prediction)
    pooled = sum(spec.config.projection or spec.config.width for _, spec in towers if spec.pooled)
    numbers = {"none": 0, "sizes": 6, "aesthetic": 5}[family.adm]
    size_channels = max((unet.adm_channels or 0) - pooled, 0) // numbers if numbers else 256
    _check_contexts(unet, towers, pooled + numbers * size_channels)
    if vae.embed_channels != unet.out_channels:
        raise WeightMismatch(
            f"the VAE's latents have {vae.embed_channels} channels, the UNet gives {unet.out_channels}; give the VAE of "
            "this family with --vae"
        )
    latent = read_latent(parts, family, vae.embed_channels)
    spec = ModelSpec(
        family=family.name,
        variant=_variant(unet),
        unet=unet,
        vae=vae,
        text=tuple(spec for _, spec in towers),
        noise=noise,
        latent=latent.of_tiny(family.latent_scale) if isinstance(vae, TinyVAEConfig) else latent,
        size=read_size(parts, family, noise),
        adm=family.adm,
        size_channels=size_channels,
        fixed_size=read_fixed_size(parts),
        defaults=read_defaults(parts),
    )
    parts.report.prediction = noise.prediction
    if unet.guidance_channels:
        reason = "time_embed.cond_proj is there: an LCM-type UNet that is told the scale"
        parts.report.decide("guidance", "embedded", reason)
    return spec


def _check_complete(parts: Parts, family: Family, towers: list[TowerRead], vae: VAERead) -> VAEConfig | TinyVAEConfig:
    """The VAE, where nothing is missing. Raises MissingPart with all that is."""
    if parts.absent:
        options = {"--vae" if name == "vae" else "--text-encoder" for name in parts.absent}
        raise MissingPart(
            f"{parts.path.name} has no {' and no '.join(f'{name}/' for name in parts.absent)}, which its model_index.json "
            f"names; download what is missing, or give it with {' and '.join(sorted(options))} FILE"
        )
    wanted = 2 if family.name == "sdxl" else 1
    missing, give = [], []
    if len(towers) < wanted:
        one = (
            f"one of the two text encoders of {family.title} ({_widths(towers)} wide)" if towers else "no text encoder"
        )
        missing.append(one)
        give.append("--text-encoder FILE" + (" --text-encoder FILE" if wanted == 2 else ""))
    if vae is None:
        missing.append("no VAE")
        give.append("--vae FILE")
    if vae is None or missing:
        needed = " (both)" if wanted == 2 and len(towers) < 2 else ""
        raise MissingPart(
            f"{parts.path.name} has {' and '.join(missing)}; give what is missing with {' '.join(give)}{needed}"
        )
    return vae


def _widths(towers: list[TowerRead]) -> str:
    return " and ".join(str(spec.config.width) for _, spec in towers)


def _check_contexts(unet: UNetConfig, towers: list[TowerRead], vector: int) -> None:
    width = sum(spec.config.width for _, spec in towers)
    if width != unet.context_channels:
        together = f"are {_widths(towers)} wide" if len(towers) > 1 else f"is {width} wide"
        raise WeightMismatch(
            f"the text encoder{'s' if len(towers) > 1 else ''} {together}, the UNet's cross-attention wants "
            f"{unet.context_channels}; give the text encoder of this family with --text-encoder"
        )
    if (unet.adm_channels or 0) != vector:
        raise WeightMismatch(
            f"the UNet's vector input is {unet.adm_channels or 0} wide, the text encoders and sizes give {vector}; give "
            "the text encoder of this family with --text-encoder"
        )


def _variant(unet: UNetConfig) -> Variant:
    """By the channels that come besides the latent. Raises Unsupported for upscalers and others."""
    extra = unet.in_channels - unet.out_channels
    variant = VARIANT_OF_CHANNELS.get(4 + extra)
    if variant is None:
        raise Unsupported(
            f"the UNet takes {unet.in_channels} channels and gives {unet.out_channels}; there are pipelines for "
            f"{', '.join(f'{kind} ({channels})' for channels, kind in VARIANT_OF_CHANNELS.items())}"
        )
    return variant


def read_unet(parts: Parts) -> tuple[UNetConfig, Family]:
    """The UNet's config and its family. Raises Unsupported for kin that there is no pipeline for."""
    scaled = next((name for name in parts.places if name.endswith(SCALED)), None)
    if scaled is not None:
        raise Unsupported(
            f"the weights are quantized and to be multiplied by tensors such as {parts.label(parts.places[scaled])}; "
            "only plain floats are read; take the model's F16, BF16 or plain F8 file"
        )
    _check_settings(parts)
    shapes = parts.shapes(UNET)
    config = read_unet_config(shapes, lambda channels: 1)
    family, reason = _family(parts, config)
    config = read_unet_config(shapes, _heads_rule(parts, family))
    parts.report.decide("family", f"{family.name}: {family.title}", reason)
    parts.report.family = family.name
    variant = _variant(config)
    parts.report.decide("variant", variant, f"the UNet takes {config.in_channels} channels")
    parts.report.variant = variant
    return config, family


def _check_settings(parts: Parts) -> None:
    """Raises Unsupported where a diffusers config asks for what our networks do not do."""
    for component, settings in DIFFUSERS_SETTINGS.items():
        config = parts.configs.get(component, {})
        for key, usual in settings.items():
            allowed = usual if isinstance(usual, tuple) else (usual,)
            if config.get(key) is not None and config[key] not in allowed:
                part = component.removeprefix("tiny ")
                raise Unsupported(
                    f"{part}/config.json says {key} {config[key]!r}; there is no network here but for "
                    f"{' or '.join(map(repr, allowed)) or 'none'}"
                )


def _family(parts: Parts, config: UNetConfig) -> tuple[Family, str]:
    named = parts.metadata.get("avila.family")
    if named in FAMILIES:
        return FAMILIES[named], "metadata avila.family"
    context, adm = config.context_channels, config.adm_channels
    if context == 1024 and adm is not None:
        raise Unsupported(
            "this is an SD 2 unCLIP checkpoint (pictures as prompts), for which there is no pipeline here; take SD 2 itself"
        )
    told = f"cross-attention over {context} channels"
    if adm is not None:
        two = config.context_channels == 2048 or len(parts.tower_prefixes()) == 2
        name = "sdxl" if two else "sdxl_refiner"
        return FAMILIES[name], f"{told}, vector input of {adm}"
    if context == 768 or (context != 1024 and not config.linear_projection):
        return FAMILIES["sd1"], told
    return FAMILIES["sd2"], told


def _heads_rule(parts: Parts, family: Family) -> Callable[[int], int]:
    """Attention heads by channels: avila.* metadata, a diffusers config, else the family's rule."""
    heads = _number(parts, "avila.unet_heads") or family.heads
    size = _number(parts, "avila.unet_head_channels") or (
        None if "avila.unet_heads" in parts.metadata else family.head_channels
    )
    listed = _diffusers_heads(parts)

    def heads_of(channels: int) -> int:
        count = listed.get(channels) or (channels // size if size and channels % size == 0 else heads)
        if not count or channels % count:
            raise WeightMismatch(
                f"how {channels} channels divide into attention heads cannot be told; say it in the file's metadata, "
                "avila.unet_heads or avila.unet_head_channels"
            )
        return count

    return heads_of


def _diffusers_heads(parts: Parts) -> dict[int, int]:
    """Channels → heads of a diffusers config, whose `attention_head_dim` means the number of heads in these families."""
    config = parts.configs.get("unet", {})
    channels = config.get("block_out_channels")
    heads = config.get("num_attention_heads") or config.get("attention_head_dim")
    if not isinstance(channels, list) or heads is None:
        return {}
    listed = heads if isinstance(heads, list) else [heads] * len(channels)
    table: dict[int, int] = {}
    for width, count in zip(channels, listed, strict=False):
        if type(width) is not int or type(count) is not int or count < 1 or table.setdefault(width, count) != count:
            raise Unsupported(
                f"unet/config.json says heads {heads!r} for channels {channels!r}; expected a number for each, the same "
                "where the channels are"
            )
    return table


def _number(parts: Parts, key: str) -> int | None:
    return _whole(parts.metadata.get(key, ""))


def _whole(text: str) -> int | None:
    """A whole number above 0 of at most six digits, None for anything else."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= 6 and int(text) > 0 else None


def read_towers(parts: Parts, family: Family) -> list[TowerRead]:
    """The text towers and what the family takes from each. Raises WeightMismatch for towers that cannot be built."""
    prefixes = parts.tower_prefixes()
    if len(prefixes) > 2:
        raise WeightMismatch(
            f"found {len(prefixes):,} text encoders ({', '.join(prefixes[:3])}…); expected at most two; give only those "
            "of this family"
        )
    towers = []
    for index, prefix in enumerate(prefixes):
        config = _read_tower(parts, prefix, index)
        last = index == len(prefixes) - 1
        if family.adm != "none":
            # SDXL and the refiner: penultimate layer, no final norm; the last tower's pooled projection joins the vector.
            spec = TextEncoderSpec(
                config=config, skip=2, final_norm=False, clip_skip=False, pooled=last, pad=0 if last else 49407
            )
        elif family.name == "sd2":
            # diffusers cuts the unused last of 24 layers off, so its last is the original's penultimate.
            whole = config.kind == "open_clip" or config.layers >= 24
            spec = TextEncoderSpec(config=config, skip=2 if whole else 1, clip_skip=False, pad=0)
        else:
            spec = TextEncoderSpec(config=config)
        towers.append((prefix, spec))
        parts.report.decide(
            "text encoder",
            f"{config.kind}, {config.width} wide, {config.layers} layers, {config.heads} heads, {config.activation}",
            f"{'penultimate' if spec.skip == 2 else 'last'} layer{', final norm' if spec.final_norm else ''}"
            f"{', pooled' if spec.pooled else ''}",
        )
    return towers


def _read_tower(parts: Parts, prefix: str, index: int) -> TextConfig:
    """The config of one tower: shapes, and heads and activation where the metadata or a config.json say them."""
    shapes = parts.shapes(prefix)
    settings = parts.configs.get(slot_of(prefix), {})
    told = parts.metadata.get("avila.text_heads", "").split(",")
    heads = _whole(told[index]) if index < len(told) else None
    if heads is None and settings.get("num_attention_heads") is not None:
        heads = settings["num_attention_heads"]
        if type(heads) is not int:
            raise WeightMismatch(
                f"a text encoder's config.json says {heads!r} attention heads; expected a whole number"
            )
    activation = parts.metadata.get("avila.text_activation") or settings.get("hidden_act")
    if activation not in (None, "gelu", "quick_gelu"):
        raise Unsupported(f"a text encoder uses the activation {activation!r}; gelu and quick_gelu are run")
    ours = any(name.startswith("text_model.") for name in shapes)
    config = (read_clip_config if ours else read_open_clip_config)(shapes, heads, activation)
    if config.vocabulary < CLIP_TOKENS or config.context_length < 77:
        raise WeightMismatch(
            f"a text encoder knows {config.vocabulary:,} tokens in {config.context_length} places; CLIP's have "
            f"{CLIP_TOKENS:,} in 77; give CLIP's with --text-encoder"
        )
    return config


def read_vae(parts: Parts) -> VAERead:
    """The VAE's config, None where there is none."""
    shapes = parts.shapes(VAE)
    if "decoder.layers.0.weight" in shapes:
        tiny = read_tiny_vae_config(shapes)
        halves = "encoder and decoder" if tiny.encoder_blocks else "a decoder alone"
        parts.report.decide(
            "VAE", f"tiny (TAESD): {halves}", "its latents are the UNet's own, without the latent scale"
        )
        return tiny
    if "decoder.conv_in.weight" not in shapes:
        return None
    return read_vae_config(shapes)


def read_size(parts: Parts, family: Family, noise: NoiseConfig) -> int:
    """Pixels along a side it was trained at: the default size of its pictures."""
    size, reason = family.size, f"the habit of {family.name}"
    if family.name == "sd2" and noise.prediction == "v":
        size, reason = 768, "SD 2 models that predict v are trained at 768"
    sample = parts.configs.get("unet", {}).get("sample_size")
    if type(sample) is int and 8 <= sample <= 256:
        size, reason = 8 * sample, "sample_size of the UNet's config"
    told = parts.metadata.get("modelspec.resolution", "").lower().split("x")
    sides = [_whole(side) or 0 for side in told]
    if len(sides) == 2 and all(64 <= side <= 4096 for side in sides):
        size, reason = max(sides), "metadata modelspec.resolution"
    own = _number(parts, "avila.size")
    if own is not None and 64 <= own <= 4096:
        size, reason = own, "metadata avila.size"
    size -= size % 8
    parts.report.decide("size", f"{size}x{size}", reason)
    return size


def read_fixed_size(parts: Parts) -> bool:
    """Whether the model can draw at its own size only; `avila.fixed_size` says so."""
    fixed = parts.metadata.get("avila.fixed_size", "").strip().lower() in ("true", "1")
    if fixed:
        parts.report.decide("other sizes", "drawn about its own size and resized", "metadata avila.fixed_size")
    return fixed


def read_defaults(parts: Parts) -> Defaults:
    """What `avila.default_*` recommends to requests; a value that no request can have is passed over."""
    size, steps = (_number(parts, f"avila.default_{name}") or 0 for name in ("size", "steps"))
    sampler = parts.metadata.get("avila.default_sampler", "")
    try:
        resolve_sampler(sampler)
    except RequestError:
        sampler = ""
    try:
        guidance = float(parts.metadata.get("avila.default_guidance", "nan"))
    except ValueError:
        guidance = math.nan
    defaults = Defaults(
        size=size - size % 8 if 64 <= size <= 4096 else None,
        steps=steps if 1 <= steps <= 1000 else None,
        guidance_scale=guidance if 0 <= guidance <= 100 else None,
        sampler=sampler or None,
    )
    said = {name: value for name, value in asdict(defaults).items() if value is not None}
    if said:
        told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in said.items())
        parts.report.decide("defaults", told, "metadata avila.default_*")
    return defaults
