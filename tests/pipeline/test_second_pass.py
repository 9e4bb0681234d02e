"""Second passes at the ends of what may be asked of them: nothing of the first one noised, or shown to an inpainting model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avila_diffusion.masking import upscaled
from avila_diffusion.pipeline import run as run_module
from avila_diffusion.pipeline.begin import as_picture
from avila_diffusion.pipeline.engine import ModelEngine
from avila_diffusion.pipeline.forecast import Outlook
from avila_diffusion.pipeline.journal import Journal
from avila_diffusion.pipeline.latents import cropped, decode, encode, from_vae, to_pixels
from avila_diffusion.pipeline.ledger import Ledger
from avila_diffusion.pipeline.passes import enlarge
from avila_diffusion.request import GenerateRequest
from avila_diffusion.result import GenerateResult, Progress
from avila_diffusion.sampling.names import SAMPLERS
from avila_diffusion.sampling.noise import ImageNoise

Finish = Callable[[Iterator[Progress | GenerateResult]], GenerateResult]
Latents = Callable[[ModelEngine, GenerateRequest], list[Tensor]]
UPSCALERS = ["Latent", "Lanczos"]


def asked(**options: Any) -> GenerateRequest:
    values = {"prompt": "a cat", "width": 64, "height": 64, "steps": 2, "sampler": "Euler a", "seed": 3}
    return GenerateRequest.from_dict({**values, **options})


def sees_pictures(state: dict[str, Tensor]) -> None:
    """An inpainting model's UNet."""
    name = "model.diffusion_model.input_blocks.0.0.weight"
    torch.manual_seed(1)
    state[name] = torch.randn(state[name].shape[0], 9, 3, 3) / 8


def first_latent(engine: ModelEngine, latents_of: Latents) -> Tensor:
    (latent,) = latents_of(engine, asked())
    return latent


