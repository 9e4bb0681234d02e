"""Pickled checkpoints (.ckpt, .pt, .pth, .bin) read without running anything in them.

Read are torch's zip files (since 1.6), its older files (a row of pickles, then the storages), and plain pickles. What
a pickle may build is the table in `pickle_tensors`; everything else becomes a stub (see `pickle_machine`). A tensor
is a `TensorRef` with checked bounds in the mapped file, made into bytes or a torch tensor on demand, so that a file
of gigabytes costs little memory. Neither torch nor numpy is imported before that.

Although nothing runs, `convert` still does all this in a child process: memory, time and a crash are its own there.
"""

from __future__ import annotations

import io
import mmap
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FileProblem, PickleRefused
from .header import shown
from .pickle_machine import Global, PickleMachine, Stub
from .pickle_tensors import BUILDERS, ITEM_BYTES, STORAGE_DTYPES, Numpy, Storage, is_count, set_numpy_state
from .signatures import LEGACY_TORCH_MAGIC, kind_of, open_regular

MAX_PICKLE_BYTES = 64 * 1024 * 1024
MAX_DIRECTORY_BYTES = 32 * 1024 * 1024
MAX_MEMBERS = 200_000
_ZIP_MEMBER_HEADER = 30
_ENCRYPTED = 1


@dataclass(frozen=True)
class Pickled:
    """The content of a pickled file: plain containers and values, TensorRef, Numpy, Stub and Global; and the
    globals not built.
    """

    root: Any
    unknown: tuple[str, ...] = ()


def read_pickle(path: str | os.PathLike[str]) -> Pickled:
    """Read a pickled checkpoint; nothing in it is run, and tensors stay in the file until asked for.

    Raises PickleRefused for a file that is damaged, hostile, too large to be honest, big-endian, or no pickle at all.
    """
    where = Path(path)
    with open_regular(where) as file:
        head = file.read(512)
        kind = kind_of(head)
        if kind not in ("zip", "pickle"):
            raise PickleRefused(f"{where} is not a pickled checkpoint")
        try:
            # Copy-on-write, so that what is made from it may be written to; never closed, as tensors may still look
            # at it.
            memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        except (OSError, ValueError) as problem:
            raise FileProblem(f"{where} cannot be mapped into memory: {problem}") from None
        try:
            if kind == "zip":
                return _read_zip(where, memory)
            return _read_legacy(memory) if head[2:].startswith(LEGACY_TORCH_MAGIC) else _read_plain(memory)
        except PickleRefused as problem:
            raise PickleRefused(f"{where} {problem}") from None


def _read_zip(path: Path, memory: memoryview) -> Pickled:
    members = _list_members(path, memory)
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise PickleRefused(f"is a zip archive but not a torch checkpoint ({len(pickles)} members named data.pkl)")
    prefix = pickles[0].removesuffix("data.pkl")
    if prefix + "constants.pkl" in members:
        raise PickleRefused("is a TorchScript program, not a checkpoint; ask its author for the weights alone")
    if prefix + "byteorder" in members:
        start, length = members[prefix + "byteorder"]
        if bytes(memory[start : start + min(length, 16)]).strip() != b"little":
            raise PickleRefused("was saved on a big-endian machine; save it again on a usual one")

    def locate(dtype: str, key: str, count: int) -> Storage:
        start, length = members.get(f"{prefix}data/{key}", (0, -1))
        if count * ITEM_BYTES[dtype] > length:
            raise ValueError(f"storage {shown(key)} is not in the archive or smaller than its tensors")
        return Storage(dtype, count, memory, start)

    start, length = members[pickles[0]]
    if length > MAX_PICKLE_BYTES:
        raise PickleRefused(f"has a pickle of {length:,} bytes beside its tensors (limit {MAX_PICKLE_BYTES:,})")
    machine = _machine(memory[start : start + length], 0, locate)
    return _finish(machine.load(), machine)


