"""`avila samplers`, `avila schedules`: the names that can be asked for."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add this family to the command line."""
    for name, text in (("samplers", "list the samplers"), ("schedules", "list the noise schedules")):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}, with their aliases.")
        command.add_argument("--json", action="store_true", help="one JSON list instead of lines")
        command.set_defaults(run=run_samplers if name == "samplers" else run_schedules)


def run_samplers(options: argparse.Namespace) -> int:
    """`avila samplers`."""
    from ..sampling.names import SAMPLERS

    _print(SAMPLERS, as_json=options.json)
    return 0


def run_schedules(options: argparse.Namespace) -> int:
    """`avila schedules`."""
    from ..sampling.names import SCHEDULES

    _print(SCHEDULES, as_json=options.json)
    return 0


def _print(table: Mapping[str, Any], *, as_json: bool) -> None:
    rows = [(info.key, info.name, list(info.aliases)) for info in table.values()]
    if as_json:
        print(json.dumps([{"key": key, "name": name, "aliases": aliases} for key, name, aliases in rows], indent=2))
        return
    width = max(len(name) for _, name, _ in rows)
    for key, name, aliases in rows:
        print(f"{name:<{width}}  {', '.join(_others(name, key, aliases))}".rstrip())


def _others(name: str, key: str, aliases: Iterable[str]) -> list[str]:
    """The other names, the key first, each once."""
    return [other for other in dict.fromkeys((key, *aliases)) if other != name]
