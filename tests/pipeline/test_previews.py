"""Runs with a tiny VAE, and previews: by the linear map, and by a tiny decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from avila_diffusion import AvilaDiffusion, GenerateResult, Image, Progress
from avila_diffusion.checkpoint.load import Model, load_model
from avila_diffusion.checkpoint.safetensors import write_safetensors
from avila_diffusion.config import LatentConfig
from avila_diffusion.device import choose_policy
from avila_diffusion.errors import RequestError
from avila_diffusion.kernels import calibration
from avila_diffusion.kernels.rehearsal import Kind
from avila_diffusion.models.layers import keeper_of
from avila_diffusion.models.plans import least_room
from avila_diffusion.models.taesd import TinyVAE
from avila_diffusion.pipeline import forecast
from avila_diffusion.pipeline import memory as memory_module
from avila_diffusion.pipeline.engine import ModelEngine
from avila_diffusion.pipeline.forecast import BAND_SCRATCH, Outlook
from avila_diffusion.pipeline.latents import draw_preview, preview, to_pixels
from avila_diffusion.pipeline.memory import Memory, choose_way
from avila_diffusion.request import GenerateRequest

REQUEST = GenerateRequest(prompt="a hill", width=72, height=64, steps=3, sampler="Euler", seed=7)


@pytest.fixture(scope="module")
def reference() -> Any:
    torch.manual_seed(5)
    vae = AutoencoderTiny(encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4)
    for parameter in vae.parameters():  # of order one, for pictures of some contrast
        parameter.data.normal_(std=parameter[0].numel() ** -0.5 if parameter.dim() == 4 else 0.1)
    return vae.requires_grad_(False)


@pytest.fixture(scope="module")
def tiny_file(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("taesd") / "taesd.safetensors"
    write_safetensors(path, reference.state_dict())
    return path


@pytest.fixture
def with_tiny(tiny_checkpoint: Callable[[str], Path], tiny_file: Path) -> Callable[[str], Model]:
    return lambda family: load_model(tiny_checkpoint(family), vae=tiny_file)


def engine_of(model: Model, **fields: Any) -> ModelEngine:
    return replace(ModelEngine.of(model, choose_policy("cpu", "float32")), **fields)


def run(engine: ModelEngine, request: GenerateRequest = REQUEST) -> tuple[list[Image], Image]:
    """The previews of a run, and its picture."""
    previews, made = [], None
    for event in engine.generate(request):
        if isinstance(event, GenerateResult):
            made = event[0]
        elif event.stage == "sample" and event.step:
            assert event.preview is not None
            previews.append(event.preview())
        else:
            assert event.preview is None
    assert made is not None
    return previews, made


def far(one: Image, other: Image | np.ndarray[Any, Any]) -> int:
    """The largest difference of a byte."""
    theirs = other.pixels if isinstance(other, Image) else other
    assert one.pixels.shape == theirs.shape
    return int(np.abs(one.pixels.astype(int) - theirs.astype(int)).max())


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_pictures_are_of_the_same_latents(
    family: str, with_tiny: Any, tiny_model: Any, reference: Any, latents_of: Any
) -> None:
    ours, large = engine_of(with_tiny(family)), engine_of(tiny_model(family))
    (latent,) = latents_of(ours, REQUEST)
    torch.testing.assert_close(latent, latents_of(large, REQUEST)[0], rtol=0, atol=0)
    _, picture = run(ours)
    expected = to_pixels(reference.decode(latent).sample)
    assert expected.std() > 20, "else this tests nothing"
    assert far(picture, expected) <= 1
    assert "VAE: taesd.safetensors" in (picture.infotext or "")


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_linear_previews_do_not_depend_on_the_vae(family: str, with_tiny: Any, tiny_model: Any) -> None:
    ours, large = run(engine_of(with_tiny(family)))[0], run(engine_of(tiny_model(family)))[0]
    assert len(ours) == 3 and ours[0].pixels.shape == (8, 9, 3)
    assert [far(one, other) for one, other in zip(ours, large, strict=True)] == [0, 0, 0]
    assert np.ptp(ours[0].pixels, axis=2).any(), "grey"


@pytest.mark.parametrize("tiny_too", [False, True])
def test_a_tiny_decoder_draws_previews_at_full_size(
    tiny_too: bool, with_tiny: Any, tiny_model: Any, reference: Any, latents_of: Any
) -> None:
    model, decoder = (with_tiny if tiny_too else tiny_model)("sd1"), with_tiny("sd1").vae
    engine = engine_of(model, preview_decoder=decoder)
    previews, picture = run(engine)
    plain = run(engine_of(model))[1]
    assert far(picture, plain) == 0, "previews change nothing"
    assert [one.pixels.shape for one in previews] == [(64, 72, 3)] * 3
    assert far(previews[0], previews[-1]) > 20
    (latent,) = latents_of(engine, REQUEST)  # which is the last guess of Euler
    assert far(previews[-1], to_pixels(reference.decode(latent).sample)) <= 1


def test_the_space_of_latents_is_known_by_its_scale(with_tiny: Any, tiny_model: Any) -> None:
    spec, tiny = tiny_model("sd1").spec, with_tiny("sd1").spec
    x = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(1))
    for one in (spec, tiny):
        assert one.latent_space == LatentConfig(scale=0.18215)
        np.testing.assert_array_equal(draw_preview(x, one, None, torch.float32), preview(x, spec.latent))
    own = replace(tiny, latent=LatentConfig(scale=0.7))
    assert own.latent_space == LatentConfig(scale=0.7), "grey, as with the large one"


def test_a_model_in_other_units_is_brought_to_the_decoders(with_tiny: Any, tiny_model: Any, reference: Any) -> None:
    """Latents of a model whose scale is twice its family's are halved before a tiny decoder sees them."""
    spec = replace(tiny_model("sd1").spec, latent=LatentConfig(scale=2 * 0.18215))
    x = torch.randn(1, 4, 3, 2, generator=torch.Generator().manual_seed(1))
    found = draw_preview(x, spec, with_tiny("sd1").vae, torch.float32)
    assert far(Image(found), to_pixels(reference.decode(x / 2).sample)) <= 1


