"""What a file is: names, shapes and metadata → `ModelSpec`, with a reason for each decision. No torch.

Shapes tell the architecture (`shapes`). What they cannot tell comes, in this order, from the caller, the file's own
`avila.*` metadata, a diffusers folder's configs, standard metadata, marker tensors, and the family's habit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from ..config import (
    FAMILIES,
    VARIANT_OF_CHANNELS,
    Family,
    LatentConfig,
    ModelSpec,
    NoiseConfig,
    Prediction,
    TextEncoderSpec,
    UNetConfig,
    VAEConfig,
)
from ..errors import MissingPart, RequestError, Unsupported, WeightMismatch
from .parts import TEXT, TEXT_XL, UNET, VAE, Parts
from .safetensors import read_small
from .shapes import read_clip_config, read_open_clip_config, read_unet_config, read_vae_config

PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v",
    "v_prediction": "v",
    "v-prediction": "v",
    "vpred": "v",
    "edm": "edm",
}
V_NORM = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
V_NORM_DEVIATION = 0.09
"""Released SD 2 models that predict v have a standard deviation above this in that bias, those of epsilon below."""

TowerRead = tuple[str, TextEncoderSpec]


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
    vae: VAEConfig | None,
    prediction: str | None,
) -> ModelSpec:
    """Put together what was read; towers and VAE must be there."""
    report = parts.report
    wanted = {"sdxl": 2}.get(family.name, 1)
    if len(towers) < wanted:
        which = (
            "neither of its two text encoders" if wanted == 2 and not towers else "a text encoder less than it needs"
        )
        found = "no text encoder" if wanted == 1 else which
        raise MissingPart(f"{Path(report.source).name} has {found}; give it with --text-encoder FILE")
    if vae is None:
        raise MissingPart(f"{Path(report.source).name} has no VAE; give it with --vae FILE")
    noise = read_noise(parts, family, prediction)
    pooled = sum(spec.config.projection or spec.config.width for _, spec in towers if spec.pooled)
    numbers = {"none": 0, "sizes": 6, "aesthetic": 5}[family.adm]
    size_channels = ((unet.adm_channels or 0) - pooled) // numbers if numbers else 256
    _check_contexts(unet, towers, pooled + numbers * size_channels)
    spec = ModelSpec(
        family=family.name,
        variant=VARIANT_OF_CHANNELS.get(unet.in_channels, "base")
        if unet.in_channels != vae.latent_channels
        else "base",
        unet=unet,
        vae=vae,
        text=tuple(spec for _, spec in towers),
        noise=noise,
        latent=read_latent(parts, family),
        size=read_size(parts, family, noise),
        adm=family.adm,
        size_channels=size_channels,
    )
    report.family, report.variant, report.prediction = spec.family, spec.variant, noise.prediction
    if unet.guidance_channels:
        report.decide("guidance", "embedded", "time_embed.cond_proj is there: an LCM-type UNet that is told the scale")
    return spec


def _check_contexts(unet: UNetConfig, towers: list[TowerRead], vector: int) -> None:
    width = sum(spec.config.width for _, spec in towers)
    if width != unet.context_channels:
        raise WeightMismatch(
            f"the text encoders are {width} wide together, the UNet's cross-attention wants {unet.context_channels}; "
            "give the text encoder of this family with --text-encoder"
        )
    if unet.adm_channels is not None and vector != unet.adm_channels:
        raise WeightMismatch(f"the UNet's vector input is {unet.adm_channels} wide, the text encoders give {vector}")


def read_unet(parts: Parts) -> tuple[UNetConfig, Family]:
    """The UNet's config and its family. Raises Unsupported for kin that there is no pipeline for."""
    shapes = parts.shapes(UNET)
    config = read_unet_config(shapes, lambda channels: 1)
    family, reason = _family(parts, config)
    config = read_unet_config(shapes, _heads_rule(parts, family))
    parts.report.decide("family", f"{family.name}: {family.title}", reason)
    variant = VARIANT_OF_CHANNELS.get(config.in_channels, "base")
    parts.report.decide("variant", variant, f"the UNet takes {config.in_channels} channels")
    parts.report.family, parts.report.variant = family.name, variant
    return config, family


