"""Whole runs on tiny models: events, cancelling, seeds, guidance, dtypes, sizes, and what is refused before any work."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from avila_diffusion.errors import Cancelled, NotFinite, RequestError
from avila_diffusion.images import resize
from avila_diffusion.limits import MAX_SEED
from avila_diffusion.models.text_keys import TextKeys
from avila_diffusion.pipeline import engine as engine_module
from avila_diffusion.pipeline import plan as plan_module
from avila_diffusion.pipeline.engine import ModelEngine
from avila_diffusion.pipeline.latents import draw_preview
from avila_diffusion.request import GenerateRequest
from avila_diffusion.result import GenerateResult, Progress
from avila_diffusion.sampling.names import SAMPLERS, resolve_schedule
from avila_diffusion.sampling.samplers import sample
from avila_diffusion.sampling.schedules import calls, sampler_sigmas

State = dict[str, Tensor]
LONG = " ".join(["cat"] * 80)
"""A prompt of two chunks."""


def ask(**options: Any) -> GenerateRequest:
    """Two quick steps unless told otherwise."""
    values: dict[str, Any] = {"prompt": "a cat", "width": 64, "height": 64, "steps": 2, "sampler": "Euler", "seed": 7}
    return GenerateRequest(**{**values, **options})


@contextmanager
def counted(engine: ModelEngine, during: Callable[[int], None] = lambda number: None) -> Iterator[list[str]]:
    """Which network was run, for every run of one; `during` is called inside of it with its number, from 0."""
    made: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            made.append(name)
            during(len(made) - 1)

        return note

    networks: list[tuple[str, nn.Module]] = [("unet", engine.model.unet), ("vae", engine.model.vae.decoder)]
    networks += [("text", tower) for tower in engine.model.text]
    handles = [network.register_forward_pre_hook(hook(name)) for name, network in networks]
    try:
        yield made
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watched_unet(engine: ModelEngine) -> Iterator[list[dict[str, Any]]]:
    """The inputs of every call of the UNet."""
    seen: list[dict[str, Any]] = []
    handle = engine.model.unet.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs), with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("key", SAMPLERS)
def test_events(key: str, make_engine: Any) -> None:
    engine, info = make_engine(), SAMPLERS[key]
    request = ask(sampler=info.name, steps=4, count=2, guidance_scale=1)
    *events, result = engine.generate(request)
    assert isinstance(result, GenerateResult) and all(isinstance(event, Progress) for event in events)
    levels = sampler_sigmas(info, resolve_schedule("Automatic"), 4, engine.table)
    of = calls(info, levels) or 0
    # Where only the run can tell, each picture has its own number.
    made = [of or sum(event.image == image and event.step > 0 for event in events) for image in range(2)]
    assert min(made) > 2
    expected = [("text", 0, 0, 0)]
    for image in range(2):
        expected += [("sample", image, step, of) for step in range(made[image] + 1)] + [("decode", image, 0, 0)]
    assert [(event.stage, event.image, event.step, event.of) for event in events] == expected
    assert {event.images for event in events} == {2}
    for image in range(2):
        sigmas = [event.sigma for event in events if event.image == image and event.sigma is not None]
        assert len(sigmas) == made[image]
        assert info.calls != "one" or info.grid == "range" or sigmas == sorted(set(sigmas), reverse=True)
    told = [event.sigma is not None and event.preview is not None for event in events]
    assert told == [event.step > 0 for event in events]
    assert result.seconds > 0 and result.report is engine.model.report
    assert result.request == request.resolved(64)


def test_previews_are_made_when_they_are_called_and_change_nothing(
    make_engine: Any, finish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, made = make_engine(), list[torch.Size]()

    def watched(x0: Tensor, *given: Any) -> Any:
        made.append(x0.shape)
        return draw_preview(x0, *given)

    monkeypatch.setattr(engine_module, "draw_preview", watched)
    request = ask(sampler="DPM++ 2M", steps=4, width=72, height=104)
    plain = finish(engine.generate(request))
    assert made == []
    pictures = []
    for event in engine.generate(request):
        if isinstance(event, Progress) and event.preview is not None:
            pictures += [event.preview(), event.preview()]
        elif isinstance(event, GenerateResult):
            assert (event.to_numpy() == plain.to_numpy()).all()
    assert len(made) == len(pictures) == 8
    assert {(picture.width, picture.height) for picture in pictures} == {(9, 13)}
    assert (pictures[0].pixels == pictures[1].pixels).all() and (pictures[0].pixels != pictures[7].pixels).any()


SLOW_WAY = {"prompt": LONG, "negative_prompt": "rain", "count": 2}
"""Every kind of call: towers on several chunks, two UNet calls a step, two pictures."""
EVERY_CALL = ["text"] * 3 + (["unet"] * 4 + ["vae"]) * 2


def test_cancelled_inside_any_call(make_engine: Any) -> None:
    engine, request = make_engine(), ask(**SLOW_WAY)
    with counted(engine) as made:
        list(engine.generate(request))
    assert made == EVERY_CALL
    for last in range(len(EVERY_CALL)):
        cancel = threading.Event()
        with (
            counted(engine, lambda number, c=cancel, k=last: c.set() if number == k else None) as made,  # type: ignore[misc]
            pytest.raises(Cancelled, match=r"^cancelled; nothing was written$"),
        ):
            for event in engine.generate(request, cancel):
                assert not isinstance(event, GenerateResult)
        assert made == EVERY_CALL[: last + 1]


def test_cancelled_at_any_event(make_engine: Any, finish: Any) -> None:
    engine, request = make_engine(), ask(**SLOW_WAY)
    before = finish(engine.generate(request))
    total = len(list(engine.generate(request))) - 1
    for last in range(-1, total):
        cancel, before_cancel = threading.Event(), 0
        if last < 0:
            cancel.set()
        with counted(engine) as made, pytest.raises(Cancelled):
            for number, event in enumerate(engine.generate(request, cancel)):
                assert not isinstance(event, GenerateResult)
                if number == last:
                    cancel.set()
                    before_cancel = len(made)
        assert len(made) == before_cancel
    after = finish(engine.generate(request, threading.Event()))
    assert [image.pixels.tobytes() for image in after] == [image.pixels.tobytes() for image in before]


def test_cancelled_before_it_begins(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, cancel = make_engine(), threading.Event()
    monkeypatch.setattr(engine_module, "hash_in_background", lambda path: pytest.fail("work was begun"))
    run = engine.generate(ask(), cancel)
    cancel.set()
    with pytest.raises(Cancelled):
        next(run)


def test_closing_early_releases_the_run(make_engine: Any, finish: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, request = make_engine(), ask(steps=4)
    before = finish(engine.generate(request))
    latents: list[weakref.ref[Tensor]] = []
    closed: list[str] = []

    def watched(sampler: Any, x: Tensor, *rest: Any, **options: Any) -> Any:
        latents.append(weakref.ref(x))
        try:
            return (yield from sample(sampler, x, *rest, **options))
        finally:
            closed.append(sampler.key)

    monkeypatch.setattr(plan_module, "sample", watched)
    run = engine.generate(request)
    for _ in range(4):
        next(run)
    assert latents[0]() is not None and closed == []
    run.close()
    gc.collect()
    assert closed == ["euler"] and latents[0]() is None
    assert (finish(engine.generate(request)).to_numpy() == before.to_numpy()).all()


def test_nothing_global_is_touched(make_engine: Any, finish: Any) -> None:
    def state() -> list[Any]:
        return [
            torch.get_rng_state().tolist(),
            str(np.random.get_state()),
            random.getstate(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.mkldnn.enabled,
        ]

    engine, before = make_engine(), state()
    for rng in ("nv", "cpu"):
        for event in engine.generate(ask(sampler="Euler a", rng=rng)):
            assert state() == before, event
    run = engine.generate(ask())
    for _ in range(3):
        next(run)
    run.close()
    assert state() == before


@pytest.mark.parametrize(
    ("key", "rng"), [*((key, "nv") for key in SAMPLERS), ("euler_ancestral", "cpu"), ("dpmpp_sde", "cpu")]
)
def test_a_picture_of_a_job_is_the_one_made_alone(key: str, rng: Any, make_engine: Any, finish: Any) -> None:
    engine = make_engine()
    request = ask(sampler=SAMPLERS[key].name, steps=3, rng=rng, seed=41, guidance_scale=1)
    together = finish(engine.generate(replace(request, batch=2)))
    one_by_one = finish(engine.generate(replace(request, count=2)))
    assert [image.seed for image in together] == [41, 42]
    alone = [finish(engine.generate(replace(request, seed=seed)))[0] for seed in (41, 42)]
    for made in (together, one_by_one):
        assert [image.pixels.tobytes() for image in made] == [image.pixels.tobytes() for image in alone]
    assert alone[0].pixels.tobytes() != alone[1].pixels.tobytes()


@pytest.mark.parametrize("key", ["euler_ancestral", "dpmpp_sde", "ddim", "uni_pc", "euler_ancestral_cfg_pp", "lcm"])
def test_a_picture_of_a_guided_job_is_the_one_made_alone(key: str, make_engine: Any, finish: Any) -> None:
    """In ComfyUI's way a picture's noise is its part of the batch's: alone it says which of how many it is."""
    engine = make_engine()
    request = ask(sampler=SAMPLERS[key].name, steps=3, seed=41, guidance_scale=3, negative_prompt="rain")
    together = finish(engine.generate(replace(request, batch=3)))
    alone = [finish(engine.generate(replace(request, seed=seed)))[0] for seed in (41, 42, 43)]
    assert [image.pixels.tobytes() for image in together] == [image.pixels.tobytes() for image in alone]
    assert len({image.pixels.tobytes() for image in alone}) == 3
    request = replace(request, compat="comfyui")
    together = finish(engine.generate(replace(request, batch=3)))
    parts = [replace(request, noise_batch=3, noise_index=index) for index in range(3)]
    alone = [finish(engine.generate(part))[0] for part in parts]
    assert [image.pixels.tobytes() for image in together] == [image.pixels.tobytes() for image in alone]
    assert len({image.pixels.tobytes() for image in alone}) == 3


