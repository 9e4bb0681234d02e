"""Maps that are never whole: bands of rows, and what a convolution or a norm is on a band of them.

A 3x3 convolution of some rows needs one row more on either side. A group norm needs the mean and the spread of the whole map,
which are put together of those of its bands. All maps are of one picture: (1, channels, rows, width).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import native
from .layers import Band, Conv2d, GroupNorm, Upsample
from .plans import HALO


@dataclass(frozen=True)
class Moments:
    """Of so many pixels: (2, channels), each channel's mean and sum of squared deviations from it, in float64."""

    pixels: int
    of_channels: Tensor


@dataclass(frozen=True)
class Statistics:
    """What a group norm is, once it is known what the whole map is like: (x - level) · scale + bias, (channels,) each."""

    level: Tensor
    scale: Tensor
    bias: Tensor


def moments(x: Tensor) -> Moments:
    """The moments of a band."""
    pixels = x.shape[2] * x.shape[3]
    if native.serves(x) and native.serves_channels(x.shape[1]):
        return Moments(pixels, native.channel_moments(x))
    # Rows are summed in the map's own precision, less a pixel so that the sums are small, and added up in float64.
    start = x[:, :, :1, :1].to(torch.promote_types(x.dtype, torch.float32))
    apart = x - start
    one = apart.sum(3).double().sum(2)[0]
    two = apart.square_().sum(3).double().sum(2)[0]
    return Moments(pixels, torch.stack([start.double().flatten() + one / pixels, two - one * one / pixels]))


def statistics(norm: GroupNorm, parts: Sequence[Moments], like: Tensor) -> Statistics:
    """The norm over all parts of a map; for maps of the dtype and on the device of `like`."""
    weight, bias = norm.effective("weight", like), norm.effective("bias", like)
    assert weight is not None and bias is not None
    both = torch.stack([part.of_channels for part in parts])  # (parts, 2, channels)
    counts = torch.tensor([part.pixels for part in parts], dtype=torch.float64, device=both.device)
    means, squares = both.view(len(parts), 2, norm.groups, -1).permute(
        1, 2, 0, 3
    )  # (groups, parts, channels of a group) each
    pixels, width = counts.sum(), means.shape[2]
    counts = counts[:, None]
    level = (means * counts).sum((1, 2)) / (pixels * width)
    spread = (squares + counts * (means - level[:, None, None]).square()).sum((1, 2)) / (pixels * width)
    inverse = (spread + norm.eps).rsqrt()
    level, inverse = (vector.repeat_interleave(width) for vector in (level, inverse))
    exact = torch.promote_types(like.dtype, torch.float32)
    return Statistics(level.to(exact), (weight.double() * inverse).to(exact), bias.to(exact))


def normalise(x: Tensor, by: Statistics, silu: bool, into: Tensor) -> None:
    """Normalise a band, with `silu` SiLU of that, into another of its shape or into itself."""
    if native.serves(x) and native.serves_channels(x.shape[1]):
        native.normalise(x, by.level, by.scale, by.bias, silu, into)
        return
    level, scale, bias = (vector[None, :, None, None] for vector in (by.level, by.scale, by.bias))
    y = (x - level).mul_(scale).add_(bias)
    into.copy_(F.silu(y, inplace=True) if silu else y)


def convolve(conv: Conv2d, x: Tensor, band: Band, add: Tensor | None = None, into: Tensor | None = None) -> Tensor:
    """Rows of a 3x3 convolution; x: the rows that they are made of, without those beyond a border.

    add: added to the result. into: where the result may be put, perhaps `add` itself.
    """
    if conv.served(x, add) and native.serves_channels(*conv.weight.shape[:2]):
        fits = into is not None and into.permute(0, 2, 3, 1).is_contiguous()
        return conv.by_winograd(x, add=add, band=band, into=into if fits else None)
    y = conv.by_torch(x, band)
    return y if add is None else y + add


def upsample(up: Upsample, x: Tensor, band: Band) -> Tensor:
    """Rows of what `up` makes; x: rows of the small map, without those beyond a border."""
    if up.conv.served(x) and native.serves_channels(*up.conv.weight.shape[:2]):
        return up.conv.by_winograd(x, doubled=True, band=band)
    y: Tensor = up(x)[:, :, band.top : band.top + band.rows]
    return y


def cut(pieces: Sequence[Tensor], first: int, end: int) -> list[Tensor]:
    """Rows from `first` up to `end` of pieces that follow each other, as views."""
    found, start = [], 0
    for piece in pieces:
        low, high = max(first - start, 0), min(end - start, piece.shape[2])
        if low < high:
            found.append(piece[:, :, low:high])
        start += piece.shape[2]
    return found


def joined(pieces: Sequence[Tensor]) -> Tensor:
    """Pieces as one; no copy where there is only one."""
    if len(pieces) == 1:
        return pieces[0]
    heights = [piece.shape[2] for piece in pieces]
    whole = room_for(pieces[0], sum(heights))
    for piece, part in zip(pieces, torch.split(whole, heights, 2), strict=True):
        part.copy_(piece)
    return whole


