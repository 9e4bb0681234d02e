"""LoRA files on tiny models against diffusers' and transformers' networks, into whose weights W + scale · B A is written
by hand; and what a picture says of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from avila_diffusion.api import AvilaDiffusion
from avila_diffusion.checkpoint import keys
from avila_diffusion.checkpoint.load import Model, load_model
from avila_diffusion.checkpoint.lora import apply as lora_apply
from avila_diffusion.checkpoint.lora import build
from avila_diffusion.checkpoint.lora.apply import apply_loras
from avila_diffusion.checkpoint.lora.files import Lora, read_lora
from avila_diffusion.checkpoint.lora.targets import name_targets
from avila_diffusion.checkpoint.safetensors import write_safetensors
from avila_diffusion.infotext import read
from avila_diffusion.models.weights import LowRank, OfRows
from avila_diffusion.text.conditioner import Conditioner

State = dict[str, Tensor]
PROMPT, SIDE, WEIGHT = "a (quiet) cat", 64, 0.7
RANK, ALPHA = 4, 3.0


def pair(shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """down and up for a layer, as the trainers shape them, of a size that shows."""
    kernel = (1, 1) if len(shape) == 4 else ()
    down = torch.randn(RANK, *shape[1:], generator=generator, dtype=torch.float64) / shape[1:].numel() ** 0.5
    return down.float(), (0.4 * torch.randn(shape[0], RANK, *kernel, generator=generator, dtype=torch.float64)).float()


def towers_of(reference: Any) -> list[tuple[str, Any]]:
    one = len(reference.towers) == 1
    return [("lora_te_" if one else f"lora_te{i}_", tower) for i, tower in enumerate(reference.towers, 1)]


def write_and_merge(reference: Any, path: Path) -> Path:
    """A file that changes every layer LoRA trainers change, by diffusers' own names, and the same change by hand."""
    generator = torch.Generator().manual_seed(5)
    state: State = {}
    for prefix, network in [("lora_unet_", reference.unet), *towers_of(reference)]:
        for name, layer in network.named_modules():
            if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) or name == "text_projection":
                continue
            module = prefix + name.replace(".", "_")
            down, up = pair(layer.weight.shape, generator)
            state |= {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}
            state[f"{module}.alpha"] = torch.tensor(ALPHA)
            change = (up.flatten(1).double() @ down.flatten(1).double()).reshape(layer.weight.shape)
            layer.weight.data += WEIGHT * ALPHA / RANK * change
    write_safetensors(path, state, {"ss_base_model_version": "sd_v1"})
    return path


def difference(model: Model, reference: Any) -> tuple[float, float]:
    """Of the text features and of the UNet's output for them, in float64, as a part of the reference's maximum."""
    context, pooled = reference.context(PROMPT)
    cpu = torch.device("cpu")
    with torch.no_grad():
        ours = Conditioner(model.spec, model.text, cpu, torch.float64).encode(PROMPT, width=SIDE, height=SIDE)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
        vector = ours.vector
        found = model.unet(x, torch.tensor([400.5], dtype=torch.float64), context, vector=vector)
    side = float(SIDE)
    wanted = reference.predict(x, 400.5, context, pooled, [side, side, 0.0, 0.0, side, side])
    return relative(ours.context, context), relative(found, wanted)


def relative(ours: Tensor, theirs: Tensor) -> float:
    top = float(theirs.abs().max())
    assert 0.1 < top < 1000
    return float((ours - theirs).abs().max()) / top


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_as_diffusers_networks_with_the_change_written_in(
    family: str, reference: Any, model_path: Any, tmp_path: Path
) -> None:
    model, theirs = load_model(model_path(family)), reference(family)
    path = write_and_merge(theirs, tmp_path / "all.safetensors")
    assert min(difference(model, theirs)) > 1e-2, "without the LoRA they differ"
    (report,) = apply_loras(model, [(read_lora(path), WEIGHT, WEIGHT)])
    assert max(difference(model, theirs)) < 1e-7
    assert report.convention == "kohya, diffusers names"
    assert (report.ranks, report.scales) == ((RANK,), (ALPHA / RANK,))
    assert sum(report.matched.values()) == len(read_lora(path).modules)
    assert list(report.matched)[-1] == "unet"


def without_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_lora

    def plain(path: Path) -> Lora:
        lora = read(path)
        modules = {name: replace(module, scale=1.0) for name, module in lora.modules.items()}
        return replace(lora, modules=modules)

    monkeypatch.setattr(f"{__name__}.read_lora", plain)


def swapped_thirds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "OPEN_CLIP_FUSED", ("self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj"))


def ignored_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_apply, "OfRows", lambda rows, delta: OfRows(slice(0, rows.stop - rows.start), delta))


