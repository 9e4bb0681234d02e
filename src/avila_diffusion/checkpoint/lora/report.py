"""What a LoRA file is and how it fits a model: for people, and in plain values for JSON. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config import FAMILIES
from ..header import is_unchanged, shown
from ..report import shorten
from .files import Lora


@dataclass(frozen=True, kw_only=True)
class LoraReport:
    """How a LoRA file fits a model. Every module of the file is in exactly one of matched, unmatched and mis_shaped.

    kinds: what its modules are, the most frequent first. family: that it was trained on, as far as it tells.
    text_weight, unet_weight: the strengths asked for; dyn: how much of the rank, uncut: how many modules are of a kind that has
    no rank to cut, and are in effect whole. ranks, scales: the different ranks, and values
    of alpha / rank; what is applied is a strength times a scale. matched: how many modules change each network. unmatched:
    names that the model has not. mis_shaped: name, what was found, what was expected. embeddings: textual inversion beside it.
    metadata: what the trainer wrote into the file. size, mtime_ns: of the file when it was read.
    """

    path: Path
    kinds: tuple[str, ...] = ()
    convention: str
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    family: str | None = None
    text_weight: float
    unet_weight: float
    dyn: int | None = None
    uncut: int = 0
    matched: dict[str, int] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    mis_shaped: list[str] = field(default_factory=list)
    embeddings: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict, repr=False)
    size: int
    mtime_ns: int

    @property
    def name(self) -> str:
        """What people call it: the file's name without the suffix."""
        return self.path.stem

    @property
    def share(self) -> float:
        """How much of the file is in effect, 0 to 1, by number of modules."""
        matched = sum(self.matched.values())
        return matched / max(1, matched + len(self.unmatched) + len(self.mis_shaped))

    @property
    def unchanged(self) -> bool:
        """Whether the file is still the one that was applied, by its size and time."""
        return is_unchanged(self.path, self.size, self.mtime_ns)

    def describe(self) -> str:
        """One line for people."""
        parts = " and ".join(f"{count:,} of the {part}" for part, count in self.matched.items())
        scales = sorted({f"{scale:g}" for scale in self.scales})
        ranks = f", rank {', '.join(shorten(map(str, self.ranks), 4))}" if self.ranks else ""
        left = len(self.unmatched) + len(self.mis_shaped)
        base = self.metadata.get("ss_base_model_version")
        return (
            f"{', '.join(self.kinds)}, {self.convention}{ranks}, alpha / rank {', '.join(shorten(scales, 3))}, "
            f"changes {parts or 'nothing'}"
            f"{f', leaves out {left:,} that do not fit' if left else ''}"
            f"{self._cut()}"
            f"{f', trained on {shown(base)}' if base else ''}"
        )

    def _cut(self) -> str:
        if self.dyn is None:
            return ""
        all_of_them = sum(self.matched.values()) + len(self.unmatched) + len(self.mis_shaped)
        if self.uncut and self.uncut >= all_of_them:
            return f", not cut to rank {self.dyn}, because its kinds have no rank to cut"
        left = f" but for {self.uncut:,} of other kinds" if self.uncut else ""
        return f", cut to rank {self.dyn}{left}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "path": str(self.path),
            "name": self.name,
            "kinds": list(self.kinds),
            "convention": self.convention,
            "ranks": list(self.ranks),
            "scales": list(self.scales),
            "family": self.family,
            "text_weight": self.text_weight,
            "unet_weight": self.unet_weight,
            "dyn": self.dyn,
            "uncut": self.uncut,
            "matched": self.matched,
            "unmatched": self.unmatched,
            "mis_shaped": self.mis_shaped,
            "share": self.share,
            "embeddings": list(self.embeddings),
        }


def begin_report(lora: Lora, text_weight: float, unet_weight: float) -> LoraReport:
    """Of a file, before it is held against a model."""
    return LoraReport(
        path=lora.path,
        kinds=lora.kinds,
        convention=lora.convention,
        ranks=lora.ranks,
        scales=lora.scales,
        family=lora.family,
        text_weight=text_weight,
        unet_weight=unet_weight,
        dyn=lora.dyn,
        uncut=0 if lora.dyn is None else sum(not module.can_be_cut for module in lora.modules.values()),
        embeddings=lora.embeddings,
        metadata=lora.header.metadata,
        size=lora.header.size,
        mtime_ns=lora.header.mtime_ns,
    )


def describe_file(lora: Lora) -> tuple[dict[str, Any], list[str]]:
    """What `inspect` says of a file: plain values, and lines for people."""
    scales = [f"{scale:g}" for scale in lora.scales]
    parts = {
        title: sum(module.name.startswith(prefixes) for module in lora.modules.values())
        for title, prefixes in (("unet", ("lora_unet_", "unet:")), ("text encoders", ("lora_te", "text_encoder:")))
    }
    family = FAMILIES[lora.family].title if lora.family else "not told by the file"
    values = {
        "kinds": list(lora.kinds),
        "convention": lora.convention,
        "ranks": list(lora.ranks),
        "scales": list(lora.scales),
        "family": lora.family,
        "modules": parts,
        "embeddings": list(lora.embeddings),
    }
    lines = [
        f"kind {', '.join(lora.kinds)}",
        f"names {lora.convention}",
        f"rank {', '.join(shorten(map(str, lora.ranks), 4)) or 'none'}, alpha / rank {', '.join(shorten(scales, 3))}",
        f"for {family}",
        f"changes {' and '.join(f'{count:,} layers of the {part}' for part, count in parts.items() if count)}",
    ]
    if lora.embeddings:
        lines.append(f"embeddings beside it: {', '.join(shorten(lora.embeddings, 3))}")
    return values, lines
