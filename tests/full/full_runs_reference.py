"""Run in a process of its own: a run at full size by diffusers' pipelines and transformers' towers, in float32.

    python full_runs_reference.py STAGE FAMILY CHECKPOINT [LATENT] OUTPUT

STAGE: image, inpainting, base (up to where a refiner takes over), refined (from there on; LATENT: what base wrote).
Writes the latent as a safetensors file. Seeded numbers are those that we draw.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import numpy as np
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from full_reference import TOWERS, make_unet, make_vae, read, run_tower
from full_runs import NEGATIVE, PROMPT, RAN, SCALE, SEED, SIDE, STEPS, SWITCH, mask, photo
from safetensors.torch import load_file, save_file
from torch import Tensor

from avila_diffusion.sampling.noise import initial_noise, noise_source
from avila_diffusion.text.tokenizer import clip_tokenizer

SCALES = {"sd1": 0.18215, "sd1_inpainting": 0.18215, "sdxl_base": 0.13025, "sdxl_refiner": 0.13025}
ASKED: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "latent"}


def first_noise() -> Tensor:
    noise: Tensor = initial_noise(noise_source("nv", SEED), (4, SIDE // 8, SIDE // 8))
    return noise


def draw_alike(module: str) -> list[Tensor]:
    """Let a module of diffusers draw our first noise, and encoders' distributions be drawn from by our numbers: a stream of
    their own, of the seed with its highest bit turned. The list grows by what is drawn from distributions."""
    draws, drawn = noise_source("nv", SEED ^ 1 << 63), []

    def sample(found: Any, generator: Any = None) -> Tensor:
        latent: Tensor = found.mean + found.std * draws.draw(tuple(found.mean.shape[1:]))
        drawn.append(latent)
        return latent

    DiagonalGaussianDistribution.sample = sample
    pipeline: Any = import_module(f"diffusers.pipelines.stable_diffusion.{module}")
    pipeline.randn_tensor = lambda *shape, **named: first_noise()
    return drawn


def embeddings(family: str, path: str) -> dict[str, Tensor]:
    """What the family takes from its towers, by the rules of diffusers' pipelines."""
    hidden, pooled = [], torch.empty(0)
    for kind, prefix in TOWERS[family].items():
        pad = 49407 if kind == "l" else 0
        tokens = torch.tensor([clip_tokenizer().encode_padded(text, pad=pad) for text in (PROMPT, NEGATIVE)])
        found = run_tower(kind, read(path, prefix), tokens)
        hidden.append(found["penultimate" if family.startswith("sdxl") else "last"])
        pooled = found["pooled"]
    context = torch.cat(hidden, dim=-1)
    embedded = {"prompt_embeds": context[:1], "negative_prompt_embeds": context[1:]}
    if family.startswith("sdxl"):
        embedded |= {"pooled_prompt_embeds": pooled[:1], "negative_pooled_prompt_embeds": pooled[1:]}
    return embedded


def make_pipeline(kind: Any, family: str, path: str, **more: Any) -> Any:
    unet, vae = make_unet(family, path), make_vae(path)
    unet.register_to_config(sample_size=64)
    vae.register_to_config(force_upcast=False, scaling_factor=SCALES[family])
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace"
    )
    parts = dict.fromkeys(("text_encoder", "tokenizer", "feature_extractor"))
    pipeline = kind(vae=vae, unet=unet, scheduler=scheduler, **parts, **more)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


UNCHECKED = {"safety_checker": None, "requires_safety_checker": False}
SECOND_TOWER = {"text_encoder_2": None, "tokenizer_2": None, "add_watermarker": False}


def image_to_image(family: str, path: str) -> Tensor:
    draw_alike("pipeline_stable_diffusion_img2img")
    embedded = embeddings(family, path)
    pipeline = make_pipeline(StableDiffusionImg2ImgPipeline, family, path, **UNCHECKED)
    latent: Tensor = pipeline(image=photo(), strength=RAN / STEPS, **ASKED, **embedded).images
    return latent


def inpainting(family: str, path: str) -> Tensor:
    """diffusers shows an inpainting model mask and picture and leaves the rest to it. As we do, what is to be kept is put
    back after every step: the picture's latent under as much of the first noise as there is then."""
    drawn, noise = draw_alike("pipeline_stable_diffusion_inpaint"), first_noise()
    embedded = embeddings(family, path)
    pipeline = make_pipeline(StableDiffusionInpaintPipeline, family, path, **UNCHECKED)
    painted = torch.from_numpy(np.array(mask())[::8, ::8] / np.float32(255))  # it lies along latent cells

    def put_back(_: Any, step: int, timestep: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        picture, scheduler = drawn[0] * SCALES[family], pipeline.scheduler
        kept = picture + noise * scheduler.sigmas[scheduler.step_index]
        return {"latents": values["latents"] * painted + kept * (1 - painted)}

    latent: Tensor = pipeline(
        image=photo(),
        mask_image=mask(),
        strength=RAN / STEPS,
        height=SIDE,
        width=SIDE,
        callback_on_step_end=put_back,
        **ASKED,
        **embedded,
    ).images
    assert len(drawn) == 2, "the picture, then the picture that is grey under the mask"
    return latent


def base(family: str, path: str) -> Tensor:
    embedded = embeddings(family, path)
    pipeline = make_pipeline(StableDiffusionXLPipeline, family, path, **SECOND_TOWER)
    asked = {"height": SIDE, "width": SIDE, "latents": first_noise(), "denoising_end": SWITCH}
    latent: Tensor = pipeline(**asked, **ASKED, **embedded).images
    return latent


def refined(family: str, path: str, latent: str) -> Tensor:
    embedded = embeddings(family, path)
    pipeline = make_pipeline(
        StableDiffusionXLImg2ImgPipeline, family, path, **SECOND_TOWER, requires_aesthetics_score=True
    )
    asked = {"image": load_file(latent)["latent"], "denoising_start": SWITCH}
    sizes = {"original_size": (SIDE, SIDE), "target_size": (SIDE, SIDE)}
    final: Tensor = pipeline(**asked, **sizes, **ASKED, **embedded).images
    return final


def main() -> None:
    stage, family, path, *latent, output = sys.argv[1:]
    torch.set_num_threads(2)
    run: Any = {"image": image_to_image, "inpainting": inpainting, "base": base, "refined": refined}[stage]
    with torch.no_grad():
        found = run(family, path, *latent)
    save_file({"latent": found.contiguous()}, output)


if __name__ == "__main__":
    main()