def room_for(like: Tensor, height: int) -> Tensor:
    """A map of `height` rows with anything in it, laid out by pixel, in all else like `like` (1, channels, h, w)."""
    _, channels, _, width = like.shape
    ours = native.serves(like)
    whole = native.room(1, height, width, channels) if ours else like.new_empty(1, height, width, channels)
    return whole.permute(0, 3, 1, 2)


class Source(Protocol):
    """Rows that can be had, in order.

    wraps: whether the bottom row comes before the top one, and that after the bottom one: up to two rows past either border
    can then be had too.
    ours: whether the pieces given are the caller's own, to write into.
    """

    height: int
    wraps: bool
    ours: bool

    @property
    def like(self) -> Tensor:
        """A map of the same dtype, on the same device, as wide and with as many channels as the source is made of."""
        ...

    def pieces(self, first: int, end: int) -> list[Tensor]:
        """The rows from `first` up to `end`, as tensors that follow each other."""
        ...

    def release(self, row: int) -> None:
        """Forget what lies before `row`, but for two rows; and for the first two, where the map wraps."""
        ...


def around(source: Source, first: int, end: int, rows: int = 1) -> tuple[int, int]:
    """A band and so many rows around it, those that there are."""
    return within(source, first - rows, end + rows)


def within(source: Source, first: int, end: int) -> tuple[int, int]:
    """Of these rows those that there are."""
    return (first, end) if source.wraps else (max(first, 0), min(end, source.height))


def _unrolled(first: int, end: int, height: int) -> Iterator[tuple[int, int]]:
    """Rows of a map that repeats, as spans of rows of the map."""
    while first < end:
        row = first % height
        count = min(end - first, height - row)
        yield row, row + count
        first += count


class Map:
    """A map kept as bands, each a tensor of its own, to be let go of one by one."""

    ours = False

    def __init__(self, height: int, wraps: bool = False) -> None:
        self.height, self.wraps = height, wraps
        self.moments: list[Moments] = []
        self._bands: list[Tensor] = []
        self._start = 0  # the row of the first band that is kept
        self._head: list[Tensor] = []  # where the map wraps: its first rows, once they are let go of

    def add(self, band: Tensor, its: Moments | None = None) -> None:
        """The next rows, and their moments where they are known."""
        self._bands.append(band)
        self.moments.append(moments(band) if its is None else its)

    @property
    def like(self) -> Tensor:
        return self._bands[0]

    def pieces(self, first: int, end: int) -> list[Tensor]:
        found = []
        for low, high in _unrolled(first, end, self.height):
            kept, start = (self._head, 0) if low < self._start else (self._bands, self._start)
            found += cut(kept, low - start, high - start)
        return found

    def release(self, row: int) -> None:
        last = 0  # rows that go
        gone = []
        while self._bands and self._start + last + self._bands[0].shape[2] <= row:
            last += self._bands[0].shape[2]
            gone.append(self._bands.pop(0))
        if gone and self._bands:
            if self.wraps and not self._head:
                self._head = [piece.clone() for piece in cut([*gone, *self._bands], 0, HALO)]
            tail = [piece.clone() for piece in cut(gone, last - HALO, last)]
            self._bands[:0] = tail
            last -= sum(piece.shape[2] for piece in tail)
        self._start += last


class Convolved:
    """What a convolution of few channels makes of x (1, channels, h, w), made anew whenever it is asked for."""

    ours = True

    def __init__(self, conv: Conv2d, x: Tensor) -> None:
        self.conv, self.like = conv, x
        self.height, self.wraps = x.shape[2], conv.wrap[1]

    def pieces(self, first: int, end: int) -> list[Tensor]:
        low, high = around(self, first, end)
        near = joined([self.like[:, :, top:bottom] for top, bottom in _unrolled(low, high, self.height)])
        made = convolve(self.conv, near, Band(first - low, end - first, self.height))
        return [made.contiguous(memory_format=torch.channels_last)]  # as the kernels write into it

    def release(self, row: int) -> None:
        pass  # x is the caller's


class Upsampled:
    """What `up` makes of a map, made anew whenever it is asked for."""

    ours = True

    def __init__(self, up: Upsample, small: Map) -> None:
        self.up, self.small = up, small
        self.height, self.wraps = 2 * small.height, small.wraps

    @property
    def like(self) -> Tensor:
        return self.small.like

    def pieces(self, first: int, end: int) -> list[Tensor]:
        low, high = within(self.small, (first - 1) >> 1, (end >> 1) + 1)
        x = joined(self.small.pieces(low, high))
        return [upsample(self.up, x, Band(first - 2 * low, end - first, self.height))]

    def release(self, row: int) -> None:
        self.small.release(row >> 1)
