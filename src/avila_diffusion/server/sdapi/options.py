"""AUTOMATIC1111's options: those that mean something to a request here, and the models; all others are kept for the session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from ...limits import EMPHASES, MAX_SEED, NUMBERS, WHOLES, shown
from ...sampling.catalogue import SamplerInfo
from ..entries import Entry
from ..problems import TooLarge
from ..service import Service
from ..waiting import Format
from .fields import Field, invalid, read_value

AUTOMATIC, NO_VAE = "Automatic", "None"
TIMESTEP_SAMPLERS = ("ddim", "ddim_cfgpp", "plms", "uni_pc", "uni_pc_bh2")
"""Those whose eta AUTOMATIC1111 takes from the option eta_ddim, not eta_ancestral."""
_RNGS = {"GPU": "nv", "CPU": "cpu", "NV": "nv"}
"""Its name → ours. Its default, GPU, is an NVIDIA card's numbers, which nv draws on any machine."""
_MOST_KEPT = 5000
_LONGEST_KEPT = 100_000


def _option(kind: Any, ours: str, default: Any) -> Field:
    low, high = (WHOLES | NUMBERS)[ours]
    return Field(kind, default, low, high)


_FORMATS: dict[str, Format] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
KNOWN: dict[str, Field] = {
    "CLIP_stop_at_last_layers": _option("whole", "clip_skip", 1),
    "samples_format": Field("text", "png", choices=tuple(_FORMATS)),
    "jpeg_quality": Field("whole", 80, 1, 100),
    "eta_noise_seed_delta": Field("whole", 0, -MAX_SEED, MAX_SEED),
    "randn_source": Field("text", "GPU", choices=tuple(_RNGS)),
    "eta_ancestral": _option("number", "eta", 1.0),
    "eta_ddim": _option("number", "eta", 0.0),
    "s_churn": _option("number", "s_churn", 0.0),
    "s_tmin": _option("number", "s_tmin", 0.0),
    "s_tmax": _option("number", "s_tmax", 0.0),
    "s_noise": _option("number", "s_noise", 1.0),
    "s_min_uncond": _option("number", "ngms", 0.0),
    "s_min_uncond_all": Field("switch", False),
    "skip_early_cond": _option("number", "skip_early", 0.0),
    "sigma_min": Field("number", 0.0, 0.0, NUMBERS["sigma_min"][1]),
    "sigma_max": Field("number", 0.0, 0.0, NUMBERS["sigma_max"][1]),
    "rho": Field("number", 0.0, 0.0, NUMBERS["rho"][1]),
    "emphasis": Field("text", "Original", choices=tuple(EMPHASES)),
    "img2img_extra_noise": _option("number", "extra_noise", 0.0),
    "initial_noise_multiplier": _option("number", "noise_multiplier", 1.0),
    "inpainting_mask_weight": _option("number", "mask_weight", 1.0),
    "img2img_fix_steps": Field("switch", False),
    "refiner_switch_by_sample_steps": Field("switch", False),
    "tiling": Field("switch", False),
}
"""Options that change a picture, or the file it comes in."""
_OF_MODELS = ("sd_model_checkpoint", "sd_vae")
_TOLD = {
    "return_grid": False,
    "save_to_dirs": False,
    "live_previews_enable": True,
    "sd_hypernetwork": "None",
    "sd_noise_schedule": "Default",
    "token_merging_ratio": 0.0,
}
"""Options that clients look at, as they are here."""
_OFF: dict[str, tuple[Any, ...]] = {
    "sd_hypernetwork": ("None", "", None),
    "sd_noise_schedule": ("Default", "", None),
    "token_merging_ratio": (0, 0.0, None),
    "token_merging_ratio_hr": (0, 0.0, None),
    "token_merging_ratio_img2img": (0, 0.0, None),
    "sgm_noise_multiplier": (False, None),
    "use_old_scheduling": (False, None),
    "pad_cond_uncond": (False, None),
    "pad_cond_uncond_v0": (False, None),
    "img2img_color_correction": (False, None),
}
"""Options that would change a picture and are not built, with the values at which they do nothing."""


