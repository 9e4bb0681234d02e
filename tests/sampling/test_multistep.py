"""Samplers that remember: DEIS, IPNDM, IPNDM_V, ER-SDE, SA-Solver, against diffusers, SciPy's integrals and by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import exp, hypot, log, log1p, log2, prod, sqrt
from types import MethodType
from typing import Any

import pytest
import torch
from diffusers import IPNDMScheduler, SASolverScheduler
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import Tensor

from avila_diffusion.sampling.guidance import Call, Denoised
from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES
from avila_diffusion.sampling.noise import StepNoise, initial_noise, noise_source, step_noise
from avila_diffusion.sampling.samplers import Options, sample
from avila_diffusion.sampling.schedules import NoiseTable, ScheduleOptions, schedule_sigmas

# diffusers hands tensors to numpy in ways that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

Driver = Callable[..., Tensor]
MakeNoise = Callable[[], StepNoise]
LEVELS = [14.6, 8.0, 4.5, 3.5, 1.0, 0.3, 0.1]
"""Steps of very unequal length."""
MEAN, SPREAD = 0.3, 0.7


def x0_at(x: Tensor, sigma: float) -> Tensor:
    """A formula for a denoiser."""
    return torch.tanh(x / hypot(1, sigma)) + 0.1 * torch.cos(x / 7 + sigma)


def wavy(call: Call) -> Denoised:
    return Denoised(x0_at(call.x, call.sigma))


def gaussian(call: Call) -> Denoised:
    """The true denoiser of data N(MEAN, SPREAD^2)."""
    return Denoised((SPREAD**2 * call.x + call.sigma**2 * MEAN) / (SPREAD**2 + call.sigma**2))


def no_noise(sigma: float, sigma_next: float) -> Tensor:
    raise AssertionError("noise was drawn")


def wave(scale: float) -> Tensor:
    return (scale * torch.sin(0.1 * (torch.arange(64, dtype=torch.float64) + 1))).reshape(1, 4, 4, 4)


def levels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert (got - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item())


def lagrange(nodes: Sequence[float], j: int, u: float) -> float:
    return prod((u - node) / (nodes[j] - node) for k, node in enumerate(nodes) if k != j)


def by_slopes(x: Tensor, sigmas: Sequence[float], weights: Callable[[int], Sequence[float]]) -> Tensor:
    """A run where step i adds weights(i) times the slopes, the latest first; a step to 0 ends at x0."""
    slopes: list[Tensor] = []
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = x0_at(x, sigma)
        if sigma_next == 0:
            return x0
        slopes.insert(0, (x - x0) / sigma)
        row = weights(i)
        x = x + sum((w * slope for w, slope in zip(row, slopes, strict=False)), torch.zeros_like(x))
    return x


def test_live_ipndm(drive: Driver) -> None:
    """diffusers' class has a schedule of its own; with alpha 1 and these levels its formula is that of x0 + sigma eps."""
    scheduler: Any = IPNDMScheduler()
    scheduler.set_timesteps(len(LEVELS))
    scheduler.alphas, scheduler.betas = torch.ones(len(LEVELS)), levels(*LEVELS)
    theirs = wave(14.6)
    for t, sigma in zip(scheduler.timesteps, LEVELS[:-1], strict=False):
        slope = (theirs - x0_at(theirs, sigma)) / sigma
        theirs = scheduler.step(slope - theirs * sigma, t, theirs).prev_sample
    ours = drive(sample(SAMPLERS["ipndm"], wave(14.6), levels(*LEVELS), no_noise), wavy)
    close(ours, theirs)


def test_ipndm_ends_at_x0(drive: Driver) -> None:
    fixed = [[1.0], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], *[[55 / 24, -59 / 24, 37 / 24, -9 / 24]] * 3]
    expected = by_slopes(wave(14.6), [*LEVELS, 0.0], lambda i: [w * (LEVELS[i + 1] - LEVELS[i]) for w in fixed[i]])
    close(drive(sample(SAMPLERS["ipndm"], wave(14.6), levels(*LEVELS, 0.0), no_noise), wavy), expected)


IPNDM_V = [
    [1.0],
    [1.2651515151515151, -0.26515151515151514],
    [1.638142385667138, -0.9007936507936507, 0.2626512651265127],
    [3.032574240907574, -2.3216053748231964, 0.32373336540003206, -0.01869671247323298],
    [1.7056666666666664, -2.2656666666666667, 1.6016666666666668, -0.36458333333333326],
    [1.670564058956916, -0.8261768707482993, 0.17525, -0.0021993650793650783],
]
"""What diff-sampler's and ComfyUI's programs weigh the slopes with at LEVELS, for steps of length 1 (float64)."""


