"""LoRA files that are pickled, damaged in their numbers, or written by programs with a way of their own."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from avila_diffusion.api import AvilaDiffusion
from avila_diffusion.checkpoint.inspection import inspect
from avila_diffusion.checkpoint.load import Model, load_model
from avila_diffusion.checkpoint.lora.apply import apply_loras, remove_loras
from avila_diffusion.checkpoint.lora.files import read_lora
from avila_diffusion.checkpoint.lora.targets import name_targets
from avila_diffusion.errors import (
    AvilaError,
    HeaderError,
    NotADiffusionModel,
    PickleRefused,
    RequestError,
    WeightMismatch,
)
from avila_diffusion.hashes import hash_in_background

State = dict[str, Tensor]
Save = Callable[..., Path]
MATERIAL = Path(__file__).resolve().parents[3] / "shared" / "material"
QUERY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
DOWN, UP = f"{QUERY}.lora_down.weight", f"{QUERY}.lora_up.weight"


@pytest.fixture(scope="module")
def sd1(request: pytest.FixtureRequest) -> Model:
    return load_model(request.getfixturevalue("tiny_checkpoint")("sd1"))


def effective(model: Model, name: str, part: str = "parameter") -> Tensor:
    target = name_targets(model, every=True)[name]
    found = target.layer.effective(getattr(target, part), torch.zeros(1))
    assert found is not None
    return found.clone()


def in_blocks(*blocks: Tensor) -> Tensor:
    found: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return found


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


# Pickled files


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickled_file_is_as_good(legacy: bool, wrapped: bool, sd1: Model, save_state: Save, tmp_path: Path) -> None:
    """A transposed tensor and one of an odd place in its storage among them."""
    state = {DOWN: drawn(64, 4).T, UP: drawn(65, 4)[1:].half(), f"{QUERY}.alpha": torch.tensor(2.0)}
    remove_loras(sd1)
    plain = effective(sd1, QUERY)
    apply_loras(sd1, [(read_lora(save_state(state)), 1.0, 0.5)])
    wanted = effective(sd1, QUERY)
    path = tmp_path / "other.bin"
    torch.save({"state_dict": state, "step": 3} if wrapped else state, path, _use_new_zipfile_serialization=not legacy)
    (report,) = apply_loras(sd1, [(read_lora(path), 1.0, 0.5)], mapped=False)
    assert torch.equal(effective(sd1, QUERY), wanted) and not torch.equal(wanted, plain)
    assert report.matched == {"unet": 1} and report.scales == (0.5,) and report.unchanged
    remove_loras(sd1)
    assert torch.equal(effective(sd1, QUERY), plain)
    found = inspect(path)
    assert found.kind.key == "lora" and found.to_dict()["lora"]["ranks"] == [4] and not found.problem


def test_a_pickled_file_is_hashed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVILA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "one.pt"
    torch.save({DOWN: drawn(4, 64), UP: drawn(64, 4)}, path)
    found = hash_in_background(path, tensors_only=True)
    assert found.short(10) == hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def test_what_a_pickled_file_must_not_be(sd1: Model, tmp_path: Path, payloads: Any, sentinel: Path) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(payloads["REDUCE"])
    with pytest.raises((PickleRefused, NotADiffusionModel)):
        read_lora(path)
    with pytest.raises(PickleRefused, match="convert"):
        inspect(path)
    torch.save({DOWN: drawn(4, 64), UP: drawn(64, 4), f"{QUERY}.alpha": 2.0}, path)
    with pytest.raises(WeightMismatch, match=r"alpha' is .*, expected a tensor"):  # losing it would double the change
        read_lora(path)
    torch.save({"conv.weight": drawn(4, 4)}, path)
    with pytest.raises(NotADiffusionModel):
        read_lora(path)
    torch.save({DOWN: drawn(4, 64), UP: drawn(64, 4)}, path)
    lora = read_lora(path)
    torch.save({DOWN: drawn(4, 64), UP: drawn(64, 4), f"{QUERY}.alpha": torch.tensor(1.0)}, path)
    with pytest.raises(HeaderError, match="was changed on disk"):
        apply_loras(sd1, [(lora, 1.0, 1.0)])
    raw = path.read_bytes()
    for cut in range(0, len(raw), 97):
        path.write_bytes(raw[:cut])
        with pytest.raises(AvilaError):
            read_lora(path)
    assert not sentinel.exists()


@pytest.mark.skipif(not (MATERIAL / "lora").is_dir(), reason="the real LoRA files are not here")
def test_a_real_pickled_file(manifest: Any, write_layout: Any, tmp_path: Path) -> None:
    model = load_model(write_layout(tmp_path / "model.safetensors", manifest("sd1")))  # its weights are 0
    path = MATERIAL / "lora" / "diffusers_attnprocs_rank4_other.bin"
    (report,) = apply_loras(model, [(read_lora(path), 1.0, 1.0)])
    assert report.matched == {"unet": 128} and report.share == 1 and report.family == "sd1"
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    name = "up_blocks.3.attentions.2.transformer_blocks.0.attn2.processor.to_v_lora"
    found = effective(model, "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_v")
    torch.testing.assert_close(found, theirs[f"{name}.up.weight"] @ theirs[f"{name}.down.weight"])


# Numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_numbers_that_are_none(value: float, dtype: torch.dtype, sd1: Model, save_state: Save) -> None:
    state = {DOWN: drawn(4, 64).to(dtype), UP: drawn(64, 4).to(dtype)}
    state[UP].view(-1)[77] = value
    remove_loras(sd1)
    plain = effective(sd1, QUERY)
    with pytest.raises(WeightMismatch, match=r"model.safetensors: .*attn1_to_q.lora_up\S* holds NaN or infinity"):
        apply_loras(sd1, [(read_lora(save_state(state)), 1.0, 1.0)])
    assert torch.equal(effective(sd1, QUERY), plain)


def test_a_vector_is_no_difference_of_a_matrix(sd1: Model, save_state: Save) -> None:
    for leaf in ("w_norm", "diff"):
        with pytest.raises(WeightMismatch, match=r"\[64\], expected one for \[64, 64\]"):
            apply_loras(sd1, [(read_lora(save_state({f"{QUERY}.{leaf}": drawn(64)})), 1.0, 1.0)])


def test_many_embeddings_beside_it_take_little_time(save_state: Save) -> None:
    state = {f"<s{number}>": torch.zeros(1) for number in range(30_000)} | {DOWN: drawn(4, 64), UP: drawn(64, 4)}
    path = save_state(state)
    begun = time.process_time()
    assert len(read_lora(path).embeddings) == 30_000
    assert time.process_time() - begun < 2  # 4 s and more where each name is looked up in a list


def test_names_that_would_write_on_the_terminal_are_escaped(sd1: Model, save_state: Save) -> None:
    state = {f"lora_unet_\x1b[2J.{leaf}": drawn(4, 4) for leaf in ("lora_down.weight", "lora_up.weight")}
    with pytest.raises(WeightMismatch) as caught:
        apply_loras(sd1, [(read_lora(save_state(state)), 1.0, 1.0)])
    assert "\x1b" not in str(caught.value) and "x1b[2J" in str(caught.value)


# Programs with a way of their own


def test_oft_as_kohya_names_it(sd1: Model, save_state: Save) -> None:
    """By hand: R = (1 + Q)(1 - Q)^-1 of each block, the length of all Q held to alpha times the rows, Rᵀ W."""
    blocks, alpha = 0.2 * drawn(4, 16, 16), 0.01
    name = QUERY.replace("lora_unet_", "oft_unet_")
    remove_loras(sd1)
    plain = effective(sd1, QUERY)
    state = {f"{name}.oft_blocks": blocks, f"{name}.alpha": torch.tensor(alpha)}
    (report,) = apply_loras(sd1, [(read_lora(save_state(state)), 1.0, 0.7)])
    assert report.kinds == ("OFT",) and report.convention.startswith("kohya")
    skew = (blocks - blocks.mT).double()
    skew *= alpha * 64 / skew.norm()
    one = torch.eye(16, dtype=torch.float64)
    turn = in_blocks(*((one + q) @ torch.linalg.inv(one - q) for q in skew))
    torch.testing.assert_close(
        effective(sd1, QUERY), (0.3 * plain + 0.7 * turn.T @ plain.double()).float(), rtol=1e-5, atol=1e-6
    )
    (report,) = apply_loras(sd1, [(read_lora(save_state({f"{QUERY}.oft_diag": blocks})), 1.0, 0.7)])  # R itself
    torch.testing.assert_close(effective(sd1, QUERY), 0.3 * plain + 0.7 * in_blocks(*blocks).T @ plain)
    assert report.kinds == ("OFT",)
    remove_loras(sd1)


def peft_layer(model: Model) -> tuple[Any, str, str]:
    """(a network of one linear layer with a bias, under diffusers' name; that name; kohya's) with the model's weights."""
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    kohya = "lora_unet_" + name.replace(".", "_")
    remove_loras(model)
    net: Any = torch.nn.Module()
    at = net
    *path, last = name.split(".")
    for part in path:
        at.add_module(part, torch.nn.Module())
        at = getattr(at, part)
    at.add_module(last, torch.nn.Linear(64, 64))
    layer = net.get_submodule(name)
    layer.weight.data.copy_(effective(model, kohya))
    layer.bias.data.copy_(effective(model, kohya, "bias"))
    return net, name, kohya


