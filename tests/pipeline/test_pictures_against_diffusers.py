"""Runs that begin with pictures against diffusers' pipelines on the same weights, pictures, noise and levels, in float64.

diffusers' Euler holds its latents in float32, which is what the tolerance is for. Ten steps, whose timesteps are whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers.models.autoencoders.vae as diffusers_vae
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor

from avila_diffusion.pipeline import begin as begin_module
from avila_diffusion.pipeline import plan as plan_module
from avila_diffusion.pipeline.engine import ModelEngine
from avila_diffusion.pipeline.latents import from_vae
from avila_diffusion.request import GenerateRequest
from avila_diffusion.sampling.noise import ImageNoise, initial_noise, noise_source

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")]
"""diffusers' own."""

SIDE, STEPS = 64, 10
TOLERANCE = 3e-6
"""Of the latent's maximum."""
PROMPT, NEGATIVE = "a quiet cat, 3 hats", "rain"
Latents = Callable[[ModelEngine, GenerateRequest], list[Tensor]]


def _photo() -> PIL.Image.Image:
    """Waves of colour."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = [np.sin(5 * x + 2 * y), np.cos(7 * y * x), np.sin(9 * y + 1)]
    return PIL.Image.fromarray(((np.stack(waves, -1) + 1) * 127.5).astype(np.uint8))


def _mask() -> PIL.Image.Image:
    """A white rectangle, along latent cells."""
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[16:48, 8:40] = 255
    return PIL.Image.fromarray(pixels)


def _request(**options: Any) -> GenerateRequest:
    values: dict[str, Any] = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "emphasis": "None",
        "width": SIDE,
        "height": SIDE,
        "steps": STEPS,
        "sampler": "Euler",
        "guidance_scale": 5.0,
        "seed": 7,
    }
    return GenerateRequest.from_dict({**values, **options})


def _widen(channels: int) -> Callable[[dict[str, Tensor]], None]:
    """Let the UNet take more input channels, by weights of the same size."""

    def change(state: dict[str, Tensor]) -> None:
        name = "model.diffusion_model.input_blocks.0.0.weight"
        generator = torch.Generator().manual_seed(channels)
        out = state[name].shape[0]
        state[name] = torch.randn(out, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5

    return change


@pytest.fixture(autouse=True)
def the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides take the mean of the encoder's distribution, which is the part that they must agree on."""
    monkeypatch.setattr(ImageNoise, "encoding", lambda self: None)
    monkeypatch.setattr(diffusers_vae.DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The first noise of seed 7, which diffusers is made to draw too."""
    noise = initial_noise(noise_source("nv", 7), (4, SIDE // 8, SIDE // 8)).double()
    for name in ("img2img", "inpaint", "instruct_pix2pix", "depth2img"):
        module = f"diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_{name}"
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *args, **named: noise.clone())
    return noise


def _scheduler() -> Any:
    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace"
    )


def _pipeline(kind: Any, theirs: Any, **more: Any) -> Any:
    theirs.unet.register_to_config(sample_size=64)
    pipeline = kind(
        vae=theirs.vae,
        text_encoder=None,
        tokenizer=None,
        unet=theirs.unet,
        scheduler=_scheduler(),
        feature_extractor=None,
        **more,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


SAFE = {"safety_checker": None, "requires_safety_checker": False}


def _embeds(theirs: Any) -> dict[str, Tensor]:
    return {"prompt_embeds": theirs.context(PROMPT)[0], "negative_prompt_embeds": theirs.context(NEGATIVE)[0]}


def _difference(ours: Tensor, theirs: Tensor) -> float:
    top = float(theirs.abs().max())
    assert 0.3 < top < 1000, f"the reference latent is not of a size that shows errors: {top}"
    return float((ours - theirs).abs().max()) / top


@pytest.mark.parametrize("strength", [0.35, 0.75])
def test_image_to_image(
    strength: float, make_engine: Any, reference: Any, latents_of: Latents, same_noise: Tensor
) -> None:
    """Our share of the steps is one step more than theirs, as AUTOMATIC1111 counts."""
    theirs = reference("sd1")
    ran = int(strength * STEPS) + 1
    expected = _pipeline(StableDiffusionImg2ImgPipeline, theirs, **SAFE)(
        image=_photo(),
        strength=ran / STEPS,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        output_type="latent",
        **_embeds(theirs),
    ).images
    request = _request(image=_photo(), strength=strength)
    (ours,) = latents_of(make_engine("sd1", dtype="float64"), request)
    assert _difference(ours, expected) < TOLERANCE
    (exact,) = latents_of(
        make_engine("sd1", dtype="float64"), _request(image=_photo(), strength=strength, exact_steps=True, steps=STEPS)
    )
    assert _difference(exact, expected) > 1e-2, "exact steps are other levels"


def test_inpainting_with_any_model(make_engine: Any, reference: Any, latents_of: Latents, same_noise: Tensor) -> None:
    """With Euler and a mask along latent cells, blending the predicted x0 is what diffusers' blending of x comes to."""
    theirs = reference("sd1")
    expected = _pipeline(StableDiffusionInpaintPipeline, theirs, **SAFE)(
        image=_photo(),
        mask_image=_mask(),
        strength=0.6,
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        output_type="latent",
        **_embeds(theirs),
    ).images
    asked = {"image": _photo(), "mask": _mask(), "mask_blur": 0}
    (ours,) = latents_of(make_engine("sd1", dtype="float64"), _request(**asked, strength=0.5))
    assert _difference(ours, expected) < TOLERANCE
    # As ComfyUI, the same levels and the same noise: what the network sees is blended too, and comes to the same.
    scheduler = _scheduler()
    scheduler.set_timesteps(STEPS)
    levels = tuple(scheduler.sigmas.tolist()[-7:])
    comfyui = _request(**asked, strength=1.0, sigmas=levels, compat="comfyui", emphasis="Original")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageNoise, "initial", lambda self, shape: same_noise.float())
        (ours,) = latents_of(make_engine("sd1", dtype="float64"), comfyui)
    assert _difference(ours, expected) < TOLERANCE


