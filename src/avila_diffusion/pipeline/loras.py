"""The LoRAs on a loaded model: those it was loaded with, and those that the prompt at hand names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..checkpoint.embeddings import Embedding, read_bundled
from ..checkpoint.load import Model
from ..checkpoint.lora.apply import LoraReport, apply_loras
from ..checkpoint.lora.files import Lora, read_lora
from ..checkpoint.lora.find import find_lora
from ..errors import Unsupported
from ..hashes import FileHash, hash_in_background
from ..text.prompt import Dialect, NetworkTag, lora_weights, read_prompt

Weighted = tuple[Lora, float, float]
"""A LoRA with its weight for the text towers and for the UNet."""


@dataclass(eq=False)
class LoraRack:
    """Changes the model from one set of LoRAs to another. given: those that hold for every request.

    mapped, min_match: see `apply_loras`. models: the folder where names are looked up, by default the usual ones.
    """

    model: Model
    given: tuple[Weighted, ...] = ()
    mapped: bool = True
    min_match: float = 1.0
    models: str | Path | None = None
    _read: dict[tuple[Path, int, int], Lora] = field(default_factory=dict)
    _words: dict[tuple[Path, int, int], tuple[Embedding, ...]] = field(default_factory=dict)
    _on: tuple[Weighted, ...] = ()
    _reports: tuple[LoraReport, ...] = ()

    def named(self, prompt: str, dialect: Dialect = "a1111") -> tuple[Weighted, ...]:
        """The LoRAs that a prompt's tags name, in their order; a comment has no tags.

        Raises Unsupported for tags of other kinds, and errors of one line for files that are not found or damaged.
        """
        return tuple(self._named(tag) for tag in read_prompt(prompt, dialect=dialect).networks)

    def use(self, named: Sequence[Weighted] = ()) -> tuple[LoraReport, ...]:
        """Change the model by those it was given and by these, and by no others; a report for each, in that order.

        Nothing is done where they are on it already. Raises WeightMismatch where one does not fit; the model is then as
        it was.
        """
        wanted = (*self.given, *named)
        if wanted != self._on:
            self._reports = apply_loras(self.model, wanted, mapped=self.mapped, min_match=self.min_match)
            self._on = wanted
        return self._reports

    def words(self, named: Sequence[Weighted]) -> dict[str, Embedding]:
        """The embeddings that these LoRAs bring along, by name; the first where two have one name.

        Raises FileProblem where their vectors are damaged.
        """
        found: dict[str, Embedding] = {}
        for lora, *_ in named:
            if not lora.embeddings:
                continue
            key = (lora.path, lora.header.size, lora.header.mtime_ns)
            if key not in self._words:
                self._words[key] = read_bundled(lora.path)
            for item in self._words[key]:
                found.setdefault(item.name, item)
        return found

    def _named(self, tag: NetworkTag) -> Weighted:
        if not tag.is_lora:
            what = "hypernetworks are" if tag.kind.startswith("hyper") else f"networks of the kind {tag.kind!r} are"
            raise Unsupported(f"{tag} cannot be applied, because {what} not supported; take it out of the prompt")
        weights = lora_weights(tag)
        path = find_lora(tag.name.strip(), self.models)
        stat = path.stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in self._read:
            self._read[key] = read_lora(path)
        lora = self._read[key]
        return (lora if weights.dyn is None else replace(lora, dyn=weights.dyn)), weights.text, weights.unet


def lora_hashes(loras: Sequence[LoraReport]) -> dict[str | Path, FileHash]:
    """By path, begun in the background; a file that was replaced since it was read has none."""
    return {path: hash_in_background(path, tensors_only=True) for path in {one.path for one in loras if one.unchanged}}
