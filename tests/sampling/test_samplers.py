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
from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES, SamplerInfo
from avila_diffusion.sampling.noise import StepNoise, initial_noise, noise_source, step_noise
from avila_diffusion.sampling.restarts import restart_levels
from avila_diffusion.sampling.samplers import SAMPLERS as FUNCTIONS
from avila_diffusion.sampling.samplers import Options, sample, start
from avila_diffusion.sampling.samplers.run import Run
from avila_diffusion.sampling.schedules import calls, sampler_sigmas, schedule_sigmas
from avila_diffusion.sampling.tables import NoiseTable

Driver = Callable[..., Tensor]

TABLES = {
    "sd": NoiseConfig(),
    "ztsnr": NoiseConfig(prediction="v", zero_terminal_snr=True),
    "edm": NoiseConfig(prediction="edm", edm_sigma_max=80.0),
    "tiny": NoiseConfig(steps=12),
}
MEAN, SPREAD = 0.3, 0.7

ORDERS = {key: info.order for key, info in SAMPLERS.items() if info.order}
"""Key → measured order of convergence: what the rows say, and below, where no noise is added, what they do not."""
WITHOUT_NOISE = {
    "euler_ancestral": 1, "dpm_2_ancestral": 2, "dpmpp_2s_ancestral": 2, "dpmpp_sde": 2, "dpmpp_2m_sde": 2,
    "dpmpp_2m_sde_heun": 2, "dpmpp_3m_sde": 2, "dpm_fast": 3, "euler_cfg_pp": 1, "euler_ancestral_cfg_pp": 1,
}  # fmt: skip


def run_of(
    info: SamplerInfo, x: Tensor, sigmas: Tensor, noise: StepNoise, table: NoiseTable, **options: float | None
) -> Run:
    """A run with those of the options that the sampler takes."""
    taken = {name: value for name, value in options.items() if name in info.options}
    return sample(info, x, sigmas, noise, table=table, options=Options(**taken))


def karras_levels(n: int, first: float, last: float) -> Tensor:
    """n + 1 levels from first to last."""
    ramp = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    levels: Tensor = (first ** (1 / 7) + ramp * (last ** (1 / 7) - first ** (1 / 7))) ** 7
    return levels


def in_latent_scale(info: SamplerInfo, latent: Tensor, end: float) -> Tensor:
    """x0 + end * noise, of what comes out of a sampler that hands over the variance-preserving process."""
    return latent * hypot(1, end) if info.ends == "lowest" and info.grid != "range" else latent


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


@pytest.mark.parametrize("key", [key for key in {**ORDERS, **WITHOUT_NOISE} if key in FUNCTIONS])
def test_order_of_convergence(key: str, table: NoiseTable, drive: Driver) -> None:
    """Halving the steps' length divides the distance to the exact solution by 2^order."""
    info, order = SAMPLERS[key], {**ORDERS, **WITHOUT_NOISE}[key]
    # The first steps of multistep methods are of lower order. From a level where there is hardly anything to get wrong
    # that does not show.
    first = 1000.0 if order > 3 else 10.0
    errors = []
    for n in (128, 256, 512) if order > 3 else (64, 128, 256):
        n = 3 * n + 2 if key == "dpm_fast" else n  # the remainder decides the order of the last step
        x = latents(0) * first
        sigmas = karras_levels(n, first, 0.1)
        got = drive(run_of(info, x, sigmas, no_noise, table, eta=0.0), gaussian)
        errors.append((in_latent_scale(info, got, 0.1) - exact(x, first, 0.1)).abs().max().item())
    assert errors[-1] < 0.02
    for coarse, fine in pairwise(errors):
        assert abs(log2(coarse / fine) - order) < (0.4 if order > 3 else 0.2)
    assert abs(log2(errors[-2] / errors[-1]) - order) < 0.2


@pytest.mark.parametrize("key", [key for key in {**ORDERS, **WITHOUT_NOISE} if key in FUNCTIONS])
@pytest.mark.parametrize("schedule", ["karras", "uniform", "sgm_uniform"])
def test_full_runs_end_at_the_exact_solution(key: str, schedule: str, table: NoiseTable, drive: Driver) -> None:
    info = SAMPLERS[key]
    sigmas = sampler_sigmas(info, SCHEDULES[schedule], 400, table)
    x = start(info, latents(1), sigmas)
    end = float(sigmas[sigmas > 0][-1]) if info.ends == "lowest" else float(sigmas[-1])
    got = drive(run_of(info, x, sigmas, no_noise, table, eta=0.0), gaussian)
    torch.testing.assert_close(in_latent_scale(info, got, end), exact(x, float(sigmas[0]), end), rtol=0, atol=0.025)


