"""The networks at full width with seeded weights: ours, and diffusers' with the very same tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from avila_diffusion.checkpoint.keys import unet_from_diffusers, vae_from_diffusers
from avila_diffusion.checkpoint.load import build
from avila_diffusion.checkpoint.shapes import read_unet_config, read_vae_config
from avila_diffusion.models.unet import UNet
from avila_diffusion.models.vae import VAE

Run = Callable[[], Tensor]


def seed_weights(network: nn.Module) -> dict[str, Tensor]:
    """Weights of variance 1 / fan-in and norms near one: activations of order one, so that no denormals slow a run."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        parameter.copy_(noise / fan_in**0.5 if fan_in > 1 else 0.02 * noise + (0 if name.endswith("bias") else 1))
    network.eval().requires_grad_(False)
    return network.state_dict()


@torch.no_grad()
def sd1_unet(side: int, peers: bool) -> dict[str, Run]:
    """One UNet call of Stable Diffusion 1.5: batch 2 (both halves of guidance), a latent of side x side, 77 tokens."""
    from diffusers import UNet2DConditionModel

    reference: Any = UNet2DConditionModel(
        cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
    )
    state = seed_weights(reference)
    ours = {name: state[theirs] for name, theirs in unet_from_diffusers(state).items()}
    config = read_unet_config({name: tuple(tensor.shape) for name, tensor in ours.items()}, lambda channels: 8)
    network = build(lambda: UNet(config))
    network.load_state_dict(ours, assign=True)
    x, context = torch.randn(2, 4, side, side), torch.randn(2, 77, 768)
    t = torch.full((2,), 500.0)
    runs: dict[str, Run] = {"avila_diffusion": torch.no_grad()(lambda: network(x, t, context))}
    if peers:
        plain_x = x.contiguous(memory_format=torch.channels_last)
        reference.to(memory_format=torch.channels_last)
        runs["diffusers, channels_last"] = torch.no_grad()(lambda: reference(plain_x, t, context).sample)
    return runs


@torch.no_grad()
def vae_decode(side: int, peers: bool) -> dict[str, Run]:
    """Decoding a latent of side x side to a picture of eight times that."""
    from diffusers import AutoencoderKL

    reference: Any = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    state = seed_weights(reference)
    ours = {name: state[theirs] for name, theirs in vae_from_diffusers(state).items()}
    ours = {name: t[:, :, None, None] if ".attn_1." in name and t.dim() == 2 else t for name, t in ours.items()}
    config = read_vae_config({name: tuple(tensor.shape) for name, tensor in ours.items()})
    network = build(lambda: VAE(config))
    network.load_state_dict(ours, assign=True)
    z = torch.randn(1, 4, side, side)
    runs: dict[str, Run] = {"avila_diffusion": torch.no_grad()(lambda: network.decode(z))}
    if peers:
        reference.to(memory_format=torch.channels_last)
        runs["diffusers, channels_last"] = torch.no_grad()(lambda: reference.decode(z).sample)
    return runs


BENCHMARKS: dict[str, tuple[str, Callable[[int, bool], dict[str, Run]], int]] = {
    "unet": ("SD 1.5 UNet step, guidance (batch 2)", sd1_unet, 64),
    "decode": ("VAE decode", vae_decode, 64),
}
