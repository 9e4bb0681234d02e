"""Deliberate mistakes in k-diffusion's samplers, made in a copy of the package as in test_mistakes.py."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from avila_diffusion.sampling.noise import StepNoise
from avila_diffusion.sampling.schedules import NoiseTable

from .test_mistakes import Rooms, copy, near
from .test_peers import formula, in_k_diffusion, noise_of, wave

__all__ = ["copy"]  # the fixture

Driver = Callable[..., Tensor]
MakeNoise = Callable[[], StepNoise]

MISTAKES = [
    # file, what stands there, what is put instead
    ("samplers/run.py", "sqrt(2) - 1)", "sqrt(2))"),
    ("samplers/run.py", "sqrt(sigma_hat**2 - sigma**2)), sigma_hat", "(sigma_hat - sigma)), sigma_hat"),
    ("samplers/run.py", "sqrt(sigma_hat**2 - sigma**2)), sigma_hat", "sqrt(sigma_hat**2 - sigma**2)), sigma"),
    ("samplers/run.py", "if not s_tmin <= sigma <= s_tmax:", "if not s_tmin <= sigma:"),
    ("samplers/euler.py", "ahead = levels[step + 1 : -1][:2]", "ahead = levels[step + 1 :][:1]"),
    ("samplers/euler.py", "(d_look - d) * (sigma_ahead", "d_look * (sigma_ahead"),
    ("samplers/euler.py", "(1 + len(ahead)) * levels[0]", "(1 + len(ahead)) * sigma"),
    ("samplers/euler.py", "denoised.x0 if denoised.uncond is None else denoised.uncond", "denoised.x0"),
    ("samplers/euler.py", "x = denoised.x0 + d * sigma_down", "x = denoised.x0 + d * sigma_next"),
    ("samplers/euler.py", "step, want_uncond=True", "step"),
    ("samplers/lms.py", "ORDER = 4", "ORDER = 3"),
    ("samplers/lms.py", "side / sqrt(3)", "side / sqrt(2)"),
    ("samplers/dpmpp.py", "sigma_mid = sqrt(sigma * sigma_down)", "sigma_mid = sqrt(sigma * sigma_next)"),
    ("samplers/dpmpp.py", "ancestral_step(sigma, sigma_mid, eta)", "ancestral_step(sigma, sigma_mid, 0.0)"),
    ("samplers/dpmpp.py", "u = blend(x, denoised.x0, sigma_mid / sigma)", "u = blend(x, denoised.x0, sigma_down / sigma)"),
    ("samplers/dpmpp.py", "weight = _phi_2(H) if heun else -expm1(-H) / 2", "weight = -expm1(-H) / 2"),
    ("samplers/dpmpp.py", "(weight * h / h_previous)", "(weight * h_previous / h)"),
    ("samplers/dpmpp.py", "previous, h_previous = D, h", "previous, h_previous = D, H"),
    ("samplers/dpmpp.py", "D1 = first + D2 * r0", "D1 = first + D2 * r1"),
    ("samplers/dpmpp.py", "(_phi_2(H) / H - 1 / 2)", "(_phi_2(H) / H - 1 / 3)"),
    ("samplers/dpmpp.py", "*older = reversed(history)", "*older = history"),
    ("samplers/dpmpp.py", "return ratio * x + (1 - ratio) * x0", "return x + (1 - ratio) * x0"),
    ("samplers/dpm_solver.py", "m = n // 3 + 1", "m = n // 3"),
    ("samplers/dpm_solver.py", "(m - 2) + [2, 1]", "(m - 2) + [1, 2]"),
    ("samplers/dpm_solver.py", "(1 / 3, 2 / 3) if order == 3 else (1 / 2, 1.0)", "(1 / 3, 2 / 3)"),
    ("samplers/dpm_solver.py", "sigma_next / (2 * r1)", "sigma_next / r1"),
    ("samplers/dpm_solver.py", "sigma_2 * r2 / r1 * _phi(r2 * h) * D1", "sigma_2 * r2 / r1 * _phi(h) * D1"),
    ("samplers/dpm_solver.py", "sigma_next / r2 * _phi(h) * D2", "sigma_next / r2 * _phi(h) * D1"),
    ("samplers/dpm_solver.py", "1.5 if eta > 0 else 3", "3"),
    ("samplers/dpm_solver.py", "RTOL, ATOL = 0.05", "RTOL, ATOL = 0.06"),
    ("samplers/dpm_solver.py", "factor >= ACCEPT", "factor > 0"),
    ("samplers/dpm_solver.py", "x, x_last, lambda_s = x_high, x_low, lambda_t", "x, x_last, lambda_s = x_low, x_low, lambda_t"),
    ("samplers/dpm_solver.py", "sqrt(x.numel())", "x.numel()"),
    ("samplers/dpm_solver.py", "eta)[0], sigma_min)", "eta)[0], 0.0)"),
    ("samplers/restart.py", "(s_noise * up)", "up"),
    ("restarts.py", "FEWEST, TWICE = 20, 36", "FEWEST, TWICE = 21, 36"),
    ("restarts.py", "FEWEST, TWICE = 20, 36", "FEWEST, TWICE = 20, 37"),
    ("restarts.py", "levels[-2]), 0.0]", "levels[-1]), 0.0]"),
    ("restarts.py", "_karras(r + 1, levels[high]", "_karras(r, levels[high]"),
    ("restarts.py", "(segment * k)", "segment"),
    ("restarts.py", "levels[high] ** 2 - levels[low] ** 2", "(levels[high] - levels[low]) ** 2"),
    ("schedules.py", "max(3 * steps - 3, steps)", "3 * steps - 3"),
]  # fmt: skip

LIVE: list[tuple[str, int, dict[str, float]]] = [
    ("euler", 5, {"s_churn": 1.5, "s_tmax": 8.0, "s_noise": 1.1}),
    ("euler", 5, {"s_churn": 90.0}),
    ("heun", 5, {"s_churn": 1.5, "s_tmin": 1.0}),
    ("dpm_2", 5, {"s_churn": 1.5}),
    *((key, 7, {}) for key in ("lms", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun")),
    ("dpmpp_2s_ancestral", 7, {"eta": 0.5}),
    ("dpmpp_2m_sde", 7, {"eta": 0.5, "s_noise": 0.9}),
    ("dpmpp_3m_sde", 7, {"eta": 0.5}),
    *(("dpm_fast", n, {"eta": eta}) for n, eta in ((5, 0.0), (6, 1.0), (7, 0.6))),
    *(("dpm_adaptive", 2, {"eta": eta}) for eta in (0.0, 1.0)),
]


@pytest.fixture(scope="module")
def expected(k_diffusion: ModuleType, table: NoiseTable) -> list[Any]:
    """k-diffusion's own latents of the runs above."""
    found = []
    for key, n, options in LIVE:
        name, extra = key, noise_of(key, make_noise)
        if key.startswith("dpmpp_2m_sde"):
            name, extra = "dpmpp_2m_sde", {**extra, "solver_type": "heun" if key.endswith("heun") else "midpoint"}
        levels: list[Any] = [levels_of(key, n)]
        if key.startswith("dpm_fast"):
            levels = [0.05, 14.0, n]
        elif key == "dpm_adaptive":
            levels = [0.05, 14.0]
        x = wave(14.0)
        found.append(in_k_diffusion(k_diffusion, table, name, x, levels, make_noise(), **extra, **options))
    return found


