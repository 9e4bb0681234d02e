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

RUNS = {  # of the record, with the sampler's key here
    "euler": "euler", "euler_ancestral": "euler_ancestral", "euler_ancestral_eta0.5": "euler_ancestral", "heun": "heun",
    "dpm_2": "dpm_2", "dpm_2_ancestral": "dpm_2_ancestral", "lms": "lms", "dpmpp_2s_ancestral": "dpmpp_2s_ancestral",
    "dpmpp_sde": "dpmpp_sde", "dpmpp_2m": "dpmpp_2m", "dpmpp_2m_sde_midpoint": "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun": "dpmpp_2m_sde_heun", "dpmpp_3m_sde": "dpmpp_3m_sde",
}  # fmt: skip
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
    info = SAMPLERS[RUNS[name]]
    options = {option: value for option, value in run["kwargs"].items() if option != "solver_type"}
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

    got = drive(FUNCTIONS[info.key](wave(float(sigmas[0])), sigmas, counting, **options), watching)
    assert (made, drawn) == (run["model_calls"], run["noise_calls"])
    assert made == calls(info, sigmas)
    close(got.flatten()[:16], run["first16"], 1e-9)
    close(got.abs().sum(), run["abs_sum"], 1e-9)
    close(torch.tensor(list(trace.values()), dtype=torch.float64), run["trace_sigma_xabs_denabs"], 1e-9)


def in_k_diffusion(
    k_diffusion: ModuleType, table: NoiseTable, name: str, x: Tensor, levels: Any, noise: StepNoise, **options: Any
) -> Any:
    """A run in k-diffusion's own code in float64. levels: what stands after x there, and `noise` is all its noise."""
    model = k_diffusion.external.DiscreteEpsDDPMDenoiser(
        lambda x, t: formula(x, t), 1 / (1 + table.sigmas**2), quantize=False
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda like: noise(0.0, 0.0))
        torch.set_default_dtype(torch.float64)  # its constants would be float32
        try:
            return getattr(k_diffusion.sampling, f"sample_{name}")(model, x, *levels, disable=True, **options)
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("n", [1, 2, 3, 14])
@pytest.mark.parametrize("schedule", ["karras", "sgm_uniform"])
@pytest.mark.parametrize(
    ("key", "options"),
    [("euler", {}), ("heun", {}), ("dpm_2", {}), ("dpmpp_2m", {}), ("lms", {}),
     ("euler", {"s_churn": 3.0}), ("heun", {"s_churn": 100.0, "s_noise": 1.1}),
     ("dpm_2", {"s_churn": 2.0, "s_tmin": 0.1, "s_tmax": 5.0}), ("euler", {"s_churn": 9.0, "s_tmax": 2.0}),
     *((key, options) for key in ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde",
                                  "dpmpp_2m_sde_heun", "dpmpp_3m_sde")
       for options in ({}, {"eta": 0.3, "s_noise": 1.2}, {"eta": 1.7, "s_noise": 0.9}, {"eta": 0.0}))],
)  # fmt: skip
def test_live_k_diffusion(
    key: str, options: dict[str, float], schedule: str, n: int, table: NoiseTable,
    k_diffusion: ModuleType, formula_noise: MakeNoise, drive: Driver,
) -> None:  # fmt: skip
    sigmas = sampler_sigmas(SAMPLERS[key], SCHEDULES[schedule], n, table)
    x = wave(float(sigmas[0]))
    name, extra = key, noise_of(key, formula_noise)
    if n == 1 and key in ("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"):
        # k-diffusion fails with an error where the first step goes to 0. What is left of the formula is x0.
        denoise = unguided(formula, table)
        ours = drive(FUNCTIONS[key](x, sigmas, no_noise, **options), denoise)
        close(ours, denoise(Call(x, float(sigmas[0]), 0)).x0, 1e-12)
        return
    if key.startswith("dpmpp_2m_sde"):
        name, extra = "dpmpp_2m_sde", {**extra, "solver_type": "heun" if key.endswith("heun") else "midpoint"}
    theirs = in_k_diffusion(k_diffusion, table, name, x, [sigmas], formula_noise(), **extra, **options)
    ours = drive(FUNCTIONS[key](x, sigmas, formula_noise(), **options), unguided(formula, table))
    close(ours, theirs, 1e-9)


def noise_of(key: str, formula_noise: MakeNoise) -> dict[str, Any]:
    """What k-diffusion must be given so that its Brownian samplers do not build a tree."""
    return {"noise_sampler": formula_noise()} if SAMPLERS[key].brownian else {}


@pytest.mark.parametrize("ends_in_zero", [True, False])
@pytest.mark.parametrize(("key", "n"), [*(("dpm_fast", n) for n in (1, 2, 3, 4, 5, 12)), ("dpm_adaptive", 5)])
@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"eta": 0.4, "s_noise": 1.2}, {"eta": 1.7}])
def test_live_dpm_solver(
    key: str, n: int, ends_in_zero: bool, options: dict[str, float], table: NoiseTable,
    k_diffusion: ModuleType, formula_noise: MakeNoise, drive: Driver,
) -> None:  # fmt: skip
    """From the first level to the lowest above 0, whatever the levels between are."""
    low, zero = 0.05, int(ends_in_zero and n > 1)
    sigmas = torch.linspace(14.0, low, n + 1 - zero, dtype=torch.float64)
    sigmas = torch.cat([sigmas, sigmas.new_zeros(zero)])
    x, made, denoise = wave(14.0), 0, unguided(formula, table)

    def counting(call: Call) -> Denoised:
        nonlocal made
        made += 1
        return denoise(call)

    levels = [low, 14.0, n] if key == "dpm_fast" else [low, 14.0]
    extra = {} if key == "dpm_fast" else {"return_info": True}
    theirs = in_k_diffusion(k_diffusion, table, key, x, levels, formula_noise(), **extra, **options)
    ours = drive(FUNCTIONS[key](x, sigmas, formula_noise(), **options), counting)
    if key == "dpm_adaptive":
        theirs, info = theirs
        assert made == info["nfe"]
    else:
        assert made == n
    close(ours, theirs, 1e-9)


@pytest.mark.parametrize("key", ["dpm_fast", "dpm_adaptive"])
def test_recorded_dpm_solver(key: str, table: NoiseTable, k_oracle: dict[str, Any], drive: Driver) -> None:
    run = k_oracle["runs"][key]
    sigmas = torch.linspace(run["args"]["sigma_max"], run["args"]["sigma_min"], 11, dtype=torch.float64)
    made, denoise = 0, unguided(formula, table)

    def counting(call: Call) -> Denoised:
        nonlocal made
        made += 1
        return denoise(call)

    got = drive(FUNCTIONS[key](wave(float(sigmas[0])), sigmas, no_noise), counting)
    assert made == run["model_calls"]
    # The record's limits of error were float32, and move the adaptive steps a little.
    tolerance = 1e-9 if key == "dpm_fast" else 1e-7
    close(got.flatten()[:16], run["first16"], tolerance)
    close(got.abs().sum(), run["abs_sum"], tolerance)


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
