"""An interpreter of the pickle language that cannot call anything.

Python's own unpickler imports what a file names and calls it. Here a global is only its two names (`Global`), and
building an object from it means looking the pair up in a table of builders that the caller supplies; every other
construction makes an inert `Stub`, which keeps what it was given and does nothing. There is no import, no getattr on
a name from the file, no `__setstate__`, so nothing a pickle says can run. Its appetite is bounded too: number of
operations, bytes copied, sizes by the data that is there.

The language: PEP 307, PEP 574 and the opcode table of CPython's `pickletools`. Protocols 0 to 5.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import PickleRefused

MAX_OPERATIONS = 4_000_000
"""A checkpoint takes about 40 operations a tensor; this is 100,000 tensors."""

MAX_COPIED = 64 * 1024 * 1024
"""Elements or bytes that builders may copy out of objects which the pickle can name again and again."""

_MAX_LINE = 4096
_MAX_LONG_BYTES = 1024


@dataclass(frozen=True)
class Global:
    """A name in a pickle, module and attribute. Never looked up in Python."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Stub:
    """What stands in for an object of a class that is not built: the state, items and pairs it would have been
    given.
    """

    kind: Global | str
    state: dict[Any, Any] = field(default_factory=dict)
    values: list[Any] = field(default_factory=list)
    entries: dict[Any, Any] = field(default_factory=dict)


Builder = Callable[["PickleMachine", tuple[Any, ...]], Any]
"""Makes the object that a global and its arguments stand for; raises TypeError or ValueError for arguments it does
not know.
"""


class PickleMachine:
    """Runs one pickle after another from `data`, starting at `position` (bytes), which it moves past each.

    builders: what may be built, by global. states: how an object made by a builder takes a BUILD state, by its type
    (others ignore theirs). load_persistent: makes an object of a persistent id. unknown: collects the globals that
    became stubs.
    """

    def __init__(
        self,
        data: memoryview,
        position: int = 0,
        *,
        builders: Mapping[Global, Builder] | None = None,
        states: Mapping[type, Callable[[Any, Any], None]] | None = None,
        load_persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.data = data
        self.position = position
        self.builders = builders or {}
        self.states = states or {}
        self.load_persistent = load_persistent
        self.unknown: set[Global | str] = set()
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self._operations = 0
        self._copied = 0

    def load(self) -> Any:
        """The object of the next pickle. Raises PickleRefused for anything malformed or out of bounds."""
        self.stack, self.marks, self.memo = [], [], {}
        start = self.position
        try:
            while (code := self.take(1)[0]) != _STOP:
                self._operations += 1
                if self._operations > MAX_OPERATIONS:
                    raise ValueError(f"more than {MAX_OPERATIONS:,} operations")
                _OPERATIONS[code](self)
            return self.pop()
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, struct.error) as problem:
            at = f"byte {self.position:,} of the pickle at {start:,}"
            reason = "unknown instruction or reference" if isinstance(problem, KeyError) else problem
            raise PickleRefused(f"is a damaged or hostile pickle ({at}: {reason})") from None

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise ValueError("it ends early")
        piece = bytes(self.data[self.position : end])
        self.position = end
        return piece

    def number(self, layout: str) -> Any:
        """The next number, in a layout of the struct module."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        """The text up to the next newline."""
        return self.raw_line().decode("utf-8")

    def raw_line(self) -> bytes:
        """The bytes up to the next newline."""
        window = bytes(self.data[self.position : self.position + _MAX_LINE])
        end = window.find(b"\n")
        if end < 0:
            raise ValueError("a line does not end")
        self.position += end + 1
        return window[:end]

    def spend(self, count: int) -> None:
        """Account for `count` elements copied by a builder, so that a small file cannot ask for a large copy again
        and again.
        """
        self._copied += count
        if self._copied > MAX_COPIED:
            raise ValueError("copies more than the file could hold")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        """The topmost value; what lies below an open mark is out of reach."""
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise ValueError("takes a value across a mark")
        return self.stack.pop()

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def build(self, target: Any, arguments: Any) -> Any:
        """What calling the global `target` would have given: a builder's object, or a stub."""
        if not isinstance(arguments, tuple):
            raise TypeError("arguments that are not a tuple")
        builder = self.builders.get(target) if isinstance(target, Global) else None
        if builder is not None:
            return builder(self, arguments)
        return self.stub(target)

    def stub(self, target: Any) -> Stub:
        """An inert stand-in for whatever `target` would have made."""
        kind = target if isinstance(target, Global) else f"the result of calling a {type(target).__name__}"
        self.unknown.add(kind)
        return Stub(kind)


