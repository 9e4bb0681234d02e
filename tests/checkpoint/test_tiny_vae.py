"""Files of tiny autoencoders: what they are found to be, as the VAE of a model, and for previews."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from avila_diffusion import AvilaDiffusion
from avila_diffusion.checkpoint.folders import find_model
from avila_diffusion.checkpoint.inspection import inspect
from avila_diffusion.checkpoint.load import Model, load_model, load_preview_decoder
from avila_diffusion.config import FAMILIES, LatentConfig, TinyVAEConfig
from avila_diffusion.errors import (
    AvilaError,
    MissingPart,
    ModelNotFound,
    NotADiffusionModel,
    PickleRefused,
    Unsupported,
    WeightMismatch,
)
from avila_diffusion.models.taesd import TinyVAE
from avila_diffusion.models.vae import VAE
from avila_diffusion.pipeline.latents import from_vae, to_vae

State = dict[str, Tensor]
Save = Callable[..., Path]
WIDTH = 16


@pytest.fixture(scope="module")
def tiny_vae() -> Any:
    """A narrow AutoencoderTiny with seeded weights."""
    torch.manual_seed(5)
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 4, decoder_block_out_channels=(WIDTH,) * 4
    ).requires_grad_(False)


def original(state: State) -> State:
    """By the names of the original, whose decoder counts its clamp."""
    found = {}
    for name, tensor in state.items():
        half, _, number, rest = name.split(".", 3)
        found[f"{half}.{int(number) + (half == 'decoder')}.{rest}"] = tensor
    return found


def half_of(state: State, half: str) -> State:
    """One half in a file of its own."""
    return {
        name.removeprefix(f"{half}."): tensor for name, tensor in original(state).items() if name.startswith(f"{half}.")
    }


def check(model: Model, reference: Any) -> None:
    """That it decodes as the reference."""
    assert isinstance(model.vae, TinyVAE)
    assert model.spec.latent == LatentConfig(scale=1.0)
    z = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.vae.decode(z), reference.decode(z).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_by_all_names(family: str, tiny_vae: Any, tiny_checkpoint: Any, save_state: Save) -> None:
    state = tiny_vae.state_dict()
    both = {
        "diffusers": state,
        "original": original(state),
        "comfyui": {f"taesd_{name}": tensor for name, tensor in original(state).items()},
        "under a prefix": {f"first_stage_model.{name}": tensor for name, tensor in state.items()},
    }
    x = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for named in both.values():
        model = load_model(tiny_checkpoint(family), vae=save_state(named, "taesd.safetensors"))
        check(model, tiny_vae)
        torch.testing.assert_close(model.vae.encode(x).mode, tiny_vae.encode(x).latents, rtol=1e-4, atol=1e-5)
        report = model.report
        assert report.used["vae"] == len(state) and not report.unknown and not report.missing
        assert [said.value for said in report.decisions if said.what == "VAE"] == ["tiny (TAESD): encoder and decoder"]


def test_halves(tiny_vae: Any, tiny_checkpoint: Any, save_state: Save) -> None:
    state = tiny_vae.state_dict()
    decoder = save_state(half_of(state, "decoder"), "taesd_decoder.safetensors")
    model = load_model(tiny_checkpoint("sd1"), vae=decoder)
    check(model, tiny_vae)
    with pytest.raises(MissingPart, match="no picture can be turned into a latent"):
        model.vae.encode(torch.zeros(1, 3, 8, 8))
    encoder = save_state(half_of(state, "encoder"), "taesd_encoder.safetensors")
    with pytest.raises(MissingPart, match=r"taesd_encoder\.safetensors is the encoder .* alone.*give its decoder"):
        load_model(tiny_checkpoint("sd1"), vae=encoder)
    assert "encoder alone" in inspect(encoder).lines()
    assert "decoder alone, latents of 4 channels" in inspect(decoder).lines()


def test_inspection(tiny_vae: Any, save_state: Save) -> None:
    found = inspect(save_state(tiny_vae.state_dict(), "taesd.safetensors"))
    lines = found.lines()
    assert lines[0] == "taesd.safetensors: a tiny autoencoder (TAESD)"
    assert "encoder and decoder, latents of 4 channels" in lines
    assert "give it beside a checkpoint with --vae or --preview-decoder" in lines
    assert found.to_dict()["taesd"] == {"halves": ["encoder", "decoder"]}
    odd = inspect(save_state({"taesd_decoder.x": torch.zeros(1)}, "odd.safetensors"))
    assert odd.kind.key == "taesd" and odd.told == ()


def test_not_a_checkpoint(tiny_vae: Any, save_state: Save) -> None:
    with pytest.raises(NotADiffusionModel, match=r"it looks like a tiny autoencoder .*--vae or --preview-decoder"):
        load_model(save_state(half_of(tiny_vae.state_dict(), "decoder")))


def wrong_files(tiny_vae: Any) -> dict[str, tuple[State, type[AvilaError], str]]:
    state = tiny_vae.state_dict()
    sixteen = AutoencoderTiny(
        latent_channels=16, encoder_block_out_channels=(WIDTH,) * 4, decoder_block_out_channels=(WIDTH,) * 4
    ).state_dict()
    block = "decoder.layers.3.conv.2.weight"
    return {
        "of Flux": (sixteen, WeightMismatch, "16 channels, the UNet gives 4"),
        "with a hole": ({name: state[name] for name in state if name != block}, WeightMismatch, f"{block} is missing"),
        "misshapen": (state | {block: torch.zeros(WIDTH, 3, 3, 3)}, WeightMismatch, rf"{block} is \[16, 3, 3, 3\]"),
        "of whole numbers": (state | {block: state[block].int()}, WeightMismatch, "expected plain floats"),
        "something else": ({"0.weight": torch.zeros(2, 2)}, NotADiffusionModel, "is not a VAE"),
    }


@pytest.mark.parametrize("which", ["of Flux", "with a hole", "misshapen", "of whole numbers", "something else"])
def test_wrong_files(which: str, tiny_vae: Any, tiny_checkpoint: Any, save_state: Save) -> None:
    state, error, words = wrong_files(tiny_vae)[which]
    path = save_state(state, "wrong.safetensors")
    with pytest.raises(error, match=words):
        load_model(tiny_checkpoint("sd1"), vae=path)
    with pytest.raises(error, match=words):
        load_preview_decoder(str(path), load_model(tiny_checkpoint("sd1")).spec)


def test_a_large_vae_draws_no_previews(tiny: Any, tiny_checkpoint: Any, save_state: Save) -> None:
    path = save_state({name: t for name, t in tiny().items() if name.startswith("first_stage_model.")})
    with pytest.raises(NotADiffusionModel, match=r"takes too long for previews; expected a tiny one \(TAESD\)"):
        AvilaDiffusion.with_model(tiny_checkpoint("sd1"), preview_decoder=path)


def test_previews_beside_another_vae(tiny_vae: Any, tiny_checkpoint: Any, save_state: Save) -> None:
    path = save_state(half_of(tiny_vae.state_dict(), "decoder"), "small.safetensors")
    model = load_model(tiny_checkpoint("sdxl"))
    decoder = load_preview_decoder(str(path), model.spec)
    assert isinstance(model.vae, VAE) and decoder.config == TinyVAEConfig(channels=WIDTH, encoder_blocks=())
    assert model.spec.tiny_latent == LatentConfig(scale=1.0) and model.spec.latent == LatentConfig(scale=0.13025)
    z = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(decoder.decode(z), tiny_vae.decode(z).sample, rtol=1e-4, atol=1e-5)


PLAYGROUND = LatentConfig(scale=0.5, mean=(-1.6574, 1.886, -1.383, 2.5155), std=(8.4927, 5.9022, 6.5498, 5.2299))


@pytest.mark.parametrize("latent", [LatentConfig(), LatentConfig(scale=0.9), PLAYGROUND])
def test_the_latents_of_a_tiny_one_are_the_large_ones_scaled(latent: LatentConfig) -> None:
    z = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = from_vae(z, latent)
    torch.testing.assert_close(to_vae(x, latent.of_tiny(0.13025)), 0.13025 * z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_most_often_nothing_is_left_to_scale(family: str) -> None:
    scale = FAMILIES[family].latent_scale
    assert LatentConfig(scale=scale).of_tiny(scale) == LatentConfig(scale=1.0)


def test_a_models_own_standardisation(tiny: Any, tiny_vae: Any, save_state: Save) -> None:
    """Playground 2.5 has its UNet's latents in other units than those that TAESD was trained after."""
    marks = {"edm_mean": torch.tensor(PLAYGROUND.mean), "edm_std": torch.tensor(PLAYGROUND.std)}
    model = save_state(tiny("sdxl") | marks, "playground.safetensors", avila__family="sdxl", avila__size="64")
    vae = save_state(tiny_vae.state_dict(), "taesd.safetensors")
    large, small = load_model(model).spec, load_model(model, vae=vae).spec
    assert small.latent == large.latent.of_tiny(0.13025) == large.tiny_latent == small.tiny_latent
    assert small.latent.mean is not None and small.latent.mean[0] == pytest.approx(-1.6574 * 0.13025)


