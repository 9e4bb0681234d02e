"""A picture's settings beside the options of a command line: what cannot stand beside an option gives way, and is named."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AvilaError, FileProblem, ModelNotFound

if TYPE_CHECKING:
    from ..config import ModelSpec
    from ..metadata import Found
    from ..sampling.names import SamplerInfo, ScheduleInfo

HIRES_SIZE = ("hires_scale", "hires_width", "hires_height")
HIRES = (
    *HIRES_SIZE, "hires_upscaler", "hires_steps", "hires_sampler", "hires_schedule", "hires_prompt", "hires_negative_prompt",
    "hires_guidance_scale",
)  # fmt: skip
MASKS = (
    "mask", "outpaint", "mask_blur", "mask_invert", "mask_soft", "masked_content", "inpaint_area", "mask_padding",
    "mask_weight",
)  # fmt: skip
IMAGES = ("image", *MASKS, "exact_steps", "noise_multiplier", "resize_mode", "image_guidance_scale")
LEVELS = ("schedule", "steps", "rho", "sigma_min", "sigma_max")
"""What sigmas take the place of."""
OF_SAMPLERS = ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise")
BATCHES = ("noise_batch", "noise_index")
NOT_COMFYUIS = ("ensd", "variation_strength", "variation_seed", "seed_width", "seed_height")
BESIDE_COMFYUI = ("rng", "ensd", "variation_strength", "seed_width")
"""What may be asked for in vain with compat comfyui."""
REFINING = ("refiner_switch", "refiner_by")
OPTIONS = {
    "guidance_scale": "--cfg", "guidance_list": "--cfg-list", "hires_width": "--hires-size", "hires_height": "--hires-size",
    "seed_width": "--seed-resize", "seed_height": "--seed-resize",
}  # fmt: skip
"""The options of fields whose names are others."""
DEFAULT_SAMPLER = "DPM++ 2M"


@dataclass(frozen=True)
class Both:
    """given: the fields that the command line names. carried: those of the picture; of the pictures it began with, hashes."""

    given: Mapping[str, Any]
    carried: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        """What holds of the two."""
        value = self.given[name] if name in self.given else self.carried.get(name)
        return default if value is None else value


@dataclass(frozen=True)
class Rule:
    """Where the command line names one of `given`, those of `yields` that the picture brings give way, each where `where` is
    true of it."""

    given: tuple[str, ...]
    yields: tuple[str, ...]
    because: str
    where: Callable[[Both, str], bool] = lambda both, name: True


def _sampler(value: object) -> tuple[SamplerInfo, ScheduleInfo | None]:
    from ..sampling.names import resolve_sampler

    return resolve_sampler(DEFAULT_SAMPLER if value is None else str(value))


def _is_comfyui(compat: object) -> bool:
    return compat == "comfyui"


def _own_levels(both: Both, _: str) -> bool:
    """Whether the sampler has a schedule of its own. ComfyUI's all run over the chosen one."""
    return _sampler(both.get("sampler"))[0].grid != "schedule" and not _is_comfyui(both.get("compat"))


def _names_schedule(sampler: str) -> Callable[[Both, str], bool]:
    """sampler: a field whose name may hold a schedule beside the sampler, which the field `name` holds as well."""

    def where(both: Both, name: str) -> bool:
        from ..sampling.names import resolve_schedule

        joint = _sampler(both.get(sampler))[1]
        return joint is not None and (name == "sigmas" or resolve_schedule(both.carried[name]).key != joint.key)

    return where


def _of_another_sampler(both: Both, name: str) -> bool:
    """Those that the new one does not take; of samplers on the training's timesteps AUTOMATIC1111 has an eta of its own."""
    before, now = _sampler(both.carried.get("sampler"))[0], _sampler(both.get("sampler"))[0]
    grids = [sampler.grid in ("ddim", "unipc") for sampler in (before, now)]
    return now.key != before.key and (name not in now.options or (name == "eta" and grids[0] != grids[1]))


def _to_or_from_comfyui(both: Both, _: str) -> bool:
    return _is_comfyui(both.carried.get("compat")) != _is_comfyui(both.given["compat"])


def _not_comfyuis(both: Both, _: str) -> bool:
    asked = both.given
    others = asked.get("rng", "cpu") != "cpu" or any(asked.get(name) for name in ("ensd", "variation_strength"))
    return "compat" not in asked and _is_comfyui(both.carried.get("compat")) and (others or "seed_width" in asked)


