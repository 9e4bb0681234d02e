"""The generator without a model as an engine: the same events and results, any size, cancelled between pictures."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from avila_diffusion.errors import Cancelled
from avila_diffusion.infotext import read
from avila_diffusion.limits import MAX_SEED
from avila_diffusion.procedural import render
from avila_diffusion.procedural.engine import ProceduralEngine
from avila_diffusion.request import GenerateRequest
from avila_diffusion.result import GenerateResult, Progress
from avila_diffusion.version import __version__


def ask(**options: Any) -> GenerateRequest:
    return GenerateRequest(**{"prompt": "a sunset", "width": 64, "height": 48, "seed": 7, **options})


def finish(request: GenerateRequest) -> GenerateResult:
    *_, result = ProceduralEngine().generate(request)
    assert isinstance(result, GenerateResult)
    return result


def test_events() -> None:
    *events, result = ProceduralEngine().generate(ask(batch=2, count=2))
    assert [event for event in events if isinstance(event, Progress)] == events
    assert [(event.stage, event.image, event.images, event.step, event.of) for event in events] == [  # type: ignore[union-attr]
        ("draw", index, 4, 0, 1) for index in range(4)
    ]
    assert isinstance(result, GenerateResult)
    assert [image.seed for image in result] == [7, 8, 9, 10]
    assert result.report is None and result.seconds > 0


def test_the_same_request_gives_the_same_bytes() -> None:
    first, second = finish(ask(seed=0)), finish(ask(seed=0))
    assert first.to_numpy().tobytes() == second.to_numpy().tobytes()
    others = [ask(seed=1), ask(seed=0, prompt="a forest at night")]
    assert len({finish(request).to_numpy().tobytes() for request in others} | {first.to_numpy().tobytes()}) == 3


def test_a_picture_of_a_job_is_the_one_made_alone() -> None:
    job = finish(ask(batch=2, count=2, seed=MAX_SEED - 1))
    assert [image.seed for image in job] == [2**64 - 2, 2**64 - 1, 0, 1]
    for image in job:
        assert (finish(ask(seed=image.seed)).to_numpy() == image.pixels).all()


def test_prompts_and_seed_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    draw = render.draw

    def watched(*values: Any) -> Any:
        asked.append(values)
        return draw(*values)

    monkeypatch.setattr(render, "draw", watched)
    finish(ask(negative_prompt="clouds"))
    assert asked == [("a sunset", "clouds", 64, 48, 7)]


def test_infotext() -> None:
    prompt = "a sunset, calm\nwith: birds"
    for image in finish(ask(prompt=prompt, negative_prompt="rain", batch=2)):
        parsed = read(image.infotext or "")
        assert (parsed.prompt, parsed.negative_prompt) == (prompt, "rain")
        assert parsed.fields == {
            "Seed": str(image.seed),
            "Size-1": "64",
            "Size-2": "48",
            "Model": "avila procedural",
            "Version": f"avila_diffusion {__version__}",
        }


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (333, 77), (2, 300), (8192, 1), (500, 100)])
def test_any_size(size: tuple[int, int]) -> None:
    assert finish(ask(width=size[0], height=size[1])).to_pil().size == size


def test_the_default_size_and_a_drawn_seed() -> None:
    result = finish(GenerateRequest(prompt="a lake", seed=-1))
    assert result.to_pil().size == (512, 512)
    assert (finish(GenerateRequest(prompt="a lake", seed=result.seed)).to_numpy() == result.to_numpy()).all()


@pytest.mark.parametrize("after", [0, 1, 2])
def test_cancelled_between_pictures(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`after`: pictures drawn before the cancel; 2 are asked for."""
    cancel, drawn = threading.Event(), 0
    draw = render.draw

    def watched(*values: Any) -> Any:
        nonlocal drawn
        drawn += 1
        if drawn == after:
            cancel.set()
        return draw(*values)

    monkeypatch.setattr(render, "draw", watched)
    if after == 0:
        cancel.set()
    with pytest.raises(Cancelled, match=r"^cancelled; nothing was written$"):
        for event in ProceduralEngine().generate(ask(batch=2), cancel):
            assert isinstance(event, Progress)
    assert drawn == after
