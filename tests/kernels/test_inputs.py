"""What is handed to the kernels: odd layouts, defaults and modes of torch, tensors that are not what they seem."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from avila_diffusion import kernels
from avila_diffusion.kernels import build, native
from avila_diffusion.models.layers import Conv2d, GroupNorm, Layer, LayerNorm, Linear, Upsample, attend

pytestmark = pytest.mark.skipif(
    not kernels.ENABLED or build.library() is None, reason=f"no kernels of ours here, or turned off: {build.problem}"
)

draw = partial(torch.randn, generator=torch.Generator().manual_seed(11))


def layers() -> list[tuple[Layer | Upsample, Tensor]]:
    """One of each, with an input for it."""
    found: list[tuple[Layer | Upsample, Tensor]] = [
        (Linear(32, 24), draw(5, 7, 32)),
        (Conv2d(32, 16, 3, padding=1), draw(2, 32, 9, 26)),
        (Conv2d(32, 16, 1), draw(2, 32, 9, 6)),
        (Upsample(32), draw(2, 32, 5, 3)),
        (GroupNorm(32, 1e-5), draw(2, 32, 9, 6)),
        (LayerNorm(32), draw(2, 9, 32)),
    ]
    for layer, _ in found:
        for parameter in layer.parameters():
            parameter.data = draw(parameter.shape) / 5
        layer.requires_grad_(False)
    return found


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Tensor], Tensor], Tensor]:
    def by_torch(layer: Callable[..., Tensor], x: Tensor) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "ENABLED", False)
            return layer(x)

    return by_torch


def layouts(x: Tensor) -> list[Tensor]:
    """The same numbers in other places of memory."""
    dims = list(range(x.dim()))
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan"))
    wide[..., 1::2] = x
    padded = torch.full([size + 2 for size in x.shape], float("nan"))
    inner = padded[tuple(slice(1, -1) for _ in dims)]
    inner.copy_(x)
    turned = x.permute(*dims[::-1]).contiguous().permute(*dims[::-1])
    return [wide[..., 1::2], inner, turned, torch._neg_view(-x)]


def test_any_layout_gives_the_same(plain: Callable[[Callable[..., Tensor], Tensor], Tensor]) -> None:
    for layer, x in layers():
        wanted = layer(x)
        close(wanted, plain(layer, x))
        for other in layouts(x):
            found = layer(other)
            close(found, wanted)
            assert torch.equal(found, wanted) or other.is_neg()
    q, k, v = draw(2, 9, 32), draw(2, 5, 32), draw(2, 5, 32)
    for one, two, three in zip(layouts(q), layouts(k), layouts(v), strict=True):
        close(attend(one, two, three, 4), attend(q, k, v, 4))
    spread = draw(1, 9, 32)
    assert torch.equal(attend(spread.expand(2, 9, 32), k, v, 4)[:1], attend(spread, k[:1], v[:1], 4))


def test_nothing_gives_nothing() -> None:
    for layer, x in layers():
        assert layer(x[:0]).shape[0] == 0
    with pytest.raises(ValueError, match="came where"):
        layers()[0][0](draw(3, 33))


def test_what_would_be_read_wrongly_is_refused() -> None:
    x, maps, vector = draw(3, 32), draw(2, 32, 9, 26), draw(32)
    matrix, kernel = native.pack_rows(draw(32, 32)), native.pack_f2(draw(32, 32, 3, 3))
    whole = native.pad_to_panel(vector)
    with pytest.raises(ValueError, match=r"shape \(2, 8\) came where \(2, 32\) was expected"):
        native.convolve(maps, kernel, None, 32, native.F2, shift=draw(2, 8))
    wrong: list[Callable[[], object]] = [
        lambda: native.linear(x, matrix, draw(5), 32),
        lambda: native.linear(x, matrix, whole, 320),
        lambda: native.linear(x, draw(24, 32), None, 32),
        lambda: native.convolve(maps, kernel, draw(16), 32, native.F2),
        lambda: native.layer_norm(x, vector, draw(16), 1e-5),
    ]
    for call in wrong:
        with pytest.raises(ValueError, match="came where"):
            call()
    many, half, one = x.double(), vector.half(), vector[None, None]
    other: list[Callable[[], object]] = [
        lambda: native.linear(many, matrix, None, 32),
        lambda: native.linear(x, matrix.double(), None, 32),
        lambda: native.linear(x, draw(32, 32).double(), None, 32),
        lambda: native.linear(x, matrix, whole.double(), 32),
        lambda: native.linear(x, matrix, None, 32, add=many),
        lambda: native.convolve(maps.double(), kernel, None, 32, native.F2),
        lambda: native.convolve(maps, kernel, half, 32, native.F2),
        lambda: native.convolve(maps, draw(32, 32, 3, 3).double(), None, 32, native.F2),
        lambda: native.attend(one.double(), one, one, 4),
        lambda: native.attend(one, one, one.half(), 4),
        lambda: native.group_norm(maps.double(), 8, vector, vector, 1e-5, False),
        lambda: native.group_norm(maps, 8, half, vector, 1e-5, False),
        lambda: native.channel_moments(maps[:1].half()),
        lambda: native.normalise(maps[:1], vector, vector, half, False),
        lambda: native.layer_norm(many, vector, vector, 1e-5),
        lambda: native.pack_rows(draw(32, 32).double()),
        lambda: native.pack_f4(draw(32, 32, 3, 3).double()),
    ]
    for call in other:
        with pytest.raises(ValueError, match=r"a tensor of torch\.(half|float16|double|float64) came where"):
            call()
    for parts in (0, 5):
        with pytest.raises(ValueError, match=f"32 cannot be cut into {parts} equal parts"):
            native.group_norm(maps, parts, vector, vector, 1e-5, False)
        with pytest.raises(ValueError, match=f"32 cannot be cut into {parts} equal parts"):
            native.attend(one, one, one, parts)


def test_parameters_with_gaps_are_read_as_they_are() -> None:
    for layer, x in layers():
        wanted = layer(x)
        for parameter in layer.parameters():
            parameter.data = layouts(parameter.data)[0]
        for module in layer.modules():
            if isinstance(module, Layer):
                module.release()
        assert torch.equal(layer(x), wanted)
    x, (level, scale, bias), matrix, rows = draw(1, 32, 9, 6), draw(3, 32), draw(32, 32), draw(5, 32)
    apart = native.normalise(x, layouts(level)[0], layouts(scale)[0], layouts(bias)[0], True)
    assert torch.equal(apart, native.normalise(x, level, scale, bias, True))
    assert torch.equal(native.linear(rows, layouts(matrix)[0], None, 32), native.linear(rows, matrix, None, 32))


def test_what_torch_would_broadcast_goes_to_torch(plain: Callable[[Callable[..., Tensor], Tensor], Tensor]) -> None:
    linear, rows = layers()[0]
    conv, maps = layers()[1]
    one, _ = layers()[2]
    norm, _ = layers()[4]
    cases: list[tuple[Callable[[Tensor], Tensor], Tensor]] = [
        (lambda x: linear(x, draw_again(24)), rows),
        (lambda x: linear(x, draw_again(3, 1, 7, 24)), rows),
        (lambda x: conv(x, draw_again(1, 16)), maps),
        (lambda x: conv(x, None, draw_again(1, 16, 9, 26)), maps),
        (lambda x: one(x, None, draw_again(16, 1, 1)), maps),
        (conv, maps[0]),
        (one, maps[0]),
        (norm, draw(3, 32)),
        (norm, draw(3, 32, 7)),
        (norm, draw(3, 32, 2, 3, 4)),
        (lambda x: attend(x, draw_again(1, 5, 32), draw_again(1, 5, 32), 4), draw(2, 9, 32)),
        (lambda x: attend(x, draw_again(2, 5, 32), draw_again(2, 5, 16), 4), draw(2, 9, 32)),
    ]
    for call, x in cases:
        assert torch.equal(call(x), plain(call, x))
    with pytest.raises(RuntimeError, match="must match the size"):
        conv(maps, draw(2, 8))


def draw_again(*shape: int) -> Tensor:
    """The same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_go_to_torch(dtype: torch.dtype) -> None:
    for layer, x in layers():
        assert layer(x.to(dtype)).dtype == dtype
        assert not native.serves(x, x.to(dtype))


