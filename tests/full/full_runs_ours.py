"""Run in a process of its own: a run at full size, and the same with mistakes, as users of the package make it. float32.

    python full_runs_ours.py RUN CHECKPOINT [REFINER] OUTPUT

Writes the final latents of the runs' journals as a safetensors file: "right", and the mistakes' by their names.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from full_runs import MISTAKES, NEGATIVE, PROMPT, RUNS, SETTINGS
from safetensors.torch import save_file
from torch import Tensor

from avila_diffusion import AvilaDiffusion
from avila_diffusion.pipeline.journal import Journal


def final_latent(diffusion: AvilaDiffusion, options: dict[str, Any]) -> Tensor:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run.journal"
        diffusion.text_to_image(PROMPT, NEGATIVE, journal=path, **{**SETTINGS, **options})
        with Journal.read(path) as journal:
            latent = journal.stage(0, "latent")
    assert latent is not None
    return latent.contiguous()


def main() -> None:
    name, path, *refiner, output = sys.argv[1:]
    diffusion = AvilaDiffusion.with_model(path, refiner=next(iter(refiner), None), dtype="float32", threads=2)
    asked = {"right": {}, **MISTAKES[name]}
    save_file({key: final_latent(diffusion, {**RUNS[name], **other}) for key, other in asked.items()}, output)


if __name__ == "__main__":
    main()
