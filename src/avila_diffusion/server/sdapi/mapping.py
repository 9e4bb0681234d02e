"""A body of txt2img or img2img as what the service takes: fields of our request, models by name, and how it is answered.

In order, the later one holds: AUTOMATIC1111's defaults, the options of the session, the infotext field, override_settings,
the fields of the body.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from ...checkpoint.folders import find_styles_file
from ...errors import FileProblem, ModelNotFound, RequestError
from ...images import MULTIPLE, SMALLEST
from ...infotext import read
from ...sampling.names import SamplerInfo, resolve_sampler, resolve_schedule
from ...text.networks import take_networks
from ...text.styles import Style, apply_styles, find_styles, read_styles
from ..models import ModelIndex
from ..problems import NotOffered
from ..service import Service
from .fields import IMAGE_TO_IMAGE, TEXT_TO_IMAGE, Body, invalid, read_fields
from .init_images import PICTURE_FIELDS, picture_values
from .options import AUTOMATIC, NO_VAE, Options, Settled, fields_of, request_values
from .scripts import check_scripts
from .second_pass import HIRES_FIELDS, SIZES, drawn_size, hires_values, refiner_named

Route = Literal["txt2img", "img2img"]

DEFAULTS: dict[str, Any] = {
    "steps": 50,
    "guidance_scale": 7.0,
    "width": 512,
    "height": 512,
    "sampler": "Euler",
    "schedule": "Automatic",
}
_SAME = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "batch_size": "batch",
    "n_iter": "count",
    "steps": "steps",
    "cfg_scale": "guidance_scale",
    "denoising_strength": "strength",
    "s_min_uncond": "ngms",
    "eta": "eta",
    "s_churn": "s_churn",
    "s_tmin": "s_tmin",
    "s_tmax": "s_tmax",
    "s_noise": "s_noise",
}
"""Fields that are one of ours by another name."""
_OF_IMAGES = ("resize_mode", "noise_multiplier", "exact_steps", "image_guidance_scale", "outpaint")
_OF_MASKS = ("mask_blur", "mask_invert", "mask_soft", "masked_content", "inpaint_area", "mask_padding", "mask_weight")
_IDLE = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": 0.0, "s_noise": 1.0}
"""At these the samplers' own values hold; an s_tmax of 0 is no limit in AUTOMATIC1111."""
NO_IMAGE_GUIDANCE = 1.0
"""What AUTOMATIC1111 means by no image_cfg_scale."""
PICTURES = ("init_images", "mask")
"""Fields of a body that are pictures."""
_SEVERAL_TOWERS = ("prompt", "negative_prompt", "hires_prompt", "hires_negative_prompt")


@dataclass(frozen=True)
class Asked:
    """What a body asks for. values: of GenerateRequest. refiner: as it was named. settled: models and options."""

    route: Route
    body: Body
    values: dict[str, Any]
    settled: Settled
    refiner: str | None


def read_asked(route: Route, raw: Mapping[str, Any], options: Options, service: Service) -> Asked:
    """Read a body. It may look at files and decode pictures' heads, so not on the event loop.

    Raises InvalidBody, NotOffered, ModelNotFound, and what `waiting.picture_of` raises.
    """
    body = read_fields(raw, TEXT_TO_IMAGE if route == "txt2img" else IMAGE_TO_IMAGE)
    if body["restore_faces"]:
        raise NotOffered("restore_faces is not built here; leave it out")
    if route == "txt2img" and body["firstpass_image"]:
        raise invalid("firstpass_image", "firstpass_image is not taken here; send it to img2img")
    check_scripts(body["script_name"], body["alwayson_scripts"])
    told = _Told.of(body["infotext"])
    overrides = {**told.overrides, **(body["override_settings"] or {})}
    settled = options.settled(overrides, model=_model_told(told, service.models))
    values = _without(told.values, fields_of(body["override_settings"] or {}))
    values |= _sampler(body, values)
    sampler = resolve_sampler(values.get("sampler", DEFAULTS["sampler"]))[0]
    refiner, refined = refiner_named(body, told.refiner)
    values = {**DEFAULTS, **request_values(settled.values, sampler), **values, **_common(body), **refined}
    if route == "img2img":
        values |= _over(told.values, picture_values(body, service.settings), body, PICTURE_FIELDS)
    elif body["enable_hr"]:
        values |= _over(told.values, hires_values(body, service.models, settled.model), body, HIRES_FIELDS)
    elif "enable_hr" in body:
        values = _without(values, [name for name in values if name.startswith("hires_")])
    _style(values, body["styles"], service.settings.models_dir)
    if body["disable_extra_networks"]:
        values |= {name: take_networks(values[name])[0] for name in _SEVERAL_TOWERS if values.get(name)}
    if refiner is None:  # what an infotext says of one goes with it
        values = _without(values, ("refiner_switch", "refiner_by"))
    values = _settle(values, sampler)
    if _follows_picture(values, service.models, settled.model):
        values.setdefault("image_guidance_scale", NO_IMAGE_GUIDANCE)
    return Asked(route, _without_pictures(body), values, settled, refiner)


