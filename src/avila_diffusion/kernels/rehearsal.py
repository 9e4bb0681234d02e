"""A rehearsal: networks' own forward code run on `meta` tensors, to learn what memory and what work the real run would take.

Within `rehearsing` the kernels of ours note what they are asked and compute nothing, and every operation of torch is seen
by a dispatch mode that counts storages as they come and go. Nothing is as large as it says, so that a network of any size
takes a second at most. Other threads compute meanwhile as ever.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from . import begin_rehearsal, in_rehearsal, native
from .rooms import SMALLEST, Imagined, Rooms

Kind = Literal[
    "linear",
    "winograd 4x4",
    "winograd 2x2",
    "attention",
    "norm",
    "copy",
    "pack rows",
    "pack winograd",
    "torch product",
    "torch convolution",
    "torch attention",
]
"""What work is timed by: the kernels of ours; copies, all of torch's operations that move numbers; and its products."""

EXPONENTIAL = 24
"""Operations that attention spends on a score beside its products: scale, maximum, a power of two, sum."""
ROWS_FOR_EVERYBODY = 128
"""Rows a thread from which a product is cut by rows (16 pieces of 8 or so): all pack all weights then."""


@dataclass(frozen=True)
class Work:
    """One call: what the processor multiplies and adds (two for a multiply-add, as computed), and the bytes that it moves.

    packed: bytes of weights that it packs as it goes, by every thread that does so.
    """

    kind: Kind
    operations: int = 0
    moved: int = 0
    packed: int = 0


@dataclass(frozen=True)
class Stage:
    """What happened between two marks. peak: bytes of tensors that lived at once, those of before included; left: at its end.
    held: bytes that are held of the system at most by then, free blocks of `rooms` among them.
    """

    work: tuple[Work, ...]
    peak: int
    left: int
    held: int


class Rehearsal:
    """What is learned. live: bytes of tensors made within it that still live. scratch: the kernels', as large as ever."""

    def __init__(self) -> None:
        self.scratch: Tensor | None = None
        self.live = 0
        self._peak = 0
        self._rooms = Rooms(Imagined)
        self._small = self._held = 0  # bytes outside of rooms; at most, those and rooms
        self._stays = False
        self._work: list[Work] = []
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def mark(self) -> Stage:
        """The stage that ends here; the next begins."""
        stage = Stage(tuple(self._work), self._peak, self.live, self._held)
        self._work, self._peak = [], self.live
        return stage

    def record(self, which: int, arguments: object, threads: int) -> None:
        """Note a call of a kernel of ours."""
        self._work.append(_WORK[which](arguments, threads))

    def note(self, work: Work) -> None:
        """Note a call of torch's."""
        self._work.append(work)

    def stay(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor of float32 for packed weights or scratch, which lies outside of the rooms."""
        self._stays = True
        try:
            return torch.empty(shape, dtype=torch.float32, device="meta")
        finally:
            self._stays = False

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's memory from now until nothing refers to it, once for all of its views."""
        storage = tensor.untyped_storage()
        key = id(storage)  # one object for each storage while that lives
        if key in self._storages:
            return
        size = storage.nbytes()
        block = None if self._stays or size < SMALLEST else self._rooms.take(size)
        self._storages[key] = weakref.ref(storage, partial(self._forget, key, size, block))
        self.live += size
        self._small += size if block is None else 0
        self._peak = max(self._peak, self.live)
        self._held = max(self._held, self._small + self._rooms.held)

    def _forget(self, key: int, size: int, block: Imagined | None, _: object) -> None:
        del self._storages[key]
        self.live -= size
        if block is None:
            self._small -= size
        else:
            self._rooms.take_back(block)


@contextmanager
def rehearsing() -> Iterator[Rehearsal]:
    """Let this thread rehearse: networks are to be run on meta tensors alone. Raises RuntimeError where it already does."""
    if in_rehearsal() is not None:
        raise RuntimeError("a rehearsal within a rehearsal")
    begun = Rehearsal()
    begin_rehearsal(begun)
    try:
        with torch.no_grad(), _Attending(), _Watching(begun):
            yield begun
    finally:
        begin_rehearsal(None)


class _Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of torch."""

    def __init__(self, begun: Rehearsal) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.begun = begun

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        made = self._convolved(args) if func is _CONVOLUTION else func(*args, **kwargs)
        how = _how(func)
        if how == "view":
            return made
        outputs = [one for one in (made if isinstance(made, tuple | list) else (made,)) if isinstance(one, Tensor)]
        if how != "write":
            for output in outputs:
                self.begun.count(output)
        if how != "room":
            self.begun.note(_work_of(func, args, outputs))
        return made

    def _convolved(self, args: tuple[Any, ...]) -> Tensor:
        """A convolution's result, laid out as on a processor: by pixel where the input or the weight is.

        While it is made the weight is there once more, in the layout that oneDNN computes with.
        """
        made: Tensor = _CONVOLUTION(*args)
        if made.is_meta:
            self.begun.count(torch.empty_like(args[1]))
        if made.dim() != 4 or not any(one.is_contiguous(memory_format=torch.channels_last) for one in args[:2]):
            return made
        return torch.empty_like(made, memory_format=torch.channels_last)


class _Attending(TorchFunctionMode):
    """Lets torch's attention be what it is on a processor: blockwise. On meta tensors all scores would be made."""

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention and kwargs.keys() <= {"is_causal"}:
            return _FLASH(*args, 0.0, kwargs.get("is_causal", False))[0]
        return func(*args, **kwargs)


_CONVOLUTION = torch.ops.aten.convolution.default
_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_ROOMS = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"}


@cache
def _how(func: Any) -> Literal["view", "write", "room", "new"]:
    """Whether an operation gives another look at its input, writes into one, makes room, or makes numbers."""
    aliases = [returned.alias_info for returned in func._schema.returns]
    if any(alias is not None and alias.is_write for alias in aliases):
        return "write"
    if aliases and all(alias is not None for alias in aliases):
        return "view"
    return "room" if func._schema.name.removeprefix("aten::") in _ROOMS else "new"


_PRODUCTS: dict[Any, Callable[[tuple[Any, ...]], int]] = {
    torch.ops.aten.mm.default: lambda args: args[0].numel() * args[1].shape[-1],
    torch.ops.aten.addmm.default: lambda args: args[1].numel() * args[2].shape[-1],
    torch.ops.aten.bmm.default: lambda args: args[0].numel() * args[1].shape[-1],
    torch.ops.aten.baddbmm.default: lambda args: args[1].numel() * args[2].shape[-1],
}


def _work_of(func: Any, args: tuple[Any, ...], outputs: list[Tensor]) -> Work:
    moved = sum(map(_bytes, outputs)) + sum(_bytes(one) for one in _tensors(args))
    if func is _CONVOLUTION:
        return Work("torch convolution", 2 * outputs[0].numel() * args[1][0].numel(), moved)
    if func is _FLASH:
        q, k = args[:2]
        return Work("torch attention", _attention_operations(math.prod(q.shape[:3]) * k.shape[2], q.shape[3]), moved)
    product = _PRODUCTS.get(func)
    return Work("copy", 0, moved) if product is None else Work("torch product", 2 * product(args), moved)


def _tensors(args: tuple[Any, ...]) -> Iterator[Tensor]:
    for one in args:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, tuple | list):
            yield from (part for part in one if isinstance(part, Tensor))


