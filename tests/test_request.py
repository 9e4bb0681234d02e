"""The request: every limit at its edge, every wrong type, what is filled in, and errors of one line."""

from __future__ import annotations

import math
import secrets
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest

from avila_diffusion.errors import AvilaError, RequestError
from avila_diffusion.limits import MAX_PIXELS, MAX_PROMPT, MAX_SEED
from avila_diffusion.pictures import Picture
from avila_diffusion.request import GenerateRequest
from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES

FIELDS = {
    "prompt", "negative_prompt", "width", "height", "steps", "sampler", "schedule", "guidance_scale", "seed", "batch",
    "count", "clip_skip", "compat", "emphasis", "rng", "ensd", "variation_seed", "variation_strength", "seed_width",
    "seed_height", "noise_batch", "noise_index", "eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "sigmas", "rho",
    "sigma_min", "sigma_max",
    "guidance_list", "guidance_rescale", "guidance_start", "guidance_stop", "skip_early", "ngms", "ngms_all",
    "image", "mask", "depth", "strength", "exact_steps", "extra_noise", "noise_multiplier", "resize_mode",
    "image_guidance_scale", "mask_blur", "mask_invert", "mask_soft", "masked_content", "inpaint_area", "mask_padding",
    "mask_weight", "outpaint", "hires_scale", "hires_width", "hires_height", "hires_upscaler", "hires_steps",
    "hires_sampler", "hires_schedule", "hires_prompt", "hires_negative_prompt", "hires_guidance_scale",
    "refiner_switch", "refiner_by", "tiling",
}  # fmt: skip

LIMITS: dict[str, tuple[float, float]] = {
    "width": (1, 8192),
    "height": (1, 8192),
    "steps": (1, 1000),
    "batch": (1, 64),
    "count": (1, 1000),
    "clip_skip": (1, 12),
    "seed": (-1, 2**64 - 1),
    "guidance_scale": (0, 100),
    "variation_seed": (-1, 2**64 - 1),
    "ensd": (-(2**64 - 1), 2**64 - 1),
    "variation_strength": (0, 1),
    "eta": (0, 10),
    "s_churn": (0, 1000),
    "s_noise": (0, 10),
    "s_tmin": (0, 100000),
    "s_tmax": (0, 100000),
    "rho": (0.01, 100),
    "sigma_min": (1e-5, 100000),
    "sigma_max": (1e-5, 100000),
    "guidance_rescale": (0, 1),
    "guidance_start": (0, 1),
    "guidance_stop": (0, 1),
    "skip_early": (0, 1),
    "ngms": (0, 100000),
}
WHOLE = ["batch", "clip_skip", "count", "ensd", "height", "seed", "steps", "variation_seed", "width"]


def refusal(most: int = 400, /, **values: Any) -> str:
    with pytest.raises(RequestError) as caught:
        GenerateRequest.from_dict(values)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, AvilaError)
    message = str(caught.value)
    assert "\n" not in message and 10 < len(message) < most
    return message


def test_the_fields() -> None:
    assert {field.name for field in fields(GenerateRequest)} == FIELDS


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name: str) -> None:
    low, high = LIMITS[name]
    assert getattr(GenerateRequest.from_dict({name: low}), name) == low
    assert getattr(GenerateRequest.from_dict({name: high}), name) == high
    step = 1 if name in WHOLE else 1e-9
    for value in (low - step, high + (1 if name in WHOLE else 1e-9)):
        message = refusal(**{name: value})
        assert message.startswith(f"{name} is ")
        assert f"{high:,}" in message if name in WHOLE else f"{high:g}" in message


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", ["7", True, False, math.nan, math.inf, -math.inf, [7], {}, 7 + 0j, b"7"])
def test_wrong_kinds_of_numbers(name: str, value: Any) -> None:
    assert refusal(**{name: value}).startswith(name)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(name: str) -> None:
    assert "whole number" in refusal(**{name: 7.0})


@pytest.mark.parametrize(
    "name",
    ["steps", "batch", "count", "clip_skip", "guidance_scale", "ensd", "variation_strength", "ngms", "skip_early"],
)
def test_none_is_no_number(name: str) -> None:
    assert "not None" in refusal(**{name: None})


@pytest.mark.parametrize("name", ["width", "height", "seed", "eta", "rng", "rho", "s_noise"])
def test_none_leaves_open(name: str) -> None:
    assert getattr(GenerateRequest.from_dict({name: None}), name) is None


