"""Seeded weights for narrow networks: variance 1 / fan-in, norms near one, so that activations stay of order one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

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