def _family(parts: Parts, config: UNetConfig) -> tuple[Family, str]:
    named = parts.metadata.get("avila.family")
    if named in FAMILIES:
        return FAMILIES[named], "metadata avila.family"
    context, adm = config.context_channels, config.adm_channels
    if context == 1024 and adm is not None:
        raise Unsupported(
            "this is an SD 2 unCLIP checkpoint (pictures as prompts), for which there is no pipeline here"
        )
    told = f"cross-attention over {context} channels"
    if adm is not None:
        two = config.context_channels == 2048 or len(_tower_prefixes(parts)) == 2
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
    heads = heads if isinstance(heads, list) else [heads] * len(channels)
    return {int(width): int(count) for width, count in zip(channels, heads, strict=False)}


def _number(parts: Parts, key: str) -> int | None:
    value = parts.metadata.get(key)
    return int(value) if value and value.isdecimal() and int(value) > 0 else None


def _tower_prefixes(parts: Parts) -> list[str]:
    """Where the text towers are, in order: `cond_stage_model.transformer.`, `conditioner.embedders.1.model.` …"""
    marks = ("text_model.embeddings.token_embedding.weight", "token_embedding.weight")
    found = set()
    for name in parts.places:
        if name.startswith((TEXT, TEXT_XL)):
            for mark in marks:
                if name.endswith("." + mark):
                    found.add(name.removesuffix(mark))
                    break
    return sorted(found)


def read_towers(parts: Parts, family: Family) -> list[TowerRead]:
    """The text towers and what the family takes from each."""
    towers = []
    prefixes = _tower_prefixes(parts)
    heads = [int(value) for value in parts.metadata.get("avila.text_heads", "").split(",") if value.strip().isdecimal()]
    for index, prefix in enumerate(prefixes):
        shapes = parts.shapes(prefix)
        settings = parts.configs.get(prefix.removesuffix("transformer.").removesuffix("model."), {})
        count = heads[index] if index < len(heads) else settings.get("num_attention_heads")
        activation = parts.metadata.get("avila.text_activation") or settings.get("hidden_act")
        read = read_clip_config if "text_model.final_layer_norm.weight" in shapes else read_open_clip_config
        config = read(shapes, count, activation)
        last = index == len(prefixes) - 1
        if family.adm != "none":
            # SDXL and the refiner: penultimate layer, no final norm; the last tower's pooled projection joins the vector.
            spec = TextEncoderSpec(
                config=config, skip=2, final_norm=False, clip_skip=False, pooled=last, pad=0 if last else 49407
            )
        elif family.name == "sd2":
            # diffusers cuts the unused last layer off, so its last is the original's penultimate.
            spec = TextEncoderSpec(config=config, skip=1 if config.kind == "clip" else 2, clip_skip=False, pad=0)
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


def read_vae(parts: Parts) -> VAEConfig | None:
    """The VAE's config, None where there is none."""
    shapes = parts.shapes(VAE)
    if "decoder.conv_in.weight" not in shapes:
        return None
    return read_vae_config(shapes)