@pytest.mark.parametrize(
    ("sampler", "steps", "ngms", "guided"),
    [
        # AUTOMATIC1111's DDIM of 10 steps asks at timesteps 901, 801, … 101 and ends at 1; its "sigma" is that number.
        ("DDIM", 10, 701.0, [2, 2, 2, 1, 2, 1, 2, 1, 2]),
        ("DDIM", 10, 14.0, [2] * 9),  # all sigmas are below 14, all timesteps above
        ("PLMS", 10, 101.5, [2] * 9 + [1]),  # its first step takes two calls
        ("UniPC", 10, 100.0, [2, 2, 2, 2, 2, 2, 2, 2, 2, 1]),  # 999, 899.1, … 99.9
        ("Euler", 10, 14.0, [2, 1, 2, 1, 2, 1, 2, 1, 2, 1]),  # sigmas, as everywhere else
    ],
)
def test_ngms_is_compared_with_what_the_sampler_hands_on(
    sampler: str, steps: int, ngms: float, guided: list[int], make_engine: Any, finish: Any, monkeypatch: Any
) -> None:
    engine = make_engine()
    seen: list[int] = []
    forward = engine.model.unet.forward

    def counted(x: torch.Tensor, *inputs: Any, **named: Any) -> Any:
        seen.append(len(named["context"]))
        return forward(x, *inputs, **named)

    monkeypatch.setattr(engine.model.unet, "forward", counted)
    finish(engine.generate(ask(sampler=sampler, steps=steps, guidance_scale=3, ngms=ngms, negative_prompt="rain")))
    assert seen == guided


