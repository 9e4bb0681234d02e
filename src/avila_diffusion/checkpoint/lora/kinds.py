"""The kinds of change that a LoRA file may hold, told from the leaves and shapes of a module. No torch.

Each kind says which leaves it needs and may have, and measures itself: the shape of the weight that it is for, and its
rank. Sources: Hu et al. 2021 (LoRA), Yeh et al. 2023 (LoCon, LoHa, LoKr: LyCORIS), Liu et al. 2024 (DoRA), Qiu et al. 2023
(OFT), Liu et al. 2023 (BOFT), Chavan et al. 2023 (GLoRA), Liu et al. 2022 (IA3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
EVERY = frozenset({"alpha", "scale", "diff_b"})
"""Leaves that any module may have beside its own: numbers, and a change of the bias."""


@dataclass(frozen=True)
class Size:
    """shape: of the weight that a change is for. rank: None where it has none.

    by_rows: of a rotation or of factors only the rows are known, (rows,); columns: such factors are for the columns instead.
    """

    shape: Shape
    rank: int | None = None
    by_rows: bool = False
    columns: bool = False

    def fits(self, target: Shape) -> bool:
        """Whether it can change a weight of shape `target`; a kernel of 1x1 and none are the same."""
        if self.columns:
            return len(target) > 1 and self.shape == target[1:2]
        if self.by_rows:
            return len(target) > 1 and self.shape == target[:1]
        flat = (target[0], math.prod(target[1:]))
        return plain(self.shape) == plain(target) or (len(target) > 1 and self.shape == flat)


Measure = Callable[[Shapes], Size | None]


@dataclass(frozen=True)
class Kind:
    """marks: what a leaf of this kind begins with. needs: leaves it cannot be without. may: more that it may have."""

    title: str
    marks: tuple[str, ...]
    needs: tuple[str, ...]
    may: frozenset[str]
    measure: Measure

    def missing(self, leaves: Collection[str]) -> list[str]:
        return [leaf for leaf in self.needs if leaf not in leaves]

    def strangers(self, leaves: Collection[str]) -> list[str]:
        return sorted(set(leaves) - set(self.needs) - self.may - EVERY)


def plain(shape: Shape) -> Shape:
    """Without a kernel of 1x1."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def measure_lora(shapes: Shapes) -> Size | None:
    """up · down, or up · mid · down."""
    down, up, mid = shapes["lora_down.weight"], plain(shapes["lora_up.weight"]), shapes.get("lora_mid.weight")
    if len(down) not in (2, 4) or len(up) != 2:
        return None
    if mid is None:
        return Size((up[0], *down[1:]), down[0]) if up[1] == down[0] else None
    if len(mid) != 4 or len(plain(down)) != 2 or mid[:2] != (up[1], down[0]):
        return None
    return Size((up[0], down[1], *mid[2:]), down[0])


def measure_loha(shapes: Shapes) -> Size | None:
    """Two products, multiplied entry by entry; in Tucker's form each through a kernel."""
    sizes = [_product(shapes[f"hada_w{i}_a"], shapes[f"hada_w{i}_b"], shapes.get(f"hada_t{i}")) for i in (1, 2)]
    first, second = sizes
    return first if first is not None and second is not None and first.shape == second.shape else None


def measure_lokr(shapes: Shapes) -> Size | None:
    """A Kronecker product of two matrices, or of a matrix and a kernel, each whole or as a product."""
    halves: list[Size | None] = []
    for half in ("lokr_w1", "lokr_w2"):
        a, b = shapes.get(f"{half}_a"), shapes.get(f"{half}_b")
        whole = shapes.get(half)
        if (whole is None) == (a is None) or (a is None) != (b is None):
            return None
        kernel = shapes.get("lokr_t2") if half == "lokr_w2" else None
        if whole is not None and kernel is not None:
            return None
        if a is not None and b is not None:
            halves.append(_product(a, b, kernel))
        elif whole is not None:
            halves.append(Size(whole) if len(whole) in (2, 4) else None)
    first, second = halves
    if first is None or second is None or len(plain(first.shape)) != 2:
        return None
    (rows, columns), (more_rows, more_columns, *kernel_size) = plain(first.shape), second.shape
    return Size((rows * more_rows, columns * more_columns, *kernel_size), second.rank or first.rank)


def measure_glora(shapes: Shapes) -> Size | None:
    """W · A + B of products A and B; LyCORIS before 2.0 had the halves the other way round."""
    a, b = order_glora(shapes) or (None, None)
    if a is None or b is None:
        return None
    into, b_size = _product(*(plain(shapes[name]) for name in a)), _product(plain(shapes[b[0]]), shapes[b[1]])
    if into is None or b_size is None or into.shape != (b_size.shape[1], b_size.shape[1]):
        return None
    return Size(b_size.shape, b_size.rank)


