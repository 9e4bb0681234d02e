"""`avila plan`: what a run would take, in memory and time; no picture is made."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..pipeline.forecast import Forecast

PYTHON = 0.1
"""Seconds that Python needs before a command begins."""


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add this family to the command line."""
    from .generate import add_job_options

    plan = commands.add_parser(
        "plan",
        help="say what a run would take, in memory and time, without running it",
        description="Say what `avila generate` with the same options would take: peak memory and seconds, with all derived "
        "weights kept (fast), with none (lean), and within --max-memory. Makes no picture. The first time, it measures this "
        "machine for two seconds.",
    )
    add_job_options(plan)
    plan.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    plan.set_defaults(run=run_plan, journal=None, trail=False, verbose=False, preview_dir=None, preview_every=None)


def run_plan(options: argparse.Namespace) -> int:
    """`avila plan`."""
    from ..pipeline.memory import chosen
    from .generate import prepared

    began = time.perf_counter()
    engine, request, model = prepared(options)
    started = PYTHON + time.perf_counter() - began
    outlook = engine.outlook(request)
    ways = {"fast": outlook.at(None), "lean": outlook.at(0)}
    if options.max_memory is not None:
        ways = {f"--max-memory {options.max_memory}": chosen(outlook), **ways}
    asked = next(iter(ways.values()))
    if options.json:
        told = {"model": model, "start_seconds": round(started, 3)}
        print(json.dumps(told | {name: way.to_dict() for name, way in ways.items()}, indent=2))
        return 0
    print(f"{asked.pictures} picture{'' if asked.pictures == 1 else 's'}, {asked.calls} model calls")
    for name, way in ways.items():
        print(_line(name, way))
    print(f"before that {started:.1f} s to start and to open the model")
    for note in _notes(asked):
        print(note)
    return 0


def _line(name: str, way: Forecast) -> str:
    return (
        f"{name}: peak {_size(way.peak_bytes)} ({_size(way.kept_bytes)} of it kept weights), {way.seconds:.1f} s: "
        f"{way.step_seconds:.2f} s a step, {way.decode_seconds:.2f} s a decode, {way.prepare_seconds:.1f} s to prepare"
    )


def _notes(way: Forecast) -> list[str]:
    rough = ["rough: torch computes in place of the kernels; see avila doctor"] if way.rough else []
    return [*rough, *way.notes]


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
