"""`avila replay`: a picture is made again from what it carries, and compared with what it was."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileProblem, ModelNotFound, RequestError, Unsupported

if TYPE_CHECKING:
    from ..api import AvilaDiffusion
    from ..images import Image
    from ..infotext import Parsed
    from ..pipeline.trail import Footprint, Trail, Verdict
    from ..request import GenerateRequest
    from .progress import ProgressDisplay

LORA_TAG = re.compile(r"\s*<lora:([^:<>]+):([^:<>]+)(?::([^:<>]+))?>")
NOT_REPLAYED = re.compile(
    r"(Branched|Hires|ADetailer|ControlNet|Refiner|Variation|Mask|TI hashes|Denoising|Inpaint|Script|Dynamic|Tiling|Hyper)"
)
"""Fields of pictures that were made by more than a prompt and a model."""


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add this family to the command line."""
    replay = commands.add_parser(
        "replay",
        help="make a picture again from its metadata",
        description="Make a picture again from the metadata that it carries, ours or AUTOMATIC1111's. With --verify, say "
        "whether it is the same: by its trail (see `generate --trail`) call by call, else by its pixels.",
    )
    replay.add_argument("image", metavar="IMAGE", help="a PNG, JPEG or WebP file with metadata")
    replay.add_argument("-m", "--model", metavar="MODEL", help="make it with this model, whatever the metadata say")
    replay.add_argument(
        "--verify", action="store_true", help="compare with what is recorded; exit code 1 if it differs"
    )
    replay.add_argument("--trail", metavar="FILE", help="the trail to compare with; default: IMAGE with .trail")
    replay.add_argument("-o", "--output", metavar="PATH", help="where to write; with --verify nothing is, without -o")
    replay.add_argument("--models-dir", metavar="DIR", help="where names of models are looked up")
    replay.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, mps")
    replay.add_argument("--dtype", choices=("auto", "float32", "float16", "bfloat16"), default="auto")
    replay.add_argument("--json", action="store_true", help="one JSON object on stdout")
    replay.add_argument("-q", "--quiet", action="store_true", help="nothing on stderr but errors")
    replay.set_defaults(run=run_replay)


def run_replay(options: argparse.Namespace) -> int:
    """`avila replay`."""
    from .. import infotext
    from ..images import read_image
    from ..pipeline.ledger import Ledger
    from ..pipeline.provenance import take_over
    from ..pipeline.trail import Trail
    from ..result import GenerateResult
    from .job import tell
    from .outputs import Destination
    from .progress import ProgressDisplay

    picture = read_image(options.image)
    if picture.infotext is None:
        raise FileProblem(f"{options.image} carries no metadata to make it again from; give the file as it was written")
    header, footprints = _trail(options)
    writes = not options.verify or options.output is not None
    destination = Destination.planned(options.output, 1)
    if writes:
        destination.check()
    display = ProgressDisplay(1, quiet=options.quiet)
    try:
        if footprints is not None:
            take_over(header.get("conditions"))
        engine, request = _prepared(options, infotext.read(picture.infotext), display)
        trail = Trail()
        made: GenerateResult | None = None
        for event in engine.generate(request, journal=Ledger(trail=trail)):
            if isinstance(event, GenerateResult):
                made = event
            else:
                display.show(event)
    finally:
        display.close()
    assert made is not None
    path = destination.save(made[0], 0, made.seed) if writes else None
    verdict = _verdict(picture, made[0], footprints, trail) if options.verify else None
    if options.json:
        said = {} if verdict is None else {"same": verdict.same, "verdict": verdict.says}
        print(json.dumps({"path": None if path is None else str(path), "infotext": made[0].infotext, **said}))
    else:
        if path is not None:
            tell(path)
        if verdict is not None:
            print(f"{options.image}: {verdict.says}")
    return 0 if verdict is None or verdict.same else 1


def _trail(options: argparse.Namespace) -> tuple[dict[str, Any], list[Footprint] | None]:
    from ..pipeline.trail import SUFFIX, read_trail

    path = Path(options.image).with_suffix(SUFFIX) if options.trail is None else Path(options.trail)
    if not options.verify or (options.trail is None and not path.is_file()):
        return {}, None
    return read_trail(path)


def _verdict(picture: Image, made: Image, footprints: list[Footprint] | None, trail: Trail) -> Verdict:
    from ..pipeline.trail import compare, compare_pixels

    if footprints is None:
        return compare_pixels(picture.pixels, made.pixels)
    return compare(footprints, trail.pictures.get(0, []))


