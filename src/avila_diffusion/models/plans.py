"""How a picture is decoded or encoded in bands: how high they are at each resolution, what is kept rather than made again.

Everything that may be kept is either kept or not, bands are of a few heights, and what each choice takes is counted: bytes at
the worst moment, and products. Of what fits the quickest is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

from ..config import TinyVAEConfig, VAEConfig

HALO = 2  # rows on either side of a band that two 3x3 convolutions see
TILE = 4  # rows of a Winograd tile: bands that begin with one are made of the same products as the whole map
PACKING = 1000  # packing a weight once more, as products with it
LEAST_BAND = 4 << 20  # bytes: smaller ones would lie in the C library's heap, whose gaps no plan counts
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)  # of bands


@dataclass(frozen=True)
class Stage:
    """The blocks of one resolution: what they take in and give, and what the first reads.

    upsampled: a map of half the size upsampled, perhaps anew whenever it is read. halved: a map of twice the size, or a row or
    column more, halved first. picture: channels of the picture that it is made of, anew whenever it is read; 0: of none.
    """

    height: int
    width: int
    blocks: tuple[tuple[int, int], ...]
    attention: bool
    upsampled: bool = False
    halved: bool = False
    picture: int = 0


@dataclass(frozen=True)
class StagePlan:
    """rows: of a band. keep_input: the upsampled map is kept; keep_hidden: what is between the two convolutions of a block,
    in the first block and in the others. Otherwise these are made again at every pass over them."""

    rows: int
    keep_input: bool
    keep_hidden: tuple[bool, bool]

    def hidden(self, block: int) -> bool:
        return self.keep_hidden[block > 0]


@dataclass(frozen=True)
class Plan:
    """A plan for each stage in their order; bytes of maps at the worst moment; products beside the attention's."""

    stages: tuple[StagePlan, ...]
    peak: int
    products: float


def decoding(config: VAEConfig, height: int, width: int) -> tuple[Stage, ...]:
    """What decoding a latent of this size consists of."""
    widths = tuple(reversed(config.decoder_channels))
    found = []
    for index, channels in enumerate(widths):
        first = widths[max(index - 1, 0)]
        blocks = ((first, channels), *((channels, channels),) * (config.decoder_blocks - 1))
        middle = ((channels, channels),) * 2 if index == 0 else ()
        attention = index == 0 and config.decoder_attention
        found.append(Stage(height << index, width << index, middle + blocks, attention, upsampled=index > 0))
    return tuple(found)


def encoding(config: VAEConfig, height: int, width: int) -> tuple[Stage, ...]:
    """What encoding a picture of this size consists of."""
    widths = config.encoder_channels
    scale = 1 << len(widths) - 1
    if min(height, width) < scale:
        raise ValueError(
            f"a picture of {width} x {height} cannot be encoded; it must have {scale} pixels a side at least"
        )
    found: list[Stage] = []
    for index, channels in enumerate(widths):
        first = widths[max(index - 1, 0)]
        blocks = ((first, channels), *((channels, channels),) * (config.encoder_blocks - 1))
        last = index == len(widths) - 1
        found.append(
            Stage(
                height >> index,
                width >> index,
                blocks + (((channels, channels),) * 2 if last else ()),
                last and config.encoder_attention,
                halved=index > 0,
                picture=0 if index else config.image_channels,
            )
        )
    return tuple(found)


def plan_decode(config: VAEConfig, height: int, width: int, room: int, itemsize: int = 4) -> Plan:
    """The quickest way to decode a latent of this size with at most `room` bytes of maps.

    Raises ValueError where there is none.
    """
    found = _quickest(decoding(config, height, width), room, itemsize)
    if found is None:
        least = least_room(config, height, width, itemsize)
        raise ValueError(f"decoding a latent of {height} x {width} takes {least} bytes at least; {room} were given")
    return found


def plan_encode(config: VAEConfig, height: int, width: int, room: int, itemsize: int = 4) -> Plan:
    """The quickest way to encode a picture of this size with at most `room` bytes of maps beside the picture.

    Raises ValueError where there is none.
    """
    found = _quickest(encoding(config, height, width), room, itemsize)
    if found is None:
        least = least_room_to_encode(config, height, width, itemsize)
        raise ValueError(f"encoding a picture of {width} x {height} takes {least} bytes at least; {room} were given")
    return found


@cache
def least_room(config: VAEConfig | TinyVAEConfig, height: int, width: int, itemsize: int = 4) -> int:
    """Bytes of maps without which a latent of this size cannot be decoded in bands; with so few it takes its time."""
    if isinstance(config, TinyVAEConfig):
        return min(plan.peak for plan in _tiny_plans(config, height, width, itemsize))
    return _smallest(decoding(config, height, width), itemsize).peak


