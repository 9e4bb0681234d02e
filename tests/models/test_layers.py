"""Layers where torch's own would not do."""

from __future__ import annotations

import pytest
import torch

from avila_diffusion.models.layers import GroupNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_group_of_one_number_is_its_bias(dtype: torch.dtype) -> None:
    """A map of one pixel in a narrow network; `torch.nn.functional` refuses it, as if it were trained on."""
    norm = GroupNorm(32, 1e-5).to(dtype)
    bias = torch.randn(32, dtype=dtype)
    norm.load_state_dict({"weight": torch.randn(32, dtype=dtype), "bias": bias}, assign=True)
    with torch.no_grad():
        found = norm(torch.randn(1, 32, 1, 1, dtype=dtype))
    # What rounds is divided by the root of epsilon, a three hundredth.
    torch.testing.assert_close(found, bias.view(1, 32, 1, 1), rtol=0, atol=1e-3 if dtype == torch.float32 else 1e-11)
