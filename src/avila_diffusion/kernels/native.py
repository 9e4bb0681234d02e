"""Calling the kernels in C: torch tensors in and out. What each computes is written down in native/*.h.

All tensors are float32, on the processor, and lie row by row; maps lie pixel by pixel (channels_last). `serves` says whether
a call can be served; whoever calls has torch's operations for where it cannot.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Container, Iterable
from ctypes import Structure
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from . import apply_to, build, in_rehearsal, rooms, team
from .structures import Attention, GroupNorm, LayerNorm, Linear, Matrix, Normalise, PackRows, PackWinograd, Winograd
from .wrapping import Wrap

LINEAR, WINOGRAD, ATTENTION, GROUP_NORM, LAYER_NORM, PACK_ROWS, PACK_WINOGRAD, CHANNEL_SUMS, NORMALISE = range(9)

F4, F2 = 4, 2
"""Kinds of Winograd convolution: output tiles of 4x4 and of 2x2."""
POINTS = {F4: 36, F2: 16}
MOST_CHANNELS = 8192
PIECES = 32  # of group_norm's sums
KEYS = 264  # of attention's blocks
BLOCK_BYTES = 16 << 20  # of a Winograd convolution's working set: what a third-level cache holds


class _Kernels:
    """The library, and what it computes with: `vector` floats in a vector, threads of the OpenMP library `openmp` or, for
    None, its own."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.vector: int = library.avila_vector_length()
        self.compiler = build.compiler_of(library)
        self.openmp: str | None = None
        found = team.openmp_of_torch()
        if found is not None:
            self.openmp, functions = found
            library.avila_use_openmp(ctypes.byref(functions))

    @property
    def identity(self) -> str:
        """What the bits of results depend on beside the number of threads."""
        return f"avila {build.hash_of_sources()[:12]}, {self.vector} lanes, {self.compiler}"

    def run(self, which: int, arguments: Structure, threads: int | None = None) -> None:
        """Compute on at most so many threads, by default torch's number; scratch must have room for each."""
        threads = threads or torch.get_num_threads()
        if (rehearsed := in_rehearsal()) is not None:
            rehearsed.record(which, arguments, threads)
        else:
            self.library.avila_run(which, ctypes.byref(arguments), threads)


@cache
def _kernels() -> _Kernels | None:
    found = build.library()
    return None if found is None else _Kernels(found)


def identity() -> str | None:
    """What the bits of these kernels depend on beside the number of threads; None where there are none. May build them."""
    found = _kernels()
    return None if found is None else found.identity


def threads_used() -> str:
    """Whose threads the kernels compute with, in words."""
    path = _loaded().openmp
    return f"threads of {Path(path).name}" if path else "threads of their own"


def _loaded() -> _Kernels:
    found = _kernels()
    assert found is not None, "ask `serves` first"
    return found


def serves(x: Tensor, *others: Tensor | None, weights: Iterable[Tensor] = ()) -> bool:
    """Whether these kernels may compute with x and further inputs, float32, and with derived forms of weights, of any dtype."""
    inputs = [x, *(tensor for tensor in others if tensor is not None)]
    plain = all(tensor.dtype == torch.float32 and tensor.numel() > 0 and not tensor.is_neg() for tensor in inputs)
    return plain and apply_to(*inputs, *weights) and _kernels() is not None


def panel() -> int:
    """Columns that packed weights are cut into."""
    return 2 * _loaded().vector


def serves_channels(*channels: int) -> bool:
    """Whether maps of so many channels can be computed with: whole vectors of them."""
    vector = _loaded().vector
    return all(count % vector == 0 and count <= MOST_CHANNELS for count in channels)


class _Own(threading.local):
    scratch: Tensor | None = None


_own = _Own()


def _scratch(count: int) -> Tensor:
    """Room for `count` floats that this thread may use until its next call."""
    owner = in_rehearsal() or _own
    held = owner.scratch
    if held is None or held.numel() < count:
        held = owner.scratch = None  # given back before more is taken
        held = owner.scratch = _room_to_stay(count)
    return held


def give_back() -> None:
    """Give memory that nothing uses back to the system: of tensors that died, and what this thread computes with."""
    drop_scratch()
    rooms.give_back()
    rooms.trim()


def room(*shape: int) -> Tensor:
    """A float32 tensor with anything in it, whatever torch's defaults are now."""
    if in_rehearsal() is not None:
        return torch.empty(shape, dtype=torch.float32, device="meta")
    return rooms.take(math.prod(shape)).view(shape)


