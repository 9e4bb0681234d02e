"""Deliberate mistakes in the grid, multistep and consistency samplers: each must move a number that is known."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import count
from math import hypot
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import avila_diffusion.errors

Driver = Callable[..., Tensor]
Room = Callable[[str], ModuleType]

SOURCE = Path(avila_diffusion.errors.__file__).parent
NUMBERS = count()
LEVELS = torch.tensor([14.6, 8.0, 4.5, 3.5, 1.0, 0.6, 0.3, 0.1], dtype=torch.float64)

FINAL = {
    "ddim_cfgpp": [1.0778330048408502, 1.1036350461600608, 0.3752415903544046],
    "plms": [0.932125723759237, 0.9638031176508501, 0.32647577210212014],
    "uni_pc": [0.8760140645460357, 0.9039807096551963, 0.20647454114957686],
    "uni_pc_bh2": [0.8674918082340811, 0.8963470028186483, 0.1903556272304497],
    "lcm": [0.26373637974637987, 0.4494652836477401, 0.4979434288188052],
    "tcd": [-0.23095981628819193, -0.29358952783793496, -0.2733153004703154],
    "deis": [0.7814898487128803, 0.8108031855145192, 0.12902922188859348],
    "ipndm": [0.9367441308008143, 0.9687056095009332, 0.32848194750427373],
    "ipndm_v": [0.8970824743288942, 0.9242960234360511, 0.2930334379540962],
    "er_sde": [0.8568993362702775, 0.6647314135653318, -0.3896964152394982],
    "sa_solver": [-0.556948034971852, -0.5235070027296816, -0.3825316002905115],
}
"""Three values of the latent after LEVELS, where these samplers agree with diffusers, SciPy's integrals and the papers'
formulas (test_grid_samplers, test_multistep)."""

MISTAKES = [
    # file, what stands there, what is put instead
    ("samplers/grid.py", "eps = (x - unguided) / sigma", "eps = (x - denoised.x0) / sigma"),
    ("samplers/grid.py", "if step == 0 and sigma_prev > 0", "if step < 0"),
    ("samplers/grid.py", "known = [eps, *known[:3]]", "known = [eps, *known[:2]]"),
    ("samplers/grid.py", "return x / hypot(1, sigma_prev)", "return x"),
    ("samplers/adams.py", "-59 / 24", "-58 / 24"),
    ("samplers/adams.py", "(node - other) for", "(other - node) for"),
    ("samplers/unipc.py", "known[: min(n - step, 3)]", "known[:3]"),
    ("samplers/unipc.py", "*known[:2]]", "*known[:1]]"),
    ("samplers/unipc.py", "    if len(r) == 1:\n        return [0.5]", "    if not r:\n        return [0.5]"),
    ("samplers/unipc.py", "_uni_pc(x, sigmas, expm1)", "_uni_pc(x, sigmas, lambda h: h)"),
    ("samplers/unipc.py", "h_phi / h - 1 / factorial(i)", "h_phi / h - 1 / factorial(i + 1)"),
    ("samplers/unipc.py", "x = _unified_step(x, used, sigma, B, denoised.x0)", "x = x_predicted"),
    ("samplers/multistep.py", "_time(sigma_next), _sigma_by_time), slopes", "_time(sigma_next)), slopes"),
    ("samplers/multistep.py", "2 * BETA_D * log1p(sigma**2)", "2 * BETA_D * log1p(sigma)"),
    ("samplers/multistep.py", "twist[3] = -q * h1 / h2", "twist[3] = -q * h2 / h3"),
    ("samplers/multistep.py", "5 * h**2 / 12", "h**2 / 4"),
    ("samplers/multistep.py", "(1 - h**2 / (3 * h1 * (h1 + h2))) / 2", "(h**2 / 3 + h * h1 / 2) / (h1 * (h1 + h2))"),
    ("samplers/stochastic.py", "table.at(0.8 * top)", "table.at(0.9 * top)"),
    ("samplers/stochastic.py", "lower < sigma_next <= upper", "lower < sigma <= upper"),
    ("samplers/stochastic.py", "x = x if added is None else x + added", "x = x"),
    (
        "samplers/stochastic.py",
        "known[: min(3, left - 1) if to_zero else 3]",
        "known[: min(4, left - 1) if to_zero else 4]",
    ),
    (
        "samplers/stochastic.py",
        "rate = -log(sigma), -log(sigma_next), 1 + tau**2",
        "rate = -log(sigma), -log(sigma_next), 1 + 2 * tau**2",
    ),
    ("samplers/stochastic.py", "expm1(-2 * tau**2 * h)", "expm1(-tau**2 * h)"),
    ("samplers/stochastic.py", "sigma * (exp(sigma**0.3) + 10)", "sigma * (exp(sigma**0.2) + 10)"),
    ("samplers/stochastic.py", "(sigma - known[2][0]) / 2", "(sigma - known[2][0])"),
    ("samplers/stochastic.py", "INTEGRATION_POINTS = 200", "INTEGRATION_POINTS = 1000"),
    ("samplers/consistency.py", "x = x + sigma_next * noise", "x = x + sigma * noise"),
    (
        "samplers/consistency.py",
        "floor((1 - eta) * _place(table, sigma_next) + 1e-6)",
        "(1 - eta) * _place(table, sigma_next)",
    ),
    ("samplers/consistency.py", "sqrt(sigma_next**2 - sigma_s**2)", "(sigma_next - sigma_s)"),
    ("grids.py", "table.sigmas[timesteps[run]]", "table.sigmas[timesteps[run - 1]]"),
    ("grids.py", "len(table.sigmas) - 1, len(_timesteps(n, table))", "len(table.sigmas) - 1, n"),
    ("grids.py", "log_alpha = -0.5 * torch.log1p(table.sigmas**2)", "log_alpha = -0.5 * torch.log1p(table.sigmas)"),
    ("lcm.py", "nearest_t(sigma) * self.stride + self.first", "nearest_t(sigma) * self.stride"),
    (
        "tables.py",
        "sigma, dtype=torch.float64).log().unsqueeze(-1) - self.sigmas.log()",
        "sigma).unsqueeze(-1) - self.sigmas",
    ),
    ("denoiser.py", "return x * c_skip + x0 * c_out", "return x0 * c_out"),
    ("denoiser.py", "timestep_scale: float = 10.0", "timestep_scale: float = 1.0"),
    ("catalogue.py", "guidance_divisor=12.5", "guidance_divisor=7.5"),
]


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Callable[[str, str, str], Room]]:
    """Makes a copy of sampling/ under another package name, with one text replaced; answers with its modules."""
    name = f"mistaken_grid_{next(NUMBERS)}"

    def make(file: str, old: str, new: str) -> Room:
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
        return lambda room: importlib.import_module(f"{name}.{room}")

    yield make
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def near(got: object, expected: object) -> None:
    torch.testing.assert_close(
        torch.as_tensor(got, dtype=torch.float64), torch.as_tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


def finals(room: Room, drive: Driver) -> dict[str, list[float]]:
    """Where each sampler ends after LEVELS, and after LEVELS and 0 if that is its row's end."""
    names, samplers, Denoised = room("sampling.names"), room("sampling.samplers"), room("sampling.guidance").Denoised
    table = room("sampling.schedules").NoiseTable.from_config(room("config").NoiseConfig())
    index = torch.arange(16, dtype=torch.float64).reshape(1, 4, 2, 2)
    ends = {}
    for key in FINAL:
        drawn = count()
        sigmas = torch.cat([LEVELS, torch.zeros(1, dtype=torch.float64)]) if key == "sa_solver" else LEVELS

        def noise(sigma: float, sigma_next: float, drawn: Iterator[int] = drawn) -> Tensor:
            return 2**0.5 * torch.cos(0.7 * index + 1.3 * next(drawn))

        def denoise(call: object) -> object:
            x, sigma = call.x, call.sigma  # type: ignore[attr-defined]
            x0 = torch.tanh(x / hypot(1, sigma)) + 0.1 * torch.cos(x / 7 + sigma)
            return Denoised(x0, 0.8 * x0)

        run = samplers.sample(names.SAMPLERS[key], 14.6 * torch.sin(index + 1), sigmas, noise, table=table)
        ends[key] = drive(run, denoise).flatten()[:3].tolist()
    return ends


