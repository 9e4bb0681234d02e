"""The samplers with timesteps of their own (DDIM CFG++, PLMS, UniPC, TCD), and their grids, against diffusers and by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from math import floor, hypot, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler, TCDScheduler, UniPCMultistepScheduler
from torch import Tensor

from avila_diffusion.config import NoiseConfig
from avila_diffusion.errors import RequestError
from avila_diffusion.sampling.denoiser import Cond, Denoiser
from avila_diffusion.sampling.grids import ddim_grid, unipc_grid, unipc_image_grid
from avila_diffusion.sampling.guidance import Call, Denoise, Denoised, classifier_free_guidance
from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES
from avila_diffusion.sampling.noise import StepNoise, noise_source, step_noise
from avila_diffusion.sampling.samplers import Options, sample, start
from avila_diffusion.sampling.schedules import NoiseTable, ScheduleOptions, sampler_sigmas, schedule_sigmas

# diffusers hands tensors to numpy in ways that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

Driver = Callable[..., Tensor]
MakeNoise = Callable[[], StepNoise]
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def formula(x: Tensor, t: Tensor | float, context: Tensor | None = None, **_: object) -> Tensor:
    """A formula for a network that predicts epsilon."""
    t = torch.as_tensor(t, dtype=x.dtype)
    return 0.9 * torch.tanh(x) + 0.05 * torch.cos(t / 100).reshape(-1, 1, 1, 1)


def no_noise(sigma: float, sigma_next: float) -> Tensor:
    raise AssertionError("noise was drawn")


def unguided(table: NoiseTable) -> Denoise:
    denoiser = Denoiser(formula, table, "epsilon", torch.float64)
    return classifier_free_guidance(denoiser, Cond(torch.zeros(1, 1, 1)), None, 1.0)


def wave(scale: float) -> Tensor:
    return (scale * torch.sin(0.1 * (torch.arange(64, dtype=torch.float64) + 1))).reshape(1, 4, 4, 4)


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert (got - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item())


def counted(denoise: Denoise, calls: list[Call]) -> Denoise:
    def counting(call: Call) -> Denoised:
        calls.append(call)
        return denoise(call)

    return counting


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_cfgpp_noises_with_the_unguided_prediction(
    eta: float, table: NoiseTable, formula_noise: MakeNoise, drive: Driver
) -> None:
    """Algorithm 2 of the paper in its own terms: x0 from the guided eps, the way back with the unguided one."""
    sigmas = sampler_sigmas(SAMPLERS["ddim_cfgpp"], SCHEDULES["automatic"], 10, table)
    a = (1 / (1 + sigmas**2)).tolist()
    noise, x_t, weight = formula_noise(), wave(1.0), 0.6

    def conditional(x: Tensor) -> Tensor:
        return torch.tanh(x)

    def unconditional(x: Tensor) -> Tensor:
        return 0.5 * torch.sin(x) + 0.1

    def guided(x: Tensor) -> Tensor:
        return unconditional(x) + weight * (conditional(x) - unconditional(x))

    for a_t, a_prev in pairwise(a):
        x0 = (x_t - sqrt(1 - a_t) * guided(x_t)) / sqrt(a_t)
        spread = eta * sqrt((1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev))
        x_t = sqrt(a_prev) * x0 + sqrt(1 - a_prev - spread**2) * unconditional(x_t)
        if eta:
            x_t = x_t + spread * noise(0, 0)

    def denoise(call: Call) -> Denoised:
        assert call.want_uncond
        preserved = call.x / hypot(1, call.sigma)
        return Denoised(call.x - call.sigma * guided(preserved), call.x - call.sigma * unconditional(preserved))

    info = SAMPLERS["ddim_cfgpp"]
    run = sample(info, start(info, wave(1.0), sigmas), sigmas, formula_noise(), options=Options(eta=eta))
    close(drive(run, denoise), x_t, 1e-11)
    assert info.guidance_divisor == 12.5
    assert all(other.guidance_divisor == 1 for key, other in SAMPLERS.items() if key != "ddim_cfgpp")


def test_cfgpp_without_guidance_is_ddim(table: NoiseTable, drive: Driver) -> None:
    sigmas = sampler_sigmas(SAMPLERS["ddim"], SCHEDULES["automatic"], 10, table)
    denoise = unguided(table)
    runs = [
        drive(sample(SAMPLERS[key], wave(9.0), sigmas, no_noise), lambda call: denoise(Call(call.x, call.sigma, 0)))
        for key in ("ddim", "ddim_cfgpp")
    ]
    assert torch.equal(*runs)


@pytest.mark.parametrize("n", [1, 2, 4, 10, 20, 50])
def test_live_plms(n: int, table: NoiseTable, drive: Driver) -> None:
    """diffusers' PNDM without Runge-Kutta steps is LDM's PLMS; its last call, at timestep 1, is not AUTOMATIC1111's."""
    scheduler: Any = PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1)
    scheduler.alphas_cumprod = 1 / (1 + table.sigmas**2)
    info, calls = SAMPLERS["plms"], []  # type: Any, list[Call]
    sigmas = sampler_sigmas(info, SCHEDULES["automatic"], n, table)
    theirs, x = wave(1.0), start(info, wave(1.0), sigmas)
    ours = drive(sample(info, x, sigmas, no_noise), counted(unguided(table), calls))
    assert len(calls) == len(sigmas)
    if n == 1:
        # From the top to timestep 1, where diffusers would stride past the end: improved Euler by hand.
        eps = formula(theirs, 999)
        after = x + (sigmas[1] - sigmas[0]) * eps
        eps = (eps + formula(after / hypot(1, sigmas[1]), 1)) / 2
        close(ours, (x + (sigmas[1] - sigmas[0]) * eps) / hypot(1, sigmas[1]))
        return
    scheduler.set_timesteps(n)
    walked = scheduler.timesteps[:-1]
    assert [round(float(table.sigma_to_t(call.sigma))) for call in calls] == walked.tolist()
    for t in walked:
        theirs = scheduler.step(formula(theirs, t), t, theirs).prev_sample
    close(ours, theirs)


