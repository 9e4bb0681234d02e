"""What `with_model` is asked for, loaded: the model, its parts given beside it, LoRAs, a refiner; and how to load it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MissingPart, WeightMismatch
from .given import LoraGiven, absolute, loras_of, name_of

if TYPE_CHECKING:
    from .checkpoint.load import Model
    from .checkpoint.lora.apply import LoraReport
    from .checkpoint.report import LoadReport
    from .config import ModelSpec
    from .device import Policy
    from .models.taesd import TinyVAE
    from .pipeline.engine import ModelEngine
    from .pipeline.loras import Weighted
    from .pipeline.memory import Memory


def read_model(
    path: str | Path,
    vae: str | Path | None,
    text_encoder: str | Path | Sequence[str | Path] | None,
    lora: LoraGiven | Sequence[LoraGiven] | None,
    prediction: str | None,
    mmap: bool,
) -> tuple[Model, list[Path], list[Weighted]]:
    """The model that `with_model` is asked for, the files of its text towers given beside it, and its LoRAs."""
    from .checkpoint.folders import find_model
    from .checkpoint.load import load_model
    from .checkpoint.lora.files import read_lora
    from .checkpoint.lora.find import find_lora

    file = find_model(name_of("a model", path))
    encoders = text_encoder if isinstance(text_encoder, list | tuple) else [text_encoder]
    towers = [find_model(name_of("a text encoder", one), "text_encoder") for one in encoders if one is not None]
    loras = [(read_lora(find_lora(name)), text, unet) for name, text, unet in loras_of(lora)]
    its_vae = None if vae is None else find_model(name_of("a VAE", vae), "vae")
    model = load_model(file, vae=its_vae, text_encoders=towers, prediction=prediction, mapped=mmap)
    return model, towers, loras


def loading(
    model: Model,
    towers: Sequence[Path],
    loras: Sequence[Weighted],
    policy: Policy,
    prediction: str | None,
    mmap: bool,
) -> dict[str, Any]:
    """What `with_model` would be called with to load the same again, as plain values."""
    return {
        "path": absolute(model.path),
        "vae": absolute(model.vae_path),
        "text_encoder": absolute(towers),
        "lora": [[absolute(lora.path), text, unet] for lora, text, unet in loras],
        "prediction": prediction,
        "device": str(policy.device),
        "dtype": str(policy.unet).removeprefix("torch."),
        "mmap": mmap,
    }


def path_of(engine: ModelEngine | None) -> str | None:
    """Where an engine's model lies, None for none."""
    return None if engine is None else str(engine.model.path.absolute())


def read_preview_decoder(path: str | Path | None, spec: ModelSpec, mapped: bool) -> TinyVAE | None:
    """The tiny autoencoder that draws previews of a model. Raises an AvilaError where the file is none that fits."""
    from .checkpoint.load import load_preview_decoder

    return None if path is None else load_preview_decoder(name_of("a preview decoder", path), spec, mapped)


def tell_loras(report: LoadReport, loras: Sequence[LoraReport]) -> None:
    for one in loras:
        text, unet = one.text_weight, one.unet_weight
        weights = f"{unet:g}" if text == unet else f"{text:g} for the text, {unet:g} for the UNet"
        report.decide("LoRA", f"{one.path.name}, weight {weights}", one.describe())


def read_refiner(
    path: str | Path | None, base: Model, policy: Policy, memory: Memory, mapped: bool
) -> ModelEngine | None:
    """The model that takes over during the sampling of another. Raises WeightMismatch where its latents are other ones."""
    from .checkpoint.folders import find_model
    from .checkpoint.load import load_model
    from .pipeline.engine import ModelEngine
    from .pipeline.loras import LoraRack
    from .pipeline.memory import prepare

    if path is None:
        return None
    file = find_model(name_of("a refiner", path))
    try:
        model = load_model(file, mapped=mapped)
    except MissingPart:  # it draws nothing itself: where it has no VAE, it need not be given one
        model = load_model(file, vae=base.vae_path or base.path, mapped=mapped)
    ours, its = base.spec, model.spec
    if (
        its.latent_space != ours.latent_space
        or its.vae.latent_channels != ours.vae.latent_channels
        or its.variant != "base"
    ):
        raise WeightMismatch(
            f"{path} ({its.family}, {its.variant}) cannot refine latents of {base.path.name} ({ours.family}); "
            "give a refiner of the same family, such as the SDXL refiner for SDXL"
        )
    prepare(model, policy)
    return ModelEngine(model, policy, LoraRack(model, mapped=mapped), memory=memory)
