"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): new vectors for a new word, all networks as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint.safetensors import write_safetensors
from ..errors import RequestError
from ..models.clip import ClipTextModel
from ..models.tokens import Embedding
from ..text.tokenizer import clip_tokenizer
from .personal import Personal
from .settings import check_range
from .sheets import write_sheet
from .state import fingerprint
from .unet import LENGTH

TOKENS = LENGTH - 2
"""Of a caption that are trained with: one chunk."""
FILE_KEYS = {1: ("emb_params",), 2: ("clip_l", "clip_g")}
"""Names that AUTOMATIC1111 reads: one tower's vectors, or both of SDXL's."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingModel:
    """word: stands in the captions where the new vectors go. vectors: how many. begin: words whose vectors they begin as."""

    word: str
    vectors: int = 4
    begin: str = "*"

    def __post_init__(self) -> None:
        if not self.word.strip():
            raise RequestError("model.word is empty; expected a word that the captions have")
        check_range("model.vectors", self.vectors, 1, 64)
        count = len(clip_tokenizer().encode(self.begin))
        if not 1 <= count <= self.vectors:
            raise RequestError(
                f"model.begin {self.begin!r} is {count} tokens; expected 1 to {self.vectors}, model.vectors"
            )

    @property
    def pattern(self) -> re.Pattern[str]:
        """The word standing alone, in small letters or capitals."""
        return re.compile(rf"(?<!\w){re.escape(self.word.strip())}(?!\w)", re.IGNORECASE)


@dataclass(eq=False)
class EmbeddingTask:
    """Vectors behind the tables of every text tower of `personal`'s model, under ids past the vocabulary."""

    embedding: EmbeddingModel
    personal: Personal

    def __post_init__(self) -> None:
        first = clip_tokenizer().encode(self.embedding.begin)
        self._vectors: dict[str, nn.Parameter] = {}
        self._tables = [token_table(tower) for tower in self.personal.model.text]
        for key, table in zip(FILE_KEYS[len(self._tables)], self._tables, strict=True):
            ids = torch.tensor([first[number % len(first)] for number in range(self.embedding.vectors)])
            self._vectors[key] = nn.Parameter(table(ids, torch.float32).detach().clone())
            table.extend(self._vectors[key])
        self.personal.read = self.read
        rows = self._tables[0].rows
        captions = (caption for item in self.personal.data.items for caption in item.captions)
        if not any(token >= rows for caption in captions for token in self.read(caption)[:TOKENS]):
            raise RequestError(
                f"no caption has the word {self.embedding.word!r} within its first {TOKENS} tokens; write it where the new "
                "vectors should go"
            )

    def read(self, text: str) -> list[int]:
        """Token ids, the word's occurrences as ids past the vocabulary."""
        tokenizer = clip_tokenizer()
        first = self._tables[0].rows
        new = list(range(first, first + self.embedding.vectors))
        ids: list[int] = []
        for number, part in enumerate(self.embedding.pattern.split(text)):
            ids += new if number else []
            ids += tokenizer.encode(part)
        return ids

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        return self._vectors

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint("embedding", self.embedding, self.personal.settings.optimizer, self.personal.digest)

    def loss(self, step: int) -> dict[str, Tensor]:
        return self.personal.loss(step)

    def sheet(self, path: Path) -> None:
        write_sheet(path, self.personal.draw(self.personal.sample_prompts), columns=4)

    def export(self, path: Path) -> None:
        """The vectors alone, (vectors, width) for each tower, under AUTOMATIC1111's names."""
        tensors = {key: vectors.detach().contiguous() for key, vectors in self._vectors.items()}
        write_safetensors(path, tensors, {"modelspec.architecture": "stable-diffusion/textual-inversion"})


def token_table(tower: nn.Module) -> Embedding:
    """The table of token vectors of a text tower."""
    if isinstance(tower, ClipTextModel):
        return tower.text_model.embeddings.token_embedding
    table = tower.token_embedding
    assert isinstance(table, Embedding)
    return table
