"""What the environment must not decide in a benchmark. No torch, no numpy: both read it while they are imported."""

from __future__ import annotations

import os

OVERRIDES = (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_VERBOSE",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "AVILA_KERNELS",
)
"""Variables that make a matrix library (or us) compute as on an older processor."""


def settle(threads: int) -> list[str]:
    """Unset the OVERRIDES for this process and its children, and give every library `threads`; the names that were set."""
    unset = [name for name in OVERRIDES if os.environ.pop(name, None) is not None]
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # numpy's threads would spin on while torch's are measured
    return unset
