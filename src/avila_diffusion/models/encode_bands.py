"""Encoding in bands of rows, for little memory: the same latent as by `VAE.encode`, without seams. How: `walk`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from .layers import Conv2d
from .plans import Plan, plan_encode
from .rows import Convolved, Map, room_for
from .vae import VAE, Encoder, LatentDistribution, Level
from .walk import Walk


def encode_in_bands(
    vae: VAE, x: Tensor, room: int, before_band: Callable[[], None] = lambda: None
) -> LatentDistribution:
    """`vae.encode(x)` but for rounding, with at most about `room` bytes of maps at once; x (batch, 3, height, width).

    What comes beside the maps, and before_band: as of `bands.decode_in_bands`. No gradient is computed.
    Raises ValueError where the room is less than `plans.least_room_to_encode`, or where the picture is smaller than a cell of
    the latent.
    """
    plan = plan_encode(vae.config, x.shape[2], x.shape[3], room, x.element_size())
    with torch.no_grad():
        moments = [_encode(vae.encoder, picture, plan, Walk(before_band)) for picture in torch.split(x, 1)]
        return vae.distribution(torch.cat(moments))


def _encode(encoder: Encoder, picture: Tensor, plan: Plan, walk: Walk) -> Tensor:
    """What `encoder` makes of a picture (1, 3, height, width)."""
    levels = [level for level in encoder.down if isinstance(level, Level)]
    x = walk.blocks(levels[0].block, Convolved(encoder.conv_in, picture), plan.stages[0], 0)
    for (above, level), stage in zip(pairwise(levels), plan.stages[1:], strict=True):
        assert above.downsample is not None
        x = walk.blocks(level.block, _halved(above.downsample.conv, x, walk, stage.rows), stage, 0)
    stage = plan.stages[-1]
    x = walk.middle(encoder.mid, x, stage, len(levels[-1].block))
    conv = encoder.conv_out
    moments = picture.new_empty(1, len(conv.weight), x.height, picture.shape[3] >> len(levels) - 1)
    walk.leave(encoder.norm_out, conv, x, stage.rows, moments)
    return moments


def _halved(conv: Conv2d, x: Map, walk: Walk, rows: int) -> Map:
    """What a `Downsample` makes of x: its convolution by `conv` of rows 2i to 2i + 2 for row i, a zero past the last."""
    half = Map(x.height // 2, x.wraps)
    for first, end in walk.bands(half.height, rows):
        near = x.pieces(2 * first, min(2 * end + 1, x.height))
        half.add(_laid_out(conv(_with_zeros(near, 2 * (end - first) + 1))))
        x.release(2 * end)
    return half


def _with_zeros(pieces: list[Tensor], height: int) -> Tensor:
    """Pieces as one, with a column of zeros on the right, and zeros below up to `height` rows."""
    _, channels, _, width = pieces[0].shape
    whole = pieces[0].new_zeros(1, height, width + 1, channels).permute(0, 3, 1, 2)
    row = 0
    for piece in pieces:
        whole[:, :, row : row + piece.shape[2], :width] = piece
        row += piece.shape[2]
    return whole


def _laid_out(x: Tensor) -> Tensor:
    """What torch made, in memory for maps."""
    y = room_for(x, x.shape[2])
    return y.copy_(x)