def order_glora(shapes: Shapes) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """(names of A's halves, of B's), each in the order of the product, whichever way the file has them."""
    now = (("a1.weight", "a2.weight"), ("b1.weight", "b2.weight"))
    before = (("a2.weight", "a1.weight"), ("b2.weight", "b1.weight"))
    for a, b in (now, before):
        (up, down), (left, right) = ([plain(shapes[name]) for name in pair] for pair in (a, b))
        if (
            min(map(len, (up, down, left, right))) >= 2
            and up[0] == down[1] == right[1]
            and left[1] == right[0]
            and (up[1] == down[0])
        ):
            return a, b
    return None


def measure_oft(shapes: Shapes) -> Size | None:
    """Rotations of blocks of rows: (blocks, size, size)."""
    blocks = shapes.get("oft_blocks", shapes.get("oft_diag", ()))
    if len(blocks) != 3 or blocks[1] != blocks[2]:
        return None
    return _rotation(shapes, blocks[0] * blocks[1], blocks[1])


def measure_boft(shapes: Shapes) -> Size | None:
    """Butterflies of rotations: (stages, blocks, size, size), stage i mixing rows within 2^i blocks."""
    blocks = shapes["oft_blocks"]
    rows = blocks[1] * blocks[2]
    if (
        len(blocks) != 4
        or blocks[2] != blocks[3]
        or blocks[2] % 2
        or blocks[0] > 32
        or rows % (blocks[2] << (blocks[0] - 1))
    ):
        return None
    return _rotation(shapes, rows, blocks[2])


def _rotation(shapes: Shapes, rows: int, size: int) -> Size | None:
    rescale = shapes.get("rescale")
    if rescale is not None and (rescale[:1] != (rows,) or math.prod(rescale) != rows):
        return None
    return Size((rows,), size, by_rows=True)


def measure_ia3(shapes: Shapes) -> Size | None:
    """A vector of factors; which way it lies is read from the file's `on_input`."""
    return Size((math.prod(shapes["weight"]),), by_rows=True)


def measure_peft_ia3(shapes: Shapes) -> Size | None:
    """(rows, 1) or, of what PEFT calls feedforward, (1, columns); of kernels both are (1, n, 1, 1), which tells nothing."""
    rows, *rest = shapes["ia3_l"]
    if len(rest) != 1 or 1 not in (rows, rest[0]):
        return None
    return Size((rows,), by_rows=True) if rest == [1] else Size((rest[0],), columns=True)


def _product(a: Shape, b: Shape, kernel: Shape | None = None) -> Size | None:
    """a · b; with a kernel (rank, rank, h, w) both lie the other way: a (rank, out), b (rank, in)."""
    if len(a) != 2 or len(b) not in (2, 4):
        return None
    if kernel is None:
        return Size((a[0], *b[1:]), b[0]) if a[1] == b[0] else None
    if len(kernel) != 4 or len(b) != 2 or kernel[:2] != (a[0], b[0]):
        return None
    return Size((a[1], b[1], *kernel[2:]), b[0])


LORA = ("lora_down.weight", "lora_up.weight")
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOKR = frozenset(f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"))
DORA = frozenset({"dora_scale"})
KINDS: tuple[Kind, ...] = (
    Kind("LoRA", ("lora_",), LORA, DORA | {"lora_mid.weight", "lora_up.bias"}, measure_lora),
    Kind("LoHa", ("hada_",), LOHA, DORA | {"hada_t1", "hada_t2"}, measure_loha),
    Kind("LoKr", ("lokr_",), (), DORA | LOKR, measure_lokr),
    Kind("GLoRA", ("a1.", "a2.", "b1.", "b2."), ("a1.weight", "a2.weight", "b1.weight", "b2.weight"), frozenset(),
         measure_glora),
    Kind("OFT", ("oft_blocks",), ("oft_blocks",), frozenset({"rescale"}), measure_oft),
    Kind("OFT", ("oft_diag",), ("oft_diag",), frozenset({"rescale"}), measure_oft),  # LyCORIS before 2.1: R itself
    Kind("IA3", ("on_input",), ("weight", "on_input"), frozenset(), measure_ia3),
    Kind("IA3", ("ia3_l",), ("ia3_l",), frozenset(), measure_peft_ia3),
    Kind("norm", ("w_norm", "b_norm"), ("w_norm",), frozenset({"b_norm"}), lambda shapes: Size(shapes["w_norm"])),
    Kind("full", ("diff",), (), frozenset({"diff"}),
         lambda shapes: Size(shapes["diff"]) if "diff" in shapes else Size(())),
)  # fmt: skip
BOFT = Kind("BOFT", ("oft_blocks",), ("oft_blocks",), frozenset({"rescale"}), measure_boft)


def recognise_kind(shapes: Shapes) -> Kind | None:
    """The kind of a module with these leaves; None where they are of none."""
    for kind in KINDS:
        if any(leaf.startswith(kind.marks) for leaf in shapes):
            return BOFT if kind.title == "OFT" and len(shapes.get("oft_blocks", ())) == 4 else kind
    return None
