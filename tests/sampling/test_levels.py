"""Every schedule in both readings: recorded and live numbers, the formulas worked by hand, and what all must keep."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from avila_diffusion.config import NoiseConfig
from avila_diffusion.errors import RequestError
from avila_diffusion.sampling import published
from avila_diffusion.sampling.levels import LEVELS
from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES
from avila_diffusion.sampling.samplers import start
from avila_diffusion.sampling.schedules import (
    NoiseTable,
    ScheduleOptions,
    image_sigmas,
    image_steps,
    sampler_sigmas,
    schedule_sigmas,
)

COMFYUI = json.loads((Path(__file__).parent / "comfyui_schedules.json").read_text(encoding="utf-8"))
IN_COMFYUI = ScheduleOptions(compat="comfyui")
TABLES = {
    "sd": NoiseConfig(),
    "ztsnr": NoiseConfig(prediction="v", zero_terminal_snr=True),
    "edm": NoiseConfig(prediction="edm", edm_sigma_max=80.0),
    "tiny": NoiseConfig(steps=12),
    "two": NoiseConfig(steps=2),
}


def near(got: object, expected: object, tolerance: float) -> None:
    torch.testing.assert_close(
        torch.as_tensor(got, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        rtol=tolerance,
        atol=0,
    )


def levels(key: str, n: int, table: NoiseTable, **options: Any) -> Tensor:
    return schedule_sigmas(SCHEDULES[key], n, table, ScheduleOptions(**options))


def test_every_row_has_a_function() -> None:
    assert set(LEVELS) == set(SCHEDULES) - {"automatic"}


@pytest.mark.parametrize("n", [10, 20])
@pytest.mark.parametrize("name", COMFYUI["schedules"])
def test_comfyuis_recorded_levels(name: str, n: int, table: NoiseTable) -> None:
    key = {"ddim_uniform": "ddim"}.get(name, name)
    near(levels(key, n, table, compat="comfyui"), COMFYUI["schedules"][name][str(n)], 1e-6)


def test_the_levels_that_are_known_of_both(table: NoiseTable) -> None:
    """First four and last two or three of 10 steps in AUTOMATIC1111 and in ComfyUI, to the digits that are known."""
    known = {
        ("kl_optimal", "a1111"): ([14.6146, 4.565, 2.6329, 1.7864], [0.3356, 0.1783, 0.0292]),
        ("kl_optimal", "comfyui"): ([14.6146, 4.2324, 2.3937, 1.5971], [0.1953, 0.0292, 0]),
        ("beta", "a1111"): ([14.6146, 13.9278, 12.491, 10.5976], [0.716, 0.0292, 0]),
        ("beta", "comfyui"): ([14.6146, 11.5428, 7.3718, 4.3728], [0.3955, 0.1991, 0]),
        ("align_your_steps", "a1111"): ([14.615, 6.1135, 3.5651, 2.3939], [0.1692, 0.029, 0]),
        ("align_your_steps", "comfyui"): ([14.6146, 6.4746, 3.8637, 2.6946], [0.3977, 0.1515, 0]),
    }
    for (key, compat), (first, last) in known.items():
        sigmas = levels(key, 10, table, compat=compat)
        assert len(sigmas) == 11
        got = torch.cat([sigmas[:4], sigmas[-3:]])
        torch.testing.assert_close(got, torch.tensor(first + last, dtype=torch.float64), rtol=0, atol=5.1e-5)


def test_rows_say_which_readings_differ(table: NoiseTable) -> None:
    for key in LEVELS:
        theirs, ours = levels(key, 9, table, compat="comfyui"), levels(key, 9, table)
        assert SCHEDULES[key].differs == (theirs.tolist() != ours.tolist())
        assert (levels(key, 9, table)[-1] == 0) == (SCHEDULES[key].ends == "zero")
        assert theirs[-1] == 0


@pytest.mark.parametrize("n", [1, 2, 7, 50])
@pytest.mark.parametrize("rho", [0.5, 1.0, 2.5])
def test_polyexponential_is_live_k_diffusions(n: int, rho: float, table: NoiseTable, k_diffusion: ModuleType) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        theirs = k_diffusion.sampling.get_sigmas_polyexponential(n, table.sigma_min, table.sigma_max, rho)
    finally:
        torch.set_default_dtype(torch.float32)
    near(levels("polyexponential", n, table, rho=rho), theirs, 1e-12)
    near(levels("polyexponential", n, table), levels("exponential", n, table), 1e-12)


@pytest.mark.parametrize("n", [1, 2, 9, 200])
def test_beta_is_scipys_quantiles(n: int, table: NoiseTable) -> None:
    quantile = stats.beta(0.6, 0.6).ppf
    low, high = table.sigma_min, table.sigma_max
    near(levels("beta", n, table)[:-1], low + quantile(1 - np.linspace(0, 1, n)) * (high - low), 1e-9)
    limited = levels("beta", n, table, sigma_min=0.5, sigma_max=8.0)
    near(limited[:-1], 0.5 + quantile(1 - np.linspace(0, 1, n)) * 7.5, 1e-9)
    timesteps = [round(float(quantile(1 - step / n)) * 999) for step in range(n)]
    expected = [float(table.sigmas[t]) for t in dict.fromkeys(timesteps)]
    assert levels("beta", n, table, compat="comfyui").tolist() == [*expected, 0.0]


@pytest.mark.parametrize("n", [1, 2, 10, 31])
def test_kl_optimal_by_hand(n: int, table: NoiseTable) -> None:
    low, high = math.atan(table.sigma_min), math.atan(table.sigma_max)
    near(
        levels("kl_optimal", n, table),
        [math.tan(step / n * low + (1 - step / n) * high) for step in range(n + 1)],
        1e-12,
    )
    if n > 1:
        shares = [step / (n - 1) for step in range(n)]
        expected = [math.tan(share * low + (1 - share) * high) for share in shares]
        near(levels("kl_optimal", n, table, compat="comfyui")[:-1], expected, 1e-12)
    assert levels("kl_optimal", 1, table, compat="comfyui").tolist() == pytest.approx([table.sigma_max, 0.0])


@pytest.mark.parametrize("n", [2, 5, 10, 33])
def test_linear_quadratic_meets_itself_and_ends_at_one(n: int, table: NoiseTable) -> None:
    """The two halves join in value and slope, and the parabola would reach 1, that is sigma 0, at step n."""
    share = 1 - levels("linear_quadratic", n, table) / table.sigma_max
    half = n // 2
    near(share[: half + 1], [0.025 * step / half for step in range(half + 1)], 1e-9)
    quadratic = [share[step].item() - 0.025 * step / half for step in range(half, n + 1)]
    bend = quadratic[-1] / (n - half) ** 2
    torch.testing.assert_close(
        torch.tensor(quadratic), torch.tensor([bend * step**2 for step in range(n - half + 1)]), rtol=0, atol=1e-9
    )
    assert share[-1] == 1


def test_turbo(table: NoiseTable) -> None:
    for compat in ("a1111", "comfyui"):
        ten = levels("turbo", 10, table, compat=compat)
        assert ten.tolist() == [*(float(table.sigmas[t]) for t in range(999, 0, -100)), 0.0]
    assert levels("turbo", 4, table).tolist()[:-1] == [float(table.sigmas[t]) for t in (999, 749, 499, 249)]
    assert levels("turbo", 3, table).tolist()[:-1] == [float(table.sigmas[t]) for t in (999, 666, 332)]
    four = levels("turbo", 4, table, compat="comfyui")
    assert four.tolist()[:-1] == [float(table.sigmas[t]) for t in (999, 899, 799, 699)]
    with pytest.raises(RequestError, match="10 steps in ComfyUI, not 11"):
        levels("turbo", 11, table, compat="comfyui")


def test_align_your_steps_is_as_published(table: NoiseTable) -> None:
    """The list of 10 steps is met at n = 11 in AUTOMATIC1111 and at n = 10 in ComfyUI, at the authors' timesteps."""
    from diffusers.schedulers import AysSchedules

    for family, theirs in (
        ("sd1", "StableDiffusion"),
        ("sdxl", "StableDiffusionXL"),
        ("sdxl_refiner", "StableDiffusionXL"),
    ):
        sigmas = AysSchedules[f"{theirs}Sigmas"]
        near(levels("align_your_steps", 11, table, family=family), [*sigmas[:-1], 0.029, 0], 1e-12)
        near(levels("align_your_steps_11", 11, table, family=family, compat="comfyui"), [*sigmas[:-1], 0.029, 0], 1e-12)
        exact = table.sigmas[AysSchedules[f"{theirs}Timesteps"]]
        near(levels("align_your_steps", 10, table, family=family, compat="comfyui")[:-1], exact, 1e-8)
    assert (
        levels("align_your_steps", 10, table, family="sd2").tolist() == levels("align_your_steps", 10, table).tolist()
    )


