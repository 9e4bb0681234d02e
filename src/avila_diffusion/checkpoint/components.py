"""The files of one network on disk: a single safetensors file, or a folder with config.json and perhaps shards. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FileProblem, HeaderError, MissingPart, PickleRefused
from .safetensors import Header, TensorEntry, read_header

VARIANTS = ("", "fp16", "bf16")
"""Name endings of diffusers' weights, in the order they are taken: full precision before half."""
MAX_JSON_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Place:
    """Where a tensor is: in which file, under which name there."""

    header: Header
    entry: TensorEntry


@dataclass(frozen=True, kw_only=True)
class Component:
    """headers: of its file, or of its shards. config: its config.json, empty where there is none."""

    path: Path
    headers: list[Header]
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> Iterator[Place]:
        """Every tensor, also one that two shards hold."""
        return (Place(header, entry) for header in self.headers for entry in header.entries.values())

    @property
    def places(self) -> dict[str, Place]:
        """The tensors by the names there; of one that two shards hold, the first."""
        found: dict[str, Place] = {}
        for place in self.tensors:
            found.setdefault(place.entry.name, place)
        return found


def read_component(path: Path) -> Component:
    """The headers and the config of the network at `path`, a file or a folder; no tensor is read.

    Raises ModelNotFound, HeaderError, PickleRefused, or MissingPart for a folder without weights.
    """
    if not path.is_dir():
        return Component(path=path, headers=[read_header(path)])
    headers = [read_header(file) for file in _weight_files(path)]
    return Component(path=path, headers=headers, config=read_json(path / "config.json"))


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component: full precision first, then half; whole, or in shards; or any single one."""
    for name in ("diffusion_pytorch_model", "model"):
        for variant in VARIANTS:
            whole = folder / ".".join(filter(None, (name, variant, "safetensors")))
            if whole.is_file():
                return [whole]
            index = folder / ".".join(filter(None, (name, "safetensors.index", variant, "json")))
            shards = read_json(index).get("weight_map")
            if isinstance(shards, dict) and shards:
                # a name, never a way out of the folder
                return [folder / name for name in sorted({Path(str(shard)).name for shard in shards.values()})]
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if not files and any(folder.glob("*.bin")):
        raise PickleRefused(
            f"{folder} holds only pickled weights; convert them with: avila convert IN.bin OUT.safetensors"
        )
    raise MissingPart(
        f"{folder} has {len(files) or 'no'} safetensors files; expected diffusion_pytorch_model.safetensors or "
        "model.safetensors, or the index of its shards"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file. Raises HeaderError for anything else."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise HeaderError(f"{path} is larger than {MAX_JSON_BYTES:,} bytes, which no configuration is")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise FileProblem(f"{path} cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise HeaderError(f"{path} cannot be read as JSON: nested too deeply") from None
    except ValueError as error:
        raise HeaderError(f"{path} cannot be read as JSON: {error}; download it again") from None
    if not isinstance(value, dict):
        raise HeaderError(f"{path} holds {type(value).__name__}, expected a JSON object")
    return value
