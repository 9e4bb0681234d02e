"""`avila convert`: pickled files become safetensors in a confined child; safetensors files change their dtype."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from avila_diffusion.checkpoint import convert as conversion
from avila_diffusion.checkpoint.convert import ConvertReport, convert, read_in_child
from avila_diffusion.checkpoint.safetensors import read_header
from avila_diffusion.cli import main
from avila_diffusion.errors import (
    AvilaError,
    FileProblem,
    HeaderError,
    ModelNotFound,
    OutputProblem,
    PickleRefused,
    RequestError,
)

MATERIAL = Path(__file__).resolve().parents[2].parent / "shared" / "material"


def convert_here(source: Path, target: Path, dtype: str | None = None) -> ConvertReport:
    """What the child does, in this process: quicker, and unconfined, so that only the reader itself protects."""
    return conversion._convert_pickle(source, target, conversion.TARGET_DTYPES[dtype] if dtype else None)


def tensors_of_all_kinds() -> dict[str, torch.Tensor]:
    """Every dtype that both formats hold, views of one storage, a tied one, an empty one and a scalar."""
    base = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    kinds: tuple[str, ...] = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    kinds += ("int64", "int32", "int16", "int8", "bool", "complex64")
    tensors = {f"as.{kind}": (base * 9).to(getattr(torch, kind)) for kind in kinds}
    tensors |= {
        f"as.{kind}": (base * 9).abs().to(getattr(torch, kind)) for kind in ("uint8", "uint16", "uint32", "uint64")
    }
    tensors |= {
        "base": base,
        "tied": base,
        "transposed": base.T,
        "strided": base[1::2, 1::3],
        "flat": base.view(-1)[5:],
    }
    return tensors | {"expanded": base[0, :1].expand(3, 5), "empty": base[:0], "scalar": base[2, 3]}


def assert_same(path: Path, wanted: dict[str, torch.Tensor]) -> None:
    found = load_file(path)
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert bytes_of(found[name]) == bytes_of(tensor), name


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_a_checkpoint_goes_through_the_child(tmp_path: Path) -> None:
    wanted = tensors_of_all_kinds()
    source, target = tmp_path / "ein Modell 'é' ☃ %PATH% $(x).ckpt", tmp_path / "ünï out.safetensors"
    content = {"epoch": 3, "state_dict": OrderedDict(wanted), "optimizer_states": [{"m": torch.ones(3)}]}
    torch.save(content, source)
    report = convert(source, target)
    assert_same(target, wanted)
    assert (report.source, report.target, report.kind) == (source, target, "zip")
    assert report.tensors == len(wanted)
    assert report.size == target.stat().st_size
    assert sum(report.dtypes.values()) == len(wanted)
    assert report.converted == 0
    assert dict(report.dropped) == {
        "epoch": "a number beside the model (state_dict)",
        "optimizer_states": "a list of 1 entries beside the model (state_dict)",
    }
    assert read_header(target).metadata == {"format": "pt"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, target.name])


def test_the_command_shows_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "a.ckpt", tmp_path / "a.safetensors"
    torch.save({"epoch": 3, "state_dict": {"w": torch.tensor([1.0, 70000.0]), "n": torch.arange(3)}}, source)
    assert main(["convert", str(source), str(target), "--dtype", "f16"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{target}: 0.00 GB, 2 tensors (F16 1, I64 1)",
        "1 tensors changed their dtype",
        "left out: 1 entries: a number beside the model (state_dict)",
        "w: 1 values up to 70000 became infinite in torch.float16",
    ]
    assert main(["convert", str(source), str(target), "--overwrite", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["source"], said["target"], said["kind"], said["tensors"]) == (str(source), str(target), "zip", 2)
    assert said["dropped"] == [{"name": "epoch", "reason": "a number beside the model (state_dict)"}]


def test_a_target_that_no_file_can_be_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors")
    for name in ("x" * 300 + ".safetensors", "a.safetensors/b.safetensors"):
        with pytest.raises(OutputProblem, match="choose another OUT"):
            convert(tmp_path / "a.safetensors", tmp_path / name)


def test_the_legacy_format_round_trips(tmp_path: Path) -> None:
    # torch itself cannot read its legacy files with float8 or unsigned 16 to 64 bit storages, so those stay out.
    odd = ("float8", "uint16", "uint32", "uint64")
    wanted = {name: tensor for name, tensor in tensors_of_all_kinds().items() if not any(kind in name for kind in odd)}
    torch.save(wanted, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    report = convert(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert report.kind == "pickle"
    assert_same(tmp_path / "a.safetensors", wanted)


def test_another_dtype_through_the_child(tmp_path: Path) -> None:
    save = {"w": torch.tensor([1.0, 1e-3, 70000.0]), "n": torch.arange(3), "betas": torch.linspace(0, 1, 1000).double()}
    torch.save({"state_dict": save}, tmp_path / "a.ckpt")
    report = convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors", dtype="f16")
    found = load_file(tmp_path / "a.safetensors")
    assert torch.equal(found["w"], save["w"].half())
    assert torch.equal(found["n"], save["n"])
    assert torch.equal(found["betas"], save["betas"]), "schedule tables keep their precision"
    assert report.converted == 1
    assert report.dtypes == {"F16": 1, "I64": 1, "F64": 1}
    assert report.notes == ("w: 1 values up to 70000 became infinite in torch.float16",)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_safetensors_change_dtype_and_keep_metadata(tmp_path: Path, dtype: str) -> None:
    wanted = {name: tensor.contiguous().clone() for name, tensor in tensors_of_all_kinds().items()}
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(wanted, source, {"modelspec.title": "é", "ss_tag": "{}"})
    report = convert(source, target, dtype=dtype)
    goal = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    assert_same(
        target, {name: tensor.to(goal) if tensor.is_floating_point() else tensor for name, tensor in wanted.items()}
    )
    assert read_header(target).metadata == {"modelspec.title": "é", "ss_tag": "{}"}
    assert report.kind == "safetensors"
    assert report.converted == sum(tensor.is_floating_point() and tensor.dtype != goal for tensor in wanted.values())


def test_safetensors_without_a_dtype_are_tidied(tmp_path: Path) -> None:
    wanted = {name: tensor.contiguous().clone() for name, tensor in tensors_of_all_kinds().items()}
    save_file(wanted, tmp_path / "a.safetensors", {"k": "v"})
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_real_files_convert(tmp_path: Path) -> None:
    if not MATERIAL.is_dir():
        pytest.skip(f"{MATERIAL} is not on this machine")
    report = convert(MATERIAL / "textual_inversion" / "ldm_original.pt", tmp_path / "ldm.safetensors")
    found = load_file(tmp_path / "ldm.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "string_to_token.*": (),
        "string_to_param.*": (1, 768),
    }
    assert report.unknown == ("torch.nn.modules.container.ParameterDict",)
    lora = MATERIAL / "lora" / "diffusers_attnprocs_rank4_other.bin"
    assert_same_as_torch(lora, read_in_child(lora))


def assert_same_as_torch(path: Path, found: dict[str, torch.Tensor]) -> None:
    wanted = torch.load(path, map_location="cpu", weights_only=True)
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_read_in_child_gives_tensors_that_outlive_their_file(tmp_path: Path) -> None:
    torch.save({"emb": torch.ones(2, 3).T}, tmp_path / "a.pt")
    found = read_in_child(tmp_path / "a.pt")
    assert torch.equal(found["emb"], torch.ones(3, 2))


# --- which part is the model, and the names


class Net(torch.nn.Module):
    """A small network, as whole-model pickles hold one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)])
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.register_buffer("absent", None)


