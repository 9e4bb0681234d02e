"""LoRA files: names generated, shapes checked, changes laid beside weights whose bytes stay, everything else refused."""

from __future__ import annotations

import math
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from avila_diffusion.api import AvilaDiffusion
from avila_diffusion.checkpoint.keys import unet_from_diffusers, unet_to_diffusers
from avila_diffusion.checkpoint.load import Model, load_model
from avila_diffusion.checkpoint.lora.apply import apply_loras, remove_loras
from avila_diffusion.checkpoint.lora.files import Lora, read_lora
from avila_diffusion.checkpoint.lora.targets import name_targets
from avila_diffusion.errors import (
    AvilaError,
    HeaderError,
    ModelNotFound,
    NotADiffusionModel,
    RequestError,
    Unsupported,
    WeightMismatch,
)
from avila_diffusion.models.layers import Conv2d, Linear, Upsample, keep_derived
from avila_diffusion.models.weights import LowRank, OfRows

State = dict[str, Tensor]
Save = Callable[..., Path]
UNET = "model.diffusion_model."
TO_K = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"
CONV = "lora_unet_input_blocks_1_0_in_layers_2"
FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(*shape: int, seed: int = 0) -> Tensor:
    noise: Tensor = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return noise / math.sqrt(shape[-1])


def module(name: str, rows: int, *inner: int, rank: int = 4, alpha: float | None = 2.0, seed: int = 0) -> State:
    """A LoRA module of one layer, as sd-scripts shapes it."""
    kernel = (1, 1) if len(inner) > 1 else ()
    state = {
        f"{name}.lora_down.weight": draw(rank, *inner, seed=2 * seed),
        f"{name}.lora_up.weight": draw(rows, rank, *kernel, seed=2 * seed + 1),
    }
    return state if alpha is None else {**state, f"{name}.alpha": torch.tensor(alpha)}


def change_of(state: State, name: str, shape: tuple[int, ...], weight: float = 1.0) -> Tensor:
    """weight · alpha / rank · B A by hand, in float64."""
    up, down = (state[f"{name}.lora_{part}.weight"].double().flatten(1) for part in ("up", "down"))
    alpha = float(state.get(f"{name}.alpha", torch.tensor(float(len(down)))))
    return (weight * alpha / len(down) * torch.einsum("or,ri->oi", up, down)).reshape(shape)


@pytest.fixture
def sd1(tiny_checkpoint: Callable[[str], Path]) -> Model:
    return load_model(tiny_checkpoint("sd1"))


@pytest.fixture
def lora(save_state: Save) -> Lora:
    """On a matrix and a convolution of the UNet and a matrix of the text tower."""
    state = module(TO_K, 64, 64) | module(CONV, 64, 64, 3, 3, seed=1) | module(FC1, 128, 64, alpha=None, seed=2)
    return read_lora(save_state(state, "lora.safetensors", ss_network_dim="4", ss_base_model_version="sd_v1"))


# Names


@pytest.mark.parametrize(
    ("folder", "single"),
    [("v1-5", "sd1"), ("2-1", "sd2"), ("xl-base-1.0", "sdxl_base"), ("xl-refiner-1.0", "sdxl_refiner")],
)
def test_diffusers_names_of_released_unets(folder: str, single: str, manifest: Any) -> None:
    ours = [name.removeprefix(UNET) for name in manifest(single) if name.startswith(UNET)]
    theirs = manifest(f"diffusers__stable-diffusion-{folder}__unet")
    found = unet_to_diffusers(ours)
    assert {name: found[name] for name in theirs} == {name: own for own, name in unet_from_diffusers(theirs).items()}
    assert {name.partition(".")[0] for name in set(found) - set(theirs)} <= {"class_embedding"}


@pytest.mark.parametrize(
    ("name", "unet_layers", "some"),
    [
        # as many layers of the UNet as sd-scripts counts when it trains these models
        ("sd1", 192, ["lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn1_to_out_0",
                      "lora_te_text_model_encoder_layers_11_mlp_fc2"]),
        ("sd2", 192, ["lora_unet_mid_block_attentions_0_proj_out", "lora_te_text_model_encoder_layers_22_self_attn_v_proj"]),
        ("sdxl_base", 722, ["lora_unet_output_blocks_2_1_transformer_blocks_9_ff_net_0_proj",
                            "lora_unet_down_blocks_2_attentions_1_transformer_blocks_9_ff_net_0_proj",
                            "lora_te1_text_model_encoder_layers_11_self_attn_k_proj",
                            "lora_te2_text_model_encoder_layers_31_self_attn_q_proj"]),
    ],
)  # fmt: skip
def test_kohyas_names(
    name: str, unet_layers: int, some: list[str], manifest: Any, write_layout: Any, tmp_path: Path
) -> None:
    targets = name_targets(load_model(write_layout(tmp_path / "model.safetensors", manifest(name))))
    assert [wanted for wanted in some if wanted not in targets] == []
    kinds = ("proj_in", "proj_out", "ff_net_0_proj", "ff_net_2", *(f"to_{part}" for part in ("q", "k", "v", "out_0")))
    for beginning in ("lora_unet_(down|mid|up)_block", "lora_unet_(input|middle|output)_block"):
        names = [one for one in targets if re.match(beginning, one) and one.endswith(kinds)]
        assert len(names) == unet_layers
        assert len({id(targets[one].layer) for one in names}) == unet_layers


# What is added


@pytest.mark.parametrize(("compute", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("kept", [True, False])
def test_matrices_and_convolutions(compute: torch.dtype, tolerance: float, source: torch.dtype, kept: bool) -> None:
    for layer, shape in ((Linear(6, 10), (10, 6)), (Conv2d(6, 10, 3, padding=1), (10, 6, 3, 3))):
        state = module("m", shape[0], *shape[1:])
        weight = draw(*shape).to(source)
        layer.weight, layer.bias = (torch.nn.Parameter(t, requires_grad=False) for t in (weight, torch.zeros(10)))
        keep_derived(layer, None if kept else 0)
        x = torch.ones(1, 6, dtype=compute) if len(shape) == 2 else torch.ones(1, 6, 4, 4, dtype=compute)
        before = layer(x)
        up, down = state["m.lora_up.weight"], state["m.lora_down.weight"].to(torch.bfloat16)
        state["m.lora_down.weight"] = down
        layer.change("weight", [LowRank(up, down, 0.7 * 0.5)])
        wanted = weight.double() + change_of(state, "m", shape, 0.7)
        found = layer.effective("weight", x)
        assert found is not None and found.dtype == compute
        assert float((found.double() - wanted).abs().max()) <= tolerance
        assert not torch.equal(layer(x), before)
        layer.change("weight", [])
        assert torch.equal(layer(x), before)
        assert layer.weight.dtype == source and not list(layer.buffers())


def test_half_precision_is_rounded_once() -> None:
    layer = Linear(8, 8, bias=False)
    layer.weight = torch.nn.Parameter(draw(8, 8).half(), requires_grad=False)
    deltas = [LowRank(draw(8, 2, seed=seed), draw(2, 8, seed=seed + 9), 0.01) for seed in range(1, 6)]
    layer.change("weight", deltas)
    exact = layer.weight.double() + sum(0.01 * delta.up.double() @ delta.down.double() for delta in deltas)
    found = layer.effective("weight", torch.ones(1, dtype=torch.float16))
    assert found is not None and torch.equal(found, exact.half())


def test_rows_and_a_kernel_between() -> None:
    fused = Linear(6, 9, bias=False)
    fused.weight = torch.nn.Parameter(draw(9, 6), requires_grad=False)
    up, down = draw(3, 2, seed=1), draw(2, 6, seed=2)
    fused.change("weight", [OfRows(slice(3, 6), LowRank(up, down, 1.0))])
    found = fused.effective("weight", torch.ones(1))
    assert found is not None
    assert torch.equal(found[:3], fused.weight[:3]) and torch.equal(found[6:], fused.weight[6:])
    torch.testing.assert_close(found[3:6], fused.weight[3:6] + up @ down)

    conv = Conv2d(4, 5, 3, padding=1)
    conv.weight, conv.bias = (torch.nn.Parameter(t, requires_grad=False) for t in (draw(5, 4, 3, 3), torch.zeros(5)))
    x = draw(1, 4, 7, 7)
    plain = conv(x)
    down, mid, up = draw(2, 4, 1, 1), draw(3, 2, 3, 3), draw(5, 3, 1, 1)
    conv.change("weight", [LowRank(up, down, 0.5, mid)])
    convolve = torch.nn.functional.conv2d
    through = convolve(convolve(convolve(x, down), mid, padding=1), up)
    torch.testing.assert_close(conv(x), plain + 0.5 * through)


def test_transformed_weights_see_the_change() -> None:
    block = Upsample(4)
    conv = block.conv
    conv.weight, conv.bias = (torch.nn.Parameter(t, requires_grad=False) for t in (draw(4, 4, 3, 3), torch.zeros(4)))
    x = draw(1, 4, 5, 5)
    before = block(x)
    conv.change("weight", [LowRank(draw(4, 2, 1, 1), draw(2, 4, 3, 3), 1.0)])
    after = block(x)
    torch.testing.assert_close(after, conv(torch.nn.functional.interpolate(x, scale_factor=2.0)))
    assert float((after - before).abs().max()) > 1e-2
    conv.restore()
    assert torch.equal(block(x), before)


def test_gradients_pass_beside_the_change() -> None:
    layer = Linear(3, 2, bias=False)
    layer.weight = torch.nn.Parameter(draw(2, 3))
    layer.change("weight", [LowRank(draw(2, 1), draw(1, 3), 2.0)])
    x = draw(1, 3)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, x.expand(2, 3))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ (layer.weight + 2 * draw(2, 1) @ draw(1, 3)).T)


# On a model


def test_a_model_as_if_the_change_were_in_its_file(
    sd1: Model, lora: Lora, tiny: Any, save_state: Save, run_networks: Any
) -> None:
    (report,) = apply_loras(sd1, [(lora, 0.5, -2.0)])
    state = tiny("sd1")
    merged = {name: tensor.half().double() for name, tensor in state.items()}
    parts = load_file(lora.path)
    for name, key, weight in (
        (TO_K, f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", -2.0),
        (CONV, f"{UNET}input_blocks.1.0.in_layers.2.weight", -2.0),
        (FC1, "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight", 0.5),
    ):
        merged[key] = merged[key] + change_of(parts, name, tuple(merged[key].shape), weight)
    wanted = run_networks(load_model(save_state(merged, avila__family="sd1")))
    for name, value in run_networks(sd1).items():
        torch.testing.assert_close(value, wanted[name], atol=2e-5, rtol=2e-5)
    assert report.to_dict() == {
        "path": str(lora.path),
        "name": "lora",
        "kinds": ["LoRA", "LoCon"],
        "convention": "kohya, single-file names",
        "ranks": [4],
        "scales": [0.5, 1.0],
        "family": "sd1",
        "text_weight": 0.5,
        "unet_weight": -2.0,
        "dyn": None,
        "uncut": 0,
        "matched": {"text encoder 1": 1, "unet": 2},
        "unmatched": [],
        "mis_shaped": [],
        "share": 1.0,
        "embeddings": [],
    }
    assert report.describe() == (
        "LoRA, LoCon, kohya, single-file names, rank 4, alpha / rank 0.5, 1, "
        "changes 1 of the text encoder 1 and 2 of the unet, trained on 'sd_v1'"
    )


def test_removing_gives_the_same_bytes(sd1: Model, lora: Lora, run_networks: Any) -> None:
    before = run_networks(sd1)
    bytes_before = {name: weight.clone() for name, weight in sd1.unet.named_parameters()}
    apply_loras(sd1, [(lora, 1, 1)])
    changed = run_networks(sd1)
    assert not torch.equal(changed["unet"], before["unet"])
    assert not torch.equal(changed["text 0"], before["text 0"])
    assert not [*sd1.unet.buffers()]
    remove_loras(sd1)
    assert all(torch.equal(value, before[name]) for name, value in run_networks(sd1).items())
    assert all(torch.equal(weight, bytes_before[name]) for name, weight in sd1.unet.named_parameters())
    keep_derived(sd1.unet, 0)
    apply_loras(sd1, [(lora, 1, 1)])
    assert torch.equal(run_networks(sd1)["unet"], changed["unet"])


def test_a_thousand_switches_drift_by_nothing(sd1: Model, lora: Lora) -> None:
    target = name_targets(sd1)[CONV]
    x = torch.zeros(1)
    plain = target.layer.effective("weight", x)
    assert plain is not None
    kept = plain.clone()
    apply_loras(sd1, [(lora, 1, 0.3)])
    delta = target.layer._deltas["weight"]
    changed = target.layer.effective("weight", x)
    assert changed is not None and not torch.equal(changed, plain)
    for _ in range(1000):
        target.layer.restore()
        target.layer.effective("weight", x)
        target.layer.change("weight", delta)
        again = target.layer.effective("weight", x)
    assert again is not None and torch.equal(again, changed)
    remove_loras(sd1)
    found = target.layer.effective("weight", x)
    assert found is not None and torch.equal(found, kept)


def test_several_files_add_up_in_their_order(sd1: Model, lora: Lora, save_state: Save, run_networks: Any) -> None:
    other = read_lora(save_state(module(TO_K, 64, 64, rank=2, seed=7), "other.safetensors"))
    forth, back = [(lora, 1.0, 0.9), (other, 1.0, 0.4)], [(other, 1.0, 0.4), (lora, 1.0, 0.9)]
    apply_loras(sd1, forth)
    first = run_networks(sd1)["unet"]
    apply_loras(sd1, back)
    torch.testing.assert_close(run_networks(sd1)["unet"], first, atol=1e-5, rtol=1e-5)
    apply_loras(sd1, forth)
    assert torch.equal(run_networks(sd1)["unet"], first), "the same order gives the same bytes"
    apply_loras(sd1, [(other, 1.0, 0.0)])
    zero = run_networks(sd1)["unet"]
    remove_loras(sd1)
    assert torch.equal(run_networks(sd1)["unet"], zero)


def test_both_names_of_a_layer_and_both_ways_to_read(
    sd1: Model, lora: Lora, save_state: Save, run_networks: Any
) -> None:
    names = {
        TO_K: "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
        CONV: "lora_unet_down_blocks_0_resnets_0_conv1",
        FC1: FC1,
    }
    state = module(names[TO_K], 64, 64) | module(names[CONV], 64, 64, 3, 3, seed=1)
    theirs = read_lora(save_state(state | module(FC1, 128, 64, alpha=None, seed=2), "theirs.safetensors"))
    outputs = []
    for file, mapped in ((lora, True), (theirs, True), (theirs, False)):
        apply_loras(sd1, [(file, 1.0, 1.0)], mapped=mapped)
        outputs.append(run_networks(sd1))
    for name, value in outputs[0].items():
        assert torch.equal(value, outputs[1][name]) and torch.equal(value, outputs[2][name])


def test_a_1x1_convolution_is_a_matrix(sd1: Model, save_state: Save) -> None:
    """SD 1's proj_in is a convolution, SD 2's is none; trainers and converters are not of one mind."""
    name = "lora_unet_input_blocks_1_1_proj_in"
    found = []
    for inner in ((64,), (64, 1, 1)):
        apply_loras(sd1, [(read_lora(save_state(module(name, 64, *inner))), 1, 1)])
        found.append(name_targets(sd1)[name].layer.effective("weight", torch.zeros(1)))
    assert found[0] is not None and found[1] is not None
    torch.testing.assert_close(found[0].shape, found[1].shape)


# What is refused


def refused(call: Callable[[], object], kind: type[AvilaError], *words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight", "another kind of model"),
        ("transformer.single_blocks.0.linear1.lora_A.weight", "another kind of model"),
        (f"{TO_K}.set_weight", "weights that replace"),
        ("text_encoder.text_model.embeddings.token_embedding.lora_embedding_A", "changes of the table of tokens"),
        ("base_model.model.down_blocks.0.attn1.to_q.boft_R", "a kind of PEFT's that is not read"),
        ("0:up", "numbered layers without"),
    ],
)
def test_others_are_named(name: str, words: str, save_state: Save) -> None:
    refused(
        lambda: read_lora(save_state({name: torch.ones(4, 4)})), Unsupported, words, name[:30], "take a LoRA for SD 1"
    )