@pytest.mark.parametrize("upscaler", UPSCALERS)
@pytest.mark.parametrize("weight", [0.2, 0.0])
@pytest.mark.parametrize("cut", [False, True])
def test_an_inpainting_model_is_shown_the_first_picture_by_the_weight(
    cut: bool,
    weight: float,
    upscaler: str,
    make_engine: Any,
    latents_of: Latents,
    concats: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As AUTOMATIC1111: the mask is all ones, and the picture times 1 - weight is encoded; where it was enlarged as a picture
    in 0 to 1."""
    monkeypatch.setattr(ImageNoise, "encoding", lambda self: None)
    engine = make_engine(change=sees_pictures, dtype="float64")
    spec, vae = engine.model.spec, engine.model.vae
    first = first_latent(engine, latents_of)
    concats.clear()
    size = {"hires_width": 96, "hires_height": 64} if cut else {"hires_scale": 1.5}
    request = engine.accept(asked(**size, hires_upscaler=upscaler, strength=0.6, mask_weight=weight))
    list(engine.generate(request))
    second = concats[-1]
    cells = (8, 12) if cut else (12, 12)
    assert list(second.shape[2:]) == list(cells)
    assert torch.equal(second[:, :1], torch.ones_like(second[:, :1]))
    if upscaler == "Latent":
        picture = decode(vae, cropped(enlarge(first, request, 8), cells), spec.latent, torch.float64)
    else:
        pixels = upscaled(to_pixels(decode(vae, first, spec.latent, torch.float64)), 96, 96, upscaler)
        picture = (as_picture(pixels) + 1) / 2
    hidden = from_vae(encode(vae, picture.float() * (1 - weight), torch.float64).mode, spec.latent)
    assert torch.allclose(second[:, 1:], cropped(hidden, cells), atol=1e-6)
    concats.clear()
    list(engine.generate(asked(**size, hires_upscaler=upscaler, strength=0.6)))
    assert not torch.allclose(concats[-1], second, atol=1e-3)


def test_the_weight_makes_another_picture_and_is_told_where_it_makes_none(make_engine: Any, finish: Finish) -> None:
    engine, size = make_engine(change=sees_pictures), {"hires_scale": 1.5, "strength": 0.6}
    whole, seen = (finish(engine.generate(asked(**size, mask_weight=weight))) for weight in (1.0, 0.2))
    assert whole.to_numpy().tobytes() != seen.to_numpy().tobytes()
    assert seen.notes == ()
    assert "Conditional mask weight: 0.2" in (seen[0].infotext or "")
    (note,) = finish(engine.generate(asked(mask_weight=0.2))).notes
    assert note == "mask_weight was not used, because there is no image, nor a second pass"


@pytest.mark.parametrize("upscaler", UPSCALERS)
def test_what_the_model_is_shown_survives_a_stop(
    upscaler: str, make_engine: Any, finish: Finish, tmp_path: Path
) -> None:
    engine = make_engine(change=sees_pictures)
    named = {"hires_scale": 1.5, "strength": 0.6, "mask_weight": 0.2, "hires_upscaler": upscaler}
    request = engine.accept(asked(**named))
    expected = finish(engine.generate(request)).to_numpy()
    with Journal.create(tmp_path / "run", {"request": request.to_dict()}) as journal:
        run = engine.generate(request, None, Ledger(journal))
        for _ in run:
            if journal.calls >= 3:
                break
        run.close()
    with Journal.reopen(tmp_path / "run") as journal:
        assert journal.calls == 3
        assert (finish(engine.generate(journal.request, None, Ledger(journal))).to_numpy() == expected).all()


@pytest.mark.parametrize("compat", ["a1111", "comfyui"])
@pytest.mark.parametrize("sampler", [info.name for info in SAMPLERS.values()])
def test_no_strength_is_no_call(sampler: str, compat: str, make_engine: Any) -> None:
    """AUTOMATIC1111's schedule has no steps then. Every sampler gives back what it is given, its k samplers as there."""
    engine = make_engine()
    for one in (
        asked(hires_scale=1.5, strength=0.0, hires_sampler=sampler, compat=compat),
        asked(image=np.zeros((64, 64, 3), np.uint8), exact_steps=True, strength=0.0, sampler=sampler, compat=compat),
    ):
        plan = engine.passes(engine.accept(one))[-1].plan
        assert plan.calls == 0
        noise, latent = plan.noise(0, (8, 8), 8, torch.device("cpu")), torch.randn(1, 4, 8, 8)
        x, _ = plan.first(noise, (4, 8, 8), latent, latent)
        with pytest.raises(StopIteration) as ended:
            next(plan.run(noise, x))
        assert torch.equal(ended.value.value, latent)


@pytest.mark.parametrize("upscaler", UPSCALERS)
def test_a_second_pass_of_no_strength_enlarges(
    upscaler: str, make_engine: Any, latents_of: Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageNoise, "encoding", lambda self: None)
    engine = make_engine()
    spec, vae = engine.model.spec, engine.model.vae
    first = first_latent(engine, latents_of)
    request = engine.accept(asked(hires_scale=1.5, hires_upscaler=upscaler, strength=0.0))
    if upscaler == "Latent":
        expected = enlarge(first, request, 8)
    else:
        pixels = upscaled(to_pixels(decode(vae, first, spec.latent, torch.float32)), 96, 96, upscaler)
        expected = from_vae(encode(vae, as_picture(pixels), torch.float32).mode, spec.latent)
    *_, latent = latents_of(engine, request)  # behind what is decoded on the way
    assert torch.allclose(latent, expected, atol=1e-5)
    *_, noisy = latents_of(engine, engine.accept(replace(request, extra_noise=0.1)))
    assert not torch.allclose(noisy, expected, atol=1e-2)
    steps = [event for event in engine.generate(request) if isinstance(event, Progress) and event.stage == "sample"]
    assert [event.of for event in steps] == [2] * len(steps)
    assert max(event.step for event in steps) == 2
    assert Outlook(engine, request).at(None).calls == 2


def test_a_picture_of_no_strength_is_encoded_and_decoded(
    make_engine: Any, finish: Finish, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine, picture = make_engine(), np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
    encoded: list[Tensor] = []

    def watched(*of: Any) -> Any:
        found = encode(*of)
        encoded.append(found.mode)
        return found

    monkeypatch.setattr(run_module, "encode", watched)
    monkeypatch.setattr(ImageNoise, "encoding", lambda self: None)
    request = engine.accept(asked(image=picture, strength=0.0, exact_steps=True))
    with Journal.create(tmp_path / "run", {"request": request.to_dict()}) as journal:
        made = finish(engine.generate(request, None, Ledger(journal)))
        assert journal.calls == 0
    decoded = decode(
        engine.model.vae, from_vae(encoded[0], engine.model.spec.latent), engine.model.spec.latent, torch.float32
    )
    assert np.abs(made.to_numpy().astype(int) - to_pixels(decoded)).max() <= 1
    with Journal.read(tmp_path / "run") as journal:
        assert (
            finish(engine.generate(journal.request, None, Ledger(journal))).to_numpy().tobytes()
            == made.to_numpy().tobytes()
        )


def test_a_refiner_has_nothing_to_do_in_a_pass_of_no_strength(tiny_checkpoint: Callable[[str], Path]) -> None:
    from avila_diffusion import AvilaDiffusion

    diffusion = AvilaDiffusion.with_model(tiny_checkpoint("sdxl"), refiner=tiny_checkpoint("sdxl_refiner"), threads=1)
    made = diffusion.text_to_image("a cat", steps=2, seed=3, hires_scale=1.5, strength=0.0)
    assert made.notes == ("the refiner was not used; the last call came before refiner_switch",)
