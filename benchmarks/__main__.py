"""Measure: tables for people, and one line of JSON last for scripts. `--peers` makes the whole table.

Parts run one after another, each in a process of its own; within a part ours and the peers take turns. What is made once
(checkpoints with seeded weights, 2.1 and 6.9 GB; networks converted for OpenVINO, 4 GB a size) is kept in the cache folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import report
from .environment import settle

ALONE = ("machine", "memory", "load")
"""Parts without peers."""
PARTS = ("machine", "step", "decode", "whole", "memory", "load", "text", "step96", "decode1024", "sdxl")


def read_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("part", nargs="*", metavar="PART", help=f"what to measure: {', '.join(PARTS)}; all by default")
    parser.add_argument("--peers", action="store_true", help="take turns with diffusers and OpenVINO, where installed")
    parser.add_argument(
        "--rounds", type=int, default=5, help="counted rounds of each, default 5; whole pictures at most 2"
    )
    parser.add_argument("--steps", type=int, default=20, help="of a whole picture, default 20")
    parser.add_argument("--threads", type=int, default=2, help="of ours and of each peer, default 2")
    parser.add_argument(
        "--write",
        type=Path,
        metavar="DOCUMENT",
        help="put the tables into it, between its marks; of the same machine those stay that were not measured again",
    )
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the one part, in this process
    arguments = parser.parse_args(words)
    unknown = [part for part in arguments.part if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    for name in ("rounds", "steps", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    if arguments.rounds > 100:
        parser.error(f"--rounds is {arguments.rounds}; it must be at most 100")
    return arguments


def measure_here(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from . import parts

    torch.set_num_threads(arguments.threads)
    options = parts.Options(arguments.peers, arguments.rounds, arguments.threads, arguments.steps)
    return parts.PARTS[arguments.part[0]](options) | {"when": time.strftime("%Y-%m-%d %H:%M")}


def measure_apart(part: str, words: list[str]) -> dict[str, Any] | None:
    """The part's record, from a process of its own; None, and told, where that failed. What it says goes on to people."""
    command = [sys.executable, "-m", "benchmarks", part, *words, "--here"]
    record = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):
                record = json.loads(line)
            else:
                print(line, end="", flush=True)
    if child.returncode or record is None:
        print(f"{part} was not measured: it ended with {child.returncode}", flush=True)
        return None
    found: dict[str, Any] = record
    return found


def check_document(document: Path, about: dict[str, Any], wanted: Sequence[str], peers: bool) -> None:
    """Whether the tables may go there. Raises SystemExit where that would take out what is not measured now."""
    try:
        said = report.Said.of(report.marked(document.read_text(encoding="utf-8"))[1])
    except (OSError, ValueError) as error:
        raise SystemExit(f"nothing can be written into {document}: {error}") from None
    missing = [part for part in PARTS if part in said.made and part not in wanted]
    if missing and said.about != report.named(about):
        raise SystemExit(f"{document} is of another machine ({said.about}); measure {', '.join(missing)} too")
    beside = [part for part in wanted if part in said.made and part not in ALONE]
    if beside and not peers:
        raise SystemExit(f"{document} has peers in {', '.join(beside)}; give --peers")


def write(document: Path, about: dict[str, Any], records: dict[str, Any]) -> None:
    """Put the tables into it."""
    before, between, after = report.marked(document.read_text(encoding="utf-8"))
    unfinished = document.with_name(document.name + ".part")
    unfinished.write_text(before + report.body(about, records, between) + after, encoding="utf-8", newline="\n")
    unfinished.replace(document)


def main() -> int:
    arguments = read_arguments()
    unset = settle(arguments.threads)
    if arguments.here:
        print(json.dumps(measure_here(arguments)))
        return 0
    if unset:
        print(f"unset for these measurements: {', '.join(unset)}")
    import torch

    from . import machine

    torch.set_num_threads(arguments.threads)
    about = machine.describe()
    words = [f"--{name}={getattr(arguments, name)}" for name in ("rounds", "steps", "threads")]
    words += ["--peers"] if arguments.peers else []
    records: dict[str, Any] = {}
    wanted = arguments.part or PARTS
    if arguments.write is not None:
        check_document(arguments.write, about, wanted, arguments.peers)
    for part in wanted:
        print(f"{part} …", flush=True)
        record = measure_apart(part, words)
        if record is not None:
            records[part] = record
            print("\n".join(report.SECTIONS[part][1](part, record)), flush=True)
            if arguments.write is not None:
                write(arguments.write, about, records)
    print("\n".join(report.goal(records)))
    if arguments.write is not None and records:
        print(f"{arguments.write}: written")
    print(json.dumps({"machine": about, "parts": records, "figures": [vars(x) for x in report.figures(records)]}))
    return 0 if len(records) == len(wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
