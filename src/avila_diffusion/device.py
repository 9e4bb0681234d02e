"""Where a run computes and in which dtypes: one policy for processors, CUDA and MPS."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .errors import DeviceProblem, RequestError
from .limits import check_device

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
MAX_THREADS = 1024


@dataclass(frozen=True)
class Policy:
    """device, and the dtype of each network. A VAE in half precision is guarded against its overflow."""

    device: torch.device
    unet: torch.dtype
    vae: torch.dtype
    text: torch.dtype

    @property
    def latent(self) -> torch.dtype:
        """What samplers compute in: float32 also beside half-precision networks, float64 where all is float64."""
        return torch.float64 if self.unet == torch.float64 else torch.float32


def choose_policy(device: str = "auto", dtype: str = "auto") -> Policy:
    """The policy for `device` ("auto", "cpu", "cuda", "cuda:1", "mps") and `dtype` ("auto", "float32", …).

    auto takes CUDA, else MPS, else the processor; float32 on processors, float16 on GPUs.
    Raises DeviceProblem where this machine or this torch cannot do it.
    """
    chosen = _device(device)
    if dtype == "auto":
        kind = torch.float32 if chosen.type == "cpu" else torch.float16
    elif isinstance(dtype, str) and dtype in DTYPES:
        kind = DTYPES[dtype]
    else:
        raise RequestError(f"dtype {str(dtype)[:80]!r} is unknown; it is auto, {', '.join(DTYPES)}")
    if chosen.type == "mps" and kind == torch.float64:
        raise DeviceProblem("MPS has no float64; use --dtype float32")
    return Policy(device=chosen, unet=kind, vae=kind, text=kind)


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    check_device(name)
    kind, _, index = name.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceProblem(f"torch {torch.__version__} sees no CUDA device; use --device cpu, or see avila doctor")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise DeviceProblem(f"there is no {name}; torch sees {torch.cuda.device_count()} CUDA devices")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceProblem("this machine or this torch has no MPS; use --device cpu")
    return torch.device(name)


def use_threads(count: int | None) -> None:
    """Set how many threads torch computes with, in the whole process; None leaves torch's own choice."""
    check_threads(count)
    if count is not None:
        torch.set_num_threads(count)


def check_threads(count: int | None) -> None:
    """Raise RequestError unless it is None or a number of threads, 1 to 1,024."""
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int):
        raise RequestError(f"threads must be a whole number, not {str(count)[:80]!r}")
    if not 1 <= count <= MAX_THREADS:
        raise RequestError(f"threads is {count}; it must be from 1 to {MAX_THREADS:,}")
