"""LoRA files and their kin: checked and taken apart by their header. No torch, no tensor is read but single numbers.

`names` brings the names of the many programs to one, `kinds` tells what each module does. What a module lacks, or has too
much, is named and refused here; whether it fits a model is told in `apply`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...errors import NotADiffusionModel, RequestError, Unsupported, WeightMismatch
from ..header import FLOATS, Header, TensorEntry, shown
from ..kinds import recognise
from .kinds import Kind, Size, recognise_kind
from .names import Place, count_conventions, read_name
from .settings import AdapterSettings, read_settings
from .source import read_lora_header, read_numbers

MAX_RANK = 16384
"""Ranks in use are 1 to 512; a claim of more than this is not multiplied out."""
NUMBERS = ("alpha", "scale", "on_input")
EMBEDDING = re.compile(r"<[^<>]+>|bundle_emb\.[^.]+\..+")
"""Vectors of textual inversion beside the LoRA."""
FAMILY_OF_TEXT_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl_refiner"}
"""The width of the text that a family's cross-attention looks at."""
FAMILY_OF_BASE = (("xl", "sdxl"), ("sd_v2", "sd2"), ("diffusion-v2", "sd2"), ("sd_v1", "sd1"), ("diffusion-v1", "sd1"))
"""What trainers write into the metadata of the model they trained on."""
# Patterns over tensor names, tried in order, and what a file with a match holds.
OTHERS: tuple[tuple[str, str], ...] = (
    (r"^lora_unet_(double|single|joint)_blocks_|^lora_transformer_|^lora_te3_|^lora_prior_|(double|single|joint)_blocks\."
     r"|^transformer\.|^lora_unet_(joint_)?transformer_blocks_",
     "a LoRA for another kind of model (Flux, Stable Diffusion 3 or the like)"),
    (r"\.set_weight$", "weights that replace a layer's"),
    (r"\.lora_embedding_[AB]", "changes of the table of tokens"),
    (r"\.bias_(indices|values|size)$", "sparse changes of biases"),
    (r"\.(oft_[rRs]|boft_[RSPs]|vera_lambda_[bd]|hra_u|fourierft_spectrum)(\.|$)",
     "an adapter of a kind of PEFT's that is not read (only LoRA, LoHa, LoKr and IA3 of PEFT's are)"),
    (r"^(unet:|text_encoder:)?\d+:up:(conv|bias)|^\d+:(up|down)$", "numbered layers without the name of their network"),
)  # fmt: skip
_COMPILED = tuple((re.compile(pattern, re.MULTILINE), title) for pattern, title in OTHERS)
_WHOLE = frozenset({"I64", "I32", "I16", "I8", "U8", "BOOL"})


