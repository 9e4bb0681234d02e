"""What a module of a LoRA file does to a weight: the kinds of `models.layers.Delta` beside the plain low-rank one.

Each is a pure function of the weight. Additive ones add scale · change, where scale is the strength asked for times
alpha / rank. Those that work on the weight itself (DoRA, OFT, GLoRA, IA3) go from the weight to their outcome by
`strength`, 1 being all the way. Papers are named in `kinds`; the outcomes are those of LyCORIS 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.weights import Delta

Halves = tuple[Tensor, Tensor]


class Fixed:
    """A change that is not trained here."""

    @property
    def requires_grad(self) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class Difference(Fixed):
    """weight + scale · diff, of as many numbers as the weight."""

    diff: Tensor
    scale: float

    def apply(self, weight: Tensor) -> Tensor:
        return weight.add_(self.diff.to(weight).reshape(weight.shape), alpha=self.scale)


@dataclass(frozen=True, eq=False)
class Transposed(Fixed):
    """A change of the transpose of a matrix."""

    delta: Delta

    def apply(self, weight: Tensor) -> Tensor:
        return self.delta.apply(weight.mT.contiguous()).mT.contiguous()


@dataclass(frozen=True, eq=False)
class Hadamard(Fixed):
    """LoHa: weight + scale · (a1 · b1) ∘ (a2 · b2); with kernels t (rank, rank, h, w), a is (rank, out), b (rank, in)."""

    first: Halves
    second: Halves
    scale: float
    kernels: tuple[Tensor | None, Tensor | None] = (None, None)

    def apply(self, weight: Tensor) -> Tensor:
        one = multiply(self.first, self.kernels[0], weight)
        two = multiply(self.second, self.kernels[1], weight)
        return weight.add_((one * two).reshape(weight.shape), alpha=self.scale)


@dataclass(frozen=True, eq=False)
class Kronecker(Fixed):
    """LoKr: weight + scale · w1 ⊗ w2, each whole or in halves; w2 perhaps with a kernel between."""

    first: Tensor | Halves
    second: Tensor | Halves
    scale: float
    kernel: Tensor | None = None

    def apply(self, weight: Tensor) -> Tensor:
        one = self.first.to(weight) if isinstance(self.first, Tensor) else multiply(self.first, None, weight)
        one = one.flatten(1)
        two = self.second.to(weight) if isinstance(self.second, Tensor) else multiply(self.second, self.kernel, weight)
        one = one.reshape(*one.shape, *(1 for _ in two.shape[2:]))
        return weight.add_(torch.kron(one, two.contiguous()).reshape(weight.shape), alpha=self.scale)


@dataclass(frozen=True, eq=False)
class Decomposed(Fixed):
    """DoRA: the changed weight at given lengths of its rows, or of its columns.

    inner: the change at strength 1. magnitude: as many numbers as there are rows, or columns. Between 0 and 1 the outcome is
    mixed with the weight, as A1111 and ComfyUI do; LyCORIS's own merge leaves the inner change whole there.
    """

    inner: Delta
    magnitude: Tensor
    columns: bool
    strength: float

    def apply(self, weight: Tensor) -> Tensor:
        changed = self.inner.apply(weight.clone())
        axis = 1 if self.columns else 0
        others = [dim for dim in range(weight.dim()) if dim != axis]
        length = torch.linalg.vector_norm(changed, dim=others, keepdim=True) + torch.finfo(changed.dtype).eps
        changed.mul_(self.magnitude.to(weight).reshape(length.shape) / length)
        return weight.lerp_(changed, self.strength)


@dataclass(frozen=True, eq=False)
class Generalised(Fixed):
    """GLoRA: weight + scale · (weight · A + B), A and B in halves; A works on the weight's second dimension."""

    a: Halves
    b: Halves
    scale: float

    def apply(self, weight: Tensor) -> Tensor:
        rows, columns = weight.shape[:2]
        (a_left, a_right), (b_left, b_right) = (
            [half.to(weight).flatten(1) for half in pair] for pair in (self.a, self.b)
        )
        flat = weight.reshape(rows, columns, -1)
        turned = torch.einsum("oik,ir,rj->ojk", flat, a_left, a_right)
        return weight + self.scale * (turned.reshape(weight.shape) + (b_left @ b_right).reshape(weight.shape))


