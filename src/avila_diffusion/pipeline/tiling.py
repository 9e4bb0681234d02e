"""Pictures whose edges fit together: the convolutions of UNet and VAE go around the edge."""

from __future__ import annotations

from torch import nn

from ..models.layers import wrap
from ..request import GenerateRequest


def tile(network: nn.Module, request: GenerateRequest) -> None:
    """Let a network go around the edges that the request wants to fit together, and around no others."""
    wrap(network, x=request.tiling in ("x", "both"), y=request.tiling in ("y", "both"))
