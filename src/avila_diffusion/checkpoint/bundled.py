"""The small model that comes with the package: its name, and where its file lies. No torch.

It is a checkpoint like any other; all that is special about it stands in its metadata (see `detect`).
"""

from __future__ import annotations

import importlib.resources
import tempfile
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path

from ..errors import FileProblem

NAME = "bundled"
"""What `-m` and `find_model` take for it."""
FILE = f"{NAME}.safetensors"


def resource() -> Traversable:
    """Where the file lies in the package, whether it is there or not."""
    return importlib.resources.files("avila_diffusion") / "data" / FILE


def bundled_model() -> Path:
    """The file of the bundled model. Raises FileProblem where this copy of the package has none."""
    source = resource()
    if not source.is_file():
        raise FileProblem(
            f"the bundled model is not in this copy of avila_diffusion ({source} is missing); give a checkpoint with -m "
            "FILE, or draw without a model: --procedural"
        )
    return source if isinstance(source, Path) else Path(_unpacked().name) / FILE


@cache
def _unpacked() -> tempfile.TemporaryDirectory[str]:
    """Of a package that is run from its zip: a folder with a copy, which can be mapped, until the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="avila-", ignore_cleanup_errors=True)
    (Path(folder.name) / FILE).write_bytes(resource().read_bytes())
    return folder
