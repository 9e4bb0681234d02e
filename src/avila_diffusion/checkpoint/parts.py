"""Gathering the tensors of a model from the file, or the files, that hold them, under one set of names. No torch.

A single-file checkpoint, a diffusers folder, a checkpoint with a VAE given beside it: each becomes `Parts`, a table from
our names (`model.diffusion_model.…`, `first_stage_model.…`, `conditioner.embedders.0.…`) to places in files. All that comes
after, detection and loading, sees only that table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MissingPart, NotADiffusionModel
from .components import Component, Place, read_component, read_json
from .keys import (
    is_diffusers_unet,
    is_diffusers_vae,
    split_towers,
    tiny_vae_names,
    unet_from_diffusers,
    vae_from_diffusers,
)
from .kinds import CHECKPOINT, FOREIGN, recognise
from .report import LoadReport
from .safetensors import Header, read_header

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model."
TEXT_XL = "conditioner.embedders."
OUTSIDE = ("model_ema.", "control_model.", "depth_model.", VAE, TEXT, TEXT_XL)
"""Prefixes of what may lie beside a UNet in its file, where the UNet's own names have no prefix."""

MARKERS = frozenset(
    {"v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min", "alphas_cumprod"}
)
"""Names outside the networks that say something about the model; small, and read by detection."""
SCHEDULE_BUFFERS = frozenset(
    {
        "betas",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "logvar",
        "lvlb_weights",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "scale_factor",
        "denoiser.sigmas",
    }
)


@dataclass(kw_only=True)
class Parts:
    """The table of a model's tensors, and what was said beside them.

    path: of the main file or folder. places: our name → place. configs: JSON settings by component ("unet", "vae",
    "scheduler") and by slot of a text tower. metadata: of the main file. absent: components that a diffusers folder's
    model_index.json names, that are not there and were not given.
    """

    path: Path
    places: dict[str, Place] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    report: LoadReport

    def shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Name without the prefix → shape, of all names that begin with it."""
        return {
            name.removeprefix(prefix): place.entry.shape
            for name, place in self.places.items()
            if name.startswith(prefix)
        }

    def label(self, place: Place) -> str:
        """A tensor's name for the report: as it is in the main file; after the file's name in others."""
        file = place.header.path
        if file == self.path:
            return place.entry.name
        if self.path in file.parents:
            file = file.relative_to(self.path)
        return f"{file.as_posix()}: {place.entry.name}"

    def ignore(self, place: Place, why: str) -> None:
        """Say in the report why a tensor is not used as a weight."""
        self.report.ignored[self.label(place)] = why

    def add(self, ours: str, place: Place) -> None:
        """Sort a tensor in by our name for it: a weight, something to ignore, or unknown."""
        why = _ignored(ours)
        if why is not None:
            self.ignore(place, why)
        elif ours in self.places:
            self.ignore(place, "there twice, under two names or in two files; the first is used")
        elif ours.startswith((UNET, VAE, TEXT, TEXT_XL)):
            self.places[ours] = place
        elif ours in MARKERS:
            self.places[ours] = place
            self.ignore(place, "no weight; read for what it tells of the noise schedule")
        else:
            self.report.unknown.append(self.label(place))

    def drop(self, prefix: str, why: str) -> None:
        """Leave out all names that begin with `prefix`, and say why in the report."""
        for name in [name for name in self.places if name.startswith(prefix)]:
            self.ignore(self.places.pop(name), why)

    def tower_prefixes(self) -> list[str]:
        """Where the text towers are, in order: `cond_stage_model.transformer.`, `conditioner.embedders.1.model.` …"""
        names = [name for name in self.places if name.startswith((TEXT, TEXT_XL))]
        return sorted(prefix for prefix, _ in split_towers(names))


def slot_of(prefix: str) -> str:
    """Where the tower of a prefix sits: `conditioner.embedders.1.` of `conditioner.embedders.1.model.`."""
    return TEXT if prefix.startswith(TEXT) else ".".join(prefix.split(".")[:3]) + "."


def gather(
    path: Path, *, vae: Path | None = None, text_encoders: Iterable[Path] = (), header: Header | None = None
) -> Parts:
    """The parts of the model at `path`, a file or a diffusers folder, with those given separately in their place.

    header: of the file at `path`, where it was read already.
    Raises ModelNotFound, HeaderError, PickleRefused, or NotADiffusionModel for a file that is something else.
    """
    given = list(text_encoders)
    parts = Parts(path=path, report=LoadReport(source=str(path)))
    if path.is_dir():
        _add_folder(parts, path, with_vae=vae is None, towers_given=len(given))
    else:
        _add_checkpoint(parts, header or read_header(path))
    if vae is not None:
        parts.drop(VAE, "replaced by the VAE given separately")
        _add_vae(parts, vae)
    if given:
        _add_text_encoders(parts, given)
    parts.report.dtypes = dict(Counter(place.entry.dtype for place in parts.places.values()))
    return parts


def _add_checkpoint(parts: Parts, header: Header) -> None:
    parts.metadata = header.metadata
    kind = recognise(header)
    renamed = _unet_only(header.entries) or _canonical_names(header.entries)
    if kind.key in FOREIGN or not any(name.startswith(UNET + "input_blocks.") for name, _ in renamed):
        if kind.key == CHECKPOINT.key:
            raise NotADiffusionModel(
                f"{header.path.name} has some names of a Stable Diffusion UNet and not {UNET}input_blocks…; expected a "
                "whole UNet under those names or under diffusers'"
            )
        raise NotADiffusionModel(
            f"{header.path.name} is not a Stable Diffusion checkpoint; it looks like {kind.title}"
            + (f": {kind.advice}" if kind.advice else "")
        )
    for ours, theirs in renamed:
        parts.add(ours, Place(header, header.entries[theirs]))


def _unet_only(names: Collection[str]) -> list[tuple[str, str]]:
    """(ours, theirs) of a file that holds a UNet and nothing else, ours or diffusers'; empty for other files."""
    if is_diffusers_unet(names):
        renamed = unet_from_diffusers(names)
    elif "input_blocks.0.0.weight" in names and "out.2.weight" in names:
        beside = MARKERS | SCHEDULE_BUFFERS
        renamed = {name: name for name in names if name not in beside and not name.startswith(OUTSIDE)}
    elif "diffusion_model.input_blocks.0.0.weight" in names:
        prefix = "diffusion_model."
        renamed = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    else:
        return []
    left = set(names) - set(renamed.values())
    unet = [(_canonical(UNET + ours), theirs) for ours, theirs in renamed.items()]
    return unet + [(name, name) for name in names if name in left]


