"""`avila doctor`: what this machine is and what is wrong with it."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add this family to the command line."""
    doctor = commands.add_parser(
        "doctor",
        help="check versions, processor, graphics card, memory and folders",
        description="Check versions, processor, graphics card, memory and folders. Exit code 1 if one is broken.",
    )
    doctor.add_argument("--models-dir", metavar="DIR", help="look for checkpoints here")
    doctor.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    doctor.set_defaults(run=run_doctor)


def run_doctor(options: argparse.Namespace) -> int:
    """`avila doctor`."""
    from ..diagnose import diagnose

    diagnosis = diagnose(models_dir=options.models_dir)
    print(json.dumps(diagnosis.to_dict(), indent=2) if options.json else "\n".join(diagnosis.lines()))
    return 1 if diagnosis.broken else 0
