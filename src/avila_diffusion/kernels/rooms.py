"""Memory for large tensors: mapped from the system by itself, in large pages, and used again.

torch asks the C library, which either returns every large block at once, so that the next one is zeroed page by page
again (a third of the time of decoding a picture), or keeps what was freed in a heap that large and small blocks
tear into pieces (up to four times what is in use). Here a block that was freed serves the next tensor of about
its size, and what is held stays within `SLACK` of the most that was in use at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
import threading
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

SMALLEST = 1 << 20
"""Bytes below which the C library does well."""
PAGE = 2 << 20
"""Blocks are whole large pages. Under Linux they are asked for: 512 times fewer faults than with pages of 4 kB, each of which
a virtual machine pays for several times, and a table of pages that reaches 512 times as far."""
FIT = 5 / 4
"""How much larger than what is wanted a block may be."""
SLACK = 64 << 20
"""Bytes that may be held beyond the most that was in use."""


def fresh(size: int) -> mmap.mmap:
    """Zeroed memory of this process alone. Raises MemoryError where the system has none."""
    try:
        if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
            return mmap.mmap(-1, size)
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(
            f"the system gives no {size / 1e9:.2f} GB of memory more; make a smaller picture, or keep less (--memory lean)"
        ) from error
    if size >= 4 * PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


class Block(Protocol):
    """Memory, or what stands for it."""

    def __len__(self) -> int: ...

    def close(self) -> None: ...


class Imagined:
    """A block of no memory, for reckoning what would be held."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def close(self) -> None:
        pass


B = TypeVar("B", bound=Block)


class Rooms(Generic[B]):
    """Blocks in use and blocks that were freed; `make` makes one. All of it may be called from any thread."""

    def __init__(self, make: Callable[[int], B]) -> None:
        self.make = make
        # Reentrant: a tensor may be collected, and its block come back, while this thread is in here.
        self._lock = threading.RLock()
        self._free: list[B] = []  # the last freed behind
        self._held = self._used = self._most = self._most_held = 0

    @property
    def held(self) -> int:
        """Bytes of blocks now, in use or free."""
        return self._held

    @property
    def used(self) -> int:
        """Bytes in use now."""
        return self._used

    @property
    def most_held(self) -> int:
        """Bytes that were held at most."""
        return self._most_held

    def take(self, size: int) -> B:
        """A block of `size` bytes or somewhat more, with anything in it."""
        size = -(-size // PAGE) * PAGE
        with self._lock:
            block = self._fitting(size)
            self._used += size if block is None else len(block)
            self._most = max(self._most, self._used)
            if block is not None:
                return block
            self._held += size
            self._forget(down_to=self._most + SLACK - self._used)
            self._most_held = max(self._most_held, self._held)
        try:
            return self.make(size)
        except MemoryError:
            with self._lock:
                self._forget(down_to=0)  # what is free may be just what lacks
        try:
            return self.make(size)
        except MemoryError:
            with self._lock:
                self._used -= size
                self._held -= size
            raise

    def take_back(self, block: B) -> None:
        """The block is not in use any more."""
        with self._lock:
            self._used -= len(block)
            self._free.append(block)

    def give_back(self) -> None:
        """Return what is not in use to the system, and forget how much ever was."""
        with self._lock:
            self._forget(down_to=0)
            self._most = self._used

    def _fitting(self, size: int) -> B | None:
        """The smallest free block that serves, no longer free; of several the last freed, which the cache may still hold."""
        best = None
        for block in reversed(self._free):
            if size <= len(block) <= size * FIT and (best is None or len(block) < len(best)):
                best = block
        if best is not None:
            self._free.remove(best)
        return best

    def _forget(self, down_to: int) -> None:
        """Unmap the blocks that were freed longest ago until the free ones hold at most so many bytes."""
        while self._free and self._held - self._used > down_to:
            block = self._free.pop(0)
            self._held -= len(block)
            block.close()


_rooms = Rooms(fresh)
give_back = _rooms.give_back


def held() -> int:
    """Bytes of this process that lie in rooms, in use or free."""
    return _rooms.held


def take(count: int) -> Tensor:
    """Room for `count` floats, with anything in it: a flat float32 tensor, whose block serves again when it has died."""
    if 4 * count < SMALLEST:
        return torch.empty(count, dtype=torch.float32, device="cpu")
    return lend(_rooms, count)


def lend(rooms: Rooms[mmap.mmap], count: int) -> Tensor:
    """The same, of these rooms."""
    block = rooms.take(4 * count)
    part = memoryview(block)[: 4 * count]
    weakref.finalize(part, rooms.take_back, block).atexit = False
    return torch.frombuffer(part, dtype=torch.float32)


def trim() -> None:
    """Let the C library give back what lies free in its heap: where many small blocks were made and freed, as in the first call
    of a network, glibc keeps a hundred megabytes. Other libraries have no such call."""
    if (ask := _malloc_trim()) is not None:
        ask(0)


@cache
def _malloc_trim() -> Callable[[int], Any] | None:
    found = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if found is not None:
        found.argtypes = [ctypes.c_size_t]
    return found


def own(count: int) -> Tensor:
    """Room for `count` floats that stay for long, such as packed weights; unmapped when the tensor dies."""
    if 4 * count < SMALLEST:
        return torch.empty(count, dtype=torch.float32, device="cpu")
    return torch.frombuffer(memoryview(fresh(4 * count)), dtype=torch.float32)
