"""What a network predicts, and the noise and the latents it was trained on: none of it is told by shapes. No torch.

Told by, in this order: the caller, the file's `avila.*` metadata, its standard metadata (SAI's modelspec, kohya's ss_*), a
diffusers folder's scheduler config, marker tensors, and at last the family's habit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..config import Family, LatentConfig, NoiseConfig, Prediction
from ..errors import RequestError, Unsupported
from .header import FLOATS
from .parts import UNET, Parts
from .safetensors import read_small

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
MOST_BYTES = 16 * 1024
"""Of one tensor that is read to detect something; a schedule of 1,000 float64 takes 8,000."""
ROUNDING = {"BF16": 4e-3, "F8_E4M3": 0.07, "F8_E5M2": 0.13, "F8_E4M3FNUZ": 0.07, "F8_E5M2FNUZ": 0.13}
"""How far, relative, rounding to a dtype may move a value of the schedule; 2e-3 in all others."""


def read_noise(parts: Parts, family: Family, prediction: str | None) -> NoiseConfig:
    """What the network predicts, and the noise it was trained on."""
    kind, reason = _prediction(parts, family, prediction)
    parts.report.decide("prediction", kind, reason)
    noise = _scheduler_noise(parts, NoiseConfig(prediction=kind))
    if kind == "edm" or noise.continuous or "edm_vpred.sigma_max" in parts.places:
        return _continuous(parts, noise)
    noise = replace(noise, zero_terminal_snr=_zero_terminal_snr(parts))
    return _own_schedule(parts, noise)


def check_prediction(asked: str | None) -> None:
    """Raises RequestError for a prediction that there is none of."""
    if asked is not None and asked.lower() not in PREDICTIONS:
        raise RequestError(f"prediction {asked!r} is unknown; it is epsilon, v or edm")


def _prediction(parts: Parts, family: Family, asked: str | None) -> tuple[Prediction, str]:
    check_prediction(asked)
    if asked is not None:
        return PREDICTIONS[asked.lower()], "asked for"
    for key in ("avila.prediction", "modelspec.prediction_type", "modelspec.predict_key", "prediction_type"):
        told = parts.metadata.get(key, "").strip().lower()
        if told in PREDICTIONS:
            return PREDICTIONS[told], f"metadata {key}"
    if parts.metadata.get("ss_v_parameterization", "").lower() == "true":
        return "v", "metadata ss_v_parameterization"
    scheduler = parts.configs.get("scheduler", {})
    told = str(scheduler.get("prediction_type", "")).lower()
    if told == "sample":
        raise Unsupported(
            "the scheduler's config says that this model predicts samples; only epsilon, v and edm are run"
        )
    if told in PREDICTIONS:
        if _is_edm(scheduler) and PREDICTIONS[told] == "epsilon":
            return "edm", f"{scheduler['_class_name']} of the scheduler's config"
        return PREDICTIONS[told], "prediction_type of the scheduler's config"
    for marker, kind in (("edm_mean", "edm"), ("edm_vpred.sigma_max", "v"), ("v_pred", "v")):
        if marker in parts.places:
            return cast(Prediction, kind), f"the marker tensor {marker}"
    if family.name == "sd2" and (deviation := _v_deviation(parts)) is not None:
        kind = "v" if deviation > V_NORM_DEVIATION else "epsilon"
        reason = f"{V_NORM} deviates by {deviation:.3f}; SD 2 models of v by more than {V_NORM_DEVIATION}"
        return cast(Prediction, kind), reason
    return "epsilon", f"the habit of {family.name}; nothing in the file says otherwise"


def _v_deviation(parts: Parts) -> float | None:
    """The statistic that tells SD 2's v models, None where it says nothing: inpainting and depth models are of epsilon."""
    conv_in = parts.places[UNET + "input_blocks.0.0.weight"].entry.shape
    values = _small(parts, UNET + V_NORM)
    if len(conv_in) != 4 or conv_in[1] != 4 or values is None:
        return None
    return float(np.std(values))


def _is_edm(scheduler: dict[str, Any]) -> bool:
    """Schedulers of diffusers over continuous sigmas (EDMDPMSolverMultistepScheduler, EDMEulerScheduler)."""
    return str(scheduler.get("_class_name", "")).startswith("EDM")


