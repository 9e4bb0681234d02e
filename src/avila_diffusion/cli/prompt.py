"""`avila prompt`: what becomes of a prompt; no picture is made."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ..errors import AvilaError
from .parser import typed_text
from .styling import add_style_options, styles_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import TextEncoderSpec
    from ..request import GenerateRequest
    from ..text.explain import PromptReport
    from ..text.styles import Style

STEPS = 20
SAMPLER = "DPM++ 2M"
_NAMES = {"comfyui": "ComfyUI", "diffusers": "diffusers"}


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add this family to the command line."""
    prompt = commands.add_parser(
        "prompt",
        help="show what becomes of a prompt: schedule, weights, tokens, chunks",
        description="Show what becomes of a prompt: network tags, parts, the schedule, weights, tokens and chunks. "
        "Makes no picture, and needs no model. Embeddings are found as `avila generate` finds them.",
    )
    prompt.add_argument("prompt", type=typed_text, metavar="PROMPT")
    prompt.add_argument("-n", "--negative-prompt", type=typed_text, metavar="TEXT", help="explain this one too")
    prompt.add_argument("-m", "--model", metavar="MODEL", help="as this model reads it: its text encoders and padding")
    prompt.add_argument("--models-dir", metavar="DIR", help="where names of models are looked up")
    prompt.add_argument("--embeddings-dir", metavar="DIR", help="textual inversions; default: in the models folders")
    prompt.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"steps of the schedule; default {STEPS}")
    prompt.add_argument(
        "--sampler", default=SAMPLER, metavar="NAME", help=f"decides how many calls a step counts; default {SAMPLER}"
    )
    prompt.add_argument(
        "--compat", choices=("a1111", "comfyui", "diffusers"), default="a1111", help="whose reading; default a1111"
    )
    prompt.add_argument(
        "--emphasis",
        choices=("Original", "No norm", "Ignore", "None"),
        default="Original",
        help="how brackets weigh; default Original",
    )
    add_style_options(prompt)
    prompt.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    prompt.set_defaults(run=run_prompt)


def run_prompt(options: argparse.Namespace) -> int:
    """`avila prompt`."""
    from ..sampling.names import resolve_sampler

    notes: list[str] = []
    styles = styles_of(options, notes)
    request = _request(options, styles)
    info, _ = resolve_sampler(options.sampler)
    calls = options.steps * (2 if info.second_order else 1)
    towers = _towers(options)
    encoders = [
        {"kind": tower.config.kind, "length": tower.config.context_length, "pad": tower.pad} for tower in towers
    ]
    reports = _reports(options, request, calls, towers, notes)
    if options.json:
        summary = {
            "sampler": info.name,
            "compat": request.compat,
            "emphasis": request.emphasis,
            "styles": [asdict(style) for style in styles],
            "text_encoders": encoders,
            "prompts": [report.to_dict() for report in reports],
        }
        print(json.dumps(summary, indent=2))
        return 0
    how = "" if request.compat == "a1111" else f", as {_NAMES[request.compat]} reads prompts"
    how += "" if request.emphasis == "Original" else f", emphasis {request.emphasis}"
    print(f"{options.steps} steps of {info.name}, counted as {calls} model calls{how}")
    for encoder in encoders:
        print(f"{encoder['kind']} text encoder: chunks of {encoder['length']}, filled with token {encoder['pad']}")
    for style in styles:
        print(f"style {style.name}: {style.prompt!r}, negative {style.negative_prompt!r}")
    for report in reports:
        print("\n".join(report.lines()))
    return 0


def _request(options: argparse.Namespace, styles: tuple[Style, ...]) -> GenerateRequest:
    """What is given, checked as for a picture."""
    from ..request import GenerateRequest
    from ..text.styles import apply_styles

    prompt, negative = apply_styles(options.prompt, options.negative_prompt or "", styles)
    return GenerateRequest(
        prompt=prompt,
        negative_prompt=negative,
        steps=options.steps,
        sampler=options.sampler,
        compat=options.compat,
        emphasis=options.emphasis,
    )


def _reports(
    options: argparse.Namespace,
    request: GenerateRequest,
    calls: int,
    towers: list[TextEncoderSpec],
    notes: list[str],
) -> list[PromptReport]:
    """Of the prompt, and of the negative one if there is one. notes: go to the first."""
    from ..text.explain import explain_prompt

    names, vectors = _embeddings(options, request, towers, notes)
    texts = [(request.prompt, False)]
    if options.negative_prompt is not None or request.negative_prompt:
        texts.append((request.negative_prompt, True))
    reports = [
        explain_prompt(
            text,
            steps=request.steps,
            calls=calls,
            negative=negative,
            dialect=request.compat,
            emphasis=request.emphasis,
            embeddings=names,
            vectors=vectors,
        )
        for text, negative in texts
    ]
    reports[0] = replace(reports[0], notes=(*notes, *reports[0].notes))
    return reports


def _towers(options: argparse.Namespace) -> list[TextEncoderSpec]:
    """The text encoders of the model, from its header alone; none without -m. All read CLIP's tokens."""
    if options.model is None:
        return []
    from ..checkpoint.detect import read_towers, read_unet
    from ..checkpoint.folders import find_model
    from ..checkpoint.parts import gather

    parts = gather(find_model(options.model, models=options.models_dir))
    _, family = read_unet(parts)
    return [tower for _, tower in read_towers(parts, family)]


def _embeddings(
    options: argparse.Namespace, request: GenerateRequest, towers: list[TextEncoderSpec], notes: list[str]
) -> tuple[list[str], Callable[[str], int]]:
    """(the names that a prompt may use, how many vectors one has). notes: receives LoRAs that are not to be found.

    The vectors that LoRAs in the prompt bring along count too. Only files that the prompts name are read.
    """
    from ..checkpoint.folders import embedding_folders
    from ..checkpoint.lora.find import find_lora
    from ..text.prompt import read_prompt
    from .generate import embedding_folders_of

    tags = read_prompt(request.prompt, dialect=request.compat).networks
    given = embedding_folders_of(options)
    folders = embedding_folders() if given is None else given
    if not tags and not folders:  # nothing to look into, and torch is not needed
        return [], lambda name: 0
    from ..checkpoint.embeddings import Embedding, embeddings_by_name, read_bundled, read_embedding

    known = embeddings_by_name(folders)
    for tag in tags:
        if not tag.is_lora or not tag.name.strip():
            continue
        try:
            bundled = read_bundled(find_lora(tag.name.strip(), options.models_dir))
        except AvilaError as error:
            notes.append(f"{tag} is refused: {error}")
            continue
        for item in bundled:
            known.setdefault(item.name, item)

    def vectors(name: str) -> int:
        source = known[name]
        found = source if isinstance(source, Embedding) else read_embedding(source, name)
        if towers:
            found.for_towers(towers)
        return found.count

    return list(known), vectors
