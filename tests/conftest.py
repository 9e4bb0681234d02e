"""What several test folders share: manifests of released files, files of their layout, tiny whole models."""

from __future__ import annotations

import json
import lzma
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from avila_diffusion.checkpoint.load import build_text_model
from avila_diffusion.checkpoint.safetensors import write_safetensors
from avila_diffusion.config import TextConfig, TransformerConfig, UNetBlockConfig, UNetConfig, VAEConfig
from avila_diffusion.models.unet import UNet
from avila_diffusion.models.vae import VAE

MANIFESTS = Path(__file__).parent / "manifests"
Shapes = Mapping[str, tuple[int, ...]]
Manifest = Callable[[str], dict[str, tuple[int, ...]]]
WriteLayout = Callable[..., Path]
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8}


def pytest_configure() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    hypothesis.settings.register_profile("shared", deadline=None)  # other processes may have the processor meanwhile
    hypothesis.settings.load_profile("shared")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Full-size comparisons run only where the command line asks for them, with -m full."""
    if "full" not in str(config.getoption("-m")):
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="full size; run by scripts/test --full"))


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    """Names and shapes of a released file."""

    def read(name: str) -> dict[str, tuple[int, ...]]:
        values = json.loads(lzma.decompress((MANIFESTS / f"{name}.json.xz").read_bytes()))
        return {key: tuple(shape) for key, shape in values.items()}

    return read


@pytest.fixture(scope="session")
def write_layout() -> WriteLayout:
    """Writes a safetensors file of given shapes whose weights are a hole in the file: all zeros, no disk space."""

    def write(path: Path, shapes: Shapes, dtype: str = "F16", metadata: dict[str, str] | None = None) -> Path:
        header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
        end = 0
        for name, shape in shapes.items():
            kind = "I64" if name.endswith("position_ids") else dtype
            begin, end = end, end + SIZES[kind] * prod(shape)
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
        return path

    return write


def _row(
    in_channels: int, out_channels: int, depth: int = 0, resample: str = "none", heads: int = 8
) -> UNetBlockConfig:
    transformer = TransformerConfig(depth=depth, heads=heads) if depth else None
    return UNetBlockConfig(
        in_channels=in_channels,
        out_channels=out_channels,
        transformer=transformer,
        resample=resample,  # type: ignore[arg-type]
    )


def _unet(context: int, linear: bool, adm: int | None = None, heads: tuple[int, int] = (8, 8)) -> UNetConfig:
    """Two levels, one block each, attention on both: the smallest UNet that has every part."""
    low, high = heads
    down = UNetBlockConfig(in_channels=64, out_channels=64, residual=False, resample="down")
    return UNetConfig(
        in_channels=4,
        out_channels=4,
        model_channels=64,
        embed_channels=128,
        context_channels=context,
        input_blocks=(_row(4, 64), _row(64, 64, 1, heads=low), down, _row(64, 128, 1, heads=high)),
        middle=_row(128, 128, 1, heads=high),
        output_blocks=(
            _row(256, 128, 1, heads=high),
            _row(192, 128, 1, "up", heads=high),
            _row(192, 64, 1, heads=low),
            _row(128, 64, 1, heads=low),
        ),
        linear_projection=linear,
        adm_channels=adm,
    )


TINY_VAE = VAEConfig(
    encoder_channels=(32, 32, 32, 32), decoder_channels=(32, 32, 32, 32), encoder_blocks=1, decoder_blocks=2
)
TINY_CLIP = TextConfig(kind="clip", vocabulary=49408, width=64, layers=3, heads=1, mlp=128)
TINY_OPEN = replace(TINY_CLIP, kind="open_clip", activation="gelu", projection=64)
TINY: dict[str, tuple[UNetConfig, dict[str, TextConfig], dict[str, str]]] = {
    "sd1": (_unet(64, False), {"cond_stage_model.transformer.": TINY_CLIP}, {}),
    "sd2": (_unet(64, True, heads=(1, 2)), {"cond_stage_model.model.": TINY_OPEN}, {}),
    "sdxl": (
        _unet(128, True, 64 + 6 * 16, heads=(1, 2)),
        {"conditioner.embedders.0.transformer.": TINY_CLIP, "conditioner.embedders.1.model.": TINY_OPEN},
        {},
    ),
    "sdxl_refiner": (
        _unet(64, True, 64 + 5 * 16, heads=(1, 2)),
        {"conditioner.embedders.0.model.": TINY_OPEN},
        {},
    ),
}


def seed_weights(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights of variance 1 / fan-in, norms near one, small biases: activations of order one. Fills and returns them."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, parameter in network.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() < 2:
            state[name] = 0.1 * noise if name.endswith("bias") else 1 + 0.2 * noise
        elif "embedding" in name:
            state[name] = 0.3 * noise
        else:
            state[name] = noise / noise[0].numel() ** 0.5
    network.load_state_dict(state, assign=True)
    return state


@pytest.fixture(scope="session")
def tiny_state() -> Callable[[str], dict[str, Tensor]]:
    """All tensors of a tiny model of a family, under the names of a single-file checkpoint, in float32."""

    def make(family: str) -> dict[str, Tensor]:
        unet, towers, _ = TINY[family]
        state = {f"model.diffusion_model.{k}": v for k, v in seed_weights(UNet(unet), 1).items()}
        state |= {f"first_stage_model.{k}": v for k, v in seed_weights(VAE(TINY_VAE), 2).items()}
        for index, (prefix, config) in enumerate(towers.items()):
            state |= {prefix + k: v for k, v in seed_weights(build_text_model(config), 3 + index).items()}
        return state

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_state: Callable[[str], dict[str, Tensor]]
) -> Callable[[str], Path]:
    """The file of a tiny model: pictures of 64x64, a second or less each. Families: sd1, sd2, sdxl, sdxl_refiner."""
    folder = tmp_path_factory.mktemp("tiny")

    def make(family: str) -> Path:
        path = folder / f"tiny_{family}.safetensors"
        if not path.exists():
            metadata = {"avila.size": "64", "avila.family": family}
            write_safetensors(path, {name: tensor.half() for name, tensor in tiny_state(family).items()}, metadata)
        return path

    return make


BUNDLED = {
    "avila.family": "sd1",
    "avila.size": "128",
    "avila.fixed_size": "true",
    "avila.default_size": "256",
    "avila.default_steps": "2",
    "avila.default_guidance": "3.5",
    "avila.default_sampler": "DPM++ 2M Karras",
    "avila.prediction": "v",
    "avila.latent_scale": "0.9",
}


@pytest.fixture(scope="session")
def bundled_file(tmp_path_factory: pytest.TempPathFactory, tiny_state: Callable[[str], dict[str, Tensor]]) -> Path:
    """A file such as the bundled model's, with weights that have learned nothing."""
    path = tmp_path_factory.mktemp("data") / "bundled.safetensors"
    write_safetensors(path, {name: tensor.half() for name, tensor in tiny_state("sd1").items()}, BUNDLED)
    return path


@pytest.fixture
def bundled(bundled_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in, in the place of the package's own file."""
    monkeypatch.setattr("avila_diffusion.checkpoint.bundled.resource", lambda: bundled_file)
    return bundled_file


@pytest.fixture
def no_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the package without the bundled model."""
    monkeypatch.setattr("avila_diffusion.checkpoint.bundled.resource", lambda: tmp_path / "bundled.safetensors")


@pytest.fixture
def black() -> NDArray[np.uint8]:
    """A black picture, 24 wide and 16 high."""
    return np.zeros((16, 24, 3), np.uint8)
