"""A prompt of any length as chunks of 75 tokens with a weight each, by the rules of the program it is read as. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

CHUNK = 75
"""Tokens of text in a chunk; with the start and end tokens it fills the tower's 77 places."""
COMMA = 267
"""The token "," at the end of a word."""
BACKTRACK = 20
LONG_GROUP = 8
"""ComfyUI: so many tokens of one weight are cut anywhere, fewer stay together."""
PLACEHOLDER = 0
"""The token that stands where an embedding's vectors go."""


@dataclass(frozen=True)
class Found:
    """An embedding that was named: how many vectors it has, and how many tokens its name takes up."""

    name: str
    vectors: int
    length: int = 0


Find = Callable[[Sequence[int], int], Found | None]
"""(tokens, place) → the embedding whose name begins at that place, if one does."""


@dataclass(frozen=True)
class Part:
    """A piece of a prompt as tokens that share a weight; or a BREAK; or an embedding that was named for itself."""

    tokens: Sequence[int] = ()
    weight: float = 1.0
    is_break: bool = False
    embedding: Found | None = None


@dataclass(frozen=True)
class Placed:
    """An embedding's vectors, `vectors` of them, in a chunk from token `place` on, counted without the start token."""

    name: str
    place: int
    vectors: int


@dataclass(frozen=True)
class Chunk:
    """At most 75 tokens and their weights. moved: how many of them, its first, came over from the chunk before.

    closed: what ended it: "full", "comma" (what followed the last one moved on), "embedding" or "group" (the next did not
    fit), "BREAK" or "end". It says nothing of what the chunk is.
    """

    tokens: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    placed: tuple[Placed, ...] = ()
    moved: int = 0
    closed: str = field(default="end", compare=False)

    @property
    def stranded(self) -> tuple[Placed, ...]:
        """Embeddings whose place moved to the next chunk while their vectors stayed here, behind the last token."""
        return tuple(item for item in self.placed if item.place >= len(self.tokens))


EMPTY = Chunk()


