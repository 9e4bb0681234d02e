"""Every kind of change that LoRA files hold, against what LyCORIS and PEFT make of the same tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from avila_diffusion.checkpoint.load import Model, load_model
from avila_diffusion.checkpoint.lora.apply import apply_loras, remove_loras
from avila_diffusion.checkpoint.lora.build import build_bias_delta, build_weight_delta, fits
from avila_diffusion.checkpoint.lora.files import LoraModule, read_lora
from avila_diffusion.checkpoint.lora.targets import name_targets
from avila_diffusion.checkpoint.safetensors import TensorFile
from avila_diffusion.errors import WeightMismatch
from avila_diffusion.models.layers import Conv2d, GroupNorm, Layer, Linear
from avila_diffusion.models.weights import Delta, OfRows, derive

State = dict[str, Tensor]
Save = Callable[..., Path]
GOLDEN = load_file(Path(__file__).with_name("lycoris_golden.safetensors"))
CASES = sorted({name.partition(".")[0] for name in GOLDEN})
TITLES = {
    "locon_lin": "LoRA", "locon_conv": "LoCon", "locon_conv_tucker": "LoCon", "locon_lin_dora": "DoRA of LoRA",
    "locon_lin_dora_wd_on_out": "DoRA of LoRA", "locon_conv_dora": "DoRA of LoCon", "oft_lin": "OFT", "boft_lin": "BOFT",
    "glora_lin": "GLoRA", "ia3_lin": "IA3", "full_lin": "full", "full_conv": "full", "norm": "norm",
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def module_of(
    state: Mapping[str, Tensor], save_state: Save, prefix: str = "lora_unet_x"
) -> tuple[LoraModule, TensorFile]:
    lora = read_lora(save_state({f"{prefix}.{leaf}": tensor for leaf, tensor in state.items()}))
    (module,) = lora.modules.values()
    return module, TensorFile(lora.header)


def change(
    weight: Tensor, state: Mapping[str, Tensor], strength: float, save_state: Save, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The effective weight, as layers make it."""
    module, file = module_of(state, save_state)
    shape = tuple(weight.shape)
    assert fits(module, shape, True)
    delta = build_weight_delta(module, lambda leaf: file.tensor(module.parts[leaf].name), strength, shape)
    assert delta is not None and not delta.requires_grad
    before = weight.clone()
    found = derive(weight, device=weight.device, dtype=dtype, deltas=(delta,))
    assert torch.equal(weight, before)
    return found


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-6) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


# The published merges of LyCORIS


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("case", CASES)
def test_lycoris_merges(case: str, strength: float, save_state: Save) -> None:
    parts = {name[len(case) + 1 :]: tensor for name, tensor in GOLDEN.items() if name.startswith(f"{case}.")}
    weight, whole = parts.pop("orig.weight"), parts.pop("MERGED_1.0")
    half = parts.pop("MERGED_0.5", weight.lerp(whole, 0.5))
    if "dora_scale" in parts:  # A1111 and ComfyUI mix; LyCORIS's merge leaves the inner change whole
        half = weight.lerp(whole, 0.5)
    wanted = whole if strength == 1 else half
    if case in (
        "loha_lin",
        "loha_conv_tucker",
    ):  # LyCORIS's merge takes alpha / rank = 0.5 twice here, its forward once
        wanted = weight + (wanted - weight) / 0.5
    elif case.startswith("full_"):  # merged by a module that holds the difference, saved as by one that holds the whole
        wanted = wanted - strength * weight
    found = change(weight, parts, strength, save_state)
    assert float((whole - weight).abs().max()) > 1e-2
    close(found, wanted)
    assert module_of(parts, save_state)[0].title == TITLES.get(case, "LoHa" if "loha" in case else "LoKr")