def test_dpm_adaptive_stays_near_the_exact_solution(table: NoiseTable, drive: Driver) -> None:
    """At its limits of error, with fewer calls than anything of fixed steps would need."""
    sigmas = sampler_sigmas(SAMPLERS["dpm_adaptive"], SCHEDULES["automatic"], 10, table)
    x, made = latents(1) * sigmas[0], 0

    def counting(call: Call) -> Denoised:
        nonlocal made
        made += 1
        return gaussian(call)

    got = drive(run_of(SAMPLERS["dpm_adaptive"], x, sigmas, no_noise, table, eta=0.0), counting)
    end = float(sigmas[sigmas > 0][-1])
    assert (got - exact(x, float(sigmas[0]), end)).abs().max() < 0.12
    assert made < 50


STOCHASTIC = [
    *((key, {}) for key, info in SAMPLERS.items() if info.stochastic),
    *((key, {"eta": 0.5}) for key, info in SAMPLERS.items() if info.uses_eta),
    ("ddim", {"eta": 1.0}),
    *((key, {"s_churn": 4.0, "s_tmax": 8.0}) for key in ("euler", "heun", "heunpp2", "dpm_2")),
]  # fmt: skip


@pytest.mark.parametrize(("key", "options"), [row for row in STOCHASTIC if row[0] in FUNCTIONS])
@pytest.mark.parametrize("n", [3, 11])
def test_noise_between_steps_keeps_the_variance_exactly(
    key: str, options: dict[str, float], n: int, table: NoiseTable, drive: Driver
) -> None:
    """For data that is one point, x at level sigma is that point plus noise of sigma, whatever the steps were."""
    sigmas = karras_levels(n, 14.0, 0.5)
    source = noise_source("cpu", 5)
    like = torch.zeros(1, 4, 128, 128, dtype=torch.float64)
    x = MEAN + initial_noise(source, (4, 128, 128)).double() * sigmas[0]
    got = drive(
        run_of(SAMPLERS[key], x, sigmas, step_noise(source, like), table, **options), lambda _: Denoised(like + MEAN)
    )
    got = in_latent_scale(SAMPLERS[key], got, 0.5)
    assert abs(got.mean().item() - MEAN) < 4 * 0.5 / 256
    assert abs(got.std().item() / 0.5 - 1) < 4 / 256 / sqrt(2)


# TCD steps by the trajectory to a level that is not 0, which neither the denoiser nor the consistency function tells.
@pytest.mark.parametrize("key", [*(key for key in FUNCTIONS if SAMPLERS[key].stochastic and key != "tcd"), "ddim"])
def test_noise_between_steps_reaches_the_data(key: str, table: NoiseTable, drive: Driver) -> None:
    info = SAMPLERS[key]
    sigmas = sampler_sigmas(info, SCHEDULES["karras"], 300, table)
    source = noise_source("cpu", 6)
    x = start(info, initial_noise(source, (4, 64, 64)).double(), sigmas)
    # LCM's model tells the end of the ODE.
    denoise = gaussian if key != "lcm" else lambda call: Denoised(exact(call.x, call.sigma, 0.0))
    got = drive(run_of(info, x, sigmas, step_noise(source, x), table, eta=1.0), denoise)
    assert abs(got.mean().item() - MEAN) < 0.03
    assert abs(got.std().item() / SPREAD - 1) < 0.03


@pytest.mark.parametrize("key", FUNCTIONS)
@pytest.mark.parametrize("last", [[0.0], []])
def test_where_a_run_ends(key: str, last: list[float], table: NoiseTable, drive: Driver) -> None:
    """At the last level, which is 0 or, of a short schedule or by the row, above it. No noise is left at 0."""
    info = SAMPLERS[key]
    sigmas = torch.tensor([9.0, 4.0, 2.0, 1.0, 0.5, *last], dtype=torch.float64)
    if info.ends == "lowest" and info.grid != "range":
        sigmas = sigmas[sigmas > 0]  # its grid has no 0
    source, like = noise_source("cpu", 8), torch.zeros(1, 4, 64, 64, dtype=torch.float64)
    x = MEAN + initial_noise(source, (4, 64, 64)).double() * sigmas[0]
    got = drive(run_of(info, x, sigmas, step_noise(source, like), table), lambda _: Denoised(like + MEAN))
    end = 0.5 if sigmas[-1] > 0 or info.ends == "lowest" else 0.0
    if key == "tcd" and end == 0:  # its last step goes to the lowest level that the model knows
        end = table.sigma_min
        got = got * hypot(1, end)
    assert abs(in_latent_scale(info, got, end).std().item() - end) < 0.02 * end + 1e-9
    if end == 0:
        torch.testing.assert_close(got, like + MEAN, rtol=0, atol=1e-9)


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