def _canonical_names(names: Collection[str]) -> list[tuple[str, str]]:
    """(ours, theirs) of a single-file checkpoint; names that are ours already come first."""
    pairs = [(_canonical(name), name) for name in names]
    return sorted(pairs, key=lambda pair: pair[0] != pair[1])


def _canonical(name: str) -> str:
    """Small differences of single-file dialects: NovelAI's text tower names, LCM's cond_proj."""
    short = TEXT + "transformer."
    if name.startswith((short + "embeddings.", short + "encoder.", short + "final_layer_norm.")):
        return f"{short}text_model.{name.removeprefix(short)}"
    return name.replace(UNET + "time_embedding.cond_proj.", UNET + "time_embed.cond_proj.")


def _ignored(name: str) -> str | None:
    """Why a tensor is not wanted, None where it is."""
    if name.startswith("model_ema."):
        return "the EMA copy of the UNet; the main weights are used"
    if name in SCHEDULE_BUFFERS:
        return "a buffer of the noise schedule, computed anew"
    if name.endswith("position_ids"):
        return "a constant: 0, 1, 2 …"
    if name.endswith("logit_scale"):
        return "the scale of CLIP's contrastive loss, of no use in generation"
    if name.startswith("depth_model."):
        return "the depth estimator of a depth model; a depth map is given as a picture"
    if name.startswith((VAE + "loss.", "loss.")):
        return "the discriminator of VAE training"
    if name.startswith(VAE + "model_ema."):
        return "the EMA copy of the VAE; the main weights are used"
    if name.startswith("control_model."):
        return "a ControlNet carried in the file"
    return None


