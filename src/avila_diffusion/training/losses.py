"""What training minimises, as functions of tensors: reconstruction, KL, SSIM, and the denoising losses and weights."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.vae import LatentDistribution

Target = Literal["epsilon", "v"]


def kl_divergence(latents: LatentDistribution) -> Tensor:
    """KL(N(mean, var) || N(0, 1)) in nats, a number for each latent: (batch, channels, h, w) (Kingma & Welling 2013)."""
    return 0.5 * (latents.mean.square() + latents.log_variance.exp() - 1.0 - latents.log_variance)


def reconstruction(made: Tensor, wanted: Tensor, kind: Literal["l1", "l2"], scales: int = 1) -> Tensor:
    """Mean difference of pictures (batch, 3, h, w), averaged over `scales` sizes, each half of the one before."""
    difference = F.l1_loss if kind == "l1" else F.mse_loss
    total = difference(made, wanted)
    for _ in range(scales - 1):
        made, wanted = F.avg_pool2d(made, 2), F.avg_pool2d(wanted, 2)
        total = total + difference(made, wanted)
    return total / scales


def ssim(x: Tensor, y: Tensor, extent: float = 2.0, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity of pictures (batch, channels, h, w), one number each, at most 1 (Wang et al. 2004).

    extent: the distance between darkest and brightest, 2 for pictures of -1 to 1. Windows are Gaussian and lie wholly
    within the picture, as the authors' own code has them.
    """
    channels = x.shape[1]
    window = min(window, *x.shape[2:])
    places = torch.arange(window, dtype=x.dtype, device=x.device) - (window - 1) / 2
    line = torch.exp(-places.square() / (2 * sigma**2))
    line = (line / line.sum()).expand(channels, 1, -1)

    def blur(t: Tensor) -> Tensor:
        t = F.conv2d(t, line[..., None], groups=channels)
        return F.conv2d(t, line[:, :, None, :], groups=channels)

    c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x.square(), blur(y * y) - mean_y.square()
    covariance = blur(x * y) - mean_x * mean_y
    similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (similar / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))).mean(dim=(1, 2, 3))


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The variance-preserving noisy latent alpha x0 + s noise, alpha = 1 / sqrt(1 + sigma²); sigma (batch,)."""
    alpha = _like(1.0 / (1.0 + sigma.square()).sqrt(), x0)
    return alpha * x0 + (alpha * _like(sigma, x0)) * noise


def target(x0: Tensor, noise: Tensor, sigma: Tensor, kind: Target) -> Tensor:
    """What the network should answer: the noise (Ho et al. 2020), or v = alpha noise - s x0 (Salimans & Ho 2022)."""
    if kind == "epsilon":
        return noise
    alpha = _like(1.0 / (1.0 + sigma.square()).sqrt(), x0)
    return alpha * noise - (alpha * _like(sigma, x0)) * x0


def min_snr_weight(sigma: Tensor, kind: Target, gamma: float | None) -> Tensor:
    """Weights of the squared error by noise level: min(SNR, gamma) counted in x0 (Hang et al. 2023, arXiv:2303.09556).

    SNR = 1 / sigma². The error of epsilon is SNR times that of x0, the error of v is SNR + 1 times it. None: all 1.
    """
    if gamma is None:
        return torch.ones_like(sigma)
    snr = sigma.double() ** -2
    per_x0 = snr if kind == "epsilon" else snr + 1.0
    return (snr.clamp(max=gamma) / per_x0).to(sigma.dtype)


def denoising_loss(
    answer: Tensor, x0: Tensor, noise: Tensor, sigma: Tensor, kind: Target, gamma: float | None
) -> Tensor:
    """Mean over the batch of each latent's mean squared error against the target, weighted by `min_snr_weight`."""
    errors = (answer - target(x0, noise, sigma, kind)).square().mean(dim=(1, 2, 3))
    return (errors * min_snr_weight(sigma, kind, gamma)).mean()


def _like(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype)[:, None, None, None]
