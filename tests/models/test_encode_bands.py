"""Encoding in bands against encoding at once: the same latents, in the room that was given."""

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
from avila_diffusion.models import encode_bands, rows, walk
from avila_diffusion.models.encode_bands import encode_in_bands
from avila_diffusion.models.layers import wrap
from avila_diffusion.models.plans import Plan, StagePlan, encoding, least_room_to_encode, plan_encode
from avila_diffusion.models.vae import VAE

EVERYTHING = 1 << 50
WIDTHS = (32, 64, 64)
USUAL = VAEConfig(encoder_channels=WIDTHS, decoder_channels=WIDTHS, encoder_blocks=2)
CONFIGS = {
    "usual": USUAL,
    "one width": replace(USUAL, encoder_channels=(32, 32)),
    "without quant": replace(USUAL, encoder_blocks=1, quant=False),
    "without attention": replace(USUAL, encoder_channels=(32, 64), encoder_attention=False),
    "a mean alone": replace(USUAL, double_z=False),
}
AXES = ((False, False), (True, False), (False, True), (True, True))
CASES = [("usual", axes) for axes in AXES] + [(kind, (False, False)) for kind in CONFIGS if kind != "usual"]
SIZES = ((20, 28), (23, 13), (5, 9), (4, 6))
pytestmark = pytest.mark.usefixtures("narrow_bands", "no_gradients")


def _vae(config: VAEConfig, fill: Any, dtype: torch.dtype) -> VAE:
    vae = VAE(config)
    fill(vae)
    return vae.to(dtype)