def _scheduler_noise(parts: Parts, noise: NoiseConfig) -> NoiseConfig:
    """What a diffusers folder's scheduler config says of the training noise."""
    scheduler = parts.configs.get("scheduler", {})
    if _is_edm(scheduler):
        low, high = _positive(scheduler.get("sigma_min")), _positive(scheduler.get("sigma_max"))
        return replace(
            noise,
            continuous=True,
            sigma_data=_positive(scheduler.get("sigma_data")) or 0.5,
            edm_sigma_min=low or 0.002,
            edm_sigma_max=high or 80.0,
        )
    schedule = scheduler.get("beta_schedule", "scaled_linear")
    start, end = _positive(scheduler.get("beta_start")), _positive(scheduler.get("beta_end"))
    steps = scheduler.get("num_train_timesteps")
    if start and end:
        if schedule not in ("linear", "scaled_linear"):
            raise Unsupported(
                f"the scheduler's config says beta_schedule {schedule!r}; linear and scaled_linear are run"
            )
        noise = replace(noise, beta_start=start, beta_end=end, beta_schedule=schedule)
    if type(steps) is int and 2 <= steps <= 100_000:
        noise = replace(noise, steps=steps)
    if not (0 < noise.beta_start < noise.beta_end < 1):
        raise Unsupported(
            f"the scheduler's config says betas from {noise.beta_start:g} to {noise.beta_end:g}; expected them to rise "
            "between 0 and 1"
        )
    if noise != NoiseConfig(prediction=noise.prediction):
        said = f"{noise.beta_schedule} betas from {noise.beta_start:g} to {noise.beta_end:g} over {noise.steps:,} steps"
        parts.report.decide("noise schedule", said, "the scheduler's config")
    return _trained_betas(parts, noise)


def _trained_betas(parts: Parts, noise: NoiseConfig) -> NoiseConfig:
    betas = parts.configs.get("scheduler", {}).get("trained_betas")
    if not isinstance(betas, list):
        return noise
    if not 2 <= len(betas) <= 100_000 or not all(_positive(beta) and beta < 1 for beta in betas):
        raise Unsupported("the scheduler's config has trained_betas that are not a list of numbers between 0 and 1")
    alphas = np.cumprod(1.0 - np.asarray(betas, dtype=np.float64))
    parts.report.decide("noise schedule", "trained_betas", "the scheduler's config brings its own")
    return replace(noise, alphas_cumprod=tuple(alphas.tolist()), steps=len(betas))


def _positive(value: object) -> float:
    """A number above 0; 0 for anything else."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9
    return float(cast(float, value)) if usable else 0.0


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
    marker = "edm_vpred.sigma_max"
    if marker in parts.places:
        low, high = (_scalar(parts, f"edm_vpred.{name}") for name in ("sigma_min", "sigma_max"))
        low, reason = low or 0.002, f"the marker tensor {marker}"
        if high <= low:
            high, reason = 120.0, f"{reason}, whose value is damaged; CosXL's is taken"
            low = 0.002
        noise = replace(noise, continuous=True, sigma_data=1.0, edm_sigma_max=high, edm_sigma_min=low)
    elif noise.continuous:
        reason = "the scheduler's config"
        if noise.edm_sigma_max <= noise.edm_sigma_min:
            raise Unsupported("the scheduler's config has sigma_min above sigma_max")
    else:
        noise = replace(noise, continuous=True, sigma_data=0.5, edm_sigma_min=0.002, edm_sigma_max=80.0)
        reason = "EDM prediction"
    said = f"continuous sigmas, {noise.edm_sigma_min:g} to {noise.edm_sigma_max:g}"
    parts.report.decide("noise schedule", said, reason)
    return noise


def _own_schedule(parts: Parts, noise: NoiseConfig) -> NoiseConfig:
    """The file's own alphas_cumprod, where it has them and they are not the usual ones."""
    name = "alphas_cumprod"
    if name not in parts.places:
        return noise
    place = parts.places[name]
    values = _small(parts, name)
    if values is None:
        parts.ignore(place, "damaged: no schedule can be read from it; the usual one is used")
        return noise
    found = values.astype(np.float64).reshape(-1)
    usual = _usual_alphas(noise)
    tolerance = ROUNDING.get(place.entry.dtype, 2e-3)
    if found.shape == usual.shape and np.allclose(found, usual, rtol=tolerance, atol=tolerance / 50):
        return noise
    zero = len(found) > 1 and found[-1] == 0  # as rescaled to zero terminal SNR
    inner = found[:-1] if zero else found
    if len(found) < 2 or not (inner[0] < 1 and inner[-1] > 0 and np.all(np.diff(found) < 0)):
        parts.ignore(place, "not a noise schedule: it must fall from below 1 towards 0; the usual one is used")
        return noise
    parts.report.decide("noise schedule", "the file's own", "its alphas_cumprod differ from the usual ones")
    return replace(
        noise,
        alphas_cumprod=tuple(found.tolist()),
        steps=len(found),
        zero_terminal_snr=noise.zero_terminal_snr or zero,
    )