@pytest.mark.parametrize("name", ["prompt", "negative_prompt", "sampler", "schedule", "compat", "rng"])
@pytest.mark.parametrize("value", [None, 5, b"cat", ["cat"]])
def test_text_fields(name: str, value: Any) -> None:
    if (name, value) == ("rng", None):
        return  # the dialect's own
    assert refusal(**{name: value}) == f"{name} must be text, not {type(value).__name__}"


def test_an_error_stays_one_line_whatever_the_value() -> None:
    assert len(refusal(width="x" * 10_000)) < 200
    refusal(steps="1\n2")
    refusal(steps=np.eye(3))
    refusal(rng="nv\ncpu" * 100)
    refusal(sampler="Euler\n" * 100)
    for name in LIMITS:
        assert refusal(**{name: 9 * 10**4999}).startswith(f"{name} is a number of about 5,000 digits; it must be from ")


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_length_of_prompts(name: str) -> None:
    GenerateRequest.from_dict({name: "a" * MAX_PROMPT})
    assert "100,001 characters" in refusal(**{name: "a" * (MAX_PROMPT + 1)})


def test_pixels() -> None:
    assert MAX_PIXELS == 4096 * 4096
    GenerateRequest(width=4096, height=4096)
    GenerateRequest(width=8192, height=2048)
    assert "8192x2049 has more than 16,777,216 pixels" in refusal(width=8192, height=2049)


def test_pixels_are_counted_again_when_a_side_is_filled_in() -> None:
    request = GenerateRequest(width=8192)
    assert request.resolved(2048).height == 2048
    with pytest.raises(RequestError, match="pixels"):
        request.resolved(2056)


def test_names() -> None:
    assert "unknown sampler 'DPM++ 9X'" in refusal(sampler="DPM++ 9X")
    assert "unknown schedule 'Karas'; the nearest: Karras" in refusal(schedule="Karas")
    assert "rng 'tpu' is unknown; it is one of nv, cpu, gpu" in refusal(rng="tpu")
    assert "compat 'invoke' is unknown; it is one of a1111, comfyui" in refusal(compat="invoke")
    for info in SAMPLERS.values():
        assert GenerateRequest(sampler=info.name).resolved(64).sampler == info.name
    for schedule in SCHEDULES.values():
        assert GenerateRequest(schedule=schedule.name).resolved(64).schedule == schedule.name


@pytest.mark.parametrize(
    ("name", "known"),
    [("lanczos", "Lanczos"), (" latent ", "Latent"), ("LATENT (Bicubic)", "Latent (bicubic)"), ("none", "None")],
)
def test_upscalers_are_known_in_any_case(name: str, known: str) -> None:
    assert GenerateRequest(hires_upscaler=name).hires_upscaler == known
    with pytest.raises(RequestError, match=r"hires_upscaler 'lancz0s' is unknown; it is one of Latent, "):
        GenerateRequest(hires_upscaler="lancz0s")


def test_unknown_fields_are_named_with_the_known_ones() -> None:
    message = refusal(1000, prompt="a", scale=7, Steps=3)
    assert message.startswith("unknown field Steps, scale; the fields are batch, ")
    assert all(name in message for name in FIELDS)
    assert message.endswith("width")
    assert refusal(1000, **{"x\ny": 1}).startswith("unknown field x y;")
    odd: list[tuple[Any, str]] = [({1: 2, "z": 3}, "unknown field 1, z;"), ({None: 1}, "unknown field None;")]
    odd += [(values, "table of fields") for values in (None, [("steps", 3)], "steps")]
    for values, words in odd:
        with pytest.raises(RequestError, match=words):
            GenerateRequest.from_dict(values)


def test_from_dict_takes_every_field() -> None:
    values = {
        "prompt": "a", "negative_prompt": "b", "width": 64, "height": 72, "steps": 3, "sampler": "Euler a",
        "schedule": "Karras", "guidance_scale": 3, "seed": 5, "batch": 2, "count": 3, "clip_skip": 2, "rng": "cpu",
        "eta": 0.5, "compat": "a1111", "emphasis": "Ignore", "ensd": 1, "variation_seed": 2, "variation_strength": 0.5,
        "seed_width": 64, "seed_height": 8, "noise_batch": None, "noise_index": 0, "s_churn": 1,
        "s_tmin": 0.1, "s_tmax": 2.0, "s_noise": 1,
        "sigmas": None, "rho": 7, "sigma_min": 0.1, "sigma_max": 9, "guidance_list": (1, 2.5), "guidance_rescale": 0.7,
        "guidance_start": 0.1, "guidance_stop": 0.9, "skip_early": 0.1, "ngms": 1, "ngms_all": True,
        "image": None, "mask": None, "depth": None, "strength": 0.5, "exact_steps": True, "extra_noise": 0.1,
        "noise_multiplier": 0.9, "resize_mode": "fill", "image_guidance_scale": 2, "mask_blur": 1, "mask_invert": True,
        "mask_soft": True, "masked_content": "nothing", "inpaint_area": "masked", "mask_padding": 3, "mask_weight": 0.5,
        "outpaint": (1, 2, 3, 4), "hires_scale": 2, "hires_width": None, "hires_height": None, "hires_upscaler": "Lanczos",
        "hires_steps": 2, "hires_sampler": "Euler", "hires_schedule": "Karras", "hires_prompt": "c",
        "hires_negative_prompt": "d", "hires_guidance_scale": 4, "refiner_switch": 0.5, "refiner_by": "step", "tiling": "y",
    }  # fmt: skip
    request = GenerateRequest.from_dict(values)
    assert {name: getattr(request, name) for name in FIELDS} == values