@pytest.mark.parametrize("n", [2, 3, 10, 11, 12, 40])
def test_lists_are_filled_up_log_linearly(n: int, table: NoiseTable) -> None:
    """As the authors' own recipe: numpy's interp of the logarithms, from the low end."""

    def filled(values: tuple[float, ...], count: int) -> list[float]:
        logs = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(values)), np.log(values[::-1]))
        levels: list[float] = np.exp(logs)[::-1].tolist()
        return levels

    for key, lists in (
        ("align_your_steps", published.ALIGN_YOUR_STEPS),
        ("align_your_steps_11", published.ALIGN_YOUR_STEPS),
        ("align_your_steps_32", published.ALIGN_YOUR_STEPS_32),
        ("gits", published.GITS),
    ):
        for family in ("sd1", "sdxl"):
            near(levels(key, n, table, family=family), [*filled(lists[family], n), 0.0], 1e-9)
    exact = published.ALIGN_YOUR_STEPS_EXACT["sd1"]
    near(levels("align_your_steps", n, table, compat="comfyui"), [*filled(exact, n + 1)[:-1], 0.0], 1e-9)


def test_lists_are_of_the_right_length_and_end_where_they_should() -> None:
    for lists, length in ((published.ALIGN_YOUR_STEPS, 11), (published.ALIGN_YOUR_STEPS_32, 32), (published.GITS, 11)):
        for values in lists.values():
            assert (len(values), values[0]) == (length, 14.615)
            assert values[-1] == (0.015 if length == 32 else 0.029)
    assert [len(places) for places in published.GITS_PLACES] == list(range(3, 22))


