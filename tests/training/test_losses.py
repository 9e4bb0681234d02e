"""Losses and weights against torch's distributions, diffusers' schedulers and values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.training_utils import compute_snr
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from avila_diffusion.config import NoiseConfig
from avila_diffusion.models.vae import LatentDistribution
from avila_diffusion.sampling.schedules import NoiseTable
from avila_diffusion.training.losses import add_noise, kl_divergence, min_snr_weight, reconstruction, ssim, target

rng = torch.Generator().manual_seed(5)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def test_kl_is_that_of_torch_and_of_diffusers() -> None:
    mean, log_variance = normal(3, 4, 5, 5), normal(3, 4, 5, 5)
    ours = kl_divergence(LatentDistribution(mean, log_variance))
    unit = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(ours, torch_kl(Normal(mean, (0.5 * log_variance).exp()), unit))
    theirs = DiagonalGaussianDistribution(torch.cat([mean, log_variance], dim=1)).kl()
    torch.testing.assert_close(ours.sum(dim=(1, 2, 3)), theirs)
    assert float(ours.mean()) > 0.5


def test_kl_of_the_unit_normal_is_nothing() -> None:
    zeros = torch.zeros(1, 4, 2, 2)
    assert float(kl_divergence(LatentDistribution(zeros, zeros)).abs().max()) == 0


def test_noisy_latents_and_targets_are_those_of_diffusers() -> None:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    table = NoiseTable.from_config(NoiseConfig())
    x0, noise = normal(6, 4, 3, 3), normal(6, 4, 3, 3)
    t = torch.tensor([0, 1, 250, 500, 900, 999])
    sigma = table.t_to_sigma(t.double())
    scheduler.alphas_cumprod = (1 / (1 + table.sigmas.square())).double()
    torch.testing.assert_close(add_noise(x0, noise, sigma), scheduler.add_noise(x0, noise, t))
    torch.testing.assert_close(target(x0, noise, sigma, "v"), scheduler.get_velocity(x0, noise, t))
    assert target(x0, noise, sigma, "epsilon") is noise


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_those_of_diffusers_training(gamma: float) -> None:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    table = NoiseTable.from_config(NoiseConfig())
    t = torch.arange(0, 1000, 37)
    snr = compute_snr(scheduler, t).double()
    sigma = table.t_to_sigma(t.double())
    capped = torch.minimum(snr, torch.full_like(snr, gamma))
    torch.testing.assert_close(min_snr_weight(sigma, "epsilon", gamma), capped / snr, rtol=1e-4, atol=0)
    torch.testing.assert_close(min_snr_weight(sigma, "v", gamma), capped / (snr + 1), rtol=1e-4, atol=0)
    assert float(min_snr_weight(sigma, "v", None).std()) == 0


def test_min_snr_by_hand() -> None:
    sigma = torch.tensor([1.0, 0.5, 0.1])  # SNR 1, 4, 100
    expected = torch.tensor([1.0, 1.0, 0.05])
    torch.testing.assert_close(min_snr_weight(sigma, "epsilon", 5.0), expected)
    torch.testing.assert_close(min_snr_weight(sigma, "v", 5.0), torch.tensor([1 / 2, 4 / 5, 5 / 101]))


def test_ssim_is_1_for_equal_pictures_and_as_by_the_definition_for_flat_ones() -> None:
    x = normal(2, 3, 32, 32)
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64))
    black, grey = torch.full((1, 3, 16, 16), -1.0), torch.zeros(1, 3, 16, 16)
    c1 = 0.02**2
    torch.testing.assert_close(ssim(black, grey), torch.tensor([c1 / (1 + c1)]), rtol=1e-3, atol=1e-6)


def test_ssim_against_its_definition_at_one_window() -> None:
    """An 11x11 picture has one window; its weighted moments are worked out without convolutions."""
    x, y = normal(1, 1, 11, 11), normal(1, 1, 11, 11)
    places = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-places.square() / (2 * 1.5**2))
    weights = torch.outer(line, line)
    weights = weights / weights.sum()

    def mean(values: torch.Tensor) -> float:
        return float((weights * values[0, 0]).sum())

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.02**2, 0.06**2
    expected = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert math.isclose(float(ssim(x, y)), expected, rel_tol=1e-9)


def test_reconstruction_at_several_sizes_by_hand() -> None:
    made = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])[None, None].repeat(1, 3, 1, 1)
    wanted = torch.zeros_like(made)
    assert float(reconstruction(made, wanted, "l1")) == 1
    assert float(reconstruction(made, wanted, "l1", scales=2)) == 0.5  # the half-size pictures are both grey
    assert float(reconstruction(2 * made, wanted, "l2")) == 4
