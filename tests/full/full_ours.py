"""Run in a process of its own: one component of a full-size model in our networks, in float32.

python full_ours.py FAMILY COMPONENT CHECKPOINT OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from full_inputs import SIZE_CHANNELS, make_inputs
from safetensors.torch import save_file
from torch import Tensor

from avila_diffusion.checkpoint.load import Model, load_model
from avila_diffusion.models.unet import embed_timesteps


def run_unet(model: Model, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    vector = None
    if "ids" in inputs:
        sizes = embed_timesteps(inputs["ids"].flatten(), SIZE_CHANNELS).reshape(2, -1)
        vector = torch.cat([inputs["pooled"], sizes], dim=1)
    return {"unet": model.unet(inputs["x"], inputs["t"], inputs["context"], vector=vector)}


def run_vae(model: Model, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    moments = model.vae.encode(inputs["picture"])
    return {"decoded": model.vae.decode(inputs["z"]), "mean": moments.mean, "logvar": moments.log_variance}


def run_text(model: Model, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    outputs = {}
    for tower, spec in zip(model.text, model.spec.text, strict=True):
        kind = {768: "l", 1024: "h", 1280: "g"}[spec.config.width]
        last = tower(inputs["tokens"], dtype=torch.float32, skip=1, final_norm=True)
        outputs[f"{kind}.last"] = last.hidden
        features = tower(inputs["tokens"], dtype=torch.float32, skip=2, final_norm=False, pooled=True)
        outputs[f"{kind}.penultimate"] = features.hidden
        assert features.pooled is not None
        outputs[f"{kind}.pooled"] = features.pooled
    return outputs


def main() -> None:
    _, component, path, output = sys.argv[1:]
    torch.set_num_threads(2)
    run = {"unet": run_unet, "vae": run_vae, "text": run_text}[component]
    with torch.no_grad():
        outputs = run(load_model(path), make_inputs(sys.argv[1]))
    save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, Path(output))


if __name__ == "__main__":
    main()
