"""Latents to pixels and back, previews, and the guard of a VAE that overflows in half precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avila_diffusion import kernels
from avila_diffusion.config import LatentConfig, VAEConfig
from avila_diffusion.errors import Cancelled, NotFinite
from avila_diffusion.kernels import build
from avila_diffusion.models.plans import least_room_to_encode
from avila_diffusion.models.vae import VAE, LatentDistribution
from avila_diffusion.pipeline.latents import PREVIEW, decode, encode, from_vae, preview, to_pixels, to_vae

SD = LatentConfig()
XL = LatentConfig(scale=0.13025)
PLAYGROUND = LatentConfig(scale=0.5, mean=(-1.6574, 1.886, -1.383, 2.5155), std=(8.4927, 5.9022, 6.5498, 5.2299))


@pytest.mark.parametrize(
    ("value", "pixel"),
    [
        (-1.0, 0),
        (1.0, 255),
        (-1.0001, 0),
        (-300.0, 0),
        (1.0001, 255),
        (300.0, 255),
        (0.0, 127),  # 127.5
        (1 / 255, 128),  # 128.0
        (2 * 0.9 / 255 - 1, 0),  # 0.9
        (2 * 1.001 / 255 - 1, 1),
        (2 * 254.99 / 255 - 1, 254),  # rounded it would be 255
        (0.5, 191),  # 191.25
        (-0.5, 63),  # 63.75
    ],
)
def test_pixels_are_cut_off(value: float, pixel: int) -> None:
    picture = torch.full((1, 3, 2, 2), value)
    assert to_pixels(picture).tolist() == [[[pixel] * 3] * 2] * 2


def test_pixels_are_rows_of_columns_of_colours() -> None:
    picture = torch.linspace(-1, 1, 3 * 2 * 5, dtype=torch.float64).reshape(1, 3, 2, 5)
    pixels = to_pixels(picture)
    assert pixels.shape == (2, 5, 3) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert pixels[0, 0].tolist() == [0, 87, 175]  # elements 0, 10 and 20 of 30: 255 * n / 29
    assert pixels[1, 4].tolist() == [79, 167, 255]


def test_half_precision_pictures_are_counted_in_float32() -> None:
    picture = torch.full((1, 3, 1, 1), 0.99169921875, dtype=torch.float16)
    assert to_pixels(picture)[0, 0, 0] == 253  # 253.94, which half precision would have made 254


def test_scale_alone() -> None:
    x = torch.ones(1, 4, 1, 2, dtype=torch.float64)
    assert to_vae(x, SD)[0, 0, 0, 0] == pytest.approx(5.489980785)
    assert from_vae(x, XL)[0, 3, 0, 1] == 0.13025


def test_mean_and_deviation_of_each_channel() -> None:
    x = torch.full((1, 4, 1, 1), 0.25, dtype=torch.float64)
    # x / 0.5 * std + mean
    expected = [0.5 * 8.4927 - 1.6574, 0.5 * 5.9022 + 1.886, 0.5 * 6.5498 - 1.383, 0.5 * 5.2299 + 2.5155]
    assert to_vae(x, PLAYGROUND).flatten().tolist() == pytest.approx(expected, abs=1e-12)
    # From 2 back again: less the mean, over the deviation, halved.
    z = torch.full((1, 4, 1, 1), 2.0, dtype=torch.float64)
    back = [0.5 * 3.6574 / 8.4927, 0.5 * 0.114 / 5.9022, 0.5 * 3.383 / 6.5498, 0.5 * -0.5155 / 5.2299]
    assert from_vae(z, PLAYGROUND).flatten().tolist() == pytest.approx(back, abs=1e-12)


@pytest.mark.parametrize("latent", [SD, XL, PLAYGROUND, replace(PLAYGROUND, std=None)])
def test_there_and_back(latent: LatentConfig) -> None:
    x = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(from_vae(to_vae(x, latent), latent), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(to_vae(from_vae(x, latent), latent), x, rtol=0, atol=1e-12)
    assert to_vae(x.float(), latent).dtype == torch.float32


class Decoder:
    """Stands for a VAE: remembers the dtypes it was given and answers by them."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        self.asked: list[torch.dtype] = []
        self.answer = answer

    def decode(self, z: Tensor) -> Tensor:
        self.asked.append(z.dtype)
        return self.answer(z)


def overflows(z: Tensor) -> Tensor:
    return (z[:, :3] * 1e5).to(z.dtype) if z.dtype.itemsize < 4 else z[:, :3].clone()


X = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(2)) * SD.scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_decoding_is_asked_for_once(dtype: torch.dtype) -> None:
    vae: Any = Decoder(lambda z: z[:, :3])
    assert decode(vae, X, SD, dtype).dtype == dtype
    assert vae.asked == [dtype]


def test_an_overflow_is_done_again_in_float32() -> None:
    vae: Any = Decoder(overflows)
    picture = decode(vae, X, SD, torch.float16)
    assert vae.asked == [torch.float16, torch.float32]
    assert torch.equal(picture, (X / SD.scale)[:, :3])  # of the latent itself, not of one rounded to half


@pytest.mark.parametrize(("dtype", "calls"), [(torch.float16, 2), (torch.bfloat16, 2), (torch.float32, 1)])
@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_what_float32_does_not_mend(dtype: torch.dtype, calls: int, damage: float) -> None:
    vae: Any = Decoder(lambda z: z[:, :3] * damage)
    with pytest.raises(NotFinite, match=r"^the VAE returned NaN or infinity, in torch\.float32 too.*--vae$"):
        decode(vae, X, SD, dtype)
    assert len(vae.asked) == calls


