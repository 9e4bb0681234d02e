"""What the machine can do: the yardstick that the other figures are read against."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from avila_diffusion.kernels import native
from avila_diffusion.machine import memory, processor_name

SHAPES = ((4096, 4096, 4096), (2048, 2048, 2048), (8192, 320, 2560), (2048, 1280, 1280))
"""rows, inner, columns: two squares, and two linears of SD 1.5's UNet."""
COPIED = 512 << 20
"""Bytes of the tensor that is copied: more than any cache holds."""


def best(run: Callable[[], object], rounds: int) -> float:
    """Seconds of the best of `rounds`, after one uncounted."""
    run()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def matrix_rates(shape: tuple[int, int, int], rounds: int = 5) -> dict[str, float]:
    """GFLOP/s (a multiply-add counts two) of one product in float32, by whose it is: torch's, numpy's, ours."""
    rows, inner, columns = shape
    x, weight = torch.randn(rows, inner), torch.randn(columns, inner)
    plain, transposed = x.numpy(), np.ascontiguousarray(weight.numpy().T)
    runs: dict[str, Callable[[], object]] = {
        "torch": lambda: torch.nn.functional.linear(x, weight),
        "numpy": lambda: plain @ transposed,
    }
    if native.serves(x, weight):
        packed = native.pack_rows(weight)
        runs["ours"] = lambda: native.linear(x, packed, None, columns)
    return {name: 2 * rows * inner * columns / best(run, rounds) / 1e9 for name, run in runs.items()}


def matrix_rate() -> float:
    """The machine's rate, GFLOP/s: the best that any of the libraries reaches on a square of 2048."""
    return max(matrix_rates((2048, 2048, 2048)).values())


def copy_rate() -> float:
    """GB/s read plus written while a tensor beyond the caches is copied."""
    source = torch.ones(COPIED // 4)
    into = torch.empty_like(source)
    return 2 * COPIED / best(lambda: into.copy_(source), 5) / 1e9


def describe() -> dict[str, Any]:
    """The machine in words, without measuring."""
    had = memory()
    return {
        "processor": processor_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": None if had is None else round(had.total / 1e9, 1),
        "system": platform.system(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
