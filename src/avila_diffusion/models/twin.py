"""A network's twin: the same layers, dtypes and changes on the meta device, where it has no numbers and takes no memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from .layers import Conv2d, Layer, keep_derived

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class _Changed:
    """Stands for a change: what a layer derives is then a copy in the compute dtype."""

    requires_grad: bool = False

    def apply(self, weight: Tensor) -> Tensor:
        return weight


def twin(network: Network, limit: int | None) -> Network:
    """A twin whose layers keep at most `limit` bytes of what they derive, None for all of it.

    Nothing of `network`, which is made of its `config`, is touched.
    """
    with torch.device("meta"):
        made = type(network)(network.config)
    made.eval()
    originals = dict(network.named_modules())
    for name, module in made.named_modules():
        original = originals[name]
        for leaf, parameter in list(module._parameters.items()):
            source = original._parameters[leaf]
            if parameter is not None and source is not None:
                like = torch.empty(parameter.shape, dtype=source.dtype, device="meta")
                setattr(module, leaf, nn.Parameter(like, requires_grad=False))
        if isinstance(module, Layer) and isinstance(original, Layer):
            for leaf in original._deltas:
                module.change(leaf, (_Changed(),))
        if isinstance(module, Conv2d) and isinstance(original, Conv2d):
            module.wrap = original.wrap
    keep_derived(made, limit)
    return made
