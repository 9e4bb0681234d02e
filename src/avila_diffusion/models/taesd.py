"""The tiny autoencoder TAESD (Ollin Boer Bohan, https://github.com/madebyollin/taesd): pictures of -1 to 1 ⇄ latents.

Trained after a family's large autoencoder, with a hundredth of its weights: convolutions of one width and ReLU, no norms, no
attention. Its latents are the diffusion's own, scale included. Module names are those of diffusers' AutoencoderTiny;
`checkpoint.keys` brings the original's here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TinyVAEConfig
from ..errors import MissingPart
from ..kernels import native
from .layers import Conv2d, convolve_doubled
from .plans import TILE, halo, plan_tiny
from .vae import VAE, LatentDistribution

CLAMP = 3.0
"""Latents are bent into -3 to 3 before they are decoded, as they were in training."""


class Block(nn.Module):
    """Three convolutions, ReLU between them and after the shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ModuleDict({number: Conv2d(channels, channels, 3, padding=1) for number in ("0", "2", "4")})

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.conv.values()
        h = F.relu(first(x), inplace=True)
        h = F.relu(second(h), inplace=True)
        return F.relu(third(h, add=x), inplace=True)


class Encoder(nn.Module):
    """A convolution, halving but for the first, and blocks, level by level; then one to the latent's channels."""

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        width = config.channels
        layers: list[nn.Module] = []
        for level, blocks in enumerate(config.encoder_blocks):
            first = Conv2d(config.image_channels, width, 3, padding=1)
            layers.append(first if level == 0 else Conv2d(width, width, 3, stride=2, padding=1, bias=False))
            layers += [Block(width) for _ in range(blocks)]
        layers.append(Conv2d(width, config.latent_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers((x + 1) / 2)  # it was trained on pictures of 0 to 1
        return out


class Decoder(nn.Module):
    """A convolution from the latent's channels, blocks level by level with a doubling between, one to the picture's."""

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        width, top = config.channels, len(config.decoder_blocks) - 1
        layers: list[nn.Module] = [Conv2d(config.latent_channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        self.last = 0  # where what works at the picture's size begins
        for level, blocks in enumerate(config.decoder_blocks):
            layers += [Block(width) for _ in range(blocks)]
            if level < top:
                self.last = len(layers)
                # Keeps the number of the doubling, which is done together with the convolution after it.
                layers += [nn.Identity(), Conv2d(width, width, 3, padding=1, bias=False)]
        layers.append(Conv2d(width, config.image_channels, 3, padding=1))
        self.layers = nn.ModuleList(layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.finish(self.begin(z))

    def begin(self, z: Tensor) -> Tensor:
        """A latent → the map before the last doubling, at half the picture's size."""
        return _through(self.layers[: self.last], CLAMP * torch.tanh(z / CLAMP))

    def finish(self, h: Tensor) -> Tensor:
        """That map, or rows of it → the picture, -1 to 1 and a little beyond."""
        return 2 * _through(self.layers[self.last :], h) - 1  # it was trained to give 0 to 1


def _through(layers: Iterable[nn.Module], h: Tensor) -> Tensor:
    """One layer after the other; a convolution after a doubling does both."""
    doubled = False
    for layer in layers:
        if isinstance(layer, nn.Identity):
            doubled = True
        elif doubled and isinstance(layer, Conv2d):
            h, doubled = convolve_doubled(layer, h), False
        else:
            h = layer(h)
    return h


class TinyVAE(nn.Module):
    """encode: pictures (batch, 3, height, width) in -1 to 1 → latents; decode: latents → pictures, not clamped.

    Latents here are those of the diffusion, without any scale (`LatentConfig.of_tiny`). The encoder may be missing.
    """

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config) if config.encoder_blocks else None
        self.decoder = Decoder(config)

    def encode(self, x: Tensor) -> LatentDistribution:
        """The latent as a distribution that is hardly wider than a point. Raises MissingPart where there is no encoder."""
        if self.encoder is None:
            raise MissingPart(
                "the VAE is the decoder of a tiny autoencoder (TAESD) alone, so no picture can be turned into a latent; give a "
                "file with both halves with --vae, such as taesd.safetensors, or another VAE"
            )
        z = self.encoder(x)
        return LatentDistribution(z, torch.full_like(z, -30.0))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


Autoencoder = VAE | TinyVAE


def decode_tiny_in_bands(vae: TinyVAE, z: Tensor, room: int, before_band: Callable[[], None]) -> Tensor:
    """`vae.decode(z)` but for rounding; see `bands.decode_in_bands`.

    Up to half the picture's size it is decoded whole, which takes a quarter of the memory. The rest sees `halo` rows around a
    row and no more: bands with so many rows around them are made one after the other, and those rows cut off.
    """
    config = vae.config
    plan = plan_tiny(config, z.shape[2], z.shape[3], room, z.element_size())
    height, around, ratio = config.scale * z.shape[2], halo(config), min(config.scale, 2)
    shape = (len(z), height, config.scale * z.shape[3], config.image_channels)
    pictures = torch.empty(shape, dtype=z.dtype, device=z.device).permute(0, 3, 1, 2)
    with torch.no_grad():
        for latent, picture in zip(torch.split(z, 1), torch.split(pictures, 1), strict=True):
            half = vae.decoder.begin(latent)
            native.give_back()  # bands do not fit into the rooms of whole maps
            for first in range(0, height, plan.rows):
                before_band()
                end = min(first + plan.rows, height)
                low = max(first - around, 0) // TILE * TILE  # where a tile of the whole map begins
                high = min(-(-(end + around) // ratio) * ratio, height)
                band = vae.decoder.finish(half[:, :, low // ratio : high // ratio])
                picture[:, :, first:end] = band[:, :, first - low : end - low]
    return pictures
