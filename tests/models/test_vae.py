"""Our autoencoder against diffusers' AutoencoderKL, narrow, in float64 to 1e-7 of the maximum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from avila_diffusion.checkpoint.keys import vae_from_diffusers
from avila_diffusion.checkpoint.load import build
from avila_diffusion.checkpoint.shapes import read_vae_config
from avila_diffusion.models.layers import GroupNorm
from avila_diffusion.models.vae import VAE

TOLERANCE = 1e-7
USUAL: dict[str, Any] = {
    "block_out_channels": (32, 64, 96, 96),
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
KINDS: dict[str, dict[str, Any]] = {
    "usual": USUAL,
    "shallow": {
        **USUAL,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
    "without quant": {**USUAL, "use_quant_conv": False, "use_post_quant_conv": False},
    "without attention": {**USUAL, "mid_block_add_attention": False},
}


def _pair(kind: str, fill: Any, assign: Any) -> tuple[AutoencoderKL, VAE]:
    reference = AutoencoderKL(**KINDS[kind])
    state = fill(reference)
    names = vae_from_diffusers(state)
    assert len(names) == len(state)
    ours = {name: state[theirs] for name, theirs in names.items()}
    config = read_vae_config({name: tuple(tensor.shape) for name, tensor in ours.items()})
    # diffusers keeps the attention of the middle as matrices, the single-file layout as 1x1 convolutions
    ours = {name: t[:, :, None, None] if ".attn_1." in name and t.dim() == 2 else t for name, t in ours.items()}
    return reference, assign(build(lambda: VAE(config)), ours)


def _draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_diffusers(kind: str, fill: Any, assign: Any, close: Any) -> None:
    reference, ours = _pair(kind, fill, assign)
    scale = ours.config.scale
    z, x = _draw(2, 4, 5, 6), _draw(1, 3, 4 * scale, 6 * scale)
    with torch.no_grad():
        close(ours.decode(z), reference.decode(z).sample, TOLERANCE)
        expected = reference.encode(x).latent_dist
        found = ours.encode(x)
        close(found.mean, expected.mean, TOLERANCE)
        close(found.mode, expected.mode(), TOLERANCE)
        close(found.log_variance, expected.logvar, TOLERANCE)
        noise = _draw(*expected.mean.shape)
        close(found.sample(noise), expected.mean + expected.std * noise, TOLERANCE)


def test_a_wrong_norm_epsilon_is_seen(fill: Any, assign: Any, close: Any) -> None:
    reference, ours = _pair("usual", fill, assign)
    for module in ours.modules():
        if isinstance(module, GroupNorm):
            module.eps = 1e-5
    z = _draw(2, 4, 5, 6)
    with torch.no_grad(), pytest.raises(AssertionError):
        close(ours.decode(z), reference.decode(z).sample, TOLERANCE)