def test_emphasis_goes_with_automatic1111() -> None:
    assert "one of Original, No norm, Ignore, None" in refusal(600, emphasis="original")
    assert "compat a1111 only" in refusal(600, emphasis="Ignore", compat="diffusers")
    assert GenerateRequest(emphasis="No norm", compat="a1111").emphasis == "No norm"
    assert GenerateRequest(compat="diffusers").resolved(64).rng == "nv"


def test_it_is_frozen_and_a_value() -> None:
    request = GenerateRequest(prompt="a")
    with pytest.raises(FrozenInstanceError):
        request.steps = 3  # type: ignore[misc]
    assert request == GenerateRequest(prompt="a") and hash(request) == hash(GenerateRequest(prompt="a"))


@pytest.mark.parametrize(
    ("sampler", "schedule", "expected"),
    [
        ("DPM++ 2M Karras", "Automatic", ("DPM++ 2M", "Karras")),
        ("DPM++ 2M Karras", "Exponential", ("DPM++ 2M", "Exponential")),
        ("k_dpmpp_2m_ka", "auto", ("DPM++ 2M", "Karras")),
        ("k_euler_a", "Automatic", ("Euler a", "Automatic")),
        ("euler", "sgm_uniform", ("Euler", "SGM Uniform")),
        ("ddim", "ddim_uniform", ("DDIM", "DDIM")),
        ("Euler a SGM Uniform", "Automatic", ("Euler a", "SGM Uniform")),
    ],
)
def test_joint_names(sampler: str, schedule: str, expected: tuple[str, str]) -> None:
    resolved = GenerateRequest(sampler=sampler, schedule=schedule, seed=1).resolved(64)
    assert (resolved.sampler, resolved.schedule) == expected
    assert resolved.resolved(512) == resolved


def test_resolving_fills_in_what_is_open_and_nothing_else() -> None:
    request = GenerateRequest(
        prompt="a", width=72, steps=7, eta=0.5, sampler="Euler a", guidance_scale=2.5, clip_skip=2
    )
    resolved = request.resolved(640)
    assert (resolved.width, resolved.height) == (72, 640)
    changed = {name for name in FIELDS if getattr(resolved, name) != getattr(request, name)}
    assert changed == {"height", "seed", "rng"}
    assert resolved.resolved(64) == resolved
    assert request.seed is None


