"""Samplers against closed forms: exact solutions, orders of convergence, variances, and what every run must keep."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import hypot, log2, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from avila_diffusion.config import NoiseConfig
from avila_diffusion.errors import RequestError
from avila_diffusion.sampling.guidance import Call, Denoise, Denoised
from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES
from avila_diffusion.sampling.noise import StepNoise, initial_noise, noise_source, step_noise
from avila_diffusion.sampling.samplers import SAMPLERS as FUNCTIONS
from avila_diffusion.sampling.samplers import Options, sample, start
from avila_diffusion.sampling.schedules import NoiseTable, ScheduleOptions, calls, sampler_sigmas, schedule_sigmas

Driver = Callable[..., Tensor]

TABLES = {
    "sd": NoiseConfig(),
    "ztsnr": NoiseConfig(prediction="v", zero_terminal_snr=True),
    "edm": NoiseConfig(prediction="edm", edm_sigma_max=80.0),
    "tiny": NoiseConfig(steps=12),
}
MEAN, SPREAD = 0.3, 0.7


def gaussian(call: Call) -> Denoised:
    """The true denoiser of data N(MEAN, SPREAD^2)."""
    return Denoised((SPREAD**2 * call.x + call.sigma**2 * MEAN) / (SPREAD**2 + call.sigma**2))


def exact(x: Tensor, sigma: float, sigma_end: float) -> Tensor:
    """Where the probability-flow ODE takes x from sigma to sigma_end for that data."""
    return MEAN + (x - MEAN) * hypot(SPREAD, sigma_end) / hypot(SPREAD, sigma)


def wavy(call: Call) -> Denoised:
    """A denoiser with a bend in it."""
    return Denoised(torch.tanh(call.x / hypot(1, call.sigma)) + 0.1 * torch.cos(call.x / 7))


def no_noise(sigma: float, sigma_next: float) -> Tensor:
    raise AssertionError("noise was drawn")


def latents(seed: int, *size: int) -> Tensor:
    return torch.randn(1, 4, *(size or (6, 6)), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_tables_have_the_same_rows() -> None:
    assert set(FUNCTIONS) == set(SAMPLERS)


@pytest.mark.parametrize(("key", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpm_2", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence(key: str, order: int, table: NoiseTable, drive: Driver) -> None:
    """Halving the steps' length divides the distance to the exact solution by 2^order."""
    errors = []
    for n in (64, 128, 256):
        sigmas = schedule_sigmas(SCHEDULES["karras"], n + 1, table, ScheduleOptions(sigma_min=0.1, sigma_max=10.0))[:-1]
        x = latents(0) * 10
        got = drive(sample(SAMPLERS[key], x, sigmas, no_noise), gaussian)
        got = got * hypot(1, 0.1) if key == "ddim" else got  # DDIM ends in the variance-preserving process
        errors.append((got - exact(x, 10.0, 0.1)).abs().max().item())
    assert errors[-1] < 0.02
    for coarse, fine in pairwise(errors):
        assert abs(log2(coarse / fine) - order) < 0.2


@pytest.mark.parametrize("key", ["euler", "heun", "dpm_2", "dpmpp_2m", "ddim"])
@pytest.mark.parametrize("schedule", ["karras", "uniform", "sgm_uniform"])
def test_full_runs_end_at_the_exact_solution(key: str, schedule: str, table: NoiseTable, drive: Driver) -> None:
    info = SAMPLERS[key]
    sigmas = sampler_sigmas(info, SCHEDULES[schedule], 400, table)
    x = start(info, latents(1), sigmas)
    end = float(sigmas[-1])
    got = drive(sample(info, x, sigmas, no_noise), gaussian)
    torch.testing.assert_close(got * hypot(1, end), exact(x, float(sigmas[0]), end), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("key", "eta"), [("euler_ancestral", 1.0), ("euler_ancestral", 0.5), ("dpm_2_ancestral", 1.0), ("ddim", 1.0),
                     ("ddim", 0.6), ("ddpm", None)],
)  # fmt: skip
@pytest.mark.parametrize("n", [3, 30])
def test_noise_between_steps_keeps_the_variance_exactly(
    key: str, eta: float | None, n: int, table: NoiseTable, drive: Driver
) -> None:
    """For data that is one point, x at level sigma is that point plus noise of sigma, whatever the steps were."""
    sigmas = schedule_sigmas(SCHEDULES["karras"], n, table, ScheduleOptions(sigma_min=0.5))[:-1]
    source = noise_source("cpu", 5)
    like = torch.zeros(1, 4, 128, 128, dtype=torch.float64)
    x = MEAN + initial_noise(source, (4, 128, 128)).double() * sigmas[0]
    got = drive(
        sample(SAMPLERS[key], x, sigmas, step_noise(source, like), options=Options(eta=eta)),
        lambda _: Denoised(like + MEAN),
    )
    got = got * hypot(1, 0.5) if key == "ddim" else got
    assert abs(got.mean().item() - MEAN) < 4 * 0.5 / 256
    assert abs(got.std().item() / 0.5 - 1) < 4 / 256 / sqrt(2)