def test_the_rest_of_a_request_changes_the_picture(make_engine: Any, finish: Any) -> None:
    engine = make_engine()
    request = ask(sampler="Euler a", steps=3, guidance_scale=3, negative_prompt="rain")
    changes: list[dict[str, Any]] = [
        {}, {"prompt": "a dog"}, {"negative_prompt": "snow"}, {"negative_prompt": ""}, {"seed": 0}, {"rng": "cpu"},
        {"eta": 0.5}, {"steps": 4}, {"schedule": "Karras"}, {"sampler": "Euler"}, {"guidance_scale": 3.5}, {"clip_skip": 2},
    ]  # fmt: skip
    pictures = {finish(engine.generate(replace(request, **change))).to_numpy().tobytes() for change in changes}
    assert len(pictures) == len(changes)
    assert finish(engine.generate(request)).to_numpy().tobytes() in pictures


def test_the_same_request_and_the_same_file_give_the_same_bytes(make_engine: Any, finish: Any) -> None:
    request = ask(sampler="DPM2 a", seed=0)
    first = make_engine()
    pixels = [finish(engine.generate(request)).to_numpy().tobytes() for engine in (first, first, make_engine())]
    assert len(set(pixels)) == 1


@pytest.mark.parametrize("seed", [None, -1])
def test_a_drawn_seed_is_told(seed: int | None, make_engine: Any, finish: Any) -> None:
    engine = make_engine()
    result = finish(engine.generate(ask(seed=seed)))
    again = finish(engine.generate(ask(seed=result.seed)))
    assert result.seed == result.request.seed == result[0].seed
    assert (again.to_numpy() == result.to_numpy()).all()
    assert finish(engine.generate(ask(seed=seed))).seed != result.seed