@dataclass(frozen=True, eq=False)
class Rotation(Fixed):
    """OFT: blocks of rows turned by Cayley's map of a skew matrix, (blocks, size, size).

    constraint: the greatest length of all skew matrices together, 0 for none. rescale: a factor for each row.
    """

    blocks: Tensor
    constraint: float
    strength: float
    rescale: Tensor | None = None

    def apply(self, weight: Tensor) -> Tensor:
        turn = rotate(self.blocks.to(weight), self.constraint)
        return Turned(turn, self.strength, self.rescale).apply(weight)


@dataclass(frozen=True, eq=False)
class Turned(Fixed):
    """OFT whose blocks are the rotations themselves, (blocks, size, size): LyCORIS's first form of it."""

    turn: Tensor
    strength: float
    rescale: Tensor | None = None

    def apply(self, weight: Tensor) -> Tensor:
        turn = self.turn.to(weight)
        parts = weight.reshape(*turn.shape[:2], -1)
        turned = torch.einsum("knm,knc->kmc", turn, parts).reshape(weight.shape)
        return weight.lerp(_rescale(turned, self.rescale), self.strength)


@dataclass(frozen=True, eq=False)
class Butterfly(Fixed):
    """BOFT: stages of rotations (stages, blocks, size, size), stage i between rows 2^i half blocks apart.

    strength draws each stage towards none, as LyCORIS and ComfyUI do.
    """

    blocks: Tensor
    constraint: float
    strength: float
    rescale: Tensor | None = None

    def apply(self, weight: Tensor) -> Tensor:
        turns = rotate(self.blocks.to(weight), self.constraint)
        size = turns.shape[-1]
        turns = torch.eye(size).to(weight).lerp(turns, self.strength)
        x = weight.reshape(len(weight), -1)
        for stage, turn in enumerate(turns):
            apart = (size // 2) << stage
            shuffled = x.reshape(-1, 2, apart, x.shape[-1]).transpose(1, 2).reshape(-1, size, x.shape[-1])
            turned = torch.einsum("bij,bjc->bic", turn, shuffled)
            x = turned.reshape(-1, apart, 2, x.shape[-1]).transpose(1, 2).reshape(x.shape)
        x = x.reshape(weight.shape)
        if self.rescale is None:
            return x
        factor = self.rescale.to(weight).reshape(-1, *(1 for _ in weight.shape[1:]))
        return x * (1 + self.strength * (factor - 1))


@dataclass(frozen=True, eq=False)
class Factors(Fixed):
    """IA3: each row, or each column, times 1 + strength · its factor."""

    factors: Tensor
    columns: bool
    strength: float

    def apply(self, weight: Tensor) -> Tensor:
        axis = 1 if self.columns else 0
        shape = [-1 if dim == axis else 1 for dim in range(weight.dim())]
        return weight.mul_(1 + self.strength * self.factors.to(weight).reshape(shape))


def multiply(halves: Halves, kernel: Tensor | None, like: Tensor) -> Tensor:
    """a · b in the dtype of `like`: (rows, columns), b's kernel kept; (out, in, h, w) with a kernel between."""
    a, b = (half.to(like) for half in halves)
    if kernel is not None:
        return torch.einsum("rshw,ro,si->oihw", kernel.to(like), a, b)
    return (a @ b.flatten(1)).reshape(len(a), *b.shape[1:])


def rotate(blocks: Tensor, constraint: float) -> Tensor:
    """(1 + q) (1 − q)⁻¹ of each block's skew part q = b − bᵀ, all drawn in together where they exceed the constraint."""
    skew = blocks - blocks.mT
    if constraint > 0:
        length = skew.norm() + 1e-8
        if length > constraint:
            skew = skew * (constraint / length)
    one = torch.eye(blocks.shape[-1]).to(blocks)
    inverse: Tensor = torch.linalg.inv(one - skew)  # of a skew matrix, 1 − q always has an inverse
    return (one + skew) @ inverse


def _rescale(weight: Tensor, rescale: Tensor | None) -> Tensor:
    return weight if rescale is None else weight * rescale.to(weight).reshape(-1, *(1 for _ in weight.shape[1:]))
