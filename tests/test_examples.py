"""The examples in docstrings do what they say."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import avila_diffusion

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(avila_diffusion.__path__, "avila_diffusion.")
    if not info.ispkg and not info.name.endswith("__main__")
)
FILE = '"dreamshaper_8.safetensors"'


def has_examples(name: str) -> bool:
    path = Path(avila_diffusion.__path__[0], *name.split(".")[1:]).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    return any(">>>" in (ast.get_docstring(node) or "") for node in ast.walk(tree) if isinstance(node, kinds))


WITH_EXAMPLES = [name for name in MODULES if has_examples(name)]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_docstrings(name: str) -> None:
    module: ModuleType = importlib.import_module(name)
    results = doctest.testmod(module, raise_on_error=False)
    assert results.attempted > 0
    assert results.failed == 0


def test_the_public_modules_have_examples() -> None:
    assert {"avila_diffusion.api", "avila_diffusion.request", "avila_diffusion.sampling.names"} <= set(WITH_EXAMPLES)


def test_the_example_of_the_package(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first code a reader sees, run on a tiny model and at its size."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("AVILA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    lines = [line[4:] for line in (avila_diffusion.__doc__ or "").splitlines() if line.startswith("    ")]
    code = "\n".join(lines)
    for there, here in ((FILE, repr(str(tiny_checkpoint("sd1")))), ("steps=20", "steps=2"), ("512, 512", "64, 64")):
        assert code.count(there) == 1
        code = code.replace(there, here)
    torch.set_num_threads(1)  # networks this small only lose by a second
    try:
        exec(compile(code, "avila_diffusion.__doc__", "exec"), {})
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "output.png").read_bytes().startswith(b"\x89PNG")