def check(room: Room, drive: Driver) -> None:
    for key, values in finals(room, drive).items():
        near(values, FINAL[key])
    schedules, names, grids = room("sampling.schedules"), room("sampling.names"), room("sampling.grids")
    table = schedules.NoiseTable.from_config(room("config").NoiseConfig())
    assert names.SAMPLERS["ddim_cfgpp"].guidance_divisor == 12.5
    levels = grids.unipc_grid(30, table)
    assert len(levels) == 32
    near(levels[[0, 31]], [14.614641229333, 0.029167158203])
    assert grids.unipc_image_grid(20, 15, table)[1] == table.sigmas[751]
    own = room("sampling.lcm").lcm_table(table)
    assert own.sigma_to_t((table.sigmas[619] * table.sigmas[639]) ** 0.5 * 1.0001) == 639
    denoiser = room("sampling.denoiser")
    network = denoiser.Denoiser(lambda x, **_: 0 * x, table, "epsilon", torch.float64)
    x = torch.ones(1, 4, 2, 2, dtype=torch.float64)
    (got,) = room("sampling.lcm").lcm_denoiser(network).predict(x, 0.2, [denoiser.Cond(torch.zeros(1, 1, 1))])
    near(got[0, 0, 0, 0], 390 / (390**2 + 0.25) ** 0.5 + 0.25 / (390**2 + 0.25))  # timestep 39


def test_the_check_passes_on_the_package_as_it_is(copy: Callable[[str, str, str], Room], drive: Driver) -> None:
    check(copy("grids.py", "0, n + 1, dtype", "0.0, n + 1, dtype"), drive)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda row: f"{row[0]}: {row[2]}")
def test_a_mistake_is_noticed(
    mistake: tuple[str, str, str], copy: Callable[[str, str, str], Room], drive: Driver
) -> None:
    room = copy(*mistake)
    with pytest.raises(AssertionError):
        check(room, drive)
