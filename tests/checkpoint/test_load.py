"""Files of every kind become the same model, and every tensor is accounted for."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from avila_diffusion.checkpoint import load as loading
from avila_diffusion.checkpoint.keys import vae_from_diffusers
from avila_diffusion.checkpoint.load import Model, load_model
from avila_diffusion.checkpoint.safetensors import TensorFile
from avila_diffusion.errors import (
    HeaderError,
    MissingPart,
    Unsupported,
    WeightMismatch,
)

State = dict[str, Tensor]
Save = Callable[..., Path]
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
XL = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")


def under(state: State, prefix: str, renamed: str = "") -> State:
    return {renamed + name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def without(state: State, *prefixes: str) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


def weights(model: Model) -> State:
    networks = {"unet": model.unet, "vae": model.vae} | {f"text{i}": tower for i, tower in enumerate(model.text)}
    return {f"{key}.{n}": p for key, network in networks.items() for n, p in network.named_parameters()}


def assert_equal(ours: State, theirs: State) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name].to(tensor.dtype)), name


def assert_accounted(model: Model, names: Iterable[str]) -> None:
    """Every tensor of the files is in exactly one place of the report."""
    report, names = model.report, list(names)
    said = [*report.ignored, *report.unknown]
    assert len(set(said)) == len(said)
    assert set(said) <= set(names)
    assert sum(report.used.values()) + len(said) == len(names)
    assert sum(report.used.values()) == len(weights(model))


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("float32", "sdxl"),
        ("float16", "sdxl"),
        ("bfloat16", "sdxl"),
        ("float8_e4m3fn", "sdxl"),
        ("float8_e5m2", "sdxl"),
        ("float8_e4m3fn", "sd1"),
    ],
)
def test_every_dtype_computes_as_its_values_in_float32(
    kind: str, family: str, tiny: Any, save_state: Save, run_networks: Any
) -> None:
    stored = {name: tensor.to(getattr(torch, kind)) for name, tensor in tiny(family).items()}
    model = load_model(save_state(stored, avila__family=family))
    assert {p.dtype for p in weights(model).values()} == {getattr(torch, kind)}, "nothing is converted by loading"
    rounded = load_model(
        save_state({n: t.float() for n, t in stored.items()}, "float.safetensors", avila__family=family)
    )
    ours, theirs = run_networks(model), run_networks(rounded)
    assert ours.keys() == theirs.keys()
    for name, output in theirs.items():
        assert 0.2 < float(output.abs().max()) < 1000, name
        # alignment in memory chooses between kernels, which differ in the last bits
        assert float((ours[name] - output).abs().max()) < 1e-5 * float(output.abs().max()), name
    name = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(kind, kind[:-2] if "fn" in kind else kind)
    assert set(model.report.dtypes) == {name.upper().replace("FLOAT8", "F8")}


def test_mixed_dtypes(tiny: Any, save_state: Save) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    state = {name: t.to(kinds[i % 4]) for i, (name, t) in enumerate(tiny().items())}
    model = load_model(save_state(state))
    assert {p.dtype for p in weights(model).values()} == set(kinds)
    whole = state | {f"{UNET}out.2.weight": (100 * state[f"{UNET}out.2.weight"]).to(torch.int8)}
    with pytest.raises(WeightMismatch, match=r"out\.2\.weight is stored as I8, expected plain floats"):
        load_model(save_state(whole))


def old_file(state: State) -> State:
    """As files were in 2022: an EMA copy, all buffers of the schedule, NovelAI's names of the text tower."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    buffers = "betas alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod posterior_mean_coef2 logvar"
    buffers += " log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance"
    buffers += " posterior_log_variance_clipped posterior_mean_coef1"
    extra = {name: torch.rand(1000) for name in buffers.split()}
    extra |= {"alphas_cumprod": torch.cumprod(1 - betas, 0).float(), "scale_factor": torch.tensor(0.18215)}
    extra |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}
    for name, tensor in under(state, UNET).items():
        extra["model_ema.diffusion_model" + name.replace(".", "")] = tensor + 1
    short = {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in state.items()}
    constant = {"cond_stage_model.transformer.embeddings.position_ids": torch.arange(77)[None]}
    return short | extra | constant


