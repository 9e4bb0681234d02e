"""The UNet of Stable Diffusion 1, 2, XL, the refiner and their kin (Rombach et al. 2022, Podell et al. 2023).

Module names are those of a released single-file checkpoint under `model.diffusion_model.`; numbers in a Sequential that
hold no weights (an activation, a dropout of training) are kept as places, because the names count them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TransformerConfig, UNetBlockConfig, UNetConfig
from .layers import Conv2d, GroupNorm, LayerNorm, Linear, Upsample, attend, spread
from .text_keys import Text, TextKeys


def embed_timesteps(t: Tensor, channels: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding of timesteps t (batch,), also fractional ones: (batch, channels), cosines first, float32."""
    half = channels // 2
    exponent = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    angle = t.float()[:, None] * torch.exp(exponent)[None]
    embedding = torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)
    return F.pad(embedding, (0, channels % 2))


def embed_guidance(w: Tensor, channels: int) -> Tensor:
    """The guidance embedding of latent consistency models (Luo et al. 2023) for w = guidance scale - 1, w (batch,)."""
    half = channels // 2
    exponent = -math.log(10000.0) / (half - 1) * torch.arange(half, dtype=torch.float32, device=w.device)
    angle = 1000.0 * w.float()[:, None] * torch.exp(exponent)[None]
    embedding = torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)
    return F.pad(embedding, (0, channels % 2))


class TimeEmbed(nn.Sequential):
    """Timestep embedding → the vector that every residual block sees; LCM-type files add the guidance at its entry."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(
            Linear(config.model_channels, config.embed_channels),
            nn.SiLU(),
            Linear(config.embed_channels, config.embed_channels),
        )
        self.channels = config.model_channels
        self.guidance_channels = config.guidance_channels
        self.cond_proj: Linear | None = None
        if config.guidance_channels is not None:
            self.cond_proj = Linear(config.guidance_channels, config.model_channels, bias=False)

    def embed(self, t: Tensor, guidance: Tensor | None, dtype: torch.dtype) -> Tensor:
        h = embed_timesteps(t, self.channels).to(dtype)
        if self.cond_proj is not None and self.guidance_channels is not None:
            if guidance is None:
                raise ValueError("this UNet has a guidance embedding and needs the guidance scale")
            h = h + self.cond_proj(embed_guidance(guidance - 1.0, self.guidance_channels).to(dtype))
        out: Tensor = self[2](self[1](self[0](h)))
        return out


class ResBlock(nn.Module):
    """Residual block: norm, SiLU, 3x3 convolution, the time vector added, the same again, plus the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, embed_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm(in_channels, eps=1e-5), nn.SiLU(inplace=True), Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), Linear(embed_channels, out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels, eps=1e-5),
            nn.SiLU(inplace=True),
            nn.Identity(),
            Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """emb: the time vector after the SiLU that `emb_layers` begins with. Of x and emb either may be of batch 1."""
        shift = self.emb_layers[1](emb)
        batch = max(len(x), len(shift))
        h = spread(self.in_layers[0](x, silu=True), batch)
        h = self.in_layers[2](h, shift=spread(shift, batch))
        h = self.out_layers[0](h, silu=True)
        out: Tensor = self.out_layers[3](h, add=spread(self.skip_connection(x), batch))
        return out


class CrossAttention(nn.Module):
    """Multi-head attention of x (batch, n, channels) over a text, or over x itself."""

    def __init__(self, channels: int, context_channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(context_channels, channels, bias=False)
        self.to_v = Linear(context_channels, channels, bias=False)
        self.to_out = nn.Sequential(Linear(channels, channels), nn.Identity())

    def forward(self, x: Tensor, context: Text, add: Tensor) -> Tensor:
        """add, of x's shape: added to the result, which is of the context's batch even where x is of batch 1."""
        k, v = context.through(self.to_k), context.through(self.to_v)
        h = attend(spread(self.to_q(x), len(k)), k, v, self.heads)
        out: Tensor = self.to_out[0](h, spread(add, len(k)))
        return out


class GEGLU(nn.Module):
    """Gated linear unit with GELU (Shazeer 2020), the exact GELU by erf."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj.gated(x)


class FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), Linear(4 * channels, channels))

    def forward(self, x: Tensor, add: Tensor) -> Tensor:
        """add, of x's shape: added to the result."""
        out: Tensor = self.net[2](self.net[0](x), add)
        return out


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention over the text, feed-forward; each on a normalised copy, added back."""

    def __init__(self, channels: int, context_channels: int, heads: int, self_attention: bool) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.attn1 = CrossAttention(channels, channels if self_attention else context_channels, heads)
        self.ff = FeedForward(channels)
        self.attn2 = CrossAttention(channels, context_channels, heads)
        self.norm1 = LayerNorm(channels)
        self.norm2 = LayerNorm(channels)
        self.norm3 = LayerNorm(channels)

    def forward(self, x: Tensor, context: Text) -> Tensor:
        h = self.norm1(x)
        x = self.attn1(h, Text(h) if self.self_attention else context, add=x)
        x = self.attn2(self.norm2(x), context, add=x)
        out: Tensor = self.ff(self.norm3(x), add=x)
        return out


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, added to it."""

    def __init__(self, channels: int, context_channels: int, config: TransformerConfig, linear: bool) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, eps=1e-6)
        self.proj_in = Linear(channels, channels) if linear else Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, context_channels, config.heads, config.self_attention)
            for _ in range(config.depth)
        )
        self.proj_out = Linear(channels, channels) if linear else Conv2d(channels, channels, 1)
        self.linear = linear

    def forward(self, x: Tensor, context: Text) -> Tensor:
        """x (batch, channels, h, w), or of batch 1 for all of the context's batch: the result has that."""
        height, width = x.shape[2:]
        h = self.norm(x)
        if not self.linear:
            h = self.proj_in(h)
        h = h.permute(0, 2, 3, 1).flatten(1, 2)  # (batch, height * width, channels)
        if self.linear:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context)
        x = spread(x, len(h))
        if self.linear:
            h = self.proj_out(h, add=x.permute(0, 2, 3, 1).flatten(1, 2))
        h = h.view(len(x), height, width, -1).permute(0, 3, 1, 2)  # (batch, channels, height, width)
        return h if self.linear else self.proj_out(h, add=x)


