"""The autoencoder of latent diffusion (Rombach et al. 2022): pictures of -1 to 1 ⇄ latents at an eighth of the size.

Module names are those of a released checkpoint under `first_stage_model.`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import VAEConfig
from .layers import Conv2d, GroupNorm, Upsample, attend


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels, eps=1e-6)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels, eps=1e-6)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = None if in_channels == out_channels else Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x, silu=True)  # one name: what is not needed any more is let go of
        h = self.conv1(h)
        h = self.norm2(h, silu=True)
        shortcut = x if self.nin_shortcut is None else self.nin_shortcut(x)
        out: Tensor = self.conv2(h, add=shortcut)
        return out


class AttnBlock(nn.Module):
    """Self-attention over the pixels, one head as wide as the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, eps=1e-6)
        self.q = Conv2d(channels, channels, 1)
        self.k = Conv2d(channels, channels, 1)
        self.v = Conv2d(channels, channels, 1)
        self.proj_out = Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (t.permute(0, 2, 3, 1).flatten(1, 2) for t in (self.q(h), self.k(h), self.v(h)))
        h = attend(q, k, v, heads=1)  # (batch, height * width, channels)
        h = h.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
        out: Tensor = self.proj_out(h, add=x)
        return out


class Mid(nn.Module):
    def __init__(self, channels: int, attention: bool) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels) if attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """The residual blocks of one resolution and the change to the next, where there is one."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if index == 0 else out_channels, out_channels) for index in range(blocks)
        )
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = config.encoder_channels
        self.conv_in = Conv2d(config.image_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList()
        for index, width in enumerate(channels):
            level = Level(channels[max(index - 1, 0)], width, config.encoder_blocks)
            if index < len(channels) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = Mid(channels[-1], config.encoder_attention)
        self.norm_out = GroupNorm(channels[-1], eps=1e-6)
        moments = 2 * config.latent_channels if config.double_z else config.latent_channels
        self.conv_out = Conv2d(channels[-1], moments, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        h = self.mid(h)
        out: Tensor = self.conv_out(self.norm_out(h, silu=True))
        return out


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = config.decoder_channels
        top = len(channels) - 1
        self.conv_in = Conv2d(config.latent_channels, channels[-1], 3, padding=1)
        self.mid = Mid(channels[-1], config.decoder_attention)
        self.up = nn.ModuleList()  # named from full resolution down, walked from the latent up
        for index, width in enumerate(channels):
            level = Level(channels[min(index + 1, top)], width, config.decoder_blocks)
            if index > 0:
                level.upsample = Upsample(width)
            self.up.append(level)
        self.norm_out = GroupNorm(channels[0], eps=1e-6)
        self.conv_out = Conv2d(channels[0], config.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        out: Tensor = self.conv_out(self.norm_out(h, silu=True))
        return out


@dataclass(frozen=True, eq=False)
class LatentDistribution:
    """The encoder's answer, a diagonal Gaussian: mean and log variance, (batch, latent channels, h, w) each."""

    mean: Tensor
    log_variance: Tensor

    @property
    def mode(self) -> Tensor:
        """The likeliest latent, which is the mean."""
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """A latent drawn with unit normal `noise` of the mean's shape."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise


class VAE(nn.Module):
    """encode: pictures (batch, 3, height, width) in -1 to 1 → latents; decode: latents → pictures, not clamped.

    Latents here are the autoencoder's own; the scale of the diffusion's latents is the caller's (`LatentConfig`).
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv: Conv2d | None = None
        self.post_quant_conv: Conv2d | None = None
        if config.quant:
            double = 2 if config.double_z else 1
            self.quant_conv = Conv2d(double * config.latent_channels, double * config.embed_channels, 1)
            self.post_quant_conv = Conv2d(config.embed_channels, config.latent_channels, 1)

    def encode(self, x: Tensor) -> LatentDistribution:
        return self.distribution(self.encoder(x))

    def distribution(self, moments: Tensor) -> LatentDistribution:
        """What the encoder answered, read as a distribution."""
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        if not self.config.double_z:
            return LatentDistribution(moments, torch.full_like(moments, -30.0))
        mean, log_variance = moments.chunk(2, dim=1)
        return LatentDistribution(mean, log_variance.clamp(-30.0, 20.0))

    def decode(self, z: Tensor) -> Tensor:
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self.decoder(z)
