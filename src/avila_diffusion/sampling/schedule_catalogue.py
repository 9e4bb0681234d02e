"""The schedules there are: a row each, with every fact that is not its formula. No torch.

The keys are ComfyUI's names where it has them; the display names are AUTOMATIC1111's (Forge's for what that lacks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Compat = Literal["a1111", "comfyui"]
"""Whose reading is meant where AUTOMATIC1111 and ComfyUI give one name to two things."""

RHO = ("rho",)
LIMITS = ("sigma_min", "sigma_max")


@dataclass(frozen=True, kw_only=True)
class ScheduleInfo:
    """One schedule.

    key: of the function in `levels.LEVELS`, or "automatic". name: as AUTOMATIC1111 writes it.
    options: which of rho, sigma_min and sigma_max move it; the others it ignores, as AUTOMATIC1111 does.
    rho: the default of the first. ends: "zero", or "lowest" where AUTOMATIC1111 stops at sigma_min.
    differs: AUTOMATIC1111's reading and ComfyUI's are two.
    """

    key: str
    name: str
    aliases: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    rho: float | None = None
    ends: Literal["zero", "lowest"] = "zero"
    differs: bool = False


_SCHEDULES = (
    ScheduleInfo(key="automatic", name="Automatic", aliases=("auto", "default")),
    ScheduleInfo(key="uniform", name="Uniform", aliases=("discrete",)),
    ScheduleInfo(key="karras", name="Karras", aliases=("KarrasScheduler",), options=RHO + LIMITS, rho=7.0),
    ScheduleInfo(
        key="exponential",
        name="Exponential",
        aliases=("ExponentialScheduler",),
        options=LIMITS,
    ),
    ScheduleInfo(
        key="polyexponential",
        name="Polyexponential",
        aliases=("PolyexponentialScheduler",),
        options=RHO + LIMITS,
        rho=1.0,
    ),
    ScheduleInfo(key="sgm_uniform", name="SGM Uniform", options=LIMITS),
    ScheduleInfo(key="kl_optimal", name="KL Optimal", options=LIMITS, ends="lowest", differs=True),
    ScheduleInfo(
        key="align_your_steps",
        name="Align Your Steps",
        aliases=("ays", "AlignYourStepsScheduler"),
        differs=True,
    ),
    ScheduleInfo(key="align_your_steps_11", name="Align Your Steps 11", aliases=("ays_11",)),
    ScheduleInfo(key="align_your_steps_32", name="Align Your Steps 32", aliases=("ays_32",)),
    ScheduleInfo(
        key="gits",
        name="Align Your Steps GITS",
        aliases=("ays_gits", "GITSScheduler"),
        differs=True,
    ),
    ScheduleInfo(key="simple", name="Simple"),
    ScheduleInfo(key="normal", name="Normal", options=LIMITS),
    ScheduleInfo(key="ddim", name="DDIM", aliases=("ddim_uniform",)),
    ScheduleInfo(key="beta", name="Beta", aliases=("BetaSamplingScheduler",), options=LIMITS, differs=True),
    ScheduleInfo(key="linear_quadratic", name="Linear Quadratic"),
    ScheduleInfo(key="turbo", name="Turbo", aliases=("sd_turbo", "SDTurboScheduler"), differs=True),
)

SCHEDULES: dict[str, ScheduleInfo] = {info.key: info for info in _SCHEDULES}
"""Key → row."""
