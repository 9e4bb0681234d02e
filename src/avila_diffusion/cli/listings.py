"""`avila samplers`, `avila schedules`: what can be asked for, by all its names, and what it costs."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..sampling.names import SamplerInfo, ScheduleInfo

WIDTH = 100
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


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add this family to the command line."""
    for name, text in (
        ("samplers", "list the samplers, with model calls a step and automatic schedule"),
        ("schedules", "list the noise schedules"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}, with their aliases.")
        command.add_argument("--json", action="store_true", help="one JSON list with all that is known of each")
        command.set_defaults(run=run_samplers if name == "samplers" else run_schedules)


def run_samplers(options: argparse.Namespace) -> int:
    """`avila samplers`."""
    from ..sampling.names import SAMPLERS

    if options.json:
        print(json.dumps([sampler_row(info) for info in SAMPLERS.values()], indent=2))
        return 0
    rows = [(info.name, _calls_per_step(info), _levels(info), _others(info)) for info in SAMPLERS.values()]
    _print(("sampler", "calls/step", "automatic", "other names"), rows)
    return 0


def _levels(info: SamplerInfo) -> str:
    """The schedule that Automatic means, where the sampler has no levels of its own."""
    from ..sampling.names import SCHEDULES

    return "its own" if info.grid in ("ddim", "unipc") else SCHEDULES[info.automatic].name


def run_schedules(options: argparse.Namespace) -> int:
    """`avila schedules`."""
    from ..sampling.names import SCHEDULES

    if options.json:
        print(json.dumps([schedule_row(info) for info in SCHEDULES.values()], indent=2))
        return 0
    rows = [(info.name, " ".join(info.options), _others(info)) for info in SCHEDULES.values()]
    _print(("schedule", "options", "other names"), rows)
    return 0


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


def _calls_per_step(info: SamplerInfo) -> str:
    return str(CALLS_PER_STEP.get(info.calls, "varies"))


def _others(info: SamplerInfo | ScheduleInfo) -> str:
    """The other names, the key first, each once."""
    return ", ".join(other for other in dict.fromkeys((info.key, *info.aliases)) if other != info.name)


def _print(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns, the last wrapped within its own width."""
    lines = [titles, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles) - 1)]
    margin = sum(widths) + 2 * len(widths)
    for line in lines:
        first = "".join(f"{cell:<{width}}  " for cell, width in zip(line, widths, strict=False))
        wrapped = textwrap.wrap(line[-1], WIDTH - margin, break_long_words=False, break_on_hyphens=False) or [""]
        print("\n".join([(first + wrapped[0]).rstrip(), *(" " * margin + more for more in wrapped[1:])]))