def test_the_levels_of_unipc(table: NoiseTable) -> None:
    """Time runs evenly from 1 to 1/1000; ln(alpha) between two timesteps lies on the line between theirs."""
    alphas = 1 / (1 + table.sigmas.numpy() ** 2)
    for n, steps in ((20, 20), (30, 31), (3, 4), (600, 1000)):
        time = np.linspace(1, 1 / 1000, steps + 1)
        log_alpha = np.interp(time, (np.arange(1000) + 1) / 1000, np.log(alphas) / 2)
        expected = np.sqrt(1 - np.exp(2 * log_alpha)) / np.exp(log_alpha)
        for key in ("uni_pc", "uni_pc_bh2"):
            got = sampler_sigmas(SAMPLERS[key], SCHEDULES["karras"], n, table)
            np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9)
    assert len(ddim_grid(30, table)) == 31
    torch.testing.assert_close(unipc_grid(8, table)[[0, -1]], table.sigmas[[999, 0]], rtol=1e-12, atol=0)
    # The network is told the time that belongs to the level: 949.05 for the second of 20.
    told = table.sigma_to_t(unipc_grid(20, table))
    torch.testing.assert_close(told, torch.linspace(999, 0, 21, dtype=torch.float64), rtol=0, atol=2e-3)


def test_the_levels_of_unipc_on_a_picture(table: NoiseTable) -> None:
    """15 of 20 steps: noised to timestep 751, walked from 701 in 15 equal steps of time."""
    levels, noised = unipc_image_grid(20, 15, table)
    assert noised == table.sigmas[751]
    assert levels[0] == table.sigmas[701]
    assert levels[-1] == table.sigmas[0]
    torch.testing.assert_close(
        table.sigma_to_t(levels), torch.linspace(701, 0, 16, dtype=torch.float64), rtol=0, atol=1e-2
    )
    for run in (0, 20):
        with pytest.raises(RequestError, match=f"cannot run {run} of 20 steps"):
            unipc_image_grid(20, run, table)
    with pytest.raises(RequestError, match="0 steps make no run"):
        unipc_grid(0, table)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 20])
@pytest.mark.parametrize("key", ["uni_pc", "uni_pc_bh2"])
@pytest.mark.parametrize("levels", ["own", "karras", "karras to 0"])
def test_live_unipc(key: str, levels: str, n: int, table: NoiseTable, drive: Driver) -> None:
    """The same order of steps, predictor and corrector as diffusers', on the same levels in float64."""
    info, calls = SAMPLERS[key], []  # type: Any, list[Call]
    if levels == "own":
        sigmas = sampler_sigmas(info, SCHEDULES["automatic"], n, table)
    else:
        sigmas = schedule_sigmas(SCHEDULES["karras"], n, table, ScheduleOptions(sigma_min=None if n > 1 else 0.1))
        sigmas = sigmas if levels == "karras to 0" or n < 2 else sigmas[:-1]
    scheduler: Any = UniPCMultistepScheduler(**SD, solver_order=3, solver_type="bh2" if key.endswith("bh2") else "bh1")
    scheduler.set_timesteps(max(n, 2))
    scheduler.timesteps = torch.arange(len(sigmas) - 1)  # only counted
    scheduler.num_inference_steps = len(sigmas) - 1
    scheduler.sigmas = sigmas.clone()
    if sigmas[-1] == 0:
        scheduler.sigmas[-1] = 0.001
    theirs = wave(1.0)
    for step, sigma in enumerate(sigmas[:-1]):
        theirs = scheduler.step(formula(theirs, table.sigma_to_t(sigma)), step, theirs).prev_sample
    ours = drive(sample(info, start(info, wave(1.0), sigmas), sigmas, no_noise), counted(unguided(table), calls))
    assert len(calls) == len(sigmas) - 1
    close(ours, theirs * hypot(1, 0.001) if sigmas[-1] == 0 else theirs)