def test_neither_keeps_derived_weights(tiny_checkpoint: Any, tiny_file: Path) -> None:
    diffusion = AvilaDiffusion.with_model(
        tiny_checkpoint("sd1"), vae=tiny_file, preview_decoder=tiny_file, device="cpu", memory="fast"
    )
    engine = diffusion._engine
    assert isinstance(engine, ModelEngine) and engine.preview_decoder is not None
    run(engine)
    assert isinstance(engine.model.vae, TinyVAE)
    assert keeper_of(engine.model.vae).held == keeper_of(engine.preview_decoder).held == 0
    assert keeper_of(engine.model.unet).held > 0


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that need not be measured."""
    kinds = get_args(Kind)
    monkeypatch.setattr(forecast, "rates", lambda *of: calibration.Rates(dict.fromkeys(kinds, 1e9), 1e9, 1e9))


def _limited(engine: ModelEngine, request: GenerateRequest, room: int) -> ModelEngine:
    base = Outlook(engine, request).base
    return replace(engine, memory=Memory("auto", int((base + room) / memory_module.CERTAIN) + 2))


@pytest.mark.usefixtures("rates")
def test_a_limit_holds_for_a_tiny_vae_too(with_tiny: Any) -> None:
    engine = engine_of(with_tiny("sd1"))
    request = engine.accept(replace(REQUEST, width=1024, height=1024))
    outlook = Outlook(engine, request)
    whole = outlook.rehearsed(0).decode.held
    least = least_room(engine.model.spec.vae, 128, 128)
    limited = _limited(engine, request, whole - (32 << 20))
    way = choose_way(limited, request)
    assert way.decode_room is not None and least <= way.decode_room < whole
    told = Outlook(limited, request).at(way.kept, way.decode_room)
    assert limited.memory.limit is not None and told.peak_bytes <= limited.memory.limit
    assert told.decode_seconds >= outlook.at(0).decode_seconds > 0


@pytest.mark.usefixtures("rates")
def test_a_limit_reckons_with_previews(with_tiny: Any, tiny_model: Any) -> None:
    decoder = with_tiny("sd1").vae
    plain = engine_of(tiny_model("sd1"))
    engine = replace(plain, preview_decoder=decoder)
    request = engine.accept(REQUEST)
    without, outlook = Outlook(plain, request), Outlook(engine, request)
    more = outlook.beside - without.beside
    assert more == least_room(decoder.config, 8, 9) + BAND_SCRATCH
    taken, before = (of.peak_bytes - of.base_bytes for of in (outlook.at(0), without.at(0)))
    assert taken == outlook.beside > before
    enough = without.rehearsed(0).decode.held + (8 << 20)
    choose_way(_limited(plain, request, enough), request)
    with pytest.raises(RequestError, match=r"takes .* GB at least"):
        choose_way(_limited(engine, request, enough), request)


def test_journals_do_not_mind(tiny_checkpoint: Any, tiny_file: Path, tmp_path: Path) -> None:
    """Another decoder for previews, or none, is no other run."""
    from avila_diffusion.pipeline.journal import Journal

    path = tmp_path / "a.journal"
    diffusion = AvilaDiffusion.with_model(tiny_checkpoint("sd1"), vae=tiny_file, preview_decoder=tiny_file)
    *_, made = diffusion.generate(REQUEST, journal=path)
    assert isinstance(made, GenerateResult)
    with Journal.read(path) as journal:
        for decoder in (None, tiny_file):
            again = AvilaDiffusion.from_journal(journal, preview_decoder=decoder)
            engine = again._engine
            assert isinstance(engine, ModelEngine)
            assert (engine.preview_decoder is None) == (decoder is None)
            assert isinstance(engine.model.vae, TinyVAE)


def test_encoding_and_decoding_meet(with_tiny: Any, reference: Any) -> None:
    """What training and others do: `from_vae` of what is encoded is the UNet's latent."""
    from avila_diffusion.pipeline.latents import from_vae, to_vae

    model = with_tiny("sd1")
    x = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latent: Tensor = from_vae(model.vae.encode(x).mode, model.spec.latent)
    torch.testing.assert_close(latent, reference.encode(x).latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(to_vae(latent, model.spec.latent), latent, rtol=0, atol=0)


def test_events_without_a_decoder_have_small_previews(tiny_model: Any) -> None:
    events = [event for event in engine_of(tiny_model("sd1")).generate(REQUEST) if isinstance(event, Progress)]
    shown = [event.preview() for event in events if event.preview is not None]
    assert [image.pixels.shape for image in shown] == [(8, 9, 3)] * 3
