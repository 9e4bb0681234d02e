"""LoRA files in kohya's layout (sd-scripts, Hu et al. 2021): checked and taken apart by their header. No tensor is read
but the alphas.

A module of such a file is `NAME.lora_down.weight`, `NAME.lora_up.weight`, often `NAME.alpha` (else it equals the rank) and
seldom `NAME.lora_mid.weight`. NAME begins with `lora_unet_`, `lora_te_`, or `lora_te1_` and `lora_te2_` for two text
towers, and goes on with the layer's name, its dots turned to underscores. Other kinds of files are named and refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import NotADiffusionModel, Unsupported, WeightMismatch
from ..header import FLOATS, Header, TensorEntry, read_header, shown
from ..kinds import recognise
from ..safetensors import read_small

MAX_RANK = 16384
"""Ranks in use are 1 to 512; a claim of more than this is not multiplied out."""
LEAVES = ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha")
NAME = re.compile(rf"(lora_(?:unet|te|te1|te2)_\w+)\.({'|'.join(map(re.escape, LEAVES))})", re.ASCII)
SINGLE_FILE = re.compile(r"lora_unet_(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)_")
# Patterns over tensor names, tried in order, and what a file with a match holds.
OTHERS: tuple[tuple[str, str], ...] = (
    (r"^lora_unet_(double|single|joint)_blocks_|^lora_transformer_|^lora_te3_|^lora_prior_|(double|single|joint)_blocks\.",
     "a LoRA for another kind of model (Flux, Stable Diffusion 3 or the like)"),
    (r"\.dora_scale$|\.lora_magnitude_vector", "DoRA weights"),
    (r"\.hada_[wt]\d", "LoHa weights"),
    (r"\.lokr_[wt]\d", "LoKr weights"),
    (r"\.oft_|\.boft_", "OFT weights"),
    (r"\.on_input$", "IA3 weights"),
    (r"\.(diff|diff_b|set_weight)$", "whole differences of weights"),
    (r"\.[ab][12]\.weight$", "GLoRA weights"),
    (r"\.[wb]_norm$", "changes of normalisations"),
    (r"^bundle_emb\.", "embeddings beside the LoRA"),
    (r"^lycoris_", "LyCORIS's names"),
    (r"\.lora_[AB]\.|\.lora_embedding_[AB]", "PEFT's names"),
    (r"\.(lora|lora_linear_layer)\.(up|down)\.|_lora\.(up|down)\.", "diffusers' names"),
    (r"(^|:)\d+:(up|down)$", "the numbered names of the first LoRA program"),
)  # fmt: skip
_COMPILED = tuple((re.compile(pattern, re.MULTILINE), title) for pattern, title in OTHERS)
_WHOLE = frozenset({"I64", "I32", "I16", "I8", "U8"})


@dataclass(frozen=True)
class LoraModule:
    """What a file says about one layer. alpha: the rank where the file has none."""

    name: str
    down: TensorEntry
    up: TensorEntry
    mid: TensorEntry | None
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What up · down is multiplied with at strength 1."""
        return self.alpha / self.rank


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA file whose header was read. modules: by the names in the file."""

    header: Header
    modules: Mapping[str, LoraModule]

    @property
    def path(self) -> Path:
        return self.header.path

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({module.rank for module in self.modules.values()}))

    @property
    def convention(self) -> str:
        """The dialect of its names, for the report."""
        unet = [name for name in self.modules if name.startswith("lora_unet_")]
        if not unet:
            return "kohya, text encoder only"
        return "kohya, single-file names" if any(map(SINGLE_FILE.match, unet)) else "kohya, diffusers names"

    @property
    def text_width(self) -> int | None:
        """How wide a text its cross-attention looks at, which tells the family; None where it does not change that."""
        ends = ("_attn2_to_k", "_attn2_to_v")
        widths = (module.down.shape[1] for name, module in self.modules.items() if name.endswith(ends))
        return next(widths, None)


def read_lora(path: str | Path) -> Lora:
    """Read the header of a LoRA file and its alphas.

    Raises HeaderError or PickleRefused for what is no safetensors file, NotADiffusionModel for one that holds no LoRA,
    Unsupported for kinds and names that are not read yet, WeightMismatch for a LoRA that is incomplete or damaged.
    """
    header = read_header(path)
    parts = _take_apart(header)
    alphas = _read_alphas(header, [entries["alpha"] for entries in parts.values() if "alpha" in entries])
    return Lora(header, {name: _module(header, name, entries, alphas) for name, entries in parts.items()})


def _take_apart(header: Header) -> dict[str, dict[str, TensorEntry]]:
    """Module name → leaf → tensor. Raises where the file is, or holds, something else."""
    names = "\n".join(header.entries)
    for pattern, title in _COMPILED:
        if pattern.search(names):
            line = next(name for name in header.entries if pattern.search(name))
            raise Unsupported(
                f"{header.path.name} holds {title}, such as {shown(line)}; only plain LoRA under kohya's "
                "names (lora_unet_….lora_down.weight) for SD 1, SD 2 and SDXL is read"
            )
    parts: dict[str, dict[str, TensorEntry]] = {}
    others = []
    for name, entry in header.entries.items():
        if plain := NAME.fullmatch(name):
            parts.setdefault(plain[1], {})[plain[2]] = entry
        else:
            others.append(name)
    if not parts:
        kind = recognise(header)
        raise NotADiffusionModel(f"{header.path.name} is not a LoRA that is known here; it looks like {kind.title}")
    if others:
        raise WeightMismatch(
            f"{header.path.name} has {len(others):,} tensors that no LoRA has, such as {shown(others[0])}; expected only "
            f"{', '.join(LEAVES)}; take another file"
        )
    return parts


def _read_alphas(header: Header, entries: list[TensorEntry]) -> dict[str, float]:
    """Tensor name → value. Raises WeightMismatch for what is no single finite number."""
    for entry in entries:
        if math.prod(entry.shape) != 1 or entry.dtype not in FLOATS | _WHOLE:
            raise WeightMismatch(
                f"{header.path.name}: {shown(entry.name)} is {entry.dtype} of shape {list(entry.shape)}, expected one number; "
                "download it again"
            )
    arrays = read_small(header, [entry.name for entry in entries], limit=8 * len(entries))
    alphas = {name: float(array.reshape(-1)[0]) for name, array in arrays.items()}
    for name, alpha in alphas.items():
        if not math.isfinite(alpha):
            raise WeightMismatch(f"{header.path.name}: {shown(name)} is {alpha}, expected a number; download it again")
    return alphas


def _module(header: Header, name: str, entries: Mapping[str, TensorEntry], alphas: Mapping[str, float]) -> LoraModule:
    missing = [leaf for leaf in LEAVES[:2] if leaf not in entries]
    if missing:
        raise WeightMismatch(
            f"{header.path.name} has no {shown(f'{name}.{missing[0]}')} beside {' and '.join(entries)}; download it again"
        )
    down, up, mid = (entries.get(leaf) for leaf in LEAVES[:3])
    assert down is not None and up is not None
    for entry in filter(None, (down, up, mid)):
        if entry.dtype not in FLOATS or len(entry.shape) not in (2, 4) or 0 in entry.shape:
            raise WeightMismatch(
                f"{header.path.name}: {shown(entry.name)} is {entry.dtype} of shape {list(entry.shape)}, expected a matrix "
                "or a convolution of plain floats; download it again"
            )
    if down.shape[0] > MAX_RANK:
        raise WeightMismatch(
            f"{header.path.name}: {shown(down.name)} has rank {down.shape[0]:,}; at most {MAX_RANK:,} is expected"
        )
    alpha = alphas[entries["alpha"].name] if "alpha" in entries else float(down.shape[0])
    return LoraModule(name, down, up, mid, alpha)
