"""Who may import whom, as docs/design.md says it; how long a file and a function may be; what must not load torch."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "avila_diffusion"
SOURCE = ROOT / "src" / PACKAGE

DEPENDENCIES = {"torch", "safetensors", "numpy", "scipy", "PIL", "tqdm"}
SERVER_DEPENDENCIES = {"starlette", "uvicorn", "python_multipart", "prometheus_client"}
"""Of the extra `[server]`; only its room, and the command that starts it, may import them."""
LOADS_TORCH = {"torch", "safetensors.torch"}
SERVING = ("server", "server.*", "cli.serve")
LONGEST_FILE = 450
LONGEST_FUNCTION = 60


@dataclass(frozen=True)
class Room:
    """modules: what is in it, as patterns. may: our modules it may import; `but` takes some of them back.

    inside: what its functions may import beyond that. torch: may load torch when it is imported, itself or through
    others. never: outside modules that have no business there.
    """

    modules: tuple[str, ...]
    may: tuple[str, ...] = ()
    but: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    torch: bool = False
    never: tuple[str, ...] = ()


LORA_BUILDING = (
    "apply",
    "build",
    "deltas",
    "targets",
)  # the rest of it reads names and shapes: `inspect` needs no torch
BUILDING = ("checkpoint.load", *(f"checkpoint.lora.{name}" for name in LORA_BUILDING), "checkpoint.embeddings")
WORKER = ("server.worker", "server.drawing")
ABOVE_PIPELINE = ("", "api", "cli", "cli.*", "diagnose", "server", "server.*", "training", "training.*")

ROOMS = {
    "the package": Room(("",), ("version",)),
    "errors": Room(("errors", "version")),
    "config": Room(
        ("config", "sampling", "sampling.names", "sampling.catalogue", "sampling.schedule_catalogue"),
        ("errors", "sampling.names", "sampling.catalogue", "sampling.schedule_catalogue"),
    ),
    "limits": Room(("limits",), ("errors",)),
    "request": Room(
        ("request", "infotext", "picture_fields", "sizes"),
        ("errors", "config", "limits", "pictures", "sampling.names", "request", "picture_fields", "sizes", "version"),
        inside=("masking", "images"),
    ),
    "exif": Room(("exif",)),
    "image files": Room(
        ("image_files", "image_heads", "pixel_arrays"), ("errors", "exif", "image_files", "image_heads")
    ),
    "images": Room(("images",), ("errors", "request", "exif", "image_files")),
    "pictures": Room(("pictures",), ("errors",), inside=("images", "image_files", "pixel_arrays")),
    "masking": Room(("masking",), ("limits", "images")),
    "second pass": Room(("second_pass",), ("errors", "images", "limits", "request")),
    "grid": Room(("grid",), ("errors", "images", "image_files")),
    "metadata": Room(
        ("metadata", "metadata.*"),
        ("errors", "request", "images", "infotext", "picture_fields", "sampling.names", "version", "metadata.*"),
    ),
    "result": Room(("result",), ("errors", "request", "images")),
    "procedural": Room(
        ("procedural", "procedural.*"), ("errors", "request", "images", "result", "infotext", "procedural.*")
    ),
    "kernels": Room(("kernels", "kernels.*"), ("kernels", "kernels.*", "machine", "errors"), torch=True),
    "models": Room(
        ("models", "models.*"),
        (
            "config",
            "errors",
            *(
                f"models.{name}"
                for name in ("layers", "weights", "plans", "rows", "taesd", "text_keys", "tokens", "vae", "walk")
            ),
            "kernels",
            "kernels.*",
        ),
        torch=True,
        never=("io", "logging", "os", "pathlib", "safetensors"),
    ),
    "checkpoint building": Room(BUILDING, ("config", "errors", "checkpoint.*", "models", "models.*"), torch=True),
    "checkpoint": Room(
        ("checkpoint", "checkpoint.*"), ("config", "errors", "sampling.names", "version", "checkpoint.*"), but=BUILDING
    ),
    "conditioner": Room(
        ("text.conditioner",),
        ("config", "errors", "text.*", "models", "models.*", "checkpoint.embeddings"),
        torch=True,
    ),
    "text": Room(("text", "text.*"), ("errors", "text.*"), but=("text.conditioner",)),
    "sampling": Room(("sampling.*",), ("errors", "config", "limits", "sampling.*"), torch=True),
    "device": Room(("device",), ("errors", "limits"), torch=True),
    "pipeline": Room(("pipeline", "pipeline.*"), ("*",), but=ABOVE_PIPELINE, torch=True),
    "api": Room(
        ("api", "loading"), ("*",), but=("", "cli", "cli.*", "diagnose", "server", "server.*", "training", "training.*")
    ),
    "training": Room(
        ("training", "training.*"), ("*",), but=("", "api", "cli", "cli.*", "server", "server.*"), torch=True
    ),
    "server worker": Room(WORKER, ("*",), but=("", "cli", "cli.*", "training", "training.*"), torch=True),
    "server": Room(
        ("server", "server.*"),
        (
            *("checkpoint", "checkpoint.*", "config", "errors", "hashes", "image_files", "images", "infotext"),
            *("limits", "machine", "masking", "metadata", "metadata.*", "options", "pictures", "request", "result"),
            *("sampling.catalogue", "sampling.names", "sampling.rows", "sampling.schedule_catalogue", "second_pass"),
            *("server", "server.*", "sizes", "styling", "text", "text.*", "version"),
        ),
        but=(*WORKER, *BUILDING, "text.conditioner"),
    ),
    "hashes": Room(("hashes",), ("errors", "machine")),
    "given": Room(("given",), ("errors",)),
    "options": Room(("options",), ("request", "given")),
    "styling": Room(("styling",), ("errors", "given", "text.styles", "checkpoint.folders")),
    "machine": Room(("machine",)),
    "diagnose": Room(
        ("diagnose",),
        ("errors", "version", "machine"),
        inside=("checkpoint.bundled", "checkpoint.folders", "device", "kernels", "kernels.*"),
    ),
    "cli": Room(("cli", "cli.*", "__main__"), ("errors", "version", "cli", "cli.*"), inside=("*",)),
}
"""Read from top to bottom; a module is in the first room that names it. `""` is the package's own __init__."""


