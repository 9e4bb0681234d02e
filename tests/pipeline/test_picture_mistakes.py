"""Pictures and passes that do not go together: refused in a line, told in a note, or run as they were meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avila_diffusion.api import AvilaDiffusion
from avila_diffusion.checkpoint.safetensors import write_safetensors
from avila_diffusion.errors import RequestError
from avila_diffusion.request import GenerateRequest

FIRST = "model.diffusion_model.input_blocks.0.0.weight"


def photo(width: int = 64, height: int = 64) -> Any:
    return np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)


def asked(**options: Any) -> GenerateRequest:
    values = {"prompt": "a cat", "width": 64, "height": 64, "steps": 2, "sampler": "Euler", "seed": 3}
    return GenerateRequest.from_dict({**values, **options})


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_a_second_pass_follows_the_depth_map_too(upscaler: str, make_engine: Any, finish: Any) -> None:
    def widen(state: dict[str, Tensor]) -> None:
        state[FIRST] = torch.randn(state[FIRST].shape[0], 5, 3, 3, generator=torch.Generator().manual_seed(1)) / 7

    engine = make_engine("sd2", widen)
    shown: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        right = engine.model.unet.forward

        def looked_at(x: Tensor, *inputs: Any, **named: Any) -> Tensor:
            shown.append(x)
            answer: Tensor = right(x, *inputs, **named)
            return answer

        patch.setattr(engine.model.unet, "forward", looked_at)
        depth = photo()[:, :, 0]
        finish(engine.generate(asked(depth=depth, hires_scale=1.5, hires_upscaler=upscaler, strength=0.9)))
    small = F.interpolate(torch.from_numpy(depth / np.float32(255))[None, None], size=(12, 12), mode="bicubic")
    expected = 2 * (small - small.min()) / (small.max() - small.min()) - 1
    second = [x for x in shown if x.shape[2:] == (12, 12)]
    assert len(second) >= 2 and len(second) < len(shown)
    for x in second:
        assert torch.allclose(x[:, 4:], expected.expand_as(x[:, 4:]), atol=1e-5)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (100, 7), (7, 100)])
def test_a_picture_without_a_latent_cell_is_not_encoded_as_it_is(width: int, height: int) -> None:
    with pytest.raises(RequestError, match=f"image is {width}x{height}, and resize_mode latent .* give a larger"):
        asked(image=photo(width, height), resize_mode="latent")


def test_the_smallest_picture_is_encoded_as_it_is(make_engine: Any, finish: Any) -> None:
    made = finish(make_engine().generate(asked(image=photo(8, 9), resize_mode="latent")))
    assert made.to_numpy().shape == (64, 64, 3)


def test_no_picture_is_not_text_to_image() -> None:
    diffusion: Any = AvilaDiffusion()
    with pytest.raises(RequestError, match="image is None; give a path"):
        diffusion.image_to_image(None, "a cat")
    with pytest.raises(RequestError, match="mask is None; give a path"):
        diffusion.inpaint(photo(), None, "a cat")


MASKED = {"image": photo(), "mask": photo()[:, :, 0], "inpaint_area": "masked"}


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({**MASKED, "resize_mode": "crop"}, "resize_mode was not used, because what is masked is cut out"),
        ({"refiner_by": "step"}, "refiner_by was not used, because there is no refiner"),
        (
            {"hires_scale": 1.25, "hires_sampler": "ddim", "hires_schedule": "karras"},
            "hires_schedule was not used; DDIM chooses",
        ),
    ],
)
def test_what_changes_nothing_is_told(options: dict[str, Any], note: str, make_engine: Any, finish: Any) -> None:
    (told,) = finish(make_engine().generate(asked(**options))).notes
    assert note in told


@pytest.mark.parametrize("sampler", ["DPM fast", "DPM adaptive"])
def test_a_schedule_that_is_walked_from_a_picture_is_not_called_unused(
    sampler: str, make_engine: Any, finish: Any
) -> None:
    engine = make_engine()
    ours = {"image": photo(), "sampler": sampler, "steps": 4, "strength": 0.5}
    plain, karras = (finish(engine.generate(asked(**ours, **more))) for more in ({}, {"schedule": "Karras"}))
    assert karras.notes == ()
    assert plain.to_numpy().tobytes() != karras.to_numpy().tobytes()


def test_a_refiner_needs_no_vae_and_tells_when_it_did_nothing(
    tiny_state: Callable[[str], dict[str, Tensor]], tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    state = {name: one.half() for name, one in tiny_state("sdxl_refiner").items()}
    without = {name: one for name, one in state.items() if not name.startswith("first_stage_model.")}
    assert len(without) < len(state)
    metadata = {"avila.size": "64", "avila.family": "sdxl_refiner"}
    bare = tmp_path / "bare.safetensors"
    write_safetensors(bare, without, metadata)
    made = [
        AvilaDiffusion.with_model(tiny_checkpoint("sdxl"), refiner=file).text_to_image("a cat", steps=3, seed=3)
        for file in (bare, tiny_checkpoint("sdxl_refiner"))
    ]
    assert made[0].to_numpy().tobytes() == made[1].to_numpy().tobytes()
    assert made[0].notes == ()
    diffusion = AvilaDiffusion.with_model(tiny_checkpoint("sdxl"), refiner=bare, steps=3, seed=3)
    idle = diffusion.text_to_image("a cat", refiner_switch=1.0)
    assert idle.notes == ("the refiner was not used; the last call came before refiner_switch",)
    assert idle.to_numpy().tobytes() != made[0].to_numpy().tobytes()