@pytest.fixture
def folder(tmp_path: Path, tiny: Any, tiny_vae: Any, save_state: Save) -> Path:
    """A VAE in a folder as diffusers saves it."""
    place = tmp_path / "taesd"
    tiny_vae.save_pretrained(place)
    return place


def test_a_folder_as_the_vae(folder: Path, tiny_vae: Any, tiny_checkpoint: Any) -> None:
    check(load_model(tiny_checkpoint("sd1"), vae=folder), tiny_vae)
    diffusion = AvilaDiffusion.with_model(tiny_checkpoint("sd1"), vae=folder, preview_decoder=folder)
    assert diffusion.report is not None and diffusion.report.used["vae"] == len(tiny_vae.state_dict())


def _as_folder(tmp_path: Path, state: State) -> Path:
    """A model folder but for its VAE, by our own names translated back where diffusers has others."""
    from avila_diffusion.checkpoint.keys import unet_to_diffusers

    root = tmp_path / "model"
    parts: dict[str, State] = {"unet": {}, "text_encoder": {}}
    unet = {k.removeprefix("model.diffusion_model."): t for k, t in state.items() if k.startswith("model.diff")}
    parts["unet"] = {theirs: unet[ours] for theirs, ours in unet_to_diffusers(unet).items()}
    prefix = "cond_stage_model.transformer."
    parts["text_encoder"] = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
    from safetensors.torch import save_file

    for name, tensors in parts.items():
        (root / name).mkdir(parents=True)
        file = "diffusion_pytorch_model.safetensors" if name == "unet" else "model.safetensors"
        save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, root / name / file)
        (root / name / "config.json").write_text("{}", encoding="utf-8")
    (root / "unet" / "config.json").write_text(json.dumps({"attention_head_dim": 8}), encoding="utf-8")
    index = {name: ["library", "class"] for name in (*parts, "vae")}
    (root / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return root


def test_a_model_folder_with_a_tiny_vae(
    folder: Path, tiny: Any, tiny_vae: Any, tmp_path: Path, save_state: Save
) -> None:
    state = tiny("sd1")
    root = _as_folder(tmp_path, state)
    shutil.copytree(folder, root / "vae")
    check(load_model(root), tiny_vae)
    large = save_state({k: t for k, t in state.items() if k.startswith("first_stage_model.")}, "large.safetensors")
    replaced = load_model(root, vae=large)
    assert isinstance(replaced.vae, VAE) and replaced.spec.latent == LatentConfig(scale=0.18215)
    config = root / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"act_fn": "mish"}), encoding="utf-8")
    with pytest.raises(Unsupported, match=r"vae/config.json says act_fn 'mish'; .* 'relu'"):
        load_model(root)


