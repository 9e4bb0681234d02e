"""The driver: what it passes on, when it stops, and that it leaves nothing open."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from avila_diffusion.errors import Cancelled
from avila_diffusion.pipeline.driver import Step, check, drive
from avila_diffusion.sampling.guidance import Call, Denoised
from avila_diffusion.sampling.samplers.run import Run

START = torch.tensor([8.0])


def halving(calls: int, log: list[str] | None = None) -> Run:
    """Asks `calls` times; adds what it is told. Logs its end, whichever way that comes."""
    x = START
    try:
        for step in range(calls):
            denoised = yield Call(x, float(calls - step), step)
            x = x / 2 + denoised.x0
    finally:
        if log is not None:
            log.append("closed")
    return x


def ones(call: Call) -> Denoised:
    return Denoised(torch.ones_like(call.x))


def test_a_run() -> None:
    *steps, latent = drive(halving(3), ones)
    assert isinstance(latent, Tensor)
    assert latent.tolist() == [2.75]  # 8 → 5 → 3.5 → 2.75
    assert all(isinstance(step, Step) for step in steps)
    made = [(step.number, step.call.sigma, step.call.x.item(), step.denoised.x0.item()) for step in steps]  # type: ignore[union-attr]
    assert made == [(1, 3.0, 8.0, 1.0), (2, 2.0, 5.0, 1.0), (3, 1.0, 3.5, 1.0)]


def test_a_sampler_that_asks_nothing() -> None:
    assert list(drive(halving(0), ones)) == [START]


def test_a_step_is_told_before_the_next_call_is_made() -> None:
    seen: list[float] = []

    def denoise(call: Call) -> Denoised:
        seen.append(call.sigma)
        return ones(call)

    events = drive(halving(3), denoise)
    assert seen == []
    next(events)
    assert seen == [3.0]
    next(events)
    assert seen == [3.0, 2.0]


def test_no_gradients_and_grad_mode_is_left_alone() -> None:
    modes: list[bool] = []

    def denoise(call: Call) -> Denoised:
        modes.append(torch.is_grad_enabled())
        return ones(call)

    assert torch.is_grad_enabled()
    for _ in drive(halving(2), denoise):
        modes.append(torch.is_grad_enabled())
    assert modes == [False, True, False, True, True]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_cancelled_before_the_next_call(after: int) -> None:
    cancel, log, made = threading.Event(), list[str](), 0
    if after == 0:
        cancel.set()
    with pytest.raises(Cancelled, match=r"^cancelled; nothing was written$"):
        for event in drive(halving(3, log), ones, cancel):
            assert isinstance(event, Step)
            made = event.number
            if made == after:
                cancel.set()
    assert made == after
    assert log == ["closed"]


def test_a_cancel_during_the_last_call_leaves_the_latent() -> None:
    cancel = threading.Event()

    def denoise(call: Call) -> Denoised:
        if call.step == 2:
            cancel.set()
        return ones(call)

    assert isinstance(list(drive(halving(3), denoise, cancel))[-1], Tensor)


def test_closing_closes_the_sampler() -> None:
    log: list[str] = []
    events = drive(halving(3, log), ones)
    next(events)
    assert log == []
    events.close()
    assert log == ["closed"]


def stop(call: Call) -> Denoised:
    raise StopIteration("of a network")


def fail(call: Call) -> Denoised:
    raise ArithmeticError("of a network")


@pytest.mark.parametrize(("denoise", "error"), [(stop, RuntimeError), (fail, ArithmeticError)])
def test_an_error_of_the_network_is_not_the_end(denoise: Callable[[Call], Denoised], error: type[Exception]) -> None:
    log: list[str] = []
    with pytest.raises(error):
        list(drive(halving(3, log), denoise))
    assert log == ["closed"]


def test_check() -> None:
    event = threading.Event()
    check(None)
    check(event)
    event.set()
    with pytest.raises(Cancelled):
        check(event)
