"""The file of a journal: records behind one another, each sealed with a hash that runs through all before it.

    file    "AVILAJNL", version (uint32), records
    record  length of the text (uint32), of the data (uint64), CRC-32 of these twelve bytes, text (JSON), data, seal
    seal    SHA-256 of the seal before, the three numbers, text and data; the first follows that of the file's beginning

All numbers are little-endian. A run may be killed while it writes: the last record is then torn, and dropped in
reading. Damage before the end is another matter, and refused.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from ..errors import JournalProblem

MAGIC = b"AVILAJNL"
VERSION = 1
BEGINNING = MAGIC + struct.pack("<I", VERSION)
FIRST_SEAL = hashlib.sha256(BEGINNING).digest()

_LENGTHS = struct.Struct("<IQ")
_HEAD = _LENGTHS.size + 4
_SEAL = 32
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Record:
    """One record of a file. text: what it says. offset, size: where its data are, in bytes."""

    text: dict[str, Any]
    offset: int
    size: int


@dataclass(frozen=True)
class Scan:
    """All sound records of a file. end: where the next belongs. seal: of the last. torn: bytes behind, to be dropped."""

    records: list[Record]
    end: int
    seal: bytes
    torn: int


def encode(text: Mapping[str, Any], data: bytes, seal: bytes) -> tuple[bytes, bytes]:
    """A record's bytes and its seal; `seal` is that of the record before."""
    written = json.dumps(text, ensure_ascii=True, allow_nan=False).encode("ascii")
    lengths = _LENGTHS.pack(len(written), len(data))
    head = lengths + struct.pack("<I", zlib.crc32(lengths))
    own = hashlib.sha256(seal + head + written)
    own.update(data)
    return b"".join((head, written, data, own.digest())), own.digest()


def scan(stream: FileIO, path: Path) -> Scan:
    """Read and check every record. No more is held than the texts and one chunk.

    Raises JournalProblem where the file is no journal, of another version, without a first record, or damaged.
    """
    size = stream.seek(0, 2)
    stream.seek(0)
    if not size:
        raise JournalProblem(
            f"{path} is empty: a journal was begun there and holds nothing; "
            "run `avila generate` with --journal once more, which may take its place"
        )
    _check_beginning(stream.read(len(BEGINNING)), path)
    records: list[Record] = []
    seal, end = FIRST_SEAL, len(BEGINNING)
    while end < size:
        found = _next(stream, end, size, seal, f"record {len(records) + 1} of {path}")
        if found is None:
            break
        record, seal = found
        records.append(record)
        end = record.offset + record.size + _SEAL
    if not records:
        raise JournalProblem(f"{path} ends before its first record; nothing can be gone on with, delete it")
    return Scan(records, end, seal, size - end)


def read_data(stream: FileIO, record: Record, path: Path) -> bytes:
    """The data of a record that `scan` found."""
    stream.seek(record.offset)
    data = _read(stream, record.size)
    if len(data) != record.size:
        raise JournalProblem(f"{path} became shorter while it was read; something else writes to it")
    return data


def _check_beginning(found: bytes, path: Path) -> None:
    if not found.startswith(MAGIC):
        raise JournalProblem(f"{path} is not a journal; give the file that was named with --journal")
    if found != BEGINNING:
        version = int.from_bytes(found[len(MAGIC) :], "little")
        raise JournalProblem(
            f"{path} is a journal of format {version} and this avila reads format {VERSION}; use the one that wrote it"
        )


def _next(stream: FileIO, start: int, size: int, seal: bytes, name: str) -> tuple[Record, bytes] | None:
    """The record at `start` and its seal, None where the file ends within it. Raises where it is damaged."""
    stream.seek(start)
    head = _read(stream, min(_HEAD, size - start))
    if len(head) < _HEAD:
        return None
    lengths, check = head[: _LENGTHS.size], head[_LENGTHS.size :]
    if zlib.crc32(lengths) != int.from_bytes(check, "little"):
        if _is_zero(stream, start):  # a power cut may leave room that was never filled
            return None
        raise _damaged(name)
    text_length, data_length = _LENGTHS.unpack(lengths)
    end = start + _HEAD + text_length + data_length + _SEAL
    if end > size:
        return None
    text = _read(stream, text_length)
    own = hashlib.sha256(seal + head + text)
    left = data_length
    while left and (chunk := stream.read(min(left, _CHUNK))):
        own.update(chunk)
        left -= len(chunk)
    if left or _read(stream, _SEAL) != own.digest():
        if end == size:
            return None
        raise _damaged(name)
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise _damaged(name)
    return Record(said, start + _HEAD + text_length, data_length), own.digest()


def _read(stream: FileIO, size: int) -> bytes:
    """`size` bytes, fewer only at the end of the file: a raw read may stop before."""
    parts = []
    while size > 0 and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _is_zero(stream: FileIO, start: int) -> bool:
    stream.seek(start)
    while chunk := stream.read(_CHUNK):
        if chunk.count(0) != len(chunk):
            return False
    return True


def _damaged(name: str) -> JournalProblem:
    return JournalProblem(f"{name} is damaged; take another copy of the journal, or make the picture anew")
