"""Checkpoints at full width with seeded weights, in float16 and in the layout of released files, written once.

They lie in the user's cache folder (SD 1.5: 2.1 GB, SDXL: 6.9 GB). Ours and every peer compute with these very tensors.
"""

from __future__ import annotations

import json
import lzma
import math
import zlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from avila_diffusion.checkpoint.safetensors import TensorFile, replacing, tensor_bytes, write_stream
from avila_diffusion.machine import cache_folder

Family = Literal["sd1", "sdxl"]

MANIFESTS = Path(__file__).parent.parent / "tests" / "manifests"
RELEASED = {"sd1": "sd1", "sdxl": "sdxl_base"}
PREFIXES = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
VERSION = 1
"""Of the numbers: another one makes new files."""


def folder() -> Path:
    """Where benchmarks keep what is made once."""
    return cache_folder() / "benchmarks"


def layout(family: Family) -> dict[str, tuple[int, ...]]:
    """Name → shape of what the networks of a released file are made of."""
    listed: dict[str, list[int]] = json.loads(lzma.decompress((MANIFESTS / f"{RELEASED[family]}.json.xz").read_bytes()))
    return {
        name: tuple(shape)
        for name, shape in listed.items()
        if name.startswith(PREFIXES) and not name.endswith("position_ids")
    }


def seeded(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers of this name in float16: of variance 1 / fan-in, norms near one; activations stay of order one.

    A run through weights of another kind would meet denormals or infinities, which cost time that pictures do not.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise: Tensor = torch.randn(shape, generator=generator)
    fan_in = math.prod(shape[1:])
    wanted: Tensor = noise * fan_in**-0.5 if fan_in > 1 else 0.02 * noise + (0 if name.endswith("bias") else 1)
    return wanted.half()


def checkpoint(family: Family) -> Path:
    """The file, written now where it is not there yet: a minute for SD 1.5, a few for SDXL."""
    path = folder() / f"{family}-seeded-{VERSION}.safetensors"
    if not path.exists():
        shapes = layout(family)
        size = 2 * sum(map(math.prod, shapes.values()))
        print(f"writing {path} ({size / 1e9:.1f} GB), once", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        plan = {name: ("F16", shape) for name, shape in shapes.items()}
        with replacing(path) as temporary:
            write_stream(temporary, plan, lambda name: tensor_bytes(seeded(name, shapes[name])))
    return path


def read(family: Family, prefix: str) -> dict[str, Tensor]:
    """The tensors of one network in float32, by their names behind the prefix."""
    with TensorFile(checkpoint(family)) as file:
        return {name[len(prefix) :]: file.tensor(name).float() for name in file.names if name.startswith(prefix)}
