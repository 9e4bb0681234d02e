"""From the object in a pickled file to named tensors: which part of it is the model, and what its tensors are called.

Training programs wrap the weights: under `state_dict` (Lightning, the original Stable Diffusion), `params_ema`
(upscalers), `model` and the like; the first of `_WRAPPERS` that holds tensors is taken and its neighbours (optimizer
states, callbacks) are left. What is nested inside is flattened with dots: the original textual inversion's
`{"string_to_param": {"*": …}}` becomes `string_to_param.*`, a hypernetwork's `{768: ({…}, {…})}` becomes
`768.0.linear.0.weight`, a list `0`, `1`, …; a pickled module contributes its parameters and buffers as its own
`state_dict()` would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import FileProblem
from .header import MAX_TENSORS, shown
from .pickle_machine import Global, Stub
from .pickle_tensors import Numpy, TensorRef

_WRAPPERS = ("state_dict", "model_state_dict", "params_ema", "params", "model", "module")
_MODULE_PARTS = ("_parameters", "_buffers", "_modules")
_MAX_DEPTH = 32
_MAX_VISITS = 1_000_000


@dataclass
class StateDict:
    """Named tensors, and what was left out: name -> why."""

    tensors: dict[str, TensorRef] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    visits: int = 0


def collect(root: Any) -> StateDict:
    """The tensors of an object as `read_pickle` gives it, by flattened name.

    Raises FileProblem where two tensors get the same name, where names are not text, or where the object has no
    honest size.
    """
    result = StateDict()
    chosen = _unwrap(root, result)
    if isinstance(_content(chosen), TensorRef):
        result.tensors["tensor"] = _content(chosen)
    else:
        _walk(chosen, "", 0, result)
    if not result.tensors:
        raise FileProblem(f"holds no tensors, only {_describe(root)}")
    return result


def _unwrap(root: Any, result: StateDict) -> Any:
    prefix = ""
    for _ in _WRAPPERS:
        table = root.entries if isinstance(root, Stub) else root
        key = next((key for key in _WRAPPERS if type(table) is dict and _has_tensor(table.get(key))), None)
        if key is None:
            break
        for name, value in table.items():
            if name != key:
                result.dropped[prefix + _shown_key(name)] = f"{_describe(value)} beside the model ({prefix}{key})"
        root, prefix = table[key], f"{prefix}{key}."
    return root


def _has_tensor(value: Any) -> bool:
    return _parts(value) is not None and _walk(value, "", 0, StateDict())


def _walk(value: Any, name: str, depth: int, result: StateDict) -> bool:
    """Add the tensors of `value`; whether there were any. A container without one is reported whole, not entry by
    entry.
    """
    result.visits += 1
    if result.visits > _MAX_VISITS:
        raise FileProblem(f"holds more than {_MAX_VISITS:,} entries")
    value = _content(value)
    if isinstance(value, TensorRef):
        _add(value, name, result)
        return True
    parts = _parts(value) if depth < _MAX_DEPTH else None
    if parts is None:
        result.dropped[name] = _describe(value) + (" nested too deeply" if depth >= _MAX_DEPTH else "")
        return False
    reported = len(result.dropped)
    found = False
    for key, part in parts:
        if type(key) not in (str, int):
            result.dropped[f"{name}.{_shown_key(key)}".lstrip(".")] = "a key that is neither text nor a number"
            continue
        found |= _walk(part, f"{name}.{key}" if name else str(key), depth + 1, result)
    if not found and depth:
        while len(result.dropped) > reported:
            result.dropped.popitem()
        result.dropped[name] = _describe(value)
    return found


def _add(tensor: TensorRef, name: str, result: StateDict) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise FileProblem(f"names a tensor {shown(name)}, which is not text") from None
    if name in result.tensors:
        raise FileProblem(f"holds two tensors that would both be named {shown(name)}")
    if len(result.tensors) >= MAX_TENSORS:
        raise FileProblem(f"holds more than {MAX_TENSORS:,} tensors")
    result.tensors[name] = tensor


def _content(value: Any) -> Any:
    return value.array if isinstance(value, Numpy) else value


def _parts(value: Any) -> Iterator[tuple[Any, Any]] | None:
    """The named parts of a container, a stub of a dictionary or a stub of a module; None for everything else."""
    if type(value) is dict:
        return iter(value.items())
    if type(value) in (list, tuple):
        return iter(enumerate(value))
    if isinstance(value, Stub):
        tables = [value.state[part] for part in _MODULE_PARTS if type(value.state.get(part)) is dict]
        if tables:
            return ((key, part) for table in tables for key, part in table.items() if part is not None)
        if value.entries:
            return iter(value.entries.items())
    return None


def _shown_key(key: Any) -> str:
    """A key of any kind, fit for a report."""
    return (
        shown(key)[1:-1]
        if type(key) is str
        else shown(key if type(key) in (int, float, bytes, bool) else str(type(key)))
    )


def _describe(value: Any) -> str:
    if isinstance(value, Stub):
        return f"an object of {shown(str(value.kind))[1:-1]}, not built"
    if isinstance(value, Global):
        return f"the name {shown(str(value))[1:-1]}"
    if type(value) in (dict, list, tuple, set, frozenset):
        kind = "dictionary" if type(value) is dict else type(value).__name__
        return f"a {kind} of {len(value):,} entries"
    return {str: "a text", int: "a number", float: "a number", bool: "a truth value", bytes: "bytes"}.get(
        type(value), "nothing" if value is None else f"a {type(value).__name__}"
    )
