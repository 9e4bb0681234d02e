"""The header gate, mapped tensors, small reads without torch, and the writer; the safetensors library is the oracle."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from avila_diffusion.checkpoint.header import DTYPES, MAX_TENSORS
from avila_diffusion.checkpoint.safetensors import (
    TensorFile,
    float8_table,
    read_header,
    read_small,
    write_safetensors,
)
from avila_diffusion.errors import AvilaError, FileProblem, HeaderError, ModelNotFound, OutputProblem, PickleRefused

F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def pack(header: object, data: bytes = b"\0" * 4) -> bytes:
    """A file of the given header (an object for JSON, or its bytes) and tensor bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8")
    return len(raw).to_bytes(8, "little") + raw + data


def every_dtype() -> dict[str, torch.Tensor]:
    """A tensor of each dtype that torch and the format share, with an empty one and a scalar among them."""
    generator = torch.Generator().manual_seed(5)
    tensors: dict[str, torch.Tensor] = {}
    for name, (bits, torch_name) in DTYPES.items():
        if torch_name is None or name.startswith("F6"):
            continue
        codes = torch.randint(
            0, 2 if name == "BOOL" else 256, (3, 5, bits // 8), generator=generator, dtype=torch.uint8
        )
        tensors[f"t.{name}"] = codes.view(getattr(torch, torch_name))[..., 0]
    return tensors | {"scalar": torch.tensor(7.5), "empty": torch.zeros(0, 4), "ünï": torch.ones(1, 1, 1)}


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_header_tells_what_the_library_wrote(tmp_path: Path) -> None:
    tensors = every_dtype()
    path = tmp_path / "all.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"a": "é", "b": ""})
    header = read_header(path)
    assert header.metadata == {"a": "é", "b": ""}
    assert header.size == path.stat().st_size
    assert set(header.entries) == set(tensors)
    starts = [entry.start for entry in header.entries.values()]
    assert starts == sorted(starts)
    content = path.read_bytes()
    for name, entry in header.entries.items():
        assert entry.shape == tuple(tensors[name].shape)
        assert content[entry.start : entry.end] == bytes_of(tensors[name])


@pytest.mark.parametrize("mapped", [True, False])
def test_tensors_equal_the_librarys(tmp_path: Path, mapped: bool) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in every_dtype().items()}
    path = tmp_path / "all.safetensors"
    save_file(tensors, path)
    with TensorFile(path, mapped=mapped) as file:
        assert sorted(file.names) == sorted(tensors)
        for name, tensor in tensors.items():
            ours = file.tensor(name)
            assert (ours.dtype, ours.shape) == (tensor.dtype, tensor.shape)
            assert bytes_of(ours) == bytes_of(tensor)
            assert bytes(file.raw(name)) == bytes_of(tensor)


@pytest.mark.parametrize("mapped", [True, False])
def test_unaligned_tensors_are_read(tmp_path: Path, mapped: bool) -> None:
    odd = {"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}
    odd["b"] = {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]}
    path = tmp_path / "odd.safetensors"
    path.write_bytes(pack(odd, b"abc" + np.array([1.5, -2.0], "<f4").tobytes()))
    tensor = TensorFile(path, mapped=mapped).tensor("b")
    assert tensor.tolist() == [1.5, -2.0]
    assert tensor.data_ptr() % 4 == 0


def test_a_mapping_is_private_shared_and_outlives_close(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.arange(1024.0)}, path)
    before = path.read_bytes()
    file = TensorFile(path)
    tensor, again = file.tensor("w"), file.tensor("w")
    assert tensor.data_ptr() == again.data_ptr(), "a second call must not copy"
    file.close()
    with pytest.raises(FileProblem, match="closed"):
        file.tensor("w")
    tensor += 1
    assert tensor[-1] == 1024.0
    assert path.read_bytes() == before
    assert TensorFile(path).tensor("w")[-1] == 1023.0


def test_reading_without_a_mapping_gives_fresh_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.arange(8.0)}, path)
    with TensorFile(path, mapped=False) as file:
        file.tensor("w").zero_()
        assert file.tensor("w").tolist() == list(range(8))


