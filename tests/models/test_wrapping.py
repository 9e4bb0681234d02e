"""Convolutions without borders: against torch's circular padding, against diffusers with it, and by rolling what goes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from avila_diffusion import kernels
from avila_diffusion.checkpoint.keys import unet_from_diffusers, vae_from_diffusers
from avila_diffusion.checkpoint.load import build
from avila_diffusion.checkpoint.shapes import read_unet_config, read_vae_config
from avila_diffusion.kernels import native
from avila_diffusion.models.layers import Conv2d, Upsample, wrap
from avila_diffusion.models.twin import twin
from avila_diffusion.models.unet import UNet
from avila_diffusion.models.vae import VAE

TOLERANCE = 1e-7
AXES = ((True, True), (True, False), (False, True), (False, False))
LAYERS = {
    "the kernels' channels": (32, 48, 3, 1, 1),
    "few channels": (4, 32, 3, 1, 1),
    "halving": (32, 32, 3, 2, 1),
    "halving, padded by its caller": (32, 32, 3, 2, 0),
    "by pixel": (32, 64, 1, 1, 0),
    "an even kernel": (3, 8, 4, 2, 1),
}
SIZES = ((24, 27), (5, 31), (2, 4), (4, 2))


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.fixture(params=["ours", "torch's", "double"])
def whose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Three ways that a convolution is computed, by what they compute in."""
    if request.param == "torch's":
        monkeypatch.setattr(kernels, "ENABLED", False)
    return torch.float64 if request.param == "double" else torch.float32


def _bound(dtype: torch.dtype) -> float:
    return 1e-12 if dtype == torch.float64 else 2e-5


def _circular(x: Tensor, axes: tuple[bool, bool], by: int) -> Tensor:
    """x in float64 with the border that the axes say, by torch's own padding."""
    for wraps, sides in zip(axes, ((by, by, 0, 0), (0, 0, by, by)), strict=True):
        x = F.pad(x, sides, mode="circular" if wraps else "constant")
    return x


