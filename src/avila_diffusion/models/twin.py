"""A network's twin: the same layers, dtypes and changes on the meta device, where it has no numbers and takes no memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from .layers import Layer

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class _Changed:
    """Stands for a change: what a layer derives is then a copy in the compute dtype."""

    requires_grad: bool = False

    def apply(self, weight: Tensor) -> Tensor:
        return weight


def twin(network: Network, keep: bool) -> Network:
    """A twin whose layers keep what they derive, or not. Nothing of `network`, which is made of its `config`, is touched."""
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
            module.keep = keep
            for leaf in original._deltas:
                module.change(leaf, (_Changed(),))
    return made


def kept_bytes(network: nn.Module) -> int:
    """Bytes of derived weights that the layers of `network` hold now, beyond their sources."""
    held: dict[int, int] = {}
    for module in network.modules():
        if isinstance(module, Layer):
            sources = {id(parameter.untyped_storage()) for parameter in module.parameters(recurse=False)}
            for derived in module._derived.values():
                storage = derived.weight.untyped_storage()
                if id(storage) not in sources:
                    held[id(storage)] = storage.nbytes()
    return sum(held.values())
