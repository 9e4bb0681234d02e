"""One text → chunks of tokens, as one of the dialects reads it. What is encoded, and what `avila prompt` shows. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from .attention import BREAK
from .chunks import Chunk, Find, Found, Part, chunk_a1111, chunk_comfyui, chunk_diffusers, find_names
from .dialects import Dialect, Emphasis
from .prompt import Piece, parse_attention
from .tokenizer import clip_tokenizer

_NAMED = re.compile("(?:^|[ \\n])embedding:")


@dataclass(frozen=True)
class Taken:
    """A text taken apart. pieces: texts of one weight. notes: what was left out or went to an odd place."""

    pieces: tuple[Piece, ...]
    chunks: tuple[Chunk, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class TextReader:
    """Takes texts apart. read: a text → its token ids, by default CLIP's tokenizer. dialect, emphasis: see `Conditioner`.

    names: those of the embeddings that texts may name. vectors: such a name → how many it has, asked only for those that
    are found; what it raises goes through.
    """

    dialect: Dialect = "a1111"
    emphasis: Emphasis = "Original"
    read: Callable[[str], Sequence[int]] = field(default_factory=lambda: clip_tokenizer().encode)
    names: Sequence[str] = ()
    vectors: Callable[[str], int] = lambda name: 1

    def take(self, text: str) -> Taken:
        """The pieces and chunks of a text."""
        notes: list[str] = []
        if self.dialect == "comfyui":
            pieces = parse_attention(text, numbers="comfyui")
            chunks = chunk_comfyui(self._comfyui_parts(pieces, notes))
        elif self.dialect == "diffusers":
            pieces = (Piece(text, 1.0),)
            only, dropped = chunk_diffusers([Part(self.read(text))], self._find)
            chunks = [only]
            if dropped:
                notes.append(f"diffusers reads 75 tokens; the last {dropped} of a prompt were left out")
        else:
            pieces = self._a1111_pieces(text, notes)
            chunks = chunk_a1111(
                [Part(is_break=True) if one.is_break else Part(self.read(one.text), one.weight) for one in pieces],
                self._find,
            )
            notes += [
                f"embedding {item.name}: a comma before it moved its place to the next chunk and, as in AUTOMATIC1111, "
                "its vectors stayed behind; put BREAK or fewer words before it"
                for chunk in chunks
                for item in chunk.stranded
            ]
        return Taken(pieces, tuple(chunks), tuple(dict.fromkeys(notes)))

    def _a1111_pieces(self, text: str, notes: list[str]) -> tuple[Piece, ...]:
        if self.emphasis == "None":
            return (Piece(text, 1.0),)
        pieces = parse_attention(text)
        for one in pieces:
            if one.text == BREAK and one.weight < 0 and not one.is_break:
                notes.append(
                    f"BREAK inside brackets closes no chunk; as in AUTOMATIC1111 it is a word of weight {one.weight:.4g}: "
                    "close the brackets before it"
                )
        if self.emphasis != "Ignore":
            return pieces
        return tuple(one if one.is_break else Piece(one.text, 1.0) for one in pieces)

    def _comfyui_parts(self, pieces: Sequence[Piece], notes: list[str]) -> list[Part]:
        """Groups of one weight; `embedding:name` is a group of its own, and what follows it another."""
        parts = []
        for piece in pieces:
            before, *named = _NAMED.split(piece.text)
            if before:
                parts.append(Part(self.read(before), piece.weight))
            for words in named:
                name, rest = (*words.split(None, 1), "", "")[:2]
                known, comma = self._known.get(name.casefold()), ""
                if known is None:
                    comma = name[len(name.rstrip(",")) :]
                    name = name.rstrip(",")
                    known = self._known.get(name.casefold())
                if known is None:
                    notes.append(f"there is no embedding {name!r}; as in ComfyUI it was left out of the prompt")
                else:
                    parts.append(Part(embedding=Found(known, self.vectors(known)), weight=piece.weight))
                if rest := f"{comma} {rest}".strip():
                    parts.append(Part(self.read(rest), piece.weight))
        return parts

    @cached_property
    def _known(self) -> Mapping[str, str]:
        """Names without case → as they are written."""
        return {name.casefold(): name for name in reversed(self.names)}

    @cached_property
    def _find(self) -> Find:
        return find_names({name: self.read(name) for name in self.names}, self.vectors)
