"""Small data sets and small networks that train in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from avila_diffusion.images import Image
from avila_diffusion.training.architectures import DiffusionModel
from avila_diffusion.training.data import Dataset, read_dataset
from avila_diffusion.training.initialise import create
from avila_diffusion.training.latents import encode, standardise
from avila_diffusion.training.settings import LoopSettings
from avila_diffusion.training.unet import DiffusionLoss, DiffusionTask
from avila_diffusion.training.vae import VAELoss, VAEModel, VAETask

SMALL_VAE = VAEModel(encoder_channels=(32, 32), decoder_channels=(32, 32), encoder_blocks=1, decoder_blocks=1)
SMALL_UNET = DiffusionModel(channels=(32, 64), transformers=(0, 1), text_width=64, text_layers=1)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of 64x64, squares of a colour, with a metadata.jsonl."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for number in range(8):
        pixels = np.full((64, 64, 3), 255, np.uint8)
        pixels[8 * (number % 4) : 8 * (number % 4) + 32, 8:56] = (40 * (number % 6), 200 - 20 * number, 30 * number)
        Image(pixels).save_png(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "captions": [f"a square number {number}", "a coloured square"]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def data(pictures: Path) -> Dataset:
    return read_dataset(pictures, 32)


@pytest.fixture
def loop() -> Callable[..., LoopSettings]:
    """Settings of a short run; anything can be changed."""

    def make(**changes: object) -> LoopSettings:
        usual = {"steps": 6, "batch": 2, "warmup": 2, "ema": 0.9, "keep_every": 100, "sample_every": 100}
        return LoopSettings(**{**usual, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def vae_task(data: Dataset) -> Callable[..., VAETask]:
    def make(settings: LoopSettings, **terms: object) -> VAETask:
        return VAETask(SMALL_VAE, VAELoss(**{"kl": 1e-3, "kl_warmup": 4, **terms}), data, settings)  # type: ignore[arg-type]

    return make


@pytest.fixture
def unet_task(data: Dataset, tmp_path: Path) -> Callable[..., DiffusionTask]:
    def make(settings: LoopSettings, **terms: object) -> DiffusionTask:
        torch.manual_seed(0)
        from avila_diffusion.models.vae import VAE
        from avila_diffusion.training.data import generator

        vae = create(lambda: VAE(SMALL_VAE.config), generator(1, 0)).eval().requires_grad_(False)
        latents = standardise(vae, encode(vae, data, tmp_path / "latents.safetensors"))
        return DiffusionTask(SMALL_UNET, DiffusionLoss(**terms), data, latents, vae, settings)  # type: ignore[arg-type]

    return make
