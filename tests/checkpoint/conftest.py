"""Shared by the tests of checkpoints: pickles that would run code, were they opened by Python's own unpickler."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

Payloads = dict[str, bytes]


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