def _take(parts: Parts, component: Component, inner: dict[str, Place], prefix: str, what: str) -> None:
    """Add a network, `inner` by our names, under `prefix`; the rest of its files goes to the report."""
    for ours, place in inner.items():
        parts.add(prefix + ours, place)
    _leave(parts, component, list(inner.values()), what)


def _leave(parts: Parts, component: Component, taken: Iterable[Place], what: str) -> None:
    """What was not taken of a file: the other networks of a whole checkpoint, CLIP's picture half, or unknown."""
    places, used = component.places, {id(place.entry) for place in taken}
    for place in component.tensors:
        name = place.entry.name
        if id(place.entry) in used:
            continue
        if place.entry is not places[name].entry:
            parts.ignore(place, "there twice, under two names or in two files; the first is used")
        elif name.startswith(("visual.", "vision_model.", "visual_projection.")):
            parts.ignore(place, "CLIP's half for pictures")
        elif (why := _ignored(name)) is not None:
            parts.ignore(place, why)
        elif name in MARKERS or name.startswith((UNET, VAE, TEXT, TEXT_XL)):
            parts.ignore(place, f"another part of a file of which only the {what} is used")
        else:
            parts.report.unknown.append(parts.label(place))


def gather_vae(path: Path) -> Parts:
    """The parts of a VAE alone. Raises as `gather`."""
    parts = Parts(path=path, report=LoadReport(source=str(path)))
    _add_vae(parts, path)
    return parts


def _add_vae(parts: Parts, path: Path) -> None:
    component = read_component(path / "vae" if (path / "vae").is_dir() else path)
    places = component.places
    inner: dict[str, Place] = {}
    for prefix in (VAE, "vae.", ""):
        inner = {name.removeprefix(prefix): place for name, place in places.items() if name.startswith(prefix)}
        if inner:
            break
    if renamed := _vae_names(inner):
        inner = {ours: inner[theirs] for ours, theirs in renamed.items()}
    elif not prefix:
        inner = {name: place for name, place in inner.items() if not name.startswith((UNET, TEXT, TEXT_XL))}
    if "encoder.layers.0.weight" in inner and "decoder.layers.0.weight" not in inner:
        raise MissingPart(
            f"{path.name} is the encoder of a tiny autoencoder (TAESD) alone, which makes no pictures; give its decoder, such "
            "as taesd_decoder.safetensors, or a file that holds both"
        )
    if not inner.keys() & {"decoder.conv_in.weight", "decoder.layers.0.weight"}:
        raise NotADiffusionModel(f"{path.name} is not a VAE; it looks like {_describe(component)}")
    known = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "loss.", "model_ema.")
    inner = {name: place for name, place in inner.items() if prefix or name.startswith(known)}
    _take(parts, component, inner, VAE, "VAE")


def _vae_names(names: Collection[str]) -> dict[str, str]:
    """{ours: theirs} of a VAE by other names than ours, a tiny one or diffusers'; {} for others."""
    if tiny := tiny_vae_names(names):
        return tiny
    return vae_from_diffusers(names) if is_diffusers_vae(names) else {}


