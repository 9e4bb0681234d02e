"""The driver: it advances a sampler's generator, makes the model calls that it asks for, and may stop between two."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import Cancelled
from ..sampling.guidance import Call, Denoise, Denoised
from ..sampling.samplers.run import Run


@dataclass(frozen=True, eq=False)
class Step:
    """A model call that was made: its number, from 1, what was asked and what came."""

    number: int
    call: Call
    denoised: Denoised


def drive(run: Run, denoise: Denoise, cancel: threading.Event | None = None) -> Generator[Step | Tensor, None, None]:
    """Run a sampler to its end: a Step after every model call, the finished latent last.

    Raises Cancelled at the first chance after `cancel` is set; a model call that is under way is finished. Closing this
    closes the sampler too.
    """
    with closing(run):
        call = _advance(run, None)
        number = 0
        while isinstance(call, Call):
            check(cancel)
            call = replace(call, number=number)
            with torch.no_grad():
                denoised = denoise(call)
            number += 1
            yield Step(number, call, denoised)
            call = _advance(run, denoised)
        yield call


def _advance(run: Run, denoised: Denoised | None) -> Call | Tensor:
    """What the sampler wants next, or its finished latent. Only its own end counts, not a StopIteration of a network."""
    try:
        return next(run) if denoised is None else run.send(denoised)
    except StopIteration as end:
        finished: Tensor = end.value
        return finished


def check(cancel: threading.Event | None) -> None:
    """Raise Cancelled where that was asked for."""
    if cancel is not None and cancel.is_set():
        raise Cancelled("cancelled; nothing was written")
