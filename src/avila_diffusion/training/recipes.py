"""A TOML file → a Trainer: what is trained, on what, and where the result goes.

out = "result.safetensors"     # beside the TOML file, as all relative paths in it
state = "state"                # folder for the run's state, history and sheets

[data]                         # DataSettings
[model]                        # of the kind that is trained
[loss]                         # VAELoss, or DiffusionLoss
[train]                        # LoopSettings
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..checkpoint.folders import find_model
from ..checkpoint.load import load_model
from ..errors import OutputProblem, RequestError
from ..images import SMALLEST
from .architectures import DiffusionModel
from .data import Dataset, read_dataset
from .embedding import EmbeddingModel, EmbeddingTask
from .latents import encode, read_vae, standardise
from .loop import Task, Trainer
from .lora import LoraModel, LoraTask
from .personal import Personal
from .settings import LoopSettings, read_settings, read_toml
from .state import STATE
from .unet import DenoisingLoss, DiffusionLoss, DiffusionTask
from .vae import VAELoss, VAEModel, VAETask

LATENTS = "latents.safetensors"
TABLES = ("data", "model", "loss", "train", "metadata")
NAMES = ("out", "state")
Terms = TypeVar("Terms", bound=VAELoss | DenoisingLoss)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """folder: of pictures with captions. size: in pixels. validation: share of the pictures that is not trained on."""

    folder: Path
    size: int
    validation: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise RequestError(f"data.validation is {self.validation:g}; it must be from 0 to below 1")


@dataclass(frozen=True)
class Recipe:
    """The tables of a TOML file. root: its folder. say: is told of long preparations, a line now and then."""

    root: Path
    tables: dict[str, Any]
    settings: LoopSettings
    say: Callable[[str], None] = lambda line: None

    def path(self, name: str) -> Path:
        """A path of the file, taken from its folder. Raises RequestError where it is missing or no text."""
        return self.root / _text(name, self.tables.get(name))

    def table(self, name: str, *texts: str) -> tuple[dict[str, Any], list[str]]:
        """A table without the texts of those names, and these. Raises RequestError where one is missing."""
        rest = dict(self.tables.get(name, {}))
        return rest, [_text(f"[{name}] {text}", rest.pop(text, None)) for text in texts]

    def data(self) -> Dataset:
        """The pictures to train on."""
        wanted = read_settings(DataSettings, self.tables.get("data", {}), "data")
        return read_dataset(self.root / wanted.folder, wanted.size).split(wanted.validation)[0]

    def loss(self, kind: type[Terms]) -> Terms:
        """The [loss] table."""
        return read_settings(kind, self.tables.get("loss", {}), "loss")


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise RequestError(f"the configuration needs {name}, a path or a name")
    return value


def read_recipe(path: Path, *, minutes: float | None = None, say: Callable[[str], None] = lambda line: None) -> Recipe:
    """Read a configuration. minutes: in place of train.minutes. Raises FileProblem or RequestError, one line each."""
    tables = read_toml(path)
    unknown = [name for name in tables if name not in (*TABLES, *NAMES)]
    if unknown:
        raise RequestError(
            f"{path.name} has {unknown[0]}, which means nothing; expected {', '.join((*NAMES, *TABLES))}"
        )
    for name in TABLES:
        if not isinstance(tables.get(name, {}), dict):
            raise RequestError(f"[{name}] is {tables[name]!r}; expected a table")
    settings = read_settings(LoopSettings, tables.get("train", {}), "train")
    if minutes is not None:
        settings = replace(settings, minutes=minutes)
    return Recipe(path.resolve().parent, tables, settings, say)


def make_trainer(kind: str, recipe: Recipe) -> Trainer:
    """The run that a recipe describes, with its data read and its networks built. kind: "vae", "unet", "lora", "embedding".

    Raises an AvilaError, one line, for what cannot be used, before anything is trained.
    """
    out, state = recipe.path("out"), recipe.path("state")
    if kind != "unet" and "metadata" in recipe.tables:
        raise RequestError(f"[metadata] is of unet, not of {kind}; leave it out")
    _check_out(recipe, out, state)
    return Trainer(KINDS[kind](recipe, state), recipe.settings, state, out)


def _check_out(recipe: Recipe, out: Path, state: Path) -> None:
    """Raises where the result could not be written after hours, or would take the place of what it is made of."""
    if out.suffix.lower() != ".safetensors":
        raise RequestError(f"out is {out.name}; its name must end in .safetensors")
    model = recipe.tables.get("model", {})
    sources = [recipe.root / model[name] for name in ("base", "vae", "begin") if isinstance(model.get(name), str)]
    if out.resolve() in [source.resolve() for source in (*sources, state / STATE, state / LATENTS)]:
        raise RequestError(f"out is {out}, which the run reads from; choose another name")
    try:
        if out.is_dir():
            raise OutputProblem(f"{out} is a folder; give a file name that is free")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise OutputProblem(f"{out} cannot be written: {error.strerror or error}; choose another place") from None


def _vae(recipe: Recipe, state: Path) -> Task:
    table, _ = recipe.table("model")
    begin = table.pop("begin", None)  # an autoencoder to go on from, such as one whose decoder alone is trained further
    model = read_settings(VAEModel, table, "model")
    terms = recipe.loss(VAELoss)
    if begin is None and not terms.encoder:
        raise RequestError(
            "loss.encoder is false, which needs model.begin, the file of an autoencoder with its encoder"
        )
    first = None if begin is None else read_vae(recipe.root / _text("[model] begin", begin))
    return VAETask(model, terms, recipe.data(), recipe.settings, first)


def _unet(recipe: Recipe, state: Path) -> Task:
    table, (vae_name,) = recipe.table("model", "vae")
    model = read_settings(DiffusionModel, table, "model")
    terms = recipe.loss(DiffusionLoss)
    extra = recipe.tables.get("metadata", {})
    if not all(isinstance(value, str) for value in extra.values()):
        raise RequestError("[metadata] must hold texts only")
    data, vae = recipe.data(), read_vae(recipe.root / vae_name)
    side, levels = data.size // vae.config.scale, len(model.channels)
    if data.size < SMALLEST or side >> levels < 1:
        least = max(SMALLEST, vae.config.scale << levels)
        raise RequestError(
            f"data.size is {data.size}; it must be at least {least} for {levels} levels of this autoencoder"
        )
    latents = standardise(vae, encode(vae, data, state / LATENTS, say=recipe.say))
    return DiffusionTask(model, terms, data, latents, vae, recipe.settings, extra)


def _personal(recipe: Recipe, base: str, text_trained: bool) -> Personal:
    beside = recipe.root / base
    model = load_model(beside if base != "bundled" and beside.exists() else find_model(base))
    return Personal(model, recipe.loss(DenoisingLoss), recipe.data(), recipe.settings, text_trained)


def _lora(recipe: Recipe, state: Path) -> Task:
    table, (base,) = recipe.table("model", "base")
    lora = read_settings(LoraModel, table, "model")
    return LoraTask(lora, _personal(recipe, base, lora.text))


def _embedding(recipe: Recipe, state: Path) -> Task:
    table, (base,) = recipe.table("model", "base")
    return EmbeddingTask(read_settings(EmbeddingModel, table, "model"), _personal(recipe, base, True))


KINDS: dict[str, Callable[[Recipe, Path], Task]] = {
    "vae": _vae,
    "unet": _unet,
    "lora": _lora,
    "embedding": _embedding,
}
