"""What the sampling of a picture begins with beside noise: an encoded picture, a mask, what a network is shown of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import ModelSpec
from ..models.vae import LatentDistribution
from ..request import GenerateRequest
from ..sampling.blending import blend
from ..sampling.noise import ImageNoise, NoiseSource
from .inputs import Inputs, Mask, Pixels
from .latents import cropped, from_vae, to_vae

Encode = Callable[[Tensor], LatentDistribution]
"""(1, 3, height, width) in -1 to 1 → what the encoder makes of it."""


@dataclass(frozen=True, eq=False)
class Begin:
    """latent: the diffusion's, (1, channels, h, w), without noise; None where the run begins with text alone. keep:
    (1, 1, h, w), 1 where the latent stays, 0 where it is painted; None where all is. concat: (1, channels, h, w), what the
    network is given beside the noisy latent.
    """

    latent: Tensor | None = None
    keep: Tensor | None = None
    concat: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Beginning:
    """The encoded pictures of a request, from which each of its results begins.

    inputs: None for text alone. like: a tensor that says where latents lie, and their dtype. size: height and width of the
    latent that is sampled. first: of a second pass, the first one's picture (1, 3, height, width), enlarged; what of it is cut
    off afterwards is still there.
    """

    spec: ModelSpec
    request: GenerateRequest
    inputs: Inputs | None
    size: tuple[int, int]
    like: Tensor
    encode: Encode
    first: Tensor | None = None

    def of(self, noise: ImageNoise, fresh: NoiseSource) -> Begin:
        """For one picture. noise: of it, from which the encoder's distributions are drawn. fresh: the stream of its seed
        from the beginning, for the content "noise" of a mask."""
        draws = noise.encoding()
        latent = keep = None
        if self._picture is not None:
            latent = from_vae(draw_latent(self._picture, draws), self.spec.latent).to(self.like)
            if latent.shape[2:] != self.size:
                latent = F.interpolate(latent, size=self.size, mode="bilinear")
        if self.inputs is not None and self.inputs.mask is not None and latent is not None:
            keep = 1 - _latent_mask(self.inputs.mask, self.size, self.request).to(self.like)
            if self.request.masked_content == "noise":
                latent = blend(fresh.draw(tuple(latent.shape[1:])).unsqueeze(0).to(latent), latent, keep)
            elif self.request.masked_content == "nothing":
                latent = latent * keep
        return Begin(latent, keep, self._concat(draws))

    @cached_property
    def _picture(self) -> LatentDistribution | None:
        pixels = None if self.inputs is None else self.inputs.pixels
        return None if pixels is None else self.encode(as_picture(pixels))

    @cached_property
    def _hidden(self) -> LatentDistribution:
        """What an inpainting model is shown: the picture, grey where it is to paint; all grey for text alone. A second pass
        paints everywhere, over as much of the first one's picture as the weight lets be seen."""
        scale = self.spec.vae.scale
        if self.first is not None:
            return self.encode(self.first * (1 - self.request.mask_weight))
        if self.inputs is None or self.inputs.pixels is None:
            return self.encode(torch.zeros(1, 3, scale * self.size[0], scale * self.size[1]))
        picture, weight = as_picture(self.inputs.pixels), self.request.mask_weight
        painted = torch.ones(1, 1, *picture.shape[2:])
        if self.inputs.mask is not None:
            painted = torch.from_numpy(self.inputs.mask.astype(np.float32) / 255)[None, None]
            if not self.request.mask_soft or self.request.compat == "comfyui":
                painted = painted.round()
        return self.encode(picture * (1 - weight * painted))

    def _concat(self, draws: NoiseSource | None) -> Tensor | None:
        """What the network's further input channels are given."""
        if self.spec.variant == "inpainting":
            hidden = from_vae(draw_latent(self._hidden, draws), self.spec.latent).to(self.like)
            if self.first is not None:
                hidden = cropped(hidden, self.size)
            if hidden.shape[2:] != self.size:
                hidden = F.interpolate(hidden, size=self.size, mode="bilinear")
            return torch.cat([self._painted(), hidden], dim=1)
        if self.spec.variant == "pix2pix":
            assert self._picture is not None
            # Neither drawn nor scaled: so it was trained, with the family's large autoencoder.
            picture = to_vae(from_vae(self._picture.mode, self.spec.latent), self.spec.latent_space).to(self.like)
            return (
                picture if picture.shape[2:] == self.size else F.interpolate(picture, size=self.size, mode="bilinear")
            )
        if self.spec.variant == "depth":
            assert self.inputs is not None and self.inputs.depth is not None
            return normalised_depth(torch.from_numpy(self.inputs.depth), self.size).to(self.like)
        return None

    def _painted(self) -> Tensor:
        """(1, 1, h, w): 1 where an inpainting model is to paint."""
        mask = None if self.inputs is None else self.inputs.mask
        if mask is None:
            return torch.ones(1, 1, *self.size).to(self.like)
        if self.request.compat == "comfyui":
            return _latent_mask(mask, self.size, self.request).round().to(self.like)
        whole = torch.from_numpy(mask.astype(np.float32) / 255)[None, None]
        whole = whole if self.request.mask_soft else whole.round()
        return F.interpolate(whole, size=self.size).to(self.like)


def as_picture(pixels: Pixels) -> Tensor:
    """(height, width, 3) of 0 to 255 → (1, 3, height, width) in -1 to 1."""
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None] * 2 - 1


def normalised_depth(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """A depth map (h, w) → (1, 1, *size), the nearest 1 and the farthest -1, as depth models were trained; a flat one is -1."""
    small = F.interpolate(depth[None, None].float(), size=size, mode="bicubic", align_corners=False)
    low, high = small.min(), small.max()
    return 2 * (small - low) / (high - low).clamp(min=1e-12) - 1


def _latent_mask(mask: Mask, size: tuple[int, int], request: GenerateRequest) -> Tensor:
    """(1, 1, h, w): 1 where the latent is painted. AUTOMATIC1111 shrinks the mask bicubically and rounds it unless it is
    soft; ComfyUI shrinks it linearly, from four pixels each, and leaves it so."""
    if request.compat == "comfyui":
        return F.interpolate(torch.from_numpy(mask.astype(np.float32) / 255)[None, None], size=size, mode="bilinear")
    small = PIL.Image.fromarray(mask).resize((size[1], size[0]), PIL.Image.Resampling.BICUBIC)
    painted = torch.from_numpy(np.asarray(small, np.float32) / 255)[None, None]
    return painted if request.mask_soft else painted.round()


def draw_latent(found: LatentDistribution, draws: NoiseSource | None) -> Tensor:
    """A latent of what an encoder found: drawn by these numbers, its mean without them."""
    if draws is None:
        return found.mode
    return found.sample(draws.draw(tuple(found.mean.shape[1:])).unsqueeze(0).to(found.mean))
