from __future__ import annotations

import doctest
import subprocess
import sys

import pytest

from avila_diffusion.errors import RequestError
from avila_diffusion.request import GenerateRequest
from avila_diffusion.sampling import names
from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES, resolve_sampler, resolve_schedule


@pytest.mark.parametrize(
    ("text", "key", "schedule"),
    [
        ("DPM++ 2M", "dpmpp_2m", None),
        ("dpm++ 2m karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M SGM Uniform", "dpmpp_2m", "sgm_uniform"),
        ("k_dpmpp_2m", "dpmpp_2m", None),
        ("k_dpmpp_2m_ka", "dpmpp_2m", "karras"),
        ("dpmpp_2m_k", "dpmpp_2m", "karras"),
        ("dpm++2m", "dpmpp_2m", None),
        ("DPM-Solver++(2M)", "dpmpp_2m", None),
        ("DPMSolverMultistepScheduler", "dpmpp_2m", None),
        ("Euler", "euler", None),
        ("sample_euler", "euler", None),
        ("EulerDiscreteScheduler", "euler", None),
        ("Euler a", "euler_ancestral", None),
        ("EULER-A", "euler_ancestral", None),
        ("k_euler_a", "euler_ancestral", None),
        ("euler_a", "euler_ancestral", None),
        ("euler_ancestral", "euler_ancestral", None),
        ("Euler a Exponential", "euler_ancestral", "exponential"),
        ("Heun", "heun", None),
        ("heun_exp", "heun", "exponential"),
        ("DPM2", "dpm_2", None),
        ("DPM-Solver-2", "dpm_2", None),
        ("k_dpm_2_ka", "dpm_2", "karras"),
        ("DPM2 a", "dpm_2_ancestral", None),
        ("k_dpm_2_a_ka", "dpm_2_ancestral", "karras"),
        ("DDIM", "ddim", None),
        ("DDIMScheduler", "ddim", None),
        ("euler ddim uniform", "euler", "ddim"),
        ("DDPM Karras", "ddpm", "karras"),
    ],
)
def test_a_name_is_understood(text: str, key: str, schedule: str | None) -> None:
    sampler, joint = resolve_sampler(text)
    assert sampler.key == key
    assert (joint.key if joint else None) == schedule


@pytest.mark.parametrize(
    ("text", "key"),
    [("Automatic", "automatic"), ("KARRAS", "karras"), ("SGM Uniform", "sgm_uniform"), ("sgm_uniform", "sgm_uniform"),
     ("discrete", "uniform"), ("ddim_uniform", "ddim"), ("Simple", "simple"), ("normal", "normal")],
)  # fmt: skip
def test_a_schedule_is_understood(text: str, key: str) -> None:
    assert resolve_schedule(text).key == key


def test_every_row_is_found_by_each_of_its_names_and_no_name_means_two() -> None:
    for key, info in SAMPLERS.items():
        assert key == info.key
        assert info.automatic in SCHEDULES
        assert info.automatic != "automatic"
        for name in (info.key, info.name, *info.aliases):
            assert resolve_sampler(name) == (info, None)
    for key, schedule in SCHEDULES.items():
        assert key == schedule.key
        for name in (schedule.key, schedule.name, *schedule.aliases):
            assert resolve_schedule(name) is schedule


FACTS = {
    # key: schedule of "Automatic", second order, penultimate level discarded, eta, grid
    "dpmpp_2m": ("karras", False, False, None, "schedule"),
    "euler": ("uniform", False, False, None, "schedule"),
    "euler_ancestral": ("uniform", False, False, 1.0, "schedule"),
    "heun": ("uniform", True, False, None, "schedule"),
    "dpm_2": ("karras", True, True, None, "schedule"),
    "dpm_2_ancestral": ("karras", True, True, 1.0, "schedule"),
    "ddim": ("uniform", False, False, 0.0, "ddim"),
    "ddpm": ("uniform", False, False, None, "schedule"),
}


@pytest.mark.parametrize("key", FACTS)
def test_the_facts_are_those_of_automatic1111(key: str) -> None:
    info = SAMPLERS[key]
    assert (info.automatic, info.second_order, info.discard_penultimate, info.eta, info.grid) == FACTS[key]
    assert info.uses_eta == (info.eta is not None)
    assert (info.text_start, info.image_start) == (("unit", "above") if key == "ddim" else ("scaled", "first"))


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"unknown sampler 'DPM\+\+ 2N'; the nearest: DPM\+\+ 2M"):
        resolve_sampler("DPM++ 2N")
    with pytest.raises(RequestError, match="unknown sampler 'qqq'; there are: DPM"):
        resolve_sampler("qqq")
    with pytest.raises(RequestError, match="unknown schedule 'karas'; the nearest: Karras"):
        resolve_schedule("karas")
    with pytest.raises(RequestError, match="unknown sampler ''"):
        resolve_sampler("")
    with pytest.raises(RequestError, match="unknown sampler 'Karras'"):
        resolve_sampler("Karras")


def test_a_request_takes_the_joint_schedule_and_display_names() -> None:
    request = GenerateRequest(sampler="k_dpmpp_2m_ka", seed=1).resolved(512)
    assert (request.sampler, request.schedule) == ("DPM++ 2M", "Karras")
    request = GenerateRequest(sampler="DPM++ 2M Karras", schedule="simple", seed=1).resolved(512)
    assert (request.sampler, request.schedule) == ("DPM++ 2M", "Simple")


def test_examples() -> None:
    assert doctest.testmod(names).failed == 0


def test_names_load_without_torch() -> None:
    code = "import sys, avila_diffusion.sampling.names, avila_diffusion.request; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
