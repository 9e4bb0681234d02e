"""Forecasts of runs of tiny models."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from avila_diffusion import AvilaDiffusion, kernels
from avila_diffusion.errors import RequestError
from avila_diffusion.kernels import build, calibration
from avila_diffusion.kernels.rehearsal import Kind
from avila_diffusion.pipeline import forecast as module
from avila_diffusion.pipeline.forecast import Outlook
from avila_diffusion.result import GenerateResult


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of a machine that does 1e9 of everything a second."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    monkeypatch.setattr(module, "rates", lambda *of: calibration.Rates(dict.fromkeys(kinds, 1e9), 1e9, 1e9))
    yield


@pytest.fixture
def make(tiny_checkpoint: Any) -> Any:
    return lambda family="sd1", **options: AvilaDiffusion.with_model(tiny_checkpoint(family), device="cpu", **options)


def test_calls_are_those_of_the_run(make: Any) -> None:
    engine = make()
    for options in (
        {"steps": 3},
        {"steps": 3, "sampler": "Heun"},
        {"steps": 2, "batch": 2},
        {"steps": 4, "guidance_stop": 0.5},
    ):
        told = engine.plan("a hill", seed=1, **options)
        events = list(engine.generate(engine.request("a hill", seed=1, **options)))
        assert isinstance(events[-1], GenerateResult)
        made = sum(1 for event in events[:-1] if event.stage == "sample" and event.step > 0)
        assert (told.calls, told.pictures) == (made, options.get("batch", 1))


def test_guidance_costs_what_it_costs(make: Any) -> None:
    engine = make()
    both, alone, half = (
        engine.plan("a hill", steps=4, **options) for options in ({}, {"guidance_scale": 1.0}, {"guidance_stop": 0.5})
    )
    assert 1.5 < both.step_seconds / alone.step_seconds < 2.2
    assert alone.seconds < half.seconds < both.seconds
    longer = engine.plan("a hill " * 100, steps=4)
    assert longer.text_seconds > both.text_seconds


@pytest.mark.skipif(not kernels.ENABLED or build.library() is None, reason="nothing is packed")
def test_less_is_kept_more_is_waited_for(make: Any) -> None:
    engine = make()
    outlook = engine.outlook(engine.request("a hill", steps=5))
    assert isinstance(outlook, Outlook)
    fast, lean, between = outlook.at(None), outlook.at(0), outlook.at(outlook.keepable // 2)
    assert fast.kept_bytes == outlook.keepable > 1_000_000 > lean.kept_bytes
    assert lean.peak_bytes < between.peak_bytes < fast.peak_bytes
    assert lean.step_seconds > between.step_seconds > fast.step_seconds
    assert lean.prepare_seconds < fast.prepare_seconds
    assert between.kept_bytes == pytest.approx(outlook.keepable / 2, rel=0.01)
    assert outlook.at(10**15) == fast
    assert not fast.rough


def test_larger_pictures_take_more(make: Any) -> None:
    engine = make()
    small, large = (engine.plan("a hill", width=side, height=side) for side in (64, 512))
    assert large.peak_bytes - large.base_bytes > 2 * (small.peak_bytes - small.base_bytes)
    assert large.decode_seconds > 30 * small.decode_seconds


@pytest.mark.parametrize("family", ["sd2", "sdxl", "sdxl_refiner"])
def test_other_families(make: Any, family: str) -> None:
    told = make(family).plan("a hill", "a lake", steps=2)
    assert told.calls == 2 and told.step_seconds > 0 and told.text_seconds > 0
    assert told.to_dict()["peak_bytes"] == told.peak_bytes > told.base_bytes > 0


def test_half_precision_is_torchs_and_rough(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "rates", lambda *of: calibration.Rates(dict.fromkeys(
        ("torch product", "torch convolution", "torch attention", "copy", "pack rows"), 1e9), 1e9, 1e9))  # fmt: skip
    assert make(dtype="bfloat16").plan("a hill", steps=2).rough


def test_a_rehearsal_is_made_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    first = engine.plan("a hill", steps=2)
    monkeypatch.setattr(module, "_rehearse", lambda *of: pytest.fail("rehearsed again"))
    assert engine.plan("a lake", steps=2).step_seconds == first.step_seconds


def test_what_cannot_be_run_is_refused(make: Any) -> None:
    with pytest.raises(RequestError):
        make().plan("a hill", width=65)
    with pytest.raises(RequestError, match="nothing to plan"):
        AvilaDiffusion().plan("a hill")


def test_memory_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before = module.held_now()
    if before is None:
        pytest.skip("this system does not tell")
    with mmap.mmap(-1, 64 << 20) as memory:  # not of a heap that has room
        memory.write(bytes(64 << 20))
        after = module.held_now()
        assert after is not None and after - before > 32 << 20
    monkeypatch.setattr(Path, "read_text", lambda *of, **named: (_ for _ in ()).throw(FileNotFoundError()))
    assert module.held_now() is None
