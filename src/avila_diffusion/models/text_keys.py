"""What cross-attention makes of a text: the same at every step of a run, so made at the first."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .layers import Layer, Linear
from .weights import Derived, version_of

MOST = 4
"""Texts that are remembered: alternating prompts have two, and twice that where halves of guidance differ in length."""


@dataclass(frozen=True, eq=False)
class _Seen:
    text: Tensor
    version: int
    made: dict[Layer, Derived] = field(default_factory=dict)

    def __contains__(self, text: Tensor) -> bool:
        return self.text is text and self.version == text._version


class TextKeys:
    """Keys and values of the texts that one run asks about, at most of the last `most`.

    A run makes one and gives it to every call of its UNet. A text is known again by its being the same tensor, unwritten;
    what was made of it serves as long as the layer's weight and changes (LoRA) are those that it was made with.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._seen: list[_Seen] = []  # the last used behind

    def of(self, layer: Linear, text: Tensor) -> Tensor:
        """layer(text), perhaps made before."""
        if (
            torch.is_grad_enabled() or text.is_inference()
        ):  # a graph is used once; a write to the latter leaves no trace
            return layer(text)
        made = self._of_text(text).made
        weight, deltas = layer.weight, layer.deltas("weight")
        known = made.get(layer)
        if known is None or not known.serves(weight, deltas, text):
            known = made[layer] = Derived(weight, version_of(weight), deltas, layer(text))
        return known.weight

    def _of_text(self, text: Tensor) -> _Seen:
        found = next((seen for seen in self._seen if text in seen), None)
        if found is None:
            found = _Seen(text, text._version)
        else:
            self._seen.remove(found)
        self._seen = [*self._seen, found][-self.most :]
        return found

    @property
    def bytes(self) -> int:
        """Memory that the keys and values take."""
        return sum(one.weight.nbytes for seen in self._seen for one in seen.made.values())


@dataclass(frozen=True, eq=False)
class Text:
    """What cross-attention looks at: states (batch, tokens, context_channels), and what was made of them before."""

    states: Tensor
    keys: TextKeys | None = None

    def through(self, layer: Linear) -> Tensor:
        """layer(states): (batch, tokens, the layer's width)."""
        return layer(self.states) if self.keys is None else self.keys.of(layer, self.states)
