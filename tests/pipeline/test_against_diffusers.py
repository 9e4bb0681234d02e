"""Whole runs from the same noise and sigmas against diffusers' networks: final latents to 1e-7 in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from avila_diffusion.checkpoint.load import load_model
from avila_diffusion.device import choose_policy
from avila_diffusion.pipeline import plan as plan_module
from avila_diffusion.pipeline import run as run_module
from avila_diffusion.pipeline.engine import ModelEngine
from avila_diffusion.pipeline.latents import decode
from avila_diffusion.request import GenerateRequest
from avila_diffusion.sampling import denoiser
from avila_diffusion.sampling.names import resolve_sampler, resolve_schedule
from avila_diffusion.sampling.noise import initial_noise, noise_source
from avila_diffusion.sampling.schedules import sampler_sigmas
from avila_diffusion.text import conditioner

FAMILIES = ("sd1", "sd2", "sdxl", "sdxl_refiner")
SIDE, STEPS, SCALE = 64, 5, 7.0
PROMPT, NEGATIVE = "a (quiet) cat, 3 hats", "rain"
TOLERANCE = 1e-7
"""In float64. In float32 the same runs stay within SINGLE of the reference."""
SINGLE = 1e-4


def _request(**options: Any) -> GenerateRequest:
    values: dict[str, Any] = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "emphasis": "None",
        "width": SIDE,
        "height": SIDE,
        "steps": STEPS,
        "sampler": "Euler",
        "schedule": "Karras",
        "guidance_scale": SCALE,
        "seed": 7,
    }
    return GenerateRequest(**{**values, **options})


def _engine(path: Path, dtype: str = "float64") -> ModelEngine:
    return ModelEngine.of(load_model(path), choose_policy("cpu", dtype))


def _latent(engine: ModelEngine, request: GenerateRequest, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The latent that a run hands to the decoder."""
    kept: list[Tensor] = []

    def keep(vae: Any, x: Tensor, *rest: Any) -> Tensor:
        kept.append(x)
        return decode(vae, x, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "decode", keep)
        list(engine.generate(request))
    return kept[0]


