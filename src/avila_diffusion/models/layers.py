"""The layers that all networks are made of, and the one place where a weight on disk becomes a weight in use.

A parameter here is a *source*: usually a tensor mapped from the checkpoint, in the file's dtype, never written to. What
a layer computes with is derived from it by a pure function (`models.weights`): moved to the input's device and dtype,
rounded once, laid out as the kernels like it. A `Keeper` says whether a layer keeps what it derived or makes it anew at every
call; dropping it loses nothing. Where a gradient is wanted the source itself is used.
What LoRA files change are `Delta`s beside the source, applied while deriving: without them the weight is the file's again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..kernels import native
from ..kernels.upsample import convolve_upsampled, fold_phases
from ..kernels.wrapping import Wrap, surround
from .weights import Delta, Derived, Keeper, Transform, derive, version_of

MUCH, FEW_ROWS = 128 << 20, 32
"""A packed weight of more bytes that meets no more rows is not kept: that it need not be packed saves
half a per cent of a step of SD 1.5, and three such are a tenth of all that is kept."""

LEAST_SIDE, LEAST_CHANNELS = 24, 48
"""Of maps that are convolved by tiles of 4x4 pixels, not of 2x2: their shorter side, and how many channels come in."""

_keeping = threading.Lock()


class Layer(nn.Module):
    """A module with parameters of its own, used through `effective`. keeper: of what it derives, by default all."""

    keeper = Keeper()

    def __init__(self) -> None:
        super().__init__()
        self._derived: dict[str, Derived] = {}  # of each parameter the form that was wanted last
        self._deltas: dict[str, tuple[Delta, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_derived": {}}  # copies derive for themselves

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
        form = "" if transform is None else transform.__name__
        kept = self._kept(name, source, x, form)
        if kept is not None:
            return kept
        with torch.inference_mode(False), torch.no_grad():  # what is kept may serve a call that wants gradients
            plain = source.detach()
            weight = derive(
                plain,
                device=x.device,
                dtype=x.dtype,
                # MPS has no channels_last kernels worth the change of layout.
                channels_last=source.dim() == 4 and x.device.type != "mps",
                transform=transform,
                deltas=deltas,
            )
        size = 0 if weight is plain else weight.nbytes
        if self._admit(source, size):
            self._keep(name, Derived(source, version_of(source), deltas, weight, form, size))
        return weight

    def packed(self, name: str, x: Tensor, pack: Transform, rows: int = FEW_ROWS + 1) -> Tensor | None:
        """The parameter `name` as the kernels of ours read it, which `pack` makes; where nothing is kept, as the file has it.

        A kernel packs what it gets unpacked as it goes, to the same bits. rows: of the product that it is for.
        """
        source: Tensor | None = getattr(self, name)
        if source is None:
            return None
        deltas, form = self.deltas(name), pack.__name__
        kept = self._kept(name, source, x, form)
        if kept is not None:
            return kept
        with torch.inference_mode(False), torch.no_grad():
            if not deltas and source.dtype in native.FORMS and source.is_contiguous():
                plain = source.detach()
            else:
                plain = derive(source.detach(), device=x.device, dtype=torch.float32, deltas=deltas).contiguous()
            size = native.packed_bytes(source.shape, pack)
            if (size > MUCH and rows <= FEW_ROWS) or not self._admit(source, size):
                return plain
            weight = pack(plain)
        self._keep(name, Derived(source, version_of(source), deltas, weight, form, size))
        return weight

    def _kept(self, name: str, source: Tensor, like: Tensor, form: str) -> Tensor | None:
        """What was kept of the parameter, if it is this form, still true; nothing else is kept then."""
        kept = self._derived.get(name)
        if kept is not None and kept.serves(source, self.deltas(name), like, form):
            return kept.weight
        self._drop(name)
        return None

    def _admit(self, source: Tensor, size: int) -> bool:
        # Biases and norms weigh nothing, and there are hundreds.
        return source.dim() == 1 or self.keeper.admit(size)

    def _keep(self, name: str, derived: Derived) -> None:
        with _keeping:  # of two threads that made it at once, one gives way
            self._drop(name)
            self._derived[name] = derived

    def _drop(self, name: str) -> None:
        dropped = self._derived.pop(name, None)
        if dropped is not None and dropped.source.dim() > 1:
            self.keeper.take_back(dropped.size)

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
        for name in list(self._derived):
            self._drop(name)


class Linear(Layer):
    """y = x Wᵀ + b; x (..., in_features)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """add: of the result's shape, added to it."""
        if self.served(x, add) and _has_shape(add, *x.shape[:-1], len(self.weight)):
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

    top counts from the first row that the input has; all are rows of the result. The input holds every row that they are made
    of, those of the other side too where the map wraps.
    """

    top: int
    rows: int
    height: int


class Conv2d(Layer):
    """A 2-D convolution, x (batch, in_channels, height, width), zeros around the border.

    wrap: along x and along y, whether the other side of the map lies past the border instead; set by `wrap`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.stride = stride
        self.padding = padding
        self.wrap: Wrap = (False, False)

    def forward(self, x: Tensor, shift: Tensor | None = None, add: Tensor | None = None) -> Tensor:
        """shift (batch, out_channels): added to every pixel of the result. add: of the result's shape, added to it."""
        kernel, out = self.weight.shape[2], len(self.weight)
        plain = self.stride == 1 and self.padding == kernel // 2 and x.dim() == 4
        whole = _has_shape(shift, len(x), out) and _has_shape(add, len(x), out, *x.shape[2:])
        if plain and whole and self.served(x, shift, add):
            if kernel == 1 and shift is None:
                plus = None if add is None else add.permute(0, 2, 3, 1)
                return _by_rows(self, x.permute(0, 2, 3, 1), plus).permute(0, 3, 1, 2)
            if kernel == 3 and native.serves_channels(*self.weight.shape[:2]):
                return self.by_winograd(x, shift, add)
        y = self.by_torch(x)
        return _plus(y if shift is None else y + shift[:, :, None, None], add)

    def by_torch(self, x: Tensor, band: Band | None = None) -> Tensor:
        """The convolution alone, by torch's operations."""
        x, (down, across) = surround(x, (self.wrap[0], self.wrap[1] and band is None), self.padding)
        inside = band is not None and band.top == down and x.shape[2] == band.rows + 2 * down
        zeros = (0 if inside else down, across)  # inside the map every row that is seen is there: nothing to cut off
        y = F.conv2d(x, _effective(self, x), self.effective("bias", x), self.stride, zeros)
        return y if band is None or inside else y[:, :, band.top : band.top + band.rows]

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
        # weights, 16 / 9 or 4 times as many, weigh against the products saved. And a sum over few channels rounds so little
        # that the rounding of large tiles' transforms would be several times as much.
        large = smallest >= LEAST_SIDE and self.weight.shape[1] >= LEAST_CHANNELS
        kind, pack = (native.F4, native.pack_f4) if large else (native.F2, native.pack_f2)
        height = x.shape[2] << doubled if band is None else band.rows
        tiles = len(x) * -(-height // kind) * -(-(x.shape[3] << doubled) // kind)
        weight, bias = _packed(self, x, pack, tiles), self.effective("bias", x)
        rows, wrap = (None, self.wrap) if band is None else ((band.top, band.rows), (self.wrap[0], False))
        return native.convolve(
            x,
            weight,
            bias,
            len(self.weight),
            kind,
            shift=shift,
            add=add,
            doubled=doubled,
            rows=rows,
            into=into,
            wrap=wrap,
        )


def _effective(layer: Layer, x: Tensor) -> Tensor:
    weight = layer.effective("weight", x)
    assert weight is not None
    return weight


def _packed(layer: Layer, x: Tensor, pack: Transform, rows: int = FEW_ROWS + 1) -> Tensor:
    weight = layer.packed("weight", x, pack, rows)
    assert weight is not None
    return weight


def _by_rows(layer: Linear | Conv2d, x: Tensor, add: Tensor | None) -> Tensor:
    """x (..., in) times the layer's matrix, by the kernels of ours."""
    weight, bias = _packed(layer, x, native.pack_rows), layer.packed("bias", x, native.pad_to_panel)
    return native.linear(x, weight, bias, len(layer.weight), add)


def _has_shape(tensor: Tensor | None, *shape: int) -> bool:
    """Whether the kernels may add it: torch, which may too, would first make it as large as what it is added to."""
    return tensor is None or tensor.shape == shape


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
        if x.dim() == 4 and self.served(x) and native.serves_channels(x.shape[1]):
            assert weight is not None and bias is not None
            return native.group_norm(x, self.groups, weight, bias, self.eps, silu)
        y = torch.group_norm(x, self.groups, weight, bias, self.eps)  # F's refuses a group of one number
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
        return convolve_doubled(self.conv, x)


def convolve_doubled(conv: Conv2d, x: Tensor) -> Tensor:
    """A 3x3 convolution of x upsampled to twice its size by nearest neighbour."""
    if conv.served(x) and native.serves_channels(*conv.weight.shape[:2]):
        return conv.by_winograd(x, doubled=True)
    if kernels.apply_to(x, conv.weight):
        phases = conv.effective("weight", x, fold_phases)
        assert phases is not None
        return convolve_upsampled(x, phases, conv.effective("bias", x), conv.wrap)
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
    alike = _has_shape(k, len(q), k.shape[1], q.shape[2]) and _has_shape(v, *k.shape)
    if not causal and alike and native.serves(q, k, v):
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


def wrap(network: nn.Module, x: bool, y: bool) -> None:
    """Let what a convolution of `network` pads have no border from left to right with x, from top to bottom with y.

    Its results then tile along those axes. A picture that the encoder of a VAE halves is still padded with zeros, as by
    AUTOMATIC1111: that is not done by its convolutions.
    """
    for module in network.modules():
        if isinstance(module, Conv2d) and module.wrap != (x, y):
            module.wrap = (x, y)


def restore(network: nn.Module) -> None:
    """Take every change off the weights of `network`."""
    for module in network.modules():
        if isinstance(module, Layer):
            module.restore()


def keeper_of(network: nn.Module) -> Keeper:
    """What counts the bytes that the layers of `network` keep: one for all of them, and for no others."""
    layers = [module for module in network.modules() if isinstance(module, Layer)]
    keeper = layers[0].keeper if layers else Keeper()
    if keeper is Layer.keeper or any(layer.keeper is not keeper for layer in layers):
        keeper = Keeper()
        for layer in layers:
            layer.release()
            layer.keeper = keeper
    return keeper


def keep_derived(network: nn.Module, limit: int | None) -> None:
    """Let the layers of `network` keep at most `limit` bytes of what they derive: None for all of it, 0 for none.

    What is kept beyond that is dropped.
    """
    keeper = keeper_of(network)
    keeper.limit = limit
    for module in reversed(list(network.modules())):
        if limit is None or keeper.held <= limit:
            break
        if isinstance(module, Layer):
            module.release()