def _room_to_stay(*shape: int) -> Tensor:
    """The same for packed weights and scratch."""
    rehearsed = in_rehearsal()
    return rooms.own(math.prod(shape)).view(shape) if rehearsed is None else rehearsed.stay(shape)


def drop_scratch() -> None:
    """Let go of this thread's scratch: attention over a large map leaves much."""
    (in_rehearsal() or _own).scratch = None


def _place(into: Tensor | None, *shape: int) -> Tensor:
    """Where a map (batch, height, width, channels) goes: into `into` (batch, channels, height, width), or a new tensor."""
    if into is None:
        return room(*shape)
    y = into.permute(0, 2, 3, 1)
    _expect(y, *shape)
    if not y.is_contiguous():
        raise ValueError("a map to write into must lie pixel by pixel, without gaps")
    return y


def _expect(tensor: Tensor | None, *shape: int, of: Container[torch.dtype] = (torch.float32,)) -> None:
    """Raise ValueError unless the tensor, where there is one, has this shape and a dtype of these: the kernels would read
    past its end."""
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} came where {shape} was expected")
    if tensor is not None and tensor.dtype not in of:
        raise ValueError(f"a tensor of {tensor.dtype} came where the kernels compute in float32")


def _vector(tensor: Tensor, length: int) -> Tensor:
    """A bias, or its like, without gaps: hold it for as long as it is read."""
    _expect(tensor, length)
    return tensor.contiguous()


def _expect_vectors(*channels: int) -> None:
    """Raise ValueError unless maps of so many channels are whole vectors, and few enough for the kernels' stacks."""
    if not serves_channels(*channels):
        raise ValueError(f"maps of {channels} channels came where whole vectors of {_loaded().vector} were expected")


def _expect_parts(width: int, parts: int) -> None:
    if parts < 1 or width % parts:
        raise ValueError(f"a width of {width} cannot be cut into {parts} equal parts")


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr() or 1  # 1: in a rehearsal, of one that is but lies nowhere