def test_gits_in_comfyui(table: NoiseTable) -> None:
    """Levels of the lists for 2, 5 and 20 steps at coefficient 1.20, as ComfyUI has them (of a float32 table)."""
    known = {
        2: [14.61464119, 0.803307],
        5: [14.61464119, 2.84484982, 1.24153244, 0.59516323, 0.25053367],
        20: [14.61464119, 7.49001646, 4.65472794, 3.07277966, 2.19988537, 1.61558151, 1.24153244, 0.95350921,
             0.74807048, 0.59516323, 0.50118381, 0.41087446, 0.34370604, 0.29807833, 0.25053367, 0.22545385,
             0.19894916, 0.17026083, 0.13792117, 0.09824532],
    }  # fmt: skip
    for n, expected in known.items():
        near(levels("gits", n, table, compat="comfyui"), [*expected, 0.0], 4e-5)
    longer = levels("gits", 40, table, compat="comfyui")
    near(longer[:-1:2], known[20], 4e-5)
    near(longer[1], math.sqrt(14.61464119 * 7.49001646), 4e-5)
    near(levels("gits", 1, table, compat="comfyui"), [14.61464119, 0.0], 4e-5)


def test_lists_stay_as_they_are_unless_the_model_does_not_reach_them() -> None:
    sd, ztsnr, tiny = (NoiseTable.from_config(TABLES[name]) for name in ("sd", "ztsnr", "tiny"))
    for key in ("align_your_steps", "align_your_steps_32", "gits"):
        assert levels(key, 9, ztsnr).tolist() == levels(key, 9, sd).tolist()
        moved = levels(key, 9, tiny)
        near(moved[[0, -2]], [tiny.sigma_max, tiny.sigma_min], 1e-9)
        plain = levels(key, 9, sd)[:-1].log()
        shares = (moved[:-1].log() - moved[-2].log()) / (moved[0].log() - moved[-2].log())
        torch.testing.assert_close(shares, (plain - plain[-1]) / (plain[0] - plain[-1]), rtol=0, atol=1e-9)