def test_biases_of_whole_differences(save_state: Save) -> None:
    for case, leaf in (("full_lin", "diff_b"), ("norm", "b_norm")):
        parts = {name[len(case) + 1 :]: tensor for name, tensor in GOLDEN.items() if name.startswith(f"{case}.")}
        module, file = module_of(
            {name: t for name, t in parts.items() if name != "orig.weight" and "MERGED" not in name}, save_state
        )
        delta = build_bias_delta(module, lambda leaf, m=module, f=file: f.tensor(m.parts[leaf].name), 0.5)  # type: ignore[misc]
        bias = torch.randn(len(parts[leaf]))
        assert delta is not None
        close(delta.apply(bias.clone()), bias + 0.5 * parts[leaf])
        assert not fits(module, tuple(parts["orig.weight"].shape), False)


# LyCORIS itself, on more shapes


def live(kind: str, layer: nn.Module, seed: int, **options: Any) -> Any:
    """A module of LyCORIS's with drawn weights."""
    pytest.importorskip("lycoris")
    from lycoris import modules as lycoris

    torch.manual_seed(seed)
    module = getattr(lycoris, kind)("x", layer, **({"lora_dim": 4, "alpha": 3.0} | options))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name not in ("rescale", "dora_scale"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
    return module


LIVE: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "LoRA, 1x1": ("LoConModule", (16, 12, 1, 1), {}),
    "LoRA, DoRA by column": ("LoConModule", (16, 12), {"weight_decompose": True, "wd_on_out": False}),
    "LoCon, DoRA by column": ("LoConModule", (16, 12, 3, 3), {"weight_decompose": True, "wd_on_out": False}),
    "LoHa, DoRA": ("LohaModule", (16, 12), {"weight_decompose": True}),
    "LoHa, a kernel": ("LohaModule", (16, 12, 3, 3), {}),
    "LoKr, DoRA": ("LokrModule", (16, 12), {"weight_decompose": True, "factor": 4}),
    "LoKr, a kernel": ("LokrModule", (40, 40, 3, 3), {"lora_dim": 2, "factor": 2, "alpha": 2}),
    "LoKr, Tucker": ("LokrModule", (40, 40, 3, 3), {"lora_dim": 2, "factor": 2, "alpha": 2, "use_tucker": True}),
    "OFT, a kernel": ("DiagOFTModule", (16, 12, 3, 3), {"alpha": 0}),
    "OFT, rescaled": ("DiagOFTModule", (16, 12), {"rescaled": True}),
    "OFT, held": ("DiagOFTModule", (16, 12), {"constraint": 0.125}),
    "BOFT, a kernel": ("ButterflyOFTModule", (16, 12, 3, 3), {}),
    "BOFT, rescaled": ("ButterflyOFTModule", (32, 12), {"rescaled": True}),
    "BOFT, held": ("ButterflyOFTModule", (32, 12), {"constraint": 0.125}),
    "GLoRA, a kernel": ("GLoRAModule", (16, 12, 3, 3), {}),
    "IA3 on rows": ("IA3Module", (16, 12, 3, 3), {}),
    "IA3 on columns": ("IA3Module", (16, 12), {"train_on_input": True}),
    "IA3 on columns of kernels": ("IA3Module", (16, 12, 3, 3), {"train_on_input": True}),
}


@pytest.mark.parametrize("case", LIVE)
def test_lycoris_itself(case: str, save_state: Save) -> None:
    kind, shape, options = LIVE[case]
    layer = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], shape[2])
    module = live(kind, layer, len(case), **options)
    weight = layer.weight.detach().clone()
    with torch.no_grad():
        if kind in ("LohaModule", "LokrModule"):  # their merge takes alpha / rank twice, what they train with once
            wanted = weight + module.get_weight(shape)
            wanted = module.apply_weight_decompose(wanted) if module.wd else wanted
        else:
            wanted = module.get_merged_weight(1.0, shape)[0]
    state = {name: tensor.detach() for name, tensor in module.state_dict().items() if not name.startswith("org_")}
    assert float((wanted - weight).abs().max()) > 1e-2
    close(change(weight, state, 1.0, save_state), wanted)
    close(change(weight, state, 0.0, save_state), weight)


