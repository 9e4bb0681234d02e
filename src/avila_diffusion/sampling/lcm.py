"""Latent consistency models as AUTOMATIC1111 runs them: 50 timesteps, and a boundary scaling around x0.

Luo et al. 2023, arXiv:2310.04378. The models are distilled on every 20th timestep of their teacher and are asked about no
other: a level is taken for the nearest of these.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .denoiser import Consistency, Denoiser
from .tables import NoiseTable

TIMESTEPS = 50


@dataclass(frozen=True, eq=False)
class LcmTable(NoiseTable):
    """The levels that the model was distilled on. first, stride: the training timestep of the lowest, and from one to
    the next.
    """

    first: int = 19
    stride: int = 20

    def t_to_sigma(self, t: Tensor | float) -> Tensor:
        """Noise level at a timestep; between two of the 50, ln(sigma) is interpolated."""
        return self.at((torch.as_tensor(t, dtype=torch.float64) - self.first) / self.stride)

    def sigma_to_t(self, sigma: Tensor | float) -> Tensor:
        """The nearest of the 50 timesteps, by ln(sigma)."""
        return self.nearest_t(sigma) * self.stride + self.first


def lcm_table(table: NoiseTable) -> NoiseTable:
    """Every 20th level of a table of 1000, down from the top (timesteps 999, 979, …, 19).

    Levels without timesteps (EDM) stay as they are; so does a table that is one of these.
    """
    if table.continuous or isinstance(table, LcmTable):
        return table
    steps = len(table.sigmas)
    stride = max(steps // TIMESTEPS, 1)
    first = max(steps - 1 - (TIMESTEPS - 1) * stride, 0)
    return LcmTable(table.sigmas[first::stride], first=first, stride=stride)


def lcm_denoiser(denoiser: Denoiser) -> Denoiser:
    """The same network asked as a latent consistency model."""
    if denoiser.table.continuous:
        return denoiser
    return replace(denoiser, table=lcm_table(denoiser.table), consistency=Consistency())
