"""Decoding in bands against decoding at once: the same picture, in the room that was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from avila_diffusion import kernels
from avila_diffusion.config import VAEConfig
from avila_diffusion.kernels import build
from avila_diffusion.models import bands, rows, walk
from avila_diffusion.models.bands import decode_in_bands
from avila_diffusion.models.layers import wrap
from avila_diffusion.models.plans import Plan, StagePlan, decoding, least_room, plan_decode
from avila_diffusion.models.vae import VAE

EVERYTHING = 1 << 50
WIDTHS = (32, 64, 64)
USUAL = VAEConfig(encoder_channels=WIDTHS, decoder_channels=WIDTHS, decoder_blocks=2)
CONFIGS = {
    "usual": USUAL,
    "one width": VAEConfig(encoder_channels=(32, 32), decoder_channels=(32, 32)),
    "without quant": VAEConfig(encoder_channels=WIDTHS, decoder_channels=WIDTHS, decoder_blocks=1, quant=False),
    "without attention": VAEConfig(encoder_channels=(32, 64), decoder_channels=(32, 64), decoder_attention=False),
}
AXES = ((False, False), (True, False), (False, True), (True, True))
CASES = [("usual", axes) for axes in AXES] + [(kind, (False, False)) for kind in CONFIGS if kind != "usual"]
SIZES = ((5, 7), (1, 3))
pytestmark = pytest.mark.usefixtures("narrow_bands", "no_gradients")


def _vae(config: VAEConfig, fill: Any, dtype: torch.dtype) -> VAE:
    vae = VAE(config)
    fill(vae)
    return vae.to(dtype)


def _latent(config: VAEConfig, size: tuple[int, int], dtype: torch.dtype, batch: int = 1) -> Tensor:
    channels = config.embed_channels if config.quant else config.latent_channels
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(
        dtype
    )


def _rooms(config: VAEConfig, size: tuple[int, int], itemsize: int) -> list[int]:
    least = least_room(config, *size, itemsize)
    return [least, EVERYTHING]


def _apart(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("kind", "axes"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_same_picture(kind: str, axes: tuple[bool, bool], dtype: torch.dtype, whose: None, fill: Any) -> None:
    config = CONFIGS[kind]
    vae = _vae(config, fill, dtype)
    wrap(vae, *axes)
    for size in SIZES:
        z = _latent(config, size, dtype)
        expected = vae.decode(z)
        for room in _rooms(config, size, dtype.itemsize):
            assert _apart(decode_in_bands(vae, z, room), expected) <= (1e-5 if dtype == torch.float32 else 1e-13)


def _every_choice(config: VAEConfig, size: tuple[int, int], height: int) -> Iterator[Plan]:
    for first, others, keep in ((a, b, c) for a in (True, False) for b in (True, False) for c in (True, False)):
        yield Plan(
            tuple(StagePlan(height, keep and stage.upsampled, (first, others)) for stage in decoding(config, *size)),
            0,
            0.0,
        )


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("size", [(5, 3), (1, 2)])
def test_whatever_is_kept(
    axes: tuple[bool, bool], size: tuple[int, int], fill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every combination of what is kept and what is made again, not those alone that a planner happens to take."""
    vae, z = _vae(USUAL, fill, torch.float32), _latent(USUAL, size, torch.float32)
    wrap(vae, *axes)
    expected, ours = vae.decode(z), kernels.ENABLED and build.library() is not None
    for plan in _every_choice(USUAL, size, 4):
        with monkeypatch.context() as patch:
            patch.setattr(bands, "plan_decode", lambda *_, plan=plan: plan)
            assert _apart(decode_in_bands(vae, z, 0), expected) <= (1e-5 if ours else 2e-5)


def test_a_batch_is_its_pictures(fill: Any) -> None:
    vae, z = _vae(USUAL, fill, torch.float32), _latent(USUAL, (6, 5), torch.float32, batch=2)
    room = least_room(USUAL, 6, 5)
    both = decode_in_bands(vae, z, room)
    assert torch.equal(both, torch.cat([decode_in_bands(vae, one, room) for one in torch.split(z, 1)]))
    assert _apart(both, vae.decode(z)) <= 1e-5


def _of_the_band_alone(norm: Any, parts: Any, like: Tensor) -> rows.Statistics:
    return rows.statistics(norm, parts[:1], like)


def _without_means(norm: Any, parts: Any, like: Tensor) -> rows.Statistics:
    mean = parts[0].of_channels[0]
    return rows.statistics(norm, [rows.Moments(p.pixels, torch.stack([mean, p.of_channels[1]])) for p in parts], like)


def _around_nothing(source: rows.Source, first: int, end: int, rows: int = 1) -> tuple[int, int]:
    return first, end


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("statistics", _of_the_band_alone),
        ("statistics", _without_means),
        ("around", _around_nothing),
    ],
)
def test_seams_are_seen(name: str, wrong: Callable[..., Any], fill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, z = _vae(USUAL, fill, torch.float32), _latent(USUAL, (13, 9), torch.float32)
    monkeypatch.setattr(walk, name, wrong)
    found = decode_in_bands(vae, z, least_room(USUAL, 13, 9))
    assert _apart(found, vae.decode(z)) > 1e-4


@pytest.mark.parametrize("share", [1.0, 1.5])
@pytest.mark.parametrize("axes", [(False, False), (True, True)])
def test_keeps_to_the_room(share: float, axes: tuple[bool, bool], fill: Any, alive: Any) -> None:
    """By torch's operations, every one of which is seen; what is not a map, weights and the picture, comes on top.

    Without attention: torch may make all of its scores, where ours does not.
    """
    config = replace(USUAL, decoder_attention=False)
    vae, z = _vae(config, fill, torch.float32), _latent(config, (24, 24), torch.float32)
    wrap(vae, *axes)
    room = int(share * least_room(config, 24, 24))
    with alive() as seen:
        vae.decode(z)
    whole = seen.most
    with alive() as seen:
        picture = decode_in_bands(vae, z, room)
    assert seen.most <= 1.2 * room + picture.nbytes
    assert 0.5 * room <= seen.most, "the plan counts maps that never are"
    if share == 1.0:
        assert seen.most < whole / 2


def test_less_room_than_the_least_is_refused(fill: Any) -> None:
    vae, z = _vae(USUAL, fill, torch.float32), _latent(USUAL, (5, 7), torch.float32)
    least = least_room(USUAL, 5, 7)
    with pytest.raises(ValueError, match=str(least)):
        decode_in_bands(vae, z, least - 1)


def test_plans_grow_cheaper_with_room() -> None:
    least = least_room(VAEConfig(), 256, 256)
    assert least < 2.5e9  # 2048 x 2048
    plans = [plan_decode(VAEConfig(), 256, 256, int(least * share)) for share in (1.0, 1.2, 2.0, 100.0)]
    assert all(plan.peak <= least * share for plan, share in zip(plans, (1.0, 1.2, 2.0, 100.0), strict=True))
    products = [plan.products for plan in plans]
    assert products == sorted(products, reverse=True) and products[0] > 1.2 * products[-1]
    assert all(stage.keep_input or not index for index, stage in enumerate(plans[-1].stages))


def test_can_be_stopped_between_bands(fill: Any) -> None:
    vae, z = _vae(USUAL, fill, torch.float32), _latent(USUAL, (13, 5), torch.float32)
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_in_bands(vae, z, least_room(USUAL, 13, 5), stop)
    assert calls == 7
