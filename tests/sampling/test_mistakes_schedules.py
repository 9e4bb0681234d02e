"""Deliberate mistakes in the schedules, made in a copy of the package as in test_mistakes.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from .test_mistakes import Rooms, copy, near

__all__ = ["copy"]  # the fixture

MISTAKES = [
    # file, what stands there, what is put instead
    ("levels.py", "torch.linspace(1, 0, n, dtype=torch.float64) ** span.rho", "torch.linspace(1, 0, n).double()"),
    ("levels.py", 'n + 1 if span.compat == "a1111" else n', "n"),
    ("levels.py", "math.atan(span.sigma_max), math.atan(span.sigma_min)", "span.sigma_max, span.sigma_min"),
    ("levels.py", "betaincinv(0.6, 0.6,", "betaincinv(0.6, 0.5,"),
    ("levels.py", "endpoint=not comfyui", "endpoint=True"),
    ("levels.py", "np.rint(quantiles", "np.floor(quantiles"),
    ("levels.py", "list(dict.fromkeys(timesteps.tolist()))", "timesteps.tolist()"),
    ("levels.py", "bend * (step - half).clamp(min=0) ** 2", "bend * (step - half) ** 2"),
    ("levels.py", "LINEAR_SHARE: float = 0.025", "LINEAR_SHARE: float = 0.25"),
    ("levels.py", "torch.arange(1, parts + 1, dtype=torch.float32)", "torch.arange(0, parts, dtype=torch.float32)"),
    ("levels.py", "ALIGN_YOUR_STEPS_EXACT, n + 1, span)[:n]", "ALIGN_YOUR_STEPS_EXACT, n, span)"),
    ("levels.py", "_fit(published.ALIGN_YOUR_STEPS_32", "_fit(published.ALIGN_YOUR_STEPS"),
    ("levels.py", "np.log(lists[", "np.asarray(lists["),
    ("levels.py", 'span.family.startswith("sdxl")', 'span.family == "sdxl"'),
    ("levels.py", "GITS_PLACES)) - 2]", "GITS_PLACES)) - 1]"),
    ("schedules.py", 'info.ends == "zero" or ', ""),
    ("schedules.py", 'sampler.grid != "schedule" and not comfyui', 'sampler.grid != "schedule"'),
    ("schedules.py", "if not image:", "if image:"),
    ("schedules.py", "more = 1 if discards and options.sigmas is None else 0", "more = 1 if discards else 0"),
    ("schedules.py", "sampler.key in COMFYUI_DISCARDS if comfyui else sampler", "sampler"),
    ("schedules.py", "tail = sigmas[-(run + 2) :]", "tail = sigmas[-(run + 1) :]"),
    ("samplers/__init__.py", "hypot(1, first) if whole else first", "first"),
]


def check(rooms: Rooms) -> None:
    """Known levels of 10 steps, of both readings; see test_levels.py for where they are from."""
    names, schedules = rooms.names, rooms.schedules
    table = schedules.NoiseTable.from_config(rooms.config.NoiseConfig())

    def levels(key: str, n: int = 10, **options: Any) -> Any:
        return schedules.schedule_sigmas(names.SCHEDULES[key], n, table, schedules.ScheduleOptions(**options))

    known = {
        ("polyexponential", "a1111"): [14.6146, 3.964091],
        ("kl_optimal", "a1111"): [14.6146, 4.5650],
        ("kl_optimal", "comfyui"): [14.6146, 4.2324],
        ("beta", "a1111"): [14.6146, 13.9278],
        ("beta", "comfyui"): [14.6146, 11.54277, 7.371844, 4.372802, 2.615236, 1.618279],
        ("linear_quadratic", "a1111"): [14.6146, 14.54157],
        ("align_your_steps", "comfyui"): [14.6146, 6.474576],
        ("align_your_steps_32", "a1111"): [14.615, 6.146184],
        ("gits", "comfyui"): [14.6146, 5.8552],
        ("turbo", "a1111"): [14.6146, 8.302803],
    }
    for (key, compat), expected in known.items():
        rho = 2.0 if key == "polyexponential" else None
        near(levels(key, compat=compat, rho=rho)[: len(expected)], expected, 1e-4)
    assert len(levels("kl_optimal")) == len(levels("karras")) == 11
    assert len(levels("beta", 400, compat="comfyui")) < 401
    near(levels("align_your_steps", family="sdxl_refiner")[1], 5.963436, 1e-4)
    check_runs(rooms, table)


def check_runs(rooms: Rooms, table: Any) -> None:
    names, schedules = rooms.names, rooms.schedules
    karras, theirs = names.SCHEDULES["karras"], schedules.ScheduleOptions(compat="comfyui")

    def run(key: str, options: Any, *, image: bool = False) -> Any:
        return schedules.sampler_sigmas(names.SAMPLERS[key], karras, 10, table, options, image=image)

    near(run("dpm_fast", schedules.ScheduleOptions())[1], 7.839883)
    near(run("dpm_fast", schedules.ScheduleOptions(), image=True)[1], 9.102928)
    near(run("ddim", theirs)[1], 9.102928)
    near(run("dpmpp_3m_sde", theirs)[1], 9.102928)
    assert len(run("dpm_2", schedules.ScheduleOptions(sigmas=(3.0, 2.0, 0.0)))) == 3
    sigmas = run("euler", theirs)
    near(schedules.image_sigmas(names.SAMPLERS["euler"], sigmas, 10, 4, compat="comfyui")[1], sigmas[5])
    one = torch.ones(1, 4, 2, 2, dtype=torch.float64)
    near(
        rooms.samplers.start(names.SAMPLERS["euler"], one, sigmas, compat="comfyui", table=table)[0, 0, 0, 0], 14.648813
    )


def test_the_check_passes_on_the_package_as_it_is(copy: Callable[[str, str, str], Rooms]) -> None:
    check(copy("levels.py", "LINEAR_SHARE: float = 0.025", "LINEAR_SHARE: float = 0.025 + 0"))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda row: f"{row[0]}: {row[2]}")
def test_a_mistake_is_noticed(mistake: tuple[str, str, str], copy: Callable[[str, str, str], Rooms]) -> None:
    rooms = copy(*mistake)
    with pytest.raises((AssertionError, IndexError, rooms.schedules.RequestError)):
        check(rooms)