def check_key(key: Any, depth: int = 0) -> Hashable:
    """`key` if it can be hashed in bounded time; a deeply nested tuple as a key would overflow C's stack."""
    if key is None or type(key) in (str, bytes, int, float, bool, complex, Global, Stub):
        return key  # type: ignore[no-any-return]
    if type(key) is tuple and depth < 2 and len(key) <= 16:
        for part in key:
            check_key(part, depth + 1)
        return key
    raise TypeError(f"a {type(key).__name__} as a key")


def _put(machine: PickleMachine, index: int) -> None:
    machine.memo[index] = machine.top()


def _append(machine: PickleMachine, values: list[Any]) -> None:
    target = machine.top()
    if isinstance(target, Stub):
        target.values.extend(values)
    elif type(target) is list:
        target.extend(values)
    else:
        raise TypeError(f"appends to a {type(target).__name__}")


def _set_items(machine: PickleMachine, flat: list[Any]) -> None:
    target = machine.top()
    if isinstance(target, Stub):
        target = target.entries
    if type(target) is not dict or len(flat) % 2:
        raise TypeError(f"sets items of a {type(target).__name__}")
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        target[check_key(key)] = value


def _set_item(machine: PickleMachine) -> None:
    value, key = machine.pop(), machine.pop()
    _set_items(machine, [key, value])


def _add_items(machine: PickleMachine) -> None:
    values = machine.pop_to_mark()
    target = machine.top()
    if isinstance(target, Stub):
        target.values.extend(values)
    elif type(target) is set:
        target.update(check_key(value) for value in values)
    else:
        raise TypeError(f"adds to a {type(target).__name__}")


def _dict(machine: PickleMachine) -> None:
    flat = machine.pop_to_mark()
    machine.push({})
    _set_items(machine, flat)


def _tuple(count: int) -> Callable[[PickleMachine], None]:
    def operate(machine: PickleMachine) -> None:
        machine.push(tuple([machine.pop() for _ in range(count)][::-1]))

    return operate


def _stack_global(machine: PickleMachine) -> None:
    name, module = machine.pop(), machine.pop()
    if type(name) is not str or type(module) is not str or len(module) + len(name) > _MAX_LINE:
        raise TypeError("a global whose name is not a short text")
    machine.push(Global(module, name))


def _reduce(machine: PickleMachine) -> None:
    arguments, target = machine.pop(), machine.pop()
    machine.push(machine.build(target, arguments))


def _new_extended(machine: PickleMachine) -> None:
    keywords, arguments, target = machine.pop(), machine.pop(), machine.pop()
    machine.push(machine.stub(target) if keywords else machine.build(target, arguments))


def _instance(machine: PickleMachine) -> None:
    target = Global(machine.line(), machine.line())
    machine.push(machine.build(target, tuple(machine.pop_to_mark())))


def _object(machine: PickleMachine) -> None:
    values = machine.pop_to_mark()
    machine.push(machine.build(values[0], tuple(values[1:])))


def _build_state(machine: PickleMachine) -> None:
    state = machine.pop()
    target = machine.top()
    if isinstance(target, Stub):
        # Either a dictionary, or a pair of it and the slots' dictionary; other states belong to a __setstate__ not
        # run here.
        for part in state if type(state) is tuple and len(state) == 2 else (state,):
            if type(part) is dict:
                machine.spend(len(part))
                target.state.update(part)
    elif type(target) in machine.states:
        machine.states[type(target)](target, state)


def _persistent(machine: PickleMachine, identity: Any) -> None:
    if machine.load_persistent is None:
        raise ValueError("a persistent id, which only torch files have")
    machine.push(machine.load_persistent(identity))


def _integer_line(machine: PickleMachine) -> int | bool:
    text = machine.line()
    return {"00": False, "01": True}[text] if text in ("00", "01") else int(text.removesuffix("L"))