@dataclass(frozen=True)
class Import:
    """One import: what it names, in which line, and whether it runs when the module is imported."""

    target: str
    line: int
    at_import: bool
    ours: bool


@dataclass
class Module:
    """A source file and what it imports. name: dotted, without the package; "" for the package itself."""

    name: str
    path: Path
    is_package: bool
    tree: ast.Module
    imports: list[Import] = field(default_factory=list)


def read_modules(source: Path) -> dict[str, Module]:
    """Every module under `source`, which is the folder of a package."""
    modules = {}
    for path in sorted(source.rglob("*.py")):
        parts = list(path.relative_to(source).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        modules[name] = Module(name, path, is_package, ast.parse(path.read_text(encoding="utf-8"), str(path)))
    for module in modules.values():
        module.imports = [
            found for node, now in imports_of(module.tree) for found in resolve(node, now, module, modules)
        ]
    return modules


def imports_of(node: ast.AST, at_import: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Import statements below a node; those under `if TYPE_CHECKING:` do not count."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_import
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for otherwise in child.orelse:
                yield from imports_of(otherwise, at_import)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports_of(child, at_import and not inside)


def resolve(
    node: ast.Import | ast.ImportFrom, at_import: bool, module: Module, modules: dict[str, Module]
) -> Iterator[Import]:
    """The modules a statement names: ours without the package's name, others as they are written."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif node.level == 0:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        base = [PACKAGE, *filter(None, module.name.split("."))]
        drop = node.level - (1 if module.is_package else 0)
        base = base[: len(base) - drop] if drop else base
        base += node.module.split(".") if node.module else []
        names = [".".join([*base, alias.name]) for alias in node.names]
    for name in names:
        if name != PACKAGE and not name.startswith(PACKAGE + "."):
            yield Import(name, node.lineno, at_import, ours=False)
            continue
        inner = name[len(PACKAGE) + 1 :]
        while inner and inner not in modules:  # the last parts may be names in a module
            inner = inner.rpartition(".")[0]
        yield Import(inner, node.lineno, at_import, ours=True)


def room_of(name: str) -> Room | None:
    """The first room that names the module."""
    return next((room for room in ROOMS.values() if matches(name, room.modules)), None)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def find_trespasses(modules: dict[str, Module]) -> list[str]:
    """Imports that the rooms do not allow, and modules that are in no room."""
    found = []
    for module in modules.values():
        room = room_of(module.name)
        if room is None:
            found.append(f"{module.name} is in no room; give it one here and in docs/design.md")
            continue
        for item in module.imports:
            where = f"{module.name or PACKAGE}:{item.line}"
            if not item.ours:
                top = item.target.partition(".")[0]
                known = DEPENDENCIES | (SERVER_DEPENDENCIES if matches(module.name, SERVING) else set())
                if matches(top, room.never) or (top not in known and top not in sys.stdlib_module_names):
                    found.append(f"{where} imports {item.target}, which has no business there")
                continue
            allowed = matches(item.target, room.may) and not matches(item.target, room.but)
            allowed |= not item.at_import and matches(item.target, room.inside)
            if not allowed and item.target != module.name:
                found.append(f"{where} imports {item.target or PACKAGE}")
    return found


def find_torch(modules: dict[str, Module]) -> list[str]:
    """Modules of rooms without torch that load it when they are imported, with the way that leads there."""
    return [
        " -> ".join(way)
        for name in modules
        if (room := room_of(name)) is not None and not room.torch
        if (way := way_to_torch(name, modules, set())) is not None
    ]


def way_to_torch(name: str, modules: dict[str, Module], seen: set[str]) -> list[str] | None:
    """The chain of imports, parent packages included, by which importing a module loads torch."""
    seen.add(name)
    nexts = [name.rpartition(".")[0]] if name else []
    for item in modules[name].imports:
        if item.at_import and not item.ours:
            if any(item.target == torch or item.target.startswith(torch + ".") for torch in LOADS_TORCH):
                return [name or PACKAGE, item.target]
        elif item.at_import:
            nexts.append(item.target)
    for following in nexts:
        if following in modules and following not in seen:
            way = way_to_torch(following, modules, seen)
            if way is not None:
                return [name or PACKAGE, *way]
    return None


def find_circles(modules: dict[str, Module]) -> list[str]:
    """Modules that, while being imported, import themselves through others."""

    def reach(name: str, seen: set[str]) -> set[str]:
        for item in modules[name].imports:
            if item.ours and item.at_import and item.target != name and item.target not in seen:
                seen.add(item.target)
                reach(item.target, seen)
        return seen

    return [name for name in modules if name in reach(name, set())]


def find_long(modules: dict[str, Module]) -> list[str]:
    """Files and functions that are longer than a reader can hold."""
    found = []
    for module in modules.values():
        lines = len(module.path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_FILE:
            found.append(f"{module.name} has {lines} lines")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    found.append(f"{module.name}.{node.name} has {length} lines")
    return found


def find_untidy_all(modules: dict[str, Module]) -> list[str]:
    """`__all__` lists that are not literal and sorted."""
    found = []
    for module in modules.values():
        for node in module.tree.body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
                names = ast.literal_eval(node.value)
                if list(names) != sorted(set(names)):
                    found.append(f"{module.name or PACKAGE}: {names}")
    return found


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    return read_modules(SOURCE)


def test_every_import_is_allowed(modules: dict[str, Module]) -> None:
    assert find_trespasses(modules) == []


def test_rooms_without_torch_do_not_reach_it(modules: dict[str, Module]) -> None:
    assert find_torch(modules) == []


def test_no_circles(modules: dict[str, Module]) -> None:
    assert find_circles(modules) == []


def test_files_and_functions_are_short(modules: dict[str, Module]) -> None:
    assert find_long(modules) == []


def test_all_is_sorted_and_importable(modules: dict[str, Module]) -> None:
    assert find_untidy_all(modules) == []
    for module in modules.values():
        if any("__all__" in ast.unparse(node) for node in module.tree.body if isinstance(node, ast.Assign)):
            loaded = importlib.import_module(f"{PACKAGE}.{module.name}" if module.name else PACKAGE)
            assert [name for name in loaded.__all__ if not hasattr(loaded, name)] == []


TORCHLESS = {
    "the package": "import avila_diffusion",
    "--help": "main(['--help'])",
    "--version": "main(['--version'])",
    "generate --help": "main(['generate', '--help'])",
    "inspect": "main(['inspect', 'small.safetensors'])\nassert 'avila_diffusion.checkpoint.detect' in sys.modules",
    "models": "assert main(['models']) == 0",
    "info": "main(['info', 'none.png'])\nassert 'avila_diffusion.images' in sys.modules",
    "samplers": "assert main(['samplers']) == 0",
    "schedules": "assert main(['schedules']) == 0",
    "prompt": "assert main(['prompt', 'a (red:1.2) [car:0.5]']) == 0",
    "a procedural picture": "assert main(['generate', 'a sunset', '-W', '64', '-H', '64', '-o', 'a.png', '--procedural']) == 0",
}


@pytest.mark.parametrize("code", TORCHLESS.values(), ids=TORCHLESS.keys())
def test_torch_stays_out(code: str, tmp_path: Path) -> None:
    header = b'{"a.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "small.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    program = f"import sys\nfrom avila_diffusion.cli import main\n{code}\nassert 'torch' not in sys.modules, 'torch'\n"
    run_python(program, tmp_path)


def test_help_loads_neither_numpy_nor_pillow(tmp_path: Path) -> None:
    program = "from avila_diffusion.cli import main\nmain(['--help'])\nimport sys\n"
    run_python(program + "assert not {'numpy', 'PIL', 'tqdm', 'torch'} & set(sys.modules)\n", tmp_path)


def run_python(program: str, folder: Path) -> None:
    env = dict(os.environ, PYTHONPATH=str(SOURCE.parent), AVILA_MODELS=str(folder))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=env, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A small package in which every rule is broken once."""
    files = {
        "__init__.py": "from .version import __version__\n__all__ = ['b', 'a']\n",
        "version.py": "__version__ = '0'\n",
        "errors.py": "",
        "config.py": "from .request import GenerateRequest\n",
        "request.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .pipeline import x\nimport yaml\n",
        "pipeline/__init__.py": "import torch\ndef run(): ...\n",
        "models/__init__.py": "import pathlib\n",
        "checkpoint/__init__.py": "",
        "checkpoint/detect.py": "def inspect():\n    from ..models import unet\n",
        "text/__init__.py": "from .conditioner import encode\n",
        "text/conditioner.py": "import torch.nn\n",
        "text/prompt.py": "def parse():\n    import torch\n" + "    x = 1\n" * 70,
        "attic.py": "x = 1\n" * 500,
        "sampling/__init__.py": "",
        "sampling/noise.py": "from . import schedules\n",
        "sampling/schedules.py": "import avila_diffusion.sampling.noise\n",
        "cli/__init__.py": "def main():\n    from ..pipeline import run\n    import torch\n",
    }
    for name, text in files.items():
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / PACKAGE


def test_the_rules_see_what_is_wrong(fake: Path) -> None:
    modules = read_modules(fake)
    assert find_trespasses(modules) == [
        "attic is in no room; give it one here and in docs/design.md",
        "checkpoint.detect:2 imports models",
        "config:1 imports request",
        "models:1 imports pathlib, which has no business there",
        "request:4 imports yaml, which has no business there",
        "text:1 imports text.conditioner",
    ]
    assert find_torch(modules) == [
        "text -> text.conditioner -> torch.nn",
        "text.prompt -> text -> text.conditioner -> torch.nn",
    ]
    assert find_circles(modules) == ["sampling.noise", "sampling.schedules"]
    assert find_long(modules) == ["attic has 500 lines", "text.prompt.parse has 72 lines"]
    assert find_untidy_all(modules) == [f"{PACKAGE}: ['b', 'a']"]
