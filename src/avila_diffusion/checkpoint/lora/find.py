"""A LoRA by the name that a prompt gives it."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import AvilaError, ModelNotFound
from ..folders import find_model, list_models
from ..header import read_header


def find_lora(name: str, models: str | os.PathLike[str] | None = None) -> Path:
    """The file that `name` means: its own name, as `find_model` reads it, or the alias it was trained under.

    The alias is `ss_output_name` in the metadata of kohya's trainer; AUTOMATIC1111 writes it into prompts where a file was
    renamed. Raises ModelNotFound as `find_model`, and where several files have the alias.
    """
    try:
        return find_model(name, "lora", models)
    except ModelNotFound as problem:
        found = [model.path for model in list_models("lora", models) if _alias(model.path) == name]
        if not found:
            raise
        if len(found) > 1:
            listed = ", ".join(str(path) for path in found[:4])
            raise ModelNotFound(
                f"several LoRAs were trained under the name {name!a}: {listed}; name the file"
            ) from problem
        return found[0]


def _alias(path: Path) -> str | None:
    try:
        return read_header(path).metadata.get("ss_output_name") if path.suffix.lower() == ".safetensors" else None
    except AvilaError:  # a damaged neighbour is nobody's alias
        return None
