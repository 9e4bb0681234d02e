"""`python -m benchmarks`: tables for people, and one line of JSON last for scripts."""

from __future__ import annotations

import argparse
import json

import torch

from .machine import describe
from .networks import BENCHMARKS
from .timing import interleave, table


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "which", nargs="*", metavar="WHICH", help=f"what to time: {', '.join(BENCHMARKS)}; all by default"
    )
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of each candidate, default 5")
    parser.add_argument("--side", type=int, help="latent cells along a side, default 64")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads, default 2")
    parser.add_argument("--alone", action="store_true", help="without the peers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = describe()
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    record: dict[str, object] = {"machine": machine}
    for name in arguments.which or BENCHMARKS:
        title, make, usual = BENCHMARKS[name]
        side = arguments.side or usual
        runs = make(side, not arguments.alone)
        outputs = [run() for run in runs.values()]
        difference = max(float((output - outputs[0]).abs().max() / outputs[0].abs().max()) for output in outputs)
        timings = interleave(runs, arguments.rounds)
        against = list(runs)[-1]
        print("\n".join(table(f"{title}, latent {side}x{side}; outputs differ by {difference:.1e}", timings, against)))
        record[name] = {"side": side, "seconds": {key: list(timing.seconds) for key, timing in timings.items()}}
    print(json.dumps(record))


if __name__ == "__main__":
    main()
