"""Latent consistency models: 50 timesteps, boundary scaling, sampler; against diffusers and by AUTOMATIC1111's rules."""

from __future__ import annotations

from collections.abc import Callable
from math import hypot, log
from typing import Any

import pytest
import torch
from diffusers import LCMScheduler
from torch import Tensor

from avila_diffusion.config import NoiseConfig, Prediction
from avila_diffusion.sampling.denoiser import Cond, Consistency, Denoiser
from avila_diffusion.sampling.guidance import classifier_free_guidance
from avila_diffusion.sampling.lcm import lcm_denoiser, lcm_table
from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES
from avila_diffusion.sampling.samplers import sample
from avila_diffusion.sampling.schedules import NoiseTable, sampler_sigmas

# diffusers hands tensors to numpy in ways that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

Driver = Callable[..., Tensor]
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def formula(x: Tensor, t: Tensor, context: Tensor | None = None, **_: object) -> Tensor:
    """A formula for a network."""
    return 0.9 * torch.tanh(x) + 0.05 * torch.cos(t.to(x.dtype) / 100).reshape(-1, 1, 1, 1)


def wave(scale: float) -> Tensor:
    return (scale * torch.sin(0.1 * (torch.arange(64, dtype=torch.float64) + 1))).reshape(1, 4, 4, 4)


def test_the_fifty_timesteps(table: NoiseTable) -> None:
    own = lcm_table(table)
    assert torch.equal(own.sigmas, table.sigmas[torch.arange(19, 1000, 20)])
    assert len(own.sigmas) == 50
    for index in (0, 7, 49):
        t = 20 * index + 19
        assert float(own.sigma_to_t(own.sigmas[index])) == t
        assert float(own.t_to_sigma(t)) == own.sigmas[index]
    assert lcm_table(own) is own


def test_a_level_is_taken_for_the_nearest_in_its_logarithm(table: NoiseTable) -> None:
    own = lcm_table(table)
    low, high = own.sigmas[30].item(), own.sigmas[31].item()
    middle = (low * high) ** 0.5
    assert float(own.sigma_to_t(middle * 0.9999)) == 619
    assert float(own.sigma_to_t(middle * 1.0001)) == 639
    # Nearer to the upper one by the difference, but not by the ratio.
    assert middle < (low + high) / 2
    assert own.sigma_to_t(torch.tensor([1e-3, 100.0])).tolist() == [19, 999]
    # A timestep between two is a level between theirs.
    assert float(own.t_to_sigma(629)) == pytest.approx(middle, rel=1e-12)
    assert own.t_to_sigma(torch.tensor([-5.0, 3000.0])).tolist() == [own.sigma_min, own.sigma_max]


def test_the_levels_of_a_run(table: NoiseTable) -> None:
    """Uniform over the 50: from timestep 999 to 19, in equal steps of time; other schedules between these ends."""
    sigmas = sampler_sigmas(SAMPLERS["lcm"], SCHEDULES["automatic"], 4, table)
    own = table.sigmas[19::20].log()
    expected = []
    for place in (49.0, 49 * 2 / 3, 49 / 3, 0.0):
        low = min(int(place), 48)
        expected.append(float((own[low] + (place - low) * (own[low + 1] - own[low])).exp()))
    torch.testing.assert_close(sigmas, torch.tensor([*expected, 0.0], dtype=torch.float64), rtol=1e-12, atol=0)
    karras = sampler_sigmas(SAMPLERS["lcm"], SCHEDULES["karras"], 4, table)
    torch.testing.assert_close(karras[[0, 3]], table.sigmas[[999, 19]], rtol=1e-12, atol=0)
    assert torch.equal(sampler_sigmas(SAMPLERS["lcm"], SCHEDULES["automatic"], 4, lcm_table(table)), sigmas)


@pytest.mark.parametrize(
    ("steps", "first", "count"), [(1000, 19, 50), (1100, 21, 50), (1030, 49, 50), (60, 10, 50), (12, 0, 12)]
)
def test_other_lengths_of_the_training(steps: int, first: int, count: int) -> None:
    table = NoiseTable.from_config(NoiseConfig(steps=steps))
    own = lcm_table(table)
    assert len(own.sigmas) == count
    assert float(own.sigma_to_t(own.sigma_min)) == first
    assert float(own.sigma_to_t(own.sigma_max)) == steps - 1
    assert own.sigma_min == table.sigmas[first]


def test_levels_without_timesteps_stay() -> None:
    table = NoiseTable.from_config(NoiseConfig(prediction="edm"))
    denoiser = Denoiser(formula, table, "edm", torch.float64)
    assert lcm_table(table) is table
    assert lcm_denoiser(denoiser) is denoiser


@pytest.mark.parametrize("t", [19, 499, 999])
def test_the_boundary_scaling_is_diffusers(t: int) -> None:
    scheduler: Any = LCMScheduler(**SD)
    c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(t)
    assert Consistency().shares(t) == pytest.approx((c_skip, c_out), rel=1e-12)
    assert Consistency().shares(0) == (1.0, 0.0)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("sigma", [14.6146, 3.3, 0.25])
def test_a_prediction_by_hand(sigma: float, prediction: Prediction, table: NoiseTable) -> None:
    """The network is told the nearest of the 50; x0 is scaled by its own level; x is what has noise of sigma."""
    nearest = min(range(19, 1000, 20), key=lambda t: abs(log(sigma / table.sigmas[t].item())))
    x, total = wave(sigma), hypot(1, sigma)
    output = formula(x / total, torch.tensor(float(nearest)))
    x0 = x - sigma * output if prediction == "epsilon" else x / total**2 - sigma / total * output
    scaled = 10 * nearest
    expected = scaled / (scaled**2 + 0.25) ** 0.5 * x0 + 0.25 / (scaled**2 + 0.25) * x
    denoiser = lcm_denoiser(Denoiser(formula, table, prediction, torch.float64))
    (got,) = denoiser.predict(x, sigma, [Cond(torch.zeros(1, 1, 1))])
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_live_lcm(n: int, table: NoiseTable, drive: Driver) -> None:
    """diffusers' steps on its own timesteps. It takes c_skip of the scaled x, which is 7e-6 of it at most."""
    scheduler: Any = LCMScheduler(**SD)
    scheduler.alphas_cumprod = 1 / (1 + table.sigmas**2)
    scheduler.set_timesteps(n)
    assert set(scheduler.timesteps.tolist()) <= set(range(19, 1000, 20))
    theirs, generator = wave(1.0), torch.Generator().manual_seed(3)
    for t in scheduler.timesteps:
        theirs = scheduler.step(formula(theirs, t), t, theirs, generator=generator).prev_sample
    generator = torch.Generator().manual_seed(3)

    def noise(sigma: float, sigma_next: float) -> Tensor:
        return torch.randn(1, 4, 4, 4, generator=generator, dtype=torch.float64)

    sigmas = torch.cat([table.sigmas[scheduler.timesteps], torch.zeros(1, dtype=torch.float64)])
    denoiser = lcm_denoiser(Denoiser(formula, table, "epsilon", torch.float64))
    denoise = classifier_free_guidance(denoiser, Cond(torch.zeros(1, 1, 1)), None, 1.0)
    run = sample(SAMPLERS["lcm"], wave(1.0) * hypot(1, sigmas[0]), sigmas, noise)
    torch.testing.assert_close(drive(run, denoise), theirs, rtol=0, atol=1e-6)
