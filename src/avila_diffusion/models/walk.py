"""The blocks of an autoencoder in bands of rows, for little memory: what `VAE` computes, without seams.

Every group norm has the statistics of the whole map, every convolution sees the rows around a band. What is too large to be
kept is made again for each pass over it: a first for norm1's sums, a second for norm2's, a third for the values, which take
their input's place. `plans` finds out what is best kept, and how high the bands are; `bands` decodes, `encode_bands` encodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from ..kernels import native
from .layers import Band, Conv2d, GroupNorm, attend
from .plans import StagePlan
from .rows import (
    Map,
    Moments,
    Source,
    Statistics,
    around,
    convolve,
    cut,
    joined,
    moments,
    normalise,
    room_for,
    statistics,
)
from .vae import AttnBlock, Mid, ResnetBlock

TOKENS = 8192  # queries of the attention between two calls of before_band


class Walk:
    """The way of one picture through an encoder or a decoder. A method that takes a source uses it up, band by band."""

    def __init__(self, before_band: Callable[[], None]) -> None:
        self.before_band = before_band

    def bands(self, height: int, rows: int) -> Iterator[tuple[int, int]]:
        """The first row and the end of each band."""
        native.give_back()  # bands of another height do not fit into the rooms of those before
        for first in range(0, height, rows):
            self.before_band()
            yield first, min(first + rows, height)

    def kept(self, source: Source, rows: int) -> Map:
        """What is made anew whenever it is asked for, made once, in bands of so many rows."""
        x = Map(source.height, source.wraps)
        for first, end in self.bands(x.height, rows):
            x.add(source.pieces(first, end)[0])
            source.release(end)
        return x

    def blocks(self, blocks: Iterable[nn.Module], source: Source, stage: StagePlan, number: int) -> Map:
        """Residual blocks of one resolution, one after the other. number: of the first in its stage."""
        for index, block in enumerate(blocks, number):
            assert isinstance(block, ResnetBlock)
            source = self._block(block, source, stage, index)
        assert isinstance(source, Map)
        return source

    def middle(self, mid: Mid, x: Map, stage: StagePlan, number: int) -> Map:
        """The bottom: a block, the attention where there is one, a block."""
        x = self._block(mid.block_1, x, stage, number)
        if isinstance(mid.attn_1, AttnBlock):
            x = self._attention(mid.attn_1, x, stage.rows)
        return self._block(mid.block_2, x, stage, number + 1)

    def leave(self, norm: GroupNorm, conv: Conv2d, x: Map, rows: int, into: Tensor) -> None:
        """The last norm, SiLU and convolution, into a tensor of their own."""
        by = statistics(norm, x.moments, x.like)
        for first, end in self.bands(x.height, rows):
            low, high = around(x, first, end)
            h = _normalised(x.pieces(low, high), by, True, False)
            into[:, :, first:end] = convolve(conv, h, Band(first - low, end - first, x.height))
            x.release(end)

    def _block(self, block: ResnetBlock, source: Source, stage: StagePlan, number: int) -> Map:
        rows, height = stage.rows, source.height
        norm1 = self._statistics(block.norm1, source, rows)
        hidden = Map(height, source.wraps) if stage.hidden(number) else None
        parts: list[Moments] = []
        for first, end in self.bands(height, rows):
            low, high = around(source, first, end)
            h = _hidden(
                block.conv1, source.pieces(low, high), norm1, source.ours, Band(first - low, end - first, height)
            )
            parts.append(moments(h))
            if hidden is not None:
                hidden.add(h, parts[-1])
            like = h[:, :, :1, :1]
            del h
        norm2 = statistics(block.norm2, parts, like.clone())
        out = Map(height, source.wraps)
        for first, end in self.bands(height, rows):
            if hidden is None:
                out.add(_from_source(block, source, norm1, norm2, first, end))
            else:
                out.add(_from_hidden(block, source, hidden, norm2, first, end))
        return out

    def _statistics(self, norm: GroupNorm, source: Source, rows: int) -> Statistics:
        if isinstance(source, Map):
            return statistics(norm, source.moments, source.like)
        parts = []
        for first, end in self.bands(source.height, rows):
            parts.append(moments(source.pieces(first, end)[0]))
        return statistics(norm, parts, source.like)

    def _attention(self, attn: AttnBlock, x: Map, rows: int) -> Map:
        norm = statistics(attn.norm, x.moments, x.like)
        width = x.like.shape[3]
        keys, values = (_tokens(room_for(x.like, x.height)) for _ in range(2))
        for first, end in self.bands(x.height, rows):
            h = _normalised(x.pieces(first, end), norm, False, False)
            keys[:, first * width : end * width] = _tokens(attn.k(h))
            values[:, first * width : end * width] = _tokens(attn.v(h))
        out = Map(x.height, x.wraps)
        for first, end in self.bands(x.height, rows):
            near = x.pieces(first, end)
            queries = _tokens(attn.q(_normalised(near, norm, False, False)))
            h = room_for(x.like, end - first)
            for some, found in zip(torch.split(queries, TOKENS, 1), torch.split(_tokens(h), TOKENS, 1), strict=True):
                self.before_band()
                found.copy_(attend(some, keys, values, heads=1))
            out.add(attn.proj_out(h, add=joined(near)))
            x.release(end)
        native.drop_scratch()  # the packed keys and values
        return out


def _tokens(x: Tensor) -> Tensor:
    """(1, channels, h, w) → (1, h * w, channels)"""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _normalised(pieces: list[Tensor], by: Statistics, silu: bool, in_place: bool) -> Tensor:
    """Pieces that follow each other as one, normalised. in_place: where there is one piece, into itself."""
    if in_place and len(pieces) == 1:
        normalise(pieces[0], by, silu, pieces[0])
        return pieces[0]
    heights = [piece.shape[2] for piece in pieces]
    whole = room_for(pieces[0], sum(heights))
    for piece, part in zip(pieces, torch.split(whole, heights, 2), strict=True):
        normalise(piece, by, silu, part)
    return whole


def _hidden(conv: Conv2d, near: list[Tensor], norm: Statistics, in_place: bool, band: Band) -> Tensor:
    """What is between the convolutions of a block. near: the rows that the band is made of."""
    return convolve(conv, _normalised(near, norm, True, in_place), band)


def _from_source(
    block: ResnetBlock, source: Source, norm1: Statistics, norm2: Statistics, first: int, end: int
) -> Tensor:
    """A band of a block's result, where the band between the convolutions is made again."""
    height = source.height
    low, high = around(source, first, end, 2)
    near = source.pieces(low, high)
    shortcut, ours = _shortcut(block, cut(near, first - low, end - low), source.ours)
    top, bottom = around(source, first, end)
    band = Band(top - low, bottom - top, height)
    h = _hidden(block.conv1, near, norm1, source.ours and block.nin_shortcut is not None, band)
    del near
    source.release(end)  # copies of the last rows are kept: the band may now be written into
    return _result(block, h, norm2, Band(first - top, end - first, height), shortcut, ours)


def _from_hidden(block: ResnetBlock, source: Source, hidden: Map, norm2: Statistics, first: int, end: int) -> Tensor:
    """A band of a block's result, where what is between the convolutions was kept."""
    shortcut, ours = _shortcut(block, source.pieces(first, end), source.ours)
    source.release(end)
    top, bottom = around(source, first, end)
    h = _normalised(hidden.pieces(top, bottom), norm2, True, False)
    hidden.release(end)
    return convolve(block.conv2, h, Band(first - top, end - first, source.height), shortcut, shortcut if ours else None)


def _shortcut(block: ResnetBlock, x: list[Tensor], made: bool) -> tuple[Tensor, bool]:
    """What a band of the result has added, and whether the result may be put there."""
    if block.nin_shortcut is None:
        return joined(x), not made
    return block.nin_shortcut(joined(x)), True


def _result(block: ResnetBlock, h: Tensor, norm: Statistics, band: Band, shortcut: Tensor, ours: bool) -> Tensor:
    return convolve(block.conv2, _normalised([h], norm, True, True), band, shortcut, shortcut if ours else None)