def test_what_is_no_lora(save_state: Save, tmp_path: Path, tiny_checkpoint: Any) -> None:
    refused(lambda: read_lora(tiny_checkpoint("sd1")), NotADiffusionModel, "looks like a Stable Diffusion checkpoint")
    vae = save_state({"decoder.conv_in.weight": torch.zeros(4, 4, 3, 3)})
    refused(lambda: read_lora(vae), NotADiffusionModel, "looks like a VAE")
    (tmp_path / "page.safetensors").write_text("<!doctype html>", encoding="utf-8")
    refused(lambda: read_lora(tmp_path / "page.safetensors"), HeaderError, "a web page")
    refused(lambda: read_lora(tmp_path / "none.safetensors"), ModelNotFound, "does not exist")


BROKEN: dict[str, tuple[Callable[[State], object], str]] = {
    "no down": (lambda s: s.pop(f"{TO_K}.lora_down.weight"), "has no"),
    "no up": (lambda s: s.pop(f"{TO_K}.lora_up.weight"), "has no"),
    "alpha alone": (lambda s: s.update({"lora_unet_x.alpha": torch.tensor(1.0)}), "has no weights beside alpha"),
    "a vector for alpha": (lambda s: s.update({f"{TO_K}.alpha": torch.ones(2)}), "expected one number"),
    "nan for alpha": (lambda s: s.update({f"{TO_K}.alpha": torch.tensor(torch.nan)}), "is nan"),
    "a complex alpha": (lambda s: s.update({f"{TO_K}.alpha": torch.tensor(1j)}), "expected one number"),
    "whole numbers": (lambda s: s.update({f"{TO_K}.lora_up.weight": torch.ones(64, 4, dtype=torch.int64)}), "I64"),
    "a vector": (lambda s: s.update({f"{TO_K}.lora_up.weight": torch.ones(1, 1, 1, 1, 64)}), "expected a tensor"),
    "rank 0": (lambda s: s.update(module(TO_K, 64, 64, rank=0)), "expected a tensor"),
    "a great rank": (lambda s: s.update(module(TO_K, 1, 1, rank=20000)), "has rank 20,000"),
    "something else": (lambda s: s.update({f"{TO_K}.banana": torch.ones(1)}), "1 tensors that no LoRA has"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files(what: str, save_state: Save) -> None:
    state = module(TO_K, 64, 64) | module(CONV, 64, 64, 3, 3)
    spoil, words = BROKEN[what]
    spoil(state)
    refused(lambda: read_lora(save_state(state)), WeightMismatch, "model.safetensors", words)


MISFITS: dict[str, tuple[State, tuple[str, ...]]] = {
    "SDXL": (module(TO_K, 64, 2048), ("is a LoRA for Stable Diffusion XL (text width 2,048)", "Stable Diffusion 1.x")),
    "SD 2": (module(TO_K, 64, 1024), ("is a LoRA for Stable Diffusion 2.x (text width 1,024)",)),
    "a stranger": (module(TO_K, 64, 99), ("is a LoRA for another model (text width 99)",)),
    "a name": (module("lora_unet_input_blocks_99_banana", 4, 4), ("1 of 2 layers", "_99_banana is not in it")),
    "a second tower": (module(FC1.replace("te_", "te2_"), 128, 64), ("lora_te2_text_model_encoder_layers_0_mlp_fc1 is not",)),
    "rows": (module(FC1, 64, 64), ("LoRA of lora_down.weight [4, 64], lora_up.weight [64, 4], expected one for [128, 64]",)),
    "columns": (module(FC1, 128, 63), ("[4, 63], lora_up.weight [128, 4], expected one for [128, 64]",)),
    "a kernel": (module(FC1, 128, 64, 3, 3), ("expected one for [128, 64]",)),
    "turned round": (module(FC1, 64, 128), ("expected one for [128, 64]",)),
    "ranks": ({**module(FC1, 128, 64), f"{FC1}.lora_down.weight": draw(5, 64)}, ("[5, 64], lora_up.weight [128, 4]",)),
    "no kernel between": ({**module(FC1, 128, 64), f"{FC1}.lora_mid.weight": draw(4, 4, 3, 3)}, ("mid.weight [4, 4, 3, 3]",)),
}  # fmt: skip


@pytest.mark.parametrize("what", MISFITS)
def test_misfits_change_nothing(what: str, sd1: Model, lora: Lora, save_state: Save, run_networks: Any) -> None:
    state, words = MISFITS[what]
    before = run_networks(sd1)["unet"]
    bad = read_lora(save_state(module(CONV, 64, 64, 3, 3) | state, "bad.safetensors"))
    refused(lambda: apply_loras(sd1, [(lora, 1, 1), (bad, 1, 1)]), WeightMismatch, "bad.safetensors", *words)
    assert torch.equal(run_networks(sd1)["unet"], before)


def test_mutated_files_give_one_line_or_load(sd1: Model, lora: Lora, tmp_path: Path) -> None:
    raw = lora.path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    dice, path, outcomes = random.Random(1), tmp_path / "mutated.safetensors", set()
    for _ in range(100):
        header = bytearray(raw[8 : 8 + length])
        for _ in range(dice.randint(1, 3)):
            header[dice.randrange(length)] = dice.choice(b'0123456789[]{},:".abcdown_lru')
        path.write_bytes(raw[:8] + bytes(header) + raw[8 + length :])
        try:
            apply_loras(sd1, [(read_lora(path), 1, 1)])
            outcomes.add("loaded")
        except AvilaError as error:
            assert "\n" not in str(error)
            outcomes.add(type(error).__name__)
    assert {"HeaderError", "WeightMismatch"} <= outcomes


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (5, "a path or a name, not as int"),
        ([None, 5], "a path or a name, not as int"),
        ((5, 1), "a path or a name, not as int"),
        (("x.safetensors", float("nan")), "the weight of LoRA x.safetensors is nan"),
        (("x.safetensors", 10**400), "the weight of LoRA x.safetensors is inf"),
        (("x.safetensors", True), "a path or a name, not as bool"),
    ],
)
def test_odd_loras_are_refused(given: Any, words: str, sd1: Model, lora: Lora, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avila_diffusion.checkpoint.folders.find_model", lambda *rest: lora.path)
    refused(lambda: AvilaDiffusion.with_model(sd1.path, lora=given), RequestError, words)