FORMS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Dtypes of weights that the kernels read as they are."""


def _matrix(weight: Tensor, gate: bool) -> Matrix:
    weight = weight.flatten(1)
    rows, k = weight.shape
    return Matrix(rows // 2 if gate else rows, k, _at(weight), FORMS[weight.dtype], gate)


def pack_rows(weight: Tensor) -> Tensor:
    """A matrix (out, in, …) of one of the FORMS as `linear` reads it fastest: (panels, in, panel), float32."""
    return _pack_rows(weight, False)


def pack_gated(weight: Tensor) -> Tensor:
    """A matrix (2 · out, in) of values and of gates, or a bias (2 · out,), as `linear` with a gate reads it."""
    return _pack_rows(weight.view(len(weight), -1), True)


def _pack_rows(weight: Tensor, gate: bool) -> Tensor:
    weight = weight.contiguous()
    _expect(weight, *weight.shape, of=FORMS)
    matrix, width = _matrix(weight, gate), panel() // 2 if gate else panel()
    packed = _room_to_stay(-(-matrix.columns // width), matrix.k, panel())
    _loaded().run(PACK_ROWS, PackRows(matrix, _at(packed)))
    return packed


def pad_to_panel(bias: Tensor) -> Tensor:
    """A bias in float32 with zeros up to the end of its last panel."""
    return torch.nn.functional.pad(bias.float(), (0, -len(bias) % panel()))


def pack_f4(weight: Tensor) -> Tensor:
    """A 3x3 kernel (out, in, 3, 3) of one of the FORMS as `convolve` of kind F4 reads it: (36, panels, in, panel)."""
    return _pack_winograd(weight, F4)


def pack_f2(weight: Tensor) -> Tensor:
    """A 3x3 kernel (out, in, 3, 3) of one of the FORMS as `convolve` of kind F2 reads it: (16, panels, in, panel)."""
    return _pack_winograd(weight, F2)


def _pack_winograd(weight: Tensor, kind: int, into: Tensor | None = None) -> Tensor:
    out, in_ = weight.shape[:2]
    shape = (POINTS[kind], -(-out // panel()), in_, panel())
    weight = weight.contiguous()
    _expect(weight, out, in_, 3, 3, of=FORMS)
    packed = _room_to_stay(*shape) if into is None else into
    _loaded().run(PACK_WINOGRAD, PackWinograd(out, in_, _at(weight), _at(packed), FORMS[weight.dtype], kind))
    return packed


def packed_bytes(shape: tuple[int, ...], pack: Callable[[Tensor], Tensor]) -> int:
    """What `pack`, one of the four above, makes of a weight of this shape."""
    out, in_ = shape[0], math.prod(shape[1:])
    if pack in (pack_f4, pack_f2):
        return 4 * POINTS[F4 if pack is pack_f4 else F2] * -(-out // panel()) * shape[1] * panel()
    return 4 * -(-out // panel()) * in_ * panel()


SCRATCH = 96 * 1024  # floats of packed weights a thread works on: what of a second-level cache they may take


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, columns: int, add: Tensor | None = None, gate: bool = False
) -> Tensor:
    """x (…, k) → (…, columns): x Wᵀ + b, `add` added; with `gate`, values · gelu(gates).

    weight: of `pack_rows` or `pack_gated`; or the file's own (columns, k), (2 · columns, k) with `gate`, of one of the FORMS.
    bias: of `pad_to_panel` or `pack_gated`. add: of the result's shape.
    """
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    weight, packed = weight.contiguous(), weight.dim() == 3
    panels, k = -(-columns // (panel() // 2 if gate else panel())), weight.shape[1]
    if packed:
        _expect(weight, panels, k, panel())
    else:
        _expect(weight, columns * (2 if gate else 1), *weight.shape[1:], of=FORMS)
    bias = None if bias is None else _vector(bias.flatten(), panels * panel())
    matrix = Matrix(columns, weight.shape[1], None, 0, gate) if packed else _matrix(weight, gate)
    _expect(rows, len(rows), matrix.k)
    y = room(len(rows), columns)
    if add is not None:
        add = add.reshape(y.shape).contiguous()
        _expect(add, *y.shape)
    size = max(SCRATCH, matrix.k * panel())
    threads = torch.get_num_threads()  # asked for once: another thread may set it
    scratch = None if packed else _scratch(size * threads)
    arguments = Linear(
        len(rows), matrix, _at(weight) if packed else None, _at(rows), rows.stride(0), _at(bias), _at(add), columns,
        _at(y), columns, _at(scratch), size
    )  # fmt: skip
    _loaded().run(LINEAR, arguments, threads)
    return y.view(*x.shape[:-1], columns)


def by_pixel(x: Tensor) -> Tensor:
    """x (batch, channels, h, w) → (batch, h, w, channels) without gaps; a view where it lies so already."""
    return x.permute(0, 2, 3, 1).contiguous()


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: int,
    kind: int,
    *,
    shift: Tensor | None = None,
    add: Tensor | None = None,
    doubled: bool = False,
    rows: tuple[int, int] | None = None,
    into: Tensor | None = None,
    wrap: Wrap = (False, False),
) -> Tensor:
    """A 3x3 convolution, x (batch, in, h, w) → (batch, out, h, w).

    weight: packed for this kind, or the file's own (out, in, 3, 3) of one of the FORMS. shift (batch, out): added to
    every pixel. add: of the result's shape.
    doubled: of x upsampled to (batch, in, 2h, 2w) by nearest neighbour.
    rows: the first of the result's rows to be computed, and how many; by default all. into: where the result is put, laid out
    by pixel; may be `add`. wrap: where the other side of x lies past its border, not zeros.
    """
    pixels = by_pixel(x)
    batch, there, width, in_ = pixels.shape
    there, width = there << doubled, width << doubled
    top, height = (0, there) if rows is None else rows
    if not 0 <= top < top + height <= there:
        raise ValueError(f"{height} rows from {top} on were asked for, of a map of {there}")
    whole = -(-out // panel()) * panel()
    if weight.shape[-1] == 3:
        _expect(weight, out, in_, 3, 3, of=FORMS)
    else:
        _expect(weight, POINTS[kind], whole // panel(), in_, panel())
    weight, bias = weight.contiguous(), None if bias is None else _vector(bias, out)
    _expect(pixels, *pixels.shape)
    _expect_vectors(in_, out)
    _expect(shift, batch, out)
    _expect(add, batch, out, height, width)
    tiles = batch * -(-height // kind) * -(-width // kind)
    block = min(max(BLOCK_BYTES // (4 * POINTS[kind] * (in_ + whole)) // 12 * 12, 24), tiles)
    size = POINTS[kind] * (block * (in_ + whole) + 32) + -(-block // 32) * 32
    if weight.shape[-1] == 3:
        scratch = _scratch(size + POINTS[kind] * whole * in_)
        weight = _pack_winograd(weight, kind, into=scratch[size:])
    else:
        scratch = _scratch(size)
    y = _place(into, batch, height, width, out)
    shift = None if shift is None else shift.contiguous()
    add = None if add is None else by_pixel(add)
    arguments = Winograd(
        batch, height, width, in_, out, there, top, _at(pixels), _at(weight), _at(bias), _at(shift), _at(add), _at(y),
        _at(scratch), block, kind, doubled, *wrap
    )  # fmt: skip
    _loaded().run(WINOGRAD, arguments)
    return y.permute(0, 3, 1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention over all keys; q (batch, n, heads · d), k and v (batch, m, heads · d) → (batch, n, heads · d)."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    batch, queries, width = q.shape
    _expect(q, batch, queries, width)
    _expect(k, batch, k.shape[1], width)
    _expect(v, *k.shape)
    _expect_parts(width, heads)
    keys, d = k.shape[1], width // heads
    threads, lanes = torch.get_num_threads(), _loaded().vector
    head = -(-keys * d // lanes) * lanes
    scratch = _scratch(2 * batch * heads * head + threads * panel() * (KEYS + 3 * d))
    y = room(batch, queries, width)
    arguments = Attention(
        batch, heads, d, queries, keys, _at(q), _at(k), _at(v), width, width, width, _at(y), d**-0.5,
        _at(scratch)
    )  # fmt: skip
    _loaded().run(ATTENTION, arguments, threads)
    return y


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
    """x (batch, channels, h, w) normalised over groups of channels; with `silu`, SiLU of that."""
    pixels = by_pixel(x)
    batch, height, width, channels = pixels.shape
    _expect(pixels, *pixels.shape)
    _expect_vectors(channels)
    _expect_parts(channels, groups)
    weight, bias = _vector(weight, channels), _vector(bias, channels)
    sums = torch.empty(batch * PIECES * 2 * channels, dtype=torch.float64, device=x.device)
    y = room(*pixels.shape)
    arguments = GroupNorm(
        batch, height * width, channels, groups, _at(pixels), _at(weight), _at(bias), eps, silu, _at(y), _at(sums)
    )  # fmt: skip
    _loaded().run(GROUP_NORM, arguments)
    return y.permute(0, 3, 1, 2)


def channel_moments(x: Tensor) -> Tensor:
    """Of x (1, channels, h, w): each channel's mean and sum of squared deviations from it, (2, channels) in float64."""
    pixels = by_pixel(x)
    _, height, width, channels = pixels.shape
    _expect(pixels, 1, height, width, channels)
    _expect_vectors(channels)
    sums = torch.empty(PIECES, 2, channels, dtype=torch.float64, device=x.device)
    arguments = GroupNorm(1, height * width, channels, x=_at(pixels), sums=_at(sums))
    _loaded().run(CHANNEL_SUMS, arguments)
    one, two = sums.sum(0)
    return torch.stack([pixels[0, 0, 0].double() + one / (height * width), two - one * one / (height * width)])


