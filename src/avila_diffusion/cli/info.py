"""`avila info`: how a picture was made, as far as it says so, whichever program wrote it."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from .recorded import read_found

if TYPE_CHECKING:
    from ..metadata import Found


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add this family to the command line."""
    info = commands.add_parser(
        "info",
        help="show how a picture was made",
        description="Show what a picture says about how it was made: by avila, AUTOMATIC1111 and its kin, ComfyUI, InvokeAI, "
        "stable-diffusion.cpp, NovelAI or Fooocus; the request that it would become; and what cannot be carried over.",
    )
    info.add_argument("image", metavar="IMAGE", help="a PNG, JPEG, WebP, AVIF or GIF file")
    info.add_argument("--json", action="store_true", help="one JSON object on stdout")
    info.set_defaults(run=run_info)


def run_info(options: argparse.Namespace) -> int:
    """`avila info`."""
    from ..images import read_image
    from ..metadata.found import printable

    found = read_found(options.image)
    if options.json:
        infotext = read_image(options.image).infotext
        print(json.dumps({"path": options.image, "infotext": infotext, **found.to_dict()}))
        return 0
    for line in "\n".join(_lines(options.image, found)).split("\n"):
        print(printable(line))
    return 0


def _lines(path: str, found: Found) -> list[str]:
    version = f" {found.version}" if found.version else ""
    lines = [f"{path}: made by {found.source}{version}"]
    if found.exact:
        lines[0] += "; it can be made again exactly"
    for what, name, digest in (("model", found.model, found.model_hash), ("VAE", found.vae, found.vae_hash)):
        if name or digest:
            lines.append(f"{what}: {name or 'not named'}" + (f" ({digest})" if digest else ""))
    for lora in found.loras:
        lines.append(f"LoRA: {lora.tag}" + (f" ({lora.hash})" if lora.hash else ""))
    lines += [f"embedding: {name}" + (f" ({digest})" if digest else "") for name, digest in found.embeddings.items()]
    lines += ["", "the request:", *_table(found.request_values)]
    if found.lost:
        lines += ["", "not carried over:", *(f"  {one}" for one in found.lost)]
    if found.notes:
        lines += ["", "notes:", *(f"  {one}" for one in found.notes)]
    if found.conditions:
        lines += ["", "computed with:", *_table(found.conditions)]
    if found.fields:
        lines += ["", "as it is written there:", *_table(found.fields)]
    return lines


def _table(values: dict[str, Any]) -> list[str]:
    """Names and values in two columns; a text of several lines is indented."""
    width = min(max(map(len, values), default=0), 30)
    lines = []
    for name, value in values.items():
        lines.append(f"  {name:<{width}}  " + _text(value).replace("\n", "\n" + " " * (width + 4)))
    return lines


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
