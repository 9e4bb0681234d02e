"""`avila generate`: a prompt becomes pictures in files."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from .parser import add_memory_options, typed_text
from .previews import Previews, add_decoder_option, add_preview_options
from .request_options import add_request_options, given
from .styling import add_style_options, styles_of

if TYPE_CHECKING:
    from ..api import AvilaDiffusion
    from ..metadata import Found
    from ..request import GenerateRequest
    from ..result import GenerateResult
    from .carried import Carried
    from .progress import ProgressDisplay

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
MODEL_OPTIONS = ("vae", "text_encoder", "lora", "refiner", "prediction", "embeddings_dir", "preview_decoder")
"""Options that mean nothing without a checkpoint; but for LoRAs, they mean nothing with the bundled one either."""
RUN_OPTIONS = (
    "lenient", "models_dir", "device", "dtype", "threads", "memory", "max_memory", "no_mmap", "preview_dir", "preview_every"
)  # fmt: skip
"""Options that mean nothing without any model."""
BUNDLED = "no model given: drawn by the small bundled one; -m FILE takes a checkpoint, --procedural needs none"


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add this family to the command line."""
    generate = commands.add_parser(
        "generate",
        help="make pictures from a prompt",
        description="Make pictures from a prompt: with a checkpoint (-m), else with the small model that comes with avila.",
    )
    generate.set_defaults(run=run_generate)
    add_job_options(generate)
    output = generate.add_argument_group("the output")
    output.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="a .png, .jpg, .webp or .avif file, or a folder; default: numbered in outputs/",
    )
    output.add_argument(
        "--journal", metavar="FILE", help="record every model call, so that `avila resume FILE` can go on"
    )
    output.add_argument(
        "--trail", action="store_true", help="leave PICTURE.trail beside it, for `avila replay --verify`"
    )
    add_preview_options(output)
    output.add_argument("--grid", action="store_true", help="several pictures side by side in one more file")
    output.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the paths")
    output.add_argument("-q", "--quiet", action="store_true", help="nothing on stderr but errors")
    output.add_argument("-v", "--verbose", action="store_true", help="the whole load report on stderr")


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which pictures are made and by which model."""
    parser.add_argument("words", metavar="PROMPT", nargs="?", type=typed_text, help="what to draw")
    parser.add_argument("-p", "--prompt", type=typed_text, metavar="TEXT", help="the same, as an option")
    parser.add_argument(
        "--from",
        dest="from_image",
        metavar="IMAGE",
        help="begin with the settings that this picture carries (see `avila info`); other options win",
    )
    add_request_options(parser)
    add_style_options(parser.add_argument_group("styles"))
    _add_model_options(parser.add_argument_group("the model"))


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-m", "--model", metavar="MODEL", help="a checkpoint: a file, a folder, or a name to find")
    group.add_argument("--procedural", action="store_true", help="no model: drawn by rules from the prompt")
    group.add_argument("--vae", metavar="FILE", help="use this VAE in place of the checkpoint's")
    group.add_argument("--text-encoder", metavar="FILE", action="append", help="use this text encoder; repeatable")
    group.add_argument(
        "--lora",
        metavar="FILE[:WEIGHT]",
        action="append",
        help="change the model by this LoRA; weight 1; FILE:TEXT:UNET has one for each; repeatable",
    )
    group.add_argument(
        "--refiner", metavar="FILE", help="a model that takes over before the end, such as SDXL's refiner"
    )
    group.add_argument("--lenient", action="store_true", help="leave out what of a LoRA does not fit the model")
    group.add_argument("--prediction", choices=("epsilon", "v", "edm"), help="what the UNet predicts, where files lie")
    group.add_argument("--embeddings-dir", metavar="DIR", help="textual inversions; default: in the models folders")
    add_decoder_option(group)
    group.add_argument("--models-dir", metavar="DIR", help="where names of models are looked up")
    group.add_argument("--device", metavar="DEVICE", help="auto (default), cpu, cuda, cuda:1, mps")
    group.add_argument("--dtype", choices=("auto", "float32", "float16", "bfloat16"), help="default auto")
    group.add_argument("-t", "--threads", type=int, metavar="N", help="processor threads; default: one a core")
    add_memory_options(group)
    group.add_argument("--no-mmap", action="store_true", help="read the file into memory instead of mapping it")


def run_generate(options: argparse.Namespace) -> int:
    """`avila generate`."""
    from .job import Job, made_size
    from .outputs import Destination
    from .progress import ProgressDisplay

    asked = _asked(options)
    request = asked.request
    destination = Destination.planned(options.output, request.batch * request.count, grid=options.grid)
    destination.check(trails=options.trail, journals=[options.journal] if options.journal else [])
    display = ProgressDisplay(request.batch * request.count, quiet=options.quiet)
    previews = Previews.asked(options, destination.stem, display.say)
    started = time.monotonic()
    try:
        engine, model = _loaded(options, asked, display)
        request = engine.request(**asked.values)  # the model may bring defaults of its own
        destination.check_sizes(*made_size(request.resolved(engine.size)))
        job = Job(engine, request, destination, display, quiet=options.json, trail=options.trail, previews=previews)
        if options.journal is not None:
            job.begin_journal(options.journal)
        job.run()
    finally:
        display.close()
    seconds = time.monotonic() - started
    if options.json:
        print(json.dumps(_summary(job.results, job.paths, model, seconds, asked.carried.notes)))
    else:
        display.say(_account(job.results[0], model, seconds))
    if job.unmade is not None:
        raise job.unmade
    return 0


def prepared(options: argparse.Namespace) -> tuple[AvilaDiffusion, GenerateRequest, str | None]:
    """What the options of a job stand for, without running it: what draws, what is asked of it, the checkpoint's path."""
    from .progress import ProgressDisplay

    asked = _asked(options)
    engine, model = _loaded(options, asked, ProgressDisplay(1, quiet=True))
    return engine, engine.request(**asked.values), model


