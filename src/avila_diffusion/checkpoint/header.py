"""The gate in front of a safetensors header: nothing behind it meets a size, offset or name that was not checked.

Format (https://github.com/huggingface/safetensors): 8 bytes little-endian N, N bytes of JSON, then the tensors
without gaps. The gate is stricter than the library where that protects: a header of at most 16 MB and 100,000 tensors
(the library spends 7.8 s and 1.9 GB on a hostile 90 MB one), no name twice, `{` as the first byte, records as
objects. Names are data and are never used as paths. No torch here.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from ..errors import FileProblem, HeaderError, PickleRefused
from .signatures import MAX_HEADER_BYTES, UNKNOWN, describe, kind_of, open_regular

MAX_TENSORS = 100_000
MAX_DIMENSIONS = 64
_MAX_INTEGER_DIGITS = 20
_INT64 = 2**63

# Bits of an element and torch's name, in the order that the safetensors library writes dtypes (widest first).
DTYPES: dict[str, tuple[int, str | None]] = {
    "U64": (64, "uint64"),
    "I64": (64, "int64"),
    "F64": (64, "float64"),
    "C64": (64, "complex64"),
    "F32": (32, "float32"),
    "U32": (32, "uint32"),
    "I32": (32, "int32"),
    "BF16": (16, "bfloat16"),
    "F16": (16, "float16"),
    "U16": (16, "uint16"),
    "I16": (16, "int16"),
    "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
    "F8_E8M0": (8, "float8_e8m0fnu"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E5M2": (8, "float8_e5m2"),
    "I8": (8, "int8"),
    "U8": (8, "uint8"),
    "F6_E3M2": (6, None),
    "F6_E2M3": (6, None),
    "F4": (4, None),
    "BOOL": (8, "bool"),
}
FLOATS = frozenset({"F64", "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: bytes `start` to `end` of the file (absolute), row-major, of a safetensors dtype
    ("F16").
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked header. `entries` in the order of their bytes; `size` (bytes) and `mtime_ns` of the file when it
    was read.
    """

    path: Path
    entries: dict[str, TensorEntry]
    metadata: dict[str, str]
    size: int
    mtime_ns: int


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a safetensors file; no tensor is read.

    Raises HeaderError (damaged, hostile, or another kind of file, which it names), PickleRefused for a pickled
    checkpoint, ModelNotFound where there is no file.
    """
    where = Path(path)
    with open_regular(where) as file:
        try:
            head = file.read(512)
            status = os.fstat(file.fileno())
            length = _header_length(where, head, status.st_size)
            file.seek(8)
            raw = file.read(length)
        except OSError as problem:
            raise FileProblem(f"{where} cannot be read: {problem.strerror}") from None
    try:
        entries, metadata = parse_header(raw, status.st_size)
    except HeaderError as problem:
        raise HeaderError(f"{where} {problem}") from None
    return Header(where, entries, metadata, status.st_size, status.st_mtime_ns)


def is_unchanged(path: Path, size: int, mtime_ns: int) -> bool:
    """Whether `path` is still the file whose header was read, by its size and time."""
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (size, mtime_ns)


def parse_header(raw: bytes, size: int) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """The entries and the metadata of the header JSON `raw`, checked against a file of `size` bytes."""
    table = _parse_json(raw)
    metadata = _check_metadata(table.pop("__metadata__", None))
    if len(table) > MAX_TENSORS:
        raise HeaderError(f"has {len(table):,} tensors; at most {MAX_TENSORS:,} are read")
    origin = 8 + len(raw)
    entries = [_check_entry(name, record, origin) for name, record in table.items()]
    entries.sort(key=lambda entry: (entry.start, entry.end))
    _check_layout(entries, origin, size)
    return {entry.name: entry for entry in entries}, metadata


def _header_length(path: Path, head: bytes, size: int) -> int:
    kind = kind_of(head)
    if kind in ("zip", "pickle"):
        raise PickleRefused(
            f"{path} is a pickled checkpoint (a {kind} file, whatever its suffix); opening a pickle can run code, "
            "so convert it once: avila convert IN OUT.safetensors"
        )
    length = int.from_bytes(head[:8], "little")
    phrase = describe(head)
    if kind == "other" and (phrase != UNKNOWN or len(head) < 9 or head[8:9] != b"{"):
        raise HeaderError(f"{path} is not a safetensors file: it is {phrase}")
    if length > MAX_HEADER_BYTES:
        raise HeaderError(f"{path} claims a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are read")
    if 8 + length > size:
        raise HeaderError(f"{path} is truncated: the header promises {8 + length:,} bytes, the file has {size:,}")
    return length


def _parse_json(raw: bytes) -> dict[str, Any]:
    if raw[:1] != b"{":
        raise HeaderError("has a header that does not begin with {")
    # Counted before parsing, so that memory stays in proportion: 16 MB of "[[],[],…" would become half a gigabyte of
    # lists.
    braces, brackets, commas = (raw.count(mark) for mark in (b"{", b"[", b","))
    if braces > 2 * MAX_TENSORS or brackets > 3 * MAX_TENSORS or commas > 16 * MAX_TENSORS:
        raise HeaderError(
            f"has a header of too many parts ({braces:,} braces, {brackets:,} brackets, {commas:,} commas)"
        )
    try:
        table = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_int=_bounded_int,
            parse_float=_no_float,
            parse_constant=_no_float,
        )
    except UnicodeDecodeError as problem:
        raise HeaderError(f"has a header that is not UTF-8 (byte {problem.start})") from None
    except RecursionError:
        raise HeaderError("has a header nested too deeply") from None
    except json.JSONDecodeError as problem:
        raise HeaderError(f"has a header that is not JSON: {problem.msg} at character {problem.pos:,}") from None
    if not isinstance(table, dict):
        raise HeaderError("has a header that is not a JSON object")
    return table


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise HeaderError(f"has the name {shown(name)} twice in its header")
            seen.add(name)
    return table


def _bounded_int(digits: str) -> int:
    if len(digits) > _MAX_INTEGER_DIGITS:
        raise HeaderError(f"has a number of {len(digits):,} digits in its header")
    return int(digits)


def _no_float(text: str) -> NoReturn:
    raise HeaderError(f"has the number {shown(text)} in its header, where only whole numbers belong")


def shown(name: object) -> str:
    """A name from a file, fit for a one-line message: escaped, and cut after 80 characters."""
    text = ascii(name)
    return text if len(text) <= 80 else text[:77] + "..."


def _check_metadata(table: object) -> dict[str, str]:
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise HeaderError("has __metadata__ that is not an object")
    for key, value in table.items():
        if not isinstance(value, str):
            raise HeaderError(f"has metadata {shown(key)} that is not text")
        _check_text(key)
        _check_text(value)
    return table


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise HeaderError(f"has half a surrogate pair in {shown(text)}") from None


def _check_entry(name: str, record: object, origin: int) -> TensorEntry:
    _check_text(name)
    if not isinstance(record, dict):
        raise HeaderError(f"describes tensor {shown(name)} by something that is not an object")
    dtype, shape, offsets = record.get("dtype"), record.get("shape"), record.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise HeaderError(f"has tensor {shown(name)} of unknown dtype {shown(dtype)}")
    if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS:
        raise HeaderError(f"has tensor {shown(name)} of impossible shape {shown(shape)}")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise HeaderError(f"has tensor {shown(name)} at impossible offsets {shown(offsets)}")
    # torch multiplies the sizes of an empty tensor too, so the zero does not excuse the others.
    if math.prod(size for size in shape if size) * DTYPES[dtype][0] >= _INT64:
        raise HeaderError(f"has tensor {shown(name)} of impossible shape {shown(shape)}")
    bits = math.prod(shape) * DTYPES[dtype][0]
    start, end = offsets
    if bits % 8 or end - start != bits // 8:
        raise HeaderError(
            f"has tensor {shown(name)} with {end - start:,} bytes; "
            f"{dtype} of shape {shown(shape)} takes {-(-bits // 8):,}"
        )
    return TensorEntry(name, dtype, tuple(shape), origin + start, origin + end)


def _whole_numbers(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_layout(entries: list[TensorEntry], origin: int, size: int) -> None:
    position = origin
    for entry in entries:
        if entry.start != position:
            what = "overlaps the one before it" if entry.start < position else "leaves a hole before it"
            raise HeaderError(
                f"has tensor {shown(entry.name)} that {what} (byte {entry.start:,}, expected {position:,})"
            )
        position = entry.end
    if position > size:
        raise HeaderError(
            f"is truncated: the header promises {position:,} bytes, the file has {size:,}; download it again"
        )
    if position < size:
        raise HeaderError(f"has {size - position:,} bytes after the last tensor; they belong to nothing")
