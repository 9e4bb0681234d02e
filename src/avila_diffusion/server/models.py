"""The models that the server knows: scanned, found by any of the names that clients use, told from their heads.

A name from a client is looked up in what was scanned, and is never made a path. What is found is what was listed, so links in
the models folder lead where its owner let them, and nothing else does. No path is in any answer. No torch.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..checkpoint.detect import detect
from ..checkpoint.inspection import inspect
from ..checkpoint.parts import gather
from ..checkpoint.safetensors import read_header
from ..config import ModelSpec
from ..errors import FileProblem, ModelNotFound, PickleRefused, Unsupported
from ..hashes import FileHash, hash_in_background
from .entries import CHECKPOINT, PROCEDURAL, PROCEDURAL_SIZE, Entry, Scanned, built_in, scan, state_of
from .names import near, one_line

_KIN = {"vae": "taesd", "taesd": "vae"}
_Stamp = tuple[Path | None, int, float]
"""A file as it was scanned: where, bytes, time of its change."""


@dataclass(frozen=True)
class Facts:
    """What a file is. family, variant, prediction: "" where it has none. size: default width and height in pixels, 0 for what
    draws nothing. fixed_size: it draws about that size only. defaults: steps, guidance_scale, sampler as far as the file
    recommends them. lines: for people. spec: of a model that can be loaded as it is; problem: why another cannot, "" here."""

    family: str
    variant: str
    size: int
    fixed_size: bool
    prediction: str
    defaults: Mapping[str, Any]
    lines: tuple[str, ...]
    spec: ModelSpec | None = field(default=None, repr=False)
    problem: str = ""

    @classmethod
    def of(cls, spec: ModelSpec, lines: tuple[str, ...]) -> Facts:
        """Of a model that can be loaded."""
        return cls(
            spec.family,
            spec.variant,
            spec.defaults.size or spec.size,
            spec.fixed_size,
            spec.noise.prediction,
            spec.defaults.recommended,
            lines,
            spec,
        )


NO_MODEL = Facts(
    "procedural",
    "",
    PROCEDURAL_SIZE,
    False,
    "",
    MappingProxyType({}),
    ("draws landscapes of a prompt without a model, in a moment",),
)


class ModelIndex:
    """The models of the folders that `avila models` would look in.

    models_dir: those folders, separated like PATH; None for AVILA_MODELS, or else `models`. Until the first `scan` it knows
    what comes with the package. All but `scan` may be called from any thread.
    """

    def __init__(self, models_dir: str | None = None) -> None:
        self.models_dir = models_dir
        self._scanned = Scanned.of({CHECKPOINT: built_in()}, ())
        self._scanning = asyncio.Lock()
        self._facts: dict[_Stamp, Facts] = {}
        self._specs: dict[tuple[_Stamp, _Stamp], ModelSpec] = {}
        self._aliases: dict[_Stamp, str | None] = {}
        self._hashing: dict[tuple[str, str], FileHash] = {}
        self._lock = threading.Lock()
        self.first = PROCEDURAL
        """Name of `default()`, as of the last scan."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was skipped at the last scan and why, with paths: for the log."""
        return self._scanned.notes

    async def scan(self) -> None:
        """Look into the folders again. Raises ModelNotFound where the setting of the folders cannot be used."""
        async with self._scanning:
            scanned = await asyncio.to_thread(scan, self.models_dir)
            with self._lock:
                self._scanned = scanned
            self.first = (await asyncio.to_thread(self.default)).name

    def entries(self, role: str = CHECKPOINT) -> list[Entry]:
        """As last scanned, by name. Checkpoints end with "bundled", where there is one, and "procedural"."""
        self._take_hashes()
        return list(self._scanned.entries.get(role, ()))

    def find(self, text: str, role: str = CHECKPOINT, *, hashes: bool = True) -> Entry:
        """The entry that is meant: by its name, with or without folders or suffix, its title, its short or whole hash, or a
        name and a hash in brackets, of which the name counts; in any case where it fits no other. hashes False: by names alone.

        Raises ModelNotFound with the nearest names, or with the candidates where there are several, and PickleRefused for a
        file that is to be converted first. Touches no file.
        """
        wanted = text.strip().strip("\"'").strip()
        if not wanted:
            raise ModelNotFound(f"no {_spoken(role)} was named")
        self._take_hashes()
        for one in (role, *([_KIN[role]] if role in _KIN else [])):
            names = self._scanned.names.get(one)
            matches = [] if names is None else names.find(wanted, hashes=hashes)
            if matches:
                return _usable(_only(wanted, matches, role))
        raise ModelNotFound(self._explained(wanted, role))

    def find_lora(self, name: str) -> Entry:
        """The LoRA that a prompt's tag names: by its file's names, or by the one that it was trained under, as `find_lora` of
        `checkpoint.lora` finds it. Reads heads of LoRAs where no file has the name. Raises as `find`."""
        try:
            return self.find(name, "lora", hashes=False)
        except ModelNotFound:
            trained = [one for one in self.entries("lora") if self._alias(one) == name]
            if not trained:
                raise
            return _only(name, trained, "lora")

    def without_folders(self, text: str) -> str:
        """A message of the worker, without where on the disk the models lie."""
        for entries in self._scanned.entries.values():
            for entry in entries:
                if entry.path is not None and str(entry.path) in text:
                    text = _without_folder(text, entry.path)
        return text

    def default(self, asked: str | None = None) -> Entry:
        """The checkpoint used where none is asked for: `asked`, else the first that can be loaded, else the bundled one, else
        the generator without a model. Reads heads of files: call it off the event loop. Raises as `find`."""
        if asked is not None:
            return self.find(asked)
        return next(one for one in self.entries() if one.path is None or self._loads(one))

    def _loads(self, entry: Entry) -> bool:
        """Whether a file is a checkpoint and all is there."""
        try:
            return not entry.needs_conversion and self.facts(entry).spec is not None
        except (FileProblem, ModelNotFound):
            return False

    def hash(self, entry: Entry) -> None:
        """Begin to hash a file in the background, unless it is known; `entries` shows the digest when it is there."""
        with self._lock:
            if entry.path is not None and entry.digest is None and entry.key not in self._hashing:
                self._hashing[entry.key] = hash_in_background(entry.path, tensors_only=entry.role == "lora")

    def stop(self) -> None:
        """Give up hashing."""
        with self._lock:
            for one in self._hashing.values():
                one.cancel()
            self._hashing.clear()

    def changed(self, entry: Entry) -> bool:
        """Whether its file is no longer the one that was scanned, by size and time, or is gone. Touches the disk."""
        if entry.path is None:
            return False
        try:
            return state_of(entry.path) != (entry.size, entry.changed)
        except OSError:
            return True

    def knows(self, entry: Entry) -> bool:
        """Whether `facts` answers from memory."""
        return entry.path is None or _stamp(entry) in self._facts

    def facts(self, entry: Entry) -> Facts:
        """What a file is, from its head; kept. Reads the file where it is not `knows`: call it off the event loop then.

        Raises FileProblem, with no folder in its message, for a file that is damaged or gone.
        """
        if entry.path is None:
            return NO_MODEL
        key = _stamp(entry)
        found = self._facts.get(key)
        if found is None:
            found = self._facts[key] = _told(entry, entry.path)
        return found

    def spec(self, entry: Entry, vae: Entry | None = None) -> ModelSpec | None:
        """What a pipeline needs to know of a model, perhaps with another VAE; None for "procedural". Reads files where it is
        not known yet. Raises FileProblem where it cannot be loaded so."""
        if entry.path is None:
            return None
        if vae is None or vae.path is None:
            facts = self.facts(entry)
            if facts.spec is None:
                raise FileProblem(facts.problem or f"{entry.name} is no checkpoint; avila inspect says what it is")
            return facts.spec
        key = (_stamp(entry), _stamp(vae))
        if key not in self._specs:
            spec, problem = _spec_of(entry.path, vae.path)
            if spec is None:
                raise FileProblem(problem)
            self._specs[key] = spec
        return self._specs[key]

    def _alias(self, entry: Entry) -> str | None:
        """The name that a LoRA was trained under, from its head; kept."""
        if entry.path is None or entry.path.suffix.lower() != ".safetensors":
            return None
        key = _stamp(entry)
        if key not in self._aliases:
            try:
                self._aliases[key] = read_header(entry.path).metadata.get("ss_output_name")
            except FileProblem:  # a damaged neighbour is nobody's alias
                self._aliases[key] = None
        return self._aliases[key]

    async def facts_of(self, entry: Entry) -> Facts:
        """The same, off the event loop where it reads a file."""
        return self.facts(entry) if self.knows(entry) else await asyncio.to_thread(self.facts, entry)

    def _take_hashes(self) -> None:
        """Put hashes that became ready into their entries."""
        with self._lock:
            ready = {key: one for key, one in self._hashing.items() if one.done()}
            if not ready:
                return
            digests: dict[tuple[str, str], str] = {}
            for key, one in ready.items():
                del self._hashing[key]
                try:
                    digests[key] = one.result(0)
                except FileProblem:
                    continue  # a file that cannot be read has no hash; loading it says why
            old = self._scanned
            entries = {
                role: tuple(replace(e, digest=digests[e.key]) if e.key in digests else e for e in found)
                for role, found in old.entries.items()
            }
            self._scanned = Scanned.of(entries, old.notes)

    def _explained(self, wanted: str, role: str) -> str:
        what, listed = _spoken(role), [one.name for one in self._scanned.entries.get(role, ())]
        said = f"no {what} named {one_line(wanted)}"
        if not listed:
            return f"{said}: the server's models folder has none; put the file there and scan again"
        found = near(wanted, listed)
        if found:
            return f"{said}; the nearest: {', '.join(found)}"
        more = f" and {len(listed) - 8:,} more" if len(listed) > 8 else ""
        return f"{said}; there are {', '.join(listed[:8])}{more}"


