"""Runs that begin with pictures: what must hold whatever the weights are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avila_diffusion.errors import RequestError
from avila_diffusion.infotext import read
from avila_diffusion.metadata.webui import draft_of
from avila_diffusion.pipeline import begin as begin_module
from avila_diffusion.pipeline.engine import ModelEngine
from avila_diffusion.request import GenerateRequest
from avila_diffusion.result import GenerateResult, Progress
from avila_diffusion.sampling.noise import ImageNoise, PhiloxSource

Finish = Callable[[Iterator[Progress | GenerateResult]], GenerateResult]
Latents = Callable[[ModelEngine, GenerateRequest], list[Tensor]]


def photo(width: int = 64, height: int = 64) -> np.ndarray[Any, Any]:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3 % 256, y * 3 % 256, (x + y) * 2 % 256], -1).astype(np.uint8)


def box_mask(width: int = 64, height: int = 64) -> np.ndarray[Any, Any]:
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 4 : width // 2] = 255
    return mask


def asked(**options: Any) -> GenerateRequest:
    values = {"prompt": "a cat", "width": 64, "height": 64, "steps": 4, "sampler": "Euler a", "seed": 3}
    return GenerateRequest.from_dict({**values, **options})


def calls_of(engine: ModelEngine, request: GenerateRequest) -> list[Progress]:
    return [event for event in engine.generate(request) if isinstance(event, Progress) and event.sigma is not None]


@pytest.mark.parametrize(("strength", "calls"), [(0.0, 1), (0.2, 1), (0.25, 2), (0.5, 3), (0.75, 4), (1.0, 4)])
def test_the_share_of_the_steps(strength: float, calls: int, make_engine: Any) -> None:
    engine = make_engine()
    made = calls_of(engine, asked(image=photo(), strength=strength))
    text = calls_of(engine, asked())
    assert [event.sigma for event in made] == [event.sigma for event in text][-calls:]


def test_exact_steps_and_comfyui_run_them_all(make_engine: Any) -> None:
    engine = make_engine()
    assert len(calls_of(engine, asked(image=photo(), strength=0.3, exact_steps=True))) == 4
    assert len(calls_of(engine, asked(image=photo(), strength=0.3, compat="comfyui"))) == 4
    assert not calls_of(engine, asked(image=photo(), strength=0.0, compat="comfyui"))
    # AUTOMATIC1111 runs none either: a schedule of 4 / 0 steps is one of none
    assert not calls_of(engine, asked(image=photo(), strength=0.0, exact_steps=True))


@pytest.mark.parametrize("sampler", ["DDIM", "UniPC", "PLMS"])
@pytest.mark.parametrize("steps", [1, 4])
def test_no_steps_of_samplers_that_walk_timesteps(
    sampler: str, steps: int, make_engine: Any, latents_of: Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At strength 0 they give the picture back with a trace of noise."""
    monkeypatch.setattr(ImageNoise, "encoding", lambda self: None)
    engine = make_engine()
    asking = asked(image=photo(), strength=0.0, sampler=sampler, steps=steps)
    assert not calls_of(engine, asking)
    (latent,) = latents_of(engine, asking)
    (plain,) = latents_of(engine, replace(asking, compat="comfyui", sampler="Euler"))
    assert 0 < float((latent - plain).abs().max()) < 0.2


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DPM++ 2M SDE", "LMS"])
def test_full_strength_on_a_zero_latent_is_text_to_image(
    sampler: str, make_engine: Any, latents_of: Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    (text,) = latents_of(engine, asked(sampler=sampler))
    monkeypatch.setattr(begin_module, "from_vae", lambda z, latent: torch.zeros_like(z))
    (picture,) = latents_of(engine, asked(sampler=sampler, image=photo(), strength=1.0))
    assert torch.equal(picture, text)


@pytest.mark.parametrize("sampler", ["Euler a", "DDIM", "UniPC", "DPM++ 2M SDE", "PLMS"])
@pytest.mark.parametrize("compat", ["a1111", "comfyui"])
def test_a_full_mask_is_image_to_image(sampler: str, compat: str, make_engine: Any, latents_of: Latents) -> None:
    engine = make_engine()
    named = {"sampler": sampler, "compat": compat, "image": photo(), "strength": 0.6}
    (whole,) = latents_of(engine, asked(**named))
    white = np.full((64, 64), 255, np.uint8)
    (masked,) = latents_of(engine, asked(**named, mask=white))
    assert torch.equal(masked, whole)
    black = 255 - white
    (kept,) = latents_of(engine, asked(**named, mask=black))
    (inverted,) = latents_of(engine, asked(**named, mask=black, mask_invert=True))
    assert torch.equal(inverted, whole)
    assert not torch.allclose(kept, whole, atol=1e-2)


@pytest.mark.parametrize("area", ["whole", "masked"])
@pytest.mark.parametrize("compat", ["a1111", "comfyui"])
def test_what_is_not_masked_comes_back(area: str, compat: str, make_engine: Any, finish: Finish) -> None:
    engine = make_engine()
    picture, mask = photo(96, 72), box_mask(96, 72)
    named = {"image": picture, "inpaint_area": area, "compat": compat, "width": 96, "height": 72}
    made = finish(engine.generate(asked(**named, mask=mask, mask_blur=2, mask_padding=8))).to_numpy()
    far = np.ones((72, 96), bool)
    far[72 // 4 - 8 : 72 // 2 + 8, 96 // 4 - 8 : 96 // 2 + 8] = False
    assert (made[far] == picture[far]).all()
    inside = slice(72 // 4 + 4, 72 // 2 - 4), slice(96 // 4 + 4, 96 // 2 - 4)
    assert (made[inside] != picture[inside]).mean() > 0.5
    nothing = finish(engine.generate(asked(**named, mask=0 * mask))).to_numpy()
    assert (nothing == picture).all()


def test_only_masked_goes_back_into_a_picture_of_any_size(make_engine: Any, finish: Finish) -> None:
    picture, mask = photo(201, 133), box_mask(201, 133)
    made = finish(make_engine().generate(asked(image=picture, mask=mask, inpaint_area="masked", mask_padding=4)))
    assert made.to_numpy().shape == picture.shape
    assert made.request.width == 64


@pytest.mark.parametrize("content", ["fill", "original", "noise", "nothing"])
def test_what_the_masked_part_begins_with(content: str, make_engine: Any, latents_of: Latents) -> None:
    engine = make_engine()
    others = []
    for one in ("fill", "original", "noise", "nothing"):
        (latent,) = latents_of(engine, asked(image=photo(), mask=box_mask(), masked_content=one, mask_blur=0))
        others.append((one, latent))
    mine = dict(others)[content]
    assert all(not torch.equal(mine, other) for one, other in others if one != content)


def test_outpainting_adds_and_keeps(make_engine: Any, finish: Finish) -> None:
    picture = photo()
    result = finish(
        make_engine().generate(
            GenerateRequest.from_dict(
                {"prompt": "x", "image": picture, "outpaint": (32, 0, 0, 16), "steps": 2, "seed": 1, "mask_blur": 1}
            )
        )
    )
    made = result.to_numpy()
    assert made.shape == (80, 96, 3)
    assert (made[:60, 40:] == picture[:60, 8:]).all()
    assert len(np.unique(made[70:, :].reshape(-1, 3), axis=0)) > 100


def test_the_size_is_the_pictures(make_engine: Any) -> None:
    engine = make_engine()
    request = engine.accept(GenerateRequest.from_dict({"image": photo(90, 50), "seed": 1}))
    assert (request.width, request.height) == (88, 64)
    one = engine.accept(GenerateRequest.from_dict({"image": photo(128, 64), "seed": 1, "width": 64}))
    assert one.width == 64


def test_the_encoders_distribution_is_drawn_from_a_stream_of_its_own(
    make_engine: Any, latents_of: Latents, monkeypatch: pytest.MonkeyPatch
) -> None:

    def widen(state: dict[str, Tensor]) -> None:
        state["first_stage_model.encoder.conv_out.bias"][4:] = 1.0  # a wide distribution

    engine = make_engine(change=widen)
    request = asked(image=photo(), strength=0.0, sampler="Euler", guidance_scale=1.0)
    begun: list[Any] = []
    right = begin_module.Beginning.of

    def watched(self: Any, *args: Any) -> Any:
        begun.append((right(self, *args), self._picture))
        return begun[-1][0]

    monkeypatch.setattr(begin_module.Beginning, "of", watched)
    latents_of(engine, replace(request, batch=2))
    (first, found), (second, _) = begun
    for seed, begin in ((3, first), (4, second)):
        noise = PhiloxSource(seed ^ 1 << 63).draw((4, 8, 8))[None]
        expected = (found.mean + torch.exp(found.log_variance / 2) * noise) * engine.model.spec.latent.scale
        assert torch.equal(begin.latent, expected)
    latents_of(engine, replace(request, compat="comfyui"))
    assert torch.equal(begun[-1][0].latent, found.mode * engine.model.spec.latent.scale)


@pytest.mark.parametrize("upscaler", ["Latent", "Latent (bicubic antialiased)", "Latent (nearest-exact)", "Lanczos"])
def test_a_second_pass(upscaler: str, make_engine: Any, latents_of: Latents, finish: Finish) -> None:
    engine = make_engine()
    request = asked(hires_scale=1.5, hires_upscaler=upscaler, hires_steps=3, strength=0.5, hires_sampler="Euler")
    result = finish(engine.generate(request))
    assert (result[0].width, result[0].height) == (96, 96)
    events = calls_of(engine, request)
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6, 7]
    assert {event.of for event in events} == {7}
    (first,) = latents_of(engine, asked())
    latents = latents_of(engine, request)
    if upscaler == "Lanczos":
        assert torch.equal(latents[0], first), "the first pass is decoded, and is the run without a second"
    assert latents[-1].shape == (1, 4, 12, 12)
    told = read(result[0].infotext or "").fields
    assert {name: told[name] for name in ("Hires upscale", "Hires upscaler", "Hires steps", "Denoising strength")} == {
        "Hires upscale": "1.5",
        "Hires upscaler": upscaler,
        "Hires steps": "3",
        "Denoising strength": "0.5",
    }
    assert told["Size-1"] == "64"


def test_a_latent_second_pass_by_hand(make_engine: Any, latents_of: Latents) -> None:
    """The first latent, interpolated, as the picture of an image to image with exact steps and the same noise."""
    engine = make_engine(dtype="float64")
    (first,) = latents_of(engine, asked(sampler="Euler"))
    (ours,) = latents_of(engine, asked(sampler="Euler", hires_scale=2, strength=0.6, hires_prompt="a dog"))
    larger = torch.nn.functional.interpolate(first, size=(16, 16), mode="bilinear")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(begin_module, "from_vae", lambda z, latent: larger)
        image = asked(
            sampler="Euler",
            image=photo(128, 128),
            width=128,
            height=128,
            strength=0.6,
            exact_steps=True,
            prompt="a dog",
        )
        (by_hand,) = latents_of(engine, image)
    assert torch.equal(ours, by_hand)


def test_both_sides_of_a_second_pass_are_covered_and_cut(make_engine: Any, finish: Finish) -> None:
    result = finish(make_engine().generate(asked(hires_width=128, hires_height=96, hires_steps=1)))
    assert (result[0].width, result[0].height) == (128, 96)
    one = finish(make_engine().generate(asked(hires_height=96, hires_steps=1)))
    assert (one[0].width, one[0].height) == (96, 96)


def test_whole_numbers_of_a_schedule_go_on_in_the_second_pass(make_engine: Any) -> None:
    engine = make_engine()
    first, second = engine.passes(engine.accept(asked(prompt="[a:b:6] [c:d:1.5]", hires_scale=1.5)))
    texts = [[segment.text for segment in engine._prompts(one).positive[0].segments] for one in (first, second)]
    assert texts == [["a c"], ["a c", "b d"]]


@pytest.mark.parametrize("axis", ["x", "y", "both"])
def test_a_tiled_picture_has_no_seam(axis: str, make_engine: Any, latents_of: Latents) -> None:
    """Rolled noise makes the rolled picture, so no place is special along a wrapped axis."""
    engine = make_engine(dtype="float64")
    plain = asked(tiling=axis, sampler="Euler", guidance_scale=2.0)
    (latent,) = latents_of(engine, plain)
    rolled = {"x": (3,), "y": (2,), "both": (2, 3)}[axis]
    right = ImageNoise.initial
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageNoise, "initial", lambda self, shape: right(self, shape).roll((4,) * len(rolled), rolled))
        (moved,) = latents_of(engine, plain)
        (seamed,) = latents_of(engine, replace(plain, tiling="none"))
    expected = latent.roll((4,) * len(rolled), rolled)
    assert torch.allclose(moved, expected, atol=1e-9)
    assert not torch.allclose(seamed, expected, atol=1e-3)


def test_pictures_that_models_need_are_asked_for(make_engine: Any) -> None:
    def widen(channels: int) -> Callable[[dict[str, Tensor]], None]:
        def change(state: dict[str, Tensor]) -> None:
            name = "model.diffusion_model.input_blocks.0.0.weight"
            state[name] = torch.randn(state[name].shape[0], channels, 3, 3)

        return change

    with pytest.raises(RequestError, match="pix2pix model and follows a picture beside the text; give image"):
        make_engine(change=widen(8)).accept(asked())
    with pytest.raises(RequestError, match="give depth"):
        make_engine(change=widen(5)).accept(asked(image=photo()))
    with pytest.raises(RequestError, match="refiner_switch needs a refiner"):
        make_engine().accept(asked(refiner_switch=0.5))


def test_what_a_picture_tells_asks_for_it_again(make_engine: Any, finish: Finish) -> None:
    request = asked(
        image=photo(),
        mask=box_mask(),
        strength=0.4,
        mask_blur=2,
        mask_invert=True,
        mask_soft=True,
        masked_content="noise",
        inpaint_area="masked",
        mask_padding=8,
        resize_mode="crop",
        extra_noise=0.1,
        noise_multiplier=0.9,
        exact_steps=True,
    )
    image = finish(make_engine().generate(request))[0]
    found = draft_of(read(image.infotext or "")).finish()
    assert found.pictures == {"image": "", "mask": ""}
    assert not found.lost
    told = GenerateRequest.from_dict({**found.request_values, "image": photo(), "mask": box_mask()})
    names: tuple[str, ...] = (
        "strength",
        "mask_blur",
        "mask_invert",
        "mask_soft",
        "masked_content",
        "inpaint_area",
        "mask_padding",
    )
    names += ("resize_mode", "extra_noise", "noise_multiplier", "exact_steps")
    assert {name: getattr(told, name) for name in names} == {name: getattr(request, name) for name in names}


def test_a_request_with_pictures_survives_json() -> None:
    import json

    request = asked(image=photo(), mask=box_mask(), outpaint=(1, 2, 3, 4))
    again = GenerateRequest.from_dict(json.loads(json.dumps(request.to_dict())) | {"outpaint": (1, 2, 3, 4)})
    assert again == request
    assert hash(again.image) == hash(request.image)