@pytest.mark.parametrize("rng", ["nv", "cpu"])
def test_seeds_go_on_from_0_after_the_largest(rng: Any, make_engine: Any, finish: Any) -> None:
    engine = make_engine()
    made = finish(engine.generate(ask(seed=MAX_SEED, batch=2, rng=rng)))
    assert [image.seed for image in made] == [2**64 - 1, 0]
    assert (made[1].pixels == finish(engine.generate(ask(seed=0, rng=rng)))[0].pixels).all()
    assert (made[0].pixels != made[1].pixels).any()


@pytest.mark.parametrize(
    ("options", "texts", "batches"),
    [
        ({"guidance_scale": 1}, 1, [1, 1]),
        ({"guidance_scale": 1, "negative_prompt": LONG}, 1, [1, 1]),
        ({"guidance_scale": 7}, 2, [2, 2]),
        ({"guidance_scale": 0}, 2, [2, 2]),
        ({"guidance_scale": 1.5, "prompt": LONG, "negative_prompt": LONG}, 4, [2, 2]),
        ({"guidance_scale": 7, "prompt": LONG}, 3, [1, 1, 1, 1]),
        ({"guidance_scale": 7, "negative_prompt": LONG}, 3, [1, 1, 1, 1]),
    ],
)
def test_network_evaluations(
    options: dict[str, Any], texts: int, batches: list[int], make_engine: Any, finish: Any
) -> None:
    engine = make_engine()
    with watched_unet(engine) as seen, counted(engine) as made:
        finish(engine.generate(ask(**options)))
    assert made.count("text") == texts
    assert [len(inputs["context"]) for inputs in seen] == batches
    assert all(inputs["guidance"] is None for inputs in seen)


def test_scale_0_is_the_negative_prompt(make_engine: Any, latents_of: Any) -> None:
    engine = make_engine(dtype="float64")
    (nothing,) = latents_of(engine, ask(prompt="a cat", negative_prompt="a dog", guidance_scale=0))
    (dog,) = latents_of(engine, ask(prompt="a dog", guidance_scale=1))
    torch.testing.assert_close(nothing, dog, rtol=0, atol=1e-9)


def add_guidance_embedding(state: State) -> None:
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(5)) / 32**0.5
    state["model.diffusion_model.time_embed.cond_proj.weight"] = weight


def test_a_guidance_embedding_is_told_the_scale(make_engine: Any, latents_of: Any) -> None:
    engine = make_engine(change=add_guidance_embedding, dtype="float64")
    request = ask(steps=1, guidance_scale=5.5, negative_prompt="rain")
    with watched_unet(engine) as seen, counted(engine) as made:
        (latent,) = latents_of(engine, request)
    assert made == ["text", "unet", "vae"]
    (inputs,) = seen
    assert inputs["guidance"].tolist() == [5.5] and len(inputs["x"]) == 1
    sigma = engine.table.sigma_max
    x = inputs["x"] * (1 + sigma**2) ** 0.5
    with torch.no_grad():
        predicted = engine.model.unet(
            inputs["x"], inputs["t"], inputs["context"], guidance=torch.tensor([5.5], dtype=torch.float64)
        )
    torch.testing.assert_close(latent, x - sigma * predicted, rtol=0, atol=1e-9)
    (other,) = latents_of(engine, replace(request, guidance_scale=1.0))
    assert float((other - latent).abs().max()) > 1e-3
    (same,) = latents_of(engine, replace(request, negative_prompt="snow"))
    assert torch.equal(same, latent)