@pytest.mark.parametrize("key", [key for key in FUNCTIONS if SAMPLERS[key].uses_eta])
def test_a_big_eta_is_cut_off(key: str, table: NoiseTable, drive: Driver) -> None:
    info = SAMPLERS[key]
    sigmas = sampler_sigmas(info, SCHEDULES["karras"], 8, table)
    x = start(info, latents(3), sigmas)
    eta = 2.0 if info.calls == "adaptive" else 10.0
    assert drive(run_of(info, x, sigmas, step_noise(noise_source("nv", 0), x), table, eta=eta), wavy).isfinite().all()


@pytest.mark.parametrize("key", [key for key in FUNCTIONS if SAMPLERS[key].uses_eta])
def test_eta_zero_draws_nothing(key: str, table: NoiseTable, drive: Driver) -> None:
    sigmas = sampler_sigmas(SAMPLERS[key], SCHEDULES["automatic"], 9, table)
    drive(run_of(SAMPLERS[key], start(SAMPLERS[key], latents(4), sigmas), sigmas, no_noise, table, eta=0.0), wavy)


@pytest.mark.parametrize(
    ("noisy", "plain"),
    [("euler_ancestral", "euler"), ("dpm_2_ancestral", "dpm_2"), ("dpmpp_2m_sde", "dpmpp_2m"),
     ("dpmpp_sde", "dpmpp_2s_ancestral"), ("euler_ancestral_cfg_pp", "euler")],
)  # fmt: skip
def test_without_noise_they_are_one_sampler(noisy: str, plain: str, table: NoiseTable, drive: Driver) -> None:
    sigmas = sampler_sigmas(SAMPLERS[plain], SCHEDULES["automatic"], 9, table)
    x = latents(4) * sigmas[0]
    one, other = (drive(run_of(SAMPLERS[key], x, sigmas, no_noise, table, eta=0.0), wavy) for key in (noisy, plain))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_an_option_that_is_not_taken_is_refused() -> None:
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


@pytest.mark.parametrize("key", FUNCTIONS)
def test_a_recorded_run_replays_bit_for_bit(key: str, table: NoiseTable, drive: Driver) -> None:
    info = SAMPLERS[key]
    options = {"eta": 0.8, "s_churn": 3.0}
    sigmas = sampler_sigmas(info, SCHEDULES["automatic"], 7, table)

    def begin() -> tuple[Tensor, StepNoise]:
        source = noise_source("nv", 21)
        x = start(info, initial_noise(source, (4, 5, 5)), sigmas)
        return x, step_noise(source, x)

    log: list[tuple[Call, Denoised]] = []
    x, noise = begin()
    before = x.clone()
    finished = drive(run_of(info, x, sigmas, noise, table, **options), recorded(wavy, log))
    assert finished.dtype == torch.float32
    assert torch.equal(x, before)
    answers = iter(log)

    def replay(call: Call) -> Denoised:
        was, answer = next(answers)
        assert torch.equal(call.x, was.x)
        assert (call.sigma, call.step) == (was.sigma, was.step)
        return answer

    x, noise = begin()
    assert torch.equal(drive(run_of(info, x, sigmas, noise, table, **options), replay), finished)
    assert next(answers, None) is None


@pytest.mark.parametrize("key", FUNCTIONS)
def test_images_do_not_see_each_other(key: str, table: NoiseTable, drive: Driver) -> None:
    """Two runs advanced in turn end where each ends alone."""
    info = SAMPLERS[key]
    sigmas = sampler_sigmas(info, SCHEDULES["automatic"], 5, table)

    def run(seed: int) -> object:
        source = noise_source("cpu", seed)
        x = start(info, initial_noise(source, (4, 4, 4)), sigmas)
        return run_of(info, x, sigmas, step_noise(source, x), table, eta=1.0, s_churn=3.0)

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


