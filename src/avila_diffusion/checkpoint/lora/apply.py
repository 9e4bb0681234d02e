"""LoRA files on a model: every name matched, every shape checked, then the changes laid beside the weights.

Nothing is written into a weight: the layers apply the changes when they derive what they compute with
(`models.layers.Delta`), and `remove_loras` leaves them as they were loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...config import FAMILIES
from ...errors import WeightMismatch
from ...models.layers import Layer, restore
from ...models.weights import Delta, OfRows
from ..header import shown
from ..load import Model
from ..report import shorten
from .build import Read, build_bias_delta, build_weight_delta, fits
from .deltas import Transposed
from .files import FAMILY_OF_TEXT_WIDTH, Lora, LoraModule
from .names import spell
from .report import LoraReport, begin_report
from .source import Tensors, open_tensors
from .targets import Target, name_targets, number_targets

__all__ = ["LoraReport", "apply_loras", "match", "remove_loras"]

Changes = dict[tuple[Layer, str], list[Delta]]
Targets = Mapping[str, Target]


def apply_loras(
    model: Model, loras: Sequence[tuple[Lora, float, float]], *, mapped: bool = True, min_match: float = 1.0
) -> tuple[LoraReport, ...]:
    """Change the model by these, in this order, and by no others: (file, weight for the text towers, for the UNet).

    mapped: map the files into memory; False reads them, for network drives and files that change. min_match: how much of
    each file must fit, as a share of its modules; 0: any at all. The rest is left out, and the reports tell what. A file of
    another family is refused in any case.
    Raises WeightMismatch where less of a file fits; the model is then as it was before.
    """
    targets = _all_targets(model, loras) if loras else {}
    changes: Changes = {}
    reports = []
    for lora, text_weight, unet_weight in loras:
        report, found = _match(model, lora, targets, text_weight, unet_weight)
        _refuse_family(model, lora)
        _refuse_misfits(model, lora, report, min_match)
        reports.append(report)
        with open_tensors(lora.header, mapped=mapped) as file:
            for module, target in found:
                weight = text_weight if target.is_text else unet_weight
                if weight:
                    _add(changes, module, target, weight, file, lora)
    remove_loras(model)
    for (layer, parameter), deltas in changes.items():
        layer.change(parameter, deltas)
    return tuple(reports)


def remove_loras(model: Model) -> None:
    """Leave the model's weights as they are in its files."""
    for network in (model.unet, *model.text):
        restore(network)


def match(model: Model, lora: Lora, text_weight: float = 1.0, unet_weight: float = 1.0) -> LoraReport:
    """How the file fits, without changing the model and without an error where it does not."""
    return _match(model, lora, _all_targets(model, [(lora, 1.0, 1.0)]), text_weight, unet_weight)[0]


def _all_targets(model: Model, loras: Sequence[tuple[Lora, float, float]]) -> Targets:
    targets = name_targets(model, every=True)
    for lora, *_ in loras:
        if lora.convention == "numbered":
            targets |= number_targets(targets, lora.header.metadata)
    return targets


def _match(
    model: Model, lora: Lora, targets: Targets, text_weight: float, unet_weight: float
) -> tuple[LoraReport, list[tuple[LoraModule, Target]]]:
    report = begin_report(lora, text_weight, unet_weight)
    matched: Counter[str] = Counter()
    found = []
    taken: dict[tuple[int, int | None], str] = {}
    for module in lora.modules.values():
        target = next((targets[name] for name in spell(module.name) if name in targets), None)
        if target is None:
            report.unmatched.append(module.module)
        elif not fits(module, target.shape, target.has_bias):
            report.mis_shaped.append(
                f"{_named(module.module)} is {module.describe()}, expected one for {list(target.shape)}"
                f"{'' if target.has_bias else ' without a bias'}"
            )
        elif (id(target.layer), target.third) in taken:
            report.mis_shaped.append(
                f"{_named(module.module)} is the layer of {_named(taken[id(target.layer), target.third])} again"
            )
        else:
            taken[id(target.layer), target.third] = module.module
            matched[target.part] += 1
            found.append((module, target))
    report.matched.update(sorted(matched.items()))
    return report, found


def _add(changes: Changes, module: LoraModule, target: Target, weight: float, file: Tensors, lora: Lora) -> None:
    read = _reader(module, file, lora.path)
    for parameter, delta in (
        (target.parameter, build_weight_delta(module, read, weight, target.shape, lora.dyn)),
        (target.bias, build_bias_delta(module, read, weight)),
    ):
        if delta is not None and (parameter == target.parameter or target.has_bias):
            part: Delta = delta if target.rows is None else OfRows(target.rows, delta)
            if target.transposed:
                part = Transposed(part)
            changes.setdefault((target.layer, parameter), []).append(part)


def _reader(module: LoraModule, file: Tensors, path: Path) -> Read:
    def read(leaf: str) -> Tensor:
        tensor = file.tensor(module.parts[leaf].name)
        # the least and the greatest number are NaN where one is; this reads at the speed of memory, and isfinite does not
        ends = torch.aminmax(tensor if tensor.dtype.itemsize > 1 else tensor.to(torch.float32))
        if not all(bool(end.isfinite()) for end in ends):
            raise WeightMismatch(
                f"{path.name}: {shown(module.parts[leaf].name)} holds NaN or infinity; the training went wrong or the file "
                "is damaged: take another"
            )
        return tensor

    return read


def _refuse_family(model: Model, lora: Lora) -> None:
    """Raises WeightMismatch for a file of another family, known by the width of the text its attention looks at."""
    family = FAMILIES[model.spec.family].title
    wanted, width = model.spec.unet.context_channels, lora.text_width
    if width is not None and width != wanted:
        known = FAMILY_OF_TEXT_WIDTH.get(width)
        meant = FAMILIES[known].title if known else "another model"
        raise WeightMismatch(
            f"{lora.path.name} is a LoRA for {meant} (text width {width:,}), {model.path.name} is {family} "
            f"(text width {wanted:,}); take a LoRA that was trained on {_trained_on(model)}"
        )


def _refuse_misfits(model: Model, lora: Lora, report: LoraReport, min_match: float) -> None:
    wrong = [f"{_named(name)} is not in it" for name in report.unmatched] + report.mis_shaped
    if not wrong or (report.matched and report.share >= min_match):
        return
    family = FAMILIES[model.spec.family].title
    base = report.metadata.get("ss_base_model_version") or (
        FAMILIES[lora.family].title if lora.family not in (None, model.spec.family) else None
    )
    enough = f"{report.share:.0%} of it fits, at least {min_match:.0%} is asked for; " if 0 < min_match < 1 else ""
    raise WeightMismatch(
        f"{lora.path.name} does not fit {model.path.name} ({family}) in {len(wrong):,} of {len(lora.modules):,} layers: "
        f"{'; '.join(shorten(wrong, 3))}; {enough}take a LoRA that was trained on {_trained_on(model)}"
        f"{f', not on {shown(base)}' if base else ''}{', or leave those out with --lenient' if report.matched else ''}"
    )


def _named(layer: str) -> str:
    """A layer's name from a file, as it is where it can be printed."""
    return layer if layer.isprintable() and layer.isascii() and len(layer) <= 160 else shown(layer)


def _trained_on(model: Model) -> str:
    usual = FAMILY_OF_TEXT_WIDTH.get(model.spec.unet.context_channels) == model.spec.family
    return FAMILIES[model.spec.family].title if usual else model.path.name