@pytest.fixture
def exact(make_engine: Any, finish: Any) -> np.ndarray:
    """The picture of `ask(steps=3)` in float32."""
    return finish(make_engine().generate(ask(steps=3))).to_numpy().astype(int)


@pytest.mark.parametrize(
    # In steps of 1/255, on activations of order one. Measured: 0.0001 and 1, 0.3 and 2, 2.0 and 14.
    ("dtype", "mean", "most"),
    [("float64", 0.01, 1), ("float16", 1.0, 8), ("bfloat16", 5.0, 48)],
)
def test_dtypes(dtype: str, mean: float, most: int, make_engine: Any, finish: Any, exact: np.ndarray) -> None:
    engine, kind = make_engine(dtype=dtype), getattr(torch, dtype)
    with watched_unet(engine) as seen:
        pixels = finish(engine.generate(ask(steps=3))).to_numpy().astype(int)
    assert {inputs["x"].dtype for inputs in seen} == {inputs["context"].dtype for inputs in seen} == {kind}
    assert {inputs["t"].dtype for inputs in seen} == {torch.float64 if dtype == "float64" else torch.float32}
    difference = np.abs(pixels - exact)
    assert difference.mean() < mean and difference.max() <= most
    assert exact.std() > 20  # a picture that shows differences


@pytest.mark.parametrize("family", ["sd2", "sdxl", "sdxl_refiner"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_families_in_each_dtype(family: str, dtype: str, make_engine: Any, finish: Any) -> None:
    pixels = finish(make_engine(family, dtype=dtype).generate(ask())).to_numpy()
    assert pixels.shape == (64, 64, 3) and pixels.std() > 10


def swell(state: State) -> None:
    """Activations beyond float16's largest number, which the norms of float32 bring back."""
    state["first_stage_model.decoder.conv_in.weight"] *= 1e6


def test_a_vae_that_overflows_in_half_precision(make_engine: Any, finish: Any) -> None:
    single = make_engine(change=swell)
    half = ModelEngine.of(single.model, replace(single.policy, vae=torch.float16))
    expected = finish(single.generate(ask()))
    with counted(half) as made:
        mended = finish(half.generate(ask()))
    assert made.count("vae") == 2
    assert (mended.to_numpy() == expected.to_numpy()).all()
    assert expected.to_numpy().std() > 10


DAMAGE = {
    "model.diffusion_model.middle_block.0.in_layers.2.weight": r"the network returned NaN or infinity at sigma 14\.61",
    "first_stage_model.decoder.mid.block_1.conv1.weight": "the VAE returned NaN or infinity",
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": "text encoder 1 returned NaN or infinity",
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_damage_gives_no_picture(name: str, dtype: str, make_engine: Any) -> None:
    def spoil(state: State) -> None:
        state[name].view(-1)[3] = float("nan")

    engine = make_engine(change=spoil, dtype=dtype)
    with pytest.raises(NotFinite, match=DAMAGE[name]) as caught:
        for event in engine.generate(ask()):
            assert isinstance(event, Progress)
    assert "\n" not in str(caught.value)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("width", "height"), [(72, 104), (136, 64), (64, 72)])
def test_sizes(width: int, height: int, make_engine: Any, finish: Any) -> None:
    image = finish(make_engine().generate(ask(width=width, height=height)))[0]
    assert (image.width, image.height) == (width, height) == image.to_pil().size
    assert image.pixels.std() > 10


def test_the_default_size_is_the_models(make_engine: Any, finish: Any) -> None:
    engine = make_engine(size="96")
    result = finish(engine.generate(ask(width=None, height=72)))
    assert (result.request.width, result.request.height) == (96, 72) == result.to_pil().size


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"width": 500}, "^width 500 is not a multiple of 8; 496 or 504 would do$"),
    ({"height": 500}, "^height 500 is not a multiple of 8; 496 or 504 would do$"),
    ({"width": 56}, "^width 56 is too small; the smallest is 64$"),
    ({"height": 1}, "^height 1 is too small; the smallest is 64$"),
    ({"eta": 0.5}, "^Euler takes no eta; it takes s_churn, s_tmin, s_tmax, s_noise; leave it out"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED)
