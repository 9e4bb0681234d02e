"""What glibc's allocator holds of the system's memory while tensors come and go, by the rules that it follows for large blocks.

Told to keep what is freed (`native`), it takes the smallest hole that a block fits into, joins holes that meet, and grows
where no hole will do. What it has grown to is what a process holds, and that is more than what ever lives at once: a block
that is a little larger than every hole leaves them all empty.
"""

from __future__ import annotations

from bisect import bisect_left, insort

GRAIN = 64
"""Bytes that torch aligns its blocks to; the allocator's own bookkeeping fits into the gaps."""


class Heap:
    """top: bytes that it has grown to."""

    def __init__(self) -> None:
        self.top = 0
        self._holes: list[tuple[int, int]] = []  # (size, where), the smallest first
        self._begins: dict[int, int] = {}  # where a hole begins → its size
        self._ends: dict[int, int] = {}  # where a hole ends → its size

    def take(self, size: int) -> int:
        """Where a new block of so many bytes lies."""
        size = _whole(size)
        index = bisect_left(self._holes, (size, 0))
        if index < len(self._holes):
            found, where = self._holes[index]
            self._close(found, where)
            if found > size:
                self._open(found - size, where + size)
            return where
        last = self._ends.get(self.top, 0)  # a hole at the end grows
        where = self.top - last
        if last:
            self._close(last, where)
        self.top = where + size
        return where

    def give(self, where: int, size: int) -> None:
        """Free the block of `size` bytes at `where`."""
        size = _whole(size)
        before, behind = self._ends.get(where, 0), self._begins.get(where + size, 0)
        if before:
            self._close(before, where - before)
        if behind:
            self._close(behind, where + size)
        self._open(before + size + behind, where - before)

    def _open(self, size: int, where: int) -> None:
        insort(self._holes, (size, where))
        self._begins[where] = self._ends[where + size] = size

    def _close(self, size: int, where: int) -> None:
        del self._holes[bisect_left(self._holes, (size, where))]
        del self._begins[where], self._ends[where + size]


def _whole(size: int) -> int:
    return -(-max(size, 1) // GRAIN) * GRAIN + GRAIN
