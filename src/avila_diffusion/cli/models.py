"""`avila models`, `avila inspect`, `avila convert`: the files on disk."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import FileProblem


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add this family to the command line."""
    models = commands.add_parser(
        "models",
        help="list the checkpoints that -m finds by name",
        description="List the model that comes with avila (-m bundled) and the checkpoints in the models folders: "
        "--models-dir, or the folders named in AVILA_MODELS.",
    )
    models.add_argument("--models-dir", metavar="DIR", help="look here")
    models.add_argument("--json", action="store_true", help="one JSON list instead of lines")
    models.set_defaults(run=run_models)

    inspect = commands.add_parser(
        "inspect",
        help="say what a model file is, without loading it",
        description="Say what a model file is, from its header alone.",
    )
    inspect.add_argument("file", metavar="FILE", type=Path, help="a file, a diffusers folder, or `bundled`")
    inspect.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    inspect.set_defaults(run=run_inspect)

    convert = commands.add_parser(
        "convert",
        help="make a .safetensors file of a pickled checkpoint, or change a file's dtype",
        description="Read a pickled checkpoint (.ckpt, .pt) or a .safetensors file and write a .safetensors file.",
    )
    convert.add_argument("source", metavar="IN", type=Path)
    convert.add_argument("target", metavar="OUT", type=Path)
    convert.add_argument("--dtype", choices=("f16", "bf16", "f32"), help="store floating-point tensors as this")
    convert.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    convert.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    convert.set_defaults(run=run_convert)


def run_models(options: argparse.Namespace) -> int:
    """`avila models`."""
    from ..checkpoint.bundled import NAME, bundled_model
    from ..checkpoint.folders import ModelFile, list_models

    notes: list[str] = []
    found = list_models("checkpoint", options.models_dir, notes=notes)
    own: list[ModelFile] = []
    try:
        path = bundled_model()
        own.append(ModelFile(NAME, path, "checkpoint", path.stat().st_size))
    except FileProblem as problem:
        notes.append(str(problem))
    for note in notes:
        print(f"avila: {note}", file=sys.stderr)
    if options.json:
        rows = [
            {"name": file.name, "path": str(file.path), "role": file.role, "size": file.size} for file in own + found
        ]
        print(json.dumps(rows, indent=2))
        return 0
    width = max((len(file.name) for file in own + found), default=0)
    for file in own + found:
        hint = "  (pickled: avila convert makes a .safetensors file of it)" if file.needs_conversion else ""
        hint = "  (comes with avila, and draws where no -m is given)" if file in own else hint
        print(f"{file.name:<{width}}  {file.size / 1e9:6.2f} GB  {file.path}{hint}")
    if not found:
        print("no checkpoints found; put .safetensors files in a folder and name it with --models-dir or AVILA_MODELS")
    return 0


def run_inspect(options: argparse.Namespace) -> int:
    """`avila inspect`."""
    from ..checkpoint.bundled import NAME, bundled_model
    from ..checkpoint.inspection import inspect

    path = bundled_model() if str(options.file) == NAME else options.file
    _print(inspect(path), as_json=options.json)
    return 0


def run_convert(options: argparse.Namespace) -> int:
    """`avila convert`."""
    from ..checkpoint.convert import convert

    report = convert(options.source, options.target, dtype=options.dtype, overwrite=options.overwrite)
    _print(report, as_json=options.json)
    return 0


def _print(report: Any, *, as_json: bool) -> None:
    print(json.dumps(report.to_dict(), indent=2) if as_json else "\n".join(report.lines()))
