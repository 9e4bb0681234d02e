"""What becomes of what is asked for: a request with nothing left open, the files that it is drawn with; or one clear line.

Everything that can be known without torch is said here, before a job is made. What remains (an embedding of another family, a
LoRA that does not fit) the worker says, and the job fails with that line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import NEEDS, ModelSpec
from ..errors import FileProblem, ModelNotFound, RequestError, Unsupported
from ..images import check_model_size, drawing_size
from ..machine import memory as machine_memory
from ..pictures import Picture
from ..request import PICTURES, GenerateRequest
from ..sampling.names import resolve_sampler
from ..second_pass import enlarged, latent_size
from ..sizes import own_size
from ..text.prompt import lora_weights, read_prompt
from .entries import Entry
from .estimate import Estimate, estimate
from .job import Using
from .models import Facts, ModelIndex
from .problems import TooLarge
from .settings import Limits, Settings
from .submission import Submission

OWN_VAE = frozenset(("", "none", "automatic"))
"""What means the model's own VAE, whatever the default is."""


@dataclass(frozen=True)
class Models:
    """The files of a job. spec: of the model with its VAE, None where nothing is loaded."""

    model: Entry
    facts: Facts
    spec: ModelSpec | None
    vae: Entry | None = None
    refiner: Entry | None = None
    refiner_facts: Facts | None = None

    @property
    def using(self) -> Using:
        """As a job has it."""
        vae, refiner = (None if one is None else one.name for one in (self.vae, self.refiner))
        return Using(model=self.model.name, vae=vae, refiner=refiner)


def resolve(
    asked: Submission, index: ModelIndex, settings: Settings, default_model: str, default_vae: str | None = None
) -> tuple[GenerateRequest, Using]:
    """The request of a job, its seed drawn and its size filled in, and its files.

    Reads heads of model files and of pictures: call it off the event loop. Raises RequestError, ModelNotFound, FileProblem,
    Unsupported, TooLarge: what was found, what was expected, what to do.
    """
    request, models, _ = examine(asked, index, settings, default_model, default_vae)
    return request, models.using


def examine(
    asked: Submission, index: ModelIndex, settings: Settings, default_model: str, default_vae: str | None = None
) -> tuple[GenerateRequest, Models, Estimate]:
    """The same with all that was learned on the way. Raises as `resolve`."""
    models = find_models(asked, index, default_model, default_vae)
    request = _request(asked.values, models.facts, settings.limits)
    check_limits(request, settings.limits)
    if models.spec is None:
        _check_procedural(request)
    else:
        _check_model(request, models, models.spec)
        _check_networks(request, index)
    found = estimate(request, models.facts, settings, spec=models.spec, refiner=models.refiner_facts)
    check_memory(found, settings)
    return request, models, found


def find_models(asked: Submission, index: ModelIndex, default_model: str, default_vae: str | None = None) -> Models:
    """The files that are asked for. Raises ModelNotFound, FileProblem, Unsupported; RequestError for what does not fit."""
    model = index.find(asked.model or default_model)
    vae = _vae(asked, index, model, default_vae)
    refiner = None if not asked.refiner else index.find(asked.refiner)
    if model.path is None:
        for name, given in (("vae", vae), ("refiner", refiner)):
            if given is not None:
                raise RequestError(
                    f"{name} needs a model to go with; {model.name} has none: name a model, or leave it out"
                )
        return Models(model, index.facts(model), None)
    facts, spec = index.facts(model), index.spec(model, vae)
    if refiner is None:
        return Models(model, _with_spec(facts, spec), spec, vae)
    assert spec is not None
    return Models(model, _with_spec(facts, spec), spec, vae, refiner, _refiner(index, refiner, model, spec, vae))


def _vae(asked: Submission, index: ModelIndex, model: Entry, default: str | None) -> Entry | None:
    """The VAE asked for; else the default one, which the model that comes with the package is not drawn with."""
    if asked.vae is not None:
        return None if asked.vae.strip().lower() in OWN_VAE else index.find(asked.vae, "vae")
    return None if not default or model.name in ("bundled", "procedural") else index.find(default, "vae")


def _with_spec(facts: Facts, spec: ModelSpec | None) -> Facts:
    """Facts of a file that lacks what was given beside it."""
    if facts.spec is not None or spec is None:
        return facts
    return Facts.of(spec, facts.lines)


def _refiner(index: ModelIndex, refiner: Entry, model: Entry, spec: ModelSpec, vae: Entry | None) -> Facts:
    """Facts of a refiner that goes with a model. Where it has no VAE it need not have one."""
    facts = index.facts(refiner)
    its = facts.spec or index.spec(refiner, vae or model)
    same = its is not None and (its.latent_space, its.vae.latent_channels) == (
        spec.latent_space,
        spec.vae.latent_channels,
    )
    if its is None or not same or its.variant != "base":
        raise RequestError(
            f"refiner {refiner.name} ({facts.family or 'no model'}) cannot refine latents of {model.name} ({spec.family}); "
            "give a refiner of the same family, such as the SDXL refiner for SDXL"
        )
    return _with_spec(facts, its)


def _request(values: Mapping[str, Any], facts: Facts, limits: Limits) -> GenerateRequest:
    """The request as it will be run: what is asked for over what the model's file recommends."""
    asked = {
        **values,
        **{name: _picture(name, values[name], limits) for name in PICTURES if values.get(name) is not None},
    }
    merged = {**facts.defaults, **asked}
    if asked.get("sigmas") is not None and "sampler" not in asked and "sampler" in merged:
        # The schedule in a joint name such as "DPM++ 2M Karras" was recommended, not asked for: it gives way.
        merged["sampler"] = resolve_sampler(merged["sampler"])[0].name
    return GenerateRequest.from_dict(merged).resolved(facts.size)


