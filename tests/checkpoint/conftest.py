"""Shared by the tests of checkpoints: tiny models as files of every kind, and pickles that would run code, were they
opened by Python's own unpickler.
"""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from avila_diffusion.checkpoint.load import Model, build, build_text_model
from avila_diffusion.config import TextConfig, TransformerConfig, UNetBlockConfig, UNetConfig, VAEConfig
from avila_diffusion.models.unet import UNet
from avila_diffusion.models.vae import VAE

Payloads = dict[str, bytes]
State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def _text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return b"X" + len(raw).to_bytes(4, "little") + raw


def _payloads(code: str) -> Payloads:
    """Pickles that run the Python statement `code` by each way there is."""
    argument, run = _text(code), b"cbuiltins\nexec\n"
    call = run + b"(" + argument + b"tR"
    return {
        "REDUCE": b"\x80\x02" + call + b".",
        "GLOBAL of Python 2": b"\x80\x02c__builtin__\nexec\n(" + argument + b"tR.",
        "STACK_GLOBAL": b"\x80\x04" + _text("builtins") + _text("exec") + b"\x93(" + argument + b"tR.",
        "INST": b"(" + argument + b"ibuiltins\nexec\n.",
        "OBJ": b"(" + run + argument + b"o.",
        "eval": b"\x80\x02cbuiltins\neval\n(" + _text(f"exec({code!r})") + b"tR.",
        "nested in a state dict": b"\x80\x02}(" + _text("w") + b"]" + call + b"a" + _text("v") + b"K\x01u.",
        "as a key": b"\x80\x02}" + call + b"K\x01s.",
        "inside a tensor": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + call + b"K\x00))\x89NtR.",
        "as a hook of a parameter": b"\x80\x02ctorch._utils\n_rebuild_parameter\n(K\x01\x89" + call + b"tR.",
        "a subclass of tensor": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n("
        + run + run + argument + b"\x85NtR.",
        "map over a list": b"\x80\x02cbuiltins\nlist\n(cbuiltins\nmap\n(" + run + b"](" + argument + b"etRtR.",
        "reduce over a list": b"\x80\x02cfunctools\nreduce\n(" + run + b"(" + argument + b"}ttR.",
        "getattr chain": b"\x80\x02cbuiltins\ngetattr\n(cbuiltins\n__import__\n(" + _text("builtins") + b"tR"
        + _text("exec") + b"tR(" + argument + b"tR.",
        "partial": b"\x80\x02cfunctools\npartial\n(" + run + argument + b"tR)R.",
        "__setstate__ of partial": b"\x80\x02cfunctools\npartial\n(cbuiltins\nprint\ntR(" + run + b"(" + argument
        + b"t}Ntb)R.",
        "apply of a stub": b"\x80\x02" + call + b"0" + run + b"q\x00" + argument + b"\x85q\x01R0h\x00h\x01R.",
        "copyreg": b"\x80\x02ccopyreg\n_reconstructor\n(cbuiltins\nobject\ncbuiltins\nobject\nNtR}"
        + _text("__reduce__") + call + b"sb.",
        "a second pickle in bytes": b"\x80\x03cpickle\nloads\n(C" + bytes([len(call) + 3]) + b"\x80\x02" + call + b"."
        + b"tR.",
        "codecs": b"\x80\x02c_codecs\nencode\n(" + argument + _text("exec") + b"tR0" + call + b".",
        "persistent id": b"\x80\x02(" + _text("storage") + call + _text("0") + _text("cpu") + b"K\x01tQ.",
        "text of a persistent id": b"\x80\x02" + call + b"0Pstorage\n.",
        "numpy object array": b"\x80\x02cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(" + _text("O8") + b"\x89\x88tR"
        + call + b"tR.",
        "protocol 0": b"cbuiltins\nexec\np0\n(V" + code.encode() + b"\np1\ntp2\nRp3\n.",
        "torch.load": b"\x80\x02ctorch.storage\n_load_from_bytes\n(" + call + b"tR.",
    }  # fmt: skip


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    """A file that exists as soon as one of the payloads has run."""
    return tmp_path / "pickle-has-run"


@pytest.fixture
def payloads(sentinel: Path) -> Payloads:
    """Hostile pickles by the name of their trick."""
    return _payloads(f"open({str(sentinel)!r}, 'w').close()")


@pytest.fixture
def torch_zip() -> Callable[..., Path]:
    """Writes a file as torch does: a zip of stored members, `data.pkl` and the storages."""

    def write(path: Path, content: object, storages: dict[str, bytes] | None = None, **members: bytes) -> Path:
        data = content if isinstance(content, bytes) else pickle.dumps(content, 2)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            for key, raw in (storages or {}).items():
                archive.writestr(f"archive/data/{key}", raw)
            for name, raw in members.items():
                archive.writestr(f"archive/{name}", raw)
        return path

    return write


@pytest.fixture(scope="session")
def tiny(tiny_state: Callable[[str], State]) -> Callable[[str], State]:
    """The tensors of a tiny model of a family under single-file names, float32; the dictionary is the caller's own."""
    made: dict[str, State] = {}

    def make(family: str = "sd1") -> State:
        if family not in made:
            made[family] = tiny_state(family)
        return dict(made[family])

    return make


@pytest.fixture
def save_state(tmp_path: Path) -> Callable[..., Path]:
    """Writes tensors with the safetensors library, contiguous and each on its own memory."""

    def write(state: Mapping[str, Tensor], name: str = "model.safetensors", **metadata: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {key: tensor.clone().contiguous() for key, tensor in state.items()}
        save_file(tensors, path, {key.replace("__", "."): value for key, value in metadata.items()} or None)
        return path

    return write


@pytest.fixture(scope="session")
def run_networks() -> Callable[[Model], State]:
    """What each network of a model gives for a fixed input, in float32."""

    @torch.no_grad()
    def run(model: Model) -> State:
        generator = torch.Generator().manual_seed(11)
        config = model.spec.unet

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        vector = draw(1, config.adm_channels) if config.adm_channels else None
        guidance = torch.tensor([4.0]) if config.guidance_channels else None
        x, context = draw(1, config.in_channels, 8, 8), draw(1, 7, config.context_channels)
        out = {"unet": model.unet(x, torch.tensor([400.5]), context, vector=vector, guidance=guidance)}
        side = 8 * model.spec.vae.scale
        out["decoder"] = model.vae.decode(draw(1, model.spec.vae.embed_channels, 8, 8))
        out["encoder"] = model.vae.encode(draw(1, 3, side, side).clamp(-1, 1)).mean
        tokens = torch.tensor([[49406, 320, 2368, 49407] + [49407] * 73])
        for index, (tower, spec) in enumerate(zip(model.text, model.spec.text, strict=True)):
            features = tower(
                tokens, dtype=torch.float32, skip=spec.skip, final_norm=spec.final_norm, pooled=spec.pooled
            )
            out[f"text {index}"] = features.hidden
            if features.pooled is not None:
                out[f"pooled {index}"] = features.pooled
        return out

    return run


@pytest.fixture(scope="session")
def micro() -> Shapes:
    """Names and shapes of the smallest model that has every kind of part, for tests by the thousand."""
    attention = TransformerConfig(depth=1, heads=8)

    def row(channels: int, transformer: TransformerConfig | None = None, resample: Any = "none") -> UNetBlockConfig:
        return UNetBlockConfig(in_channels=channels, out_channels=32, transformer=transformer, resample=resample)

    down = UNetBlockConfig(in_channels=32, out_channels=32, residual=False, resample="down")
    unet = UNetConfig(
        in_channels=4,
        out_channels=4,
        model_channels=32,
        embed_channels=32,
        context_channels=64,
        input_blocks=(UNetBlockConfig(in_channels=4, out_channels=32, residual=False), row(32, attention), down),
        middle=row(32),
        output_blocks=(row(64, None, "up"), row(64), row(64)),
    )
    vae = VAEConfig(
        encoder_channels=(32,),
        decoder_channels=(32,),
        encoder_blocks=1,
        decoder_blocks=1,
        encoder_attention=False,
        decoder_attention=False,
    )
    text = TextConfig(kind="clip", vocabulary=49408, width=64, layers=1, heads=1, mlp=64)
    networks = {
        "model.diffusion_model.": build(lambda: UNet(unet)),
        "first_stage_model.": build(lambda: VAE(vae)),
        "cond_stage_model.transformer.": build(lambda: build_text_model(text)),
    }
    return {
        prefix + name: tuple(parameter.shape)
        for prefix, network in networks.items()
        for name, parameter in network.named_parameters()
    }


@pytest.fixture(scope="session")
def write_values() -> Callable[..., Path]:
    """Writes a file of given shapes, all zeros and no disk space, but for some tensors that have values and dtypes."""

    def write(
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        values: Mapping[str, Tensor] | None = None,
        metadata: dict[str, str] | None = None,
    ) -> Path:
        header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
        end, places = 0, []
        for name in [*shapes, *(name for name in values or {} if name not in shapes)]:
            value = (values or {}).get(name)
            if value is None:
                kind, shape, size = "F16", tuple(shapes[name]), 2
            else:
                kind, shape, size = _dtype(value), tuple(value.shape), value.dtype.itemsize
                places.append((end, value))
            begin, end = end, end + size * prod(shape)
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
            for begin, value in places:
                file.seek(8 + len(text) + begin)
                file.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return path

    return write


def _dtype(value: Tensor) -> str:
    """The name the safetensors library gives a tensor's dtype."""
    raw = save({"x": torch.zeros(1, dtype=value.dtype)})
    found: str = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["x"]["dtype"]
    return found


@pytest.fixture(scope="session")
def own_memory() -> Callable[[], int]:
    """Says how many bytes of memory are this process's own, mapped files left out; 0 where the system does not say."""

    def read() -> int:
        status = Path("/proc/self/status")
        if not status.exists():
            return 0
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(lines["RssAnon"].split()[0]) * 1024 if "RssAnon" in lines else 0

    return read
