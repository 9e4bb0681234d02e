"""Runs that begin with pictures, and runs of two passes, where programs and kinds of models differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avila_diffusion.errors import RequestError
from avila_diffusion.machine import Memory as MachineMemory
from avila_diffusion.models.plans import least_room_to_encode
from avila_diffusion.pictures import Picture
from avila_diffusion.pipeline import driver
from avila_diffusion.pipeline import memory as memory_module
from avila_diffusion.pipeline import run as run_module
from avila_diffusion.pipeline.branch import Branch
from avila_diffusion.pipeline.engine import ModelEngine
from avila_diffusion.pipeline.forecast import BAND_SCRATCH, Outlook
from avila_diffusion.pipeline.journal import Journal
from avila_diffusion.pipeline.latents import encode
from avila_diffusion.pipeline.ledger import Ledger
from avila_diffusion.pipeline.trail import Trail
from avila_diffusion.request import GenerateRequest
from avila_diffusion.result import GenerateResult, Progress

Finish = Callable[[Iterator[Progress | GenerateResult]], GenerateResult]
Latents = Callable[[ModelEngine, GenerateRequest], list[Tensor]]


def photo(width: int = 64, height: int = 64) -> np.ndarray[Any, Any]:
    return np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)


def asked(**options: Any) -> GenerateRequest:
    values = {"prompt": "a cat", "width": 64, "height": 64, "steps": 4, "sampler": "Euler a", "seed": 3}
    return GenerateRequest.from_dict({**values, **options})


def widened(channels: int) -> Callable[[dict[str, Tensor]], None]:
    """A UNet with so many input channels: 5 depth, 8 instruct-pix2pix, 9 inpainting."""

    def change(state: dict[str, Tensor]) -> None:
        name = "model.diffusion_model.input_blocks.0.0.weight"
        torch.manual_seed(1)
        state[name] = torch.randn(state[name].shape[0], channels, 3, 3) / 8

    return change


def grey_mask() -> np.ndarray[Any, Any]:
    return np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))


def test_comfyui_mixes_a_soft_mask_once(make_engine: Any, latents_of: Latents) -> None:
    """Its samplers end with the mixed x0; AUTOMATIC1111 lays the kept latent over that once more."""
    engine = make_engine(dtype="float64")
    named = {"image": photo(), "mask": grey_mask(), "mask_blur": 0, "sampler": "Euler", "strength": 0.5}
    ended: list[Tensor] = []

    def drive(*of: Any) -> Iterator[Any]:
        for event in driver.drive(*of):
            if isinstance(event, Tensor):
                ended.append(event)
            yield event

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "drive", _closable(drive))
        (comfyui,) = latents_of(engine, asked(**named, compat="comfyui"))
        (a1111,) = latents_of(engine, asked(**named, mask_soft=True))
    assert torch.equal(comfyui, ended[0])
    assert not torch.allclose(a1111, ended[1], atol=1e-3)


def _closable(make: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    return lambda *of: (event for event in make(*of))


@pytest.mark.parametrize("soft", [False, True])
def test_inpainting_models_are_shown_a_rounded_mask_as_comfyui(
    soft: bool, make_engine: Any, concats: list[Tensor]
) -> None:
    engine = make_engine(change=widened(9))
    named = {"image": photo(), "mask": grey_mask(), "mask_blur": 0, "mask_soft": soft}
    list(engine.generate(asked(**named, compat="comfyui")))
    assert set(concats[-1][:, :1].flatten().tolist()) == {0.0, 1.0}
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(grey_mask().astype(np.float32) / 255)[None, None], size=(8, 8), mode="bilinear"
    ).round()
    assert torch.equal(concats[-1][:, :1], expected)
    hidden = concats[-1][:, 1:]
    list(engine.generate(asked(**named | {"mask": (grey_mask() > 127).astype(np.uint8) * 255}, compat="comfyui")))
    assert torch.equal(concats[-1][:, 1:], hidden), "the picture is hidden by the rounded mask"
    list(engine.generate(asked(**named)))
    assert (len(set(concats[-1][:, :1].flatten().tolist())) > 2) == soft


def test_a_depth_model_follows_its_map_in_the_second_pass(make_engine: Any, concats: list[Tensor]) -> None:
    engine = make_engine(change=widened(5))
    list(engine.generate(asked(depth=photo()[:, :, 0], hires_scale=1.5, strength=0.6, steps=2)))
    assert [tuple(one.shape) for one in concats] == [(1, 1, 8, 8)] * 2 + [(1, 1, 12, 12)] * 2
    assert concats[-1].min() == -1 and concats[-1].max() == 1


def test_edit_models_refuse_several_prompts_before_any_work(make_engine: Any) -> None:
    engine = make_engine(change=widened(8))
    several = asked(prompt="a cat AND a dog", image=photo())
    with pytest.raises(RequestError, match="leave out AND"):
        engine.accept(several)
    engine.accept(replace(several, image_guidance_scale=1.0))


def test_edit_models_know_no_ngms(make_engine: Any, latents_of: Latents) -> None:
    """AUTOMATIC1111 never leaves their negative prompt out for it."""
    engine = make_engine(change=widened(8))
    request = asked(image=photo(), ngms=100.0, ngms_all=True)
    (made,) = latents_of(engine, request)
    (without,) = latents_of(engine, replace(request, ngms=0.0, ngms_all=False))
    assert torch.equal(made, without)
    *_, result = engine.generate(request)
    assert isinstance(result, GenerateResult)
    assert any("ngms" in note for note in result.notes)
    (plain,) = latents_of(engine, replace(request, image_guidance_scale=1.0))
    (guided,) = latents_of(engine, replace(request, image_guidance_scale=1.0, ngms=0.0, ngms_all=False))
    assert not torch.equal(plain, guided)


@pytest.mark.parametrize(
    ("sampler", "compat"), [("PLMS", "a1111"), ("Heun", "comfyui"), ("PLMS", "comfyui"), ("DPM++ 2S a", "comfyui")]
)
def test_what_is_not_walked_takes_no_calls(sampler: str, compat: str, make_engine: Any) -> None:
    engine = make_engine()
    request = engine.accept(asked(image=photo(), strength=0.0, sampler=sampler, compat=compat))
    (one,) = engine.passes(request)
    assert one.plan.calls == 0
    if sampler == "Heun":
        assert Outlook(engine, request).at(None).calls == 0


@pytest.mark.parametrize("at", [2, 3])
def test_a_branch_behind_the_first_pass_takes_no_answers_of_the_second(
    at: int, make_engine: Any, finish: Finish, tmp_path: Path
) -> None:
    engine: ModelEngine = make_engine()
    request = engine.accept(asked(steps=3, hires_scale=1.5, strength=0.6, hires_steps=5))
    with Journal.create(tmp_path / "run", {"request": request.to_dict()}) as journal:
        finish(engine.generate(request, None, Ledger(journal)))
        assert journal.calls == 8
    changed = replace(request, prompt="a dog")
    with Journal.read(tmp_path / "run") as journal:
        journal.cut(at)
        assert journal.calls == at
        trail = Trail()
        finish(engine.generate(changed, None, Ledger(journal, 0, Branch(at, request), trail)))
    second = Trail()
    finish(engine.generate(replace(request, hires_prompt="a dog"), None, Ledger(trail=second)))
    same = [one.answered == other.answered for one, other in zip(trail.pictures[0], second.pictures[0], strict=True)]
    assert same[:at] == [True] * at
    assert same[3:] == [at == 3] * 5


def test_auto_looks_at_the_largest_map(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    needs = memory_module.SPARE + memory_module.SPARE_A_PIXEL * 64 * 64 + memory_module.most_kept(engine.model)
    available = int((needs + (1 << 20)) / memory_module.SHARE) + 2
    monkeypatch.setattr(memory_module, "machine_memory", lambda: MachineMemory(10**12, available))
    looked: list[GenerateRequest] = []

    def outlook(engine: ModelEngine, request: GenerateRequest) -> Outlook:
        looked.append(request)
        return Outlook(engine, request)

    monkeypatch.setattr(memory_module, "Outlook", outlook)
    for options in ({"hires_scale": 2.0}, {"image": photo(256, 256), "resize_mode": "latent"}):
        request = engine.accept(asked(**options))
        looked.clear()
        memory_module.choose_way(engine, request)
        assert looked == [request]
    looked.clear()
    memory_module.choose_way(engine, engine.accept(asked()))
    assert not looked


def test_what_is_cut_off_afterwards_is_encoded_first(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    request = engine.accept(asked(hires_width=128, hires_height=64, hires_upscaler="Lanczos", steps=1))
    encoded: list[tuple[int, ...]] = []

    def watched(vae: Any, picture: Tensor, *rest: Any) -> Any:
        encoded.append(tuple(picture.shape[2:]))
        return encode(vae, picture, *rest)

    monkeypatch.setattr(run_module, "encode", watched)
    list(engine.generate(request))
    outlook = Outlook(engine, request)
    assert encoded == [outlook.encoded] == [(128, 128)]
    assert outlook.latent == (8, 16)


def test_encoding_is_forecast_with_what_is_kept_and_in_bands(make_engine: Any) -> None:
    engine = make_engine()
    outlook = Outlook(engine, engine.accept(asked(image=photo(1024, 1024), resize_mode="latent")))
    kept = outlook.rehearsed(None).kept
    whole = outlook.at(kept)
    assert whole.peak_bytes - whole.base_bytes >= outlook.encoding + kept
    room = outlook.encoding
    banded = outlook.at(0, encode_room=room)
    assert banded.peak_bytes - banded.base_bytes >= room + BAND_SCRATCH
    text = Outlook(engine, engine.accept(asked(count=2))).at(0)
    pixels = Outlook(engine, engine.accept(asked(count=2, hires_scale=1.0, hires_upscaler="Lanczos", strength=0.5)))
    made = pixels.at(0)
    assert made.seconds > text.seconds + 2 * text.decode_seconds


def test_pictures_are_encoded_as_they_are_where_they_have_a_cell(make_engine: Any, finish: Finish) -> None:
    engine = make_engine()
    for size in ((8, 8), (117, 30)):
        made = finish(engine.generate(asked(image=photo(*size), resize_mode="latent", steps=1)))
        assert made.to_numpy().shape == (64, 64, 3)
    for size in ((1, 1), (7, 300)):
        with pytest.raises(RequestError, match=f"image is {size[0]}x{size[1]}, and resize_mode latent .* resize_mode"):
            engine.accept(asked(image=photo(*size), resize_mode="latent"))


def test_odd_sizes_are_encoded_in_bands_as_whole(make_engine: Any) -> None:
    engine = make_engine(dtype="float64")
    vae, picture = engine.model.vae, torch.rand(1, 3, 301, 117, dtype=torch.float64) * 2 - 1
    whole = encode(vae, picture, torch.float64)
    banded = encode(vae, picture, torch.float64, room=least_room_to_encode(engine.model.spec.vae, 301, 117, 8))
    assert whole.mean.shape == (1, 4, 37, 14)
    assert torch.allclose(banded.mean, whole.mean, atol=1e-9)


def test_pictures_in_json_are_named_in_errors() -> None:
    with pytest.raises(RequestError, match=r"\Amask:"):
        GenerateRequest.from_dict({"image": Picture.of(photo(), "image"), "mask": {"base64": 3}})


def test_edit_models_are_forecast_with_three_rows(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(change=widened(8))
    request = engine.accept(asked(image=photo(), steps=1, strength=1.0))
    rows: list[tuple[int, int]] = []
    right = engine.model.unet.forward

    def forward(x: Tensor, t: Tensor, context: Tensor, **named: Any) -> Any:
        rows.append((len(x), len(context)))
        return right(x, t, context, **named)

    monkeypatch.setattr(engine.model.unet, "forward", forward)
    list(engine.generate(request))
    assert rows == [(3, 3)]
    edits, plain = Outlook(engine, request), Outlook(engine, replace(request, image_guidance_scale=1.0))
    assert edits.texts[0].batches == ((3, 77),) and plain.texts[0].batches == ((2, 77),)
    assert edits.rehearsed(0).step.peak > plain.rehearsed(0).step.peak


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ("Euler a", "DPM++ 2S a", {"eta": 0.5, "s_noise": 0.9}),
        ("Euler a", "DDIM", {"eta": None, "s_noise": None}),
        ("Euler a", "DPM++ 2M", {"eta": None, "s_noise": None}),
        ("Euler a", "Euler a", {"eta": 0.5, "s_noise": 0.9}),
    ],
)
def test_the_second_pass_takes_the_options_that_its_sampler_has(
    first: str, second: str, kept: dict[str, float | None], make_engine: Any
) -> None:
    """AUTOMATIC1111's eta and noise options are of a request, not of a sampler."""
    request = asked(sampler=first, eta=0.5, s_noise=0.9, hires_scale=1.5, hires_sampler=second)
    engine = make_engine()
    last = engine.passes(engine.accept(request))[-1].request
    assert {name: getattr(last, name) for name in kept} == kept


@pytest.mark.parametrize("channels", [8, 9])
def test_half_precision_draws_about_the_same(channels: int, make_engine: Any, latents_of: Latents) -> None:
    """Whatever is put together with what a VAE in half precision made has the latents' own dtype."""
    options: dict[str, Any] = {"image": photo(), "strength": 0.5, "guidance_scale": 1.5, "sampler": "Euler"}
    options |= {"mask": grey_mask(), "masked_content": "noise"} if channels == 9 else {}
    (exact,) = latents_of(make_engine(change=widened(channels)), asked(**options))
    (half,) = latents_of(make_engine(change=widened(channels), dtype="bfloat16"), asked(**options))
    assert half.dtype == exact.dtype == torch.float32
    assert (half - exact).abs().mean() < 0.05 * exact.abs().mean()