def _no_emphasis(both: Both, _: str) -> bool:
    return bool(both.get("emphasis", "Original") != "Original" and both.get("compat", "a1111") != "a1111")


def _beyond_the_batch(both: Both, _: str) -> bool:
    last = both.get("noise_index", 0) + both.get("batch", 1)
    return bool(last > both.get("noise_batch", last))


def _latent_beside_a_mask(both: Both, _: str) -> bool:
    masked = any(both.get(name) is not None for name in ("mask", "outpaint"))
    # Where only what is masked is drawn, there is no picture at its new size, and the mode says nothing.
    return masked and both.get("resize_mode") == "latent" and both.get("inpaint_area") != "masked"


def _keeps_its_size(both: Both, _: str) -> bool:
    return both.carried.get("resize_mode") == "keep"


def _another_outpaint(both: Both, _: str) -> bool:
    """Where only what is masked is drawn, the size is that of the drawing."""
    added = both.given["outpaint"] != tuple(both.carried.get("outpaint") or ())
    return bool(added and both.get("inpaint_area") != "masked")


def _crossed(low: str, high: str) -> tuple[Rule, Rule]:
    """Two ends of a range that leave nothing between them: the new one holds."""

    def where(both: Both, _: str) -> bool:
        ends = both.get(low), both.get(high)
        return None not in ends and bool(ends[0] > ends[1])

    because = "with {given} nothing lies between the two"
    return Rule((low,), (high,), because, where), Rule((high,), (low,), because, where)


RULES = (
    Rule(("hires_scale",), ("hires_width", "hires_height"), "{given} is another size"),
    Rule(("hires_width", "hires_height"), ("hires_scale",), "{given} is another size"),
    Rule(("image",), HIRES, "with {given} there is no second pass"),
    Rule(HIRES_SIZE, IMAGES, "the second pass of {given} follows text to image"),
    Rule(("mask", "outpaint"), ("resize_mode",), "{given} needs a picture at its new size", _latent_beside_a_mask),
    Rule(("width", "height"), ("resize_mode",), "{given} asks for a size", _keeps_its_size),
    Rule(("resize_mode",), MASKS, "{given} latent leaves no picture to mask", _latent_beside_a_mask),
    Rule(
        ("outpaint",),
        ("width", "height"),
        "{given} adds to the picture",
        _another_outpaint,
    ),
    Rule(LEVELS, ("sigmas",), "{given} asks for a schedule"),
    Rule(("sigmas",), LEVELS, "{given} takes their place"),
    Rule(("sampler",), ("sigmas", "schedule"), "{given} names one", _names_schedule("sampler")),
    Rule(("hires_sampler",), ("hires_schedule",), "{given} names one", _names_schedule("hires_sampler")),
    Rule(("sampler",), OF_SAMPLERS, "the one of {given} has options of its own", _of_another_sampler),
    *_crossed("s_tmin", "s_tmax"),
    *_crossed("sigma_min", "sigma_max"),
    *_crossed("guidance_start", "guidance_stop"),
    Rule(("guidance_scale",), ("guidance_list",), "{given} takes its place"),
    Rule(("compat",), ("rng", *BATCHES), "{given} draws other noise", _to_or_from_comfyui),
    Rule(("compat",), NOT_COMFYUIS, "ComfyUI has no such thing", lambda both, _: _is_comfyui(both.given["compat"])),
    Rule(("compat",), ("emphasis",), "it means something with compat a1111 only", _no_emphasis),
    Rule(("emphasis",), ("compat", *BATCHES), "{given} means something with compat a1111 only", _no_emphasis),
    Rule(BESIDE_COMFYUI, ("compat", *BATCHES), "ComfyUI has nothing like {given}", _not_comfyuis),
    Rule(
        ("sampler", "compat", "emphasis", *BESIDE_COMFYUI),
        ("sigmas",),
        "with {given} the sampler chooses its noise levels itself",
        _own_levels,
    ),
    Rule(("batch", *BATCHES), BATCHES, "{given} goes beyond that batch", _beyond_the_batch),
)
"""In this order; a later one sees what the earlier ones left."""