def _prepared(
    options: argparse.Namespace, parsed: Parsed, display: ProgressDisplay
) -> tuple[AvilaDiffusion, GenerateRequest]:
    """The model that the metadata name, with their LoRAs, and what they ask of it."""
    from ..api import AvilaDiffusion
    from ..checkpoint.folders import find_model
    from ..request import GenerateRequest

    values = parsed.request_values()
    values["prompt"], loras = _take_loras(values["prompt"])
    if values.get("seed") is None:
        raise FileProblem(f"the metadata of {options.image} name no seed; the picture cannot be made again")
    request = GenerateRequest.from_dict(values)
    lost = sorted(name for name in parsed.fields if NOT_REPLAYED.match(name))
    if lost:
        raise Unsupported(
            f"{options.image} was made with more than text to image, which is not replayed: {', '.join(lost[:6])}"
        )
    folders, fields = options.models_dir, parsed.fields
    path = _find_checkpoint(options, fields, display)
    vae = None
    if fields.get("VAE", "None") not in ("None", "Automatic"):
        vae = _checked(find_model(fields["VAE"], "vae", folders), fields.get("VAE hash"))
    hashes = dict(re.findall(r"([^,:]+):\s*([0-9a-fA-F]+)", fields.get("Lora hashes", "")))
    hashes = {name.strip(): digest for name, digest in hashes.items()}
    found = [
        (_checked(find_model(name, "lora", folders), hashes.get(name), tensors_only=True), weight)
        for name, weight in loras
    ]
    display.say(f"making {options.image} again with {path}")
    engine = AvilaDiffusion.with_model(path, vae=vae, lora=found or None, device=options.device, dtype=options.dtype)
    return engine, request


def _find_checkpoint(options: argparse.Namespace, fields: dict[str, str], display: ProgressDisplay) -> Path:
    """By -m, else by the name in the metadata, if its hash is right, else by a hash that is known of a listed file."""
    from ..checkpoint.folders import find_model, list_models

    name, wanted = fields.get("Model"), fields.get("Model hash")
    if options.model is not None:
        path = find_model(options.model, "checkpoint", options.models_dir)
        if wanted is not None and not _has_hash(path, wanted):
            display.say(f"{path} is not the model that the metadata name ({name or wanted})")
        return path
    problem = f"the metadata of {options.image} name no model"
    if name is not None:
        try:
            path = find_model(name, "checkpoint", options.models_dir)
            if wanted is None or _has_hash(path, wanted):
                return path
            problem = f"{path} has another hash than {wanted}, which the picture was made with"
        except ModelNotFound as error:
            problem = str(error)
    for listed in list_models("checkpoint", options.models_dir) if wanted is not None else []:
        if wanted is not None and not listed.needs_conversion and _has_hash(listed.path, wanted, at_once=True):
            return listed.path
    raise ModelNotFound(f"{problem}; say with -m which model to take")


def _has_hash(path: Path, wanted: str, *, tensors_only: bool = False, at_once: bool = False) -> bool:
    """Whether a file's sha256 begins like that. at_once: only where it is known without reading the file."""
    from ..errors import AvilaError
    from ..hashes import hash_in_background

    found = hash_in_background(path, tensors_only=tensors_only)
    if at_once and not found.done():
        found.cancel()
        return False
    try:
        return found.result().startswith(wanted.lower())
    except AvilaError:  # a folder has none
        return path.is_dir()


def _checked(path: Path, wanted: str | None, *, tensors_only: bool = False) -> Path:
    if wanted is not None and not _has_hash(path, wanted, tensors_only=tensors_only):
        raise FileProblem(
            f"{path} has another hash than {wanted}, which the picture was made with; take the right file"
        )
    return path


def _take_loras(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """The prompt without its LoRA tags, and name and weight of each. Raises RequestError for a tag that says no weight."""
    found = []
    for name, weight, other in LORA_TAG.findall(prompt):
        try:
            weights = {float(number) for number in (weight, other) if number}
        except ValueError:
            raise RequestError(f"<lora:{name}:{weight}> has no weight that is a number") from None
        if len(weights) != 1:
            raise Unsupported(f"<lora:{name}:{weight}:{other}> has two weights, which is not supported yet")
        found.append((name.strip(), weights.pop()))
    return LORA_TAG.sub("", prompt), found
