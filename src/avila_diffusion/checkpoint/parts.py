"""Gathering the tensors of a model from the file, or the files, that hold them, under one set of names. No torch.

A single-file checkpoint, a diffusers folder, a checkpoint with a VAE given beside it: each becomes `Parts`, a table from
our names (`model.diffusion_model.…`, `first_stage_model.…`, `conditioner.embedders.0.…`) to places in files. All that comes
after, detection and loading, sees only that table.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import HeaderError, MissingPart, NotADiffusionModel, PickleRefused
from .keys import is_diffusers_unet, is_diffusers_vae, unet_from_diffusers, vae_from_diffusers
from .kinds import FOREIGN, recognise
from .report import LoadReport
from .safetensors import Header, TensorEntry, read_header

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model."
TEXT_XL = "conditioner.embedders."

SCHEDULE_BUFFERS = frozenset(
    {
        "betas",
        "alphas_cumprod",
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
MARKERS = frozenset(
    {"v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min", "alphas_cumprod"}
)
"""Names outside the networks that say something about the model; small, and read by detection."""


@dataclass(frozen=True)
class Place:
    """Where a tensor is: in which file, under which name there."""

    header: Header
    entry: TensorEntry


@dataclass(kw_only=True)
class Parts:
    """places: our name → place. configs: a diffusers folder's JSON files by component. metadata: of the main file."""

    places: dict[str, Place] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    report: LoadReport

    def shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Name without the prefix → shape, of all names that begin with it."""
        return {
            name.removeprefix(prefix): place.entry.shape
            for name, place in self.places.items()
            if name.startswith(prefix)
        }

    def drop(self, prefix: str, why: str) -> None:
        """Leave out all names that begin with `prefix`, and say why in the report."""
        for name in [name for name in self.places if name.startswith(prefix)]:
            del self.places[name]
            self.report.ignored[name] = why


def gather(path: Path, *, vae: Path | None = None, text_encoders: Iterable[Path] = ()) -> Parts:
    """The parts of the model at `path`, a file or a diffusers folder, with those given separately in their place.

    Raises ModelNotFound, HeaderError, PickleRefused, or NotADiffusionModel for a file that is something else.
    """
    parts = Parts(report=LoadReport(source=str(path)))
    if path.is_dir():
        _add_folder(parts, path)
    else:
        header = read_header(path)
        parts.metadata = header.metadata
        _add_checkpoint(parts, header)
    if vae is not None:
        parts.drop(VAE, "replaced by the VAE given separately")
        _add_vae(parts, vae)
    towers = list(text_encoders)
    if towers:
        parts.drop(TEXT, "replaced by the text encoder given separately")
        parts.drop(TEXT_XL, "replaced by the text encoder given separately")
        for tower in towers:
            _add_text_encoder(parts, tower, alone=len(towers) == 1)
        _order_towers(parts)
    parts.report.dtypes = dict(Counter(place.entry.dtype for place in parts.places.values()))
    return parts


def _places(*headers: Header) -> dict[str, Place]:
    """The tensors of one file, or of all shards of one network, by the names there."""
    return {name: Place(header, entry) for header in headers for name, entry in header.entries.items()}


def _add_checkpoint(parts: Parts, header: Header) -> None:
    places = _places(header)
    renamed = _unet_only(header) or {_canonical(name): name for name in places}
    kind = recognise(header)
    if kind.key in FOREIGN or not any(name.startswith(UNET + "input_blocks.") for name in renamed):
        raise NotADiffusionModel(
            f"{header.path.name} is not a Stable Diffusion checkpoint; it looks like {kind.title}"
            + (f": {kind.advice}" if kind.advice else "")
        )
    for ours, theirs in renamed.items():
        why = _ignored(ours)
        if why is not None and ours not in MARKERS:
            parts.report.ignored[theirs] = why
        elif ours.startswith((UNET, VAE, TEXT, TEXT_XL)):
            parts.places[ours] = places[theirs]
        elif ours in MARKERS:
            parts.places[ours] = places[theirs]
            parts.report.ignored[theirs] = "no weight; read for what it tells of the noise schedule"
        else:
            parts.report.unknown.append(theirs)


def _unet_only(header: Header) -> dict[str, str]:
    """The names of a file that holds a UNet and nothing else, ours or diffusers'; empty for other files."""
    names = header.entries
    if is_diffusers_unet(names):
        renamed = unet_from_diffusers(names)
    elif "input_blocks.0.0.weight" in names and "out.2.weight" in names:
        renamed = {name: name for name in names}
    elif "diffusion_model.input_blocks.0.0.weight" in names:
        renamed = {name.removeprefix("diffusion_model."): name for name in names}
    else:
        return {}
    left = set(names) - set(renamed.values())
    return {UNET + ours: theirs for ours, theirs in renamed.items()} | {name: name for name in left}


def _canonical(name: str) -> str:
    """Small differences of single-file dialects: NovelAI's text tower names, LCM's cond_proj."""
    short = TEXT + "transformer."
    if name.startswith(short) and not name.startswith((short + "text_model.", short + "text_projection.")):
        return f"{short}text_model.{name.removeprefix(short)}"
    return name.replace(".time_embedding.cond_proj.", ".time_embed.cond_proj.")


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
    if name.startswith(("first_stage_model.loss.", "loss.")):
        return "the discriminator of VAE training"
    if name.startswith("first_stage_model.model_ema."):
        return "the EMA copy of the VAE; the main weights are used"
    if name.startswith("control_model."):
        return "a ControlNet carried in the file"
    return None


def _add_vae(parts: Parts, path: Path) -> None:
    headers = _headers_in(path) if path.is_dir() else [read_header(path)]
    places = _places(*headers)
    for prefix in (VAE, "vae.", ""):
        inner = {name.removeprefix(prefix): place for name, place in places.items() if name.startswith(prefix)}
        if inner:
            break
    if is_diffusers_vae(inner):
        inner = {ours: inner[theirs] for ours, theirs in vae_from_diffusers(inner).items()}
    if "decoder.conv_in.weight" not in inner:
        raise NotADiffusionModel(f"{path.name} is not a VAE; it looks like {recognise(headers[0]).title}")
    _take(parts, places, inner, VAE)


def _add_text_encoder(parts: Parts, path: Path, alone: bool) -> None:
    config = _read_json(path / "config.json") if path.is_dir() else {}
    headers = _headers_in(path) if path.is_dir() else [read_header(path)]
    places = _places(*headers)
    marks = {
        "text_model.embeddings.token_embedding.weight": "transformer.",
        "transformer.resblocks.0.ln_1.weight": "model.",
    }
    for name in places:
        for mark, kind in marks.items():
            if name.endswith(mark):
                prefix = name.removesuffix(mark)
                slot = TEXT if alone else f"{TEXT_XL}{_next_tower(parts)}."
                inner = {n.removeprefix(prefix): place for n, place in places.items() if n.startswith(prefix)}
                parts.configs[slot] = config
                _take(parts, places, inner, slot + kind)
                return
    raise NotADiffusionModel(f"{path.name} is not a CLIP text encoder; it looks like {recognise(headers[0]).title}")


def _take(parts: Parts, places: Mapping[str, Place], inner: Mapping[str, Place], prefix: str) -> None:
    """Add a component, `inner` by our names, under `prefix`; what is left of `places` goes to the report."""
    taken = set()
    for ours, place in inner.items():
        taken.add(place.entry.name)
        why = _ignored(prefix + ours)
        if why is None:
            parts.places[prefix + ours] = place
        else:
            parts.report.ignored[place.entry.name] = why
    parts.report.unknown += [f"{place.header.path.name}: {name}" for name, place in places.items() if name not in taken]


def _next_tower(parts: Parts) -> int:
    return len({name[len(TEXT_XL)] for name in parts.places if name.startswith(TEXT_XL)})


def _order_towers(parts: Parts) -> None:
    """Of two towers given in any order, the narrower is SDXL's first; one tower serves wherever the UNet wants one."""
    keys = [f"{TEXT_XL}{index}." for index in range(_next_tower(parts))]
    widths = [_width(parts.shapes(key)) for key in keys]
    if len(keys) == 2 and widths[0] > widths[1]:
        swap = {keys[0]: keys[1], keys[1]: keys[0]}
        places, configs = {}, {}
        for name, place in parts.places.items():
            key = name[: len(keys[0])]
            places[swap[key] + name[len(key) :] if key in swap else name] = place
        for name, config in parts.configs.items():
            configs[swap.get(name, name)] = config
        parts.places, parts.configs = places, configs


def _width(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return next((shape[-1] for name, shape in shapes.items() if name.endswith("token_embedding.weight")), 0)


def _add_folder(parts: Parts, folder: Path) -> None:
    """A diffusers folder: unet/, vae/, text_encoder/, text_encoder_2/, scheduler/; text towers keep their own names."""
    if not (folder / "unet").is_dir():
        raise NotADiffusionModel(f"{folder} is not a diffusers model folder; it has no unet/ with its config.json")
    for component in ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler"):
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        parts.configs[component] = _read_json(folder / component / name)
    unet = _places(*_headers_in(folder / "unet"))
    _take(parts, unet, {ours: unet[theirs] for ours, theirs in unet_from_diffusers(unet).items()}, UNET)
    if (folder / "vae").is_dir():
        vae = _places(*_headers_in(folder / "vae"))
        _take(parts, vae, {ours: vae[theirs] for ours, theirs in vae_from_diffusers(vae).items()}, VAE)
    towers = [name for name in ("text_encoder", "text_encoder_2") if (folder / name).is_dir()]
    for index, component in enumerate(towers):
        slot = TEXT if towers == ["text_encoder"] else f"{TEXT_XL}{index}."
        parts.configs[slot] = parts.configs[component]
        tower = _places(*_headers_in(folder / component))
        _take(parts, tower, tower, slot + "transformer.")


def _headers_in(folder: Path) -> list[Header]:
    return [read_header(path) for path in _weight_files(folder)]


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component: full precision first, then half, shards, then any single file."""
    for name in ("diffusion_pytorch_model", "model"):
        for suffix in (".safetensors", ".fp16.safetensors", ".bf16.safetensors"):
            if (folder / (name + suffix)).is_file():
                return [folder / (name + suffix)]
        index = _read_json(folder / f"{name}.safetensors.index.json").get("weight_map")
        if isinstance(index, dict):
            shards = sorted({str(shard) for shard in index.values()})
            return [folder / Path(shard).name for shard in shards]  # a name, never a way out of the folder
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if list(folder.glob("*.bin")):
        raise PickleRefused(
            f"{folder} holds only pickled weights; convert them with: avila convert IN.bin OUT.safetensors"
        )
    raise MissingPart(f"{folder} has no weights; expected diffusion_pytorch_model.safetensors or model.safetensors")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise HeaderError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise HeaderError(f"{path} holds {type(value).__name__}, expected a JSON object")
    return value