def test_defaults_of_torch_do_not_matter() -> None:
    for layer, x in layers():
        wanted = layer(x)
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"):
                found = layer(x)
        finally:
            torch.set_default_dtype(torch.float32)
        assert found.dtype == torch.float32 and torch.equal(found, wanted)
        with torch.inference_mode():
            assert torch.equal(layer(x), wanted)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # of torch's own forward derivatives
def test_gradients_of_whatever_comes_in_are_kept() -> None:
    linear, x = layers()[0]
    conv, image = layers()[1]
    for layer, inputs in (
        (linear, (x, draw(5, 7, 24).requires_grad_())),
        (conv, (image, draw(2, 16).requires_grad_(), draw(2, 16, 9, 26))),
        (conv, (image, draw(2, 16), draw(2, 16, 9, 26).requires_grad_())),
    ):
        layer(*inputs).sum().backward()
        assert sum(one.grad is not None for one in inputs) == 1
    with forward_ad.dual_level():
        dual: Any = forward_ad
        tangent = dual.unpack_dual(linear(dual.make_dual(x, torch.ones_like(x)))).tangent
        assert tangent is not None


def test_transforms_of_torch_see_every_operation() -> None:
    def raise_if_called(*arguments: object) -> None:
        raise AssertionError("a kernel was called")

    for layer, x in layers():
        wanted = layer(x)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native._Kernels, "run", raise_if_called)
            with pytest.raises(AssertionError, match="a kernel was called"):
                layer(x)
            close(torch.vmap(layer)(x[None])[0], wanted)
            close(torch.func.functional_call(layer, dict(layer.named_parameters()), x.double()).float(), wanted)
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                assert layer(mode.from_tensor(x)).shape == wanted.shape
            with torch.autocast("cpu", torch.bfloat16):
                assert layer(x).shape == wanted.shape
            assert layer.to("meta")(x.to("meta")).shape == wanted.shape


