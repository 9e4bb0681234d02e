"""Exact fast paths for the processor: the same sums in another order. Each has its plain torch form in `models.layers`.

`AVILA_KERNELS=torch` in the environment turns all of them off.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

ENABLED = os.environ.get("AVILA_KERNELS", "") != "torch"


def apply_to(x: Tensor, *weights: Tensor) -> bool:
    """Whether a fast path may serve this call: on a processor, and where no gradient is wanted."""
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))
    return ENABLED and x.device.type == "cpu" and not wanted
