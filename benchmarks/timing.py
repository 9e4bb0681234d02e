"""Interleaved timing: A B A B …, so that a machine whose speed drifts is as kind to one as to the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def interleave(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate, once a round, after two uncounted rounds: the first makes what is kept, the second
    finds its memory there.
    """
    for _ in range(2):
        for run in candidates.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds
