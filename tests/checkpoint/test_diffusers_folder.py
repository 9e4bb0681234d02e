"""Diffusers folders, written by diffusers and transformers themselves: the networks compute what the originals do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from avila_diffusion.checkpoint.inspection import inspect
from avila_diffusion.checkpoint.load import Model, load_model
from avila_diffusion.errors import (
    AvilaError,
    FileProblem,
    HeaderError,
    MissingPart,
    ModelNotFound,
    NotADiffusionModel,
    PickleRefused,
    Unsupported,
    WeightMismatch,
)
from avila_diffusion.models.unet import embed_timesteps
from avila_diffusion.sampling.schedules import NoiseTable

TOLERANCE = 1e-5
TOKENS = torch.tensor([[49406, 320, 2368, 530, 49407] + [49407] * 72])
PROJECTION = 48


@dataclass(frozen=True, eq=False)
class Original:
    """A pipeline's networks as diffusers and transformers have them, and the folder they were saved to."""

    folder: Path
    unet: Any
    vae: Any
    towers: tuple[Any, ...]


def seed(network: nn.Module, number: int) -> Any:
    generator = torch.Generator().manual_seed(number)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() < 2:
            value = 0.1 * noise if name.endswith("bias") else 1 + 0.2 * noise
        else:
            value = 0.3 * noise if "embedding.weight" in name else noise / noise[0].numel() ** 0.5
        parameter.data.copy_(value)
    return network.eval().requires_grad_(False)


def make_tower(kind: type[Any], width: int, heads: int, activation: str, number: int) -> Any:
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=heads,
        projection_dim=PROJECTION,
        hidden_act=activation,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    return seed(kind(config), number)


def make_unet(context: int, **settings: Any) -> Any:
    usual = {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": context,
    }
    return seed(UNet2DConditionModel(**(usual | settings)), 1)


# Heads and activations here are not those of the families, so that only the configs can tell them.
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"context": 64, "attention_head_dim": 4},
    "sd2": {"context": 64, "attention_head_dim": [2, 8], "use_linear_projection": True},
    "sdxl": {
        "context": 64 + 96,
        "attention_head_dim": [2, 4],
        "use_linear_projection": True,
        "transformer_layers_per_block": [1, 2],
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": PROJECTION + 6 * 16,
    },
    "sdxl_refiner": {
        "context": 96,
        "attention_head_dim": [2, 8],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": PROJECTION + 5 * 16,
    },
}
TOWERS: dict[str, dict[str, tuple[type[Any], int, int, str]]] = {
    "sd1": {"text_encoder": (CLIPTextModel, 64, 4, "gelu")},
    "sd2": {"text_encoder": (CLIPTextModel, 64, 2, "gelu")},
    "sdxl": {
        "text_encoder": (CLIPTextModel, 64, 4, "quick_gelu"),
        "text_encoder_2": (CLIPTextModelWithProjection, 96, 6, "gelu"),
    },
    "sdxl_refiner": {"text_encoder_2": (CLIPTextModelWithProjection, 96, 3, "gelu")},
}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Original]:
    made: dict[str, Original] = {}

    def make(family: str) -> Original:
        if family not in made:
            folder = tmp_path_factory.mktemp("pipelines") / family
            unet = make_unet(**UNETS[family])
            vae: Any = AutoencoderKL(
                block_out_channels=(32, 64),
                layers_per_block=1,
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                scaling_factor=0.25,
            )
            seed(vae, 2)
            unet.save_pretrained(folder / "unet", safe_serialization=True)
            vae.save_pretrained(folder / "vae", safe_serialization=True)
            towers: list[Any] = []
            for name, settings in TOWERS[family].items():
                towers.append(make_tower(*settings, number=3 + len(towers)))
                towers[-1].save_pretrained(folder / name)
            index = {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}
            listed = {name: ["transformers", settings[0].__name__] for name, settings in TOWERS[family].items()}
            unlisted = {name: [None, None] for name in ("text_encoder", "safety_checker") if name not in listed}
            content = json.dumps(index | listed | unlisted)
            (folder / "model_index.json").write_text(content, encoding="utf-8")
            DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
            made[family] = Original(folder, unet, vae, tuple(towers))
        return made[family]

    return make


@pytest.fixture
def copied(originals: Callable[[str], Original], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a family's folder that a test may spoil."""

    def copy(family: str = "sd1") -> Path:
        return Path(shutil.copytree(originals(family).folder, tmp_path / family))

    return copy


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(9))


def close(ours: Tensor, theirs: Tensor) -> None:
    top = float(theirs.abs().max())
    assert ours.shape == theirs.shape
    assert 0.1 < top < 1000
    assert float((ours - theirs).abs().max()) < TOLERANCE * top


