"""Estimates of what a job takes, against forecasts of the same runs, which know the networks."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from avila_diffusion import AvilaDiffusion
from avila_diffusion.pictures import Picture
from avila_diffusion.pipeline.forecast import BASE, LIBRARIES, Outlook
from avila_diffusion.request import GenerateRequest
from avila_diffusion.server.estimate import Estimate, estimate
from avila_diffusion.server.models import Facts
from avila_diffusion.server.settings import Settings

SLACK = 1.2
TOO_MUCH = 4.0
"""An estimate beyond so many times the truth would refuse what can be drawn."""
SMALL = 700 << 20
"""Below this nothing is refused anyway."""


def facts_of(diffusion: AvilaDiffusion) -> Facts:
    spec = diffusion._model_engine().model.spec
    return Facts(spec.family, spec.variant, spec.size, spec.fixed_size, spec.noise.prediction, {}, (), spec)


def forecast(diffusion: AvilaDiffusion, request: GenerateRequest) -> int:
    """Peak of a process that has just loaded the model: not of this one, which holds much else."""
    outlook = Outlook(diffusion._model_engine(), request)
    found = outlook.at(0)
    given = outlook.base - outlook.of_rehearsing - LIBRARIES  # held now, pictures finished and given
    held = given - 3 * outlook_pixels(outlook) * len(request.seeds) - outlook._given()
    return found.peak_bytes - max(held, 0) + BASE


def outlook_pixels(outlook: Outlook) -> int:
    request, scale = outlook.request, outlook.engine.model.spec.vae.scale
    return max((request.width or 0) * (request.height or 0), scale**2 * outlook.latent[0] * outlook.latent[1])


def compare(diffusion: AvilaDiffusion, **values: Any) -> tuple[int, Estimate]:
    request = diffusion.resolved(GenerateRequest(seed=1, **values))
    return forecast(diffusion, request), estimate(request, facts_of(diffusion), Settings(data=Path()))


def check(diffusion: AvilaDiffusion, **values: Any) -> None:
    truth, told = compare(diffusion, **values)
    said = f"{values}: {truth / 1e9:.2f} GB, estimated {told.memory / 1e9:.2f}"
    assert truth <= SLACK * told.memory, said
    assert told.memory <= max(TOO_MUCH * truth, SMALL), said
    assert told.least <= told.memory


@pytest.fixture(scope="module")
def layout(
    tmp_path_factory: pytest.TempPathFactory, manifest: Any, write_layout: Any
) -> Callable[[str], AvilaDiffusion]:
    """A model of a released file's layout, without its numbers."""
    folder = tmp_path_factory.mktemp("layouts")
    made: dict[str, AvilaDiffusion] = {}

    def model(name: str) -> AvilaDiffusion:
        if name not in made:
            path = folder / f"{name}.safetensors"
            made[name] = AvilaDiffusion.with_model(write_layout(path, manifest(name)), device="cpu")
        return made[name]

    return model


@pytest.mark.parametrize("side", [64, 512, 1024, 2048])
@pytest.mark.parametrize("name", ["sd1", "sdxl_base"])
def test_covers_the_forecast_at_any_size(layout: Callable[[str], AvilaDiffusion], name: str, side: int) -> None:
    check(layout(name), width=side, height=side)


@pytest.mark.parametrize(
    "values",
    [
        {"width": 1536, "height": 64},
        {"batch": 8},
        {"guidance_scale": 1.0},
        {"hires_scale": 2.0},
        {"hires_scale": 2.0, "hires_upscaler": "Lanczos"},
        {"prompt": "a AND b AND c AND d"},
        {"prompt": "a hill, " * 400},
        {"negative_prompt": "a lake " * 500},
    ],
)
def test_covers_the_forecast_of_other_requests(layout: Callable[[str], AvilaDiffusion], values: dict[str, Any]) -> None:
    check(layout("sd1"), **values)


def test_covers_the_forecast_of_pictures(layout: Callable[[str], AvilaDiffusion]) -> None:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (1024, 768)).save(buffer, "PNG")
    picture = Picture(buffer.getvalue())
    for values in ({}, {"mask": picture}, {"resize_mode": "latent", "width": 512, "height": 512}):
        check(layout("sd1"), image=picture, **values)
    check(layout("sd1_inpainting"), width=512, height=512)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sdxl_refiner"])
@pytest.mark.parametrize("side", [64, 1024])
def test_covers_the_forecast_of_tiny_models(tiny_checkpoint: Any, family: str, side: int) -> None:
    check(AvilaDiffusion.with_model(tiny_checkpoint(family), device="cpu"), width=side, height=side)


def test_much_is_seen_to_be_much(layout: Callable[[str], AvilaDiffusion]) -> None:
    diffusion = layout("sd1")
    facts, settings = facts_of(diffusion), Settings(data=Path())

    def memory(**values: Any) -> int:
        return estimate(GenerateRequest(**values).resolved(512), facts, settings).memory

    assert memory(width=4096, height=4096) > 20e9
    assert memory(prompt="a" + " AND b" * 2000) > 100e9
    assert memory(prompt="word " * 20_000) > 2.5e9
    assert memory(batch=64, count=1000, width=1024, height=1024) > 64_000 * 3 * 2**20


def test_calls(layout: Callable[[str], AvilaDiffusion]) -> None:
    diffusion = layout("sd1")
    for values, rows in (
        ({"steps": 3}, 2),
        ({"steps": 3, "sampler": "Heun"}, 2),
        ({"steps": 3, "guidance_scale": 1.0}, 1),
        ({"steps": 3, "batch": 4}, 2),
        ({"steps": 3, "prompt": "a AND b"}, 3),
        ({"steps": 3, "hires_scale": 2.0, "hires_steps": 5}, 2),
    ):
        request = diffusion.resolved(GenerateRequest(seed=1, **values))
        passes = diffusion._model_engine().passes(request)
        calls = sum(one.plan.calls or one.plan.counted for one in passes) * len(request.seeds)
        told = estimate(request, facts_of(diffusion), Settings(data=Path())).calls
        assert calls * rows <= told <= 1.5 * calls * rows, values


def test_covers_the_forecast_of_a_model_of_one_size(bundled: Path) -> None:
    """And its previews, which its own decoder draws."""
    for side in (64, 256, 512):
        check(AvilaDiffusion.bundled(), width=side, height=side)