def normalise(x: Tensor, level: Tensor, scale: Tensor, bias: Tensor, silu: bool, into: Tensor | None = None) -> Tensor:
    """(x - level) · scale + bias, with `silu` SiLU of that; x (1, channels, h, w), the others (channels,), float32.

    into: where the result is put, laid out by pixel; may be x.
    """
    pixels = by_pixel(x)
    _, height, width, channels = pixels.shape
    _expect(pixels, 1, height, width, channels)
    _expect_vectors(channels)
    level, scale, bias = (_vector(vector, channels) for vector in (level, scale, bias))
    y = _place(into, 1, height, width, channels)
    arguments = Normalise(
        height * width, channels, _at(pixels), _at(level), _at(scale), _at(bias), silu, _at(y)
    )  # fmt: skip
    _loaded().run(NORMALISE, arguments)
    return y.permute(0, 3, 1, 2)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x (…, width) normalised over its last dimension."""
    x = x.contiguous()
    _expect(x, *x.shape)
    if x.shape[-1] % _loaded().vector:
        raise ValueError(f"rows of {x.shape[-1]} numbers came where whole vectors of {_loaded().vector} were expected")
    weight, bias = _vector(weight, x.shape[-1]), _vector(bias, x.shape[-1])
    y = room(*x.shape)
    arguments = LayerNorm(x.numel() // x.shape[-1], x.shape[-1], _at(x), _at(weight), _at(bias), eps, _at(y))
    _loaded().run(LAYER_NORM, arguments)
    return y