@torch.no_grad()
def compare(model: Model, original: Original) -> None:
    """Every network against its original."""
    config = model.spec.unet
    x, context, t = draw(1, 4, 8, 8), draw(1, 9, config.context_channels), torch.tensor([501.0])
    extra, vector = {}, None
    if config.adm_channels:
        numbers = 6 if model.spec.adm == "sizes" else 5
        ids, pooled = torch.tensor([[64.0, 48.0, 0.0, 8.0, 6.0, 2.5][:numbers]]), draw(1, PROJECTION)
        extra["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
        vector = torch.cat([pooled, embed_timesteps(ids[0], model.spec.size_channels).reshape(1, -1)], dim=1)
    close(model.unet(x, t, context, vector=vector), original.unet(x, t, context, **extra).sample)
    picture = draw(1, 3, 16, 16)
    close(model.vae.decode(draw(1, 4, 8, 8)), original.vae.decode(draw(1, 4, 8, 8)).sample)
    close(model.vae.encode(picture).mean, original.vae.encode(picture).latent_dist.mean)
    for tower, spec, theirs in zip(model.text, model.spec.text, original.towers, strict=True):
        out = theirs(TOKENS, output_hidden_states=True)
        ours = tower(TOKENS, dtype=torch.float32, skip=spec.skip, final_norm=spec.final_norm, pooled=spec.pooled)
        if model.spec.adm == "none":
            close(ours.hidden, out.last_hidden_state)
        else:
            close(ours.hidden, out.hidden_states[-2])
        assert spec.pooled == ("text_embeds" in out)
        if spec.pooled:
            assert ours.pooled is not None
            close(ours.pooled, out.text_embeds)


def tensors_in(folder: Path) -> int:
    return sum(len(json.loads(header_of(path))) - 1 for path in folder.rglob("*.safetensors"))


def header_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


@pytest.mark.parametrize("family", UNETS)
def test_networks_equal_the_originals(family: str, originals: Any) -> None:
    original = originals(family)
    model = load_model(original.folder)
    assert (model.spec.family, model.spec.variant, model.spec.size) == (family, "base", 128)
    assert model.spec.latent.scale == 0.25
    assert (model.spec.noise.prediction, model.spec.noise.beta_end) == ("epsilon", 0.012)
    assert model.report.unknown == []
    assert sum(model.report.used.values()) + len(model.report.ignored) == tensors_in(original.folder)
    compare(model, original)


def test_a_slip_in_heads_or_activation_is_seen(originals: Any, copied: Any) -> None:
    for component, key, value in (
        ("unet", "attention_head_dim", 8),
        ("text_encoder", "num_attention_heads", 1),
        ("text_encoder", "hidden_act", "quick_gelu"),
    ):
        folder = copied()
        edit(folder / component / "config.json", **{key: value})
        with pytest.raises(AssertionError):
            compare(load_model(folder), originals("sd1"))
        shutil.rmtree(folder)


def edit(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | values), encoding="utf-8")


# --- weights under other file names


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards(variant: str | None, originals: Any, copied: Any) -> None:
    original = originals("sdxl")
    folder = copied("sdxl")
    parts = {"unet": original.unet, "vae": original.vae}
    parts |= dict(zip(("text_encoder", "text_encoder_2"), original.towers, strict=True))
    for name, network in parts.items():
        for file in (folder / name).glob("*.safetensors"):
            file.unlink()
        network.save_pretrained(folder / name, safe_serialization=True, max_shard_size="200KB", variant=variant)
        assert len(list((folder / name).glob("*-of-*.safetensors"))) > 1
    model = load_model(folder)
    assert model.report.unknown == []
    compare(model, original)
    spoil = next((folder / "unet").glob("*-00002-of-*"))
    spoil.unlink()
    refuse(folder, ModelNotFound, "00002.*does not exist")


def test_half_precision_files(originals: Any, copied: Any) -> None:
    folder = copied()
    for file in list(folder.rglob("*.safetensors")):
        file.rename(file.with_suffix(".fp16.safetensors"))
    compare(load_model(folder), originals("sd1"))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 30)
    refuse(folder, HeaderError, "not a safetensors file")  # the full one is taken where both are there


def test_names_of_transformers_4(originals: Any, copied: Any) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied()
    path = folder / "text_encoder" / "model.safetensors"
    state = load_file(path)
    assert "embeddings.token_embedding.weight" in state, "transformers 5 leaves text_model. away"
    older = {f"text_model.{name}": tensor for name, tensor in state.items()}
    save_file(older | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, path)
    model = load_model(folder)
    assert list(model.report.ignored) == ["text_encoder/model.safetensors: text_model.embeddings.position_ids"]
    compare(model, originals("sd1"))


# --- the scheduler's config


