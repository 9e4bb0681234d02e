"""What a LoRA may change in a model, under every name that kohya's files have for it.

The names are generated from those of the model's own parameters, so that a network of any size has them: those of the
single file as they are, and diffusers' and transformers' by way of `checkpoint.keys`; dots become underscores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ...models.clip import ClipTextModel
from ...models.layers import Conv2d, Layer, Linear
from ...models.open_clip import MultiheadAttention
from ..keys import open_clip_to_transformers, unet_to_diffusers
from ..load import Model, TextModel

CHANGED: dict[type[Layer], str] = {Linear: "weight", Conv2d: "weight", MultiheadAttention: "in_proj_weight"}
"""Layers that a LoRA may change, and their parameter that it changes."""


@dataclass(frozen=True)
class Target:
    """A parameter, or one third of its rows where q, k and v lie in one matrix. part: "unet", "text encoder 1" …"""

    layer: Layer
    parameter: str
    part: str
    third: int | None = None

    @property
    def is_text(self) -> bool:
        return self.part != "unet"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the rows that it means."""
        rows, *rest = getattr(self.layer, self.parameter).shape
        return (rows if self.third is None else rows // 3, *rest)

    @property
    def rows(self) -> slice | None:
        """The rows that it means, None for all."""
        height = self.shape[0]
        return None if self.third is None else slice(self.third * height, (self.third + 1) * height)


def name_targets(model: Model) -> dict[str, Target]:
    """Everything in the UNet and the text towers that a LoRA may change, by kohya's names."""
    found = dict(_unet_targets(model.unet))
    for number, tower in enumerate(model.text, 1):
        prefix = "lora_te_" if len(model.text) == 1 else f"lora_te{number}_"
        found |= _tower_targets(tower, prefix, f"text encoder {number}")
    return found


def _unet_targets(unet: nn.Module) -> Iterator[tuple[str, Target]]:
    targets = _layer_targets(unet, "unet")
    names = [(name, name) for name in targets]
    for theirs, ours in [*names, *unet_to_diffusers([name for name, _ in unet.named_parameters()]).items()]:
        if ours in targets:
            yield flatten("lora_unet_", theirs), targets[ours]


def _tower_targets(tower: TextModel, prefix: str, part: str) -> Iterator[tuple[str, Target]]:
    targets = _layer_targets(tower, part)
    if isinstance(tower, ClipTextModel):
        for name, target in targets.items():
            yield flatten(prefix, name), target
        return
    for theirs, (ours, third) in open_clip_to_transformers(targets).items():
        target = targets[ours]
        yield flatten(prefix, theirs), Target(target.layer, target.parameter, part, third)


def _layer_targets(network: nn.Module, part: str) -> dict[str, Target]:
    """The whole parameters that a LoRA may change, by our names."""
    return {
        f"{path}.{CHANGED[type(layer)]}": Target(layer, CHANGED[type(layer)], part)
        for path, layer in network.named_modules()
        if isinstance(layer, Layer) and type(layer) in CHANGED
    }


def flatten(prefix: str, parameter: str) -> str:
    """kohya's name of a layer, from the name of its parameter."""
    return prefix + parameter.rpartition(".")[0].replace(".", "_")