@dataclass
class Carried:
    """What a picture brings to a command line. values: fields of the request. pictures: those that it began with, and their
    hashes. notes: what gave way, a line each. refiner: found for it, None for none."""

    values: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    refiner: Path | None = None

    def drop(self, names: Iterable[str], because: str) -> None:
        """Leave these fields out; those that were at their defaults are no loss, and not named."""
        from ..request import GenerateRequest

        known = GenerateRequest.__dataclass_fields__
        told = []
        for name in names:
            value = self.values.pop(name, None)
            if self.pictures.pop(name, None) is not None or value not in (None, known[name].default):
                told.append(name)
        self.tell(told, because)

    def tell(self, names: Collection[str], because: str) -> None:
        """Say that these are not used."""
        if names:
            *some, last = names
            listed = f"{', '.join(some)} and {last}" if some else last
            are = "are" if some or last.endswith(("sigmas", "steps")) else "is"
            self.notes.append(f"{listed} of the picture {are} not used, because {because}")


def settle(found: Found | None, given: Mapping[str, Any]) -> Carried:
    """What a picture brings beside the options that were given, which win. Without a picture, nothing."""
    if found is None:
        return Carried()
    carried = Carried(dict(found.request_values), dict(found.pictures))
    for rule in RULES:
        asked = [name for name in rule.given if given.get(name) is not None]
        both = Both(given, {**carried.values, **carried.pictures})
        brought = [name for name in rule.yields if asked and name in both.carried and name not in given]
        because = rule.because.format(given=_options(asked))
        carried.drop([name for name in brought if rule.where(both, name)], because)
    if not given.keys().isdisjoint(("schedule", "sigmas")) and "sampler" in carried.values:
        # The schedule in a joint name such as "DPM++ 2M Karras" goes too.
        carried.values["sampler"] = _sampler(carried.values["sampler"])[0].name
    return carried


def settle_model(carried: Carried, found: Found, options: argparse.Namespace) -> None:
    """The same for the model that the command line names, or for none. Where it names none and draws with the picture's own,
    all of that fits."""
    if options.procedural:
        carried.drop(list(carried.pictures), "--procedural begins with no picture")
        return
    if options.model is None:
        if found.refiner is None and options.refiner is None:
            carried.drop(REFINING, "the metadata name no refiner")
        return
    from ..checkpoint.folders import find_model

    try:
        path = find_model(options.model, "checkpoint", options.models_dir)
        vae = None if options.vae is None else find_model(options.vae, "vae", options.models_dir)
    except ModelNotFound:  # which loading will say
        return
    spec = _spec(path, vae)
    if spec is not None:
        _settle_spec(carried, spec, given_depth=options.depth is not None)
    if found.vae is not None and vae is None:
        carried.tell([f"the VAE {found.vae}"], "-m takes another model; --vae takes it along")
    if options.refiner is None and not _find_refiner(carried, found, options, path, spec):
        carried.drop(REFINING, "there is no refiner")


def _settle_spec(carried: Carried, spec: ModelSpec, *, given_depth: bool) -> None:
    if spec.variant != "depth" and not given_depth:
        carried.drop(["depth"], "the model of -m follows none")
    if spec.fixed_size:
        carried.drop(HIRES, "the model of -m draws at one size only")
    if spec.unet.guidance_channels is not None:
        carried.drop(["guidance_list"], "the model of -m is told one guidance scale")


def _find_refiner(
    carried: Carried, found: Found, options: argparse.Namespace, model: Path, spec: ModelSpec | None
) -> bool:
    """Whether the picture's refiner is there and refines what the model draws."""
    from .recorded import named_part

    try:
        path = named_part("refiner", (found.refiner, found.refiner_hash), options.models_dir)
    except (ModelNotFound, FileProblem) as error:
        carried.tell([f"the refiner {found.refiner}"], str(error))
        return False
    its = None if path is None or spec is None else _spec(path, model)
    if its is not None and spec is not None and its.latent_space != spec.latent_space:
        carried.tell([f"the refiner {found.refiner}"], "the model of -m draws latents of another kind")
        return False
    carried.refiner = path
    return path is not None


def _spec(path: Path, vae: Path | None) -> ModelSpec | None:
    """What a model is; None where that cannot be told, which loading it will say. Reads no more than its header."""
    from ..checkpoint.detect import detect
    from ..checkpoint.parts import gather

    try:
        return detect(gather(path, vae=vae))[0]
    except (AvilaError, OSError):
        return None


def _options(names: Iterable[str]) -> str:
    """Fields as the options that name them."""
    return " and ".join(dict.fromkeys(OPTIONS.get(name, f"--{name.replace('_', '-')}") for name in names))