@dataclass(frozen=True)
class _Asked:
    """What a command line asks for. request: as it is before a model brings its defaults. given: its fields that the command
    line names. found, carried: of the picture of --from. notes: on styles."""

    request: GenerateRequest
    given: dict[str, Any]
    found: Found | None
    carried: Carried
    notes: tuple[str, ...]

    @property
    def values(self) -> dict[str, Any]:
        """What `AvilaDiffusion.request` takes."""
        prompts = {"prompt": self.request.prompt, "negative_prompt": self.request.negative_prompt}
        return {**self.carried.values, **self.given, **prompts}


def _asked(options: argparse.Namespace) -> _Asked:
    """Raises RequestError, or FileProblem for a picture that says nothing."""
    from .carried import settle
    from .recorded import read_found

    found = None if options.from_image is None else read_found(options.from_image)
    values = given(options, {} if found is None else found.request_values)
    carried, notes = settle(found, values), list[str]()
    request = _request(options, {**carried.values, **values}, notes)
    return _Asked(request, values, found, carried, tuple(notes))


def _loaded(options: argparse.Namespace, asked: _Asked, display: ProgressDisplay) -> tuple[AvilaDiffusion, str | None]:
    """What draws, and the path of its checkpoint; what is to be known of both is told."""
    for note in asked.notes:
        display.say(note)
    if asked.found is not None:
        _take_files(options, asked.found, asked.carried, display)
    return _engine(options, display)


def _take_files(options: argparse.Namespace, found: Found, carried: Carried, display: ProgressDisplay) -> None:
    """Let the files that a picture names stand where the command line names none."""
    from .carried import settle_model
    from .recorded import find_checkpoint, find_loras, find_refiner, find_vae, given_pictures

    settle_model(carried, found, options)
    for said in (*(f"not carried over: {one}" for one in found.lost), *found.notes, *carried.notes):
        display.say(said)
    given_pictures(options, carried.pictures, options.from_image, display)
    if options.procedural:
        return
    if options.lora is None:
        options.lora = [f"{path}:{text!r}:{unet!r}" for path, text, unet in find_loras(options, found)] or None
    if options.model is not None:
        options.refiner = options.refiner or (None if carried.refiner is None else str(carried.refiner))
        return
    options.model = str(find_checkpoint(options, found, options.from_image, display))
    if options.vae is None and (vae := find_vae(options, found, display)) is not None:
        options.vae = str(vae)
    if options.refiner is None and (refiner := find_refiner(options, found, display)) is not None:
        options.refiner = str(refiner)


def _request(options: argparse.Namespace, values: dict[str, Any], notes: list[str]) -> GenerateRequest:
    """The request of a command line, checked, its prompts as the styles make them. Raises RequestError, FileProblem.

    values: its fields, the prompt that of a picture. notes: receives what is to be told of the styles.
    """
    from ..request import GenerateRequest
    from ..text.styles import apply_styles

    if options.words is not None and options.prompt is not None:
        raise RequestError("the prompt is given twice, as an argument and with --prompt; give it once")
    prompt = options.words if options.prompt is None else options.prompt
    prompt = values.pop("prompt", None) if prompt is None else prompt
    if prompt is None:
        raise RequestError('a prompt is needed: avila generate "a sunset over mountains"')
    if options.model is not None and options.procedural:
        raise RequestError("--procedural draws without a model; leave out -m or --procedural")
    if options.procedural and (options.journal is not None or options.trail):
        raise RequestError(
            "--procedural makes no model calls, so there is nothing to record; leave out --journal and --trail"
        )
    _refuse_useless(options)
    if options.journal == "":
        raise RequestError("the journal has an empty name; give --journal the name of a file")
    if options.threads is not None and options.threads < 1:
        raise RequestError(f"threads is {options.threads}; it must be 1 or more")
    prompt, negative = apply_styles(prompt, values.pop("negative_prompt", ""), styles_of(options, notes))
    return GenerateRequest(**{**values, "prompt": prompt, "negative_prompt": negative})


