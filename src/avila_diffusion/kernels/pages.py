"""What the allocator of glibc does with memory that tensors leave: kept for the next one, given back when told."""

from __future__ import annotations

import contextlib
import ctypes

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of glibc's mallopt
LARGEST_BLOCK = 1 << 30


def keep_pages() -> bool:
    """Let glibc keep freed memory for the next tensor; False where it is not glibc.

    By default it gives blocks of over 32 MB back to the system at once and asks for them again, zeroed page by page: a
    third of the time of decoding a picture. `give_back` returns what is not in use.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: Windows has no library of no name
        glibc = ctypes.CDLL(None)
        glibc.mallopt(MMAP_THRESHOLD, LARGEST_BLOCK)
        glibc.mallopt(TRIM_THRESHOLD, 2 * LARGEST_BLOCK - 1)
        return True
    return False


def give_back() -> None:
    """Give memory that nothing uses back to the system."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
