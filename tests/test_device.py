"""Devices, dtypes and threads: what is chosen, and what is refused with one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from avila_diffusion.device import DTYPES, Policy, check_threads, choose_policy, use_threads
from avila_diffusion.errors import DeviceProblem, RequestError

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
no_mps = pytest.mark.skipif(torch.backends.mps.is_available(), reason="MPS is here")


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def machine(monkeypatch: pytest.MonkeyPatch, cuda: int = 0, mps: bool = False) -> None:
    """As if torch saw these devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_auto_is_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, device, dtype in (
        (0, False, "cpu", torch.float32),
        (0, True, "mps", torch.float16),
        (1, True, "cuda", torch.float16),
    ):
        machine(monkeypatch, cuda, mps)
        policy = choose_policy()
        assert policy == Policy(torch.device(device), dtype, dtype, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_a_dtype_is_that_of_all_networks(dtype: str) -> None:
    kind = getattr(torch, dtype)
    policy = choose_policy("cpu", dtype)
    assert (policy.unet, policy.vae, policy.text) == (kind, kind, kind)
    assert policy.latent == (torch.float64 if dtype == "float64" else torch.float32)
    assert dtype in DTYPES


@no_cuda
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_no_cuda(name: str) -> None:
    with pytest.raises(DeviceProblem, match="sees no CUDA device; use --device cpu"):
        choose_policy(name)


@no_mps
def test_no_mps() -> None:
    with pytest.raises(DeviceProblem, match="no MPS; use --device cpu"):
        choose_policy("mps")


def test_which_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=2)
    assert choose_policy("cuda:1").device == torch.device("cuda", 1)
    with pytest.raises(DeviceProblem, match="there is no cuda:2; torch sees 2 CUDA devices"):
        choose_policy("cuda:2")


def test_mps_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, mps=True)
    assert choose_policy("mps", "float32").device.type == "mps"
    with pytest.raises(DeviceProblem, match="no float64"):
        choose_policy("mps", "float64")


NONSENSE: list[Any] = [
    "", "gpu", "CPU", "cpu:", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:٣", "cuda:12345", "mps:1", "cuda:0:0", None, 0,
    "x" * 999,
]  # fmt: skip


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_devices(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=4, mps=True)
    with pytest.raises(RequestError, match="is unknown; it is auto, cpu, cuda, cuda:N or mps") as caught:
        choose_policy(name)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["", "half", "fp16", "Float32", "int8", None, torch.float32, ["float32"]])
def test_nonsense_dtypes(name: Any) -> None:
    with pytest.raises(RequestError, match="is unknown; it is auto, float32, float16, bfloat16, float64"):
        choose_policy("cpu", name)


def test_threads_are_set_for_the_process(threads: int) -> None:
    use_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    use_threads(None)
    assert torch.get_num_threads() == threads + 1
    check_threads(threads)
    assert torch.get_num_threads() == threads + 1


@pytest.mark.parametrize("count", [0, -1, 1025, True, 2.0, "2"])
def test_threads_out_of_range(count: Any, threads: int) -> None:
    with pytest.raises(RequestError, match=r"^threads (is|must be) "):
        use_threads(count)
    assert torch.get_num_threads() == threads


def test_threads_at_the_limits() -> None:
    check_threads(1)
    check_threads(1024)
    check_threads(None)
