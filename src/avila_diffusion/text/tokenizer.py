"""CLIP's byte-pair tokenizer: 49,408 tokens, the same ids as `CLIPTokenizer` of transformers 5 for any text. No torch.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"; Sennrich et al.
2016 for byte-pair encoding. The merges are OpenAI's (MIT, see data/clip_merges.LICENSE).
"""

from __future__ import annotations

import importlib.resources
import lzma
import re
from collections.abc import Iterable, Sequence
from functools import cache
from heapq import heapify, heappop, heappush
from itertools import pairwise

from ..errors import RequestError
from .characters import normalise, shape

START = 49406
END = 49407
LENGTH = 77
"""Tokens of one chunk: START, 75 tokens of text, END."""

START_TEXT, END_TEXT = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
_MARKS = re.compile("(<\\|(?:start|end)oftext\\|>)")
# Runs on a `shape`, where every letter beyond ASCII is a z. The marks get here only if written in capitals.
_PIECES = re.compile(r"<\|startoftext\|>|<\|endoftext\|>|'(?:s|t|re|ve|m|ll|d)|[a-z]+|[0-9]|[^ a-z0-9]+")
_MAX_WORDS = 1 << 16
_LONG_WORD = 64


class ClipTokenizer:
    """Text to token ids and back.

    merges: lines "left right" in order of rank; a shorter list gives a smaller vocabulary. Ids are: 256 bytes,
    256 bytes that end a word, one a merge, `start`, `end`.

        >>> clip_tokenizer().encode("a photo of a cat")
        [320, 1125, 539, 320, 2368]
    """

    def __init__(self, merges: Sequence[str]) -> None:
        self._byte_characters = _byte_characters()
        single = sorted(self._byte_characters)  # the published order: printable bytes first
        self._single = [*single, *(character + _WORD_END for character in single)]
        self._single_ids = {symbol: number for number, symbol in enumerate(self._single)}
        self._merges = merges
        self._ranks = dict(zip(merges, range(len(merges)), strict=True))
        self._words: dict[str, tuple[int, ...]] = {}
        self.start = len(self._single) + len(merges)
        self.end = self.start + 1

    def __len__(self) -> int:
        return self.end + 1

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, as many as there are, without START and END; "<|endoftext|>" written in it is END itself.

        Defined for every string: lone surrogates count as U+FFFD.
        """
        ids: list[int] = []
        for index, part in enumerate(_MARKS.split(text)):
            if index % 2:
                ids.append(self.start if part == START_TEXT else self.end)
            elif part:
                self._encode_plain(normalise(part), ids)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, lower-cased and with a space after each word; bytes that are not UTF-8 become U+FFFD."""
        characters = {character: byte for byte, character in enumerate(self._byte_characters)}
        text = bytes(characters[character] for number in ids for character in self.token(number))
        return text.decode("utf-8", "replace").replace(_WORD_END, " ").strip()

    def token(self, number: int) -> str:
        """The token as the vocabulary writes it: "cat</w>" ends a word, bytes beyond ASCII stand as other characters.

        Raises RequestError for an id that is not in the vocabulary.
        """
        if number in (self.start, self.end):
            return START_TEXT if number == self.start else END_TEXT
        if not 0 <= number < self.start:
            raise RequestError(f"token id {number} is not in the vocabulary; ids go from 0 to {self.end:,}")
        merge = number - len(self._single)
        return self._single[number] if merge < 0 else self._merges[merge].replace(" ", "")

    def encode_padded(self, text: str, length: int = LENGTH, pad: int | None = None) -> list[int]:
        """`length` ids: START, the first `length` - 2 of the text, END, padding. See `pad_chunk`."""
        return self.pad_chunk(self.encode(text)[: length - 2], length, pad)

    def pad_chunk(self, ids: Sequence[int], length: int = LENGTH, pad: int | None = None) -> list[int]:
        """START, `ids`, END, then `pad` up to `length`. pad: None for END, as CLIP-L wants it; 0 for OpenCLIP towers.

        With another pad than END everything after the first END is padding, also if END was written in the text
        (AUTOMATIC1111's rule). Raises RequestError where `ids` are more than fit.
        """
        if len(ids) > length - 2:
            raise RequestError(f"{len(ids)} tokens do not fit a chunk of {length}; at most {length - 2} do")
        chunk = [self.start, *ids, *[self.end] * (length - 1 - len(ids))]
        if pad is not None and pad != self.end:
            first = chunk.index(self.end) + 1
            chunk[first:] = [pad] * (length - first)
        return chunk

    def _encode_plain(self, text: str, ids: list[int]) -> None:
        words = self._words
        for match in _PIECES.finditer(shape(text)):
            word = text[match.start() : match.end()]
            known = words.get(word)
            if known is None:
                known = self._encode_word(word)
                if len(words) >= _MAX_WORDS:
                    words.clear()
                if len(word) <= _LONG_WORD:
                    words[word] = known
            ids += known

    def _encode_word(self, word: str) -> tuple[int, ...]:
        if word in (START_TEXT, END_TEXT):  # lower-cased: three words, not the mark
            return tuple(number for part in ("<|", word[2:-2], "|>") for number in self._encode_word(part))
        symbols = [self._byte_characters[byte] for byte in word.encode("utf-8")]
        symbols[-1] += _WORD_END
        return self._merge(symbols)

    def _merge(self, symbols: list[str]) -> tuple[int, ...]:
        """Joins the pair of lowest rank, the leftmost of equals, until none is left; the ids of what remains.

        A heap of pairs over a linked list: n log n, so that a word of 100,000 letters is no way to stop a server.
        """
        ranks = self._ranks
        pairs = map(" ".join, pairwise(symbols))
        heap = [(ranks[pair], left) for left, pair in enumerate(pairs) if pair in ranks]
        ids = [self._single_ids[symbol] for symbol in symbols]
        if not heap:
            return tuple(ids)
        heapify(heap)
        count = len(symbols)
        before, after = list(range(-1, count - 1)), list(range(1, count + 1))

        def rank_at(left: int) -> int | None:
            right = after[left]
            return ranks.get(f"{symbols[left]} {symbols[right]}") if right < count and symbols[left] else None

        while heap:
            rank, left = heappop(heap)
            if rank_at(left) != rank:  # one side has been joined to something else meanwhile
                continue
            right = after[left]
            ids[left] = len(self._single) + rank
            symbols[left] += symbols[right]
            symbols[right] = ""
            after[left] = after[right]
            if after[right] < count:
                before[after[right]] = left
            for changed in (before[left], left):
                if changed >= 0 and (fresh := rank_at(changed)) is not None:
                    heappush(heap, (fresh, changed))
        return tuple(number for number, symbol in zip(ids, symbols, strict=True) if symbol)


@cache
def clip_tokenizer() -> ClipTokenizer:
    """The tokenizer of Stable Diffusion 1, 2 and XL, loaded once."""
    source = importlib.resources.files("avila_diffusion") / "data" / "clip_merges.xz"
    return ClipTokenizer(lzma.decompress(source.read_bytes()).decode("utf-8").split("\n"))


def _byte_characters() -> list[str]:
    """A visible character for every byte: itself where it is printable Latin-1, else the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(hidden)) for byte in range(256)]