@pytest.mark.filterwarnings("ignore:.*tensor.s. have invalid shape")  # PEFT doubts its own bias
def test_a_bias_behind_the_product(sd1: Model, tmp_path: Path) -> None:
    """PEFT's `lora_bias`."""
    peft = pytest.importorskip("peft")
    net, name, kohya = peft_layer(sd1)
    model = peft.get_peft_model(
        net, peft.LoraConfig(r=4, lora_alpha=6, target_modules=["to_out.0"], lora_bias=True, init_lora_weights=False)
    )
    with torch.no_grad():
        model.base_model.model.get_submodule(name).lora_B["default"].bias.copy_(drawn(64))
    model.save_pretrained(tmp_path)
    (report,) = apply_loras(sd1, [(read_lora(tmp_path / "adapter_model.safetensors"), 1.0, 1.0)])
    assert report.matched == {"unet": 1} and report.scales == (1.5,)
    merged = model.merge_and_unload().get_submodule(name)
    torch.testing.assert_close(effective(sd1, kohya), merged.weight.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(effective(sd1, kohya, "bias"), merged.bias.detach(), rtol=1e-6, atol=1e-6)
    remove_loras(sd1)


@pytest.mark.parametrize("feedforward", [False, True])
def test_ia3_of_peft(feedforward: bool, sd1: Model, tmp_path: Path) -> None:
    """Of rows it scales the bias too."""
    peft = pytest.importorskip("peft")
    net, name, kohya = peft_layer(sd1)
    config = peft.IA3Config(target_modules=["to_out.0"], feedforward_modules=["to_out.0"] if feedforward else [])
    model = peft.get_peft_model(net, config)
    with torch.no_grad():
        factors = model.base_model.model.get_submodule(name).ia3_l["default"]
        factors.copy_(drawn(*factors.shape))
    model.save_pretrained(tmp_path)
    plain = effective(sd1, kohya)
    lora = read_lora(tmp_path / "adapter_model.safetensors")
    (report,) = apply_loras(sd1, [(lora, 1.0, 1.0)])
    assert report.matched == {"unet": 1} and report.kinds == ("IA3",) and report.convention == "PEFT"
    whole = effective(sd1, kohya)
    merged = model.merge_and_unload().get_submodule(name)
    torch.testing.assert_close(whole, merged.weight.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(effective(sd1, kohya, "bias"), merged.bias.detach(), rtol=1e-6, atol=1e-6)
    apply_loras(sd1, [(lora, 1.0, 0.5)])
    torch.testing.assert_close(effective(sd1, kohya), plain.lerp(whole, 0.5))
    remove_loras(sd1)


@pytest.mark.parametrize("prefix", ["lora_te2_", "lora_te2.", "text_encoder_2.", "text_encoders.clip_g.transformer."])
def test_the_projection_of_the_second_tower(
    prefix: str, save_state: Save, tiny_checkpoint: Any, run_networks: Any
) -> None:
    """As OneTrainer and ComfyUI write it: transformers' linear layer, whose weight is the transpose of OpenCLIP's."""
    model = load_model(tiny_checkpoint("sdxl"))
    before = run_networks(model)
    plain = effective(model, "lora_te2_text_projection")
    down, up = drawn(4, 64), drawn(64, 4)
    state = {f"{prefix}text_projection.lora_down.weight": down, f"{prefix}text_projection.lora_up.weight": up}
    (report,) = apply_loras(model, [(read_lora(save_state(state)), 0.5, 0.0)])
    assert report.matched == {"text encoder 2": 1}
    torch.testing.assert_close(effective(model, "lora_te2_text_projection"), plain + 0.5 * (up @ down).T)
    changed = {name for name, value in run_networks(model).items() if not torch.equal(value, before[name])}
    assert len(changed) == 1 and "pooled" in changed.pop()
    with pytest.raises(WeightMismatch, match="without a bias"):
        apply_loras(model, [(read_lora(save_state(state | {f"{prefix}text_projection.diff_b": drawn(64)})), 1.0, 1.0)])
    remove_loras(model)
    assert all(torch.equal(value, before[name]) for name, value in run_networks(model).items())


def test_a_share_that_must_match(sd1: Model, save_state: Save, tiny_checkpoint: Any) -> None:
    state = {DOWN: drawn(4, 64), UP: drawn(64, 4)} | {
        f"lora_unet_nowhere{number}.{leaf}": drawn(4, 4)
        for number in range(3)
        for leaf in ("lora_down.weight", "lora_up.weight")
    }
    path = save_state(state)
    lora = read_lora(path)
    for enough in (0, 0.1, 0.25):
        (report,) = apply_loras(sd1, [(lora, 1.0, 1.0)], min_match=enough)
        assert report.share == 0.25 and len(report.unmatched) == 3
    with pytest.raises(WeightMismatch, match=r"in 3 of 4 layers: .*25% of it fits, at least 26% is asked for"):
        apply_loras(sd1, [(lora, 1.0, 1.0)], min_match=0.26)
    remove_loras(sd1)
    AvilaDiffusion.with_model(sd1.path, lora=path, min_match=0.2)
    with pytest.raises(WeightMismatch):
        AvilaDiffusion.with_model(sd1.path, lora=path)
    for odd in (1.5, -0.1, float("nan"), "0.5", True, None):
        with pytest.raises(RequestError, match=r"min_match is .* from 0 to 1"):
            AvilaDiffusion.with_model(sd1.path, lora=path, min_match=odd)  # type: ignore[arg-type]
