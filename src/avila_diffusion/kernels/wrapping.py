"""Convolutions of maps without borders: past the left column comes the last, past the top row the bottom one, as on a torus."""

from __future__ import annotations

import torch
from torch import Tensor

Wrap = tuple[bool, bool]
"""Whether a map has no border from left to right (x), and from top to bottom (y)."""


def surround(x: Tensor, wrap: Wrap, by: int) -> tuple[Tensor, tuple[int, int]]:
    """x (batch, channels, h, w) with `by` of the opposite columns and rows on either side, by at most w and h, where it wraps;
    and the zeros, (rows, columns), that a convolution which pads by `by` has yet to add.

    By slices, which keep the layout and carry gradients.
    """
    across, down = wrap
    if across and by:
        x = torch.cat([x[:, :, :, -by:], x, x[:, :, :, :by]], 3)
    if down and by:
        x = torch.cat([x[:, :, -by:], x, x[:, :, :by]], 2)
    return x, (0 if down else by, 0 if across else by)