def read_latent(parts: Parts, family: Family) -> LatentConfig:
    """Scale of the latents, and their mean and deviation where the file has them (Playground 2.5)."""
    scale, reason = family.latent_scale, f"the habit of {family.name}"
    told = parts.configs.get("vae", {}).get("scaling_factor")
    if isinstance(told, int | float) and told > 0:
        scale, reason = float(told), "scaling_factor of the VAE's config"
    with suppress(KeyError, ValueError):
        scale, reason = float(parts.metadata["avila.latent_scale"]), "metadata avila.latent_scale"
    parts.report.decide("latent scale", f"{scale:g}", reason)
    if "edm_mean" in parts.places and "edm_std" in parts.places:
        # Playground 2.5 standardises per channel and scales by its sigma_data of 0.5 instead.
        small = _small(parts, ("edm_mean", "edm_std"))
        mean, std = (tuple(float(v) for v in small[name].reshape(-1)) for name in ("edm_mean", "edm_std"))
        parts.report.decide("latent mean", "per channel", "edm_mean and edm_std are in the file")
        return LatentConfig(scale=0.5, mean=mean, std=std)
    return LatentConfig(scale=scale)


def read_noise(parts: Parts, family: Family, prediction: str | None) -> NoiseConfig:
    """What the network predicts, and the noise it was trained on."""
    kind, reason = _prediction(parts, family, prediction)
    parts.report.decide("prediction", kind, reason)
    noise = NoiseConfig(prediction=kind)
    scheduler = parts.configs.get("scheduler", {})
    if isinstance(scheduler.get("beta_start"), float) and isinstance(scheduler.get("beta_end"), float):
        linear = scheduler.get("beta_schedule") == "linear"
        noise = replace(
            noise,
            beta_start=scheduler["beta_start"],
            beta_end=scheduler["beta_end"],
            beta_schedule="linear" if linear else "scaled_linear",
            steps=int(scheduler.get("num_train_timesteps", 1000)),
        )
    if isinstance(scheduler.get("trained_betas"), list):
        betas = np.asarray(scheduler["trained_betas"], dtype=np.float64)
        noise = replace(noise, alphas_cumprod=tuple(np.cumprod(1.0 - betas)), steps=len(betas))
        parts.report.decide("noise schedule", "trained_betas", "the scheduler's config brings its own")
    if kind == "edm" or "edm_vpred.sigma_max" in parts.places:
        return _continuous(parts, noise)
    noise = replace(noise, zero_terminal_snr=_zero_terminal_snr(parts))
    return _own_schedule(parts, noise)


def _prediction(parts: Parts, family: Family, asked: str | None) -> tuple[Prediction, str]:
    if asked is not None:
        if asked.lower() not in PREDICTIONS:
            raise RequestError(f"prediction {asked!r} is unknown; it is epsilon, v or edm")
        return PREDICTIONS[asked.lower()], "asked for"
    for key in ("avila.prediction", "modelspec.prediction_type", "modelspec.predict_key", "prediction_type"):
        told = parts.metadata.get(key, "").lower()
        if told in PREDICTIONS:
            return PREDICTIONS[told], f"metadata {key}"
    if parts.metadata.get("ss_v_parameterization", "").lower() == "true":
        return "v", "metadata ss_v_parameterization"
    told = str(parts.configs.get("scheduler", {}).get("prediction_type", "")).lower()
    if told in PREDICTIONS:
        return PREDICTIONS[told], "prediction_type of the scheduler's config"
    for marker, kind in (("edm_mean", "edm"), ("edm_vpred.sigma_max", "v"), ("v_pred", "v")):
        if marker in parts.places:
            return cast(Prediction, kind), f"the marker tensor {marker}"
    name = UNET + V_NORM
    if family.name == "sd2" and name in parts.places:
        deviation = float(np.std(_small(parts, (name,))[name]))
        kind = "v" if deviation > V_NORM_DEVIATION else "epsilon"
        return cast(
            Prediction, kind
        ), f"{V_NORM} deviates by {deviation:.3f}; SD 2 models of v by more than {V_NORM_DEVIATION}"
    return "epsilon", f"the habit of {family.name}; nothing in the file says otherwise"


