"""Runs that begin with pictures, and one that a refiner ends, at full width in float32 against diffusers' pipelines: final
latents of 256x256 pictures to 1e-4 of their maximum.

Run by `scripts/test --full`: about 16 GB of memory, 14 GB of disk, some minutes a run; SDXL and its refiner a quarter of an
hour. The figures are printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import Tensor

TOLERANCE = 1e-4
STAGES = {
    "image": {"image": "sd1"},
    "inpainting": {"inpainting": "sd1_inpainting"},
    "refiner": {"base": "sdxl_base", "refined": "sdxl_refiner"},
}
"""Run → stages of the reference, one after the other, and whose layout their checkpoints have."""
pytestmark = pytest.mark.full


@pytest.mark.parametrize("run", STAGES)
def test_a_run_equals_the_reference(run: str, write_seeded: Any, answer_of: Any, tmp_path: Path, capsys: Any) -> None:
    checkpoints = {family: write_seeded(tmp_path, family) for family in STAGES[run].values()}
    try:
        reference = refer(run, checkpoints, answer_of, tmp_path)
        ours = answer_of("full_runs_ours", run, *checkpoints.values())
    finally:
        for path in checkpoints.values():
            path.unlink()
    top = float(reference.abs().max())
    assert 0.3 < top < 1000, f"the latent is not of a size that shows errors: {top}"
    found = {name: float((latent - reference).abs().max()) / top for name, latent in ours.items()}
    with capsys.disabled():
        for name, difference in found.items():
            print(f"\n{run}, {name}: {difference:.1e} of the maximum {top:.3g}", end="")
    assert found.pop("right") <= TOLERANCE
    assert found, "mistakes are tried"
    assert min(found.values()) > TOLERANCE, "a mistake is seen"


def refer(run: str, checkpoints: dict[str, Path], answer_of: Any, folder: Path) -> Tensor:
    """The reference's final latent; each stage is told what the one before it wrote."""
    earlier: list[Path] = []
    latent: dict[str, Tensor] = {}
    for stage, family in STAGES[run].items():
        latent = answer_of("full_runs_reference", stage, family, checkpoints[family], *earlier)
        earlier = [folder / f"{stage}.safetensors"]
        save_file(latent, earlier[0])
    return latent["latent"]
