"""Every component of every family at full width in float32 against diffusers and transformers, 256x256, to 2e-5.

Run by `scripts/test --full`: about 16 GB of memory, 8 GB of disk and some minutes a family. The figures are printed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from avila_diffusion.checkpoint.safetensors import write_safetensors

HERE = Path(__file__).parent
TOLERANCE = 2e-5
FAMILIES = ("sd1", "sd2", "sdxl_base", "sdxl_refiner")
pytestmark = pytest.mark.full


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


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(
    request: pytest.FixtureRequest, manifest: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("full") / f"{request.param}.safetensors"
    write_safetensors(path, _Seeded(manifest(request.param)))
    yield path
    path.unlink()


@pytest.mark.parametrize("component", ["text", "vae", "unet"])
def test_equals_the_reference(component: str, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    outputs = {}
    for side in ("reference", "ours"):  # processes of their own, one after the other: SDXL does not fit twice
        target = tmp_path / f"{side}.safetensors"
        command = [
            sys.executable,
            str(HERE / f"full_{side}.py"),
            checkpoint.stem,
            component,
            str(checkpoint),
            str(target),
        ]
        subprocess.run(command, check=True)
        outputs[side] = load_file(target)
    assert outputs["ours"].keys() == outputs["reference"].keys()
    for name, theirs in outputs["reference"].items():
        top = float(theirs.abs().max())
        assert 0.1 < top < 1000, f"{name} is not of a size that shows errors: {top}"
        difference = float((outputs["ours"][name] - theirs).abs().max()) / top
        with capsys.disabled():
            print(f"\n{checkpoint.stem} {name}: {difference:.1e} of the maximum {top:.3g}", end="")
        assert difference <= TOLERANCE
