"""What pickled checkpoints are made of: tensors that stay in the file, and the table of all that may be built.

`BUILDERS` is the whole list of globals that a pickle can make anything of. Each builder checks the types of its
arguments and makes plain data or one of the records below; none calls torch, numpy or anything named by the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import PickleRefused
from .header import DTYPES, MAX_DIMENSIONS
from .pickle_machine import Builder, Global, PickleMachine, Stub, check_key

if TYPE_CHECKING:
    import torch

_MAX_TENSOR_BYTES = 2**62

# C128 is no safetensors dtype; such tensors are read so far that a report can name them.
ITEM_BYTES = {name: bits // 8 for name, (bits, torch_name) in DTYPES.items() if torch_name} | {"C128": 16}
_TORCH_NAMES = {name: torch_name for name, (_, torch_name) in DTYPES.items() if torch_name} | {"C128": "complex128"}
_BY_TORCH_NAME = {torch_name: name for name, torch_name in _TORCH_NAMES.items()}
STORAGE_DTYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "ComplexDoubleStorage": "C128",
    "UntypedStorage": "U8",
    "_UntypedStorage": "U8",
}
_NUMPY_DTYPES = {
    "f8": "F64",
    "f4": "F32",
    "f2": "F16",
    "i8": "I64",
    "i4": "I32",
    "i2": "I16",
    "i1": "I8",
    "u8": "U64",
    "u4": "U32",
    "u2": "U16",
    "u1": "U8",
    "b1": "BOOL",
    "c8": "C64",
    "c16": "C128",
}


@dataclass(eq=False)
class Storage:
    """A run of bytes in the file (or in the pickle): what tensors are windows on. `start` is known once the file
    is laid out.
    """

    dtype: str
    count: int
    memory: memoryview
    start: int | None = None

    @property
    def byte_count(self) -> int:
        return self.count * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, eq=False)
class TensorRef:
    """A tensor that is still in the file: offset and strides in elements, checked against its storage."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]

    @property
    def byte_count(self) -> int:
        """Bytes of the tensor by itself, row-major."""
        return math.prod(self.shape) * self.item_bytes

    def window(self) -> tuple[int, int]:
        """Start and length, in bytes from the storage's memory, of all that the tensor touches."""
        if self.storage.start is None:
            raise PickleRefused("names a storage that the file does not hold")
        if not self.byte_count:
            return self.storage.start, 0
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return self.storage.start + self.offset * self.item_bytes, (last + 1) * self.item_bytes

    def row_major(self) -> memoryview:
        """The bytes in row-major order; a window on the file where they lie so already."""
        start, length = self.window()
        if not length:
            return memoryview(b"")
        if length == self.byte_count and self._is_row_major():
            return self.storage.memory[start : start + length]
        import numpy as np

        steps = [step * self.item_bytes for step in self.stride]
        strided = np.ndarray(self.shape, f"V{self.item_bytes}", self.storage.memory, start, steps)
        return np.ascontiguousarray(strided).reshape(-1).view(np.uint8).data

    def tensor(self) -> torch.Tensor:
        """A torch tensor of its own memory. Raises PickleRefused where this torch has no such dtype."""
        import torch

        dtype = getattr(torch, _TORCH_NAMES[self.dtype], None)
        if not isinstance(dtype, torch.dtype):
            raise PickleRefused(f"holds a tensor of dtype {self.dtype}, which torch {torch.__version__} does not have")
        if not self.byte_count:
            return torch.empty(self.shape, dtype=dtype)
        return torch.frombuffer(bytearray(self.row_major()), dtype=dtype).view(self.shape)

    def _is_row_major(self) -> bool:
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True


@dataclass(eq=False)
class Numpy:
    """A numpy array or dtype while its pickle is being read: numpy makes it empty first and fills it by BUILD."""

    dtype: str | None = None
    little: bool = True
    array: TensorRef | Stub | None = None