def test_prefetch_returns_and_harms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.arange(8.0)}, path)
    for mapped in (True, False):
        with TensorFile(path, mapped=mapped) as file:
            file.prefetch()
            for thread in threading.enumerate():
                if thread.name == "prefetch":
                    thread.join(10)
            assert file.tensor("w").sum() == 28


def test_a_file_changed_since_its_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.arange(8.0)}, path)
    header = read_header(path)
    os.utime(path, ns=(header.mtime_ns, header.mtime_ns + 1_000_000_000))
    with pytest.raises(HeaderError, match="changed on disk"):
        TensorFile(header)
    with pytest.raises(HeaderError, match="changed on disk"):
        read_small(header, ["w"])
    header = read_header(path)
    path.write_bytes(path.read_bytes()[:-4])
    os.utime(path, ns=(header.mtime_ns, header.mtime_ns))
    with pytest.raises(HeaderError, match="changed on disk"):
        TensorFile(header, mapped=False)


def test_an_unmapped_file_notices_a_change_between_two_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"v": torch.ones(2), "w": torch.arange(8.0)}, path)
    with TensorFile(path, mapped=False) as file:
        assert file.tensor("v").sum() == 2
        save_file({"v": torch.ones(2), "w": torch.arange(9.0)}, path)
        with pytest.raises(HeaderError, match="changed on disk"):
            file.tensor("w")


def test_small_tensors_are_decoded_without_torch(tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in every_dtype().items() if "E8M0" not in name}
    path = tmp_path / "all.safetensors"
    save_file(tensors, path)
    arrays = read_small(read_header(path), tensors)
    for name, tensor in tensors.items():
        wide = tensor.float() if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
        np.testing.assert_array_equal(arrays[name], wide.numpy(), err_msg=name)
        assert arrays[name].dtype == wide.numpy().dtype


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name.startswith("F8")])
def test_float8_tables_equal_torchs(dtype: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(getattr(torch, DTYPES[dtype][1] or ""))
    np.testing.assert_array_equal(float8_table(dtype), codes.float().numpy())


def test_small_reads_are_bounded_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(100)}, path)
    header = read_header(path)
    with pytest.raises(HeaderError, match=r"400 bytes .*limit 399"):
        read_small(header, ["w"], limit=399)
    with pytest.raises(HeaderError, match="no tensor 'x'"):
        read_small(header, ["x"])
    with pytest.raises(HeaderError, match="no tensor 'x'"):
        TensorFile(header).tensor("x")


