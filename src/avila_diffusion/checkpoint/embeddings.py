"""Textual inversions (Gal et al. 2022, arXiv:2208.01618): files of vectors that stand for a new word.

Read are `.safetensors` (AUTOMATIC1111's `emb_params`, diffusers' one tensor under its token, SDXL's `clip_l` and `clip_g`),
pickled files of the same and of the original `string_to_param` form, through the reader that runs nothing in them, pictures
that carry an embedding (`embedding_pictures`), and vectors that LoRA files bring along.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import TextEncoderSpec
from ..errors import AvilaError, FileProblem, WeightMismatch
from .embedding_pictures import PICTURES, read_picture
from .folders import embedding_folders
from .header import shown
from .pickle_machine import Stub
from .pickle_tensors import TensorRef
from .pickles import read_pickle
from .safetensors import TensorFile

ONE = ""
"""Key of the vectors of a file that has them for one tower."""
SDXL = ("clip_l", "clip_g")
"""Keys of SDXL's, in the order of its towers."""
SHORT = 12
"""Hex digits of an embedding's hash in the metadata of a picture."""
MAX_BYTES = 64 << 20
MAX_VECTORS = 75
"""More do not fit a chunk of a prompt."""
_PICKLED = (".pt", ".bin", ".pth", ".ckpt")
_SUFFIXES = (".safetensors", ".sft", *_PICKLED, *PICTURES)
_BUNDLED = "bundle_emb."


@dataclass(frozen=True, eq=False)
class Embedding:
    """A word's vectors. vectors: `ONE`, or both of `SDXL` → (number, width) in float32. path: the file they are from."""

    name: str
    vectors: Mapping[str, Tensor]
    path: Path

    @property
    def count(self) -> int:
        """How many tokens it takes up in a prompt."""
        return len(next(iter(self.vectors.values())))

    @cached_property
    def hash(self) -> str:
        """The sha256 of the file, by which AUTOMATIC1111's `TI hashes` know it (its first 12 digits). May raise FileProblem."""
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as problem:
            raise FileProblem(f"{self.path} cannot be read: {problem.strerror or problem}") from None

    def for_towers(self, towers: Sequence[TextEncoderSpec]) -> tuple[Tensor, ...]:
        """The vectors for each text tower of a model. Raises WeightMismatch where it is an embedding of another family."""
        keys: tuple[str, ...] = SDXL if len(towers) == 2 else (ONE,)
        if len(towers) == 1 and towers[0].pooled and "clip_g" in self.vectors:
            keys = ("clip_g",)  # SDXL's refiner has the second tower alone
        widths = [tower.config.width for tower in towers]
        found = [self.vectors[key].shape[1] for key in keys if key in self.vectors]
        if found != widths:
            raise WeightMismatch(
                f"embedding {shown(self.name)} is {self._described()}; this model's text towers are {_listed(widths)} wide, "
                f"so it is of another family: take it out of the prompt ({self.path})"
            )
        return tuple(self.vectors[key] for key in keys)

    def fits(self, towers: Sequence[TextEncoderSpec]) -> bool:
        """Whether it is for a model with these text towers."""
        try:
            self.for_towers(towers)
        except WeightMismatch:
            return False
        return True

    def _described(self) -> str:
        widths = [self.vectors[key].shape[1] for key in sorted(self.vectors, reverse=True)]
        return f"{self.count} vectors, {_listed(widths)} wide"


