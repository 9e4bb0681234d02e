"""Training of an autoencoder: reconstruction at several sizes, SSIM, and the KL term that keeps latents near N(0, 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..checkpoint.safetensors import write_safetensors
from ..config import VAEConfig
from ..errors import RequestError
from ..models.vae import VAE
from .data import Dataset, generator, order
from .discriminator import PatchDiscriminator, hinge_losses
from .initialise import create
from .loop import compute_dtype
from .losses import kl_divergence, reconstruction, ssim
from .settings import LoopSettings, check_range
from .sheets import write_sheet
from .state import fingerprint, sample_weights

FIRST_LOG_VARIANCE = -9.0


@dataclass(frozen=True, kw_only=True)
class VAEModel:
    """The architecture. channels run from full resolution to the latent's; blocks are residual blocks a level."""

    encoder_channels: tuple[int, ...]
    decoder_channels: tuple[int, ...]
    encoder_blocks: int = 1
    decoder_blocks: int = 2
    attention: bool = False
    latent_channels: int = 4

    def __post_init__(self) -> None:
        for name in ("latent_channels", "encoder_blocks", "decoder_blocks"):
            check_range(f"model.{name}", getattr(self, name), 1, 64)
        for channels in (self.encoder_channels, self.decoder_channels):
            if not channels or any(width < 32 or width % 32 for width in channels):
                raise RequestError(f"model channels are {list(channels)}; each must be a multiple of 32")
        if len(self.encoder_channels) != len(self.decoder_channels):
            raise RequestError("model.encoder_channels and model.decoder_channels must be equally many")

    @property
    def config(self) -> VAEConfig:
        """As the network is built from it."""
        return VAEConfig(
            latent_channels=self.latent_channels,
            embed_channels=self.latent_channels,
            encoder_channels=self.encoder_channels,
            decoder_channels=self.decoder_channels,
            encoder_blocks=self.encoder_blocks,
            decoder_blocks=self.decoder_blocks,
            encoder_attention=self.attention,
            decoder_attention=self.attention,
        )


@dataclass(frozen=True, kw_only=True)
class VAELoss:
    """Weights of the terms. scales: sizes at which the pictures are compared, each half of the one before.

    kl: of the mean KL a latent number, in nats; it rises from 0 with the square of the step over kl_warmup steps, because
    a decoder that meets it before it has learned to look at latents learns to do without them. ssim: of 1 - SSIM.
    encoder: False trains the decoder alone, on the latents that a finished encoder gives. crop: side of random pieces to
    train on, 0 for whole pictures. adversarial: of the verdict of a discriminator of patches, which is trained beside the
    autoencoder; it counts from step adversarial_from on.
    """

    reconstruction: Literal["l1", "l2"] = "l1"
    scales: int = 1
    ssim: float = 0.0
    kl: float = 1e-6
    kl_warmup: int = 1000
    encoder: bool = True
    crop: int = 0
    adversarial: float = 0.0
    adversarial_from: int = 0

    def __post_init__(self) -> None:
        check_range("loss.scales", self.scales, 1, 8)
        for name in ("ssim", "kl", "adversarial"):
            check_range(f"loss.{name}", getattr(self, name), 0.0, 1e6)
        for name in ("kl_warmup", "crop", "adversarial_from"):
            check_range(f"loss.{name}", getattr(self, name), 0, 2**63)


