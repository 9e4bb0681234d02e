"""Emphasis: which words of a prompt count how much. AUTOMATIC1111's reading, and ComfyUI's. No torch.

Both readings take any text, never raise, and take time linear in its length: nothing recurses, and no bracket is
looked at more than a fixed number of times.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from .comfyui import read_comfyui

BREAK = "BREAK"
UP, DOWN = 1.1, 1 / 1.1
"""What `(…)` and `[…]` multiply by."""

Numbers = Literal["a1111", "comfyui"]

_TOKEN = re.compile(r"\\[()\[\]\\]|\\|\(|\[|:\s*([+-]?[.\d]+)\s*\)|\)|\]|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b")
_SPECIAL = re.compile(r"[()\[\]\\]")
_LARGEST = sys.float_info.max
_EXACT = 32


@dataclass(frozen=True)
class Piece:
    """Text of one weight. The marker that closes a chunk is `Piece("BREAK", -1.0)`, as in AUTOMATIC1111."""

    text: str
    weight: float

    @property
    def is_break(self) -> bool:
        """Whether this closes a chunk. A BREAK inside brackets has another weight, and is a word like others."""
        return self.text == BREAK and self.weight == -1.0


def parse_attention(text: str, *, numbers: Numbers = "a1111") -> tuple[Piece, ...]:
    """A prompt as pieces of one weight each; at least one piece, never a weight that is not finite.

    "a1111": `(…)` x 1.1, `[…]` / 1.1, `(…:x)` x x, and brackets in brackets multiply; one that is not closed reaches to
    the end, one that was not opened is text; backslash takes the meaning from ( ) [ ] \\ and vanishes before all else;
    neighbours of equal weight are joined. A number that is none, as in `(a:1.2.3)`, is text.

    "comfyui": `(…)` x 1.1, while a number takes the place of whatever stands outside; no `[…]`, no BREAK, `\\(` and `\\)`
    are the brackets themselves, and a bracket without its partner is text.

        >>> parse_attention("a (red:1.2) [car]")
        (Piece(text='a ', weight=1.0), Piece(text='red', weight=1.2), Piece(text=' ', weight=1.0), \
Piece(text='car', weight=0.9090909090909091))

    Source: the behaviour of AUTOMATIC1111 1.10.1 and of ComfyUI.
    """
    if numbers == "comfyui":
        # A space before it costs no token, and keeps the word from being AUTOMATIC1111's marker.
        read: Iterator[Piece] = (
            Piece(" " + part if part == BREAK else part, weight) for part, weight in read_comfyui(text)
        )
    else:
        read = _join(_read_a1111(text))
    pieces = tuple(read)
    return pieces or (Piece("", 1.0),)


def print_attention(pieces: Sequence[Piece]) -> str:
    """A prompt in AUTOMATIC1111's grammar that is read as exactly these pieces, if a parse gave them.

    >>> print_attention([Piece("a (small) ", 1.0), Piece("house", 1.3)])
    'a \\\\(small\\\\) (house:1.3)'
    """
    breaks = {index for index in range(len(pieces)) if _is_plain_break(pieces, index)}
    printed = []
    for index, piece in enumerate(pieces):
        if index in breaks:
            printed.append(BREAK)
            continue
        before, after = index - 1 in breaks, index + 1 in breaks
        text = _BREAK.sub("BRE\\\\AK", _SPECIAL.sub(r"\\\g<0>", piece.text))
        if piece.weight != 1.0 or not (text or before or after or len(pieces) == 1):
            # A backslash that escapes nothing is a piece without text.
            printed.append(f"({text or chr(92)}:{_decimal(piece.weight)})")
            continue
        if not text:  # BREAK gives this piece itself
            printed.append(" " if 0 < index < len(pieces) - 1 else "")
            continue
        # BREAK takes the white space around it: the text's own stays behind a backslash that escapes nothing.
        opening = ("\\" if text[:1].isspace() else " ") if before else ""
        closing = ("\\" if text[-1:].isspace() else " ") if after else ""
        printed.append(opening + text + closing)
    return "".join(printed)


def _is_plain_break(pieces: Sequence[Piece], index: int) -> bool:
    """Whether BREAK in the printed text gives this piece: then text of weight 1 is on both sides, be it empty."""
    around = [pieces[near].weight for near in (index - 1, index + 1) if 0 <= near < len(pieces)]
    return pieces[index].is_break and around == [1.0, 1.0]


def _decimal(number: float) -> str:
    return format(Decimal(repr(number)), "f")  # the grammar has no exponents


@dataclass(slots=True)
class _Bracket:
    """closed: when it was closed, as a count of tokens. product: its factor times those of the brackets around it."""

    around: _Bracket | None
    factor: float = 1.0
    closed: int = 0
    product: float = 1.0


def _read_a1111(text: str) -> Iterator[tuple[str, float]]:
    """Texts and weights as they stand, neighbours not yet joined."""
    found: list[tuple[str, float, _Bracket | None, _Bracket | None]] = []
    brackets: list[_Bracket] = []
    tops: dict[str, _Bracket | None] = {"(": None, "[": None}  # the innermost open one of each shape
    now = 0

    def close(shape: str, factor: float) -> None:
        bracket = tops[shape]
        assert bracket is not None
        bracket.factor, bracket.closed = factor, now
        tops[shape] = bracket.around

    for now, match in enumerate(_TOKEN.finditer(text)):  # noqa: B007 (close reads it)
        token, number = match[0], _number(match[1])
        if token in tops:
            brackets.append(_Bracket(tops[token]))
            tops[token] = brackets[-1]
        elif match[1] is not None and tops["("] is not None:
            if number is None:
                found.append((token[:-1], 1.0, tops["("], tops["["]))
            close("(", UP if number is None else number)
        elif token == ")" and tops["("] is not None:
            close("(", UP)
        elif token == "]" and tops["["] is not None:
            close("[", DOWN)
        else:
            found += ((part, sign, tops["("], tops["["]) for part, sign in _plain(token))
    for shape, factor in (("(", UP), ("[", DOWN)):
        now += 1
        while tops[shape] is not None:
            close(shape, factor)
    for bracket in brackets:  # the outer ones were opened first
        bracket.product = _times(bracket.factor, bracket.around.product if bracket.around else 1.0)
    return ((part, sign * _weight(round_one, square)) for part, sign, round_one, square in found)


def _plain(token: str) -> Iterator[tuple[str, float]]:
    """An escape, or text with its BREAK marks, which take the white space around them; -1 is the mark's own weight."""
    if token[0] == "\\":
        yield token[1:], 1.0
        return
    parts = _BREAK.split(token)
    for index, part in enumerate(parts):
        if index:
            yield BREAK, -1.0
            part = part.lstrip()
        yield part.rstrip() if index + 1 < len(parts) else part, 1.0


