"""Noise levels of the samplers that walk the training timesteps instead of a schedule (AUTOMATIC1111)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import RequestError
from .tables import NoiseTable


def ddim_grid(n: int, table: NoiseTable) -> Tensor:
    """DDIM's timesteps: 1, 1 + stride, …, the lowest a place to end and not to start from (AUTOMATIC1111).

    20 steps make 19 calls, 30 (stride 33) make 30; above half the table the top timestep comes twice, clipped; that
    call changes nothing. One step would be no call at all: it goes from the top of the table to timestep 1 here.
    """
    timesteps = _timesteps(n, table)
    if len(timesteps) == 1:
        timesteps.append(len(table.sigmas) - 1)
    return table.sigmas[timesteps].flip(0)


def unipc_grid(n: int, table: NoiseTable) -> Tensor:
    """UniPC's levels: from the top of the table to the bottom in as many equal steps of time as DDIM has timesteps.

    20 steps make 20 calls, 30 (stride 33) make 31.
    """
    return _equal_times(len(table.sigmas) - 1, len(_timesteps(n, table)), table)


def unipc_image_grid(n: int, run: int, table: NoiseTable) -> tuple[Tensor, float]:
    """(levels to walk, level that the picture is noised to) of UniPC's image to image.

    n: steps of the whole grid. run: how many are run on the picture, see `schedules.image_steps`. From DDIM's timestep
    below the one that the picture is noised to, in `run` equal steps of time.
    """
    timesteps = _timesteps(n, table)
    if not 1 <= run < len(timesteps):
        raise RequestError(
            f"UniPC cannot run {run} of {n} steps on a picture; at least 1 and at most {n - 1} are needed"
        )
    return _equal_times(timesteps[run - 1], run, table), float(table.sigmas[timesteps[run]])


def _timesteps(n: int, table: NoiseTable) -> list[int]:
    """From 1 up, in strides of a whole number."""
    if n < 1:
        raise RequestError(f"{n} steps make no run; at least 1 is needed")
    top = len(table.sigmas) - 1
    return [min(t + 1, top) for t in range(0, top + 1, max((top + 1) // n, 1))]


def _equal_times(start: int, n: int, table: NoiseTable) -> Tensor:
    """n + 1 levels, evenly spaced in time, from timestep `start` to 0.

    Between two timesteps ln(alpha) is interpolated (Lu et al. 2022, DPM-Solver, arXiv:2206.00927).
    """
    log_alpha = -0.5 * torch.log1p(table.sigmas**2)
    t = torch.linspace(start, 0, n + 1, dtype=torch.float64)
    low = t.floor().long().clamp(max=len(log_alpha) - 2)
    between: Tensor = log_alpha[low] + (t - low) * (log_alpha[low + 1] - log_alpha[low])
    return torch.expm1(-2 * between).sqrt()


GRIDS = {"ddim": ddim_grid, "unipc": unipc_grid}
"""Grid of a sampler's row → its levels for n steps; the others follow a schedule."""