@dataclass(eq=False)
class VAETask:
    """A VAE on a data set. begin: an autoencoder whose weights are the first ones, of the same architecture."""

    model: VAEModel
    terms: VAELoss
    data: Dataset
    settings: LoopSettings
    begin: VAE | None = None

    def __post_init__(self) -> None:
        seed, scale = self.settings.seed, self.model.config.scale
        side = self.terms.crop or self.data.size
        if side % scale or side < 2 * scale or side >> self.terms.scales < 1:
            raise RequestError(
                f"pictures of {side}x{side} do not go into {len(self.model.encoder_channels)} levels at {self.terms.scales} "
                f"scales; data.size and loss.crop must be multiples of {scale}, at least {2 * scale}"
            )
        self.vae = create(lambda: VAE(self.model.config), generator(seed, 0, 2))
        quant = self.vae.quant_conv
        assert quant is not None and quant.bias is not None
        with torch.no_grad():  # little noise at first, else the decoder learns to do without latents and stays so
            quant.bias[self.model.latent_channels :] = FIRST_LOG_VARIANCE
        if self.begin is not None:
            self._take_weights(self.begin)
        self.discriminator: PatchDiscriminator | None = None
        if self.terms.adversarial:
            self.discriminator = create(PatchDiscriminator, generator(seed, 1, 2))
        self._run = torch.compile(self._forward) if self.settings.compile else self._forward

    def _take_weights(self, begin: VAE) -> None:
        if begin.config != self.model.config:
            found = f"encoder {list(begin.config.encoder_channels)}, decoder {list(begin.config.decoder_channels)}"
            raise RequestError(f"model.begin is of another architecture than [model]: {found}; make them agree")
        with torch.no_grad():
            for mine, theirs in zip(self.vae.parameters(), begin.parameters(), strict=True):
                mine.copy_(theirs)

    @cached_property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        trained = {
            name: parameter
            for name, parameter in self.vae.named_parameters()
            if self.terms.encoder or name.startswith(("decoder.", "post_quant_conv."))
        }
        if self.discriminator is not None:
            trained |= {f"discriminator.{name}": p for name, p in self.discriminator.named_parameters()}
        return trained

    @cached_property
    def fingerprint(self) -> str:
        begin = sample_weights(self.begin) if self.begin is not None else None
        kind = ("vae", self.model, self.terms.encoder, self.discriminator is not None, self.settings.optimizer, begin)
        return fingerprint(*kind, self.data.digest)

    def loss(self, step: int) -> dict[str, Tensor]:
        terms = self.terms
        rng = generator(self.settings.seed, step)
        pictures = self._pictures(step, rng)
        scale = self.model.config.scale
        shape = (len(pictures), self.model.latent_channels, *(side // scale for side in pictures.shape[2:]))
        made, kl = self._run(pictures, torch.randn(shape, generator=rng))
        rising = min(step / terms.kl_warmup, 1.0) if terms.kl_warmup else 1.0
        losses = {
            "reconstruction": reconstruction(made, pictures, terms.reconstruction, terms.scales),
            "kl": kl,
            "ssim": 1 - ssim(made, pictures).mean() if terms.ssim else torch.zeros(()),
        }
        total = losses["reconstruction"] + terms.ssim * losses["ssim"] + terms.kl * rising**2 * kl
        if self.discriminator is not None:
            fooled, caught = hinge_losses(self.discriminator, made, pictures)
            losses |= {"fooled": fooled, "caught": caught}
            total = total + caught + (terms.adversarial * fooled if step >= terms.adversarial_from else 0.0)
        return losses | {"loss": total}

    def _forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        dtype = compute_dtype(self.settings)
        latents = self.vae.encode(pictures.to(dtype))
        z = latents.sample(noise.to(dtype))
        return self.vae.decode(z).to(pictures.dtype), kl_divergence(latents).float().mean()

    def _pictures(self, step: int, rng: torch.Generator) -> Tensor:
        indices = order(len(self.data), self.settings.batch, step, self.settings.seed)
        pictures = self.data.pictures(indices)
        side = self.terms.crop
        if side and side < self.data.size:
            tops, lefts = torch.randint(self.data.size - side + 1, (2, len(pictures)), generator=rng).tolist()
            pictures = torch.stack(
                [p[:, y : y + side, x : x + side] for p, y, x in zip(pictures, tops, lefts, strict=True)]
            )
        return pictures.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def sheet(self, path: Path) -> None:
        indices = order(len(self.data), 24, 0, 0)
        pictures = self.data.pictures(indices)
        made = self.vae.decode(self.vae.encode(pictures).mode)
        write_sheet(path, torch.stack([pictures, made], dim=1).flatten(0, 1), columns=12)

    def export(self, path: Path) -> None:
        write_safetensors(path, {name: p.detach().contiguous() for name, p in self.vae.named_parameters()})