def test_names_in_the_folders_of_both_kinds(tmp_path: Path) -> None:
    for name in ("vae/kl.safetensors", "vae/both.safetensors", "vae_approx/taesd.safetensors", "vae_approx/both.pt"):
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "models" / "checkpoints").mkdir()
    root = tmp_path / "models"
    assert find_model("taesd", "vae", root) == root / "vae_approx" / "taesd.safetensors"
    assert find_model("taesd", "taesd", root) == root / "vae_approx" / "taesd.safetensors"
    assert find_model("kl", "taesd", root) == root / "vae" / "kl.safetensors"
    assert find_model("both", "vae", root) == root / "vae" / "both.safetensors", "its own folders come first"
    assert find_model("both", "taesd", root) == root / "vae_approx" / "both.pt"
    with pytest.raises(ModelNotFound, match="vae_approx") as caught:
        find_model("taesdd", "vae", root)
    assert "the nearest are taesd.safetensors" in str(caught.value)
    with pytest.raises(ModelNotFound):
        find_model("taesd", "lora", root)


def test_pickled_files_are_to_be_converted(tmp_path: Path, tiny_vae: Any, tiny_checkpoint: Any) -> None:
    path = tmp_path / "taesd_decoder.pth"
    torch.save(half_of(tiny_vae.state_dict(), "decoder"), path)
    with pytest.raises(PickleRefused, match="avila convert"):
        load_model(tiny_checkpoint("sd1"), vae=path)
    from avila_diffusion.checkpoint.convert import convert

    convert(path, tmp_path / "taesd_decoder.safetensors")
    check(load_model(tiny_checkpoint("sd1"), vae=tmp_path / "taesd_decoder.safetensors"), tiny_vae)