def _usual_alphas(noise: NoiseConfig) -> NDArray[np.float64]:
    if noise.alphas_cumprod is not None:
        return np.asarray(noise.alphas_cumprod, dtype=np.float64)
    power = 2.0 if noise.beta_schedule == "scaled_linear" else 1.0
    start, end = noise.beta_start ** (1 / power), noise.beta_end ** (1 / power)
    betas = np.linspace(start, end, noise.steps, dtype=np.float64) ** power
    return np.cumprod(1.0 - betas).astype(np.float64)


def read_latent(parts: Parts, family: Family, channels: int) -> LatentConfig:
    """Scale of the latents, and their mean and deviation, one a channel, where the model has them (Playground 2.5).

    The scale is the UNet's habit: that of a VAE given separately says nothing.
    """
    scale, reason = family.latent_scale, f"the habit of {family.name}"
    config = parts.configs.get("vae", {})
    if _positive(config.get("scaling_factor")):
        scale, reason = float(config["scaling_factor"]), "scaling_factor of the VAE's config"
    with_metadata = _parse_positive(parts.metadata.get("avila.latent_scale"))
    if with_metadata:
        scale, reason = with_metadata, "metadata avila.latent_scale"
    for mean, std, own_scale, source in _standardisations(parts, scale):
        if len(mean) == len(std) == channels and np.all(np.isfinite(mean)) and all(value > 0 for value in std):
            parts.report.decide("latent scale", f"{own_scale:g}", f"with {source}" if own_scale != scale else reason)
            parts.report.decide("latent mean", "per channel", source)
            return LatentConfig(scale=own_scale, mean=mean, std=std)
        parts.report.decide("latent mean", "none", f"{source} damaged: {channels} finite values were expected")
    parts.report.decide("latent scale", f"{scale:g}", reason)
    return LatentConfig(scale=scale)


def _standardisations(parts: Parts, scale: float) -> Iterator[tuple[tuple[float, ...], tuple[float, ...], float, str]]:
    """Mean, deviation, scale and where they are said."""
    if "edm_mean" in parts.places and "edm_std" in parts.places:
        small = [_small(parts, name) for name in ("edm_mean", "edm_std")]
        mean, std = (() if values is None else tuple(float(v) for v in values.reshape(-1)) for values in small)
        # Playground 2.5 standardises per channel and scales by its sigma_data of 0.5 instead.
        yield mean, std, 0.5, "edm_mean and edm_std of the file"
    config = parts.configs.get("vae", {})
    listed = [config.get(key) for key in ("latents_mean", "latents_std")]
    if all(isinstance(values, list) and all(type(v) in (int, float) for v in values) for values in listed):
        mean, std = (tuple(float(v) for v in cast(list[float], values)) for values in listed)
        yield mean, std, scale, "latents_mean and latents_std of the VAE's config"


def _parse_positive(text: str | None) -> float:
    try:
        return _positive(float(text)) if text else 0.0
    except ValueError:
        return 0.0


def _scalar(parts: Parts, name: str) -> float:
    """The single positive number of a marker tensor; 0 where there is none."""
    values = _small(parts, name) if name in parts.places else None
    return _positive(float(values.reshape(-1)[0])) if values is not None and values.size == 1 else 0.0


def _small(parts: Parts, name: str) -> NDArray[Any] | None:
    """A small tensor of floats by our name; None where it is missing, large, empty, not finite or not of floats."""
    place = parts.places.get(name)
    if place is None or place.entry.dtype not in FLOATS or not 0 < place.entry.end - place.entry.start <= MOST_BYTES:
        return None
    values = read_small(place.header, [place.entry.name])[place.entry.name]
    return values if np.all(np.isfinite(values)) else None
