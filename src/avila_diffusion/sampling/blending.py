"""Inpainting with any model: what is to be kept is put back at every call. Functions from `Denoise` to `Denoise`.

keep: (1, 1, h, w), 1 where the latent stays, 0 where it is painted, between where it is half painted. latent: what stays,
(1, channels, h, w), as the network sees latents, without noise.
"""

from __future__ import annotations

from dataclasses import replace
from math import hypot

from torch import Tensor

from .guidance import Call, Denoise, Denoised


def blend(painted: Tensor, latent: Tensor, keep: Tensor) -> Tensor:
    """`latent` where `keep` is 1, `painted` where it is 0."""
    return painted * (1 - keep) + latent * keep


def blend_after(denoise: Denoise, latent: Tensor, keep: Tensor) -> Denoise:
    """The predicted x0 has the kept latent: AUTOMATIC1111's samplers that walk noise levels."""

    def blended(call: Call) -> Denoised:
        found = denoise(call)
        return replace(found, x0=blend(found.x0, latent, keep))

    return blended


def blend_before(denoise: Denoise, latent: Tensor, keep: Tensor) -> Denoise:
    """The network sees the kept latent, without noise: AUTOMATIC1111's samplers that walk timesteps.

    Those see variance-preserving latents, in which the blend is made. What they take of the answer is the predicted noise.
    """

    def blended(call: Call) -> Denoised:
        x = blend(call.x, latent * hypot(1, call.sigma), keep)
        found = denoise(replace(call, x=x))
        moved = call.x - x  # (x - x0) / sigma is the same for both
        return Denoised(found.x0 + moved, None if found.uncond is None else found.uncond + moved)

    return blended


def blend_renoised(denoise: Denoise, latent: Tensor, keep: Tensor, noise: Tensor) -> Denoise:
    """The network sees the kept latent noised to the call's level, with the run's own first noise, and the predicted x0
    has it without: ComfyUI's way."""

    def blended(call: Call) -> Denoised:
        found = denoise(replace(call, x=blend(call.x, latent + noise * call.sigma, keep)))
        return replace(found, x0=blend(found.x0, latent, keep))

    return blended