def _describe(component: Component) -> str:
    return recognise(component.headers[0]).title if component.headers else "an empty folder"


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A text tower of a file given separately. style: `transformer.` (transformers' names) or `model.` (OpenCLIP's)."""

    style: str
    inner: dict[str, Place]
    config: dict[str, Any]

    @property
    def width(self) -> int:
        names = ("text_model.embeddings.token_embedding.weight", "token_embedding.weight")
        return next((self.inner[name].entry.shape[-1:] or (0,) for name in names if name in self.inner), (0,))[0]


def _towers_in(component: Component) -> Iterator[Tower]:
    """Every text tower of a file or folder, by our names: one, or both of an SDXL checkpoint."""
    places = component.places
    for prefix, names in split_towers(places):
        style = "transformer." if any(ours.startswith("text_model.") for ours in names) else "model."
        inner = {ours: places[prefix + theirs] for ours, theirs in names.items()}
        yield Tower(style=style, inner=inner, config=component.config)


def _add_text_encoders(parts: Parts, paths: list[Path]) -> None:
    """Towers given separately: one takes the place of its like, or all of them the place of what was there."""
    towers: list[Tower] = []
    for path in paths:
        folders = [path / name for name in ("text_encoder", "text_encoder_2") if (path / name).is_dir()]
        for component in map(read_component, folders or [path]):
            found = list(_towers_in(component))
            if not found:
                raise NotADiffusionModel(
                    f"{path.name} is not a CLIP text encoder; it looks like {_describe(component)}"
                )
            towers += found
            _leave(parts, component, [place for tower in found for place in tower.inner.values()], "text encoder")
    why = "replaced by the text encoder given separately"
    slot = _slot_of_like(parts, towers[0]) if len(towers) == 1 else None
    if slot is not None:
        parts.drop(slot, why)
        _place_tower(parts, towers[0], slot)
        return
    for prefix in (TEXT, TEXT_XL):
        parts.drop(prefix, why)
    towers.sort(key=lambda tower: (tower.width, tower.style == "model."))  # SDXL's first tower is the narrower
    for index, tower in enumerate(towers):
        _place_tower(parts, tower, TEXT if len(towers) == 1 else f"{TEXT_XL}{index}.")


def _slot_of_like(parts: Parts, tower: Tower) -> str | None:
    """Of a model's two towers the one that is as wide as the given one, where that is clear; with its slot's name."""
    slots = [slot_of(prefix) for prefix in parts.tower_prefixes()]
    if len(slots) != 2:
        return None
    tables = ("transformer.text_model.embeddings.token_embedding.weight", "model.token_embedding.weight")
    widths = {
        slot: place.entry.shape[-1:]
        for slot in slots
        for table in tables
        if (place := parts.places.get(slot + table)) is not None
    }
    like = [slot for slot in slots if widths.get(slot) == (tower.width,)]
    if len(like) == 2:
        like = [slot for slot in slots if any(name.startswith(slot + tower.style) for name in parts.places)]
    return like[0] if len(like) == 1 else None


def _place_tower(parts: Parts, tower: Tower, slot: str) -> None:
    parts.configs[slot] = tower.config
    for ours, place in tower.inner.items():
        parts.add(slot + tower.style + ours, place)


def _add_folder(parts: Parts, folder: Path, *, with_vae: bool, towers_given: int) -> None:
    """A diffusers folder: unet/, vae/, text_encoder/, text_encoder_2/, scheduler/. What is replaced is not opened."""
    if not (folder / "unet").is_dir():
        raise NotADiffusionModel(f"{folder} is not a diffusers model folder; it has no unet/ with its config.json")
    named = read_json(folder / "model_index.json")
    wanted = [*(["vae"] if with_vae else []), *(["text_encoder", "text_encoder_2"] if not towers_given else [])]
    for name in wanted:
        listed = named.get(name)
        if isinstance(listed, list) and any(listed) and not (folder / name).is_dir():
            parts.absent.append(name)
    parts.configs["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")
    unet = read_component(folder / "unet")
    parts.configs["unet"] = unet.config
    places = unet.places
    _take(parts, unet, {ours: places[name] for ours, name in unet_from_diffusers(places).items()}, UNET, "UNet")
    config = read_json(folder / "vae" / "config.json")
    # The scale that a tiny one's config tells is of its own latents.
    parts.configs["tiny vae" if config.get("_class_name") == "AutoencoderTiny" else "vae"] = config
    if with_vae and (folder / "vae").is_dir():
        vae = read_component(folder / "vae")
        places = vae.places
        renamed = tiny_vae_names(places) or vae_from_diffusers(places)
        _take(parts, vae, {ours: places[name] for ours, name in renamed.items()}, VAE, "VAE")
    names = [name for name in ("text_encoder", "text_encoder_2") if (folder / name).is_dir()]
    for index, name in enumerate(names if towers_given < len(names) else ()):
        slot = TEXT if names == ["text_encoder"] else f"{TEXT_XL}{index}."
        component = read_component(folder / name)
        towers = list(_towers_in(component))
        for tower in towers[:1]:
            _place_tower(parts, tower, slot)
        _leave(parts, component, [place for tower in towers[:1] for place in tower.inner.values()], "text encoder")
