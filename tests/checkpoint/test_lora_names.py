"""The names that programs give to LoRA tensors, real files, and what is told of a file and refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from avila_diffusion.checkpoint.inspection import inspect
from avila_diffusion.checkpoint.load import Model, load_model
from avila_diffusion.checkpoint.lora.apply import apply_loras, match, remove_loras
from avila_diffusion.checkpoint.lora.files import read_lora
from avila_diffusion.checkpoint.lora.names import LEAVES, read_name
from avila_diffusion.checkpoint.lora.targets import name_targets, number_targets
from avila_diffusion.errors import AvilaError, RequestError, Unsupported, WeightMismatch

State = dict[str, Tensor]
Save = Callable[..., Path]
MATERIAL = Path(__file__).resolve().parents[3] / "shared" / "material"
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
TEXT = "text_model.encoder.layers.0.self_attn"
DOWN, UP = "lora_down.weight", "lora_up.weight"


@pytest.fixture(scope="module")
def sd1(request: pytest.FixtureRequest) -> Model:
    return load_model(request.getfixturevalue("tiny_checkpoint")("sd1"))


@pytest.fixture(scope="module")
def sdxl(request: pytest.FixtureRequest) -> Model:
    return load_model(request.getfixturevalue("tiny_checkpoint")("sdxl"))


def effective(model: Model, name: str) -> Tensor:
    target = name_targets(model)[name]
    found = target.layer.effective(target.parameter, torch.zeros(1))
    assert found is not None
    return (found if target.rows is None else found[target.rows]).clone()


# (file's down, file's up, kohya's name in the model, convention)
WRITINGS: dict[str, tuple[str, str, str, str]] = {
    "kohya": (f"lora_unet_{BLOCK.replace('.', '_')}_attn1_to_q.{DOWN}", f"lora_unet_{BLOCK.replace('.', '_')}_attn1_to_q.{UP}",
              "", "kohya, diffusers names"),
    "kohya, single": (f"lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.{DOWN}",
                      f"lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.{UP}", "", "kohya, single-file names"),
    "processors": (f"{BLOCK}.attn1.processor.to_q_lora.down.weight", f"{BLOCK}.attn1.processor.to_q_lora.up.weight",
                   "", "diffusers, attention processors"),
    "processors, with unet": (f"unet.{BLOCK}.attn1.processor.to_q_lora.down.weight",
                              f"unet.{BLOCK}.attn1.processor.to_q_lora.up.weight", "", "diffusers, attention processors"),
    "diffusers": (f"unet.{BLOCK}.attn1.to_q.lora.down.weight", f"unet.{BLOCK}.attn1.to_q.lora.up.weight", "", "diffusers"),
    "diffusers, linear": (f"unet.{BLOCK}.attn1.to_q.lora_linear_layer.down.weight",
                          f"unet.{BLOCK}.attn1.to_q.lora_linear_layer.up.weight", "", "diffusers"),
    "diffusers with PEFT": (f"unet.{BLOCK}.attn1.to_q.lora_A.weight", f"unet.{BLOCK}.attn1.to_q.lora_B.weight",
                            "", "diffusers, PEFT leaves"),
    "PEFT": (f"base_model.model.{BLOCK}.attn1.to_q.lora_A.weight", f"base_model.model.{BLOCK}.attn1.to_q.lora_B.weight",
             "", "PEFT"),
    "PEFT, adapter": (f"base_model.model.{BLOCK}.attn1.to_q.lora_A.default.weight",
                      f"base_model.model.{BLOCK}.attn1.to_q.lora_B.default.weight", "", "PEFT"),
    "LyCORIS": (f"lycoris_{BLOCK.replace('.', '_')}_attn1_to_q.{DOWN}", f"lycoris_{BLOCK.replace('.', '_')}_attn1_to_q.{UP}",
                "", "LyCORIS"),
    "OneTrainer": (f"lora_unet.{BLOCK}.attn1.to_q.{DOWN}", f"lora_unet.{BLOCK}.attn1.to_q.{UP}", "", "OneTrainer"),
    "ComfyUI": (f"diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.{DOWN}",
                f"diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.{UP}", "", "ComfyUI"),
    "numbered": ("unet:0:down", "unet:0:up", "", "numbered"),
    "text, kohya": (f"lora_te_{TEXT.replace('.', '_')}_q_proj.{DOWN}", f"lora_te_{TEXT.replace('.', '_')}_q_proj.{UP}",
                    "text", "kohya, text encoder only"),
    "text, te1": (f"lora_te1_{TEXT.replace('.', '_')}_q_proj.{DOWN}", f"lora_te1_{TEXT.replace('.', '_')}_q_proj.{UP}",
                  "text", "kohya, text encoder only"),
    "text, diffusers": (f"text_encoder.{TEXT}.q_proj.lora_linear_layer.down.weight",
                        f"text_encoder.{TEXT}.q_proj.lora_linear_layer.up.weight", "text", "diffusers"),
    "text, processors": (f"text_encoder.{TEXT}.to_q_lora.down.weight", f"text_encoder.{TEXT}.to_q_lora.up.weight",
                         "text", "diffusers, attention processors"),
    "text, PEFT": (f"base_model.model.{TEXT}.q_proj.lora_A.weight", f"base_model.model.{TEXT}.q_proj.lora_B.weight",
                   "text", "PEFT"),
    "text, LyCORIS": (f"lycoris_{TEXT.replace('.', '_')}_q_proj.{DOWN}", f"lycoris_{TEXT.replace('.', '_')}_q_proj.{UP}",
                      "text", "LyCORIS"),
    "text, OneTrainer": (f"lora_te.{TEXT}.q_proj.{DOWN}", f"lora_te.{TEXT}.q_proj.{UP}", "text", "OneTrainer"),
    "text, transformers 5": (f"lora_te_encoder_layers_0_self_attn_q_proj.{DOWN}",
                             f"lora_te_encoder_layers_0_self_attn_q_proj.{UP}", "text", "kohya, text encoder only"),
    "text, ComfyUI": (f"text_encoders.clip_l.transformer.{TEXT}.q_proj.{DOWN}",
                      f"text_encoders.clip_l.transformer.{TEXT}.q_proj.{UP}", "text", "ComfyUI"),
    "text, numbered": ("text_encoder:2:down", "text_encoder:2:up", "text", "numbered"),
}  # fmt: skip


@pytest.mark.parametrize("writing", WRITINGS)
def test_every_writing_is_the_same_change(writing: str, sd1: Model, save_state: Save) -> None:
    down_name, up_name, where, convention = WRITINGS[writing]
    layer = f"lora_te_{TEXT.replace('.', '_')}_q_proj" if where else f"lora_unet_{BLOCK.replace('.', '_')}_attn1_to_q"
    generator = torch.Generator().manual_seed(1)
    down, up = torch.rand(4, 64, generator=generator), torch.rand(64, 4, generator=generator)
    remove_loras(sd1)
    plain = effective(sd1, layer)
    (report,) = apply_loras(sd1, [(read_lora(save_state({down_name: down, up_name: up})), 0.5, 0.5)])
    assert report.convention == convention and report.scales == (1.0,)
    assert report.matched == {"text encoder 1" if where else "unet": 1}
    torch.testing.assert_close(effective(sd1, layer), plain + 0.5 * up @ down)
    remove_loras(sd1)


def test_two_text_towers_and_fused_rows(sdxl: Model, save_state: Save) -> None:
    """te1 is a tower of transformers', te2 of OpenCLIP's with q, k and v in one matrix; a kind that is not additive."""
    first, second = (f"lora_te{i}_{TEXT.replace('.', '_')}_k_proj" for i in (1, 2))
    shapes = {name: effective(sdxl, name).shape for name in (first, second)}
    state: State = {}
    for name, (rows, _) in shapes.items():
        state |= {f"{name}.weight": torch.rand(rows), f"{name}.on_input": torch.tensor(0)}
    plain = {name: effective(sdxl, name) for name in (first, second, second.replace("_k_", "_q_"))}
    (report,) = apply_loras(sdxl, [(read_lora(save_state(state)), 1.0, 0.0)])
    assert report.family == "sdxl" and report.kinds == ("IA3",)
    for name in (first, second):
        torch.testing.assert_close(effective(sdxl, name), plain[name] * (1 + state[f"{name}.weight"])[:, None])
    other = second.replace("_k_", "_q_")
    assert torch.equal(effective(sdxl, other), plain[other])
    remove_loras(sdxl)


def test_the_numbers_of_the_first_program(manifest: Any, write_layout: Any, tmp_path: Path) -> None:
    """The order that the shapes of its real files show: the way down, the way up, the middle."""
    targets = name_targets(load_model(write_layout(tmp_path / "model.safetensors", manifest("sd1"))))
    numbers = number_targets(targets, {})
    assert len([name for name in numbers if name.startswith("unet:")]) == 144
    assert len([name for name in numbers if name.startswith("text_encoder:")]) == 48
    for number, layer in (
        ("unet:4", f"lora_unet_{BLOCK.replace('.', '_')}_ff_net_0_proj"),
        ("unet:6", f"lora_unet_{BLOCK.replace('.', '_')}_attn2_to_k"),
        ("unet:54", "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"),
        ("unet:143", "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"),
        ("text_encoder:5", "lora_te_text_model_encoder_layers_1_self_attn_v_proj"),
    ):
        assert numbers[number].layer is targets[layer].layer, number
    assert len(number_targets(targets, {"unet": '["CrossAttention"]'})) == 128 + 48
    with pytest.raises(Unsupported, match="ResnetBlock2D"):
        number_targets(targets, {"unet": '["CrossAttention", "ResnetBlock2D"]'})
    oracle = MATERIAL / "oracles" / "cloneofsimo_lora_index_map.json"
    if oracle.is_file():
        table = json.loads(oracle.read_text(encoding="utf-8"))
        for part, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_")):
            for i, name in enumerate(table[part]):
                assert numbers[f"{part}:{i}"].layer is targets[prefix + name.replace(".", "_")].layer


@pytest.mark.skipif(not (MATERIAL / "lora").is_dir(), reason="the real LoRA files are not here")
@pytest.mark.parametrize(
    ("name", "matched", "embeddings"),
    [
        ("cloneofsimo_disney_rank1", {"text encoder 1": 48, "unet": 144}, ("<s1>", "<s2>")),
        ("diffusers_attnprocs_rank4", {"unet": 128}, ()),
    ],
)
def test_real_files(
    name: str, matched: dict[str, int], embeddings: tuple[str, ...], manifest: Any, write_layout: Any, tmp_path: Path
) -> None:
    model = load_model(write_layout(tmp_path / "model.safetensors", manifest("sd1")))  # its weights are 0
    lora = read_lora(MATERIAL / "lora" / f"{name}.safetensors")
    (report,) = apply_loras(model, [(lora, 0.7, 0.9)])
    assert report.matched == matched and not report.unmatched and not report.mis_shaped
    assert report.embeddings == embeddings and report.share == 1 and report.family == "sd1"
    layer = "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_v"
    change = effective(model, layer)
    assert 0 < float(change.abs().max()) < 1 and int(torch.linalg.matrix_rank(change)) == lora.ranks[0]
    other = load_model(write_layout(tmp_path / "xl.safetensors", manifest("sdxl_base")))
    with pytest.raises(WeightMismatch, match=r"is a LoRA for Stable Diffusion 1.x .* is Stable Diffusion XL"):
        apply_loras(other, [(lora, 1.0, 1.0)], min_match=0)


# What is told, refused, or left out on request


def lora_state(*layers: str, rank: int = 4) -> State:
    generator = torch.Generator().manual_seed(3)
    state: State = {}
    for layer in layers:
        state[f"{layer}.{DOWN}"] = torch.rand(rank, 64, generator=generator)
        state[f"{layer}.{UP}"] = torch.rand(64, rank, generator=generator)
    return state


GOOD = f"lora_unet_{BLOCK.replace('.', '_')}_attn1_to_q"


def test_lenient_leaves_out_and_says_so(sd1: Model, save_state: Save) -> None:
    state = lora_state(GOOD, "lora_unet_nowhere", "lora_te_text_model_encoder_layers_0_mlp_fc1")
    lora = read_lora(save_state(state))
    with pytest.raises(WeightMismatch, match=r"in 2 of 3 layers: lora_unet_nowhere is not in it; .* --lenient"):
        apply_loras(sd1, [(lora, 1.0, 1.0)])
    plain = effective(sd1, GOOD)
    (report,) = apply_loras(sd1, [(lora, 1.0, 1.0)], min_match=0)
    assert report.unmatched == ["lora_unet_nowhere"] and len(report.mis_shaped) == 1
    assert report.share == pytest.approx(1 / 3) and "leaves out 2 that do not fit" in report.describe()
    assert report.to_dict() == match(sd1, lora).to_dict()
    torch.testing.assert_close(effective(sd1, GOOD), plain + state[f"{GOOD}.{UP}"] @ state[f"{GOOD}.{DOWN}"])
    remove_loras(sd1)
    with pytest.raises(WeightMismatch, match="in 1 of 1 layers"):
        apply_loras(sd1, [(read_lora(save_state(lora_state("lora_unet_nowhere"))), 1.0, 1.0)], min_match=0)


def test_dyn_cuts_the_rank_and_not_the_scale(sd1: Model, save_state: Save) -> None:
    state = {**lora_state(GOOD), f"{GOOD}.alpha": torch.tensor(2.0)}
    lora = read_lora(save_state(state)).cut(1)
    plain = effective(sd1, GOOD)
    (report,) = apply_loras(sd1, [(lora, 1.0, 1.0)])
    wanted = plain + 0.5 * state[f"{GOOD}.{UP}"][:, :1] @ state[f"{GOOD}.{DOWN}"][:1]
    torch.testing.assert_close(effective(sd1, GOOD), wanted)
    assert report.dyn == 1 and "cut to rank 1" in report.describe()
    remove_loras(sd1)
    with pytest.raises(RequestError, match="cannot be cut to 0"):
        lora.cut(0)


def test_dyn_says_where_there_is_no_rank_to_cut(sd1: Model, save_state: Save) -> None:
    whole = {f"{GOOD}.diff": torch.zeros_like(effective(sd1, GOOD))}
    (report,) = apply_loras(sd1, [(read_lora(save_state(whole)).cut(1), 1.0, 1.0)])
    assert report.uncut == 1 and ", not cut to rank 1, because its kinds have no rank to cut" in report.describe()
    remove_loras(sd1)
    (report,) = apply_loras(sd1, [(read_lora(save_state(lora_state(GOOD))).cut(1), 1.0, 1.0)])
    assert report.uncut == 0
    remove_loras(sd1)


def test_one_layer_by_two_names_is_refused(sd1: Model, save_state: Save) -> None:
    twice = lora_state(GOOD, "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q")
    with pytest.raises(WeightMismatch, match="again"):
        apply_loras(sd1, [(read_lora(save_state(twice)), 1.0, 1.0)])
    same = lora_state(GOOD) | {f"{GOOD}.lora_A.weight": torch.rand(4, 64)}
    with pytest.raises(WeightMismatch, match="twice"):
        read_lora(save_state(same))


def test_inspect_tells_of_a_lora(save_state: Save) -> None:
    found = inspect(save_state(lora_state(GOOD) | {"<me>": torch.rand(768)}, ss_base_model_version="sd_v1"))
    assert found.kind.key == "lora" and not found.problem
    assert found.to_dict()["lora"] == {
        "kinds": ["LoRA"],
        "convention": "kohya, diffusers names",
        "ranks": [4],
        "scales": [1.0],
        "family": "sd1",
        "modules": {"unet": 1, "text encoders": 0},
        "embeddings": ["<me>"],
    }
    lines = found.lines()
    assert "kind LoRA" in lines and "for Stable Diffusion 1.x" in lines and "changes 1 layers of the unet" in lines
    broken = inspect(save_state({f"{GOOD}.{DOWN}": torch.rand(4, 64)}))
    assert "has no" in broken.problem and "lora" not in broken.to_dict()


def test_other_programs_words_for_the_family(save_state: Save) -> None:
    layer = lora_state("lora_te_text_model_encoder_layers_0_mlp_fc1")
    for key, value, family in (
        ("ss_base_model_version", "sdxl_base_v1-0", "sdxl"),
        ("modelspec__architecture", "stable-diffusion-v2-512/lora", "sd2"),
        ("ss_base_model_version", "sd_v1", "sd1"),
        ("ss_base_model_version", "a model of mine", None),
    ):
        assert read_lora(save_state(layer, **{key: value})).family == family


def test_leaves_put_together_at_random(sd1: Model, save_state: Save) -> None:
    """Any leaves of any shapes give a LoRA that fits, or one line of ours."""
    dice, outcomes = random.Random(5), set()
    shapes = [
        (),
        (1,),
        (64,),
        (4, 64),
        (64, 4),
        (64, 64),
        (4, 4, 3, 3),
        (16, 4, 4),
        (2, 16, 4, 4),
        (8, 8),
        (1, 64),
        (64, 1),
    ]
    for number in range(400):
        state = {}
        for leaf in dice.sample(LEAVES, dice.randint(1, 5)):
            shape = () if leaf in ("alpha", "scale", "on_input") and dice.random() < 0.9 else dice.choice(shapes)
            state[f"{GOOD}.{leaf}"] = torch.rand(shape)
        if number % 4 == 0:  # the two of a plain LoRA, and something more
            state |= lora_state(GOOD)
        try:
            apply_loras(sd1, [(read_lora(save_state(state)), 1.0, 0.5)])
            assert torch.isfinite(effective(sd1, GOOD)).all()
            outcomes.add("fits")
        except AvilaError as error:
            assert "\n" not in str(error)
            outcomes.add(type(error).__name__)
    remove_loras(sd1)
    assert outcomes >= {"fits", "WeightMismatch", "Unsupported"}


def test_random_names_take_little_time_and_raise_nothing() -> None:
    dice = random.Random(7)
    words = [
        "lora",
        "_",
        ".",
        "unet",
        "down",
        "up",
        "weight",
        "processor",
        "to_q_lora",
        "lora_A",
        ":",
        "7",
        "text_model",
        "\x00",
    ]
    for _ in range(5000):
        name = "".join(dice.choice(words) for _ in range(dice.randint(1, 40)))
        place = read_name(name)
        assert place is None or place.leaf in LEAVES
    assert read_name(".lora" * 20000) is None
