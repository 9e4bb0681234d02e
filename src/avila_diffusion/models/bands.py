"""Decoding in bands of rows, for little memory: the same picture as `VAE.decode`, without seams.

Every group norm has the statistics of the whole map, every convolution sees the rows around a band. What is too large to be
kept is made again for each pass over it: a first for norm1's sums, a second for norm2's, a third for the values, which take
their input's place. `plans` finds out what is best kept, and how high the bands are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ..kernels import native
from .layers import Band, Conv2d, GroupNorm, attend
from .plans import Plan, StagePlan, plan_decode
from .rows import (
    Map,
    Moments,
    Source,
    Statistics,
    Upsampled,
    convolve,
    cut,
    joined,
    moments,
    normalise,
    room_for,
    statistics,
)
from .taesd import Autoencoder, TinyVAE, decode_tiny_in_bands
from .vae import AttnBlock, Decoder, Level, ResnetBlock

TOKENS = 8192  # queries of the attention between two calls of before_band


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
            _Walk(vae.decoder, plan, before_band).decode(latent, picture)
    return pictures


class _Walk:
    """The way of one latent through the decoder. A method that takes a source uses it up, band by band."""

    def __init__(self, decoder: Decoder, plan: Plan, before_band: Callable[[], None]) -> None:
        self.decoder = decoder
        self.plan = plan
        self.before_band = before_band

    def decode(self, z: Tensor, picture: Tensor) -> None:
        """Into `picture`."""
        mid, stages = self.decoder.mid, self.plan.stages
        levels = [level for level in reversed(self.decoder.up) if isinstance(level, Level)]
        x = self._enter(z, stages[0].rows)
        x = self._block(mid.block_1, x, stages[0], 0)
        if isinstance(mid.attn_1, AttnBlock):
            x = self._attention(mid.attn_1, x, stages[0].rows)
        x = self._block(mid.block_2, x, stages[0], 1)
        x = self._blocks(levels[0], x, stages[0], 2)
        for (below, level), stage in zip(pairwise(levels), stages[1:], strict=True):
            assert below.upsample is not None
            up = Upsampled(below.upsample, x)
            x = self._blocks(level, self._kept(up, stage.rows) if stage.keep_input else up, stage, 0)
        self._leave(x, stages[-1].rows, picture)

    def _bands(self, height: int, rows: int) -> Iterator[tuple[int, int]]:
        """The first row and the end of each band."""
        native.give_back()  # bands of another height do not fit into the rooms of those before
        for first in range(0, height, rows):
            self.before_band()
            yield first, min(first + rows, height)

    def _enter(self, z: Tensor, rows: int) -> Map:
        x = Map(z.shape[2])
        for first, end in self._bands(x.height, rows):
            low, high = _around(first, end, x.height)
            x.add(convolve(self.decoder.conv_in, z[:, :, low:high], Band(first - low, end - first, x.height)))
        return x

    def _kept(self, source: Upsampled, rows: int) -> Map:
        """The same, made once."""
        x = Map(source.height)
        for first, end in self._bands(x.height, rows):
            x.add(source.pieces(first, end)[0])
            source.release(end)
        return x

    def _blocks(self, level: Level, source: Source, stage: StagePlan, number: int) -> Map:
        """number: of the first block in its stage."""
        for index, block in enumerate(level.block, number):
            assert isinstance(block, ResnetBlock)
            source = self._block(block, source, stage, index)
        assert isinstance(source, Map)
        return source

    def _block(self, block: ResnetBlock, source: Source, stage: StagePlan, number: int) -> Map:
        rows, height = stage.rows, source.height
        norm1 = self._statistics(block.norm1, source, rows)
        hidden = Map(height) if stage.hidden(number) else None
        parts: list[Moments] = []
        for first, end in self._bands(height, rows):
            low, high = _around(first, end, height)
            h = _hidden(
                block.conv1, source.pieces(low, high), norm1, source.ours, Band(first - low, end - first, height)
            )
            parts.append(moments(h))
            if hidden is not None:
                hidden.add(h, parts[-1])
            like = h[:, :, :1, :1]
            del h
        norm2 = statistics(block.norm2, parts, like.clone())
        out = Map(height)
        for first, end in self._bands(height, rows):
            if hidden is None:
                out.add(_from_source(block, source, norm1, norm2, first, end))
            else:
                out.add(_from_hidden(block, source, hidden, norm2, first, end))
        return out

    def _statistics(self, norm: GroupNorm, source: Source, rows: int) -> Statistics:
        if isinstance(source, Map):
            return statistics(norm, source.moments, source.like)
        parts = []
        for first, end in self._bands(source.height, rows):
            parts.append(moments(source.pieces(first, end)[0]))
        return statistics(norm, parts, source.like)

    def _attention(self, attn: AttnBlock, x: Map, rows: int) -> Map:
        norm = statistics(attn.norm, x.moments, x.like)
        width = x.like.shape[3]
        keys, values = (_tokens(room_for(x.like, x.height)) for _ in range(2))
        for first, end in self._bands(x.height, rows):
            h = _normalised(x.pieces(first, end), norm, False, False)
            keys[:, first * width : end * width] = _tokens(attn.k(h))
            values[:, first * width : end * width] = _tokens(attn.v(h))
        out = Map(x.height)
        for first, end in self._bands(x.height, rows):
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

    def _leave(self, x: Map, rows: int, picture: Tensor) -> None:
        norm = statistics(self.decoder.norm_out, x.moments, x.like)
        for first, end in self._bands(x.height, rows):
            low, high = _around(first, end, x.height)
            h = _normalised(x.pieces(low, high), norm, True, False)
            picture[:, :, first:end] = convolve(self.decoder.conv_out, h, Band(first - low, end - first, x.height))
            x.release(end)


def _around(first: int, end: int, height: int, rows: int = 1) -> tuple[int, int]:
    """The band and the rows around it that there are."""
    return max(first - rows, 0), min(end + rows, height)


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
    low, high = _around(first, end, height, 2)
    near = source.pieces(low, high)
    shortcut, ours = _shortcut(block, cut(near, first - low, end - low), source.ours)
    top, bottom = _around(first, end, height)
    band = Band(top - low, bottom - top, height)
    h = _hidden(block.conv1, near, norm1, source.ours and block.nin_shortcut is not None, band)
    del near
    source.release(end)  # copies of the last rows are kept: the band may now be written into
    return _result(block, h, norm2, Band(first - top, end - first, height), shortcut, ours)


def _from_hidden(block: ResnetBlock, source: Source, hidden: Map, norm2: Statistics, first: int, end: int) -> Tensor:
    """A band of a block's result, where what is between the convolutions was kept."""
    shortcut, ours = _shortcut(block, source.pieces(first, end), source.ours)
    source.release(end)
    top, bottom = _around(first, end, source.height)
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