@dataclass(frozen=True)
class LoraModule:
    """What a file says about one layer.

    module: the layer as the file names it; name: kohya's name of it. parts: by leaf. size: of the weight that it is for,
    None where its parts do not go together. scale: alpha / rank, or what the kind has instead; alpha is the rank where the
    file has none. numbers: the leaves that are single numbers.
    """

    module: str
    name: str
    kind: Kind
    parts: Mapping[str, TensorEntry]
    size: Size | None
    scale: float
    numbers: Mapping[str, float]

    @property
    def rank(self) -> int | None:
        return None if self.size is None else self.size.rank

    @property
    def can_be_cut(self) -> bool:
        """Whether `dyn` changes it: a product of two matrices, with no kernel between."""
        return self.kind.title == "LoRA" and "lora_up.weight" in self.parts and "lora_mid.weight" not in self.parts

    @property
    def title(self) -> str:
        """The kind for people: LoCon is LoRA on kernels, DoRA one with its magnitudes apart."""
        title = self.kind.title
        if title == "LoRA" and (
            "lora_mid.weight" in self.parts or (self.size and self.size.shape[2:] not in ((), (1, 1)))
        ):
            title = "LoCon"
        return f"DoRA of {title}" if "dora_scale" in self.parts else title

    def describe(self) -> str:
        """Its parts with their shapes."""
        shapes = (f"{leaf} {list(entry.shape)}" for leaf, entry in self.parts.items() if leaf not in NUMBERS)
        return f"{self.title} of {', '.join(shapes)}"


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA file whose header was read. modules: by the names in the file. embeddings: names of tensors beside them.

    dyn: how much of the rank is used, None for all of it.
    """

    header: Header
    modules: Mapping[str, LoraModule]
    convention: str
    embeddings: tuple[str, ...] = ()
    dyn: int | None = field(default=None, kw_only=True)

    @property
    def path(self) -> Path:
        return self.header.path

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({module.rank for module in self.modules.values() if module.rank is not None}))

    @property
    def scales(self) -> tuple[float, ...]:
        return tuple(sorted({module.scale for module in self.modules.values()}))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Titles, the most frequent first."""
        titles = [module.title for module in self.modules.values()]
        return tuple(sorted(set(titles), key=lambda title: (-titles.count(title), title)))

    @property
    def text_width(self) -> int | None:
        """How wide a text its cross-attention looks at, which tells the family; None where it does not change that."""
        counted = self.header.metadata.get("unet", "GEGLU")
        ends = ("_attn2_to_k", "_attn2_to_v", "unet:6" if "GEGLU" in counted else "unet:5")
        for module in self.modules.values():
            if module.name.endswith(ends) and module.size is not None:
                if module.size.columns:
                    return module.size.shape[0]
                if len(module.size.shape) > 1:
                    return module.size.shape[1]
        return None

    @property
    def family(self) -> str | None:
        """The family it was trained on, by the width of the text, a second text tower or the metadata; None: unknown."""
        if self.text_width in FAMILY_OF_TEXT_WIDTH:
            return FAMILY_OF_TEXT_WIDTH[self.text_width]
        if any(module.name.startswith("lora_te2_") for module in self.modules.values()):
            return "sdxl"
        told = " ".join(
            self.header.metadata.get(key, "") for key in ("ss_base_model_version", "modelspec.architecture")
        )
        return next((family for mark, family in FAMILY_OF_BASE if mark in told.lower()), None)

    def cut(self, rank: int | None) -> Lora:
        """The same with the first `rank` of its ranks alone, as A1111's `dyn` has it: for LoRA without a kernel between.

        Raises RequestError for less than 1.
        """
        if rank is not None and rank < 1:
            raise RequestError(f"the rank of {self.path.name} cannot be cut to {rank}; give 1 or more")
        return replace(self, dyn=rank)

    def describe(self) -> str:
        """One line for people."""
        ranks = ", ".join(map(str, self.ranks[:4])) + (", …" if len(self.ranks) > 4 else "")
        return f"{', '.join(self.kinds)}; {self.convention}{f'; rank {ranks}' if ranks else ''}"


def read_lora(path: str | Path) -> Lora:
    """Read the header of a LoRA file and its numbers; of a pickled file (.pt, .bin) without running anything in it.

    Raises HeaderError or PickleRefused for a damaged or hostile file, NotADiffusionModel for one that holds no LoRA,
    Unsupported for kinds that are not read, WeightMismatch for a LoRA that is incomplete or damaged.
    """
    return parse_lora(read_lora_header(path))


def parse_lora(header: Header) -> Lora:
    """As `read_lora`, of a header that was read."""
    places, embeddings = _take_apart(header)
    settings = read_settings(header)
    parts: dict[str, dict[str, TensorEntry]] = {}
    for tensor, place in places.items():
        leaves = parts.setdefault(place.module, {})
        if place.leaf in leaves:
            raise WeightMismatch(
                f"{header.path.name} has {place.leaf} of {shown(place.module)} twice, as {shown(leaves[place.leaf].name)} "
                f"and {shown(tensor)}; it was put together wrongly"
            )
        leaves[place.leaf] = header.entries[tensor]
    numbers = _read_numbers(
        header, [entry for leaves in parts.values() for leaf, entry in leaves.items() if leaf in NUMBERS]
    )
    names = {place.module: place.name for place in places.values()}
    modules = {
        module: _module(header, module, names[module], leaves, numbers, settings) for module, leaves in parts.items()
    }
    convention = count_conventions([place.convention for place in places.values()])
    return Lora(header, modules, convention, embeddings)