def _picture(name: str, value: object, limits: Limits) -> Picture:
    """A picture that came with the request. A text would be a path on the server, and is none of a client's business."""
    if isinstance(value, Mapping):
        value = Picture.from_json(value, name)
    if not isinstance(value, Picture):
        raise RequestError(f"{name} must be a table of base64, the bytes of an image file, not {type(value).__name__}")
    width, height = value.size
    if width * height > limits.input_pixels:
        raise TooLarge(
            f"{name} is {width}x{height}, {width * height:,} pixels; this server reads at most {limits.input_pixels:,}"
        )
    return value


def check_limits(request: GenerateRequest, limits: Limits) -> None:
    """Raises RequestError for a resolved request beyond what this server does for anybody."""
    pictures = request.batch * request.count
    if pictures > limits.pictures:
        raise RequestError(
            f"batch {request.batch} x count {request.count} is {pictures:,} pictures; this server makes at most "
            f"{limits.pictures:,} in one job"
        )
    for name in ("steps", "hires_steps"):
        steps = getattr(request, name) or 0
        if steps > limits.steps:
            raise RequestError(f"{name} is {steps:,}; this server makes at most {limits.steps:,}")
    width, height = request.width or 0, request.height or 0
    for what, across, down in (
        ("width x height is", width, height),
        *([("the second pass would be", *enlarged(request))] if request.hires else []),
        *(
            [("the picture with outpaint would be", *added)]
            if request.outpaint and (added := own_size(request))
            else []
        ),
    ):
        if across * down > limits.pixels:
            raise RequestError(
                f"{what} {across}x{down}, {across * down:,} pixels; this server draws at most {limits.pixels:,}"
            )


def _check_procedural(request: GenerateRequest) -> None:
    for name in PICTURES:
        if getattr(request, name) is not None:
            raise RequestError(f"{name} needs a model to draw with; name a model, or leave {name} out")


def _check_model(request: GenerateRequest, models: Models, spec: ModelSpec) -> None:
    """Raises RequestError for what the model cannot be asked."""
    field = NEEDS.get(spec.variant)
    if field is not None and getattr(request, field) is None:
        raise RequestError(
            f"{models.model.name} is a {spec.variant} model and follows a picture beside the text; give {field}, or take "
            "another model"
        )
    if request.refiner_switch is not None and models.refiner is None:
        raise RequestError("refiner_switch needs a refiner; name one, or leave refiner_switch out")
    if spec.variant == "pix2pix" and request.image_guidance_scale != 1 and _several(request):
        raise RequestError("instruct-pix2pix models take one prompt; leave out AND")
    if spec.unet.guidance_channels is not None and request.guidance_list is not None:
        raise RequestError("this model is told one guidance scale for all steps; leave guidance_list out")
    width, height = request.width or 0, request.height or 0
    if not spec.fixed_size:
        check_model_size(width, height)
        if request.hires:
            latent_size(request, spec.vae.scale)
        return
    drawing_size(width, height, spec.size)
    if request.hires:
        raise RequestError(
            "this model draws at one size only, and has no second pass; leave out the high-resolution fix"
        )


def _several(request: GenerateRequest) -> bool:
    return len(read_prompt(request.prompt, dialect=request.compat).parts) > 1


def _check_networks(request: GenerateRequest, index: ModelIndex) -> None:
    """Raises RequestError or Unsupported for tags that no file in the models folder stands behind."""
    for name in ("prompt", "hires_prompt"):
        for tag in read_prompt(getattr(request, name) or "", dialect=request.compat).networks:
            if not tag.is_lora:
                what = "hypernetworks are" if tag.kind.startswith("hyper") else f"networks of the kind {tag.kind!r} are"
                raise Unsupported(f"{tag} cannot be applied, because {what} not supported; take it out of the {name}")
            lora_weights(tag)
            try:
                index.find_lora(tag.name.strip())
            except ModelNotFound as error:
                raise RequestError(f"{name}: {error}") from None


def check_memory(found: Estimate, settings: Settings) -> None:
    """Raises RequestError for a job that takes more than the server allows, or than the machine has."""
    limit = settings.limits.memory
    if limit is not None and found.memory > limit:
        raise RequestError(
            f"this takes up to {_gigabytes(found.memory)}, and the server allows {_gigabytes(limit)} a job; ask for a smaller "
            "picture or fewer"
        )
    machine = machine_memory()
    bands = settings.memory == "auto" or settings.max_memory is not None
    needed = found.least if bands else found.memory
    if machine is not None and needed > machine.total:
        raise RequestError(
            f"this takes up to {_gigabytes(needed)}, and the machine has {_gigabytes(machine.total)}; ask for a smaller "
            "picture or fewer"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def check_unchanged(index: ModelIndex, using: Using) -> None:
    """Raises FileProblem where a file of a job is no longer the one that was scanned. Touches the disk."""
    for name, role in ((using.model, "checkpoint"), (using.vae, "vae"), (using.refiner, "checkpoint")):
        if name is not None and index.changed(index.find(name, role)):
            raise FileProblem(f"{name} was changed on disk since the models were scanned; scan again and ask again")
