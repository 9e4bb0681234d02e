"""Interleaved timing: A B A B …, so that a machine whose speed drifts is as kind to one as to the other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of every counted round, in order."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def interleave(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time each candidate once a round, after one uncounted round."""
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def table(title: str, timings: Mapping[str, Timing], against: str) -> list[str]:
    """Lines for people: best, median, and the ratio of the bests to `against` (above 1 is faster than it)."""
    lines = [title, f"  {'':<28}{'best':>9}{'median':>9}{'ratio':>8}"]
    for name, timing in timings.items():
        ratio = timings[against].best / timing.best
        lines.append(f"  {name:<28}{timing.best:>8.2f}s{timing.median:>8.2f}s{ratio:>8.2f}")
    return lines
