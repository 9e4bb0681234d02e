"""Latents ⇄ pixels: the diffusion's scale, the VAE in half precision guarded, 8-bit pictures, rough previews."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import LatentConfig, ModelSpec
from ..errors import NotFinite
from ..kernels import native
from ..models.bands import decode_in_bands
from ..models.encode_bands import encode_in_bands
from ..models.plans import least_room
from ..models.taesd import Autoencoder, TinyVAE
from ..models.vae import LatentDistribution

Pixels = npt.NDArray[np.uint8]

# Linear maps from latents, as the UNet sees them, to red, green and blue of -1 to 1: published least-squares fits.
PREVIEW = {
    0.18215: (
        ((0.3512, 0.2297, 0.3227), (0.325, 0.4974, 0.235), (-0.2829, 0.1762, 0.2721), (-0.212, -0.2616, -0.7177)),
        (0.0, 0.0, 0.0),
    ),
    0.13025: (
        ((0.3651, 0.4232, 0.4341), (-0.2533, -0.0042, 0.1068), (0.1076, 0.1111, -0.0362), (-0.3165, -0.2492, -0.2188)),
        (0.1084, -0.0175, -0.0011),
    ),
}


def to_vae(x: Tensor, latent: LatentConfig) -> Tensor:
    """The diffusion's latent (batch, channels, h, w) → the autoencoder's."""
    z = x / latent.scale
    if latent.mean is not None and latent.std is not None:
        mean, std = (
            torch.tensor(v, dtype=x.dtype, device=x.device)[None, :, None, None] for v in (latent.mean, latent.std)
        )
        z = z * std + mean
    return z


def from_vae(z: Tensor, latent: LatentConfig) -> Tensor:
    """The autoencoder's latent → the diffusion's; the inverse of `to_vae`."""
    if latent.mean is not None and latent.std is not None:
        mean, std = (
            torch.tensor(v, dtype=z.dtype, device=z.device)[None, :, None, None] for v in (latent.mean, latent.std)
        )
        z = (z - mean) / std
    return z * latent.scale


def cropped(latent: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of a latent; of an odd rest the larger half is cut off behind."""
    below, beside = (full - wanted for full, wanted in zip(latent.shape[2:], size, strict=True))
    upper, left = below // 2, beside // 2
    return latent[:, :, upper : upper + size[0], left : left + size[1]]


@torch.no_grad()
def decode(
    vae: Autoencoder,
    x: Tensor,
    latent: LatentConfig,
    dtype: torch.dtype,
    before_call: Callable[[], None] = lambda: None,
    room: int | None = None,
) -> Tensor:
    """The picture of a latent x (1, channels, h, w): (1, 3, height, width) in -1 to 1 and a little beyond.

    SDXL's VAE overflows in float16: where the result is not finite in half precision it is made again in float32.
    before_call is called before each run of the VAE, and may raise to stop. room: bytes of maps at once, for decoding in
    bands; None decodes the picture whole.
    Raises NotFinite where float32 does not help either.
    """
    z = to_vae(x, latent)

    def made(dtype: torch.dtype) -> Tensor:
        before_call()
        given = z.to(dtype)
        return vae.decode(given) if room is None else decode_in_bands(vae, given, room, before_call)

    return _guarded(made, dtype, lambda picture: picture)


@torch.no_grad()
def encode(
    vae: Autoencoder,
    picture: Tensor,
    dtype: torch.dtype,
    before_call: Callable[[], None] = lambda: None,
    room: int | None = None,
) -> LatentDistribution:
    """The autoencoder's latents of a picture (1, 3, height, width) in -1 to 1; `from_vae` makes them the diffusion's.

    Guarded as `decode` is, and likewise before_call, room (beside the picture's own bytes) and NotFinite.
    """

    def made(dtype: torch.dtype) -> LatentDistribution:
        before_call()
        given = picture.to(dtype)
        if room is None or isinstance(vae, TinyVAE):  # whose maps are small
            return vae.encode(given)
        return encode_in_bands(vae, given, room, before_call)

    return _guarded(made, dtype, lambda found: torch.cat([found.mean, found.log_variance]))


Made = TypeVar("Made")


def _guarded(make: Callable[[torch.dtype], Made], dtype: torch.dtype, numbers: Callable[[Made], Tensor]) -> Made:
    """What the VAE makes in `dtype`, or in float32 where its numbers are not finite in half precision.

    Raises NotFinite where float32 does not help either.
    """
    made = make(dtype)
    if dtype.itemsize < 4 and not _finite(numbers(made)):
        made = make(torch.float32)
    if not _finite(numbers(made)):
        raise NotFinite(
            f"the VAE returned NaN or infinity, in {numbers(made).dtype} too; "
            "the VAE's weights are damaged: give another with --vae"
        )
    return made


def _finite(x: Tensor) -> bool:
    return bool(x.isfinite().all())


def to_pixels(picture: Tensor) -> Pixels:
    """(1, 3, height, width) in -1 to 1 → (height, width, 3) of 0 to 255, cut off, not rounded, as AUTOMATIC1111 does."""
    scaled = ((picture[0].float() + 1) / 2).clamp(0, 1) * 255
    return np.ascontiguousarray(scaled.permute(1, 2, 0).cpu().numpy().astype(np.uint8))


def preview(x0: Tensor, latent: LatentConfig) -> Pixels:
    """A rough picture of a latent, one pixel a latent cell: (h, w, 3). Grey where the latent space is unknown."""
    if latent.scale in PREVIEW and x0.shape[1] == 4 and latent.mean is None:
        factors, bias = (torch.tensor(values) for values in PREVIEW[latent.scale])
        picture = torch.einsum("bchw,cr->brhw", x0.float().cpu(), factors) + bias[None, :, None, None]
    else:
        grey = x0.float().cpu().mean(dim=1, keepdim=True)
        picture = (grey / (3 * grey.std() + 1e-6)).expand(-1, 3, -1, -1)
    return to_pixels(picture)


def draw_preview(x0: Tensor, spec: ModelSpec, decoder: Autoencoder | None, dtype: torch.dtype) -> Pixels:
    """The picture of a latent of a model, as far as it is known: at full size by a tiny decoder or the model's own, without
    one as `preview`.

    On a processor in bands, as low as they can be: it is drawn in the midst of a run, beside what that keeps.
    Raises NotFinite where the latent is not finite.
    """
    if decoder is None:
        return preview(x0, spec.latent_space)
    room = None
    if x0.device.type == "cpu":
        room = least_room(decoder.config, x0.shape[2], x0.shape[3], max(4, dtype.itemsize))
    native.give_back()  # of the UNet's
    try:
        latent = spec.tiny_latent if isinstance(decoder, TinyVAE) else spec.latent_space
        return to_pixels(decode(decoder, x0, latent, dtype, room=room))
    finally:
        native.give_back()