def _reference_latent(reference: Any, engine: ModelEngine, request: GenerateRequest) -> Tensor:
    """Euler's method written out, on diffusers' networks."""
    info, _ = resolve_sampler(request.sampler)
    sigmas = sampler_sigmas(info, resolve_schedule(request.schedule), request.steps, engine.table)
    x = initial_noise(noise_source("nv", 7), (4, SIDE // 8, SIDE // 8)).double() * sigmas[0]
    conds = [reference.context(request.prompt), reference.context(request.negative_prompt)]
    side = float(SIDE)
    tails = {"sdxl": ([side, side], [side, side]), "sdxl_refiner": ([6.0], [2.5])}
    ids = [[side, side, 0.0, 0.0, *tail] for tail in tails.get(reference.family, ([], []))]
    for sigma, following in zip(sigmas.tolist(), sigmas.tolist()[1:], strict=False):
        t = float(engine.table.sigma_to_t(sigma))
        scaled = x / (sigma**2 + 1) ** 0.5
        eps, base = (reference.predict(scaled, t, *cond, tail) for cond, tail in zip(conds, ids, strict=True))
        x = x + (base + request.guidance_scale * (eps - base)) * (following - sigma)
    return x


def _difference(ours: Tensor, theirs: Tensor) -> float:
    top = float(theirs.abs().max())
    assert 0.3 < top < 1000, f"the reference latent is not of a size that shows errors: {top}"
    return float((ours - theirs).abs().max()) / top


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_run_ends_in_the_same_latent(
    family: str, model_path: Any, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, theirs = _engine(model_path(family)), reference(family)
    request = _request()
    expected = _reference_latent(theirs, engine, request)
    ours = _latent(engine, request, monkeypatch)
    assert _difference(ours, expected) < TOLERANCE
    single = _latent(_engine(model_path(family), "float32"), request, monkeypatch)
    assert _difference(single, expected) < SINGLE
    scale = engine.model.spec.latent.scale
    with torch.no_grad():
        picture = theirs.vae.decode(expected / scale).sample
    assert _difference(decode(engine.model.vae, expected, engine.model.spec.latent, torch.float64), picture) < TOLERANCE


def _mistakes() -> dict[str, Any]:
    """name → (family, what to patch). Each is a slip that a reader would not see in the picture."""
    right_scaling, right_encode = denoiser.scaling, conditioner.Conditioner.encode_all

    def no_start_factor(sampler: Any, noise: Tensor, sigmas: Tensor, **rest: Any) -> Tensor:
        return noise * (1 + float(sigmas[0]) ** 2) ** 0.5

    def skip_one_more(self: Any, texts: list[str], **options: Any) -> Any:
        return right_encode(self, texts, **{**options, "clip_skip": 2})

    def other_half(self: Any, texts: list[str], **options: Any) -> Any:
        return right_encode(self, [NEGATIVE if text == PROMPT else PROMPT for text in texts], **options)

    def wrong_negative(self: Any, texts: list[str], **options: Any) -> Any:
        return right_encode(self, texts, **{**options, "negative": False})

    def coarse(prediction: Any, sigma: float, data: float = 1.0) -> Any:
        return right_scaling(prediction, round(sigma, 2), data)

    return {
        "start factor": ("sd1", (plan_module, "start", no_start_factor)),
        "clip skip": ("sd1", (conditioner.Conditioner, "encode_all", skip_one_more)),
        "swapped halves": ("sd1", (conditioner.Conditioner, "encode_all", other_half)),
        "aesthetic score of the negative": ("sdxl_refiner", (conditioner.Conditioner, "encode_all", wrong_negative)),
        "sigma of the scaling": ("sd1", (denoiser, "scaling", coarse)),
    }


@pytest.mark.parametrize("mistake", _mistakes())
def test_a_mistake_is_seen(mistake: str, model_path: Any, reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    family, patch = _mistakes()[mistake]
    engine = _engine(model_path(family))
    expected = _reference_latent(reference(family), engine, _request())
    monkeypatch.setattr(*patch)
    assert _difference(_latent(engine, _request(), monkeypatch), expected) > TOLERANCE


def test_an_integer_timestep_is_seen(model_path: Any, reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine(model_path("sd1"))
    expected = _reference_latent(reference("sd1"), engine, _request())
    table = type(engine.table)
    exact = table.sigma_to_t
    monkeypatch.setattr(table, "sigma_to_t", lambda self, sigma: exact(self, sigma).round())
    assert _difference(_latent(engine, _request(), monkeypatch), expected) > TOLERANCE


@pytest.mark.parametrize("family", ["sdxl", "sdxl_refiner"])
def test_the_pooled_vector_and_the_sizes_matter(family: str, model_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine(model_path(family))
    right = _latent(engine, _request(), monkeypatch)
    wrong = conditioner.Conditioner._embed_sizes
    monkeypatch.setattr(conditioner.Conditioner, "_embed_sizes", lambda self, w, h, n: wrong(self, w, 2 * h, n))
    assert _difference(_latent(engine, _request(), monkeypatch), right) > TOLERANCE


def test_an_empty_negative_of_sdxl_is_zeros(model_path: Any) -> None:
    engine = _engine(model_path("sdxl"))
    made = conditioner.Conditioner(engine.model.spec, engine.model.text, torch.device("cpu"), torch.float64)
    empty = made.encode("", width=64, height=64, negative=True)
    assert float(empty.context.abs().max()) == 0
    assert empty.vector is not None
    assert float(empty.vector[:, :64].abs().max()) == 0
    assert float(empty.vector[:, 64:].abs().max()) > 0
    plain = made.encode("", width=64, height=64)
    assert float(plain.context.abs().max()) > 0


def test_long_prompts_are_chunks_encoded_alone(model_path: Any) -> None:
    engine = _engine(model_path("sd1"))
    made = conditioner.Conditioner(engine.model.spec, engine.model.text, torch.device("cpu"), torch.float64)
    first, second = " ".join(["cat"] * 75), "a dog"
    both = made.encode(f"{first} {second}", width=64, height=64).context
    assert both.shape == (1, 2 * 77, 64)
    assert torch.equal(both[:, :77], made.encode(first, width=64, height=64).context)
    torch.testing.assert_close(both[:, 77:], made.encode(second, width=64, height=64).context, rtol=0, atol=1e-12)