def test_the_scheduler_is_honoured(copied: Any) -> None:
    folder = copied()

    def noise(scheduler: Any) -> Any:
        scheduler.save_pretrained(folder / "scheduler")
        return load_model(folder).spec.noise

    def equal(found: Any, scheduler: Any) -> None:
        table = NoiseTable.from_config(found)
        alphas = scheduler.alphas_cumprod.double()
        expected = ((1 - alphas) / alphas).sqrt()
        torch.testing.assert_close(table.sigmas[:-1], expected[:-1], rtol=1e-4, atol=1e-6)

    v = DDIMScheduler(**SCHEDULER, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    found = noise(v)
    assert (found.prediction, found.zero_terminal_snr) == ("v", True)
    equal(found, v)
    linear = DDIMScheduler(beta_start=0.0002, beta_end=0.02, beta_schedule="linear", num_train_timesteps=400)
    found = noise(linear)
    assert (found.prediction, found.zero_terminal_snr, found.steps, found.beta_schedule) == (
        "epsilon",
        False,
        400,
        "linear",
    )
    equal(found, linear)
    trained = EulerDiscreteScheduler(trained_betas=[0.001, 0.002, 0.004, 0.01, 0.5])
    found = noise(trained)
    assert found.steps == 5
    equal(found, trained)
    for prediction, kind in (("epsilon", "edm"), ("v_prediction", "v")):
        edm = EDMDPMSolverMultistepScheduler(
            sigma_min=0.004, sigma_max=90.0, sigma_data=0.75, prediction_type=prediction
        )
        found = noise(edm)
        assert (found.prediction, found.continuous, found.sigma_data) == (kind, True, 0.75)
        assert (found.edm_sigma_min, found.edm_sigma_max) == (0.004, 90.0)
    shutil.rmtree(folder / "scheduler")
    plain = load_model(folder).spec.noise
    assert (plain.prediction, plain.steps, plain.beta_start, plain.beta_end) == ("epsilon", 1000, 0.00085, 0.012)
    assert load_model(folder, prediction="v").spec.noise.prediction == "v"


def test_latents_of_the_vae_config(copied: Any) -> None:
    folder = copied()
    mean, std = [0.1, -0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    edit(folder / "vae" / "config.json", latents_mean=mean, latents_std=std, scaling_factor=0.5)
    latent = load_model(folder).spec.latent
    assert (latent.scale, latent.mean, latent.std) == (0.5, tuple(mean), tuple(std))


WRONG: dict[str, tuple[str, dict[str, Any], type[AvilaError], str]] = {
    "sample prediction": ("scheduler/scheduler_config", {"prediction_type": "sample"}, Unsupported, "predicts samples"),
    "cosine betas": (
        "scheduler/scheduler_config",
        {"beta_schedule": "squaredcos_cap_v2"},
        Unsupported,
        "beta_schedule",
    ),
    "falling betas": ("scheduler/scheduler_config", {"beta_start": 0.5}, Unsupported, "rise between 0 and 1"),
    "words as betas": ("scheduler/scheduler_config", {"trained_betas": ["a", "b"]}, Unsupported, "trained_betas"),
    "groups": ("unet/config", {"norm_num_groups": 16}, Unsupported, "norm_num_groups 16"),
    "activation": ("unet/config", {"act_fn": "mish"}, Unsupported, "act_fn 'mish'"),
    "shift": ("vae/config", {"shift_factor": 0.1}, Unsupported, "shift_factor"),
    "heads of a list": ("unet/config", {"attention_head_dim": ["a", None]}, Unsupported, "heads"),
    "negative heads": ("unet/config", {"attention_head_dim": -4}, Unsupported, "heads"),
    "too many heads": ("unet/config", {"attention_head_dim": 7}, WeightMismatch, "attention heads"),
    "heads that differ": (
        "unet/config",
        {"attention_head_dim": [4, 8], "block_out_channels": [32, 32]},
        Unsupported,
        "the same where the channels are",
    ),
    "heads of the text": ("text_encoder/config", {"num_attention_heads": 0}, WeightMismatch, "does not divide into"),
}


@pytest.mark.parametrize("case", WRONG)
def test_settings_that_cannot_be_honoured_are_refused(case: str, copied: Any) -> None:
    name, values, error, words = WRONG[case]
    folder = copied()
    edit(folder / f"{name}.json", **values)
    refuse(folder, error, words)
    assert words.split()[-1] in inspect(folder).problem


def test_odd_values_in_configs_do_no_harm(originals: Any, copied: Any) -> None:
    odd: list[Any] = [None, True, "x", [], {}, -1, 1e308, float("nan"), 10**400, [None], ["a"], [1e999]]
    folder = copied()
    files = {
        "scheduler/scheduler_config.json": ("beta_start", "num_train_timesteps", "prediction_type", "_class_name"),
        "vae/config.json": ("scaling_factor", "latents_mean"),
        "unet/config.json": ("sample_size", "block_out_channels", "attention_head_dim", "num_attention_heads"),
        "text_encoder/config.json": ("num_attention_heads", "hidden_act"),
    }
    for name, keys in files.items():
        before = (folder / name).read_text(encoding="utf-8")
        for key in keys:
            for value in odd:
                edit(folder / name, **{key: value})
                found = inspect(folder)
                assert "\n" not in found.problem
                json.dumps(found.to_dict())
                (folder / name).write_text(before, encoding="utf-8")


# --- folders that cannot be used


def refuse(folder: Path, kind: type[AvilaError], words: str, **options: Any) -> None:
    with pytest.raises(kind, match=words) as caught:
        load_model(folder, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_missing_components(copied: Any, originals: Any) -> None:
    folder = copied("sdxl")
    shutil.rmtree(folder / "text_encoder")
    refuse(folder, MissingPart, r"has no text_encoder/, which its model_index\.json names; .*--text-encoder FILE")
    shutil.rmtree(folder / "vae")
    refuse(folder, MissingPart, r"has no vae/ and no text_encoder/, .*--text-encoder and --vae FILE")
    assert "no vae/ and no text_encoder/" in inspect(folder).problem
    given = originals("sdxl").folder
    encoders = [given / "text_encoder_2", given / "text_encoder"]
    compare(load_model(folder, vae=given / "vae", text_encoders=encoders), originals("sdxl"))
    compare(load_model(folder, vae=given, text_encoders=[given]), originals("sdxl"))
    (folder / "model_index.json").unlink()
    refuse(folder, MissingPart, "no VAE; .*--vae FILE", text_encoders=[given])
    shutil.rmtree(folder / "unet")
    refuse(folder, NotADiffusionModel, "has no unet/")
    with pytest.raises(NotADiffusionModel):
        inspect(folder)


def test_empty_and_pickled_components(copied: Any, originals: Any) -> None:
    folder = copied()
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "vae" / "diffusion_pytorch_model.bin")
    refuse(folder, PickleRefused, "vae holds only pickled weights; .*avila convert")
    given = originals("sd1").folder / "vae"
    compare(load_model(folder, vae=given), originals("sd1"))
    (folder / "vae" / "diffusion_pytorch_model.bin").unlink()
    refuse(folder, MissingPart, "vae has no safetensors files; expected diffusion_pytorch_model.safetensors")
    for name in ("one", "two"):
        shutil.copy(given / weights.name, folder / "vae" / f"{name}.safetensors")
    refuse(folder, MissingPart, "vae has 2 safetensors files")
    (folder / "vae" / "two.safetensors").unlink()
    compare(load_model(folder), originals("sd1"))


def test_damaged_json(copied: Any) -> None:
    folder = copied()
    for name in ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"):
        path = folder / name
        before = path.read_bytes()
        for content in (before[:40], b"", b"[1]", b"\xff\xfe{}", b"[" * 100_000, b"null"):
            path.write_bytes(content)
            refuse(folder, HeaderError, f"{path.name} (cannot be read as JSON|holds)")
        path.write_bytes(before)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "away")
    for shard in ("../../../etc/passwd", "..", "", "a\0b"):
        index.write_text(json.dumps({"weight_map": {"conv_in.weight": shard}}), encoding="utf-8")
        with pytest.raises(AvilaError) as caught:
            load_model(folder)
        assert isinstance(caught.value, FileProblem | ModelNotFound)
        assert "passwd does not exist" in str(caught.value) or shard != "../../../etc/passwd"
        assert "/etc/passwd" not in str(caught.value)


def test_other_pipelines_are_refused(copied: Any, originals: Any) -> None:
    folder = copied("sd2")
    shutil.rmtree(folder / "unet")
    unet = make_unet(
        1024, use_linear_projection=True, class_embed_type="projection", projection_class_embeddings_input_dim=64
    )
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    refuse(folder, Unsupported, "unCLIP")
    shutil.rmtree(folder / "unet")
    make_unet(64, in_channels=7, use_linear_projection=True).save_pretrained(folder / "unet", safe_serialization=True)
    refuse(folder, Unsupported, "takes 7 channels")


def test_inspect_a_folder(originals: Any) -> None:
    folder = originals("sdxl").folder
    found = inspect(folder)
    assert found.problem == ""
    assert (found.kind.key, found.tensors) == ("checkpoint", tensors_in(folder))
    assert found.dtypes == {"F32": found.tensors}
    assert found.bytes == sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert found.to_dict()["family"] == "sdxl"
    assert any("96 wide, 3 layers, 6 heads, gelu" in line for line in found.lines())
