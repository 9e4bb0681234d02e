from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from avila_diffusion.config import NoiseConfig
from avila_diffusion.errors import RequestError, Unsupported
from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES
from avila_diffusion.sampling.schedules import (
    NoiseTable,
    ScheduleOptions,
    calls,
    image_sigmas,
    image_steps,
    sampler_sigmas,
    schedule_sigmas,
)


def near(got: object, expected: object, tolerance: float) -> None:
    torch.testing.assert_close(
        torch.as_tensor(got, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        rtol=tolerance,
        atol=0,
    )


def test_stable_diffusions_levels(table: NoiseTable, k_oracle: dict[str, Any]) -> None:
    oracle = k_oracle["discretization"]
    assert table.sigmas.dtype == torch.float64
    assert len(table.sigmas) == 1000
    near(table.sigma_min, oracle["sigma_min"], 1e-12)
    near(table.sigma_max, oracle["sigma_max"], 1e-12)
    near(table.sigmas[::111], oracle["sigmas_every_111"], 1e-12)
    for t, sigma in oracle["t_to_sigma"].items():
        near(table.t_to_sigma(float(t)), sigma, 3e-7 if float(t) % 0.25 else 1e-12)  # theirs rounds t to float32
    for sigma, t in oracle["sigma_to_t"].items():
        assert abs(float(table.sigma_to_t(float(sigma))) - t) < 1e-9


def test_time_and_level_are_inverse_and_whole_at_whole_timesteps(table: NoiseTable) -> None:
    whole = torch.arange(1000, dtype=torch.float64)
    assert torch.equal(table.sigma_to_t(table.sigmas), whole)
    assert torch.equal(table.t_to_sigma(whole), table.sigmas)
    t = torch.linspace(0, 999, 4321, dtype=torch.float64)
    torch.testing.assert_close(table.sigma_to_t(table.t_to_sigma(t)), t, rtol=0, atol=1e-8)
    assert float(table.sigma_to_t(0.001)) == 0
    assert float(table.sigma_to_t(1000.0)) == 999


def test_linear_betas_are_diffusers() -> None:
    from diffusers import DDPMScheduler

    config = NoiseConfig(steps=1100, beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    theirs = DDPMScheduler(num_train_timesteps=1100).alphas_cumprod.double()
    near(1 / (1 + NoiseTable.from_config(config).sigmas ** 2), theirs, 2e-6)


def test_zero_terminal_snr() -> None:
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    plain = NoiseTable.from_config(NoiseConfig())
    table = NoiseTable.from_config(NoiseConfig(zero_terminal_snr=True))
    assert abs(table.sigma_max - 4518.76) < 0.01
    near(table.sigma_min, plain.sigma_min, 1e-12)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(betas), dim=0)
    near(1 / (1 + table.sigmas[:-1] ** 2), theirs[:-1], 1e-9)


def test_a_checkpoints_own_buffer_is_taken() -> None:
    buffer = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()
    table = NoiseTable.from_config(NoiseConfig(), buffer)
    near(table.sigma_min, 0.0291675348, 1e-7)  # what AUTOMATIC1111 has, with float32's rounding
    assert NoiseTable.from_config(NoiseConfig(zero_terminal_snr=True), buffer).sigma_max > 4518


@pytest.mark.parametrize(
    "alphas", [[0.5], [0.1, 0.5], [0.9, 0.0], [0.9, float("nan")], [[0.9, 0.5]], [1.0, 0.5], [0.9, -0.5], []]
)
def test_a_damaged_buffer_is_refused(alphas: list[float]) -> None:
    with pytest.raises(Unsupported, match="does not rise"):
        NoiseTable.from_config(NoiseConfig(), torch.tensor(alphas))
    for broken in (NoiseConfig(steps=1), NoiseConfig(prediction="edm", edm_sigma_min=0.0)):
        with pytest.raises(Unsupported, match="does not rise"):
            NoiseTable.from_config(broken)


def test_edm_has_continuous_time() -> None:
    table = NoiseTable.from_config(NoiseConfig(prediction="edm", edm_sigma_max=80.0))
    assert table.continuous
    assert table.sigma_data == 0.5
    near([table.sigma_min, table.sigma_max], [0.002, 80.0], 1e-12)
    near(table.sigma_to_t(20.0), 0.25 * torch.tensor(20.0, dtype=torch.float64).log(), 1e-12)
    near(table.t_to_sigma(table.sigma_to_t(200.0)), 200.0, 1e-12)
    near(schedule_sigmas(SCHEDULES["normal"], 9, table), schedule_sigmas(SCHEDULES["exponential"], 9, table), 1e-12)
    near(schedule_sigmas(SCHEDULES["simple"], 10, table)[1], table.sigmas[899], 1e-12)


def test_schedules_are_automatic1111s(table: NoiseTable) -> None:
    """First four and last two levels before 0 at 10 steps, to the digits that are known."""
    known = {
        "karras": (14.6146, 9.1029, 5.4784, 3.1686, 0.0819, 0.0292),
        "uniform": (14.6146, 7.8399, 4.6092, 2.9183, 0.3687, 0.0292),
        "normal": (14.6146, 7.8399, 4.6092, 2.9183, 0.3687, 0.0292),
        "sgm_uniform": (14.6146, 8.3072, 5.0924, 3.3251, 0.5712, 0.3437),
        "simple": (14.6146, 8.3028, 5.0878, 3.3211, 0.5693, 0.3417),
        "ddim": (8.3907, 5.1344, 3.3478, 2.2929, 0.3462, 0.0413),
    }
    for key, expected in known.items():
        sigmas = schedule_sigmas(SCHEDULES[key], 10, table)
        assert sigmas[-1] == 0
        torch.testing.assert_close(
            torch.cat([sigmas[:4], sigmas[-3:-1]]), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=5.1e-5
        )


def test_schedules_are_k_diffusions(table: NoiseTable, k_oracle: dict[str, Any]) -> None:
    for key, expected in k_oracle["schedules_n10"].items():
        limits = (0.1, 10.0) if key == "karras_0p1_10" else (None, None)
        info = SCHEDULES[key.split("_")[0]]
        near(
            schedule_sigmas(info, 10, table, ScheduleOptions(sigma_min=limits[0], sigma_max=limits[1])), expected, 1e-12
        )
    for n, expected in k_oracle["discretization"]["get_sigmas"].items():
        near(schedule_sigmas(SCHEDULES["uniform"], int(n), table), expected, 3e-7)  # theirs rounds timesteps to float32


@pytest.mark.parametrize("n", [1, 2, 7, 25, 1000])
def test_schedules_are_live_k_diffusions(n: int, table: NoiseTable, k_diffusion: ModuleType) -> None:
    external, sampling = k_diffusion.external, k_diffusion.sampling
    low, high = table.sigma_min, table.sigma_max
    torch.set_default_dtype(torch.float64)
    try:
        wrapper = external.DiscreteEpsDDPMDenoiser(None, 1 / (1 + table.sigmas**2), quantize=False)
        near(schedule_sigmas(SCHEDULES["karras"], n, table), sampling.get_sigmas_karras(n, low, high), 1e-12)
        near(
            schedule_sigmas(SCHEDULES["karras"], n, table, ScheduleOptions(rho=3.0)),
            sampling.get_sigmas_karras(n, low, high, 3.0),
            1e-12,
        )
        near(schedule_sigmas(SCHEDULES["exponential"], n, table), sampling.get_sigmas_exponential(n, low, high), 1e-12)
        near(schedule_sigmas(SCHEDULES["uniform"], n, table), wrapper.get_sigmas(n), 3e-7)  # float32 timesteps
        sigma = torch.linspace(0.02, 16, 999)
        torch.testing.assert_close(table.sigma_to_t(sigma), wrapper.sigma_to_t(sigma), rtol=0, atol=1e-9)
    finally:
        torch.set_default_dtype(torch.float32)


def test_limits_move_the_schedules_that_take_them(table: NoiseTable) -> None:
    for key in ("karras", "exponential", "normal", "sgm_uniform"):
        sigmas = schedule_sigmas(SCHEDULES[key], 8, table, ScheduleOptions(sigma_min=0.1, sigma_max=10.0))
        near(sigmas[0], 10.0, 1e-9)
        assert sigmas[-2] > 0.0999
    for key in ("uniform", "simple", "ddim"):
        plain = schedule_sigmas(SCHEDULES[key], 8, table)
        assert torch.equal(
            schedule_sigmas(SCHEDULES[key], 8, table, ScheduleOptions(sigma_min=0.1, sigma_max=10.0)), plain
        )


def test_automatic_and_the_discarded_level(table: NoiseTable) -> None:
    automatic, karras = SCHEDULES["automatic"], SCHEDULES["karras"]
    assert torch.equal(sampler_sigmas(SAMPLERS["dpmpp_2m"], automatic, 20, table), schedule_sigmas(karras, 20, table))
    uniform = schedule_sigmas(SCHEDULES["uniform"], 20, table)
    assert torch.equal(sampler_sigmas(SAMPLERS["euler"], automatic, 20, table), uniform)
    longer = schedule_sigmas(karras, 21, table)
    for key in ("dpm_2", "dpm_2_ancestral"):
        sigmas = sampler_sigmas(SAMPLERS[key], automatic, 20, table)
        assert sigmas.tolist() == [*longer[:20].tolist(), 0.0]
    with pytest.raises(RequestError, match="decided by the sampler"):
        schedule_sigmas(automatic, 20, table)


@pytest.mark.parametrize(
    ("n", "made", "first", "last_but_one"),
    [(1, 1, 999, 999), (2, 1, 501, 501), (10, 9, 901, 101), (20, 19, 951, 51), (30, 30, 991, 34), (1000, 999, 999, 2)],
)
def test_ddims_grid(n: int, made: int, first: int, last_but_one: int, table: NoiseTable) -> None:
    ddim = SAMPLERS["ddim"]
    sigmas = sampler_sigmas(ddim, SCHEDULES["karras"], n, table)
    assert calls(ddim, sigmas) == made
    assert sigmas[0] == table.sigmas[first]
    assert sigmas[-2] == table.sigmas[last_but_one]
    assert sigmas[-1] == table.sigmas[1]


def test_calls(table: NoiseTable) -> None:
    expected = {"euler": 20, "dpmpp_2m": 20, "heun": 39, "dpm_2": 39, "dpm_2_ancestral": 39, "ddim": 19, "ddpm": 20}
    for key, made in expected.items():
        sampler = SAMPLERS[key]
        assert calls(sampler, sampler_sigmas(sampler, SCHEDULES["automatic"], 20, table)) == made
    assert calls(SAMPLERS["heun"], torch.tensor([3.0, 2.0, 1.0])) == 4


def test_no_steps_and_no_room_are_refused(table: NoiseTable) -> None:
    for key in ("euler", "ddim"):
        with pytest.raises(RequestError, match="0 step"):
            sampler_sigmas(SAMPLERS[key], SCHEDULES["automatic"], 0, table)
    with pytest.raises(RequestError, match="smallest < largest"):
        schedule_sigmas(SCHEDULES["karras"], 5, table, ScheduleOptions(sigma_min=3.0, sigma_max=2.0))
    with pytest.raises(RequestError, match="smallest < largest"):
        schedule_sigmas(SCHEDULES["karras"], 5, table, ScheduleOptions(sigma_max=float("nan")))
    with pytest.raises(RequestError, match="rho above 0"):
        schedule_sigmas(SCHEDULES["karras"], 5, table, ScheduleOptions(rho=0.0))


def test_steps_of_image_to_image() -> None:
    assert image_steps(20, 0.75) == (20, 15)
    assert image_steps(20, 1.0) == (20, 19)
    assert image_steps(20, 0.0) == (20, 0)
    assert image_steps(20, 0.75, exact=True) == (26, 19)
    assert image_steps(20, 1.0, exact=True) == (20, 19)
    # AUTOMATIC1111 makes a schedule of no steps then, and refuses nothing
    assert image_steps(20, 0.0, exact=True)[0] == 0
    assert image_steps(1000, 0.01, exact=True) == (100_000, 999)
    assert image_steps(20, 1e-12) == (20, 0)
    for steps, strength, least in ((20, 1e-12, "0.0002"), (20, 1e-300, "0.0002"), (1, 5e-324, "1e-05")):
        with pytest.raises(
            RequestError, match=f"strength {strength:g} lengthens .* 100,000 steps; .* at least {least}, or 0"
        ):
            image_steps(steps, strength, exact=True)


def test_levels_of_image_to_image(table: NoiseTable) -> None:
    euler, ddim = SAMPLERS["euler"], SAMPLERS["ddim"]
    whole = sampler_sigmas(euler, SCHEDULES["automatic"], 20, table)
    levels, noised = image_sigmas(euler, whole, 20, 15)
    assert torch.equal(levels, whole[4:])
    assert noised == whole[4]
    assert calls(euler, levels) == 16
    # DDIM's timesteps are 1, 51, …: with 15 steps it noises to number 15 and starts from number 14.
    levels, noised = image_sigmas(ddim, sampler_sigmas(ddim, SCHEDULES["automatic"], 20, table), 20, 15)
    assert noised == table.sigmas[751]
    assert levels[0] == table.sigmas[701]
    assert levels[-1] == table.sigmas[1]
    assert calls(ddim, levels) == 14
    for run in (0, 1):
        assert calls(ddim, image_sigmas(ddim, whole[:-1], 20, run)[0]) == 0