def _take_apart(header: Header) -> tuple[dict[str, Place], tuple[str, ...]]:
    """Tensor name → what it says; the names of embeddings. Raises where the file is, or holds, something else."""
    names = "\n".join(header.entries)
    for pattern, title in _COMPILED:
        if pattern.search(names):
            line = next(name for name in header.entries if pattern.search(name))
            raise Unsupported(
                f"{header.path.name} holds {title}, such as {shown(line)}; take a LoRA for SD 1, SD 2 or SDXL as "
                "kohya's, diffusers' or LyCORIS's programs write them"
            )
    embeddings = tuple(name for name in header.entries if EMBEDDING.fullmatch(name))
    apart = set(embeddings)
    found = {name: read_name(name) for name in header.entries if name not in apart}
    factors = {place.module for place in found.values() if place and place.leaf == "on_input"}
    places: dict[str, Place] = {}
    others = []
    for name, place in found.items():
        if place is None or (place.leaf == "weight" and place.module not in factors):  # else every layer would be IA3
            others.append(name)
        else:
            places[name] = place
    if not places:
        kind = recognise(header)
        raise NotADiffusionModel(f"{header.path.name} is not a LoRA that is known here; it looks like {kind.title}")
    if others:
        raise WeightMismatch(
            f"{header.path.name} has {len(others):,} tensors that no LoRA has, such as {shown(others[0])}; expected names "
            "such as lora_unet_….lora_down.weight; take another file"
        )
    return places, embeddings


def _read_numbers(header: Header, entries: list[TensorEntry]) -> dict[str, float]:
    """Tensor name → value. Raises WeightMismatch for what is no single finite number."""
    for entry in entries:
        if math.prod(entry.shape) != 1 or entry.dtype not in FLOATS | _WHOLE:
            raise WeightMismatch(
                f"{header.path.name}: {shown(entry.name)} is {entry.dtype} of shape {list(entry.shape)}, expected one number; "
                "download it again"
            )
    arrays = read_numbers(header, [entry.name for entry in entries], limit=8 * len(entries))
    numbers = {name: float(array.reshape(-1)[0]) for name, array in arrays.items()}
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise WeightMismatch(f"{header.path.name}: {shown(name)} is {number}, expected a number; download it again")
    return numbers


def _module(
    header: Header,
    module: str,
    name: str,
    parts: Mapping[str, TensorEntry],
    values: Mapping[str, float],
    settings: AdapterSettings | None,
) -> LoraModule:
    file = header.path.name
    shapes = {leaf: entry.shape for leaf, entry in parts.items()}
    kind = recognise_kind(shapes)
    if kind is None:
        raise WeightMismatch(
            f"{file} has no weights beside {' and '.join(parts)} of {shown(module)}; download it again"
        )
    if missing := kind.missing(parts):
        raise WeightMismatch(
            f"{file} has no {shown(f'{module}.{missing[0]}')} beside {' and '.join(parts)}; download it again"
        )
    if strangers := kind.strangers(parts):
        raise Unsupported(f"{file}: {shown(module)} is {kind.title} with {strangers[0]}, which is not read")
    for leaf, entry in parts.items():
        if leaf not in NUMBERS and (entry.dtype not in FLOATS or not 0 < len(entry.shape) < 5 or 0 in entry.shape):
            raise WeightMismatch(
                f"{file}: {shown(entry.name)} is {entry.dtype} of shape {list(entry.shape)}, expected a tensor of plain "
                "floats; download it again"
            )
    size = kind.measure(shapes)
    numbers = {leaf: values[entry.name] for leaf, entry in parts.items() if leaf in NUMBERS}
    if size is not None and numbers.get("on_input"):
        size = replace(size, columns=True)
    if size is not None and (size.rank or 0) > MAX_RANK:
        raise WeightMismatch(f"{file}: {shown(module)} has rank {size.rank:,}; at most {MAX_RANK:,} is expected")
    return LoraModule(module, name, kind, parts, size, _scale(module, name, kind, size, numbers, settings), numbers)


def _scale(
    module: str,
    name: str,
    kind: Kind,
    size: Size | None,
    numbers: Mapping[str, float],
    settings: AdapterSettings | None,
) -> float:
    """What the change is multiplied with at strength 1: alpha / rank, where there is a rank and alpha is no constraint."""
    if "scale" in numbers:
        return numbers["scale"]
    if size is None or size.rank is None or kind.title in ("OFT", "BOFT"):
        return 1.0
    if "alpha" in numbers:
        return numbers["alpha"] / size.rank
    told = settings.scale(module, name, size.rank) if settings is not None else None
    return 1.0 if told is None else told
