"""What becomes of a prompt: tags, parts, the schedule, pieces, tokens, chunks; for people who ask why. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import AvilaError, RequestError
from .attention import Piece
from .chunks import CHUNK, PLACEHOLDER, Chunk
from .dialects import Dialect, Emphasis, unknown_marks
from .networks import NetworkTag, lora_weights
from .prompt import AndPart, read_prompt, schedule_part, weight_notes
from .reading import Taken, TextReader
from .tokenizer import clip_tokenizer


@dataclass(frozen=True)
class ChunkReport:
    """tokens: at most 75, without start and end; an embedding's vectors have its name for text. moved: how many more would
    have fitted, and went to the next chunk to stay together. closed: what ended it, see `Chunk`.
    """

    tokens: tuple[tuple[int, str, float], ...]
    closed: str
    moved: int = 0


@dataclass(frozen=True)
class SegmentReport:
    """One text of the schedule. calls: the first and the last model call at which it holds, from 0; None for never.

    vectors: how many each embedding has.
    """

    calls: tuple[int, int] | None
    text: str
    pieces: tuple[Piece, ...]
    chunks: tuple[ChunkReport, ...]
    embeddings: tuple[str, ...]
    vectors: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PartReport:
    """One part of AND, and its weight."""

    text: str
    weight: float
    segments: tuple[SegmentReport, ...]


@dataclass(frozen=True)
class PromptReport:
    """calls: as many as the schedule counts, over `steps`. notes: what is refused, or read as text."""

    text: str
    negative: bool
    steps: int
    calls: int
    networks: tuple[str, ...]
    parts: tuple[PartReport, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people. Calls and steps count from 1 here."""
        lines = [f"{'negative prompt' if self.negative else 'prompt'}: {self.text!r}"]
        lines += [f"  network {text}" for text in self.networks]
        lines += [f"  note: {note}" for note in self.notes]
        for number, part in enumerate(self.parts, 1):
            if len(self.parts) > 1 or part.weight != 1.0:
                lines.append(f"  part {number} of {len(self.parts)}, weight {part.weight:g}: {part.text!r}")
            seen: set[str] = set()
            for segment in part.segments:
                lines += [f"  {line}" for line in self._segment_lines(segment, again=segment.text in seen)]
                seen.add(segment.text)
        return lines

    def _segment_lines(self, segment: SegmentReport, *, again: bool) -> Iterator[str]:
        if segment.calls is None:
            yield f"never: {segment.text!r}"
            return
        first, last = segment.calls
        when = f"{_range('call', first, last)} of {self.calls}"
        if self.calls != self.steps:
            a_step = self.calls // self.steps
            when += f" ({_range('step', first // a_step, last // a_step)})"
        if again:
            yield f"{when}: {segment.text!r}, as above"
            return
        yield f"{when}: {segment.text!r}"
        for piece in segment.pieces:
            yield "  BREAK" if piece.is_break else f"  weight {piece.weight:<6.4g} {piece.text!r}"
        for name in segment.embeddings:
            count = segment.vectors[name]
            yield f"  embedding {name}, {count} vector{'' if count == 1 else 's'}"
        for number, chunk in enumerate(segment.chunks, 1):
            yield f"  chunk {number}: {len(chunk.tokens)} of {CHUNK} tokens{_closing(chunk)}"
            yield from _token_lines(chunk.tokens)


def explain_prompt(
    text: str,
    *,
    steps: int,
    calls: int | None = None,
    negative: bool = False,
    dialect: Dialect = "a1111",
    emphasis: Emphasis = "Original",
    embeddings: Iterable[str] = (),
    vectors: Callable[[str], int] = lambda name: 1,
) -> PromptReport:
    """Read a prompt as it is read for a picture, by the same chunks.

    calls: as in `schedule_prompt`. dialect, emphasis: as in `Conditioner`. embeddings: names of textual inversions, which
    are found where the text has them; vectors: how many one has, asked for those that are found; where it raises, its line
    is a note.
    """
    read = read_prompt(text, negative=negative, dialect=dialect)
    total = steps if calls is None else calls
    notes: list[str] = []
    networks = tuple(_explain_network(tag, notes) for tag in read.networks)
    notes += (*unknown_marks([part.text for part in read.parts], dialect), *weight_notes(read.parts))
    reader = TextReader(dialect, emphasis, names=tuple(embeddings), vectors=_Counts(vectors, notes).of)
    parts = tuple(_explain_part(part, steps, total, reader, notes) for part in read.parts)
    if negative and read_prompt(text, dialect=dialect).networks:
        notes.append("tags in a negative prompt are text like any other; write them in the prompt")
    if negative and len(read_prompt(text, dialect=dialect).parts) > 1:
        notes.append("AND in a negative prompt is a word like any other")
    return PromptReport(text, negative, steps, total, networks, parts, tuple(dict.fromkeys(notes)))