def test_each_run_of_the_vae_is_announced() -> None:
    vae: Any = Decoder(overflows)
    said: list[int] = []

    def announce() -> None:
        said.append(len(vae.asked))
        if len(said) == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        decode(vae, X, SD, torch.float16, announce)
    assert said == [0, 1]
    assert vae.asked == [torch.float16]


class Encoder:
    """Stands for a VAE that encodes: remembers the dtypes it was given and answers by them."""

    def __init__(self, answer: Callable[[Tensor], Tensor], log_variance: float = -3.0) -> None:
        self.asked: list[torch.dtype] = []
        self.answer, self.log_variance = answer, log_variance

    def encode(self, x: Tensor) -> LatentDistribution:
        self.asked.append(x.dtype)
        mean = self.answer(x)
        return LatentDistribution(mean, torch.full_like(mean, self.log_variance))


PICTURE = torch.linspace(-1, 1, 3 * 4 * 4).reshape(1, 3, 4, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_encoding_is_asked_for_once(dtype: torch.dtype) -> None:
    vae: Any = Encoder(lambda x: x)
    assert torch.equal(encode(vae, PICTURE, dtype).mean, PICTURE.to(dtype))
    assert vae.asked == [dtype]


def test_an_overflow_in_encoding_is_done_again_in_float32() -> None:
    vae: Any = Encoder(overflows)
    said: list[int] = []
    found = encode(vae, PICTURE, torch.float16, lambda: said.append(len(vae.asked)))
    assert vae.asked == [torch.float16, torch.float32] and said == [0, 1]
    assert torch.equal(found.mean, PICTURE)  # of the picture itself, not of one rounded to half


@pytest.mark.parametrize(("dtype", "calls"), [(torch.float16, 2), (torch.bfloat16, 2), (torch.float32, 1)])
@pytest.mark.parametrize("damage", [(float("nan"), 0.0), (float("inf"), 0.0), (1.0, float("nan"))])
def test_what_float32_does_not_mend_in_encoding(dtype: torch.dtype, calls: int, damage: tuple[float, float]) -> None:
    of_mean, log_variance = damage
    vae: Any = Encoder(lambda x: x * of_mean, log_variance)
    with pytest.raises(NotFinite, match=r"^the VAE returned NaN or infinity, in torch\.float32 too.*--vae$"):
        encode(vae, PICTURE, dtype)
    assert len(vae.asked) == calls


def test_encoding_in_bands(tiny_vae: VAE) -> None:
    picture = PICTURE.repeat(1, 1, 4, 6)
    said: list[None] = []
    room = least_room_to_encode(tiny_vae.config, 16, 24)
    found = encode(tiny_vae, picture, torch.float32, lambda: said.append(None), room)
    expected = encode(tiny_vae, picture, torch.float32)
    atol = 1e-5 if kernels.ENABLED and build.library() is not None else 1e-4  # torch's convolutions differ by more
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-4, atol=atol)
    torch.testing.assert_close(found.log_variance, expected.log_variance, rtol=1e-4, atol=atol)
    assert len(said) > 1
    with pytest.raises(ValueError, match=str(room)):
        encode(tiny_vae, picture, torch.float32, room=room - 1)


@pytest.fixture
def tiny_vae() -> VAE:
    """Two levels of 32 channels, its weights drawn at random."""
    torch.manual_seed(4)
    vae = VAE(VAEConfig(encoder_channels=(32, 32), decoder_channels=(32, 32), encoder_blocks=1, decoder_blocks=1))
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.5)
    return vae.eval().requires_grad_(False)


@pytest.mark.parametrize("latent", [SD, XL])
def test_a_preview_of_a_known_space(latent: LatentConfig) -> None:
    x0 = torch.zeros(1, 4, 2, 3)
    x0[0, 1, 0, 2] = 1.0
    factors, bias = PREVIEW[latent.scale]
    pixels = preview(x0, latent)
    assert pixels.shape == (2, 3, 3)
    assert pixels[1, 0].tolist() == [int((value + 1) / 2 * 255) for value in bias]
    lit = [int((value + more + 1) / 2 * 255) for value, more in zip(bias, factors[1], strict=True)]
    assert pixels[0, 2].tolist() == lit


@pytest.mark.parametrize(
    "latent", [LatentConfig(scale=0.3611), PLAYGROUND, replace(SD, mean=(0.0,) * 4, std=(1.0,) * 4)]
)
def test_a_preview_of_an_unknown_space_is_grey(latent: LatentConfig) -> None:
    x0 = torch.linspace(-4, 4, 4 * 6).reshape(1, 4, 2, 3)
    pixels = preview(x0, latent)
    assert pixels.shape == (2, 3, 3)
    assert (pixels == pixels[..., :1]).all()
    assert pixels[0, 0, 0] < 127 < pixels[1, 2, 0]
    assert pixels.min() > 0 and pixels.max() < 255  # spread over the middle, not cut off


@pytest.mark.parametrize("channels", [3, 16])
def test_a_preview_of_other_channels_is_grey(channels: int) -> None:
    assert preview(torch.randn(1, channels, 2, 3), SD).shape == (2, 3, 3)


def test_a_preview_of_nothing_and_of_half_precision() -> None:
    assert (preview(torch.zeros(1, 4, 2, 2), LatentConfig(scale=1.0)) == 127).all()
    assert preview(torch.zeros(1, 4, 2, 2, dtype=torch.bfloat16), SD).shape == (2, 2, 3)
