"""Where the tensors of a LoRA file lie: in a safetensors file, or in a pickled one, which is read without running anything
in it. No torch before a tensor is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import FileProblem, HeaderError, PickleRefused, WeightMismatch
from ..header import Header, TensorEntry, is_unchanged, read_header, shown
from ..pickle_tensors import TensorRef
from ..pickles import read_pickle
from ..safetensors import TensorFile, decode, read_small
from ..signatures import identify
from ..state_dict import collect
from .names import read_name

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True)
class PickledHeader(Header):
    """Of a pickled file: names, dtypes and shapes as of any other. Its entries tell sizes, and no places in the file."""


class Tensors(Protocol):
    """What gives the tensors of a file by name."""

    def tensor(self, name: str) -> torch.Tensor: ...


class PickledTensors:
    """The tensors of a pickled file, each in memory of its own. Raises HeaderError where the file is no more the one read."""

    def __init__(self, header: PickledHeader) -> None:
        self._refs = _read_refs(header.path)
        if not is_unchanged(header.path, header.size, header.mtime_ns):
            raise HeaderError(f"{header.path} was changed on disk since it was read; open it again")

    def tensor(self, name: str) -> torch.Tensor:
        return self._refs[name].tensor()

    def array(self, name: str) -> NDArray[Any]:
        """As `read_small` gives them, without torch."""
        ref = self._refs[name]
        entry = TensorEntry(name, ref.dtype, ref.shape, 0, ref.byte_count)
        return decode(entry, bytearray(ref.row_major()))


def read_lora_header(path: str | os.PathLike[str]) -> Header:
    """Names, dtypes and shapes in a file, whichever of both kinds it is.

    Raises HeaderError or PickleRefused for a damaged or hostile file, FileProblem for a pickle without tensors.
    """
    where = Path(path)
    if identify(where) not in ("zip", "pickle"):
        return read_header(where)
    status = where.stat()
    refs = _read_refs(where)
    entries = {name: TensorEntry(name, ref.dtype, ref.shape, 0, ref.byte_count) for name, ref in refs.items()}
    return PickledHeader(where, entries, {}, status.st_size, status.st_mtime_ns)


def open_tensors(header: Header, *, mapped: bool = True) -> AbstractContextManager[Tensors]:
    """The tensors of a file whose header was read. mapped: see `TensorFile`; pickled ones are always read."""
    if isinstance(header, PickledHeader):
        return nullcontext(PickledTensors(header))
    return TensorFile(header, mapped=mapped)


def read_numbers(header: Header, names: Iterable[str], limit: int) -> dict[str, NDArray[Any]]:
    """Small tensors as numpy arrays, of at most `limit` bytes in all; see `read_small`."""
    names = list(names)
    if not isinstance(header, PickledHeader):
        return read_small(header, names, limit)
    tensors = PickledTensors(header) if names else None
    return {name: tensors.array(name) for name in names} if tensors else {}


def _read_refs(path: Path) -> dict[str, TensorRef]:
    try:
        found = collect(read_pickle(path).root)
    except PickleRefused:
        raise
    except FileProblem as problem:
        raise PickleRefused(f"{path} {problem}") from None
    lost = next((name for name in found.dropped if read_name(name)), None)
    if lost is not None:
        raise WeightMismatch(
            f"{path.name}: {shown(lost)} is {found.dropped[lost]}, expected a tensor; save it again as safetensors"
        )
    return found.tensors
