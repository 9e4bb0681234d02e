"""What a LoRA may change in a model, under every name that kohya's files have for it.

The names are generated from those of the model's own parameters, so that a network of any size has them: those of the
single file as they are, and diffusers' and transformers' by way of `checkpoint.keys`; dots become underscores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from ...errors import Unsupported
from ...models.clip import ClipTextModel
from ...models.layers import Conv2d, GroupNorm, Layer, LayerNorm, Linear
from ...models.open_clip import MultiheadAttention, OpenClipTextModel
from ..header import shown
from ..keys import open_clip_to_transformers, unet_to_diffusers
from ..load import Model, TextModel

Kinds = dict[type[Layer], str]
CHANGED: Kinds = {Linear: "weight", Conv2d: "weight", MultiheadAttention: "in_proj_weight"}
"""Layers that a LoRA may change, and their parameter that it changes."""
NORMS: Kinds = {LayerNorm: "weight", GroupNorm: "weight"}
"""Layers that only whole differences change."""


@dataclass(frozen=True)
class Target:
    """A parameter, or one third of its rows where q, k and v lie in one matrix. part: "unet", "text encoder 1" …

    transposed: whether the file means the transpose, as of OpenCLIP's text_projection, which multiplies from the right.
    """

    layer: Layer
    parameter: str
    part: str
    third: int | None = None
    transposed: bool = False

    @property
    def bias(self) -> str:
        """The parameter that is added where this one multiplies."""
        return self.parameter.replace("weight", "bias")

    @property
    def has_bias(self) -> bool:
        return self.bias != self.parameter and getattr(self.layer, self.bias, None) is not None

    @property
    def is_text(self) -> bool:
        return self.part != "unet"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the rows that it means, as files have it."""
        rows, *rest = getattr(self.layer, self.parameter).shape[:: -1 if self.transposed else 1]
        return (rows if self.third is None else rows // 3, *rest)

    @property
    def rows(self) -> slice | None:
        """The rows that it means, None for all."""
        height = self.shape[0]
        return None if self.third is None else slice(self.third * height, (self.third + 1) * height)


def name_targets(model: Model, *, every: bool = False) -> dict[str, Target]:
    """What in the UNet and the text towers a LoRA may change, by kohya's names.

    every: what is not trained here too, normalisations and the text towers' projections.
    """
    kinds = CHANGED | NORMS if every else CHANGED
    found = dict(_unet_targets(model.unet, kinds))
    for number, tower in enumerate(model.text, 1):
        prefix = "lora_te_" if len(model.text) == 1 else f"lora_te{number}_"
        part = f"text encoder {number}"
        found |= _tower_targets(tower, prefix, part, kinds)
        if every and isinstance(tower, OpenClipTextModel) and tower.text_projection is not None:
            found[f"{prefix}text_projection"] = Target(tower, "text_projection", part, transposed=True)
    return found


def _unet_targets(unet: nn.Module, kinds: Kinds) -> Iterator[tuple[str, Target]]:
    targets = _layer_targets(unet, "unet", kinds)
    names = [(name, name) for name in targets]
    for theirs, ours in [*names, *unet_to_diffusers([name for name, _ in unet.named_parameters()]).items()]:
        if ours in targets:
            yield flatten("lora_unet_", theirs), targets[ours]


def _tower_targets(tower: TextModel, prefix: str, part: str, kinds: Kinds) -> Iterator[tuple[str, Target]]:
    targets = _layer_targets(tower, part, kinds)
    if isinstance(tower, ClipTextModel):
        for name, target in targets.items():
            yield flatten(prefix, name), target
        return
    for theirs, (ours, third) in open_clip_to_transformers(targets).items():
        target = targets[ours]
        yield flatten(prefix, theirs), Target(target.layer, target.parameter, part, third)


def _layer_targets(network: nn.Module, part: str, kinds: Kinds) -> dict[str, Target]:
    """The whole parameters that a LoRA may change, by our names."""
    return {
        f"{path}.{kinds[type(layer)]}": Target(layer, kinds[type(layer)], part)
        for path, layer in network.named_modules()
        if isinstance(layer, Layer) and type(layer) in kinds
    }


def flatten(prefix: str, parameter: str) -> str:
    """kohya's name of a layer, from the name of its parameter."""
    return prefix + parameter.rpartition(".")[0].replace(".", "_")


# The first LoRA program numbered what it found of these classes, block by block: the way down, the way up, the middle.
_BLOCK = re.compile(
    r"lora_unet_(down_blocks|up_blocks|mid_block)_?(\d*)_attentions_(\d+)_transformer_blocks_(\d+)_(\w+)", re.ASCII
)
_BLOCKS = ("down_blocks", "up_blocks", "mid_block")
_UNET_LAYERS = tuple(
    [f"attn1_to_{part}" for part in ("q", "k", "v", "out_0")]
    + ["ff_net_0_proj"]
    + [f"attn2_to_{part}" for part in ("q", "k", "v", "out_0")]
)
_TEXT_LAYER = re.compile(r"lora_te1?_text_model_encoder_layers_(\d+)_self_attn_(\w+)", re.ASCII)
_TEXT_LAYERS = ("k_proj", "v_proj", "q_proj", "out_proj")


def number_targets(targets: Mapping[str, Target], metadata: Mapping[str, str]) -> dict[str, Target]:
    """`unet:7` → what the first LoRA program (cloneofsimo's) meant by it. targets: of `name_targets`.

    metadata: of the file, which tells the classes of layers that were counted. Raises Unsupported for others than usual.
    """
    classes = {part: set(re.findall(r"\w+", metadata.get(part, ""))) for part in ("unet", "text_encoder")}
    unusual = classes["unet"] - {"CrossAttention", "Attention", "GEGLU"} | classes["text_encoder"] - {"CLIPAttention"}
    if unusual:
        raise Unsupported(
            f"the layers of this LoRA are numbered with {', '.join(sorted(map(shown, unusual)))} among them; only those of "
            "CrossAttention, Attention, GEGLU and CLIPAttention are counted here"
        )
    with_proj = not classes["unet"] or "GEGLU" in classes["unet"]
    wanted = [layer for layer in _UNET_LAYERS if with_proj or layer != "ff_net_0_proj"]
    unet: dict[tuple[int, ...], str] = {}
    text: dict[tuple[int, ...], str] = {}
    for name in targets:
        if (found := _BLOCK.fullmatch(name)) and found[5] in wanted:
            place = (int(found[2] or 0), int(found[3]), int(found[4]))
            unet[_BLOCKS.index(found[1]), *place, wanted.index(found[5])] = name
        elif (found := _TEXT_LAYER.fullmatch(name)) and found[2] in _TEXT_LAYERS:
            text[int(found[1]), _TEXT_LAYERS.index(found[2])] = name
    return {
        f"{part}:{number}": targets[name]
        for part, names in (("unet", unet), ("text_encoder", text))
        for number, (_, name) in enumerate(sorted(names.items()))
    }