def read_embedding(path: str | os.PathLike[str], name: str | None = None) -> Embedding:
    """Read an embedding's file. name: by which prompts call it; by default the file's without suffix, or a picture's own.

    Raises FileProblem or one of its kinds for a file that is none, or one that is damaged.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    content: object
    own = None
    if suffix in PICTURES:
        content = read_picture(path)
        if content is None:
            raise FileProblem(f"{path} is a picture that carries no embedding; give an embedding's file")
        told = content.get("name")
        own = told if isinstance(told, str) and told.strip() else None
    elif suffix in _PICKLED:
        _check_size(path)
        content = read_pickle(path).root
    else:
        _check_size(path)
        with TensorFile(path) as file:
            content = {key: file.tensor(key).clone() for key in _few(file.names, path)}
    return Embedding(name or own or path.stem, _vectors(content, path), path)


def read_bundled(path: str | os.PathLike[str]) -> tuple[Embedding, ...]:
    """The embeddings that a LoRA file brings along, by name; none where it has none.

    `bundle_emb.NAME.string_to_param.*` (or `.clip_l` and `.clip_g`) as AUTOMATIC1111 reads them, and cloneofsimo's tensors
    that are named by their token, `<s1>`.
    """
    path = Path(path)
    if path.suffix.lower() in _PICKLED:
        root = _plain(read_pickle(path).root)
        if not isinstance(root, Mapping):
            return ()
        found = {key: value for key, value in root.items() if isinstance(key, str) and _is_bundled(key)}
    else:
        with TensorFile(path) as file:
            found = {key: file.tensor(key).clone() for key in file.names if _is_bundled(key)}
    groups: dict[str, dict[str, Any]] = {}
    for key, value in found.items():
        if not key.startswith(_BUNDLED):
            groups.setdefault(key, {})[key] = value
            continue
        name, _, leaf = key.removeprefix(_BUNDLED).partition(".")
        kind, _, token = leaf.partition(".")
        if kind == "string_to_param":
            groups.setdefault(name, {}).setdefault(kind, {})[token] = value
        else:
            groups.setdefault(name, {})[leaf] = value
    return tuple(Embedding(name, _vectors(group, path), path) for name, group in groups.items())


def embeddings_by_name(folders: Sequence[Path] | None, loras: Iterable[Path] = ()) -> dict[str, Path | Embedding]:
    """All that a prompt may name: what LoRA files bring along, and in its place what lies in the folders.

    folders: of embeddings; by default those of the models folders. Raises FileProblem where one is none, or where a LoRA's
    vectors are damaged.
    """
    folders = embedding_folders() if folders is None else folders
    for folder in folders:
        if not folder.is_dir():
            raise FileProblem(f"{folder} is no folder; give the one in which the embeddings lie")
    found: dict[str, Path | Embedding] = {item.name: item for lora in loras for item in read_bundled(lora)}
    return {**found, **find_embeddings(folders)}


def find_embeddings(folders: Iterable[str | os.PathLike[str]], *, notes: list[str] | None = None) -> dict[str, Path]:
    """Name → file of every embedding in these folders and those below, the first where two have one name.

    Only pictures are opened, to see whether they carry one. `notes` receives a line for each that was skipped.
    """
    notes = [] if notes is None else notes
    found: dict[str, Path] = {}
    for folder in folders:
        for path in _files(Path(folder), notes):
            name: str | None = path.stem
            if path.suffix.lower() in PICTURES:
                name = _name_in_picture(path, notes)
            if name:
                found.setdefault(name, path)
    return found


def _files(root: Path, notes: list[str]) -> list[Path]:
    """The files of a folder that may be embeddings, each real folder entered once, by name."""
    found, seen = [], set()
    for base, folders, names in os.walk(
        root, followlinks=True, onerror=lambda error: notes.append(f"skipped: {error}")
    ):
        real = os.path.realpath(base)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(base, name)
            preview = Path(path.stem).suffix.lower() == ".preview"
            if name.startswith(".") or path.suffix.lower() not in _SUFFIXES or preview:
                continue
            try:
                size = path.stat().st_size
            except OSError as problem:
                notes.append(f"{path} was skipped: {problem.strerror or problem}")
                continue
            if 0 < size <= MAX_BYTES:
                found.append(path)
            else:
                notes.append(f"{path} was skipped: {size:,} bytes are no embedding's size")
    return found


def _name_in_picture(path: Path, notes: list[str]) -> str | None:
    try:
        return read_embedding(path).name
    except AvilaError as problem:
        notes.append(f"{path} was skipped: {problem}")
        return None


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as problem:
        raise FileProblem(f"{path} cannot be read: {problem}") from None
    if size > MAX_BYTES:
        raise FileProblem(f"{path} has {size:,} bytes; an embedding has at most {MAX_BYTES:,}, so this is another file")


def _few(names: Sequence[str], path: Path) -> Sequence[str]:
    if len(names) > len(SDXL) + 2:
        raise FileProblem(f"{path} has {len(names):,} tensors; an embedding has one or two, so this is another file")
    return names


def _is_bundled(key: str) -> bool:
    return key.startswith(_BUNDLED) or (key.startswith("<") and key.endswith(">"))


def _plain(value: Any) -> Any:
    """A pickled ParameterDict as the mapping that it was: its parameters are its state, or its items."""
    if isinstance(value, Stub):
        parameters = value.state.get("_parameters")
        return parameters if isinstance(parameters, Mapping) and parameters else value.entries or value.state
    return value


def _vectors(content: Any, path: Path) -> dict[str, Tensor]:
    """The vectors in a file's content, whichever of the known forms it has."""
    table = _plain(content)
    if not isinstance(table, Mapping):
        raise FileProblem(f"{path} is no embedding: it holds {type(table).__name__}, not a table of vectors")
    if "string_to_param" in table:
        inner = _plain(table["string_to_param"])
        if not isinstance(inner, Mapping):
            raise FileProblem(f"{path} is no embedding: its string_to_param is {type(inner).__name__}, not a table")
        table = inner
    elif set(SDXL) <= set(table):
        vectors = {key: _rows(table[key], key, path) for key in SDXL}
        if len({len(rows) for rows in vectors.values()}) != 1:
            raise FileProblem(f"{path} has other numbers of vectors in clip_l than in clip_g; it is damaged")
        return vectors
    tensors = {key: value for key, value in table.items() if isinstance(value, Tensor | TensorRef)}
    if len(tensors) != 1:
        raise FileProblem(
            f"{path} has {len(tensors)} tensors at its top; an embedding has one, or clip_l and clip_g: is it one?"
        )
    ((key, value),) = tensors.items()
    return {ONE: _rows(value, key, path)}


def _rows(value: Any, key: object, path: Path) -> Tensor:
    """(number, width) in float32 of a tensor in a file; one vector alone may lack the first dimension."""
    if isinstance(value, TensorRef):
        value = value.tensor()
    if not isinstance(value, Tensor) or value.dim() not in (1, 2) or not value.is_floating_point():
        raise FileProblem(f"{path} is no embedding: {shown(key)} is not a list of vectors")
    rows = (value[None] if value.dim() == 1 else value).to(torch.float32)
    if not 1 <= len(rows) <= MAX_VECTORS or not rows.shape[1]:
        raise FileProblem(
            f"{path} has {len(rows):,} vectors of {rows.shape[1]:,} numbers; from 1 to {MAX_VECTORS} vectors fit a prompt"
        )
    if not bool(rows.isfinite().all()):
        raise FileProblem(f"{path} holds NaN or infinity; download it again")
    return rows


def _listed(widths: Sequence[int]) -> str:
    return " and ".join(f"{width:,}" for width in widths) or "0"
