"""The kernels on threads: torch's, their own, and many callers at once."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from avila_diffusion import kernels
from avila_diffusion.kernels import build, native, structures, team

pytestmark = pytest.mark.skipif(
    not kernels.ENABLED or build.library() is None, reason=f"no kernels of ours here, or turned off: {build.problem}"
)


@pytest.fixture(params=["torch's", "own"])
def found(request: pytest.FixtureRequest) -> Iterator[native._Kernels]:
    kernels = native._kernels()
    assert kernels is not None
    if request.param == "torch's" and kernels.openmp is None:
        pytest.skip("this torch has no OpenMP that the kernels can enter")
    before = torch.get_num_threads()
    if request.param == "own":
        kernels.library.avila_use_openmp(ctypes.byref(team.OpenMP()))
    yield kernels
    torch.set_num_threads(before)
    theirs = team.openmp_of_torch()
    if theirs is not None:
        kernels.library.avila_use_openmp(ctypes.byref(theirs[1]))


X = torch.randn(2, 64, 23, 19, generator=torch.Generator().manual_seed(3))
ONES, ZEROS = torch.ones(64), torch.zeros(64)


def norm() -> Tensor:
    return native.group_norm(X, 32, ONES, ZEROS, 1e-5, True)


def test_any_number_of_threads_gives_the_same(found: native._Kernels) -> None:
    torch.set_num_threads(1)
    expected = norm()
    for count in (2, 3, 16, 2, 1, 5):
        torch.set_num_threads(count)
        started = time.perf_counter()
        for _ in range(20):
            assert torch.equal(norm(), expected)
        assert time.perf_counter() - started < 10, "more threads than cores stand in each other's way"


def test_many_callers_at_once(found: native._Kernels) -> None:
    expected = norm()
    wrong: list[int] = []

    def call(threads: int) -> None:
        torch.set_num_threads(threads)
        wrong.extend(1 for _ in range(50) if not torch.equal(norm(), expected))

    callers = [threading.Thread(target=call, args=(1 + number % 3,)) for number in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=30)
    assert not wrong and not any(caller.is_alive() for caller in callers)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own() -> None:
    """With the kernels' own pool; OpenMP's does not survive a fork, in torch either."""
    kernels = native._kernels()
    assert kernels is not None
    pixels, out = native.by_pixel(X), torch.empty(2, 23, 19, 64)
    sums = torch.empty(2 * native.PIECES * 2 * 64, dtype=torch.float64)
    arguments = structures.GroupNorm(
        2, 23 * 19, 64, 32, pixels.data_ptr(), ONES.data_ptr(), ZEROS.data_ptr(), 1e-5, True, out.data_ptr(),
        sums.data_ptr(),
    )  # fmt: skip
    kernels.library.avila_use_openmp(ctypes.byref(team.OpenMP()))
    try:
        kernels.run(native.GROUP_NORM, arguments, 3)
        expected = ctypes.string_at(out.data_ptr(), 4 * out.numel())
        child = os.fork()
        if child == 0:  # torch is not to be called here
            ctypes.memset(out.data_ptr(), 0, len(expected))
            kernels.run(native.GROUP_NORM, arguments, 3)
            os._exit(int(ctypes.string_at(out.data_ptr(), len(expected)) != expected))
        for _ in range(1000):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.01)
        else:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        assert status == 0
    finally:
        theirs = team.openmp_of_torch()
        if theirs is not None:
            kernels.library.avila_use_openmp(ctypes.byref(theirs[1]))


@pytest.mark.parametrize("found", ["own"], indirect=True)
def test_the_pool_sleeps_between_calls(found: native._Kernels) -> None:
    torch.set_num_threads(3)
    norm()
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.05


def test_what_is_no_openmp_is_not_taken() -> None:
    assert team.functions_of("/no/such/library.so") is None
    library = build.library()
    assert library is not None
    assert team.functions_of(library._name) is None
