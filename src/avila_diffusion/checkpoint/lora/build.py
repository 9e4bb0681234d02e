"""From a module of a LoRA file and its tensors to the `Delta`s of a layer's weight and bias."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ...models.weights import Delta, LowRank
from .deltas import Butterfly, Decomposed, Difference, Factors, Generalised, Hadamard, Kronecker, Rotation, Turned
from .files import LoraModule
from .kinds import order_glora

Read = Callable[[str], Tensor]
"""A leaf → its tensor."""
BIASES = ("diff_b", "b_norm", "lora_up.bias")


def fits(module: LoraModule, shape: tuple[int, ...], has_bias: bool) -> bool:
    """Whether a module can change a weight of this shape, and its bias where it changes that."""
    if any(leaf in module.parts for leaf in BIASES):
        lengths = [math.prod(module.parts[leaf].shape) for leaf in BIASES if leaf in module.parts]
        if not has_bias or lengths != [shape[0]]:
            return False
    if module.size is None:
        return False
    if module.size.shape and not module.size.fits(shape):
        return False
    return "dora_scale" not in module.parts or _lies(module, shape) is not None


def _lies(module: LoraModule, shape: tuple[int, ...]) -> bool | None:
    """Whether DoRA's magnitudes are of columns: (1, columns, …), else of rows; None where they are of neither."""
    entry = module.parts["dora_scale"]
    count = math.prod(entry.shape)
    peft = "lora_magnitude_vector" in entry.name  # always of rows, and (1, rows, 1, 1) for kernels
    if count == shape[0] and (peft or entry.shape[0] == count):
        return False
    return True if not peft and entry.shape[:2] == (1, count) and shape[1:2] == (count,) else None


def build_weight_delta(
    module: LoraModule, read: Read, strength: float, shape: tuple[int, ...], dyn: int | None = None
) -> Delta | None:
    """The change of a weight of `shape`; None where the module changes only the bias. dyn: how much of the rank is used."""
    if module.size is None or not module.size.shape:
        return None
    title, numbers = module.kind.title, module.numbers
    if "dora_scale" in module.parts:
        inner = _build_product(module, read, module.scale, dyn)
        return Decomposed(inner, read("dora_scale"), _lies(module, shape) is True, strength)
    if "oft_diag" in module.parts:
        return Turned(read("oft_diag"), strength, read("rescale") if "rescale" in module.parts else None)
    if title in ("OFT", "BOFT"):
        kind = Rotation if title == "OFT" else Butterfly
        rescale = read("rescale") if "rescale" in module.parts else None
        # alpha is the constraint, for each row
        return kind(read("oft_blocks"), numbers.get("alpha", 0.0) * shape[0], strength, rescale)
    if "ia3_l" in module.parts:
        return Factors(read("ia3_l") - 1, module.size.columns, strength)
    if title == "IA3":
        return Factors(read("weight"), module.size.columns, strength)
    return _build_product(module, read, strength * module.scale, dyn)


def build_bias_delta(module: LoraModule, read: Read, strength: float) -> Delta | None:
    """The change of the bias; None where the module has none."""
    if "ia3_l" in module.parts and module.size is not None and not module.size.columns:
        return Factors(read("ia3_l") - 1, False, strength)  # PEFT scales what comes out of the layer
    leaf = next((leaf for leaf in BIASES if leaf in module.parts), None)
    if leaf is None:
        return None
    # a bias of the upper matrix stands behind the product, and is scaled with it
    return Difference(read(leaf), strength * module.scale if leaf == "lora_up.bias" else strength)


def _build_product(module: LoraModule, read: Read, scale: float, dyn: int | None) -> Delta:
    """The additive kinds, and GLoRA."""
    has, title = module.parts, module.kind.title
    if title == "LoRA":
        up, down = read("lora_up.weight"), read("lora_down.weight")
        if "lora_mid.weight" in has:
            return LowRank(up, down, scale, read("lora_mid.weight"))
        return LowRank(up[:, :dyn], down[:dyn], scale)
    if title == "LoHa":
        first, second = ((read(f"hada_w{i}_a"), read(f"hada_w{i}_b")) for i in (1, 2))
        one, two = (read(f"hada_t{i}") if f"hada_t{i}" in has else None for i in (1, 2))
        return Hadamard(first, second, scale, (one, two))
    if title == "LoKr":
        halves = [
            read(half) if half in has else (read(f"{half}_a"), read(f"{half}_b")) for half in ("lokr_w1", "lokr_w2")
        ]
        return Kronecker(halves[0], halves[1], scale, read("lokr_t2") if "lokr_t2" in has else None)
    if title == "GLoRA":
        order = order_glora({leaf: entry.shape for leaf, entry in has.items()})
        assert order is not None  # it was measured
        (a, b), (c, d) = order
        return Generalised((read(a), read(b)), (read(c), read(d)), scale)
    return Difference(read("w_norm" if title == "norm" else "diff"), scale)