def _list_members(path: Path, memory: memoryview) -> dict[str, tuple[int, int]]:
    """Start and length in the file of each member of a zip archive, all stored uncompressed and within the file."""
    try:
        with _CappedFile(path) as file, zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, OverflowError, NotImplementedError, EOFError) as problem:
        raise PickleRefused(f"is a damaged zip archive ({problem}); download it again") from None
    if len(infos) > MAX_MEMBERS:
        raise PickleRefused(f"is a zip archive of {len(infos):,} members; at most {MAX_MEMBERS:,} are read")
    members: dict[str, tuple[int, int]] = {}
    for info in infos:
        name = info.filename
        stored = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
        if not stored or info.flag_bits & _ENCRYPTED:
            raise PickleRefused(f"is a compressed or encrypted zip archive ({shown(name)}), unlike torch's: unpack it")
        if name in members:
            raise PickleRefused(f"is a zip archive with two members {shown(name)}")
        head = memory[info.header_offset : info.header_offset + _ZIP_MEMBER_HEADER]
        if info.header_offset < 0 or len(head) < _ZIP_MEMBER_HEADER or bytes(head[:4]) != b"PK\x03\x04":
            raise PickleRefused(f"is a damaged zip archive ({shown(name)} is not where it should be)")
        lengths = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        start = info.header_offset + _ZIP_MEMBER_HEADER + lengths
        if start + info.file_size > len(memory):
            raise PickleRefused(f"is a truncated zip archive ({shown(name)} reaches past the end); download it again")
        members[name] = (start, info.file_size)
    return members


class _CappedFile(io.FileIO):
    """A file that refuses reads larger than any honest zip directory; zipfile reads the directory in one piece."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = max(0, os.fstat(self.fileno()).st_size - self.tell())
        if size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size:,} bytes")
        return super().read(size) or b""


def _read_legacy(memory: memoryview) -> Pickled:
    """torch before 1.6: pickles of a magic number, a version, the machine, the object and the storages' keys; then
    the storages.
    """
    storages: dict[str, Storage] = {}

    def locate(dtype: str, key: str, count: int) -> Storage:
        storage = storages.setdefault(key, Storage(dtype, count, memory))
        if (storage.dtype, storage.count) != (dtype, count):
            raise ValueError(f"storage {shown(key)} is named with two sizes")
        return storage

    machine = _machine(memory, 0, locate)
    machine.load()
    protocol, system = machine.load(), machine.load()
    if protocol != 1001 or type(system) is not dict:
        raise PickleRefused(f"is a torch file of unknown protocol {shown(protocol)}")
    if system.get("little_endian") is not True:
        raise PickleRefused("was saved on a big-endian machine; save it again on a usual one")
    root, keys = machine.load(), machine.load()
    position = machine.position
    if position > MAX_PICKLE_BYTES:
        raise PickleRefused(f"has a pickle of {position:,} bytes beside its tensors (limit {MAX_PICKLE_BYTES:,})")
    if type(keys) is not list:
        raise PickleRefused("does not list its storages")
    for key in keys:
        storage = storages.get(key) if type(key) is str else None
        if storage is None or storage.start is not None:
            raise PickleRefused(f"lists a storage {shown(key)} that no tensor names")
        # Each storage is its number of elements (8 bytes), then the elements.
        count = int.from_bytes(memory[position : position + 8], "little")
        if count != storage.count or position + 8 + storage.byte_count > len(memory):
            raise PickleRefused(f"is truncated or damaged at storage {shown(key)}; download it again")
        storage.start = position + 8
        position = storage.start + storage.byte_count
    if any(storage.start is None for storage in storages.values()):
        raise PickleRefused("names storages that it does not hold")
    return _finish(root, machine)


def _read_plain(memory: memoryview) -> Pickled:
    machine = _machine(memory[:MAX_PICKLE_BYTES], 0, None)
    root = machine.load()
    if machine.position != len(memory):
        raise PickleRefused("is a pickle with more data behind it that no known program writes")
    return _finish(root, machine)


def _machine(memory: memoryview, position: int, locate: Callable[[str, str, int], Storage] | None) -> PickleMachine:
    def load_persistent(identity: Any) -> Any:
        if locate is None or type(identity) is not tuple or len(identity) < 2:
            raise ValueError("a persistent id of unknown form")
        if identity[0] == "module":
            return identity[1]  # (module, class, source file, source text): the text is never looked at.
        kind, storage_type, key, _, count = identity[:5]
        if kind != "storage" or type(key) is not str or not is_count(count):
            raise ValueError("a persistent id of unknown form")
        if len(identity) > 5 and identity[5] is not None:
            raise ValueError("a view of a storage, as torch before 0.4 wrote; save it again with a newer torch")
        dtype = STORAGE_DTYPES.get(storage_type.name) if isinstance(storage_type, Global) else None
        if dtype is None or storage_type.module not in ("torch", "torch.storage", "torch.cuda"):
            return Stub("a storage of quantized or unknown numbers")
        return locate(dtype, key, count)

    states: dict[type, Callable[[Any, Any], None]] = {Numpy: set_numpy_state}
    return PickleMachine(memory, position, builders=BUILDERS, states=states, load_persistent=load_persistent)


def _finish(root: Any, machine: PickleMachine) -> Pickled:
    return Pickled(root, tuple(sorted(str(kind) for kind in machine.unknown)))
