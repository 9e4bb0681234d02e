"""Kernels of ours against torch's operations: whole runs to 90 dB of the final latent, real convolutions to 80 dB.

The runs at full width take minutes and are asked for with -m full; narrow ones of the same layouts are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from avila_diffusion import kernels
from avila_diffusion.checkpoint.load import build
from avila_diffusion.checkpoint.shapes import read_unet_config
from avila_diffusion.config import (
    NoiseConfig,
    Prediction,
    TinyVAEConfig,
    TransformerConfig,
    UNetBlockConfig,
    UNetConfig,
)
from avila_diffusion.kernels import build as built
from avila_diffusion.kernels import native
from avila_diffusion.models.layers import keep_derived
from avila_diffusion.models.taesd import TinyVAE
from avila_diffusion.models.text_keys import TextKeys
from avila_diffusion.models.unet import UNet
from avila_diffusion.sampling.denoiser import Cond, Denoiser
from avila_diffusion.sampling.guidance import Call, Guidance, guide
from avila_diffusion.sampling.tables import NoiseTable

pytestmark = pytest.mark.skipif(
    built.library() is None or not kernels.ENABLED, reason=f"no kernels of ours here: {built.problem}"
)
STEPS = 20
UNET = "model.diffusion_model."
LAYOUTS: dict[str, tuple[Prediction, Callable[[int], int]]] = {
    "sd1": ("epsilon", lambda channels: 8),
    "sd2": ("v", lambda channels: channels // 64),
    "sdxl_base": ("epsilon", lambda channels: channels // 64),
}
MATERIAL = Path(__file__).resolve().parents[3] / "shared" / "material"


def decibels(found: Tensor, reference: Tensor) -> float:
    """20 log10 of the largest value over the root mean square of the difference."""
    error = (found.double() - reference.double()).square().mean().sqrt()
    return float(20 * torch.log10(reference.double().abs().max() / error))


@contextmanager
def by_torch() -> Iterator[None]:
    before, kernels.ENABLED = kernels.ENABLED, False
    try:
        yield
    finally:
        kernels.ENABLED = before


def seed(network: UNet) -> UNet:
    """Weights of variance 1 / fan-in and norms near one, a function of the name; in float16, as files have them."""
    state = {}
    for name, meant in network.state_dict().items():
        digest = hashlib.sha256(name.encode()).digest()
        noise = torch.randn(meant.shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")))
        if meant.dim() > 1:
            noise /= meant[0].numel() ** 0.5
        else:
            noise = 0.02 * noise + (0 if name.endswith("bias") else 1)
        state[name] = noise.half()
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def narrow(row: UNetBlockConfig | None, by: int) -> Any:
    """A row of the config with a `by`-th of its channels and at most two transformer blocks."""
    if row is None:
        return None
    width = row.out_channels // by
    inside = row.transformer
    if inside is not None:
        heads = inside.heads if width % inside.heads == 0 else max(width // 64, 1)
        inside = TransformerConfig(depth=min(inside.depth, 2), heads=heads)
    return replace(row, in_channels=row.in_channels // by, out_channels=width, transformer=inside)


def narrowed(config: UNetConfig, by: int) -> UNetConfig:
    inputs = tuple(narrow(row, by) for row in config.input_blocks)
    return replace(
        config,
        model_channels=config.model_channels // by,
        embed_channels=config.embed_channels // by,
        context_channels=64,
        input_blocks=(replace(inputs[0], in_channels=4), *inputs[1:]),
        middle=narrow(config.middle, by),
        output_blocks=tuple(narrow(row, by) for row in config.output_blocks),
    )


@torch.no_grad()
def final_latent(network: UNet, prediction: Prediction, side: int, ours: bool) -> Tensor:
    """Twenty Euler steps with guidance; with what is shared between halves and steps computed once, where `ours`."""
    config, table = network.config, NoiseTable.from_config(NoiseConfig(prediction=prediction))
    generator = torch.Generator().manual_seed(11)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def cond() -> Cond:
        vector = None if config.adm_channels is None else draw(1, config.adm_channels)
        return Cond(draw(1, 77, config.context_channels), vector)

    keys = TextKeys()

    def call(*inputs: Any, **named: Any) -> Tensor:
        predicted: Tensor = network(*inputs, **named, keys=keys if ours else None)
        return predicted

    denoise = guide(Denoiser(call, table, prediction, shares=ours), cond(), cond(), Guidance(scale=7.0), steps=STEPS)
    times = np.linspace(999, 0, STEPS)
    sigmas = [*(float(table.t_to_sigma(t)) for t in times), 0.0]
    x = draw(1, 4, side, side) * sigmas[0]
    for step, (sigma, after) in enumerate(pairwise(sigmas)):
        x = x + (x - denoise(Call(x, sigma, step)).x0) / sigma * (after - sigma)
    return x


@pytest.mark.parametrize("by", [10, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_equals_torchs(layout: str, by: int, manifest: Any, capsys: Any) -> None:
    prediction, heads_of = LAYOUTS[layout]
    shapes = {name.removeprefix(UNET): shape for name, shape in manifest(layout).items() if name.startswith(UNET)}
    config = read_unet_config(shapes, heads_of)
    network = seed(build(lambda: UNet(config if by == 1 else narrowed(config, by))))
    keep_derived(
        network, None if by > 1 else 0
    )  # at full width, SDXL's weights in both forms are more than most machines hold
    ours = final_latent(network, prediction, 24, ours=True)
    with by_torch():
        theirs = final_latent(network, prediction, 24, ours=False)
    found = decibels(ours, theirs)
    with capsys.disabled():
        print(f"\n{layout}, 1/{by} of the width, {STEPS} steps: {found:.1f} dB", end="")
    assert 90 <= found < 200, "as far from torch's as rounding brings it, and not torch's own"


def half_precision(x: Tensor, *inputs: Any, **named: Any) -> Tensor:
    return LINEAR(x.half().float(), *inputs, **named)


LINEAR = native.linear


def test_a_run_with_coarser_sums_is_seen(manifest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {name.removeprefix(UNET): shape for name, shape in manifest("sd1").items() if name.startswith(UNET)}
    network = seed(build(lambda: UNet(narrowed(read_unet_config(shapes, lambda channels: 8), 10))))
    exact = final_latent(network, "epsilon", 8, ours=True)
    monkeypatch.setattr(native, "linear", half_precision)
    assert decibels(final_latent(network, "epsilon", 8, ours=True), exact) < 90


@pytest.mark.skipif(not MATERIAL.is_dir(), reason="the real files lie beside the project, in ../shared")
@pytest.mark.parametrize("photo", ["astronaut", "chelsea"])
@pytest.mark.parametrize("name", ["taesd", "taesd_xl"])
@torch.no_grad()
def test_real_convolutions_of_photographs(name: str, photo: str) -> None:
    tiny = build(lambda: TinyVAE(TinyVAEConfig()))
    weights = load_file(MATERIAL / "taesd" / f"{name}.safetensors")
    tiny.load_state_dict({key: tensor.float() for key, tensor in weights.items()}, assign=True)
    with Image.open(MATERIAL / "photos" / f"{photo}.png") as opened:
        pixels = np.asarray(opened.convert("RGB"))[:256, :320]
    picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    with by_torch():
        z = tiny.encode(picture).mode
        back = tiny.decode(z)
    assert float((back.clamp(-1, 1) - picture).square().mean()) < 0.04, "the picture comes back"
    found = decibels(tiny.encode(picture).mode, z), decibels(tiny.decode(z), back)
    assert all(80 <= value < 200 for value in found), found