def test_glora_of_old(save_state: Save) -> None:
    """LyCORIS before 2.0 wrote the halves the other way round."""
    a, b = torch.randn(4, 12), torch.randn(12, 4)
    c, d = torch.randn(4, 12), torch.randn(20, 4)
    weight = torch.randn(20, 12)
    state = {"a1.weight": a, "a2.weight": b, "b1.weight": c, "b2.weight": d, "alpha": torch.tensor(2.0)}
    close(change(weight, state, 0.5, save_state), weight + 0.5 * 0.5 * (weight @ b @ a + d @ c))


def test_kinds_in_float64_and_of_half_files(save_state: Save) -> None:
    state = {name[len("loha_conv.") :]: t for name, t in GOLDEN.items() if name.startswith("loha_conv.")}
    weight = state.pop("orig.weight").half()
    state = {name: t.half() for name, t in state.items() if "MERGED" not in name}
    found = change(weight, state, 0.7, save_state, torch.float64)
    one, two = (state[f"hada_w{i}_a"].double() @ state[f"hada_w{i}_b"].double() for i in (1, 2))
    close(found, weight.double() + 0.7 * 0.5 * (one * two).reshape(weight.shape), 1e-14)


def test_rows_of_a_weight_by_a_kind_that_is_not_in_place() -> None:
    weight = torch.randn(9, 6)

    class Twice:
        requires_grad = False

        def apply(self, weight: Tensor) -> Tensor:
            return 2 * weight

    change: Delta = Twice()
    found = derive(weight, device=weight.device, dtype=torch.float32, deltas=(OfRows(slice(3, 6), change),))
    assert torch.equal(found[:3], weight[:3]) and torch.equal(found[6:], weight[6:])
    assert torch.equal(found[3:6], 2 * weight[3:6])


# PEFT itself