def is_count(value: object) -> bool:
    """Whether a value of a pickle can be a size, an offset or a step."""
    return type(value) is int and 0 <= value < _MAX_TENSOR_BYTES


def _view(storage: Any, dtype: str, offset: Any, shape: Any, stride: Any) -> TensorRef | Stub:
    if isinstance(storage, Stub):
        return storage
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    if type(shape) is not tuple or type(stride) is not tuple or not len(shape) == len(stride) <= MAX_DIMENSIONS:
        raise TypeError("a tensor of impossible shape")
    if not all(is_count(value) for value in (offset, *shape, *stride)):
        raise ValueError("a tensor of impossible shape")
    if math.prod(size for size in shape if size) * ITEM_BYTES[dtype] >= _MAX_TENSOR_BYTES:
        raise ValueError("a tensor of impossible shape")
    end = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
    if math.prod(shape) and end * ITEM_BYTES[dtype] > storage.byte_count:
        raise ValueError("a tensor reaches past its storage")
    return TensorRef(storage, dtype, offset, shape, stride)


def _tensor(machine: PickleMachine, arguments: tuple[Any, ...]) -> TensorRef | Stub:
    """(storage, offset, size, stride[, requires_grad, hooks, metadata])"""
    if len(arguments) > 6 and arguments[6]:
        return Stub("a conjugated or negated view of a tensor")
    storage, offset, shape, stride = arguments[:4]
    return _view(storage, storage.dtype if isinstance(storage, Storage) else "", offset, shape, stride)


def _tensor_of_dtype(machine: PickleMachine, arguments: tuple[Any, ...]) -> TensorRef | Stub:
    """(storage, offset, size, stride, requires_grad, hooks, dtype[, metadata]) on an untyped storage."""
    storage, offset, shape, stride, _, _, dtype = arguments[:7]
    if not isinstance(dtype, Global) or dtype.module != "torch" or dtype.name not in _BY_TORCH_NAME:
        raise ValueError(f"a tensor of unknown dtype {dtype}"[:120])
    return _view(storage, _BY_TORCH_NAME[dtype.name], offset, shape, stride)


def _parameter(machine: PickleMachine, arguments: tuple[Any, ...]) -> Any:
    """(data, requires_grad, hooks[, state]): the data."""
    return arguments[0]


def _subclass(machine: PickleMachine, arguments: tuple[Any, ...]) -> Any:
    """(function, type, arguments, state): a tensor subclass, read as the tensor it holds."""
    function, _, inner, _ = arguments
    return machine.build(function, inner)


def _container(make: Callable[[Any], Any]) -> Builder:
    def build(machine: PickleMachine, arguments: tuple[Any, ...]) -> Any:
        if not arguments:
            return make(())
        (content,) = arguments
        if isinstance(content, Stub):
            return Stub("a container of what was not built")
        if type(content) not in (list, tuple, set, frozenset, dict):
            raise TypeError(f"a container made of a {type(content).__name__}")
        machine.spend(len(content))
        return make(content)

    return build