def test_old_files_give_the_same_weights(tiny: Any, save_state: Save) -> None:
    state = tiny()
    plain = load_model(save_state(state, "plain.safetensors"))
    assert_accounted(plain, state)
    assert plain.report.ignored == {}
    assert plain.report.unknown == []
    old = old_file(state)
    model = load_model(save_state(old))
    assert_equal(weights(model), weights(plain))
    assert_accounted(model, old)
    assert model.report.unknown == []
    assert model.spec == plain.spec, "the usual schedule changes nothing"
    assert len(model.report.ignored) == len(old) - len(state)
    reasons = set(model.report.ignored.values())
    assert {reason.split(";")[0].split(",")[0] for reason in reasons} == {
        "the EMA copy of the UNet",
        "a buffer of the noise schedule",
        "a constant: 0",
        "no weight",
    }
    assert len(model.report.lines()) < 40, "the text form counts them"


def test_unknown_tensors_are_named_and_do_no_harm(tiny: Any, save_state: Save) -> None:
    strange = [
        "banana.weight",
        f"{UNET}input_blocks.1.0.extra",
        f"{UNET}lora.x",
        f"{VAE}banana",
        "cond_stage_model.banana",
        f"{TEXT}text_model.encoder.layers.0.banana",
        "conditioner.embedders.7.banana",
        "x" * 5000,
        "…\n\x1b[31m",
    ]
    state = tiny() | {name: torch.zeros(2) for name in strange}
    model = load_model(save_state(state))
    assert sorted(model.report.unknown) == sorted(strange)
    assert_accounted(model, state)


def test_a_tensor_under_two_names_is_not_lost(tiny: Any, save_state: Save) -> None:
    state = tiny()
    name = f"{TEXT}text_model.final_layer_norm.weight"
    twice = state | {name.replace("text_model.", ""): torch.zeros(64)}
    model = load_model(save_state(twice))
    assert_accounted(model, twice)
    assert "twice" in model.report.ignored[name.replace("text_model.", "")]
    assert torch.equal(weights(model)["text0.text_model.final_layer_norm.weight"], state[name])


# --- parts given separately

DIFFUSERS_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}


def diffusers_vae(vae: State, attention: dict[str, str] = DIFFUSERS_ATTENTION, flat: bool = True) -> State:
    """The tiny VAE under diffusers' names; its attention as matrices."""
    theirs = []
    for half, blocks, samplers, count in (
        ("encoder.down_blocks", 1, "downsamplers", 4),
        ("decoder.up_blocks", 2, "upsamplers", 4),
    ):
        for level in range(count):
            for leaf in ("weight", "bias"):
                for block in range(blocks):
                    layers = ("norm1", "conv1", "norm2", "conv2")
                    theirs += [f"{half}.{level}.resnets.{block}.{layer}.{leaf}" for layer in layers]
                if level < count - 1:
                    theirs.append(f"{half}.{level}.{samplers}.0.conv.{leaf}")
    for half in ("encoder", "decoder"):
        for leaf in ("weight", "bias"):
            theirs += [f"{half}.{layer}.{leaf}" for layer in ("conv_in", "conv_norm_out", "conv_out")]
            for block in (0, 1):
                layers = ("norm1", "conv1", "norm2", "conv2")
                theirs += [f"{half}.mid_block.resnets.{block}.{layer}.{leaf}" for layer in layers]
            theirs += [f"{half}.mid_block.attentions.0.{layer}.{leaf}" for layer in attention.values()]
    theirs += [f"{conv}.{leaf}" for conv in ("quant_conv", "post_quant_conv") for leaf in ("weight", "bias")]
    renamed = {name: vae[ours] for ours, name in vae_from_diffusers(theirs).items()}
    assert len(renamed) == len(theirs) == len(vae)
    return {n: t[:, :, 0, 0] if flat and ".attentions." in n and t.dim() == 4 else t for n, t in renamed.items()}


