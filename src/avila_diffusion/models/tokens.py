"""What the text towers are made of beside layers: embeddings of tokens, activations, features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embedding(nn.Module):
    """A table of vectors. Only the rows asked for are converted, never the table: a vocabulary is 150 MB in float32."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))
        self.rows = rows
        self._extra: tuple[Tensor, ...] = ()

    def extend(self, *extra: Tensor) -> None:
        """Let these rows, (number, width) each, follow the table's own in place of those before: textual inversion's."""
        self._extra = extra

    def forward(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        if not self._extra:
            return take_rows(self.weight, index, dtype)
        new = index >= self.rows
        known = take_rows(self.weight, index.clamp(max=self.rows - 1), dtype)
        added = take_rows(torch.cat(self._extra), (index - self.rows).clamp(min=0), dtype)
        return torch.where(new[..., None], added, known)


def take_rows(table: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of `table` (rows, width) at `index`, in `dtype` and on the device of `index`."""
    source = table if torch.is_grad_enabled() and table.requires_grad else table.detach()
    place = index.to(source.device)
    if source.dtype.itemsize == 1:  # the 8-bit floats have no gather of their own
        rows = source.view(torch.uint8)[place].view(source.dtype)
    else:
        rows = F.embedding(place, source)
    return rows.to(device=index.device, dtype=dtype)


NO_VECTORS: Mapping[int, Tensor] = MappingProxyType({})
"""No embedding in the prompt."""


def put_vectors(x: Tensor, vectors: Mapping[int, Tensor]) -> Tensor:
    """x (batch, tokens, width) with rows of its own from place on: place → (number, width), in their order; x stays as it is.

    For embeddings that stand in a prompt, before the positions are added. Rows on the first and the last place, or outside,
    are left out: there are the start and the end token.
    """
    if not vectors:
        return x
    x = x.clone()
    last = x.shape[1] - 1
    for place, rows in vectors.items():
        first, end = max(place, 1), min(place + len(rows), last)
        if first < end:
            x[:, first:end] = rows[first - place : end - place].to(x)
    return x


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """hidden (batch, tokens, width): what cross-attention sees. pooled (batch, projection): a vector a text, or None."""

    hidden: Tensor
    pooled: Tensor | None


def activate(x: Tensor, kind: str) -> Tensor:
    """quick_gelu is x · sigmoid(1.702 x), with which OpenAI's CLIP was trained; gelu is the exact one, by erf."""
    return x * torch.sigmoid(1.702 * x) if kind == "quick_gelu" else F.gelu(x)


def pick_end(hidden: Tensor, tokens: Tensor, vocabulary: int) -> Tensor:
    """The hidden state at each text's first end token, which has the highest id of the vocabulary: (batch, width)."""
    tokens = tokens.where(tokens < vocabulary, 0)  # ids past it are textual inversion's
    end = tokens == tokens.amax(dim=-1, keepdim=True)
    first = (end.cumsum(dim=-1) == 0).sum(dim=-1)  # argmax promises no order among equals
    return hidden[torch.arange(len(hidden), device=hidden.device), first.to(hidden.device)]