NETWORK = {"a.weight": torch.ones(2), "b": torch.zeros(1)}

SHAPES: list[tuple[str, Any, set[str]]] = [
    ("flat", NETWORK, {"a.weight", "b"}),
    ("lightning", {"state_dict": NETWORK, "callbacks": {}}, {"a.weight", "b"}),
    ("upscaler", {"params": {"old": torch.ones(1)}, "params_ema": NETWORK}, {"a.weight", "b"}),
    ("twice wrapped", {"model": {"state_dict": NETWORK, "args": 1}}, {"a.weight", "b"}),
    ("nested", {"a": {"weight": torch.ones(2)}, "n": {"x": {"y": torch.ones(1)}}}, {"a.weight", "n.x.y"}),
    ("no model in it", {"model": {"name": "x"}, "w": torch.ones(1)}, {"w"}),
    ("list", [torch.ones(1), torch.ones(2)], {"0", "1"}),
    ("bare", torch.ones(1), {"tensor"}),
    ("hypernetwork", {768: ({"linear.0.weight": torch.ones(1)}, {"x": torch.ones(1)}), "step": 1},
     {"768.0.linear.0.weight", "768.1.x"}),
    ("embedding", {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 768)}, "name": "x", "step": 9},
     {"string_to_param.*"}),
    ("numpy", {"w": np.ones((2, 2), np.float32), "n": np.float64(1.5)}, {"w", "n"}),
    ("module", Net(), set(Net().state_dict())),
    ("module in a wrapper", {"model": Net(), "ema": 0.5}, set(Net().state_dict())),
    ("parameter dictionary", {"p": torch.nn.ParameterDict({"*": torch.ones(3)})}, {"p.*"}),
]  # fmt: skip