@dataclass(frozen=True)
class _Told:
    """What the infotext field says. hash: of the model, by which it may be known. overrides: as override_settings has it."""

    values: dict[str, Any]
    model: str | None = None
    hash: str | None = None
    refiner: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str | None) -> _Told:
        if text is None or not text.strip():
            return cls({})
        parsed = read(text)
        try:
            values = parsed.request_values()
        except RequestError as error:
            raise invalid("infotext", str(error)) from None
        fields = parsed.fields
        vae = fields.get("VAE")
        overrides = {} if vae in (None, "", AUTOMATIC, NO_VAE) else {"sd_vae": vae}
        model, digest = fields.get("Model") or None, fields.get("Model hash") or None
        return cls(values, model or digest, digest if model else None, fields.get("Refiner") or None, overrides)


def _model_told(told: _Told, models: ModelIndex) -> str | None:
    """The model of an infotext: by its hash, which a renamed file keeps, else by its name: not every file's hash is known."""
    if told.hash is not None:
        with suppress(ModelNotFound):
            return models.find(told.hash).name
    return told.model


def _follows_picture(values: Mapping[str, Any], models: ModelIndex, model: str) -> bool:
    """Whether an instruct-pix2pix model is to draw. A file that cannot be read is told of where the job is made."""
    with suppress(FileProblem):
        return "image" in values and models.facts(models.find(model)).variant == "pix2pix"
    return False


def _without_pictures(body: Body) -> Body:
    """The body to answer with: pictures are megabytes, and sent back only where include_init_images asks for them."""
    if body.values.get("include_init_images"):
        return body
    return Body({name: None if name in PICTURES else value for name, value in body.values.items()}, body.given)


def _over(told: Mapping[str, Any], read: Mapping[str, Any], body: Body, fields: Mapping[str, str]) -> dict[str, Any]:
    """Of what was read, that which was given, and of its defaults those that the infotext does not tell otherwise."""
    given = {ours for theirs, ours in fields.items() if theirs in body}
    if given & SIZES:  # which go together
        given |= SIZES
    elif any(told.get(name) for name in SIZES):
        read = _without(read, SIZES)
    return {name: value for name, value in read.items() if name in given or told.get(name) is None}


def _common(body: Body) -> dict[str, Any]:
    """What is in both, of the fields that were given."""
    values = {ours: body[theirs] for theirs, ours in _SAME.items() if theirs in body}
    if "seed" in body:
        values["seed"] = None if body["seed"] < 0 else body["seed"]
    if "tiling" in body:
        values["tiling"] = "both" if body["tiling"] else "none"
    if "subseed_strength" in body:
        values["variation_strength"] = body["subseed_strength"]
    if "subseed" in body:
        values["variation_seed"] = None if body["subseed"] < 0 else body["subseed"]
    for theirs, ours in (("seed_resize_from_w", "seed_width"), ("seed_resize_from_h", "seed_height")):
        if theirs in body:
            values[ours] = max(body[theirs], 0) or None
    old = "firstphase_width" in body.values and (body["firstphase_width"] or body["firstphase_height"])
    width, height = drawn_size(body) if old else (body["width"], body["height"])
    if "width" in body or old:
        values["width"] = _eighths(width)
    if "height" in body or old:
        values["height"] = _eighths(height)
    return values


