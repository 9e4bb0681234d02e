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
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ..machine import cache_folder, processor_name

SOURCES = Path(__file__).resolve().parent / "native"
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-w")
POSITION_INDEPENDENT = (
    () if sys.platform == "win32" else ("-fPIC",)
)  # on Windows all code is, and Clang refuses the word
TARGETS = ("-march=native", "-mcpu=native", "")  # Clang for ARM and zig know the second, some compilers neither
SECONDS_TO_BUILD = 120
ADVICE = f'"{sys.executable}" -m pip install ziglang'
"""What brings a compiler to any system."""

_lock = threading.Lock()

problem: str | None = None
"""Why `library` gave none."""


class NotBuilt(Exception):
    """No compiler made a library that can be loaded."""


def compilers() -> Iterator[tuple[str, ...]]:
    """C compilers that are installed, as the words to call them by: CC's first."""
    words: list[str] = []
    with contextlib.suppress(ValueError):  # an open quote
        words = [word.strip('"') for word in shlex.split(os.environ.get("CC", ""), posix=sys.platform != "win32")]
    if words:
        if Path(words[0]).name != words[0]:
            words[0] = str(Path(words[0]).absolute())  # it is called from another folder
        yield tuple(words)
    for name in ("clang",) if sys.platform == "win32" else ("cc", "gcc", "clang"):  # native.c says why not GCC there
        if found := shutil.which(name):
            yield (found,)
    if importlib.util.find_spec("ziglang") is not None:
        yield (sys.executable, "-m", "ziglang", "cc")


def library() -> ctypes.CDLL | None:
    """The kernels, ready to call; None where they cannot be built or loaded: `problem` says why then."""
    with _lock:  # two threads would build twice
        return _library()


@cache
def _library() -> ctypes.CDLL | None:
    global problem
    try:
        found = _find_or_build()
    except (OSError, RuntimeError, ValueError, NotBuilt) as error:
        problem = " ".join(str(error).split())[:300] or type(error).__name__
        return None
    problem = None
    return found


def forget() -> None:
    """Look for the kernels anew at the next call."""
    _library.cache_clear()


def _find_or_build() -> ctypes.CDLL:
    """From the user's cache, and into it; where it cannot be written or nothing runs from it, a temporary folder.

    Then every process builds for itself: a folder that others may write to is no place to load code from.
    """
    try:
        folder = (cache_folder() / "kernels").absolute()  # the compiler is called from another
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = _kept(folder)
        if found is not None:
            return found
        return _build(folder)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        folder = Path(tempfile.mkdtemp(prefix="avila-kernels-"))
        try:
            return _build(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # what is loaded stays loaded; Windows keeps the file until then


def _kept(folder: Path) -> ctypes.CDLL | None:
    """A library built before; one that is damaged is taken away. Its name ends in the beginning of its hash."""
    for path in sorted(folder.glob(f"kernels-{key()}-*{_suffix()}")):
        with contextlib.suppress(OSError):
            if path.stem.endswith("-" + _hash(path)):  # a file cut short would end the process, not raise
                return _loaded(path)
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _suffix() -> str:
    return {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")


def _loaded(path: Path) -> ctypes.CDLL:
    """Raises OSError where the file is no library of ours for this process."""
    found = ctypes.CDLL(str(path))
    try:
        if found.avila_vector_length() in (4, 8, 16):
            return found
    except AttributeError:
        pass
    raise OSError(f"{path.name} is not a library of these kernels")


def compiler_of(found: ctypes.CDLL) -> str:
    """Name and version of the compiler that made a library."""
    found.avila_compiler.restype = ctypes.c_char_p
    told: bytes = found.avila_compiler()
    return told.decode("utf-8", "replace").strip()


@cache
def hash_of_sources() -> str:
    """Of the C files and how they are compiled."""
    digest = hashlib.sha256(repr(FLAGS).encode())
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(source.read_bytes().replace(b"\r\n", b"\n"))  # git may have changed them on Windows
    return digest.hexdigest()


@cache
def key() -> str:
    """Another source, processor, system, Python or set of flags is another file."""
    here = (platform.machine(), processor_name(), _features(), sysconfig.get_platform(), sys.implementation.cache_tag)
    libc = sysconfig.get_config_var("SOABI")  # musl's Python does not load what glibc's made
    return hashlib.sha256(repr((hash_of_sources(), here, libc, os.environ.get("CC"))).encode()).hexdigest()[:24]


def _features() -> str:
    """What the processor can do, where that can be read: a virtual machine may hide a part of it."""
    with contextlib.suppress(OSError):
        found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
        return found[1] if found else ""
    return ""


def _build(folder: Path) -> ctypes.CDLL:
    """Compile into `folder` and load it. Raises OSError where that cannot be written to or run from, else NotBuilt.

    In a folder of its own, from which the finished file is moved: another process may be at the same work.
    """
    said: list[str] = []
    refused: OSError | None = None
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=folder))
    try:
        for compiler in compilers():
            made = work / f"kernels{_suffix()}"
            complaint = _compile(compiler, made)
            if complaint is None:
                target = folder / f"kernels-{key()}-{_hash(made)}{_suffix()}"
                try:
                    if not target.is_file():
                        made.replace(target)
                    return _loaded(target)
                except OSError as error:
                    refused, complaint = error, str(error)
            said.append(f"{' '.join(compiler)}: {complaint}")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if refused is not None:
        raise refused
    raise NotBuilt("; ".join(said) or "no C compiler was found")


def _compile(compiler: tuple[str, ...], made: Path) -> str | None:
    """None when `made` is there, else what the compiler complains of."""
    said = ""
    for machine in TARGETS:
        words = [*compiler, *FLAGS, *POSITION_INDEPENDENT, *([machine] if machine else [])]
        try:
            code, said = _call([*words, str(SOURCES / "native.c"), "-o", str(made)], made.parent)
        except subprocess.TimeoutExpired:
            return f"no answer in {SECONDS_TO_BUILD} s"
        except OSError as error:
            return error.strerror or str(error)
        if code == 0 and made.is_file():
            return None
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "failed without a word")


def _call(command: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and what was said. Whatever happens, no process of the compiler is left running."""
    # zig keeps caches of its own: here they go when the work is done. Into a file, since a pipe that a grandchild holds
    # would be waited for.
    environment = dict(os.environ, ZIG_LOCAL_CACHE_DIR=str(folder / "zig"), ZIG_GLOBAL_CACHE_DIR=str(folder / "zig"))
    environment["LC_ALL"] = "C"
    with (folder / "said").open("w+b") as said:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            start_new_session=sys.platform != "win32",
        )  # fmt: skip
        try:
            code = process.wait(timeout=SECONDS_TO_BUILD)
        except BaseException:
            end_group = getattr(os, "killpg", None)  # Windows has no groups of processes
            if end_group is None:
                process.kill()
            else:
                end_group(process.pid, getattr(signal, "SIGKILL"))  # noqa: B009
            process.wait()
            raise
        said.seek(0)
        return code, said.read().decode("utf-8", "replace")
