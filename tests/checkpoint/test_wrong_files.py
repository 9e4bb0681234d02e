"""Wrong and hostile files: one clear line each, soon, and in little memory."""

from __future__ import annotations

import gc
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from avila_diffusion.checkpoint.inspection import inspect
from avila_diffusion.checkpoint.load import load_model
from avila_diffusion.errors import (
    AvilaError,
    FileProblem,
    HeaderError,
    ModelNotFound,
    NotADiffusionModel,
    RequestError,
    WeightMismatch,
)

State = dict[str, Tensor]
Save = Callable[..., Path]
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
MATERIAL = Path(__file__).resolve().parents[2].parent / "shared" / "material"


def under(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def without(state: State, *prefixes: str) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


def check_line(error: AvilaError) -> None:
    """One line that a person can use."""
    text = str(error)
    assert "\n" not in text
    assert 20 < len(text) < 500, text


def refuse(path: Path, kind: type[AvilaError], words: str, **options: Any) -> None:
    with pytest.raises(kind, match=words) as caught:
        load_model(path, **options)
    check_line(caught.value)


def test_missing_and_mis_shaped_weights(tiny: Any, save_state: Save) -> None:
    state = tiny()
    name = f"{UNET}output_blocks.1.0.out_layers.3.weight"
    refuse(save_state(without(state, name)), WeightMismatch, f"{name} is missing; download")
    refuse(
        save_state(state | {name: torch.zeros(128, 64, 3, 3)}),
        WeightMismatch,
        rf"{name} is \[128, 64, 3, 3\], expected \[128, 128, 3, 3\]; ",
    )
    refuse(save_state(state | {name: torch.zeros(128, 128 * 9)}), WeightMismatch, "expected")
    refuse(save_state(without(state, f"{UNET}middle_block.2.")), WeightMismatch, "is missing; .*and 7 more")
    refuse(
        save_state(without(state, f"{TEXT}text_model.embeddings.token")), WeightMismatch, "token_embedding.weight is"
    )
    refuse(
        save_state(without(state, f"{TEXT}text_model.encoder.layers.1.mlp.fc1")), WeightMismatch, "fc1.weight is miss"
    )
    refuse(save_state(without(state, f"{VAE}encoder.")), WeightMismatch, "encoder.conv_out.weight is missing")
    refuse(save_state(without(state, f"{UNET}output_blocks.")), WeightMismatch, "no output_blocks")
    many = without(state, *(f"{UNET}output_blocks.{n}.0.in_layers.0" for n in range(4)))
    refuse(save_state(many), WeightMismatch, "and 5 more")


def test_truncated_files(tiny: Any, save_state: Save) -> None:
    path = save_state(tiny())
    size = path.stat().st_size
    for left in (size - 1, size // 2, 5000, 8, 3, 0):
        with path.open("r+b") as file:
            file.truncate(left)
        refuse(path, HeaderError, "truncated|empty|not a safetensors")


def test_files_of_other_kinds(tiny: Any, save_state: Save, tmp_path: Path) -> None:
    state = tiny()
    kinds: dict[str, State] = {
        "a LoRA": {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": torch.zeros(4, 4)},
        "a VAE": under(state, VAE),
        "a CLIP text encoder": under(state, TEXT),
        "a textual inversion embedding": {"emb_params": torch.zeros(2, 64)},
        "a ControlNet": {
            "control_model.input_blocks.0.0.weight": torch.zeros(4),
            "control_model.zero_convs.0": torch.ones(1),
        },
        "a tiny autoencoder": {f"decoder.layers.{n}.conv.0.weight": torch.zeros(4) for n in range(3)},
        "nothing that is known": {"banana": torch.zeros(3)},
    }
    for title, content in kinds.items():
        refuse(save_state(content), NotADiffusionModel, f"not a Stable Diffusion checkpoint; it looks like {title}")
    main = save_state(state, "main.safetensors")
    lora = save_state(kinds["a LoRA"], "lora.safetensors")
    refuse(main, NotADiffusionModel, "lora.safetensors is not a VAE; it looks like a LoRA", vae=lora)
    refuse(main, NotADiffusionModel, "is not a CLIP text encoder; it looks like a LoRA", text_encoders=[lora])
    refuse(main, NotADiffusionModel, "is not a VAE; it looks like a Stable", vae=save_state(without(state, VAE)))
    refuse(main, ModelNotFound, "does not exist", vae=tmp_path / "no.safetensors")
    refuse(tmp_path / "no.safetensors", ModelNotFound, "does not exist")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", NotADiffusionModel, "no unet/")
    refuse(main, FileProblem, "has no safetensors files", vae=tmp_path / "empty")
    refuse(main, RequestError, "'banana' is unknown", prediction="banana")


def test_real_files_of_other_kinds() -> None:
    files = sorted(MATERIAL.rglob("*.safetensors"))
    if not files:
        pytest.skip("the folder of real small files is not there")
    for file in files:
        refuse(file, NotADiffusionModel, "is not a Stable Diffusion checkpoint")
        assert inspect(file).kind.key in ("lora", "taesd", "embedding", "unknown")


def test_a_text_encoder_of_another_family(tiny: Any, save_state: Save) -> None:
    state = tiny()
    wide = {
        name: torch.zeros([128 if size == 64 else 256 if size == 128 else size for size in tensor.shape])
        for name, tensor in under(state, TEXT).items()
    }
    path = save_state(wide, "wide.safetensors")
    refuse(save_state(state), WeightMismatch, "is 128 wide, .* wants 64; .*--text-encoder", text_encoders=[path])


# --- hostile headers


def mutate(shapes: dict[str, tuple[int, ...]], draw: random.Random) -> dict[str, tuple[str, tuple[int, ...]]]:
    """A header's names, dtypes and shapes with a few of them changed, dropped, doubled or renamed."""
    table = {name: ("F16", shape) for name, shape in shapes.items()}
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        name = draw.choice(list(table))
        dtype, shape = table[name]
        kind = draw.randrange(10)
        if kind == 0:
            del table[name]
        elif kind == 1:
            part = name.split(".")
            part[draw.randrange(len(part))] = draw.choice(
                ("0", "7", "99", "1000000", "9" * 5000, "", "x", "weight", "٣")
            )
            table[".".join(part)] = table.pop(name)
        elif kind == 2:
            table[draw.choice(("model_ema.", "first_stage_model.", "lora_", "x.", "model.diffusion_model.")) + name] = (
                dtype,
                shape,
            )
        elif kind == 3:
            prefix = draw.choice(sorted({n.rpartition(".")[0] for n in shapes}))
            for other in [n for n in table if n.startswith(prefix)]:
                del table[other]
        elif kind == 4:
            dtype = draw.choice(
                ("F64", "F32", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I8", "U8", "BOOL", "C64", "F8_E8M0")
            )
            table[name] = (dtype, shape)
        elif kind == 5:
            marker = draw.choice(("alphas_cumprod", "edm_mean", "edm_std", "edm_vpred.sigma_max", "ztsnr", "v_pred"))
            size = draw.choice(((), (0,), (1,), (4,), (1000,), (70_000,), (2, 500)))
            table[marker] = (draw.choice(("F32", "F16", "I64", "C64", "BOOL")), size)
        elif kind == 6:
            block = draw.choice(("input_blocks", "output_blocks", "input_blocks.1.1.transformer_blocks"))
            for number in range(draw.choice((3, 70, 300))):
                table[f"model.diffusion_model.{block}.{number}.0.x"] = ("F16", (1,))
        else:
            sizes: tuple[int, ...] = draw.choice(
                ((), (0,), (1,), (1, 2**31), (2**31, 1), (2**20, 2**11), (*shape, 1), shape[1:], shape[::-1])
            )
            if sizes and kind > 7:
                at = draw.randrange(max(len(shape), 1))
                sizes = (*shape[:at], draw.choice((0, 1, 3, 31, 33, 64, 2**18, 2**30)), *shape[at + 1 :])
            table[name] = (dtype, tuple(sizes))
        if not table:
            break
    return table


def write_header(path: Path, table: dict[str, tuple[str, tuple[int, ...]]]) -> bool:
    """Write the file, all zeros; False where it would be larger than a file system takes."""
    sizes = {"F64": 8, "I64": 8, "C64": 8, "F32": 4, "F16": 2, "BF16": 2}
    header, end = {}, 0
    for name, (dtype, shape) in table.items():
        count = sizes.get(dtype, 1)
        for size in shape:
            count *= size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + count]}
        end += count
    if end > 2**42:
        return False
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    return True


def test_mutated_headers_load_or_are_refused(
    micro: Any, tmp_path: Path, own_memory: Callable[[], int], request: pytest.FixtureRequest
) -> None:
    """500 seeded cases: an error of ours with one line, or a model; quick, and in little memory.

    Building takes most of the time, so of the cases that inspection lets through one in five is loaded.
    """
    draw = random.Random(5)
    path = tmp_path / "model.safetensors"
    assert write_header(path, {name: ("F16", shape) for name, shape in micro.items()})
    load_model(path)
    gc.freeze()  # the collector need not walk torch and pytest thousands of times
    request.addfinalizer(gc.unfreeze)
    before = own_memory()
    cases, passed, slowest, grown = 0, 0, 0.0, 0
    ends: Counter[str] = Counter()
    while cases < 500:
        if not write_header(path, mutate(micro, draw)):
            continue
        cases += 1
        start = time.process_time()
        problem = "refused"
        try:
            found = inspect(path)
            problem = found.problem or ("" if found.kind.key == "checkpoint" else found.kind.title)
            assert all("\n" not in line for line in found.lines())
        except AvilaError as error:
            check_line(error)
        passed += not problem
        if problem or passed % 5 == 0:
            try:
                load_model(path)
                ends["loaded"] += 1
                assert not problem
            except AvilaError as error:
                check_line(error)
                ends[type(error).__name__] += 1
        slowest = max(slowest, time.process_time() - start)
        grown = max(grown, own_memory() - before)
    assert ends["loaded"] > 8
    assert ends["WeightMismatch"] > 100
    assert len(ends) >= 3, "and other refusals, such as MissingPart"
    assert slowest < 30
    assert grown < 100e6


@pytest.mark.parametrize(
    "names",
    [
        [f"{UNET}input_blocks.{n}.0.in_layers.2.weight" for n in range(12_000)],
        [f"{UNET}input_blocks.1.1.transformer_blocks.{n}.norm1.weight" for n in range(12_000)],
        [f"{UNET}input_blocks.{n}.1.transformer_blocks.0.norm1.weight" for n in range(12_000)],
        [f"down_blocks.{n}.resnets.0.norm1.weight" for n in range(12_000)] + ["conv_in.weight", "up_blocks.0.x"],
        [f"{VAE}decoder.up.{n}.block.0.conv2.weight" for n in range(12_000)],
        [f"{TEXT}text_model.encoder.layers.{n}.mlp.fc1.weight" for n in range(12_000)],
        [f"conditioner.embedders.{n}.transformer.text_model.encoder.layers.0.x" for n in range(12_000)],
        [UNET + ".".join("0" * n) for n in (10_000, 100_000, 1_000_000)],
        [f"{UNET}{'a' * n}" for n in (10_000, 100_000, 1_000_000)],
    ],
    ids=["rows", "depth", "depths", "diffusers", "levels", "layers", "towers", "dots", "long"],
)
def test_thousands_of_names_end_soon(names: list[str], micro: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    assert write_header(path, {n: ("F16", s) for n, s in micro.items()} | dict.fromkeys(names, ("F16", (1,))))
    start = time.process_time()
    for act in (inspect, load_model):
        try:
            act(path)
        except AvilaError as error:
            check_line(error)
    assert time.process_time() - start < 6


def test_sizes_beyond_reason_are_refused_before_anything_is_built(micro: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    huge = {
        f"{UNET}input_blocks.1.0.in_layers.2.weight": (2**31, 32, 1, 1),
        f"{UNET}input_blocks.0.0.weight": (2**30, 4, 1, 1),
        f"{TEXT}text_model.embeddings.token_embedding.weight": (1, 2**31),
        f"{VAE}decoder.up.0.block.0.conv2.weight": (2**33, 1, 1, 1),
    }
    for name, shape in huge.items():
        table = {n: ("F16", s) for n, s in micro.items()} | {name: ("F8_E4M3", shape)}
        assert write_header(path, table)
        refuse(path, WeightMismatch, "expected sizes from 1 to 262,144")
