"""The layers that all networks are made of, and the one place where a weight on disk becomes a weight in use.

A parameter here is a *source*: usually a tensor mapped from the checkpoint, in the file's dtype, never written to. What
a layer computes with is derived from it by a pure function, `derive`: moved to the input's device and dtype, rounded
once, laid out as the kernels like it. Layers keep what they derived (`keep = True`) or make it anew at every call
(`keep = False`, for little memory); dropping it loses nothing. Where a gradient is wanted the source itself is used.
What LoRA files change are `Delta`s beside the source, applied while deriving: without them the weight is the file's again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..kernels import native
from ..kernels.upsample import convolve_upsampled, fold_phases

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


@dataclass(frozen=True)
class Derived:
    """What was derived of a parameter, and all that it depended on."""

    source: Tensor
    version: int
    deltas: tuple[Delta, ...]
    weight: Tensor

    def serves(self, source: Tensor, deltas: tuple[Delta, ...], like: Tensor) -> bool:
        """Whether it is still true of this source and these changes, for computing with tensors like that."""
        return (
            self.source is source
            and self.version == source._version
            and self.deltas == deltas
            and self.weight.dtype == like.dtype
            and self.weight.device == like.device
        )


class Layer(nn.Module):
    """A module with parameters of its own, used through `effective`."""

    keep = True

    def __init__(self) -> None:
        super().__init__()
        self._derived: dict[str, Derived] = {}
        self._deltas: dict[str, tuple[Delta, ...]] = {}

    def effective(self, name: str, x: Tensor, transform: Transform | None = None) -> Tensor | None:
        """The parameter `name` in the dtype and on the device of `x`; None where the layer has none of that name.

        transform: a form of it that a kernel wants; not for use where gradients are wanted.
        """
        source: Tensor | None = getattr(self, name)
        if source is None:
            return None
        deltas = self.deltas(name)
        if torch.is_grad_enabled() and (source.requires_grad or any(delta.requires_grad for delta in deltas)):
            return derive(source, device=source.device, dtype=x.dtype, deltas=deltas)
        # MPS has no channels_last kernels worth the change of layout.
        by_pixel = source.dim() == 4 and x.device.type != "mps"
        return self._kept(
            name if transform is None else f"{name}, {transform.__name__}",
            (source, deltas, x),
            lambda: derive(
                source.detach(),
                device=x.device,
                dtype=x.dtype,
                channels_last=by_pixel,
                transform=transform,
                deltas=deltas,
            ),
        )

    def packed(self, name: str, x: Tensor, pack: Transform) -> Tensor | None:
        """The parameter `name` as the kernels of ours read it, which `pack` makes; where nothing is kept, as the file has it.

        A kernel packs what it gets unpacked as it goes, to the same bits.
        """
        source: Tensor | None = getattr(self, name)
        if source is None:
            return None
        deltas = self.deltas(name)

        def plain() -> Tensor:
            if not deltas and source.dtype in native.FORMS and source.is_contiguous():
                return source.detach()
            return derive(source.detach(), device=x.device, dtype=torch.float32, deltas=deltas).contiguous()

        if not self.keep and source.dim() > 1:
            return plain()
        return self._kept(f"{name}, {pack.__name__}", (source, deltas, x), lambda: pack(plain()))

    def _kept(self, form: str, serving: tuple[Tensor, tuple[Delta, ...], Tensor], make: Callable[[], Tensor]) -> Tensor:
        """What `make` makes, or made before of the same source and deltas for inputs like this x: `serving` is the three."""
        kept = self._derived.get(form)
        if kept is not None and kept.serves(*serving):
            return kept.weight
        with torch.no_grad():
            weight = make()
        source, deltas, _ = serving
        if self.keep or source.dim() == 1:  # biases and norms weigh nothing, and there are hundreds
            self._derived[form] = Derived(source, source._version, deltas, weight)
        return weight

    def served(self, x: Tensor, *others: Tensor | None) -> bool:
        """Whether the kernels of ours may compute this layer's answer to x and other inputs."""
        if torch.is_grad_enabled() and any(delta.requires_grad for deltas in self._deltas.values() for delta in deltas):
            return False
        return native.serves(x, *others, weights=self.parameters(recurse=False))

    def deltas(self, name: str) -> tuple[Delta, ...]:
        """The changes of the parameter `name`, in their order."""
        return self._deltas.get(name, ())

    def change(self, name: str, deltas: Iterable[Delta]) -> None:
        """Let the parameter `name` be changed by these, in this order, in place of those before; by none: as in the file."""
        self._deltas[name] = tuple(deltas)
        if not self._deltas[name]:
            del self._deltas[name]
        self.release()

    def restore(self) -> None:
        """Every parameter as in the file."""
        if self._deltas:
            self._deltas.clear()
            self.release()

    def release(self) -> None:
        """Drop what was derived; it is made again when it is needed."""
        self._derived.clear()