@pytest.mark.parametrize("seed", [None, -1])
def test_a_seed_is_drawn(seed: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert GenerateRequest(seed=seed).resolved(64).seed != GenerateRequest(seed=seed).resolved(64).seed
    with pytest.raises(RequestError, match="not drawn"):
        _ = GenerateRequest(seed=seed).seeds
    monkeypatch.setattr(secrets, "randbelow", lambda end: end - 1)
    assert GenerateRequest(seed=seed, batch=2).resolved(64).seeds == (4294967293, 4294967294)


def test_zero_is_a_seed() -> None:
    assert GenerateRequest(seed=0).resolved(64).seeds == (0,)


def test_seeds_count_up_and_begin_again_at_the_end() -> None:
    assert GenerateRequest(seed=5, batch=2, count=3).seeds == (5, 6, 7, 8, 9, 10)
    assert GenerateRequest(seed=MAX_SEED - 1, count=4).seeds == (2**64 - 2, 2**64 - 1, 0, 1)


def test_numpy_numbers_become_plain_ones() -> None:
    given: dict[str, Any] = {"width": np.int64(64), "seed": np.uint64(2**64 - 1), "guidance_scale": np.float32(2.5)}
    request = GenerateRequest(**given)
    assert (request.width, request.seed, request.guidance_scale) == (64, 2**64 - 1, 2.5)
    assert {type(request.width), type(request.seed), type(request.guidance_scale)} == {int, float}
    with pytest.raises(RequestError, match="steps must be a whole number"):
        GenerateRequest(steps=np.float32(3))  # type: ignore[arg-type]


def test_the_source_of_noise_is_the_dialects() -> None:
    assert GenerateRequest().resolved(64).rng == "nv"
    assert GenerateRequest(compat="comfyui").resolved(64).rng == "cpu"
    assert "draws on the processor" in refusal(compat="comfyui", rng="nv")
    for name, value in {"ensd": 1, "variation_strength": 0.5, "seed_width": 8}.items():
        both = {"seed_height": 8} if name == "seed_width" else {}
        assert f"has no {name}" in refusal(compat="comfyui", **{name: value}, **both)
    for values in ({"noise_batch": 2}, {"noise_index": 1}):
        assert "compat comfyui only" in refusal(**values)
    assert "beyond a noise_batch of 3" in refusal(compat="comfyui", noise_batch=3, noise_index=2, batch=2)


def test_a_part_has_the_same_pictures() -> None:
    for values in ({}, {"variation_strength": 0.5, "variation_seed": 2**64 - 1}, {"compat": "comfyui"}):
        whole = GenerateRequest.from_dict({"seed": MAX_SEED - 1, "batch": 2, "count": 3, **values}).resolved(64)
        parts = [whole.part(index) for index in range(3)]
        assert sum((part.seeds for part in parts), ()) == whole.seeds
        assert sum((part.variation_seeds for part in parts), ()) == whole.variation_seeds
        assert len(set(zip(whole.seeds, whole.variation_seeds, strict=True))) == (3 if whole.compat == "comfyui" else 6)


def test_a_variation_seed_is_drawn_where_it_is_needed() -> None:
    drawn = GenerateRequest(variation_strength=0.1).resolved(64)
    assert drawn.variation_seed is not None
    assert GenerateRequest(variation_seed=5).resolved(64).variation_seed is None


def test_custom_levels() -> None:
    request = GenerateRequest.from_dict({"sigmas": [14.6, 3, 0], "steps": 50})
    assert (request.sigmas, request.steps) == ((14.6, 3, 0), 2)
    assert GenerateRequest.from_dict({"sigmas": np.array([14.5, 3, 0])}).sigmas == (14.5, 3, 0)
    for sigmas in ([3], [], [1, 1, 0], [1, 2]):
        assert "falling noise levels" in refusal(sigmas=sigmas)
    for bad in ("14, 0", 5, [1, "0"], [1, math.nan], [1, -1], [1, None]):
        assert refusal(sigmas=bad).startswith(("sigmas must", "a value of sigmas"))
    assert "replace the schedule" in refusal(sigmas=[1, 0], schedule="Karras")
    assert "leave out one of the two" in refusal(sigmas=[1, 0], rho=7)
    assert "'DPM++ 2M Karras' names Karras; ask for 'DPM++ 2M'" in refusal(sigmas=[1, 0], sampler="DPM++ 2M Karras")


def test_guidance_lists_and_intervals() -> None:
    assert GenerateRequest.from_dict({"guidance_list": [7, 1]}).guidance_list == (7, 1)
    assert "1 to 1,000 make sense" in refusal(guidance_list=[])
    assert "a value of guidance_list is 101" in refusal(guidance_list=[101])
    assert "lies behind" in refusal(guidance_start=0.5, guidance_stop=0.25)
    assert "go together" in refusal(seed_width=64)
    assert "true or false" in refusal(ngms_all=1)


def picture(width: int, height: int) -> Picture:
    return Picture.of(np.zeros((height, width, 3), np.uint8), "image")


@pytest.mark.parametrize(
    ("size", "asked", "expected"),
    [
        ((64, 32), {"width": 128}, (128, 64)),
        ((96, 48), {"width": 192}, (192, 96)),
        ((96, 48), {"height": 96}, (192, 96)),
        ((300, 200), {"width": 512}, (512, 344)),
        ((640, 8), {"width": 640}, (640, 64)),
        ((4000, 3000), {"height": 1500}, (2000, 1500)),
        ((64, 32), {"width": 32}, (32, 16)),
        ((60, 30), {"width": 160, "outpaint": (0, 10, 0, 0)}, (160, 104)),
        ((60, 30), {"width": 160, "height": 72}, (160, 72)),
    ],
)
def test_the_side_that_is_open_keeps_the_proportions(
    size: tuple[int, int], asked: dict[str, Any], expected: tuple[int, int]
) -> None:
    resolved = GenerateRequest(image=picture(*size), **asked).resolved(512)
    assert (resolved.width, resolved.height) == expected
    assert resolved.resize_mode == "resize"


@pytest.mark.parametrize(
    ("size", "asked", "told"),
    [
        (
            (9, 200),
            {"width": 8192},
            "image is 9x200, and a width of 8,192 makes its height 182,048; at most 8,192 a side",
        ),
        ((200, 9), {"height": 8192}, "image is 200x9, and a height of 8,192 makes its width 182,048"),
        (
            (60, 60),
            {"width": 8000},
            "makes its height 8,000; .* 16,777,216 pixels are drawn: ask for less width, or give",
        ),
        ((6, 6), {"width": 8000, "outpaint": (2, 2, 2, 2)}, "image is 10x10 with outpaint"),
    ],
)
def test_a_side_that_nobody_gave_is_not_blamed(size: tuple[int, int], asked: dict[str, Any], told: str) -> None:
    request = GenerateRequest(image=picture(*size), **asked)
    with pytest.raises(RequestError, match=told):
        request.resolved(512)


@pytest.mark.parametrize(
    ("asked", "mode"),
    [
        ({}, "keep"),
        ({"resize_mode": "crop"}, "keep"),
        ({"width": 64}, "resize"),
        ({"height": 64, "resize_mode": "fill"}, "fill"),
        ({"width": 64, "height": 64, "resize_mode": "keep"}, "keep"),
        ({"inpaint_area": "masked"}, "resize"),
        ({"inpaint_area": "masked", "resize_mode": "latent"}, "resize"),
        ({"inpaint_area": "masked", "resize_mode": "keep"}, "resize"),
        ({"inpaint_area": "masked", "resize_mode": "crop"}, "crop"),
    ],
)
def test_a_masked_picture_keeps_its_size_where_none_is_asked_for(asked: dict[str, Any], mode: str) -> None:
    image = picture(75, 93)
    resolved = GenerateRequest(image=image, mask=image, **asked).resolved(64)
    assert resolved.resize_mode == mode
    assert resolved.resolved(512) == resolved
    assert GenerateRequest(image=image, **asked).resolved(64).resize_mode == asked.get("resize_mode", "resize")


def test_an_area_without_a_mask_changes_no_size() -> None:
    resolved = GenerateRequest(image=picture(72, 88), inpaint_area="masked").resolved(64)
    assert (resolved.width, resolved.height) == (72, 88)


def test_latents_are_resized_of_whole_pictures_only() -> None:
    image = picture(64, 64)
    assert "resize_mode latent" in refusal(image=image, mask=image, resize_mode="latent")
    assert "resize_mode latent" in refusal(image=image, outpaint=(8, 0, 0, 0), resize_mode="latent")
    GenerateRequest(image=image, mask=image, resize_mode="latent", inpaint_area="masked")
    assert "give a larger picture" in refusal(image=picture(7, 64), resize_mode="latent", inpaint_area="masked")


def test_no_steps_of_the_second_pass_are_as_many_as_of_the_first() -> None:
    """So they are in AUTOMATIC1111."""
    request = GenerateRequest(hires_scale=2, hires_steps=0, seed=1)
    assert request.resolved(64) == GenerateRequest(hires_scale=2, seed=1).resolved(64)
    assert refusal(hires_scale=2, hires_steps=-1) == "hires_steps is -1; it must be from 0 to 1,000"


def test_a_strength_makes_no_endless_schedule() -> None:
    image = picture(64, 64)
    for asked in ({"hires_scale": 2}, {"image": image, "exact_steps": True}, {"image": image, "compat": "comfyui"}):
        for strength in (1e-300, 1e-12, 2e-6):
            assert "at least 0.0002" in refusal(steps=20, strength=strength, **asked)
        GenerateRequest(steps=1000, strength=0.01, **asked)
        GenerateRequest(steps=20, strength=0.0, **asked)
    assert "a schedule of 1,000 to more" in refusal(steps=2, hires_scale=2, hires_steps=1000, strength=0.005)
    GenerateRequest(steps=20, image=image, strength=1e-300)
    GenerateRequest(steps=20, strength=1e-300)


def test_levels_that_are_given_are_not_lengthened() -> None:
    levels = tuple(float(level) for level in range(60, -1, -1))
    asked = GenerateRequest(prompt="x", image=picture(64, 64), sigmas=levels, exact_steps=True, strength=1e-4)
    assert asked.steps == 60
