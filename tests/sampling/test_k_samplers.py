"""Samplers that no other program here can be asked about, and rules of their own: worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import hypot, sqrt

import pytest
import torch
from torch import Tensor

from avila_diffusion.sampling.guidance import Call, Denoised
from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES
from avila_diffusion.sampling.restarts import restart_levels
from avila_diffusion.sampling.samplers import Options, sample
from avila_diffusion.sampling.samplers.lms import lagrange_integrals
from avila_diffusion.sampling.schedules import NoiseTable, calls, schedule_sigmas

Driver = Callable[..., Tensor]


def number(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


def levels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def no_noise(sigma: float, sigma_next: float) -> Tensor:
    raise AssertionError("noise was drawn")


def half(call: Call) -> Denoised:
    """x0 is half of x, a quarter without guidance: the slope is x / (2 sigma), or 3 x / (4 sigma)."""
    return Denoised(call.x / 2, call.x / 4 if call.want_uncond else None)


def near(got: Tensor, expected: float) -> None:
    assert got.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_heunpp2_by_hand(drive: Driver) -> None:
    """8 → 4 → 2 → 0: three slopes, two, one. The weights are 4/24 and 2/24 at first, then 2/16."""
    got = []
    run = sample(SAMPLERS["heunpp2"], number(16.0), levels(8, 4, 2, 0), no_noise)

    def watching(call: Call) -> Denoised:
        got.append((call.step, call.sigma, call.x.item()))
        return half(call)

    end = drive(run, watching)
    # Slope 1 at 8, then x 16 - 4 = 12 with 3/2 at 4, then 12 - 3 = 9 with 9/4 at 2.
    first = 16 - 4 * ((1 - 4 / 24 - 2 / 24) * 1 + 4 / 24 * 1.5 + 2 / 24 * 2.25)
    # Slope first / 8 at 4, then 3/4 of first at 2.
    second = first - 2 * ((1 - 2 / 16) * first / 8 + 2 / 16 * (first * 3 / 4) / 4)
    steps = [(0, 8, 16), (0, 4, 12), (0, 2, 9), (1, 4, first), (1, 2, first * 3 / 4), (2, 2, second)]
    assert [row[:2] for row in got] == [row[:2] for row in steps]
    assert [row[2] for row in got] == pytest.approx([row[2] for row in steps], rel=1e-12)
    near(end, second / 2)
    assert calls(SAMPLERS["heunpp2"], levels(8, 4, 2, 0)) == 6
    assert [calls(SAMPLERS["heunpp2"], levels(*range(n, -1, -1))) for n in (1, 2, 5)] == [1, 3, 12]


def test_euler_cfg_pp_by_hand(drive: Driver) -> None:
    """x0 of the guided prediction and the slope of the other: 10 / 2 + 3/4 * 10 / 4 * 2, then half of that."""
    run = sample(SAMPLERS["euler_cfg_pp"], number(10.0), levels(4, 2, 0), no_noise)
    near(drive(run, half), (5 + 7.5 / 4 * 2) / 2)
    # Without a negative prompt it is Euler's.
    plain = drive(sample(SAMPLERS["euler"], number(10.0), levels(4, 2, 1), no_noise), half)
    same = drive(
        sample(SAMPLERS["euler_cfg_pp"], number(10.0), levels(4, 2, 1), no_noise), lambda call: Denoised(call.x / 2)
    )
    near(same, plain.item())


def test_euler_ancestral_cfg_pp_by_hand(drive: Driver) -> None:
    """sigma_up^2 = eta^2 4 (16 - 4) / 16, and sigma_down^2 = 4 - sigma_up^2."""
    options = Options(eta=0.5, s_noise=0.9)
    run = sample(
        SAMPLERS["euler_ancestral_cfg_pp"], number(10.0), levels(4, 2), lambda a, b: number(3.0), options=options
    )
    up = sqrt(0.25 * 3)
    near(drive(run, half), 5 + 7.5 / 4 * sqrt(4 - 0.75) + 3 * 0.9 * up)


@pytest.mark.parametrize("key", ["euler", "heun", "dpm_2", "heunpp2"])
def test_churn_by_hand(key: str, drive: Driver) -> None:
    """gamma is s_churn / steps, at most sqrt(2) - 1, and the level goes up by it where s_tmin and s_tmax let it."""
    drawn: list[tuple[float, float]] = []

    def noise(sigma: float, sigma_next: float) -> Tensor:
        drawn.append((sigma, sigma_next))
        return number(1.0)

    def first_calls(sigmas: Tensor, **options: float) -> list[tuple[float, float]]:
        drawn.clear()
        seen: dict[int, tuple[float, float]] = {}

        def watching(call: Call) -> Denoised:
            seen.setdefault(call.step, (call.sigma, call.x.item()))
            return Denoised(number(0.0))  # x / sigma stays as it is

        drive(sample(SAMPLERS[key], number(8.0), sigmas, noise, options=Options(**options)), watching)
        return list(seen.values())

    sigmas = levels(8, 4, 2, 1, 0)
    seen = first_calls(sigmas, s_churn=1.0, s_tmin=4.0, s_noise=0.5)  # gamma is 1/4 for the first two
    raised = 8 + 0.5 * sqrt(10**2 - 8**2)
    again = raised * 4 / 10 + 0.5 * sqrt(5**2 - 4**2)
    expected = [(10, raised), (5, again), (2, again * 2 / 5), (1, again / 5)]
    assert [value for row in seen for value in row] == pytest.approx([value for row in expected for value in row])
    # k-diffusion draws for every step, used or not: the numbers of the later ones depend on it.
    assert drawn == [(8, 10), (4, 5), (2, 2.5), (1, 1.25)]
    assert first_calls(sigmas, s_churn=100.0, s_tmax=2.0)[2][0] == pytest.approx(2 * sqrt(2))
    assert [sigma for sigma, _ in first_calls(sigmas, s_churn=0.0, s_tmin=1.0)] == [8, 4, 2, 1]
    assert drawn == []


def test_lagrange_integrals() -> None:
    """Adams and Bashforth's weights on levels one apart; the polynomials' integrals by antiderivatives elsewhere."""
    fourth = lagrange_integrals([3.0, 2.0, 1.0, 0.0], -1.0)
    assert [-24 * weight for weight in fourth] == pytest.approx([-9, 37, -59, 55], rel=1e-12)
    third = lagrange_integrals([2.0, 1.0, 0.0], -1.0)
    assert [-12 * weight for weight in third] == pytest.approx([5, -16, 23], rel=1e-12)
    uneven = [9.0, 5.0, 2.0, 1.5]
    for power in range(4):
        integral = sum(w * x**power for w, x in zip(lagrange_integrals(uneven, 0.25), uneven, strict=True))
        assert integral == pytest.approx((0.25 ** (power + 1) - 1.5 ** (power + 1)) / (power + 1), rel=1e-12)


@pytest.mark.parametrize(("n", "r", "k"), [(20, 9, 1), (28, 9, 1), (35, 9, 1), (36, 9, 2), (50, 12, 2), (101, 25, 2)])
def test_restart_levels(n: int, r: int, k: int, table: NoiseTable) -> None:
    sigmas = schedule_sigmas(SCHEDULES["exponential"], n, table)
    way = restart_levels(sigmas)
    assert len(way) == n  # what the restarts take is taken from the rest
    # The way without restarts is Karras' between the ends.
    low = [index for index, (_, _, up) in enumerate(way) if up > 0]
    assert len(low) == k
    main = way[: low[0]] + way[low[0] + r * k :]
    expected = schedule_sigmas(SCHEDULES["karras"], n - r * k, table)
    torch.testing.assert_close(levels(*(step[0] for step in main), 0.0), expected, rtol=1e-9, atol=0)
    assert all(one[1] == two[0] for one, two in pairwise(main))
    # Each starts at the level nearest 0.1, goes up to that nearest 2, and down again in r steps of Karras'.
    bottom, top = (min(expected.tolist(), key=lambda level: abs(level - near_to)) for near_to in (0.1, 2.0))
    for start in low:
        segment = way[start : start + r]
        assert way[start - 1][1] == pytest.approx(bottom, rel=1e-9)
        assert segment[0][0] == pytest.approx(top, rel=1e-9)
        assert segment[-1][1] == pytest.approx(bottom, rel=1e-9)
        assert segment[0][2] == pytest.approx(sqrt(top**2 - bottom**2), rel=1e-9)
        assert all(up == 0 for _, _, up in segment[1:])
        roots = [sigma ** (1 / 7) for sigma, _, _ in segment] + [bottom ** (1 / 7)]
        assert [b - a for a, b in pairwise(roots)] == pytest.approx([(roots[-1] - roots[0]) / r] * r, rel=1e-6)
    assert calls(SAMPLERS["restart"], sigmas) == 2 * n - 1


def test_restart_of_few_steps_is_heun(table: NoiseTable, drive: Driver) -> None:
    sigmas = schedule_sigmas(SCHEDULES["normal"], 19, table)
    assert restart_levels(sigmas) == [(*pair, 0.0) for pair in pairwise(sigmas.tolist())]

    def bent(call: Call) -> Denoised:
        return Denoised(torch.tanh(call.x / hypot(1, call.sigma)))

    got, heun = (drive(sample(SAMPLERS[key], number(20.0), sigmas, no_noise), bent) for key in ("restart", "heun"))
    assert torch.equal(got, heun)
    assert calls(SAMPLERS["restart"], sigmas) == 37


def test_restart_by_hand(table: NoiseTable, drive: Driver) -> None:
    """x0 is 0 throughout, so that x / sigma changes by the noise alone."""
    sigmas = schedule_sigmas(SCHEDULES["karras"], 40, table)
    seen: list[tuple[float, float]] = []

    def watching(call: Call) -> Denoised:
        seen.append((call.sigma, call.x.item()))
        return Denoised(number(0.0))

    run = sample(SAMPLERS["restart"], number(0.0), sigmas, lambda a, b: number(1.0), options=Options(s_noise=0.5))
    end = drive(run, watching)
    ups = [up for _, _, up in restart_levels(sigmas) if up > 0]
    top = max(sigma for sigma, x in seen if x > 0)
    bottom = sqrt(top**2 - ups[0] ** 2)
    ratio = 0.5 * ups[0] / top
    after_two = (ratio * bottom + 0.5 * ups[1]) / top
    assert seen[-1][1] == pytest.approx(after_two * seen[-1][0], rel=1e-9)
    near(end, 0.0)


@pytest.mark.parametrize("key", ["dpm_fast", "dpm_adaptive"])
def test_one_level_gives_x0(key: str, drive: Driver) -> None:
    near(drive(sample(SAMPLERS[key], number(6.0), levels(3, 0), no_noise), half), 3.0)


def test_calls_of_dpm_adaptive_are_its_own_affair() -> None:
    assert calls(SAMPLERS["dpm_adaptive"], levels(3, 2, 1, 0)) is None
    assert calls(SAMPLERS["dpm_fast"], levels(3, 2, 1, 0)) == 3


def test_dpm_adaptive_judges_each_picture_by_itself(drive: Driver) -> None:
    """Four times as many elements of the same kind make the same steps: the error is a mean."""
    made = []
    for size in (1, 4):
        count = 0

        def counting(call: Call) -> Denoised:
            nonlocal count
            count += 1
            return Denoised(torch.tanh(call.x / hypot(1, call.sigma)))

        x = torch.linspace(-20, 20, 16, dtype=torch.float64).reshape(1, 1, 4, 4).repeat(1, size, 1, 1)
        end = drive(
            sample(SAMPLERS["dpm_adaptive"], x, levels(14, 1, 0.03), no_noise, options=Options(eta=0.0)), counting
        )
        made.append((count, end[:, :1]))
    assert made[0][0] == made[1][0]
    torch.testing.assert_close(made[0][1], made[1][1], rtol=1e-12, atol=1e-12)
