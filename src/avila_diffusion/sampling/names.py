"""What samplers and schedules are called, and the facts of each that are not its update rule. No torch.

A sampler is a row here and a function in `samplers`; the keys are ComfyUI's and k-diffusion's names, the display names
are AUTOMATIC1111's, which stand in the metadata of pictures.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import RequestError

Grid = Literal["schedule", "ddim"]


@dataclass(frozen=True, kw_only=True)
class SamplerInfo:
    """One sampler.

    key: of the function in `samplers.SAMPLERS`. name: as AUTOMATIC1111 writes it. aliases: other names it is known by.
    automatic: key of the schedule that "Automatic" means for it.
    grid: where its noise levels come from: the chosen schedule, or DDIM's own timesteps (the schedule is ignored).
    second_order: counted as two model calls a step, in prompt schedules too. stochastic: draws noise between steps.
    discard_penultimate: one more level is computed and the last before 0 is left out.
    eta: default weight of the noise drawn between steps, None where the sampler takes none.
    text_start: the first latent is noise * sigma ("scaled") or unit noise of the variance-preserving process, which is
        noise * sqrt(1 + sigma^2) ("unit").
    image_start: the picture is noised to the first level of the run ("first"), or in the variance-preserving process
        to the level above it ("above"), as AUTOMATIC1111 does for DDIM and its kin.
    """

    key: str
    name: str
    aliases: tuple[str, ...]
    paper: str
    automatic: str = "uniform"
    grid: Grid = "schedule"
    second_order: bool = False
    stochastic: bool = False
    discard_penultimate: bool = False
    eta: float | None = None
    text_start: Literal["scaled", "unit"] = "scaled"
    image_start: Literal["first", "above"] = "first"

    @property
    def uses_eta(self) -> bool:
        """Whether the sampler takes an eta at all."""
        return self.eta is not None


@dataclass(frozen=True, kw_only=True)
class ScheduleInfo:
    """One schedule. key: of the function in `schedules.SCHEDULES`, or "automatic". name: as AUTOMATIC1111 writes it."""

    key: str
    name: str
    aliases: tuple[str, ...] = ()


SAMPLERS: dict[str, SamplerInfo] = {
    "dpmpp_2m": SamplerInfo(
        key="dpmpp_2m",
        name="DPM++ 2M",
        aliases=("k_dpmpp_2m", "dpm++2m", "DPM-Solver++(2M)", "sample_dpmpp_2m", "DPMSolverMultistepScheduler"),
        paper="Lu et al. 2022, DPM-Solver++, arXiv:2211.01095, algorithm 2",
        automatic="karras",
    ),
    "euler": SamplerInfo(
        key="euler",
        name="Euler",
        aliases=("k_euler", "sample_euler", "EulerDiscreteScheduler"),
        paper="Karras et al. 2022, arXiv:2206.00364, algorithm 2 without churn and correction",
    ),
    "euler_ancestral": SamplerInfo(
        key="euler_ancestral",
        name="Euler a",
        aliases=("k_euler_a", "k_euler_ancestral", "sample_euler_ancestral", "EulerAncestralDiscreteScheduler"),
        paper="Song et al. 2021, arXiv:2010.02502, in the noise levels of Karras et al. 2022 (k-diffusion)",
        stochastic=True,
        eta=1.0,
    ),
    "heun": SamplerInfo(
        key="heun",
        name="Heun",
        aliases=("k_heun", "sample_heun", "HeunDiscreteScheduler"),
        paper="Karras et al. 2022, arXiv:2206.00364, algorithm 1",
        second_order=True,
    ),
    "dpm_2": SamplerInfo(
        key="dpm_2",
        name="DPM2",
        aliases=("k_dpm_2", "DPM-Solver-2", "sample_dpm_2", "KDPM2DiscreteScheduler"),
        paper="Lu et al. 2022, DPM-Solver, arXiv:2206.00927, as the midpoint rule of Karras et al. 2022 (k-diffusion)",
        automatic="karras",
        second_order=True,
        discard_penultimate=True,
    ),
    "dpm_2_ancestral": SamplerInfo(
        key="dpm_2_ancestral",
        name="DPM2 a",
        aliases=("k_dpm_2_a", "k_dpm_2_ancestral", "sample_dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler"),
        paper="DPM2 with the ancestral step of Euler a (k-diffusion)",
        automatic="karras",
        second_order=True,
        stochastic=True,
        discard_penultimate=True,
        eta=1.0,
    ),
    "ddim": SamplerInfo(
        key="ddim",
        name="DDIM",
        aliases=("k_ddim", "DDIMScheduler"),
        paper="Song et al. 2021, Denoising Diffusion Implicit Models, arXiv:2010.02502, equation 12",
        grid="ddim",
        stochastic=True,
        eta=0.0,
        text_start="unit",
        image_start="above",
    ),
    "ddpm": SamplerInfo(
        key="ddpm",
        name="DDPM",
        aliases=("k_ddpm", "DDPMScheduler"),
        paper="Ho et al. 2020, Denoising Diffusion Probabilistic Models, arXiv:2006.11239, equations 6 and 7",
        stochastic=True,
    ),
}

SCHEDULES: dict[str, ScheduleInfo] = {
    "automatic": ScheduleInfo(key="automatic", name="Automatic", aliases=("auto", "default")),
    "karras": ScheduleInfo(key="karras", name="Karras"),
    "exponential": ScheduleInfo(key="exponential", name="Exponential"),
    "uniform": ScheduleInfo(key="uniform", name="Uniform", aliases=("discrete",)),
    "normal": ScheduleInfo(key="normal", name="Normal"),
    "sgm_uniform": ScheduleInfo(key="sgm_uniform", name="SGM Uniform"),
    "simple": ScheduleInfo(key="simple", name="Simple"),
    "ddim": ScheduleInfo(key="ddim", name="DDIM", aliases=("ddim_uniform",)),
}

JOINT_SUFFIXES: dict[str, str] = {"ka": "karras", "k": "karras", "exp": "exponential"}
"""Short endings of joint names: k_dpmpp_2m_ka and k_…_exp in AUTOMATIC1111, dpmpp_2m_k in InvokeAI."""


def resolve_sampler(text: str) -> tuple[SamplerInfo, ScheduleInfo | None]:
    """The sampler of any name, and the schedule where the name holds one too.

    Case, spaces, dashes and underscores do not matter. Known are the names of AUTOMATIC1111 ("DPM++ 2M Karras",
    k_dpmpp_2m_ka), ComfyUI (dpmpp_2m), stable-diffusion.cpp (dpm++2m), InvokeAI (dpmpp_2m_k) and diffusers' classes.

    >>> [info.key for info in resolve_sampler("DPM++ 2M Karras") if info]
    ['dpmpp_2m', 'karras']

    Raises RequestError for an unknown name, with the nearest ones.
    """
    name = _plain(text)
    if name in _SAMPLER_KEYS:
        return SAMPLERS[_SAMPLER_KEYS[name]], None
    for suffix, key in _SUFFIX_KEYS.items():
        if name.endswith(suffix) and name.removesuffix(suffix) in _SAMPLER_KEYS:
            return SAMPLERS[_SAMPLER_KEYS[name.removesuffix(suffix)]], SCHEDULES[key]
    raise RequestError(_unknown("sampler", text, SAMPLERS, _SAMPLER_KEYS))


def resolve_schedule(text: str) -> ScheduleInfo:
    """The schedule of any name; "Automatic" leaves the choice to the sampler.

    Raises RequestError for an unknown name, with the nearest ones.
    """
    name = _plain(text)
    if name in _SCHEDULE_KEYS:
        return SCHEDULES[_SCHEDULE_KEYS[name]]
    raise RequestError(_unknown("schedule", text, SCHEDULES, _SCHEDULE_KEYS))


def _plain(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter not in " \t-_")


def _keys(infos: Iterable[SamplerInfo | ScheduleInfo]) -> dict[str, str]:
    return {_plain(name): info.key for info in infos for name in (info.key, info.name, *info.aliases)}


def _unknown(kind: str, text: str, infos: Mapping[str, SamplerInfo | ScheduleInfo], keys: dict[str, str]) -> str:
    near = difflib.get_close_matches(_plain(text), keys, n=4, cutoff=0.5)
    names = list(dict.fromkeys(infos[keys[match]].name for match in near))
    offer = f"the nearest: {', '.join(names)}" if names else f"there are: {', '.join(i.name for i in infos.values())}"
    return f"unknown {kind} {text[:80]!r}; {offer}"


_SAMPLER_KEYS = _keys(SAMPLERS.values())
_SCHEDULE_KEYS = _keys(SCHEDULES.values())
# Longest first: "sgmuniform" ends in "uniform" too.
_SUFFIX_KEYS = dict(sorted({**_SCHEDULE_KEYS, **JOINT_SUFFIXES}.items(), key=lambda pair: -len(pair[0])))
