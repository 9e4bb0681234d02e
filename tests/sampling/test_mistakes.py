"""Deliberate mistakes: each is made in a copy of the package, and a short check of the numbers must notice it."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import count
from math import hypot
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import avila_diffusion.errors

Driver = Callable[..., Tensor]

SOURCE = Path(avila_diffusion.errors.__file__).parent
ORACLE = json.loads((Path(__file__).parent / "k_diffusion.json").read_text(encoding="utf-8"))
NUMBERS = count()

MISTAKES = [
    # file, what stands there, what is put instead
    ("denoiser.py", "else self.table.sigma_to_t(sigma))", "else self.table.sigma_to_t(sigma).round())"),
    ("denoiser.py", "(x * scale.inp)", "x"),
    ("denoiser.py", 'out=out if prediction == "edm" else -out', 'out=-out if prediction == "edm" else out'),
    ("denoiser.py", "skip=1.0, out=-sigma", "skip=1.0, out=-total"),
    ("denoiser.py", "(sigma_data / total) ** 2", "sigma_data / total"),
    ("denoiser.py", "for row, index in enumerate(members)", "for row, index in enumerate(reversed(members))"),
    ("denoiser.py", "told = torch.float64 if self.dtype == torch.float64 else torch.float32", "told = torch.float16"),
    ("guidance.py", "*predictions, base =", "base, *predictions ="),
    ("guidance.py", "(x0 - base)", "(base - x0)"),
    ("guidance.py", "cond.weight * scale for", "scale for"),
    ("noise.py", "for turn in range(10)", "for turn in range(9)"),
    ("noise.py", "self._draws += 1", "self._draws += 2"),
    ("noise.py", "self._key = (seed & 0xFFFFFFFF, seed >> 32)", "self._key = (seed & 0xFFFFFFFF, 0)"),
    ("noise.py", "np.sin", "np.cos"),
    ("tables.py", "4.8973451890853435e-08", "4.9e-08"),
    ("tables.py", "root[0] / (root[0] - root[-1])", "1 / (1 - root[-1])"),
    (
        "levels.py",
        "sigmas: Tensor = (start + ramp * (end - start)) ** span.rho",
        "sigmas = (start + ramp * (end - start)) ** 5",
    ),
    ("levels.py", "span.timesteps(n + 1)[:-1]", "span.timesteps(n)"),
    ("levels.py", "len(sigmas) - 1 - int(i * stride)", "len(sigmas) - 1 - round((i + 0.5) * stride)"),
    ("levels.py", "sigmas[1 :: max", "sigmas[0 :: max"),
    ("grids.py", "min(t + 1, top)", "min(t, top)"),
    ("schedules.py", "sampler.discard_penultimate\n", "False\n"),
    ("schedules.py", "above = max(len(sigmas) - 1 - run, 0)", "above = max(len(sigmas) - run, 0)"),
    ("schedules.py", "sigmas[max(steps - run - 1, 0) :]", "sigmas[steps - run :]"),
    ("samplers/__init__.py", 'sampler.text_start == "scaled"', 'sampler.text_start == "unit"'),
    ("samplers/__init__.py", "(hypot(1, first) / hypot(1, level))", "1"),
    ("samplers/run.py", "sqrt(sigma_next**2 - sigma_up**2), sigma_up", "sigma_next, sigma_up"),
    ("samplers/run.py", "eta * sigma_next * sqrt", "eta * sqrt"),
    (
        "samplers/euler.py",
        "denoised = yield Call(x_next, sigma_next, step)",
        "denoised = yield Call(x_next, sigma, step)",
    ),
    ("samplers/euler.py", "(x_next - denoised.x0) / sigma_next", "(x_next - denoised.x0) / sigma"),
    ("samplers/dpm.py", "sqrt(sigma_hat * sigma_next)", "(sigma_hat + sigma_next) / 2"),
    ("samplers/dpm.py", "sqrt(sigma * sigma_down)", "sqrt(sigma * sigma_next)"),
    ("samplers/dpmpp.py", "r = h_last / h\n", "r = h / h_last\n"),
    ("samplers/dpmpp.py", "last, h_last = denoised.x0, h", "last, h_last = D, h"),
    ("samplers/grid.py", "return x * sqrt(a_prev)", "return x"),
    ("samplers/grid.py", "a_t, a_prev = 1 / (1 + sigma**2)", "a_t, a_prev = 1 / (1 + sigma)"),
    ("samplers/grid.py", "sqrt(1 - ratio)", "(1 - ratio)"),
    ("samplers/grid.py", "(1 - ratio) * denoised.x0", "denoised.x0"),
    ("catalogue.py", 'order=1,\n        text_start="unit"', 'order=1,\n        text_start="scaled"'),
    (
        "catalogue.py",
        'order=1,\n        text_start="unit",\n        image_start="above"',
        'order=1,\n        text_start="unit",\n        image_start="first"',
    ),
]


class Rooms(SimpleNamespace):
    """The modules of one copy of the package."""

    config: Any
    denoiser: Any
    guidance: Any
    names: Any
    noise: Any
    samplers: Any
    schedules: Any


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Callable[[str, str, str], Rooms]]:
    """Makes a copy of sampling/ under another package name, with one text replaced, and imports it."""
    name = f"mistaken_{next(NUMBERS)}"

    def make(file: str, old: str, new: str) -> Rooms:
        package = tmp_path / name
        shutil.copytree(SOURCE / "sampling", package / "sampling", ignore=shutil.ignore_patterns("__pycache__"))
        (package / "__init__.py").write_text("", encoding="utf-8")
        for seam in ("config.py", "errors.py", "limits.py"):
            shutil.copy(SOURCE / seam, package / seam)
        path = package / "sampling" / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
        path.write_text(text.replace(old, new), encoding="utf-8")
        sys.path.insert(0, str(tmp_path))
        rooms = ("denoiser", "guidance", "names", "noise", "samplers", "schedules")
        loaded = {room: importlib.import_module(f"{name}.sampling.{room}") for room in rooms}
        return Rooms(config=importlib.import_module(f"{name}.config"), **loaded)

    yield make
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def check(rooms: Rooms, drive: Driver) -> None:
    """Numbers from outside the package, reached through each of its rooms."""
    table = rooms.schedules.NoiseTable.from_config(rooms.config.NoiseConfig())
    check_levels(rooms, table)
    check_noise(rooms)
    check_guidance(rooms, table)
    check_runs(rooms, table, drive)
    check_grids(rooms, table, drive)


def near(got: Any, expected: Any, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(
        torch.as_tensor(got, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        rtol=tolerance,
        atol=1e-9,
    )


def check_levels(rooms: Rooms, table: Any) -> None:
    names, schedules = rooms.names, rooms.schedules
    known = {
        "karras": [14.614641, 9.102928, 5.478392],
        "normal": [14.614641, 7.839883, 4.609174],
        "sgm_uniform": [14.614641, 8.307171, 5.092408],
        "simple": [14.614641, 8.302803, 5.087763],
        "ddim": [8.390685, 5.134431, 3.347764],
    }
    for key, expected in known.items():
        near(schedules.schedule_sigmas(names.SCHEDULES[key], 10, table)[:3], expected, 1e-6)
    longer = schedules.schedule_sigmas(names.SCHEDULES["karras"], 11, table)
    automatic = names.SCHEDULES["automatic"]
    near(schedules.sampler_sigmas(names.SAMPLERS["dpm_2"], automatic, 10, table)[:10], longer[:10])
    rescaled = schedules.NoiseTable.from_config(rooms.config.NoiseConfig(zero_terminal_snr=True))
    near([rescaled.sigma_min, rescaled.sigma_max], [0.02916716, 4518.76], 1e-5)
    ddim, euler = names.SAMPLERS["ddim"], names.SAMPLERS["euler"]
    grid = schedules.sampler_sigmas(ddim, automatic, 20, table)
    near(grid[[0, -1]], table.sigmas[[951, 1]])
    levels, noised = schedules.image_sigmas(ddim, grid, 20, 15)
    near([noised, levels[0]], table.sigmas[[751, 701]])
    near(schedules.image_sigmas(euler, longer, 11, 7)[1], longer[3])


def check_noise(rooms: Rooms) -> None:
    source = rooms.noise.noise_source("nv", 0)
    near(source.draw((4,)), [-0.92466259, -0.42534415, -2.6438457, 0.14518388], 1e-5)
    # Counter (1, 0, 0, 0) and a key above 32 bits, worked out on Python integers.
    near(source.draw((1,)), [0.18082589], 1e-5)
    near(rooms.noise.noise_source("nv", 2**32 + 1).draw((1,)), [0.85489405], 1e-5)


def check_guidance(rooms: Rooms, table: Any) -> None:
    """One call at sigma 2, worked out by hand: the network answers x plus its context plus t / 1000."""

    def network(*, x: Tensor, t: Tensor, context: Tensor, **_: object) -> Tensor:
        return x + context[:, :1, :1, None].to(x.dtype) + (t / 1000).reshape(-1, 1, 1, 1).to(x.dtype)

    cond = rooms.denoiser.Cond
    x = torch.full((1, 4, 2, 2), 3.0, dtype=torch.float64)
    t = 0.5622859809  # sigma 2 lies at timestep 562.286
    conds = [cond(torch.full((1, 77, 3), 0.5), weight=0.8), cond(torch.full((1, 77, 3), 0.25), weight=0.5)]
    uncond = cond(torch.full((1, 77, 3), -0.25))

    def x0(prediction: str, value: float, sigma: float = 2.0, data: float = 1.0, told: float = t) -> float:
        out = 3.0 / hypot(sigma, data) + value + told
        if prediction == "epsilon":
            return 3.0 - sigma * out
        sign = 1 if prediction == "edm" else -1
        return 3.0 * data**2 / (sigma**2 + data**2) + sign * out * sigma * data / hypot(sigma, data)

    for prediction in ("epsilon", "v"):
        denoiser = rooms.denoiser.Denoiser(network, table, prediction, torch.float64)
        got = rooms.guidance.classifier_free_guidance(denoiser, conds, uncond, 7.0)(rooms.guidance.Call(x, 2.0, 0)).x0
        first, second, base = (x0(prediction, value) for value in (0.5, 0.25, -0.25))
        near(got[0, 0, 0, 0], base + 5.6 * (first - base) + 3.5 * (second - base), 1e-5)
    edm = rooms.schedules.NoiseTable.from_config(rooms.config.NoiseConfig(prediction="edm"))
    denoiser = rooms.denoiser.Denoiser(network, edm, "edm", torch.float32)
    told = torch.tensor(3.0).log().item() / 4 / 1000
    near(denoiser.predict(x, 3.0, [uncond])[0][0, 0, 0, 0], x0("edm", -0.25, 3.0, 0.5, told), 1e-6)


def check_runs(rooms: Rooms, table: Any, drive: Driver) -> None:
    """k-diffusion's recorded runs, from sigma to timestep to the final latent."""
    index = torch.arange(64, dtype=torch.float64)

    def network(*, x: Tensor, t: Tensor, **_: object) -> Tensor:
        return 0.9 * torch.tanh(x) + 0.05 * torch.cos(t / 100).reshape(-1, 1, 1, 1)

    denoiser = rooms.denoiser.Denoiser(network, table, "epsilon", torch.float64)
    denoise = rooms.guidance.classifier_free_guidance(denoiser, rooms.denoiser.Cond(torch.zeros(1, 1, 1)), None, 1.0)
    sigmas = torch.tensor(ORACLE["schedules_n10"]["karras"], dtype=torch.float64)
    for key in ("euler", "heun", "dpm_2", "dpmpp_2m", "euler_ancestral", "dpm_2_ancestral"):
        drawn = count()

        def noise(sigma: float, sigma_next: float, drawn: Iterator[int] = drawn) -> Tensor:
            return (2**0.5 * torch.cos(0.7 * index + 1.3 * next(drawn))).reshape(1, 4, 4, 4)

        info = rooms.names.SAMPLERS[key]
        x = rooms.samplers.start(info, torch.sin(0.1 * (index + 1)).reshape(1, 4, 4, 4), sigmas)
        got = drive(rooms.samplers.sample(info, x, sigmas, noise), denoise)
        near(got.flatten()[:16], ORACLE["runs"][f"{key}|karras10"]["first16"], 1e-8)