@settings(max_examples=300, deadline=None)
@given(
    key=st.sampled_from(sorted(LEVELS)),
    model=st.sampled_from(sorted(TABLES)),
    compat=st.sampled_from(["a1111", "comfyui"]),
    family=st.sampled_from(["sd1", "sdxl"]),
    n=st.one_of(st.integers(1, 60), st.integers(1, 1000)),
)
def test_any_number_of_steps_of_any_model_falls(key: str, model: str, compat: Any, family: str, n: int) -> None:
    table, info = NoiseTable.from_config(TABLES[model]), SCHEDULES[key]
    options = ScheduleOptions(compat=compat, family=family)
    if key == "turbo" and compat == "comfyui":
        n = min(n, 10)
    sigmas = schedule_sigmas(info, n, table, options)
    assert sigmas.dtype == torch.float64
    assert sigmas.isfinite().all()
    assert (sigmas.diff() < 0).all()
    assert (sigmas[-1] == 0) == (info.ends == "zero" or compat == "comfyui")
    assert 0 < sigmas[0] <= table.sigma_max * 1.0001
    fewer = key == "ddim" or (key == "beta" and compat == "comfyui")
    assert len(sigmas) == n + 1 or (fewer and len(sigmas) >= 2)
    if not (fewer and model in ("tiny", "two")):
        for sampler in ("euler", "dpm_2", "dpm_fast"):
            shorter = 11 if key == "turbo" and compat == "comfyui" else 1001
            if n + 1 < shorter:
                walked = sampler_sigmas(SAMPLERS[sampler], info, n, table, options, image=True)
                assert (walked.diff() < 0).all()


def test_limits_that_leave_no_room_are_refused(table: NoiseTable) -> None:
    for options in ({"sigma_min": 20.0, "sigma_max": 30.0}, {"sigma_min": 0.001, "sigma_max": 0.002}):
        for key in ("normal", "sgm_uniform"):
            with pytest.raises(RequestError, match=r"do not fall from step to step in .*14\.6146 to 0\.0291672"):
                levels(key, 5, table, **options)
    for rho in (1e-9, 1e300, float("nan"), -1.0):
        with pytest.raises(RequestError, match="rho"):
            levels("karras", 5, table, rho=rho)


def test_limits_move_what_takes_them_and_rows_say_so(table: NoiseTable) -> None:
    for key, info in SCHEDULES.items():
        if key == "automatic":
            continue
        plain = levels(key, 8, table)
        limited = levels(key, 8, table, sigma_min=0.1, sigma_max=10.0)
        assert (limited.tolist() != plain.tolist()) == ("sigma_max" in info.options)
        if "sigma_max" in info.options:
            near(limited[0], 10.0, 1e-9)
        bent = levels(key, 8, table, rho=3.0)
        assert (bent.tolist() != plain.tolist()) == ("rho" in info.options)
        if "rho" in info.options:
            assert levels(key, 8, table, rho=info.rho).tolist() == plain.tolist()


@pytest.mark.parametrize("given", [(14.6, 3.0, 1.0, 0.0), (5.0, 1.0), (2, 1, 0)])
def test_a_list_of_levels_is_taken_as_it_is(given: tuple[float, ...], table: NoiseTable) -> None:
    options = ScheduleOptions(sigmas=given)
    for key in ("euler", "dpm_2", "dpmpp_3m_sde"):  # the last two lose a level of a schedule, but none of these
        for schedule in ("automatic", "karras"):
            assert sampler_sigmas(SAMPLERS[key], SCHEDULES[schedule], 20, table, options).tolist() == list(given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), "has 0 value"),
        ((3.0,), "has 1 value.*at least 2"),
        ((3.0, 3.0), "value 2 of sigmas is 3, after 3; noise levels must fall"),
        ((3.0, 2.0, 2.5, 0.0), "value 3 of sigmas is 2.5, after 2"),
        ((3.0, -1.0), "value 2 of sigmas is -1"),
        ((float("nan"), 1.0), "value 1 of sigmas is nan"),
        ((float("inf"), 1.0), "value 1 of sigmas is inf"),
        ((0.0, 0.0), "after 0"),
    ],
)
def test_a_list_that_is_none_is_refused(given: tuple[float, ...], words: str, table: NoiseTable) -> None:
    with pytest.raises(RequestError, match=words):
        sampler_sigmas(SAMPLERS["euler"], SCHEDULES["automatic"], 2, table, ScheduleOptions(sigmas=given))


