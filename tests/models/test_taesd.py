"""Our tiny autoencoder against diffusers' AutoencoderTiny, narrow, in float64; in bands against at once; the released files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor

from avila_diffusion import kernels
from avila_diffusion.checkpoint.keys import tiny_vae_names
from avila_diffusion.checkpoint.load import build, load_model
from avila_diffusion.checkpoint.shapes import read_tiny_vae_config
from avila_diffusion.config import LatentConfig, TinyVAEConfig
from avila_diffusion.errors import MissingPart, WeightMismatch
from avila_diffusion.kernels.rehearsal import rehearsing
from avila_diffusion.models import plans, taesd
from avila_diffusion.models.bands import decode_in_bands
from avila_diffusion.models.plans import least_room, plan_tiny, products
from avila_diffusion.models.taesd import TinyVAE
from avila_diffusion.models.twin import twin

MATERIAL = Path(__file__).resolve().parents[2].parent / "shared" / "material"
TOLERANCE = 1e-7
WIDTH = {"encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (16,) * 4}
KINDS: dict[str, dict[str, Any]] = {
    "usual": WIDTH,
    "of three levels": {
        "encoder_block_out_channels": (24,) * 3,
        "decoder_block_out_channels": (24,) * 3,
        "num_encoder_blocks": (2, 1, 3),
        "num_decoder_blocks": (1, 3, 2),
        "latent_channels": 6,
    },
    "of one level": {
        "encoder_block_out_channels": (16,),
        "decoder_block_out_channels": (16,),
        "num_encoder_blocks": (2,),
        "num_decoder_blocks": (2,),
    },
}
NARROW = TinyVAEConfig(channels=32)
EVERYTHING = 1 << 50


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small only lose by a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _pair(kind: str, fill: Any, assign: Any) -> tuple[Any, TinyVAE]:
    reference = AutoencoderTiny(**KINDS[kind])
    state = fill(reference)
    assert tiny_vae_names(state) == {name: name for name in state}
    config = read_tiny_vae_config(_shapes(state))
    return reference, assign(build(lambda: TinyVAE(config)), state)


def _draw(*shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _compare(kind: str, fill: Any, assign: Any, close: Any) -> None:
    reference, ours = _pair(kind, fill, assign)
    channels = ours.config.latent_channels
    with torch.no_grad():
        for size in ((5, 7), (1, 3)):
            z = _draw(2, channels, *size)
            close(ours.decode(z), reference.decode(z).sample, TOLERANCE)
        for size in ((40, 56), (37, 51)):
            x = _draw(2, 3, *size).clamp(-1, 1)
            expected = reference.encode(x).latents
            found = ours.encode(x)
            close(found.mean, expected, TOLERANCE)
            close(found.mode, expected, TOLERANCE)
            close(found.sample(torch.ones_like(expected)), expected, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_diffusers(kind: str, fill: Any, assign: Any, close: Any) -> None:
    _compare(kind, fill, assign, close)


def _without_shortcut(block: taesd.Block, x: Tensor) -> Tensor:
    first, second, third = block.conv.values()
    return F.relu(third(F.relu(second(F.relu(first(x))))))


def _without_last_relu(block: taesd.Block, x: Tensor) -> Tensor:
    first, second, third = block.conv.values()
    return third(F.relu(second(F.relu(first(x)))), add=x)


MISTAKES: dict[str, tuple[object, str, object]] = {
    "another clamp": (taesd, "CLAMP", 3.01),
    "pictures of -1 to 1 into the layers": (taesd.Encoder, "forward", lambda half, x: half.layers(x)),
    "pictures of 0 to 1 out of them": (
        taesd.Decoder,
        "finish",
        lambda half, h: taesd._through(half.layers[half.last :], h),
    ),
    "no shortcut": (taesd.Block, "forward", _without_shortcut),
    "no ReLU behind it": (taesd.Block, "forward", _without_last_relu),
    "no doubling": (taesd, "convolve_doubled", lambda conv, h: conv(h)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(mistake: str, fill: Any, assign: Any, close: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong = MISTAKES[mistake]
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError):
        _compare("usual", fill, assign, close)


def test_the_released_layout() -> None:
    state = AutoencoderTiny().state_dict()
    assert read_tiny_vae_config(_shapes(state)) == TinyVAEConfig()
    ours = build(lambda: TinyVAE(TinyVAEConfig()))
    assert _shapes(ours.state_dict()) == _shapes(state) and len(state) == 134
    assert (ours.config.scale, ours.config.embed_channels) == (8, 4)


def _original(state: dict[str, Tensor]) -> dict[str, str]:
    """{the original's name: diffusers'}: no `layers`, and the decoder's clamp counts as a layer."""
    found = {}
    for name in state:
        half, _, number, rest = name.split(".", 3)
        found[f"{half}.{int(number) + (half == 'decoder')}.{rest}"] = name
    return found