@pytest.mark.parametrize("n", [1, 2, 4, 8, 50])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_live_tcd(eta: float, n: int, table: NoiseTable, drive: Driver) -> None:
    scheduler: Any = TCDScheduler(**SD)
    scheduler.alphas_cumprod = 1 / (1 + table.sigmas**2)
    scheduler.set_timesteps(n)
    sigmas = torch.cat([table.sigmas[scheduler.timesteps], torch.zeros(1, dtype=torch.float64)])
    theirs, generator = wave(1.0), torch.Generator().manual_seed(8)
    for t in scheduler.timesteps:
        theirs = scheduler.step(formula(theirs, t), t, theirs, eta=eta, generator=generator).prev_sample
    generator = torch.Generator().manual_seed(8)

    def noise(sigma: float, sigma_next: float) -> Tensor:
        return torch.randn(1, 4, 4, 4, generator=generator, dtype=torch.float64)

    run = sample(SAMPLERS["tcd"], wave(1.0) * hypot(1, sigmas[0]), sigmas, noise, table=table, options=Options(eta=eta))
    close(drive(run, unguided(table)), theirs)


def test_tcd_between_timesteps(table: NoiseTable, drive: Driver) -> None:
    """Down to the level of s = floor(0.7 t), and up to the next level again, which may lie between two timesteps."""
    sigmas = schedule_sigmas(SCHEDULES["karras"], 6, table)
    x, x0 = wave(9.0), wave(0.4)
    one = torch.ones_like(x)
    expected = x
    for sigma, sigma_next in zip(sigmas[:-2].tolist(), sigmas[1:-1].tolist(), strict=True):
        s = floor(0.7 * float(np.interp(np.log(sigma_next), table.sigmas.log(), np.arange(1000))))
        sigma_s = table.sigmas[s].item()
        expected = x0 + sigma_s * (expected - x0) / sigma + sqrt(sigma_next**2 - sigma_s**2) * one
    run = sample(SAMPLERS["tcd"], x, sigmas[:-1], lambda a, b: one, table=table)
    close(drive(run, lambda call: Denoised(x0)), expected)
    # A table without timesteps is walked by its places.
    edm = NoiseTable.from_config(NoiseConfig(prediction="edm"))
    sigmas = edm.sigmas[[999, 500, 0]]
    run = sample(SAMPLERS["tcd"], x, sigmas[:2], lambda a, b: one, table=edm)
    sigma, sigma_next, sigma_s = sigmas[0].item(), sigmas[1].item(), edm.sigmas[350].item()
    expected = x0 + sigma_s * (x - x0) / sigma + sqrt(sigma_next**2 - sigma_s**2) * one
    close(drive(run, lambda call: Denoised(x0)), expected)


OWN = ("ddim_cfgpp", "plms", "uni_pc", "uni_pc_bh2", "lcm", "tcd", "deis", "ipndm", "ipndm_v", "er_sde", "sa_solver")


@pytest.mark.parametrize("key", OWN)
@pytest.mark.parametrize("config", [NoiseConfig(), NoiseConfig(prediction="v", zero_terminal_snr=True),
                                    NoiseConfig(prediction="edm", edm_sigma_max=80.0), NoiseConfig(steps=12)],
                         ids=["sd", "ztsnr", "edm", "tiny"])  # fmt: skip
def test_any_number_of_steps_on_any_model(key: str, config: NoiseConfig) -> None:
    info, table = SAMPLERS[key], NoiseTable.from_config(config)
    for n, schedule in ((1, "karras"), (2, "uniform"), (3, "exponential"), (7, "sgm_uniform"), (40, "karras")):
        sigmas = sampler_sigmas(info, SCHEDULES[schedule], n, table)
        assert sigmas.dtype == torch.float64
        assert (sigmas.diff()[1:] < 0).all()
        assert (sigmas[-1] == 0) == (info.ends == "zero")
        source = noise_source("nv", n)
        x = start(info, source.draw((1, 4, 2, 2)), sigmas)
        calls = list(walk(sample(info, x, sigmas, step_noise(source, x), table=table)))
        assert len(calls) == len(sigmas) - 1 + (info.calls == "extra")
        assert all(0.5 * table.sigma_min < call.sigma <= table.sigma_max * 1.000001 for call in calls)
        assert sorted({call.step for call in calls}) == list(range(len(sigmas) - 1))


def walk(run: Any) -> Iterator[Call]:
    """The calls of a run, which must end in a finite latent of float32."""
    try:
        call = next(run)
        while True:
            yield call
            call = run.send(Denoised(torch.tanh(call.x / hypot(1, call.sigma)) + 0.1 * torch.cos(call.x / 7)))
    except StopIteration as end:
        assert end.value.isfinite().all()
        assert end.value.dtype == torch.float32