def test_samplers_with_levels_of_their_own_refuse_a_list(table: NoiseTable) -> None:
    for key in ("ddim", "plms", "uni_pc", "dpm_fast", "dpm_adaptive", "ddim_cfgpp"):
        with pytest.raises(RequestError, match=re.escape(f"{SAMPLERS[key].name} chooses its noise levels itself")):
            sampler_sigmas(SAMPLERS[key], SCHEDULES["karras"], 2, table, ScheduleOptions(sigmas=(3.0, 1.0)))
        options = ScheduleOptions(sigmas=(3.0, 1.0), compat="comfyui")
        assert sampler_sigmas(SAMPLERS[key], SCHEDULES["karras"], 2, table, options).tolist() == [3.0, 1.0]


def test_dpm_fast_ignores_the_schedule_for_text_alone(table: NoiseTable) -> None:
    karras, uniform = SCHEDULES["karras"], schedule_sigmas(SCHEDULES["uniform"], 12, table)
    for key in ("dpm_fast", "dpm_adaptive"):
        sampler, options = SAMPLERS[key], ScheduleOptions(sigma_max=5.0)
        assert torch.equal(sampler_sigmas(sampler, karras, 12, table, options), uniform)
        chosen = schedule_sigmas(karras, 12, table, options)
        assert torch.equal(sampler_sigmas(sampler, karras, 12, table, options, image=True), chosen)
        theirs = ScheduleOptions(sigma_max=5.0, compat="comfyui")
        assert torch.equal(sampler_sigmas(sampler, karras, 12, table, theirs), chosen)


def test_comfyui_runs_every_sampler_over_the_schedule(table: NoiseTable) -> None:
    karras = schedule_sigmas(SCHEDULES["karras"], 12, table)
    longer = schedule_sigmas(SCHEDULES["karras"], 13, table)
    for key, sampler in SAMPLERS.items():
        got = sampler_sigmas(sampler, SCHEDULES["karras"], 12, table, IN_COMFYUI)
        discards = key in ("dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2")
        assert got.tolist() == ([*longer[:12].tolist(), 0.0] if discards else karras.tolist())


def test_where_comfyui_starts(table: NoiseTable) -> None:
    one = torch.ones(1, 4, 2, 2, dtype=torch.float64)
    top = schedule_sigmas(SCHEDULES["karras"], 5, table)
    for key in ("euler", "ddim", "uni_pc"):
        sampler = SAMPLERS[key]
        first = float(top[0])
        got = start(sampler, one, top, compat="comfyui", table=table)
        near(got, one * math.sqrt(1 + first**2), 1e-12)
        near(got / first, one * 1.0023383, 1e-6)
        near(start(sampler, one, top[1:], compat="comfyui", table=table), one * top[1], 1e-12)
        got = start(sampler, one, top, latent=3 * one, compat="comfyui", table=table)
        near(got, one * (3 + math.hypot(1, first)), 1e-12)
        got = start(sampler, one, top[2:], latent=3 * one, level=99.0, compat="comfyui", table=table)
        near(got, one * (3 + top[2]), 1e-12)
    near(start(SAMPLERS["euler"], one, top), one * top[0], 1e-12)


def test_comfyui_counts_levels_of_a_picture_from_the_end(table: NoiseTable) -> None:
    steps, run = image_steps(20, 0.6, exact=True)
    assert (steps, run) == (33, 19)
    for key in ("euler", "ddim"):
        sigmas = sampler_sigmas(SAMPLERS[key], SCHEDULES["ddim"], steps, table, IN_COMFYUI)
        tail, noised = image_sigmas(SAMPLERS[key], sigmas, steps, run, compat="comfyui")
        assert torch.equal(tail, sigmas[-21:])
        assert noised == tail[0]
    sigmas = sampler_sigmas(SAMPLERS["euler"], SCHEDULES["karras"], steps, table, IN_COMFYUI)
    theirs = image_sigmas(SAMPLERS["euler"], sigmas, steps, run, compat="comfyui")[0]
    assert torch.equal(theirs, image_sigmas(SAMPLERS["euler"], sigmas, steps, run)[0])