def test_other_names() -> None:
    state = AutoencoderTiny(**WIDTH).state_dict()
    original = _original(state)
    assert {"decoder.1.weight", "decoder.3.conv.0.bias", "decoder.7.weight", "decoder.19.bias"} <= set(original)
    assert tiny_vae_names(original) == {theirs: name for name, theirs in original.items()}
    assert tiny_vae_names([f"taesd_{name}" for name in original]) == {
        theirs: f"taesd_{name}" for name, theirs in original.items()
    }
    for half in ("encoder", "decoder"):
        bare = {name.removeprefix(f"{half}."): ours for name, ours in original.items() if name.startswith(half)}
        assert tiny_vae_names(bare) == {ours: name for name, ours in bare.items()}


@pytest.mark.parametrize(
    "names",
    [
        ["decoder.conv_in.weight", "decoder.up.0.block.0.conv1.weight", "quant_conv.weight"],
        ["0.weight", "0.bias", "2.weight"],  # a perceptron
        ["model.0.weight", "model.1.sub.0.conv.0.weight"],
        ["01.conv.0.weight", "1.conv.0.gain", "layers.1.conv.0.weight"],
        [],
    ],
)
def test_names_of_others(names: list[str]) -> None:
    assert tiny_vae_names(names) == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decoder.layers.0.weight": (16, 4)}, "expected 4 dimensions"),
        ({"encoder.layers.2.weight": None}, "3 levels in its encoder and 4 in its decoder"),
        ({f"decoder.layers.{number}.weight": (16, 16, 3, 3) for number in range(30, 40)}, "at most 9"),
    ],
)
def test_shapes_of_no_such_network(change: dict[str, tuple[int, ...] | None], words: str) -> None:
    shapes: dict[str, Any] = {**_shapes(AutoencoderTiny(**WIDTH).state_dict()), **change}
    with pytest.raises(WeightMismatch, match=words):
        read_tiny_vae_config({name: shape for name, shape in shapes.items() if shape is not None})


def test_a_decoder_alone_does_not_encode() -> None:
    half = TinyVAE(TinyVAEConfig(channels=16, encoder_blocks=()))
    assert half.encoder is None
    with pytest.raises(MissingPart, match=r"decoder of a tiny autoencoder .* alone.*give a file with both"):
        half.encode(torch.zeros(1, 3, 8, 8))