@pytest.mark.parametrize(("content", "names"), [case[1:] for case in SHAPES], ids=[case[0] for case in SHAPES])
def test_the_model_is_found_and_its_tensors_named(tmp_path: Path, content: Any, names: set[str]) -> None:
    torch.save(content, tmp_path / "a.pt")
    convert_here(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert set(load_file(tmp_path / "a.safetensors")) == names


def test_dropped_entries_say_why(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop quantized tensors; old files have them.
        quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    content = {
        "w": torch.ones(2),
        "double": torch.ones(2, dtype=torch.complex128),
        "quantized": quantized,
        "sparse": torch.eye(2).to_sparse(),
        "conjugate": torch.ones(2, dtype=torch.complex64).conj(),
        "loss": torch.nn.MSELoss,
        "config": {"a": {"b": 1}, "c": [1, 2]},
        "none": None,
        (1, 2): torch.ones(1),
    }
    torch.save(content, tmp_path / "a.pt")
    report = convert_here(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert set(load_file(tmp_path / "a.safetensors")) == {"w"}
    dropped = dict(report.dropped)
    assert len(dropped) == 8
    assert "C128" in dropped["double"]
    assert "_rebuild_qtensor" in dropped["quantized"]
    assert "_rebuild_sparse_tensor" in dropped["sparse"]
    assert "conjugated" in dropped["conjugate"]
    assert "MSELoss" in dropped["loss"]
    assert dropped["config"] == "a dictionary of 2 entries"
    assert dropped["none"] == "nothing"


def bomb(levels: int, leaf: Any) -> dict[str, Any]:
    node: dict[str, Any] = {"w": leaf}
    for _ in range(levels):
        node = {"a": node, "b": node, "c": node, "d": node}
    return node


def cycle() -> dict[str, Any]:
    node: dict[str, Any] = {"name": "x"}
    node["self"] = node
    return node


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}, "two tensors that would both be named 'a.b'"),
        ({1: torch.ones(1), "1": torch.ones(1)}, "two tensors"),
        ({"epoch": 1, "name": "x"}, "holds no tensors, only a dictionary of 2 entries"),
        ({}, "holds no tensors"),
        ({"\ud800": torch.ones(1)}, "not text"),
        ({"__metadata__": torch.ones(1)}, "__metadata__"),
        (bomb(12, torch.ones(1)), "more than 100,000 tensors"),
        ({"t": torch.ones(1), "z": bomb(12, 1)}, "more than 1,000,000 entries"),
        (cycle(), "holds no tensors"),
        ({str(number): torch.ones(1).expand(2**26) for number in range(8)}, "again and again"),
    ],
    ids=[
        "clash",
        "number and text",
        "none",
        "empty",
        "surrogate",
        "metadata",
        "bomb",
        "empty bomb",
        "cycle",
        "expanded",
    ],
)
def test_what_cannot_be_converted_honestly_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(AvilaError, match=words):
        convert_here(tmp_path / "a.pt", tmp_path / "a.safetensors")


# --- harm that must not be done


def test_no_payload_runs_on_the_whole_way(
    payloads: dict[str, bytes], sentinel: Path, tmp_path: Path, torch_zip: Callable[..., Path]
) -> None:
    """Each in a child of its own: a converted file or an error of ours, and nothing run."""

    def attempt(case: tuple[int, bytes]) -> int:
        number, payload = case
        source, target = tmp_path / f"{number}.ckpt", tmp_path / f"{number}.safetensors"
        torch_zip(source, payload, {"0": b"1234"})
        try:
            convert(source, target)
        except FileProblem as problem:
            assert "\n" not in str(problem)
            assert not target.exists()
            return 0
        return 1

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(attempt, enumerate(payloads.values())))
    assert not sentinel.exists()
    assert not list(tmp_path.glob(".avila-*"))


def test_a_model_with_a_payload_beside_it_converts_without_it(
    tmp_path: Path, sentinel: Path, torch_zip: Callable[..., Path]
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, (f"echo run > {sentinel}",))

    torch.save({"state_dict": {"w": torch.ones(2), "evil": Evil()}, "hook": Evil()}, tmp_path / "a.ckpt")
    report = convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors")
    assert not sentinel.exists()
    assert load_file(tmp_path / "a.safetensors")["w"].tolist() == [1, 1]
    assert [name for name, _ in report.dropped] == ["hook", "evil"]
    assert report.unknown == (f"{os.system.__module__}.system",)
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert sentinel.exists(), "the payload was a dud"


