"""safetensors files: tensors mapped from the file, small ones read without torch, and a streaming writer.

The header is checked in `checkpoint.header`. Unaligned tensors are legal, as are empty ones and scalars. Torch is
imported only when a tensor is asked for.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileProblem, HeaderError, OutputProblem
from .header import DTYPES, Header, TensorEntry, read_header, shown
from .signatures import open_regular

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["DTYPES", "Header", "TensorEntry", "TensorFile", "read_header", "read_small", "write_safetensors"]

_ALIGNMENT = 8


def read_small(header: Header, names: Iterable[str], limit: int = 65536) -> dict[str, NDArray[Any]]:
    """The named tensors as numpy arrays, without torch: floats become float32 (F64 float64), the rest keeps its type.

    For schedule tables and scalars that tell what a model is. Raises HeaderError for a name that is not in the file,
    for more than `limit` bytes in all, or when the file was changed since `header` was read.
    """
    entries = [_entry(header, name) for name in names]
    total = sum(entry.end - entry.start for entry in entries)
    if total > limit:
        raise HeaderError(
            f"{header.path}: {total:,} bytes were asked of tensors that should be small (limit {limit:,})"
        )
    with _reopen(header) as file:
        return {entry.name: decode(entry, _read_bytes(file, entry, header)) for entry in entries}


def _entry(header: Header, name: str) -> TensorEntry:
    try:
        return header.entries[name]
    except KeyError:
        raise HeaderError(f"{header.path} has no tensor {shown(name)}") from None


def _reopen(header: Header) -> BufferedReader:
    file = open_regular(header.path)
    status = os.fstat(file.fileno())
    if (status.st_size, status.st_mtime_ns) != (header.size, header.mtime_ns):
        file.close()
        raise HeaderError(f"{header.path} was changed on disk since its header was read; open it again")
    return file


def _read_bytes(file: BufferedReader, entry: TensorEntry, header: Header) -> bytearray:
    buffer = bytearray(entry.end - entry.start)
    try:
        file.seek(entry.start)
        count = file.readinto(buffer)
    except OSError as problem:
        raise FileProblem(f"{header.path} cannot be read: {problem.strerror}") from None
    if count != len(buffer):
        raise HeaderError(f"{header.path} is truncated: tensor {shown(entry.name)} ends early")
    return buffer


def decode(entry: TensorEntry, buffer: bytearray) -> NDArray[Any]:
    """The bytes of a tensor as a numpy array; see `read_small`. Raises HeaderError for a dtype that numpy has not."""
    import numpy as np

    if entry.dtype == "BF16":
        array: NDArray[Any] = (np.frombuffer(buffer, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif entry.dtype.startswith("F8"):
        array = float8_table(entry.dtype)[np.frombuffer(buffer, np.uint8)]
    elif entry.dtype == "F16":
        array = np.frombuffer(buffer, "<f2").astype(np.float32)
    elif DTYPES[entry.dtype][1] is None:
        raise HeaderError(f"tensor {shown(entry.name)} is {entry.dtype}, which is not read")
    else:
        array = np.frombuffer(buffer, np.dtype(DTYPES[entry.dtype][1]).newbyteorder("<"))
    return array.reshape(entry.shape)


def float8_table(dtype: str) -> NDArray[np.float32]:
    """The 256 values of an 8-bit float format, shape (256,). OCP 8-bit formats; FNUZ: one more bias, no negative
    zero or infinity.
    """
    import numpy as np

    if dtype == "F8_E8M0":
        return np.array([2.0 ** (code - 127) for code in range(255)] + [math.nan], np.float32)
    mantissa, bias = {"F8_E4M3": (3, 7), "F8_E5M2": (2, 15), "F8_E4M3FNUZ": (3, 8), "F8_E5M2FNUZ": (2, 16)}[dtype]
    values = []
    for code in range(256):
        exponent, fraction = (code & 127) >> mantissa, (code & ((1 << mantissa) - 1)) / (1 << mantissa)
        size = (1 + fraction) * 2.0 ** (exponent - bias) if exponent else fraction * 2.0 ** (1 - bias)
        values.append(-size if code & 128 else size)
    table = np.array(values, np.float32)
    if dtype.endswith("FNUZ"):
        table[128] = math.nan
    elif dtype == "F8_E4M3":
        table[[127, 255]] = math.nan
    else:
        table[[124, 252]] = [math.inf, -math.inf]
        table[[125, 126, 127, 253, 254, 255]] = math.nan
    return table


class TensorFile:
    """The tensors of a safetensors file, each in the dtype it has there.

        with TensorFile("model.safetensors") as file:
            weight = file.tensor("model.diffusion_model.out.2.weight")

    mapped=True: a tensor is a window on a private copy-on-write mapping of the file. Nothing is copied (unaligned
    tensors excepted), pages are read when first touched, writing to a tensor never reaches the file, and the mapping
    lives as long as any tensor of it, also after `close`. While it lives, Windows lets nobody truncate, replace or
    delete the file; elsewhere replacing by rename is harmless, but truncating it in place ends the process when a lost
    page is touched (SIGBUS).

    mapped=False: each call opens the file and reads its bytes into fresh memory, for network drives and files that
    others may rewrite.

    Raises HeaderError when the file's size or time differs from the header's: on opening, and unmapped at each call.
    """

    def __init__(self, source: Header | str | os.PathLike[str], *, mapped: bool = True) -> None:
        self.header = source if isinstance(source, Header) else read_header(source)
        self._closed = False
        self._map: mmap.mmap | None = None
        with _reopen(self.header) as file:
            if mapped:
                try:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
                except (OSError, ValueError) as problem:
                    raise FileProblem(
                        f"{self.header.path} cannot be mapped into memory ({problem}); read it instead with --no-mmap"
                    ) from None

    @property
    def names(self) -> list[str]:
        """The tensors' names, in the order of their bytes."""
        return list(self.header.entries)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor of that name, on the CPU. Raises HeaderError where there is none or its dtype is unknown to
        this torch.
        """
        import torch

        entry = _entry(self.header, name)
        dtype = torch_dtype(entry.dtype)
        if entry.start == entry.end and not self._closed:
            return torch.empty(entry.shape, dtype=dtype)
        if self._map is None:
            # From a fresh bytearray, whose memory is aligned.
            return torch.frombuffer(self._read(entry), dtype=dtype).view(entry.shape)
        window = torch.frombuffer(self._map, dtype=torch.uint8, count=entry.end - entry.start, offset=entry.start)
        if entry.start % dtype.itemsize:
            window = window.clone()
        return window.view(dtype).view(entry.shape)

    def raw(self, name: str) -> memoryview:
        """The bytes of the tensor of that name as they are in the file; nothing is copied where it is mapped."""
        entry = _entry(self.header, name)
        if self._map is None:
            return memoryview(self._read(entry))
        return memoryview(self._map)[entry.start : entry.end]

    def _read(self, entry: TensorEntry) -> bytearray:
        if self._closed:
            raise FileProblem(f"{self.header.path} was closed")
        with _reopen(self.header) as file:
            return _read_bytes(file, entry, self.header)

    def prefetch(self) -> None:
        """Ask the system to read the whole file ahead, in the background; returns at once."""
        if self._map is not None and hasattr(mmap, "MADV_WILLNEED"):
            self._map.madvise(mmap.MADV_WILLNEED)
            return
        threading.Thread(target=_read_through, args=(self.header.path,), name="prefetch", daemon=True).start()

    def close(self) -> None:
        """Let go of the file. Tensors that were handed out stay valid."""
        # Never mmap.close(): torch.frombuffer keeps the object but no export of its buffer, so closing would unmap
        # memory that tensors still point at. The last tensor frees the mapping.
        self._map = None
        self._closed = True

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _read_through(path: Path) -> None:
    try:
        with path.open("rb", buffering=0) as file:
            while file.read(8 * 1024 * 1024):
                pass
    except OSError:
        return  # Reading ahead is a favour; the real read reports what is wrong.


def torch_dtype(dtype: str) -> torch.dtype:
    """torch's dtype for a safetensors dtype name. Raises HeaderError where this torch has none."""
    import torch

    found = getattr(torch, DTYPES[dtype][1] or "", None)
    if not isinstance(found, torch.dtype):
        raise HeaderError(f"tensors of dtype {dtype} cannot be read with torch {torch.__version__}")
    return found


