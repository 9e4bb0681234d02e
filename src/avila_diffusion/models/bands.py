"""Decoding in bands of rows, for little memory: the same picture as `VAE.decode`, without seams. How: `walk`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from .plans import Plan, plan_decode
from .rows import Convolved, Upsampled
from .taesd import Autoencoder, TinyVAE, decode_tiny_in_bands
from .vae import Decoder, Level
from .walk import Walk


def decode_in_bands(vae: Autoencoder, z: Tensor, room: int, before_band: Callable[[], None] = lambda: None) -> Tensor:
    """`vae.decode(z)` but for rounding, with at most about `room` bytes of maps at once; z (batch, channels, h, w).

    Beside the maps there are the pictures, the weights in use, and up to 60 MB of the kernels' scratch; where torch computes,
    up to a fifth more, and what its attention takes. One picture of a batch is made after the other. before_band is called
    before each band, and may raise to stop. No gradient is computed.
    Raises ValueError where the room is less than `plans.least_room`.
    """
    if isinstance(vae, TinyVAE):
        return decode_tiny_in_bands(vae, z, room, before_band)
    plan = plan_decode(vae.config, z.shape[2], z.shape[3], room, z.element_size())
    scale = vae.config.scale
    shape = (len(z), scale * z.shape[2], scale * z.shape[3], vae.config.image_channels)
    pictures = torch.empty(shape, dtype=z.dtype, device=z.device).permute(0, 3, 1, 2)
    with torch.no_grad():
        for latent, picture in zip(torch.split(z, 1), torch.split(pictures, 1), strict=True):
            if vae.post_quant_conv is not None:
                latent = vae.post_quant_conv(latent)
            _decode(vae.decoder, latent, plan, Walk(before_band), picture)
    return pictures


def _decode(decoder: Decoder, z: Tensor, plan: Plan, walk: Walk, picture: Tensor) -> None:
    """Into `picture`."""
    levels = [level for level in reversed(decoder.up) if isinstance(level, Level)]
    x = walk.kept(Convolved(decoder.conv_in, z), plan.stages[0].rows)
    x = walk.middle(decoder.mid, x, plan.stages[0], 0)
    x = walk.blocks(levels[0].block, x, plan.stages[0], 2)
    for (below, level), stage in zip(pairwise(levels), plan.stages[1:], strict=True):
        assert below.upsample is not None
        up = Upsampled(below.upsample, x)
        x = walk.blocks(level.block, walk.kept(up, stage.rows) if stage.keep_input else up, stage, 0)
    walk.leave(decoder.norm_out, decoder.conv_out, x, plan.stages[-1].rows, picture)
