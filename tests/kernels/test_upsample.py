"""The folded upsampling convolution against upsampling and convolving, and against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avila_diffusion import kernels
from avila_diffusion.kernels.upsample import convolve_upsampled, fold_phases
from avila_diffusion.models.layers import Upsample


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("channels", [(1, 1), (3, 5), (32, 16)])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 4), (8, 8)])
def test_equals_the_plain_form(batch: int, channels: tuple[int, int], size: tuple[int, int]) -> None:
    inner, outer = channels
    x, weight, bias = _draw(batch, inner, *size), _draw(outer, inner, 3, 3), _draw(outer)
    expected = _plain(x, weight, bias)
    for given in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        found = convolve_upsampled(given, fold_phases(weight), bias)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(convolve_upsampled(x, fold_phases(weight), None), _plain(x, weight, None))


def test_single_precision_is_as_exact_as_torch() -> None:
    x, weight, bias = _draw(1, 64, 16, 16), _draw(64, 64, 3, 3) / 24, _draw(64)
    exact = _plain(x, weight, bias)
    torch_error = (_plain(x.float(), weight.float(), bias.float()) - exact).norm()
    ours = convolve_upsampled(x.float(), fold_phases(weight.float()), bias.float())
    assert (ours - exact).norm() <= 1.5 * torch_error


def test_a_swapped_phase_is_seen() -> None:
    x, weight, bias = _draw(1, 4, 5, 5), _draw(4, 4, 3, 3), _draw(4)
    phases = fold_phases(weight)[[0, 2, 1, 3]]
    assert not torch.allclose(convolve_upsampled(x, phases, bias), _plain(x, weight, bias), atol=1e-3)


@pytest.mark.skipif(not kernels.ENABLED, reason="the plain way is taken always")
def test_the_layer_takes_the_plain_way_for_gradients_and_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Upsample(4)
    layer.load_state_dict({"conv.weight": _draw(4, 4, 3, 3), "conv.bias": _draw(4)}, assign=True)
    x = _draw(1, 4, 3, 3)
    used: list[Any] = []
    real = convolve_upsampled

    def spy(*arguments: Any) -> Tensor:
        used.append(arguments)
        return real(*arguments)

    monkeypatch.setattr("avila_diffusion.models.layers.convolve_upsampled", spy)
    trained = layer(x)
    trained.sum().backward()
    assert used == []
    assert layer.conv.weight.grad is not None
    with torch.no_grad():
        torch.testing.assert_close(layer(x), trained.detach(), rtol=0, atol=1e-12)
        assert len(used) == 1
        monkeypatch.setattr(kernels, "ENABLED", False)
        torch.testing.assert_close(layer(x), trained.detach(), rtol=0, atol=1e-12)
    assert len(used) == 1