@pytest.mark.parametrize("end", [(), (0.0,)])
def test_ipndm_v_has_its_authors_weights(end: tuple[float, ...], drive: Driver) -> None:
    expected = by_slopes(wave(14.6), [*LEVELS, *end], lambda i: [w * (LEVELS[i + 1] - LEVELS[i]) for w in IPNDM_V[i]])
    close(drive(sample(SAMPLERS["ipndm_v"], wave(14.6), levels(*LEVELS, *end), no_noise), wavy), expected)
    # The second step's are the exact integrals of the line through two slopes.
    exact = [
        quad(lambda u, j=j: lagrange(LEVELS[1::-1], j, u), LEVELS[1], LEVELS[2])[0] / (LEVELS[2] - LEVELS[1])
        for j in range(2)
    ]
    assert IPNDM_V[1] == pytest.approx(exact, rel=1e-12)


def deis_time(sigma: float) -> float:
    """When the process has this noise: it has 0.002 at 0.001 and 80 at 1, and ln(1 + sigma^2) is a parabola from 0."""
    a, b = torch.linalg.solve(
        levels(1e-6, 1e-3, 1.0, 1.0).reshape(2, 2), levels(log1p(0.002**2), log1p(80.0**2))
    ).tolist()
    return float(brentq(lambda t: a * t**2 + b * t - log1p(sigma**2), 1e-3, 10.0, xtol=1e-15))


COMFYUI_DEIS = [
    [-5.168404579162598, 1.6683920621871948],
    [-1.3805311918258667, 0.5465587973594666, -0.16602985560894012],
    [-15.327289581298828, 16.372955322265625, -3.5457136631011963],
    [-1.2009458541870117, 2.0192453861236572, -1.5183029174804688],
    [-0.2537122964859009, 0.06629941612482071, -0.01258732657879591],
]
"""ComfyUI's weights at LEVELS from the second step on: sums of 10000 points in float32."""


@pytest.mark.parametrize("end", [(), (0.0,)])
def test_deis_integrates_a_polynomial_in_time_over_sigma(end: tuple[float, ...], drive: Driver) -> None:
    times = [deis_time(sigma) for sigma in LEVELS]

    def weights(i: int) -> list[float]:
        nodes = times[max(i - 2, 0) : i + 1][::-1]
        return [
            quad(lambda u, j=j: lagrange(nodes, j, deis_time(u)), LEVELS[i], LEVELS[i + 1], epsabs=1e-11, epsrel=1e-11)[
                0
            ]
            for j in range(len(nodes))
        ]

    table = [weights(i) for i in range(6)]
    for ours, theirs in zip(table[1:], COMFYUI_DEIS, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-4 * sum(map(abs, theirs)))
    expected = by_slopes(wave(14.6), [*LEVELS, *end], lambda i: table[i])
    close(drive(sample(SAMPLERS["deis"], wave(14.6), levels(*LEVELS, *end), no_noise), wavy), expected, 1e-9)


@pytest.mark.parametrize(("key", "n", "order"), [("deis", 32, 2.88), ("ipndm_v", 512, 2.0), ("sa_solver", 64, 4.0)])
def test_how_fast_they_converge(key: str, n: int, order: float, table: NoiseTable, drive: Driver) -> None:
    """DEIS is of order 3 but for its first step, Euler's. IPNDM_V is of order 2. SA-Solver without noise has 4."""
    options = Options(eta=0.0) if SAMPLERS[key].uses_eta else Options()
    errors = []
    for steps in (n, 2 * n):
        sigmas = schedule_sigmas(SCHEDULES["karras"], steps + 1, table, ScheduleOptions(sigma_min=0.1, sigma_max=10.0))[
            :-1
        ]
        got = drive(sample(SAMPLERS[key], wave(10.0), sigmas, no_noise, table=table, options=options), gaussian)
        expected = MEAN + (wave(10.0) - MEAN) * hypot(SPREAD, 0.1) / hypot(SPREAD, 10.0)
        errors.append((got - expected).abs().max().item())
    assert abs(log2(errors[0] / errors[1]) - order) < 0.2


def phi(u: float) -> float:
    return u * (exp(u**0.3) + 10)


