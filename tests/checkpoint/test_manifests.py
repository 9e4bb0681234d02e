"""Every released layout: recognised from its header, and our built networks have its names and shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avila_diffusion.checkpoint.inspection import inspect
from avila_diffusion.checkpoint.keys import unet_from_diffusers, vae_from_diffusers
from avila_diffusion.checkpoint.load import load_model
from avila_diffusion.errors import NotADiffusionModel

FACTS = {
    # manifest: family, variant, UNet tensors, towers
    "sd1": ("sd1", "base", 512, 1),
    "sd1_inpainting": ("sd1", "inpainting", 512, 1),
    "sd1_instruct_pix2pix": ("sd1", "pix2pix", 512, 1),
    "sd2": ("sd2", "base", 512, 1),
    "sd2_inpainting": ("sd2", "inpainting", 512, 1),
    "sd2_depth": ("sd2", "depth", 512, 1),
    "sdxl_base": ("sdxl", "base", 1024, 2),
    "sdxl_refiner": ("sdxl_refiner", "base", 1024, 1),
}
OPTIONAL = ("position_ids", "logit_scale")
"""Endings of tensors that released files hold and no network needs; and the depth estimator of the depth model."""


@pytest.mark.parametrize("name", FACTS)
def test_inspect_names_the_family(name: str, manifest: Any, write_layout: Any, tmp_path: Path) -> None:
    path = write_layout(tmp_path / "model.safetensors", manifest(name))
    found = inspect(path)
    assert found.problem == ""
    assert found.report is not None
    assert (found.report.family, found.report.variant) == FACTS[name][:2]
    assert found.report.prediction == "epsilon"
    assert found.report.unknown == []
    assert found.tensors == len(manifest(name))


@pytest.mark.parametrize("name", FACTS)
def test_built_networks_have_the_names_and_shapes(name: str, manifest: Any, write_layout: Any, tmp_path: Path) -> None:
    shapes = manifest(name)
    model = load_model(write_layout(tmp_path / "model.safetensors", shapes))
    assert model.spec.size == FACTS[name][2]
    assert len(model.text) == FACTS[name][3]
    built = {f"model.diffusion_model.{k}": tuple(v.shape) for k, v in model.unet.named_parameters()}
    built |= {f"first_stage_model.{k}": tuple(v.shape) for k, v in model.vae.named_parameters()}
    towers = {"sdxl_base": ("0.transformer.", "1.model."), "sdxl_refiner": ("0.model.",)}.get(name, ())
    prefixes = [f"conditioner.embedders.{tower}" for tower in towers] or [
        "cond_stage_model.transformer." if name.startswith("sd1") else "cond_stage_model.model."
    ]
    for prefix, tower in zip(prefixes, model.text, strict=True):
        built |= {prefix + k: tuple(v.shape) for k, v in tower.named_parameters()}
    needed = {k: v for k, v in shapes.items() if not k.endswith(OPTIONAL) and not k.startswith("depth_model.")}
    assert built == needed
    left = set(shapes) - set(needed)
    assert set(model.report.ignored) == left, "what is not needed is named, with a reason"


@pytest.mark.parametrize(
    ("folder", "single"),
    [("v1-5", "sd1"), ("2-1", "sd2"), ("xl-base-1.0", "sdxl_base"), ("xl-refiner-1.0", "sdxl_refiner")],
)
def test_diffusers_names_are_translated_in_full(folder: str, single: str, manifest: Any) -> None:
    released = manifest(single)
    for part, prefix, translate in (
        ("unet", "model.diffusion_model.", unet_from_diffusers),
        ("vae", "first_stage_model.", vae_from_diffusers),
    ):
        theirs = manifest(f"diffusers__stable-diffusion-{folder}__{part}")
        names = translate(theirs)
        assert set(names.values()) == set(theirs), "none is lost"
        assert {prefix + name for name in names} == {name for name in released if name.startswith(prefix)}
        for ours, name in names.items():
            shape, wanted = theirs[name], released[prefix + ours]
            assert shape == wanted or (*shape, 1, 1) == wanted


@pytest.mark.parametrize(("name", "kind"), [("controlnet_v1", "controlnet"), ("kl_f8_vae", "vae")])
def test_other_files_are_told_apart(name: str, kind: str, manifest: Any, write_layout: Any, tmp_path: Path) -> None:
    path = write_layout(tmp_path / "other.safetensors", manifest(name))
    assert inspect(path).kind.key == kind
    with pytest.raises(NotADiffusionModel, match="is not a Stable Diffusion checkpoint; it looks like a"):
        load_model(path)


KINDS = {
    "lora": [
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight",
        "lora_unet_down_blocks_0_attentions_0_proj_in.alpha",
    ],
    "embedding": ["emb_params"],
    "flux": ["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"],
    "sd3": ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"],
    "video": [
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight",
    ],
    "text_encoder": ["text_model.embeddings.token_embedding.weight", "text_model.encoder.layers.0.mlp.fc1.weight"],
    "upscaler": ["conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight"],
    "language_model": ["model.layers.0.self_attn.q_proj.weight"],
    "unknown": ["banana.weight"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_by_name(kind: str, write_layout: Any, tmp_path: Path) -> None:
    path = write_layout(tmp_path / "file.safetensors", dict.fromkeys(KINDS[kind], (4, 4)))
    found = inspect(path)
    assert found.kind.key == kind
    json.dumps(found.to_dict())
    assert found.lines()
    with pytest.raises(NotADiffusionModel):
        load_model(path)