Plan = Mapping[str, tuple[str, tuple[int, ...]]]
"""What will be written: name -> (safetensors dtype, shape)."""


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file, one at a time; the file appears complete or not at all.

    `tensors` is asked for each name twice (once for dtype and shape, once for the bytes) and may make them on demand.
    Views, transposed tensors and shared storages are written as they read. The bytes depend on names, tensors and
    metadata only, not on the mapping's order: widest dtype first, then by name, so that each tensor is aligned;
    metadata sorted.

    Raises OutputProblem where the file cannot be written or a tensor's dtype has no place in the format.
    """
    plan: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        plan[name] = (dtype_name(tensor, name), tuple(tensor.shape))
    with replacing(Path(path)) as temporary:
        write_stream(temporary, plan, lambda name: tensor_bytes(tensors[name]), metadata)


def write_stream(
    path: Path, plan: Plan, payload: Callable[[str], memoryview], metadata: Mapping[str, str] | None = None
) -> int:
    """Write the tensors of `plan` to `path` itself, asking `payload` for the bytes of one after the other; returns
    the size.
    """
    order = list(DTYPES)
    names = sorted(plan, key=lambda name: (order.index(plan[name][0]), name.encode("utf-8")))
    table: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for name in names:
        dtype, shape = plan[name]
        if name == "__metadata__":
            raise OutputProblem("a tensor cannot be named __metadata__ in a safetensors file")
        end = position + math.prod(shape) * DTYPES[dtype][0] // 8
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    header = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    header += b" " * (-len(header) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            data = payload(name)
            start, end = table[name]["data_offsets"]
            if len(data) != end - start:
                raise OutputProblem(f"tensor {shown(name)} changed while it was written")
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return 8 + len(header) + position


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes when it does not."""
    temporary = path.with_name(f".avila-{os.urandom(8).hex()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as problem:
        raise OutputProblem(f"{path} cannot be written: {problem.strerror or problem}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # The name is on disk only when the folder is. Windows cannot open folders and does not need it.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def dtype_name(tensor: torch.Tensor, name: str) -> str:
    """The safetensors dtype of a tensor; OutputProblem names the tensor where there is none (complex128,
    quantized, sparse).
    """
    import torch

    wanted = str(tensor.dtype).removeprefix("torch.")
    found = next((dtype for dtype, (_, torch_name) in DTYPES.items() if torch_name == wanted), None)
    if found is None or tensor.layout != torch.strided or tensor.is_meta:
        raise OutputProblem(f"tensor {shown(name)} ({wanted}, {tensor.layout}) has no place in a safetensors file")
    return found


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in row-major order; no copy where it lies so already."""
    import torch

    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