def _refuse_useless(options: argparse.Namespace) -> None:
    """Raise RequestError for options of a model where there is none, or not one that they could be for."""
    if not options.procedural and (options.model is not None or options.from_image is not None):
        return
    bundled = [name for name in MODEL_OPTIONS if name != "lora"]
    named = (*MODEL_OPTIONS, *RUN_OPTIONS) if options.procedural else bundled
    used = {"models_dir"} if options.style else set()  # a file of styles may lie there
    useless = [
        f"--{name.replace('_', '-')}"
        for name in named
        if getattr(options, name) not in (None, False) and name not in used
    ]
    if useless:
        mean = "only means" if len(useless) == 1 else "only mean"
        raise RequestError(
            f"{', '.join(useless)} {mean} something with a "
            + ("model; leave out --procedural" if options.procedural else "checkpoint of yours; add -m FILE")
        )


def embedding_folders_of(options: argparse.Namespace) -> list[Path] | None:
    """The folder asked for, or those that belong to the models folder asked for; None for the engine's own."""
    if options.embeddings_dir is not None:
        return [Path(options.embeddings_dir)]
    if options.models_dir is None:
        return None
    from ..checkpoint.folders import embedding_folders

    return embedding_folders(options.models_dir)


def _engine(options: argparse.Namespace, display: ProgressDisplay) -> tuple[AvilaDiffusion, str | None]:
    """What draws, and the path of its checkpoint."""
    from ..api import AvilaDiffusion

    if options.procedural:
        return AvilaDiffusion(), None
    from ..checkpoint.folders import find_model
    from ..checkpoint.lora.find import find_lora

    folders = options.models_dir
    path = find_model("bundled" if options.model is None else options.model, "checkpoint", folders)
    vae = None if options.vae is None else find_model(options.vae, "vae", folders)
    towers = [find_model(text, "text_encoder", folders) for text in options.text_encoder or ()]
    decoder = None if options.preview_decoder is None else find_model(options.preview_decoder, "taesd", folders)
    split = map(_split_weights, options.lora or ())
    loras = [(find_lora(name, folders), text, unet) for name, text, unet in split]
    added = "".join(
        f", {file} x {unet:g}" if text == unet else f", {file} x {text:g}:{unet:g}" for file, text, unet in loras
    )
    display.say(f"{BUNDLED}{added}" if options.model is None else f"loading {path}{added}")
    engine = AvilaDiffusion.with_model(
        path,
        vae=vae,
        text_encoder=towers or None,
        lora=loras or None,
        refiner=None if options.refiner is None else find_model(options.refiner, "checkpoint", folders),
        prediction=options.prediction,
        embeddings=embedding_folders_of(options),
        device=options.device or "auto",
        dtype=options.dtype or "auto",
        threads=options.threads,
        memory=options.memory or "auto",
        max_memory=options.max_memory,
        mmap=not options.no_mmap,
        lenient=options.lenient,
        preview_decoder=decoder,
    )
    engine.look_in(folders)
    if engine.report is not None:
        brief = 0 if options.model is None else 1
        for line in engine.report.lines()[: None if options.verbose else brief]:
            display.say(line)
    return engine, str(path)


def _split_weights(given: str) -> tuple[str, float, float]:
    """FILE[:WEIGHT] or FILE:TEXT:UNET → file, weight for the text, for the UNet.

    Only a number after one of the last two colons is a weight: `d:\\x.safetensors` has none.
    """
    name = given
    weights: list[float] = []
    while len(weights) < 2:
        rest, colon, weight = name.rpartition(":")
        if not colon or not rest or not NUMBER.fullmatch(weight.strip()):
            break
        name, weights = rest, [float(weight), *weights]
    return (name, weights[0], weights[-1]) if weights else (given, 1.0, 1.0)


def _summary(
    results: list[GenerateResult], paths: list[Path], model: str | None, seconds: float, notes: Sequence[str]
) -> dict[str, Any]:
    """What `--json` prints. `paths`, `seeds` and `infotext` have one entry per picture. notes: on what began the run."""
    from ..sizes import finished_size

    request, report = results[0].request, results[0].report
    return {
        "paths": [str(path) for path in paths],
        "seed": request.seed,
        "seeds": [seed for result in results for seed in result.request.seeds],
        "size": list(finished_size(request)),
        "drawn_at": None if results[0].drawn_at is None else list(results[0].drawn_at),
        "steps": request.steps,
        "sampler": request.sampler,
        "schedule": request.schedule,
        "model": model,
        "seconds": round(seconds, 3),
        "infotext": [image.infotext for result in results for image in result.images],
        "notes": list(dict.fromkeys([*notes, *(note for result in results for note in result.notes)])),
        "report": None if report is None else report.to_dict(),
    }


def _account(result: GenerateResult, model: str | None, seconds: float) -> str:
    from ..sizes import finished_size

    request, drawn = result.request, result.drawn_at
    width, height = finished_size(request)
    how = f"{request.steps} steps, {request.sampler}, {request.schedule}, " if model is not None else ""
    if drawn is not None:
        how = f"resized from the {drawn[0]}x{drawn[1]} that the model draws, {how}"
    return f"{width}x{height}, {how}seed {request.seed}, {seconds:.1f} s"
