"""LoRA training (Hu et al. 2021) for any checkpoint: a low-rank change beside frozen weights, written under kohya's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..checkpoint.load import Model
from ..checkpoint.lora.targets import Target, name_targets
from ..checkpoint.safetensors import write_safetensors
from ..device import DTYPES
from ..errors import Unsupported
from ..models.weights import Delta, LowRank, OfRows
from .data import generator
from .personal import Personal
from .settings import check_range
from .sheets import write_sheet
from .state import fingerprint

SINGLE_FILE_NAMES = ("sdxl", "sdxl_refiner")
"""Families whose LoRAs sd-scripts writes under the single file's names; it uses diffusers' for the others."""
CHOICES = {
    "attention": r"_attn[12]_to_|_self_attn_",
    "transformer": r"_attn[12]_to_|_ff_|_proj_in$|_proj_out$|_self_attn_|_mlp_",
    "all": r"",
}
BASES = {
    "sd1": ("sd_v1", "stable-diffusion-v1", 768),
    "sd2": ("sd_v2", "stable-diffusion-v2-512", 1024),
    "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", 2048),
    "sdxl_refiner": ("sdxl_refiner", "stable-diffusion-xl-v1-refiner", 1280),
}
"""Family → sd-scripts' name for it, modelspec's, and the width of its text; a model of another width has its own name."""


@dataclass(frozen=True, kw_only=True)
class LoraModel:
    """What is trained. alpha: the change is multiplied with alpha / rank; the rank where it is not given.

    targets: attention matrices; transformer, all matrices of the transformers, as sd-scripts; all, convolutions too.
    text: the text towers are changed as well. dtype: of the file.
    """

    rank: int = 8
    alpha: float | None = None
    targets: Literal["attention", "transformer", "all"] = "transformer"
    text: bool = False
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"

    def __post_init__(self) -> None:
        check_range("model.rank", self.rank, 1, 1024)
        check_range("model.alpha", self.alpha, 1e-6, 1e6)

    @property
    def scale(self) -> float:
        return (self.rank if self.alpha is None else self.alpha) / self.rank


@dataclass(eq=False)
class LoraTask:
    """A LoRA on what `personal` holds; its model's layers carry the change while this lives."""

    lora: LoraModel
    personal: Personal

    def __post_init__(self) -> None:
        model, lora = self.personal.model, self.lora
        self.targets = choose_targets(model, lora)
        if not self.targets:
            raise Unsupported(f"{model.path.name} has nothing that model.targets {lora.targets!r} names")
        self._factors: dict[str, nn.Parameter] = {}
        changes: dict[int, tuple[Target, list[Delta]]] = {}
        for number, (name, target) in enumerate(self.targets.items()):
            delta = self._begin(name, target, number)
            changes.setdefault(id(target.layer), (target, []))[1].append(delta)
        for target, deltas in changes.values():
            target.layer.change(target.parameter, deltas)

    def _begin(self, name: str, target: Target, number: int) -> Delta:
        """Down is uniform as a layer's first weights are, up is 0: the change begins as none."""
        rows, *rest = target.shape
        rank, rng = self.lora.rank, generator(self.personal.settings.seed, number, 5)
        columns = torch.Size(rest).numel()
        down = torch.empty(rank, *rest).uniform_(-(columns**-0.5), columns**-0.5, generator=rng)
        up = torch.zeros(rows, rank, *(1 for _ in rest[1:]))
        self._factors[f"{name}.lora_down.weight"] = nn.Parameter(down)
        self._factors[f"{name}.lora_up.weight"] = nn.Parameter(up)
        factors = self._factors
        change = LowRank(
            up=factors[f"{name}.lora_up.weight"],
            down=factors[f"{name}.lora_down.weight"],
            scale=self.lora.scale,
        )
        return change if target.rows is None else OfRows(target.rows, change)

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        return self._factors

    @cached_property
    def fingerprint(self) -> str:
        lora = replace(self.lora, dtype="float32")  # only of the file that is written
        return fingerprint("lora", lora, self.personal.settings.optimizer, self.personal.digest)

    def loss(self, step: int) -> dict[str, Tensor]:
        return self.personal.loss(step)

    def sheet(self, path: Path) -> None:
        _release(self.targets)
        write_sheet(path, self.personal.draw(self.personal.sample_prompts), columns=4)
        _release(self.targets)

    def export(self, path: Path) -> None:
        """A LoRA file as sd-scripts writes them, with the metadata that tells what it is for."""
        lora, dtype = self.lora, DTYPES[self.lora.dtype]
        tensors = {name: p.detach().to(dtype).contiguous() for name, p in self._factors.items()}
        alpha = float(lora.rank if lora.alpha is None else lora.alpha)
        tensors |= {f"{name}.alpha": torch.tensor(alpha) for name in self.targets}
        model = self.personal.model
        version, architecture, width = BASES[model.spec.family]
        usual = model.spec.unet.context_channels == width
        metadata = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(lora.rank),
            "ss_network_alpha": f"{alpha:g}",
            "ss_base_model_version": version if usual else model.path.stem,
            "ss_sd_model_name": model.path.name,
            "ss_num_train_images": str(len(self.personal.data)),
            "ss_max_train_steps": str(self.personal.settings.steps),
            "ss_learning_rate": f"{self.personal.settings.learning_rate:g}",
            "ss_seed": str(self.personal.settings.seed),
            "ss_resolution": f"({self.personal.data.size}, {self.personal.data.size})",
            "modelspec.architecture": f"{architecture}/lora",
        }
        write_safetensors(path, tensors, metadata)


def choose_targets(model: Model, lora: LoraModel) -> dict[str, Target]:
    """kohya's name → target, one name for each: diffusers' for SD 1 and 2, the single file's for SDXL."""
    pattern = re.compile(CHOICES[lora.targets])
    names: dict[tuple[int, int | None], list[str]] = {}
    targets = name_targets(model)
    for name, target in targets.items():
        if target.is_text and not lora.text:
            continue
        names.setdefault((id(target.layer), target.third), []).append(name)
    single = model.spec.family in SINGLE_FILE_NAMES
    chosen = [found[0] if single else found[-1] for found in names.values()]
    matched = [name for name, found in zip(chosen, names.values(), strict=True) if any(map(pattern.search, found))]
    return {name: targets[name] for name in matched}


def _release(targets: Mapping[str, Target]) -> None:
    """What layers derived from the factors, which change in place, is old after a step."""
    for target in targets.values():
        target.layer.release()