@pytest.fixture
def unblended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inpainting models without AUTOMATIC1111's blending on top, as diffusers runs them."""
    monkeypatch.setattr(plan_module.Plan, "masked", lambda self, denoise, begin, noise: denoise)
    monkeypatch.setattr(plan_module.Plan, "finished", lambda self, latent, begin: latent)


def test_an_inpainting_model(
    make_engine: Any, reference: Any, latents_of: Latents, same_noise: Tensor, unblended: None
) -> None:
    """At full strength diffusers begins with noise alone; so do we where the latent to begin with is zeros."""
    theirs = reference("sd1", _widen(9))
    expected = _pipeline(StableDiffusionInpaintPipeline, theirs, **SAFE)(
        image=_photo(),
        mask_image=_mask(),
        strength=1.0,
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        output_type="latent",
        **_embeds(theirs),
    ).images
    engine = make_engine("sd1", _widen(9), dtype="float64")
    request = _request(image=_photo(), mask=_mask(), mask_blur=0, strength=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(begin_module, "from_vae", _zero_first(from_vae))
        (ours,) = latents_of(engine, request)
    assert _difference(ours, expected) < TOLERANCE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(begin_module, "from_vae", _zero_first(from_vae))
        (other,) = latents_of(
            engine, _request(image=_photo(), mask=_mask(), mask_blur=0, strength=1.0, mask_weight=0.5)
        )
    assert _difference(other, expected) > 1e-4, "what is under the mask is seen"


def _zero_first(right: Any) -> Any:
    """from_vae, whose first answer in a run (the latent to begin with) is zeros."""
    asked: list[int] = []

    def zeroed(z: Tensor, latent: Any) -> Tensor:
        asked.append(1)
        return right(z, latent) * (0 if len(asked) == 1 else 1)

    return zeroed


def test_text_to_image_with_an_inpainting_model(
    make_engine: Any, reference: Any, latents_of: Latents, same_noise: Tensor
) -> None:
    """All is to be painted, and the picture is grey: the same as diffusers' given these."""
    theirs = reference("sd1", _widen(9))
    grey = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        hidden = theirs.vae.encode(grey).latent_dist.mode() * 0.18215
    concat = torch.cat([torch.ones(1, 1, SIDE // 8, SIDE // 8, dtype=torch.float64), hidden], 1)
    engine = make_engine("sd1", _widen(9), dtype="float64")
    request = _request(schedule="Karras", steps=4)
    (ours,) = latents_of(engine, request)
    plan = engine.passes(engine.accept(request))[0].plan
    conds = [theirs.context(text) for text in (PROMPT, NEGATIVE)]
    x = same_noise * float(plan.sigmas[0])
    for sigma, after in zip(plan.sigmas.tolist(), plan.sigmas.tolist()[1:], strict=False):
        scaled = torch.cat([x / (sigma**2 + 1) ** 0.5, concat], 1)
        t = float(engine.table.sigma_to_t(sigma))
        eps, base = (theirs.predict(scaled, t, *cond, []) for cond in conds)
        x = x + (base + 5.0 * (eps - base)) * (after - sigma)
    assert _difference(ours, x) < 1e-7


@pytest.mark.parametrize("image_scale", [1.0, 1.8])
def test_instruct_pix2pix(
    image_scale: float, make_engine: Any, reference: Any, latents_of: Latents, same_noise: Tensor
) -> None:
    theirs = reference("sd1", _widen(8))
    engine = make_engine("sd1", _widen(8), dtype="float64")
    request = _request(image=_photo(), strength=1.0, image_guidance_scale=image_scale)
    (ours,) = latents_of(engine, request)
    # We begin with the picture under the noise, as AUTOMATIC1111 does, and diffusers is given what we begin with.
    scheduler = _scheduler()
    scheduler.set_timesteps(STEPS)
    top = float(scheduler.init_noise_sigma)
    with torch.no_grad():
        pixels = torch.from_numpy(np.asarray(_photo(), np.float32) / 255).permute(2, 0, 1)[None] * 2 - 1
        latent = theirs.vae.encode(pixels.double()).latent_dist.mode() * 0.18215
    expected = _pipeline(StableDiffusionInstructPix2PixPipeline, theirs, **SAFE)(
        image=_photo(),
        latents=(latent + same_noise * top) / top,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        image_guidance_scale=image_scale,
        output_type="latent",
        **_embeds(theirs),
    ).images
    assert _difference(ours, expected) < TOLERANCE


def test_a_depth_model(make_engine: Any, reference: Any, latents_of: Latents, same_noise: Tensor) -> None:
    theirs = reference("sd2", _widen(5))
    depth = np.linspace(0, 65535, 48 * 40).reshape(48, 40).astype(np.uint16)
    depth[10:30, 10:30] = 50000
    pipeline = _pipeline(StableDiffusionDepth2ImgPipeline, theirs, depth_estimator=None)
    expected = pipeline(
        image=_photo(),
        depth_map=torch.from_numpy((depth / 65535).astype(np.float32))[None].double(),
        strength=0.6,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        output_type="latent",
        **_embeds(theirs),
    ).images
    engine = make_engine("sd2", _widen(5), dtype="float64", prediction="epsilon")
    (ours,) = latents_of(engine, _request(image=_photo(), depth=depth, strength=0.5))
    assert _difference(ours, expected) < 1e-5  # the depth map is made smaller in float32
    (other,) = latents_of(engine, _request(image=_photo(), depth=depth[::-1].copy(), strength=0.5))
    assert _difference(other, expected) > 1e-3


def test_the_refiner_of_sdxl(make_engine: Any, reference: Any, latents_of: Latents, same_noise: Tensor) -> None:
    base, refiner = reference("sdxl"), reference("sdxl_refiner")
    for one in (base, refiner):
        one.vae.register_to_config(force_upcast=False, scaling_factor=0.13025)
    extra = {"text_encoder_2": None, "tokenizer_2": None}
    first = _pipeline(StableDiffusionXLPipeline, base, **extra, add_watermarker=False)
    second = _pipeline(StableDiffusionXLImg2ImgPipeline, refiner, **extra, requires_aesthetics_score=True)

    def embeds(theirs: Any) -> dict[str, Tensor]:
        (context, pooled), (other, unpooled) = theirs.context(PROMPT), theirs.context(NEGATIVE)
        return {
            "prompt_embeds": context,
            "pooled_prompt_embeds": pooled,
            "negative_prompt_embeds": other,
            "negative_pooled_prompt_embeds": unpooled,
        }

    half = first(
        height=SIDE,
        width=SIDE,
        latents=same_noise,
        denoising_end=0.7,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        output_type="latent",
        **embeds(base),
    ).images
    expected = second(
        image=half,
        denoising_start=0.7,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        original_size=(SIDE, SIDE),
        target_size=(SIDE, SIDE),
        output_type="latent",
        **embeds(refiner),
    ).images
    engine = replace(make_engine("sdxl", dtype="float64"), refiner=make_engine("sdxl_refiner", dtype="float64"))
    (ours,) = latents_of(engine, _request(refiner_switch=0.7))
    assert _difference(ours, expected) < TOLERANCE
    (later,) = latents_of(engine, _request(refiner_switch=0.85))
    assert _difference(later, expected) > 1e-4
    (by_step,) = latents_of(engine, _request(refiner_switch=0.7, refiner_by="step"))
    assert torch.equal(by_step, ours), "of ten steps, seven are done where 0.7 of the timesteps are"
