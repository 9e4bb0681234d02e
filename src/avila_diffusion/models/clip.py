"""The CLIP text tower under the names of the transformers library (Radford et al. 2021): CLIP ViT-L/14 and its kin."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..config import TextConfig
from .layers import LayerNorm, Linear, attend
from .tokens import NO_VECTORS, Embedding, TextFeatures, activate, pick_end, put_vectors


class Attention(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.k_proj = Linear(config.width, config.width)
        self.v_proj = Linear(config.width, config.width)
        self.q_proj = Linear(config.width, config.width)
        self.out_proj = Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal=True))


class MLP(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.fc1 = Linear(config.width, config.mlp)
        self.fc2 = Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(activate(self.fc1(x), self.activation))


class EncoderLayer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.layer_norm1 = LayerNorm(config.width)
        self.mlp = MLP(config)
        self.layer_norm2 = LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = Embedding(config.vocabulary, config.width)
        self.position_embedding = Embedding(config.context_length, config.width)

    def forward(self, tokens: Tensor, dtype: torch.dtype, vectors: Mapping[int, Tensor]) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        words = put_vectors(self.token_embedding(tokens, dtype), vectors)
        return words + self.position_embedding(positions, dtype)


class Encoder(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))


class TextModel(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = LayerNorm(config.width)


class ClipTextModel(nn.Module):
    """A text tower whose names begin with `text_model.`."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextModel(config)
        self.text_projection: Linear | None = None
        if config.projection is not None:
            self.text_projection = Linear(config.width, config.projection, bias=False)

    def forward(
        self,
        tokens: Tensor,
        *,
        dtype: torch.dtype,
        skip: int = 1,
        final_norm: bool = True,
        pooled: bool = False,
        vectors: Mapping[int, Tensor] = NO_VECTORS,
    ) -> TextFeatures:
        """tokens (batch, at most 77) of ids. skip: 1 takes the last layer's output, 2 the one before.

        vectors: rows (number, width) in place of those of the tokens from a place on, see `put_vectors`.
        pooled needs all layers; without it those past the wanted one are not run.
        """
        model = self.text_model
        last = len(model.encoder.layers)
        wanted = max(last + 1 - skip, 0)
        x = hidden = model.embeddings(tokens, dtype, vectors)
        for number, layer in enumerate(model.encoder.layers, 1):
            if number > wanted and not pooled:
                break
            x = layer(x)
            if number == wanted:
                hidden = x
        vector = None
        if pooled:
            vector = pick_end(model.final_layer_norm(x), tokens, self.config.vocabulary)
            if self.text_projection is not None:
                vector = self.text_projection(vector)
        return TextFeatures(model.final_layer_norm(hidden) if final_norm else hidden, vector)