def _keys(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda content: make([check_key(value) for value in content])


def _pairs(content: Any) -> dict[Any, Any]:
    if isinstance(content, dict):
        return dict(content)
    pairs = [tuple(pair) if type(pair) in (list, tuple) and len(pair) == 2 else None for pair in content]
    if None in pairs:
        raise TypeError("a dictionary made of something that is not pairs")
    return {check_key(pair[0]): pair[1] for pair in pairs if pair is not None}


def _default_dict(machine: PickleMachine, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    return {}


def _encode(machine: PickleMachine, arguments: tuple[Any, ...]) -> bytes:
    """How protocol 2 writes bytes: text of code points below 256, and "latin1"."""
    text, encoding = arguments
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise TypeError("bytes in an unknown encoding")
    machine.spend(len(text))
    return text.encode("latin-1")


def _bytes(machine: PickleMachine, arguments: tuple[Any, ...]) -> bytes:
    content = arguments[0] if arguments else b""
    if type(content) is not bytes:
        raise TypeError("bytes made of something else")
    return content


def _device(machine: PickleMachine, arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if arguments and type(arguments[0]) is str else None


def _numpy_dtype(machine: PickleMachine, arguments: tuple[Any, ...]) -> Numpy:
    code = arguments[0]
    return Numpy(dtype=_NUMPY_DTYPES.get(code.lstrip("<|=")) if type(code) is str and len(code) < 8 else None)


def _numpy_empty(machine: PickleMachine, arguments: tuple[Any, ...]) -> Numpy:
    return Numpy()


def _numpy_scalar(machine: PickleMachine, arguments: tuple[Any, ...]) -> Any:
    dtype, content = arguments
    return _numpy_array(dtype, (), content, False)


def _numpy_from_buffer(machine: PickleMachine, arguments: tuple[Any, ...]) -> Any:
    """(bytes, dtype, shape, order): numpy's own form in protocol 5."""
    content, dtype, shape, order = arguments
    return _numpy_array(dtype, shape, content, order == "F")


def _numpy_array(dtype: Any, shape: Any, content: Any, fortran: bool) -> TensorRef | Stub:
    if not isinstance(dtype, Numpy) or dtype.dtype is None or not dtype.little or type(content) is not bytes:
        return Stub("a numpy array of objects, texts or foreign byte order")
    if type(shape) is not tuple or not all(is_count(size) for size in shape):
        raise TypeError("a numpy array of impossible shape")
    stride = [math.prod(shape[:axis] if fortran else shape[axis + 1 :]) for axis in range(len(shape))]
    storage = Storage(dtype.dtype, len(content) // ITEM_BYTES[dtype.dtype], memoryview(content), 0)
    return _view(storage, dtype.dtype, 0, shape, tuple(stride))


def set_numpy_state(target: Numpy, state: Any) -> None:
    """Fill what numpy made empty: a dtype by (version, byte order, …), an array by (version, shape, dtype,
    fortran, bytes).
    """
    if type(state) is not tuple or len(state) < 2:
        raise TypeError("a numpy state of unknown form")
    if isinstance(state[1], str):
        target.little = state[1] in ("<", "|", "=")
        return
    _, shape, dtype, fortran, content = state
    target.array = _numpy_array(dtype, shape, content, bool(fortran))


def _table() -> dict[Global, Builder]:
    table: dict[Global, Builder] = {
        Global("collections", "OrderedDict"): _container(_pairs),
        Global("collections", "Counter"): _container(_pairs),
        Global("collections", "defaultdict"): _default_dict,
        Global("_codecs", "encode"): _encode,
        Global("torch._utils", "_rebuild_tensor"): _tensor,
        Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
        Global("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
        Global("torch._utils", "_rebuild_parameter"): _parameter,
        Global("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        Global("torch._tensor", "_rebuild_from_type_v2"): _subclass,
        Global("torch.nn.parameter", "Parameter"): _parameter,
        Global("torch", "Size"): _container(tuple),
        Global("torch", "device"): _device,
        Global("numpy", "dtype"): _numpy_dtype,
    }
    for core in ("numpy.core", "numpy._core"):
        table[Global(f"{core}.multiarray", "_reconstruct")] = _numpy_empty
        table[Global(f"{core}.multiarray", "scalar")] = _numpy_scalar
        table[Global(f"{core}.numeric", "_frombuffer")] = _numpy_from_buffer
    for builtins in ("builtins", "__builtin__"):
        table |= {
            Global(builtins, "set"): _container(_keys(set)),
            Global(builtins, "frozenset"): _container(_keys(frozenset)),
            Global(builtins, "list"): _container(list),
            Global(builtins, "tuple"): _container(tuple),
            Global(builtins, "dict"): _container(_pairs),
            Global(builtins, "bytes"): _bytes,
            Global(builtins, "bytearray"): _bytes,
        }
    return table


BUILDERS = _table()
"""Every global that is built, with its builder. All others become stubs."""
