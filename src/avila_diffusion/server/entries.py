"""What lies in the models folder: every file once, in the role that it has there or by its tensors. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ..checkpoint import bundled
from ..checkpoint.folders import ROLES, list_models
from ..checkpoint.kinds import recognise
from ..checkpoint.safetensors import read_header
from ..errors import AvilaError, FileProblem
from ..hashes import SHORT, known_hash
from .names import Names

PROCEDURAL = "procedural"
"""Name of the generator without a model."""
IN_METADATA = "avila procedural"
"""What its pictures say that they were drawn by."""
PROCEDURAL_SIZE = 512
CHECKPOINT = "checkpoint"
_PICKLES = frozenset((".ckpt", ".pt", ".pth", ".bin"))
_PICKLED_OK = frozenset(("lora", "embedding"))
"""Roles whose pickled files are read as they are, without running anything in them."""


@dataclass(frozen=True)
class Entry:
    """A model. name: relative to its folder, with "/", or "bundled" or "procedural". path: None where there is no file; never
    shown to clients. size: bytes. changed: seconds since 1970, of its last change. digest: SHA-256 of the file, of a LoRA
    that of its tensors; None until it is known."""

    name: str
    role: str
    path: Path | None
    size: int
    changed: float
    digest: str | None = None

    @property
    def stem(self) -> str:
        """The name without folders and suffix."""
        return self._without_suffix.rpartition("/")[2]

    @property
    def file_name(self) -> str:
        """The name without folders."""
        return self.name.rpartition("/")[2]

    @property
    def short_hash(self) -> str | None:
        """The first 10 digits of the digest, as metadata have them."""
        return None if self.digest is None else self.digest[:SHORT]

    @property
    def title(self) -> str:
        """AUTOMATIC1111's: the name and, where it is known, the hash in brackets."""
        return self.name if self.digest is None else f"{self.name} [{self.short_hash}]"

    @property
    def needs_conversion(self) -> bool:
        """Pickled, and not read before `avila convert` made a safetensors file of it."""
        if self.path is None or self.role in _PICKLED_OK:
            return False
        return self.path.suffix.lower() in _PICKLES

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all others."""
        return self.role, self.name

    @property
    def _without_suffix(self) -> str:
        suffix = "" if self.path is None else self.path.suffix
        return self.name.removesuffix(suffix) if suffix else self.name

    def names(self) -> tuple[tuple[str, ...], ...]:
        """What it is called, from the strictest to the loosest."""
        if self.name == PROCEDURAL:
            return (PROCEDURAL,), (IN_METADATA,), ()
        return (self.name,), (self._without_suffix,), (self.file_name, self.stem)


@dataclass(frozen=True)
class Scanned:
    """All entries by role, and their names."""

    entries: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)
    names: Mapping[str, Names[Entry]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, entries: Mapping[str, tuple[Entry, ...]], notes: tuple[str, ...]) -> Scanned:
        names = {role: Names([(one, one.names(), one.digest) for one in found]) for role, found in entries.items()}
        return cls(entries, names, notes)


def built_in() -> tuple[Entry, ...]:
    found = []
    try:
        path = bundled.bundled_model()
        size, changed = state_of(path)
        found.append(Entry(bundled.NAME, CHECKPOINT, path, size, changed, known_hash(path)))
    except (FileProblem, OSError):
        pass  # this copy of the package has none
    return (*found, Entry(PROCEDURAL, CHECKPOINT, None, 0, 0.0))


def scan(models_dir: str | None) -> Scanned:
    notes: list[str] = []
    entries: dict[str, tuple[Entry, ...]] = {}
    for role in ROLES:
        found = []
        for model in list_models(role, models_dir, notes=notes):
            try:
                model.name.encode()
                path = model.path.absolute()
                size, changed = state_of(path)
            except UnicodeEncodeError:  # no answer could hold it
                notes.append(f"{model.name!a} was skipped: its name is not UTF-8; rename it")
                continue
            except OSError:
                continue  # gone meanwhile
            digest = known_hash(path, tensors_only=role == "lora") if path.is_file() else None
            found.append(Entry(model.name, role, path, size, changed, digest))
        entries[role] = tuple(found)
    entries = _told_apart(entries)
    entries[CHECKPOINT] += built_in()
    return Scanned.of(entries, tuple(dict.fromkeys(notes)))


def _told_apart(entries: Mapping[str, tuple[Entry, ...]]) -> dict[str, tuple[Entry, ...]]:
    """A plain folder's files are listed in every role: of those each stays where its tensors say that it belongs."""
    roles = Counter(entry.path for found in entries.values() for entry in found)

    def belongs(entry: Entry, role: str) -> bool:
        if entry.path is None or roles[entry.path] == 1:
            return True
        kind = _kind_of(entry.path, entry.size, entry.changed)
        return kind == role or (kind not in ROLES and role == CHECKPOINT)

    return {role: tuple(entry for entry in found if belongs(entry, role)) for role, found in entries.items()}


@lru_cache(8192)
def _kind_of(path: Path, size: int, changed: float) -> str:
    """The kind of a file as it is now, "" for what cannot be read: it is listed, and says why when it is used."""
    try:
        return recognise(read_header(path)).key
    except (AvilaError, OSError):
        return ""


def state_of(path: Path) -> tuple[int, float]:
    """(bytes, time of the last change) of a file, or of all files of a folder. Raises OSError."""
    status = path.stat()
    if not path.is_dir():
        return status.st_size, status.st_mtime
    states = [one.stat() for one in path.rglob("*") if one.is_file()]
    return sum(one.st_size for one in states), max([status.st_mtime, *(one.st_mtime for one in states)])