@dataclass(frozen=True)
class Settled:
    """What holds for one request. model: name in the index; vae: likewise, "None" for the model's own, None for the service's
    default. values: of KNOWN."""

    model: str
    vae: str | None
    values: Mapping[str, Any]

    @property
    def format(self) -> Format:
        """What pictures are sent as."""
        return _FORMATS[self.values["samples_format"]]

    @property
    def quality(self) -> int:
        """1 to 100, of all but PNG."""
        return int(self.values["jpeg_quality"])


class Options:
    """The options of a running server: shared by its clients, as in AUTOMATIC1111, and forgotten when it ends."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._set: dict[str, Any] = {}
        self._kept: dict[str, Any] = {}
        self._vae = AUTOMATIC

    def shown(self) -> dict[str, Any]:
        """All of them, flat."""
        named = self._service.default_model
        model = next((entry for entry in self._service.models.entries() if entry.name == named), None)
        values = {name: known.default for name, known in KNOWN.items()} | self._set
        told = {
            "sd_model_checkpoint": named if model is None else model.title,
            "sd_checkpoint_hash": (None if model is None else model.digest) or "",
            "sd_vae": self._service.default_vae or self._vae,
        }
        return _TOLD | self._kept | values | told

    def settled(self, overrides: Mapping[str, Any] | None = None, *, model: str | None = None) -> Settled:
        """What holds for a request with these overrides. model: asked for elsewhere than in them, which go before.

        Raises InvalidBody for a value that cannot be used, ModelNotFound.
        """
        within = ("body", "override_settings")
        overrides = {name: value for name, value in (overrides or {}).items() if value is not None}
        for name, off in _OFF.items():
            if name in overrides and overrides[name] not in off:
                raise invalid(name, f"{name} {shown(overrides[name])} is not built here; leave it out", within=within)
        values = {name: known.default for name, known in KNOWN.items()} | self._set
        values |= _read_known(overrides, within)
        asked = overrides.get("sd_model_checkpoint") or model or self._service.default_model
        entry = self._service.models.find(_named("sd_model_checkpoint", asked, within))
        vae = overrides.get("sd_vae")
        if vae is not None:
            chosen = self._vae_of(_named("sd_vae", vae, within), entry)
        elif self._service.default_vae is not None:
            chosen = None
        else:
            chosen = self._vae_of(self._vae, entry)
        return Settled(entry.name, chosen, values)

    def check(self, values: Mapping[str, Any]) -> None:
        """Raises what `change` would raise."""
        self._read(values)

    def change(self, values: Mapping[str, Any]) -> None:
        """Set options. Raises InvalidBody, ModelNotFound, and TooLarge for more than anybody sets; then nothing is changed."""
        known, kept, model, vae = self._read(values)
        if model is not None:
            self._service.default_model = model
        if vae is not None:
            self._vae = AUTOMATIC if vae not in (AUTOMATIC, NO_VAE) else vae
            self._service.default_vae = None if vae in (AUTOMATIC, NO_VAE) else vae
        self._set |= known
        self._kept |= kept

    def _read(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], str | None, str | None]:
        """(options of KNOWN, those that are only kept, the model's name, the VAE's)."""
        values = {name: value for name, value in values.items() if value is not None}
        within = ("body",)
        known = _read_known(values, within)
        model, vae = values.get("sd_model_checkpoint"), values.get("sd_vae")
        entry = self._service.models.find(_named("sd_model_checkpoint", model, within)) if model else None
        named = None if vae is None else self._named_vae(_named("sd_vae", vae, within))
        kept = {
            name: value for name, value in values.items() if name not in (*KNOWN, *_OF_MODELS, "sd_checkpoint_hash")
        }
        _check_kept(self._kept | kept)
        return known, kept, None if entry is None else entry.name, named

    def model_asked(self, values: Mapping[str, Any]) -> Entry | None:
        """The model that options ask for, where it is another than now."""
        asked = values.get("sd_model_checkpoint")
        if not asked:
            return None
        entry = self._service.models.find(_named("sd_model_checkpoint", asked, ("body",)))
        return None if entry.name == self._service.default_model else entry

    def _vae_of(self, named: str, model: Entry) -> str:
        """The VAE that a name means: "Automatic" is the file that is named as the model if there is one, else its own."""
        named = self._named_vae(named)
        if named != AUTOMATIC:
            return named
        wanted = (f"{model.stem}.vae".casefold(), model.stem.casefold())
        others = (
            vae for vae in self._service.models.entries("vae") if vae.path != model.path
        )  # a plain folder has both
        beside = (vae.name for vae in others if vae.stem.casefold() in wanted)
        return next(beside, NO_VAE)

    def _named_vae(self, named: str) -> str:
        if not named.strip():
            return AUTOMATIC
        for word in (AUTOMATIC, NO_VAE):
            if named.casefold() == word.casefold():
                return word
        return self._service.models.find(named, "vae").name


def request_values(options: Mapping[str, Any], sampler: SamplerInfo) -> dict[str, Any]:
    """Fields of a request that options of KNOWN set; at their defaults they set nothing."""
    changed = {name: value for name, value in options.items() if value != KNOWN[name].default}
    values = {ours: changed[theirs] for theirs, ours in _PLAIN.items() if theirs in changed}
    if "randn_source" in changed:
        values["rng"] = _RNGS[changed["randn_source"]]
    eta = "eta_ddim" if sampler.key in TIMESTEP_SAMPLERS else "eta_ancestral"
    if eta in changed:
        values["eta"] = changed[eta]
    if "refiner_switch_by_sample_steps" in changed:
        values["refiner_by"] = "step"
    if "tiling" in changed:
        values["tiling"] = "both"
    return values


def fields_of(options: Mapping[str, Any]) -> set[str]:
    """The fields of a request that some options set, also at their defaults."""
    fields = {ours for theirs, ours in _PLAIN.items() if options.get(theirs) is not None}
    others = {
        "randn_source": "rng",
        "eta_ddim": "eta",
        "eta_ancestral": "eta",
        "tiling": "tiling",
        "refiner_switch_by_sample_steps": "refiner_by",
    }
    return fields | {ours for theirs, ours in others.items() if options.get(theirs) is not None}


_PLAIN = {
    "CLIP_stop_at_last_layers": "clip_skip",
    "eta_noise_seed_delta": "ensd",
    "s_churn": "s_churn",
    "s_tmin": "s_tmin",
    "s_tmax": "s_tmax",
    "s_noise": "s_noise",
    "s_min_uncond": "ngms",
    "s_min_uncond_all": "ngms_all",
    "skip_early_cond": "skip_early",
    "sigma_min": "sigma_min",
    "sigma_max": "sigma_max",
    "rho": "rho",
    "emphasis": "emphasis",
    "img2img_extra_noise": "extra_noise",
    "initial_noise_multiplier": "noise_multiplier",
    "inpainting_mask_weight": "mask_weight",
    "img2img_fix_steps": "exact_steps",
}
"""Options that are a field of ours by another name."""


def _read_known(values: Mapping[str, Any], within: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: read_value(name, values[name], known, within=within) for name, known in KNOWN.items() if name in values
    }


def _named(name: str, value: Any, within: tuple[str, ...]) -> str:
    return cast(str, read_value(name, value, Field("text"), within=within))


def _check_kept(kept: Mapping[str, Any]) -> None:
    if len(kept) > _MOST_KEPT or sum(len(str(name)) + len(str(value)) for name, value in kept.items()) > _LONGEST_KEPT:
        raise TooLarge(f"options that mean nothing here are kept up to {_LONGEST_KEPT:,} characters; send fewer")