@cache
def least_room_to_encode(config: VAEConfig, height: int, width: int, itemsize: int = 4) -> int:
    """Bytes of maps beside the picture without which one of this size cannot be encoded in bands.

    Raises ValueError where it is smaller than a cell of the latent.
    """
    return _smallest(encoding(config, height, width), itemsize).peak


def _quickest(stages: tuple[Stage, ...], room: int, itemsize: int) -> Plan | None:
    return _best(stages, itemsize, lambda peak, products: products if peak <= room else None)


def _smallest(stages: tuple[Stage, ...], itemsize: int) -> Plan:
    found = _best(stages, itemsize, lambda peak, products: peak)
    assert found is not None
    return found


def _best(stages: tuple[Stage, ...], itemsize: int, rank: Callable[[int, float], float | None]) -> Plan | None:
    """The plan of the lowest rank, which grows with peak and products; None where no plan has one.

    What a stage takes depends on the bands that the stage before leaves, and on nothing else of it: for each height of
    those the best way so far is enough.
    """
    ways: dict[int, Plan] = {1: Plan((), 0, 0.0)}
    for stage in stages:
        next_ways: dict[int, tuple[float, Plan]] = {}
        for (below, way), plan in product(ways.items(), _choices(stage)):
            peak = max(way.peak, _peak(stage, plan, below) * itemsize)
            longer = Plan((*way.stages, plan), peak, way.products + _products(stage, plan))
            place = rank(longer.peak, longer.products)
            if place is not None and (plan.rows not in next_ways or place < next_ways[plan.rows][0]):
                next_ways[plan.rows] = place, longer
        ways = {rows: way for rows, (_, way) in next_ways.items()}
    return min(ways.values(), key=lambda way: rank(way.peak, way.products) or 0.0, default=None)


