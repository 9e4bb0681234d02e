"""The samplers against the same algorithms elsewhere: k-diffusion and diffusers, recorded and live."""

from __future__ import annotations

from collections.abc import Callable
from math import hypot
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
)
from torch import Tensor

from avila_diffusion.config import NoiseConfig, Prediction
from avila_diffusion.sampling.denoiser import Cond, Denoiser
from avila_diffusion.sampling.guidance import Call, Denoise, Denoised, classifier_free_guidance
from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES
from avila_diffusion.sampling.noise import StepNoise
from avila_diffusion.sampling.samplers import SAMPLERS as FUNCTIONS
from avila_diffusion.sampling.samplers import Options, sample, start
from avila_diffusion.sampling.schedules import NoiseTable, calls, sampler_sigmas, schedule_sigmas

# diffusers hands tensors to numpy in ways that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

Driver = Callable[..., Tensor]
MakeNoise = Callable[[], StepNoise]

RUNS = ("euler", "euler_ancestral", "euler_ancestral_eta0.5", "heun", "dpm_2", "dpm_2_ancestral", "dpmpp_2m")
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def formula(x: Tensor, t: Tensor, context: Tensor | None = None, **_: object) -> Tensor:
    """A formula for a network that predicts epsilon."""
    return 0.9 * torch.tanh(x) + 0.05 * torch.cos(t.to(x.dtype) / 100).reshape(-1, 1, 1, 1)


def no_noise(sigma: float, sigma_next: float) -> Tensor:
    raise AssertionError("noise was drawn")


def unguided(network: Callable[..., Tensor], table: NoiseTable, prediction: Prediction = "epsilon") -> Denoise:
    denoiser = Denoiser(network, table, prediction, torch.float64)
    return classifier_free_guidance(denoiser, Cond(torch.zeros(1, 1, 1)), None, 1.0)


def wave(scale: float) -> Tensor:
    return (scale * torch.sin(0.1 * (torch.arange(64, dtype=torch.float64) + 1))).reshape(1, 4, 4, 4)


