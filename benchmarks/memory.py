"""Time to a loaded model and peak memory of a whole run: `python -m benchmarks.memory CHECKPOINT`. Linux only.

Anonymous memory is what the run itself holds; file-backed pages are the mapped checkpoint, which the system may drop
at any time. Both are sampled every 20 ms from /proc/self/status.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path

import torch

from avila_diffusion import AvilaDiffusion

FIELDS = ("RssAnon", "RssShmem", "RssFile")


def resident() -> dict[str, int]:
    """Resident bytes of this process, by kind."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    table = {line.partition(":")[0]: line.partition(":")[2] for line in lines}
    return {field: int(table[field].split()[0]) * 1024 for field in FIELDS}


class Peak:
    """The highest figures seen while it is open."""

    def __enter__(self) -> Peak:
        self.bytes = resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            now = resident()
            self.bytes = {field: max(self.bytes[field], now[field]) for field in FIELDS}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--side", type=int, default=256, help="width and height in pixels")
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    before = resident()["RssAnon"]
    ready = []
    for _ in range(3):
        began = time.perf_counter()
        diffusion = AvilaDiffusion.with_model(arguments.checkpoint)
        ready.append(time.perf_counter() - began)
    with Peak() as peak:
        began = time.perf_counter()
        diffusion.text_to_image("a cat", "rain", arguments.side, arguments.side, steps=arguments.steps, seed=1)
        seconds = time.perf_counter() - began
    report = {
        "checkpoint_gb": Path(arguments.checkpoint).stat().st_size / 1e9,
        "ready_seconds": ready,
        "run_seconds": seconds,
        "anonymous_gb_before": before / 1e9,
        "anonymous_gb_peak": (peak.bytes["RssAnon"] + peak.bytes["RssShmem"]) / 1e9,
        "file_backed_gb_peak": peak.bytes["RssFile"] / 1e9,
    }
    print(f"ready after {min(ready):.2f} s (best of 3, torch already imported); {arguments.steps} steps in {seconds:.1f} s")
    print(f"peak: {report['anonymous_gb_peak']:.2f} GB anonymous, {report['file_backed_gb_peak']:.2f} GB file-backed")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
