"""LCM, Lightning and Hyper LoRAs: files of their layout match in every name, and their samplers run on them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from avila_diffusion.api import AvilaDiffusion
from avila_diffusion.checkpoint.load import Model, load_model
from avila_diffusion.checkpoint.lora.apply import match
from avila_diffusion.checkpoint.lora.files import read_lora
from avila_diffusion.checkpoint.safetensors import write_safetensors

Shapes = dict[str, tuple[int, ...]]
# What the authors' training programs change in diffusers' UNet: all of its matrices and convolutions but the outermost.
TRAINED = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip


def layers(shapes: Shapes) -> Shapes:
    """diffusers' name of each layer that they change → the shape of its weight."""
    end = re.compile(rf"(?:down_blocks|mid_block|up_blocks)\..*\.(?:{'|'.join(map(re.escape, TRAINED))})")
    names = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}
    return {name: shape for name, shape in names.items() if end.fullmatch(name)}


def layout(shapes: Shapes, rank: int, peft: bool) -> Shapes:
    """Of a file: as latent-consistency/lcm-lora-sdv1-5 (kohya's leaves on diffusers' names, with alpha), or PEFT's leaves."""
    found: Shapes = {}
    for name, (rows, *inner) in shapes.items():
        module = f"unet.{name}" if peft else "lora_unet_" + name.replace(".", "_")
        down, up = ("lora_A.weight", "lora_B.weight") if peft else ("lora_down.weight", "lora_up.weight")
        found[f"{module}.{down}"] = (rank, *inner)
        found[f"{module}.{up}"] = (rows, rank, *(1 for _ in inner[1:]))
        if not peft:
            found[f"{module}.alpha"] = ()
    return found


@pytest.mark.parametrize("peft", [False, True])
@pytest.mark.parametrize(
    ("folder", "single", "count"), [("v1-5", "sd1", 278), ("xl-base-1.0", "sdxl_base", 788)]
)  # 834 and 2,364 tensors in the released LCM LoRAs
def test_every_name_of_the_layout_matches(
    folder: str, single: str, count: int, peft: bool, manifest: Any, write_layout: Any, tmp_path: Path
) -> None:
    model = load_model(write_layout(tmp_path / "model.safetensors", manifest(single)))
    names = layers(manifest(f"diffusers__stable-diffusion-{folder}__unet"))
    path = write_layout(tmp_path / "few.safetensors", layout(names, 64, peft))
    lora = read_lora(path)
    report = match(model, lora)
    assert len(names) == count and report.matched == {"unet": count} and report.share == 1
    assert report.ranks == (64,) and report.family == model.spec.family
    other = {"sd1": "sdxl_base", "sdxl_base": "sd1"}[single]
    wrong = match(load_model(write_layout(tmp_path / "other.safetensors", manifest(other))), lora)
    assert wrong.share < 0.6 and (wrong.unmatched or wrong.mis_shaped)


RUNS: dict[str, dict[str, Any]] = {  # the table in docs/samplers.md
    "LCM": {"sampler": "LCM", "steps": 4},
    "Lightning": {"sampler": "Euler", "schedule": "SGM Uniform", "steps": 4},
    "Hyper, 1 step": {"sampler": "TCD", "steps": 1, "eta": 1.0},
    "Hyper, 4 steps": {"sampler": "TCD", "steps": 4, "eta": 0.3},
}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A tiny model and a LoRA of that layout on it."""
    checkpoint: Callable[[str], Path] = request.getfixturevalue("tiny_checkpoint")
    model: Model = load_model(checkpoint("sd1"))
    from avila_diffusion.checkpoint.keys import unet_to_diffusers

    own = {name: tuple(parameter.shape) for name, parameter in model.unet.named_parameters()}
    shapes = {theirs: own[ours] for theirs, ours in unet_to_diffusers(list(own)).items()}
    generator = torch.Generator().manual_seed(3)
    state = {
        name: torch.tensor(8.0) if not shape else 0.2 * torch.randn(shape, generator=generator)
        for name, shape in layout(layers(shapes), 4, False).items()
    }
    path = tmp_path_factory.mktemp("few") / "few.safetensors"
    write_safetensors(path, state)
    return checkpoint("sd1"), path


@pytest.mark.parametrize("run", RUNS)
def test_their_samplers_run(run: str, few: tuple[Path, Path]) -> None:
    checkpoint, lora = few
    options: Any = {"width": 64, "height": 64, "seed": 3, "guidance_scale": 1.0, **RUNS[run]}
    diffusion = AvilaDiffusion.with_model(checkpoint, lora=lora)
    with_it = diffusion.text_to_image("a cat", "rain", **options)
    plain = AvilaDiffusion.with_model(checkpoint).text_to_image("a cat", "rain", **options)
    assert (with_it.to_numpy() != plain.to_numpy()).mean() > 0.3
    again = diffusion.text_to_image("a cat", "", **options)  # at scale 1 nothing is guided away from
    assert with_it.to_numpy().tobytes() == again.to_numpy().tobytes()
