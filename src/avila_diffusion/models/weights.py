"""From a weight on disk to a weight in use: a pure function, and what may be kept of its results.

A parameter is a *source*: usually a tensor mapped from the checkpoint, in the file's dtype, never written to. `derive` moves
it to a device and dtype, rounded once, with what LoRA files change of it (`Delta`) applied on the way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Transform = Callable[[Tensor], Tensor]


class Delta(Protocol):
    """A change of a parameter: a pure function of its weight, such as what a LoRA file says of it."""

    @property
    def requires_grad(self) -> bool:
        """Whether it is being trained."""
        ...

    def apply(self, weight: Tensor) -> Tensor:
        """The changed weight, of the same shape and dtype (float32 or float64), on the same device.

        `weight` is contiguous and the caller's own copy: it may be written into and given back.
        """
        ...


@dataclass(frozen=True, eq=False)
class LowRank:
    """A low-rank change (Hu et al. 2021): weight + scale · up · down.

    up (rows, rank); down (rank, …), the dots being the parameter's dimensions after the first. Both in their file's dtype, and
    both perhaps with 1x1 kernels behind. mid (rank, rank, h, w): a kernel between a 1x1 down and up, W = up · mid · down.
    scale: the strength asked for, times alpha / rank.
    """

    up: Tensor
    down: Tensor
    scale: float
    mid: Tensor | None = None

    @property
    def requires_grad(self) -> bool:
        return self.up.requires_grad

    def apply(self, weight: Tensor) -> Tensor:
        up, down = (part.to(weight).flatten(1) for part in (self.up, self.down))
        if self.mid is not None:
            down = torch.einsum("rshw,si->rihw", self.mid.to(weight), down).flatten(1)
        weight.flatten(1).addmm_(up, down, alpha=self.scale)  # flatten is a view of what is contiguous
        return weight


@dataclass(frozen=True, eq=False)
class OfRows:
    """A change of some rows only, as of q where q, k and v lie in one matrix."""

    rows: slice
    delta: Delta

    @property
    def requires_grad(self) -> bool:
        return self.delta.requires_grad

    def apply(self, weight: Tensor) -> Tensor:
        part = weight[self.rows]
        changed = self.delta.apply(part)
        if changed is not part:
            part.copy_(changed)
        return weight


def derive(
    source: Tensor,
    *,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool = False,
    transform: Transform | None = None,
    deltas: tuple[Delta, ...] = (),
) -> Tensor:
    """The effective weight: `source` on `device` in `dtype`; the source itself where that changes nothing.

    channels_last lays a 4-D weight out by pixel, which the convolution kernels of processors and CUDA read fastest.
    deltas, transform: changes made in this order, then another form of the outcome; both in float32, or in float64 where
    `dtype` is that, and rounded once at the end.
    """
    if source.device != device:
        source = source.to(device)  # bytes of the file's dtype travel, not those of the compute dtype
    exact = torch.promote_types(dtype, torch.float32)
    if deltas:
        source = source.to(dtype=exact, copy=True, memory_format=torch.contiguous_format)
        for delta in deltas:
            source = delta.apply(source)
    if transform is not None:
        return transform(source.to(exact)).to(dtype)
    if channels_last:
        return source.to(dtype=dtype, memory_format=torch.channels_last)
    return source.to(dtype)


@dataclass(frozen=True, eq=False)
class Derived:
    """What was derived of a parameter, and all that it depended on. size: the bytes that a keeper counts for it."""

    source: Tensor
    version: int
    deltas: tuple[Delta, ...]
    weight: Tensor
    form: str = ""
    size: int = 0

    def serves(self, source: Tensor, deltas: tuple[Delta, ...], like: Tensor, form: str = "") -> bool:
        """Whether it is this form still true of this source and these changes, for computing with tensors like that."""
        return (
            self.source is source
            and self.version == version_of(source)
            and self.form == form
            and self.deltas == deltas
            and self.weight.dtype == like.dtype
            and self.weight.device == like.device
        )


def version_of(tensor: Tensor) -> int:
    """How often it was written to, as far as torch counts: it does not where a tensor was made in inference mode."""
    return -1 if tensor.is_inference() else tensor._version


class Keeper:
    """What the layers of a network may keep of what they derive: `limit` bytes in all, None for any number.

    Which of them keep theirs is by who asks first; no result depends on it. May be used from several threads.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._held = 0

    @property
    def held(self) -> int:
        """Bytes that are kept now."""
        return self._held

    def admit(self, size: int) -> bool:
        """Whether so many bytes more may be kept; they count from now on."""
        with self._lock:
            if self.limit is not None and self._held + size > self.limit:
                return False
            self._held += size
            return True

    def take_back(self, size: int) -> None:
        """So many bytes are not kept any more."""
        with self._lock:
            self._held -= size

    def __reduce__(self) -> tuple[type[Keeper], tuple[int | None]]:
        return Keeper, (self.limit,)  # a network's copy has kept nothing yet