def check_grids(rooms: Rooms, table: Any, drive: Driver) -> None:
    """DDIM and DDPM on a constant x0 of 0.3 with noise of 1: one step by the papers' equations."""
    sigmas = torch.tensor([3.0, 1.0], dtype=torch.float64)
    one = torch.ones(1, 4, 2, 2, dtype=torch.float64)
    answer = rooms.guidance.Denoised(one * 0.3)
    a_t, a_prev = 0.1, 0.5
    x_t = 2.0 * a_t**0.5  # of x = 2
    eps = (x_t - a_t**0.5 * 0.3) / (1 - a_t) ** 0.5
    for eta in (0.0, 0.7):
        variance = eta**2 * (1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev)
        expected = a_prev**0.5 * 0.3 + (1 - a_prev - variance) ** 0.5 * eps + variance**0.5
        run = rooms.samplers.sample(
            rooms.names.SAMPLERS["ddim"], 2 * one, sigmas, lambda a, b: one, options=rooms.samplers.Options(eta=eta)
        )
        near(drive(run, lambda _: answer)[0, 0, 0, 0], expected, 1e-9)
    alpha = a_t / a_prev
    mean = a_prev**0.5 * (1 - alpha) / (1 - a_t) * 0.3 + alpha**0.5 * (1 - a_prev) / (1 - a_t) * x_t
    spread = ((1 - a_prev) / (1 - a_t) * (1 - alpha)) ** 0.5
    run = rooms.samplers.sample(rooms.names.SAMPLERS["ddpm"], 2 * one, sigmas, lambda a, b: one)
    near(drive(run, lambda _: answer)[0, 0, 0, 0], (mean + spread) / a_prev**0.5, 1e-9)
    ddim = rooms.names.SAMPLERS["ddim"]
    near(rooms.samplers.start(ddim, one, sigmas)[0, 0, 0, 0], 10**0.5)
    near(rooms.samplers.start(ddim, one, sigmas, latent=2 * one, level=4.0)[0, 0, 0, 0], 6 * (10 / 17) ** 0.5)


def test_the_check_passes_on_the_package_as_it_is(copy: Callable[[str, str, str], Rooms], drive: Driver) -> None:
    check(copy("guidance.py", "guided = base\n", "guided = base + 0\n"), drive)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda row: f"{row[0]}: {row[2]}")
def test_a_mistake_is_noticed(
    mistake: tuple[str, str, str], copy: Callable[[str, str, str], Rooms], drive: Driver
) -> None:
    rooms = copy(*mistake)
    with pytest.raises(AssertionError):
        check(rooms, drive)