def _choices(stage: Stage) -> Iterator[StagePlan]:
    row = min(out for _, out in stage.blocks) * stage.width * 4
    lowest = -(-LEAST_BAND // row // TILE) * TILE
    heights = {max(-(-stage.height // count // TILE) * TILE, lowest) for count in COUNTS}
    flags = (True, False)
    for rows, first, others, keep in product(sorted(heights, reverse=True), flags, flags, flags):
        if stage.upsampled or not keep:
            yield StagePlan(rows, keep, (first, others))


def _peak(stage: Stage, plan: StagePlan, before: int) -> int:
    """Numbers in maps at the worst moment of a stage. before: rows of a band of the map that it begins with."""
    below = _below(stage, plan, before)
    worst = [_peak_of_halving(stage, plan, before)] if stage.halved else []
    if plan.keep_input:
        assert below is not None
        most = max(below.all, stage.blocks[0][0] * stage.height * stage.width)
        worst.append(most + below.band + below.halo + 3 * below.made(8))  # of torch: upsampled, convolved, cut
    for index, (first, out) in enumerate(stage.blocks):
        made = None if index or plan.keep_input else below
        worst.append(_peak_of_block(stage, plan, first, out, plan.hidden(index), made))
    if stage.attention:  # x, keys and values, both again as the kernel reads them, and a few bands
        row = stage.blocks[-1][1] * stage.width
        worst.append((5 * stage.height + 4 * min(plan.rows, stage.height)) * row)
    return max(worst)


@dataclass(frozen=True)
class _Below:
    """What a stage's first map is made of band by band, in numbers: all of it, a band of it, the rows that are joined. row: a
    row of what is made, rows: of a band of that."""

    all: int
    band: int
    halo: int
    row: int
    rows: int

    def made(self, more: int) -> int:
        return (self.rows + more) * self.row


def _below(stage: Stage, plan: StagePlan, before: int) -> _Below | None:
    channels, rows = stage.blocks[0][0], min(plan.rows, stage.height)
    if stage.picture:  # which is the caller's
        return _Below(0, 0, stage.picture * stage.width * (rows + 6), channels * stage.width, rows)
    if stage.upsampled:
        row, height = channels * (stage.width // 2), stage.height // 2
        halo = row * ((rows + 4) // 2 + 2)
        return _Below(row * height, row * min(before, height), halo, channels * stage.width, rows)
    return None


def _peak_of_halving(stage: Stage, plan: StagePlan, before: int) -> int:
    """The larger map and what is made of its bands before they can be let go of; a band with zeros beside it, and its half."""
    channels, rows = stage.blocks[0][0], min(plan.rows, stage.height)
    row, half = channels * (2 * stage.width + 2), channels * stage.width
    kept = (2 * stage.height + 1) * row + min(before // 2, stage.height) * half + 2 * HALO * row
    return kept + (2 * rows + 1) * row + 2 * rows * half


def _peak_of_block(stage: Stage, plan: StagePlan, first: int, out: int, keep_hidden: bool, below: _Below | None) -> int:
    """Numbers in maps at the worst moment of a block; below: where its input is made of that band by band."""

    def size(channels: int, more: int | None = None) -> int:
        """Of a map; with `more`, of a band and so many rows around it, which a map that wraps always has."""
        rows = stage.height if more is None else min(plan.rows, stage.height) + more
        return channels * rows * stage.width

    same = first == out
    source = size(first) if below is None else below.all
    slack = size(first, 0) if below is None else below.band + below.halo  # of bands used in part, and rows joined
    slack += HALO * (first + 2 * out) * stage.width  # the first rows of maps that wrap
    spare = 2 * size(max(first, out), 4)  # what torch's operations hold beside input and output; ours leave it free
    hidden = source + slack + size(first, 2) + (size(out) if keep_hidden else size(out, 0))
    shortcut = 0 if same and below is None else size(out, 0)
    if keep_hidden:
        values = max(source + size(out), size(out)) + slack + size(out, 0) + shortcut + size(out, 2)
        values += 0 if below is None else below.made(0)
    else:
        values = (source if same and below is None else max(source, size(out))) + slack
        values += size(first, 4) * (2 if same and below is not None else 1) + size(out, 2) + shortcut
    return max(hidden, values) + spare


def _products(stage: Stage, plan: StagePlan) -> float:
    """Products of a stage, and what packing weights at every band costs; a norm's or a copy's cost is left out."""
    count = -(-stage.height // plan.rows)
    area = stage.height * stage.width
    more = 1 + TILE / plan.rows if count > 1 else 1.0  # rows around a band are made twice

    def conv(first: int, out: int, times: float) -> float:
        return first * out * (area + count * PACKING) * times

    total = 0.0
    for index, (first, out) in enumerate(stage.blocks):
        keep = plan.hidden(index)
        total += conv(first, out, 1.0 if keep else 1.0 + more) + conv(out, out, 1.0)
        total += 0.0 if first == out else conv(first, out, 0.25)
        if index == 0 and stage.upsampled:
            total += conv(first, first, 1.0 if plan.keep_input else 1.0 + 2.0 * more)
    return total


@dataclass(frozen=True)
class TinyPlan:
    """A tiny decoder's last level in bands of so many rows, and what is before it whole. peak: bytes of maps at the worst
    moment. products: in units of their own."""

    rows: int
    peak: int
    products: float


def halo(config: TinyVAEConfig) -> int:
    """Rows that the last level of a tiny decoder sees on either side of one: a row for each of its convolutions."""
    return 1 + 3 * config.decoder_blocks[-1] + 1


def plan_tiny(config: TinyVAEConfig, height: int, width: int, room: int, itemsize: int = 4) -> TinyPlan:
    """The quickest way to decode a latent of this size by a tiny decoder with at most `room` bytes of maps.

    Raises ValueError where there is none.
    """
    plans = _tiny_plans(config, height, width, itemsize)
    for plan in plans:
        if plan.peak <= room:
            return plan
    raise ValueError(
        f"decoding a latent of {height} x {width} takes {plans[-1].peak} bytes at least; {room} were given"
    )


def _tiny_plans(config: TinyVAEConfig, height: int, width: int, itemsize: int) -> list[TinyPlan]:
    """From one band to the lowest bands."""
    channels, levels = config.channels, len(config.decoder_blocks)
    height, width, around = height * config.scale, width * config.scale, 2 * halo(config)
    lowest = -(-LEAST_BAND // (channels * width * 4) // TILE) * TILE
    heights = {max(-(-height // count // TILE) * TILE, lowest, TILE) for count in COUNTS}
    half = channels * height * width // 4
    begun = sum((3 * blocks + 1) / 4 ** (levels - 1 - level) for level, blocks in enumerate(config.decoder_blocks[:-1]))
    found = []
    for rows in sorted(heights, reverse=True):
        whole = rows >= height
        band = channels * (height if whole else min(rows + around + TILE, height)) * width
        # A block holds its input, what a convolution reads and what it gives; one map more is torch's.
        peak = max(4 * half, half + 4 * band)
        last = (1 + 3 * config.decoder_blocks[-1]) * (1.0 if whole else 1 + around / rows)
        found.append(TinyPlan(rows, peak * itemsize, (begun + last) * height * width))
    return found


def products(config: VAEConfig | TinyVAEConfig, height: int, width: int, room: int, itemsize: int = 4) -> float:
    """Those of the way that is taken with so much room, to compare with those of another room."""
    if isinstance(config, TinyVAEConfig):
        return plan_tiny(config, height, width, room, itemsize).products
    return plan_decode(config, height, width, room, itemsize).products
