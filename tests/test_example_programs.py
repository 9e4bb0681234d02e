"""The programs in examples/ that begin with pictures or draw more than one, run on tiny models."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from avila_diffusion.checkpoint.safetensors import write_safetensors

ROOT = Path(__file__).resolve().parent.parent
TAESD = ROOT.parent / "shared" / "material" / "taesd" / "taesd.safetensors"


@pytest.fixture
def widened(tiny_state: Callable[[str], dict[str, Tensor]], tmp_path: Path) -> Callable[[str, int], Path]:
    """A tiny model whose UNet has more input channels."""

    def make(family: str, channels: int) -> Path:
        state = tiny_state(family)
        name = "model.diffusion_model.input_blocks.0.0.weight"
        state[name] = torch.randn(len(state[name]), channels, 3, 3, generator=torch.Generator().manual_seed(1)) / 9
        path = tmp_path / f"{family}_{channels}.safetensors"
        write_safetensors(path, state, {"avila.size": "64", "avila.family": family})
        return path

    return make


def run(name: str, *arguments: object, folder: Path) -> list[str]:
    """An example's words; in this process, where torch is loaded already."""
    said = io.StringIO()
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(folder)
        patch.setenv("AVILA_CACHE", str(folder / "cache"))
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        torch.set_num_threads(1)  # networks this small only lose by a second
        try:
            runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        finally:
            torch.set_num_threads(threads)
    return said.getvalue().split()


def pixels(path: Path) -> Any:
    with PIL.Image.open(path) as picture:
        return np.asarray(picture)


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    """A photograph and a mask."""
    photo = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    for name, values in (("photo.png", photo), ("mask.png", mask)):
        PIL.Image.fromarray(values).save(tmp_path / name)
    return tmp_path / "photo.png", tmp_path / "mask.png"


def test_from_a_picture(tiny_checkpoint: Any, widened: Any, pictures: tuple[Path, Path], tmp_path: Path) -> None:
    model, (image, mask), steps = tiny_checkpoint("sd1"), pictures, ("--steps", 1)
    assert run("image_to_image", model, image, "a cat", *steps, folder=tmp_path) == ["changed.png"]
    assert run("inpaint", model, image, mask, "a cat", "--close", *steps, folder=tmp_path) == ["inpainted.png"]
    assert (pixels(tmp_path / "inpainted.png")[:, :16] == pixels(image)[:, :16]).all()
    assert run("outpaint", model, image, "a cat", "--pixels", 16, *steps, folder=tmp_path) == ["outpainted.png"]
    assert pixels(tmp_path / "outpainted.png").shape == (64, 96, 3)
    told = run("instruct_pix2pix", widened("sd1", 8), image, "make it winter", *steps, folder=tmp_path)
    assert told == ["instructed.png"]
    assert run("depth", widened("sd2", 5), image, "a cat", *steps, folder=tmp_path) == ["depth.png"]


def test_more_than_one_pass_or_picture(tiny_checkpoint: Any, tmp_path: Path) -> None:
    model, steps = tiny_checkpoint("sd1"), ("--steps", 1)
    assert run("high_resolution", model, "a cat", *steps, folder=tmp_path) == ["high_resolution.png", "128x128"]
    refiner = run(
        "refiner", tiny_checkpoint("sdxl"), tiny_checkpoint("sdxl_refiner"), "a cat", "--steps", 4, folder=tmp_path
    )
    assert refiner == ["refined.png"]
    assert run("variations", model, "a cat", "--count", 2, *steps, folder=tmp_path)[-1] == "grid.png"
    assert run("tiling", model, "a cat", *steps, folder=tmp_path) == ["tile.png", "floor.png"]


@pytest.mark.skipif(not TAESD.is_file(), reason="the real file lies beside the project, in ../shared")
def test_a_small_decoder(tiny_checkpoint: Any, tmp_path: Path) -> None:
    assert run("small_decoder", tiny_checkpoint("sd1"), TAESD, "a cat", "--steps", 2, folder=tmp_path) == ["small.png"]
    assert pixels(tmp_path / "preview-02.png").shape == (64, 64, 3)
