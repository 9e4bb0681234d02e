"""Samplers and schedules as rows of plain values, for programs: what `avila samplers --json` and the server list. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .names import SamplerInfo, ScheduleInfo

CALLS_PER_STEP = {"one": 1, "extra": 1, "two": 2, "three": 3, "restart": 2}
UNSET = {
    "eta": None,
    "s_noise": 1.0,
    "s_churn": 0.0,
    "s_tmin": 0.0,
    "s_tmax": None,
    "sigma_min": None,
    "sigma_max": None,
}
"""Options at their defaults; None is the sampler's or the model's own, for s_tmax no limit."""


def sampler_row(info: SamplerInfo) -> dict[str, Any]:
    """All that is known of a sampler, for programs.

    calls: of n steps, from pure noise, on the automatic schedule and Stable Diffusion's 1000 timesteps.
    """
    return {
        "key": info.key,
        "name": info.name,
        "aliases": list(info.aliases),
        "paper": info.paper,
        "order": info.order,
        "calls_per_step": CALLS_PER_STEP.get(info.calls),
        "calls": calls_formula(info),
        "second_order": info.second_order,
        "stochastic": info.stochastic,
        "brownian": info.brownian,
        "options": {name: info.eta if name == "eta" else UNSET[name] for name in info.options},
        "automatic": info.automatic,
        "grid": info.grid,
        "ends": info.ends,
        "starts": {"text": info.text_start, "image": info.image_start},
    }


def schedule_row(info: ScheduleInfo) -> dict[str, Any]:
    """All that is known of a schedule, for programs."""
    return {
        "key": info.key,
        "name": info.name,
        "aliases": list(info.aliases),
        "options": {name: info.rho if name == "rho" else UNSET[name] for name in info.options},
        "ends": info.ends,
        "differs_in_comfyui": info.differs,
    }


def calls_formula(info: SamplerInfo) -> str:
    """Model calls as a function of n steps, for calculators but for the product sign."""
    if info.grid == "unipc":
        return "ceil(1000 / floor(1000 / n))"
    if info.grid == "ddim":
        ends = "ceil(1000 / floor(1000 / n))"
        return f"max({ends}, 2)" if info.calls == "extra" else f"max({ends} - 1, 1)"
    return {
        "one": "n",
        "extra": "n + 1",
        "two": "2n - 1",
        "three": "max(3n - 3, n)",
        "restart": "2n - 1",
        "adaptive": "as many as the error asks for",
    }[info.calls]