def test_refused_before_any_work(
    options: dict[str, Any], words: str, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    monkeypatch.setattr(engine_module, "hash_in_background", lambda path: pytest.fail("work was begun"))
    with counted(engine) as made, pytest.raises(RequestError, match=words):
        engine.generate(ask(**options))
    assert made == []


def reshape(name: str, axis: int, channels: int) -> Callable[[State], None]:
    """A tensor with another number of channels along an axis."""

    def change(state: State) -> None:
        weight = state[name]
        shape = [channels if place == axis else size for place, size in enumerate(weight.shape)]
        state[name] = torch.zeros(shape)

    return change


FIRST = "model.diffusion_model.input_blocks.0.0.weight"
OTHER_MODELS: dict[str, tuple[Callable[[State], None], str]] = {
    "8 channels": (
        reshape(FIRST, 1, 8),
        "^changed is a pix2pix model and follows a picture beside the text; give image, or take a base model",
    ),
    "5 channels": (reshape(FIRST, 1, 5), "^changed is a depth model and .* give depth, or"),
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_models_that_follow_pictures_are_refused_without(kind: str, make_engine: Any) -> None:
    change, words = OTHER_MODELS[kind]
    engine = make_engine(change=change)
    assert engine.model.report.used["unet"] > 0
    with counted(engine) as made, pytest.raises(RequestError, match=words) as caught:
        engine.generate(ask())
    assert made == [] and "\n" not in str(caught.value)


def test_a_model_of_one_size_draws_at_it_and_resizes(make_engine: Any, finish: Any) -> None:
    engine = make_engine(fixed_size="true", default_size="96")
    plain = finish(engine.generate(ask(width=64, height=64)))
    assert plain.drawn_at is None and "Drawn at" not in plain[0].infotext
    large = finish(engine.generate(ask(width=None, height=None)))
    assert (large.request.width, large.request.height, large.drawn_at) == (96, 96, (64, 64))
    assert (large.to_numpy() == resize(plain.to_numpy(), 96, 96)).all()
    assert "Size: 96x96, " in large[0].infotext
    assert ", Drawn at: 64x64, Resized with: Lanczos, Version: " in large[0].infotext


def test_seed_resize_is_measured_in_what_was_asked_for(make_engine: Any, finish: Any) -> None:
    engine = make_engine(fixed_size="true")
    request = ask(width=128, height=128)
    plain, same, half = (
        finish(engine.generate(replace(request, seed_width=side, seed_height=side))).to_numpy()
        for side in (None, 128, 64)
    )
    assert (same == plain).all()
    assert (half != plain).any()


@pytest.mark.parametrize("prompt", ["a [cat:dog:2]", "[cat|dog]", f"cat AND {LONG}"])
def test_texts_seen_before_change_no_picture(
    prompt: str, make_engine: Any, latents_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ask(prompt=prompt, negative_prompt="rain", steps=4, guidance_scale=5)
    engine = make_engine()
    (found,) = latents_of(engine, request)
    calls: list[int] = []
    layer = next(module for name, module in engine.model.unet.named_modules() if name.endswith("attn2.to_k"))
    layer.register_forward_hook(lambda *_: calls.append(1))
    (again,) = latents_of(engine, request)
    assert len(calls) == (1 if prompt.startswith("cat") else 2) + ("AND" in prompt), "once for each text"
    monkeypatch.setattr(TextKeys, "of", lambda keys, layer, text: layer(text))
    (plain,) = latents_of(engine, request)
    assert torch.equal(found, plain)
    assert torch.equal(again, plain)
