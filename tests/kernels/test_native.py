"""The kernels in C, shape by shape, against float64 and against the error of torch's own float32 operations."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avila_diffusion import kernels
from avila_diffusion.kernels import build, native
from avila_diffusion.models.layers import (
    Band,
    Conv2d,
    GroupNorm,
    Layer,
    LayerNorm,
    Linear,
    Upsample,
    attend,
    keep_derived,
    wrap,
)
from avila_diffusion.models.weights import LowRank

pytestmark = pytest.mark.skipif(
    not kernels.ENABLED or build.library() is None, reason=f"no kernels of ours here, or turned off: {build.problem}"
)


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).float() * scale


def error(found: Tensor, exact: Tensor) -> float:
    """Relative L2 error."""
    assert exact.dtype == torch.float64
    return float((found.double() - exact).norm() / exact.norm())


def exact(layer: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """A layer's result by torch's operations in float64."""
    return layer(*(None if x is None else x.double() for x in inputs))


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def by_torch(layer: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    before, kernels.ENABLED = kernels.ENABLED, False
    try:
        return layer(*inputs)
    finally:
        kernels.ENABLED = before


Module = TypeVar("Module", bound=torch.nn.Module)


def fill(layer: Module) -> Module:
    """Weights that keep values of order one."""
    for name, parameter in layer.named_parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
        parameter.data = draw(*parameter.shape, scale=fan_in**-0.5) + (
            1 if parameter.dim() == 1 and "weight" in name else 0
        )
    return layer


def held(layer: Callable[..., Tensor], *inputs: Tensor | None, bound: float = 1.5) -> Tensor:
    """The kernels' result, its error held to `bound` times torch's own."""
    found, wanted = layer(*inputs), exact(layer, *inputs)
    assert 0.05 < float(wanted.abs().mean()) < 20
    ours, torch_own = error(found, wanted), error(by_torch(layer, *inputs), wanted)
    assert ours <= bound * max(torch_own, 1e-7), (ours, torch_own)  # of a handful of values the error is chance
    return found


@pytest.mark.parametrize(
    ("rows", "k", "columns"),
    [(1, 16, 8), (5, 100, 77), (77, 768, 320), (154, 320, 640), (257, 33, 31), (12, 2600, 96), (640, 1280, 33)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(rows: int, k: int, columns: int, bias: bool, threads: int) -> None:
    layer = fill(Linear(k, columns, bias))
    x, add = draw(rows, k), draw(rows, columns)
    held(layer, x)
    held(layer, x, add)
    assert torch.equal(layer(x, add)[-1:], layer(x[-1:], add[-1:])), "a row's bits depend on its neighbours"


def test_linear_takes_any_layout() -> None:
    layer = fill(Linear(48, 40))
    x = draw(3, 48, 20).transpose(1, 2)
    assert torch.equal(layer(x), layer(x.contiguous()))
    assert torch.equal(layer(x[:, ::2]), layer(x)[:, ::2])
    assert layer(x[:0]).shape == (0, 20, 40)


@pytest.mark.parametrize(("rows", "k", "columns"), [(1, 16, 8), (50, 320, 1280), (31, 100, 45)])
def test_gate(rows: int, k: int, columns: int, threads: int) -> None:
    layer = fill(Linear(k, 2 * columns))
    held(layer.gated, draw(rows, k, scale=2.0), bound=1.5 if rows > 1 else 3.5)  # without fused sums, of 8 numbers


def test_gelu_is_exact_on_its_whole_range() -> None:
    layer = Linear(1, 2)
    layer.weight.data, layer.bias = torch.tensor([[0.0], [1.0]]), torch.nn.Parameter(torch.tensor([1.0, 0.0]))
    x = torch.linspace(-30, 30, 60001)[:, None]
    torch.testing.assert_close(layer.gated(x).double(), F.gelu(x.double()), rtol=1e-5, atol=2e-7)


MAPS = [(1, 24, 24), (2, 31, 25), (8, 24, 27), (1, 13, 90), (3, 12, 12), (2, 64, 24)]


@pytest.mark.parametrize("size", MAPS)
@pytest.mark.parametrize("channels", [(8, 16), (32, 48), (48, 16), (320, 64), (64, 320)])
def test_convolution(size: tuple[int, int, int], channels: tuple[int, int], threads: int) -> None:
    batch, height, width = size
    inner, outer = channels
    layer = fill(Conv2d(inner, outer, 3, padding=1))
    x, shift, add = draw(batch, inner, height, width), draw(batch, outer), draw(batch, outer, height, width)
    bound = 2.0 if min(height, width) >= 24 and inner >= 48 else 1.5  # F(4x4), F(2x2)
    held(layer, x, bound=bound)
    found = held(layer, x.contiguous(memory_format=torch.channels_last), shift, add, bound=bound)
    alone = layer(x[-1:], shift[-1:], add[-1:])
    assert torch.equal(found[-1:], alone), "the bits of a picture depend on its neighbours in the batch"


@pytest.mark.parametrize(
    ("size", "channels", "bound"),
    [(24, 320, 2.0), (48, 128, 2.0), (32, 640, 2.0), (12, 1280, 1.5), (16, 640, 1.5)],
)
def test_convolution_at_the_networks_widths(size: int, channels: int, bound: float) -> None:
    layer = fill(Conv2d(channels, channels, 3, padding=1))
    assert layer.bias is not None
    layer.bias.data.zero_()
    held(layer, draw(1, channels, size, size).contiguous(memory_format=torch.channels_last), bound=bound)


@pytest.mark.parametrize("channels", [(1, 16), (20, 32), (32, 7), (4, 320), (320, 4)])
def test_odd_channels_go_to_torch(channels: tuple[int, int]) -> None:
    layer = fill(Conv2d(*channels, 3, padding=1))
    x = draw(2, channels[0], 24, 24)
    assert torch.equal(layer(x), by_torch(layer, x))


@pytest.mark.parametrize("size", [(1, 12, 12), (2, 13, 30), (1, 33, 16)])
@pytest.mark.parametrize("channels", [16, 64])
def test_doubled_convolution(size: tuple[int, int, int], channels: int, threads: int) -> None:
    layer = fill(Upsample(channels))
    x = draw(size[0], channels, *size[1:])
    found, wanted = layer(x), exact(layer, x)
    plain = F.conv2d(F.interpolate(x, scale_factor=2.0), layer.conv.weight, layer.conv.bias, padding=1)
    bound = 2.0 if channels >= 48 and 2 * min(size[1:]) >= 24 else 1.5
    assert 0 < error(found, wanted) <= bound * error(plain, wanted)


def with_outliers(x: Tensor, value: float) -> Tensor:
    """Some single numbers and all of a pixel become `value`, in place; a mask of the outputs whose 3x3 pixels hold none."""
    height, width = x.shape[2:]
    chance = random.Random(5)
    places = [(chance.randrange(height), chance.randrange(width)) for _ in range(8)] + [(0, 1), (height - 1, width - 3)]
    for row, column in places:
        x[:, chance.randrange(x.shape[1]), row, column] = value
    x[:, 7, height - 1, width - 3] = value  # of a tile that has two rows, in a channel that tells its typical size
    x[:, :, height // 2, width // 2] = value
    seen = torch.zeros(height + 2, width + 2, dtype=torch.bool)
    for row, column in [*places, (height // 2, width // 2)]:
        seen[row : row + 3, column : column + 3] = True
    return ~seen[1:-1, 1:-1]


@pytest.mark.parametrize("channels", [(48, 64), (320, 32), (1280, 16)])
@pytest.mark.parametrize("size", [(48, 48), (33, 26), (12, 40)])
def test_outliers_stay_where_they_are(channels: tuple[int, int], size: tuple[int, int]) -> None:
    layer = fill(Conv2d(*channels, 3, padding=1))
    x, add = draw(1, channels[0], *size), draw(1, channels[1], *size)
    unseen = with_outliers(x, 1e4)
    found, wanted, torchs = layer(x, None, add), exact(layer, x, None, add), by_torch(layer, x, None, add)
    for where in (unseen, torch.ones_like(unseen)):
        assert error(found[..., where], wanted[..., where]) <= 2.0 * error(torchs[..., where], wanted[..., where])


def test_outliers_of_a_map_that_is_doubled_wrapped_or_in_bands() -> None:
    layer = fill(Upsample(64))
    wrap(layer, True, True)
    x, marked = draw(2, 64, 15, 16), torch.zeros(2, 30, 32)
    for image, row, column in ((1, 0, 0), (0, 7, 3), (0, 14, 9)):
        x[image, column, row, column] = 1e4
        marked[image, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 1
    seen = torch.stack([marked.roll((down, across), (1, 2)) for down in (-1, 0, 1) for across in (-1, 0, 1)]).amax(0)
    unseen = (seen == 0)[:, None]
    found, wanted = layer(x), exact(layer, x)
    assert error(found, wanted) < 1e-6
    assert error(found * unseen, wanted * unseen) < 9e-7
    before = torch.get_num_threads()
    torch.set_num_threads(before + 2)
    assert torch.equal(found[1:], layer(x[1:])), "bits depend on threads or neighbours"
    torch.set_num_threads(before)
    for top in (0, 6):  # the rows at a band's ends see others, which it was not given
        band = layer.conv.by_winograd(x, doubled=True, band=Band(top, 24, 30))
        assert (
            error((band * unseen[:, :, top : top + 24])[:, :, 1:-1], (wanted * unseen)[:, :, top + 1 : top + 23]) < 9e-7
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_where_it_is(value: float, threads: int) -> None:
    layer = fill(Conv2d(64, 32, 3, padding=1))
    x = draw(1, 64, 32, 33)
    unseen = with_outliers(x, value)
    found = layer(x)
    assert torch.equal(found.isfinite(), unseen.expand_as(found))
    assert found[..., 0, 0].isnan().all() == (value != value)
    assert error(found[..., unseen], exact(layer, x)[..., unseen]) < 1e-6


def test_many_large_numbers_are_no_outliers() -> None:
    layer = fill(Conv2d(64, 32, 3, padding=1))
    half, channel = draw(1, 64, 32, 32), draw(1, 64, 32, 32)
    half[..., 14:] *= 1e4
    channel[:, 7] *= 1e4
    for x in (half, channel):
        assert error(layer(x), exact(layer, x)) < 1e-6
    assert layer.bias is not None
    assert layer(torch.zeros(1, 64, 32, 32)).equal(layer.bias[:, None, None].expand(1, 32, 32, 32))
    x = torch.zeros(1, 64, 32, 32)
    x[0, 5, 17, 9] = 1.0
    torch.testing.assert_close(layer(x), by_torch(layer, x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("batch", "queries", "keys", "heads", "d"),
    [
        (1, 1, 1, 1, 8),
        (2, 100, 77, 8, 40),
        (1, 300, 300, 8, 40),
        (1, 64, 64, 8, 80),
        (2, 65, 600, 2, 160),
        (1, 130, 1030, 10, 64),
        (1, 50, 700, 1, 512),
        (2, 49, 513, 3, 24),
        (3, 7, 5, 2, 1),
    ],
)
def test_attention(batch: int, queries: int, keys: int, heads: int, d: int, threads: int) -> None:
    q, k, v = (
        draw(batch, queries, heads * d, scale=2),
        draw(batch, keys, heads * d, scale=1.5),
        draw(batch, keys, heads * d),
    )
    found = held(partial(attend, heads=heads), q, k, v)
    assert torch.equal(found[-1:], attend(q[-1:], k[-1:], v[-1:], heads))


def test_attention_survives_large_scores() -> None:
    q, k, v = draw(1, 40, 64) * 100, draw(1, 1100, 64) * 100, draw(1, 1100, 64)
    found = attend(q, k, v, 1)
    torch.testing.assert_close(found.double(), attend(q.double(), k.double(), v.double(), 1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("d", [40, 160])
def test_attention_over_many_keys(d: int) -> None:
    """Values of one sign: their sum grows with the keys, and so would what it is rounded by."""
    held(partial(attend, heads=1), draw(1, 32, d), draw(1, 16384, d), draw(1, 16384, d) + 1.0)


def test_attention_takes_scores_of_any_size() -> None:
    q, k, v = torch.ones(1, 20, 32), draw(1, 700, 32).abs() + 0.5, draw(1, 700, 32)
    low = attend(q * 1e17, -k * 1e17, v, 1)  # below -1e30: the highest takes all
    torch.testing.assert_close(low, v[:, k.sum(2).argmin(1)].expand_as(low))
    some = k.clone()
    some[:, :600] = -torch.inf  # whole blocks, and a part of one
    torch.testing.assert_close(attend(q, some, v, 1), attend(q, k[:, 600:], v[:, 600:], 1), rtol=1e-5, atol=1e-6)
    assert attend(q, torch.full_like(k, -torch.inf), v, 1).isnan().all(), "a softmax of nothing but -infinity"


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("size", [(1, 32, 1, 2), (2, 320, 17, 9), (1, 128, 70, 64), (3, 64, 8, 8)])
def test_group_norm(size: tuple[int, int, int, int], silu: bool, threads: int) -> None:
    layer = fill(GroupNorm(size[1], eps=1e-5))
    x = draw(*size) + 0.5
    found, wanted = layer(x, silu), layer(x.double(), silu)
    assert error(found, wanted) < 3e-7
    far = x + 1000.0  # a mean a thousand times the spread: torch's own loses two digits more
    assert error(layer(far, silu), layer(far.double(), silu)) < 2e-4


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_group_norm_does_not_hang_on_its_first_pixel(mean: float) -> None:
    layer, x = fill(GroupNorm(64, eps=1e-5)), draw(1, 64, 64, 64) + mean
    x[..., 0, 0] = 1e4 - 10 * mean
    held(layer, x, bound=2.0)  # all of it sees the outlier
    pixels = x.double().flatten(2)[0]
    exactly = pixels.mean(1), pixels.var(1, correction=0) * pixels.shape[1]
    torch.testing.assert_close(native.channel_moments(x), torch.stack(exactly), rtol=1e-6, atol=1e-6)


def test_group_norm_does_not_depend_on_threads() -> None:
    layer, x = fill(GroupNorm(64, eps=1e-5)), draw(2, 64, 19, 23)
    before, found = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(layer(x, True))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("shape", [(1, 16), (2, 77, 320), (3, 5, 1280)])
def test_layer_norm(shape: tuple[int, ...], threads: int) -> None:
    layer = fill(LayerNorm(shape[-1]))
    x = draw(*shape) * 3 + 1
    assert error(layer(x), layer(x.double())) < 4e-7


@pytest.mark.parametrize("rows", [1, 2, 77])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_layer_norm_of_few_rows_and_of_a_large_mean(rows: int, mean: float) -> None:
    for width in (320, 768, 1280, 2048):
        layer = fill(LayerNorm(width))
        for seed in range(4):
            held(layer, draw(rows + seed, width)[:rows] + mean)
        assert layer.bias.equal(layer(torch.full((1, width), 0.1))[0]), "a row of one number has no spread"


def test_a_gradient_takes_torchs_way() -> None:
    layer = fill(Conv2d(32, 32, 3, padding=1))
    x = draw(1, 32, 24, 24)
    with torch.enable_grad():
        layer.requires_grad_(True)
        layer(x).sum().backward()
    assert layer.weight.grad is not None


def test_a_wrong_point_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = fill(Conv2d(48, 32, 3, padding=1)), draw(1, 48, 24, 24)
    real = native.pack_f4
    monkeypatch.setattr(native, "pack_f4", lambda weight: real(weight).roll(1, 0))
    assert error(layer(x), exact(layer, x)) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 20, 500])
def test_weights_of_the_file_give_the_bits_of_packed_ones(dtype: torch.dtype, rows: int, threads: int) -> None:
    for layer, shape in (
        (fill(Linear(72, 70)), (rows, 72)),
        (fill(Linear(2050, 33)), (rows, 2050)),
        (fill(Conv2d(48, 80, 3, padding=1)), (1, 48, rows, 13)),
        (fill(Conv2d(48, 32, 3, padding=1)), (1, 48, rows, 30)),
        (fill(Upsample(32)), (1, 32, rows % 20 + 1, 5)),
    ):
        for parameter in layer.parameters():
            parameter.data = parameter.data.to(dtype)
        x = draw(*shape)
        kept = layer(x)
        keep_derived(layer, 0)
        assert torch.equal(layer(x), kept)
        held = [kept for module in layer.modules() if isinstance(module, Layer) for kept in module._derived.values()]
        assert all(kept.source.dim() == 1 for kept in held), "biases may be kept, weights not"
    layer = fill(Linear(70, 90)).to(dtype)
    kept = layer.gated(draw(rows, 70))
    keep_derived(layer, 0)
    assert torch.equal(layer.gated(draw(rows, 70)), kept)


def test_every_half_number_is_read_exactly() -> None:
    numbers = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        every = numbers.view(dtype)
        packed = native.pack_rows(every.view(64, 1024))
        unpacked = packed.permute(0, 2, 1).reshape(-1, 1024)[:64].flatten()
        assert torch.equal(unpacked.view(torch.int32)[~every.isnan()], every.float().view(torch.int32)[~every.isnan()])
        assert unpacked[every.isnan()].isnan().all()


def test_a_changed_weight_is_not_read_from_the_file() -> None:
    layer, x = fill(Linear(32, 32)).half(), draw(3, 32)
    plain = layer(x)
    layer.change("weight", [LowRank(torch.ones(32, 1), torch.ones(1, 32), 0.1)])
    kept = layer(x)
    keep_derived(layer, 0)
    assert torch.equal(layer(x), kept) and not torch.equal(kept, plain)
    layer.restore()
    assert torch.equal(layer(x), plain)