@settings(max_examples=120, deadline=None)
@given(
    key=st.sampled_from(sorted(FUNCTIONS)),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    model=st.sampled_from(sorted(TABLES)),
    n=st.one_of(st.integers(1, 40), st.sampled_from([333, 999, 1000])),
    shape=st.sampled_from([(4, 2, 2), (1, 1, 3), (9, 1, 1)]),
    eta=st.sampled_from([None, 0.0, 0.9]),
)
def test_any_sampler_on_any_schedule_of_any_model(
    key: str, schedule: str, model: str, n: int, shape: tuple[int, int, int], eta: float | None
) -> None:
    info, table = SAMPLERS[key], NoiseTable.from_config(TABLES[model])
    sigmas = sampler_sigmas(info, SCHEDULES[schedule], n, table)
    assert sigmas.dtype == torch.float64
    assert sigmas.isfinite().all()
    if info.grid in ("schedule", "range"):
        assert (sigmas.diff() < 0).all()
        assert (sigmas[-1] == 0) == (schedule != "kl_optimal" or info.grid == "range")
    else:
        assert (sigmas.diff()[1:] < 0).all()  # DDIM's top timestep can come twice
        assert sigmas[-1] == table.sigmas[1 if info.grid == "ddim" else 0]
    source = noise_source("nv", n)
    x = start(info, initial_noise(source, shape), sigmas)
    generator = run_of(info, x, sigmas, step_noise(source, x), table, eta=eta)
    lowest = min(table.sigma_min, float(sigmas[sigmas > 0][-1])) * 0.5
    if key == "restart":  # goes down to 0 where that is the level nearest 0.1
        lowest = 0.0
    made, call = 0, next(generator, None)
    steps = []
    while call is not None:
        assert call.x.shape == x.shape
        assert call.want_uncond == info.uncond
        assert lowest < call.sigma <= table.sigma_max * 1.0001
        made += 1
        steps.append(call.step)
        try:
            call = generator.send(wavy(call))
        except StopIteration as end:
            assert end.value.isfinite().all()
            assert end.value.shape == x.shape
            call = None
    of = calls(info, sigmas)
    assert made == of or of is None
    whole = max(steps) + 1 if of is None else len(restart_levels(sigmas) if key == "restart" else sigmas[1:])
    assert sorted(set(steps)) == list(range(whole))
    assert steps == sorted(steps)


REPEATS = ["dpmpp_2m", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_2s_ancestral", "dpmpp_3m_sde",
           "euler_ancestral", "euler", "lms", "heun", "heunpp2", "dpm_2", "dpm_2_ancestral", "dpm_fast", "dpm_adaptive",
           "restart", "euler_cfg_pp", "euler_ancestral_cfg_pp", "ddim", "ddpm"]  # fmt: skip


@pytest.mark.parametrize("key", REPEATS)
@pytest.mark.parametrize("last", [[0.0], [0.2]])
def test_a_level_that_comes_twice_does_no_harm(key: str, last: list[float], table: NoiseTable, drive: Driver) -> None:
    """DDIM's levels do, at the top. A step of no length draws no increment of a Brownian path: its length divides."""
    info = SAMPLERS[key]
    last = [0.2] if info.ends == "lowest" and info.grid != "range" else last
    sigmas = torch.tensor([9.0, 9.0, 4.0, 2.0, 2.0, 2.0, 1.0, 0.5, 0.2, *last], dtype=torch.float64)

    def noise(sigma: float, sigma_next: float) -> Tensor:
        assert not info.brownian or sigma > sigma_next
        return latents(9)

    generator = run_of(info, latents(8) * 9, sigmas, noise, table)
    assert drive(generator, wavy).isfinite().all()


@pytest.mark.parametrize(
    "key", ["euler", "heun", "dpm_2", "lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"]
)
def test_a_level_that_comes_twice_changes_nothing(key: str, table: NoiseTable, drive: Driver) -> None:
    once = torch.tensor([9.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.0], dtype=torch.float64)
    twice = torch.tensor([9.0, 9.0, 4.0, 2.0, 2.0, 2.0, 1.0, 0.5, 0.2, 0.2, 0.0], dtype=torch.float64)
    x = latents(7) * 9
    got, expected = (
        drive(run_of(SAMPLERS[key], x, sigmas, no_noise, table, eta=0.0), wavy) for sigmas in (twice, once)
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