def transposed(monkeypatch: pytest.MonkeyPatch) -> None:
    def turn(up: Tensor, down: Tensor, scale: float) -> LowRank:
        up, down = up.flatten(1), down.flatten(1)
        return LowRank(down.T, up.T, scale) if len(up) == down.shape[1] else LowRank(up, down, scale)

    monkeypatch.setattr(build, "LowRank", turn)


def one_block_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(model: Model, **options: bool) -> Any:
        targets = name_targets(model, **options)
        first, second = (f"lora_unet_up_blocks_1_attentions_{i}_proj_in" for i in (0, 1))
        return targets | {first: targets[second], second: targets[first]}

    monkeypatch.setattr(lora_apply, "name_targets", shifted)


@pytest.mark.parametrize("mistake", [without_alpha, swapped_thirds, ignored_rows, transposed, one_block_on])
def test_a_slip_is_seen(
    mistake: Callable[[pytest.MonkeyPatch], None],
    reference: Any,
    model_path: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, theirs = load_model(model_path("sd2")), reference("sd2")
    path = write_and_merge(theirs, tmp_path / "all.safetensors")
    mistake(monkeypatch)
    apply_loras(model, [(read_lora(path), WEIGHT, WEIGHT)])
    assert max(difference(model, theirs)) > 1e-4


@pytest.fixture
def lora_path(tiny_state: Callable[[str], State], tmp_path: Path) -> Path:
    """A LoRA on one layer of the UNet and one of the text tower."""
    name = "input_blocks_1_1_transformer_blocks_0_attn2_to_k"
    parts = {f"lora_unet_{name}": (64, 64), "lora_te_text_model_encoder_layers_0_mlp_fc1": (128, 64)}
    state, generator = {}, torch.Generator().manual_seed(3)
    for module, (out, width) in parts.items():
        state[f"{module}.lora_up.weight"] = torch.randn(out, 2, generator=generator)
        state[f"{module}.lora_down.weight"] = torch.randn(2, width, generator=generator)
    path = tmp_path / "Lora" / "my style, v1.5.safetensors"
    path.parent.mkdir()
    write_safetensors(path, state, {"ss_network_dim": "2"})
    return path


def make(path: Path, **options: Any) -> Any:
    diffusion = AvilaDiffusion.with_model(path, steps=1, sampler="Euler", seed=1, **options)
    return diffusion.text_to_image("a cat", "rain", 64, 64)


def test_a_picture_says_which_loras_made_it(model_path: Any, lora_path: Path) -> None:
    result = make(model_path("sd1"), lora=(lora_path, 0.8))
    raw = lora_path.read_bytes()
    digest = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()[:12]
    parsed = read(result[0].infotext or "")
    assert parsed.fields["Lora hashes"] == f"my style v1.5: {digest}"
    assert parsed.prompt == "a cat <lora:my style v1.5:0.8>"
    assert parsed.negative_prompt == "rain"
    assert result.request.prompt == "a cat"
    plain = make(model_path("sd1"))
    assert (result.to_numpy() != plain.to_numpy()).any()
    assert "ora" not in (plain[0].infotext or "")


def test_loras_from_python(model_path: Any, lora_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVILA_MODELS", str(lora_path.parent.parent))
    path = model_path("sd1")
    by_name = make(path, lora="my style, v1.5")
    assert by_name.to_numpy().tobytes() == make(path, lora=[(lora_path, 1)], mmap=False).to_numpy().tobytes()
    twice = make(path, lora=[(lora_path, 0.5), lora_path])
    assert read(twice[0].infotext or "").prompt == "a cat <lora:my style v1.5:0.5> <lora:my style v1.5:1>"
    assert read(twice[0].infotext or "").fields["Lora hashes"].count("my style") == 1
    assert [decision.value for decision in twice.report.decisions if decision.what == "LoRA"] == [
        "my style, v1.5.safetensors, weight 0.5",
        "my style, v1.5.safetensors, weight 1",
    ]
    assert (by_name.to_numpy() != twice.to_numpy()).any()
    assert make(path, lora=[(lora_path, 0)]).to_numpy().tobytes() == make(path, lora=[]).to_numpy().tobytes()


def test_a_lora_replaced_after_loading_lends_no_hash(model_path: Any, lora_path: Path) -> None:
    diffusion = AvilaDiffusion.with_model(model_path("sd1"), lora=lora_path, steps=1)
    other = lora_path.with_name("other")
    write_safetensors(other, {"x": torch.zeros(1)})
    other.replace(lora_path)
    infotext = diffusion.text_to_image("a cat", None, 64, 64)[0].infotext or ""
    assert "<lora:my style v1.5:1>" in infotext
    assert "Lora hashes" not in infotext
