"""First weights of a network that is trained from nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from ..checkpoint.load import build
from ..models.clip import ClipTextModel, EncoderLayer
from ..models.layers import Conv2d, GroupNorm, LayerNorm, Linear
from ..models.tokens import Embedding
from ..models.unet import ResBlock, SpatialTransformer, UNet

Network = TypeVar("Network", bound=nn.Module)


def create(make: Callable[[], Network], rng: torch.Generator) -> Network:
    """A network in float32 with first weights drawn from `rng`, ready to be trained.

    Weights are uniform of variance 1 / (3 fan-in), as torch's own layers have them, and biases 0. In a UNet each residual
    branch, transformer and the output begin at 0, as latent diffusion's do; in a text tower tables and matrices are
    normal with the deviations of CLIP (Radford et al. 2021).
    """
    network = build(make).to_empty(device="cpu").train().requires_grad_(True)
    with torch.no_grad():
        for module in network.modules():
            _fill(module, rng)
        if isinstance(network, UNet):
            _zero_branches(network)
        if isinstance(network, ClipTextModel):
            _as_clip(network, rng)
    return network


def _fill(module: nn.Module, rng: torch.Generator) -> None:
    if isinstance(module, Linear | Conv2d):
        bound = 1.0 / math.sqrt(module.weight[0].numel())
        module.weight.uniform_(-bound, bound, generator=rng)
        if module.bias is not None:
            module.bias.zero_()
        if module.weight.dim() == 4:
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last)
    elif isinstance(module, GroupNorm | LayerNorm):
        module.weight.fill_(1.0)
        module.bias.zero_()
    elif isinstance(module, Embedding):
        module.weight.normal_(std=0.02, generator=rng)


def _zero_branches(unet: UNet) -> None:
    for module in unet.modules():
        last = None
        if isinstance(module, ResBlock):
            last = module.out_layers[3]
        elif isinstance(module, SpatialTransformer):
            last = module.proj_out
        if isinstance(last, Linear | Conv2d):
            last.weight.zero_()
    conv = unet.out[2]
    assert isinstance(conv, Conv2d)
    conv.weight.zero_()


def _as_clip(tower: ClipTextModel, rng: torch.Generator) -> None:
    config = tower.config
    through = (2 * config.layers) ** -0.5  # residual branches add up
    tower.text_model.embeddings.position_embedding.weight.normal_(std=0.01, generator=rng)
    for layer in tower.text_model.encoder.layers:
        assert isinstance(layer, EncoderLayer)
        attention, mlp = layer.self_attn, layer.mlp
        inner = config.width**-0.5
        for linear, std in (
            (attention.q_proj, inner),
            (attention.k_proj, inner),
            (attention.v_proj, inner),
            (attention.out_proj, inner * through),
            (mlp.fc1, inner * 2**-0.5),
            (mlp.fc2, inner * through),
        ):
            linear.weight.normal_(std=std, generator=rng)
