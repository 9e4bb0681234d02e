"""What becomes of a prompt: tags, parts, the schedule, pieces, tokens, chunks; for people who ask why. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import RequestError
from .attention import Piece, parse_attention
from .chunks import CHUNK, split_chunks
from .networks import NetworkTag, lora_weights
from .prompt import AndPart, read_prompt
from .schedule import schedule_prompt
from .tokenizer import clip_tokenizer

Weighted = tuple[int, float]
"""A token's id and its weight."""


@dataclass(frozen=True)
class ChunkReport:
    """tokens: at most 75, without start and end. moved: how many more would have fitted, and went to the next chunk to
    stay with the words before them. closed: what ended it: "full", "comma", "BREAK" or "end".
    """

    tokens: tuple[tuple[int, str, float], ...]
    closed: str
    moved: int = 0


@dataclass(frozen=True)
class SegmentReport:
    """One text of the schedule. calls: the first and the last model call at which it holds, from 0; None for never."""

    calls: tuple[int, int] | None
    text: str
    pieces: tuple[Piece, ...]
    chunks: tuple[ChunkReport, ...]
    embeddings: tuple[str, ...]


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
            yield f"  embedding {name}"
        for number, chunk in enumerate(segment.chunks, 1):
            yield f"  chunk {number}: {len(chunk.tokens)} of {CHUNK} tokens{_closing(chunk)}"
            yield from _token_lines(chunk.tokens)


def explain_prompt(
    text: str, *, steps: int, calls: int | None = None, negative: bool = False, embeddings: Iterable[str] = ()
) -> PromptReport:
    """Read a prompt as it is read for a picture.

    calls: as in `schedule_prompt`. embeddings: names of textual inversions, which are reported where the text has them.
    """
    read = read_prompt(text, negative=negative)
    total = steps if calls is None else calls
    notes: list[str] = []
    networks = tuple(_explain_network(tag, notes) for tag in read.networks)
    names = {name: tuple(clip_tokenizer().encode(name)) for name in embeddings}
    parts = tuple(_explain_part(part, steps, total, names) for part in read.parts)
    if negative and read_prompt(text).networks:
        notes.append("tags in a negative prompt are text like any other; write them in the prompt")
    if negative and len(read_prompt(text).parts) > 1:
        notes.append("AND in a negative prompt is a word like any other")
    return PromptReport(text, negative, steps, total, networks, parts, tuple(notes))


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
    rank = "" if weights.dyn is None else f", cut to rank {weights.dyn}"
    return f"{tag}: text encoders {weights.text:g}, UNet {weights.unet:g}{rank}"


def _explain_part(part: AndPart, steps: int, calls: int, names: dict[str, tuple[int, ...]]) -> PartReport:
    segments = []
    first = 0
    read: dict[str, tuple[tuple[Piece, ...], tuple[ChunkReport, ...]]] = {}  # texts of [a|b] come again and again
    for segment in schedule_prompt(part.text, steps, calls=calls):
        last = min(segment.end, calls - 1)
        if segment.text not in read:
            pieces = parse_attention(segment.text)
            read[segment.text] = pieces, tuple(_explain_chunks(pieces))
        pieces, chunks = read[segment.text]
        ids = [token[0] for chunk in chunks for token in chunk.tokens]
        found = tuple(name for name, wanted in names.items() if _holds(ids, wanted))
        holds = (first, last) if first <= last else None
        segments.append(SegmentReport(holds, segment.text, pieces, chunks, found))
        first = last + 1
    return PartReport(part.text, part.weight, tuple(segments))


def _explain_chunks(pieces: Sequence[Piece]) -> Iterator[ChunkReport]:
    """Chunks of each stretch between BREAKs. Each piece is tokenized by itself, as AUTOMATIC1111 does."""
    tokenizer = clip_tokenizer()
    stretches: list[list[Weighted]] = [[]]
    for piece in pieces:
        if piece.is_break:
            stretches.append([])
        else:
            stretches[-1] += ((number, piece.weight) for number in tokenizer.encode(piece.text))
    if len(stretches) > 1 and not stretches[-1]:
        stretches.pop()  # a BREAK at the end opens no chunk
        ends = ["BREAK"] * len(stretches)
    else:
        ends = [*["BREAK"] * (len(stretches) - 1), "end"]
    for stretch, end in zip(stretches, ends, strict=True):
        weights = iter([weight for _, weight in stretch])
        chunks = split_chunks([number for number, _ in stretch])
        for index, chunk in enumerate(chunks):
            tokens = tuple((number, tokenizer.token(number), next(weights)) for number in chunk)
            last = index == len(chunks) - 1
            moved = 0 if last else CHUNK - len(chunk)
            yield ChunkReport(tokens, end if last else "comma" if moved else "full", moved)


def _range(what: str, first: int, last: int) -> str:
    return f"{what} {first + 1}" if first == last else f"{what}s {first + 1} to {last + 1}"


def _closing(chunk: ChunkReport) -> str:
    return {
        "full": ", full",
        "comma": f"; {chunk.moved} after the last comma moved to the next chunk",
        "BREAK": ", closed by BREAK",
        "end": "",
    }[chunk.closed]


def _token_lines(tokens: Sequence[tuple[int, str, float]], width: int = 100) -> Iterator[str]:
    line = ""
    for number, text, weight in tokens:
        word = f"{text.removesuffix('</w>')}{'' if text.endswith('</w>') else '~'}={number}"
        word += "" if weight == 1.0 else f"x{weight:.4g}"
        if line and len(line) + len(word) >= width:
            yield "    " + line
            line = ""
        line += (" " if line else "") + word
    if line:
        yield "    " + line


def _holds(ids: Sequence[int], wanted: Sequence[int]) -> bool:
    length = len(wanted)
    return length > 0 and any(tuple(ids[start : start + length]) == tuple(wanted) for start in range(len(ids)))