def _eighths(side: int) -> int:
    """A side in whole cells of latent, as AUTOMATIC1111 rounds it down."""
    return side if side < SMALLEST else side // MULTIPLE * MULTIPLE


def _sampler(body: Body, told: dict[str, Any]) -> dict[str, Any]:
    """Sampler and schedule where they are given; a schedule in the sampler's name goes before another."""
    source = "sampler_name" if body["sampler_name"] else "sampler_index"
    named, scheduler = body[source], body["scheduler"]
    if source not in body:  # its default, which an infotext goes before
        named = None
    if named or scheduler or "steps" in body:
        told.pop("sigmas", None)
    values: dict[str, Any] = {}
    try:
        if named:
            sampler, joint = resolve_sampler(named)
            values = {"sampler": sampler.name, "schedule": "Automatic" if joint is None else joint.name}
            if joint is not None:
                return values
    except RequestError as error:
        raise invalid(source, str(error)) from None
    try:
        return values | ({"schedule": resolve_schedule(scheduler).name} if scheduler else {})
    except RequestError as error:
        raise invalid("scheduler", str(error)) from None


def _settle(values: dict[str, Any], sampler: SamplerInfo) -> dict[str, Any]:
    """Without what says nothing: values at which a sampler's own hold, and fields of passes and pictures that are not."""
    idle = {name for name, value in _IDLE.items() if values.get(name, value) == value or name not in sampler.options}
    if not sampler.uses_eta or values.get("eta") == sampler.eta:
        idle.add("eta")
    if "s_churn" in sampler.options and "s_churn" in idle:
        idle |= {"s_tmin", "s_tmax", "s_noise"}
    hires = any(values.get(name) for name in ("hires_scale", "hires_width", "hires_height"))
    if "image" in values or not hires:
        idle |= {name for name in values if name.startswith("hires_")}
    if "image" not in values:
        idle |= {*_OF_IMAGES, *(() if hires else ("strength", "extra_noise"))}
    if "mask" not in values and "outpaint" not in values:
        idle |= {*_OF_MASKS}
    if not values.get("variation_strength"):
        idle |= {"variation_strength", "variation_seed"}
    if not (values.get("seed_width") and values.get("seed_height")):
        idle |= {"seed_width", "seed_height"}
    return _without(values, idle)


def _style(values: dict[str, Any], names: list[str] | None, models: str | None) -> None:
    """Merge the styles of these names into the prompts of both passes."""
    if not names:
        return
    styles = _styles(names, models)
    pairs = [("prompt", "negative_prompt")]
    for prompt, negative in [*pairs, ("hires_prompt", "hires_negative_prompt")]:
        first = prompt == "prompt"
        made = apply_styles(values.get(prompt) or "", values.get(negative) or "", styles)
        values |= {name: text for name, text in zip((prompt, negative), made, strict=True) if first or values.get(name)}


def _styles(names: list[str], models: str | None) -> tuple[Style, ...]:
    try:
        return find_styles(known_styles(models), names)
    except RequestError as error:
        raise invalid("styles", str(error)) from None


def known_styles(models: str | None) -> dict[str, Style]:
    """Those of styles.csv in the models folder or beside it; none where there is no such file. Reads it: not on the loop."""
    try:
        path = find_styles_file(models)
    except FileProblem:
        return {}
    try:
        return read_styles(path)
    except FileProblem as error:  # where it lies is nobody's business
        raise FileProblem(str(error).replace(str(path), path.name)) from error


def _without(values: Mapping[str, Any], names: Any) -> dict[str, Any]:
    left = set(names)
    return {name: value for name, value in values.items() if name not in left}