def _weight(round_one: _Bracket | None, square: _Bracket | None) -> float:
    """The product of all brackets around a text, in the order in which they were closed: the order decides the last bits.

    Beyond 32 brackets the outer ones come as one product, so that time stays linear.
    """
    weight = 1.0
    for _ in range(_EXACT):
        if square is None or (round_one is not None and round_one.closed < square.closed):
            if round_one is None:
                return weight
            weight, round_one = _times(weight, round_one.factor), round_one.around
        else:
            weight, square = _times(weight, square.factor), square.around
    for bracket in (round_one, square):
        weight = _times(weight, bracket.product if bracket else 1.0)
    return weight


def _times(one: float, other: float) -> float:
    return max(-_LARGEST, min(_LARGEST, one * other))


def _number(text: str | None) -> float | None:
    """A number within what a float holds; None where the text is none."""
    try:
        return _times(float(text), 1.0) if text is not None else None
    except ValueError:
        return None


def _join(pieces: Iterable[tuple[str, float]]) -> Iterator[Piece]:
    """Neighbours of equal weight as one."""
    texts: list[str] = []
    last = 1.0
    for text, weight in pieces:
        if texts and weight != last:
            yield Piece("".join(texts), last)
            texts = []
        texts.append(text)
        last = weight
    if texts:
        yield Piece("".join(texts), last)