def _bytes(tensor: Tensor) -> int:
    """That are read of a tensor: what is expanded is there once."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


def _attention_operations(scores: int, d: int) -> int:
    return scores * (4 * d + EXPONENTIAL)


def _linear(call: Any, threads: int) -> Work:
    columns, k = call.matrix.columns * (2 if call.matrix.gate else 1), call.matrix.k
    plus = call.rows * call.matrix.columns if call.add else 0
    moved = 4 * (call.rows * (k + call.matrix.columns) + plus + columns * k)
    everybody = threads if call.rows >= ROWS_FOR_EVERYBODY * threads else 1
    return Work("linear", 2 * call.rows * columns * k, moved, 0 if call.packed else 4 * columns * k * everybody)


def _winograd(call: Any, threads: int) -> Work:
    points = native.POINTS[call.kind]
    tiles = call.batch * -(-call.height // call.kind) * -(-call.width // call.kind)
    pixels = call.batch * call.height * call.width
    read = pixels // 4 if call.doubled else pixels
    moved = 4 * (read * call.in_ + pixels * call.out * (2 if call.add else 1) + points * call.in_ * call.out)
    kind: Kind = "winograd 4x4" if call.kind == native.F4 else "winograd 2x2"
    return Work(kind, 2 * points * tiles * call.in_ * call.out, moved)


def _attention(call: Any, threads: int) -> Work:
    scores = call.batch * call.heads * call.queries * call.keys
    moved = 8 * call.batch * call.heads * call.d * (call.queries + call.keys)
    return Work("attention", _attention_operations(scores, call.d), moved)


_WORK: dict[int, Callable[[Any, int], Work]] = {
    native.LINEAR: _linear,
    native.WINOGRAD: _winograd,
    native.ATTENTION: _attention,
    # Two readings, one for the sums, and one writing.
    native.GROUP_NORM: lambda call, threads: Work("norm", 0, 12 * call.batch * call.pixels * call.channels),
    native.CHANNEL_SUMS: lambda call, threads: Work("norm", 0, 4 * call.pixels * call.channels),
    native.NORMALISE: lambda call, threads: Work("norm", 0, 8 * call.pixels * call.channels),
    native.LAYER_NORM: lambda call, threads: Work("norm", 0, 8 * call.rows * call.width),
    native.PACK_ROWS: lambda call, threads: Work(
        "pack rows", 0, 4 * call.matrix.columns * call.matrix.k * (2 if call.matrix.gate else 1)
    ),
    native.PACK_WINOGRAD: lambda call, threads: Work(
        "pack winograd", 0, 4 * native.POINTS[call.kind] * call.out * call.in_
    ),
}
"""What a call of each kernel is, from its arguments."""