def close(got: Tensor, expected: object, tolerance: float) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert (got.double() - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("grid", ["karras10", "discrete10"])
@pytest.mark.parametrize("name", RUNS)
def test_recorded_runs_of_k_diffusion(
    name: str, grid: str, table: NoiseTable, k_oracle: dict[str, Any], formula_noise: MakeNoise, drive: Driver
) -> None:
    """Every call's level, the size of x and of the prediction, and the final latent: the whole way but the network."""
    run = k_oracle["runs"][f"{name}|{grid}"]
    levels = (
        k_oracle["schedules_n10"]["karras"] if grid == "karras10" else k_oracle["discretization"]["get_sigmas"]["10"]
    )
    sigmas = torch.tensor(levels, dtype=torch.float64)
    info = SAMPLERS[run["sampler"].removeprefix("sample_")]
    noise, drawn, made, denoise = formula_noise(), 0, 0, unguided(formula, table)
    trace: dict[int, list[float]] = {}

    def counting(sigma: float, sigma_next: float) -> Tensor:
        nonlocal drawn
        drawn += 1
        return noise(sigma, sigma_next)

    def watching(call: Call) -> Denoised:
        nonlocal made
        made += 1
        answer = denoise(call)
        trace.setdefault(call.step, [call.sigma, call.x.abs().sum().item(), answer.x0.abs().sum().item()])
        return answer

    got = drive(FUNCTIONS[info.key](wave(float(sigmas[0])), sigmas, counting, **run["kwargs"]), watching)
    assert (made, drawn) == (run["model_calls"], run["noise_calls"])
    assert made == calls(info, sigmas)
    close(got.flatten()[:16], run["first16"], 1e-9)
    close(got.abs().sum(), run["abs_sum"], 1e-9)
    close(torch.tensor(list(trace.values()), dtype=torch.float64), run["trace_sigma_xabs_denabs"], 1e-9)


@pytest.mark.parametrize("n", [1, 2, 9, 23])
@pytest.mark.parametrize("schedule", ["karras", "sgm_uniform", "exponential"])
@pytest.mark.parametrize(
    ("key", "options"),
    [("euler", {}), ("heun", {}), ("dpm_2", {}), ("dpmpp_2m", {}), ("euler_ancestral", {}), ("dpm_2_ancestral", {}),
     ("euler_ancestral", {"eta": 0.3, "s_noise": 1.2}), ("dpm_2_ancestral", {"eta": 0.7, "s_noise": 0.9}),
     ("euler_ancestral", {"eta": 4.0}), ("dpm_2_ancestral", {"eta": 4.0})],
)  # fmt: skip
def test_live_k_diffusion(
    key: str, options: dict[str, float], schedule: str, n: int, table: NoiseTable,
    k_diffusion: ModuleType, formula_noise: MakeNoise, drive: Driver,
) -> None:  # fmt: skip
    sigmas = sampler_sigmas(SAMPLERS[key], SCHEDULES[schedule], n, table)
    model = k_diffusion.external.DiscreteEpsDDPMDenoiser(
        lambda x, t: formula(x, t), 1 / (1 + table.sigmas**2), quantize=False
    )
    x = wave(float(sigmas[0]))
    extra = {"noise_sampler": formula_noise()} if SAMPLERS[key].uses_eta else {}
    theirs = getattr(k_diffusion.sampling, f"sample_{key}")(model, x, sigmas, disable=True, **extra, **options)
    ours = drive(FUNCTIONS[key](x, sigmas, formula_noise(), **options), unguided(formula, table))
    close(ours, theirs, 1e-9)


@pytest.mark.parametrize(
    ("prediction", "mean", "second"), [("epsilon", 0.3301, 0.00344349397), ("v", 0.2251, 0.00234781113)]
)
def test_diffusers_published_loop(prediction: Prediction, mean: float, second: float, drive: Driver) -> None:
    """The mean that diffusers' tests publish for DPM-Solver++(2M), and the second value of the latent behind it.

    Linear betas, ten steps to the lowest level, a batch of four, and a formula for a network.
    """
    table = NoiseTable.from_config(NoiseConfig(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"))
    sigmas = table.sigmas[[999, 899, 799, 699, 599, 500, 400, 300, 200, 100, 0]]
    batch = (torch.arange(768, dtype=torch.float64) / 768).reshape(3, 8, 8, 4).permute(3, 0, 1, 2)

    def network(x: Tensor, t: Tensor, context: Tensor, **_: object) -> Tensor:
        return x * (t / (t + 1)).reshape(-1, 1, 1, 1)

    denoise = unguided(network, table, prediction)
    latents = []
    for image in batch.split(1):  # type: ignore[no-untyped-call]
        run = sample(SAMPLERS["dpmpp_2m"], image * hypot(1, sigmas[0]), sigmas, no_noise)
        latents.append(drive(run, denoise) / hypot(1, sigmas[-1]))
    latent = torch.cat(latents)
    assert abs(latent.abs().mean().item() - mean) < 5.1e-5
    assert abs(latent[0, 0, 0, 1].item() / second - 1) < 2e-5  # theirs is float32


def walk(scheduler: Any, x: Tensor, timesteps: Tensor, **options: Any) -> Tensor:
    """A run as diffusers' pipelines make it."""
    for t in timesteps:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(formula(scaled, t), t, x, **options).prev_sample
    return x


def in_double(scheduler: Any, table: NoiseTable) -> Any:
    """The scheduler with the levels of the table instead of float32 ones."""
    scheduler.alphas_cumprod = 1 / (1 + table.sigmas**2)
    scheduler.one = torch.ones((), dtype=torch.float64)
    return scheduler


@pytest.mark.parametrize("n", [7, 20])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_live_ddim(eta: float, n: int, table: NoiseTable, formula_noise: MakeNoise, drive: Driver) -> None:
    """AUTOMATIC1111's DDIM is diffusers' leading grid, offset 1, without the last call; float64 on both sides."""
    scheduler = in_double(DDIMScheduler(**SD, clip_sample=False, steps_offset=1), table)
    scheduler.set_timesteps(n)
    theirs, noise = wave(1.0), formula_noise()
    ddim = SAMPLERS["ddim"]
    sigmas = sampler_sigmas(ddim, SCHEDULES["automatic"], n, table)
    walked = scheduler.timesteps[-len(sigmas) :]
    if n == 7:  # here AUTOMATIC1111's stride leaves one more timestep at the top than diffusers' count
        walked = (
            torch.cat([torch.tensor([min(int(walked[0]) + 142, 999)]), walked]) if len(walked) < len(sigmas) else walked
        )
    torch.testing.assert_close(table.sigmas[walked], sigmas, rtol=1e-12, atol=0)
    for t in walked[:-1]:
        theirs = scheduler.step(
            formula(theirs, t), t, theirs, eta=eta, variance_noise=noise(0, 0) if eta else None
        ).prev_sample
    ours = drive(
        sample(ddim, start(ddim, wave(1.0), sigmas), sigmas, formula_noise(), options=Options(eta=eta)),
        unguided(formula, table),
    )
    close(ours, theirs, 1e-9)


@pytest.mark.parametrize("n", [10, 40])
def test_live_ddpm(n: int, table: NoiseTable, drive: Driver) -> None:
    scheduler = in_double(DDPMScheduler(**SD, clip_sample=False), table)
    scheduler.set_timesteps(n)
    sigmas = torch.cat([table.sigmas[scheduler.timesteps], torch.zeros(1, dtype=torch.float64)])
    x = wave(1.0)
    theirs = walk(scheduler, x, scheduler.timesteps, generator=torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)

    def noise(sigma: float, sigma_next: float) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64)

    ours = drive(sample(SAMPLERS["ddpm"], x * hypot(1, sigmas[0]), sigmas, noise), unguided(formula, table))
    close(ours, theirs, 1e-9)


@pytest.mark.parametrize("n", [8, 21])
@pytest.mark.parametrize(
    ("key", "scheduler"),
    [("euler", EulerDiscreteScheduler), ("heun", HeunDiscreteScheduler), ("dpm_2", KDPM2DiscreteScheduler),
     ("euler_ancestral", EulerAncestralDiscreteScheduler)],
)  # fmt: skip
def test_live_sigma_schedulers(key: str, scheduler: Any, n: int, table: NoiseTable, drive: Driver) -> None:
    """diffusers computes these in float32, on levels between whole timesteps that it interpolates in sigma."""
    made = scheduler(**SD, timestep_spacing="linspace")
    made.set_timesteps(n)
    sigmas = torch.unique((made.sigmas if key != "dpm_2" else made.sigmas[::2]).double()).flip(0)
    torch.testing.assert_close(sigmas, schedule_sigmas(SCHEDULES["uniform"], n, table), rtol=1e-4, atol=0)
    x = wave(float(sigmas[0]))
    options: dict[str, Any] = {"generator": torch.Generator().manual_seed(3)} if key == "euler_ancestral" else {}
    theirs = walk(made, x, made.timesteps, **options)
    generator = torch.Generator().manual_seed(3)

    def noise(sigma: float, sigma_next: float) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64)

    close(drive(sample(SAMPLERS[key], x, sigmas, noise), unguided(formula, table)), theirs, 2e-5)


@pytest.mark.parametrize("n", [8, 25])
def test_live_dpm_solver_multistep(n: int, table: NoiseTable, drive: Driver) -> None:
    made = DPMSolverMultistepScheduler(**SD, timestep_spacing="linspace", final_sigmas_type="zero")
    made.set_timesteps(n)
    sigmas = torch.cat([table.sigmas[made.timesteps], torch.zeros(1, dtype=torch.float64)])
    made.sigmas = sigmas
    x = wave(1.0)
    theirs = walk(made, x, made.timesteps)
    run = sample(SAMPLERS["dpmpp_2m"], x * hypot(1, sigmas[0]), sigmas, no_noise)
    close(drive(run, unguided(formula, table)), theirs, 1e-5)