def levels_of(key: str, n: int) -> Tensor:
    levels = torch.linspace(14**0.5, 0.05**0.5, n + int(key.startswith("dpm_")), dtype=torch.float64) ** 2
    return levels if key in ("dpm_fast", "dpm_adaptive") else torch.cat([levels, levels.new_zeros(1)])


def make_noise() -> StepNoise:
    """Call k gives sqrt(2) cos(0.7 i + 1.3 k)."""
    index, count = torch.arange(64, dtype=torch.float64), -1

    def noise(sigma: float, sigma_next: float) -> Tensor:
        nonlocal count
        count += 1
        return (2**0.5 * torch.cos(0.7 * index + 1.3 * count)).reshape(1, 4, 4, 4)

    return noise


def check(rooms: Rooms, expected: list[Any], drive: Driver) -> None:
    table = rooms.schedules.NoiseTable.from_config(rooms.config.NoiseConfig())
    cond = rooms.denoiser.Cond(torch.zeros(1, 1, 1))
    denoiser = rooms.denoiser.Denoiser(formula, table, "epsilon", torch.float64)
    denoise = rooms.guidance.classifier_free_guidance(denoiser, cond, None, 1.0)
    for (key, n, options), latent in zip(LIVE, expected, strict=True):
        run = rooms.samplers.SAMPLERS[key](wave(14.0), levels_of(key, n), make_noise(), **options)
        near(bounded(run, denoise, drive), latent, 1e-8)
    check_by_hand(rooms, drive)
    check_restart(rooms, drive)


