"""LoRA files on a model: every name matched, every shape checked, then the changes laid beside the weights.

Nothing is written into a weight: the layers add the changes up when they derive what they compute with
(`models.layers.Delta`), and `remove_loras` leaves them as they were loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config import FAMILIES
from ...errors import WeightMismatch
from ...models.layers import Delta, Layer, restore
from ..header import is_unchanged, shown
from ..load import Model
from ..report import shorten
from ..safetensors import TensorFile
from .files import Lora, LoraModule
from .targets import Target, name_targets

FAMILY_OF_TEXT_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl_refiner"}
"""The width of the text that a family's cross-attention looks at."""


@dataclass(frozen=True, kw_only=True)
class LoraReport:
    """How a LoRA file fits a model. Every module of the file is in exactly one of matched, unmatched and mis_shaped.

    text_weight, unet_weight: the strengths asked for. ranks, scales: the different ranks, and values of alpha / rank.
    matched: how many modules change each network. unmatched: names that the model has not. mis_shaped: name, what was
    found, what was expected. metadata: what the trainer wrote into the file. size, mtime_ns: of the file when it was read.
    """

    path: Path
    convention: str
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    text_weight: float
    unet_weight: float
    matched: dict[str, int] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    mis_shaped: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict, repr=False)
    size: int
    mtime_ns: int

    @property
    def name(self) -> str:
        """What people call it: the file's name without the suffix."""
        return self.path.stem

    @property
    def unchanged(self) -> bool:
        """Whether the file is still the one that was applied, by its size and time."""
        return is_unchanged(self.path, self.size, self.mtime_ns)

    def describe(self) -> str:
        """One line for people."""
        parts = " and ".join(f"{count:,} of the {part}" for part, count in self.matched.items())
        scales = sorted({f"{scale:g}" for scale in self.scales})
        listed = ", ".join(shorten(scales, 3))
        base = self.metadata.get("ss_base_model_version")
        return (
            f"{self.convention}, rank {', '.join(map(str, self.ranks))}, alpha / rank {listed}, changes {parts}"
            f"{f', trained on {shown(base)}' if base else ''}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "path": str(self.path),
            "name": self.name,
            "convention": self.convention,
            "ranks": list(self.ranks),
            "scales": list(self.scales),
            "text_weight": self.text_weight,
            "unet_weight": self.unet_weight,
            "matched": self.matched,
            "unmatched": self.unmatched,
            "mis_shaped": self.mis_shaped,
        }


def apply_loras(
    model: Model, loras: Sequence[tuple[Lora, float, float]], *, mapped: bool = True
) -> tuple[LoraReport, ...]:
    """Change the model by these, in this order, and by no others: (file, weight for the text towers, for the UNet).

    mapped: map the files into memory; False reads them, for network drives and files that change.
    Raises WeightMismatch where a file does not fit in all its names and shapes; the model is then as it was before.
    """
    targets = name_targets(model)
    changes: dict[tuple[Layer, str], list[Delta]] = {}
    reports = []
    for lora, text_weight, unet_weight in loras:
        report = match(model, lora, targets, text_weight, unet_weight)
        _refuse_misfits(model, lora, report)
        reports.append(report)
        with TensorFile(lora.header, mapped=mapped) as file:
            for module in lora.modules.values():
                target = targets[module.name]
                weight = text_weight if target.is_text else unet_weight
                if weight:
                    place = changes.setdefault((target.layer, target.parameter), [])
                    place.append(_delta(module, target, weight, file))
    remove_loras(model)
    for (layer, parameter), deltas in changes.items():
        layer.change(parameter, deltas)
    return tuple(reports)


def remove_loras(model: Model) -> None:
    """Leave the model's weights as they are in its files."""
    for network in (model.unet, *model.text):
        restore(network)


def match(
    model: Model, lora: Lora, targets: dict[str, Target], text_weight: float = 1.0, unet_weight: float = 1.0
) -> LoraReport:
    """How the file fits, without changing the model. targets: of `name_targets`."""
    report = LoraReport(
        path=lora.path,
        convention=lora.convention,
        ranks=lora.ranks,
        scales=tuple(sorted({module.scale for module in lora.modules.values()})),
        text_weight=text_weight,
        unet_weight=unet_weight,
        metadata=lora.header.metadata,
        size=lora.header.size,
        mtime_ns=lora.header.mtime_ns,
    )
    matched: Counter[str] = Counter()
    for name, module in lora.modules.items():
        target = targets.get(name)
        if target is None:
            report.unmatched.append(name)
        elif not _fits(module, target.shape):
            report.mis_shaped.append(f"{name} is {_shapes(module)}, expected one for {list(target.shape)}")
        else:
            matched[target.part] += 1
    report.matched.update(sorted(matched.items()))
    return report


def _fits(module: LoraModule, shape: tuple[int, ...]) -> bool:
    """Whether up · down, or up · mid · down, has the shape; a 1x1 convolution and a matrix are the same to it."""
    down, up, mid = module.down.shape, module.up.shape, module.mid
    inner = mid.shape[0] if mid is not None else module.rank
    if _plain(up) != (shape[0], inner):
        return False
    if mid is None:
        return _plain(down)[1:] == _plain(shape)[1:]
    return _plain(down) == (module.rank, shape[1]) and _plain(mid.shape) == _plain((inner, module.rank, *shape[2:]))


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without a kernel of 1x1."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _shapes(module: LoraModule) -> str:
    mid = f" after mid {list(module.mid.shape)}" if module.mid is not None else ""
    return f"up {list(module.up.shape)}{mid} after down {list(module.down.shape)}"


def _delta(module: LoraModule, target: Target, weight: float, file: TensorFile) -> Delta:
    return Delta(
        up=file.tensor(module.up.name),
        down=file.tensor(module.down.name),
        mid=None if module.mid is None else file.tensor(module.mid.name),
        scale=weight * module.scale,
        rows=target.rows,
    )


def _refuse_misfits(model: Model, lora: Lora, report: LoraReport) -> None:
    family = FAMILIES[model.spec.family].title
    wanted, width = model.spec.unet.context_channels, lora.text_width
    trained_on = family if FAMILY_OF_TEXT_WIDTH.get(wanted) == model.spec.family else model.path.name
    if width is not None and width != wanted:
        known = FAMILY_OF_TEXT_WIDTH.get(width)
        meant = FAMILIES[known].title if known else "another model"
        raise WeightMismatch(
            f"{lora.path.name} is a LoRA for {meant} (text width {width:,}), {model.path.name} is {family} "
            f"(text width {wanted:,}); take a LoRA that was trained on {trained_on}"
        )
    if report.mis_shaped or report.unmatched:
        wrong = [f"{name} is not in it" for name in report.unmatched] + report.mis_shaped
        base = report.metadata.get("ss_base_model_version")
        raise WeightMismatch(
            f"{lora.path.name} does not fit {model.path.name} ({family}) in {len(wrong):,} of {len(lora.modules):,} layers: "
            f"{'; '.join(shorten(wrong, 3))}; take a LoRA that was trained on {trained_on}"
            f"{f', not on {shown(base)}' if base else ''}"
        )
