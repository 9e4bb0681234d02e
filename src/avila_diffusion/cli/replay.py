"""`avila replay`: a picture is made again from what it carries, and compared with what it was."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileProblem, RequestError, Unsupported
from .generate import embedding_folders_of
from .recorded import find_checkpoint, find_loras, find_refiner, find_vae, given_pictures

if TYPE_CHECKING:
    from ..api import AvilaDiffusion
    from ..images import Image
    from ..metadata import Found
    from ..pipeline.trail import Footprint, Trail, Verdict
    from ..request import GenerateRequest
    from .progress import ProgressDisplay


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add this family to the command line."""
    replay = commands.add_parser(
        "replay",
        help="make a picture again from its metadata",
        description="Make a picture again from the metadata that it carries, whichever program wrote them. With "
        "--verify, say whether it is the same: by its trail (see `generate --trail`) call by call, else by its pixels.",
    )
    replay.add_argument("source", metavar="IMAGE", help="a picture with metadata; see `avila info`")
    replay.add_argument("-m", "--model", metavar="MODEL", help="make it with this model, whatever the metadata say")
    for name in ("VAE", "refiner"):
        replay.add_argument(f"--{name.lower()}", metavar="FILE", help=f"with this {name}, likewise")
    replay.add_argument(
        "--verify", action="store_true", help="compare with what is recorded; exit code 1 if it differs"
    )
    replay.add_argument("--trail", metavar="FILE", help="the trail to compare with; default: IMAGE with .trail")
    replay.add_argument("-o", "--output", metavar="PATH", help="where to write; with --verify nothing is, without -o")
    replay.add_argument(
        "--lenient", action="store_true", help="leave out what of a LoRA does not fit the model, as `generate` does"
    )
    for short, name in (("-i", "image"), (None, "mask"), (None, "depth")):
        names = [f"--{name}"] if short is None else [short, f"--{name}"]
        replay.add_argument(*names, metavar="FILE", help=f"the {name} that it was made from, which it does not hold")
    replay.add_argument("--models-dir", metavar="DIR", help="where names of models are looked up")
    replay.add_argument("--embeddings-dir", metavar="DIR", help="textual inversions; default: in the models folders")
    replay.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, mps")
    replay.add_argument("--dtype", choices=("auto", "float32", "float16", "bfloat16"), default="auto")
    replay.add_argument("--json", action="store_true", help="one JSON object on stdout")
    replay.add_argument("-q", "--quiet", action="store_true", help="nothing on stderr but errors")
    replay.set_defaults(run=run_replay)


def run_replay(options: argparse.Namespace) -> int:
    """`avila replay`."""
    from ..images import read_image
    from ..pipeline.ledger import Ledger
    from ..pipeline.provenance import take_over
    from ..pipeline.trail import Trail
    from ..result import GenerateResult
    from .job import made_size, tell
    from .outputs import Destination
    from .progress import ProgressDisplay

    picture = read_image(options.source)
    found = _read(picture, options.source)
    if options.trail is not None and not options.verify:
        raise RequestError("--trail only means something with --verify; add it, or leave out --trail")
    header, footprints = _trail(options)
    writes = not options.verify or options.output is not None
    destination = Destination.planned(options.output, 1)
    if writes:
        destination.check()
    display = ProgressDisplay(1, quiet=options.quiet)
    try:
        conditions = found.conditions if footprints is None else header.get("conditions")
        if conditions:
            take_over(conditions)
        engine, request = _prepared(options, found, conditions, display)
        if writes:
            destination.check_sizes(*made_size(request))
        trail = Trail()
        made: GenerateResult | None = None
        for event in engine.generate(request, journal=Ledger(trail=trail)):
            if isinstance(event, GenerateResult):
                made = event
            else:
                display.show(event)
        for note in () if made is None else made.notes:
            display.say(note)
    finally:
        display.close()
    assert made is not None
    path = destination.save(made[0], 0, made.seed) if writes else None
    verdict = _verdict(picture, made[0], footprints, trail) if options.verify else None
    if options.json:
        said = {} if verdict is None else {"same": verdict.same, "verdict": verdict.says}
        print(
            json.dumps(
                {
                    "path": None if path is None else str(path),
                    "infotext": made[0].infotext,
                    "notes": list(made.notes),
                    **said,
                }
            )
        )
    else:
        if path is not None:
            tell(path)
        if verdict is not None:
            print(f"{options.source}: {verdict.says}")
    return 0 if verdict is None or verdict.same else 1


def _read(picture: Image, name: str) -> Found:
    from ..metadata import read_request

    try:
        return read_request(picture)
    except FileProblem as error:
        raise FileProblem(f"{name}: {error}") from None


def _trail(options: argparse.Namespace) -> tuple[dict[str, Any], list[Footprint] | None]:
    from ..pipeline.trail import SUFFIX, read_trail

    path = Path(options.source).with_suffix(SUFFIX) if options.trail is None else Path(options.trail)
    if not options.verify or (options.trail is None and not path.is_file()):
        return {}, None
    return read_trail(path)


def _verdict(picture: Image, made: Image, footprints: list[Footprint] | None, trail: Trail) -> Verdict:
    from ..pipeline.trail import compare, compare_pixels

    if footprints is None:
        return compare_pixels(picture.pixels, made.pixels)
    return compare(footprints, trail.pictures.get(0, []))


def _prepared(
    options: argparse.Namespace, found: Found, conditions: object, display: ProgressDisplay
) -> tuple[AvilaDiffusion, GenerateRequest]:
    """The model that the metadata name, with their LoRAs, and what they ask of it."""
    from ..api import AvilaDiffusion

    pictures = given_pictures(options, found.pictures, options.source, display)
    request = replace(found.request(), **pictures)  # type: ignore[arg-type]
    if request.seed in (None, -1):  # which draws another each time
        raise FileProblem(f"the metadata of {options.source} name no seed; the picture cannot be made again")
    if found.lost:
        raise Unsupported(
            f"{options.source} was made with what is not replayed: {'; '.join(found.lost[:6])} "
            "(`avila generate --from` takes over the rest)"
        )
    for note in found.notes:
        display.say(note)
    path = find_checkpoint(options, found, options.source, display)
    vae, loras = find_vae(options, found, display), find_loras(options, found)
    dtype = _dtype(options, conditions)
    as_recorded = "" if dtype == options.dtype else f" in {dtype}, as recorded"
    display.say(f"making {options.source} again with {path}{as_recorded}")
    engine = AvilaDiffusion.with_model(
        path,
        vae=vae,
        lora=loras or None,
        refiner=find_refiner(options, found, display),
        embeddings=embedding_folders_of(options),
        device=options.device,
        dtype=dtype,
        lenient=options.lenient,
    )
    engine.look_in(options.models_dir)
    try:
        return engine, engine.resolved(request)
    except (RequestError, Unsupported) as error:
        raise type(error)(f"what the metadata of {options.source} ask for cannot be made: {error}") from None


def _dtype(options: argparse.Namespace, conditions: object) -> str:
    """The dtype asked for, else the recorded one: in another, every call differs by more than rounding."""
    recorded = conditions.get("dtypes") if isinstance(conditions, dict) else None
    known = ("float32", "float16", "bfloat16", "float64")
    if options.dtype == "auto" and isinstance(recorded, list) and recorded and recorded[0] in known:
        return str(recorded[0])
    return str(options.dtype)