@dataclass
class _Open:
    """The chunk being filled."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)
    moved: int = 0
    comma: int = -1  # place of the last comma

    def add(self, tokens: Sequence[int], weight: float) -> None:
        self.tokens += tokens
        self.weights += [weight] * len(tokens)

    def put(self, found: Found, weight: float) -> None:
        self.placed.append(Placed(found.name, len(self.tokens), found.vectors))
        self.add([PLACEHOLDER] * found.vectors, weight)

    def closed(self, by: str = "end") -> Chunk:
        return Chunk(tuple(self.tokens), tuple(self.weights), tuple(self.placed), self.moved, by)

    def cut(self, place: int) -> _Open:
        """Take the tokens from `place` on into a new chunk.

        The vectors of an embedding among them stay: AUTOMATIC1111 moves the tokens and forgets the vectors, which then
        lie over this chunk's padding, and its pictures have them there.
        """
        rest = _Open(self.tokens[place:], self.weights[place:], moved=len(self.tokens) - place)
        del self.tokens[place:], self.weights[place:]
        return rest


def _nothing(tokens: Sequence[int], place: int) -> Found | None:
    return None


def find_names(names: Mapping[str, Sequence[int]], vectors: Callable[[str], int]) -> Find:
    """Finds embeddings by the tokens of their names, the longest name that fits. vectors: a name → how many it has.

    It is asked only for names that are found, so that no file is read for nothing.
    """
    known: dict[int, list[tuple[tuple[int, ...], str]]] = {}
    for name, tokens in names.items():
        if tokens:
            known.setdefault(tokens[0], []).append((tuple(tokens), name))
    for same in known.values():
        same.sort(key=lambda item: -len(item[0]))

    def find(tokens: Sequence[int], place: int) -> Found | None:
        for ids, name in known.get(tokens[place], ()):
            if tuple(tokens[place : place + len(ids)]) == ids:
                return Found(name, vectors(name), len(ids))
        return None

    return find


def chunk_a1111(
    parts: Iterable[Part], find: Find = _nothing, *, length: int = CHUNK, backtrack: int = BACKTRACK
) -> list[Chunk]:
    """Chunks as AUTOMATIC1111 cuts them; an empty text is one empty chunk.

    Where a chunk is full and a comma lies within its last `backtrack` tokens, what follows that comma moves to the next
    chunk, so that a phrase is not torn. A BREAK closes the chunk, even an empty one; an embedding that does not fit begins
    a new one. An embedding's vectors must be at most `length`.
    """
    chunks: list[Chunk] = []
    chunk = _Open()
    for part in parts:
        if part.is_break:
            chunks.append(chunk.closed("BREAK"))
            chunk = _Open()
            continue
        place = 0
        while place < len(part.tokens):
            token = part.tokens[place]
            full = len(chunk.tokens) == length
            if token == COMMA:
                chunk.comma = len(chunk.tokens)
            elif full and chunk.comma != -1 and length - chunk.comma <= backtrack:
                rest = chunk.cut(chunk.comma + 1)
                chunks.append(chunk.closed("comma" if rest.tokens else "full"))
                chunk = rest
            # A comma that is the token which does not fit moves nothing. And what moved may fill the new chunk again.
            if len(chunk.tokens) == length:
                chunks.append(chunk.closed("full"))
                chunk = _Open()
            found = find(part.tokens, place)
            if found is None:
                chunk.add([token], part.weight)
                place += 1
                continue
            if len(chunk.tokens) + found.vectors > length:
                chunks.append(chunk.closed("embedding"))
                chunk = _Open()
            chunk.put(found, part.weight)
            place += found.length
    if chunk.tokens or not chunks:
        chunks.append(chunk.closed())
    return chunks


def chunk_comfyui(parts: Iterable[Part], *, length: int = CHUNK) -> list[Chunk]:
    """Chunks as ComfyUI cuts them: fewer than 8 tokens of one weight stay together, more are cut where a chunk is full.

    An embedding is such a group too, and it is torn where it is long.
    """
    chunks: list[Chunk] = []
    chunk = _Open()
    for part in parts:
        count = part.embedding.vectors if part.embedding else len(part.tokens)
        done = 0
        while done < count:
            room = length - len(chunk.tokens)
            take = count - done
            if take > room:
                take = room if count >= LONG_GROUP else 0
            if part.embedding and take:
                # The rest of a torn embedding begins at a negative place: its first vectors lie in the chunk before.
                chunk.placed.append(Placed(part.embedding.name, len(chunk.tokens) - done, count))
            chunk.add([PLACEHOLDER] * take if part.embedding else list(part.tokens[done : done + take]), part.weight)
            done += take
            if done < count:
                full = len(chunk.tokens) == length
                chunks.append(chunk.closed("full" if full else "embedding" if part.embedding else "group"))
                chunk = _Open()
    return [*chunks, chunk.closed()]


def chunk_diffusers(parts: Iterable[Part], find: Find = _nothing, *, length: int = CHUNK) -> tuple[Chunk, int]:
    """(the one chunk that diffusers reads, the number of tokens it leaves out). Weights count for nothing."""
    whole = _Open()
    for part in parts:
        place = 0
        while place < len(part.tokens):
            found = find(part.tokens, place)
            if found is None:
                whole.add([part.tokens[place]], 1.0)
                place += 1
            else:
                whole.put(found, 1.0)
                place += found.length
    dropped = max(len(whole.tokens) - length, 0)
    placed = tuple(item for item in whole.placed if item.place < length)
    return Chunk(tuple(whole.tokens[:length]), tuple(whole.weights[:length]), placed), dropped


def split_chunks(tokens: Sequence[int], length: int = CHUNK, backtrack: int = BACKTRACK) -> list[list[int]]:
    """Plain tokens, cut as AUTOMATIC1111 cuts them; see `chunk_a1111`."""
    return [list(chunk.tokens) for chunk in chunk_a1111([Part(tokens)], length=length, backtrack=backtrack)]