def _picture(size: tuple[int, int], dtype: torch.dtype, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return (2 * torch.rand(batch, 3, *size, generator=generator, dtype=torch.float64) - 1).to(dtype)


def _rooms(config: VAEConfig, size: tuple[int, int], itemsize: int) -> list[int]:
    least = least_room_to_encode(config, *size, itemsize)
    return [least, 3 * least // 2, EVERYTHING]


def _apart(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return float((found - expected).abs().max() / expected.abs().max())


def _encoded(vae: VAE, x: Tensor, room: int) -> Tensor:
    """Mean and log variance in bands, together."""
    found = encode_in_bands(vae, x, room)
    return torch.cat([found.mean, found.log_variance])


def _whole(vae: VAE, x: Tensor) -> Tensor:
    found = vae.encode(x)
    return torch.cat([found.mean, found.log_variance])


@pytest.mark.parametrize(("kind", "axes"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_same_latent(kind: str, axes: tuple[bool, bool], dtype: torch.dtype, whose: None, fill: Any) -> None:
    config = CONFIGS[kind]
    vae = _vae(config, fill, dtype)
    wrap(vae, *axes)
    for size in SIZES:
        x = _picture(size, dtype)
        expected = _whole(vae, x)
        assert 0.3 < float(expected.abs().max()) < 100
        for room in _rooms(config, size, dtype.itemsize):
            assert _apart(_encoded(vae, x, room), expected) <= (5e-5 if dtype == torch.float32 else 1e-12)


def _every_choice(size: tuple[int, int], height: int) -> Iterator[Plan]:
    for first, others in ((a, b) for a in (True, False) for b in (True, False)):
        yield Plan(tuple(StagePlan(height, False, (first, others)) for _ in encoding(USUAL, *size)), 0, 0.0)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("height", [4, 8])
def test_whatever_is_kept(axes: tuple[bool, bool], height: int, fill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every combination of what is kept and what is made again, not those alone that a planner happens to take."""
    vae, x = _vae(USUAL, fill, torch.float64), _picture((41, 12), torch.float64)
    wrap(vae, *axes)
    expected = _whole(vae, x)
    for plan in _every_choice((41, 12), height):
        with monkeypatch.context() as patch:
            patch.setattr(encode_bands, "plan_encode", lambda *_, plan=plan: plan)
            assert _apart(_encoded(vae, x, 0), expected) <= 1e-12


def test_a_batch_is_its_pictures(fill: Any) -> None:
    vae, x = _vae(USUAL, fill, torch.float32), _picture((24, 20), torch.float32, batch=2)
    room = least_room_to_encode(USUAL, 24, 20)
    both = encode_in_bands(vae, x, room).mean
    alone = torch.cat([encode_in_bands(vae, one, room).mean for one in torch.split(x, 1)])
    # torch's convolutions may add in another order where there are two.
    ours = kernels.ENABLED and build.library() is not None
    assert torch.equal(both, alone) if ours else _apart(both, alone) <= 1e-5
    assert _apart(both, vae.encode(x).mean) <= 1e-5


def test_pictures_may_lie_anyhow(fill: Any) -> None:
    """As rows of colours, which is how files are read."""
    vae, x = _vae(USUAL, fill, torch.float32), _picture((24, 20), torch.float32)
    room = least_room_to_encode(USUAL, 24, 20)
    expected = encode_in_bands(vae, x, room).mean
    assert _apart(encode_in_bands(vae, x.contiguous(memory_format=torch.channels_last), room).mean, expected) <= 1e-6
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert _apart(encode_in_bands(vae, turned, room).mean, expected) <= 1e-6


def _of_the_band_alone(norm: Any, parts: Any, like: Tensor) -> rows.Statistics:
    return rows.statistics(norm, parts[:1], like)


def _around_nothing(source: rows.Source, first: int, end: int, rows: int = 1) -> tuple[int, int]:
    return first, end


def _bordered(source: rows.Source, first: int, end: int, rows: int = 1) -> tuple[int, int]:
    return max(first - rows, 0), min(end + rows, source.height)


def _without_the_next_row(pieces: list[Tensor], height: int) -> Tensor:
    pieces[-1] = torch.zeros_like(pieces[-1])
    return _with_zeros(pieces, height)


_with_zeros = encode_bands._with_zeros


@pytest.mark.parametrize(
    ("where", "name", "wrong"),
    [
        (walk, "statistics", _of_the_band_alone),
        (walk, "around", _around_nothing),
        (walk, "around", _bordered),
        (encode_bands, "_with_zeros", _without_the_next_row),
    ],
)
def test_seams_are_seen(
    where: Any, name: str, wrong: Callable[..., Any], fill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, x = _vae(USUAL, fill, torch.float32), _picture((52, 36), torch.float32)
    wrap(vae, False, True)
    monkeypatch.setattr(where, name, wrong)
    found = encode_in_bands(vae, x, least_room_to_encode(USUAL, 52, 36))
    assert _apart(found.mean, vae.encode(x).mean) > 1e-4


@pytest.mark.parametrize("share", [1.0, 1.5])
@pytest.mark.parametrize("axes", [(False, False), (True, True)])
def test_keeps_to_the_room(share: float, axes: tuple[bool, bool], fill: Any, alive: Any) -> None:
    """By torch's operations, every one of which is seen; what is not a map, as weights, comes on top.

    Without attention: torch may make all of its scores, where ours does not.
    """
    config = replace(USUAL, encoder_attention=False)
    vae, x = _vae(config, fill, torch.float32), _picture((98, 96), torch.float32)
    wrap(vae, *axes)
    room = int(share * least_room_to_encode(config, 98, 96))
    with alive() as seen:
        vae.encode(x)
    whole = seen.most
    with alive() as seen:
        encode_in_bands(vae, x, room)
    assert seen.most <= 1.1 * room
    assert 0.5 * room <= seen.most, "the plan counts maps that never are"
    if share == 1.0:
        assert seen.most < whole / 2


def test_less_room_than_the_least_is_refused(fill: Any) -> None:
    vae, x = _vae(USUAL, fill, torch.float32), _picture((20, 28), torch.float32)
    least = least_room_to_encode(USUAL, 20, 28)
    with pytest.raises(ValueError, match=f"28 x 20 takes {least} bytes"):
        encode_in_bands(vae, x, least - 1)


def test_a_picture_smaller_than_a_cell_is_refused(fill: Any) -> None:
    with pytest.raises(ValueError, match="9 x 3 cannot be encoded; it must have 4 pixels"):
        encode_in_bands(_vae(USUAL, fill, torch.float32), _picture((3, 9), torch.float32), EVERYTHING)


def test_plans_grow_cheaper_with_room() -> None:
    least = least_room_to_encode(VAEConfig(), 2048, 2048)
    assert 4 * 128 * 2048**2 < least < 2.5e9
    shares = (1.0, 1.2, 2.0, 100.0)
    plans = [plan_encode(VAEConfig(), 2048, 2048, int(least * share)) for share in shares]
    assert all(plan.peak <= least * share for plan, share in zip(plans, shares, strict=True))
    products = [plan.products for plan in plans]
    assert products == sorted(products, reverse=True) and products[0] > 1.2 * products[-1]


def test_can_be_stopped_between_bands(fill: Any) -> None:
    vae, x = _vae(USUAL, fill, torch.float32), _picture((52, 20), torch.float32)
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_in_bands(vae, x, least_room_to_encode(USUAL, 52, 20), stop)
    assert calls == 7
