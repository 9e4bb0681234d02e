"""A TOML file → a Trainer: what is trained, on what, and where the result goes.

out = "result.safetensors"     # beside the TOML file, as all relative paths in it
state = "state"                # folder for the run's state, history and sheets

[data]                         # DataSettings
[model]                        # of the kind that is trained
[loss]                         # VAELoss, or DiffusionLoss
[train]                        # LoopSettings
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint.folders import find_model
from ..checkpoint.load import load_model
from ..errors import RequestError
from .architectures import DiffusionModel
from .data import Dataset, read_dataset
from .embedding import EmbeddingModel, EmbeddingTask
from .latents import encode, read_vae, standardise
from .loop import Task, Trainer
from .lora import LoraModel, LoraTask
from .personal import Personal
from .settings import LoopSettings, read_settings, read_toml
from .unet import DiffusionLoss, DiffusionTask
from .vae import VAELoss, VAEModel, VAETask

LATENTS = "latents.safetensors"
TABLES = ("data", "model", "loss", "train", "metadata")
NAMES = ("out", "state")


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
    """The tables of a TOML file. root: its folder."""

    root: Path
    tables: dict[str, Any]
    settings: LoopSettings

    def path(self, name: str) -> Path:
        """A path of the file, taken from its folder. Raises RequestError where it is missing or no text."""
        value = self.tables.get(name)
        if not isinstance(value, str) or not value:
            raise RequestError(f"the configuration needs {name}, a path")
        return self.root / value

    def take(self, table: str, *names: str) -> tuple[dict[str, Any], list[Any]]:
        """A table without those entries, and those entries. Raises RequestError where one is missing."""
        rest = dict(self.tables.get(table, {}))
        missing = [name for name in names if not isinstance(rest.get(name), str)]
        if missing:
            raise RequestError(f"[{table}] needs {missing[0]}, a path or a name")
        return rest, [rest.pop(name) for name in names]

    def data(self) -> Dataset:
        """The pictures to train on."""
        wanted = read_settings(DataSettings, self.tables.get("data", {}), "data")
        return read_dataset(self.root / wanted.folder, wanted.size).split(wanted.validation)[0]


def read_recipe(path: Path, *, minutes: float | None = None) -> Recipe:
    """Read a configuration. minutes: in place of train.minutes. Raises FileProblem or RequestError, one line each."""
    tables = read_toml(path)
    unknown = [name for name in tables if name not in (*TABLES, *NAMES)]
    if unknown:
        raise RequestError(
            f"{path.name} has {unknown[0]}, which means nothing; expected {', '.join((*NAMES, *TABLES))}"
        )
    settings = read_settings(LoopSettings, tables.get("train", {}), "train")
    if minutes is not None:
        settings = replace(settings, minutes=minutes)
    return Recipe(path.resolve().parent, tables, settings)


def make_trainer(kind: str, recipe: Recipe) -> Trainer:
    """The run that a recipe describes, with its data read and its networks built. kind: "vae", "unet", "lora", "embedding"."""
    out, state = recipe.path("out"), recipe.path("state")
    return Trainer(KINDS[kind](recipe, state), recipe.settings, state, out)


def _vae(recipe: Recipe, state: Path) -> Task:
    table = dict(recipe.tables.get("model", {}))
    begin = table.pop("begin", None)  # an autoencoder to go on from, such as one whose decoder alone is trained further
    model = read_settings(VAEModel, table, "model")
    terms = read_settings(VAELoss, recipe.tables.get("loss", {}), "loss")
    if begin is None and not terms.encoder:
        raise RequestError(
            "loss.encoder is false, which needs model.begin, the file of an autoencoder with its encoder"
        )
    data = recipe.data()
    return VAETask(model, terms, data, recipe.settings, None if begin is None else read_vae(recipe.root / str(begin)))


def _unet(recipe: Recipe, state: Path) -> Task:
    table, (vae_name,) = recipe.take("model", "vae")
    model = read_settings(DiffusionModel, table, "model")
    terms = read_settings(DiffusionLoss, recipe.tables.get("loss", {}), "loss")
    data, vae = recipe.data(), read_vae(recipe.root / vae_name)
    latents = standardise(vae, encode(vae, data, state / LATENTS))
    extra = recipe.tables.get("metadata", {})
    if not isinstance(extra, dict) or not all(isinstance(value, str) for value in extra.values()):
        raise RequestError("[metadata] must hold texts only")
    return DiffusionTask(model, terms, data, latents, vae, recipe.settings, extra)


def _personal(recipe: Recipe, base: str, text_trained: bool) -> Personal:
    beside = recipe.root / base
    model = load_model(beside if beside.exists() else find_model(base))
    terms = read_settings(DiffusionLoss, recipe.tables.get("loss", {}), "loss")
    return Personal(model, terms, recipe.data(), recipe.settings, text_trained)


def _lora(recipe: Recipe, state: Path) -> Task:
    table, (base,) = recipe.take("model", "base")
    lora = read_settings(LoraModel, table, "model")
    return LoraTask(lora, _personal(recipe, base, lora.text))


def _embedding(recipe: Recipe, state: Path) -> Task:
    table, (base,) = recipe.take("model", "base")
    return EmbeddingTask(read_settings(EmbeddingModel, table, "model"), _personal(recipe, base, True))


KINDS: dict[str, Callable[[Recipe, Path], Task]] = {
    "vae": _vae,
    "unet": _unet,
    "lora": _lora,
    "embedding": _embedding,
}