@pytest.mark.parametrize("s_noise", [1.0, 0.7, 0.0])
def test_er_sde_by_its_exact_solution(s_noise: float, formula_noise: MakeNoise, drive: Driver) -> None:
    """x_t = phi_t / phi_s x_s + phi_t times the integral of phi' / phi^2 x0(u), x0 a Taylor polynomial, plus noise.

    Integrated by parts that is x0(t) - phi_t / phi_s x0(s) + phi_t times the integral of x0' / phi, which the authors'
    program takes as a sum of 200 points.
    """
    noise, x = formula_noise(), wave(14.6)
    seen: list[Tensor] = []
    slopes: list[Tensor] = []
    for i, (s, t) in enumerate(pairwise(LEVELS)):
        seen.append(x0_at(x, s))
        zero = torch.zeros_like(x)
        first = (seen[i] - seen[i - 1]) / (s - LEVELS[i - 1]) if i > 0 else zero
        slopes.append(first)
        second = (first - slopes[i - 1]) / ((s - LEVELS[i - 2]) / 2) if i > 1 else zero
        points = [t + k * (s - t) / 200 for k in range(200)]
        inner = sum(((first + (u - s) * second) / phi(u) * (s - t) / 200 for u in points), zero)
        at_t = seen[i] + (t - s) * first + (t - s) ** 2 / 2 * second
        ratio = phi(t) / phi(s)
        x = ratio * x + at_t - ratio * seen[i] + phi(t) * inner
        if s_noise:
            x = x + s_noise * sqrt(t**2 - (ratio * s) ** 2) * noise(s, t)
    run = sample(
        SAMPLERS["er_sde"], wave(14.6), levels(*LEVELS), formula_noise() if s_noise else no_noise,
        options=Options(s_noise=s_noise),
    )  # fmt: skip
    close(drive(run, wavy), x)
    run = sample(
        SAMPLERS["er_sde"], wave(14.6), levels(*LEVELS, 0.0), formula_noise(), options=Options(s_noise=s_noise)
    )
    close(drive(run, wavy), x0_at(x, LEVELS[-1]))


def without_the_addition(self: Any, order: int, start: Tensor, end: Tensor, nodes: list[Tensor], tau: float) -> Any:
    """diffusers' integrals, less what it adds to those of order 2 (which is of a higher order and not in algorithm 1)."""
    integrals = type(self).get_coefficients_fn(self, order, start, end, nodes, tau)
    if order == 2:
        rate, h = 1 + tau**2, end - start
        bend = (h * rate - 1 + torch.exp(-rate * h)) / rate**2
        corrects = bool(nodes[0] == end)
        added = torch.exp(rate * end) * ((h / 2 - bend / h) if corrects else (h**2 / 2 - bend) / (start - nodes[1]))
        integrals = [integrals[0] - added, integrals[1] + added]
    return integrals


@pytest.mark.parametrize("eta", [0.0, 1.0, 0.6])
def test_live_sa_solver(eta: float, table: NoiseTable, drive: Driver) -> None:
    """Orders 3 and 4 on the same levels, all within the interval of noise."""
    sigmas = levels(7.3, 5.0, 3.1, 2.2, 1.7, 1.0, 0.7)
    assert table.at(0.2 * 999) < 0.7
    assert table.at(0.8 * 999) > 5.0
    scheduler: Any = SASolverScheduler(
        predictor_order=3, corrector_order=4, tau_func=lambda t: eta, lower_order_final=False
    )
    scheduler.get_coefficients_fn = MethodType(without_the_addition, scheduler)
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas
    theirs, generator = wave(1.0), torch.Generator().manual_seed(2)
    for t, sigma in zip(scheduler.timesteps, sigmas[:-1].tolist(), strict=True):
        x = theirs * hypot(1, sigma)
        theirs = scheduler.step((x - x0_at(x, sigma)) / sigma, t, theirs, generator=generator).prev_sample
    generator = torch.Generator().manual_seed(2)

    def noise(sigma: float, sigma_next: float) -> Tensor:
        return torch.randn(1, 4, 4, 4, generator=generator, dtype=torch.float64)

    run = sample(
        SAMPLERS["sa_solver"], wave(1.0) * hypot(1, 7.3), sigmas, noise if eta else no_noise,
        table=table, options=Options(eta=eta),
    )  # fmt: skip
    close(drive(run, wavy), theirs * hypot(1, 0.7), 1e-9)


