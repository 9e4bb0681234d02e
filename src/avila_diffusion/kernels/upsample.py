"""Nearest-neighbour upsampling by two and the 3x3 convolution after it, as four 2x2 convolutions at the low resolution.

A row of the upsampled map is a row of the map below it. Under a 3x3 kernel with rows w0, w1, w2 an even output row sees
the low rows i - 1, i, i and an odd one i, i, i + 1:

    y[2i]     = w0 x[i-1] + (w1 + w2) x[i]
    y[2i + 1] = (w0 + w1) x[i] + w2 x[i+1]

and the same along the columns: four kernels of 2x2, one for each phase of the output, 16 products where there were 36,
and the upsampled map is never made. Exact but for rounding; the zeros around the border fall out of x[-1] = x[n] = 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .wrapping import Wrap, surround


def fold_phases(weight: Tensor) -> Tensor:
    """A 3x3 kernel (out, in, 3, 3) → one of 2x2 for each output phase: (4, out, in, 2, 2), even row first.

    Each of the four is laid out by pixel (channels_last).
    """
    folded = _fold(_fold(weight, 2), 4)  # (column phase, row phase, out, in, 2, 2)
    phases = folded.transpose(0, 1).flatten(0, 1)
    return phases.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


def _fold(weight: Tensor, dim: int) -> Tensor:
    """Both phases along one dimension of three taps, stacked in front."""
    first, middle, last = weight.unbind(dim)
    return torch.stack([torch.stack([first, middle + last], dim), torch.stack([first + middle, last], dim)])


def convolve_upsampled(
    x: Tensor, phases: Sequence[Tensor] | Tensor, bias: Tensor | None, wrap: Wrap = (False, False)
) -> Tensor:
    """x (batch, in, h, w) → (batch, out, 2h, 2w): what conv3x3(upsample2x(x)) gives. phases: of `fold_phases`.

    wrap: where x[-1] = x[n - 1] and x[n] = x[0] instead.
    """
    batch, _, height, width = x.shape
    out = len(phases[0])
    x, zeros = surround(x, wrap, 1)
    y = x.new_empty(batch, height, 2, width, 2, out)
    for index, kernel in enumerate(phases):
        row, column = divmod(index, 2)
        part = F.conv2d(x, kernel, bias, padding=zeros)  # a row and a column more than the phase takes
        part = part[:, :, row : row + height, column : column + width]
        y[:, :, row, :, column] = part.permute(0, 2, 3, 1)
    return y.view(batch, 2 * height, 2 * width, out).permute(0, 3, 1, 2)
