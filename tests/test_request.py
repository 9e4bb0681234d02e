"""The request: every limit at its edge, every wrong type, what is filled in, and errors of one line."""

from __future__ import annotations

import math
import secrets
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest

from avila_diffusion.errors import AvilaError, RequestError
from avila_diffusion.request import MAX_PIXELS, MAX_PROMPT, MAX_SEED, GenerateRequest
from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES

FIELDS = {
    "prompt", "negative_prompt", "width", "height", "steps", "sampler", "schedule", "guidance_scale", "seed", "batch",
    "count", "clip_skip", "rng", "eta",
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
    "eta": (0, 10),
}
WHOLE = sorted(set(LIMITS) - {"guidance_scale", "eta"})


def refusal(**values: Any) -> str:
    with pytest.raises(RequestError) as caught:
        GenerateRequest.from_dict(values)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, AvilaError)
    message = str(caught.value)
    assert "\n" not in message and 10 < len(message) < 400
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


@pytest.mark.parametrize("name", ["steps", "batch", "count", "clip_skip", "guidance_scale"])
def test_none_is_no_number(name: str) -> None:
    assert "not None" in refusal(**{name: None})


@pytest.mark.parametrize("name", ["width", "height", "seed", "eta"])
def test_none_leaves_open(name: str) -> None:
    assert getattr(GenerateRequest.from_dict({name: None}), name) is None


@pytest.mark.parametrize("name", ["prompt", "negative_prompt", "sampler", "schedule", "rng"])
@pytest.mark.parametrize("value", [None, 5, b"cat", ["cat"]])
def test_text_fields(name: str, value: Any) -> None:
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
    assert "rng 'gpu' is unknown; it is nv" in refusal(rng="gpu")
    for info in SAMPLERS.values():
        assert GenerateRequest(sampler=info.name).resolved(64).sampler == info.name
    for schedule in SCHEDULES.values():
        assert GenerateRequest(schedule=schedule.name).resolved(64).schedule == schedule.name


def test_unknown_fields_are_named_with_the_known_ones() -> None:
    message = refusal(prompt="a", scale=7, Steps=3)
    assert message.startswith("unknown field Steps, scale; the fields are batch, ")
    assert all(name in message for name in FIELDS)
    assert refusal(**{"x\ny": 1}).startswith("unknown field x y;")
    odd: list[tuple[Any, str]] = [({1: 2, "z": 3}, "unknown field 1, z;"), ({None: 1}, "unknown field None;")]
    odd += [(values, "table of fields") for values in (None, [("steps", 3)], "steps")]
    for values, words in odd:
        with pytest.raises(RequestError, match=words):
            GenerateRequest.from_dict(values)


def test_from_dict_takes_every_field() -> None:
    values = {
        "prompt": "a", "negative_prompt": "b", "width": 64, "height": 72, "steps": 3, "sampler": "Euler a",
        "schedule": "Karras", "guidance_scale": 3, "seed": 5, "batch": 2, "count": 3, "clip_skip": 2, "rng": "cpu",
        "eta": 0.5,
    }  # fmt: skip
    request = GenerateRequest.from_dict(values)
    assert {name: getattr(request, name) for name in FIELDS} == values


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
    assert changed == {"height", "seed"}
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