def adams(x: Tensor, s: float, t: float, tau: float, known: Sequence[tuple[float, Tensor]]) -> Tensor:
    """The exact solution from level s to t where x0 is the polynomial in lambda = -ln(sigma) through the known."""
    nodes, rate = [-log(sigma) for sigma, _ in known], 1 + tau**2
    x = x * (t / s) * exp(tau**2 * log(t / s))
    for j, (_, x0) in enumerate(known):
        weight = quad(
            lambda u, j=j: rate * exp(rate * (u + log(t))) * lagrange(nodes, j, u), -log(s), -log(t), epsabs=1e-12
        )
        x = x + weight[0] * x0
    return x


@pytest.mark.parametrize(("eta", "s_noise"), [(1.0, 1.0), (0.5, 1.3), (1.0, 0.0)])
def test_a_whole_run_of_sa_solver(
    eta: float, s_noise: float, table: NoiseTable, formula_noise: MakeNoise, drive: Driver
) -> None:
    """Noise only on the way to levels of the middle of the time; near 0 the orders fall; the last step takes x0."""
    sigmas = [14.6, 8.0, 5.0, 2.5, 1.5, 0.9, 0.4, 0.1, 0.0]
    predictor = [1, 2, 3, 3, 3, 2, 1]
    corrector = [0, 2, 3, 4, 4, 3, 2]
    tau = [0.0, eta, eta, eta, eta, 0.0, 0.0]
    assert float(table.at(0.8 * 999)) == pytest.approx(5.0924, abs=1e-4)
    assert float(table.at(0.2 * 999)) == pytest.approx(0.5712, abs=1e-4)
    noise, x, expected = formula_noise(), wave(14.6), wave(14.6)
    known: list[tuple[float, Tensor]] = []
    added = torch.zeros_like(x)
    for i in range(7):
        known.insert(0, (sigmas[i], x0_at(expected, sigmas[i])))
        if i > 0:
            x = adams(x, sigmas[i - 1], sigmas[i], tau[i - 1], known[: corrector[i]]) + added
        added = torch.zeros_like(x)
        if tau[i] and s_noise:
            spread = sqrt(1 - (sigmas[i + 1] / sigmas[i]) ** (2 * tau[i] ** 2))
            added = s_noise * sigmas[i + 1] * spread * noise(0, 0)
        expected = adams(x, sigmas[i], sigmas[i + 1], tau[i], known[: predictor[i]]) + added
    run = sample(
        SAMPLERS["sa_solver"], wave(14.6), levels(*sigmas), formula_noise() if s_noise else no_noise,
        table=table, options=Options(eta=eta, s_noise=s_noise),
    )  # fmt: skip
    close(drive(run, wavy), x0_at(expected, 0.1), 1e-9)


@pytest.mark.parametrize(
    ("key", "n"), [("er_sde", 4), ("er_sde", 30), ("sa_solver", 4), ("sa_solver", 30), ("tcd", 5), ("lcm", 5)]
)
def test_noise_keeps_the_variance_exactly(key: str, n: int, table: NoiseTable, drive: Driver) -> None:
    """For data that is one point, x at level sigma is that point plus noise of sigma, whatever the steps were."""
    sigmas = schedule_sigmas(SCHEDULES["karras"], n, table, ScheduleOptions(sigma_min=0.5))[:-1]
    source = noise_source("cpu", 5)
    like = torch.zeros(1, 4, 128, 128, dtype=torch.float64)
    x = MEAN + initial_noise(source, (4, 128, 128)).double() * sigmas[0]
    got = drive(
        sample(SAMPLERS[key], x, sigmas, step_noise(source, like), table=table), lambda _: Denoised(like + MEAN)
    )
    assert abs(got.mean().item() - MEAN) < 4 * 0.5 / 256
    assert abs(got.std().item() / 0.5 - 1) < 4 / 256 / sqrt(2)


@pytest.mark.parametrize("key", ["er_sde", "sa_solver"])
def test_noise_reaches_the_data(key: str, table: NoiseTable, drive: Driver) -> None:
    sigmas = schedule_sigmas(SCHEDULES["karras"], 200, table)
    source = noise_source("cpu", 6)
    x = initial_noise(source, (4, 64, 64)).double() * sigmas[0]
    got = drive(sample(SAMPLERS[key], x, sigmas, step_noise(source, x), table=table), gaussian)
    assert abs(got.mean().item() - MEAN) < 0.03
    assert abs(got.std().item() / SPREAD - 1) < 0.03
