"""Exact fast paths for the processor: the same sums in another order. Each has its plain torch form in `models.layers`.

`AVILA_KERNELS=torch` in the environment turns all of them off; it may have no other value.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import RequestError


def wanted(value: str) -> bool:
    """Whether AVILA_KERNELS of this value lets the fast paths serve. Raises RequestError where it means nothing."""
    if value.strip().lower() not in ("", "torch"):
        raise RequestError(f'AVILA_KERNELS is {value!r}: it can be "torch", which turns the kernels off; unset it else')
    return not value.strip()


ENABLED = wanted(os.environ.get("AVILA_KERNELS", ""))


def apply_to(x: Tensor, *others: Tensor | None) -> bool:
    """Whether a fast path may serve this call: on a processor, and where no gradient is wanted.

    others: weights and further inputs. Not where numbers are not what they seem: tensors of other classes, or of torch's
    transforms and modes (compile, trace, vmap, fake tensors, autocast), which must see every operation.
    """
    tensors = [x, *(tensor for tensor in others if tensor is not None)]
    if not ENABLED or not all(tensor.is_cpu and type(tensor) in PLAIN for tensor in tensors) or is_watched():
        return ENABLED and in_rehearsal() is not None and all(tensor.is_meta for tensor in tensors)
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


PLAIN = (Tensor, torch.nn.Parameter)


class Rehearsal(Protocol):
    """What stands in for the kernels while networks run on tensors without numbers; see `rehearsing`."""

    scratch: Tensor | None

    def record(self, which: int, arguments: object, threads: int) -> None:
        """Note a call of a kernel in place of computing it."""
        ...

    def stay(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor of float32 for packed weights or scratch."""
        ...


class _Here(threading.local):
    rehearsal: Rehearsal | None = None


_here = _Here()


def in_rehearsal() -> Rehearsal | None:
    """The rehearsal that this thread is in. Other threads compute as ever."""
    return _here.rehearsal


def begin_rehearsal(begun: Rehearsal | None) -> None:
    """Let this thread be in a rehearsal; None: in none."""
    _here.rehearsal = begun


def is_watched() -> bool:
    """Whether a mode or transform of torch wants to see every operation."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )
