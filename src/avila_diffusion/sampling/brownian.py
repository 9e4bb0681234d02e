"""A Brownian path W over noise levels: SDE samplers add its increments, so a run with other steps follows the same path.

The path is drawn top down: its whole increment first, then, wherever a level in between is wanted, the halves of the
span that holds it, as a Brownian bridge (Lévy's construction). Each split has a random seed of its own, which depends on
the path's seed and the place of the split alone, so the path does not depend on which levels are asked for, or when.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor

DIGITS = 6
"""Decimals that levels are rounded to: the path is not resolved further."""

POOL = 24
"""Words of entropy that numpy mixes a seed in."""

KEPT = 96
"""Increments that are remembered: twice as many as one query of Stable Diffusion's range meets (2^24 levels)."""

Draw = Callable[[int], Tensor]
"""The first unit normal numbers of a seed, in the path's shape; the same for the same seed."""


@dataclass(frozen=True, eq=False, slots=True)
class Span:
    """A piece of the path. index: from the left among the 2^depth of its depth. parent: None for the whole path."""

    start: float
    end: float
    depth: int = 0
    index: int = 0
    parent: Span | None = None

    @property
    def middle(self) -> float:
        """Where it is split."""
        return round(0.5 * (self.end + self.start), DIGITS)

    def halves(self) -> tuple[Span, Span]:
        """The left and the right one."""
        depth, index = self.depth + 1, 2 * self.index
        return (
            Span(self.start, self.middle, depth, index, self),
            Span(self.middle, self.end, depth, index + 1, self),
        )

    def parts(self, start: float, end: float) -> Iterator[Span]:
        """The fewest spans that make up [start, end], from the left."""
        if (start, end) == (self.start, self.end):
            yield self
            return
        left, right = self.halves()
        if start < self.middle:
            yield from left.parts(start, min(end, self.middle))
        if end > self.middle:
            yield from right.parts(max(start, self.middle), end)


class BrownianPath:
    """W between two levels, to the bit torchsde's BrownianTree (Li et al. 2020, arXiv:2001.01328, section 4), as
    k-diffusion uses it.

    draw: see `Draw`; AUTOMATIC1111 draws from its noise source here, torchsde from torch's generator. seed: of the path.
    low, high: its ends. Computes in the dtype that `draw` gives.
    """

    def __init__(self, draw: Draw, seed: int, low: float, high: float) -> None:
        self._draw = draw
        self._seed = seed
        self._span = Span(round(low, DIGITS), round(high, DIGITS))
        self._whole = draw(self._node_seed(())) * sqrt(high - low)
        self._known: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    def increment(self, low: float, high: float) -> Tensor:
        """W(high) - W(low), low <= high. A level beyond an end counts as that end."""
        ends = self._span.start, self._span.end
        low, high = (min(max(round(level, DIGITS), ends[0]), ends[1]) for level in (low, high))
        if low == high:
            return torch.zeros_like(self._whole)
        first, *others = (self._increment(span) for span in self._span.parts(low, high))
        total = first
        for other in others:
            total = total + other
        return total

    def _increment(self, span: Span) -> Tensor:
        """Over one span: a bridge within its parent. Normal about its share of the parent's, with the variance ab / (a + b)."""
        if span.parent is None:
            return self._whole
        place = (span.depth, span.index)
        if place not in self._known:
            parent = span.parent
            whole = self._increment(parent)
            a, b, inverse = parent.middle - parent.start, parent.end - parent.middle, 1 / (parent.end - parent.start)
            normal = self._draw(self._node_seed((parent.index, parent.depth)))
            left = a * whole * inverse + sqrt(a * b * inverse) * normal
            first = span.index - span.index % 2
            self._remember((span.depth, first), left)
            self._remember((span.depth, first + 1), whole - left)
        self._known.move_to_end(place)
        return self._known[place]

    def _remember(self, place: tuple[int, int], increment: Tensor) -> None:
        self._known[place] = increment
        while len(self._known) > KEPT:
            self._known.popitem(last=False)

    def _node_seed(self, place: tuple[int, ...]) -> int:
        """The seed of the whole path (no place), or of the split of the span at (index, depth)."""
        sequence = np.random.SeedSequence(entropy=self._seed, spawn_key=place, pool_size=POOL)
        return int(sequence.generate_state(1)[0])


def path_noise(path: BrownianPath, sigma: float, sigma_next: float) -> Tensor:
    """Unit noise of the step from sigma to sigma_next: (W(sigma_next) - W(sigma)) / sqrt(|sigma_next - sigma|).

    The levels are rounded to float32, as the programs that pictures come from hold them: the path is resolved finely
    enough to tell the difference. Where a step leaves the path, the part outside adds no noise and counts in the divisor.
    """
    ends = torch.tensor([sigma, sigma_next], dtype=torch.float32)
    low, high = sorted(ends.tolist())
    increment = path.increment(low, high)
    if low == high:
        return increment
    return (increment if sigma_next > sigma else -increment) / (ends[1] - ends[0]).abs().sqrt()
