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
        # AUTOMATIC1111's names until 1.8, and the short ones of its HTTP interface
        ("DPM++ SDE Karras", "dpmpp_sde", "karras"),
        ("k_dpmpp_sde_ka", "dpmpp_sde", "karras"),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("k_dpmpp_2m_sde_exp", "dpmpp_2m_sde", "exponential"),
        ("DPM++ 2M SDE Karras", "dpmpp_2m_sde", "karras"),
        ("k_dpmpp_2m_sde_ka", "dpmpp_2m_sde", "karras"),
        ("DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun", None),
        ("DPM++ 2M SDE Heun Karras", "dpmpp_2m_sde_heun", "karras"),
        ("k_dpmpp_2m_sde_heun_ka", "dpmpp_2m_sde_heun", "karras"),
        ("DPM++ 2M SDE Heun Exponential", "dpmpp_2m_sde_heun", "exponential"),
        ("k_dpmpp_2m_sde_heun_exp", "dpmpp_2m_sde_heun", "exponential"),
        ("DPM++ 3M SDE Karras", "dpmpp_3m_sde", "karras"),
        ("k_dpmpp_3m_sde_exp", "dpmpp_3m_sde", "exponential"),
        ("DPM++ 2S a Karras", "dpmpp_2s_ancestral", "karras"),
        ("k_dpmpp_2s_a_ka", "dpmpp_2s_ancestral", "karras"),
        ("LMS Karras", "lms", "karras"),
        ("k_lms_ka", "lms", "karras"),
        ("DPM2 Karras", "dpm_2", "karras"),
        ("DPM2 a Karras", "dpm_2_ancestral", "karras"),
        ("DPM fast", "dpm_fast", None),
        ("k_dpm_ad", "dpm_adaptive", None),
        ("DDIM CFG++", "ddim_cfgpp", None),
        ("UniPC", "uni_pc", None),
        ("Restart", "restart", None),
        # Forge
        ("Euler A SGMUniform", "euler_ancestral", "sgm_uniform"),
        ("DPM++ 2M SDE Turbo", "dpmpp_2m_sde", "turbo"),
        ("LCM Karras", "lcm", "karras"),
        ("Euler Align Your Steps GITS", "euler", "gits"),
        # ComfyUI, stable-diffusion.cpp, InvokeAI, NovelAI, diffusers
        ("dpmpp_2m_sde_gpu", "dpmpp_2m_sde", None),
        ("dpmpp_3m_sde_gpu", "dpmpp_3m_sde", None),
        ("uni_pc_bh2", "uni_pc_bh2", None),
        ("euler_ancestral_cfg_pp", "euler_ancestral_cfg_pp", None),
        ("euler_a_cfg_pp", "euler_ancestral_cfg_pp", None),
        ("dpm++2s_a", "dpmpp_2s_ancestral", None),
        ("dpm2", "dpm_2", None),
        ("dpm++2m_sde_bt", "dpmpp_2m_sde", None),
        ("er_sde", "er_sde", None),
        ("kdpm_2_a_k", "dpm_2_ancestral", "karras"),
        ("dpmpp_sde_k", "dpmpp_sde", "karras"),
        ("unipc_k", "uni_pc", "karras"),
        ("k_dpmpp_2m_sde_exponential", "dpmpp_2m_sde", "exponential"),
        ("PNDMScheduler", "plms", None),
        ("DPMSolverSDEScheduler", "dpmpp_sde", None),
        ("UniPCMultistepScheduler", "uni_pc_bh2", None),
        ("SASolverScheduler", "sa_solver", None),
        ("KDPM2AncestralDiscreteScheduler", "dpm_2_ancestral", None),
    ],
)
def test_a_name_is_understood(text: str, key: str, schedule: str | None) -> None:
    sampler, joint = resolve_sampler(text)
    assert sampler.key == key
    assert (joint.key if joint else None) == schedule


@pytest.mark.parametrize(
    ("text", "key"),
    [("Automatic", "automatic"), ("KARRAS", "karras"), ("SGM Uniform", "sgm_uniform"), ("sgm_uniform", "sgm_uniform"),
     ("discrete", "uniform"), ("ddim_uniform", "ddim"), ("Simple", "simple"), ("normal", "normal"),
     ("SGMUniform", "sgm_uniform"), ("ays", "align_your_steps"), ("AlignYourStepsScheduler", "align_your_steps"),
     ("align_your_steps_GITS", "gits"), ("gits", "gits"), ("Align Your Steps 32", "align_your_steps_32"),
     ("kl_optimal", "kl_optimal"), ("KL Optimal", "kl_optimal"), ("beta", "beta"), ("SDTurboScheduler", "turbo"),
     ("linear_quadratic", "linear_quadratic"), ("polyexponential", "polyexponential")],
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
    with pytest.raises(RequestError, match=r"^unknown sampler 'qqq'; `avila samplers` lists those there are$"):
        resolve_sampler("qqq")
    with pytest.raises(RequestError, match="unknown schedule 'karas'; the nearest: Karras"):
        resolve_schedule("karas")
    with pytest.raises(RequestError, match="unknown sampler ''"):
        resolve_sampler("")
    with pytest.raises(RequestError, match="'Karras' is a schedule, not a sampler; give it as schedule"):
        resolve_sampler("Karras")


@pytest.mark.parametrize(
    "name",
    [
        # stable-diffusion.cpp: a changed 2M, other solvers, DDIM on other timesteps
        "dpm++2mv2", "ddim_trailing", "res_multistep", "res_2s", "euler_ge",
        # ComfyUI
        "dpmpp_2m_cfg_pp", "dpmpp_2s_ancestral_cfg_pp", "res_multistep_ancestral", "gradient_estimation", "seeds_2",
        "seeds_3", "sa_solver_pece", "exp_heun_2_x0",
        # InvokeAI and diffusers: 2S and 3M without noise, an inverse, another noise schedule inside
        "dpmpp_2s", "dpmpp_2s_k", "dpmpp_3m", "DPMSolverSinglestepScheduler", "DDIMInverseScheduler",
        "CosineDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepInverseScheduler",
    ],
)  # fmt: skip
def test_other_algorithms_are_not_taken_for_ours(name: str) -> None:
    with pytest.raises(RequestError, match="unknown sampler"):
        resolve_sampler(name)


@pytest.mark.parametrize(
    "name",
    [
        "smoothstep",
        "bong_tangent",
        "logit_normal",
        "trailing",
        "leading",
        "linspace",
        "use_karras_sigmas",
        "laplace",
        "vp",
    ],
)
def test_other_schedules_are_not_taken_for_ours(name: str) -> None:
    with pytest.raises(RequestError, match="unknown schedule"):
        resolve_schedule(name)


def test_a_sampler_is_not_taken_for_a_schedule() -> None:
    with pytest.raises(RequestError, match="'lcm' is a sampler, not a schedule; give it as sampler"):
        resolve_schedule("lcm")


@pytest.mark.parametrize(
    "text", ["x" * 100_000, "Euler\n" * 1000, "\u2028" * 500, "\x00", "DPM++ 2M " * 300, "𝔼uler" * 99]
)
def test_an_error_is_one_short_line(text: str) -> None:
    for resolve in (resolve_sampler, resolve_schedule):
        with pytest.raises(RequestError) as caught:
            resolve(text)
        assert len(str(caught.value)) < 400
        assert len(str(caught.value).splitlines()) == 1
        assert str(caught.value).isprintable()


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