def _zero_terminal_snr(parts: Parts) -> bool:
    told = parts.configs.get("scheduler", {}).get("rescale_betas_zero_snr")
    for found, reason in (
        ("ztsnr" in parts.places, "the marker tensor ztsnr"),
        (parts.metadata.get("ss_zero_terminal_snr", "").lower() == "true", "metadata ss_zero_terminal_snr"),
        (told is True, "rescale_betas_zero_snr of the scheduler's config"),
    ):
        if found:
            parts.report.decide("noise schedule", "zero terminal SNR", reason)
            return True
    return False


def _continuous(parts: Parts, noise: NoiseConfig) -> NoiseConfig:
    """EDM-type models: Playground 2.5 (prediction edm) and CosXL (v with sigma_data 1)."""
    if "edm_vpred.sigma_max" in parts.places:
        names = [name for name in ("edm_vpred.sigma_max", "edm_vpred.sigma_min") if name in parts.places]
        small = {name: float(value.reshape(-1)[0]) for name, value in _small(parts, names).items()}
        parts.report.decide("noise schedule", "continuous sigmas", "the marker tensor edm_vpred.sigma_max")
        return replace(
            noise,
            continuous=True,
            sigma_data=1.0,
            edm_sigma_max=small["edm_vpred.sigma_max"],
            edm_sigma_min=small.get("edm_vpred.sigma_min", 0.002),
        )
    parts.report.decide("noise schedule", "continuous sigmas, 0.002 to 80", "EDM prediction")
    return replace(noise, continuous=True, sigma_data=0.5, edm_sigma_min=0.002, edm_sigma_max=80.0)


def _own_schedule(parts: Parts, noise: NoiseConfig) -> NoiseConfig:
    """The file's own alphas_cumprod, where it has them and they are not the usual ones."""
    if "alphas_cumprod" not in parts.places or noise.zero_terminal_snr:
        return noise
    found = _small(parts, ("alphas_cumprod",))["alphas_cumprod"].astype(np.float64).reshape(-1)
    root = np.linspace(math.sqrt(noise.beta_start), math.sqrt(noise.beta_end), noise.steps, dtype=np.float64)
    usual = np.cumprod(1.0 - root**2)
    if found.shape == usual.shape and np.allclose(found, usual, rtol=2e-3, atol=1e-5):  # half precision rounds them
        return noise
    if (
        len(found) < 2
        or not np.all(np.isfinite(found))
        or not np.all((found > 0) & (found <= 1))
        or np.any(np.diff(found) > 0)
    ):
        parts.report.ignored["alphas_cumprod"] = "not a noise schedule: it must fall from 1 towards 0"
        return noise
    parts.report.decide("noise schedule", "the file's own", "its alphas_cumprod differ from the usual ones")
    return replace(noise, alphas_cumprod=tuple(found.tolist()), steps=len(found))


def read_size(parts: Parts, family: Family, noise: NoiseConfig) -> int:
    """Pixels along a side it was trained at: the default size of its pictures."""
    size, reason = family.size, f"the habit of {family.name}"
    if family.name == "sd2" and noise.prediction == "v":
        size, reason = 768, "SD 2 models that predict v are trained at 768"
    sample = parts.configs.get("unet", {}).get("sample_size")
    if isinstance(sample, int) and 8 <= sample <= 256:
        size, reason = 8 * sample, "sample_size of the UNet's config"
    told = parts.metadata.get("modelspec.resolution", "").lower().split("x")
    if len(told) == 2 and all(side.strip().isdecimal() and 64 <= int(side) <= 4096 for side in told):
        size, reason = max(int(side) for side in told), "metadata modelspec.resolution"
    own = _number(parts, "avila.size")
    if own is not None:
        size, reason = own, "metadata avila.size"
    size = max(size - size % 8, 64)
    parts.report.decide("size", f"{size}x{size}", reason)
    return size


def _small(parts: Parts, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Named small tensors, by our names; they may be in different files."""
    found = {}
    for name in names:
        place = parts.places[name]
        found[name] = read_small(place.header, [place.entry.name])[place.entry.name]
    return found