def test_what_is_not_a_number_stays_so() -> None:
    for layer, x in layers():
        x.view(-1)[3] = float("nan")
        assert layer(x).isnan().any()
    q, k, v = draw(1, 9, 32), draw(1, 600, 32), draw(1, 600, 32)
    q[0, 2, 3] = float("nan")
    found = attend(q, k, v, 1)
    assert found[0, 2].isnan().all() and not found[0, :2].isnan().any() and not found[0, 3:].isnan().any()
    norm = GroupNorm(32, 1e-5)
    norm.weight.data, norm.bias.data = torch.ones(32), torch.zeros(32)
    with torch.no_grad():
        silu = norm(torch.full((1, 32, 3, 3), float("nan")), True)
    assert silu.isnan().all()


def test_widths_at_their_largest() -> None:
    with torch.no_grad():
        x = draw(1, 8192, 2, 2)
        found = native.group_norm(x, 1, torch.ones(8192), torch.zeros(8192), 1e-5, False)
        close(found, F.group_norm(x, 1))
        assert not native.serves_channels(8192 + 64)


def test_maps_that_are_no_whole_vectors_are_refused() -> None:
    x, ones = draw(1, 50, 5, 5), torch.ones(50)
    calls: list[Callable[[], object]] = [
        lambda: native.group_norm(x, 5, ones, ones, 1e-5, False),
        lambda: native.channel_moments(x),
        lambda: native.normalise(x, ones, ones, ones, False),
        lambda: native.layer_norm(draw(3, 50), ones, ones, 1e-5),
        lambda: native.convolve(x, draw(64, 50, 3, 3), None, 64, native.F2),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="whole vectors"):
            call()
