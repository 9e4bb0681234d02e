"""Operations: how many a network takes, and how long each kind of layer takes for its own.

A multiply-add counts two. 3x3 convolutions count as if computed directly, upsampled maps at their full size: what Winograd
and the upsample rewrite save shows as a rate beyond that of a matrix product.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from avila_diffusion.checkpoint.load import build
from avila_diffusion.checkpoint.shapes import read_unet_config, read_vae_config
from avila_diffusion.kernels import native
from avila_diffusion.models.unet import UNet
from avila_diffusion.models.vae import VAE as Autoencoder

from .weights import UNET, VAE, Family, layout

KINDS = {
    native.WINOGRAD: "3x3 convolution",
    native.LINEAR: "linear, 1x1 convolution",
    native.ATTENTION: "attention",
    native.GROUP_NORM: "norms",
    native.LAYER_NORM: "norms",
    native.CHANNEL_SUMS: "norms",
    native.NORMALISE: "norms",
    native.PACK_ROWS: "packing weights",
    native.PACK_WINOGRAD: "packing weights",
}
REST = "torch's: copies, first and last convolutions"
HEADS: dict[Family, Callable[[int], int]] = {"sd1": lambda channels: 8, "sdxl": lambda channels: channels // 64}
CONTEXT = {"sd1": 768, "sdxl": 2048}


def _shapes(family: Family, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name[len(prefix) :]: shape for name, shape in layout(family).items() if name.startswith(prefix)}


def _count(run: Callable[[], object]) -> int:
    """Of a run on the meta device, where every layer takes torch's own operations."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return int(counter.get_total_flops())


def unet_operations(family: Family, height: int, width: int, batch: int = 1, tokens: int = 77) -> int:
    """Of one UNet call on a latent of height x width."""
    config = read_unet_config(_shapes(family, UNET), HEADS[family])
    network = build(lambda: UNet(config))
    with torch.device("meta"):
        x, context = torch.empty(batch, 4, height, width), torch.empty(batch, tokens, CONTEXT[family])
        t = torch.empty(batch)
        vector = None if config.adm_channels is None else torch.empty(batch, config.adm_channels)
    return _count(lambda: network(x, t, context, vector=vector))


def decode_operations(height: int, width: int) -> int:
    """Of decoding one latent of height x width."""
    network = build(lambda: Autoencoder(read_vae_config(_shapes("sd1", VAE))))
    z = torch.empty(1, 4, height, width, device="meta")
    return _count(lambda: network.decode(z))


def kernel_operations(which: int, call: Any) -> int:
    """Of one call of a kernel of ours, from its arguments."""
    if which == native.LINEAR:
        return int(2 * call.rows * call.matrix.columns * call.matrix.k * (2 if call.matrix.gate else 1))
    if which == native.WINOGRAD:
        return int(2 * 9 * call.batch * call.height * call.width * call.in_ * call.out)
    if which == native.ATTENTION:
        return int(4 * call.batch * call.heads * call.d * call.queries * call.keys)
    return 0  # norms and packing move memory, and their sums are not what they wait for


@dataclass
class Shares:
    """Seconds and operations of each kind of layer, filled while `watched` is open."""

    seconds: dict[str, float] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    total: float = 0.0

    def rows(self) -> list[dict[str, Any]]:
        """For the record: kind, seconds, share of the whole, GFLOP, GFLOP/s."""
        rest = max(self.total - sum(self.seconds.values()), 0.0)
        rows = []
        for kind, seconds in [*sorted(self.seconds.items(), key=lambda item: -item[1]), (REST, rest)]:
            gflop = self.operations.get(kind, 0) / 1e9
            row = {"kind": kind, "seconds": seconds, "share": seconds / self.total, "gflop": gflop}
            rows.append(row | {"gflops": gflop / seconds if gflop and seconds else None})
        return rows


@contextmanager
def watched() -> Iterator[Shares]:
    """Time every call of our kernels while this is open. Nothing is recorded where torch computes alone."""
    shares, plain = Shares(), native._Kernels.run

    def run(self: native._Kernels, which: int, arguments: Any, threads: int | None = None) -> None:
        began = time.perf_counter()
        plain(self, which, arguments, threads)
        kind = KINDS.get(which, "other kernels")
        shares.seconds[kind] = shares.seconds.get(kind, 0.0) + time.perf_counter() - began
        shares.operations[kind] = shares.operations.get(kind, 0) + kernel_operations(which, arguments)

    native._Kernels.run = run  # type: ignore[method-assign]
    began = time.perf_counter()
    try:
        yield shares
    finally:
        shares.total = time.perf_counter() - began
        native._Kernels.run = plain  # type: ignore[method-assign]