def bounded(run: Any, denoise: Callable[[Any], Any], drive: Driver) -> Tensor:
    """The latent. A mistake may make a run that does not end."""
    made = 0

    def counting(call: Any) -> Any:
        nonlocal made
        made += 1
        assert made < 300
        return denoise(call)

    try:
        return drive(run, counting)
    except (ValueError, ZeroDivisionError) as error:
        raise AssertionError(str(error)) from error


def check_by_hand(rooms: Rooms, drive: Driver) -> None:
    """See test_k_samplers.py for the numbers."""
    x = torch.full((1, 1, 1, 1), 16.0, dtype=torch.float64)
    levels = torch.tensor([8.0, 4.0, 2.0, 0.0], dtype=torch.float64)

    def half(call: Any) -> Any:
        return rooms.guidance.Denoised(call.x / 2, call.x / 4 if call.want_uncond else None)

    def one(sigma: float, sigma_next: float) -> Tensor:
        return torch.ones_like(x)

    first = 16 - 4 * ((1 - 4 / 24 - 2 / 24) * 1 + 4 / 24 * 1.5 + 2 / 24 * 2.25)
    second = first - 2 * ((1 - 2 / 16) * first / 8 + 2 / 16 * (first * 3 / 4) / 4)
    near(drive(rooms.samplers.SAMPLERS["heunpp2"](x, levels, one), half).item(), second / 2)
    got = drive(rooms.samplers.SAMPLERS["euler_ancestral_cfg_pp"](x, levels[1:3], one, eta=0.5), half)
    near(got.item(), 8 + 12 / 4 * sqrt(4 - 0.75) + sqrt(0.75))
    row = rooms.names.SAMPLERS["heunpp2"]
    assert [rooms.schedules.calls(row, levels[:n]) for n in (2, 3, 4)] == [1, 3, 6]


def check_restart(rooms: Rooms, drive: Driver) -> None:
    """The number of steps, and the noise that is left at the end where x0 is 0."""
    table, row = rooms.schedules.NoiseTable.from_config(rooms.config.NoiseConfig()), rooms.names.SAMPLERS["restart"]
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for n, k, r in ((19, 0, 0), (20, 1, 9), (35, 1, 9), (36, 2, 9), (40, 2, 10)):
        sigmas = rooms.schedules.schedule_sigmas(rooms.names.SCHEDULES["karras"], n, table)
        main = rooms.schedules.schedule_sigmas(rooms.names.SCHEDULES["karras"], n - r * k, table)
        assert rooms.schedules.calls(row, sigmas) == 2 * n - 1
        bottom, top = (float(main[(main - near_to).abs().argmin()]) for near_to in (0.1, 2.0))
        seen: list[tuple[float, float]] = []

        def watching(call: Any, seen: list[tuple[float, float]] = seen) -> Any:
            seen.append((call.sigma, call.x.item()))
            return rooms.guidance.Denoised(zero)

        run = rooms.samplers.SAMPLERS["restart"](zero, sigmas, lambda a, b: zero + 1, s_noise=0.5)
        drive(run, watching)
        left = 0.0
        for _ in range(k):
            left = (left * bottom + 0.5 * sqrt(top**2 - bottom**2)) / top
        near(seen[-1][1] / seen[-1][0], left, 1e-8)
        near(seen[-1][0], table.sigma_min, 1e-8)


def test_the_check_passes_on_the_package_as_it_is(
    copy: Callable[[str, str, str], Rooms], expected: list[Any], drive: Driver
) -> None:
    check(copy("samplers/lms.py", "ORDER = 4", "ORDER = 2 + 2"), expected, drive)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda row: f"{row[0]}: {row[2]}")
def test_a_mistake_is_noticed(
    mistake: tuple[str, str, str], copy: Callable[[str, str, str], Rooms], expected: list[Any], drive: Driver
) -> None:
    rooms = copy(*mistake)
    with pytest.raises(AssertionError):
        check(rooms, expected, drive)