def _stamp(entry: Entry) -> _Stamp:
    return entry.path, entry.size, entry.changed


def _spoken(role: str) -> str:
    return {"lora": "LoRA", "vae": "VAE", "taesd": "tiny VAE", "unet": "UNet"}.get(role, role.replace("_", " "))


def _only(wanted: str, matches: list[Entry], role: str) -> Entry:
    if len(matches) > 1:
        # One of them the converted form of the others: that is meant.
        ready = [one for one in matches if not one.needs_conversion]
        if len(ready) == 1 and len({one._without_suffix for one in matches}) == 1:
            return ready[0]
        listed = ", ".join(one.name for one in matches[:8])
        raise ModelNotFound(
            f"{one_line(wanted)} could be {len(matches):,} {_spoken(role)}s: {listed}; give more of the name"
        )
    return matches[0]


def _usable(entry: Entry) -> Entry:
    if entry.needs_conversion:
        target = f"{entry.stem}.safetensors"
        raise PickleRefused(
            f"{entry.name} is pickled and could run code; make a safetensors file of it, on the server: avila convert "
            f"{entry.file_name} {target}"
        )
    return entry


def _told(entry: Entry, path: Path) -> Facts:
    try:
        found = inspect(path)
    except (FileProblem, ModelNotFound) as error:
        raise type(error)(_without_folder(str(error), path)) from None
    lines = tuple(_without_folder(line, path) for line in found.lines())
    if found.report is None:
        return Facts("", "", 0, False, "", {}, lines, problem=found.problem)
    spec, problem = _spec_of(path)
    report = found.report
    if spec is None:
        return Facts(report.family, report.variant, 0, False, report.prediction, {}, lines, problem=problem)
    return Facts.of(spec, lines)


def _spec_of(path: Path, vae: Path | None = None) -> tuple[ModelSpec | None, str]:
    """(what a pipeline needs to know, "") or (None, why it cannot be had)."""
    try:
        return detect(gather(path, vae=vae))[0], ""
    except (FileProblem, Unsupported) as error:
        return None, _without_folder(str(error), path, *([] if vae is None else [vae]))


def _without_folder(text: str, *paths: Path) -> str:
    """A message without the folders that the server keeps its files in."""
    for path in paths:
        text = text.replace(str(path), path.name).replace(path.as_posix(), path.name)
    return text
