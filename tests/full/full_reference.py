"""Run in a process of its own: one component of a full-size model in diffusers or transformers, in float32.

    python full_reference.py FAMILY COMPONENT CHECKPOINT OUTPUT

Reads the checkpoint with the safetensors library and writes the component's output as a safetensors file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from full_inputs import SIZE_CHANNELS, make_inputs
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from avila_diffusion.checkpoint.keys import unet_from_diffusers, vae_from_diffusers

DOWN, UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
FOUR = {"block_out_channels": (320, 640, 1280, 1280)}
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {**FOUR, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd1_inpainting": {**FOUR, "in_channels": 9, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {
        **FOUR,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "sdxl_base": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", DOWN, DOWN),
        "up_block_types": (UP, UP, "UpBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_CHANNELS,
        "projection_class_embeddings_input_dim": 2816,
    },
    "sdxl_refiner": {
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": ("DownBlock2D", DOWN, DOWN, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", UP, UP, "UpBlock2D"),
        "cross_attention_dim": 1280,
        "attention_head_dim": [6, 12, 24, 24],
        "transformer_layers_per_block": 4,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_CHANNELS,
        "projection_class_embeddings_input_dim": 2560,
    },
}
TOWERS = {
    "sd1": {"l": "cond_stage_model.transformer."},
    "sd1_inpainting": {"l": "cond_stage_model.transformer."},
    "sd2": {"h": "cond_stage_model.model."},
    "sdxl_base": {"l": "conditioner.embedders.0.transformer.", "g": "conditioner.embedders.1.model."},
    "sdxl_refiner": {"g": "conditioner.embedders.0.model."},
}
WIDTHS = {"l": (768, 12, 12, "quick_gelu"), "h": (1024, 24, 16, "gelu"), "g": (1280, 32, 20, "gelu")}


def read(path: str, prefix: str) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {
            name.removeprefix(prefix): file.get_tensor(name).float()
            if "position_ids" not in name
            else file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
            if name.startswith(prefix)
        }


def _fill(model: Any, state: dict[str, Tensor], names: dict[str, str]) -> Any:
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    translated = {theirs: state[ours].reshape(shapes[theirs]) for ours, theirs in names.items()}
    model.load_state_dict(translated, assign=True)
    return model.eval().requires_grad_(False)


def make_unet(family: str, path: str) -> Any:
    with torch.device("meta"):
        model: Any = UNet2DConditionModel(**UNETS[family])
    return _fill(model, read(path, "model.diffusion_model."), unet_from_diffusers(model.state_dict()))


def run_unet(family: str, path: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model, extra = make_unet(family, path), {}
    if "ids" in inputs:
        extra["added_cond_kwargs"] = {"text_embeds": inputs["pooled"], "time_ids": inputs["ids"]}
    return {"unet": model(inputs["x"], inputs["t"], inputs["context"], **extra).sample}


def make_vae(path: str) -> Any:
    model: Any = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    return _fill(model, read(path, "first_stage_model."), vae_from_diffusers(model.state_dict()))


def run_vae(family: str, path: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model = make_vae(path)
    moments = model.encode(inputs["picture"]).latent_dist
    return {"decoded": model.decode(inputs["z"]).sample, "mean": moments.mean, "logvar": moments.logvar}


def run_tower(kind: str, state: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    width, layers, heads, activation = WIDTHS[kind]
    model: Any = CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            projection_dim=width,
            hidden_act=activation,
            bos_token_id=49406,
            eos_token_id=49407,
        )
    )
    if kind != "l":
        state = _transformers_names(state, layers)
    state.setdefault("text_projection.weight", torch.eye(width))
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert all("position_ids" in name for name in missing), missing
    out = model.eval()(tokens, output_hidden_states=True)
    return {"last": out.last_hidden_state, "penultimate": out.hidden_states[-2], "pooled": out.text_embeds}


def _transformers_names(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    head = "text_model."
    theirs = {
        f"{head}embeddings.token_embedding.weight": state["token_embedding.weight"],
        f"{head}embeddings.position_embedding.weight": state["positional_embedding"],
        f"{head}final_layer_norm.weight": state["ln_final.weight"],
        f"{head}final_layer_norm.bias": state["ln_final.bias"],
        "text_projection.weight": state["text_projection"].T.contiguous(),
    }
    names = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }
    for index in range(layers):
        ours, mine = f"transformer.resblocks.{index}.", f"{head}encoder.layers.{index}."
        for leaf in ("weight", "bias"):
            for part, tensor in zip("qkv", state[f"{ours}attn.in_proj_{leaf}"].chunk(3), strict=True):
                theirs[f"{mine}self_attn.{part}_proj.{leaf}"] = tensor
            for name, translated in names.items():
                theirs[f"{mine}{translated}.{leaf}"] = state[f"{ours}{name}.{leaf}"]
    return theirs


def run_text(family: str, path: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    outputs = {}
    for kind, prefix in TOWERS[family].items():
        for name, tensor in run_tower(kind, read(path, prefix), inputs["tokens"]).items():
            outputs[f"{kind}.{name}"] = tensor
    return outputs


def main() -> None:
    family, component, path, output = sys.argv[1:]
    torch.set_num_threads(2)
    run = {"unet": run_unet, "vae": run_vae, "text": run_text}[component]
    with torch.no_grad():
        outputs = run(family, path, make_inputs(family))
    save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, Path(output))


if __name__ == "__main__":
    main()