class Downsample(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.op = Conv2d(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Stage(nn.ModuleList):
    """One row of the config: its modules in order, each given what it needs besides x."""

    def __init__(self, block: UNetBlockConfig, config: UNetConfig) -> None:
        modules: list[nn.Module] = []
        if block.residual:
            modules.append(ResBlock(block.in_channels, block.out_channels, config.embed_channels))
        if block.transformer is not None:
            modules.append(
                SpatialTransformer(
                    block.out_channels, config.context_channels, block.transformer, config.linear_projection
                )
            )
        if block.resample == "down":
            modules.append(Downsample(block.in_channels, block.out_channels))
        if block.resample == "up":
            modules.append(Upsample(block.out_channels))
        super().__init__(modules)

    def forward(self, x: Tensor, emb: Tensor, context: Text) -> Tensor:
        for module in self:
            if isinstance(module, ResBlock):
                x = module(x, emb)
            elif isinstance(module, SpatialTransformer):
                x = module(x, context)
            else:
                x = module(x)
        return x


class Middle(Stage):
    """The bottom of the U: a stage, and where it has a transformer a second residual block after it."""

    def __init__(self, block: UNetBlockConfig, config: UNetConfig) -> None:
        super().__init__(block, config)
        if block.transformer is not None:
            self.append(ResBlock(block.out_channels, block.out_channels, config.embed_channels))


class UNet(nn.Module):
    """Predicts noise (or v, or x0) from a noised latent, a timestep and a text.

    Built from the rows of a `UNetConfig`; `forward` walks down, through the middle, and up with the skips.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.time_embed = TimeEmbed(config)
        self.label_emb: nn.Sequential | None = None
        if config.adm_channels is not None:
            width = config.embed_channels
            self.label_emb = nn.Sequential(
                nn.Sequential(Linear(config.adm_channels, width), nn.SiLU(), Linear(width, width))
            )
        first = config.input_blocks[0].out_channels
        conv_in = nn.Sequential(Conv2d(config.in_channels, first, 3, padding=1))
        self.input_blocks = nn.ModuleList([conv_in, *(Stage(row, config) for row in config.input_blocks[1:])])
        self.middle_block = None if config.middle is None else Middle(config.middle, config)
        self.output_blocks = nn.ModuleList(Stage(row, config) for row in config.output_blocks)
        last = config.output_blocks[-1].out_channels
        self.out = nn.Sequential(
            GroupNorm(last, eps=1e-5), nn.SiLU(inplace=True), Conv2d(last, config.out_channels, 3, padding=1)
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        *,
        vector: Tensor | None = None,
        guidance: Tensor | None = None,
        control: tuple[Tensor, ...] | None = None,
        keys: TextKeys | None = None,
    ) -> Tensor:
        """x (batch, in_channels, h, w); t (batch,), fractional allowed; context (batch, tokens, context_channels).

        Any input but context may be of batch 1, standing for all: what the first layers make of it is then made once, to
        where something differs within the batch, at the latest in the first attention over the context.
        vector: (batch, adm_channels), where the config has them. guidance: the scale (batch,), for LCM-type UNets.
        control: residuals of a ControlNet (Zhang et al. 2023), one for each skip in their order and one for the middle.
        keys: what earlier calls of the same run made of their contexts.
        Returns (batch, out_channels, h, w). Heights and widths need not be multiples of 8: a map that comes up one
        pixel too large is resampled by nearest neighbour to its skip's size, as AUTOMATIC1111 does.
        """
        emb = self.time_embed.embed(t, guidance, x.dtype)
        if self.label_emb is not None:
            if vector is None:
                raise ValueError("this UNet needs the vector of pooled text and sizes")
            emb = emb + self.label_emb(vector)
        emb = F.silu(emb)  # what every residual block begins with
        text = Text(context, keys)

        h = self.input_blocks[0](x)
        skips = [h]
        for stage in self.input_blocks[1:]:
            h = stage(h, emb, text)
            skips.append(h)

        if self.middle_block is not None:
            h = self.middle_block(h, emb, text)

        if control is not None:
            skips = [skip + residual for skip, residual in zip(skips, control[:-1], strict=True)]
            h = h + control[-1]

        for stage in self.output_blocks:
            skip = skips.pop()
            if h.shape[2:] != skip.shape[2:]:
                h = F.interpolate(h, size=skip.shape[2:], mode="nearest")
            batch = max(len(h), len(skip))
            h = stage(torch.cat([spread(h, batch), spread(skip, batch)], dim=1), emb, text)

        out: Tensor = self.out[2](self.out[0](h, silu=True))
        return spread(out, len(context))