def _long(machine: PickleMachine, count: int) -> int:
    if count > _MAX_LONG_BYTES:
        raise ValueError(f"a number of {count:,} bytes")
    return int.from_bytes(machine.take(count), "little", signed=True)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _old_text(raw: bytes) -> str:
    """A string of Python 2, where text and bytes were one."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _quoted_line(machine: PickleMachine) -> str:
    raw = machine.raw_line()
    if len(raw) < 2 or raw[:1] not in (b"'", b'"') or raw[-1:] != raw[:1]:
        raise ValueError("a string without quotes")
    return _old_text(_ESCAPE.sub(_unescape, raw[1:-1]))


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return bytes([int(code[1:], 16)]) if len(code) == 3 else _ESCAPED.get(code, code)


def _pusher(read: Callable[[PickleMachine], Any]) -> Callable[[PickleMachine], None]:
    return lambda machine: machine.push(read(machine))


_STOP = ord(".")

# The escapes that repr writes for a string of Python 2.
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}

# Instructions that push one value read from the data.
_VALUES: dict[bytes, Callable[[PickleMachine], Any]] = {
    b"N": lambda m: None,
    b"\x88": lambda m: True,
    b"\x89": lambda m: False,
    b"I": _integer_line,
    b"J": lambda m: m.number("<i"),
    b"K": lambda m: m.number("<B"),
    b"M": lambda m: m.number("<H"),
    b"L": _integer_line,
    b"\x8a": lambda m: _long(m, m.number("<B")),
    b"\x8b": lambda m: _long(m, m.number("<i")),
    b"F": lambda m: float(m.line()),
    b"G": lambda m: m.number(">d"),
    b"S": _quoted_line,
    b"T": lambda m: _old_text(m.take(m.number("<i"))),
    b"U": lambda m: _old_text(m.take(m.number("<B"))),
    b"V": lambda m: m.raw_line().decode("raw_unicode_escape"),
    b"X": lambda m: _text(m.take(m.number("<I"))),
    b"\x8c": lambda m: _text(m.take(m.number("<B"))),
    b"\x8d": lambda m: _text(m.take(m.number("<Q"))),
    b"B": lambda m: m.take(m.number("<I")),
    b"C": lambda m: m.take(m.number("<B")),
    b"\x8e": lambda m: m.take(m.number("<Q")),
    b"\x96": lambda m: m.take(m.number("<Q")),
    b"]": lambda m: [],
    b")": lambda m: (),
    b"}": lambda m: {},
    b"\x8f": lambda m: set(),
    b"l": lambda m: m.pop_to_mark(),
    b"t": lambda m: tuple(m.pop_to_mark()),
    b"\x91": lambda m: frozenset(check_key(value) for value in m.pop_to_mark()),
    b"2": lambda m: m.top(),
    b"g": lambda m: m.memo[int(m.line())],
    b"h": lambda m: m.memo[m.number("<B")],
    b"j": lambda m: m.memo[m.number("<I")],
    b"c": lambda m: Global(m.line(), m.line()),
}

# Instructions that rearrange or build. Extension codes (82-84) and out-of-band buffers (97, 98) are not in any file:
# refused.
_OPERATIONS: dict[int, Callable[[PickleMachine], Any]] = {
    **{code[0]: _pusher(read) for code, read in _VALUES.items()},
    0x80: lambda m: m.take(1),
    0x95: lambda m: m.take(8),
    ord("("): lambda m: m.marks.append(len(m.stack)),
    ord("0"): lambda m: m.marks.pop() if m.marks and m.marks[-1] == len(m.stack) else m.pop(),
    ord("1"): lambda m: m.pop_to_mark(),
    ord("p"): lambda m: _put(m, int(m.line())),
    ord("q"): lambda m: _put(m, m.number("<B")),
    ord("r"): lambda m: _put(m, m.number("<I")),
    0x94: lambda m: _put(m, len(m.memo)),
    ord("a"): lambda m: _append(m, [m.pop()]),
    ord("e"): lambda m: _append(m, m.pop_to_mark()),
    ord("s"): _set_item,
    ord("u"): lambda m: _set_items(m, m.pop_to_mark()),
    0x90: _add_items,
    ord("d"): _dict,
    0x85: _tuple(1),
    0x86: _tuple(2),
    0x87: _tuple(3),
    0x93: _stack_global,
    ord("R"): _reduce,
    0x81: _reduce,
    0x92: _new_extended,
    ord("i"): _instance,
    ord("o"): _object,
    ord("b"): _build_state,
    ord("P"): lambda m: _persistent(m, m.line()),
    ord("Q"): lambda m: _persistent(m, m.pop()),
}