OLD_ATTENTION = {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn", "norm": "group_norm"}
VAES: dict[str, Callable[[State], State]] = {
    "bare": lambda state: under(state, VAE),
    "prefixed": lambda state: under(state, VAE, VAE),
    "prefixed vae.": lambda state: under(state, VAE, "vae."),
    "a whole checkpoint": dict,
    "attention as matrices": lambda state: {
        n: t[:, :, 0, 0] if ".attn_1." in n and t.dim() == 4 else t for n, t in under(state, VAE).items()
    },
    "diffusers": lambda state: diffusers_vae(under(state, VAE)),
    "diffusers, 4-D": lambda state: diffusers_vae(under(state, VAE), flat=False),
    "diffusers, old names": lambda state: diffusers_vae(under(state, VAE), OLD_ATTENTION),
}


@pytest.mark.parametrize("kind", VAES)
def test_a_vae_given_separately(kind: str, tiny: Any, save_state: Save) -> None:
    state = tiny()
    main = save_state(without(state, VAE), "main.safetensors")
    with pytest.raises(MissingPart, match=r"main\.safetensors has no VAE; .* --vae FILE") as caught:
        load_model(main)
    assert "text-encoder" not in str(caught.value)
    other = VAES[kind](state) | {"banana": torch.zeros(1)}
    vae = save_state(other, "vae.safetensors")
    model = load_model(main, vae=vae)
    assert_equal(weights(model), weights(load_model(save_state(state))))
    assert_accounted(model, [*without(state, VAE), *(f"{vae.as_posix()}: {name}" for name in other)])
    assert model.report.unknown == [f"{vae.as_posix()}: banana"]
    assert model.vae_path == vae
    folder = vae.parent / "folder"
    folder.mkdir()
    vae.rename(folder / "diffusion_pytorch_model.safetensors")
    assert_equal(weights(load_model(main, vae=folder)), weights(model))


def test_a_vae_that_replaces_the_files_own(tiny: Any, save_state: Save) -> None:
    state = tiny()
    vae = {name: tensor + 1 for name, tensor in under(state, VAE).items()}
    path = save_state(vae, "vae.safetensors")
    model = load_model(save_state(state), vae=path)
    assert_equal(under(weights(model), "vae."), vae)
    assert_accounted(model, [*state, *(f"{path.as_posix()}: {name}" for name in vae)])
    assert set(model.report.ignored.values()) == {"replaced by the VAE given separately"}
    assert len(model.report.ignored) == len(vae)


def test_clip_towers_given_separately(tiny: Any, save_state: Save, tmp_path: Path) -> None:
    state = tiny()
    wanted = weights(load_model(save_state(state)))
    main = save_state(without(state, TEXT), "main.safetensors")
    with pytest.raises(MissingPart, match=r"has no text encoder; .* --text-encoder FILE") as caught:
        load_model(main)
    assert "--vae" not in str(caught.value)
    tower = under(state, TEXT)
    vision = {f"vision_model.encoder.layers.0.{n}": torch.zeros(2) for n in ("a", "b")}
    vision |= {"logit_scale": torch.tensor(4.6), "visual_projection.weight": torch.zeros(2, 2)}
    files = {
        "transformers 4": tower,
        "transformers 5": {name.removeprefix("text_model."): t for name, t in tower.items()},
        "with the picture half": tower | vision,
        "prefixed": under(state, TEXT, "text_encoders.clip_l.transformer."),
        "a whole checkpoint": state,
    }
    for name, content in files.items():
        path = save_state(content, f"{name}.safetensors")
        model = load_model(main, text_encoders=[path])
        assert_equal(weights(model), wanted)
        assert_accounted(model, [*without(state, TEXT), *(f"{path.as_posix()}: {n}" for n in content)])
        assert model.report.unknown == [], name
        assert model.spec.text[0].config.heads == 1
    folder = tmp_path / "encoder"
    save_state(tower, "encoder/model.safetensors")
    config: dict[str, Any] = {"num_attention_heads": 4, "hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = load_model(main, text_encoders=[folder])
    assert_equal(weights(model), wanted)
    assert (model.spec.text[0].config.heads, model.spec.text[0].config.activation) == (4, "gelu")
    for heads, activation, error in (
        (3, "gelu", WeightMismatch),
        ("x", "gelu", WeightMismatch),
        (4, "mish", Unsupported),
    ):
        config = {"num_attention_heads": heads, "hidden_act": activation}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(error, match=r"text (tower|encoder)"):
            load_model(main, text_encoders=[folder])


def test_sdxl_towers_given_separately_in_any_order(tiny: Any, save_state: Save) -> None:
    state = tiny("sdxl")
    first, second = (under(state, prefix) for prefix in XL)
    # The towers of the tiny model are equally wide; make the first narrower, as SDXL's is.
    cut = {n: narrow(t) for n, t in first.items()}
    unet = {n: t[:, 32:].clone() if "attn2.to_k" in n or "attn2.to_v" in n else t for n, t in state.items()}
    main_state = without(unet, *XL)
    main = save_state(main_state, "main.safetensors", avila__text_heads="1,1")
    whole = {XL[0] + n: t for n, t in cut.items()} | under(unet, XL[1], XL[1]) | main_state
    wanted = load_model(save_state(whole, avila__text_heads="1,1"))
    assert [spec.config.width for spec in wanted.spec.text] == [32, 64]
    paths = [save_state(cut, "l.safetensors"), save_state(second, "g.safetensors")]
    for order in (paths, paths[::-1]):
        model = load_model(main, text_encoders=order)
        assert_equal(weights(model), weights(wanted))
        assert model.spec == wanted.spec
        assert model.spec.text[1].pooled
    other = save_state(whole, "whole.safetensors", avila__text_heads="1,1")
    assert_equal(weights(load_model(main, text_encoders=[other])), weights(wanted))
    one_more = save_state(
        {n: t + 1 for n, t in cut.items()} | {"logit_scale": torch.tensor(1.0)}, "l plus 1.safetensors"
    )
    replaced = load_model(other, text_encoders=[one_more])
    assert_equal(under(weights(replaced), "text0."), {n: t + 1 for n, t in cut.items()})
    assert_equal(under(weights(replaced), "text1."), under(weights(wanted), "text1."))
    assert_accounted(replaced, [*whole, *(f"{one_more.as_posix()}: {n}" for n in [*cut, "logit_scale"])])


def narrow(tensor: Tensor) -> Tensor:
    """A tensor of a text tower 64 wide for one 32 wide."""
    keep = [slice(0, 32) if size == 64 else slice(None) for size in tensor.shape]
    return tensor[tuple(keep)].clone()


def test_sdxl_with_one_of_two_towers(tiny: Any, save_state: Save) -> None:
    state = tiny("sdxl")
    one = save_state(without(state, XL[1]), avila__family="sdxl")
    with pytest.raises(MissingPart, match=r"one of the two text encoders of Stable Diffusion XL \(64 wide\).*both"):
        load_model(one)
    main = save_state(without(state, *XL), avila__family="sdxl")
    tower = save_state(under(state, XL[1]), "g.safetensors")
    with pytest.raises(MissingPart, match="one of the two text encoders"):
        load_model(main, text_encoders=[tower])
    with pytest.raises(WeightMismatch, match="found 3 text encoders"):
        load_model(main, text_encoders=[tower, tower, tower])


def test_open_clip_given_separately(tiny: Any, save_state: Save) -> None:
    state = tiny("sd2")
    prefix = "cond_stage_model.model."
    tower = under(state, prefix)
    half = {"visual.transformer.resblocks.0.ln_1.weight": torch.zeros(3), "visual.conv1.weight": torch.zeros(2)}
    path = save_state(half | tower | {"logit_scale": torch.tensor(4.6)}, "open_clip_model.safetensors")
    main = without(state, prefix)
    model = load_model(save_state(main, "main.safetensors"), text_encoders=[path])
    assert_equal(weights(model), weights(load_model(save_state(state))))
    assert model.report.unknown == []
    names = [*half, *tower, "logit_scale"]
    assert_accounted(model, [*main, *(f"{path.as_posix()}: {name}" for name in names)])
    assert (model.spec.text[0].skip, model.spec.text[0].config.kind) == (2, "open_clip")


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", UNET])
def test_a_unet_alone(prefix: str, tiny: Any, save_state: Save) -> None:
    state = tiny()
    content = under(state, UNET, prefix) | {"v_pred": torch.zeros(0), "betas": torch.zeros(3), "banana": torch.zeros(1)}
    main = save_state(content, "unet.safetensors")
    with pytest.raises(MissingPart, match=r"no text encoder and no VAE; .*--text-encoder FILE --vae FILE"):
        load_model(main)
    vae, text = (save_state(under(state, p), f"{p}.safetensors") for p in (VAE, TEXT))
    model = load_model(main, vae=vae, text_encoders=[str(text)])
    assert_equal(weights(model), weights(load_model(save_state(state))))
    assert model.spec.noise.prediction == "v"
    assert model.report.unknown == ["banana"]
    separate = [f"{vae.as_posix()}: {n}" for n in under(state, VAE)] + [
        f"{text.as_posix()}: {n}" for n in under(state, TEXT)
    ]
    assert_accounted(model, [*content, *separate])


def test_guidance_embedding_of_lcm(tiny: Any, save_state: Save, run_networks: Any) -> None:
    state = tiny()
    weight = torch.randn(64, 24, generator=torch.Generator().manual_seed(1))
    plain = run_networks(load_model(save_state(state)))["unet"]
    outputs = []
    for name in ("time_embed.cond_proj.weight", "time_embedding.cond_proj.weight"):
        model = load_model(save_state(state | {UNET + name: weight}))
        assert model.spec.unet.guidance_channels == 24
        assert model.report.unknown == []
        outputs.append(run_networks(model)["unet"])
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(outputs[0], plain)


def test_the_same_file_as_its_own_vae(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in tiny().items()}, path)
    assert_equal(weights(load_model(path, vae=path, text_encoders=[path])), weights(load_model(path)))


# --- memory and handles


def test_unmapped_gives_the_same_and_nothing_stays_open(tiny: Any, save_state: Save, monkeypatch: Any) -> None:
    path = save_state({name: tensor.half() for name, tensor in tiny("sdxl").items()}, avila__family="sdxl")
    opened: list[Path] = []

    class Counted(TensorFile):
        def __init__(self, source: Any, *, mapped: bool = True) -> None:
            opened.append(source.path)
            super().__init__(source, mapped=mapped)

    monkeypatch.setattr(loading, "TensorFile", Counted)
    gc.collect()
    before = open_files()
    mapped = load_model(path)
    assert opened == [path], "one opening for four networks"
    read = load_model(path, mapped=False)
    assert opened == [path, path]
    assert_equal(weights(mapped), weights(read))
    assert open_files() <= before | {str(path)}
    del mapped
    gc.collect()
    assert open_files() == before, "the mapping goes with its tensors"
    with path.open("r+b") as file:
        file.truncate(100)
    assert all(torch.isfinite(weight.float()).all() for weight in weights(read).values()), "read, not mapped"
    with pytest.raises(HeaderError):
        load_model(path)
    assert open_files() == before


def open_files() -> set[str]:
    """Files that this process holds open or mapped, of those under the temporary folder."""
    folder = Path("/proc/self")
    if not folder.is_dir():
        return set()
    found = {str(link.readlink()) for link in (folder / "fd").iterdir() if link.is_symlink()}
    found |= {line.split(maxsplit=5)[-1] for line in (folder / "maps").read_text().splitlines()}
    return {name for name in found if name.endswith(".safetensors")}


def test_loading_keeps_no_second_copy(tiny: Any, save_state: Save, own_memory: Callable[[], int]) -> None:
    """The parameters of a mapped load lie on one storage, the file's; memory of the process's own hardly grows."""
    state = tiny() | {"model_ema.x": torch.ones(2_000_000)}
    path = save_state(state)
    assert path.stat().st_size > 25e6
    load_model(path)
    gc.collect()
    before = own_memory()
    model = load_model(path)
    size = path.stat().st_size
    spots = [parameter.untyped_storage().data_ptr() for parameter in weights(model).values()]
    low, high = min(spots), max(spots)
    assert high - low < size, "all within one mapping"
    assert len({parameter.dtype for parameter in weights(model).values()}) == 1
    total = sum(parameter.nbytes for parameter in weights(model).values())
    assert total > 17e6
    assert own_memory() - before < total / 4
