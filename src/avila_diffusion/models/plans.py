"""How a picture is decoded in bands: how high they are at each resolution, and what is kept rather than made again.

Everything that may be kept is either kept or not, bands are of a few heights, and what each choice takes is counted: bytes at
the worst moment, and products. Of what fits the quickest is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

from ..config import TinyVAEConfig, VAEConfig

TILE = 4  # rows of a Winograd tile: bands that begin with one are made of the same products as the whole map
PACKING = 1000  # packing a weight once more, as products with it
LEAST_BAND = 4 << 20  # bytes: smaller ones would lie in the C library's heap, whose gaps no plan counts
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)  # of bands


@dataclass(frozen=True)
class Stage:
    """The blocks of one resolution: what they take in and give, and whether the first reads a map that is upsampled."""

    height: int
    width: int
    blocks: tuple[tuple[int, int], ...]
    upsampled: bool
    attention: bool


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
    """A plan for each stage, from the latent up; bytes of maps at the worst moment; products beside the attention's."""

    stages: tuple[StagePlan, ...]
    peak: int
    products: float


def stages(config: VAEConfig, height: int, width: int) -> tuple[Stage, ...]:
    """What decoding a latent of this size consists of."""
    widths = tuple(reversed(config.decoder_channels))
    found = []
    for index, channels in enumerate(widths):
        first = widths[max(index - 1, 0)]
        blocks = ((first, channels), *((channels, channels),) * (config.decoder_blocks - 1))
        middle = ((channels, channels),) * 2 if index == 0 else ()
        attention = index == 0 and config.decoder_attention
        found.append(Stage(height << index, width << index, middle + blocks, index > 0, attention))
    return tuple(found)


def plan_decode(config: VAEConfig, height: int, width: int, room: int, itemsize: int = 4) -> Plan:
    """The quickest way to decode a latent of this size with at most `room` bytes of maps.

    Raises ValueError where there is none.
    """
    found = _best(config, height, width, itemsize, lambda peak, products: products if peak <= room else None)
    if found is None:
        least = least_room(config, height, width, itemsize)
        raise ValueError(f"decoding a latent of {height} x {width} takes {least} bytes at least; {room} were given")
    return found


@cache
def least_room(config: VAEConfig | TinyVAEConfig, height: int, width: int, itemsize: int = 4) -> int:
    """Bytes of maps without which a latent of this size cannot be decoded in bands; with so few it takes its time."""
    if isinstance(config, TinyVAEConfig):
        return min(plan.peak for plan in _tiny_plans(config, height, width, itemsize))
    found = _best(config, height, width, itemsize, lambda peak, products: peak)
    assert found is not None
    return found.peak


def _best(
    config: VAEConfig, height: int, width: int, itemsize: int, rank: Callable[[int, float], float | None]
) -> Plan | None:
    """The plan of the lowest rank, which grows with peak and products; None where no plan has one.

    What a stage takes depends on the bands that the stage before leaves, and on nothing else of it: for each height of
    those the best way so far is enough.
    """
    ways: dict[int, Plan] = {1: Plan((), 0, 0.0)}
    for stage in stages(config, height, width):
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


def _peak(stage: Stage, plan: StagePlan, below: int) -> int:
    """Numbers in maps at the worst moment of a stage. below: rows of a band of the map that it begins with."""
    worst = []
    if plan.keep_input:
        channels = stage.blocks[0][0]
        below_it = _Small(stage, plan, below)
        most = max(below_it.all, channels * stage.height * stage.width)
        worst.append(most + below_it.band + below_it.halo + 3 * below_it.up(8))  # of torch: upsampled, convolved, cut
    for index, (first, out) in enumerate(stage.blocks):
        made = stage.upsampled and index == 0 and not plan.keep_input
        small = _Small(stage, plan, below) if made else None
        worst.append(_peak_of_block(stage, plan, first, out, plan.hidden(index), small))
    channels, area = stage.blocks[0][0], stage.height * stage.width
    if stage.attention:  # x, keys and values, both again as the kernel reads them, and a few bands
        worst.append(5 * channels * area + 4 * channels * min(plan.rows, stage.height) * stage.width)
    return max(worst)


class _Small:
    """The map below a stage that is upsampled band by band: all of it, a band of it, the rows that are joined, rows made."""

    def __init__(self, stage: Stage, plan: StagePlan, below: int) -> None:
        self.channels, self.width, self.height, self.rows = stage.blocks[0][0], stage.width, stage.height, plan.rows
        self.all = self.channels * (stage.height // 2) * (stage.width // 2)
        self.band = self.channels * min(below, stage.height // 2) * (stage.width // 2)
        self.halo = self.channels * (min(plan.rows + 4, stage.height) // 2 + 2) * (stage.width // 2)

    def up(self, more: int) -> int:
        return self.channels * min(self.rows + more, self.height) * self.width


def _peak_of_block(stage: Stage, plan: StagePlan, first: int, out: int, keep_hidden: bool, small: _Small | None) -> int:
    """Numbers in maps at the worst moment of a block; small: where its input is made of that band by band."""

    def size(channels: int, more: int | None = None) -> int:
        rows = stage.height if more is None else min(plan.rows + more, stage.height)
        return channels * rows * stage.width

    same = first == out
    source = size(first) if small is None else small.all
    slack = size(first, 0) if small is None else small.band + small.halo  # of bands used in part, and rows joined
    spare = 2 * size(max(first, out), 4)  # what torch's operations hold beside input and output; ours leave it free
    hidden = source + slack + size(first, 2) + (size(out) if keep_hidden else size(out, 0))
    shortcut = 0 if same and small is None else size(out, 0)
    if keep_hidden:
        values = max(source + size(out), size(out)) + slack + size(out, 0) + shortcut + size(out, 2)
        values += 0 if small is None else small.up(0)
    else:
        values = (source if same and small is None else max(source, size(out))) + slack
        values += size(first, 4) * (2 if same and small is not None else 1) + size(out, 2) + shortcut
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
