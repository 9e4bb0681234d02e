"""The full loops that diffusers' own tests publish, walked by these samplers.

Two of theirs end with a step from a level to itself, which changes nothing and is left out.

Not among them, as another algorithm: PNDM (starts with Runge-Kutta steps), DEIS (in the model's own ln(rho), of order 2),
SA-Solver (orders 2 and 2, with an addition to them), UniPC but for its loops of two steps (order 2), IPNDM (levels of its own
that begin at infinity), single-step DPM-Solver++ (its middle is a level of the grid), DPM-Solver SDE (noise by torchsde),
dynamic thresholding, inverse samplers, UnCLIP. LMS is not, because these tests hand the scaled input to the step, which a
sampler with a memory cannot be made to see.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from math import hypot, prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from avila_diffusion.config import NoiseConfig
from avila_diffusion.sampling.denoiser import Consistency
from avila_diffusion.sampling.guidance import Call, Denoised
from avila_diffusion.sampling.names import SAMPLERS
from avila_diffusion.sampling.samplers import Options, sample
from avila_diffusion.sampling.schedules import NoiseTable

Driver = Callable[..., Tensor]
LOOPS = json.loads((Path(__file__).parent / "published_loops.json").read_text(encoding="utf-8"))["loops"]


def ramp(shape: list[int]) -> Tensor:
    """0 to 1 in one row, the batch running fastest."""
    batch, *rest = shape
    values = torch.arange(prod(shape), dtype=torch.float64) / prod(shape)
    return values.reshape(*rest, batch).movedim(-1, 0)


def x0_of(loop: dict[str, Any], x: Tensor, sigma: float, t: float) -> Tensor:
    """The prediction that their formula for a network, model(x, t) = x t / (t + 1), makes of x0 + sigma noise."""
    total = hypot(1, sigma)
    # Their sigma schedulers are handed an input that is scaled already.
    output = (x if loop["input_scaled"] else x / total) * t / (t + 1)
    if loop["prediction"] == "epsilon":
        return x - sigma * output
    return x / total**2 - sigma / total * output


def rounded_table(config: NoiseConfig) -> NoiseTable:
    """Their alphas are float32, which shows at the lowest levels."""
    power = 0.5 if config.beta_schedule == "scaled_linear" else 1.0
    betas = torch.linspace(config.beta_start**power, config.beta_end**power, config.steps) ** (1 / power)
    return NoiseTable.from_config(config, torch.cumprod(1 - betas, dim=0))


def levels_of(loop: dict[str, Any], table: NoiseTable) -> Tensor:
    if loop["levels"] is not None:
        return torch.tensor(loop["levels"], dtype=torch.float64)
    timesteps = list(reversed(range(len(table.sigmas)))) if loop["told"] == "all" else loop["told"]
    end = 0.0 if loop["ends_at_zero"] else table.sigma_min
    return torch.cat([table.sigmas[timesteps], torch.tensor([end], dtype=torch.float64)])


def first_latent(loop: dict[str, Any], sigma: float) -> Tensor:
    """In x0 + sigma noise, but for the sigma schedulers, which get what they are to scale first."""
    x = ramp(loop["shape"])
    noise = x.max() - x
    if loop["noised_to"] is not None:
        return x * float(loop["init_noise_sigma"]) + sigma * noise
    return x * float(loop["init_noise_sigma"] if loop["input_scaled"] else hypot(1, sigma))


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop["test"].partition("::")[2])
def test_published_loop(loop: dict[str, Any], drive: Driver) -> None:
    table = rounded_table(NoiseConfig(**loop["noise"]))
    sigmas, info = levels_of(loop, table), SAMPLERS[loop["sampler"]]
    told: Iterator[float] = iter(reversed(range(1000)) if loop["told"] == "all" else loop["told"])
    generator = torch.Generator().manual_seed(0)
    options = Options(eta=0.0) if loop["sampler"] in ("tcd", "ddim") else Options()

    def noise(sigma: float, sigma_next: float) -> Tensor:
        return torch.randn(loop["shape"], generator=generator).double()

    def denoise(call: Call) -> Denoised:
        t = next(told)
        if loop["sampler"] == "lcm":
            skip, out = Consistency().shares(t)
            return Denoised(out * x0_of(loop, call.x, call.sigma, t) + skip * call.x / hypot(1, call.sigma))
        if loop["sampler"] in ("ddim", "ddpm"):
            return Denoised(x0_of(loop, call.x, call.sigma, t).clamp(-1, 1))
        return Denoised(x0_of(loop, call.x, call.sigma, t))

    x = first_latent(loop, float(sigmas[0]))
    if loop["input_scaled"]:
        for pair in pairwise(sigmas):
            x = drive(
                sample(info, x / hypot(1, pair[0]), torch.stack(pair), noise), rescaling(loop, float(pair[0]), told)
            )
    else:
        x = drive(sample(info, x, sigmas, noise, table=table, options=options), denoise)
        if info.ends == "zero" and loop["sampler"] != "tcd":
            x = x / hypot(1, sigmas[-1])
    assert next(told, None) is None
    # From timestep 1 to 0 their 1 - a / a_prev is 1.2e-4, of which float32 leaves three digits.
    lowest = loop["told"] == [1, 0]
    for name, got in (("sum", x.abs().sum()), ("mean", x.abs().mean())):
        if loop[name] is not None:
            value, tolerance = loop[name]["value"], loop[name]["tol"]
            assert abs(got.item() - value) <= (3 if lowest else 1) * tolerance
    first = torch.tensor(loop["first16"], dtype=torch.float64)
    assert (x.flatten()[:16] - first).abs().max() <= (1e-4 if lowest else 2e-5) * max(1.0, first.abs().max().item())


def rescaling(loop: dict[str, Any], sigma_first: float, told: Iterator[float]) -> Callable[[Call], Denoised]:
    """A second call in the step scales its input again; what counts is the slope that the scaled input gets."""

    def denoise(call: Call) -> Denoised:
        scaled = call.x if call.sigma == sigma_first else call.x / hypot(1, call.sigma)
        return Denoised(call.x - (scaled - x0_of(loop, scaled, call.sigma, next(told))))

    return denoise