@pytest.mark.parametrize("key", ["euler_ancestral", "dpm_2_ancestral", "ddim", "ddpm"])
def test_noise_between_steps_reaches_the_data(key: str, table: NoiseTable, drive: Driver) -> None:
    info = SAMPLERS[key]
    sigmas = sampler_sigmas(info, SCHEDULES["karras"], 300, table)
    source = noise_source("cpu", 6)
    x = start(info, initial_noise(source, (4, 64, 64)).double(), sigmas)
    eta = 1.0 if info.uses_eta else None
    got = drive(sample(info, x, sigmas, step_noise(source, x), options=Options(eta=eta)), gaussian)
    assert abs(got.mean().item() - MEAN) < 0.03
    assert abs(got.std().item() / SPREAD - 1) < 0.03


def test_ddim_of_eta_one_ddpm_and_euler_a_are_one_process(table: NoiseTable, drive: Driver) -> None:
    sigmas = schedule_sigmas(SCHEDULES["normal"], 12, table)
    runs = []
    for key in ("euler_ancestral", "ddim", "ddpm"):
        source, x = noise_source("cpu", 9), latents(2) * sigmas[0]
        info = SAMPLERS[key]
        runs.append(
            drive(
                sample(info, x, sigmas, step_noise(source, x), options=Options(eta=1.0 if info.uses_eta else None)),
                wavy,
            )
        )
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(runs[2], runs[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("key", ["euler_ancestral", "dpm_2_ancestral", "ddim"])
def test_a_big_eta_is_cut_off(key: str, table: NoiseTable, drive: Driver) -> None:
    info = SAMPLERS[key]
    sigmas = sampler_sigmas(info, SCHEDULES["karras"], 8, table)
    x = start(info, latents(3), sigmas)
    assert (
        drive(sample(info, x, sigmas, step_noise(noise_source("nv", 0), x), options=Options(eta=10.0)), wavy)
        .isfinite()
        .all()
    )


def test_eta_zero_draws_nothing(table: NoiseTable, drive: Driver) -> None:
    pairs = {"euler_ancestral": "euler", "dpm_2_ancestral": "dpm_2"}
    for noisy, plain in pairs.items():
        sigmas = sampler_sigmas(SAMPLERS[plain], SCHEDULES["automatic"], 9, table)
        x = latents(4) * sigmas[0]
        got = drive(sample(SAMPLERS[noisy], x, sigmas, no_noise, options=Options(eta=0.0)), wavy)
        torch.testing.assert_close(
            got, drive(sample(SAMPLERS[plain], x, sigmas, no_noise), wavy), rtol=1e-12, atol=1e-12
        )
    with pytest.raises(RequestError, match=r"DPM\+\+ 2M takes no eta"):
        sample(SAMPLERS["dpmpp_2m"], latents(0), torch.tensor([1.0, 0.0]), no_noise, options=Options(eta=0.5))


def test_where_a_run_starts(table: NoiseTable) -> None:
    noise, latent = latents(5), latents(6)
    k, grid = SAMPLERS["dpmpp_2m"], SAMPLERS["ddim"]
    sigmas = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(start(k, noise, sigmas), 3 * noise)
    torch.testing.assert_close(start(grid, noise, sigmas), sqrt(10) * noise)
    torch.testing.assert_close(start(k, noise, sigmas, latent=latent, level=3.0), latent + 3 * noise)
    torch.testing.assert_close(start(k, noise, sigmas, latent=latent), latent + 3 * noise)
    # In the variance-preserving process: noised for level 4, read as of level 3.
    preserved = latent / sqrt(17) + noise * 4 / sqrt(17)
    torch.testing.assert_close(start(grid, noise, sigmas, latent=latent, level=4.0), preserved * sqrt(10))
    assert start(k, noise.float(), sigmas).dtype == torch.float32


def recorded(denoise: Denoise, log: list[tuple[Call, Denoised]]) -> Denoise:
    def recording(call: Call) -> Denoised:
        answer = denoise(call)
        log.append((Call(call.x.clone(), call.sigma, call.step), Denoised(answer.x0.clone())))
        return answer

    return recording


@pytest.mark.parametrize("key", SAMPLERS)
def test_a_recorded_run_replays_bit_for_bit(key: str, table: NoiseTable, drive: Driver) -> None:
    info = SAMPLERS[key]
    eta = 0.8 if info.uses_eta else None
    sigmas = sampler_sigmas(info, SCHEDULES["automatic"], 7, table)

    def begin() -> tuple[Tensor, StepNoise]:
        source = noise_source("nv", 21)
        x = start(info, initial_noise(source, (4, 5, 5)), sigmas)
        return x, step_noise(source, x)

    log: list[tuple[Call, Denoised]] = []
    x, noise = begin()
    before = x.clone()
    finished = drive(sample(info, x, sigmas, noise, options=Options(eta=eta)), recorded(wavy, log))
    assert finished.dtype == torch.float32
    assert torch.equal(x, before)
    answers = iter(log)

    def replay(call: Call) -> Denoised:
        was, answer = next(answers)
        assert torch.equal(call.x, was.x)
        assert (call.sigma, call.step) == (was.sigma, was.step)
        return answer

    x, noise = begin()
    assert torch.equal(drive(sample(info, x, sigmas, noise, options=Options(eta=eta)), replay), finished)
    assert next(answers, None) is None


@pytest.mark.parametrize("key", SAMPLERS)
def test_images_do_not_see_each_other(key: str, table: NoiseTable, drive: Driver) -> None:
    """Two runs advanced in turn end where each ends alone."""
    info = SAMPLERS[key]
    sigmas = sampler_sigmas(info, SCHEDULES["automatic"], 5, table)

    def run(seed: int) -> object:
        source = noise_source("cpu", seed)
        x = start(info, initial_noise(source, (4, 4, 4)), sigmas)
        return sample(info, x, sigmas, step_noise(source, x), options=Options(eta=1.0 if info.uses_eta else None))

    alone = [drive(run(seed), wavy) for seed in (1, 2)]
    generators = [run(seed) for seed in (1, 2)]
    waiting = [next(generator) for generator in generators]  # type: ignore[call-overload]
    ended: list[Tensor] = []
    while len(ended) < 2:
        for index, generator in enumerate(generators):
            try:
                waiting[index] = generator.send(wavy(waiting[index]))  # type: ignore[attr-defined]
            except StopIteration as end:
                ended.append(end.value)
    assert all(torch.equal(one, two) for one, two in zip(alone, ended, strict=True))


@settings(max_examples=80, deadline=None)
@given(
    key=st.sampled_from(sorted(SAMPLERS)),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    model=st.sampled_from(sorted(TABLES)),
    n=st.one_of(st.integers(1, 40), st.sampled_from([333, 999, 1000])),
)
def test_any_sampler_on_any_schedule_of_any_model(key: str, schedule: str, model: str, n: int) -> None:
    info, table = SAMPLERS[key], NoiseTable.from_config(TABLES[model])
    sigmas = sampler_sigmas(info, SCHEDULES[schedule], n, table)
    assert sigmas.dtype == torch.float64
    assert sigmas.isfinite().all()
    if info.grid == "schedule":
        assert (sigmas.diff() < 0).all()
        assert (sigmas[-1] == 0) == (schedule != "kl_optimal")
    else:
        assert (sigmas.diff()[1:] < 0).all()  # DDIM's top timestep can come twice
        assert sigmas[-1] == table.sigmas[1]
    source = noise_source("nv", n)
    x = start(info, initial_noise(source, (4, 2, 2)), sigmas)
    generator = sample(info, x, sigmas, step_noise(source, x), options=Options(eta=0.9 if info.uses_eta else None))
    made, call = 0, next(generator, None)
    steps = []
    while call is not None:
        assert call.x.shape == x.shape
        assert table.sigmas[0] * 0.5 < call.sigma <= table.sigma_max * 1.0001
        made += 1
        steps.append(call.step)
        try:
            call = generator.send(wavy(call))
        except StopIteration as end:
            assert end.value.isfinite().all()
            call = None
    assert made == calls(info, sigmas)
    assert sorted(set(steps)) == list(range(len(sigmas) - 1))
    assert steps == sorted(steps)
