"""The sha256 of a model file, by which AUTOMATIC1111 identifies it: in the background, remembered on disk. No torch.

A checkpoint is known by the hash of the whole file, a LoRA by that of its tensors alone: what follows the header, so that
metadata may change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import AvilaError, Cancelled, FileProblem
from .machine import cache_folder

SHORT = 10
"""Hex digits of a model hash in the metadata of a picture."""
SHORT_LORA = 12
"""Of a LoRA's, likewise."""

_SHA256 = re.compile("[0-9a-f]{64}")
_CHUNK = 1 << 20
_PICKLED = (".ckpt", ".pt", ".pth", ".bin")
"""Files without a header before their tensors; AUTOMATIC1111 hashes a LoRA in one of them whole."""
_ONE_AT_A_TIME = threading.Lock()
"""Two files read at once would only fight for the disk, and on two cores for the one that should be computing."""


class FileHash:
    """The sha256 of a file, known now or soon. Made by `hash_in_background`."""

    def __init__(self, path: Path, *, tensors_only: bool = False) -> None:
        self.path = path
        self.tensors_only = tensors_only
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._outcome: str | AvilaError | None = None

    def done(self) -> bool:
        """Whether `result` returns or raises at once."""
        return self._ready.is_set()

    def cancel(self) -> None:
        """Stop reading; `result` raises Cancelled from now on, unless the hash was ready before."""
        self._stop.set()

    def result(self, timeout: float | None = None) -> str:
        """The sha256 in 64 hex digits, waiting up to `timeout` seconds for it, None for as long as it takes.

        Raises FileProblem where the file could not be read, Cancelled after `cancel`, TimeoutError.
        """
        if not self._ready.wait(timeout):
            raise TimeoutError(f"the sha256 of {self.path} is not ready after {timeout:g} s")
        if isinstance(self._outcome, str):
            return self._outcome
        assert self._outcome is not None
        raise self._outcome

    def short(self, timeout: float | None = None) -> str:
        """The first hex digits, as they stand in the metadata of a picture: 10 of a file, 12 of its tensors alone.

        Raises as `result`.
        """
        return self.result(timeout)[: SHORT_LORA if self.tensors_only else SHORT]

    def _settle(self, outcome: str | AvilaError) -> None:
        self._outcome = outcome
        self._ready.set()

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Cancelled(f"hashing {self.path.name} was stopped")

    def _run(self) -> None:
        try:
            while not _ONE_AT_A_TIME.acquire(timeout=0.1):
                self._check_stop()
            try:
                self._settle(_hash_and_remember(self))
            finally:
                _ONE_AT_A_TIME.release()
        except AvilaError as error:
            self._settle(error)
        except OSError as error:
            self._settle(_unreadable(self.path, error))
        except Exception as error:  # nobody may wait for ever
            problem = FileProblem(f"{self.path} could not be hashed ({error!r})")
            problem.__cause__ = error
            self._settle(problem)


def own_hash(metadata: Mapping[str, str]) -> str | None:
    """The short hash that a LoRA file says it has, which AUTOMATIC1111 prefers to one it would compute; None without."""
    told = metadata.get("sshs_model_hash", "").lower()
    return told[:SHORT_LORA] if _SHA256.fullmatch(told) else None


def known_hash(path: str | Path, *, tensors_only: bool = False) -> str | None:
    """The sha256 of a file where it is remembered, without reading the file; None where it is not, or the file has changed."""
    wanted = FileHash(_absolute(path), tensors_only=tensors_only)
    try:
        return _remembered(_Entry.of(wanted, wanted.path.stat()))
    except (OSError, ValueError):
        return None


def hash_in_background(path: str | Path, *, tensors_only: bool = False) -> FileHash:
    """The hash of a file without waiting for it: from the cache, or read by a thread that never keeps Python alive.

    tensors_only: of a safetensors file without its header; of a pickled one all of it, but with as many digits as a LoRA's.
    """
    found = FileHash(_absolute(path), tensors_only=tensors_only)
    try:
        status = found.path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        found._settle(_unreadable(found.path, error))
        return found
    if not stat.S_ISREG(status.st_mode):
        found._settle(FileProblem(f"{found.path} is a folder or device; give a model file"))
    elif (known := _remembered(_Entry.of(found, status))) is not None:
        found._settle(known)
    else:
        threading.Thread(target=found._run, name=f"sha256 of {found.path.name}", daemon=True).start()
    return found


@dataclass(frozen=True)
class _Entry:
    """What a remembered hash belongs to. A file that changed has another size or another time."""

    path: str
    size: int
    mtime_ns: int
    of_what: str = "sha256"

    @classmethod
    def of(cls, found: FileHash, status: os.stat_result) -> _Entry:
        what = "sha256-tensors" if found.tensors_only else "sha256"
        return cls(str(found.path), status.st_size, status.st_mtime_ns, what)

    @property
    def file(self) -> Path:
        """One file for each path: two processes that remember at once cannot lose each other's."""
        return cache_folder() / self.of_what / f"{hashlib.sha256(os.fsencode(self.path)).hexdigest()[:32]}.json"

    def to_dict(self) -> dict[str, str | int]:
        return {"path": self.path, "size": self.size, "mtime_ns": self.mtime_ns}


def _hash_and_remember(wanted: FileHash) -> str:
    with wanted.path.open("rb", buffering=0) as stream:
        before = os.fstat(stream.fileno())
        if wanted.tensors_only and wanted.path.suffix.lower() not in _PICKLED:
            stream.seek(min(8 + int.from_bytes(stream.read(8), "little"), before.st_size))
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(_CHUNK))
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            wanted._check_stop()
    found = digest.hexdigest()
    named, entry = wanted.path.stat(), _Entry.of(wanted, before)
    same_file = (named.st_ino, named.st_dev) == (before.st_ino, before.st_dev)
    if same_file and entry == _Entry.of(wanted, named):
        _remember(entry, found)
    return found


def _remembered(entry: _Entry) -> str | None:
    try:
        known = json.loads(entry.file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError, RecursionError):
        return None  # nothing there, or nothing that can be used: the file is read again
    if not isinstance(known, dict) or not isinstance(found := known.pop("sha256", None), str):
        return None
    return found if known == entry.to_dict() and _SHA256.fullmatch(found) else None


def _remember(entry: _Entry, found: str) -> None:
    partial = None
    try:
        target = entry.file
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{secrets.token_hex(8)}.partial")
        partial.write_text(json.dumps({**entry.to_dict(), "sha256": found}), encoding="utf-8")
        partial.replace(target)
    except (OSError, ValueError, RuntimeError):  # a cache that cannot be written costs a second reading, no more
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink()


def _absolute(path: str | Path) -> Path:
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links or an impossible name; opening it says so
        return Path(path).absolute()


def _unreadable(path: Path, error: Exception) -> FileProblem:
    said = getattr(error, "strerror", None) or error
    return FileProblem(f"{path} cannot be read ({said}); give a model file that is there")