def test_modules_in_the_current_folder_are_not_imported(
    tmp_path: Path, sentinel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "zipfile", "mmap", "numpy", "avila_diffusion", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(sentinel)!r}, 'w').close()\n", encoding="utf-8")
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    convert("a.pt", "a.safetensors")
    assert not sentinel.exists()


def test_the_child_is_confined(tmp_path: Path) -> None:
    """In a process that has confined itself, what a pickle could want to do is refused; its own work is not."""
    source, target = tmp_path / "a.pt", tmp_path / "a.safetensors"
    source.write_bytes(b"x")
    code = """
import mmap, os, socket, subprocess, sys
from pathlib import Path
from avila_diffusion.checkpoint.convert import confine
from avila_diffusion.errors import PickleRefused
source, target = Path(sys.argv[1]), Path(sys.argv[2])
confine(source, target)
def refused(action):
    try:
        action()
    except PickleRefused:
        return True
    return False
assert refused(lambda: os.system("true"))
assert refused(lambda: subprocess.run([sys.executable, "-V"]))
assert refused(lambda: socket.socket())
assert refused(lambda: open(target.with_name("other"), "w"))
assert refused(lambda: os.open(target.with_name("other"), os.O_CREAT | os.O_WRONLY))
assert refused(lambda: open(source, "ab"))
assert source.read_bytes() == b"x"
target.write_bytes(b"fine")
if sys.platform == "linux":
    try:
        mmap.mmap(-1, 8 * 1024**3)
    except OSError:
        print("bounded")
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, source, target], check=True, env=environment, capture_output=True
    )
    assert target.read_bytes() == b"fine"
    assert not (tmp_path / "other").exists()
    if sys.platform == "linux":
        assert done.stdout.strip() == b"bounded"


def test_a_child_that_dies_or_hangs_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    target = tmp_path / "a.safetensors"
    monkeypatch.setattr(conversion, "_CHILD", "import os; os._exit(7)")
    with pytest.raises(FileProblem, match=r"a\.pt ended the process that read it \(code 7\)"):
        convert(tmp_path / "a.pt", target)
    monkeypatch.setattr(conversion, "_CHILD", "raise RuntimeError('first\\nsecond')")
    with pytest.raises(FileProblem, match=r"\(code 1: second\)$"):
        convert(tmp_path / "a.pt", target)
    if sys.platform != "win32":
        monkeypatch.setattr(conversion, "_CHILD", "import os; os.kill(os.getpid(), 11)")
        with pytest.raises(FileProblem, match="signal 11"):
            convert(tmp_path / "a.pt", target)
    monkeypatch.setattr(conversion, "_CHILD", "import time; time.sleep(60)")
    with pytest.raises(PickleRefused, match="not read within 0 seconds"):
        convert(tmp_path / "a.pt", target, timeout=0.2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


# --- the call itself


def test_calls_that_are_wrong_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(2)}, source)
    with pytest.raises(RequestError, match="f16, bf16, f32"):
        convert(source, tmp_path / "b.safetensors", dtype="int8")
    with pytest.raises(RequestError, match=r"end in \.safetensors"):
        convert(source, tmp_path / "b.ckpt")
    with pytest.raises(RequestError, match="both source and target"):
        convert(source, tmp_path / "." / "a.safetensors", overwrite=True)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OutputProblem, match="is a folder"):
        convert(source, tmp_path / "folder.safetensors", overwrite=True)
    with pytest.raises(OutputProblem, match="does not exist"):
        convert(source, tmp_path / "no" / "b.safetensors")
    with pytest.raises(ModelNotFound):
        convert(tmp_path / "none.ckpt", tmp_path / "b.safetensors")
    (tmp_path / "page.ckpt").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(HeaderError, match="web page"):
        convert(tmp_path / "page.ckpt", tmp_path / "b.safetensors")


def test_a_target_is_replaced_only_on_request_and_only_by_a_whole_file(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    target = tmp_path / "b.safetensors"
    target.write_bytes(b"precious")
    with pytest.raises(OutputProblem, match="--overwrite"):
        convert(tmp_path / "a.pt", target)
    (tmp_path / "bad.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-60])
    with pytest.raises(PickleRefused):
        convert(tmp_path / "bad.pt", target, overwrite=True)
    assert target.read_bytes() == b"precious"
    convert(tmp_path / "a.pt", target, overwrite=True)
    assert load_file(target)["w"].tolist() == [1, 1]
    assert not list(tmp_path.glob(".avila-*"))


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputProblem, match="No space left on device"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_plain_pickle_converts(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": np.arange(3)}, 5))
    assert convert(tmp_path / "a.pkl", tmp_path / "a.safetensors").kind == "pickle"
    assert load_file(tmp_path / "a.safetensors")["w"].tolist() == [0, 1, 2]