def _apart(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("axes", AXES)
def test_a_convolution_is_torchs(kind: str, axes: tuple[bool, bool], whose: torch.dtype, fill: Any) -> None:
    inner, outer, kernel, stride, padding = LAYERS[kind]
    layer = Conv2d(inner, outer, kernel, stride, padding)
    state = fill(layer)
    layer.to(whose)
    wrap(layer, *axes)
    for height, width in SIZES:
        if min(height, width) + 2 * padding < kernel:
            continue
        x = _draw(2, inner, height, width)
        plain = F.conv2d(_circular(x, axes, padding), state["weight"], state["bias"], stride)
        if axes == (True, True):
            theirs = nn.Conv2d(inner, outer, kernel, stride, padding, padding_mode="circular", dtype=torch.float64)
            theirs.load_state_dict(state)
            torch.testing.assert_close(theirs(x).detach(), plain, rtol=0, atol=1e-12)
        shift, add = _draw(2, outer), _draw(*plain.shape)
        expected = plain + shift[:, :, None, None] + add
        with torch.no_grad():
            for given in (x, x.contiguous(memory_format=torch.channels_last)):
                found = layer(given.to(whose), shift.to(whose), add.to(whose))
                assert found.dtype == whose
                assert _apart(found, expected) <= _bound(whose)


@pytest.mark.parametrize("channels", [32, 6])
@pytest.mark.parametrize("axes", AXES)
def test_upsampling_is_torchs(channels: int, axes: tuple[bool, bool], whose: torch.dtype, fill: Any) -> None:
    layer = Upsample(channels)
    state = fill(layer)
    layer.to(whose)
    wrap(layer, *axes)
    for height, width in ((13, 12), (3, 30), (1, 2), (1, 1)):
        x = _draw(2, channels, height, width)
        doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
        expected = F.conv2d(_circular(doubled, axes, 1), state["conv.weight"], state["conv.bias"])
        with torch.no_grad():
            assert _apart(layer(x.to(whose)), expected) <= _bound(whose)


def test_the_kernels_are_asked(fill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above compare is not torch's way every time; and they would see a border."""
    if not native.serves(torch.zeros(1)):
        pytest.skip("the kernels are not built")
    asked: list[Any] = []
    real = native.convolve

    def deaf(*arguments: Any, **named: Any) -> Tensor:
        asked.append(named.pop("wrap"))
        return real(*arguments, **named)

    monkeypatch.setattr(native, "convolve", deaf)
    for layer in (Conv2d(32, 48, 3, padding=1), Upsample(32)):
        fill(layer)
        layer.float()
        wrap(layer, True, True)
        x = _draw(1, 32, 13, 12).float()
        with torch.no_grad():
            assert _apart(layer(x), layer(x.double())) > 1e-2
    assert asked == [(True, True)] * 2


@pytest.mark.parametrize("axes", AXES)
def test_gradients_are_torchs(axes: tuple[bool, bool], fill: Any) -> None:
    layer = Conv2d(3, 5, 3, padding=1)
    state = fill(layer)
    layer.requires_grad_(True)
    wrap(layer, *axes)
    x, towards = _draw(2, 3, 4, 5).requires_grad_(), _draw(2, 5, 4, 5)
    weight = state["weight"].clone().requires_grad_()
    found = torch.autograd.grad((layer(x) * towards).sum(), (x, layer.weight))
    expected = torch.autograd.grad((F.conv2d(_circular(x, axes, 1), weight) * towards).sum(), (x, weight))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 48,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
}


def _unets(fill: Any, assign: Any) -> tuple[UNet2DConditionModel, UNet]:
    reference = UNet2DConditionModel(**UNET)
    state = fill(reference)
    ours = {name: state[theirs] for name, theirs in unet_from_diffusers(state).items()}
    config = read_unet_config({name: tuple(tensor.shape) for name, tensor in ours.items()}, lambda channels: 8)
    return reference, assign(build(lambda: UNet(config)), ours)


def _autoencoders(fill: Any, assign: Any) -> tuple[AutoencoderKL, VAE]:
    reference = AutoencoderKL(**AUTOENCODER)
    state = fill(reference)
    ours = {name: state[theirs] for name, theirs in vae_from_diffusers(state).items()}
    config = read_vae_config({name: tuple(tensor.shape) for name, tensor in ours.items()})
    ours = {name: t[:, :, None, None] if ".attn_1." in name and t.dim() == 2 else t for name, t in ours.items()}
    return reference, assign(build(lambda: VAE(config)), ours)


def _make_circular(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"


def _step(network: UNet) -> Callable[[Tensor], Tensor]:
    t, context = torch.tensor([501.0], dtype=torch.float64), _draw(1, 77, 48)
    return lambda x: network(x, t.to(x.dtype), context.to(x.dtype))


def test_a_unet_is_that_of_diffusers(fill: Any, assign: Any, close: Any) -> None:
    reference, ours = _unets(fill, assign)
    x = _draw(1, 4, 8, 12)
    with torch.no_grad():
        bordered = _step(ours)(x)
        _make_circular(reference)
        expected = reference(x, 501.0, _draw(1, 77, 48)).sample
        wrap(ours, True, True)
        close(_step(ours)(x), expected, TOLERANCE)
        with pytest.raises(AssertionError):
            close(bordered, expected, 1e-2)
        wrap(ours, False, False)
        assert torch.equal(_step(ours)(x), bordered)


def test_an_autoencoder_is_that_of_diffusers(fill: Any, assign: Any, close: Any) -> None:
    """AUTOMATIC1111 sets the mode of every convolution likewise: the zeros that the encoder's halving pads with stay."""
    reference, ours = _autoencoders(fill, assign)
    _make_circular(reference)
    z, x = _draw(1, 4, 5, 6), _draw(1, 3, 20, 24)
    with torch.no_grad():
        for axes in ((False, False), (True, True)):
            wrap(ours, *axes)
            alike = close if all(axes) else _not_close(close)
            alike(ours.decode(z), reference.decode(z).sample, TOLERANCE)
            alike(ours.encode(x).mean, reference.encode(x).latent_dist.mean, TOLERANCE)


def _not_close(close: Any) -> Callable[..., None]:
    def check(*arguments: Any) -> None:
        with pytest.raises(AssertionError):
            close(*arguments)

    return check


@pytest.mark.parametrize("axes", AXES)
def test_rolling_a_latent_rolls_what_is_made_of_it(
    axes: tuple[bool, bool], whose: torch.dtype, fill: Any, assign: Any
) -> None:
    """The UNet halves twice: it must be by a multiple of 4 cells. Attention and norms do not care where a pixel lies."""
    unet, vae = _unets(fill, assign)[1].to(whose), _autoencoders(fill, assign)[1].to(whose)
    for network in (unet, vae):
        wrap(network, *axes)
    for made, cells, scale in ((_step(unet), 4, 1), (vae.decode, 1, vae.config.scale)):
        x = _draw(1, 4, 12, 16).to(whose)
        with torch.no_grad():
            for wraps, dim in zip(axes, (3, 2), strict=True):
                rolled = made(x.roll(cells, dim))
                apart = _apart(rolled, made(x).roll(cells * scale, dim).double())
                assert apart <= 10 * _bound(whose) if wraps else apart > 1e-2


def test_a_twin_wraps_too() -> None:
    network = _Sized(4)
    wrap(network, True, False)
    assert twin(network, 0).conv.wrap == (True, False)


class _Sized(Upsample):
    """With a config, of which twins are made."""

    def __init__(self, config: int) -> None:
        super().__init__(config)
        self.config = config
