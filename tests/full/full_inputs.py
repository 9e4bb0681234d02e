"""The seeded inputs that both sides of a full-size comparison are given, for pictures of 256x256."""

from __future__ import annotations

import torch
from torch import Tensor

SIZE_CHANNELS = 256
CONTEXT = {"sd1": 768, "sd2": 1024, "sdxl_base": 2048, "sdxl_refiner": 1280}
IDS = {"sdxl_base": [256.0, 256, 0, 0, 256, 256], "sdxl_refiner": [256.0, 256, 0, 0, 6.0]}


def make_inputs(family: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(11)
    inputs = {
        "x": torch.randn(2, 4, 32, 32, generator=generator),
        "t": torch.tensor([981.0, 17.25]),
        "context": torch.randn(2, 77, CONTEXT[family], generator=generator),
        "z": torch.randn(1, 4, 32, 32, generator=generator),
        "picture": torch.rand(1, 3, 256, 256, generator=generator) * 2 - 1,
        "tokens": torch.randint(1, 49000, (2, 77), generator=generator),
    }
    inputs["tokens"][:, 0] = 49406
    inputs["tokens"][0, 20:] = 49407
    inputs["tokens"][1, 76] = 49407
    if family in IDS:
        inputs["ids"] = torch.tensor([IDS[family]] * 2)
        inputs["pooled"] = torch.randn(2, 1280, generator=generator)
    return inputs