def _explain_network(tag: NetworkTag, notes: list[str]) -> str:
    if not tag.is_lora:
        known = "hypernetworks are not supported" if tag.kind == "hypernet" else "expected lora or lyco"
        notes.append(f"{tag} is refused: there is no network of the kind {tag.kind!r} here ({known})")
        return str(tag)
    try:
        weights = lora_weights(tag)
    except RequestError as error:
        notes.append(str(error))
        return str(tag)
    rank = "" if weights.dyn is None else f", cut to rank {weights.dyn} where it is plain LoRA"  # not read here
    return f"{tag}: text encoders {weights.text:g}, UNet {weights.unet:g}{rank}"


@dataclass
class _Counts:
    """How many vectors an embedding has, asked once; where that raises, its line is a note."""

    vectors: Callable[[str], int]
    notes: list[str]
    known: dict[str, int] = field(default_factory=dict)

    def of(self, name: str) -> int:
        if name not in self.known:
            self.known[name] = 1  # something stands at its place, also where it cannot be read
            try:
                self.known[name] = self.vectors(name)
            except AvilaError as error:
                self.notes.append(f"embedding {name} is refused: {error}")
        return self.known[name]


def _explain_part(part: AndPart, steps: int, calls: int, reader: TextReader, notes: list[str]) -> PartReport:
    segments = []
    first = 0
    read: dict[str, Taken] = {}  # texts of [a|b] come again and again
    for segment in schedule_part(part, steps, calls=calls, dialect=reader.dialect):
        last = min(segment.end, calls - 1)
        if segment.text not in read:
            read[segment.text] = reader.take(segment.text)
        taken = read[segment.text]
        notes += taken.notes
        found = {item.name: item.vectors for chunk in taken.chunks for item in chunk.placed}
        holds = (first, last) if first <= last else None
        segments.append(
            SegmentReport(holds, segment.text, taken.pieces, tuple(_explain_chunks(taken.chunks)), tuple(found), found)
        )
        first = last + 1
    return PartReport(part.text, part.weight, tuple(segments))


def _explain_chunks(chunks: Sequence[Chunk]) -> Iterator[ChunkReport]:
    tokenizer = clip_tokenizer()
    for index, chunk in enumerate(chunks):
        texts = [tokenizer.token(number) for number in chunk.tokens]
        for item in chunk.placed:
            first, last = max(item.place, 0), min(item.place + item.vectors, len(texts))  # it may be torn
            texts[first:last] = [item.name] * (last - first)
        moved = chunks[index + 1].moved if chunk.closed == "comma" else 0
        yield ChunkReport(tuple(zip(chunk.tokens, texts, chunk.weights, strict=True)), chunk.closed, moved)


def _range(what: str, first: int, last: int) -> str:
    return f"{what} {first + 1}" if first == last else f"{what}s {first + 1} to {last + 1}"


def _closing(chunk: ChunkReport) -> str:
    return {
        "full": ", full",
        "comma": f"; {chunk.moved} after the last comma moved to the next chunk",
        "embedding": ", closed because the embedding that follows did not fit",
        "group": ", closed because the weighted words that follow did not fit",
        "BREAK": ", closed by BREAK",
        "end": "",
    }[chunk.closed]


def _token_lines(tokens: Sequence[tuple[int, str, float]], width: int = 100) -> Iterator[str]:
    line = ""
    for number, text, weight in tokens:
        word = f"{text.removesuffix('</w>')}{'' if text.endswith('</w>') else '~'}={number}"
        if number == PLACEHOLDER and text != clip_tokenizer().token(PLACEHOLDER):
            word = f"[{text}]"  # a vector of an embedding
        word += "" if weight == 1.0 else f"x{weight:.4g}"
        if line and len(line) + len(word) >= width:
            yield "    " + line
            line = ""
        line += (" " if line else "") + word
    if line:
        yield "    " + line