@pytest.fixture
def low_bands(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let bands be as low as these maps want them."""
    monkeypatch.setattr(plans, "LEAST_BAND", 1)
    least_room.cache_clear()
    yield
    least_room.cache_clear()


@pytest.fixture(params=["ours", "torch's"])
def whose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch's":
        monkeypatch.setattr(kernels, "ENABLED", False)


def _apart(config: TinyVAEConfig, fill: Any, dtype: torch.dtype, size: tuple[int, int], room: int) -> tuple[float, int]:
    """How much of the maximum bands differ, and how many there were."""
    vae = TinyVAE(config)
    fill(vae)
    vae = vae.to(dtype)
    z = _draw(2, config.latent_channels, *size).to(dtype)
    seen: list[None] = []
    with torch.no_grad():
        expected = vae.decode(z)
    found = decode_in_bands(vae, z, room, lambda: seen.append(None))
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return float((found - expected).abs().max() / expected.abs().max()), len(seen)


@pytest.mark.usefixtures("low_bands", "whose")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("size", [(9, 5), (1, 3)])
def test_bands_are_the_same_picture(fill: Any, dtype: torch.dtype, tolerance: float, size: tuple[int, int]) -> None:
    least = least_room(NARROW, *size, dtype.itemsize)
    apart, bands = _apart(NARROW, fill, dtype, size, least)
    assert apart <= tolerance and bands == (
        2 * 18 if size == (9, 5) else 2
    )  # as low as a tile, where that saves something
    apart, bands = _apart(NARROW, fill, dtype, size, EVERYTHING)
    assert apart <= tolerance and bands == 2
    one_level = TinyVAEConfig(channels=16, encoder_blocks=(1,), decoder_blocks=(2,))
    apart, _ = _apart(one_level, fill, dtype, (19, 6), least_room(one_level, 19, 6, dtype.itemsize))
    assert apart <= tolerance


@pytest.mark.usefixtures("low_bands")
def test_a_row_too_few_is_seen(fill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    room = least_room(NARROW, 9, 5, 8)
    monkeypatch.setattr(taesd, "halo", lambda config: plans.halo(config) - 1)
    monkeypatch.setattr(taesd, "TILE", 1)  # which would make up for it
    assert _apart(NARROW, fill, torch.float64, (9, 5), room)[0] > 1e-6


def test_stopping_between_bands(fill: Any) -> None:
    vae = TinyVAE(NARROW)
    fill(vae)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_in_bands(vae.float(), torch.zeros(1, 4, 4, 4), EVERYTHING, stop)


@pytest.mark.usefixtures("whose")
@pytest.mark.parametrize("size", [(64, 64), (48, 160)])
def test_maps_stay_within_their_room(size: tuple[int, int]) -> None:
    config, vae = TinyVAEConfig(), twin(TinyVAE(TinyVAEConfig()), 0)
    z = torch.empty(1, 4, *size, device="meta")
    pictures = 4 * 3 * 64 * size[0] * size[1] * 4  # the picture, and what is made of the last band
    scratch = 60 << 20
    least = least_room(config, *size)
    peaks = {}
    for room in (least, 2 * least, EVERYTHING):
        plan = plan_tiny(config, *size, room)
        assert plan.peak <= room
        with rehearsing() as rehearsal:
            decode_in_bands(vae, z, room)
            peaks[room] = rehearsal.mark().peak
        assert peaks[room] <= (1.0 if kernels.ENABLED else 1.2) * plan.peak + pictures + scratch
        assert plan.rows < 8 * size[0] or room == EVERYTHING
    assert peaks[least] < 0.7 * peaks[EVERYTHING]
    assert products(config, *size, least) > products(config, *size, EVERYTHING)
    with pytest.raises(ValueError, match=f"takes {least} bytes at least; {least - 1} were given"):
        plan_tiny(config, *size, least - 1)


@pytest.fixture
def golden() -> Any:
    if not MATERIAL.is_dir():
        pytest.skip("the released files lie beside the project, in ../shared")
    return np.load(MATERIAL / "oracles" / "taesd_golden.npz")


@pytest.mark.parametrize(("name", "family"), [("taesd", "sd1"), ("taesd_xl", "sdxl")])
def test_the_released_files(name: str, family: str, golden: Any, tiny_checkpoint: Callable[[str], Path]) -> None:
    """As diffusers read them, to 1e-4: float32 of weights that the file has in 8 bits."""
    model = load_model(tiny_checkpoint(family), vae=MATERIAL / "taesd" / f"{name}.safetensors")
    assert model.spec.vae == TinyVAEConfig() and model.spec.latent == LatentConfig(scale=1.0)
    assert model.report.used["vae"] == 134 and not model.report.unknown
    picture = torch.from_numpy(golden["img_u8"]).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    latent = torch.from_numpy(golden["latent_formula"])
    with torch.no_grad():
        found = {
            f"{name}.encode_img": model.vae.encode(picture).mode,
            f"{name}.decode_of_encode": model.vae.decode(torch.from_numpy(golden[f"{name}.encode_img"])),
            f"{name}.decode_latent_formula": model.vae.decode(latent),
        }
    for key, tensor in found.items():
        expected = torch.from_numpy(golden[key])
        assert tensor.shape == expected.shape and 0.5 < float(expected.abs().max()) < 10
        assert float((tensor - expected).abs().max()) < 1e-4, key