class Names(nn.Module):
    """Layers under diffusers' names, with the weights of a model's layers."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, layer in layers.items():
            at: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(at, part):
                    at.add_module(part, nn.Module())
                at = getattr(at, part)
            at.add_module(last, layer)


PEFT_LAYERS = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": "to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": "to_out.0",
    "down_blocks.0.resnets.0.conv1": "conv1",
}


@pytest.fixture
def sd1(tiny_checkpoint: Callable[[str], Path]) -> Model:
    return load_model(tiny_checkpoint("sd1"))


def kohya(name: str) -> str:
    return "lora_unet_" + name.replace(".", "_")


def effective(layer: Layer, name: str = "weight") -> Tensor:
    found = layer.effective(name, torch.zeros(1))
    assert found is not None
    return found.clone()


PEFT_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LoraConfig", {"r": 4, "lora_alpha": 6}),
    "patterns": (
        "LoraConfig",
        {"r": 4, "lora_alpha": 6, "rank_pattern": {"conv1": 2}, "alpha_pattern": {"attn2.to_k": 1}},
    ),
    "by the root": ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_rslora": True}),
    "DoRA": ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_dora": True}),
    "LoHa": ("LoHaConfig", {"r": 4, "alpha": 3}),
    "LoKr": ("LoKrConfig", {"r": 2, "alpha": 3}),
}


@pytest.mark.parametrize("case", PEFT_CASES)
def test_peft_itself(case: str, sd1: Model, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    kind, options = PEFT_CASES[case]
    targets = name_targets(sd1)
    layers: dict[str, nn.Module] = {}
    for name in PEFT_LAYERS:
        weight = effective(targets[kohya(name)].layer)
        layer: nn.Module = (
            nn.Linear(*weight.shape[::-1]) if weight.dim() == 2 else nn.Conv2d(weight.shape[1], len(weight), 3)
        )
        layer.weight.data.copy_(weight)  # type: ignore[operator]
        layers[name] = layer
    torch.manual_seed(4)
    model = peft.get_peft_model(
        Names(layers), getattr(peft, kind)(target_modules=list(PEFT_LAYERS.values()), **options)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "hada" in name or "lokr" in name:
                parameter.add_(0.1 * torch.rand_like(parameter))
    model.save_pretrained(tmp_path)
    lora = read_lora(tmp_path / "adapter_model.safetensors")
    (report,) = apply_loras(sd1, [(lora, 1.0, 1.0)])
    assert report.matched == {"unet": 3} and report.convention == "PEFT"
    found = {name: effective(targets[kohya(name)].layer) for name in PEFT_LAYERS}
    merged = model.merge_and_unload()
    for name in PEFT_LAYERS:
        wanted = merged.get_submodule(name).weight
        close(found[name], wanted.detach(), 2e-6 if case == "DoRA" else 1e-6)
        remove_loras(sd1)
        assert float((found[name] - effective(targets[kohya(name)].layer)).abs().max()) > 1e-3


def test_settings_in_metadata(sd1: Model, save_state: Save) -> None:
    name = next(iter(PEFT_LAYERS))
    target = name_targets(sd1)[kohya(name)]
    plain, (rows, columns) = effective(target.layer), target.shape
    state = {f"unet.{name}.lora_A.weight": torch.rand(4, columns), f"unet.{name}.lora_B.weight": torch.rand(rows, 4)}
    settings = json.dumps({"unet.r": 4, "unet.lora_alpha": 1, "text_encoder.lora_alpha": 9})
    path = save_state(state, lora_adapter_metadata=settings)
    assert apply_loras(sd1, [(read_lora(path), 1.0, 2.0)])[0].scales == (0.25,)
    close(
        effective(target.layer),
        plain + 2 * 0.25 * state[f"unet.{name}.lora_B.weight"] @ state[f"unet.{name}.lora_A.weight"],
    )
    for broken, words in (
        ("[]", "is not a LoRA's settings"),
        ("{", "is not"),
        ('{"lora_alpha": "x"}', "expected a number"),
    ):
        with pytest.raises(WeightMismatch, match=words):
            read_lora(save_state(state, lora_adapter_metadata=broken))


# On layers


def test_norms_and_biases_of_a_model(sd1: Model, save_state: Save) -> None:
    targets = name_targets(sd1, every=True)
    norm, conv = "lora_unet_input_blocks_1_0_in_layers_0", "lora_unet_down_blocks_0_resnets_0_conv1"
    assert isinstance(targets[norm].layer, GroupNorm) and norm not in name_targets(sd1)
    assert isinstance(targets[conv].layer, Conv2d)
    text = "lora_te_text_model_final_layer_norm"
    state = {
        f"{norm}.w_norm": torch.rand(64), f"{norm}.b_norm": torch.rand(64), f"{text}.w_norm": torch.rand(64),
        f"{conv}.diff": torch.rand(64, 64, 3, 3), f"{conv}.diff_b": torch.rand(64),
    }  # fmt: skip
    before = {
        (name, part): effective(targets[name].layer, part) for name in (norm, conv) for part in ("weight", "bias")
    }
    lora = read_lora(save_state(state))
    (report,) = apply_loras(sd1, [(lora, 1.0, 0.5)])
    assert report.matched == {"text encoder 1": 1, "unet": 2} and set(report.kinds) == {"norm", "full"}
    for (name, part), leaf in zip(before, ("w_norm", "b_norm", "diff", "diff_b"), strict=True):
        close(effective(targets[name].layer, part), before[name, part] + 0.5 * state[f"{name}.{leaf}"])
    remove_loras(sd1)
    for (name, part), value in before.items():
        assert torch.equal(effective(targets[name].layer, part), value)


def test_a_thousand_switches_of_kinds_that_read_the_weight() -> None:
    layer = Linear(12, 20)
    weight = GOLDEN["oft_lin.orig.weight"].half()
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    layer.bias = None
    from avila_diffusion.checkpoint.lora.deltas import Factors, Rotation

    oft = Rotation(GOLDEN["oft_lin.oft_blocks"], 0.0, 1.0)
    ia3 = Factors(GOLDEN["ia3_lin.weight"], False, 1.0)
    outcomes = []
    for _ in range(1000):
        layer.change("weight", [oft, ia3])
        outcomes.append(effective(layer))
        layer.restore()
    assert all(torch.equal(one, outcomes[0]) for one in outcomes)
    assert torch.equal(effective(layer), weight.float()) and torch.equal(layer.weight, weight)
    layer.change("weight", [oft])
    turned = effective(layer)
    layer.change("weight", [oft, ia3])
    close(effective(layer), turned * (1 + GOLDEN["ia3_lin.weight"])[:, None])
