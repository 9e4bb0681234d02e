"""What full-size comparisons share: seeded checkpoints of released layouts, and processes, one after the other."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from avila_diffusion.checkpoint.safetensors import write_safetensors

HERE = Path(__file__).parent


class _Seeded(dict[str, torch.Tensor]):
    """Weights made when they are asked for: a function of name and shape alone, variance 1 / fan-in."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__({name: torch.empty(0) for name in shapes})
        self._shapes = shapes

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        if name.endswith("position_ids"):
            return torch.arange(shape[-1]).reshape(shape)
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        if ("embedding" in name and len(shape) == 2) or name.endswith("bias"):
            noise *= 0.02
        elif len(shape) < 2:
            noise = 1 + 0.05 * noise
        else:
            noise /= (shape[0] if name.endswith("text_projection") else prod(shape[1:])) ** 0.5
        return noise.half()

    def items(self) -> Any:
        return ((name, self[name]) for name in self)


@pytest.fixture(scope="session")
def write_seeded(manifest: Any) -> Callable[[Path, str], Path]:
    """Writes a checkpoint of a released file's layout into a folder, in float16; its name is the layout's."""

    def write(folder: Path, layout: str) -> Path:
        path = folder / f"{layout}.safetensors"
        write_safetensors(path, _Seeded(manifest(layout)))
        return path

    return write


@pytest.fixture(scope="session")
def answer_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, torch.Tensor]]:
    """Runs a script of this folder and waits: the tensors that it writes to the path that it is given last. SDXL does not fit
    twice, so no two are run at once. Nothing of them is remembered on this machine."""
    folder, numbers = tmp_path_factory.mktemp("answers"), count()
    environment = {**os.environ, "AVILA_CACHE": str(folder / "cache")}

    def run(script: str, *arguments: str | Path) -> dict[str, torch.Tensor]:
        target = folder / f"{next(numbers)}.safetensors"
        subprocess.run([sys.executable, HERE / f"{script}.py", *arguments, target], check=True, env=environment)
        answer: dict[str, torch.Tensor] = load_file(target)
        return answer

    return run
