"""The text tower under OpenCLIP's names (Cherti et al. 2022): ViT-H/14 of Stable Diffusion 2, ViT-bigG/14 of SDXL."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TextConfig
from .layers import Layer, LayerNorm, Linear, attend
from .tokens import NO_VECTORS, Embedding, TextFeatures, activate, pick_end, put_vectors, take_rows


class MultiheadAttention(Layer):
    """Causal self-attention with q, k and v in one matrix, as torch's own module names them."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.width, config.width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * config.width))
        self.out_proj = Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.effective("in_proj_weight", x)
        assert weight is not None
        q, k, v = F.linear(x, weight, self.effective("in_proj_bias", x)).chunk(3, dim=-1)
        return self.out_proj(attend(q, k, v, self.heads, causal=True))


class MLP(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.c_fc = Linear(config.width, config.mlp)
        self.c_proj = Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(activate(self.c_fc(x), self.activation))


class ResidualAttentionBlock(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.attn = MultiheadAttention(config)
        self.ln_1 = LayerNorm(config.width)
        self.mlp = MLP(config)
        self.ln_2 = LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(config) for _ in range(config.layers))


class OpenClipTextModel(Layer):
    """A text tower whose names begin with `transformer.resblocks.`; text_projection multiplies from the right."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = Embedding(config.vocabulary, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.transformer = Transformer(config)
        self.ln_final = LayerNorm(config.width)
        self.text_projection: nn.Parameter | None = None
        if config.projection is not None:
            self.text_projection = nn.Parameter(torch.empty(config.width, config.projection))

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
        """As `ClipTextModel.forward`."""
        blocks = self.transformer.resblocks
        wanted = max(len(blocks) + 1 - skip, 0)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        words = put_vectors(self.token_embedding(tokens, dtype), vectors)
        x = words + take_rows(self.positional_embedding, positions, dtype)
        hidden = x
        for number, block in enumerate(blocks, 1):
            if number > wanted and not pooled:
                break
            x = block(x)
            if number == wanted:
                hidden = x
        vector = None
        if pooled:
            vector = pick_end(self.ln_final(x), tokens, self.config.vocabulary)
            projection = self.effective("text_projection", vector)
            if projection is not None:
                vector = vector @ projection
        return TextFeatures(self.ln_final(hidden) if final_norm else hidden, vector)
