"""Seeded weights for narrow networks: variance 1 / fan-in, norms near one, so that activations stay of order one. And what
the tests of bands share."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from avila_diffusion import kernels
from avila_diffusion.models import plans

Fill = Callable[[nn.Module], dict[str, Tensor]]
Compare = Callable[[Tensor, Tensor, float], None]


def _values(name: str, shape: torch.Size, seed: int) -> Tensor:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    if "embedding" in name and len(shape) == 2:
        return 0.5 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    if len(shape) == 1:
        return 1 + 0.2 * noise
    return noise / (noise[0].numel() ** 0.5)


@pytest.fixture
def fill() -> Fill:
    """Gives a module seeded float64 weights; returns its state dict."""

    def apply(module: nn.Module) -> dict[str, Tensor]:
        state = {
            name: _values(name, tensor.shape, 0) if tensor.is_floating_point() else tensor
            for name, tensor in module.state_dict().items()
        }
        module.to(torch.float64).load_state_dict(state)
        module.eval().requires_grad_(False)
        return state

    return apply


@pytest.fixture
def assign() -> Callable[[nn.Module, Mapping[str, Tensor]], nn.Module]:
    """Gives a network built on the meta device exactly these tensors, by our names."""

    def apply(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
        network.load_state_dict(dict(state), strict=True, assign=True)
        return network.eval().requires_grad_(False)

    return apply


@pytest.fixture
def close() -> Compare:
    """Asserts a difference of at most `tolerance` of the maximum, between values that are of order one."""

    def check(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
        assert ours.shape == theirs.shape
        top = float(theirs.abs().max())
        assert 0.3 < top < 100, f"the reference is not of order one: {top}"
        assert float((ours - theirs).abs().max()) <= tolerance * top

    return check


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(params=["ours", "torch's"])
def whose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernels of ours, and by torch's operations alone."""
    if request.param == "torch's":
        monkeypatch.setattr(kernels, "ENABLED", False)


@pytest.fixture
def narrow_bands(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let bands be as small as these maps want them."""
    monkeypatch.setattr(plans, "LEAST_BAND", 1)
    least = (plans.least_room, plans.least_room_to_encode)
    for known in least:
        known.cache_clear()
    yield
    for known in least:
        known.cache_clear()


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors made since it began that are alive: now, and at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), before)
        return out

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in given:
            return
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.fixture
def alive() -> type[Alive]:
    """The mode that counts torch's tensors."""
    return Alive