class Linear(Layer):
    """y = x Wᵀ + b; x (..., in_features)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """add: of the result's shape, added to it."""
        if self.served(x, add):
            return _by_rows(self, x, add)
        return _plus(F.linear(x, _effective(self, x), self.effective("bias", x)), add)

    def gated(self, x: Tensor) -> Tensor:
        """The first half of the result times GELU (by erf) of the second: (..., out_features / 2)."""
        if self.served(x):
            weight, bias = _packed(self, x, native.pack_gated), self.packed("bias", x, native.pack_gated)
            return native.linear(x, weight, bias, len(self.weight) // 2, gate=True)
        value, gate = self(x).chunk(2, dim=-1)
        gated: Tensor = value * F.gelu(gate)
        return gated


@dataclass(frozen=True)
class Band:
    """Rows wanted of a convolution's result, where the input is a part of a map `height` rows high: `rows` from `top` on.

    top counts from the first row that the input has; all are rows of the result.
    """

    top: int
    rows: int
    height: int


class Conv2d(Layer):
    """A 2-D convolution, x (batch, in_channels, height, width), zeros around the border."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.stride = stride
        self.padding = padding

    def forward(self, x: Tensor, shift: Tensor | None = None, add: Tensor | None = None) -> Tensor:
        """shift (batch, out_channels): added to every pixel of the result. add: of the result's shape, added to it."""
        kernel = self.weight.shape[2]
        if self.served(x, shift, add) and self.stride == 1 and self.padding == kernel // 2:
            if kernel == 1 and shift is None:
                plus = None if add is None else add.permute(0, 2, 3, 1)
                return _by_rows(self, x.permute(0, 2, 3, 1), plus).permute(0, 3, 1, 2)
            if kernel == 3 and native.serves_channels(*self.weight.shape[:2]):
                return self.by_winograd(x, shift, add)
        y = F.conv2d(x, _effective(self, x), self.effective("bias", x), self.stride, self.padding)
        return _plus(y if shift is None else y + shift[:, :, None, None], add)

    def by_winograd(
        self,
        x: Tensor,
        shift: Tensor | None = None,
        add: Tensor | None = None,
        doubled: bool = False,
        band: Band | None = None,
        into: Tensor | None = None,
    ) -> Tensor:
        """A 3x3 convolution by the kernels of ours; doubled: of x upsampled to twice its size by nearest neighbour.

        into: where the result is put; may be `add`.
        """
        smallest = min(x.shape[2] << doubled if band is None else band.height, x.shape[3] << doubled)
        # A tile that hangs over the border is work for nothing, and the fewer tiles a map has the more the transformed
        # weights, 16 / 9 or 4 times as many, weigh against the products saved.
        kind, pack = (native.F4, native.pack_f4) if smallest >= 24 else (native.F2, native.pack_f2)
        weight, bias = _packed(self, x, pack), self.effective("bias", x)
        rows = None if band is None else (band.top, band.rows)
        return native.convolve(
            x, weight, bias, len(self.weight), kind, shift=shift, add=add, doubled=doubled, rows=rows, into=into
        )


def _effective(layer: Layer, x: Tensor) -> Tensor:
    weight = layer.effective("weight", x)
    assert weight is not None
    return weight


def _packed(layer: Layer, x: Tensor, pack: Transform) -> Tensor:
    weight = layer.packed("weight", x, pack)
    assert weight is not None
    return weight


def _by_rows(layer: Linear | Conv2d, x: Tensor, add: Tensor | None) -> Tensor:
    """x (..., in) times the layer's matrix, by the kernels of ours."""
    weight, bias = _packed(layer, x, native.pack_rows), layer.packed("bias", x, native.pad_to_panel)
    return native.linear(x, weight, bias, len(layer.weight), add)


def _plus(y: Tensor, add: Tensor | None) -> Tensor:
    return y if add is None else y + add


class GroupNorm(Layer):
    """Group normalisation (Wu & He 2018) over 32 groups, or over as many as `channels` allow in narrow networks."""

    def __init__(self, channels: int, eps: float, groups: int = 32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.groups = groups
        self.eps = eps

    def forward(self, x: Tensor, silu: bool = False) -> Tensor:
        """silu: SiLU of the result, which is then nobody else's."""
        weight, bias = self.effective("weight", x), self.effective("bias", x)
        if self.served(x) and native.serves_channels(x.shape[1]):
            assert weight is not None and bias is not None
            return native.group_norm(x, self.groups, weight, bias, self.eps, silu)
        y = F.group_norm(x, self.groups, weight, bias, self.eps)
        return F.silu(y, inplace=True) if silu else y


class LayerNorm(Layer):
    """Layer normalisation (Ba et al. 2016) over the last dimension."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.effective("weight", x), self.effective("bias", x)
        if self.served(x) and native.serves_channels(x.shape[-1]):
            assert weight is not None and bias is not None
            return native.layer_norm(x, weight, bias, self.eps)
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)


class Upsample(nn.Module):
    """Twice the size by nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        if conv.served(x) and native.serves_channels(*conv.weight.shape[:2]):
            return conv.by_winograd(x, doubled=True)
        if kernels.apply_to(x, conv.weight):
            phases = conv.effective("weight", x, fold_phases)
            assert phases is not None
            return convolve_upsampled(x, phases, conv.effective("bias", x))
        return conv(double(x))


def spread(x: Tensor, batch: int) -> Tensor:
    """x of batch 1 as a batch of the same, without a copy; x of that batch as it is."""
    return x if len(x) == batch else x.expand(batch, *x.shape[1:])


def double(x: Tensor) -> Tensor:
    """Each pixel four times: (batch, channels, h, w) → (batch, channels, 2h, 2w).

    Not by `F.interpolate`, whose gradient in bfloat16 through torch.compile is 0 on processors (seen in torch 2.13).
    """
    batch, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1)[:, :, None, :, None].expand(batch, height, 2, width, 2, channels)
    return pixels.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017); q (batch, n, heads * d), k and v (batch, m, heads * d)."""
    if not causal and native.serves(q, k, v):
        return native.attend(q, k, v, heads)
    q, k, v = (t.view(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))  # (batch, heads, tokens, d)
    h = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return h.transpose(1, 2).flatten(2)


def release(network: nn.Module) -> None:
    """Drop every derived weight of `network`, and give the memory back."""
    for module in network.modules():
        if isinstance(module, Layer):
            module.release()
    native.give_back()


def restore(network: nn.Module) -> None:
    """Take every change off the weights of `network`."""
    for module in network.modules():
        if isinstance(module, Layer):
            module.restore()


def keep_derived(network: nn.Module, keep: bool) -> None:
    """Set whether the layers of `network` keep what they derive (fast) or make it at every call (little memory)."""
    for module in network.modules():
        if isinstance(module, Layer):
            module.keep = keep
            if not keep:
                module.release()
