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
    from ..sampling.rows import sampler_row

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
    from ..sampling.rows import schedule_row

    if options.json:
        print(json.dumps([schedule_row(info) for info in SCHEDULES.values()], indent=2))
        return 0
    rows = [(info.name, " ".join(info.options), _others(info)) for info in SCHEDULES.values()]
    _print(("schedule", "options", "other names"), rows)
    return 0


def _calls_per_step(info: SamplerInfo) -> str:
    from ..sampling.rows import CALLS_PER_STEP

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
