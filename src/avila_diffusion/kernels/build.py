"""The kernels in C, built once for the processor at hand and kept in the user's cache.

Any C compiler will do: the sources use vector extensions of GCC and Clang and nothing else. Without one the networks run
on torch's own operations, to the same picture but for rounding, and slower. `pip install ziglang` brings one.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import platform
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ..machine import cache_folder, processor_name

SOURCES = Path(__file__).resolve().parent / "native"
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-w")
TARGETS = ("-march=native", "-mcpu=native", "")  # Clang for ARM knows the second, some compilers neither
SECONDS_TO_BUILD = 120


def compilers() -> Iterator[tuple[str, ...]]:
    """C compilers that are installed, as the words to call them by."""
    if chosen := os.environ.get("CC"):
        yield tuple(shlex.split(chosen, posix=sys.platform != "win32"))
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            yield (found,)
    if importlib.util.find_spec("ziglang") is not None:
        yield (sys.executable, "-m", "ziglang", "cc")


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, ready to call; None where they cannot be built or loaded: `problem` says why then."""
    try:
        return _load()
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        global problem
        problem = str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__
        return None


problem: str | None = None
"""Why `library` gave none."""


def _load() -> ctypes.CDLL:
    folder = cache_folder() / "kernels"
    suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
    target = folder / f"kernels-{_key()}{suffix}"
    if not target.is_file():
        _build(target)
    return ctypes.CDLL(str(target))


def _key() -> str:
    """Another source, processor or set of flags is another file."""
    digest = hashlib.sha256(repr((FLAGS, platform.machine(), processor_name(), _features())).encode())
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


def _features() -> str:
    """What the processor can do, where that can be read: a virtual machine may hide a part of it."""
    with contextlib.suppress(OSError):
        found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
        return found[1] if found else ""
    return ""


def _build(target: Path) -> None:
    """Compile into a file beside `target` and rename it: another process may be at the same work."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = target.with_name(f".{secrets.token_hex(8)}{target.suffix}")
    said = "no C compiler was found"
    try:
        for compiler in compilers():
            for machine in TARGETS:
                command = [
                    *compiler,
                    *FLAGS,
                    *([machine] if machine else []),
                    str(SOURCES / "native.c"),
                    "-o",
                    str(made),
                ]
                done = subprocess.run(command, capture_output=True, timeout=SECONDS_TO_BUILD, check=False)
                if done.returncode == 0 and made.is_file():
                    made.replace(target)
                    return
                said = f"{compiler[0]}: {done.stderr.decode('utf-8', 'replace').strip()}"
        raise RuntimeError(said)
    finally:
        with contextlib.suppress(OSError):
            made.unlink(missing_ok=True)