def test_no_torch_is_imported_for_headers_and_small_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(4, dtype=torch.bfloat16)}, path)
    code = (
        "import sys; from avila_diffusion.checkpoint.safetensors import *\n"
        "from avila_diffusion.checkpoint import convert, folders\n"
        "h = read_header(sys.argv[1]); assert 'numpy' not in sys.modules\n"
        "assert read_small(h, ['w'])['w'].tolist() == [1.0] * 4; assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=environment)


# --- the writer


def test_what_is_written_is_byte_for_byte_the_librarys(tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in every_dtype().items()}
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write_safetensors(ours, dict(reversed(tensors.items())), {"k": "é"})
    save_file(tensors, theirs, metadata={"k": "é"})
    assert ours.read_bytes() == theirs.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_views_and_shared_storages_are_written_as_they_read(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    views = {"t": base.T, "s": base[1::2, ::3], "x": base[0, 0].expand(5), "same": base, "c": torch.tensor([1j]).conj()}
    write_safetensors(tmp_path / "v.safetensors", views)
    for name, tensor in load_file(tmp_path / "v.safetensors").items():
        assert torch.equal(tensor, views[name]), name


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"w": torch.ones(2)})
    before = path.read_bytes()
    with pytest.raises(OutputProblem, match="complex128"):
        write_safetensors(path, {"w": torch.ones(2, dtype=torch.complex128)})
    with pytest.raises(OutputProblem, match="__metadata__"):
        write_safetensors(path, {"__metadata__": torch.ones(2)})
    with pytest.raises(OutputProblem, match="cannot be written"):
        write_safetensors(tmp_path / "no" / "a.safetensors", {"w": torch.ones(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- the gate: what is refused, and in which words

WELL_FORMED: list[tuple[object, bytes]] = [
    ({}, b""),
    (b"{}   ", b""),
    ({"__metadata__": None}, b""),
    ({"a": F32}, b"\0" * 4),
    ({"a": {**F32, "extra": [1]}}, b"\0" * 4),
    ({"../../etc/passwd": F32}, b"\0" * 4),
    ({"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, b"\0" * 4),
    ({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"\0"),
    ({"b": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]}, "a": F32}, b"\0" * 4),
]

MALFORMED: list[tuple[object, bytes, str]] = [
    (b" {}", b"", "no known kind"),
    (b"[]", b"", "not a safetensors file"),
    (b"{} x", b"", "not JSON"),
    (b'{"a":', b"", "not JSON"),
    (b'{"\xff":1}', b"", "not UTF-8"),
    ({"a": F32}, b"\0" * 3, "truncated: the header promises 73 bytes, the file has 72; download"),
    ({"a": F32}, b"\0" * 5, "1 bytes after the last tensor"),
    ({"a": {**F32, "dtype": "F33"}}, b"\0" * 4, "unknown dtype 'F33'"),
    ({"a": {**F32, "dtype": ["F32"]}}, b"\0" * 4, "unknown dtype"),
    ({"a": {**F32, "shape": [-1]}}, b"\0" * 4, "impossible shape"),
    ({"a": {**F32, "shape": [True]}}, b"\0" * 4, "impossible shape"),
    ({"a": {**F32, "shape": 1}}, b"\0" * 4, "impossible shape"),
    ({"a": {**F32, "shape": [1] * 65}}, b"\0" * 4, "impossible shape"),
    ({"a": {**F32, "shape": [2**40, 2**40]}}, b"\0" * 4, "impossible shape"),
    ({"a": {**F32, "shape": [0, 2**62], "data_offsets": [0, 0]}}, b"", "impossible shape"),
    ({"a": {**F32, "shape": [2]}}, b"\0" * 4, r"4 bytes; F32 of shape \[2\] takes 8"),
    ({"a": {**F32, "data_offsets": [0, 4, 8]}}, b"\0" * 4, "impossible offsets"),
    ({"a": {**F32, "data_offsets": [4, 0]}}, b"\0" * 4, "-4 bytes"),
    ({"a": {**F32, "shape": [2**64], "data_offsets": [0, 2**66]}}, b"\0" * 4, "impossible shape"),
    ({"a": F32, "b": {**F32, "data_offsets": [2, 6]}}, b"\0" * 8, "'b' that overlaps"),
    ({"a": F32, "b": {**F32, "data_offsets": [5, 9]}}, b"\0" * 9, "'b' that leaves a hole"),
    ({"a": {**F32, "data_offsets": [1, 5]}}, b"\0" * 5, "leaves a hole"),
    ({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, b"\0", "takes 2"),
    ({"a": ["F32", [1], [0, 4]]}, b"\0" * 4, "not an object"),
    ({"a": {}}, b"", "unknown dtype None"),
    ({"__metadata__": [1]}, b"", "__metadata__"),
    ({"__metadata__": {"a": 1}}, b"", "not text"),
    ({"__metadata__": {"a": {"b": "c"}}}, b"", "not text"),
    (b'{"a":1,"a":1}', b"", "name 'a' twice"),
    (b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4, "name 'dtype' twice"),
    (b'{"__metadata__":{},"__metadata__":{}}', b"", "twice"),
    (b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4, "surrogate"),
    (b'{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', b"\0" * 4, "whole numbers"),
    (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"\0" * 4, "whole numbers"),
    (b'{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,4]}}', b"\0" * 4, "whole numbers"),
    (b'{"a":' + b"9" * 100_000 + b"}", b"", "100,000 digits"),
    (b'{"a":' + b"[" * 250_000 + b"]" * 250_000 + b"}", b"", "deeply"),
    (b'{"a":' + b'{"a":' * 90_000 + b"1" + b"}" * 90_000 + b"}", b"", "deeply"),
    (b'{"a":[' + b"[]," * 500_000 + b"[]]}", b"", "too many parts"),
]


@pytest.mark.parametrize(("header", "data"), WELL_FORMED, ids=range(len(WELL_FORMED)))
def test_well_formed_headers_are_read_as_by_the_library(tmp_path: Path, header: object, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(pack(header, data))
    with safetensors.safe_open(path, "np") as theirs:
        assert set(read_header(path).entries) == set(theirs.keys())


@pytest.mark.parametrize(("header", "data", "words"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_headers_are_refused_in_one_line(tmp_path: Path, header: object, data: bytes, words: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(pack(header, data))
    with pytest.raises(HeaderError, match=words) as caught:
        read_header(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_more_tensors_than_the_limit_are_refused(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    path = tmp_path / "many.safetensors"
    path.write_bytes(pack({str(number): empty for number in range(MAX_TENSORS)}, b""))
    assert len(read_header(path).entries) == MAX_TENSORS
    path.write_bytes(pack({str(number): empty for number in range(MAX_TENSORS + 1)}, b""))
    with pytest.raises(HeaderError, match="100,001 tensors"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", HeaderError, "empty"),
        (b"\0" * 100, HeaderError, "zero bytes"),
        (b"PK\x03\x04" + b"\0" * 60, PickleRefused, "avila convert"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", PickleRefused, "avila convert"),
        (b"\x80\x04\x95" + b"\0" * 60, PickleRefused, "avila convert"),
        (b"GGUF\x03\0\0\0" + b"\0" * 60, HeaderError, "GGUF"),
        (b"<!DOCTYPE html><html>", HeaderError, "web page"),
        (b"\n  <html lang='en'>", HeaderError, "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", HeaderError, "git lfs pull"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 60, HeaderError, "PNG"),
        (b'{"error":"Repository not found"}', HeaderError, "JSON"),
        (b"x" * 257 + b"ustar" + b"\0" * 60, HeaderError, "tar archive"),
        (b"hello, this is a text", HeaderError, "no known kind"),
        (b"\x01\0\0\0\0\0\0\0", HeaderError, "no known kind"),
        ((2**63).to_bytes(8, "little") + b"{}", HeaderError, "header of 9,223,372,036,854,775,808 bytes"),
        ((2**24 + 1).to_bytes(8, "little") + b"{}", HeaderError, "header of 16,777,217 bytes"),
        ((100).to_bytes(8, "little") + b"{}", HeaderError, "truncated: the header promises 108 bytes, the file has 10"),
    ],
)
def test_other_files_are_called_by_their_name(
    tmp_path: Path, content: bytes, error: type[AvilaError], words: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(error, match=words):
        read_header(path)


def test_folders_missing_files_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match="is a folder"):
        read_header(tmp_path)
    with pytest.raises(ModelNotFound, match="does not exist"):
        read_header(tmp_path / "no.safetensors")
    with pytest.raises(FileProblem, match="cannot be read"):
        read_header(tmp_path / "a\0b")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(HeaderError, match="pipe"):
            read_header(tmp_path / "pipe")


# --- hostile headers by the thousand


def mutate(seed: bytes, random_: random.Random) -> bytes:
    """A copy of a file with bits flipped, bytes overwritten, pieces cut out, doubled or moved."""
    content = bytearray(seed)
    for _ in range(random_.choice((1, 1, 2, 4, 16))):
        spot, length = random_.randrange(len(content)), random_.choice((1, 2, 4, 8, 40))
        kind = random_.randrange(6)
        if kind == 0:
            content[spot] ^= 1 << random_.randrange(8)
        elif kind == 1:
            content[spot] = random_.choice(b'{}[]",:0123456789-.eE\\u\0\xff')
        elif kind == 2:
            del content[spot : spot + length]
        elif kind == 3:
            content[spot:spot] = content[spot : spot + length]
        elif kind == 4:
            content[:8] = random_.choice((0, 1, 2**31, 2**32, 2**63, 2**64 - 1, len(content), 99)).to_bytes(8, "little")
        else:
            del content[spot:]
        if not content:
            break
    return bytes(content)


def grow(random_: random.Random, depth: int = 0) -> Any:
    """A random piece of JSON with a liking for what headers are made of."""
    kind = random_.randrange(8 if depth < 4 else 6)
    if kind == 0:
        return random_.choice((0, 1, 4, 8, -1, 2**31, 2**53, 2**63, 2**64, 10**40))
    if kind == 1:
        return random_.choice((*DTYPES, "F33", "", "a\0b", "\ud800", "../x"))
    if kind == 2:
        return random_.choice((None, True, False, 0.5, float("nan"), float("inf")))
    if kind in (3, 4):
        offsets = sorted(random_.choice((0, 1, 2, 4, 8, 12, 2**40, 2**63)) for _ in range(2))
        shape = [random_.choice((0, 1, 2, 3, 2**33)) for _ in range(random_.randrange(4))]
        return {"dtype": random_.choice(list(DTYPES)), "shape": shape, "data_offsets": offsets}
    if kind == 5:
        return [grow(random_, depth + 1) for _ in range(random_.randrange(4))]
    names = random_.sample(("a", "b", "dtype", "shape", "data_offsets", "__metadata__", "", "é"), random_.randrange(5))
    return {name: grow(random_, depth + 1) for name in names}


def library_accepts(path: Path) -> bool:
    try:
        with safetensors.safe_open(path, "np") as file:
            list(file.keys())
    except Exception:  # The library's errors have no common class; that it refuses is all that matters here.
        return False
    return True


def test_thousands_of_hostile_headers_end_well(tmp_path: Path) -> None:
    """Each is read or refused by an error of ours, at once and in little memory; what is read, the library reads."""
    random_ = random.Random(20)
    good = tmp_path / "good.safetensors"
    save_file(
        {"a": torch.ones(2, 2), "b.c": torch.zeros(3, dtype=torch.float16), "e": torch.zeros(0)}, good, {"k": "v"}
    )
    seed = good.read_bytes()
    cases = [seed[:length] for length in range(len(seed))]
    cases += [mutate(seed, random_) for _ in range(3200)]
    cases += [
        pack({"a": grow(random_), "b": grow(random_)}, b"\0" * random_.choice((0, 4, 8, 12))) for _ in range(1200)
    ]
    cases += [pack(grow(random_), b"\0" * random_.choice((0, 4, 8))) for _ in range(900)]
    assert len(cases) >= 5000
    read, slowest, path = 0, 0.0, tmp_path / "case.safetensors"
    tracemalloc.start()
    try:
        for case in cases:
            path.write_bytes(case)
            start = time.process_time()
            try:
                header = read_header(path)
            except AvilaError as problem:
                assert "\n" not in str(problem)
            else:
                read += 1
                assert library_accepts(path), case
                assert all(entry.end <= len(case) for entry in header.entries.values())
            slowest = max(slowest, time.process_time() - start)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read > 50, "the mutations should leave some files whole"
    assert slowest < 30
    assert peak < 20e6


def test_what_only_the_library_accepts_falls_under_a_rule_of_ours(tmp_path: Path) -> None:
    """Over the same kinds of files: a header that the library reads and we refuse breaks one of our stricter rules."""
    random_ = random.Random(21)
    good = tmp_path / "good.safetensors"
    save_file({"a": torch.ones(2, 2), "b.c": torch.zeros(3, dtype=torch.float16)}, good)
    seed = good.read_bytes()
    rules = ("twice", "no known kind", "impossible shape", "not an object", "surrogate", "does not begin")
    path = tmp_path / "case.safetensors"
    for _ in range(1500):
        path.write_bytes(mutate(seed, random_))
        if library_accepts(path):
            try:
                read_header(path)
            except AvilaError as problem:
                assert any(rule in str(problem) for rule in rules), problem


@pytest.mark.parametrize(
    "filler",
    [
        b'"a":[0],',
        b"[[],[]],",
        b'{"a":0},',
        b'"' + b"a" * 60 + b'":"",',
        b"9" * 16 + b",",
        b"257,",
        b"\\u0000",
        b"{",
        b'"',
    ],
)
def test_the_largest_headers_cost_little(tmp_path: Path, filler: bytes) -> None:
    """16 MB of hostile JSON: an answer within seconds and less memory than a handful of copies of the header."""
    raw = (b'{"__metadata__":{"x":[' + filler * (2**24 // len(filler)))[: 2**24]
    path = tmp_path / "large.safetensors"
    path.write_bytes(pack(raw, b""))
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(HeaderError):
            read_header(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 60
    assert peak < 100e6
