"""What the machine can do: the yardstick that the other figures are read against."""

from __future__ import annotations

import platform
import time

import torch


def matrix_rate(size: int = 2048, rounds: int = 8) -> float:
    """Float32 multiply-adds of torch's matrix product, best of `rounds`, in GFLOP/s (a multiply-add counts two)."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best / 1e9


def describe() -> dict[str, object]:
    return {
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "matrix_gflops": round(matrix_rate(), 1),
    }
