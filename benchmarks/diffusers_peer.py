"""The networks of diffusers and transformers with the tensors of our seeded files: built without memory, then filled.

Their own way from a file, `from_single_file`, wants configurations that are downloaded; these are written down here.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from avila_diffusion.checkpoint.keys import unet_from_diffusers, vae_from_diffusers

from .weights import TEXT, UNET, VAE, Family, read

SD1_UNET: dict[str, Any] = {
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}
SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


def installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("diffusers", "transformers"))


def unet(family: Family) -> Any:
    """UNet2DConditionModel, channels_last."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network: Any = UNet2DConditionModel(**(SD1_UNET if family == "sd1" else SDXL_UNET))
    return _filled(network, unet_from_diffusers(network.state_dict()), read(family, UNET))


def vae() -> Any:
    """AutoencoderKL of SD 1.5, channels_last."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        network: Any = AutoencoderKL(**AUTOENCODER)
    return _filled(network, vae_from_diffusers(network.state_dict()), read("sd1", VAE))


def text() -> Any:
    """CLIPTextModel of SD 1.5."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        network: Any = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
    theirs = set(network.state_dict())
    ours = {f"text_model.{name}": name for name in theirs if not name.startswith("text_model.")}
    ours |= {name: name for name in theirs if name.startswith("text_model.")}
    _filled(network, ours, read("sd1", TEXT))
    for module in network.modules():
        if "position_ids" in module._buffers:  # not of the file, and without memory so far
            module.position_ids = torch.arange(77)[None]
    return network


def _filled(network: Any, theirs: dict[str, str], tensors: dict[str, Tensor]) -> Any:
    """`theirs`: our names → the network's."""
    shapes = {name: parameter.shape for name, parameter in network.state_dict().items()}
    state = {theirs[name]: tensor.reshape(shapes[theirs[name]]) for name, tensor in tensors.items() if name in theirs}
    network.load_state_dict(state, assign=True)
    network.eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last)


class UNetCall(nn.Module):
    """A tensor in place of diffusers' answer, as a converter wants it."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        out: Tensor = self.network(x, t, encoder_hidden_states=context, return_dict=False)[0]
        return out


class DecodeCall(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.network.decode(z, return_dict=False)[0]
        return out


class TextCall(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.network(tokens)[0]
        return out
