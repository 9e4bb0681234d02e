"""The recipes that lie in the repository and in docs/training.md say what exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from avila_diffusion.training.architectures import DiffusionModel
from avila_diffusion.training.data import read_dataset
from avila_diffusion.training.embedding import EmbeddingModel
from avila_diffusion.training.lora import LoraModel
from avila_diffusion.training.recipes import DataSettings, read_recipe
from avila_diffusion.training.settings import LoopSettings, read_settings
from avila_diffusion.training.unet import DenoisingLoss, DiffusionLoss
from avila_diffusion.training.vae import VAELoss, VAEModel

ROOT = Path(__file__).resolve().parent.parent.parent
KINDS: dict[str, tuple[type, type]] = {
    "lora": (LoraModel, DenoisingLoss),
    "embedding": (EmbeddingModel, DenoisingLoss),
    "vae": (VAEModel, VAELoss),
    "unet": (DiffusionModel, DiffusionLoss),
}
RECIPES = {
    "recipes/bundled/vae.toml": "vae",
    "recipes/bundled/vae-whole.toml": "vae",
    "recipes/bundled/unet.toml": "unet",
    "examples/lora/lora.toml": "lora",
}


def check(tables: dict[str, Any], kind: str) -> None:
    model, loss = KINDS[kind]
    outside = {name: value for name, value in tables.get("model", {}).items() if name not in ("base", "vae", "begin")}
    outside |= {"begin": tables["model"]["begin"]} if kind == "embedding" else {}
    read_settings(model, outside, "model")
    read_settings(loss, tables.get("loss", {}), "loss")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_of_the_repository(name: str) -> None:
    recipe = read_recipe(ROOT / name)
    check(recipe.tables, RECIPES[name])
    read_settings(DataSettings, recipe.tables["data"], "data")
    assert recipe.path("out").parent == (ROOT / name).parent


def test_every_recipe_is_known_here() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("recipes", "examples")
        for path in (ROOT / folder).rglob("*.toml")
    }
    assert found == set(RECIPES)


def test_the_pictures_of_the_lora_example() -> None:
    data = read_dataset(ROOT / "examples" / "lora" / "pictures", 128)
    assert len(data) == 8
    assert all("pipbot" in item.captions[0] for item in data.items)


def test_the_tables_of_the_documentation() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    general, lora, embedding, vae, unet = (tomllib.loads(code) for code in re.findall(r"```toml\n(.*?)```", text, re.S))
    read_settings(LoopSettings, general["train"], "train")
    read_settings(DataSettings, general["data"], "data")
    for kind, tables in (("lora", lora), ("embedding", embedding), ("vae", vae), ("unet", unet)):
        check(tables, kind)
    described = set(re.findall(r"^(\w+) = ", text, re.M))
    for described_kind in (
        LoopSettings,
        DataSettings,
        LoraModel,
        EmbeddingModel,
        VAEModel,
        VAELoss,
        DiffusionModel,
        DiffusionLoss,
    ):
        assert set(described_kind.__dataclass_fields__) - {"latent_channels"} <= described
