"""The threads that the compiled kernels compute with: torch's own where they can be had, since two pools would spin against
each other; else a pool of the kernels' (native/pool.h)."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from collections.abc import Iterator
from ctypes import Structure, c_void_p
from pathlib import Path

import torch


class OpenMP(Structure):
    """Functions of an OpenMP library, as `struct openmp` of native.c wants them. All empty: the kernels' own pool."""

    _fields_ = (
        ("gomp_parallel", c_void_p),
        ("fork_call", c_void_p),
        ("push_num_threads", c_void_p),
        ("global_thread_num", c_void_p),
        ("thread_num", c_void_p),
        ("num_threads", c_void_p),
    )


NAMES = {
    "gomp_parallel": "GOMP_parallel",  # GNU's, and on some systems LLVM's and Intel's too
    "fork_call": "__kmpc_fork_call",  # LLVM's and Intel's
    "push_num_threads": "__kmpc_push_num_threads",
    "global_thread_num": "__kmpc_global_thread_num",
    "thread_num": "omp_get_thread_num",
    "num_threads": "omp_get_num_threads",
}


def functions_of(path: str) -> OpenMP | None:
    """What an OpenMP library has; None where it cannot be loaded or has no way in."""
    try:
        library = ctypes.CDLL(path)
    except OSError:
        return None
    found = OpenMP()
    for field, name in NAMES.items():
        with contextlib.suppress(AttributeError):
            setattr(found, field, ctypes.cast(getattr(library, name), c_void_p).value)
    llvm = found.fork_call and found.push_num_threads and found.global_thread_num
    return found if found.thread_num and found.num_threads and (found.gomp_parallel or llvm) else None


def openmp_of_torch() -> tuple[str, OpenMP] | None:
    """The OpenMP library that torch computes with, and its functions."""
    if not torch._C.has_openmp:
        return None
    for path in _candidates(Path(torch.__file__).parent):
        found = functions_of(path)
        if found is not None:
            return path, found
    return None


def _candidates(package: Path) -> Iterator[str]:
    if sys.platform == "linux":
        yield from _mapped(package)
    names = {"win32": ("libiomp5md.dll",), "darwin": ("libomp.dylib", "libiomp5.dylib")}.get(sys.platform, ())
    yield from (str(package / "lib" / name) for name in names if (package / "lib" / name).is_file())


def _mapped(package: Path) -> list[str]:
    """OpenMP libraries in this process, torch's first: other packages bring their own under names with a hash."""
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return ["libgomp.so.1"]
    mapped = {fields[5] for fields in (line.split(maxsplit=5) for line in lines) if len(fields) == 6}

    def rank(path: str) -> tuple[bool, bool, str]:
        of_torch = any(Path(path).is_relative_to(folder) for folder in (package, package.with_name("torch.libs")))
        return not of_torch, "-" in Path(path).name, path

    return sorted((path for path in mapped if re.match(r"lib(gomp|iomp5|omp)\b", Path(path).name)), key=rank)
